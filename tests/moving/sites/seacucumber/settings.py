import os

from base_settings import *  # noqa: F403

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django_bouncy",
    "seacucumber",
]

EMAIL_BACKEND = "seacucumber.backend.SESBackend"

AWS_ACCESS_KEY_ID = os.environ["SES_KEY_ID"]
AWS_SECRET_ACCESS_KEY = os.environ["SES_KEY"]
AWS_SES_REGION_NAME = "eu-west-1"
CUCUMBER_RATE_LIMIT = 20
CUCUMBER_ROUTE_QUEUE = "mail"

BOUNCY_TOPIC_ARN = ["arn:aws:sns:eu-west-1:123456789012:mail-feedback"]

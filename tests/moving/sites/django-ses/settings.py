import os

from base_settings import *  # noqa: F403

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django_ses",
]

EMAIL_BACKEND = "django_ses.SESBackend"
USE_SES_V2 = True

AWS_SES_ACCESS_KEY_ID = os.environ["SES_KEY_ID"]
AWS_SES_SECRET_ACCESS_KEY = os.environ["SES_KEY"]
AWS_SES_REGION_NAME = "eu-west-1"
AWS_SES_REGION_ENDPOINT_URL = os.environ["AWS_ENDPOINT_URL"]
AWS_SES_CONFIGURATION_SET = "site"
AWS_SES_AUTO_THROTTLE = 0.5
AWS_SES_USE_BLACKLIST = True
AWS_SES_ADD_BOUNCE_TO_BLACKLIST = True
AWS_SNS_EVENT_TRUSTED_TOPIC_ARNS = ["arn:aws:sns:eu-west-1:123456789012:mail-feedback"]

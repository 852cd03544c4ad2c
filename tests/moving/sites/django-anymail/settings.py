import os

from base_settings import *  # noqa: F403

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "anymail",
]

EMAIL_BACKEND = "anymail.backends.amazon_ses.EmailBackend"

ANYMAIL = {
    "AMAZON_SES_CLIENT_PARAMS": {"region_name": "eu-west-1"},
    "AMAZON_SES_CONFIGURATION_SET_NAME": "site",
    "AMAZON_SES_AUTO_CONFIRM_SNS_SUBSCRIPTIONS": True,
    "WEBHOOK_SECRET": os.environ["WEBHOOK_SECRET"],
}

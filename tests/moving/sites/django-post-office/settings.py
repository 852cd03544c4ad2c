from datetime import timedelta

from base_settings import *  # noqa: F403

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "post_office",
]
TEMPLATES = [
    *TEMPLATES,  # noqa: F405
    {
        "BACKEND": "post_office.template.backends.post_office.PostOfficeTemplates",
        "APP_DIRS": True,
        "DIRS": [],
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    },
]
MEDIA_ROOT = "media"

EMAIL_BACKEND = "post_office.EmailBackend"

POST_OFFICE = {
    "BACKENDS": {"default": "django.core.mail.backends.smtp.EmailBackend"},
    "BATCH_SIZE": 50,
    "MAX_RETRIES": 4,
    "RETRY_INTERVAL": timedelta(minutes=15),
}

from base_settings import *  # noqa: F403

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "mailer",
]

EMAIL_BACKEND = "mailer.backend.DbBackend"

MAILER_EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
MAILER_EMAIL_THROTTLE = 1
MAILER_EMAIL_MAX_BATCH = 500

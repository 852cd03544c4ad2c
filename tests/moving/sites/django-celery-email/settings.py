from base_settings import *  # noqa: F403

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "djcelery_email",
]

EMAIL_BACKEND = "djcelery_email.backends.CeleryEmailBackend"

CELERY_EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
CELERY_EMAIL_TASK_CONFIG = {"queue": "mail", "rate_limit": "50/m"}
CELERY_EMAIL_CHUNK_SIZE = 2

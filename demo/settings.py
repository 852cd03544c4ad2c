"""Settings of the site. What ``python -m demo`` decides comes by the environment."""

from __future__ import annotations

import os
from pathlib import Path

import django

FOLDER = Path(os.environ["DEMO_FOLDER"])
SITE_URL = os.environ["DEMO_SITE_URL"]
SES_URL = os.environ["DEMO_SES_URL"]
VALKEY_URL = os.environ["DEMO_VALKEY_URL"]

SECRET_KEY = os.environ["DEMO_SECRET_KEY"]
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "demo.urls"
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGIN_REDIRECT_URL = "home"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "connect_mailer",
    "connect_mailer.bouncy",
    "demo",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": FOLDER / "site.sqlite3",
        # Several processes write: they wait for each other instead of failing.
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;",
        },
    }
}
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": f"{VALKEY_URL}/1",
    }
}
CELERY_BROKER_URL = f"{VALKEY_URL}/0"

DEFAULT_FROM_EMAIL = "The Demo Gazette <gazette@example.com>"
# Django 6.1 has MAILERS in the place of EMAIL_BACKEND.
if django.VERSION >= (6, 1):
    MAILERS = {
        "default": {"BACKEND": "connect_mailer.backend.ConnectMailerBackend"},
        "transactional": {"BACKEND": "connect_mailer.backend.TransactionalBackend"},
    }
else:
    EMAIL_BACKEND = "connect_mailer.backend.ConnectMailerBackend"

CONNECT_MAILER = {
    "SES_REGION": "us-east-1",
    "SES_ENDPOINT_URL": SES_URL,
    "SES_CONFIGURATION_SET": "demo",
    "UNSUBSCRIBE_BASE_URL": SITE_URL,
    # Shorter than its default, so that nobody has to watch for five minutes what becomes of a
    # worker's mail after its death.
    "LEASE_SECONDS": 20,
}
AWS_ACCESS_KEY_ID = AWS_SECRET_ACCESS_KEY = "demo"
BOUNCY_TOPIC_ARN = ["arn:aws:sns:us-east-1:123456789012:ses-feedback"]

# One-click links must be https on the open network; this site never leaves the machine.
SILENCED_SYSTEM_CHECKS = ["connect_mailer.W004"]

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
}

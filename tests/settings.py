"""Settings of the test site."""

from __future__ import annotations

import os

import django

from tests.servers import databases

SECRET_KEY = "a key for tests only"
USE_TZ = True
ROOT_URLCONF = "tests.urls"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "connect_mailer",
    "connect_mailer.bouncy",
]
MIDDLEWARE = [
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
DATABASES = databases()
# A password is no secret here, and the hash of a real one takes most of a short test's time.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# Django 6.1 has MAILERS in the place of EMAIL_BACKEND, and warns about the old name.
if django.VERSION < (6, 1) or os.environ.get("TEST_EMAIL_SETTING") == "EMAIL_BACKEND":
    EMAIL_BACKEND = "connect_mailer.backend.ConnectMailerBackend"
else:
    MAILERS = {"default": {"BACKEND": "connect_mailer.backend.ConnectMailerBackend"}}
DEFAULT_FROM_EMAIL = "site@example.com"
CONNECT_MAILER = {"UNSUBSCRIBE_BASE_URL": "https://www.example.com"}

"""What every site has."""

import environ

env = environ.Env()

SECRET_KEY = env("SECRET_KEY")
ORIGIN = env("ORIGIN", default="http://localhost:8000")
ALLOWED_HOSTS = ["*"]
DATABASES = {"default": env.db("DATABASE_URL")}
# A worker writes as well: as the check of SQLite asks.
DATABASES["default"]["OPTIONS"] = {
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
    "init_command": "PRAGMA journal_mode=WAL",
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
ROOT_URLCONF = "tests.connect.urls"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "tests.connect.accounts",
    "connect_mailer",
    "connect_mailer.bouncy",
]
TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True},
]

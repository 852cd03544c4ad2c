"""The broker, which is an add-on of the platform."""

from tests.connect.settings.django_settings import env

CELERY_BROKER_URL = env("BROKER_URL", default="memory://")

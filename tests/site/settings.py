"""Settings of the site, from the environment that the test makes."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.servers import postgres
from tests.settings import INSTALLED_APPS, MIDDLEWARE, STATIC_URL, TEMPLATES  # noqa: F401

SECRET_KEY = "a key for tests only"
USE_TZ = True
ROOT_URLCONF = "tests.site.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DEFAULT_FROM_EMAIL = "site@example.com"
# On the server of this test run, or on another one.
SERVER = json.loads(os.environ.get("SITE_SERVER", "null")) or postgres()
DATABASES: dict[str, Any] = {"default": {**SERVER, "NAME": os.environ["SITE_DATABASE"]}}

CELERY_BROKER_URL = os.environ.get("SITE_BROKER_URL") or os.environ["SITE_REDIS_URL"]

AWS_ACCESS_KEY_ID = os.environ.get("SITE_KEY_ID", "test")
AWS_SECRET_ACCESS_KEY = "test"
CONNECT_MAILER = {
    "SES_REGION": "us-east-1",
    "SES_ENDPOINT_URL": os.environ["SITE_SES_URL"],
    "REDIS_URL": os.environ["SITE_REDIS_URL"] or None,
    "MAX_DRAINS": 4,
    **json.loads(os.environ.get("SITE_CONNECT_MAILER", "{}")),
}
BOUNCY_TOPIC_ARN = os.environ.get("SITE_TOPIC", "")
ALLOWED_HOSTS = ["*"]
if os.environ.get("SITE_PEERS"):
    from tests.benchmarks._peers import list_apps

    INSTALLED_APPS = [*INSTALLED_APPS, *list_apps()]
    DATABASES["default"]["CONN_MAX_AGE"] = None
# What a page of the documentation has, or a test wants besides.
exec(os.environ.get("SITE_SETTINGS", ""))

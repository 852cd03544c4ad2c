"""A site that still has django-post-office, and has this app already."""

from __future__ import annotations

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS as _APPS
from tests.settings import TEMPLATES as _TEMPLATES

INSTALLED_APPS = [*_APPS, "post_office"]
TEMPLATES = [
    *_TEMPLATES,
    {
        "BACKEND": "post_office.template.backends.post_office.PostOfficeTemplates",
        "APP_DIRS": True,
        "DIRS": [],
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    },
]

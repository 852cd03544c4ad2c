"""What an app adds to the start of a process: time and memory of ``django.setup()``.

Beside Django with Celery, which a site of this app has anyway. Each start is a process of its
own; rounds are interleaved.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec

from tests.benchmarks._site import say

ROUNDS = 15
APPS = {
    "Django + Celery": [],
    "connect_mailer": ["connect_mailer", "connect_mailer.bouncy"],
    "django-ses": ["django_ses"],
    "django-anymail": ["anymail"],
}
BACKENDS = {
    "connect_mailer": "connect_mailer.backend",
    "django-ses": "django_ses",
    "django-anymail": "anymail.backends.amazon_ses",
}

CACHE = tempfile.TemporaryDirectory()

SETUP = """
import importlib, json, resource, sys, time
started = time.perf_counter()
import celery, django
from celery import shared_task, signals
from django.conf import settings
settings.configure(
    SECRET_KEY="x",
    INSTALLED_APPS=["django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
        "django.contrib.messages", "django.contrib.sessions", *json.loads(sys.argv[1])],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    USE_TZ=True,
)
django.setup()
if sys.argv[2]:
    importlib.import_module(sys.argv[2])
seconds = time.perf_counter() - started
with open("/proc/self/statm") as statm:
    pages = int(statm.read().split()[1])
has_boto3 = "boto3" in sys.modules or "botocore" in sys.modules
print(json.dumps([seconds * 1e3, pages * resource.getpagesize() / 1e6, has_boto3]))
"""


def main() -> None:
    """Print the table."""
    taken: dict[str, list[list[float]]] = {}
    present = {name: apps for name, apps in APPS.items() if all(find_spec(app) for app in apps[:1])}
    for apps in present.values():
        _start(apps, "")
    for _ in range(ROUNDS):
        for name, apps in present.items():
            taken.setdefault(name, []).append(_start(apps, BACKENDS.get(name, "")))
    say(
        f"CPython {sys.version.split()[0]}, {os.cpu_count()} cores; median of {ROUNDS} rounds\n\n"
        f"{'':<20}{'ms':>8}{'more':>8}{'MB':>8}{'more':>8}  boto3"
    )
    base = [statistics.median(column) for column in zip(*taken["Django + Celery"], strict=True)]
    for name, figures in taken.items():
        ms, mb, boto3 = (statistics.median(column) for column in zip(*figures, strict=True))
        say(
            f"{name:<20}{ms:>8.0f}{ms - base[0]:>+8.0f}{mb:>8.1f}{mb - base[1]:>+8.1f}"
            f"  {'loaded' if boto3 else 'not loaded'}"
        )


def _start(apps: list[str], backend: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", SETUP, json.dumps(apps), backend],
        # With bytecode at hand, as an installed package has it.
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": CACHE.name},
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(done.stdout))

"""What an app adds to a process: time and memory, of ``django.setup()`` and of the first mail.

Beside Django with Celery, which a site of this app has anyway. Each start is a process of its
own; rounds are interleaved. The first mail is that of a process that queues or sends: its backend
is imported.
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
    "django-post-office": ["post_office"],
    "django-mailer": ["mailer"],
}
BACKENDS = {
    "connect_mailer": "connect_mailer.backend",
    "django-ses": "django_ses",
    "django-anymail": "anymail.backends.amazon_ses",
    "django-post-office": "post_office.backends",
    "django-mailer": "mailer.backend",
}

CACHE = tempfile.TemporaryDirectory()

SETUP = """
import importlib, json, resource, sys, time
started, cpu_started = time.perf_counter(), time.process_time()
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

def look():
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    cpu = (time.process_time() - cpu_started) * 1e3
    return [(time.perf_counter() - started) * 1e3, cpu, pages * resource.getpagesize() / 1e6]

at_start = look()
if sys.argv[2]:
    importlib.import_module(sys.argv[2])
has_boto3 = "boto3" in sys.modules or "botocore" in sys.modules
print(json.dumps([*at_start, *look(), has_boto3]))
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
        f"CPython {sys.version.split()[0]}, {os.cpu_count()} cores; median (and least) of {ROUNDS} "
        "rounds; what an app adds to the first line\n\n"
        f"{'':<20}{'setup(): ms':>16}{'CPU ms':>16}{'MB':>7}{'and backend: ms':>18}{'CPU ms':>16}"
        f"{'MB':>7}"
    )
    first: tuple[list[float], list[float]] | None = None
    for name, figures in taken.items():
        columns = list(zip(*figures, strict=True))
        middle, least = ([act(column) for column in columns] for act in (statistics.median, min))
        sign = "" if first is None else "+"
        first = first or (middle, least)
        cells = []
        for place, width in enumerate((16, 16, 7, 18, 16, 7)):
            low, mid = (
                f"{ours[place] - (theirs[place] if sign else 0):{sign}.1f}"
                for ours, theirs in ((least, first[1]), (middle, first[0]))
            )
            # Memory is the same each time.
            cells.append(f"{mid if place % 3 == 2 else f'{mid} ({low})':>{width}}")
        boto3 = "loaded" if middle[-1] else "not loaded"
        say(f"{name:<20}{''.join(cells)}  boto3 {boto3}")


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

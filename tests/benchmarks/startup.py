"""What an app adds to a process: time and memory, of ``django.setup()`` and of the first mail.

Beside Django with Celery, which a site of this app has anyway. Each start is a process of its
own; rounds are interleaved. The first mail is that of a process that queues or sends: its backend
is imported. ``its tables alone`` is the floor: an app that has this one's tables (fields, indexes
and constraints) and as many plain pages in the admin, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.benchmarks._site import say

OURS = ["connect_mailer", "connect_mailer.bouncy"]
FLOOR = "connect_mailer_bare"
APPS = {
    "Django + Celery": [],
    "its tables alone": [FLOOR],
    "connect_mailer": OURS,
    "the same, no webhook": OURS[:1],
    "django-ses": ["django_ses"],
    "django-anymail": ["anymail"],
    "django-post-office": ["post_office"],
    "django-mailer": ["mailer"],
}
BACKENDS = {
    "connect_mailer": "connect_mailer.backend",
    "the same, no webhook": "connect_mailer.backend",
    "django-ses": "django_ses",
    "django-anymail": "anymail.backends.amazon_ses",
    "django-post-office": "post_office.backends",
    "django-mailer": "mailer.backend",
}

TEMPORARY = tempfile.TemporaryDirectory()
FOLDER = Path(TEMPORARY.name)

CONFIGURE = """
import importlib, json, resource, sys, time
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
started, cpu_started = time.perf_counter(), time.process_time()
django.setup()
"""

SETUP = f"""{CONFIGURE}
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

# Writes the floor, as Django writes migrations.
WRITE_FLOOR = f"""{CONFIGURE}
from pathlib import Path
from django.apps import apps
from django.contrib import admin
from django.db import models
from django.db.migrations.serializer import serializer_factory

folder = Path(sys.argv[2])
imports, lines, registered = {{"from django.db import models"}}, [], []

def write(value):
    text, needs = serializer_factory(value).serialize()
    imports.update(needs)
    return text

labels = ("connect_mailer", "django_bouncy")
for model in (one for label in labels for one in apps.get_app_config(label).get_models()):
    options = model._meta
    if options.proxy:
        base = options.proxy_for_model.__name__
        lines += [f"class {{model.__name__}}({{base}}):", "    class Meta:", "        proxy = True"]
    else:
        lines.append(f"class {{model.__name__}}(models.Model):")
        for field in options.local_fields:
            text = write(field)
            for own in ("connect_mailer.models.AddressField", "connect_mailer.models.ExactField"):
                text = text.replace(own, "models.CharField")
            lines.append(f"    {{field.name}} = {{text}}")
        lines += [
            "    class Meta:",
            f"        indexes = {{write(options.indexes)}}",
            f"        constraints = {{write(options.constraints)}}",
        ]
    if admin.site.is_registered(model):
        registered.append(model.__name__)
source = "\\n".join([*sorted(one for one in imports if "connect_mailer" not in one), *lines])
for label in labels:
    source = source.replace(f"'{{label}}.", f"'{{folder.name}}.")
folder.mkdir()
(folder / "__init__.py").write_text("")
(folder / "models.py").write_text(source)
(folder / "admin.py").write_text(
    f"from django.contrib import admin\\nfrom {{folder.name}} import models\\n"
    + "\\n".join(
        f"@admin.register(models.{{name}})\\nclass {{name}}Admin(admin.ModelAdmin):\\n    pass"
        for name in registered
    )
)
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks startup")
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[list[float]]] = {}
    _run(WRITE_FLOOR, OURS, str(FOLDER / FLOOR))
    sys.path.append(str(FOLDER))
    present = {name: apps for name, apps in APPS.items() if all(find_spec(app) for app in apps[:1])}
    for apps in present.values():
        _start(apps, "")
    for _ in range(rounds):
        for name, apps in present.items():
            taken.setdefault(name, []).append(_start(apps, BACKENDS.get(name, "")))
    say(
        f"CPython {sys.version.split()[0]}, {os.cpu_count()} cores; {rounds} rounds; what an app "
        "adds to the first line: median of the rounds, and (least to least)\n\n"
        f"{'':<20}{'setup(): ms':>16}{'CPU ms':>16}{'MB':>7}{'and backend: ms':>18}{'CPU ms':>16}"
        f"{'MB':>7}"
    )
    first: list[tuple[float, ...]] = []
    for name, figures in taken.items():
        columns = list(zip(*figures, strict=True))
        sign = "+" if first else ""
        base = first or [(0.0,) * rounds] * len(columns)
        first = first or columns
        cells = []
        for place, width in enumerate((16, 16, 7, 18, 16, 7)):
            ours, theirs = columns[place], base[place]
            added = statistics.median(a - b for a, b in zip(ours, theirs, strict=True))
            cell = f"{added:{sign}.1f}"
            if place % 3 != 2:  # memory is the same each time
                cell += f" ({min(ours) - min(theirs):{sign}.1f})"
            cells.append(f"{cell:>{width}}")
        boto3 = "loaded" if columns[-1][0] else "not loaded"
        say(f"{name:<20}{''.join(cells)}  boto3 {boto3}")


def _start(apps: list[str], backend: str) -> list[float]:
    return list(json.loads(_run(SETUP, apps, backend)))


def _run(program: str, apps: list[str], argument: str) -> str:
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(FOLDER)]))
    return subprocess.run(
        [sys.executable, "-c", program, json.dumps(apps), argument],
        # With bytecode at hand, as an installed package has it.
        env={
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(FOLDER / "bytecode"),
            "PYTHONPATH": path,
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout

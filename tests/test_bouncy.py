"""django-bouncy as published, on today's Django."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.apps import apps
from django.contrib import admin
from django.core.management import call_command
from django.db import connection, models
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.urls import path
from django.utils import timezone

urlpatterns = [path("admin/", admin.site.urls)]

ROOT = Path(__file__).parent.parent

SITE = """
import sys
from django.conf import settings
from django.core.management import execute_from_command_line

settings.configure(
    SECRET_KEY="a key for tests only",
    INSTALLED_APPS={apps!r},
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "site.sqlite3"}}}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    CONNECT_MAILER={{"UNSUBSCRIBE_BASE_URL": "https://www.example.com"}},
)
execute_from_command_line(sys.argv)
"""
DJANGO_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]


def manage(folder: Path, installed: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of a site of its own, with warnings as errors."""
    (folder / "manage.py").write_text(SITE.format(apps=installed))
    return subprocess.run(
        [sys.executable, "-W", "error", "manage.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "installed",
    [
        ["connect_mailer.bouncy"],
        ["connect_mailer.bouncy", *DJANGO_APPS, "connect_mailer"],
        [*DJANGO_APPS, "connect_mailer", "connect_mailer.bouncy"],
        [*DJANGO_APPS, "connect_mailer", "connect_mailer.bouncy.apps.BouncyConfig"],
    ],
    ids=["alone", "before", "after", "by class"],
)
def test_a_site_migrates_and_needs_no_more_migrations(tmp_path: Path, installed: list[str]) -> None:
    migrate = manage(tmp_path, installed, "migrate", "--run-syncdb", "-v1")
    assert migrate.returncode == 0, migrate.stderr
    assert "Applying django_bouncy.0004_increase_processing_time... OK" in migrate.stdout
    check = manage(tmp_path, installed, "makemigrations", "--check", "--dry-run")
    assert (check.returncode, check.stdout) == (0, "No changes detected\n"), check.stderr


def test_the_published_app_beside_it_is_a_clear_error(tmp_path: Path) -> None:
    check = manage(tmp_path, ["django_bouncy", "connect_mailer.bouncy"], "check")
    assert check.returncode != 0
    assert "Application labels aren't unique, duplicates: django_bouncy" in check.stderr


@pytest.mark.django_db
def test_the_tables_of_the_test_site_are_as_its_migrations_say() -> None:
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_ids_are_those_of_the_migrations() -> None:
    for model in apps.get_app_config("django_bouncy").get_models():
        assert type(model._meta.pk) is models.AutoField


@pytest.mark.django_db
def test_a_database_of_the_fork_migrates_on() -> None:
    """A migration that was applied there and that nobody ships does no harm."""
    MigrationRecorder(connection).record_applied("django_bouncy", "0005_auto_20190731_0423")
    call_command("migrate", verbosity=0)
    call_command("migrate", "django_bouncy", check_unapplied=True, verbosity=0)


def row(name: str, **values: object) -> models.Model:
    return apps.get_model("django_bouncy", name)(
        address="reader@example.org",
        mail_from="site@example.com",
        mail_timestamp=timezone.now(),
        **values,
    )


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        (
            "Bounce",
            {"hard": True, "bounce_type": "Permanent"},
            "reader@example.org Permanent Bounce (message from site@example.com)",
        ),
        ("Complaint", {}, "reader@example.org Complaint (email sender: from site@example.com)"),
        ("Delivery", {}, "reader@example.org Delivery (email sender: from site@example.com)"),
    ],
)
def test_rows_print_usefully(name: str, values: dict[str, object], text: str) -> None:
    assert str(row(name, **values)) == text


@pytest.mark.urls(__name__)
@pytest.mark.parametrize("name", ["Bounce", "Complaint", "Delivery"])
def test_the_admin_shows_rows(admin_client: Client, name: str) -> None:
    saved = row(name, **({"hard": True} if name == "Bounce" else {}))
    saved.save()
    assert admin.site.is_registered(type(saved))
    page = admin_client.get(f"/admin/django_bouncy/{name.lower()}/")
    assert page.status_code == 200
    assert b"reader@example.org" in page.content

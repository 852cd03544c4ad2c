"""django-bouncy as published, on today's Django."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import pytest
from django.apps import apps
from django.contrib import admin
from django.core.management import call_command
from django.db import models
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
    ALLOWED_HOSTS=["*"],
    CONNECT_MAILER={{"UNSUBSCRIBE_BASE_URL": "https://www.example.com"}},
    MIGRATION_MODULES={migrations!r},
)
execute_from_command_line(sys.argv)
"""
DJANGO_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]


def manage(
    folder: Path, installed: list[str], *arguments: str, migrations: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of a site of its own, with warnings as errors."""
    text = SITE.format(apps=installed, migrations=dict(migrations or {}))
    (folder / "manage.py").write_text(text)
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


# What Connect's fork made of the models on Python 3: the labels are no bytes any more.
FORK_0005 = """
from django.db import migrations, models

time = {"verbose_name": "Feedback Time", "null": True, "blank": True}
char = {"db_index": True, "max_length": 150, "null": True, "blank": True}
fields = {
    ("bounce", "action"): models.CharField(verbose_name="Action", **char),
    ("bounce", "bounce_subtype"): models.CharField("Bounce Subtype", max_length=50, db_index=True),
    ("bounce", "bounce_type"): models.CharField("Bounce Type", max_length=50, db_index=True),
    ("bounce", "feedback_timestamp"): models.DateTimeField(**time),
    ("bounce", "hard"): models.BooleanField("Hard Bounce", db_index=True),
    ("complaint", "feedback_timestamp"): models.DateTimeField(**time),
    ("complaint", "feedback_type"): models.CharField(verbose_name="Complaint Type", **char),
    ("delivery", "feedback_timestamp"): models.DateTimeField(**time),
}


class Migration(migrations.Migration):
    dependencies = [("django_bouncy", "0004_increase_processing_time")]
    operations = [migrations.AlterField(*place, field) for place, field in fields.items()]
"""
# And what it did later: a table for each other event, and an index.
FORK_0006 = """
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("django_bouncy", "0005_auto_20190731_0423")]
    operations = [
        migrations.CreateModel("Open", [("id", models.AutoField(primary_key=True))]),
        *(
            migrations.AlterField(name, "mail_id", models.CharField(max_length=100, db_index=True))
            for name in ("bounce", "complaint", "delivery")
        ),
    ]
"""
BEFORE = """
from django.apps import apps
from django.core.management import call_command
from django.utils import timezone
call_command("migrate")
apps.get_model("django_bouncy.Bounce").objects.create(
    address="old@example.org", hard=True, mail_timestamp=timezone.now()
)
"""
AFTER = """
from django.conf import settings
from django.core.management import call_command
from django.test import Client
from django_bouncy.models import Bounce
from connect_mailer.models import Unsubscribe
from connect_mailer.testing import SNSSigner
from connect_mailer.testing.sns import make_bounce
call_command("migrate", verbosity=0)
call_command("migrate", check_unapplied=True, verbosity=0)
call_command("makemigrations", check_changes=True, dry_run=True, verbosity=0)
signer = SNSSigner.generate()
settings.BOUNCY_TOPIC_ARN = [signer.topic_arn]
settings.ROOT_URLCONF = "connect_mailer.urls"
signer.trust()
body = signer.notification(make_bounce(["new@example.org"]))
assert Client().post("/bouncy/", body, content_type="text/plain").status_code == 200
call_command("mailer_import", "bouncy")
print(*Bounce.objects.order_by("pk").values_list("pk", "address"))
print(*Unsubscribe.objects.order_by("address").values_list("address", "source"))
"""


def test_tables_of_the_fork_are_used_in_place(tmp_path: Path) -> None:
    """Migrations that were applied there, and that nobody ships, do no harm."""
    published = Path(import_module("django_bouncy.migrations").__file__ or "").parent
    shutil.copytree(published, tmp_path / "fork")
    (tmp_path / "fork" / "0005_auto_20190731_0423.py").write_text(FORK_0005)
    (tmp_path / "fork" / "0006_more.py").write_text(FORK_0006)
    there = {"django_bouncy": "fork"}
    made = manage(
        tmp_path, ["connect_mailer.bouncy"], "shell", "-v0", "-c", BEFORE, migrations=there
    )
    assert made.returncode == 0, made.stderr
    assert "Applying django_bouncy.0005_auto_20190731_0423... OK" in made.stdout

    new = [*DJANGO_APPS, "connect_mailer", "connect_mailer.bouncy"]
    done = manage(tmp_path, new, "shell", "-v0", "-c", AFTER)
    assert done.returncode == 0, done.stderr
    *_, bounces, unsubscribed = done.stdout.splitlines()
    assert bounces == "(1, 'old@example.org') (2, 'new@example.org')"
    assert unsubscribed == "('new@example.org', 'bounce') ('old@example.org', 'bounce')"


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

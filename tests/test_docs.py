"""The documentation: what it lists is complete, and what it shows runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import django
import pytest

from connect_mailer import checks, conf, exceptions
from connect_mailer.models import OutgoingMessage, OutgoingRecipient

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

# A python block with a caption, up to the next line that is not indented.
_FILE = re.compile(
    r"^\.\. code-block:: python\n   :caption: (?P<name>.+)\n\n(?P<code>(?:   .*\n|\n)+)",
    re.MULTILINE,
)
_MAILERS = 'MAILERS={"default": {"BACKEND": QUEUE}},  # or, without MAILERS: EMAIL_BACKEND=QUEUE,'
_CONFTEST = """
from celery import current_app

current_app.conf.task_always_eager = True
current_app.conf.broker_url = "memory://"
"""

_SETTINGS = """
import django

SECRET_KEY = "a key for tests only"
ROOT_URLCONF = "urls"
USE_TZ = True
ALLOWED_HOSTS = ["*"]
DATABASES = {"default": {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": "site.sqlite3",
    "OPTIONS": {
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL",
    },
}}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {"x.txt": "x"})]},
}]
ADMINS = ["admin@example.com"] if django.VERSION >= (6, 0) else [("A", "admin@example.com")]
AWS_ACCESS_KEY_ID = AWS_SECRET_ACCESS_KEY = "test"
"""
# What the site of the quickstart is asked to do, once all of it is there.
_TRY = """
import logging

import django
from django.core.management import call_command

from connect_mailer.testing.ses import LocalSES

with LocalSES() as ses:
    from django.conf import settings

    settings.CONNECT_MAILER["SES_ENDPOINT_URL"] = ses.url
    django.setup()
    call_command("migrate", verbosity=0)
    call_command("check", fail_level="WARNING")
    from celery import current_app

    current_app.conf.task_always_eager = True
    logging.getLogger("django.request").error("It broke")
    [mail] = ses.mailbox()
    assert "It broke" in mail.message["Subject"], mail

    from forms import PasswordResetForm

    PasswordResetForm().send_mail("x.txt", "x.txt", {}, None, "jane@example.com")
    from connect_mailer.models import OutgoingMessage

    [row] = OutgoingMessage.objects.all()
    assert (row.stream, row.status) == ("transactional", "sent"), row
    call_command("sendtestemail", "bounce@simulator.amazonses.com")
    [_, _, mail] = ses.mailbox()
    assert b"List-Unsubscribe: <https://www.example.com/mail/unsubscribe/" in mail.mime, mail
    print("All of it works.")
"""


def read(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def find_files(name: str) -> dict[str, str]:
    return {match["name"]: dedent(match["code"]) for match in _FILE.finditer(read(name))}


def test_every_key_has_an_entry() -> None:
    entries = set(re.findall(r"^\.\. confval:: (\S+)$", read("settings.rst"), re.MULTILINE))
    assert {name for name in entries if not name.startswith("BOUNCY_")} == conf.KEYS


def test_every_setting_of_old_is_named() -> None:
    source = Path(conf.__file__).read_text("utf-8")
    names = set(
        re.findall(
            r'"((?:BOUNCY|CUCUMBER|AWS|DKIM)_[A-Z_]+|ORIGIN[A-Z_]*|EMAIL_SECRET_KEY)"', source
        )
    )
    assert len(names) > 10
    assert not {name for name in names if f"``{name}``" not in read("settings.rst")} - set(
        re.findall(r"^\.\. confval:: (\S+)$", read("settings.rst"), re.MULTILINE)
    )


def test_every_check_has_an_entry() -> None:
    ids = set(re.findall(r'id="(connect_mailer\.[EW]\d+)"', Path(checks.__file__).read_text()))
    entries = re.findall(r"^``(connect_mailer\.[EW]\d+)``$", read("settings.rst"), re.MULTILINE)
    assert sorted(ids) == sorted(entries)


@pytest.mark.parametrize(
    "status", [*OutgoingMessage.Status.values, *OutgoingRecipient.Status.values]
)
def test_every_status_is_explained(status: str) -> None:
    assert f"   * - ``{status}``\n" in read("how-it-works.rst")


def test_blocks_of_json_are_json() -> None:
    blocks = [
        block
        for path in DOCS.glob("*.rst")
        for block in re.findall(
            r"^\.\. code-block:: json\n\n((?:   .*\n|\n)+)", path.read_text("utf-8"), re.MULTILINE
        )
    ]
    assert len(blocks) >= 2
    for block in blocks:
        json.loads(dedent(block))


@pytest.mark.parametrize("name", sorted(path.name for path in DOCS.glob("*.rst")))
def test_a_test_that_is_named_exists(name: str) -> None:
    for path, test in re.findall(r"``(tests/\S+\.py)::(\w+)``", read(name)):
        assert f"def {test}(" in (ROOT / path).read_text("utf-8"), f"{path}::{test}"


def test_the_root_of_the_exceptions_is_named() -> None:
    assert f"connect_mailer.exceptions.{exceptions.ConnectMailerError.__name__}" in read(
        "index.rst"
    )


def test_the_examples_of_tests_run(tmp_path: Path) -> None:
    files = find_files("testing.rst")
    assert len(files) == read("testing.rst").count("code-block:: python") == 5
    has_mailers = django.VERSION >= (6, 1) and not os.environ.get("TEST_EMAIL_SETTING")
    for name, code in files.items():
        if not has_mailers:
            code = code.replace(_MAILERS, "EMAIL_BACKEND=QUEUE,")
        (tmp_path / name).write_text(code, "utf-8")
    (tmp_path / "conftest.py").write_text(_CONFTEST, "utf-8")
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path]
    if django.VERSION >= (6, 1) and not has_mailers:
        command += ["-W", "ignore::django.utils.deprecation.RemovedInDjango2028Warning"]
    done = subprocess.run(
        [*map(str, command), "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        # A test database of its own: in PostgreSQL it would take this run's.
        env={**os.environ, "PYTHONPATH": str(ROOT), "TEST_DATABASE": "sqlite"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_the_quickstart_makes_a_site(tmp_path: Path) -> None:
    blocks = find_files("quickstart.rst")
    settings = _SETTINGS + blocks["settings.py"]
    logging = blocks["settings.py, with EMAIL_BACKEND"]
    if django.VERSION >= (6, 1):
        mailers = blocks["settings.py, Django >= 6.1"]
        settings = re.sub(r"EMAIL_BACKEND = .*", lambda _: mailers, settings)
        logging = re.sub(r"LOGGING\[.*", lambda _: blocks["settings.py, with MAILERS"], logging)
    urls = "urlpatterns = []\n" + blocks["urls.py"]
    for name, code in {
        "settings.py": settings + logging,
        "urls.py": urls,
        "forms.py": blocks["forms.py and urls.py"],
        "try.py": _TRY,
    }.items():
        (tmp_path / name).write_text(code, "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "try.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All of it works." in done.stdout

"""The documentation: what it lists is complete, and what it shows runs."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import django
import pytest
from celery import Task, current_app
from django.dispatch import Signal
from django.utils.module_loading import import_string

from connect_mailer import (
    backend,
    checks,
    conf,
    exceptions,
    models,
    optout,
    signals,
    tasks,
    testing,
)
from connect_mailer.bouncy import signals as bouncy_signals
from connect_mailer.models import OutgoingMessage, OutgoingRecipient
from docs.settings_entries import read_entries

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.rst"))

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


ENTRIES = read_entries()
# Settings that are no key of CONNECT_MAILER.
_OWN = {
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "EMAIL_SECRET_KEY"),
    *("DKIM_DOMAIN", "DKIM_PRIVATE_KEY", "DKIM_SELECTOR", "DKIM_HEADERS"),
    *("BOUNCY_TOPIC_ARN", "BOUNCY_AUTO_SUBSCRIBE", "BOUNCY_KEY_CACHE"),
    *("BOUNCY_CERT_DOMAIN_REGEX", "BOUNCY_SUBSCRIBE_DOMAIN_REGEX"),
}


def forget_settings(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither settings of the app nor its names in the environment; no Redis."""
    settings.CONNECT_MAILER = {}
    monkeypatch.setattr(current_app.conf, "broker_url", "memory://")
    for name in list(os.environ):
        if name.startswith(("AWS_", "BOUNCY_", "CUCUMBER_", "EMAIL_", "ORIG")):
            monkeypatch.delenv(name)


def read(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def find_files(name: str) -> dict[str, str]:
    return {match["name"]: dedent(match["code"]) for match in _FILE.finditer(read(name))}


class TestSettings:
    """The reference is made of ``conf``'s docstrings: that they say what the code does."""

    def test_all_are_on_the_page_once(self) -> None:
        listed = re.findall(r"^   ([A-Z_]+)$", read("settings.rst"), re.MULTILINE)
        assert sorted(listed) == sorted(ENTRIES), "a name of conf's docstrings under `settings::`"
        named = {name for entry in ENTRIES.values() for name in entry.names}
        assert {name for name in named if name not in _OWN} == conf.KEYS

    def test_every_name_that_is_read_is_said(self) -> None:
        source = Path(conf.__file__).read_text("utf-8")
        names = set(re.findall(r'"((?:BOUNCY|CUCUMBER|AWS|DKIM|ORIG|EMAIL)[A-Z_]+)"', source))
        assert len(names) > 10
        said = [name for entry in ENTRIES.values() for name in (*entry.names, entry.legacy)]
        assert not {name for name in names if name not in " ".join(said)}

    @pytest.mark.parametrize("name", ENTRIES)
    def test_the_default_is_the_default(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        forget_settings(settings, monkeypatch)
        entry = ENTRIES[name]
        value = getattr(conf.conf, entry.attribute)
        if literal := re.fullmatch("``(.+)``", entry.default):
            shown = ast.literal_eval(literal[1])
            assert value == (shown == "lean" if name == "SES_CLIENT" else shown)
        else:
            assert not any(value) if isinstance(value, tuple) else not value

    @pytest.mark.parametrize("name", [name for name in ENTRIES if "at least" in ENTRIES[name].type])
    def test_the_least_is_the_least(self, settings: Any, name: str) -> None:
        entry = ENTRIES[name]
        least = int(entry.type.rpartition(" ")[2])
        settings.CONNECT_MAILER = {name: least}
        assert getattr(conf.conf, entry.attribute) == least
        settings.CONNECT_MAILER = {name: least - 1}
        with pytest.raises(exceptions.ConfigurationError, match=name):
            getattr(conf.conf, entry.attribute)

    @pytest.mark.parametrize(
        ("name", "legacy"),
        [
            (name, legacy)
            for name, entry in ENTRIES.items()
            for legacy in re.findall("``(.+?)``", entry.legacy)
        ],
    )
    def test_the_old_name_is_read(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch, name: str, legacy: str
    ) -> None:
        forget_settings(settings, monkeypatch)
        default = getattr(conf.conf, ENTRIES[name].attribute)
        value = {"ORIGIN": "https://www.example.com"}.get(legacy, "7")
        monkeypatch.setenv(legacy, value)
        found = getattr(conf.conf, ENTRIES[name].attribute)
        assert found != default
        assert str(value) in str(found)


class TestNames:
    """What a site may import."""

    def test_all_are_on_the_page_of_the_api(self) -> None:
        page = re.findall(
            r"^\.\. (?:auto)?(?:class|data|function|module):: (\S+)$", read("api.rst"), re.MULTILINE
        )
        names = {
            f"{module.__name__}.{name}"
            for module in (backend, models, signals, bouncy_signals, tasks, optout)
            for name, value in vars(module).items()
            if not name.startswith("_")
            and (
                (isinstance(value, type) and value.__module__ == module.__name__)
                or isinstance(value, Signal | Task)
                or name in getattr(module, "__all__", ())
            )
        }
        assert len(names) > 20
        assert names - set(page) == {
            f"connect_mailer.models.{name}"
            # The app's own.
            for name in (
                *("AddressField", "OutgoingContentManager", "Tally", "Health"),
                *("NotificationReceipt", "Lease", "LimiterState"),
            )
        }
        assert exceptions.__name__ in page
        assert set(testing.__all__) <= {name.rpartition(".")[2] for name in page}

    def test_all_say_what_they_are(self) -> None:
        for path in re.findall(
            r"^\.\. auto(?:class|function):: (\S+)$", read("api.rst"), re.MULTILINE
        ):
            value = import_string(path)
            assert inspect.getdoc(value), path
            if getattr(value, "_is_protocol", False):
                continue
            for name, member in inspect.getmembers(value, inspect.isfunction):
                if not name.startswith("_") and member.__module__ == value.__module__:
                    assert inspect.getdoc(member), f"{path}.{name}"

    @pytest.mark.parametrize("name", PAGES)
    def test_those_that_are_named_exist(self, name: str) -> None:
        for path in re.findall(r"``(connect_mailer(?:\.\w+)+)[`(]", read(name)):
            if re.fullmatch(r"connect_mailer\.([EW]\d+|[a-z]+_[a-z]+)", path):
                continue  # a check, or a permission
            try:
                importlib.import_module(path)
            except ModuleNotFoundError:
                import_string(path)


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


@pytest.mark.parametrize("name", PAGES)
def test_a_test_that_is_named_exists(name: str) -> None:
    for path, test in re.findall(r"``(tests/\S+\.py)::(\w+)``", read(name)):
        assert f"def {test}(" in (ROOT / path).read_text("utf-8"), f"{path}::{test}"


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

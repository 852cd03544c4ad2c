"""The documentation: what it lists is complete, and what it shows runs."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from celery import Task, current_app
from django.dispatch import Signal
from django.utils.module_loading import import_string

import connect_mailer
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
        value = "eu-west-7" if name == "SES_REGION" else "7"
        value = {"ORIGIN": "https://www.example.com"}.get(legacy, value)
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
                *("AddressField", "ExactField", "OutgoingContentManager", "Tally", "Health"),
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


@pytest.mark.parametrize("name", PAGES)
def test_a_test_that_is_named_exists(name: str) -> None:
    for path, test in re.findall(r"``(tests/\S+\.py)::(\w+)``", read(name)):
        assert f"def {test}(" in (ROOT / path).read_text("utf-8"), f"{path}::{test}"
    for path in re.findall(r"``(tests/[\w/.-]+)``", read(name)):
        assert (ROOT / path).exists(), path


# `tox -e links` asks whether they are there.
_HOSTS = {
    "docs.aws.amazon.com",
    "docs.celeryq.dev",
    "docs.djangoproject.com",
    "www.rfc-editor.org",
}


@pytest.mark.parametrize("name", ["../README.rst", *PAGES])
def test_links_to_elsewhere_are_https_and_to_hosts_that_stay(name: str) -> None:
    # `text <link>`_, .. _name: link, and a bare link in a sentence; not what stands in literals.
    shown = re.compile(r"``[^`]+``|^ *\.\. code-block::.*\n(?:\n| +.*\n)*", re.MULTILINE)
    prose = shown.sub("", read(name))
    for link in re.findall(r"\b[a-z]+://[^\s>`]+", prose):
        parts = urlsplit(link)
        assert parts.scheme == "https", link
        assert parts.hostname in _HOSTS, link
    assert not re.search(r"`[^`<]+ <(?!https://)[^>]*>`_", prose)


def test_the_version_is_written_once_and_has_its_changes() -> None:
    newest = re.findall(r"^(\d\S+)(?: \(.+\))?\n-{5,}$", read("changelog.rst"), re.MULTILINE)[0]
    assert newest == connect_mailer.__version__
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert 'dynamic = ["version"]' in project
    assert f'"{newest}"' not in project

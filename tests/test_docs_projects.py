"""The documentation's files, as the projects and the tests that they are parts of."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import django
import pytest
from django.core.management import call_command

from tests.test_docs_blocks import PAGES, ROOT, find_files, read_blocks

_MAILERS = 'MAILERS={"default": {"BACKEND": QUEUE}},  # or, without MAILERS: EMAIL_BACKEND=QUEUE,'
_CONFTEST = """
from celery import current_app

current_app.conf.task_always_eager = True
current_app.conf.broker_url = "memory://"
"""

# What no page needs to say: of a site that tries the pages out.
_SETTINGS = """
import django

DEBUG = False  # with it on, nobody is told of errors by mail
ADMINS = ["admin@example.com"] if django.VERSION >= (6, 0) else [("A", "admin@example.com")]
AWS_ACCESS_KEY_ID = AWS_SECRET_ACCESS_KEY = "test"
TEMPLATES[0]["DIRS"] = [BASE_DIR]
CELERY_BROKER_URL = "memory://"
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

    assert current_app.main == "example"
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


def test_the_examples_of_tests_run(tmp_path: Path) -> None:
    files = find_files("testing.rst")
    assert len(files) == len(read_blocks("testing.rst")) == 5
    has_mailers = django.VERSION >= (6, 1) and not os.environ.get("TEST_EMAIL_SETTING")
    for name, code in files.items():
        if not has_mailers:
            code = code.replace(_MAILERS, "EMAIL_BACKEND=QUEUE,")
        (tmp_path / name).write_text(code, "utf-8")
    (tmp_path / "conftest.py").write_text(_CONFTEST, "utf-8")
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path]
    # One plugin of many, and the tables as the models have them: it is about the examples.
    command += ["-p", "pytest_django.plugin", "--no-migrations"]
    if django.VERSION >= (6, 1) and not has_mailers:
        command += ["-W", "ignore::django.utils.deprecation.RemovedInDjango2028Warning"]
    done = subprocess.run(
        [*map(str, command), "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        # A test database of its own: in PostgreSQL it would take this run's.
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TEST_DATABASE": "sqlite",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def choose(files: dict[str, str], *captions: str) -> list[str]:
    """Those blocks, the way of this Django: ``MAILERS``, or ``EMAIL_BACKEND``."""
    way = "MAILERS" if django.VERSION >= (6, 1) else "EMAIL_BACKEND"
    return [files[caption.format(way)] for caption in captions]


def find_site_of_the_quickstart() -> dict[str, str]:
    """What is added to each file of a project."""
    files = find_files("quickstart.rst")
    names = [
        "settings.py",
        "settings.py, with {}",
        "settings.py, SQLite",
        "settings.py, log with {}",
    ]
    settings = choose(files, *names, "settings.py, Celery")
    return {
        "example/settings.py": "\n".join(settings),
        "example/urls.py": files["urls.py"],
        "example/celery.py": files["example/celery.py"],
        "example/__init__.py": files["example/__init__.py"],
        "forms.py": files["forms.py and urls.py"],
    }


def find_site_of_the_readme() -> dict[str, str]:
    """The same with the README's settings and URLs; SQLite is what a check asks for there."""
    settings, urls, log = (block.code for block in read_blocks("README.rst")[1:4])
    if django.VERSION < (6, 1):
        text = PAGES["README.rst"].read_text("utf-8")
        [backend] = re.findall("``(EMAIL_BACKEND = [^`]+)``", text)
        [handler] = re.findall("``(LOGGING[^`]+)``", text)
        settings = re.sub("^MAILERS = .*", backend, settings, flags=re.MULTILINE)
        log = re.sub(r"^LOGGING\[(?:.|\n)*", handler, log, flags=re.MULTILINE)
    sqlite = find_files("quickstart.rst")["settings.py, SQLite"]
    return {
        **find_site_of_the_quickstart(),
        "example/settings.py": f"{settings}\n{log}\n{sqlite}",
        "example/urls.py": urls,
    }


@pytest.mark.parametrize(
    "find_site",
    [
        pytest.param(find_site_of_the_quickstart, id="quickstart"),
        pytest.param(find_site_of_the_readme, id="README"),
    ],
)
def test_a_new_project_that_follows_it_sends(
    tmp_path: Path, find_site: Callable[[], dict[str, str]]
) -> None:
    call_command("startproject", "example", str(tmp_path))
    files = find_site()
    files["example/settings.py"] += _SETTINGS
    for name, code in {**files, "x.txt": "x", "try.py": _TRY}.items():
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write("\n" + code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "try.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "example.settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All of it works." in done.stdout

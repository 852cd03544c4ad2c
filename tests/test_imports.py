"""What a process loads: most of a site's processes neither send nor take notifications."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.servers import make_environment

# Large, and for those that send, verify or draw.
OF_OTHERS = {"boto3", "botocore", "cryptography", "redis", "requests", "urllib3"}

# Of ours: tables, what registers itself, and what those need.
AT_START = {
    f"connect_mailer.{name}"
    for name in (
        *("apps", "legacy", "models", "signals"),
        *("admin", "admin.health", "admin.lists", "admin.messages", "admin.unsubscribes"),
        *("bouncy", "bouncy.apps", "bouncy.signals"),
    )
}

CELERY = """
import sys
import django
from celery import Celery
app = Celery(broker="memory://")
app.set_default()
"""
START = f"{CELERY}django.setup()\n"
QUEUE = """
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django.core.mail import EmailMessage
from connect_mailer.backend import ConnectMailerBackend
ConnectMailerBackend().send_messages([EmailMessage("Hi", "", None, ["jo@example.org"])])
"""


def load(program: str) -> set[str]:
    """The modules that a program of its own has at its end."""
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{program}\nprint(*sys.modules)"],
        env=make_environment(TEST_DATABASE="sqlite"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr
    return set(output.stdout.split())


def test_a_process_that_starts_loads_no_more_than_what_registers_itself() -> None:
    loaded = load(START)

    assert not loaded & {*OF_OTHERS, "idna"}
    assert {name for name in loaded if name.startswith("connect_mailer.")} == AT_START
    if sys.version_info >= (3, 13):  # before, importlib.metadata loads it, which Celery needs
        assert "csv" not in loaded


def test_a_process_that_queues_loads_nothing_that_sends() -> None:
    loaded = load(START + QUEUE)

    assert not loaded & OF_OTHERS
    assert not loaded & {
        "connect_mailer.account",
        "connect_mailer.feedback.sns",
        "connect_mailer.feedback.webhook",
        "connect_mailer.health",
        "connect_mailer.sending.delivery",
        "connect_mailer.sending.lean",
        "connect_mailer.sending.limiter",
        "connect_mailer.sending.transport",
    }


@pytest.mark.parametrize("program", [START, CELERY], ids=["set up before", "set up by the worker"])
def test_a_worker_has_the_tasks_whatever_its_app_looks_for(program: str) -> None:
    loaded = load(f"{program}app.WorkController(pool='solo')\n")

    assert loaded >= {"connect_mailer.tasks", "connect_mailer.legacy_tasks"}

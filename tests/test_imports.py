"""What a process loads: most of a site's processes neither send nor take notifications."""

from __future__ import annotations

import subprocess
import sys

from tests.servers import make_environment

# Large, and for those that send, verify or draw.
OF_OTHERS = {"boto3", "botocore", "cryptography", "redis", "requests", "urllib3"}

START = """
import sys
import django
from celery import Celery
Celery(broker="memory://").set_default()
django.setup()
"""
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
    ours = {name for name in loaded if name.startswith("connect_mailer.")}
    assert not {name for name in ours if name.split(".")[1] in ("account", "health", "optout")}
    assert {name for name in ours if name.split(".")[1] in ("feedback", "sending")} == {
        "connect_mailer.feedback",
        "connect_mailer.sending",
        "connect_mailer.sending.leases",
        "connect_mailer.sending.log_mail",
        "connect_mailer.sending.signature",
        "connect_mailer.sending.wakeups",
    }


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

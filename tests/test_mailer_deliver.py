"""``manage.py mailer_deliver``."""

from __future__ import annotations

import io
import os
import signal
import threading
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.core.management import call_command

from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.management.commands import mailer_deliver
from connect_mailer.models import OutgoingMessage
from connect_mailer.sending import leases

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _site(settings: Any) -> None:
    settings.CONNECT_MAILER = {
        "TRANSPORT": "django.core.mail.backends.locmem.EmailBackend",
        "REDIS_URL": None,
        "DRAIN_SECONDS": 1,
    }


def queue(count: int) -> None:
    ConnectMailerBackend().send_messages(
        [EmailMessage("Hi", "", None, [f"u{n}@example.org"]) for n in range(count)]
    )


def run(*args: str) -> str:
    output = io.StringIO()
    call_command("mailer_deliver", *args, stdout=output)
    return output.getvalue().strip()


def test_delivers_what_is_due_and_ends(mailoutbox: list[Any]) -> None:
    queue(3)

    assert run() == "3 sent."
    assert run() == "0 sent."
    assert len(mailoutbox) == 3


def test_goes_on_where_one_drain_has_to_hand_over(settings: Any, mailoutbox: list[Any]) -> None:
    settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "RATE": 4}
    queue(6)

    assert run() == "6 sent."


def test_leaves_it_to_the_drains_that_run() -> None:
    queue(1)
    assert leases.acquire("drain 1", 60, using="default")

    assert run() == "0 sent."
    assert OutgoingMessage.objects.get().status == "queued"


def test_forever_ends_at_sigterm(monkeypatch: pytest.MonkeyPatch, mailoutbox: list[Any]) -> None:
    monkeypatch.setattr(mailer_deliver, "POLL_SECONDS", 0.01)
    queue(1)
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        assert run("--forever") == "1 sent."
    finally:
        timer.join()
        signal.signal(signal.SIGTERM, previous)

"""Mail about errors must not depend on what failed, nor multiply it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db import DatabaseError
from django.utils import timezone

from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.models import Lease, OutgoingMessage
from connect_mailer.sending import leases, log_mail, outbox
from connect_mailer.testing.outbox import deliver_all

pytestmark = pytest.mark.django_db


class MailHandler(logging.Handler):
    """Queues each record, as AdminEmailHandler does with the queue as EMAIL_BACKEND."""

    def emit(self, record: logging.LogRecord) -> None:
        ConnectMailerBackend(fail_silently=True).send_messages(
            [EmailMessage("Error", record.getMessage(), None, ["admin@example.org"])]
        )


@pytest.fixture
def handler() -> Iterator[MailHandler]:
    made = MailHandler()
    logging.getLogger().addHandler(made)
    yield made
    logging.getLogger().removeHandler(made)


def test_a_hundred_failures_queue_one_message_an_hour(settings: Any, handler: MailHandler) -> None:
    settings.AWS_ACCESS_KEY_ID = settings.AWS_SECRET_ACCESS_KEY = "test"
    settings.CONNECT_MAILER = {
        "SES_REGION": "us-east-1",
        "SES_ENDPOINT_URL": "http://127.0.0.1:1",  # nobody listens there
    }
    ConnectMailerBackend().send_messages(
        [EmailMessage("Hi", "", None, [f"u{n}@example.org"]) for n in range(100)]
    )

    deliver_all()  # and then the mail about it, which fails as well
    assert OutgoingMessage.objects.count() == 101
    assert set(OutgoingMessage.objects.values_list("attempts", flat=True)) == {1}

    try_again()
    assert OutgoingMessage.objects.count() == 101

    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    try_again()
    assert OutgoingMessage.objects.count() == 102


def try_again() -> None:
    OutgoingMessage.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    deliver_all()


def test_what_can_not_be_queued_is_not_logged_for_ever(
    handler: MailHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fail(*args: Any, **kwargs: Any) -> None:
        tries.append(1)
        raise DatabaseError("gone")

    monkeypatch.setattr(outbox, "store", fail)

    logging.getLogger("shop").error("broken")

    assert len(tries) <= 2  # the message, and one about it


def test_nor_what_is_logged_while_the_database_is_away(
    handler: MailHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise DatabaseError("gone")

    monkeypatch.setattr(leases, "acquire", fail)
    with log_mail.at_work():
        logging.getLogger("connect_mailer").error("The database is away")

    assert OutgoingMessage.objects.count() == 0


def test_what_others_log_is_mailed_as_ever(handler: MailHandler) -> None:
    for _ in range(3):
        logging.getLogger("shop").error("broken")

    assert OutgoingMessage.objects.count() == 3


def test_mail_that_no_log_handler_makes_is_queued_as_ever() -> None:
    with log_mail.at_work():
        for _ in range(3):
            ConnectMailerBackend().send_messages([EmailMessage("Hi", "", None, ["jo@example.org"])])

    assert OutgoingMessage.objects.count() == 3

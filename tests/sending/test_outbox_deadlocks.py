"""Operators and purge beside somebody who locks the same rows the other way round."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db import OperationalError, connection, transaction
from django.db.models import Model

from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.models import OutgoingMessage, OutgoingRecipient
from connect_mailer.sending import outbox

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor == "sqlite", reason="has one lock, so no deadlock"),
]

WAITING = {
    "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted",
    "mysql": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
}


@pytest.fixture
def messages() -> list[OutgoingMessage]:
    ConnectMailerBackend().send_messages(
        [EmailMessage("a", "b", None, [f"u{n}@example.org"]) for n in range(2)]
    )
    return list(OutgoingMessage.objects.order_by("pk"))


@contextmanager
def somebody_locks(first: Model, then: Model) -> Iterator[None]:
    """Who has locked ``first`` locks ``then`` as soon as anybody waits."""
    has_first = threading.Event()

    def lock_both() -> None:
        try:
            with transaction.atomic():
                lock(first)
                has_first.set()
                wait_until_anybody_waits()
                lock(then)
        except OperationalError:  # one of the two has to lose
            pass
        finally:
            connection.close()

    thread = threading.Thread(target=lock_both)
    thread.start()
    assert has_first.wait(60)
    yield
    thread.join()


def lock(row: Model) -> None:
    type(row)._default_manager.select_for_update().get(pk=row.pk)


def wait_until_anybody_waits() -> None:
    end = time.monotonic() + 60
    with connection.cursor() as cursor:
        while time.monotonic() < end:
            cursor.execute(WAITING[connection.vendor])
            if cursor.fetchone()[0]:
                return
            time.sleep(0.2)  # asked sooner, InnoDB says the same as before


@pytest.mark.parametrize(
    "act",
    [
        lambda pks: outbox.send_now(pks, using="default"),
        lambda pks: outbox.cancel(pks, "no", using="default"),
        lambda pks: outbox.send_again(OutgoingMessage.objects.filter(pk__in=pks).order_by("pk")),
    ],
    ids=["send_now", "cancel", "send_again"],
)
def test_operators_try_again(act: Callable[[list[int]], Any], messages: Any) -> None:
    pks = [message.pk for message in messages]
    if "send_again" in act.__code__.co_names:
        outbox.cancel(pks, "no", using="default")

    with somebody_locks(messages[1], then=messages[0]):
        done = act(pks)

    assert done in (pks, len(pks))


def test_purge_tries_again(messages: Any) -> None:
    outbox.cancel([message.pk for message in messages], "no", using="default")
    recipient = OutgoingRecipient.objects.get(message=messages[0])

    with somebody_locks(recipient, then=messages[0]):
        forgotten = outbox.purge(keep_days=0, keep_bodies_days=0, using="default")

    assert forgotten == 2
    assert not OutgoingMessage.objects.exists()

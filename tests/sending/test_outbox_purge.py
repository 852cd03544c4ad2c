"""What is forgotten, in which portions, and beside whom."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from django.core.mail import EmailMessage
from django.db import connection, transaction
from django.utils import timezone

from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.models import OutgoingContent, OutgoingMessage, OutgoingRecipient
from connect_mailer.sending import outbox

has_row_locks = connection.features.has_select_for_update_skip_locked
needs_row_locks = pytest.mark.skipif(not has_row_locks, reason="needs a database that locks rows")

LONG_AGO = timedelta(days=40)


def queue(number: int, **fields: Any) -> list[int]:
    """Queue messages; ``fields``: what their rows say."""
    before = set(OutgoingMessage.objects.values_list("pk", flat=True))
    ConnectMailerBackend().send_messages(
        [EmailMessage("a", "b", "site@example.com", [f"u{n}@example.org"]) for n in range(number)]
    )
    made = OutgoingMessage.objects.exclude(pk__in=before)
    pks = list(made.values_list("pk", flat=True))
    OutgoingMessage.objects.filter(pk__in=pks).update(**fields)
    return sorted(pks)


def finish(number: int, status: str = "failed") -> list[int]:
    return queue(number, status=status, lane=None, finished_at=timezone.now() - LONG_AGO)


def purge() -> int:
    return outbox.purge(keep_days=30, keep_bodies_days=0, using="default")


@contextmanager
def second_connection(act: Any) -> Iterator[Any]:
    """``act`` in a thread with a connection of its own; what it returns is in the list."""
    returned: list[Any] = []

    def run() -> None:
        try:
            returned.append(act())
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread, returned
    finally:
        thread.join()


@pytest.mark.django_db
class TestPortions:
    def test_what_is_old_is_forgotten_in_portions(
        self, monkeypatch: Any, django_assert_max_num_queries: Any
    ) -> None:
        monkeypatch.setattr(outbox, "PURGE_CHUNK", 10)
        old, young = finish(25), queue(3)

        sizes: list[int] = []
        release = OutgoingContent.objects.release

        def note(rows: Any) -> None:
            sizes.append(rows.count())
            release(rows)

        with mock.patch.object(OutgoingContent.objects, "release", note):
            assert purge() == 25

        assert sizes == [10, 10, 5]
        assert set(OutgoingMessage.objects.values_list("pk", flat=True)) == set(young)
        assert not OutgoingRecipient.objects.filter(message__in=old).exists()
        assert OutgoingContent.objects.count() == 3

    def test_bodies_of_sent_messages_and_those_that_nobody_needs(self) -> None:
        (sent,) = queue(1, status="sent", lane=None, finished_at=timezone.now() - timedelta(1))
        (failed,) = queue(1, status="failed", lane=None, finished_at=timezone.now())
        OutgoingContent.objects.create(mime=b"left behind")

        assert purge() == 0

        assert OutgoingMessage.objects.get(pk=sent).content_id is None
        kept = OutgoingMessage.objects.get(pk=failed).content_id
        assert list(OutgoingContent.objects.values_list("pk", flat=True)) == [kept]


@needs_row_locks
@pytest.mark.django_db(transaction=True)
class TestBesideOthers:
    def test_it_waits_for_nobody(self) -> None:
        held, *others = finish(5)
        # In a table of five rows, MariaDB looks at all of them, whatever it is asked for.
        kept = queue(100)
        is_held, may_go = threading.Event(), threading.Event()

        def hold() -> None:
            with transaction.atomic():
                OutgoingMessage.objects.select_for_update().get(pk=held)
                is_held.set()
                may_go.wait(60)

        with second_connection(hold):
            is_held.wait(60)
            try:
                with connection.cursor() as cursor:
                    cursor.execute(
                        "SET lock_timeout = '10s'"
                        if connection.vendor == "postgresql"
                        else "SET innodb_lock_wait_timeout = 10"
                    )
                assert purge() == len(others)
                left = OutgoingMessage.objects.exclude(pk__in=kept)
                assert list(left.values_list("pk", flat=True)) == [held]
            finally:
                may_go.set()
        assert purge() == 1

    def test_nobody_who_claims_waits_for_it(self) -> None:
        finish(3)
        open_rows = queue(3)
        claimed: list[int] = []
        release = OutgoingContent.objects.release

        def drain() -> None:
            outbox.peek(10, using="default")
            rows = outbox.claim(
                tokens=9, slots=9, max_bytes=10**9, lease_seconds=60, using="default"
            )
            claimed.extend(row.pk for row in rows)

        def claim_meanwhile(rows: Any) -> None:
            if not claimed:
                with second_connection(drain) as (thread, _):
                    thread.join(60)
                    assert not thread.is_alive()
            release(rows)

        with mock.patch.object(OutgoingContent.objects, "release", claim_meanwhile):
            assert purge() == 3

        assert sorted(claimed) == open_rows

    @pytest.mark.skipif(connection.vendor != "postgresql", reason="asks who waits for a lock")
    def test_what_is_sent_again_at_that_moment_is_kept_or_said_to_be_gone(self) -> None:
        (pk,) = finish(1)
        release = OutgoingContent.objects.release
        threads: list[threading.Thread] = []
        again: list[int] = []

        def send_again() -> None:
            try:
                again.append(outbox.send_again(OutgoingMessage.objects.filter(pk=pk)))
            finally:
                connection.close()

        def send_again_meanwhile(rows: Any) -> None:
            threads.append(threading.Thread(target=send_again))
            threads[0].start()
            while threads[0].is_alive() and not somebody_waits():
                pass
            release(rows)

        with mock.patch.object(OutgoingContent.objects, "release", send_again_meanwhile):
            purge()
        threads[0].join()

        assert again == [OutgoingMessage.objects.filter(pk=pk, status="queued").count()]


def somebody_waits() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone()[0])

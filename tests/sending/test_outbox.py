"""The outbox: in which order rows leave, and what is forgotten."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db import DatabaseError, connection
from django.db.models import F
from django.utils import timezone

from connect_mailer import signals, transactions
from connect_mailer.backend import ConnectMailerBackend, TransactionalBackend
from connect_mailer.clock import DatabaseNow
from connect_mailer.models import MessageEvent, OutgoingMessage
from connect_mailer.sending import outbox
from connect_mailer.testing import deliver_all

pytestmark = pytest.mark.django_db

Status = OutgoingMessage.Status
ONE_HOUR = timedelta(hours=1)


def queue(name: str, number: int = 1, **options: Any) -> None:
    """A batch: one call of ``send_messages()``."""
    ConnectMailerBackend(**options).send_messages(
        [
            EmailMessage(f"{name} {n}", "Body", "site@example.com", [f"{name}{n}@example.org"])
            for n in range(number)
        ]
    )


def claim(slots: int = 1000) -> list[outbox.Claimed]:
    outbox.peek(slots, using="default")  # as a drain does
    return outbox.claim(
        tokens=slots, slots=slots, max_bytes=10**9, lease_seconds=60, using="default"
    )


def subjects(rows: list[outbox.Claimed]) -> list[str]:
    found = OutgoingMessage.objects.in_bulk([row.pk for row in rows])
    return [found[row.pk].subject for row in rows]


def settle(*results: outbox.Result) -> None:
    outbox.settle(results, keep_bodies=False, using="default")


def retry(row: outbox.Claimed, delay_seconds: float = 60.0) -> None:
    settle(outbox.Postponed.of(row, delay_seconds=delay_seconds, error="no", counts=True))


def pass_time(amount: timedelta) -> None:
    """As if everything had been queued, and was due, that much earlier."""
    OutgoingMessage.objects.update(due_at=F("due_at") - amount, turn=F("turn") - amount)


class TestOrder:
    def test_account_mail_leaves_before_what_was_not_claimed_when_it_was_queued(self) -> None:
        queue("digest", 200)
        queue("urgent", 200, priority=0)
        claimed = claim(20)
        TransactionalBackend(priority=9).send_messages(
            [EmailMessage("Reset", "Body", "site@example.com", ["jo@example.org"])]
        )

        after = claim(50)

        assert len(claimed) == 20
        assert subjects(after)[0] == "Reset"
        assert all(subject.startswith("urgent") for subject in subjects(after)[1:])

    def test_priority_before_age(self) -> None:
        for priority in (5, 9, 0, 3):
            queue(f"p{priority}", priority=priority)

        assert subjects(claim()) == ["p0 0", "p3 0", "p5 0", "p9 0"]

    def test_the_messages_of_one_call_keep_their_order(self) -> None:
        queue("a", 120)

        assert subjects(claim()) == [f"a {n}" for n in range(120)]

    def test_ten_of_one_sender_come_between_thousands_of_another(self) -> None:
        queue("thousands", 500)
        queue("ten", 10)

        # Row by row in turns; where a second passed in between, those of that second come first.
        assert {f"ten {n}" for n in range(10)} <= set(subjects(claim(40)))

    def test_what_was_queued_later_waits_for_what_is_due_to_be_sent_by_then(self) -> None:
        queue("thousands", 500)
        pass_time(timedelta(seconds=100.5))
        queue("ten", 10)
        first = OutgoingMessage.objects.get(subject="thousands 0").turn
        later = OutgoingMessage.objects.get(subject="ten 0").turn
        assert first is not None
        assert later is not None
        before = int((later - first).total_seconds()) + 1  # one a second

        order = subjects(claim(before + 20))

        assert order[:before] == [f"thousands {n}" for n in range(before)]
        assert order[before::2] == [f"ten {n}" for n in range(10)]

    def test_a_turn_that_has_not_come_keeps_nobody_waiting(self) -> None:
        queue("a", 300)

        assert len(claim(300)) == 300

    def test_one_call_with_many_recipients_takes_a_turn_for_each_row(self) -> None:
        ConnectMailerBackend().send_messages(
            [
                EmailMessage(
                    "wide",
                    "Body",
                    "site@example.com",
                    bcc=[f"u{n}@example.org" for n in range(150)],
                )
            ]
        )

        first, second, third = OutgoingMessage.objects.order_by("pk").values_list("turn", flat=True)
        assert first is not None
        assert second == first + timedelta(seconds=1)
        assert third == first + timedelta(seconds=2)


class TestRetries:
    def test_a_retry_comes_after_what_came_before_it_was_due(self) -> None:
        queue("first")
        (first,) = claim()
        queue("second")
        pass_time(ONE_HOUR)
        retry(first, delay_seconds=0.001)
        pass_time(timedelta(seconds=1))
        queue("third")

        assert subjects(claim()) == ["second 0", "first 0", "third 0"]

    def test_a_retry_does_not_leave_the_end_of_its_batch(self) -> None:
        queue("batch", 300)
        *others, last = claim(300)
        settle(*(outbox.Sent.of(row, ses_message_id="1") for row in others))
        retry(last)
        pass_time(timedelta(seconds=61))
        queue("other", 100)

        # Its own turn is minutes away still: it would overtake the other ones.
        assert subjects(claim()) == [*(f"other {n}" for n in range(100)), "batch 299"]

    def test_what_is_given_back_keeps_its_place(self) -> None:
        queue("first")
        (first,) = claim()
        queue("second")
        settle(outbox.Postponed.of(first, delay_seconds=0, error="", counts=False))

        assert subjects(claim()) == ["first 0", "second 0"]

    def test_what_a_dead_worker_held_keeps_its_place(self) -> None:
        queue("first")
        claim()
        queue("second")
        end_leases()

        first, second = claim()

        assert subjects([first, second]) == ["first 0", "second 0"]
        assert (first.in_doubt, second.in_doubt) == (True, False)


@pytest.mark.parametrize("is_taken_over", [False, True])
def test_what_a_drain_gets_is_what_the_row_says(is_taken_over: bool) -> None:
    mail = EmailMessage("a", "b", "site@example.com", ["jo@example.org", "al@example.org"])
    mail.tags = ["one", "two"]
    later = timezone.now() + ONE_HOUR
    TransactionalBackend(mailing_list="news", expires_at=later).send_messages([mail])
    if is_taken_over:
        claim()
        earlier = timezone.now() - ONE_HOUR
        OutgoingMessage.objects.update(due_at=earlier, expires_at=earlier, last_error="no")

    (row,) = claim()

    says = OutgoingMessage.objects.values(*row._fields[:-1]).get()
    assert row._asdict() == {**says, "has_expired": is_taken_over}
    assert row.attempts == 1 + is_taken_over
    assert row.in_doubt is is_taken_over


class TestTimes:
    def test_send_after(self) -> None:
        queue("later", 2, send_after=timezone.now() + ONE_HOUR)
        queue("now")

        (row,) = claim()
        assert subjects([row]) == ["now 0"]
        settle(outbox.Sent.of(row, ses_message_id="1"))
        assert not outbox.is_due(using="default")
        pass_time(ONE_HOUR + timedelta(seconds=1))
        queue("after")
        assert outbox.is_due(using="default")
        assert subjects(claim()) == ["later 0", "later 1", "after 0"]

    def test_a_scheduled_row_that_is_more_important_waits_for_no_other(self) -> None:
        queue("later", priority=0, send_after=timezone.now() + ONE_HOUR)
        queue("now", 3)
        pass_time(ONE_HOUR + timedelta(seconds=1))

        outbox.line_up(using="default")  # as a drain does twice a second

        assert subjects(claim(1)) == ["later 0"]

    def test_what_expired_is_not_sent(self, settings: Any, mailoutbox: Any) -> None:
        settings.CONNECT_MAILER = {"TRANSPORT": "django.core.mail.backends.locmem.EmailBackend"}
        queue("stale", expires_at=timezone.now() - timedelta(seconds=1))
        queue("fresh", expires_at=timezone.now() + ONE_HOUR)

        assert deliver_all() == 1

        stale = OutgoingMessage.objects.get(subject="stale 0")
        assert stale.status == "expired"
        assert "Not sent before" in stale.last_error
        assert [message.subject for message in mailoutbox] == ["fresh 0"]

    def test_sent_again_stands_in_line(self) -> None:
        queue("a")
        (row,) = claim()
        settle(outbox.Ended.of(row, status=Status.FAILED, error="no"))
        assert claim() == []

        assert outbox.send_again(OutgoingMessage.objects.all()) == 1

        assert subjects(claim()) == ["a 0"]


def end_leases() -> None:
    # By the database's clock: SQLite's has no microseconds.
    OutgoingMessage.objects.filter(status=Status.SENDING).update(due_at=DatabaseNow())


class TestClaims:
    def test_who_lost_a_row_says_nothing_about_it(self) -> None:
        queue("a")
        (lost,) = claim()
        end_leases()
        (row,) = claim()

        retry(lost)
        settle(outbox.Ended.of(lost, status=Status.FAILED, error="no"))
        settle(outbox.Doubtful.of(lost, error="no answer"))

        now = OutgoingMessage.objects.get()
        assert (now.status, now.claim, now.last_error) == (Status.SENDING, row.claim, "")
        assert not MessageEvent.objects.exists()

    def test_nor_does_it_tell_the_site(self, django_capture_on_commit_callbacks: Any) -> None:
        queue("a")
        (lost,) = claim()
        end_leases()
        (row,) = claim()
        settle(outbox.Ended.of(row, status=Status.FAILED, error="no"))
        heard = []

        def hear(message: OutgoingMessage, **kwargs: Any) -> None:
            heard.append(message.pk)

        signals.message_failed.connect(hear)
        with django_capture_on_commit_callbacks(execute=True):
            settle(outbox.Ended.of(lost, status=Status.FAILED, error="no"))
        signals.message_failed.disconnect(hear)

        assert not heard
        assert MessageEvent.objects.count() == 1

    def test_not_even_where_it_has_the_row_again(self) -> None:
        queue("a", 2)
        (lost, _) = claim()
        end_leases()
        (row, other) = claim()
        assert (row.pk, row.claim) == (lost.pk, other.claim)

        settle(
            *(
                outbox.Postponed.of(r, delay_seconds=0, error="", counts=False)
                for r in (lost, other)
            )
        )

        assert OutgoingMessage.objects.get(pk=row.pk).claim == row.claim
        assert OutgoingMessage.objects.get(pk=other.pk).status == Status.QUEUED

    def test_what_was_sent_counts_in_any_case(self) -> None:
        queue("a")
        (lost,) = claim()
        end_leases()
        claim()

        settle(outbox.Sent.of(lost, ses_message_id="1"))

        assert OutgoingMessage.objects.get().status == Status.SENT


def test_rows_of_an_earlier_version_stand_in_line_by_themselves() -> None:
    queue("old", 3)
    OutgoingMessage.objects.update(lane=None, turn=None)

    assert outbox.is_due(using="default")
    assert len(claim()) == 3


def test_rows_that_are_finished_stand_in_no_line() -> None:
    queue("a", 3)
    sent, failed, expired = claim()
    # Their lease ended, and a drain let them into the line.
    OutgoingMessage.objects.update(due_at=DatabaseNow())
    outbox.line_up(using="default")
    settle(
        outbox.Sent.of(sent, ses_message_id="1"),
        outbox.Ended.of(failed, status=Status.FAILED, error="no"),
        outbox.Ended.of(expired, status=Status.EXPIRED, error="late"),
    )

    assert set(OutgoingMessage.objects.values_list("lane", "turn")) == {(None, None)}


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "postgresql", reason="no other server ends what idles")
@pytest.mark.parametrize("then", ["_still_due", "_update"], ids=["line_up", "settle"])
def test_who_stops_in_the_middle_keeps_no_row_from_others(
    then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "IDLE_LIMIT", "200ms")
    queue("a")
    (lost,) = claim()
    end_leases()
    has_locked, goes_on = threading.Event(), threading.Event()
    go_on = getattr(outbox, then)

    def stop(*args: Any, **changes: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            has_locked.set()
            goes_on.wait(60)
        return go_on(*args, **changes)

    def act() -> None:
        try:
            if then == "_update":
                settle(outbox.Ended.of(lost, status=Status.FAILED, error="no"))
            else:
                outbox.line_up(using="default")
        finally:
            connection.close()

    monkeypatch.setattr(outbox, then, stop)
    with ThreadPoolExecutor(1) as pool:
        suspended = pool.submit(act)
        assert has_locked.wait(60)
        end = time.monotonic() + 60
        while not (rows := claim()) and time.monotonic() < end:
            time.sleep(0.05)
        goes_on.set()
        with pytest.raises(DatabaseError, match="idle-in-transaction"):
            suspended.result(60)
    assert [row.pk for row in rows] == [lost.pk]

"""The drain, against a local SES over HTTP."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from math import inf
from typing import Any

import pytest
import redis
from django.core.mail import EmailMessage
from django.db import DataError, InternalError, OperationalError, connection
from django.utils import timezone

from connect_mailer import signals
from connect_mailer.backend import ConnectMailerBackend, TransactionalBackend
from connect_mailer.exceptions import LimiterUnavailable
from connect_mailer.models import (
    Lease,
    OutgoingContent,
    OutgoingMessage,
    OutgoingRecipient,
    Unsubscribe,
)
from connect_mailer.sending import delivery, leases, outbox
from connect_mailer.sending.calls import Steps
from connect_mailer.sending.delivery import Drain, DrainLease, Slot
from connect_mailer.sending.limiter import RedisLimiter, Reservation
from connect_mailer.sending.rate import account_rate
from connect_mailer.sending.ses import Envelope
from connect_mailer.sending.transport import get_ses_client, get_transport
from connect_mailer.testing.outbox import deliver_all
from connect_mailer.testing.ses import Fault, LocalSES
from tests import servers
from tests.sending.calling import Sink, alarm

pytestmark = pytest.mark.django_db

Status = OutgoingMessage.Status


@pytest.fixture
def ses(settings: Any) -> Iterator[LocalSES]:
    with LocalSES(rate=100_000) as server:
        settings.AWS_ACCESS_KEY_ID = settings.AWS_SECRET_ACCESS_KEY = "test"
        settings.CONNECT_MAILER = {
            "SES_REGION": "us-east-1",
            "SES_ENDPOINT_URL": server.url,
            "REDIS_URL": None,
            "CONCURRENCY": 10,
        }
        # As drain_outbox does: the client is made before the first slot of time begins.
        account_rate.get(get_ses_client())
        server.clear()
        yield server


def queue(*to: str, **options: Any) -> None:
    ConnectMailerBackend(**options).send_messages(
        [EmailMessage(f"To {address}", "Body", "site@example.com", [address]) for address in to]
    )


def drain(**kwargs: Any) -> Drain:
    kwargs = {"limiter": None, "rate": None, "one_pass": True, **kwargs}
    made = Drain(transport=get_transport(), using="default", **kwargs)
    made.run()
    return made


def refuse_to_settle(
    monkeypatch: pytest.MonkeyPatch, error: Exception, *tries: int
) -> list[list[int]]:
    """Let these tries fail, counted from 1, and soon be repeated; return the keys of each try."""
    settle, seen = outbox.settle, []

    def attempt(results: Any, **options: Any) -> None:
        seen.append([result.pk for result in results])
        if len(seen) in tries:
            raise error
        settle(results, **options)

    monkeypatch.setattr(delivery, "OUTAGE_SECONDS", 0.01)
    monkeypatch.setattr(delivery, "SETTLE_SECONDS", 60)  # all at the end
    monkeypatch.setattr(outbox, "settle", attempt)
    return seen


def get_row() -> OutgoingMessage:
    return OutgoingMessage.objects.get()


class StubLimiter:
    """A limiter with set answers, which notes what it is told."""

    def __init__(self, *answers: Reservation | Exception) -> None:
        self.answers = list(answers)
        self.late_seconds = 0.0
        self.given_back: list[int] = []
        self.slowed_down = 0

    def reserve(self, costs: Any, rate: float) -> Reservation:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def give_back(self, tokens: int) -> None:
        self.given_back.append(tokens)

    def put_off(self, seconds: float) -> None:
        self.late_seconds += seconds

    def slow_down(self) -> None:
        self.slowed_down += 1

    def close(self) -> None:
        pass


def grant(tokens: int) -> Reservation:
    return Reservation(granted=tokens, wait_seconds=0, interval_seconds=0.001)


def make_slot(cost: int, starts_at: float, interval_seconds: float) -> Slot:
    return Slot(
        pk=1,
        claim=uuid.uuid4(),
        stream="default",
        attempts=1,
        envelope=Envelope(
            sender="site@example.com",
            recipients=tuple(f"u{n}@example.org" for n in range(cost)),
            mime=b"From: site@example.com\r\n\r\nBody",
            tags={},
            topic=None,
        ),
        starts_at=starts_at,
        width_seconds=cost * interval_seconds,
        lease_ends_at=inf,
    )


def test_what_is_queued_arrives(ses: LocalSES) -> None:
    queue("a@example.org", "b@example.org")

    assert drain().sent == 2

    mails = {mail.recipients[0]: mail for mail in ses.mailbox()}
    assert set(mails) == {"a@example.org", "b@example.org"}
    for row in OutgoingMessage.objects.all():
        recipient = row.recipients.get()
        mail = mails[recipient.address]
        assert row.status == Status.SENT
        assert row.ses_message_id == mail.message_id
        assert mail.tags["connect-mailer-id"] == str(row.uuid)
        assert row.sent_at is not None
        assert row.finished_at is not None
        assert (row.attempts, row.claim, row.content_id) == (1, None, None)
        assert recipient.status == "sent"
    assert OutgoingContent.objects.count() == 0


def test_bodies_are_kept_on_request(ses: LocalSES, settings: Any) -> None:
    settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "KEEP_BODIES_DAYS": 3}
    queue("a@example.org")

    drain()

    assert get_row().content is not None


def test_the_display_name_of_the_sender_arrives(ses: LocalSES) -> None:
    sender = "The Site <site@example.com>"
    ConnectMailerBackend().send_messages([EmailMessage("a", "b", sender, ["jo@example.org"])])

    drain()

    assert ses.mailbox()[0].message["From"] == sender


def test_a_split_message_arrives_once_for_each(ses: LocalSES) -> None:
    everybody = {f"u{n}@example.org" for n in range(120)}
    ConnectMailerBackend().send_messages(
        [EmailMessage("a", "b", "site@example.com", [], bcc=sorted(everybody))]
    )

    assert drain().sent == 3

    written = [address for mail in ses.mailbox() for address in mail.recipients]
    assert len(written) == 120
    assert set(written) == everybody
    assert OutgoingContent.objects.count() == 0


@pytest.mark.parametrize("rows", [1, 50])
def test_queries_for_a_batch_do_not_grow_with_it(
    ses: LocalSES, rows: int, django_assert_num_queries: Any
) -> None:
    queue(*(f"u{n}@example.org" for n in range(rows)))
    has_row_locks = connection.features.has_select_for_update_skip_locked
    at_once = connection.vendor == "postgresql"

    # SELECT and UPDATE, in a savepoint where rows can be locked. PostgreSQL: one statement.
    with django_assert_num_queries(3 if at_once else 4 if has_row_locks else 2):
        claimed = outbox.claim(
            tokens=rows, slots=rows, max_bytes=10**9, lease_seconds=60, using="default"
        )
    assert len(claimed) == rows
    results = [outbox.Sent.of(row, ses_message_id=f"id-{row.pk}") for row in claimed]
    # messages, recipients, contents (which, forget, whose, delete), the tally, in a savepoint
    with django_assert_num_queries(3 if at_once else 9):
        outbox.settle(results, keep_bodies=False, using="default")
    assert set(OutgoingMessage.objects.values_list("ses_message_id", flat=True)) == {
        result.ses_message_id for result in results
    }


@pytest.mark.parametrize("rows", [10, 29])
def test_what_a_look_costs_does_not_grow_with_what_it_finds(
    ses: LocalSES,
    rows: int,
    valkey: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    django_assert_num_queries: Any,
) -> None:
    """Of the database, of the limiter and of connections to SES."""
    queue(*(f"u{n}@example.org" for n in range(rows)))
    limiter = RedisLimiter(servers.valkey_url())
    limiter.reserve([1], 1e6)
    valkey.config_resetstat()
    # How often it settles, and asks what became due, is a matter of time.
    settled: list[outbox.Result] = []
    monkeypatch.setattr(outbox, "settle", lambda results, **_kwargs: settled.extend(results))
    monkeypatch.setattr(delivery, "HEARTBEAT_SECONDS", 600.0)
    # And so it is whether a call is late, which the limiter is told.
    monkeypatch.setattr(delivery, "LATE_SECONDS", 600.0)
    monkeypatch.setattr(delivery, "BURST_SECONDS", 3000.0)
    at_once = connection.vendor == "postgresql"
    locks = connection.features.has_select_for_update_skip_locked
    # What became due is asked for first, and again where the line is short.
    line_up, peek, line_up_again, load = 2, 1, 2, 3
    claim = 3 if at_once else 4 if locks else 2

    with django_assert_num_queries(line_up + peek + line_up_again + claim + load):
        assert drain(limiter=limiter, rate=1e6).sent == rows == len(settled)

    calls: Any = valkey.info("commandstats")
    assert calls["cmdstat_evalsha"]["calls"] == 1
    assert 0 < ses.stats().connections_opened <= 10, "one for each call in flight, and kept"


def test_who_opted_out_since_is_not_written_to(ses: LocalSES) -> None:
    ConnectMailerBackend().send_messages(
        [
            EmailMessage("a", "b", "site@example.com", ["stays@example.org", "gone@example.org"]),
            EmailMessage(
                "a", "b", "site@example.com", ["gone@example.org"], cc=["stays@example.org"]
            ),
        ]
    )
    Unsubscribe.objects.suppress("gone@example.org", "user")

    assert drain().sent == 1

    assert [mail.recipients for mail in ses.mailbox()] == [("stays@example.org",)]
    statuses = OutgoingMessage.objects.order_by("pk").values_list("status", flat=True)
    assert list(statuses) == [Status.SENT, Status.SUPPRESSED]
    assert set(
        OutgoingRecipient.objects.filter(status="suppressed").values_list("address", "reason")
    ) == {("gone@example.org", "user"), ("stays@example.org", "nobody left in To")}
    assert OutgoingContent.objects.count() == 0


def test_most_important_first(ses: LocalSES) -> None:
    queue("ninth@example.org", priority=9)
    queue("second@example.org", priority=1)
    queue("third@example.org", priority=1)
    TransactionalBackend(priority=9).send_messages(
        [EmailMessage("a", "b", "site@example.com", ["first@example.org"])]
    )

    costs = outbox.peek(10, using="default")
    rows = outbox.claim(tokens=3, slots=10, max_bytes=10**9, lease_seconds=60, using="default")

    assert costs == [1, 1, 1, 1]
    addresses = dict(OutgoingRecipient.objects.values_list("message", "address"))
    order = [addresses[row.pk] for row in rows]
    assert order == ["first@example.org", "second@example.org", "third@example.org"]


def test_not_before_its_time_and_not_after(ses: LocalSES) -> None:
    now = timezone.now()
    queue("later@example.org", send_after=now + timedelta(hours=1))
    queue("stale@example.org", expires_at=now - timedelta(seconds=1))

    assert drain().sent == 0

    assert dict(OutgoingRecipient.objects.values_list("address", "message__status")) == {
        "later@example.org": Status.QUEUED,
        "stale@example.org": Status.EXPIRED,
    }


class TestAnswers:
    """One row of the table of answers each."""

    def test_throttled(self, ses: LocalSES) -> None:
        ses.inject(Fault(code="TooManyRequestsException", message="Maximum sending rate exceeded."))
        limiter = StubLimiter(grant(1))
        queue("a@example.org")

        drain(limiter=limiter, rate=1.0)

        row = get_row()
        assert (row.status, row.attempts) == (Status.QUEUED, 0)
        assert "Maximum sending rate" in row.last_error
        assert limiter.slowed_down == 1

    @pytest.mark.parametrize(
        "fault",
        [
            Fault(code="TooManyRequestsException", message="Daily message quota exceeded."),
            Fault(code="SendingPausedException"),
            Fault(code="AccountSuspendedException"),
            Fault(code="UnrecognizedClientException", status=403),
            Fault(code="ExpiredTokenException", status=403),
        ],
    )
    def test_the_account(
        self, ses: LocalSES, fault: Fault, caplog: pytest.LogCaptureFixture
    ) -> None:
        delivery.outages.end("account")
        caplog.clear()
        ses.inject(fault)
        queue("a@example.org")

        drain()

        row = get_row()
        assert (row.status, row.attempts) == (Status.QUEUED, 0)
        pause = Lease.objects.get(name="pause")
        assert fault.message in pause.note
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert delivery.drain_outbox(wake=_never, ask_for_help=_never) == 0
        leases.release("pause", using="default")
        assert drain().sent == 1

    def test_no_credentials(self, ses: LocalSES, settings: Any, monkeypatch: Any) -> None:
        settings.AWS_ACCESS_KEY_ID = settings.AWS_SECRET_ACCESS_KEY = None
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
        queue("a@example.org")

        drain()

        assert get_row().status == Status.QUEUED
        assert leases.find_alive("pause", using="default")

    def test_one_sender(self, ses: LocalSES) -> None:
        ses.inject(Fault(code="MailFromDomainNotVerifiedException", sender="site@example.com"))
        queue("a@example.org")

        drain()

        row = get_row()
        assert (row.status, row.attempts) == (Status.QUEUED, 1)
        assert timedelta(seconds=40) < row.due_at - timezone.now() < timedelta(seconds=80)
        assert not leases.find_alive("pause", using="default")

    def test_five_senders_one_after_the_other(self, ses: LocalSES) -> None:
        ses.configure(verified_identities=())
        messages = [
            EmailMessage("a", "b", f"site{n}@example.com", ["a@example.org"]) for n in range(6)
        ]
        ConnectMailerBackend().send_messages(messages)

        drain()

        assert leases.find_alive("pause", using="default")
        assert not OutgoingMessage.objects.filter(status=Status.FAILED).exists()

    @pytest.mark.parametrize("status", [500, 503])
    def test_server_errors(self, ses: LocalSES, status: int) -> None:
        ses.inject(Fault(code="InternalFailure", status=status))
        queue("a@example.org")

        drain()

        row = get_row()
        assert (row.status, row.attempts) == (Status.QUEUED, 1)
        assert row.due_at > timezone.now() + timedelta(seconds=40)

    def test_refused_connection(self, ses: LocalSES) -> None:
        queue("a@example.org")
        ses.close()

        drain()

        assert (get_row().status, get_row().attempts) == (Status.QUEUED, 1)

    @pytest.mark.parametrize(
        "fault", [Fault(lost="after"), Fault(lost="cut"), Fault(lost="after", reset=True)]
    )
    def test_in_doubt(self, ses: LocalSES, settings: Any, fault: Fault) -> None:
        ses.inject(fault)
        queue("a@example.org")

        drain()

        row = get_row()
        assert (row.status, row.in_doubt, len(ses.mailbox())) == (Status.SENDING, True, 1)
        assert not outbox.is_due(using="default")
        # After the lease, the settings decide.
        OutgoingMessage.objects.update(due_at=timezone.now() - timedelta(seconds=1))
        settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "IN_DOUBT": "hold"}
        drain()
        row = get_row()
        assert row.status == Status.FAILED
        assert "doubt" in row.last_error
        assert len(ses.mailbox()) == 1

    @pytest.mark.parametrize(("setting", "status"), [("hold", "failed"), ("resend", "expired")])
    def test_in_doubt_and_expired(
        self, ses: LocalSES, settings: Any, setting: str, status: str
    ) -> None:
        settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "IN_DOUBT": setting}
        ses.inject(Fault(lost="after"))
        queue("a@example.org", expires_at=timezone.now() + timedelta(hours=1))
        drain()
        now = timezone.now() - timedelta(seconds=1)
        OutgoingMessage.objects.update(due_at=now, expires_at=now)

        drain()

        row = get_row()
        assert row.status == status
        assert row.last_error.startswith("In doubt: SES may have taken it")
        assert len(ses.mailbox()) == 1

    def test_in_doubt_is_sent_again_by_default(self, ses: LocalSES) -> None:
        ses.inject(Fault(lost="after"))
        queue("a@example.org")
        drain()
        OutgoingMessage.objects.update(due_at=timezone.now() - timedelta(seconds=1))

        drain()

        row = get_row()
        assert (row.status, row.in_doubt, len(ses.mailbox())) == (Status.SENT, False, 2)

    def test_rejected(self, ses: LocalSES) -> None:
        ses.inject(
            Fault(code="MessageRejected", message="It has a virus.", recipient="a@example.org")
        )
        queue("a@example.org", "b@example.org")

        assert drain().sent == 1

        row = OutgoingMessage.objects.get(status=Status.FAILED)
        assert "It has a virus." in row.last_error
        assert row.content is not None

    def test_what_can_not_be_written_down_of_one_holds_up_no_other(
        self, ses: LocalSES, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        queue("a@example.org", "b@example.org", "c@example.org")
        bad = OutgoingMessage.objects.get(recipients__address="b@example.org").pk
        settle = outbox.settle

        def refuse(results: Any, **options: Any) -> None:
            if any(result.pk == bad for result in results):
                raise DataError("no such value")
            settle(results, **options)

        monkeypatch.setattr(outbox, "settle", refuse)
        drain()

        statuses = dict(OutgoingRecipient.objects.values_list("address", "message__status"))
        assert statuses == {
            "a@example.org": "sent",
            "b@example.org": "sending",
            "c@example.org": "sent",
        }
        assert f"Row {bad} could not be settled" in caplog.text

    @pytest.mark.django_db(transaction=True)  # the drain asks for a new connection
    def test_what_had_no_room_waits_for_it(
        self, ses: LocalSES, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A disk may have room for a few: PostgreSQL calls a file's limit an internal error."""
        queue("a@example.org", "b@example.org", "c@example.org")
        # All together, and two of them.
        seen = refuse_to_settle(monkeypatch, InternalError("could not extend file"), 1, 3, 4)
        drain()

        assert [len(pks) for pks in seen] == [3, 1, 1, 1, 2]
        assert set(seen[4]) == {*seen[2], *seen[3]}
        assert {row.status for row in OutgoingMessage.objects.all()} == {Status.SENT}
        assert len(ses.mailbox()) == 3
        assert "could not be settled" not in caplog.text

    @pytest.mark.django_db(transaction=True)  # the drain asks for a new connection
    def test_what_no_database_writes_down_waits(
        self, ses: LocalSES, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where a primary became a replica, which answers and reads."""
        queue("a@example.org", "b@example.org")
        error = InternalError("cannot execute UPDATE in a read-only transaction")
        # The two together, and each of them.
        seen = refuse_to_settle(monkeypatch, error, 1, 2, 3)
        drain()

        assert [len(pks) for pks in seen] == [2, 1, 1, 2]
        assert {row.status for row in OutgoingMessage.objects.all()} == {Status.SENT}

    @pytest.mark.django_db(transaction=True)  # the drain asks for a new connection
    def test_an_outage_is_told_once_though_something_works(
        self, ses: LocalSES, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As where a full disk has room for the lease of the drain."""
        queue("a@example.org")
        error = OperationalError("No space left on device")
        seen = refuse_to_settle(monkeypatch, error, *range(1, 6))
        line_up, tries_at_beats = outbox.line_up, set()

        def note(**options: Any) -> bool:
            tries_at_beats.add(len(seen))
            return line_up(**options)

        monkeypatch.setattr(outbox, "line_up", note)
        drain()

        assert tries_at_beats & {1, 2, 3, 4}  # after the first refusal and before the last
        assert get_row().status == Status.SENT
        assert caplog.text.count("database is out of reach") == 1
        assert caplog.text.count("The database is back") == 1

    def test_the_last_attempt(self, ses: LocalSES, settings: Any) -> None:
        settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "MAX_ATTEMPTS": 2}
        ses.inject(Fault(code="InternalFailure", status=500, times=2))
        queue("a@example.org")

        drain()
        OutgoingMessage.objects.update(due_at=timezone.now() - timedelta(seconds=1))
        drain()

        assert (get_row().status, get_row().attempts) == (Status.FAILED, 2)

    def test_a_row_that_killed_its_workers(self, ses: LocalSES, settings: Any) -> None:
        settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "MAX_ATTEMPTS": 2}
        queue("a@example.org")
        OutgoingMessage.objects.update(attempts=2)

        drain()

        assert get_row().status == Status.FAILED
        assert ses.mailbox() == []

    def test_a_row_without_a_body(self, ses: LocalSES) -> None:
        queue("a@example.org", "b@example.org")
        row = OutgoingRecipient.objects.get(address="a@example.org").message
        OutgoingContent.objects.filter(messages=row).delete()

        assert drain().sent == 1

        row.refresh_from_db()
        assert (row.status, "gone" in row.last_error) == (Status.FAILED, True)

    @pytest.mark.parametrize("cost", [0, 300])
    def test_a_row_whose_cost_is_damaged(self, ses: LocalSES, cost: int) -> None:
        queue("a@example.org", "b@example.org")
        row = OutgoingRecipient.objects.get(address="a@example.org").message
        OutgoingMessage.objects.filter(pk=row.pk).update(cost=cost)

        drain()

        row.refresh_from_db()
        assert (row.status, "cost" in row.last_error) == (Status.FAILED, True)
        assert [mail.recipients for mail in ses.mailbox()] == [("b@example.org",)]

    def test_in_doubt_stays_so_until_it_is_known(self, ses: LocalSES, settings: Any) -> None:
        settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "IN_DOUBT": "hold"}
        queue("a@example.org")
        now = timezone.now() - timedelta(seconds=1)
        OutgoingMessage.objects.update(status=Status.SENDING, claim=uuid.uuid4(), due_at=now)
        options: dict[str, Any] = {"tokens": 1, "slots": 1, "max_bytes": 1, "lease_seconds": 60}
        (row,) = outbox.claim(**options, using="default")
        back = outbox.Postponed.of(row, delay_seconds=0, error="", counts=False)
        outbox.settle([back], keep_bodies=False, using="default")

        drain()

        assert (get_row().status, ses.mailbox()) == (Status.FAILED, [])

    def test_deliver_all_ends_at_a_problem_of_the_account(self, ses: LocalSES) -> None:
        ses.configure(sending_paused=True)
        queue("a@example.org", "b@example.org")

        assert deliver_all() == 0


class TestPace:
    def test_what_is_not_used_is_given_back(self, ses: LocalSES) -> None:
        limiter = StubLimiter(grant(5))
        queue("a@example.org", "gone@example.org")
        Unsubscribe.objects.suppress("gone@example.org", "user")

        assert drain(limiter=limiter, rate=1.0).sent == 1

        assert limiter.given_back == [4]

    def test_nothing_is_sent_without_the_limiter(
        self, ses: LocalSES, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.ERROR)
        queue("a@example.org")

        for _ in range(3):
            drain(limiter=StubLimiter(LimiterUnavailable("gone")), rate=1.0)

        assert ses.mailbox() == []
        assert get_row().status == Status.QUEUED
        assert len(caplog.records) == 1
        assert drain(limiter=StubLimiter(grant(1)), rate=1.0).sent == 1

    def test_slots_follow_each_other(self, ses: LocalSES) -> None:
        reservation = Reservation(granted=4, wait_seconds=0.05, interval_seconds=0.05)
        queue(*(f"u{n}@example.org" for n in range(4)))

        drain(limiter=StubLimiter(reservation), rate=20.0)

        times = [mail.received_at for mail in ses.mailbox()]
        gaps = [(b - a).total_seconds() for a, b in pairwise(times)]
        assert sum(gaps) > 0.1  # 3 slots of 0.05 s, less what is caught up with

    def test_who_waits_for_a_turn_holds_up_no_answer(
        self, ses: LocalSES, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(delivery, "HAND_OVER_SECONDS", 5.0)
        ses.configure(latency_seconds=0.1)
        queue("a@example.org", "b@example.org")
        reservation = Reservation(granted=2, wait_seconds=0, interval_seconds=2.0)

        drain(limiter=StubLimiter(reservation), rate=0.5)

        second = ses.mailbox()[1].received_at
        settled = OutgoingMessage.objects.values_list("finished_at", flat=True)
        assert len([at for at in settled if at and at < second]) == 1

    def test_what_late_calls_took_nobody_else_gets(self, ses: LocalSES) -> None:
        """Their slots are over later than the limiter believes."""
        limiter = StubLimiter(grant(1))
        queue("a@example.org")

        class Slow:
            def steps(self, envelope: Envelope, begin: Any) -> Steps[str]:
                yield from ()
                time.sleep(0.2)  # to connect
                begin()
                return "an id"

        made = Drain(transport=Slow(), limiter=limiter, rate=1e3, using="default", one_pass=True)
        made.run()

        assert made.sent == 1
        assert limiter.late_seconds > 0.1

    def test_time_that_passed_in_a_wait_nobody_else_gets(self, ses: LocalSES) -> None:
        """As where the machine is busy, or was suspended, just before the call."""
        limiter = StubLimiter(Reservation(granted=1, wait_seconds=0.3, interval_seconds=0.001))
        queue("a@example.org")
        started = time.monotonic()

        def clock() -> float:
            passed = time.monotonic() - started
            return passed if passed < 0.3 else passed + 5

        made = drain(limiter=limiter, rate=1e3, clock=clock)

        assert made.sent == 1
        assert limiter.late_seconds > 4

    def test_an_answer_of_the_limiter_that_took_long(self, ses: LocalSES) -> None:
        """Its slots may have begun by its own clock when it is read."""
        limiter = StubLimiter(
            Reservation(granted=1, wait_seconds=0.2, interval_seconds=0.001, age_seconds=0.1)
        )
        queue("a@example.org")

        assert drain(limiter=limiter, rate=1e3).sent == 1

        assert limiter.late_seconds > 0.08

    @pytest.mark.parametrize("recipients", [(1, 1), (5, 5), (1, 50)])
    @pytest.mark.parametrize("rate", [14.0, 100.0, 500.0])
    def test_slots_fill_the_rate_of_the_strictest_account(
        self, ses: LocalSES, rate: float, recipients: tuple[int, int], settings: Any
    ) -> None:
        """By virtual time: each call on time, or as late as is caught up with."""
        rng, interval = random.Random(1), 1 / rate
        starts_at = now = 1000.0
        with LocalSES(rate=rate, burst_seconds=0.1, clock=lambda: now) as server:
            settings.CONNECT_MAILER |= {"SES_ENDPOINT_URL": server.url}
            client = get_ses_client()
            for _ in range(120):
                cost = rng.randint(*recipients)
                slot = make_slot(cost, starts_at, interval)
                now = starts_at + slot.delay_seconds + rng.choice([0, slot.grace_seconds])
                client.send(slot.envelope)  # or raises Throttled
                starts_at += slot.width_seconds
            assert server.stats().throttled == 0

    def test_a_wait_that_outlasts_the_drain(self, ses: LocalSES) -> None:
        limiter = StubLimiter(Reservation(granted=0, wait_seconds=60, interval_seconds=1))
        queue("a@example.org")

        made = drain(limiter=limiter, rate=1.0, one_pass=False)

        assert (made.sent, made.longest_wait_seconds) == (0, 60)
        assert get_row().status == Status.QUEUED

    def test_throttled_is_tried_again_by_the_same_drain(self, ses: LocalSES) -> None:
        ses.inject(Fault(code="TooManyRequestsException", message="Maximum sending rate exceeded."))
        queue("a@example.org")

        made = drain(limiter=StubLimiter(grant(1), grant(1)), rate=1.0, one_pass=False)

        assert made.sent == 1

    def test_bodies_in_memory_are_bounded(
        self, ses: LocalSES, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(delivery, "MAX_BYTES", 1)
        sizes = []
        claim = outbox.claim

        def watch(**kwargs: Any) -> list[outbox.Claimed]:
            rows = claim(**kwargs)
            sizes.append(len(rows))
            return rows

        monkeypatch.setattr(outbox, "claim", watch)
        queue(*(f"u{n}@example.org" for n in range(5)))

        assert drain().sent == 5
        assert sizes == [1] * 5

    @pytest.mark.parametrize("size", [1, 100])
    def test_a_large_body_is_read_in_pieces(
        self, ses: LocalSES, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(delivery, "PIECE_BYTES", size)
        queue("a@example.org")
        mime = bytes(OutgoingContent.objects.get().mime)

        assert drain().sent == 1
        assert ses.mailbox()[0].mime == mime

    def test_a_large_body_that_is_gone(
        self, ses: LocalSES, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(delivery, "PIECE_BYTES", 1)
        queue("a@example.org")
        monkeypatch.setattr(delivery, "_read_in_pieces", self.find_nothing)

        assert drain().sent == 0
        assert get_row().status == Status.FAILED

    def find_nothing(self, content: Any) -> Any:
        raise OutgoingContent.DoesNotExist

    def test_it_takes_more_where_answers_are_fast(
        self, ses: LocalSES, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks = self.watch_looks(150, settings, monkeypatch, is_fast=True)
        assert (looks[0], max(looks)) == (10, 40)

    def test_it_takes_no_more_where_they_are_slow(
        self, ses: LocalSES, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks = self.watch_looks(30, settings, monkeypatch, is_fast=False)
        assert (looks[0], max(looks)) == (10, 10)

    def watch_looks(
        self, rows: int, settings: Any, monkeypatch: pytest.MonkeyPatch, *, is_fast: bool
    ) -> list[int]:
        """For how many rows a drain with two threads looks, each time until there are none."""
        settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "CONCURRENCY": 2}
        # Few answers at a time, or all that are waited for.
        answers = threading.Semaphore(rows if is_fast else 4)
        claimed: list[outbox.Claimed] = []
        sent, looks = [], []
        claim, settle = outbox.claim, outbox.settle

        class Stub:
            def steps(self, envelope: Envelope, begin: Any) -> Steps[str]:
                yield from ()
                begin()
                answers.acquire()
                sent.append(envelope)
                return "an id"

        def watch_claim(**kwargs: Any) -> list[outbox.Claimed]:
            looks.append(kwargs["slots"])
            while is_fast and len(sent) < len(claimed):
                time.sleep(0.001)
            found = claim(**kwargs)
            claimed.extend(found)
            return found

        def watch_settle(results: Any, **kwargs: Any) -> None:
            settle(results, **kwargs)
            answers.release(len(results) if len(claimed) < rows else rows)

        monkeypatch.setattr(outbox, "claim", watch_claim)
        monkeypatch.setattr(outbox, "settle", watch_settle)
        queue(*(f"u{n}@example.org" for n in range(rows)))
        made = Drain(transport=Stub(), limiter=None, rate=None, using="default", one_pass=True)
        made.run()
        assert made.sent == rows
        return looks


class TestInterrupts:
    """Ctrl-C, or a time limit of Celery's: it ends a drain, which writes down all that it knows."""

    def run(self, seconds: float, rows: int) -> None:
        """A drain that is interrupted after so long."""
        OutgoingMessage.objects.all().delete()
        queue(*(f"u{n}@example.org" for n in range(rows)))
        transport = Sink()
        made = Drain(transport=transport, limiter=None, rate=None, using="default", one_pass=False)
        handlers = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), alarm(seconds):
            made.run()
        assert handlers == (signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGTERM))
        statuses = dict(OutgoingRecipient.objects.values_list("address", "message__status"))
        sent = sorted(address for address, status in statuses.items() if status == Status.SENT)
        assert sorted(transport.taken) == sent
        assert set(statuses.values()) <= {Status.SENT, Status.QUEUED}
        assert made.sent == len(sent)

    def test_at_any_moment(self) -> None:
        rng = random.Random(5)
        for _ in range(30):
            self.run(rng.uniform(0.001, 0.06), 60)

    def test_while_an_answer_is_written_down(self, caplog: pytest.LogCaptureFixture) -> None:
        answers: list[logging.LogRecord] = []

        def hear(record: logging.LogRecord) -> bool:
            if record.msg.startswith("Sent row"):
                answers.append(record)
                if len(answers) == 3:
                    signal.raise_signal(signal.SIGALRM)
            return True

        delivery.logger.addFilter(hear)
        try:
            with caplog.at_level(logging.INFO, logger=delivery.logger.name):
                self.run(60, 10)
        finally:
            delivery.logger.removeFilter(hear)

    def test_while_a_thread_is_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        start = threading.Thread.start
        started = []

        def interrupt(thread: threading.Thread) -> None:
            start(thread)
            if thread.name == "connect_mailer":
                started.append(thread)
                if len(started) == 1:
                    signal.raise_signal(signal.SIGALRM)

        monkeypatch.setattr(threading.Thread, "start", interrupt)
        self.run(60, 3)
        assert started

    def test_the_second_one_is_raised_at_once(self) -> None:
        acts: list[str] = []

        def interrupt_twice() -> None:
            with delivery.raising_afterwards(lambda: acts.append("act")):
                signal.raise_signal(signal.SIGALRM)
                acts.append("goes on")
                signal.raise_signal(signal.SIGALRM)
                acts.append("never")

        with alarm(60), pytest.raises(KeyboardInterrupt):
            interrupt_twice()
        assert acts == ["act", "goes on"]

    def test_a_handler_that_raises_nothing_ends_nothing(self) -> None:
        acts: list[str] = []
        before = signal.signal(signal.SIGALRM, lambda *args: acts.append("heard"))
        try:
            with delivery.raising_afterwards(lambda: acts.append("act")):
                signal.raise_signal(signal.SIGALRM)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert acts == ["heard"]


class TestLifeOfADrain:
    def test_what_ses_took_is_settled_whatever_ends_the_drain(
        self, ses: LocalSES, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ses.configure(latency_seconds=0.2)
        queue(*(f"u{n}@example.org" for n in range(5)))
        peek = outbox.peek
        answers = [peek(5, using="default")]

        def interrupt(*args: Any, **kwargs: Any) -> list[int]:
            if not answers:
                raise KeyboardInterrupt
            return answers.pop()

        monkeypatch.setattr(outbox, "peek", interrupt)
        with pytest.raises(KeyboardInterrupt):
            drain(one_pass=False)

        sent = OutgoingMessage.objects.filter(status=Status.SENT)
        assert sent.count() == len(ses.mailbox())
        # What no thread had begun went back.
        assert OutgoingMessage.objects.filter(status=Status.QUEUED).count() == 5 - sent.count()

    def test_sigterm_gives_back_what_has_not_started(self, ses: LocalSES) -> None:
        ses.configure(latency_seconds=0.2)
        queue(*(f"u{n}@example.org" for n in range(4)))
        slow = Reservation(granted=4, wait_seconds=0, interval_seconds=5)

        def stop() -> None:
            while not ses.mailbox():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

        stopper = threading.Thread(target=stop)
        previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stopper.start()
        try:
            made = drain(limiter=StubLimiter(slow), rate=0.2, one_pass=False)
        finally:
            stopper.join()
            signal.signal(signal.SIGTERM, previous)

        assert made.sent == len(ses.mailbox()) == 1
        statuses = OutgoingMessage.objects.values_list("status", "attempts")
        assert sorted(statuses) == [("queued", 0)] * 3 + [("sent", 1)]

    def test_a_worker_that_shuts_down(self, ses: LocalSES) -> None:
        queue("a@example.org")
        delivery.stopping.set()
        try:
            assert drain(one_pass=False).sent == 0
        finally:
            delivery.stopping.clear()

        assert get_row().status == Status.QUEUED

    @pytest.mark.parametrize(("seconds", "status"), [(220, Status.SENT), (230, Status.QUEUED)])
    def test_no_call_starts_that_may_outlast_the_lease_of_its_row(
        self, settings: Any, seconds: float, status: str
    ) -> None:
        """Of 300 s, 60 may go into the request, and 13 into the rest of a call."""
        settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "LEASE_SECONDS": 300}
        queue("a@example.org")
        passed = [0.0]

        class Late:
            def steps(self, envelope: Envelope, begin: Callable[[], None]) -> Steps[str]:
                yield from ()
                passed[0] = seconds
                begin()
                return "id"

        Drain(
            transport=Late(),
            limiter=None,
            rate=None,
            using="default",
            one_pass=True,
            clock=lambda: time.monotonic() + passed[0],
        ).run()

        assert get_row().status == status

    def test_a_lost_lease_ends_it(self, ses: LocalSES) -> None:
        queue("a@example.org")
        lost = DrainLease(name="drain 1", holder=uuid.uuid4())

        assert drain(lease=lost, one_pass=False).sent == 0

        assert get_row().status == Status.QUEUED

    def test_as_many_as_are_allowed(self, ses: LocalSES, settings: Any) -> None:
        queue("a@example.org")
        assert leases.acquire("drain 1", 60, using="default")

        assert delivery.drain_outbox(wake=_never, ask_for_help=_never) == 0
        assert leases.acquire("help", 5, using="default")
        assert delivery.drain_outbox(wake=_never, ask_for_help=_never) == 1
        assert set(leases.find_alive("drain 1", "drain 2", "help", using="default")) == {"drain 1"}

    def test_the_next_one_goes_on(self, ses: LocalSES, settings: Any) -> None:
        settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "DRAIN_SECONDS": 1, "RATE": 2}
        woken = []
        queue(*(f"u{n}@example.org" for n in range(10)))

        sent = delivery.drain_outbox(wake=lambda: woken.append(1), ask_for_help=_never)

        assert 1 <= sent < 10
        assert woken == [1]
        assert not leases.find_alive("drain 1", using="default")

    def test_signals_after_commit(
        self, ses: LocalSES, django_capture_on_commit_callbacks: Any
    ) -> None:
        heard = []

        def hear(message: OutgoingMessage, **kwargs: Any) -> None:
            heard.append((message.status, message.ses_message_id))
            raise RuntimeError("a receiver that fails")

        signals.message_sent.connect(hear)
        queue("a@example.org", "b@example.org")
        try:
            with django_capture_on_commit_callbacks(execute=True):
                drain()
        finally:
            signals.message_sent.disconnect(hear)
        assert sorted(heard) == sorted((Status.SENT, mail.message_id) for mail in ses.mailbox())


def _never() -> None:
    raise AssertionError("called")

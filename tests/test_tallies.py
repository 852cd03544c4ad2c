"""What is counted, and how it is added up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db.models import Sum
from django.test import override_settings
from django.utils import timezone

from connect_mailer import tallies, tasks
from connect_mailer.backend import ConnectMailerBackend, TransactionalBackend
from connect_mailer.feedback import events, settlement
from connect_mailer.models import MessageEvent, OutgoingMessage, Tally, Unsubscribe
from connect_mailer.sending import outbox
from connect_mailer.testing import deliver_all

pytestmark = pytest.mark.django_db

LOCMEM = override_settings(
    CONNECT_MAILER={"TRANSPORT": "django.core.mail.backends.locmem.EmailBackend"}
)


def _sum(*names: str, **filters: Any) -> dict[str, int]:
    found = Tally.objects.filter(domain="", **filters).aggregate(**{n: Sum(n) for n in names})
    return {name: found[name] or 0 for name in names}


def _queue(*to: str, backend: type = ConnectMailerBackend) -> OutgoingMessage:
    backend().send_messages([EmailMessage("Hello", "Text", "site@example.com", list(to))])
    return OutgoingMessage.objects.latest("pk")


def _event(kind: str, message: OutgoingMessage, *to: str, **details: Any) -> events.Event:
    name = {"Bounce": "bouncedRecipients", "Complaint": "complainedRecipients"}.get(kind)
    if name:
        details[name] = [
            {"emailAddress": address, "diagnosticCode": "smtp; 550 no"} for address in to
        ]
    else:
        details["recipients"] = list(to)
    event = events.read(
        {
            "eventType": kind,
            "mail": {
                "messageId": "0100-a",
                "source": "site@example.com",
                "timestamp": "2026-01-01T00:00:00Z",
                "tags": {"connect-mailer-id": [str(message.uuid)]},
            },
            kind.lower(): {"timestamp": "2026-01-01T00:00:05Z", **details},
        }
    )
    assert event
    return event


def _tell(*args: Any, **kwargs: Any) -> None:
    settlement.settle(_event(*args, **kwargs), using="default")


@LOCMEM
def test_what_was_sent_is_counted_in_messages_and_recipients_by_stream() -> None:
    _queue("a@example.org", "b@example.org")
    _queue("c@example.org")
    _queue("d@example.org", backend=TransactionalBackend)
    deliver_all()
    assert _sum("sent", "written", stream="default") == {"sent": 2, "written": 3}
    assert _sum("sent", "written", stream="transactional") == {"sent": 1, "written": 1}


@LOCMEM
@pytest.mark.parametrize("is_event_first", [True, False])
def test_each_is_counted_once_by_drain_and_event(is_event_first: bool) -> None:
    message = _queue("a@example.org", "b@example.org")
    if is_event_first:
        _tell("Delivery", message, "a@example.org")
        [row] = [OutgoingMessage.objects.get()]
        result = outbox.Sent(pk=row.pk, claim=row.uuid, stream="default", ses_message_id="0100-a")
        outbox.settle([result], keep_bodies=False, using="default")
    else:
        deliver_all()
        _tell("Delivery", message, "a@example.org")
    _tell("Delivery", message, "b@example.org")
    assert _sum("sent", "written", "delivered") == {"sent": 1, "written": 2, "delivered": 2}


@LOCMEM
def test_who_is_not_written_to_is_counted_when_queued_and_when_sent() -> None:
    Unsubscribe.objects.suppress("left@example.org", "user")
    _queue("left@example.org", "a@example.org")
    _queue("b@example.org")
    Unsubscribe.objects.suppress("b@example.org", "user")
    deliver_all()
    assert _sum("suppressed", "written", "failed") == {"suppressed": 2, "written": 1, "failed": 0}


@LOCMEM
def test_feedback_is_counted_by_kind_and_domain() -> None:
    message = _queue("a@example.org", "b@example.net", "c@example.org", "d@example.org")
    deliver_all()
    _tell("Delivery", message, "d@example.org")
    _tell("Bounce", message, "a@example.org", "b@example.net", bounceType="Permanent")
    _tell("Bounce", message, "c@example.org", bounceType="Transient")
    _tell("Complaint", message, "d@example.org")
    _tell("Complaint", message, "d@example.org")
    assert _sum("delivered", "bounced", "soft_bounced", "complained") == {
        "delivered": 1,
        "bounced": 2,
        "soft_bounced": 1,
        "complained": 1,
    }
    by_domain = Tally.objects.exclude(domain="").values_list("domain")
    assert set(by_domain.annotate(Sum("bounced"), Sum("soft_bounced"), Sum("complained"))) == {
        ("example.org", 1, 1, 1),
        ("example.net", 1, 0, 0),
    }


@LOCMEM
@pytest.mark.parametrize("is_told_first", [False, True])
def test_the_simulator_neither_harms_nor_helps_a_reputation(is_told_first: bool) -> None:
    message = _queue("Bounce@simulator.amazonses.com", "a@example.org")

    def tell() -> None:
        _tell("Bounce", message, "bounce@simulator.amazonses.com", bounceType="Permanent")

    if is_told_first:
        tell()
    deliver_all()
    if not is_told_first:
        tell()
    assert _sum("written", "bounced") == {"written": 1, "bounced": 0}
    statuses = message.recipients.order_by("pk").values_list("status", flat=True)
    assert list(statuses) == ["bounced", "sent"]
    assert MessageEvent.objects.get().kind == "bounced"


@LOCMEM
def test_events_are_kept_for_whoever_looks_at_the_message() -> None:
    message = _queue("a@example.org")
    deliver_all()
    _tell("Delivery", message, "a@example.org", smtpResponse="250 OK")
    _tell("Open", message)
    _tell("Click", message, link="https://www.example.com/reset?token=secret")
    assert list(message.events.order_by("pk").values_list("kind", "address", "detail")) == [
        ("delivered", "a@example.org", "250 OK"),
        ("opened", "", ""),
        ("clicked", "", "https://www.example.com/reset"),
    ]


def test_failed_attempts_are_kept_with_the_words_of_ses() -> None:
    message = _queue("a@example.org")
    for make in (
        lambda row: outbox.Postponed.of(row, delay_seconds=0, error="Busy", counts=True),
        lambda row: outbox.Postponed.of(row, delay_seconds=0, error="Paused", counts=False),
        lambda row: outbox.Ended.of(row, status="failed", error="Rejected"),
    ):
        [row] = outbox.claim(tokens=1, slots=1, max_bytes=10**6, lease_seconds=60, using="default")
        outbox.settle([make(row)], keep_bodies=False, using="default")
    assert list(message.events.order_by("pk").values_list("kind", "detail")) == [
        ("postponed", "Busy"),
        ("failed", "Rejected"),
    ]
    assert _sum("sent", "failed") == {"sent": 0, "failed": 1}


def _put(at: datetime, **fields: Any) -> None:
    Tally.objects.create(at=at, stream=fields.pop("stream", "default"), **fields)


def test_many_rows_become_few_and_the_sums_stay() -> None:
    now = timezone.now()
    for minutes in (0, 20, 21, 22, 60 * 5, 60 * 5 + 1, 60 * 24 * 9):
        for stream in ("default", "transactional"):
            _put(now - timedelta(minutes=minutes), stream=stream, sent=1, written=2)
        _put(now - timedelta(minutes=minutes), domain="example.org", bounced=1)
    before = _sum("sent", "written")
    rows = Tally.objects.count()
    tallies.fold(using="default")
    assert _sum("sent", "written") == before
    assert Tally.objects.filter(domain="example.org").aggregate(n=Sum("bounced")) == {"n": 7}
    assert Tally.objects.count() < rows
    spans = Tally.objects.filter(stream="default", domain="").values_list("span", flat=True)
    assert set(spans) == {tallies.MOMENT, tallies.MINUTES, tallies.HOUR}
    folded = set(Tally.objects.values_list("pk", flat=True))
    tallies.fold(using="default")
    assert set(Tally.objects.values_list("pk", flat=True)) == folded


def test_spans_begin_where_they_should() -> None:
    at = datetime.now(UTC).replace(hour=10, minute=37, second=12, microsecond=5)
    at -= timedelta(days=2)
    _put(at, sent=1)
    _put(at, domain="example.org", bounced=1)
    tallies.fold(using="default")
    start = at.replace(minute=0, second=0, microsecond=0)
    assert set(Tally.objects.values_list("domain", "span", "at")) == {
        ("", 3600, start),
        ("example.org", 86400, start.replace(hour=0)),
    }


def test_old_numbers_are_forgotten() -> None:
    _put(timezone.now() - timedelta(days=tallies.KEEP_DAYS + 1), sent=1)
    tallies.fold(using="default")
    assert not Tally.objects.exists()


def test_the_sweep_folds() -> None:
    for _ in range(3):
        _put(timezone.now() - timedelta(hours=1), sent=1)
    tasks.sweep()
    assert Tally.objects.get().sent == 3


def test_folding_asks_the_same_however_many(django_assert_max_num_queries: Any) -> None:
    for _ in range(200):
        _put(timezone.now() - timedelta(hours=5), sent=1)
    with django_assert_max_num_queries(20):
        tallies.fold(using="default")
    assert Tally.objects.get().sent == 200

"""Before AWS acts: admins are told, the default stream is paused, who bounces is left out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from connect_mailer import tasks
from connect_mailer.conf import conf
from connect_mailer.feedback import consequences, events, receivers
from connect_mailer.health import guard
from connect_mailer.models import (
    MessageEvent,
    OutgoingMessage,
    OutgoingRecipient,
    Tally,
    Unsubscribe,
)
from connect_mailer.sending import leases, pauses

pytestmark = pytest.mark.django_db


def _happen(settings: Any, *, written: int, bounced: int = 0, complained: int = 0) -> None:
    settings.ADMINS = [("Ada", "ada@example.com")] if _is_old() else ["ada@example.com"]
    row = OutgoingMessage.objects.create(due_at=timezone.now(), sender="x@example.com")
    Tally.objects.create(
        at=timezone.now(),
        stream="default",
        written=written,
        bounced=bounced,
        complained=complained,
    )
    for kind, number in (("bounced", bounced), ("complained", complained)):
        for person in range(number):
            _return(row, kind, f"u{person}@example.org")


def _is_old() -> bool:
    import django

    return django.VERSION < (6, 0)


def _return(row: OutgoingMessage, kind: str, address: str) -> None:
    MessageEvent.objects.create(message=row, kind=kind, at=timezone.now(), address=address)


def _get_told() -> list[str]:
    rows = OutgoingMessage.objects.filter(stream="transactional").order_by("pk")
    return list(rows.values_list("subject", flat=True))


def _use(settings: Any, **options: Any) -> None:
    settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, **options}


PAUSE = {"pause": (0.10, 0.005)}


@pytest.mark.parametrize(
    ("counts", "is_told", "is_paused"),
    [
        ({"written": 1000}, False, False),
        ({"written": 1000, "bounced": 49}, False, False),
        ({"written": 1000, "bounced": 50}, True, False),
        ({"written": 1000, "bounced": 100}, True, True),
        ({"written": 10_000, "complained": 9}, False, False),
        ({"written": 10_000, "complained": 10}, True, False),
        ({"written": 2_000, "complained": 10}, True, True),
        # too few messages, too few people
        ({"written": 999, "bounced": 500}, False, False),
        ({"written": 1000, "complained": 9}, False, False),
    ],
)
def test_at_which_rates_it_acts(
    settings: Any, counts: dict[str, int], is_told: bool, is_paused: bool
) -> None:
    _use(settings, GUARD=PAUSE)
    _happen(settings, **counts)
    guard.check(using="default")
    assert bool(_get_told()) is is_told
    assert pauses.find_paused(using="default") == ({"default"} if is_paused else set())
    for message in OutgoingMessage.objects.filter(stream="transactional"):
        assert message.recipients.get().address == "ada@example.com"


def test_by_itself_it_tells_and_does_not_pause(settings: Any) -> None:
    _happen(settings, written=1000, bounced=500)
    tasks.sweep()
    assert _get_told() == ["Too many bounces or complaints"]
    assert not pauses.find_pauses(using="default")
    guard.check(using="default")
    assert len(_get_told()) == 1


def test_it_can_be_switched_off(settings: Any) -> None:
    _use(settings, GUARD={"warn": None})
    _happen(settings, written=1000, bounced=500)
    guard.check(using="default")
    assert _get_told() == []


def test_one_person_with_many_names_is_one(settings: Any) -> None:
    _happen(settings, written=1000)
    row = OutgoingMessage.objects.get()
    for number in range(30):
        _return(row, "complained", f"eve+{number}@example.org")
        _return(row, "complained", "complaint@simulator.amazonses.com")
    Tally.objects.update(complained=60)
    guard.check(using="default")
    assert _get_told() == []


def test_what_an_operator_resumed_stays_so_for_a_day(settings: Any) -> None:
    _use(settings, GUARD=PAUSE)
    _happen(settings, written=1000, bounced=500)
    guard.check(using="default")
    [pause] = pauses.find_pauses(using="default")
    assert pause.reason == "50.00 % of the last 1000 recipients bounced."
    pauses.resume("default", using="default")
    guard.check(using="default")
    assert not pauses.find_pauses(using="default")
    leases.release("guard pause", using="default")
    guard.check(using="default")
    assert pauses.find_pauses(using="default")


@pytest.mark.parametrize(
    "value", [{"warn": 5}, {"warn": (5, 0.1)}, {"stop": None}, "on", {"pause": (0.1,)}]
)
def test_a_guard_that_makes_no_sense_is_named(settings: Any, value: Any) -> None:
    _use(settings, GUARD=value)
    with pytest.raises(ImproperlyConfigured, match="GUARD"):
        assert conf.guard


# Soft bounces


def _write(status: str, reason: str = "", days: float = 0, address: str = "a@example.org") -> None:
    row = OutgoingMessage.objects.create(
        due_at=timezone.now(),
        sender="x@example.com",
        status="sent",
        sent_at=timezone.now() - timedelta(days=days),
    )
    OutgoingRecipient.objects.create(
        message=row, address=address, envelope=address, status=status, reason=reason
    )


def _bounce(
    bounce_type: str = "Transient",
    subtype: str = "General",
    addresses: Sequence[str] = ("a@example.org",),
    sent_at: datetime | None = None,
) -> None:
    event = events.read(
        {
            "notificationType": "Bounce",
            "mail": {
                "messageId": "x",
                "destination": [*addresses],
                "timestamp": sent_at.isoformat() if sent_at else None,
            },
            "bounce": {
                "bounceType": bounce_type,
                "bounceSubType": subtype,
                "bouncedRecipients": [
                    {"emailAddress": address, "diagnosticCode": "smtp; 452 full"}
                    for address in addresses
                ],
            },
        }
    )
    assert event
    receivers.suppress_all(event)
    consequences.follow(event)


SOFT = "Transient/General: smtp; 452 full"


def test_who_bounces_again_and_again_is_left_out_for_a_while(settings: Any) -> None:
    for _ in range(5):
        assert not Unsubscribe.objects.exists()
        _write("bounced", SOFT)
        _bounce()
    row = Unsubscribe.objects.get()
    assert (row.address, row.source) == ("a@example.org", "bounce")
    assert row.detail == f"5 soft bounces in a row, at last: {SOFT}"
    assert row.expires_at
    left = row.expires_at - timezone.now()
    assert timedelta(days=89) < left < timedelta(days=91)
    tasks.purge()
    assert Unsubscribe.objects.exists()
    Unsubscribe.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    tasks.purge()
    assert not Unsubscribe.objects.exists()


@pytest.mark.parametrize(
    ("between", "subtype", "options"),
    [
        (("delivered", ""), "General", {}),
        (("sent", ""), "General", {}),
        (("bounced", "Transient/MessageTooLarge: big"), "General", {}),
        # an answer of somebody out of office
        (("bounced", "Transient/General"), "General", {}),
        (("bounced", SOFT, 15), "General", {}),
        (("suppressed", SOFT), "General", {}),
        (("bounced", SOFT), "ContentRejected", {}),
        (("bounced", SOFT), "General", {"SOFT_BOUNCE_LIMIT": 0}),
        (("bounced", SOFT), "General", {"SOFT_BOUNCE_LIMIT": 6}),
    ],
)
def test_who_is_written_to_all_the_same(
    settings: Any, between: Any, subtype: str, options: dict[str, int]
) -> None:
    _use(settings, **options)
    for number in range(5):
        _write(*(between if number == 2 else ("bounced", SOFT)))
    _bounce(subtype=subtype)
    assert not Unsubscribe.objects.exists()


def test_many_who_bounce_cost_as_many_queries_as_one(django_assert_num_queries: Any) -> None:
    many = [f"{number}@example.org" for number in range(20)]
    for address in ["a@example.org", *many]:
        for _ in range(5):
            _write("bounced", SOFT, address=address)
    Unsubscribe.objects.suppress("0@example.org", "bounce", detail="hard")
    with CaptureQueriesContext(connection) as queries:
        _bounce()
    with django_assert_num_queries(len(queries)):
        _bounce(addresses=many)
    assert Unsubscribe.objects.filter(expires_at__isnull=False).count() == 20
    # Who is left out for good stays so.
    assert Unsubscribe.objects.get(detail="hard").expires_at is None


@pytest.mark.parametrize(("status", "is_left_out"), [("sent", True), ("delivered", False)])
def test_mail_that_was_sent_since_says_nothing_before_it_arrives(
    status: str, is_left_out: bool
) -> None:
    for number in range(5):
        _write("bounced", SOFT, days=5 - number)
    _write(status)
    _bounce(sent_at=timezone.now() - timedelta(days=1, minutes=1))
    assert Unsubscribe.objects.exists() is is_left_out


def test_a_hard_bounce_lasts_and_says_why() -> None:
    row, _ = Unsubscribe.objects.suppress(
        "a@example.org", "bounce", detail="soft", expires_at=timezone.now()
    )
    _bounce("Permanent")
    row.refresh_from_db()
    assert (row.detail, row.expires_at) == ("Permanent/General: smtp; 452 full", None)

"""Odd events under a genuine signature: all are taken, and harm nobody.

``README.md`` says how each class works. The outbox may know the mail, as far as ``row`` says.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connect_mailer.testing.sns import (
    make_bounce,
    make_complaint,
    make_delivery,
    make_event,
    make_mail,
)

PEOPLE = ("a@example.com", "b@example.com")
ID = "an-id"
TAG = "00000000-0000-0000-0000-000000000001"
CONTACT_LIST = "readers"
# Of the message, and of its recipients; the outbox may also know nothing of it.
ROWS = (None, ("sent", "sent"), ("sending", "queued"), ("failed", "sent"), ("sent", "delivered"))
Row = tuple[str, str] | None


@dataclass(frozen=True, kw_only=True)
class OddCase:
    """Events, in the order in which they come, and what there is to be afterwards."""

    name: str
    texts: tuple[str, ...]
    row: Row = None
    # Who is not written to any more; `None`: at most those whom the mail was sent to.
    suppressed: frozenset[str] | None = None
    people: tuple[str, ...] = PEOPLE
    # Of the message and of each recipient, if that is to be a certain one.
    message: str | None = None
    statuses: tuple[str, str] | None = None
    # Each event with an id of its own, or the same notification again.
    is_repeated: bool = False


def make_bases() -> dict[str, dict[str, Any]]:
    """One event of each type, as SES sends it; of those of feedback, in both forms."""
    plain = make_mail(PEOPLE, ses_message_id=ID)
    mail = make_mail(PEOPLE, ses_message_id=ID, tag=TAG)
    at = "2026-01-01T00:00:00.000Z"
    preferences = {
        "unsubscribeAll": True,
        "topicSubscriptionStatus": [{"topicName": "news", "subscriptionStatus": "OptOut"}],
    }
    details: dict[str, dict[str, Any]] = {
        "Send": {},
        "Reject": {"reason": "Bad content"},
        "Open": {"ipAddress": "192.0.2.1", "timestamp": at, "userAgent": "x"},
        "Click": {"link": "https://example.com/?a#b", "linkTags": {"a": ["b"]}, "timestamp": at},
        "Rendering Failure": {"errorMessage": "x", "templateName": "y"},
        "DeliveryDelay": {
            "delayType": "General",
            "delayedRecipients": [{"emailAddress": PEOPLE[0]}],
            "expirationTime": at,
            "timestamp": at,
        },
        "Subscription": {
            "contactList": CONTACT_LIST,
            "timestamp": at,
            "source": "UnsubscribeHeader",
            "newTopicPreferences": preferences,
            "oldTopicPreferences": {**preferences, "unsubscribeAll": False},
        },
    }
    bases = {
        "Bounce": make_bounce(PEOPLE, mail=plain),
        "Bounce event": make_bounce(PEOPLE, mail=mail, event=True),
        "soft Bounce": make_bounce(PEOPLE, bounce_type="Transient", mail=mail, event=True),
        "Complaint": make_complaint(PEOPLE, mail=plain),
        "Complaint event": make_complaint(PEOPLE, mail=mail, event=True),
        "Delivery": make_delivery(PEOPLE, mail=plain),
        "Delivery event": make_delivery(PEOPLE, mail=mail, event=True),
    }
    bases |= {kind: make_event(kind, one, mail=mail) for kind, one in details.items()}
    bases["Subscription"]["mail"] = {**mail, "destination": [PEOPLE[0]]}
    return bases


_GONE = object()


@dataclass(frozen=True)
class _Raw:
    """What ``json.dumps`` does not write."""

    text: str


# One of each class at least; a field gets the next few of them.
_ODD: tuple[object, ...] = (
    _GONE,
    None,
    True,
    -1,
    2**63,
    10**400,
    _Raw("1e999"),
    _Raw("-1e999"),
    "",
    "  ",
    "\0",
    "a\0b@example.com",
    "\ud800",
    _Raw('"\\udc00\\ud800"'),
    "x" * 70_000,
    "\u202e\u0000\U0001f4a9",
    "\u212a@example.com",
    [],
    [None, [], {}, 1, "v@example.com"],
    {},
    {"emailAddress": "v@example.com"},
    _Raw("[" * 200 + "]" * 200),
    _Raw("[" * 60_000 + "]" * 60_000),
    "1" * 5000,
    "a\r\nb@example.com",
    "%s'; --\\",
    ["Permanent"],
    "not-spam",
    "Delayed",
)
_EACH = 2
_OTHERS = ("\u212a@example.com", "v@example.com")


def fields() -> Iterator[OddCase]:
    """Every field of every type of event, missing, of another type, too long, too deep."""
    odd = itertools.cycle(range(len(_ODD)))
    rows = itertools.cycle(ROWS)
    for kind, base in make_bases().items():
        for path in _find_paths(base):
            for _ in range(_EACH):
                value = _ODD[number := next(odd)]
                is_sent_to_others = path[:2] == ("mail", "destination")
                yield OddCase(
                    name=f"{kind}: {'.'.join(map(str, path))} is odd {number}",
                    texts=(_write(_put(base, path, value)),),
                    row=next(rows),
                    # A delivery is no reason not to write, whatever it says.
                    suppressed=frozenset() if kind.startswith("Delivery") else None,
                    people=(*PEOPLE, *_OTHERS) if is_sent_to_others else PEOPLE,
                )


def _find_paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    pairs: Any = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    for name, inner in pairs:
        yield (*path, name)
        yield from _find_paths(inner, (*path, name))


def _put(base: Mapping[str, Any], path: Sequence[str | int], value: object) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(dict(base))
    inner: Any = changed
    for name in path[:-1]:
        inner = inner[name]
    if value is _GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


def _write(message: object) -> str:
    raw: list[str] = []

    def keep(value: object) -> str:
        if not isinstance(value, _Raw):
            raise TypeError(value)
        raw.append(value.text)
        return "@raw@"

    text = json.dumps(message, default=keep)
    for one in raw:
        text = text.replace('"@raw@"', one, 1)
    return text


def dates() -> Iterator[OddCase]:
    """Times that there are not, or that no database holds."""
    times = (
        "0001-01-01T00:00:00+14:00",
        "1969-12-31T23:59:59Z",
        "1970-01-01T00:00:00+23:59",
        "9998-12-31T23:59:59-23:59",
        "9999-12-31T23:59:59Z",
        "10000-01-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-13-45T99:99",
        "2026-06-30T23:59:60Z",
        "2026-01-01T24:00:00Z",
        "20260101T000000Z",
        "2026-W01-1",
        "2026-01-01",
        "2026-01-01T00:00:00.123456789123456789Z",
        "Thu, 1 Jan 2026 00:00:00 +0000",
        "\u0662\u0660\u0662\u0666-01-01T00:00:00Z",
        "-2026-01-01T00:00:00Z",
        "1767225600",
        1767225600,
    )
    for kind, time in itertools.product(("Bounce", "Complaint event", "Delivery", "Open"), times):
        base = make_bases()[kind]
        part = kind.split()[0].lower()
        changed = _put(base, ("mail", "timestamp"), time)
        for name in {"timestamp", "arrivalDate"} & {*base[part]}:
            changed = _put(changed, (part, name), time)
        yield OddCase(name=f"{kind} at {time!r}", texts=(_write(changed),), row=ROWS[1])


def recipients() -> Iterator[OddCase]:
    """Addresses in forms of other servers, several times, and far too many."""
    first = {PEOPLE[0]}
    for form, reached in {
        "A@EXAMPLE.COM": first,
        "<a@example.com>": first,
        "Anna <a@example.com>": first,
        '"b@example.com" <a@example.com>': first,
        "rfc822; a@example.com": first,
        "RFC822;a@example.com": first,
        " a@example.com ": first,
        '"a"@example.com': None,
        "a@example.com,b@example.com": set(),
        "a@EXAMPLE\u3002com": set(),
        "a@example\uff0ecom": set(),
        "a@example\uff61com": set(),
        "\uff41@example.com": set(),
        "a@example.\u212aom": set(),
        "a+x@example.com": set(),
        "v@example.com": set(),
        "a@[127.0.0.1]": set(),
        "a@example.com\0": None,
        "=?utf-8?q?a=40example.com?=": set(),
        '"=?utf-8?q?a?="@example.com': set(),
        '"=?utf-8?q?=e9?="@example.com': set(),
        '"=?utf-8?q?=00x?="@e.com': set(),
        '"=?utf-8?q?a=0d=0ab?="@e.com': set(),
        "a@=?utf-8?q?example.com?=": set(),
        "=?utf-8?q?=e9=00?= <a@example.com>": first,
    }.items():
        for make in (make_bounce, make_complaint):
            message = make([form], mail=make_mail(PEOPLE, ses_message_id=ID))
            yield OddCase(
                name=f"{make.__name__} of {form!r}",
                texts=(_write(message),),
                row=ROWS[1],
                suppressed=None if reached is None else frozenset(reached),
            )
    mail = make_mail(PEOPLE, ses_message_id=ID)
    many = [f"v{number}@example.com" for number in range(2000)]
    for name, reported, sent, reached in (
        ("twice", [PEOPLE[0], "A@example.com", f"<{PEOPLE[0]}>"], mail, first),
        ("2,000 others", [*many, PEOPLE[0]], mail, first),
        ("2,000 times", [PEOPLE[0]] * 2000, mail, first),
        (
            "to the same twice",
            [PEOPLE[0]],
            make_mail([PEOPLE[0]] * 1000, ses_message_id=ID),
            first,
        ),
    ):
        for make in (make_bounce, make_complaint, make_delivery):
            yield OddCase(
                name=f"{make.__name__}: {name}",
                texts=(_write(make(reported, mail=sent)),),
                row=ROWS[1],
                suppressed=frozenset(() if make is make_delivery else reached),
            )


def types() -> Iterator[OddCase]:
    """Types that there are not (yet), and mail of which the outbox knows nothing."""
    mail = make_mail(PEOPLE, ses_message_id=ID, tag=TAG)
    names = ("Received", "bounce", "DELIVERY", "Bounce\0", "Bounce ", "%s", "\ud800", "x" * 9999)
    for kind, form in itertools.product(names, (True, False)):
        details = make_bounce(PEOPLE)["bounce"]
        yield OddCase(
            name=f"type {kind[:20]!r}, {form}",
            texts=(_write(make_event(kind, details, mail=mail, event=form)),),
            row=ROWS[1],
            suppressed=frozenset(),
            message="sent",
            statuses=("sent", "sent"),
        )
    for kind, base in make_bases().items():
        for name, odd in {
            "another id": {"messageId": "another"},
            "no id": {"messageId": ""},
            "an id that begins so": {"messageId": ID[:-1]},
            "another tag": {
                "messageId": "another",
                "tags": {"connect-mailer-id": ["00000000-0000-0000-0000-000000000002"]},
            },
            "a tag that is none": {"messageId": "", "tags": {"connect-mailer-id": ["x", None, 1]}},
        }.items():
            unknown = {key: value for key, value in base["mail"].items() if key != "tags"} | odd
            yield OddCase(
                name=f"{kind} of {name}",
                texts=(_write({**base, "mail": unknown}),),
                row=ROWS[2],
                message="sending",
                statuses=("queued", "queued"),
            )


def orders() -> Iterator[OddCase]:
    """Events before the drain knows that it sent, again, and in an order that cannot be."""
    table: tuple[tuple[Row, str, str, tuple[str, str]], ...] = (
        (ROWS[2], "Send", "sent", ("sent", "sent")),
        (ROWS[2], "Delivery", "sent", ("delivered", "delivered")),
        (ROWS[2], "Bounce", "sent", ("bounced", "bounced")),
        (ROWS[2], "Complaint", "sent", ("complained", "complained")),
        (ROWS[2], "Reject", "failed", ("queued", "queued")),
        (ROWS[2], "Open", "sending", ("queued", "queued")),
        (ROWS[1], "Delivery, Send", "sent", ("delivered", "delivered")),
        (ROWS[1], "Bounce, Delivery", "sent", ("bounced", "bounced")),
        (ROWS[1], "Complaint, Bounce, Delivery, Send", "sent", ("complained", "complained")),
        (ROWS[1], "soft Bounce, Delivery", "sent", ("bounced", "bounced")),
        (ROWS[1], "Delivery, Bounce, Complaint", "sent", ("complained", "complained")),
        (ROWS[1], "Delivery, Reject", "sent", ("delivered", "delivered")),
        (ROWS[2], "Reject, Send", "failed", ("sent", "sent")),
        (ROWS[2], "Complaint, Reject", "sent", ("complained", "complained")),
    )
    bases = {kind: _write(base) for kind, base in make_bases().items()}
    for row, kinds, message, statuses in table:
        texts = tuple(bases[kind] for kind in kinds.split(", "))
        for name, times in (("", 1), (", each twice", 2)):
            yield OddCase(
                name=f"{row[0] if row else row}: {kinds}{name}",
                texts=tuple(text for text in texts for _ in range(times)),
                row=row,
                message=message,
                statuses=statuses,
            )
    for kind, text in bases.items():
        yield OddCase(
            name=f"{kind}, the same notification three times",
            texts=(text,) * 3,
            row=ROWS[1],
            is_repeated=True,
        )


def make_all() -> list[OddCase]:
    """Every case, each name once."""
    return [case for group in (fields, dates, recipients, types, orders) for case in group()]

"""What SES says in a notification: plain values, made safe to store.

Both forms are read: feedback notifications (``notificationType``) and event publishing
(``eventType``). Amazon signed it, but servers of strangers wrote parts of it: the addresses,
the diagnostic codes. Unknown fields are left alone, wrong ones become empty, and a recipient
without a usable address is left out.

Source: Amazon SES Developer Guide, "Amazon SNS notification contents for Amazon SES" and
"Contents of event data that Amazon SES publishes to Amazon SNS".
"""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from connect_mailer import addresses
from connect_mailer.exceptions import InvalidAddress
from connect_mailer.models import MESSAGE_ID_TAG

logger = logging.getLogger(__name__)

BOUNCE: Final = "Bounce"
COMPLAINT: Final = "Complaint"
DELIVERY: Final = "Delivery"
SEND: Final = "Send"
REJECT: Final = "Reject"
SUBSCRIPTION: Final = "Subscription"
# What is recorded. Of the others, those that are known are taken in silence.
WRITTEN: Final = frozenset({BOUNCE, COMPLAINT, DELIVERY, SEND, REJECT})
OPEN: Final = "Open"
CLICK: Final = "Click"
READ: Final = frozenset({OPEN, CLICK})
SILENT: Final = frozenset(
    {*READ, "Rendering Failure", "RenderingFailure", "DeliveryDelay", SUBSCRIPTION}
)

PERMANENT: Final = "Permanent"
UNSUBSCRIBED: Final = "UnsubscribedRecipient"
NOT_SPAM: Final = "not-spam"
DELAYED: Final = "delayed"
_UNKNOWN: Final = "Undetermined"

_MAX_INTEGER: Final = 2**31 - 1
_MAX_WORD: Final = 150
# Each of those that are read takes a query. SES's lists have up to 20.
# Source: Amazon SES Developer Guide, "Using list management".
_MAX_TOPICS: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipient:
    """One recipient that the event is about; ``address`` as SES gave it, normalised."""

    address: str
    action: str | None = None
    status: str | None = None
    diagnostic_code: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One event. ``kind`` is SES's word; ``details`` the object of that kind, as it came."""

    kind: str
    ses_message_id: str
    tag: uuid.UUID | None
    sender: str
    sent_at: datetime | None
    happened_at: datetime | None
    destination: tuple[str, ...]
    recipients: tuple[Recipient, ...]
    details: Mapping[str, Any]

    @property
    def type(self) -> str:
        """``Permanent``, ``Transient`` or ``Undetermined``, of a bounce."""
        return read_text(self.details.get("bounceType")) or _UNKNOWN

    @property
    def subtype(self) -> str:
        """Of a bounce, such as ``General``."""
        return read_text(self.details.get("bounceSubType")) or _UNKNOWN


def read(message: object) -> Event | None:
    """Make an ``Event`` of a message's JSON; ``None``: it is not about mail that SES sent."""
    if not isinstance(message, Mapping):
        return None
    kind = message.get("notificationType") or message.get("eventType")
    mail = message.get("mail")
    if not isinstance(kind, str) or not isinstance(mail, Mapping):
        return None
    details = message.get(kind.lower())
    if not isinstance(details, Mapping):
        details = {}
    return Event(
        kind=kind,
        ses_message_id=read_text(mail.get("messageId")) or "",
        tag=_read_tag(mail.get("tags")),
        sender=_read_sender(mail.get("source")),
        sent_at=read_time(mail.get("timestamp")),
        happened_at=read_time(details.get("timestamp")),
        destination=read_destination(message),
        # What is said again is not written again: a report may repeat itself thousands of times.
        recipients=tuple(dict.fromkeys(_read_recipients(kind, details))),
        details=details,
    )


def read_destination(message: Mapping[str, Any]) -> tuple[str, ...]:
    """Return whom the mail was sent to, normalised; what is no address stays as a text."""
    mail = message.get("mail")
    listed = mail.get("destination") if isinstance(mail, Mapping) else None
    if not isinstance(listed, list):
        return ()
    # What is no text stands for somebody, too: where there are several, nobody is guessed.
    texts = (text if isinstance(text, str) else "" for text in listed)
    return tuple(dict.fromkeys(read_address(text) or read_text(text) or "" for text in texts))


def find_addressee(reported: str, destination: Iterable[str]) -> str | None:
    """Return whom of ``destination`` a report about the address ``reported`` concerns.

    The server that bounced chose the address in its report, so it could name anybody: only
    somebody whom the mail was sent to is believed. Forwarded mail bounces under an address
    that we never wrote to; where there was one recipient, it is about that one.
    """
    known = frozenset(destination)
    if reported in known:
        return reported
    return next(iter(known)) if len(known) == 1 else None


def read_address(value: object) -> str | None:
    """Normalise ``a@b``, ``<a@b>``, ``Name <a@b>`` or ``rfc822; a@b``; ``None``: it is none."""
    text = (read_text(value) or "").strip()
    address_type, semicolon, rest = text.partition(";")
    # Source: RFC 3464, section 2.3.2 (Final-Recipient)
    if semicolon and address_type.strip().lower() == "rfc822":
        text = rest.strip()
    try:
        return _normalise(text)
    except InvalidAddress:
        return None


def read_choices(event: Event) -> dict[str, bool]:
    """What a reader chose on SES's own page: whether she left a topic, by name (blank: all).

    SES tells the whole of what she gets, before and after: what she left counts in any case,
    what she gets only where she had left it.

    Source: "Contents of event data…", the subscription object.
    """
    after, before = (
        _read_left(event.details.get(name))
        for name in ("newTopicPreferences", "oldTopicPreferences")
    )
    return dict.fromkeys(after, True) | dict.fromkeys(before - after, False)


def _read_left(preferences: object) -> set[str]:
    if not isinstance(preferences, Mapping):
        return set()
    topics = preferences.get("topicSubscriptionStatus")
    left = {
        name
        for topic in (topics[:_MAX_TOPICS] if isinstance(topics, list) else ())
        if isinstance(topic, Mapping) and topic.get("subscriptionStatus") == "OptOut"
        if (name := read_text(topic.get("topicName")))
    }
    if preferences.get("unsubscribeAll") is True:
        left.add("")
    return left


@functools.lru_cache(maxsize=256)
def _normalise(text: str) -> str:
    # Each address comes several times: as destination, as recipient, and to be suppressed.
    return addresses.normalise(text)


def read_text(value: object, max_length: int | None = None) -> str | None:
    """A text as every database takes it: no NUL, no half surrogate, not too long."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    text = value.replace("\0", "").encode("utf-8", "replace").decode()
    return text if max_length is None else text[:max_length]


def read_time(value: object) -> datetime | None:
    """Read an ISO 8601 time, UTC where it doesn't say; ``None``: it is none."""
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value.strip())
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return time if 1970 <= time.year < 9999 else None


def read_integer(value: object) -> int:
    """Read a whole number that a database's integer holds; 0: it is none."""
    try:
        number = int(value) if isinstance(value, int | float | str) else 0
    except (ValueError, OverflowError):
        return 0
    return max(0, min(number, _MAX_INTEGER))


def describe_bounce(kind: str, subtype: str, code: str | None) -> str:
    """Why it bounced: what SES calls it, and what the remote server said."""
    return f"{kind}/{subtype}: {code or ''}".rstrip(": ")


def is_not_spam(feedback_type: str | None) -> bool:
    """Whether a reader said that a mail was *not* spam.

    Source: RFC 6430 (the feedback type ``not-spam``); types are not case-sensitive, RFC 5965.
    """
    return _is_word(feedback_type, NOT_SPAM)


def is_delayed(action: str | None) -> bool:
    """Whether the remote server is still trying. Source: RFC 3464, section 2.3.3."""
    return _is_word(action, DELAYED)


def _is_word(value: str | None, word: str) -> bool:
    # What fills django-bouncy's columns may have been cut there, and be another word as a whole.
    return value is not None and len(value) < _MAX_WORD and value.strip().lower() == word


def _read_tag(tags: object) -> uuid.UUID | None:
    values = tags.get(MESSAGE_ID_TAG) if isinstance(tags, Mapping) else None
    for value in values if isinstance(values, list) else [values]:
        if isinstance(value, str):
            try:
                return uuid.UUID(value)
            except ValueError:
                continue
    return None


def _read_sender(source: object) -> str:
    try:
        return addresses.parse(read_text(source) or "").spec
    except InvalidAddress:
        return read_text(source) or ""


def _read_recipients(kind: str, details: Mapping[str, Any]) -> Iterable[Recipient]:
    name = {
        BOUNCE: "bouncedRecipients",
        COMPLAINT: "complainedRecipients",
        DELIVERY: "recipients",
    }.get(kind, "")
    records = details.get(name)
    for number, record in enumerate(records if isinstance(records, list) else ()):
        fields = record if isinstance(record, Mapping) else {"emailAddress": record}
        address = read_address(fields.get("emailAddress"))
        if address is None:
            logger.warning("Recipient %d of a %s event has no address; left out", number, kind)
            continue
        yield Recipient(
            address=address,
            action=read_text(fields.get("action")),
            status=read_text(fields.get("status")),
            diagnostic_code=read_text(fields.get("diagnosticCode")),
        )

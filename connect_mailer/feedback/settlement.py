"""What an event of SES changes in the outbox: its message, recipients, history and the tallies.

All of it is the caller's transaction.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import chain
from typing import Any, Final

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from connect_mailer import signals
from connect_mailer.conf import conf
from connect_mailer.feedback import events
from connect_mailer.feedback.brief import execute
from connect_mailer.feedback.events import Event
from connect_mailer.feedback.records import MAX_REASON, make_own_time
from connect_mailer.logs import make_extra
from connect_mailer.models import (
    MAX_ID_LENGTH,
    MessageEvent,
    OutgoingContent,
    OutgoingMessage,
    OutgoingRecipient,
    Tally,
)
from connect_mailer.statements import Statement, insert, mark, quote, share, unnest
from connect_mailer.tallies import (
    SIMULATOR_DOMAIN,
    count,
    insert_counted,
    is_simulated,
    tell_counted,
)

logger = logging.getLogger(__name__)

# Openings and clicks that are kept of one message: machines open mail over and over.
_MAX_READINGS: Final = 50

# Events that tell what became of recipients, and nothing else.
REPORTS: Final = frozenset({events.SEND, events.DELIVERY, events.BOUNCE, events.COMPLAINT})

Status = OutgoingRecipient.Status
# An event moves a recipient to the right only, whatever the order in which events come.
# Who was suppressed was not written to, so no event is about them.
_RANKS: Final[Mapping[str, int]] = {
    status.value: rank
    for rank, status in enumerate(
        (Status.QUEUED, Status.SENT, Status.DELIVERED, Status.BOUNCED, Status.COMPLAINED)
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A message that an event is about: its row's key, and those of whom it was sent to."""

    pk: int
    stream: str
    status: str
    recipients: list[Recipient]


@dataclass(kw_only=True, slots=True)
class Recipient:
    """A recipient's row, as it is and as it will be."""

    pk: int
    address: str
    old: str
    status: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What is to be written of an event; ``message`` is the key of what it is about."""

    message: int = 0
    at: datetime | None = None
    changed: Sequence[Recipient] = ()
    # Address, kind, detail.
    noted: Sequence[tuple[str, str, str]] = ()
    counted: Sequence[Tally] = ()

    def write(self, connection: BaseDatabaseWrapper) -> list[Statement]:
        """The statements; the last one changes all that were ``changed``, if there are any."""
        statements = []
        if self.noted:
            shared = {"message": self.message, "at": self.at}
            names = ("address", "kind", "detail")
            statements.append(insert(MessageEvent, shared, names, self.noted, connection))
        if self.counted:
            statements.append(insert_counted(self.counted, using=connection.alias))
        if self.changed:
            statements.append(_update(self.message, self.changed, connection))
        return statements


def settle(event: Event, *, using: str) -> bool:
    """Record in the outbox what an event tells about one of its rows; ``False``: about none.

    Any event means that SES took the mail, so a row that is still being sent becomes sent
    even where the drain never learnt it; nothing that is known already is taken back.
    """
    found = _find(event, using)
    if found is None:
        return False
    if event.kind in events.READ:
        _note_reading(found, event, using)
        return True
    if event.kind == events.REJECT:
        if all(_RANKS[one.status] <= _RANKS[Status.SENT] for one in found.recipients):
            _settle_rejected(found, event, using)
        return True
    is_new = found.status != OutgoingMessage.Status.SENT and _settle_sent(found, event, using)
    outcome = judge(event, found, is_new=is_new)
    if statements := outcome.write(connections[using]):
        execute(statements, using)
    tell_counted(outcome.counted, using=using)
    return True


def judge(event: Event, found: Found, *, is_new: bool = False) -> Outcome:
    """What an event changes, if the message is sent; ``is_new``: it is so only now."""
    known = {one.address for one in found.recipients}
    noted: dict[tuple[str, str, str], None] = {}
    changes: dict[tuple[str, str], set[str]] = {(Status.SENT.value, ""): known}
    for reported in event.recipients:
        status, reason = _describe_outcome(event, reported)
        address = events.find_addressee(reported.address, known)
        if address is not None:
            changes.setdefault((status, reason), set()).add(address)
            kind, detail = _describe_history(event, reported, status, reason)
            # Once, even where many addresses in a report are about one person.
            noted[address, kind, detail] = None
    for (status, reason), about in changes.items():
        for one in found.recipients:
            if one.address in about and _RANKS[one.status] < _RANKS[status]:
                one.status, one.reason = status, reason
    changed = [one for one in found.recipients if one.status != one.old]
    written = sum(one.old == Status.QUEUED and not is_simulated(one.address) for one in changed)
    sent = (
        [Tally(stream=found.stream, sent=int(is_new), written=written)] if is_new or written else []
    )
    counted = [*sent, *_count_outcomes(found.stream, event, changed)]
    at = make_own_time(event.happened_at) or timezone.now()
    return Outcome(message=found.pk, at=at, changed=changed, noted=tuple(noted), counted=counted)


def _find(event: Event, using: str) -> Found | None:
    """The message that an event is about, locked."""
    connection = connections[using]
    names = _name(event, connection)
    if not names:
        return None
    lock, look = _write_look_for(tuple(names), using)
    if connection.features.has_select_for_update:
        execute([(lock, [*names.values()])], using)
    return read(event, execute([(look, [*names.values()])], using, finds=True))


def look_for(event: Event, connection: BaseDatabaseWrapper) -> Statement | None:
    """The statement that finds what ``read`` reads; ``None``: the outbox has nothing of it."""
    names = _name(event, connection)
    if not names:
        return None
    _lock, look = _write_look_for(tuple(names), connection.alias)
    return look, [*names.values()]


def _name(event: Event, connection: BaseDatabaseWrapper) -> dict[str, Any]:
    """What a message is found by: fields, and what they have to be."""
    names: dict[str, Any] = {}
    if not is_about_outbox(event):
        return names
    if event.tag is not None:
        field = OutgoingMessage._meta.get_field("uuid")
        names["uuid"] = field.get_db_prep_value(event.tag, connection)
    if event.ses_message_id:
        names["ses_message_id"] = event.ses_message_id
    return names


def read(event: Event, rows: Sequence[Any]) -> Found | None:
    """The message that an event is about, by our tag or else by SES's id."""
    if not rows:
        return None
    # The tag is our own name of a row; an id is of the call that made it.
    tag = event.tag.hex if event.tag else ""
    pk, _, stream, status, *_ = min(
        rows, key=lambda row: (str(row[1]).replace("-", "") != tag, row[0])
    )
    return Found(
        pk=pk,
        stream=stream,
        status=status,
        recipients=[
            Recipient(pk=key, address=address, old=status, status=status)
            for owner, _, _, _, key, address, status in sorted(rows, key=lambda row: row[4] or 0)
            if owner == pk and status in _RANKS
        ],
    )


@cache
def _write_look_for(names: tuple[str, ...], using: str) -> tuple[str, str]:
    """The statement that locks the messages, and the one that reads them and their recipients."""
    messages, pk, tag, stream, status, *columns = quote(
        OutgoingMessage, ("id", "uuid", "stream", "status", *names), using
    )
    recipients, message, *own = quote(
        OutgoingRecipient, ("message", "id", "address", "status"), using
    )
    # As the index of SES ids has it (`OutgoingMessage.has_ses_id`).
    which = " OR ".join(
        f"m.{column} = %s" if name == "uuid" else f"m.{column} = %s AND NOT (m.{column} = '')"
        for name, column in zip(names, columns, strict=True)
    )
    shown = [*(f"m.{column}" for column in (pk, tag, stream, status)), *(f"r.{c}" for c in own)]
    lock = f"SELECT 1 FROM {messages} m WHERE {which} FOR UPDATE"  # noqa: S608
    look = (
        f"SELECT {', '.join(shown)} FROM {messages} m "  # noqa: S608
        f"LEFT JOIN {recipients} r ON r.{message} = m.{pk} WHERE {which}"
    )
    return lock, look


def _update(
    message: int, recipients: Sequence[Recipient], connection: BaseDatabaseWrapper
) -> Statement:
    """Write status and reason of all, in one statement, of who is still as he was.

    As ``bulk_update`` does, which takes a hundred times longer to make it for fifty. The message is
    named as well, or PostgreSQL may read the whole table where it is not large.
    """
    using = connection.alias
    table, pk, owner, status, reason = quote(
        OutgoingRecipient, ("id", "message", "status", "reason"), using
    )
    pks = [one.pk for one in recipients]
    old, new, why = zip(*((one.old, one.status, one.reason) for one in recipients), strict=True)
    if connection.vendor == "postgresql":
        same, own = share({"id": pks, "old": old, "status": new, "reason": why})
        fields = tuple("status" if name == "old" else name for name in own)
        columns = unnest(OutgoingRecipient, fields, using)
        rows = f"SELECT {'%s, ' * len(same)}own.* FROM {columns} AS own"  # noqa: S608
        sql = (
            f"UPDATE {table} AS r SET {status} = new.status, {reason} = new.reason "  # noqa: S608
            f"FROM ({rows}) AS new ({', '.join((*same, *own))}) "
            f"WHERE r.{owner} = %s AND r.{pk} = new.id AND r.{status} = new.old"
        )
        return sql, [*same.values(), *own.values(), message]
    cases = f"CASE {pk} {'WHEN %s THEN %s ' * len(recipients)}END"
    sql = (
        f"UPDATE {table} SET {status} = {cases}, {reason} = {cases} "  # noqa: S608
        f"WHERE {pk} IN ({mark(recipients)})"
    )
    return sql, [*chain(*zip(pks, new, strict=True)), *chain(*zip(pks, why, strict=True)), *pks]


def _count_outcomes(stream: str, event: Event, changed: Sequence[Recipient]) -> Iterator[Tally]:
    """What the event means for the site's reputation: one sum, and one for each domain."""
    name = {
        Status.DELIVERED.value: "delivered",
        Status.BOUNCED.value: "bounced" if event.type == events.PERMANENT else "soft_bounced",
        Status.COMPLAINED.value: "complained",
    }
    domains: dict[str, Counter[str]] = {}
    for one in changed:
        domain = one.address.rpartition("@")[2]
        if one.status in name and domain != SIMULATOR_DOMAIN:
            domains.setdefault(domain, Counter())[name[one.status]] += 1
    if domains:
        yield Tally(stream=stream, **sum(domains.values(), Counter[str]()))
    for domain, counts in domains.items():
        counts.pop("delivered", None)
        if counts:
            yield Tally(stream=stream, domain=domain[:255], **counts)


def _describe_history(
    event: Event, reported: events.Recipient, status: str, reason: str
) -> tuple[str, str]:
    """What happened to one recipient, for who looks at the message: its kind, and the detail."""
    kind = {
        Status.DELIVERED.value: MessageEvent.Kind.DELIVERED,
        Status.COMPLAINED.value: MessageEvent.Kind.COMPLAINED,
        Status.SENT.value: MessageEvent.Kind.DELAYED,
        Status.BOUNCED.value: (
            MessageEvent.Kind.BOUNCED
            if event.type == events.PERMANENT
            else MessageEvent.Kind.SOFT_BOUNCED
        ),
    }[status]
    if event.kind == events.DELIVERY:
        reason = events.read_text(event.details.get("smtpResponse"), MAX_REASON) or ""
    elif event.kind == events.COMPLAINT and status == Status.DELIVERED:
        reason = events.NOT_SPAM
    elif status == Status.SENT:
        reason = (reported.diagnostic_code or "")[:MAX_REASON]
    return kind.value, reason


def _note_reading(found: Found, event: Event, using: str) -> None:
    """That it was opened, or a link followed: SES doesn't say by whom of several."""
    noted = MessageEvent.objects.using(using).filter(
        message=found.pk, kind__in=[MessageEvent.Kind.OPENED, MessageEvent.Kind.CLICKED]
    )
    if noted.count() >= _MAX_READINGS:
        return
    link = events.read_text(event.details.get("link"), MAX_REASON) or ""
    noted.create(
        message_id=found.pk,
        kind=(MessageEvent.Kind.OPENED if event.kind == events.OPEN else MessageEvent.Kind.CLICKED),
        at=make_own_time(event.happened_at) or timezone.now(),
        # Without what comes after the path: it may be a secret of the reader's.
        detail=link.partition("?")[0].partition("#")[0],
    )


def is_about_outbox(event: Event) -> bool:
    """Whether it is one of the events that are recorded there."""
    return event.kind in events.WRITTEN or event.kind in events.READ


def _settle_sent(found: Found, event: Event, using: str) -> bool:
    """Make it sent; ``False``: SES took it and rejected it afterwards."""
    message = OutgoingMessage.objects.using(using).get(pk=found.pk)
    if message.status == OutgoingMessage.Status.FAILED and message.ses_message_id:
        return False
    now = timezone.now()
    message.status = OutgoingMessage.Status.SENT
    message.ses_message_id = message.ses_message_id or _cut_id(event)
    message.sent_at = message.sent_at or make_own_time(event.sent_at) or now
    message.last_error = ""
    _finish(message, now, using)
    if conf.keep_bodies_days == 0:
        OutgoingContent.objects.release(OutgoingMessage.objects.using(using).filter(pk=message.pk))
    _announce(signals.message_sent, message, using)
    logger.info(
        "Message %s was sent, as an event of SES says: %s",
        message.pk,
        event.kind,
        extra=_describe_for_log(message, event),
    )
    return True


def _settle_rejected(found: Found, event: Event, using: str) -> None:
    message = OutgoingMessage.objects.using(using).get(pk=found.pk)
    if message.status == OutgoingMessage.Status.FAILED:
        return
    reason = events.read_text(event.details.get("reason"), MAX_REASON) or "no reason given"
    message.status = OutgoingMessage.Status.FAILED
    message.ses_message_id = message.ses_message_id or _cut_id(event)
    message.last_error = f"SES took it and then rejected it: {reason}"
    _finish(message, timezone.now(), using)
    MessageEvent.objects.using(using).create(
        message=message,
        kind=MessageEvent.Kind.FAILED,
        at=make_own_time(event.happened_at) or timezone.now(),
        detail=message.last_error,
    )
    count([Tally(stream=message.stream, failed=1)], using=using)
    _announce(signals.message_failed, message, using)
    logger.warning(
        "Message %s was rejected by SES", message.pk, extra=_describe_for_log(message, event)
    )


def _describe_for_log(message: OutgoingMessage, event: Event) -> dict[str, object]:
    return make_extra(
        {
            "id": message.pk,
            "stream": message.stream,
            "ses_id": message.ses_message_id,
            "event": event.kind,
        },
        recipients=event.destination,
    )


def _finish(message: OutgoingMessage, now: datetime, using: str) -> None:
    message.in_doubt = False
    message.claim = None
    message.lane = message.turn = None
    message.finished_at = message.finished_at or now
    message.save(
        using=using,
        update_fields=[
            "status",
            "ses_message_id",
            "sent_at",
            "last_error",
            "in_doubt",
            "claim",
            "lane",
            "turn",
            "finished_at",
        ],
    )


def _announce(signal: Any, message: OutgoingMessage, using: str) -> None:
    def send() -> None:
        signal.send_robust(sender=OutgoingMessage, message=message)

    transaction.on_commit(send, using=using, robust=True)


def _describe_outcome(event: Event, recipient: events.Recipient) -> tuple[str, str]:
    if event.kind == events.DELIVERY:
        return Status.DELIVERED.value, ""
    if event.kind == events.COMPLAINT:
        kind = events.read_text(event.details.get("complaintFeedbackType")) or "complaint"
        if events.is_not_spam(kind):
            return Status.DELIVERED.value, ""
        return Status.COMPLAINED.value, kind[:MAX_REASON]
    if events.is_delayed(recipient.action):
        return Status.SENT.value, ""
    code = recipient.diagnostic_code or recipient.status
    reason = events.describe_bounce(event.type, event.subtype, code)
    return Status.BOUNCED.value, reason[:MAX_REASON]


def _cut_id(event: Event) -> str:
    return event.ses_message_id[:MAX_ID_LENGTH]

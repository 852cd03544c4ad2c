"""What a notification leaves in the database: a receipt, django-bouncy's rows, the outbox.

All of it is one transaction of the caller's, or none of it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, Final, cast

from django.conf import settings
from django.db import connections, models, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Q
from django.db.models.constants import OnConflict
from django.utils import timezone

from connect_mailer import signals
from connect_mailer.conf import conf
from connect_mailer.feedback import events
from connect_mailer.feedback.events import Event
from connect_mailer.feedback.sns import Notification
from connect_mailer.logs import make_extra
from connect_mailer.models import (
    MAX_DETAIL_LENGTH,
    MAX_RECIPIENTS,
    MessageEvent,
    NotificationReceipt,
    OutgoingContent,
    OutgoingMessage,
    OutgoingRecipient,
    Tally,
    Unsubscribe,
    find_user_ids,
)
from connect_mailer.tallies import SIMULATOR_DOMAIN, count, is_simulated

logger = logging.getLogger(__name__)

# SNS waits 15 s for an answer. Where another transaction holds what this one needs, it is
# better to be asked again than to be late. Source: Amazon SNS Developer Guide, "Amazon SNS
# message delivery retries".
LOCK_SECONDS: Final = 2
MAX_REASON: Final = 2000
_CHUNK: Final = 100
# Openings and clicks that are kept of one message: machines open mail over and over.
_MAX_READINGS: Final = 50

Status = OutgoingRecipient.Status
# An event moves a recipient to the right only, whatever the order in which events come.
# Who was suppressed was not written to, so no event is about them.
_RANKS: Final = {
    status: rank
    for rank, status in enumerate(
        (Status.QUEUED, Status.SENT, Status.DELIVERED, Status.BOUNCED, Status.COMPLAINED)
    )
}


# SQL, and what stands for each of its ``%s``.
Statement = tuple[str, list[Any]]

_HURRY: Final = f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"


def make_receipt(notification: Notification, *, using: str) -> None:
    """Note that a notification is taken, first of all in its transaction.

    A second delivery at the same moment waits here for the first. It is an INSERT and no
    look-up first: SQLite would refuse to turn a read into a write where another one writes.

    Raises:
        IntegrityError: it was (``is_taken``). The transaction has to be rolled back.
    """
    execute([insert_receipt(notification, connections[using])], using)


def is_taken(notification: Notification, *, using: str) -> bool:
    """Whether there is a receipt, so that an ``IntegrityError`` loses nothing."""
    table, column = quote(NotificationReceipt, ("message_id",), using)
    sql = f"SELECT 1 FROM {table} WHERE {column} = %s"  # noqa: S608
    return bool(execute([(sql, [_make_key(notification)])], using, finds=True))


def make_rows(event: Event, notification: Notification) -> list[models.Model]:
    """Write django-bouncy's rows, one a recipient, in one statement; return them."""
    model = get_model(event)
    if model is None or not event.recipients:
        return []
    shared = _cut(model, _describe_all(event, notification))
    rows = [
        model(**shared, **_cut(model, _describe_recipient(event, recipient)))
        for recipient in event.recipients
    ]
    manager = model._default_manager
    manager.bulk_create(rows)
    if rows[0].pk is None:
        # Databases that don't return the ids of a bulk insert give them in its order.
        same = manager.filter(sns_messageid=shared["sns_messageid"])
        rows = list(same.order_by("pk")[: len(rows)])
    return list(rows)


def can_take_at_once(event: Event, *, using: str) -> bool:
    """Whether ``take_at_once`` takes it: one database, and no more recipients than mail has."""
    model = get_model(event)
    return len(event.recipients) <= MAX_RECIPIENTS and (
        model is None or router.db_for_write(model) == using
    )


def take_at_once(event: Event, notification: Notification, *, using: str) -> bool:
    """``make_receipt`` and ``make_rows`` for who needs no instances of the rows.

    Return whether the outbox may have a row that the event is about, for ``settle``. On
    PostgreSQL all of it is one statement. Most notifications are about one recipient, and
    for them Django's making of instances and of statements, and the ways to the server and
    back, are most of the work.

    Raises:
        IntegrityError: as of ``make_receipt``.
    """
    connection = connections[using]
    look_up = _look_up(event, connection)
    steps = [
        insert_receipt(notification, connection),
        insert_rows(event, notification, connection),
        look_up,
    ]
    return bool(
        execute([step for step in steps if step is not None], using, finds=look_up is not None)
    )


def execute(statements: Sequence[Statement], using: str, *, finds: bool = False) -> list[Any]:
    """Run them, as one on PostgreSQL, and return what the last one ``finds``.

    PostgreSQL waits ``LOCK_SECONDS`` for what is locked, in this and in all that follows in the
    transaction. It is told so by a statement in front, and not by a condition inside, because
    tables are locked before anything is looked at.
    """
    connection = connections[using]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            *first, (last, values) = statements
            steps = ", ".join(f"step{number} AS ({sql})" for number, (sql, _) in enumerate(first))
            sql = f"WITH {steps} {last}" if steps else last
            values = [value for _, own in first for value in own] + values
            if binds_on_server(connection):
                cursor.execute(_HURRY)
                cursor.execute(sql, values)
            else:
                # Both in one go: what takes longest is the way to the server and back.
                cursor.execute(f"{_HURRY}; {sql}", values)
                # psycopg 2 has the result of the last one only.
                if finds and cursor.description is None:
                    cursor.nextset()
        else:
            for sql, values in statements:
                cursor.execute(sql, values)
        return list(cursor.fetchall()) if finds else []


def binds_on_server(connection: BaseDatabaseWrapper) -> bool:
    """Whether a statement with values has to be one alone, as ``server_side_binding`` wants it."""
    return bool(connection.settings_dict["OPTIONS"].get("server_side_binding"))


def insert_receipt(notification: Notification, connection: BaseDatabaseWrapper) -> Statement:
    """The statement of ``make_receipt``."""
    values = [_make_key(notification), timezone.now()]
    return _write_receipt(connection.alias), adapt(values, connection)


@functools.cache
def _write_receipt(using: str) -> str:
    table, *columns = quote(NotificationReceipt, ("message_id", "received_at"), using)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES (%s, %s)"  # noqa: S608


def _make_key(notification: Notification) -> str:
    key = notification.message_id
    return key if len(key) <= 100 else hashlib.sha256(key.encode()).hexdigest()


def insert_rows(
    event: Event, notification: Notification, connection: BaseDatabaseWrapper
) -> Statement | None:
    """The statement of ``make_rows``, if there are any."""
    model = get_model(event)
    if model is None or not event.recipients:
        return None
    now = timezone.now()
    shared = _cut(model, _describe_all(event, notification))
    shared |= {"created_at": now, "modified_at": now}
    rows = [_cut(model, _describe_recipient(event, recipient)) for recipient in event.recipients]
    sql = _write_rows(model, tuple(shared), tuple(rows[0]), len(rows), connection.alias)
    values = [*shared.values(), *(value for row in rows for value in row.values())]
    return sql, adapt(values, connection)


@functools.lru_cache(maxsize=256)
def _write_rows(
    model: type[models.Model],
    shared: tuple[str, ...],
    own: tuple[str, ...],
    number: int,
    using: str,
) -> str:
    """INSERT of ``number`` rows that differ in what is their ``own``, which are texts."""
    table, *columns = quote(model, (*shared, *own), using)
    first = ", ".join(f"%s AS {column}" for column in columns[len(shared) :])
    others = f" UNION ALL SELECT {mark(own)}" * (number - 1)
    rows = f"(SELECT {first}{others}) AS recipients"
    if connections[using].vendor == "postgresql":
        # The same, but fifty of them are planned in no time.
        rows = f"(VALUES {', '.join([f'({mark(own)})'] * number)}) AS recipients"
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) "  # noqa: S608
        f"SELECT {mark(shared)}, recipients.* FROM {rows}"
    )


def _look_up(event: Event, connection: BaseDatabaseWrapper) -> Statement | None:
    names: dict[str, Any] = {}
    if event.tag is not None:
        field: Any = OutgoingMessage._meta.get_field("uuid")
        names["uuid"] = field.get_db_prep_value(event.tag, connection)
    if event.ses_message_id:
        names["ses_message_id"] = event.ses_message_id
    if not _is_about_outbox(event) or not names:
        return None
    return _write_look_up(tuple(names), connection.alias), [*names.values()]


@functools.cache
def _write_look_up(names: tuple[str, ...], using: str) -> str:
    table, *columns = quote(OutgoingMessage, names, using)
    either = " OR ".join(f"{column} = %s" for column in columns)
    return f"SELECT 1 FROM {table} WHERE {either} LIMIT 1"  # noqa: S608


def adapt(values: Iterable[Any], connection: BaseDatabaseWrapper) -> list[Any]:
    """Times as the database takes them; texts and numbers are taken as they are."""
    adapt_time = connection.ops.adapt_datetimefield_value
    return [adapt_time(value) if isinstance(value, datetime) else value for value in values]


@functools.cache
def quote(model: type[models.Model], names: tuple[str, ...], using: str) -> list[str]:
    """The table, and the columns of these fields, as they are written in SQL."""
    columns: list[str] = [cast(Any, model._meta.get_field(name)).column for name in names]
    return [connections[using].ops.quote_name(name) for name in (model._meta.db_table, *columns)]


def mark(values: Collection[object]) -> str:
    """One ``%s`` for each."""
    return ", ".join(["%s"] * len(values))


def suppress(details: Mapping[tuple[str, str], str]) -> None:
    """Add a row of ``Unsubscribe`` for each address and source, with its detail.

    One that is there gets the detail too, and stays from now on if it was to expire. Addresses
    are normalised ones; users of the site who have them are linked.
    """
    using = router.db_for_write(Unsubscribe)
    connection = connections[using]
    users = find_user_ids({address for address, _source in details})
    now, never = adapt([timezone.now(), None], connection)
    # In one order for all, or two who add the same two could block each other.
    rows = [
        (address, source, "", detail[:MAX_DETAIL_LENGTH], users.get(address), never, now, now)
        for (address, source), detail in sorted(details.items())
    ]
    with connection.cursor() as cursor:
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            cursor.execute(_write_suppress(len(chunk), using), [*chain.from_iterable(chunk)])


@functools.lru_cache(maxsize=256)
def _write_suppress(number: int, using: str) -> str:
    unique = ("address", "source", "mailing_list")
    changed = ("detail", "user", "expires_at", "created_at", "modified_at")
    table, *columns = quote(Unsubscribe, (*unique, *changed), using)
    fields = [Unsubscribe._meta.get_field(name) for name in (*unique, *changed)]
    rows = ", ".join([f"({mark(columns)})"] * number)
    conflict = connections[using].ops.on_conflict_suffix_sql(
        fields, OnConflict.UPDATE, ("detail", "expires_at", "modified_at"), unique
    )
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {rows} {conflict}"  # noqa: S608


def settle(event: Event, *, using: str) -> None:
    """Record in the outbox what an event tells about one of its rows, if it is about one.

    Any event means that SES took the mail, so a row that is still being sent becomes sent
    even where the drain never learnt it; nothing that is known already is taken back.
    """
    if not _is_about_outbox(event):
        return
    message = _find(event, using)
    if message is None:
        return
    if event.kind in events.READ:
        _note_reading(message, event, using)
        return
    recipients = list(
        OutgoingRecipient.objects.using(using)
        .filter(message=message, status__in=_RANKS)
        .order_by("pk")
    )
    if event.kind == events.REJECT:
        if all(_RANKS[Status(r.status)] <= _RANKS[Status.SENT] for r in recipients):
            _settle_rejected(message, event, using)
        return
    counted = Tally(stream=message.stream, sent=_settle_sent(message, event, using))
    known = {recipient.address for recipient in recipients}
    queued = {recipient.pk for recipient in recipients if recipient.status == Status.QUEUED}
    noted: list[MessageEvent] = []
    changes: dict[tuple[Status, str], set[str]] = {}
    for reported in event.recipients:
        status, reason = _describe_outcome(event, reported)
        address = events.find_addressee(reported.address, known)
        if address is not None:
            changes.setdefault((status, reason), set()).add(address)
            noted.append(_note(message, event, reported, status, reason, address))
    changed: dict[int, OutgoingRecipient] = {}
    for (status, reason), about in [((Status.SENT, ""), known), *changes.items()]:
        for recipient in recipients:
            rank = _RANKS[Status(recipient.status)]
            if recipient.address in about and rank < _RANKS[status]:
                recipient.status, recipient.reason = status, reason
                changed[recipient.pk] = recipient
    if changed:
        _update(changed.values(), using)
    counted.written = sum(
        recipient.pk in queued and not is_simulated(recipient.address)
        for recipient in changed.values()
    )
    count([counted, *_count_outcomes(message, event, changed.values())], using=using)
    if noted:
        MessageEvent.objects.using(using).bulk_create(noted)


def _update(recipients: Collection[OutgoingRecipient], using: str) -> None:
    """Write status and reason of all, in one statement.

    As ``bulk_update`` does, which takes a hundred times longer to make it for fifty.
    """
    table, *columns = quote(OutgoingRecipient, ("id", "status", "reason"), using)
    pk, status, reason = columns
    cases = f"CASE {pk} {'WHEN %s THEN %s ' * len(recipients)}END"
    sql = (
        f"UPDATE {table} SET {status} = {cases}, {reason} = {cases} "  # noqa: S608
        f"WHERE {pk} IN ({mark(recipients)})"
    )
    values: list[Any] = []
    for name in ("status", "reason"):
        values += (value for row in recipients for value in (row.pk, str(getattr(row, name))))
    with connections[using].cursor() as cursor:
        cursor.execute(sql, [*values, *(row.pk for row in recipients)])


def _count_outcomes(
    message: OutgoingMessage, event: Event, changed: Iterable[OutgoingRecipient]
) -> Iterator[Tally]:
    """What the event means for the site's reputation: one sum, and one for each domain."""
    name = {
        Status.DELIVERED: "delivered",
        Status.BOUNCED: "bounced" if event.type == events.PERMANENT else "soft_bounced",
        Status.COMPLAINED: "complained",
    }
    domains: dict[str, Counter[str]] = {}
    for recipient in changed:
        domain = recipient.address.rpartition("@")[2]
        status = Status(recipient.status)
        if status in name and domain != SIMULATOR_DOMAIN:
            domains.setdefault(domain, Counter())[name[status]] += 1
    yield Tally(stream=message.stream, **sum(domains.values(), Counter[str]()))
    for domain, counts in domains.items():
        counts.pop("delivered", None)
        yield Tally(stream=message.stream, domain=domain[:255], **counts)


def _note(
    message: OutgoingMessage,
    event: Event,
    reported: events.Recipient,
    status: Status,
    reason: str,
    address: str,
) -> MessageEvent:
    """What happened to one recipient, for who looks at the message."""
    kind = {
        Status.DELIVERED: MessageEvent.Kind.DELIVERED,
        Status.COMPLAINED: MessageEvent.Kind.COMPLAINED,
        Status.SENT: MessageEvent.Kind.DELAYED,
        Status.BOUNCED: (
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
    return MessageEvent(
        message=message,
        kind=kind,
        address=address,
        at=make_time(event.happened_at) or timezone.now(),
        detail=reason,
    )


def _note_reading(message: OutgoingMessage, event: Event, using: str) -> None:
    """That it was opened, or a link followed: SES doesn't say by whom of several."""
    noted = MessageEvent.objects.using(using).filter(
        message=message, kind__in=[MessageEvent.Kind.OPENED, MessageEvent.Kind.CLICKED]
    )
    if noted.count() >= _MAX_READINGS:
        return
    link = events.read_text(event.details.get("link"), MAX_REASON) or ""
    noted.create(
        message=message,
        kind=(MessageEvent.Kind.OPENED if event.kind == events.OPEN else MessageEvent.Kind.CLICKED),
        at=make_time(event.happened_at) or timezone.now(),
        # Without what comes after the path: it may be a secret of the reader's.
        detail=link.partition("?")[0].partition("#")[0],
    )


def _is_about_outbox(event: Event) -> bool:
    return event.kind in events.WRITTEN or event.kind in events.READ


def _find(event: Event, using: str) -> OutgoingMessage | None:
    query = Q()
    if event.tag is not None:
        query |= Q(uuid=event.tag)
    if event.ses_message_id:
        query |= OutgoingMessage.has_ses_id(event.ses_message_id)
    if not query:
        return None
    # Sorted here: Django takes longer to write the ORDER BY than to ask.
    found = sorted(
        OutgoingMessage.objects.using(using).select_for_update().filter(query),
        key=lambda message: message.pk,
    )
    # The tag is our own name of a row; an id is of the call that made it.
    by_tag = (message for message in found if message.uuid == event.tag)
    return next(by_tag, found[0] if found else None)


def _settle_sent(message: OutgoingMessage, event: Event, using: str) -> bool:
    """Make it sent; ``False``: it was."""
    if message.status == OutgoingMessage.Status.SENT:
        return False
    if message.status == OutgoingMessage.Status.FAILED and message.ses_message_id:
        return False  # SES took it and rejected it afterwards
    now = timezone.now()
    message.status = OutgoingMessage.Status.SENT
    message.ses_message_id = message.ses_message_id or _cut_id(event)
    message.sent_at = message.sent_at or make_time(event.sent_at) or now
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


def _settle_rejected(message: OutgoingMessage, event: Event, using: str) -> None:
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
        at=make_time(event.happened_at) or timezone.now(),
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


def _describe_outcome(event: Event, recipient: events.Recipient) -> tuple[Status, str]:
    if event.kind == events.DELIVERY:
        return Status.DELIVERED, ""
    if event.kind == events.COMPLAINT:
        kind = events.read_text(event.details.get("complaintFeedbackType")) or "complaint"
        if events.is_not_spam(kind):
            return Status.DELIVERED, ""
        return Status.COMPLAINED, kind[:MAX_REASON]
    if events.is_delayed(recipient.action):
        return Status.SENT, ""
    code = recipient.diagnostic_code or recipient.status
    reason = events.describe_bounce(event.type, event.subtype, code)
    return Status.BOUNCED, reason[:MAX_REASON]


def get_model(event: Event) -> type[models.Model] | None:
    """The table of django-bouncy's that an event has rows in."""
    return _get_models().get(event.kind)


@functools.cache
def _get_models() -> dict[str, type[models.Model]]:
    from django_bouncy.models import Bounce, Complaint, Delivery

    return {events.BOUNCE: Bounce, events.COMPLAINT: Complaint, events.DELIVERY: Delivery}


def _describe_all(event: Event, notification: Notification) -> dict[str, Any]:
    return {
        "sns_topic": notification.topic_arn,
        "sns_messageid": notification.message_id,
        "mail_timestamp": make_time(event.sent_at)
        or make_time(events.read_time(notification.data["Timestamp"]))
        or timezone.now(),
        "mail_id": event.ses_message_id,
        "mail_from": event.sender,
        **_describe(event),
    }


def _describe(event: Event) -> dict[str, Any]:
    details = event.details
    if event.kind == events.DELIVERY:
        return {
            "delivered_time": make_time(event.happened_at),
            "processing_time": events.read_integer(details.get("processingTimeMillis")),
            "smtp_response": events.read_text(details.get("smtpResponse")),
        }
    feedback = {
        "feedback_id": events.read_text(details.get("feedbackId")),
        "feedback_timestamp": make_time(event.happened_at),
    }
    if event.kind == events.BOUNCE:
        return feedback | {
            "hard": event.type == events.PERMANENT,
            "bounce_type": event.type,
            "bounce_subtype": event.subtype,
            "reporting_mta": events.read_text(details.get("reportingMTA")),
        }
    return feedback | {
        "useragent": events.read_text(details.get("userAgent")),
        "feedback_type": events.read_text(details.get("complaintFeedbackType")),
        "arrival_date": make_time(events.read_time(details.get("arrivalDate"))),
    }


def _describe_recipient(event: Event, recipient: events.Recipient) -> dict[str, Any]:
    if event.kind != events.BOUNCE:
        return {"address": recipient.address}
    return {
        "address": recipient.address,
        "action": recipient.action,
        "status": recipient.status,
        "diagnostic_code": recipient.diagnostic_code,
    }


def _cut(model: type[models.Model], values: Mapping[str, Any]) -> dict[str, Any]:
    longest = _find_lengths(model)
    return {
        name: value[: longest[name]] if isinstance(value, str) else value
        for name, value in values.items()
    }


@functools.cache
def _find_lengths(model: type[models.Model]) -> dict[str, int | None]:
    return {field.name: getattr(field, "max_length", None) for field in model._meta.fields}


def _cut_id(event: Event) -> str:
    return event.ses_message_id[:100]


def make_time(time: datetime | None) -> datetime | None:
    """A time as django-bouncy wrote it: UTC, with its zone or without."""
    return time if time is None or settings.USE_TZ else time.replace(tzinfo=None)

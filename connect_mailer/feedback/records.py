"""What a notification leaves in the database: a receipt, django-bouncy's rows, ``Unsubscribe``.

All of it is one transaction of the caller's, or none of it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from django.conf import settings
from django.db import connections, models, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.constants import OnConflict
from django.utils import timezone

from connect_mailer.feedback import events
from connect_mailer.feedback.brief import brief_transaction, execute
from connect_mailer.feedback.deadline import Deadline
from connect_mailer.feedback.events import Event
from connect_mailer.feedback.sns import Notification
from connect_mailer.models import (
    MAX_DETAIL_LENGTH,
    MAX_RECIPIENTS,
    NotificationReceipt,
    Unsubscribe,
    find_user_ids,
)
from connect_mailer.statements import Statement, insert, quote

MAX_REASON: Final = 2000
_CHUNK: Final = 100


def make_receipt(notification: Notification, *, using: str, deadline: Deadline) -> None:
    """Note that a notification is taken, first of all in its transaction.

    A second delivery at the same moment waits here for the first. It is an INSERT and no
    look-up first: SQLite would refuse to turn a read into a write where another one writes.

    Raises:
        IntegrityError: it was (``is_taken``). The transaction has to be rolled back.
    """
    execute([insert_receipt(notification, connections[using])], using, deadline=deadline)


def is_taken(notification: Notification, *, using: str, deadline: Deadline) -> bool:
    """Whether there is a receipt, so that an ``IntegrityError`` loses nothing."""
    table, column = quote(NotificationReceipt, ("message_id",), using)
    sql = f"SELECT 1 FROM {table} WHERE {column} = %s"  # noqa: S608
    statement = sql, [_make_key(notification)]
    with brief_transaction(using, deadline):
        return bool(execute([statement], using, deadline=deadline, finds=True))


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


def insert_all(
    event: Event, notification: Notification, connection: BaseDatabaseWrapper
) -> list[Statement]:
    """The statements of ``make_receipt`` and ``make_rows``, for who needs no instances.

    Most notifications are about one recipient, and for them Django's making of instances and of
    statements, and the ways to the server and back, are most of the work.
    """
    rows = insert_rows(event, notification, connection)
    return [insert_receipt(notification, connection), *([rows] if rows else [])]


def is_plain(event: Event, *, using: str) -> bool:
    """Whether all is in one database, and about no more recipients than mail has."""
    model = get_model(event)
    return len(event.recipients) <= MAX_RECIPIENTS and (
        model is None or router.db_for_write(model) == using
    )


def insert_receipt(notification: Notification, connection: BaseDatabaseWrapper) -> Statement:
    """The statement of ``make_receipt``."""
    row = {"message_id": _make_key(notification), "received_at": timezone.now()}
    return insert(NotificationReceipt, {}, tuple(row), [[*row.values()]], connection)


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
    own = [_cut(model, _describe_recipient(event, recipient)) for recipient in event.recipients]
    rows = [[*one.values()] for one in own]
    return insert(model, shared, tuple(own[0]), rows, connection)


def suppress(details: Mapping[tuple[str, str], str]) -> None:
    """Add a row of ``Unsubscribe`` for each address and source, with its detail.

    One that is there gets the detail too, and stays from now on if it was to expire. Addresses
    are normalised ones; users of the site who have them are linked.
    """
    using = router.db_for_write(Unsubscribe)
    rows = sorted(details.items())
    for start in range(0, len(rows), _CHUNK):
        chunk = dict(rows[start : start + _CHUNK])
        users = find_user_ids({address for address, _source in chunk})
        execute([insert_suppressed(chunk, users, connections[using])], using)


def insert_suppressed(
    details: Mapping[tuple[str, str], str],
    users: Mapping[str, Any],
    connection: BaseDatabaseWrapper,
) -> Statement:
    """The statement of ``suppress``, for these ``users`` (their keys, by address)."""
    prepare = Unsubscribe._meta.get_field("user").get_db_prep_save
    now = timezone.now()
    shared = {"mailing_list": "", "expires_at": None, "created_at": now, "modified_at": now}
    rows = [
        (address, source, detail[:MAX_DETAIL_LENGTH], prepare(users.get(address), connection))
        # In one order for all, or two who add the same two could block each other.
        for (address, source), detail in sorted(details.items())
    ]
    own = ("address", "source", "detail", "user")
    conflict = _write_conflict((*shared, *own), connection.alias)
    return insert(Unsubscribe, shared, own, rows, connection, conflict=conflict)


@functools.cache
def _write_conflict(names: tuple[str, ...], using: str) -> str:
    fields = [Unsubscribe._meta.get_field(name) for name in names]
    unique = ("address", "source", "mailing_list")
    sql = connections[using].ops.on_conflict_suffix_sql(
        fields, OnConflict.UPDATE, ("detail", "expires_at", "modified_at"), unique
    )
    return str(sql)


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


def make_time(time: datetime | None) -> datetime | None:
    """A time as django-bouncy wrote it: UTC, with its zone or without."""
    return time if time is None or settings.USE_TZ else time.replace(tzinfo=None)


def make_own_time(time: datetime | None) -> datetime | None:
    """A time as this app's tables have it: with its zone, or without and local, as Django's own."""
    return time if time is None or settings.USE_TZ else timezone.make_naive(time)

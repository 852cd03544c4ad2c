"""Inserts, the fastest way that the database has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.models import Model, UUIDField
from django.utils import timezone

from connect_mailer.clock import DatabaseNow
from connect_mailer.models import (
    MAX_RECIPIENTS,
    OutgoingContent,
    OutgoingMessage,
    OutgoingRecipient,
    Unsubscribe,
)

# Fewer rows are inserted faster than they are copied.
COPY_ROWS = 100

_CLOCK = "statement_timestamp()"


def can_copy(number: int, *, using: str) -> bool:
    """Whether so many rows are copied: then their values can't be expressions."""
    if number < COPY_ROWS or connections[using].vendor != "postgresql":
        return False
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    return is_psycopg3  # psycopg 2 copies in another way


def ask_time(using: str) -> datetime:
    """The database's time, as a value."""
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        (now,) = cursor.fetchone()
    return now if settings.USE_TZ else timezone.make_naive(now)


def insert(rows: Sequence[Model], *, using: str, needs_ids: bool = False) -> None:
    """Insert rows of one model: by COPY where there are many, on PostgreSQL with psycopg 3.

    ``needs_ids``: the rows know theirs afterwards, where ``bulk_create()`` would tell them.
    """
    if not rows:
        return
    if not can_copy(len(rows), using=using):
        type(rows[0])._default_manager.using(using).bulk_create(rows)
        return
    connection = connections[using]
    options = rows[0]._meta
    quote = connection.ops.quote_name
    with connection.cursor() as cursor:
        if needs_ids:
            cursor.execute(
                "SELECT nextval(pg_get_serial_sequence(%s, %s)) FROM generate_series(1, %s)",
                [options.db_table, options.pk.column, len(rows)],
            )
            for row, (pk,) in zip(rows, cursor.fetchall(), strict=True):
                row.pk = pk
        fields: list[Any] = [
            field
            for field in options.concrete_fields
            if not field.primary_key or rows[0].pk is not None
        ]
        columns = ", ".join(quote(field.column) for field in fields)
        with (
            connection.wrap_database_errors,
            cursor.copy(f"COPY {quote(options.db_table)} ({columns}) FROM STDIN") as copy,
        ):
            for row in rows:
                copy.write_row(
                    [
                        field.get_db_prep_save(field.pre_save(row, True), connection)
                        for field in fields
                    ]
                )


def insert_message(
    values: Mapping[str, Any],
    mime: bytes | None,
    recipients: Sequence[tuple[str, str, str]],
    *,
    using: str,
) -> bool:
    """Insert a message in one statement, unless one of its recipients is on ``Unsubscribe``.

    ``values``: what its row says, by field, where that is not the default. ``recipients``: the
    address as it is compared, as it was written, and the kind.

    Returns whether it was inserted. On PostgreSQL only: elsewhere an insert can't be a part of
    another one, and takes no round trip worth saving (SQLite).
    """
    connection = connections[using]
    written = {name: _write(value) for name, value in values.items()}
    sql = _write_insert(tuple(written.items()), len(recipients), using)
    get_field = OutgoingMessage._meta.get_field
    params: list[Any] = [
        value if isinstance(value, str) else get_field(name).get_db_prep_save(value, connection)  # type: ignore[union-attr]
        for name, value in values.items()
        if written[name] == "%s"
    ]
    keys = [key for key, _, _ in recipients]
    params += [keys if len(keys) > 1 else keys[0], mime]
    for recipient in recipients:
        params += recipient
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return bool(cursor.rowcount)


def _write(value: object) -> str:
    """What a statement has for a value: itself, where there are few such values."""
    if value is None:
        return "NULL"
    if isinstance(value, DatabaseNow):
        return _CLOCK
    return str(value) if type(value) is int and 0 <= value <= MAX_RECIPIENTS else "%s"


@lru_cache(maxsize=256)
def _write_insert(
    written: tuple[tuple[str, str], ...], number_of_recipients: int, using: str
) -> str:
    """The statement of ``insert_message``, with what is written for the values of each field.

    What is the same for all messages is written into it, and with its type, or the database
    would look for that each time.
    """
    connection = connections[using]
    of_message = dict(written)
    fields = OutgoingMessage._meta.concrete_fields
    for field in fields:
        if field.name in of_message or field.primary_key:
            continue
        if (isinstance(field, UUIDField) and not field.null) or field.name == "content":
            of_message[field.name] = "gen_random_uuid()"
        elif getattr(field, "auto_now_add", False):
            of_message[field.name] = _CLOCK
        elif (value := field.get_default()) is not None:
            of_message[field.name] = f"'{value}'::{field.db_type(connection)}"
    column = {field.name: f'"{field.column}"' for field in fields}
    columns = ", ".join(column[name] for name in of_message)
    messages, contents, found, unsubscribes = (
        model._meta.db_table
        for model in (OutgoingMessage, OutgoingContent, OutgoingRecipient, Unsubscribe)
    )
    recipient, others, is_one_of_them = "%s, %s, %s", "", "= %s"
    if number_of_recipients > 1:  # by a join and an array, which take longer
        recipients = ", ".join([f"({recipient})"] * number_of_recipients)
        recipient, others = "recipient.*", f", (VALUES {recipients}) AS recipient"
        is_one_of_them = "= ANY(%s)"
    return f"""
        WITH message AS (
            INSERT INTO {messages} ({columns})
            SELECT {", ".join(of_message.values())} WHERE NOT EXISTS (
                SELECT FROM {unsubscribes} WHERE address {is_one_of_them}
            )
            RETURNING id, content_id
        ), content AS (
            INSERT INTO {contents} (id, mime) SELECT content_id, %s FROM message
        )
        INSERT INTO {found} (message_id, address, envelope, kind, status, reason)
        SELECT id, {recipient}, 'queued'::varchar, '' FROM message{others}
    """  # noqa: S608 - names and defaults of our own tables

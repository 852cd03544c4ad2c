"""Inserts, the fastest way that the database has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model
from django.utils import timezone

from connect_mailer.clock import DatabaseNow
from connect_mailer.models import (
    OutgoingContent,
    OutgoingMessage,
    OutgoingRecipient,
    Unsubscribe,
)

# Fewer rows are inserted faster than they are copied.
COPY_ROWS = 100


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
    content: OutgoingContent,
    message: OutgoingMessage,
    recipients: Sequence[OutgoingRecipient],
    *,
    unless: Sequence[str],
    using: str,
) -> bool:
    """Insert a message in one statement, unless one of these addresses is on ``Unsubscribe``.

    Returns whether it was inserted. On PostgreSQL only: elsewhere an insert can't be a part of
    another one, and takes no round trip worth saving (SQLite).
    """
    connection = connections[using]
    of_content, of_message = _prepare(content, connection), _prepare(message, connection)
    of_recipients = [_prepare(one, connection, leave_out="message") for one in recipients]
    values = ", ".join(f"({row.values})" for row in of_recipients)
    sql = f"""
        WITH message AS (
            INSERT INTO {of_message.table} ({of_message.columns})
            SELECT {of_message.values} WHERE NOT EXISTS (
                SELECT FROM {Unsubscribe._meta.db_table} WHERE address = ANY(%s)
            )
            RETURNING id
        ), content AS (
            INSERT INTO {of_content.table} ({of_content.columns})
            SELECT {of_content.values} FROM message
        )
        INSERT INTO {of_recipients[0].table} (message_id, {of_recipients[0].columns})
        SELECT message.id, recipient.* FROM message, (VALUES {values}) AS recipient
    """  # noqa: S608 - names of our own tables and columns
    params = [*of_message.params, list(unless), *of_content.params]
    for row in of_recipients:
        params += row.params
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return bool(cursor.rowcount)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row as its parts of an INSERT."""

    table: str
    columns: str
    values: str
    params: list[Any]


def _prepare(row: Model, connection: BaseDatabaseWrapper, leave_out: str = "") -> _Row:
    """``leave_out``: a column that is told elsewhere."""
    columns, values, params = [], [], []
    for field in row._meta.concrete_fields:
        if field.name == leave_out or (field.primary_key and row.pk is None):
            continue
        columns.append(f'"{field.column}"')
        value = field.pre_save(row, True)
        if value is None:
            values.append("NULL")
        elif isinstance(value, DatabaseNow):
            values.append("statement_timestamp()")
        else:
            values.append("%s")
            params.append(field.get_db_prep_save(value, connection))
    return _Row(
        table=row._meta.db_table,
        columns=", ".join(columns),
        values=", ".join(values),
        params=params,
    )

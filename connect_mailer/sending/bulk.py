"""Many rows at once, the fastest way that the database has."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.models import Model
from django.utils import timezone

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

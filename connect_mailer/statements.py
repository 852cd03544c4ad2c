"""SQL of the app's own, for what Django's ORM would take longer to write than a database to do."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias, cast

from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper

# SQL, and what stands for each of its ``%s``.
Statement: TypeAlias = tuple[str, list[Any]]


def insert(
    model: type[models.Model],
    shared: Mapping[str, Any],
    own: tuple[str, ...],
    rows: Sequence[Sequence[Any]],
    connection: BaseDatabaseWrapper,
    *,
    computed: tuple[tuple[str, str], ...] = (),
    conflict: str = "",
) -> Statement:
    """INSERT of ``rows``, which are values of the fields ``own``, and have others in common.

    ``computed`` are fields with SQL of their own. PostgreSQL gets what all rows have in common
    once, whatever it was given as.
    """
    if len(rows) > 1 and connection.vendor == "postgresql":
        # The same text and as many values, however many rows there are.
        same, columns = share(dict(zip(own, zip(*rows, strict=True), strict=True)))
        shared = {**shared, **same}
        sql = _write_insert_arrays(model, computed, tuple(shared), tuple(columns), connection.alias)
        values = [*adapt(shared.values(), connection), *columns.values()]
    else:
        common = adapt(shared.values(), connection)
        sql = _write_insert(model, computed, tuple(shared), own, len(rows), connection.alias)
        values = [one for row in rows for one in (*common, *adapt(row, connection))]
    return f"{sql} {conflict}" if conflict else sql, values


@functools.cache
def _write_insert_arrays(
    model: type[models.Model],
    computed: tuple[tuple[str, str], ...],
    shared: tuple[str, ...],
    own: tuple[str, ...],
    using: str,
) -> str:
    first = ", ".join([*(sql for _, sql in computed), *("%s" for _ in shared), "own.*"])
    rows = unnest(model, own, using)
    into = _write_into(model, computed, (*shared, *own), using)
    return f"{into} SELECT {first} FROM {rows} AS own"  # noqa: S608


@functools.lru_cache(maxsize=256)
def _write_insert(
    model: type[models.Model],
    computed: tuple[tuple[str, str], ...],
    shared: tuple[str, ...],
    own: tuple[str, ...],
    number: int,
    using: str,
) -> str:
    names = (*shared, *own)
    row = ", ".join([*(sql for _, sql in computed), *("%s" for _ in names)])
    return f"{_write_into(model, computed, names, using)} VALUES {', '.join([f'({row})'] * number)}"


def _write_into(
    model: type[models.Model],
    computed: tuple[tuple[str, str], ...],
    names: tuple[str, ...],
    using: str,
) -> str:
    table, *columns = quote(model, (*(name for name, _ in computed), *names), using)
    return f"INSERT INTO {table} ({', '.join(columns)})"


def share(columns: Mapping[str, Sequence[Any]]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What all rows have in common, and the columns that are left: the first one in any case."""
    first, *others = columns.items()
    same = {name: column[0] for name, column in others if column.count(column[0]) == len(column)}
    return same, {name: [*column] for name, column in (first, *others) if name not in same}


@functools.cache
def unnest(model: type[models.Model], names: tuple[str, ...], using: str) -> str:
    """Rows of arrays, each with the values of one field (PostgreSQL)."""
    types = (cast(Any, model._meta.get_field(name)).db_type(connections[using]) for name in names)
    return f"unnest({', '.join(f'%s::{one}[]' for one in types)})"


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

"""Databases that are waited for briefly: where another one holds what a notification needs, it is
better to be asked again than to be late.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final, cast

from django.core.cache.backends.db import BaseDatabaseCache
from django.db import connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from connect_mailer.feedback.deadline import Deadline
from connect_mailer.statements import Statement

# For one lock.
LOCK_SECONDS: Final = 2
# So long SQLite waits by default, which is soon enough; it may be set to wait much longer.
_SQLITE_SECONDS: Final = 5
# When so many of the seconds that were left are gone, the database is told how many are now.
_LOST_SECONDS: Final = 1
# For rows, for tables, and (MariaDB only) for a whole statement.
_MYSQL_LOCKS: Final = ("innodb_lock_wait_timeout", "lock_wait_timeout")
_MARIADB_STATEMENT: Final = "max_statement_time"


def execute(
    statements: Sequence[Statement],
    using: str,
    *,
    deadline: Deadline | None = None,
    finds: bool = False,
    changes: int | None = None,
) -> list[Any]:
    """Run them, as one on PostgreSQL, and return what the last one ``finds``.

    With a ``deadline`` PostgreSQL is told how long it may wait, in this and in all that follows
    in the transaction; ``brief_transaction`` does it for others. It is told so by a statement in
    front, and not by a condition inside, because tables are locked before anything is looked at.

    PostgreSQL only: where the last one is an UPDATE and ``changes`` another number of rows,
    nothing is written at all.

    Raises:
        DataError: it changed another number.
    """
    connection = connections[using]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            sql, values = _make_one(statements, changes)
            if deadline:
                hurry, limits = _hurry(deadline)
                if binds_on_server(connection):
                    cursor.execute(hurry % limits)
                else:
                    # Both in one go: what takes longest is the way to the server and back.
                    sql, values = f"{hurry}; {sql}", [*limits, *values]
            cursor.execute(sql, values)
            # psycopg 2 has the result of the last one only.
            while finds and cursor.description is None and cursor.nextset():
                pass
        else:
            for sql, values in statements:
                cursor.execute(sql, values)
        return list(cursor.fetchall()) if finds else []


def ask(statements: Sequence[Statement], using: str, deadline: Deadline) -> list[list[Any]]:
    """What each of them finds, on PostgreSQL: in one go, but for psycopg 2."""
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    if not is_psycopg3 or len(statements) < 2:
        return [execute([one], using, deadline=deadline, finds=True) for one in statements]
    hurry, limits = _hurry(deadline)
    texts, values = zip(*statements, strict=True)
    found = []
    with connections[using].cursor() as cursor:
        cursor.execute("; ".join((hurry, *texts)), [*limits, *chain(*values)])
        while True:
            if cursor.description is not None:
                found.append(list(cursor.fetchall()))
            if not cursor.nextset():
                return found


def _make_one(statements: Sequence[Statement], changes: int | None) -> Statement:
    """One statement of several: all parts see the tables as they were before it."""
    parts = list(statements)
    if changes is not None:
        update, values = parts.pop()
        check = f"SELECT 1 / (count(*) = {changes})::int FROM step{len(parts)}"  # noqa: S608
        parts += [(f"{update} RETURNING 1", values), (check, [])]
    *first, (last, _) = parts
    steps = ", ".join(f"step{number} AS ({sql})" for number, (sql, _) in enumerate(first))
    return f"WITH {steps} {last}" if steps else last, [one for _, values in parts for one in values]


def _hurry(deadline: Deadline) -> tuple[str, tuple[int, int]]:
    """The statement that says so, and its milliseconds."""
    lock, statement = (round(deadline.left(most) * 1000) + 1 for most in (LOCK_SECONDS, 3600))
    return "SET LOCAL lock_timeout = %s; SET LOCAL statement_timeout = %s", (lock, statement)


def binds_on_server(connection: BaseDatabaseWrapper) -> bool:
    """Whether a statement with values has to be one alone, as ``server_side_binding`` wants it."""
    return bool(connection.settings_dict["OPTIONS"].get("server_side_binding"))


@contextmanager
def brief_transaction(using: str, deadline: Deadline) -> Iterator[None]:
    """A transaction whose statements wait ``LOCK_SECONDS`` for a lock; servers wait much longer.

    None of them begins after the ``deadline``, and where time was lost in one, the next ones get
    less of it. On PostgreSQL the first has to be one of ``execute``, which tells it for nothing.

    Raises:
        NotificationUndecided: the deadline is over; nothing is written.
    """
    connection = connections[using]
    seconds = deadline.left()
    undo = _limit(connection, deadline, is_first=True)

    def hurry() -> None:
        nonlocal seconds, undo
        now = deadline.left()
        if now <= seconds - _LOST_SECONDS:
            seconds = now
            undo = _limit(connection, deadline) or undo

    def watch(run: Callable[..., Any], *args: Any) -> Any:
        hurry()
        return run(*args)

    try:
        with transaction.atomic(using=using):
            # Not around the end: what has to be undone is undone.
            with connection.execute_wrapper(watch):
                yield
            hurry()  # a COMMIT may wait, too
    finally:
        if undo:
            _run(connection, undo)


def _limit(
    connection: BaseDatabaseWrapper, deadline: Deadline, *, is_first: bool = False
) -> str | None:
    """Tell the database how long it may wait; return what takes that back, if anything."""
    seconds = deadline.left(LOCK_SECONDS)
    if connection.vendor == "postgresql":
        # The first time, `execute` does. It ends with the transaction.
        if not is_first:
            hurry, limits = _hurry(deadline)
            _run(connection, hurry % limits)
    elif connection.vendor == "sqlite":
        usual = connection.settings_dict["OPTIONS"].get("timeout", _SQLITE_SECONDS)
        if not is_first or usual > min(_SQLITE_SECONDS, deadline.left()):
            _run(connection, f"PRAGMA busy_timeout = {seconds * 1000:.0f}")
            return f"PRAGMA busy_timeout = {usual * 1000:.0f}"
    elif connection.vendor == "mysql":
        # It can't be set for one transaction, and another request comes by this connection.
        names = dict.fromkeys(_MYSQL_LOCKS, math.ceil(seconds))
        if cast(Any, connection).mysql_is_mariadb:
            names[_MARIADB_STATEMENT] = math.ceil(deadline.left())
        kept = [f"@connect_mailer_{name} = @@SESSION.{name}" for name in names if is_first]
        told = [f"@@SESSION.{name} = {value}" for name, value in names.items()]
        _run(connection, f"SET {', '.join(kept + told)}")
        return "SET " + ", ".join(f"@@SESSION.{name} = @connect_mailer_{name}" for name in names)
    return None


def _run(connection: BaseDatabaseWrapper, sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


class TableCache:
    """A cache in a table, which is waited for as briefly as what is written.

    It has to be asked in the thread whose connection and transaction it is.
    """

    def __init__(self, cache: BaseDatabaseCache, deadline: Deadline) -> None:
        self._cache: Any = cache
        self._deadline = deadline

    def get(self, key: Any, /) -> Any:
        """As the cache's own."""
        with self._briefly(router.db_for_read(self._cache.cache_model_class)):
            return self._cache.get(key)

    def set(self, key: Any, value: Any, /, timeout: float | None) -> Any:
        """As the cache's own."""
        with self._briefly(router.db_for_write(self._cache.cache_model_class)):
            return self._cache.set(key, value, timeout=timeout)

    @contextmanager
    def _briefly(self, using: str) -> Iterator[None]:
        with brief_transaction(using, self._deadline):
            execute([("SELECT 1", [])], using, deadline=self._deadline)
            yield

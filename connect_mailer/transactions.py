"""Transactions of the app's own SQL."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

from django.db import OperationalError, connections, models, transaction
from django.db.models.lookups import GreaterThan

_P = ParamSpec("_P")
_R = TypeVar("_R")
_M = TypeVar("_M", bound=models.Model)

# What the database rolled back so that others could go on: MySQL's deadlock, PostgreSQL's, and
# its serialization failure. Source:
# https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html (1213),
# https://www.postgresql.org/docs/current/errcodes-appendix.html (class 40).
_DEADLOCKS = {1213, "40P01", "40001"}
# More often than this in a row, and something is wrong.
DEADLOCK_TRIES = 10

# A process that stops in the middle of a transaction (its machine is suspended, or out of the
# network) keeps what it has locked from all others: PostgreSQL ends what does nothing for so long.
IDLE_LIMIT = "5s"


def single_statement(using: str) -> AbstractContextManager[Any]:
    """Around one statement: nothing where it is a transaction of its own.

    Where a transaction is open already, a savepoint: what fails must not break the caller's.
    """
    is_alone = connections[using].get_autocommit()
    return nullcontext() if is_alone else transaction.atomic(using=using)


def again_at_deadlock(act: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let ``act``, which takes ``using``, be tried again at once where it lost a deadlock.

    Such a database is there, and whoever was in the way goes on by then. Not in a transaction
    that is open already: what came before in that is lost as well.
    """

    @functools.wraps(act)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        connection = connections[str(kwargs["using"])]
        for _ in range(DEADLOCK_TRIES - 1):
            try:
                return act(*args, **kwargs)
            except OperationalError as error:
                if connection.in_atomic_block or not _is_deadlock(error):
                    raise
        return act(*args, **kwargs)

    return wrapped


def _is_deadlock(error: OperationalError) -> bool:
    # As the database's own error says it; MySQL's has a number as its first argument.
    state = getattr(error.__cause__, "sqlstate", None)
    return (state or next(iter(error.args), None)) in _DEADLOCKS


def limit_idling(rows: models.QuerySet[_M]) -> models.QuerySet[_M]:
    """The same rows: whoever locks one of them may idle for ``IDLE_LIMIT`` in this transaction.

    PostgreSQL is told so in the statement that there is anyway. The others wait.
    """
    if connections[rows.db].vendor != "postgresql":
        return rows
    name, limit, is_local = map(
        models.Value, ("idle_in_transaction_session_timeout", IDLE_LIMIT, True)
    )
    told = models.Func(
        name, limit, is_local, function="set_config", output_field=models.TextField()
    )
    return rows.filter(GreaterThan(told, ""))

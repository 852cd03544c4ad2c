"""Transactions of the app's own SQL."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from django.db import connections, transaction


def single_statement(using: str) -> AbstractContextManager[Any]:
    """Around one statement: nothing where it is a transaction of its own.

    Where a transaction is open already, a savepoint: what fails must not break the caller's.
    """
    is_alone = connections[using].get_autocommit()
    return nullcontext() if is_alone else transaction.atomic(using=using)

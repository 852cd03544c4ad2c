"""Transactions that lose a deadlock."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import OperationalError, connection, transaction
from django.db.models import F

from connect_mailer import transactions
from connect_mailer.models import LimiterState

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor == "sqlite", reason="has one lock, so no deadlock"),
]


class Crossing:
    """Two who lock the same two rows, in the opposite order, each having one at first."""

    def __init__(self) -> None:
        LimiterState.objects.bulk_create(LimiterState(name=name) for name in "ab")
        self.tries = 0
        self._barrier = threading.Barrier(2)

    def run(self, *, is_open: bool = False) -> list[OperationalError]:
        """Both at once; return who failed."""

        def cross(names: str) -> OperationalError | None:
            try:
                if is_open:
                    with transaction.atomic():
                        self._lock(names, using="default")
                else:
                    self._lock(names, using="default")
            except OperationalError as error:
                return error
            finally:
                connection.close()
            return None

        with ThreadPoolExecutor(2) as pool:
            return [error for error in pool.map(cross, ["ab", "ba"]) if error]

    @transactions.again_at_deadlock
    def _lock(self, names: str, *, using: str) -> None:
        self.tries += 1
        is_first = self.tries <= 2
        with transaction.atomic(using=using):
            for name in names:
                LimiterState.objects.using(using).filter(name=name).update(
                    slowdown=F("slowdown") + 1
                )
                if is_first and name == names[0]:
                    self._barrier.wait(60)


def test_whoever_loses_tries_again_at_once() -> None:
    crossing = Crossing()

    assert crossing.run() == []
    assert crossing.tries == 3
    before = LimiterState._meta.get_field("slowdown").get_default()
    assert set(LimiterState.objects.values_list("slowdown", flat=True)) == {before + 2}


def test_not_in_a_transaction_of_which_more_is_lost() -> None:
    crossing = Crossing()

    (error,) = crossing.run(is_open=True)

    assert "deadlock" in str(error).lower()
    assert crossing.tries == 2

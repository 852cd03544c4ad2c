"""The limiter in the database: its queries, and a database that fails."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest
from django.db import DatabaseError, InterfaceError, OperationalError, connection, connections
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext

from connect_mailer import transactions
from connect_mailer.exceptions import LimiterUnavailable
from connect_mailer.models import MAX_RECIPIENTS, LimiterState
from connect_mailer.sending import limiter
from connect_mailer.sending.database_limiter import DatabaseLimiter

NO_QUERIES = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE")


@pytest.fixture
def count(db: None) -> Callable[[Callable[[], object]], int]:
    """The queries of a call, transactions aside."""

    def count_queries(call: Callable[[], object]) -> int:
        with CaptureQueriesContext(connection) as queries:
            call()
        return sum(not query["sql"].startswith(NO_QUERIES) for query in queries)

    return count_queries


def test_three_queries_a_batch(count: Callable[[Callable[[], object]], int]) -> None:
    drain = DatabaseLimiter()
    assert count(lambda: drain.reserve([1] * 50, 1000)) == 5  # the first one makes the row
    LimiterState.objects.update(arrival_us=1)
    drain = DatabaseLimiter()
    assert count(lambda: drain.reserve([50] * 50, 1)) == 3
    assert count(lambda: drain.reserve([1], 1)) == 2  # asked in vain: nothing to write
    assert count(lambda: drain.give_back(50)) == 3
    assert count(drain.slow_down) == 3


def test_the_costliest_row_is_the_one_that_ses_takes() -> None:
    assert limiter.MAX_COST == MAX_RECIPIENTS


def test_names_have_buckets_of_their_own(db: None) -> None:
    assert DatabaseLimiter(name="us-east-1").reserve([50], 0.01).granted == 50
    assert DatabaseLimiter(name="eu-west-1").reserve([50], 0.01).granted == 50
    assert DatabaseLimiter(name="us-east-1").reserve([1], 0.01).granted == 0


@pytest.mark.parametrize("use_tz", [True, False])
def test_time_is_time_with_and_without_zones(use_tz: bool, settings: Any, db: None) -> None:
    settings.USE_TZ = use_tz
    drain = DatabaseLimiter()
    assert drain.reserve([50], 0.01).granted == 50
    assert drain.reserve([1], 0.01).wait_seconds > 4000


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", [OperationalError, InterfaceError, DatabaseError])
def test_a_database_that_fails(kind: type[Exception]) -> None:
    drain = DatabaseLimiter()
    drain.reserve([50], 0.01)

    def fail(*args: object) -> None:
        raise kind("the database went away\nand says so in two lines")

    with connection.execute_wrapper(fail):
        for call in (
            lambda: drain.reserve([1], 1),
            lambda: drain.give_back(1),
            lambda: drain.put_off(1),
            drain.slow_down,
        ):
            with pytest.raises(LimiterUnavailable, match=r"away and says") as caught:
                call()
            assert isinstance(caught.value.__cause__, kind)
    assert drain.reserve([1], 0.01).wait_seconds > 4000


KILL = {
    "postgresql": "SELECT pg_terminate_backend(pg_backend_pid())",
    "mysql": "KILL CONNECTION_ID()",
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has no server")
def test_a_connection_that_was_lost_is_made_again() -> None:
    drain = DatabaseLimiter()
    drain.reserve([50], 0.01)
    with connection.cursor() as cursor, pytest.raises(DatabaseError):
        cursor.execute(KILL[connection.vendor])
    with pytest.raises(LimiterUnavailable):
        drain.reserve([1], 0.01)
    assert drain.reserve([1], 0.01).wait_seconds > 4000


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "postgresql", reason="no other server ends what idles")
@pytest.mark.parametrize("is_new", [True, False])
def test_who_stops_in_the_middle_holds_up_nobody(
    is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_new:
        DatabaseLimiter().reserve([50], 0.01)
    monkeypatch.setattr(transactions, "IDLE_LIMIT", "200ms")
    has_locked, goes_on = threading.Event(), threading.Event()

    class Suspended(DatabaseLimiter):
        def _read(self) -> Any:
            has_locked.set()
            goes_on.wait(60)
            return super()._read()

    def reserve() -> None:
        try:
            Suspended().reserve([1], 1)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        suspended = pool.submit(reserve)
        assert has_locked.wait(60)
        answer = DatabaseLimiter().reserve([1], 0.01)
        goes_on.set()
        with pytest.raises(LimiterUnavailable, match="idle-in-transaction"):
            suspended.result(60)
    assert answer.granted == is_new


@pytest.mark.django_db(transaction=True)
def test_a_row_that_another_drain_makes_at_the_same_moment() -> None:
    bulk_create = QuerySet.bulk_create

    def create_after_another(rows: Any, *args: Any, **options: Any) -> Any:
        rows.create(name="default", arrival_us=1)
        return bulk_create(rows, *args, **options)

    with mock.patch.object(QuerySet, "bulk_create", create_after_another):
        assert DatabaseLimiter().reserve([1], 0.01).wait_seconds == 0
    assert LimiterState.objects.count() == 1


FAST = 5_000.0


@pytest.fixture
def drains(transactional_db: None) -> int:
    """How many drains the database lets work at once."""
    return 1 if connection.vendor == "sqlite" else 4


def test_drains_share_the_rate(drains: int) -> None:
    everybody = threading.Barrier(drains)

    def hammer() -> list[tuple[int, int]]:
        drain = DatabaseLimiter()
        slots: list[tuple[int, int]] = []
        everybody.wait()
        while len(slots) < 30:
            answer = drain.reserve([20, 1], FAST)
            if answer.granted:
                ends_us = drain._memory.ends_us
                slots.append((ends_us - round(answer.granted * 1e6 / FAST), ends_us))
        connections.close_all()
        return slots

    if drains == 1:
        slots = hammer()
    else:
        with ThreadPoolExecutor(drains) as pool:
            slots = [
                slot
                for future in [pool.submit(hammer) for _ in range(drains)]
                for slot in future.result()
            ]
    assert len(slots) == 30 * drains
    for (_, ends_us), (starts_us, _) in itertools.pairwise(sorted(slots)):
        assert starts_us >= ends_us

"""What every store of the limiter does alike: Redis (a real Valkey) and the database."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
import redis

from connect_mailer.models import LimiterState
from connect_mailer.sending import limiter
from connect_mailer.sending.database_limiter import DatabaseLimiter
from connect_mailer.sending.limiter import Bucket, Limiter, RedisLimiter
from tests import servers

SECOND = 1_000_000
HOUR = 3600 * SECOND
# So slow that the time a test takes doesn't matter: one recipient in 1,000 seconds.
RATE = 0.001
INTERVAL_SECONDS = 1000.0
# All that may pass between two lines of a test.
SLACK_SECONDS = 30.0


class Store(Protocol):
    """A bucket, and drains that share it."""

    def limiter(self, **options: Any) -> Any: ...
    def read(self) -> Bucket: ...
    def write(self, **values: int) -> None: ...
    def lose(self) -> None: ...


class RedisStore:
    key = "connect_mailer:limiter:{default}"

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def limiter(self, **options: Any) -> RedisLimiter:
        return RedisLimiter(servers.valkey_url(), **options)

    def read(self) -> Bucket:
        fields: Any = self._client.hgetall(self.key)
        return Bucket(**{name.decode(): int(value) for name, value in fields.items()})

    def write(self, **values: int) -> None:
        self._client.hset(self.key, mapping=values)

    def lose(self) -> None:
        self._client.flushall()


class DatabaseStore:
    def limiter(self, **options: Any) -> DatabaseLimiter:
        return DatabaseLimiter(**options)

    def read(self) -> Bucket:
        return Bucket(**LimiterState.objects.values("arrival_us", "slowdown", "slowdown_us").get())

    def write(self, **values: int) -> None:
        LimiterState.objects.update_or_create(name="default", defaults=values)

    def lose(self) -> None:
        LimiterState.objects.all().delete()


@pytest.fixture(params=["redis", pytest.param("database", marks=pytest.mark.django_db)])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "redis":
        return RedisStore(request.getfixturevalue("valkey"))
    return DatabaseStore()


@pytest.fixture
def make(store: Store) -> Iterator[Callable[[], Limiter]]:
    made: list[Limiter] = []

    def make_one() -> Limiter:
        made.append(store.limiter())
        return made[-1]

    yield make_one
    for one in made:
        one.close()


def now_us() -> int:
    # The servers run on this machine: one clock.
    return int(time.time() * 1e6)


def idle(store: Store) -> None:
    store.write(arrival_us=now_us() - HOUR)


def about(seconds: float) -> Any:
    """``seconds``, less what has passed since."""
    return pytest.approx(seconds - SLACK_SECONDS / 2, abs=SLACK_SECONDS / 2)


def test_a_new_bucket_is_empty(store: Store, make: Callable[[], Limiter]) -> None:
    answer = make().reserve([1, 1], RATE)
    assert (answer.granted, answer.wait_seconds) == (1, limiter.AHEAD_SECONDS)
    assert answer.interval_seconds == INTERVAL_SECONDS


def test_no_credit_for_idleness(store: Store, make: Callable[[], Limiter]) -> None:
    idle(store)
    answer = make().reserve([1] * 99, 10)
    assert (answer.granted, answer.wait_seconds) == (2, 0)


def test_slots_follow_each_other(store: Store, make: Callable[[], Limiter]) -> None:
    idle(store)
    assert make().reserve([2, 1], RATE).granted == 2
    answer = make().reserve([1], RATE)
    assert answer.granted == 0
    assert answer.wait_seconds == about(2 * INTERVAL_SECONDS - limiter.AHEAD_SECONDS)


def test_a_cost_above_the_burst_waits_and_leaves(store: Store, make: Callable[[], Limiter]) -> None:
    idle(store)
    drain = make()
    assert drain.reserve([50, 1], RATE).granted == 50
    store.write(arrival_us=now_us())
    assert make().reserve([50], RATE).granted == 50


def test_asking_in_vain_reserves_nothing(store: Store, make: Callable[[], Limiter]) -> None:
    idle(store)
    first, second = make(), make()
    first.reserve([1], RATE)
    before = store.read()
    assert second.reserve([1], RATE).granted == 0
    assert store.read() == before


def test_what_comes_back_can_be_had_again(store: Store, make: Callable[[], Limiter]) -> None:
    idle(store)
    first = make()
    first.reserve([50], RATE)
    first.give_back(49)
    assert make().reserve([1], RATE).wait_seconds == about(INTERVAL_SECONDS)
    assert first.reserve([1], RATE).wait_seconds == about(INTERVAL_SECONDS)


def test_all_that_comes_back_is_no_credit(store: Store, make: Callable[[], Limiter]) -> None:
    idle(store)
    first = make()
    first.reserve([50], RATE)
    before_us = now_us()
    first.give_back(50)
    assert store.read().arrival_us >= before_us - SECOND // 1000
    assert first.reserve([1], RATE).granted == 1


def test_what_was_late_is_over_later(store: Store, make: Callable[[], Limiter]) -> None:
    idle(store)
    first = make()
    first.reserve([1], RATE)
    first.put_off(2 * INTERVAL_SECONDS)
    for drain in (first, make()):
        assert drain.reserve([1], RATE).wait_seconds == about(3 * INTERVAL_SECONDS)


def test_what_was_never_reserved_can_not_come_back(
    store: Store, make: Callable[[], Limiter]
) -> None:
    idle(store)
    make().reserve([50], RATE)
    before = store.read()
    make().give_back(50)
    assert store.read() == before


def test_slowing_down_is_for_all_and_once(store: Store, make: Callable[[], Limiter]) -> None:
    idle(store)
    first, second = make(), make()
    first.slow_down()
    before = store.read()
    second.slow_down()
    first.slow_down()
    assert store.read() == before
    assert before.arrival_us >= now_us() - SLACK_SECONDS * SECOND
    assert before.arrival_us - before.slowdown_us == limiter.PAUSE_US
    assert second.reserve([1], RATE).interval_seconds == 2 * INTERVAL_SECONDS


def test_slowing_down_ends_at_a_32nd(store: Store, make: Callable[[], Limiter]) -> None:
    drain = make()
    for factor in (2, 4, 8, 16, 32, 32):
        store.write(slowdown_us=store.read().slowdown_us - SECOND if factor > 2 else 0)
        drain.slow_down()
        assert 2 ** store.read().slowdown == factor
    assert drain.reserve([1], RATE).interval_seconds == 32 * INTERVAL_SECONDS


def test_speed_recovers(store: Store, make: Callable[[], Limiter]) -> None:
    drain = make()
    store.write(arrival_us=now_us(), slowdown=3, slowdown_us=now_us() - 25 * SECOND)
    assert drain.reserve([1], RATE).interval_seconds == 2 * INTERVAL_SECONDS


def test_a_lost_bucket_makes_nobody_faster(store: Store, make: Callable[[], Limiter]) -> None:
    idle(store)
    first, newcomer = make(), make()
    first.reserve([50], RATE)
    store.lose()
    assert first.reserve([1], RATE).wait_seconds == about(50 * INTERVAL_SECONDS)
    assert newcomer.reserve([1], RATE).wait_seconds == about(50 * INTERVAL_SECONDS)


def test_a_lost_bucket_that_a_newcomer_began_again(
    store: Store, make: Callable[[], Limiter]
) -> None:
    idle(store)
    first, newcomer = make(), make()
    first.reserve([50], RATE)
    store.lose()
    assert newcomer.reserve([1], RATE).granted == 1
    assert first.reserve([1], RATE).wait_seconds == about(50 * INTERVAL_SECONDS)


def test_a_lost_bucket_and_a_row_that_another_drain_got(
    store: Store, make: Callable[[], Limiter]
) -> None:
    idle(store)
    first, second = make(), make()
    first.reserve([1], RATE)
    # The second has seen the costly row, which the first will get.
    second.reserve([50], RATE)
    store.write(arrival_us=now_us())
    store.lose()
    assert second.reserve([1], RATE).wait_seconds == about(50 * INTERVAL_SECONDS)


def test_an_older_copy_of_the_bucket_took_over(store: Store, make: Callable[[], Limiter]) -> None:
    idle(store)
    first = make()
    first.reserve([50], RATE)
    idle(store)
    assert first.reserve([1], RATE).wait_seconds == about(50 * INTERVAL_SECONDS)


def test_a_server_whose_clock_is_behind_took_over(
    store: Store, make: Callable[[], Limiter]
) -> None:
    store.write(arrival_us=now_us() + 10**6 * SECOND)
    answer = make().reserve([1], RATE)
    assert answer.granted == 0
    assert answer.wait_seconds == 50 * INTERVAL_SECONDS + limiter.PAUSE_US / 1e6
    # And the time that it must wait passes.
    assert store.read().arrival_us <= now_us() + 50_001 * SECOND


def test_a_server_whose_clock_is_ahead_took_over(store: Store, make: Callable[[], Limiter]) -> None:
    idle(store)
    first: Any = make()
    first.reserve([50], RATE)
    # What the drain and the copy would know, had the first server's clock been an hour behind.
    own_us = first._memory.now_us()
    arrival_us = store.read().arrival_us - HOUR
    first._memory.learn(own_us=own_us, now_us=now_us() - HOUR, arrival_us=arrival_us)
    store.write(arrival_us=arrival_us)
    assert first.reserve([1], RATE).wait_seconds == about(50 * INTERVAL_SECONDS)


def test_a_closed_limiter_can_be_used_again(store: Store, make: Callable[[], Limiter]) -> None:
    drain = make()
    drain.close()
    assert drain.reserve([1], RATE).granted == 1
    drain.close()
    drain.close()
    assert drain.reserve([1], RATE).granted == 0


@pytest.mark.parametrize(("costs", "rate"), [([], 1), ([51], 1), ([1], 0)])
def test_what_makes_no_sense_is_refused(
    costs: list[int], rate: float, make: Callable[[], Limiter]
) -> None:
    with pytest.raises(ValueError, match=r"must be|are needed"):
        make().reserve(costs, rate)


def test_an_answer_says_how_old_it_is(store: Store) -> None:
    ticks = itertools.count()
    one = store.limiter(clock=lambda: float(next(ticks)))
    # One look at the clock before the store is asked, and one when the answer is there.
    assert one.reserve([1], RATE).age_seconds == 1

"""The shared limiter: slots of time for recipients, handed out one after the other to all drains.

A generic cell rate algorithm that reserves. The bucket is one instant, the *theoretical arrival
time*: when the next slot begins. A row of ``c`` recipients leaves at the start of its slot and
moves that instant on by ``c`` emission intervals. It never lies in the past, so a pause saves
nothing up for later, and no burst follows it.

The rules are here as pure functions of a bucket, for a store that can only lock and write
(``database_limiter``), and in ``gcra.lua`` as one atomic step inside Redis.

A store can lose the bucket (flush), an older copy of it can take over (replica), and so can a
clock that is wrong. None of that may make anyone send faster, so each limiter remembers what it
saw last and says so when it asks again (``Hint``).

Source: ITU-T I.371, Annex A (GCRA, virtual scheduling).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, Protocol

from connect_mailer.exceptions import LimiterUnavailable

if TYPE_CHECKING:
    import redis
    from redis.commands.core import Script

# `gcra.lua` has the same numbers.

# How far ahead slots are reserved: a drain gets enough for many rows in one call, and a row that
# is more important waits no longer than this behind what is reserved already.
AHEAD_SECONDS: Final = 0.1
AHEAD_US: Final = 100_000

# The store's clock and the own one may differ this much between two calls (slow calls, NTP)
# before what was seen last is counted by the own clock instead.
JITTER_US: Final = 50_000

# From here on another clock has taken over, and what other drains reserved is unknown.
SKEW_US: Final = 2_000_000

# Throttled: nothing new leaves for this long, ...
PAUSE_US: Final = 250_000
# ... the interval doubles, once for all calls that the same storm hit, ...
STEP_US: Final = 1_000_000
# ... down to 1/32 of the speed, ...
MAX_SLOWDOWN: Final = 5
# ... and halves again after each of these without throttling.
RECOVERY_US: Final = 10_000_000

# Recipients of the costliest row (SES takes 50 a call): no more than this is ever reserved
# beyond AHEAD, so an arrival time further away comes from a clock that was wrong.
MAX_COST: Final = 50

# Of one command, to connect and to answer. Longer, and the limiter counts as out of reach.
TIMEOUT_SECONDS: Final = 1.0

DEFAULT_NAME: Final = "default"


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """What a limiter answers: slots for some recipients, or when to ask again.

    ``granted`` are tokens, one a recipient; 0: nothing. ``wait_seconds`` is the time from now
    until the first reserved slot begins (>= 0); where nothing was granted, until it is worth
    asking again (> 0). ``interval_seconds`` is the slot of one recipient in force: a row of
    cost ``c`` occupies ``c`` of them. ``age_seconds`` is how long ago that was decided, at most.
    """

    granted: int
    wait_seconds: float
    interval_seconds: float
    age_seconds: float = 0.0


class Limiter(Protocol):
    """What every store of the bucket offers. All raise ``LimiterUnavailable``."""

    def reserve(self, costs: Sequence[int], rate: float) -> Reservation:
        """Reserve the next slots for whole rows from the front of ``costs``.

        Rows are granted while their slot begins within ``AHEAD_SECONDS``. A row that costs more
        than that covers is granted as well, and what follows it waits the longer.

        Args:
            costs: recipients of the next rows in order, at least one row, 1 to ``MAX_COST`` each.
            rate: recipients per second.
        """

    def give_back(self, tokens: int) -> None:
        """Return the last ``tokens`` that were reserved and are not used after all."""

    def put_off(self, seconds: float) -> None:
        """Let what comes next begin so much later: a call was late, so its slot ends later."""

    def slow_down(self) -> None:
        """Halve the speed for all for a while: SES throttled.

        One step a second at most, however many calls report it; recovers by itself.
        """

    def close(self) -> None:
        """Let go of connections. The limiter can be used again."""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """What the store keeps. Microseconds of its clock since 1970; ``arrival_us`` 0: lost or new.

    ``slowdown`` counts doublings of the interval as of ``slowdown_us``, when it last grew.
    """

    arrival_us: int = 0
    slowdown: int = 0
    slowdown_us: int = 0

    def level(self, now_us: int) -> int:
        """Doublings of the interval in force now."""
        # A clock that went back can't have made it worse.
        return max(self.slowdown - max(now_us - self.slowdown_us, 0) // RECOVERY_US, 0)


@dataclass(frozen=True, kw_only=True)
class Grant:
    """A ``Reservation`` in the whole numbers in which stores reckon."""

    granted: int
    wait_us: int
    interval_ns: int

    def to_reservation(self, *, age_us: int) -> Reservation:
        """As callers get it."""
        return Reservation(
            granted=self.granted,
            wait_seconds=self.wait_us / 1e6,
            interval_seconds=self.interval_ns / 1e9,
            age_seconds=age_us / 1e6,
        )


@dataclass(frozen=True, kw_only=True)
class Hint:
    """What one limiter knows when it asks, in microseconds of the store's clock.

    ``seen_us`` is the arrival time that it saw last and ``expected_us`` what the store's clock
    should read now (both 0: it never asked). ``largest`` is the cost of the costliest row that
    it asked for: another drain may have got that one since.
    """

    seen_us: int = 0
    expected_us: int = 0
    largest: int = 0


class Memory:
    """What one limiter remembers of its last answer, held against its own monotonic clock.

    ``interval_ns`` is the interval that was in force when it got its last slots and ``ends_us``
    when, by the store's clock, these end; both 0: none yet.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._asked_us = 0
        self._seen_us = 0
        self._offset_us = 0
        self._largest = 0
        self.interval_ns = 0
        self.ends_us = 0

    def now_us(self) -> int:
        """The own clock."""
        return int(self._clock() * 1e6)

    def age_us(self) -> int:
        """How old the last answer is, at most."""
        return self.now_us() - self._asked_us

    def hint(self, own_us: int) -> Hint:
        """What is known at ``own_us`` of the own clock."""
        if not self._seen_us:
            return Hint()
        return Hint(
            seen_us=self._seen_us, expected_us=own_us + self._offset_us, largest=self._largest
        )

    def learn(self, *, own_us: int, now_us: int, arrival_us: int) -> None:
        """Remember the answer to what was asked at ``own_us`` of the own clock."""
        self._asked_us = own_us
        self._seen_us = arrival_us
        self._offset_us = now_us - own_us

    def learn_grant(self, costs: Sequence[int], grant: Grant) -> None:
        """Remember what was asked for, and what of it was granted."""
        self._largest = max(self._largest, *costs)
        if grant.granted:
            self.interval_ns = grant.interval_ns
            self.ends_us = self._seen_us


class RedisLimiter:
    """The bucket in Redis: one call a batch, by Redis's own clock.

    The client is made at the first call in each process, so the limiter survives a fork.

    Args:
        url: as ``redis.Redis.from_url`` takes it.
        options: keyword arguments of ``from_url``; what they or the URL say wins.
        clock: monotonic seconds.
        name: whose bucket it is: one for each SES account and region.
    """

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        name: str = DEFAULT_NAME,
    ) -> None:
        self._url = url
        self._options = dict(options or {})
        self._key = f"connect_mailer:limiter:{{{name}}}"
        self._memory = Memory(clock)
        self._client: redis.Redis | None = None
        self._script: Script | None = None
        self._pid = 0

    def reserve(self, costs: Sequence[int], rate: float) -> Reservation:
        """See ``Limiter``."""
        interval_ns = to_interval_ns(costs, rate)
        grant = self._run("reserve", interval_ns, *costs)
        self._memory.learn_grant(costs, grant)
        return grant.to_reservation(age_us=self._memory.age_us())

    def give_back(self, tokens: int) -> None:
        """See ``Limiter``."""
        if tokens > 0 and self._memory.interval_ns:
            self._run("give_back", self._memory.interval_ns, tokens, self._memory.ends_us)

    def put_off(self, seconds: float) -> None:
        """See ``Limiter``."""
        self._run("put_off", self._memory.interval_ns, int(seconds * 1e6))

    def slow_down(self) -> None:
        """See ``Limiter``."""
        self._run("slow_down", self._memory.interval_ns)

    def close(self) -> None:
        """See ``Limiter``."""
        client, self._client, self._script = self._client, None, None
        if client is not None and self._pid == os.getpid():
            client.close()

    def _run(self, operation: str, interval_ns: int, *args: int) -> Grant:
        import redis

        own_us = self._memory.now_us()
        hint = self._memory.hint(own_us)
        try:
            answer: Any = self._connect()(
                keys=[self._key],
                args=[
                    operation,
                    interval_ns,
                    hint.seen_us,
                    hint.expected_us,
                    hint.largest,
                    *args,
                ],
            )
        except redis.RedisError as error:
            # After a failover a kept connection may lead to the wrong server.
            self.close()
            raise LimiterUnavailable(f"The limiter's Redis: {error}") from error
        granted, wait_us, interval_ns, arrival_us, now_us = answer
        self._memory.learn(own_us=own_us, now_us=now_us, arrival_us=arrival_us)
        return Grant(granted=granted, wait_us=wait_us, interval_ns=interval_ns)

    def _connect(self) -> Script:
        if self._script is None or self._pid != os.getpid():
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            options = {
                "socket_connect_timeout": TIMEOUT_SECONDS,
                "socket_timeout": TIMEOUT_SECONDS,
                # Once more and at once, for a kept connection that the other side has closed.
                "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
                "retry_on_error": [redis.ConnectionError],
                **self._options,
            }
            self._client = redis.Redis.from_url(self._url, **options)
            script = resources.files(__package__).joinpath("gcra.lua").read_text("utf-8")
            self._script = self._client.register_script(script)
            self._pid = os.getpid()
        return self._script


def to_interval_ns(costs: Sequence[int], rate: float) -> int:
    """The emission interval of ``rate``, rounded so that it is never exceeded.

    Raises:
        ValueError: no rate, no row, or a row that no call to SES could have.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"rate is {rate!r}; it must be recipients per second, above 0.")
    if not costs or min(costs) < 1 or max(costs) > MAX_COST:
        raise ValueError(f"costs are {costs!r}; one or more are needed, 1 to {MAX_COST} each.")
    return math.ceil(1e9 / rate)


def reserve(
    bucket: Bucket, hint: Hint, *, now_us: int, costs: Sequence[int], interval_ns: int
) -> tuple[Bucket, Grant]:
    """``Limiter.reserve`` as a function: the bucket after it, and the answer.

    ``interval_ns`` is that of the rate, before any slowdown.
    """
    interval_ns <<= bucket.level(now_us)
    arrival_us = _mistrust(bucket, hint, now_us, interval_ns)
    furthest_us = now_us + AHEAD_US + PAUSE_US + _width_us(MAX_COST, interval_ns)
    arrival_us = start_us = max(min(arrival_us, furthest_us), now_us)
    granted = 0
    for cost in costs:
        if arrival_us > now_us + AHEAD_US:
            break
        granted += cost
        arrival_us = start_us + _width_us(granted, interval_ns)
    wait_us = start_us - now_us if granted else start_us - now_us - AHEAD_US
    grant = Grant(granted=granted, wait_us=wait_us, interval_ns=interval_ns)
    return _at(bucket, now_us, arrival_us), grant


def give_back(
    bucket: Bucket, hint: Hint, *, now_us: int, tokens: int, interval_ns: int, ends_us: int
) -> Bucket:
    """``Limiter.give_back`` as a function. ``interval_ns`` and ``ends_us``: see ``Memory``."""
    arrival_us = _mistrust(bucket, hint, now_us, interval_ns)
    # A slot that has passed is gone: only what lies ahead comes back.
    width_us = min(tokens * interval_ns // 1000, max(ends_us - now_us, 0))
    if arrival_us > now_us:
        arrival_us = max(arrival_us - width_us, now_us)
    return _at(bucket, now_us, arrival_us)


def put_off(bucket: Bucket, hint: Hint, *, now_us: int, interval_ns: int, late_us: int) -> Bucket:
    """``Limiter.put_off`` as a function. ``interval_ns``: see ``Memory``."""
    return _at(bucket, now_us, _mistrust(bucket, hint, now_us, interval_ns) + late_us)


def slow_down(bucket: Bucket, hint: Hint, *, now_us: int, interval_ns: int) -> Bucket:
    """``Limiter.slow_down`` as a function. ``interval_ns``: see ``Memory``."""
    bucket = _at(bucket, now_us, _mistrust(bucket, hint, now_us, interval_ns))
    if now_us - bucket.slowdown_us < STEP_US:
        return bucket
    return Bucket(
        arrival_us=max(bucket.arrival_us, now_us + PAUSE_US),
        slowdown=min(bucket.level(now_us) + 1, MAX_SLOWDOWN),
        slowdown_us=now_us,
    )


def _mistrust(bucket: Bucket, hint: Hint, now_us: int, interval_ns: int) -> int:
    """The arrival time, no earlier than what may be reserved without the bucket knowing it."""
    arrival_us = bucket.arrival_us
    drift_us = now_us - hint.expected_us if hint.expected_us else 0
    if not arrival_us or abs(drift_us) > SKEW_US:
        arrival_us = max(arrival_us, now_us + AHEAD_US + _width_us(hint.largest, interval_ns))
    # A clock that went ahead takes what was seen with it.
    return max(arrival_us, hint.seen_us + (drift_us if drift_us > JITTER_US else 0))


def _at(bucket: Bucket, now_us: int, arrival_us: int) -> Bucket:
    # A clock that went back must not keep a slowdown for longer than it lasts.
    return replace(bucket, arrival_us=arrival_us, slowdown_us=min(bucket.slowdown_us, now_us))


def _width_us(tokens: int, interval_ns: int) -> int:
    return -(-tokens * interval_ns // 1000)

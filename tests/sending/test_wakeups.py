"""How many drain tasks the queueing of mail causes, counted in virtual time.

Tasks, drains and who queues are real but for what is slow: leases end by the virtual clock, and a
drain takes what waits at each look. One of them runs at a time, until it sleeps.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from functools import partial
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest

from connect_mailer import tasks
from connect_mailer.sending import delivery, leases

CALLS = 10_000
SECONDS = 60
# That queue mail, by turns.
PROCESSES = 40


class World:
    """A site: its clock, its leases, its broker, and what waits in its outbox."""

    def __init__(self, start_seconds: float) -> None:
        self.now = 0.0
        self.waiting: list[float] = []  # since when
        self.longest_wait = 0.0
        self.started = 0
        self._start_seconds = start_seconds
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._ends: dict[str, float] = {}
        self._asked_at: dict[str, float] = {}
        self._is_back = threading.Semaphore(0)

    def at(self, moment: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (moment, next(self._numbers), act))

    def run(self) -> None:
        while self._agenda:
            self.now, _, act = heapq.heappop(self._agenda)
            act()

    # Who queues and who works, each with its own memory of what it asked for

    def queue(self, number: int) -> None:
        self.waiting.append(self.now)
        self.wake(f"web {number % PROCESSES}")

    def wake(self, process: str) -> None:
        tasks._asked_at = self._asked_at.get(process, -inf)
        tasks.wake()
        self._asked_at[process] = tasks._asked_at

    def publish(self, **options: Any) -> None:
        self.at(self.now + self._start_seconds, self._start)

    def _start(self) -> None:
        self.started += 1
        wake = partial(self.wake, f"worker {self.started % 2}")

        def work() -> None:
            try:
                delivery.drain_outbox(wake=wake, ask_for_help=lambda: None)
            finally:
                self._is_back.release()

        self._go_on(threading.Thread(target=work, daemon=True).start)

    def sleep(self, seconds: float) -> None:
        awake = threading.Event()
        self.at(self.now + seconds, partial(self._go_on, awake.set))
        self._is_back.release()
        awake.wait()

    def _go_on(self, start: Callable[[], None]) -> None:
        start()
        self._is_back.acquire()

    # In the place of a drain

    def make_drain(self, using: str, lease: delivery.DrainLease, **kwargs: Any) -> Any:
        run = partial(self._drain, lease.name)
        return SimpleNamespace(run=run, sent=1, longest_wait_seconds=0.0)

    def _drain(self, name: str) -> None:
        ends_at, idle_since = self.now + 20, self.now
        while self.now < min(ends_at, idle_since + delivery.LINGER_SECONDS):
            if self.waiting:
                self.longest_wait = max(self.longest_wait, self.now - self.waiting[0])
                self.waiting.clear()
                idle_since = self.now
            self._ends[name] = self.now + delivery.DRAIN_LEASE_SECONDS
            self.sleep(delivery.POLL_SECONDS)

    # In the place of leases

    def acquire(self, name: str, seconds: float, **kwargs: Any) -> str | None:
        if self._ends.get(name, -inf) > self.now:
            return None
        self._ends[name] = self.now + seconds
        return name

    def release(self, name: str, holder: str | None = None, **kwargs: Any) -> bool:
        return self._ends.pop(name, -inf) > self.now

    def find_alive(self, *names: str, **kwargs: Any) -> dict[str, str]:
        return {name: "" for name in names if self._ends.get(name, -inf) > self.now}


def spread(bursts: int) -> list[float]:
    """When each of the calls comes."""
    size = CALLS // bursts
    return [number // size * (SECONDS / bursts) for number in range(CALLS)]


@pytest.mark.parametrize("start_seconds", [0.05, 1.0], ids=["quick workers", "busy workers"])
@pytest.mark.parametrize("bursts", [CALLS, 60, 10], ids=lambda bursts: f"{bursts} bursts")
def test_ten_thousand_calls_in_a_minute_cause_tens_of_drain_tasks(
    monkeypatch: pytest.MonkeyPatch, bursts: int, start_seconds: float
) -> None:
    world = World(start_seconds)
    clock = SimpleNamespace(monotonic=lambda: world.now, sleep=world.sleep)
    monkeypatch.setattr(tasks, "time", clock)
    monkeypatch.setattr(tasks, "_asked_at", -inf)
    monkeypatch.setattr(tasks.deliver, "apply_async", world.publish)
    monkeypatch.setattr(delivery, "time", clock)
    monkeypatch.setattr(delivery, "_has_work", lambda using: bool(world.waiting))
    monkeypatch.setattr(delivery, "_make_drain", world.make_drain)
    for name in ("acquire", "release", "find_alive"):
        monkeypatch.setattr(leases, name, getattr(world, name))
    for number, moment in enumerate(spread(bursts)):
        world.at(moment, partial(world.queue, number))

    world.run()

    assert world.started < 100
    # None was overlooked, and none waited for more than a worker to begin, and a last look.
    assert not world.waiting
    assert world.longest_wait <= start_seconds + 0.2

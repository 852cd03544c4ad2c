"""Calls made in tests, all at once."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from connect_mailer.sending.calls import Calls, Steps
from connect_mailer.sending.ses import Envelope
from tests.site import running

wait_for = partial(running.wait_for, pause_seconds=0.005)


class Sink:
    """A transport that takes everything, and notes from whom."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def steps(self, envelope: Envelope, begin: Any) -> Steps[str]:
        yield from ()
        begin()
        self.taken += envelope.recipients
        return "an id"


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """A signal after so long, which raises what Ctrl-C does.

    What is in here is a call, and no loop: where one jumps back at the end of a block, CPython
    raises past all that would catch it.
    """

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # nobody hears of what is raised in what it calls, such as Hypothesis's clock
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def take(calls: Calls[Any], number: int) -> list[tuple[Any, Any]]:
    """So many that have ended, in the order in which they did."""
    ended: list[tuple[Any, Any]] = []

    def are_there() -> bool:
        ended.extend(calls.take())
        return len(ended) >= number

    wait_for(are_there)
    return ended


def call_all(
    make: Callable[[Any], Steps[Any]], items: Iterable[Any], *, concurrency: int = 50
) -> list[tuple[Any, Any]]:
    """The items with what their calls returned or raised, in the order in which they ended."""
    calls, items = Calls(make, concurrency), list(items)
    try:
        for item in items:
            calls.start(item)
        return take(calls, len(items))
    finally:
        calls.close()

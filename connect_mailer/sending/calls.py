"""Calls in flight: up to so many at once, by as few threads as they need.

A call is a generator. It works until it has to wait for an answer, yields from which socket that
will come, and goes on when there is something to read, in whichever thread is free; what it returns
is its answer. Fifty threads that each sleep until an answer comes, and then wait for one another,
cost more than all else that a call needs.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from socket import socket
from typing import Any, Final, Generic, TypeAlias, TypeVar

from urllib3.util.wait import wait_for_read

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# What a call yields: for which socket it waits, and for how many seconds at most.
Wait: TypeAlias = tuple[socket, float]
Steps: TypeAlias = Generator[Wait, None, Answer]

# How often calls are looked through for those whose answer is overdue.
_TICK_SECONDS: Final = 0.1


# Of a thread that makes calls: whose.
_here = threading.local()


@contextmanager
def blocking() -> Iterator[None]:
    """What is done in here may keep this thread: another one is to be free for what else is due.

    No step ends in here.
    """
    calls = getattr(_here, "calls", None)
    if calls is None:
        yield
        return
    _here.calls = None  # for what is within: it is known
    calls.count_at_work(-1)
    try:
        yield
    finally:
        calls.count_at_work(1)
        _here.calls = calls


class _Call(Generic[Item]):
    """``go_on()`` takes it to its next wait. It has a context of its own, whatever the thread."""

    def __init__(self, item: Item, steps: Steps[Any]) -> None:
        self.item = item
        self._steps, self._run = steps, copy_context().run
        self.go_on: Callable[[], Wait] = partial(self._run, next, steps)

    def expire(self) -> None:
        """Let it go on with what a socket raises where nothing came."""
        self.go_on = partial(self._run, self._steps.throw, TimeoutError("timed out"))

    def wait(self, sock: socket, seconds: float) -> None:
        """Wait in this thread."""
        if not wait_for_read(sock, seconds):
            self.expire()


def run(steps: Steps[Answer]) -> Answer:
    """Make a call in this thread."""
    call = _Call(None, steps)
    while True:
        try:
            call.wait(*call.go_on())
        except StopIteration as end:
            answer: Answer = end.value
            return answer


class Calls(Generic[Item]):
    """Makes calls; at most ``concurrency`` are open at a time, and others wait until one ends.

    ``make`` makes the call of an item, and ``in_flight`` items were started and not taken. One
    thread at a time is at work, and each that is kept by what blocks (``blocking``) leaves the rest
    to another one. Where the system has no epoll (macOS; gevent takes it away), waiting for an
    answer keeps a thread, too.
    """

    def __init__(self, make: Callable[[Item], Steps[Any]], concurrency: int) -> None:
        self._make = make
        self._concurrency = concurrency
        self._lock = threading.Lock()
        self._open = 0  # begun, and not ended
        self._later: deque[_Call[Item]] = deque()  # to be begun as soon as one has ended
        self._due: deque[_Call[Item]] = deque()  # to go on as soon as a thread is free
        # A future for each call would cost as much as its signature.
        self._answers: queue.SimpleQueue[tuple[Item, Any]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._at_work = 0  # threads that nothing keeps
        self._idle: list[threading.Lock] = []  # what other threads wait for
        self._is_closed = False
        self._watch: _Watch | None = None
        self.in_flight = 0

    @property
    def has_later(self) -> bool:
        """Whether any call could not be begun yet."""
        return bool(self._later)

    def start(self, item: Item) -> None:
        """Begin the call of ``item``, or let it wait for its turn.

        Raises:
            RuntimeError: the system gives no thread. Nothing was begun.
        """
        call = _Call(item, self._make(item))
        with self._lock:
            if self._open >= self._concurrency:
                self._later.append(call)
            else:
                self._see_to_it()
                self._open += 1
                self._due.append(call)
            self.in_flight += 1

    def go_on(self, calls: Iterable[_Call[Item]]) -> None:
        """With these, which need wait no more."""
        with self._lock:
            self._see_to_it()
            self._due.extend(calls)

    def count_at_work(self, change: int) -> None:
        """For ``blocking``: so many more threads are at work."""
        with self._lock:
            self._at_work += change
            if self._due:
                self._see_to_it()

    def take(self) -> Iterator[tuple[Item, Any]]:
        """The items whose calls have ended since, with what these returned or raised."""
        while not self._answers.empty():
            ended = self._answers.get()
            self.in_flight -= 1
            yield ended

    def close(self) -> None:
        """End the threads, once they have done what they are at."""
        with self._lock:
            self._is_closed = True
            for bell in self._idle:
                bell.release()
        for thread in self._threads:
            thread.join()
        if self._watch is not None:
            self._watch.stop()

    def _see_to_it(self) -> None:
        """That a thread is at work. The last one to have fallen idle is the first to wake up."""
        if self._at_work:
            return
        if self._idle:
            self._idle.pop().release()
        else:
            thread = threading.Thread(target=self._work, name="connect_mailer", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more to be had
                if not self._threads:
                    raise
                return  # one that is kept will come
            self._threads.append(thread)
        self._at_work += 1

    def _work(self) -> None:
        _here.calls = self
        bell = threading.Lock()
        bell.acquire()
        while True:
            with self._lock:
                call = self._due.popleft() if self._due else None
                if call is None:
                    if self._is_closed:
                        return
                    self._at_work -= 1
                    self._idle.append(bell)
            if call is None:
                bell.acquire()
            else:
                self._go_on(call)

    def _go_on(self, call: _Call[Item]) -> None:
        """Take it to where it waits without a thread, or to its end."""
        answer: Any
        try:
            while not self._leave(call, *call.go_on()):
                pass
            return  # and another thread may have it by now
        except StopIteration as end:
            answer = end.value
        except BaseException as error:  # noqa: BLE001 - who takes it judges it
            answer = error
        self._answers.put((call.item, answer))
        with self._lock:
            if self._later:
                self._due.append(self._later.popleft())
            else:
                self._open -= 1

    def _leave(self, call: _Call[Item], sock: socket, seconds: float) -> bool:
        """Let it wait without this thread; ``False``: it has waited in this thread."""
        try:
            with self._lock:
                if self._watch is None:
                    self._watch = _Watch(self.go_on)
            self._watch.add(call, sock, seconds)
        except (OSError, RuntimeError):  # no more files, or threads, to be had
            with blocking():
                call.wait(sock, seconds)
            return False
        return True


class _Watch:
    """A thread that hands over the calls whose answer is there, or overdue."""

    def __init__(self, hand_over: Callable[[list[_Call[Any]]], None]) -> None:
        """Raises: OSError or RuntimeError, where there is no epoll, file or thread to be had."""
        if not hasattr(select, "epoll"):
            raise OSError("There is no epoll.")
        self._hand_over = hand_over
        self._waiting: dict[int, tuple[_Call[Any], float]] = {}  # by file; until when
        self._epoll = select.epoll()
        self._bell = os.eventfd(0)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._thread = threading.Thread(target=self._look, name="connect_mailer", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._close()
            raise

    def add(self, call: _Call[Any], sock: socket, seconds: float) -> None:
        """Raises: OSError, and then it is not watched."""
        file = sock.fileno()
        closed = self._waiting.get(file)
        self._waiting[file] = (call, time.monotonic() + seconds)
        if closed:  # by somebody else, so that the number is another socket's by now
            closed[0].expire()
            self._hand_over([closed[0]])
        try:
            self._epoll.register(file, select.EPOLLIN)
        except OSError:
            del self._waiting[file]
            raise

    def stop(self) -> None:
        os.eventfd_write(self._bell, 1)
        self._thread.join()
        self._close()

    def _close(self) -> None:
        self._epoll.close()
        os.close(self._bell)

    def _look(self) -> None:
        look_through_at = 0.0
        while True:
            files = [file for file, _ in self._epoll.poll(_TICK_SECONDS)]
            if self._bell in files:
                return
            found = [self._release(file) for file in files]
            now = time.monotonic()
            if now >= look_through_at:
                look_through_at = now + _TICK_SECONDS
                for file, (_, ends_at) in list(self._waiting.items()):
                    if ends_at <= now:
                        found.append(self._release(file))
                        found[-1].expire()
            if found:
                self._hand_over(found)

    def _release(self, file: int) -> _Call[Any]:
        with suppress(OSError):  # somebody closed it
            self._epoll.unregister(file)
        return self._waiting.pop(file)[0]

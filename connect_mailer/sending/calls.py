"""Calls in flight: up to so many at once, by as few threads as they need.

A call is a generator. It works until it has to wait for an answer, yields from which socket that
will come, and goes on when there is something to read, in whichever thread is free; what it returns
is its answer. Fifty threads that each sleep until an answer comes, and then wait for one another,
cost more than all else that a call needs.
"""

from __future__ import annotations

import math
import os
import queue
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from functools import partial
from socket import socket
from typing import Any, Final, Generic, TypeAlias, TypeVar

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

    def fail(self, error: BaseException) -> None:
        """Let it go on with what happened while it waited."""
        self.go_on = partial(self._run, self._steps.throw, error)

    def expire(self) -> None:
        """Let it go on with what a socket raises where nothing came."""
        self.fail(TimeoutError("timed out"))

    def wait(self, sock: socket, seconds: float) -> None:
        """Wait in this thread."""
        # Not with this module, which web processes import.
        from urllib3.util.wait import wait_for_read

        try:
            if not wait_for_read(sock, max(seconds, 0.0)):
                self.expire()
        except BaseException as error:  # noqa: BLE001 - the steps say what becomes of it
            self.fail(error)


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

    ``make`` makes the call of an item. One thread at a time is at work, and each that is kept by
    what blocks (``blocking``) leaves the rest to another one. Where the system has no epoll (macOS;
    gevent takes it away), waiting for an answer keeps a thread, too.

    ``start``, ``take`` and ``close`` are for one thread, and signals may raise in there what they
    like: it changes what is known in one place at a time, so that no call is forgotten.
    """

    def __init__(self, make: Callable[[Item], Steps[Any]], concurrency: int) -> None:
        self._make = make
        self._concurrency = concurrency
        self._lock = threading.Lock()
        self._new: deque[_Call[Item]] = deque()  # not begun
        self._open = 0  # begun, and not ended
        self._due: deque[_Call[Item]] = deque()  # of these, to go on as soon as a thread is free
        # A future for each call would cost as much as its signature.
        self._answers: queue.SimpleQueue[tuple[Item, Any]] = queue.SimpleQueue()
        self._threads: dict[threading.Thread, threading.Lock] = {}  # and what wakes them
        self._at_work = 0  # threads that nothing keeps
        self._is_coming = False  # one more
        self._idle: list[threading.Lock] = []  # of the threads that sleep
        self._is_closed = False
        self._watch: _Watch | None = None

    @property
    def has_new(self) -> bool:
        """Whether any call was not begun yet."""
        return bool(self._new)

    @property
    def in_flight(self) -> int:
        """Items that were started, and not taken."""
        with self._lock:
            return len(self._new) + self._open + self._answers.qsize()

    def start(self, item: Item) -> None:
        """Begin the call of ``item``, or let it wait for its turn.

        Raises:
            RuntimeError: the system gives no thread. Nothing was begun.
        """
        call = _Call(item, self._make(item))
        with self._lock:
            if self._open < self._concurrency:
                self._see_to_it()
            self._new.append(call)

    def go_on(self, calls: Iterable[_Call[Item]]) -> None:
        """With these, which need wait no more."""
        with self._lock:
            self._due.extend(calls)
            self._see_to_it()

    def count_at_work(self, change: int) -> None:
        """For ``blocking``: so many more threads are at work."""
        with self._lock:
            self._at_work += change
            if self._due or (self._new and self._open < self._concurrency):
                self._see_to_it()

    def take(self) -> Iterator[tuple[Item, Any]]:
        """The items whose calls have ended since, with what these returned or raised."""
        while not self._answers.empty():
            yield self._answers.get()

    def close(self) -> None:
        """End the threads, once they have done what they are at."""
        with self._lock:
            self._is_closed = True
            for bell in self._threads.values():
                with suppress(RuntimeError):  # it was rung already
                    bell.release()
        try:
            for thread in self._threads:
                thread.join()
        finally:
            watch, self._watch = self._watch, None
            if watch is not None:
                watch.stop()

    def _see_to_it(self) -> None:
        """That a thread is at work. The last one to have fallen idle is the first to wake up."""
        if self._at_work > 0 or self._is_coming:
            return
        if self._idle:
            self._idle.pop().release()
            self._at_work += 1
            return
        self._is_coming = True
        try:
            threading.Thread(target=self._work, name="connect_mailer", daemon=True).start()
        except BaseException as error:
            self._is_coming = False
            # No more are to be had: one that is kept will see to it.
            if not isinstance(error, RuntimeError) or not self._threads:
                raise

    def _work(self) -> None:
        _here.calls = self
        bell = threading.Lock()
        bell.acquire()
        with self._lock:
            self._threads[threading.current_thread()] = bell
            self._at_work += 1
            self._is_coming = False
        while True:
            with self._lock:
                call = self._find_next()
                if call is None:
                    if self._is_closed:
                        return
                    self._at_work -= 1
                    self._idle.append(bell)
            if call is None:
                bell.acquire()
            else:
                self._go_on(call)

    def _find_next(self) -> _Call[Item] | None:
        if self._due:
            return self._due.popleft()
        if self._new and self._open < self._concurrency:
            self._open += 1
            return self._new.popleft()
        return None

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
        # An error knows this frame, and a large body would be held in a circle.
        del answer, call.go_on
        with self._lock:
            self._open -= 1

    def _leave(self, call: _Call[Item], sock: socket, seconds: float) -> bool:
        """Let it wait without this thread; ``False``: it has waited in this thread."""
        try:
            with self._lock:
                if self._watch is None:
                    self._watch = _Watch(self.go_on)
            self._watch.add(call, sock, seconds)
        # There is no epoll; no more files, or threads, are to be had; somebody closed it.
        except (AttributeError, OSError, RuntimeError, ValueError):
            with blocking():
                call.wait(sock, seconds)
            return False
        return True


class _Watch:
    """A thread that hands over the calls whose answer is there, or overdue.

    Raises:
        AttributeError: there is no epoll.
        OSError, RuntimeError: there are no more files, or threads.
    """

    def __init__(self, hand_over: Callable[[list[_Call[Any]]], None]) -> None:
        self._hand_over = hand_over
        self._waiting: dict[int, list[Any]] = {}  # by file: the call, and until when
        with ExitStack() as failed:
            self._epoll = failed.enter_context(select.epoll())
            self._bell = os.eventfd(0)
            failed.callback(os.close, self._bell)
            self._epoll.register(self._bell, select.EPOLLIN)
            self._thread = threading.Thread(target=self._look, name="connect_mailer", daemon=True)
            self._thread.start()
            self._files = failed.pop_all()

    def add(self, call: _Call[Any], sock: socket, seconds: float) -> None:
        """Raises: OSError or ValueError, and then it is not watched."""
        file, ends_at = sock.fileno(), time.monotonic() + seconds
        closed = self._waiting.get(file)
        # Not overdue before it is watched, or another call might have its file by then.
        self._waiting[file] = known = [call, math.inf]
        if closed:  # by somebody else, so that the number is another socket's by now
            closed[0].expire()
            self._hand_over([closed[0]])
        try:
            self._epoll.register(file, select.EPOLLIN)
        except (OSError, ValueError):
            del self._waiting[file]
            raise
        known[1] = ends_at

    def stop(self) -> None:
        os.eventfd_write(self._bell, 1)
        self._thread.join()
        self._files.close()

    def _look(self) -> None:
        look_through_at = 0.0
        while True:
            # What is not there after this is overdue, however long this process then stands still.
            now = time.monotonic()
            files = [file for file, _ in self._epoll.poll(_TICK_SECONDS)]
            if self._bell in files:
                return
            found = self._release(files)
            if now >= look_through_at:
                look_through_at = now + _TICK_SECONDS
                found += self._expire(now)
            if found:
                self._hand_over(found)
            del found  # until something comes again

    def _expire(self, now: float) -> list[_Call[Any]]:
        # By the keys alone: while pairs are made, a destructor may let another thread go first.
        known = ((file, self._waiting.get(file)) for file in list(self._waiting))
        overdue = self._release([file for file, one in known if one and one[1] <= now])
        for call in overdue:
            call.expire()
        return overdue

    def _release(self, files: Iterable[int]) -> list[_Call[Any]]:
        calls = []
        for file in files:
            with suppress(OSError):  # somebody closed it
                self._epoll.unregister(file)
            if known := self._waiting.pop(file, None):
                calls.append(known[0])
        return calls

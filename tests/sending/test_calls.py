"""Calls in flight: how many at once, in how many threads, and what ends each of them."""

from __future__ import annotations

import gc
import os
import random
import select
import signal
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from connect_mailer.sending.calls import Calls, Steps, blocking, run
from tests.sending import calling
from tests.sending.calling import alarm, wait_for

who = ContextVar("who", default="nobody")


class Pairs:
    """A call for each number, which waits at one end of a pair of sockets."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self.socks: dict[Any, socket.socket] = {}
        self.ends: dict[Any, socket.socket] = {}  # the other ones
        self.threads: dict[Any, list[threading.Thread]] = {}

    def call(self, number: Any) -> Steps[bytes]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(0)
            self.threads[number] = [threading.current_thread()]
            self.socks[number], self.ends[number] = ours, theirs
            yield ours, self._seconds
            self.threads[number].append(threading.current_thread())
            return ours.recv(100)


@pytest.fixture(params=["epoll", "no epoll", "no more files"])
def system(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """As Linux is; as macOS is, or gevent makes it; as Linux is where files have run out."""

    def fail(*args: Any) -> int:
        raise OSError(24, "Too many open files")

    if request.param == "no epoll":
        monkeypatch.delattr(select, "epoll", raising=False)
    elif request.param == "no more files":
        monkeypatch.setattr(os, "eventfd", fail)
    return str(request.param)


@pytest.fixture
def make() -> Iterator[Callable[..., Calls[Any]]]:
    made: list[Calls[Any]] = []

    def make_calls(call: Callable[[Any], Steps[Any]], concurrency: int = 50) -> Calls[Any]:
        made.append(Calls(call, concurrency))
        return made[-1]

    before = set(threading.enumerate()), count_files()
    yield make_calls
    for one in made:
        one.close()
    wait_for(lambda: set(threading.enumerate()) <= before[0])
    assert count_files() <= before[1]


def count_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def take(calls: Calls[Any], number: int) -> dict[Any, Any]:
    """So many that have ended, in the order in which they did."""
    return dict(calling.take(calls, number))


def take_all(calls: Calls[Any]) -> None:
    wait_for(lambda: [list(calls.take()), calls.in_flight][1] == 0)


def count_threads() -> int:
    return sum(thread.name == "connect_mailer" for thread in threading.enumerate())


class TestWaiting:
    def test_each_gets_its_own_answer(self, make: Any, system: str) -> None:
        pairs = Pairs()
        calls = make(pairs.call)
        for number in range(20):
            calls.start(number)
        wait_for(lambda: len(pairs.ends) == 20)
        for number in reversed(range(20)):
            pairs.ends[number].send(b"%d" % number)

        assert take(calls, 20) == {number: b"%d" % number for number in range(20)}

    def test_fifty_that_wait_need_no_fifty_threads(self, make: Any) -> None:
        pairs = Pairs()
        calls = make(pairs.call)
        for number in range(50):
            calls.start(number)
        wait_for(lambda: len(pairs.ends) == 50)

        assert count_threads() == 2, "one that works, and one that looks out for answers"
        for end in pairs.ends.values():
            end.send(b"x")
        take(calls, 50)
        assert count_threads() == 2

    def test_an_answer_that_never_comes(self, make: Any, system: str) -> None:
        pairs = Pairs(seconds=0.2)
        calls = make(pairs.call)
        calls.start(1)
        started_at = time.monotonic()

        (error,) = take(calls, 1).values()

        assert isinstance(error, TimeoutError)
        assert time.monotonic() - started_at >= 0.2

    def test_it_holds_up_no_other(self, make: Any, system: str) -> None:
        pairs = Pairs(seconds=0.5)
        calls = make(pairs.call)
        calls.start("never")
        calls.start("soon")
        wait_for(lambda: len(pairs.ends) == 2)
        pairs.ends["soon"].send(b"x")

        ended = take(calls, 2)

        assert list(ended) == ["soon", "never"]
        assert ended["soon"] == b"x"

    def test_the_other_side_ends(self, make: Any, system: str) -> None:
        pairs = Pairs()
        calls = make(pairs.call)
        calls.start(1)
        wait_for(lambda: bool(pairs.ends))
        pairs.ends[1].shutdown(socket.SHUT_WR)

        assert take(calls, 1) == {1: b""}

    def test_it_waits_more_than_once(self, make: Any, system: str) -> None:
        ends = []

        def call(item: str) -> Steps[bytes]:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                ends.append(theirs)
                came = b""
                while len(came) < 3:
                    yield ours, 10.0
                    came += ours.recv(1)
                return came

        calls = make(call)
        calls.start("it")
        wait_for(lambda: bool(ends))
        for piece in (b"a", b"b", b"c"):
            time.sleep(0.02)
            ends[0].send(piece)

        assert take(calls, 1) == {"it": b"abc"}

    def test_what_a_call_sets_is_its_own(self, make: Any, system: str) -> None:
        """Whichever thread goes on with it: spans depend on that."""
        pairs = Pairs()
        seen = {}

        def call(name: str) -> Steps[None]:
            token = who.set(name)
            yield from pairs.call(name)
            seen[name] = who.get()
            who.reset(token)
            seen[f"{name} then"] = who.get()

        calls = make(call)
        token = who.set("the site")
        calls.start("a")
        calls.start("b")
        who.reset(token)
        wait_for(lambda: len(pairs.ends) == 2)
        for end in pairs.ends.values():
            end.send(b"x")
        take(calls, 2)

        assert seen == {"a": "a", "b": "b", "a then": "the site", "b then": "the site"}

    def test_an_answer_that_came_while_the_process_stood_still(self, make: Any) -> None:
        """It is read, however long ago it should have been."""
        pairs = Pairs(seconds=0.5)
        calls = make(pairs.call)
        calls.start(1)
        wait_for(lambda: bool(pairs.ends))
        time.sleep(0.05)
        stop_me = f"kill -STOP {os.getpid()}; sleep 0.8; echo x; kill -CONT {os.getpid()}"
        subprocess.run(["sh", "-c", stop_me], check=True, stdout=pairs.ends[1])

        assert take(calls, 1) == {1: b"x\n"}

    def test_in_this_thread(self) -> None:
        pairs = Pairs(seconds=0.1)
        with pytest.raises(TimeoutError):
            run(pairs.call(1))
        assert pairs.threads[1] == [threading.current_thread()]

    def test_in_this_thread_until_it_is_interrupted(self) -> None:
        seen: list[BaseException] = []

        def call() -> Steps[None]:
            try:
                yield from Pairs().call(1)
            except BaseException as error:
                seen.append(error)
                raise

        with alarm(0.1), pytest.raises(KeyboardInterrupt):
            run(call())
        assert [type(error) for error in seen] == [KeyboardInterrupt]


class TestHowMany:
    def test_no_more_than_are_allowed_are_open(self, make: Any, system: str) -> None:
        pairs = Pairs()
        calls = make(pairs.call, concurrency=3)
        for number in range(5):
            calls.start(number)
        wait_for(lambda: len(pairs.ends) == 3)
        time.sleep(0.05)

        assert list(pairs.ends) == [0, 1, 2]
        assert calls.has_new
        # The next one begins when one ends, though nobody has taken its answer.
        pairs.ends[1].send(b"x")
        wait_for(lambda: len(pairs.ends) == 4)
        pairs.ends[0].send(b"x")
        wait_for(lambda: len(pairs.ends) == 5)
        assert not calls.has_new
        for number in (2, 3, 4):
            pairs.ends[number].send(b"x")
        assert set(take(calls, 5)) == set(range(5))
        # And all may be open again.
        for number in range(5, 8):
            calls.start(number)
        wait_for(lambda: len(pairs.ends) == 8)
        for number in range(5, 8):
            pairs.ends[number].send(b"x")
        take(calls, 3)

    def test_those_that_block_each_have_a_thread(self, make: Any, system: str) -> None:
        """As with boto3, which waits in the thread that calls it."""
        together = threading.Barrier(10)

        def call(number: int) -> Steps[int]:
            yield from ()
            with blocking(), blocking():
                return number + together.wait(5)

        calls = make(call, concurrency=10)
        for number in range(20):
            calls.start(number)

        assert {type(answer) for answer in take(calls, 20).values()} == {int}
        assert count_threads() == 10

    def test_answers_are_read_while_others_block(self, make: Any, system: str) -> None:
        pairs = Pairs()
        is_over = threading.Event()

        def call(number: int) -> Steps[Any]:
            if number < 3:
                with blocking():
                    return is_over.wait(5)
            return (yield from pairs.call(number))

        calls = make(call)
        for number in range(5):
            calls.start(number)
        wait_for(lambda: len(pairs.ends) == 2)
        for end in pairs.ends.values():
            end.send(b"x")

        assert take(calls, 2) == {3: b"x", 4: b"x"}
        is_over.set()
        assert take(calls, 3) == {0: True, 1: True, 2: True}

    def test_the_last_to_fall_idle_is_the_first_to_work(self, make: Any) -> None:
        """Others sleep on, whatever there were of them."""
        together = threading.Barrier(5)
        threads = []

        def call(is_first: bool) -> Steps[None]:
            yield from ()
            threads.append(threading.current_thread())
            if is_first:
                with blocking():
                    together.wait(5)

        calls = make(call)
        for _ in range(5):
            calls.start(item=True)
        wait_for(lambda: bool(list(calls.take())) or len(threads) == 5)
        time.sleep(0.05)
        threads.clear()
        for _ in range(20):
            calls.start(item=False)
            time.sleep(0.002)

        assert len(set(threads)) == 1


class TestInterrupts:
    """Ctrl-C, or a time limit of Celery's, in the thread that starts calls."""

    # A moment of a destructor's, where nobody hears of it, is one, too.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_at_any_moment(self, make: Any) -> None:
        """None is left behind: where all were taken, nothing is in flight."""
        rng = random.Random(1)
        begun = [0]

        def call(number: int) -> Steps[int]:
            yield from ()
            with blocking():
                begun[0] += 1
            return number

        def start_many(calls: Calls[int]) -> None:
            ends_at = time.monotonic() + 0.02
            while time.monotonic() < ends_at:
                for number in range(20):
                    calls.start(number)
                list(calls.take())

        for _ in range(100):
            calls = make(call)
            # At some moments Python's own conditions make a RuntimeError of it.
            with suppress(KeyboardInterrupt, RuntimeError), alarm(rng.uniform(0.001, 0.008)):
                start_many(calls)
            take_all(calls)
            calls.start(1)
            take_all(calls)
            calls.close()
        assert begun[0] > 1000

    def test_while_a_thread_is_started(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Which waits until the thread is there, so it is the likeliest moment."""
        pairs = Pairs()
        calls = make(pairs.call)
        start = threading.Thread.start

        def interrupt(thread: threading.Thread) -> None:
            start(thread)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupt)
            with pytest.raises(KeyboardInterrupt):
                calls.start(1)
        assert calls.in_flight == 0

        calls.start(2)
        wait_for(lambda: bool(pairs.ends))
        pairs.ends[2].send(b"x")
        assert take(calls, 1) == {2: b"x"}

    def test_while_a_thread_is_woken(self, make: Any) -> None:
        """It sleeps on, and is not waited for in the end."""

        class Idle(list[Any]):
            def pop(self, *args: Any) -> Any:  # type: ignore[override]
                bell = super().pop(*args)
                signal.raise_signal(signal.SIGALRM)  # it is heard before `release`
                return bell

        pairs = Pairs()
        calls = make(pairs.call)
        calls.start(1)
        wait_for(lambda: bool(pairs.ends))
        wait_for(lambda: len(calls._idle) == 1)
        calls._idle = Idle(calls._idle)
        with alarm(60), pytest.raises(KeyboardInterrupt):
            calls.start(2)
        calls._idle = []

        closing = threading.Thread(target=calls.close)
        pairs.ends[1].send(b"x")
        assert take(calls, 1) == {1: b"x"}
        closing.start()
        closing.join(10)
        assert not closing.is_alive()

    def test_while_it_closes(self, make: Any) -> None:
        pairs = Pairs()
        calls = make(pairs.call)
        calls.start(1)
        wait_for(lambda: bool(pairs.ends))
        pairs.ends[1].send(b"x")
        take(calls, 1)
        is_over = threading.Event()

        def block() -> Steps[None]:
            yield from ()
            with blocking():
                is_over.wait(5)

        calls._make = lambda item: block()
        calls.start(2)
        with alarm(0.1), pytest.raises(KeyboardInterrupt):
            calls.close()
        assert count_threads() == 1, "the one that is kept"
        is_over.set()


def test_a_wait_that_is_over_before_it_is_watched(make: Any) -> None:
    """The call goes on once: its file may be another call's by then."""

    class Slow:
        def __init__(self, epoll: Any) -> None:
            self._epoll = epoll

        def register(self, *args: Any) -> None:
            time.sleep(0.3)  # meanwhile what is overdue is looked for
            self._epoll.register(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._epoll, name)

    is_given_away = threading.Event()

    def block() -> Steps[str]:
        yield from ()
        with blocking():
            is_given_away.wait(5)
            time.sleep(0.2)
        return "blocked"  # and whoever made this call is free for what is due

    def be_late() -> Steps[str]:
        ours, theirs = socket.socketpair()
        with ours, theirs, suppress(TimeoutError):
            ours.settimeout(0)
            is_given_away.set()
            yield ours, -0.001
        return "late"

    calls = make(lambda steps: steps())
    calls.start(be_late)
    take(calls, 1)
    calls._watch._epoll = Slow(calls._watch._epoll)
    is_given_away.clear()
    calls.start(block)
    calls.start(be_late)
    answers = [answer for _, answer in calling.take(calls, 2)]
    assert sorted(answers) == ["blocked", "late"]
    time.sleep(0.2)
    assert not list(calls.take()), "each is answered once"
    assert calls.in_flight == 0


class TestMemory:
    """A message may be large: it is not held longer than its call takes."""

    @pytest.mark.parametrize("how", ["answered", "failed", "expired"])
    def test_what_a_call_held_is_free(self, make: Any, how: str) -> None:
        known: list[weakref.ref[Any]] = []

        class Large:
            pass

        pairs = Pairs(seconds=0.3)

        def call(item: Large) -> Steps[Any]:
            body = Large()
            known.extend([weakref.ref(item), weakref.ref(body)])
            answer = yield from pairs.call(1)
            if how == "failed":
                raise LookupError
            return answer

        calls = make(call)
        gc.disable()
        try:
            calls.start(Large())
            wait_for(lambda: bool(pairs.ends))
            time.sleep(0.15)  # so that it was looked through
            if how != "expired":
                pairs.ends[1].send(b"x")
            wait_for(lambda: bool(list(calls.take())))
            wait_for(lambda: [one() for one in known] == [None, None])
        finally:
            gc.enable()


class TestTrouble:
    def test_what_a_call_raises(self, make: Any) -> None:
        def call(error: BaseException) -> Steps[None]:
            yield from ()
            raise error

        calls = make(call)
        errors = [KeyError(1), SystemExit(), KeyboardInterrupt()]
        for error in errors:
            calls.start(error)

        assert take(calls, 3) == {error: error for error in errors}

    def test_no_thread_is_to_be_had(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        pairs = Pairs()
        calls = make(pairs.call)

        def fail(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(RuntimeError):
                calls.start(1)
        assert pairs.ends == {}

        calls.start(2)
        wait_for(lambda: bool(pairs.ends))
        pairs.ends[2].send(b"x")
        assert take(calls, 1) == {2: b"x"}

    def test_no_second_thread_is_to_be_had(
        self, make: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The one that there is does all."""
        pairs = Pairs()
        calls = make(pairs.call, concurrency=2)
        start = threading.Thread.start

        def start_one(thread: threading.Thread) -> None:
            if count_threads():
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_one)
        calls.start(1)
        calls.start(2)
        for number in (1, 2):
            wait_for(lambda number=number: number in pairs.ends)
            pairs.ends[number].send(b"x")

        assert take(calls, 2) == {1: b"x", 2: b"x"}
        assert {thread for both in pairs.threads.values() for thread in both} == {
            pairs.threads[1][0]
        }

    def test_somebody_else_closes_the_socket(self, make: Any) -> None:
        """It is not heard of again, so its time runs out; others are answered."""
        pairs = Pairs(seconds=0.3)
        calls = make(pairs.call)
        calls.start(1)
        wait_for(lambda: bool(pairs.ends))
        time.sleep(0.05)
        pairs.socks[1].close()
        calls.start(2)  # its socket has the number of that one
        wait_for(lambda: len(pairs.ends) == 2)
        pairs.ends[2].send(b"x")

        ended = take(calls, 2)
        assert ended[2] == b"x"
        assert isinstance(ended[1], TimeoutError)

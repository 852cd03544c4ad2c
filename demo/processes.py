"""Processes that never outlive the demo, and signals that never come at a bad moment."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self, TypeVar

from demo.watch import Watch

# All that starts or happens has this long. Minutes of a slow machine, not of a healthy one.
PATIENCE_SECONDS = 90.0
# A process that was told to stop has this long.
STOP_SECONDS = 10.0

T = TypeVar("T")

_ERROR = re.compile(r"\b(?:ERROR|CRITICAL)\b|^Traceback ", re.MULTILINE)
ROOT = Path(__file__).parent.parent
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class DemoFailed(Exception):
    """It could not be shown. The text says what did not happen."""


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP as one ``KeyboardInterrupt``, but never inside of ``held()``.

    One, because tox passes a Ctrl-C on to a process that the terminal told already, and what
    is being stopped needs no second word.
    """

    def __init__(self) -> None:
        self._holds = 0
        self._came = False

    def listen(self) -> None:
        """Hear the signals from now on."""
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` if a signal came."""
        if self._came and not self._holds:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal that comes inside of the block be heard at its end."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        self.check()

    def end(self) -> None:
        """Hear no more: all is being stopped, and that takes no longer than it may."""
        self._holds += 1

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self._came:
            self._came = True
            self.check()


@dataclass(frozen=True, kw_only=True)
class Process:
    """A child in a session of its own: a Ctrl-C in the terminal does not reach it."""

    name: str
    log: Path
    popen: subprocess.Popen[bytes]
    stop_signal: signal.Signals
    is_whole_group_told: bool

    def count_errors(self) -> int:
        """How many errors it has logged."""
        return len(_ERROR.findall(self.log.read_text(errors="replace")))

    def tell_to_stop(self) -> None:
        """Send the signal that ends it cleanly."""
        with suppress(ProcessLookupError):
            if self.is_whole_group_told:
                os.killpg(self.popen.pid, self.stop_signal)
            else:
                self.popen.send_signal(self.stop_signal)

    def end(self, deadline: float) -> None:
        """Wait for its end until ``deadline``, then leave nothing of it."""
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(max(0, deadline - time.monotonic()))
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


class Processes:
    """Children that are stopped, all at once, at the end of a ``with`` block.

    Where that is never reached, because this process was killed, they are killed.
    """

    def __init__(self, folder: Path, interrupts: Interrupts) -> None:
        self._folder = folder
        self._interrupts = interrupts
        self._watch = Watch()
        self.started: list[Process] = []

    def start(
        self,
        name: str,
        *args: str,
        stop_signal: signal.Signals = signal.SIGTERM,
        is_whole_group_told: bool = False,
    ) -> Process:
        """Run ``python -m args``; its output goes to a file in the folder."""
        log = self._folder / f"{name}.log"
        with self._interrupts.held(), log.open("wb") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", *args],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )
            process = Process(
                name=name,
                log=log,
                popen=popen,
                stop_signal=stop_signal,
                is_whole_group_told=is_whole_group_told,
            )
            self._watch.add(popen.pid)
            self.started.append(process)
        return process

    def kill(self, process: Process) -> None:
        """Let one die at once, with all of its children, as a machine does that loses power."""
        os.killpg(process.popen.pid, signal.SIGKILL)
        process.popen.wait()
        self._watch.remove(process.popen.pid)
        self.started.remove(process)

    def check(self) -> None:
        """Raise ``DemoFailed`` if one of them has ended, or what a signal asks for."""
        self._interrupts.check()
        for process in self.started:
            if (code := process.popen.poll()) is not None:
                raise DemoFailed(f"The process {process.name!r} ended with {code}.")

    def wait_for(self, what: str, look: Callable[[], T]) -> T:
        """Call ``look`` until it is true, and return that.

        Raises:
            DemoFailed: it didn't become true, or a process ended.
        """
        end = time.monotonic() + PATIENCE_SECONDS
        while not (found := look()):
            self.check()
            if time.monotonic() > end:
                raise DemoFailed(f"{what} did not come in {PATIENCE_SECONDS:.0f} s.")
            time.sleep(0.05)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._interrupts.end()
        for process in self.started:
            process.tell_to_stop()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self.started:
            process.end(deadline)
            self._watch.remove(process.popen.pid)
        self._watch.close()


def find_free_ports(number: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on."""
    with ExitStack() as stack:
        probes = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)
        ]
        return [int(probe.getsockname()[1]) for probe in probes]


def is_open(port: int) -> bool:
    """Whether somebody listens on a port of 127.0.0.1."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False

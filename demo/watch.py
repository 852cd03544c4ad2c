"""``python -m demo.watch``: ends the processes of somebody who was killed.

Reads ``+PID`` and ``-PID`` from its standard input, each the leader of a process group. When
that ends, whoever wrote it is gone, and it kills the groups that are left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress


class Watch:
    """Another process, which outlives this one for as long as that takes."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            # Isolated, as it needs nothing of the site: it is there at once.
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            # A Ctrl-C in the terminal does not reach it.
            start_new_session=True,
        )

    def add(self, pid: int) -> None:
        """Let the group of ``pid`` end with this process, however that ends."""
        self._tell(f"+{pid}\n")

    def remove(self, pid: int) -> None:
        """Forget a group that has ended."""
        self._tell(f"-{pid}\n")

    def close(self) -> None:
        """End it, with all that is left."""
        self._popen.communicate()

    def _tell(self, line: str) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(line.encode())
        self._popen.stdin.flush()


def main(lines: Iterable[str]) -> None:
    """Read to the end, then kill."""
    groups = set()
    for line in lines:
        if line.startswith("+"):
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.stdin)

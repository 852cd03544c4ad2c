"""An SES that accepts everything, with as little work as can be: it is not what is measured.

``python -m tests.benchmarks._sink SECONDS`` prints its URL, and answers each call after so long.
It reads each request to its end, and it ends with its standard input.
"""

from __future__ import annotations

import json
import re
import select
import sys
import time
from collections import deque
from contextlib import suppress
from socket import IPPROTO_TCP, TCP_NODELAY, create_server, socket

_ACCOUNT = {"SendQuota": {"MaxSendRate": 1e6, "Max24HourSend": -1}, "SendingEnabled": True}
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_PIECE_BYTES = 256 * 1024


class _SES:
    """Takes what connections bring, and knows what they get back and when."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._number = 0
        self._heads: dict[socket, bytes] = {}  # while they are not whole
        self._missing: dict[socket, int] = {}  # bytes of a body that are still to come
        # All wait for as long, so the oldest one is the next.
        self.answers: deque[tuple[float, socket, bytes]] = deque()

    def take(self, connection: socket, data: bytes) -> None:
        if missing := self._missing.pop(connection, 0):
            missing -= len(data)
        else:
            data = self._heads.pop(connection, b"") + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._heads[connection] = data
                return
            if data.startswith(b"GET "):
                self._answer(connection, _ACCOUNT)
                return
            length = _LENGTH.search(data, 0, end + 2)
            missing = end + 4 + int(length[1] if length else 0) - len(data)
        if missing:
            self._missing[connection] = missing
            return
        self._number += 1
        message_id = f"0100018c2f6b7a3e-00000000-0000-4000-8000-{self._number:012d}-000000"
        self._answer(connection, {"MessageId": message_id})

    def forget(self, connection: socket) -> None:
        self._heads.pop(connection, None)
        self._missing.pop(connection, None)

    def _answer(self, connection: socket, value: object) -> None:
        body = json.dumps(value).encode()
        answer = (
            b"HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2026 12:00:00 GMT\r\n"
            b"Content-Type: application/json\r\nConnection: keep-alive\r\n"
            b"x-amzn-RequestId: 6f9619ff-8b86-4011-b42d-00cf4fc964ff\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.answers.append((time.monotonic() + self._seconds, connection, answer))


def _serve(seconds: float) -> None:
    ses = _SES(seconds)
    listener = create_server(("127.0.0.1", 0), backlog=512)
    print("http://{}:{}".format(*listener.getsockname()), flush=True)  # noqa: T201
    connections: dict[int, socket] = {}
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    poll.register(sys.stdin, select.EPOLLIN)
    while True:
        wait = max(ses.answers[0][0] - time.monotonic(), 0) if ses.answers else None
        for file, _ in poll.poll(wait):
            if connection := connections.get(file):
                try:
                    data = connection.recv(_PIECE_BYTES)
                except ConnectionError:
                    data = b""
                if data:
                    ses.take(connection, data)
                else:
                    ses.forget(connection)
                    connections.pop(file).close()
            elif file == listener.fileno():
                connection, _ = listener.accept()
                connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
                connections[connection.fileno()] = connection
                poll.register(connection, select.EPOLLIN)
            else:
                return
        now = time.monotonic()
        while ses.answers and ses.answers[0][0] <= now:
            _, connection, answer = ses.answers.popleft()
            with suppress(OSError):  # closed
                connection.sendall(answer)


if __name__ == "__main__":
    _serve(float(sys.argv[1]))

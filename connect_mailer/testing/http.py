"""A small HTTP/1.1 server for tests: connections that stay open, and ways to break them.

Not for the open network: it trusts its peer and listens on the loopback address only.
"""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import cast

_MAX_LINE = 65_536
_RESET = struct.pack("ii", 1, 0)


class Ending(Enum):
    """What becomes of the connection after an answer."""

    KEEP = "keep"
    CLOSE = "close"  # after the answer
    DROP = "drop"  # closed without an answer
    RESET = "reset"  # reset without an answer
    CUT = "cut"  # closed in the middle of the answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request; names of headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer, and what becomes of the connection."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    ending: Ending = Ending.KEEP
    delay_seconds: float = 0.0

    def wire(self) -> bytes:
        """The answer as it is written, in one piece."""
        status = HTTPStatus(self.status)
        lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"Content-Length: {len(self.body)}"]
        if self.ending is not Ending.KEEP:
            lines += ["Connection: close"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


class HTTPServer:
    """Serves ``answer`` on 127.0.0.1, one thread a connection, until it is closed."""

    def __init__(self, answer: Callable[[Request], Answer], *, port: int = 0) -> None:
        self.answer = answer
        self.connections_opened = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), _Connection)
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    def start(self) -> None:
        """Begin to accept connections; those made before wait in the backlog."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening and close every connection."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self.close_connections()

    def close_connections(self) -> None:
        """Close every open connection, as a server does with idle ones; go on listening."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # its own thread was faster
                continue

    def opened(self, connection: socket.socket) -> None:
        """Count a connection in."""
        with self._lock:
            self.connections_opened += 1
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """Count a connection out."""
        with self._lock:
            self._open.discard(connection)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512
    owner: HTTPServer

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        # No shutdown() first: it would say an orderly goodbye before a reset.
        self.close_request(request)


class _Connection(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        owner = cast(_Server, self.server).owner
        owner.opened(self.connection)
        try:
            while (request := self._read()) is not None:
                answer = owner.answer(request)
                if answer.delay_seconds > 0:
                    time.sleep(answer.delay_seconds)
                if not self._write(answer):
                    return
        except OSError:  # the peer went away
            return
        finally:
            owner.closed(self.connection)

    def _write(self, answer: Answer) -> bool:
        """Write an answer; tell whether the connection is still good."""
        if answer.ending is Ending.RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        elif answer.ending is Ending.CUT:
            self.connection.sendall(answer.wire()[: -len(answer.body) // 2])
        elif answer.ending is not Ending.DROP:
            self.connection.sendall(answer.wire())
        return answer.ending is Ending.KEEP

    def _read(self) -> Request | None:
        parts = self.rfile.readline(_MAX_LINE).decode("latin-1").split()
        if len(parts) != 3:
            return None
        headers: dict[str, str] = {}
        while (line := self.rfile.readline(_MAX_LINE).decode("latin-1").strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = int(headers.get("content-length", 0))
        body = self.rfile.read(length) if length else b""
        if len(body) < length:
            return None
        return Request(method=parts[0], path=parts[1], headers=headers, body=body)

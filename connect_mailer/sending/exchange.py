"""One request and its answer over a kept connection, without a thread that waits for the answer.

Connections are those of urllib3's pool, which also opens them; ``http.client`` reads what is no
plain good answer. In between, a socket never waits: a thread would, and with TLS its timeout starts
anew with each record of 16 KB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPException, HTTPResponse, IncompleteRead
from io import BytesIO
from ssl import SSLWantReadError, SSLWantWriteError
from time import monotonic
from types import SimpleNamespace
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from urllib3.exceptions import HTTPError
from urllib3.util.connection import is_connection_dropped
from urllib3.util.wait import wait_for_read, wait_for_write

from connect_mailer.exceptions import InDoubt, Unavailable
from connect_mailer.sending.calls import Steps, blocking

Begin = Callable[[], None]
# Of a large request, so much is copied at a time: it is in memory once.
_PIECE_BYTES: Final = 256 * 1024
# What a socket says that never waits.
_NOT_NOW: Final = (BlockingIOError, SSLWantReadError, SSLWantWriteError)


class Answer(NamedTuple):
    """``is_kept``: whether its connection can be used again."""

    status: int
    headers: Any
    body: bytes
    is_kept: bool


class Exchange:
    """POSTs to one address. ``pool`` is urllib3's.

    ``upload_seconds`` is what the writing of one request may take; no answer, or no progress, in
    ``read_seconds`` ends an exchange as well.

    Raises:
        Unavailable: the whole request was not written, so it can't have been obeyed.
        InDoubt: there was no answer to it.
    """

    def __init__(self, pool: Any, url: str, *, read_seconds: float, upload_seconds: float) -> None:
        # As urllib3 writes it, without a port that goes without saying.
        parts = urlsplit(url)
        host = parts.netloc.lower().removesuffix(":443" if parts.scheme == "https" else ":80")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._start = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAccept-Encoding: identity\r\n"
        self._pool = pool
        self._read_seconds = read_seconds
        self._upload_seconds = upload_seconds

    def post(self, headers: Mapping[str, str], body: bytearray, begin: Begin) -> Steps[Answer]:
        """``begin`` is called when there is a connection, and before anything is written."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        first = f"{self._start}{lines}\r\n".encode("latin-1") + body[:_PIECE_BYTES]
        # A kept connection that the other side has closed, urllib3 notices here.
        connection, is_kept = self._pool._get_conn(), False  # noqa: SLF001
        try:
            self._connect(connection, begin)
            try:
                self._write(connection.sock, first, memoryview(body)[_PIECE_BYTES:])
            except OSError as error:
                if refusal := _find_refusal(connection.sock):
                    return refusal
                text = f"Not all of the request was written: {error}"
                raise Unavailable(text) from error
            try:
                answer = yield from self._read(connection.sock)
            except Exception as error:
                # Whatever it is, the request was written.
                raise InDoubt(f"No answer of SES, {type(error).__name__}: {error}") from error
            is_kept = answer.is_kept
            return answer
        finally:
            if is_kept:
                connection.sock.setblocking(True)  # boto3 may be the next to use it
            else:
                connection.close()
            self._pool._put_conn(connection)  # noqa: SLF001

    def _connect(self, connection: Any, begin: Begin) -> None:
        was_open = connection.sock is not None
        try:
            self._open(connection)
        finally:
            begin()
        # One that was closed in the meantime. Not one that is new: TLS may have told it something.
        if was_open and is_connection_dropped(connection):
            connection.close()
            self._open(connection)

    def _open(self, connection: Any) -> None:
        try:
            if not connection.sock:
                with blocking():
                    connection.connect()
            connection.sock.setblocking(False)
        except (OSError, HTTPError, ValueError) as error:  # also urllib3's CertificateError
            raise Unavailable(f"{type(error).__name__}: {error}") from error

    def _read(self, sock: Any) -> Steps[Answer]:
        came, ends_at = b"", monotonic() + self._read_seconds
        while True:
            yield sock, ends_at - monotonic()
            try:
                data = sock.recv(_PIECE_BYTES)
            except _NOT_NOW:  # what came was for TLS itself
                continue
            came += data
            if answer := _parse_good(came) or _parse(came, is_over=not data):
                return answer
            ends_at = monotonic() + self._read_seconds

    def _write(self, sock: Any, *parts: Any) -> None:
        """Raises: OSError."""
        ends_at = monotonic() + self._upload_seconds
        for part in parts:
            left = memoryview(part)
            while left:
                try:
                    if not (sent := sock.send(left)):
                        raise SSLWantWriteError  # gevent's way to say it
                    left = left[sent:]
                except _NOT_NOW as reason:
                    wait = wait_for_read if isinstance(reason, SSLWantReadError) else wait_for_write
                    self._wait(wait, sock, ends_at - monotonic())

    def _wait(self, wait: Callable[[Any, float], bool], sock: Any, seconds: float) -> None:
        if seconds <= 0:
            raise TimeoutError(f"it takes more than {self._upload_seconds:g} s")
        with blocking():
            is_ready = wait(sock, min(seconds, self._read_seconds))
        if not is_ready and seconds > self._read_seconds:
            raise TimeoutError("timed out")


def _find_refusal(sock: Any) -> Answer | None:
    """What was answered before the whole request was written, if that says why."""
    came = b""
    with suppress(OSError):  # no more is there
        while data := sock.recv(_PIECE_BYTES):
            came += data
    with suppress(HTTPException):
        answer = _parse(came, is_over=False)
        if answer and 400 <= answer.status < 500:
            return answer
    return None


def _parse_good(came: bytes) -> Answer | None:
    """A good answer that came in one piece and leaves the connection open.

    It saves ``http.client``'s way of reading, which takes longer than the signature.
    """
    head, _, body = came.partition(b"\r\n\r\n")
    status, *lines = head.lower().split(b"\r\n")
    is_whole = status.startswith(b"http/1.1 200 ") and b"content-length: %d" % len(body) in lines
    is_odd = any(
        line.startswith((b"transfer-encoding:", b"connection:"))
        and line != b"connection: keep-alive"
        for line in lines
    )
    return Answer(200, {}, body, is_kept=True) if is_whole and not is_odd else None


def _parse(came: bytes, *, is_over: bool) -> Answer | None:
    """What was answered; ``None``: that was not all. ``is_over``: no more will come."""
    if not is_over and b"\r\n\r\n" not in came:
        return None
    file = _File(came)
    sock: Any = SimpleNamespace(makefile=lambda mode: file)
    with HTTPResponse(sock, method="POST") as response:
        try:
            response.begin()
            if response.status < 200:  # the answer is still to come
                return _parse(came[file.tell() :], is_over=is_over)
            if not is_over and response.length is None and not response.chunked:
                return None  # it ends with the connection
            body = response.read()
        except HTTPException as error:
            if not is_over:
                return None
            if not isinstance(error, IncompleteRead):
                raise
            body = error.partial  # the status says something all the same
        # No end of it is to come, and nothing that belongs to no answer is there.
        is_whole = not (is_over or response.chunked) and file.tell() == len(came)
        return Answer(response.status, response.headers, body, is_whole and not response.will_close)


class _File(BytesIO):
    def close(self) -> None:
        """``http.client`` does, when it has read what it wants."""

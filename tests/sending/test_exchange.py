"""One request and its answer: in what pieces it comes, and whether the connection is kept."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from urllib3 import HTTPConnectionPool, connection_from_url

from connect_mailer.exceptions import InDoubt, Unavailable
from connect_mailer.sending.calls import run
from connect_mailer.sending.exchange import Answer, Begin, Exchange
from tests.sending.calling import call_all

GOOD = b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"MessageId": "x"}'
BAD = b"HTTP/1.1 429 Too Many\r\nX-Amzn-ErrorType: Throttled\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
LEFT_OPEN = b"HTTP/1.1 503 Unavailable\r\n\r\n<html>"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"

# What a server writes, and what then happens to the connection there; what is read: status, body;
# whether it is kept.
ANSWERS: dict[str, tuple[list[bytes], bool, tuple[int, bytes], bool]] = {
    "good": ([GOOD], False, (200, b'{"MessageId": "x"}'), True),
    "bad": ([BAD], False, (429, b"{}"), True),
    "no body": ([EMPTY], False, (204, b""), True),
    "go on first": ([b"HTTP/1.1 100 Continue\r\n\r\n", BAD], False, (429, b"{}"), True),
    "hints first": ([b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", GOOD], False,
                    (200, b'{"MessageId": "x"}'), True),
    "in chunks": ([CHUNKED], False, (200, b"{}"), False),
    "to be closed": ([GOOD.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")], False,
                     (200, b'{"MessageId": "x"}'), False),
    "to be closed, without a blank": ([GOOD.replace(b"OK\r\n", b"OK\r\nConnection:close\r\n")],
                                      False, (200, b'{"MessageId": "x"}'), False),
    "kept, it says": ([GOOD.replace(b"OK\r\n", b"OK\r\nConnection: keep-alive\r\n")], False,
                      (200, b'{"MessageId": "x"}'), True),
    "until it is closed": ([LEFT_OPEN, b"</html>"], True, (503, b"<html></html>"), False),
    "too much": ([BAD + b"HTTP"], False, (429, b"{}"), False),
    "too much of nothing": ([EMPTY + b"\r\n"], False, (204, b""), False),
    "cut in its body": ([BAD[:-1]], True, (429, b"{"), False),
    "cut in a chunk": ([CHUNKED[:-8]], True, (200, b""), False),
}  # fmt: skip


class Server(socketserver.ThreadingTCPServer):
    """Answers each request by ``pieces``, one after the other."""

    daemon_threads = True
    request_queue_size = 50
    pieces: list[bytes] = []
    is_ended = False
    opened = 0
    last: socket.socket


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        self.server.opened += 1
        self.server.last = self.connection
        self.connection.setsockopt(6, 1, 1)  # each piece by itself
        with suppress(ConnectionError):  # it may be reset
            while self.read():
                for piece in self.server.pieces:
                    self.connection.sendall(piece)
                    time.sleep(0.002)
                if self.server.is_ended:
                    return

    def read(self) -> bool:
        length = 0
        while (line := self.rfile.readline()).strip():
            if line.startswith(b"Content-Length:"):
                length = int(line.split()[1])
        return length > 0 and len(self.rfile.read(length)) == length


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, args=[0.02], daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[..., Exchange]]:
    port = server.server_address[1]
    pool = HTTPConnectionPool("127.0.0.1", port, maxsize=50)

    def make(*, read_seconds: float = 5.0) -> Exchange:
        url = f"http://127.0.0.1:{port}/v2"
        return Exchange(pool, url, read_seconds=read_seconds, upload_seconds=5.0)

    yield make
    pool.close()


def post(exchange: Exchange, body: bytes = b"{}", begin: Begin = lambda: None) -> Answer:
    return run(exchange.post({"Content-Length": str(len(body))}, bytearray(body), begin))


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer(server: Server, connect: Any, name: str) -> None:
    server.pieces, server.is_ended, expected, is_kept = ANSWERS[name]
    exchange = connect()

    for number in (1, 2):
        answer = post(exchange)
        assert (answer.status, answer.body) == expected
        time.sleep(0.01)  # what came after it is here by then
        assert server.opened == (1 if is_kept else number)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_in_two_pieces_cut_anywhere(server: Server, connect: Any, name: str) -> None:
    """The very same, wherever a packet of it ended."""
    pieces, server.is_ended, expected, _ = ANSWERS[name]
    whole, exchange = b"".join(pieces), connect()
    for end in range(1, len(whole)):
        server.pieces = [whole[:end], whole[end:]]
        answer = post(exchange)
        assert (answer.status, answer.body) == expected, server.pieces
        if name.startswith("too much"):
            time.sleep(0.01)  # what came after it is here by then


@pytest.mark.parametrize("end", [0, 5, 20, 46, 50])
@pytest.mark.parametrize("is_ended", [False, True])
def test_half_an_answer(server: Server, connect: Any, end: int, is_ended: bool) -> None:
    """And then nothing, or the end: in doubt, and another connection comes next."""
    server.pieces, server.is_ended = [GOOD[:end]], is_ended
    exchange = connect(read_seconds=0.2)
    if is_ended and end >= 20:
        assert (post(exchange).status, server.opened) == (200, 1), "its status says something"
    else:
        with pytest.raises(InDoubt):
            post(exchange)

    server.pieces, server.is_ended = [GOOD], False
    assert post(exchange).status == 200
    assert server.opened == 2


def test_a_connection_that_is_closed_while_the_call_waits_for_its_turn(
    server: Server, connect: Any
) -> None:
    """Nothing was written on it, so there is no doubt."""
    server.pieces = [GOOD]
    exchange = connect()
    post(exchange)

    def begin() -> None:
        server.last.shutdown(socket.SHUT_RDWR)
        time.sleep(0.02)

    assert post(exchange, begin=begin).status == 200
    assert server.opened == 2


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize(
    "answer", [BAD, BAD.replace(b"429 Too Many", b"502 Bad Gateway"), BAD[:30]]
)
def test_an_answer_before_the_whole_request_was_written(answer: bytes, stays: bool) -> None:
    """Why it was refused; but nobody who only asked others knows anything of it."""
    is_over = threading.Event()

    def refuse() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)
            if stays:
                is_over.wait(5)
            else:
                connection.shutdown(socket.SHUT_WR)
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v2"
        with connection_from_url(url, maxsize=1) as pool:
            exchange = Exchange(pool, url, read_seconds=0.3, upload_seconds=5.0)
            if answer is BAD:
                assert post(exchange, b"x" * 9_000_000).status == 429
            else:
                with pytest.raises(Unavailable):
                    post(exchange, b"x" * 9_000_000)
            assert pool._get_conn().sock is None, "it has half a request"
        is_over.set()
        thread.join()


def post_all(
    make: Callable[[str], Exchange], *items: str, body: bytes = b"{}"
) -> list[tuple[str, Any]]:
    """All at once; in the order in which they ended."""
    headers = {"Content-Length": str(len(body))}
    return call_all(lambda item: make(item).post(headers, bytearray(body), lambda: None), items)


def test_half_an_answer_holds_up_no_other(server: Server, connect: Any) -> None:
    exchanges = {"half": connect(read_seconds=2.0), "whole": connect()}
    server.pieces = [GOOD[:30]]
    asked: list[str] = []

    def make(item: str) -> Exchange:
        if item == "whole" and item not in asked:
            while server.opened < 5:
                time.sleep(0.01)
            time.sleep(0.05)
            server.pieces = [GOOD]
        asked.append(item)
        return exchanges[item]  # type: ignore[no-any-return]

    ended = post_all(make, *["half"] * 5, *["whole"] * 5)

    assert [item for item, _ in ended] == ["whole"] * 5 + ["half"] * 5
    assert all(isinstance(answer, InDoubt) for _, answer in ended[5:])


@pytest.mark.parametrize(
    ("scheme", "size"),
    # More than buffers on the way hold.
    [("https", 2), ("http", 9_000_000)],
    ids=["a connection that does not open", "a request that is not read"],
)
def test_what_stands_still_holds_up_no_other(
    server: Server, connect: Any, scheme: str, size: int
) -> None:
    server.pieces = [GOOD]
    good = connect()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/v2"
        pool = connection_from_url(url, timeout=1.0)
        bad = Exchange(pool, url, read_seconds=3.0, upload_seconds=9.0)
        exchanges = {"bad": bad, "good": good}

        ended = post_all(exchanges.__getitem__, *["bad", "good"] * 3, body=b"x" * size)

    assert [item for item, _ in ended] == ["good"] * 3 + ["bad"] * 3
    assert all(isinstance(answer, Unavailable) for _, answer in ended[3:])


def test_whatever_goes_wrong_after_the_request_leaves_it_in_doubt(
    server: Server, connect: Any
) -> None:
    server.pieces = [GOOD]
    steps = connect().post({"Content-Length": "2"}, bytearray(b"{}"), lambda: None)
    next(steps)

    with pytest.raises(InDoubt, match="ValueError: a file that is none"):
        steps.throw(ValueError("a file that is none"))


def test_the_pool_gets_connections_back_as_they_were(server: Server, connect: Any) -> None:
    """boto3 may use them next; and green ones can't be told again."""
    server.pieces = [GOOD]
    exchange = connect()
    post(exchange)

    connection = exchange._pool._get_conn()
    assert connection.sock.getblocking()
    connection.close()


def test_a_send_that_says_nothing_went(
    server: Server, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gevent's does with TLS, where others raise."""
    server.pieces = [GOOD]
    exchange = connect()
    answers = [0, 0]
    send = socket.socket.send

    def send_later(sock: socket.socket, data: Any) -> int:
        return answers.pop() if answers else send(sock, data)

    monkeypatch.setattr(socket.socket, "send", send_later)
    assert post(exchange).status == 200
    assert not answers

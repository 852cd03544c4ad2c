"""An SES that accepts everything, with as little work as can be: it is not what is measured.

``python -m tests.benchmarks._sink SECONDS`` prints its URL, and answers each call after so long.
It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial

_ACCOUNT = {"SendQuota": {"MaxSendRate": 1e6, "Max24HourSend": -1}, "SendingEnabled": True}


def _answer(value: object) -> bytes:
    body = json.dumps(value).encode()
    return (
        b"HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2026 12:00:00 GMT\r\n"
        b"Content-Type: application/json\r\nConnection: keep-alive\r\n"
        b"x-amzn-RequestId: 6f9619ff-8b86-4011-b42d-00cf4fc964ff\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


class _Connection(asyncio.Protocol):
    number = 0

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._parts: list[bytes] = []
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._missing <= 0:
            data = b"".join([*self._parts, data])
            self._parts = [data]
            head, found, body = data.partition(b"\r\n\r\n")
            if not found:
                return
            _, _, after = head.lower().partition(b"\r\ncontent-length:")
            self._missing = int(after.partition(b"\r\n")[0] or 0) - len(body)
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            is_account = self._parts[0].startswith(b"GET ")
            self._parts = []
            _Connection.number += 1
            message_id = f"0100018c2f6b7a3e-00000000-0000-4000-8000-{self.number:012d}-000000"
            answer = _answer(_ACCOUNT if is_account else {"MessageId": message_id})
            asyncio.get_running_loop().call_later(self._seconds, self._transport.write, answer)


async def _serve(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(_Connection, seconds), "127.0.0.1", 0, backlog=512)
    host, port = server.sockets[0].getsockname()[:2]
    print(f"http://{host}:{port}", flush=True)  # noqa: T201
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1])))

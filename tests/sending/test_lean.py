"""The lean sender writes what boto3 writes, and leaves to boto3 what is unusual."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from botocore import auth, client, handlers, httpsession
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from connect_mailer.exceptions import InDoubt, Unavailable
from connect_mailer.sending import lean
from connect_mailer.sending.calls import Steps
from connect_mailer.sending.ses import Envelope, SESClient, at_once
from tests.sending.calling import call_all

ID = "0100018c2f6b7a3e-6f9619ff-8b86-4011-b42d-00cf4fc964ff-000000"
ENVELOPE = Envelope(
    sender="site@example.com",
    recipients=("jo@example.org",),
    mime=b"From: site@example.com\r\n\r\nBody\r\n",
    tags={"connect-mailer-id": "6f9619ff-8b86-d011-b42d-00cf4fc964ff"},
)


class Recorder(socketserver.StreamRequestHandler):
    """Notes requests as they come, byte by byte, and accepts them; as slowly as it is told."""

    def handle(self) -> None:
        while (lines := [self.rfile.readline()]) != [b""]:
            while lines[-1] != b"\r\n":
                lines.append(self.rfile.readline())
            [length] = [line.split()[1] for line in lines if line.startswith(b"Content-Length:")]
            content = self.read_slowly(int(length)) if self.pause else self.rfile.read(int(length))
            if len(content) < int(length):
                return
            self.server.requests.append((lines, content))  # type: ignore[attr-defined]
            body = json.dumps({"MessageId": ID}).encode()
            head = self.server.head or b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"  # type: ignore[attr-defined]
            self.wfile.write(head % len(body) + body)

    pause = 0.0

    def read_slowly(self, length: int) -> bytes:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        content = b""
        while len(content) < length:
            time.sleep(self.pause)
            piece = self.rfile.read(min(2**18, length - len(content)))
            if not piece:
                break
            content += piece
        return content


@pytest.fixture(scope="module")
def recorder() -> Iterator[Any]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Recorder) as server:
        server.daemon_threads = True
        server.requests = []  # type: ignore[attr-defined]
        server.head = b""  # type: ignore[attr-defined]
        server.url = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def _no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    # moto's stays in every later client of the process that imported it.
    own = [one for one in handlers.BUILTIN_HANDLERS if one[1].__module__.startswith("botocore.")]
    monkeypatch.setattr(handlers, "BUILTIN_HANDLERS", own)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def make(url: str | None, **changes: Any) -> SESClient:
    options: dict[str, Any] = {
        "region": "us-east-1",
        "endpoint_url": url,
        "access_key_id": "test",
        "secret_access_key": "secret",
        "configuration_set": None,
        "tenant": None,
        "concurrency": 4,
        "connect_timeout": 3.0,
        "read_timeout": 10.0,
    }
    return SESClient(**{**options, **changes})


def is_lean(made: SESClient) -> bool:
    chosen = made._choose(made._get_client())
    made.close()
    return isinstance(chosen, lean.LeanSender)


def read(request: tuple[list[bytes], bytes]) -> tuple[bytes, list[bytes], bytes]:
    """A request without what may differ: the order of its headers, and who makes it."""
    (first, *lines), body = request
    lines = [line for line in lines if not line.startswith(b"User-Agent:")]
    identity = rb"(amz-sdk-invocation-id: )[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\r\n"
    lines = [re.sub(identity, rb"\1", line) for line in lines]
    assert b"amz-sdk-invocation-id: " in lines
    return first, sorted(lines), body


YEAR_2000 = dt.datetime(2000, 1, 1)  # noqa: DTZ001 - as hypothesis wants it
TAGS = st.dictionaries(*[st.from_regex(r"[A-Za-z0-9_-]{1,256}", fullmatch=True)] * 2, max_size=5)
ENVELOPES = st.builds(
    Envelope,
    sender=st.just("site@example.com"),
    recipients=st.lists(st.text(st.characters(codec="ascii"), min_size=1), max_size=50).map(tuple),
    mime=st.binary(max_size=5000),
    tags=TAGS | st.just({'"Data": "': '"Data": "'}),
)


@pytest.fixture(scope="module")
def clients(recorder: Any) -> Iterator[Callable[..., Any]]:
    made: dict[Any, SESClient] = {}

    def get(is_lean: bool, token: str | None, extra: str | None) -> SESClient:
        key = (is_lean, token, extra)
        if key not in made:
            options: Any = {"session_token": token, "configuration_set": extra, "tenant": extra}
            made[key] = make(recorder.url, is_lean=is_lean, **options)
            made[key].send(ENVELOPE)
            recorder.requests.pop()
            kind = type(made[key]._send_email) is lean.LeanSender
            assert kind is is_lean
        return made[key]

    yield get
    for one in made.values():
        one.close()


class TestRequest:
    @settings(deadline=None)
    @given(
        envelope=ENVELOPES,
        now=st.datetimes(min_value=YEAR_2000, timezones=st.just(dt.UTC)),
        token=st.sampled_from([None, "a token+/="]),
        extra=st.sampled_from([None, "events"]),
    )
    def test_is_that_of_boto3(
        self,
        recorder: Any,
        clients: Callable[..., Any],
        envelope: Envelope,
        now: dt.datetime,
        token: str | None,
        extra: str | None,
    ) -> None:
        recorder.requests.clear()
        with (
            mock.patch.object(auth, "get_current_datetime", return_value=now),
            mock.patch.object(lean, "gmtime", return_value=now.utctimetuple()),
        ):
            for is_lean in (True, False):
                assert clients(is_lean, token, extra).send(envelope) == ID

        by_lean, by_boto3 = map(read, recorder.requests)
        assert by_lean == by_boto3

    def test_of_a_large_message(self, recorder: Any) -> None:
        mime = os.urandom(3 * lean._PIECE_BYTES)
        recorder.requests.clear()
        for is_lean in (True, False):
            made = make(recorder.url, is_lean=is_lean)
            made.send(Envelope(sender="", recipients=("a@b.c",), mime=mime, tags={}))
            made.close()

        assert recorder.requests[0][1] == recorder.requests[1][1]

    @pytest.mark.parametrize("path", ["", "/", "/ses", "/ses/"])
    def test_to_an_endpoint_with_a_path(self, recorder: Any, path: str) -> None:
        recorder.requests.clear()
        for is_lean in (True, False):
            made = make(recorder.url + path, is_lean=is_lean)
            made.send(ENVELOPE)
            made.close()

        assert recorder.requests[0][0][0] == recorder.requests[1][0][0]

    @pytest.mark.parametrize(
        ("name", "host"),
        [
            ("", "email.eu-west-1.amazonaws.com"),
            ("AWS_USE_FIPS_ENDPOINT", "email-fips.eu-west-1.amazonaws.com"),
            ("AWS_USE_DUALSTACK_ENDPOINT", "email.eu-west-1.api.aws"),
        ],
    )
    def test_goes_where_boto3_goes(
        self, name: str, host: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if name:
            monkeypatch.setenv(name, "true")
        made = make(None, region="eu-west-1")
        chosen: Any = made._choose(made._get_client())
        assert isinstance(chosen, lean.LeanSender)
        assert chosen._url == f"https://{host}/v2/email/outbound-emails"
        assert f"\r\nHost: {host}\r\n" in chosen._exchange._start

    @pytest.mark.parametrize("is_lean", [True, False])
    def test_credentials_are_refreshed(
        self, recorder: Any, is_lean: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "keys.py").write_text(KEYS)
        (tmp_path / "config").write_text(
            f"[default]\ncredential_process = {sys.executable} {tmp_path / 'keys.py'}\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        made = make(recorder.url, is_lean=is_lean, access_key_id=None, secret_access_key=None)
        recorder.requests.clear()

        made.send(ENVELOPE)
        made.send(ENVELOPE)
        made.close()

        keys = [
            int(match[1])
            for lines, _ in recorder.requests
            if (match := re.search(rb"Credential=KEY(\d+)/.* Signature=", b"".join(lines)))
        ]
        assert len(keys) == 2
        assert keys[0] < keys[1]


# They are about to expire, so that each request gets new ones.
KEYS = """
import datetime, json, pathlib
count = pathlib.Path(__file__).with_name("count")
number = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(number))
expiry = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=1)
print(json.dumps({
    "Version": 1, "AccessKeyId": f"KEY{number}", "SecretAccessKey": "s", "SessionToken": "t",
    "Expiration": expiry.isoformat(),
}))
"""


class TestAnswer:
    @pytest.mark.parametrize(
        "head",
        [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length:%d\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n",
        ],
    )
    def test_in_an_unusual_form(self, recorder: Any, head: bytes) -> None:
        recorder.head = head
        try:
            made = make(recorder.url, read_timeout=0.2)
            if b"chunked" not in head:
                assert made.send(ENVELOPE) == ID
            else:  # and the end of it is missing
                with pytest.raises(InDoubt):
                    made.send(ENVELOPE)
            made.close()
        finally:
            recorder.head = b""


class TestBegin:
    """It is called once, when all is ready to be sent, and nothing is sent before."""

    @pytest.mark.parametrize("is_lean", [True, False])
    def test_nothing_was_sent(self, recorder: Any, is_lean: bool) -> None:
        made = make(recorder.url, is_lean=is_lean)
        made._choose(made._get_client())
        recorder.requests.clear()
        seen: list[int] = []

        assert made.send(ENVELOPE, lambda: seen.append(len(recorder.requests))) == ID
        made.close()

        assert seen == [0]

    def test_it_has_a_connection(self, recorder: Any) -> None:
        made = make(recorder.url)
        opened: list[bool] = []

        def look() -> None:
            sender: Any = made._send_email
            opened.append(sender._exchange._pool.num_connections == 1)

        made.send(ENVELOPE, look)
        made.close()
        assert opened == [True]

    def test_it_could_not_connect(self) -> None:
        made = make("http://127.0.0.1:9")
        calls: list[int] = []

        with pytest.raises(Unavailable):
            made.send(ENVELOPE, lambda: calls.append(1))
        assert calls == [1]

    def test_what_it_raises_ends_the_call(self, recorder: Any) -> None:
        made = make(recorder.url)
        made.send(ENVELOPE)
        recorder.requests.clear()

        def refuse() -> None:
            raise LookupError

        with pytest.raises(LookupError):
            made.send(ENVELOPE, refuse)
        assert made.send(ENVELOPE) == ID
        made.close()
        assert len(recorder.requests) == 1


# More than buffers on the way hold; as base64, 12 MB.
LARGE = Envelope(sender="", recipients=("a@b.c",), mime=b"\xff" * 9_000_000, tags={})


class TestSlowLine:
    """What was not written to its end can't have been sent; and has a limit as a whole."""

    @pytest.fixture
    def connect(self) -> Iterator[Callable[..., SESClient]]:
        clients = []

        def get_ready(url: str, **changes: Any) -> SESClient:
            made = make(url, **changes)
            assert isinstance(made._choose(made._get_client()), lean.LeanSender)
            clients.append(made)
            return made

        yield get_ready
        for made in clients:
            made.close()

    @pytest.mark.parametrize("has_tls", [False, True])
    def test_it_ends_in_time(
        self,
        recorder: Any,
        serve: Any,
        connect: Callable[..., SESClient],
        monkeypatch: pytest.MonkeyPatch,
        has_tls: bool,
    ) -> None:
        """Though there is progress all the time: it would take a second."""
        monkeypatch.setattr(Recorder, "pause", 0.02)
        url = recorder.url
        if has_tls:
            url, pem, recorder = serve("localhost")
            trust(monkeypatch, pem)
        recorder.requests.clear()
        made = connect(url, upload_seconds=0.3)

        with pytest.raises(Unavailable, match=r"was written: .*(more than 0\.3 s|timed out)"):
            made.send(LARGE)
        assert recorder.requests == []

        monkeypatch.setattr(Recorder, "pause", 0.0)
        assert made.send(ENVELOPE) == ID, "by another connection"

    def test_it_is_slow_but_in_time(
        self, recorder: Any, connect: Callable[..., SESClient], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Recorder, "pause", 0.02)

        assert connect(recorder.url, read_timeout=0.7, upload_seconds=20).send(LARGE) == ID

    def test_it_stands_still(self, connect: Callable[..., SESClient]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            started_at = time.monotonic()
            with pytest.raises(Unavailable, match="timed out"):
                connect(url, read_timeout=0.2, upload_seconds=20).send(LARGE)
            assert time.monotonic() - started_at < 10

    def test_it_breaks(
        self, recorder: Any, connect: Callable[..., SESClient], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Recorder, "handle", lambda self: self.rfile.readline())

        with pytest.raises(Unavailable, match="Not all of the request was written"):
            connect(recorder.url).send(LARGE)


class TestUnusual:
    """Left to boto3."""

    def test_the_usual(self, recorder: Any) -> None:
        assert is_lean(make(recorder.url))

    def test_switched_off(self, recorder: Any) -> None:
        assert not is_lean(make(recorder.url, is_lean=False))

    @pytest.mark.parametrize("event", ["before-send", "request-created.sesv2", "after-call"])
    def test_hooks(self, recorder: Any, event: str, monkeypatch: pytest.MonkeyPatch) -> None:
        more = [*handlers.BUILTIN_HANDLERS, (event, lambda **kwargs: None)]
        monkeypatch.setattr(handlers, "BUILTIN_HANDLERS", more)

        assert not is_lean(make(recorder.url))

    def test_wrapped(self, recorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """As tracing libraries do."""
        call = client.BaseClient._make_api_call
        wrapper = lambda self, *args: call(self, *args)  # noqa: E731
        monkeypatch.setattr(client.BaseClient, "_make_api_call", wrapper)

        assert not is_lean(make(recorder.url))

    def test_a_proxy(self, recorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "")

        assert not is_lean(make(recorder.url))

    @pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
    def test_a_private_ca(
        self, recorder: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pem, _ = make_certificate(tmp_path, "localhost")
        assert is_lean(make("https://localhost:1"))
        monkeypatch.setenv(name, str(pem))

        assert not is_lean(make("https://localhost:1"))
        assert is_lean(make(recorder.url)), "which asks for no certificate"

    @pytest.mark.parametrize("part", ["scope", "signature", "string_to_sign"])
    def test_another_signature(
        self, recorder: Any, part: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(auth.SigV4Auth, part, lambda *args: "another")

        assert not is_lean(make(recorder.url))

    def test_a_header_more(self, recorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "f")
        monkeypatch.setenv("_X_AMZN_TRACE_ID", "Root=1-5759e988-bd862e3fe1be46a994272793")

        assert not is_lean(make(recorder.url))

    def test_a_botocore_that_is_made_differently(
        self, recorder: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(lean.AWSRequest, "__init__")

        assert not is_lean(make(recorder.url))


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, key_file = folder / "certificate.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pem, key_file


def trust(monkeypatch: pytest.MonkeyPatch, pem: Path) -> None:
    """As the certificates that come with botocore or certifi."""
    monkeypatch.setattr(httpsession, "where", lambda: str(pem))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[str, Path, Any]]]:
    servers = []

    def start(name: str) -> tuple[str, Path, Any]:
        pem, key = make_certificate(tmp_path, name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem, key)

        class Handler(Recorder):
            def setup(self) -> None:
                self.server.opened += 1  # type: ignore[attr-defined]
                self.request = context.wrap_socket(self.request, server_side=True)
                super().setup()

            def finish(self) -> None:
                super().finish()
                self.request.close()

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.handle_error = lambda *args: None  # type: ignore[method-assign]
        server.requests, server.head, server.opened = [], b"", 0  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        servers.append(server)
        return f"https://localhost:{server.server_address[1]}", pem, server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_credentials_that_take_long_hold_up_no_other(recorder: Any) -> None:
    """They are asked for by one call, while others have some that are still good."""
    made = make(recorder.url)
    made.send(ENVELOPE)
    sender: Any = made._send_email
    kept, is_refreshed = sender._credentials, threading.Event()
    asked: list[int] = []
    answered: list[int] = []

    class Credentials:
        def get_frozen_credentials(self) -> Any:
            asked.append(1)
            if len(asked) == 1:
                is_refreshed.wait(5)
            return kept.get_frozen_credentials()

    def call(number: int) -> Steps[str]:
        answer = yield from made.steps(ENVELOPE, at_once)
        answered.append(number)
        if len(answered) == 2:
            is_refreshed.set()
        return answer

    sender._credentials = Credentials()
    ended = call_all(call, range(3))
    made.close()

    assert [answer for _, answer in ended] == [ID] * 3
    assert ended[-1][0] == 0


@pytest.mark.parametrize("is_lean", [True, False])
class TestTLS:
    def test_is_kept(self, is_lean: bool, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        url, pem, server = serve("localhost")
        trust(monkeypatch, pem)
        made = make(url, is_lean=is_lean)

        assert [made.send(ENVELOPE) for _ in range(3)] == [ID] * 3
        assert isinstance(made._send_email, lean.LeanSender) is is_lean

        made.close()
        assert server.opened == 1

    def test_many_at_once(self, is_lean: bool, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server tells each connection about itself before it answers (session tickets)."""
        url, pem, server = serve("localhost")
        trust(monkeypatch, pem)
        monkeypatch.setattr(Recorder, "pause", 0.02)
        made = make(url, is_lean=is_lean, concurrency=10)
        made._choose(made._get_client())

        ended = call_all(lambda _: made.steps(ENVELOPE, at_once), range(40), concurrency=10)
        made.close()

        assert {answer for _, answer in ended} == {ID}
        assert server.opened <= 10

    def test_nobody_vouches_for_it(self, is_lean: bool, serve: Any) -> None:
        url, _, server = serve("localhost")

        made = make(url, is_lean=is_lean)
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            made.send(ENVELOPE)
        made.close()
        assert server.requests == []

    def test_it_has_another_name(
        self, is_lean: bool, serve: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url, pem, server = serve("example.org")
        trust(monkeypatch, pem)

        made = make(url, is_lean=is_lean)
        with pytest.raises(Unavailable, match="doesn't match"):
            made.send(ENVELOPE)
        made.close()
        assert server.requests == []

    def test_it_breaks_after_the_request(
        self, is_lean: bool, serve: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url, pem, server = serve("localhost")
        trust(monkeypatch, pem)

        def handle(self: Recorder) -> None:
            self.rfile.readline()
            with socket.socket(fileno=self.request.detach()) as raw:
                raw.sendall(b"nonsense" * 10)

        monkeypatch.setattr(server.RequestHandlerClass, "handle", handle)

        made = make(url, is_lean=is_lean)
        with pytest.raises(InDoubt):
            made.send(ENVELOPE)
        made.close()

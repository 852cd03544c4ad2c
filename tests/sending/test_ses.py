"""The SES client, against the local SES over HTTP, against moto, and against broken networks."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
from botocore import handlers

from connect_mailer.exceptions import (
    AccountProblem,
    DeliveryError,
    InDoubt,
    InvalidMessage,
    Rejected,
    SenderDenied,
    Throttled,
    Unavailable,
)
from connect_mailer.sending.ses import (
    MAX_MESSAGE_BYTES,
    Account,
    Envelope,
    SESClient,
    check_tag,
    size_as_ses_counts,
)
from connect_mailer.testing.ses import Fault, LocalSES

MIME = (
    b"From: =?utf-8?q?The_=C3=9Cber-Site?= <site@example.com>\r\n"
    b"To: Jo <jo@example.org>\r\nSubject: Hi\r\n\r\nBody\r\n"
)
ENVELOPE = Envelope(
    sender="site@example.com",
    recipients=("jo@example.org", "hidden@example.org"),
    mime=MIME,
    tags={"connect-mailer-id": "6f9619ff-8b86-d011-b42d-00cf4fc964ff", "campaign": "spring"},
)


@pytest.fixture
def ses() -> Iterator[LocalSES]:
    with LocalSES() as server:
        yield server


@pytest.fixture(params=["lean", "boto3"])
def connect(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., SESClient]]:
    """Make clients that send by the one and by the other way, and close them."""
    clients: list[SESClient] = []
    ways: set[tuple[str, str]] = set()
    # moto's hook stays in every later client of the process that imported it: now, not later.
    import_module("moto.core")
    own = [one for one in handlers.BUILTIN_HANDLERS if one[1].__module__.startswith("botocore.")]
    monkeypatch.setattr(handlers, "BUILTIN_HANDLERS", own)
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)

    def make(url: str | None, **changes: Any) -> SESClient:
        options: dict[str, Any] = {
            "region": "us-east-1",
            "endpoint_url": url,
            "access_key_id": "test",
            "secret_access_key": "test",
            "configuration_set": None,
            "tenant": None,
            "concurrency": 4,
            "connect_timeout": 3.0,
            "read_timeout": 10.0,
            "is_lean": request.param == "lean",
        }
        clients.append(SESClient(**{**options, **changes}))
        return clients[-1]

    yield make
    for client in clients:
        ways.add((request.param, type(client._send_email).__name__))
        client.close()
    assert ways <= {("lean", "LeanSender"), ("boto3", "partial"), (request.param, "NoneType")}


@contextmanager
def server_that_answers(answer: bytes, *, reset: bool = False) -> Iterator[str]:
    """A server that reads one request, writes ``answer`` and closes or resets the connection.

    A TLS handshake is read and answered in the same way.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                if stream.peek(1)[:1] == b"\x16":
                    stream.read(int.from_bytes(stream.read(5)[3:]))
                else:
                    length = 0
                    while (line := stream.readline()).strip():
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                    stream.read(length)
                connection.sendall(answer)
                if reset:
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.fixture
def no_aws_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that boto3 could find on this machine."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("BOTO_CONFIG", "/nonexistent")


class TestSend:
    def test_hands_over_the_envelope_and_the_very_bytes(
        self, ses: LocalSES, connect: Callable[..., SESClient]
    ) -> None:
        client = connect(ses.url, configuration_set="events", tenant="site")

        message_id = client.send(ENVELOPE)

        (mail,) = ses.mailbox()
        assert mail.message_id == message_id
        assert mail.recipients == ENVELOPE.recipients
        assert mail.mime == MIME
        assert mail.tags == ENVELOPE.tags
        assert (mail.configuration_set, mail.tenant) == ("events", "site")

    def test_keeps_the_senders_display_name(
        self, ses: LocalSES, connect: Callable[..., SESClient]
    ) -> None:
        connect(ses.url).send(ENVELOPE)

        assert ses.mailbox()[0].message["From"] == "The Über-Site <site@example.com>"

    def test_is_understood_by_moto(
        self, connect: Callable[..., SESClient], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import boto3
        from moto.moto_api._internal import moto_api_backend
        from moto.server import ThreadedMotoServer
        from moto.ses.models import ses_backends

        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            url = f"http://{host}:{port}"
            client = connect(url)
            with pytest.raises(Rejected, match=r"MessageRejected: Did not have authority"):
                client.send(ENVELOPE)
            identities = boto3.client(
                "ses",
                endpoint_url=url,
                region_name="us-east-1",
                aws_access_key_id="test",
                aws_secret_access_key="test",
            )
            identities.verify_domain_identity(Domain="example.com")
            identities.close()

            message_id = client.send(ENVELOPE)

            (sent,) = ses_backends["123456789012"]["us-east-1"].sent_messages
            assert sent.id == message_id
            assert sent.raw_data.encode() == MIME
            assert set(ENVELOPE.recipients) <= set(sent.destinations)
        finally:
            server.stop()
            moto_api_backend.reset()

    def test_all_threads_share_one_client_and_its_connections(
        self, ses: LocalSES, connect: Callable[..., SESClient]
    ) -> None:
        client = connect(ses.url, concurrency=4)

        with ThreadPoolExecutor(4) as pool:
            ids = set(pool.map(client.send, [ENVELOPE] * 100))

        assert len(ids) == 100
        assert ses.stats().accepted == 100
        assert ses.stats().connections_opened <= 4

    def test_can_be_used_again_after_close(
        self, ses: LocalSES, connect: Callable[..., SESClient]
    ) -> None:
        client = connect(ses.url)
        client.send(ENVELOPE)
        client.close()

        client.send(ENVELOPE)

        assert len(ses.mailbox()) == 2


class TestAnswers:
    """What each answer means: one row of the table in the design a group."""

    @pytest.mark.parametrize(
        ("code", "message", "meaning"),
        [
            ("TooManyRequestsException", "Maximum sending rate exceeded.", Throttled),
            ("Throttling", "Maximum sending rate exceeded.", Throttled),
            ("ThrottlingException", "Rate exceeded", Throttled),
            ("LimitExceededException", "Maximum sending rate exceeded.", Throttled),
            ("TooManyRequestsException", "Daily message quota exceeded.", AccountProblem),
            ("LimitExceededException", "Daily message quota exceeded.", AccountProblem),
            ("Throttling", "Daily message quota exceeded.", AccountProblem),
            ("SendingPausedException", "Sending paused for this account.", AccountProblem),
            ("AccountSuspendedException", "Sending suspended.", AccountProblem),
            ("MessageRejected", "Sending paused for this account.", AccountProblem),
            ("ExpiredTokenException", "The security token is expired", AccountProblem),
            (
                "ExpiredToken",
                "The security token included in the request is expired",
                AccountProblem,
            ),
            # This machine's clock is wrong.
            ("RequestExpired", "Request has expired", AccountProblem),
            ("InvalidSignatureException", "Signature expired: 20261124T1 is now", AccountProblem),
            ("SignatureDoesNotMatch", "Signature not yet current: 2026112", AccountProblem),
            ("UnrecognizedClientException", "The security token is invalid.", AccountProblem),
            ("InvalidSignatureException", "The signature does not match", AccountProblem),
            ("InvalidClientTokenId", "The token is invalid", AccountProblem),
            ("AccessDeniedException", "not authorized: ses:SendRawEmail", SenderDenied),
            ("MailFromDomainNotVerifiedException", "", SenderDenied),
            ("MessageRejected", "Email address is not verified. The following", SenderDenied),
            ("InternalServiceErrorException", "", Unavailable),
            ("InternalFailure", "", Unavailable),
            ("ServiceUnavailable", "", Unavailable),
            ("SomethingNewException", "of which nobody heard", Unavailable),
            ("RequestAbortedException", "", InDoubt),
            ("MessageRejected", "Transaction failed: virus", Rejected),
            ("BadRequestException", "Missing final '@domain'.", Rejected),
            ("ValidationException", "", Rejected),
        ],
    )
    def test_of_ses(
        self,
        ses: LocalSES,
        connect: Callable[..., SESClient],
        code: str,
        message: str,
        meaning: type[DeliveryError],
    ) -> None:
        ses.inject(Fault(code=code, message=message))

        with pytest.raises(DeliveryError) as caught:
            connect(ses.url).send(ENVELOPE)

        assert caught.type is meaning
        assert str(caught.value) == f"{code}: {message}"

    @pytest.mark.parametrize(
        ("status", "meaning"),
        [
            (301, Unavailable),
            (403, AccountProblem),
            (404, Unavailable),
            (407, Unavailable),
            (429, Throttled),
            (500, Unavailable),
            (502, InDoubt),
            (503, Unavailable),
            (504, InDoubt),
        ],
    )
    def test_of_something_on_the_way(
        self,
        ses: LocalSES,
        connect: Callable[..., SESClient],
        status: int,
        meaning: type[DeliveryError],
    ) -> None:
        ses.inject(Fault(status=status))

        with pytest.raises(DeliveryError) as caught:
            connect(ses.url).send(ENVELOPE)

        assert caught.type is meaning

    def test_the_words_of_a_message_do_not_pause_the_account(
        self, ses: LocalSES, connect: Callable[..., SESClient]
    ) -> None:
        ses.inject(Fault(code="BadRequestException", message="Bad: 'daily message quota exceeded'"))

        with pytest.raises(Rejected):
            connect(ses.url).send(ENVELOPE)

    def test_a_configuration_set_of_the_settings_is_the_accounts_problem(
        self, ses: LocalSES, connect: Callable[..., SESClient]
    ) -> None:
        ses.configure(configuration_sets=("other",))

        with pytest.raises(AccountProblem, match=r"Configuration set <events> does not exist"):
            connect(ses.url, configuration_set="events").send(ENVELOPE)

    def test_a_configuration_set_of_a_message_is_its_own_problem(
        self, ses: LocalSES, connect: Callable[..., SESClient]
    ) -> None:
        ses.inject(Fault(code="NotFoundException", message="Configuration set <x> is missing"))

        with pytest.raises(Rejected):
            connect(ses.url).send(ENVELOPE)

    def test_the_text_is_short_and_one_line(
        self, ses: LocalSES, connect: Callable[..., SESClient]
    ) -> None:
        ses.inject(Fault(code="MessageRejected", message="a\r\nb\x1b[31m" + "c" * 1000))

        with pytest.raises(Rejected) as caught:
            connect(ses.url).send(ENVELOPE)

        assert len(str(caught.value)) == 500
        assert str(caught.value).isprintable()

    def test_no_attempt_is_made_that_was_not_asked_for(
        self, ses: LocalSES, connect: Callable[..., SESClient]
    ) -> None:
        ses.inject(Fault(code="ServiceUnavailable", times=None))

        with pytest.raises(Unavailable):
            connect(ses.url).send(ENVELOPE)

        assert ses.stats().refused == 1

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            # Good, without an id.
            (b"200 OK", b""),
            (b"200 OK", b"<html></html>"),
            (b"200 OK", b'{"MessageId": "0100'),
            (b"200 OK", b"{}"),
            (b"200 OK", b'{"MessageId": null}'),
            # Of a gateway that waited in vain, whatever its page looks like.
            (b"504 Gateway Timeout", b"<h1>D\xe9lai d\xe9pass\xe9</h1>"),
            (b"504 Gateway Timeout", b'"timeout"'),
            (b"504 Gateway Timeout", b"[]"),
            (b"504 Gateway Timeout", b"<html></html>"),
        ],
    )
    def test_an_answer_that_does_not_say_what_became_of_it_leaves_doubt(
        self, connect: Callable[..., SESClient], status: bytes, body: bytes
    ) -> None:
        answer = b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
        with server_that_answers(answer) as url, pytest.raises(InDoubt):
            connect(url).send(ENVELOPE)


class TestNetwork:
    def test_refused(self, connect: Callable[..., SESClient]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]

        with pytest.raises(Unavailable, match="ConnectionError"):
            connect(f"http://127.0.0.1:{port}").send(ENVELOPE)

    def test_no_tls(self, connect: Callable[..., SESClient]) -> None:
        answer = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        with server_that_answers(answer) as url, pytest.raises(Unavailable, match="SSLError"):
            connect(url.replace("http:", "https:")).send(ENVELOPE)

    @pytest.mark.parametrize("reset", [False, True])
    def test_lost_while_tls_was_negotiated(
        self, connect: Callable[..., SESClient], reset: bool
    ) -> None:
        """Nothing of the message had been written."""
        with server_that_answers(b"", reset=reset) as url, pytest.raises(Unavailable):
            connect(url.replace("http:", "https:")).send(ENVELOPE)

    def test_no_answer_while_tls_was_negotiated(self, connect: Callable[..., SESClient]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"https://127.0.0.1:{listener.getsockname()[1]}"
            with pytest.raises(Unavailable):
                connect(url, connect_timeout=0.05).send(ENVELOPE)

    @pytest.mark.parametrize("reset", [False, True])
    @pytest.mark.parametrize(("lost", "accepted"), [("before", 0), ("after", 1), ("cut", 1)])
    def test_connection_lost(
        self,
        ses: LocalSES,
        connect: Callable[..., SESClient],
        lost: Any,
        accepted: int,
        reset: bool,
    ) -> None:
        """Whether it was accepted can't be told from here: in doubt."""
        ses.inject(Fault(lost=lost, reset=reset))

        with pytest.raises(InDoubt):
            connect(ses.url).send(ENVELOPE)

        assert len(ses.mailbox()) == accepted

    @pytest.mark.parametrize("answer", [b"", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-"])
    def test_no_answer_or_none_that_is_one(
        self, connect: Callable[..., SESClient], answer: bytes
    ) -> None:
        with server_that_answers(answer) as url, pytest.raises(InDoubt):
            connect(url).send(ENVELOPE)

    def test_answer_too_late(self, connect: Callable[..., SESClient]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with pytest.raises(InDoubt, match="TimeoutError"):
                connect(url, read_timeout=0.05).send(ENVELOPE)

    def test_a_connection_that_went_stale_is_noticed(
        self, ses: LocalSES, connect: Callable[..., SESClient]
    ) -> None:
        client = connect(ses.url)
        client.send(ENVELOPE)
        client.send(ENVELOPE)
        assert ses.stats().connections_opened == 1
        ses.close_connections()

        client.send(ENVELOPE)

        assert ses.stats().connections_opened == 2
        assert len(ses.mailbox()) == 3


@pytest.mark.usefixtures("no_aws_settings")
class TestSettings:
    """What can't be used pauses all, so that no message is failed for it."""

    def test_no_credentials(self, ses: LocalSES, connect: Callable[..., SESClient]) -> None:
        client = connect(ses.url, access_key_id=None, secret_access_key=None)

        with pytest.raises(AccountProblem, match="Unable to locate credentials"):
            client.send(ENVELOPE)

    def test_no_region(self, connect: Callable[..., SESClient]) -> None:
        # As seacucumber had it.
        assert connect(None, region=None)._get_client().meta.region_name == "us-east-1"

    def test_the_region_of_the_environment(
        self, connect: Callable[..., SESClient], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")

        assert connect(None, region=None)._get_client().meta.region_name == "eu-west-1"

    def test_a_region_that_is_none(
        self, connect: Callable[..., SESClient], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1 ")

        with pytest.raises(AccountProblem, match=r"The region of SES .* 'eu-west-1 '"):
            connect(None, region=None).send(ENVELOPE)

    def test_no_profile(
        self, connect: Callable[..., SESClient], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_PROFILE", "missing")

        with pytest.raises(AccountProblem, match="ProfileNotFound"):
            connect(None).send(ENVELOPE)

    def test_no_endpoint(self, connect: Callable[..., SESClient]) -> None:
        with pytest.raises(AccountProblem, match=r'CONNECT_MAILER\["SES_ENDPOINT_URL"\]'):
            connect("not a url").send(ENVELOPE)


class TestGetAccount:
    def test_what_ses_says(self, ses: LocalSES, connect: Callable[..., SESClient]) -> None:
        ses.configure(rate=14, daily_quota=50_000, sending_paused=True, production_access=False)

        assert connect(ses.url).get_account() == Account(
            max_send_rate=14.0,
            max_24_hour_send=50_000.0,
            sent_last_24_hours=0.0,
            sending_enabled=False,
            production_access=False,
            enforcement_status="HEALTHY",
        )

    def test_counts_what_was_sent(self, ses: LocalSES, connect: Callable[..., SESClient]) -> None:
        client = connect(ses.url)
        client.send(ENVELOPE)

        assert client.get_account().sent_last_24_hours == 2

    def test_may_not_ask(self, ses: LocalSES, connect: Callable[..., SESClient]) -> None:
        ses.configure(may_get_account=False)

        with pytest.raises(SenderDenied, match=r"perform: ses:GetAccount"):
            connect(ses.url).get_account()

    @pytest.mark.parametrize(
        ("fault", "meaning"),
        [
            (Fault(operation="GetAccount", lost="before"), Unavailable),
            (Fault(operation="GetAccount", code="TooManyRequestsException"), Throttled),
            (Fault(operation="GetAccount", code="ExpiredTokenException"), AccountProblem),
        ],
    )
    def test_no_answer_is_never_in_doubt(
        self,
        ses: LocalSES,
        connect: Callable[..., SESClient],
        fault: Fault,
        meaning: type[DeliveryError],
    ) -> None:
        ses.inject(fault)

        with pytest.raises(meaning):
            connect(ses.url).get_account()


class TestProcess:
    def run(self, script: str, *arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script, *arguments],
            check=True,
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout)

    def test_nothing_heavy_is_imported_before_the_first_call(self) -> None:
        script = """
import json, sys
from connect_mailer.sending.ses import SESClient
SESClient(region="x", endpoint_url=None, access_key_id=None, secret_access_key=None,
          configuration_set=None, tenant=None, concurrency=1, connect_timeout=1, read_timeout=1)
heavy = {"boto3", "botocore", "urllib3", "django.db", "connect_mailer.conf"}
print(json.dumps(sorted(heavy.intersection(sys.modules))))
"""
        assert self.run(script) == []

    def test_a_forked_child_connects_anew(self, ses: LocalSES) -> None:
        script = """
import json, os, sys
from connect_mailer.sending.ses import Envelope, SESClient
client = SESClient(
    region="us-east-1", endpoint_url=sys.argv[1], access_key_id="a", secret_access_key="b",
    configuration_set=None, tenant=None, concurrency=1, connect_timeout=3, read_timeout=10,
)
def send(name):
    return client.send(Envelope(
        sender="site@example.com", recipients=(name + "@example.org",), tags={},
        mime=b"From: site@example.com\\r\\n\\r\\n",
    ))
ids = [send("parent")]
child = os.fork()
if child == 0:
    send("child")
    client.close()
    os._exit(0)
status = os.waitpid(child, 0)[1]
ids.append(send("parent"))
client.close()
print(json.dumps([status, ids]))
"""
        status, ids = self.run(script, ses.url)

        assert status == 0
        mails = ses.mailbox()
        assert [mail.recipients[0] for mail in mails] == [
            "parent@example.org",
            "child@example.org",
            "parent@example.org",
        ]
        assert [mails[0].message_id, mails[2].message_id] == ids
        assert ses.stats().connections_opened == 2


class TestCheckTag:
    @pytest.mark.parametrize("text", ["a", "connect-mailer_id", "A9", "x" * 256])
    def test_takes(self, text: str) -> None:
        check_tag(text, text)

    @pytest.mark.parametrize("text", ["", "a b", "a.b", "é", "a\n", "x" * 257])
    def test_refuses(self, text: str) -> None:
        with pytest.raises(InvalidMessage, match="The value"):
            check_tag("name", text)
        with pytest.raises(InvalidMessage, match="The name"):
            check_tag(text, "value")


def test_the_size_is_that_of_the_message_as_it_is_transferred() -> None:
    assert size_as_ses_counts(MIME) == len(MIME)
    assert MAX_MESSAGE_BYTES == 41_943_040

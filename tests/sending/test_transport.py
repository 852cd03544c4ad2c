"""Frozen messages through Django's own backends."""

from __future__ import annotations

import io
import logging
import socket
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import django
import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.mail.backends.base import BaseEmailBackend

from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.models import OutgoingMessage
from connect_mailer.sending import transport
from connect_mailer.testing.outbox import deliver_all
from connect_mailer.testing.ses import LocalSES

pytestmark = pytest.mark.django_db


def queue() -> bytes:
    """Queue one message; return its frozen bytes."""
    message = EmailMultiAlternatives(
        "Grüße", "text ä", "Site <site@example.com>", ["Jo <jo@example.org>"], bcc=["b@example.org"]
    )
    message.attach_alternative("<p>html</p>", "text/html")
    ConnectMailerBackend().send_messages([message])
    content = OutgoingMessage.objects.get().content
    assert content is not None
    return bytes(content.mime)


def use(settings: Any, name: str, **options: Any) -> None:
    """Make one of Django's backends the transport; as an alias where there are aliases."""
    path = f"django.core.mail.backends.{name}.EmailBackend"
    if django.VERSION >= (6, 1) and options:
        settings.MAILERS = {"way-out": {"BACKEND": path, "OPTIONS": options}}
        settings.CONNECT_MAILER = {"TRANSPORT": "way-out"}
        return
    for option, value in options.items():
        setattr(settings, f"EMAIL_{option.upper()}", value)
    settings.CONNECT_MAILER = {"TRANSPORT": path}


def test_locmem(settings: Any, mailoutbox: list[EmailMessage]) -> None:
    use(settings, "locmem")
    mime = queue()

    assert deliver_all() == 1

    (message,) = mailoutbox
    assert (message.subject, message.body.strip()) == ("Grüße", "text ä")
    assert message.to == ["Jo <jo@example.org>"]
    assert set(message.recipients()) == {"jo@example.org", "b@example.org"}
    assert message.message().as_bytes() == mime.replace(b"\r\n", b"\n")
    assert OutgoingMessage.objects.get().status == "sent"


def test_a_transport_that_takes_a_text(settings: Any, mailoutbox: list[EmailMessage]) -> None:
    use(settings, "locmem")
    link = f"https://www.example.com/{'x' * 200}"
    settings.CONNECT_MAILER["UNSUBSCRIBE_BASE_URL"] = link
    message = EmailMessage("Grüße", "text", "site@example.com", ["jo@example.org"])
    ConnectMailerBackend().send_messages([message])
    content = OutgoingMessage.objects.get().content
    assert content is not None

    deliver_all()

    text = mailoutbox[0].message().as_string()
    assert f"\nList-Unsubscribe: <{link}/mail/" in f"\n{text}"
    assert text == bytes(content.mime).decode("ascii").replace("\r\n", "\n")


def test_console(settings: Any, capsys: pytest.CaptureFixture[str]) -> None:
    use(settings, "console")
    queue()

    deliver_all()

    assert "To: Jo <jo@example.org>" in capsys.readouterr().out


def test_filebased(settings: Any, tmp_path: Any) -> None:
    use(settings, "filebased", file_path=str(tmp_path))
    mime = queue()

    deliver_all()

    (file,) = tmp_path.iterdir()
    assert mime.replace(b"\r\n", b"\n") in file.read_bytes()


def test_dummy(settings: Any) -> None:
    use(settings, "dummy")
    queue()

    assert deliver_all() == 1


class SMTPHandler(socketserver.StreamRequestHandler):
    """Just enough SMTP; ``server.answer`` is what it says to a recipient."""

    def handle(self) -> None:
        self.wfile.write(b"220 hello\r\n")
        data = io.BytesIO()
        while line := self.rfile.readline():
            verb = line[:4].upper()
            if verb == b"RCPT":
                self.wfile.write(self.server.answer)  # type: ignore[attr-defined]
            elif verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                while (line := self.rfile.readline()) != b".\r\n":
                    data.write(line)
                self.server.received.append(data.getvalue())  # type: ignore[attr-defined]
                self.wfile.write(b"250 taken\r\n")
            elif verb == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 fine\r\n")


@pytest.fixture
def smtp(settings: Any) -> Iterator[Any]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), SMTPHandler) as server:
        server.daemon_threads = True
        server.answer = b"250 fine\r\n"  # type: ignore[attr-defined]
        server.received = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.server_address
        use(settings, "smtp", host=host, port=port)
        yield server
        server.shutdown()


def test_smtp_gets_the_very_bytes(smtp: Any) -> None:
    mime = queue()

    assert deliver_all() == 1

    assert smtp.received == [mime]


@pytest.mark.parametrize(
    ("answer", "status", "attempts"),
    [(b"550 no\r\n", "failed", 1), (b"450 later\r\n", "queued", 1)],
)
def test_smtp_refuses(smtp: Any, answer: bytes, status: str, attempts: int) -> None:
    smtp.answer = answer
    queue()

    assert deliver_all() == 0

    row = OutgoingMessage.objects.get()
    assert (row.status, row.attempts) == (status, 1)
    assert answer.split()[1].decode() in row.last_error


def test_smtp_never_answers(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "READ_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        use(settings, "smtp", host=host, port=port)
        queue()

        assert deliver_all() == 0

    assert "timed out" in OutgoingMessage.objects.get().last_error


class NothingBackend(BaseEmailBackend):
    """Says that it sent nothing."""

    def send_messages(self, email_messages: Any) -> int:
        return 0


def test_a_backend_that_sends_nothing(settings: Any) -> None:
    settings.CONNECT_MAILER = {"TRANSPORT": f"{__name__}.NothingBackend"}
    queue()

    assert deliver_all() == 0

    row = OutgoingMessage.objects.get()
    assert (row.status, row.attempts) == ("queued", 1)


def test_smtp_is_down(settings: Any) -> None:
    use(settings, "smtp", host="127.0.0.1", port=1)
    queue()

    assert deliver_all() == 0

    assert OutgoingMessage.objects.get().status == "queued"


@pytest.mark.parametrize(
    ("options", "sender"),
    [({}, "the lean sender"), ({"SES_CLIENT": "boto3"}, "boto3")],
    ids=["by default", "boto3"],
)
def test_the_setting_says_who_sends_to_ses(
    settings: Any, caplog: pytest.LogCaptureFixture, options: dict[str, str], sender: str
) -> None:
    caplog.set_level(logging.INFO, logger="connect_mailer.sending.ses")
    settings.AWS_ACCESS_KEY_ID = settings.AWS_SECRET_ACCESS_KEY = "test"
    with LocalSES() as ses:
        settings.CONNECT_MAILER = {"SES_REGION": "us-east-1", "SES_ENDPOINT_URL": ses.url} | options
        mime = queue()

        assert deliver_all() == 1

        transport.get_ses_client().close()
        [mail] = ses.mailbox()
        assert mail.mime == mime
    assert f"Mail is sent by {sender}." in caplog.messages


if django.VERSION >= (6, 1):

    def test_an_alias_in_mailers(settings: Any, mailoutbox: list[EmailMessage]) -> None:
        settings.MAILERS = {
            "default": {"BACKEND": "connect_mailer.backend.ConnectMailerBackend"},
            "way-out": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"},
        }
        settings.CONNECT_MAILER = {"TRANSPORT": "way-out"}
        queue()

        assert deliver_all() == 1
        assert mailoutbox[0].sent_using == "way-out"  # type: ignore[attr-defined]

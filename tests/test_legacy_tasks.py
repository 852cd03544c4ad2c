"""What older apps had left in the broker."""

from __future__ import annotations

import base64
import logging
from typing import Any
from uuid import uuid4

import pytest
from celery import current_app
from django.db import OperationalError
from kombu.serialization import dumps, loads

from connect_mailer import legacy_tasks  # noqa: F401 - as in a worker
from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.models import OutgoingMessage, Unsubscribe

pytestmark = pytest.mark.django_db

# As seacucumber 1.5.2 queued it: `message.message().as_string()`.
MIME = """\
Content-Type: text/plain; charset="utf-8"
MIME-Version: 1.0
Content-Transfer-Encoding: 8bit
Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=
From: Site <site@example.com>
To: Jo <jo@example.org>, eve@example.org
Cc: max@example.org
Message-ID: <1@example.com>

Grüße, und ein langer Text.
"""
RECIPIENTS = ["Jo <jo@example.org>", "max@example.org", "hidden@example.org"]


def run(name: str, *args: Any, task_id: str = "", throw: bool = True) -> None:
    """Run a task as a worker does: by its name, with arguments that went over the wire."""
    content_type, encoding, data = dumps(args, serializer="json")
    arguments = loads(data, content_type, encoding, accept={"application/json"})
    current_app.tasks[name].apply(arguments, task_id=task_id or str(uuid4()), throw=throw)


def test_a_message_of_seacucumber_is_queued_as_it_is() -> None:
    run("seacucumber.tasks.SendEmailTask", "site@example.com", RECIPIENTS, MIME)

    row = OutgoingMessage.objects.get()
    assert (row.sender, row.subject, row.status) == ("site@example.com", "Grüße", "queued")
    # To whom it went: not to all that the header names.
    assert set(row.recipients.values_list("address", "kind")) == {
        ("jo@example.org", "to"),
        ("max@example.org", "cc"),
        ("hidden@example.org", "bcc"),
    }
    assert row.content is not None
    assert bytes(row.content.mime) == MIME.replace("\n", "\r\n").encode()


def test_its_own_way_out_is_kept() -> None:
    mine = "List-Unsubscribe: <https://old.example.com/?u=1>\n"
    run("seacucumber.tasks.SendEmailTask", "site@example.com", ["jo@example.org"], mine + MIME)

    mime = bytes(OutgoingMessage.objects.get().content.mime)  # type: ignore[union-attr]
    assert mime.count(b"List-Unsubscribe") == 1
    assert b"<https://old.example.com/?u=1>" in mime


def test_suppression_is_asked() -> None:
    Unsubscribe.objects.suppress("jo@example.org", Unsubscribe.Source.USER)

    run("seacucumber.tasks.SendEmailTask", "site@example.com", ["jo@example.org"], MIME)

    assert OutgoingMessage.objects.get().status == "suppressed"


LETTER = {
    "subject": "News",
    "body": "Text",
    "from_email": "site@example.com",
    "to": ["jo@example.org"],
    "bcc": [],
    "attachments": [
        ["a.txt", base64.b64encode("Grüße".encode()).decode(), "text/plain"],
        ["a.bin", base64.b64encode(b"\0\1").decode(), "application/octet-stream"],
    ],
    "headers": {"X-Site": "1"},
    "cc": ["max@example.org"],
    "reply_to": ["answer@example.com"],
    "alternatives": [["<p>Text</p>", "text/html"]],
    "priority": 2,
}


@pytest.mark.parametrize(
    ("name", "messages"),
    [("djcelery_email_send_multiple", [LETTER, LETTER]), ("djcelery_email_send", LETTER)],
)
def test_messages_of_django_celery_email(name: str, messages: Any) -> None:
    run(name, messages, {"fail_silently": True})

    rows = list(OutgoingMessage.objects.all())
    assert len(rows) == (2 if isinstance(messages, list) else 1)
    assert (rows[0].subject, rows[0].priority, rows[0].cost) == ("News", 2, 2)
    mime = bytes(rows[0].content.mime)  # type: ignore[union-attr]
    for part in (b"X-Site: 1", b"Reply-To: answer@example.com", b"text/html", b"a.bin"):
        assert part in mime


def test_a_task_that_is_delivered_twice_is_queued_once() -> None:
    for _ in range(2):
        run("djcelery_email_send_multiple", [LETTER], task_id="one")
    run("djcelery_email_send_multiple", [LETTER], task_id="other")

    assert OutgoingMessage.objects.count() == 2


def test_what_nobody_can_send_is_told_and_keeps_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = {**LETTER, "to": ["no address"], "cc": []}
    with caplog.at_level(logging.ERROR):
        run("djcelery_email_send_multiple", [bad, LETTER])

    assert OutgoingMessage.objects.count() == 1
    assert "'no address'" in caplog.text


def test_text_of_another_encoding_keeps_nobody_back() -> None:
    text = base64.b64encode("Grüße".encode("latin-1")).decode()
    run(
        "djcelery_email_send_multiple", [{**LETTER, "attachments": [["a.txt", text, "text/plain"]]}]
    )

    assert text.encode() in bytes(OutgoingMessage.objects.get().content.mime)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("seacucumber.tasks.SendEmailTask", ("site@example.com", ["jo@example.org"], MIME)),
        ("djcelery_email_send_multiple", ([LETTER],)),
        ("djcelery_email_send", (LETTER,)),
    ],
)
def test_a_database_that_is_away_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, arguments: tuple[Any, ...]
) -> None:
    send_messages = ConnectMailerBackend.send_messages
    fails = iter([True, True])

    def send_or_fail(self: ConnectMailerBackend, messages: Any) -> int:
        if next(fails, False):
            raise OperationalError("the server closed the connection")
        return send_messages(self, messages)

    monkeypatch.setattr(ConnectMailerBackend, "send_messages", send_or_fail)
    for _ in range(2):
        run(name, *arguments, task_id="one", throw=False)  # so that a retry is run

    assert OutgoingMessage.objects.count() == 1

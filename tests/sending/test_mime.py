"""What is written without being parsed is, byte for byte, what Python would have written."""

from __future__ import annotations

import email.policy
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from email import headerregistry
from email.utils import format_datetime
from typing import Any, Self
from unittest import mock

import django
import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connect_mailer.sending.mime import serialise

has_policies = django.VERSION >= (6, 0)

# `MIME_EXAMPLES=10000` before the command makes it a million messages.
EXAMPLES = int(os.environ.get("MIME_EXAMPLES", "15"))
MESSAGES = 100


class Stopped(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: Any = None) -> Self:
        return cls(2026, 11, 24, 12, 30, tzinfo=UTC)


MOMENT = Stopped.now()

# Parts of values, most of which are written as they are when they stand alone, and not together.
WORDS = [
    *("Your", "order", "42", "is", "on", "its", "way!", "re:", "50%", "O'Neil", "Jo-Ann", "_x_"),
    *(" ", "  ", "\t", "", ",", ";", ":", ".", '"', "'", "\\", "(", ")", "<", ">", "@", "[", "]"),
    *("=?", "?=", "=?utf-8?q?=C3=A9?=", "=", "?", "Grüße", "日本", "\N{EM DASH}", "\x7f", "\x0b"),
    *("\n", "\r\n", "a" * 60, "=" * 30, "jo@example.org", "<jo@example.org>", "Jo <jo@a.example>"),
    *("x@y", "a.b+c@d-e.example", ".a@b", "a..b@c", "a@-b", "a@b_c", "a b@c", "ü@example.org"),
    *("jo@exämple.org", "1.0", "text/plain", "utf-8", "base64", "\x00", "\x85", "\u2028"),
    'multipart/mixed; boundary="===============1234567890123456789=="',
]
SPECS = ["jo@example.org", "a.b+c@d-e.example", "Jo_1@EXAMPLE.org", "x@y"]
NAMES = ["Jo", "Jo Doe", "The Shop & Co", "O'Neil", "Jo-Ann 3", "a" * 40]
HEADERS = [
    *("X-Campaign", "List-Id", "Precedence", "Sender", "Resent-To", "Message-ID", "In-Reply-To"),
    *("References", "Date", "From", "To", "Cc", "Reply-To", "X Y", "X_Y", "Return-Path", "x-ä"),
    *("Resent-Date", "Content-Language", "Subject", "MIME-Version", "X" * 60),
]
LINES = [
    *("", "Dear Jo,", "From here on", ".", "long " * 30, "é" * 50, "x" * 1200, "=3D", "a\rb"),
    *("<p>Hello</p>", "--===============0000000000000000000==", "\x85", "tab\t", "space "),
    *("x" * 78, "x" * 79, "é" * 39, "é" * 40, "x" * 998, "x" * 999, "50% off", "\udc80", "\ud800"),
]

anything = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join),
    st.lists(st.sampled_from(WORDS), max_size=8).map("".join),
    st.text(st.characters(max_codepoint=0x17F), max_size=90),
)
subjects = st.lists(st.sampled_from(WORDS[:12]), min_size=1, max_size=20).map(" ".join) | anything
mailboxes = (
    st.sampled_from(SPECS)
    | st.tuples(st.sampled_from(NAMES), st.sampled_from(SPECS)).map("{0[0]} <{0[1]}>".format)
    | anything
)
bodies = st.lists(st.sampled_from(LINES), max_size=12).map("\n".join) | st.text(max_size=200)


# What the messages of one example are made of.
pools = st.fixed_dictionaries(
    {
        "subjects": st.lists(subjects, min_size=8, max_size=8),
        "mailboxes": st.lists(mailboxes, min_size=12, max_size=12),
        "headers": st.lists(subjects | mailboxes, min_size=4, max_size=4),
        "bodies": st.lists(bodies, min_size=4, max_size=4),
        "seed": st.integers(0, 2**32),
    }
)


def make_messages(pool: dict[str, Any], number: int) -> Iterator[EmailMessage]:
    """Of the kinds that sites send, and of those that they should not."""
    rng = random.Random(pool["seed"])

    def choose(name: str, at_most: int) -> list[str]:
        return rng.choices(pool[name], k=rng.randint(0, at_most))

    for _ in range(number):
        names = rng.sample(HEADERS, rng.choice([0, 0, 1, 3]))
        message = EmailMultiAlternatives(
            rng.choice(pool["subjects"]),
            body := rng.choice(pool["bodies"]),
            rng.choice(pool["mailboxes"]),
            choose("mailboxes", 3),
            headers={name: rng.choice(pool["headers"]) for name in names},
            cc=choose("mailboxes", 1),
            reply_to=choose("mailboxes", 1),
        )
        shape = rng.randint(0, 9)
        if shape in (1, 2, 3):
            message.attach_alternative(rng.choice(pool["bodies"]), "text/html")
        if shape in (3, 4):
            message.attach(rng.choice(["a.txt", "ä.csv"]), body, "text/plain")
        if shape == 5:
            message.attach("a.pdf", rng.randbytes(40), "application/pdf")
        if shape == 6:
            inner = EmailMessage(rng.choice(pool["subjects"]), body, *choose("mailboxes", 1))
            message.attach("inner.eml", inner, "message/rfc822")
        if shape == 7:
            message.encoding = rng.choice(["latin-1", "us-ascii", "utf-16"])
        if shape == 8:
            message.content_subtype = "html"
        yield message


def _write(write: Any, message: EmailMessage) -> Any:
    random.seed(1)  # of boundaries
    try:
        return write(message)
    except Exception as error:  # noqa: BLE001 - the one has to fail as the other does
        return type(error), str(error)


def _write_by_python(message: EmailMessage) -> bytes:
    if not has_policies:
        return message.message().as_bytes(linesep="\r\n")
    return message.message(policy=email.policy.SMTP).as_bytes()


@pytest.fixture(autouse=True, scope="module")
def _at_one_moment() -> Any:
    names: dict[str, Any] = {"make_msgid": lambda domain: "<1.2.3@host.example>"}
    if has_policies:
        names["datetime"] = Stopped
    else:
        names["formatdate"] = lambda localtime: format_datetime(MOMENT)
    with (
        mock.patch.multiple("django.core.mail.message", **names),
        mock.patch.multiple("connect_mailer.sending.mime", **names),
    ):
        yield


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pools)
def test_bytes_are_those_that_python_writes(pool: dict[str, Any]) -> None:
    for message in make_messages(pool, MESSAGES):
        assert _write(serialise, message) == _write(_write_by_python, message)


@pytest.mark.skipif(not has_policies, reason="Django 5.2 does not write by a policy")
def test_a_usual_message_is_written_without_a_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(cls: type, name: str, value: Any) -> None:
        raise AssertionError(name)

    message = EmailMultiAlternatives(
        "Your order 42",
        "Dear Jo",
        "The Shop <shop@example.com>",
        ["Jo Doe <jo@example.org>", "a@example.org"],
        headers={"X-Campaign": "autumn"},
        reply_to=["office@example.com"],
    )
    message.attach_alternative("<p>Dear Jo</p>", "text/html")
    monkeypatch.setattr(headerregistry.BaseHeader, "__new__", staticmethod(refuse))

    mime = serialise(message)

    assert b'multipart/alternative;\r\n boundary="=' in mime


@pytest.mark.skipif(not has_policies, reason="Django 5.2 does not write by a policy")
def test_a_message_of_the_sites_own_sees_headers_that_were_parsed() -> None:
    class Curious(EmailMessage):
        def message(self, **kwargs: Any) -> Any:
            message = super().message(**kwargs)
            message["X-First"] = message["To"].addresses[0].domain
            return message

    mime = serialise(Curious("Hi", "", "a@example.com", ["jo@example.org"]))

    assert b"X-First: example.org\r\n" in mime

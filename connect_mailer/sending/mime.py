"""A message's bytes, as Django's own SMTP backend would send them.

Most of what a small message costs is its headers: from Django 6.0 on Python parses each value and
folds it anew. A value that comes out of that as it went in, as those of most mail do, is not parsed
here. And what all messages of short lines have in common, Django writes once, on each version.
Tests hold the bytes equal.
"""

from __future__ import annotations

import email.policy
import random
import re
import sys
from datetime import UTC, datetime
from email import headerregistry
from email.utils import format_datetime, formatdate, make_msgid
from functools import lru_cache
from typing import Any, Final, Self

import django
from django.conf import settings
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.mail.utils import DNS_NAME
from django.utils.timezone import get_current_timezone

# Where Python folds a line.
MAX_LINE: Final = 78

_WORDS: Final = r"[\w'&!-]+(?: [\w'&!-]+)*"
_SPEC: Final = r"[\w+-]+(?:\.[\w+-]+)*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*"
_MAILBOX: Final = rf"(?:{_SPEC}|{_WORDS} <{_SPEC}>)"

# Values that Python writes as they are, by the class that would parse them. Far from all such
# values: what matters is that none is among these that it would change or refuse.
_UNCHANGED: Final[dict[Any, str]] = {
    # Without anything that might be an encoded word (RFC 2047).
    headerregistry.UnstructuredHeader: r"(?!.*=\?)[!-~]+(?: [!-~]+)*",
    headerregistry.AddressHeader: rf"{_MAILBOX}(?:, {_MAILBOX})*",
    headerregistry.MessageIDHeader: rf"<{_SPEC}>",
    headerregistry.MIMEVersionHeader: r"1\.0",
    headerregistry.ContentTypeHeader: (
        r'text/[a-z]{1,20}(?:; charset="[\w-]{1,20}")?|'
        r'multipart/[a-z]{1,20}(?:; boundary="={15}\d{19}==")?'
    ),
    headerregistry.ContentTransferEncodingHeader: r"7bit|8bit|base64|quoted-printable",
}


# Lines that no version encodes, nor control characters.
_LINE: Final = rb"[^\x00-\x08\n-\x1f\x7f]{0,%d}" % (998 if django.VERSION < (6, 0) else MAX_LINE)
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_LINES: Final = re.compile(rb"(?:%b\n)*%b" % (_LINE, _LINE))

_WAY_OUT: Final = re.compile(rb"^List-Unsubscribe(?:-Post)?[ \t]*:", re.IGNORECASE | re.MULTILINE)


def serialise(message: EmailMessage) -> bytes:
    """The bytes that Django's own SMTP backend would send, on each version."""
    return _fill_in(message) or _write(message)


def has_way_out(mime: bytes) -> bool:
    """Whether a message's own headers, not those of its parts, have one of opting out."""
    end = mime.find(b"\r\n\r\n")
    return _WAY_OUT.search(mime, 0, len(mime) if end < 0 else end) is not None


def _write(message: EmailMessage) -> bytes:
    if django.VERSION < (6, 0):
        return message.message().as_bytes(linesep="\r\n")  # type: ignore[call-arg]
    # One that is written by code of the site may look into its headers while it is at it.
    is_djangos = type(message).message is EmailMessage.message
    return message.message(policy=_POLICY if is_djangos else email.policy.SMTP).as_bytes()


def _fill_in(message: EmailMessage) -> bytes | None:
    """The bytes of one of short lines, with plain headers and nothing attached; or ``None``."""
    if (
        type(message) not in (EmailMessage, EmailMultiAlternatives)
        or message.attachments
        or message.encoding
        or settings.DEFAULT_CHARSET != "utf-8"
        or getattr(message, "alternative_subtype", "alternative") != "alternative"
    ):
        return None
    texts = [(message.body, f"text/{message.content_subtype}")]
    texts += getattr(message, "alternatives", ())
    bodies: dict[bytes, bytes] = {}
    for text, kind in texts:
        if not isinstance(text, str) or not text or kind not in ("text/plain", "text/html"):
            return None
        if not text.isascii() and _SURROGATES.search(text):
            return None
        body = text.encode() if django.VERSION < (6, 0) else text.removesuffix("\n").encode()
        if not _LINES.fullmatch(body):
            return None
        bodies[b"%d" % len(bodies)] = body.replace(b"\n", b"\r\n")
    if (headers := _write_headers(message)) is None:
        return None
    number = random.randrange(sys.maxsize) if texts[1:] else 0  # noqa: S311 - as Python does it
    boundary = b"=" * 15 + b"%019d==" % number
    template = _make_template(tuple((kind, text.isascii()) for text, kind in texts))
    return template % {**bodies, b"headers": headers, b"boundary": boundary}


def _write_headers(message: EmailMessage) -> bytes | None:
    headers = {"Subject": str(message.subject), "From": str(message.from_email)}
    for name, values in (("To", message.to), ("Cc", message.cc), ("Reply-To", message.reply_to)):
        if values:
            headers[name] = ", ".join(map(str, values))
    if django.VERSION < (6, 0):
        headers["Date"] = formatdate(localtime=settings.EMAIL_USE_LOCALTIME)
    else:
        zone = get_current_timezone() if settings.EMAIL_USE_LOCALTIME else UTC
        headers["Date"] = format_datetime(datetime.now(zone))
    headers["Message-ID"] = make_msgid(domain=DNS_NAME)
    # Others may be allowed but once, or be one of these.
    if not all(name.startswith("X-") for name in message.extra_headers):
        return None
    headers.update(message.extra_headers)
    if all(name == "Date" or _is_unchanged(name, value) for name, value in headers.items()):
        return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
    return None


@lru_cache(maxsize=64)
def _make_template(kinds: tuple[tuple[str, bool], ...]) -> bytes:
    """What Django writes around the headers and bodies of such a message, to be filled in."""
    own = {"Message-ID": "<end@b.example>"}
    message = EmailMultiAlternatives("s", "", "a@b.example", headers=own)
    marks = [f"<{n}>" if is_ascii else f"<{n}é>" for n, (_, is_ascii) in enumerate(kinds)]
    message.body, message.content_subtype = marks[0], kinds[0][0].removeprefix("text/")
    for mark, (kind, _) in zip(marks[1:], kinds[1:], strict=True):
        message.attach_alternative(mark, kind)
    template = _write(message)
    template = re.sub(rb"(?s)Subject:.*<end@b\.example>\r\n", b"%(headers)b", template)
    template = re.sub(rb"={15}\d{19}==", b"%(boundary)b", template)
    for n, mark in enumerate(marks):
        template = template.replace(mark.encode(), b"%%(%d)b" % n)
    return template


class _Unchanged(str):
    """A header's value that is written as it is, with what policies ask of a header."""

    __slots__ = ("name",)

    name: str

    def __new__(cls, name: str, value: str) -> Self:
        self = super().__new__(cls, value)
        self.name = name
        return self

    def fold(self, *, policy: email.policy.Policy[Any]) -> str:
        """Its line, or two where the boundary of a multipart message makes it too long."""
        line = f"{self.name}: {self}"
        if policy.max_line_length and len(line) > policy.max_line_length:
            line = line.replace("; ", f";{policy.linesep} ", 1)
        return line + policy.linesep


class _Registry(headerregistry.HeaderRegistry):
    """Makes the headers of a message, and parses those that may change by it."""

    def __getitem__(self, name: str) -> Any:
        return _find(name)[0]

    def __call__(self, name: str, value: Any) -> Any:
        kind = _find(name)[0]
        if isinstance(value, datetime) and issubclass(kind, headerregistry.DateHeader):
            return _Unchanged(name, format_datetime(value))
        return _Unchanged(name, value) if _is_unchanged(name, value) else kind(name, value)


_STANDARD: Final = headerregistry.HeaderRegistry()
_POLICY: Final = email.policy.SMTP.clone(header_factory=_Registry())


def _is_unchanged(name: str, value: Any) -> bool:
    _, unchanged, longest = _find(name)
    if unchanged is None or not isinstance(value, str) or len(value) > longest:
        return False
    return unchanged.fullmatch(value) is not None


@lru_cache(maxsize=256)
def _find(name: str) -> tuple[Any, re.Pattern[str] | None, int]:
    """The class that parses a header's values, which of them need no parsing, and how long."""
    kind: Any = _STANDARD[name]
    patterns = [_UNCHANGED[base] for base in kind.__mro__ if base in _UNCHANGED]
    if not patterns or not name.isascii() or not name.replace("-", "").isalnum():
        return kind, None, 0
    is_type = issubclass(kind, headerregistry.ContentTypeHeader)
    longest = MAX_LINE if is_type else MAX_LINE - len(f"{name}: ")
    return kind, re.compile(patterns[0], re.ASCII), longest

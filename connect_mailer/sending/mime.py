"""A message's bytes, as Django's own SMTP backend would send them.

From Django 6.0 on, a message is written by Python's ``email.policy``, which parses the value of
each header and folds it anew: nine tenths of what a small message costs. A value that comes out
of that as it went in, as those of most mail do, is not parsed here. Tests hold the bytes equal.
"""

from __future__ import annotations

import email.policy
import re
from datetime import datetime
from email import headerregistry
from email.utils import format_datetime
from functools import lru_cache
from typing import Any, Final, Self

import django
from django.core.mail import EmailMessage

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


def serialise(message: EmailMessage) -> bytes:
    """The bytes that Django's own SMTP backend would send, on each version."""
    if django.VERSION < (6, 0):
        return message.message().as_bytes(linesep="\r\n")  # type: ignore[call-arg]
    # One that is written by code of the site may look into its headers while it is at it.
    is_djangos = type(message).message is EmailMessage.message
    return message.message(policy=_POLICY if is_djangos else email.policy.SMTP).as_bytes()


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
        kind, unchanged, longest = _find(name)
        if isinstance(value, datetime) and issubclass(kind, headerregistry.DateHeader):
            return _Unchanged(name, format_datetime(value))
        is_unchanged = (
            unchanged is not None
            and isinstance(value, str)
            and len(value) <= longest
            and unchanged.fullmatch(value)
        )
        return _Unchanged(name, value) if is_unchanged else kind(name, value)


_STANDARD: Final = headerregistry.HeaderRegistry()
_POLICY: Final = email.policy.SMTP.clone(header_factory=_Registry())


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

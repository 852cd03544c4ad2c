"""From a Django message to what goes over the wire: envelope and final MIME bytes.

``read`` takes a message apart and refuses what SES would refuse; ``freeze`` writes it, once,
for those who are left after suppression. The caller's message is never changed.
"""

from __future__ import annotations

import copy
import email.utils
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.utils import timezone

from connect_mailer import addresses
from connect_mailer.addresses import Address
from connect_mailer.conf import check_list_name, conf
from connect_mailer.exceptions import ConnectMailerError, InvalidAddress, InvalidMessage
from connect_mailer.models import MESSAGE_ID_TAG, OutgoingMessage, OutgoingRecipient
from connect_mailer.sending import signature
from connect_mailer.sending.mime import has_way_out, serialise
from connect_mailer.sending.ses import (
    MAX_MESSAGE_BYTES,
    Envelope,
    check_tag,
    size_as_ses_counts,
)
from connect_mailer.sending.suppression import Candidate, Suppression

PRIORITIES = range(10)

_STREAMS = OutgoingMessage.Stream.values
_KINDS = OutgoingRecipient.Kind.values

# RFC 5322 section 2.1.1: octets of a line, without its end.
_MAX_LINE = 998

# RFC 5322 section 2.2.
_HEADER_NAME = re.compile("[!-9;-~]+")

# Written by this module itself, unfolded: Python's e-mail policies encode a long URL as an
# RFC 2047 word, and mail clients then ignore the header (RFC 2369 section 2 wants it plain).
_RAW_HEADERS = ("list-unsubscribe", "list-unsubscribe-post")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a message is treated: the backend's arguments, overridden by its own attributes."""

    stream: str = OutgoingMessage.Stream.DEFAULT
    priority: int = 5
    mailing_list: str = ""
    send_after: datetime | None = None
    expires_at: datetime | None = None
    tags: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stream not in _STREAMS:
            raise InvalidMessage(f"stream is {self.stream!r}; it must be one of {_STREAMS}.")
        if isinstance(self.priority, bool) or self.priority not in PRIORITIES:
            raise InvalidMessage(
                f"priority is {self.priority!r}; it must be a whole number from 0 (first) to 9."
            )
        check_list_name(self.mailing_list)
        for name in ("send_after", "expires_at"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, datetime):
                raise InvalidMessage(f"{name} is {value!r}; it must be a datetime or None.")
        _check_tags(self.tags)

    def overridden_by(self, message: EmailMessage) -> Options:
        """These options with what the message says itself; tags and metadata add up."""
        own = {
            name: value
            for name in ("stream", "priority", "mailing_list", "send_after", "expires_at")
            if (value := getattr(message, name, None)) is not None
        }
        tags = getattr(message, "tags", None) or ()
        metadata = getattr(message, "metadata", None) or {}
        if not (own or tags or metadata):
            return self
        _check_tags(tags)
        return replace(
            self,
            **own,
            tags=[*self.tags, *tags],
            metadata={**self.metadata, **metadata},
        )

    @property
    def ses_tags(self) -> dict[str, str]:
        """As SES message tags: metadata by name, tags as ``tag``, ``tag-2``, ``tag-3``…

        Raises:
            InvalidMessage: a name or value that SES doesn't take.
        """
        named = {
            "tag" if number == 1 else f"tag-{number}": str(tag)
            for number, tag in enumerate(self.tags, 1)
        }
        named.update((str(name), str(value)) for name, value in self.metadata.items())
        for name, value in named.items():
            check_tag(name, value)
            if name == MESSAGE_ID_TAG:
                raise InvalidMessage(f"metadata can't be named {name!r}: the outbox uses it.")
        return named


def _check_tags(tags: object) -> None:
    if isinstance(tags, str):
        raise InvalidMessage(f"tags is {tags!r}; it must be a list of strings.")


@dataclass(frozen=True, kw_only=True)
class Recipient:
    """One recipient and where the message names it."""

    address: Address
    kind: str
    reason: str = ""  # why it is not written to


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A message taken apart: everything but its bytes."""

    message: EmailMessage
    sender: Address
    recipients: tuple[Recipient, ...]
    options: Options
    tags: Mapping[str, str]

    @property
    def kept(self) -> list[Recipient]:
        """Recipients that are written to."""
        return [recipient for recipient in self.recipients if not recipient.reason]

    @property
    def has_way_out(self) -> bool:
        """Whether the caller set a header of opting out, which is then the only one."""
        return any(name.lower() in _RAW_HEADERS for name in self.message.extra_headers)

    def judged_by(self, suppression: Suppression) -> Draft:
        """The draft with a reason at each recipient who is not written to."""
        reasons = suppression.judge(
            [Candidate(key=one.address.key, kind=one.kind) for one in self.recipients],
            stream=self.options.stream,
            mailing_list=self.options.mailing_list,
        )
        if not any(reasons):
            return self
        return replace(
            self,
            recipients=tuple(
                replace(recipient, reason=reason)
                for recipient, reason in zip(self.recipients, reasons, strict=True)
            ),
        )

    def apart(self) -> list[Draft]:
        """One draft for each recipient who is left; who is not written to is with the first."""
        left_out = tuple(recipient for recipient in self.recipients if recipient.reason)
        return [
            replace(self, recipients=(recipient, *(() if number else left_out)))
            for number, recipient in enumerate(self.kept)
        ]

    def split(self, limit: int, mime: bytes) -> list[Envelope]:
        """Envelopes of at most ``limit`` recipients, with the same content."""
        specs = [recipient.address.spec for recipient in self.kept]
        return [
            Envelope(
                sender=self.sender.spec,
                recipients=tuple(specs[start : start + limit]),
                mime=mime,
                tags=self.tags,
            )
            for start in range(0, len(specs), limit)
        ]


def read(message: EmailMessage, options: Options) -> Draft:
    """Take a message apart.

    Raises:
        InvalidMessage, InvalidAddress: it can't be sent as it is; the text says what to change.
    """
    for name in message.extra_headers:
        if not _HEADER_NAME.fullmatch(str(name)):
            raise InvalidMessage(
                f"The header {name!r} can't be written; its name must be of printable ASCII "
                "characters, without blanks and colons."
            )
        if name.lower() in ("bcc", "resent-bcc"):
            raise InvalidMessage(
                f"The header {name!r} would show the blind copies to every reader; use the "
                'argument "bcc" instead.'
            )
    own = options.overridden_by(message)
    conf.check_list(own.mailing_list)
    recipients: dict[str, Recipient] = {}
    for kind in _KINDS:
        for written in getattr(message, kind, None) or ():
            if not written:
                continue
            address = _parse_for_envelope(written)
            recipients.setdefault(address.key, Recipient(address=address, kind=kind))
    return Draft(
        message=message,
        sender=_parse_for_envelope(message.from_email),
        recipients=tuple(recipients.values()),
        options=_make_comparable(own),
        tags=own.ses_tags,
    )


def freeze(draft: Draft, headers: Mapping[str, str] | None = None) -> bytes:
    """Write the final MIME bytes for those who are left, with ``headers`` added unfolded.

    ``headers`` are added only where the message has none of them itself.

    Where the app signs mail itself, they are signed, too.

    Raises:
        InvalidMessage: it can't be written, or is larger than SES takes.
        ConfigurationError: it can't be signed with what ``DKIM_*`` say.
    """
    message = copy.copy(draft.message)
    suppressed = {one.address.key for one in draft.recipients if one.reason}
    message.from_email = _in_ascii(message.from_email)
    message.to = [_in_ascii(to) for to in message.to if to and not _is_in(to, suppressed)]
    message.cc = [_in_ascii(cc) for cc in message.cc if cc and not _is_in(cc, suppressed)]
    message.bcc = []
    message.extra_headers, raw = _split_headers(message.extra_headers, suppressed)
    try:
        mime = serialise(message)
        # Code of the site that writes the message may write them there; Django does not.
        is_djangos = type(message) in (EmailMessage, EmailMultiAlternatives)
        if headers and not raw and (is_djangos or not has_way_out(mime)):
            raw = dict(headers)
        mime = _write_raw(raw) + mime
        if options := conf.dkim:
            mime = signature.sign(mime, options)
    except ConnectMailerError:
        raise
    except Exception as error:
        # The message, its attachments and subclasses are the caller's: whatever writing it
        # raises (an injected header, an unknown charset, a missing file) is its own mistake.
        raise InvalidMessage(f"It can't be written: {error}") from error
    size = size_as_ses_counts(mime)
    if size > MAX_MESSAGE_BYTES:
        raise InvalidMessage(
            f"It is {size / 1_000_000:.1f} MB as SES counts it, and SES takes at most "
            f"{MAX_MESSAGE_BYTES / 1_000_000:.1f} MB; send a link instead of the attachment."
        )
    return mime


def _parse_for_envelope(written: object) -> Address:
    address = addresses.parse(written)
    if not address.local.isascii():
        # Source: SES developer guide, "Email address format": the local part must be ASCII.
        raise InvalidMessage(
            f"{str(written)!r} can't be written to: Amazon SES takes only ASCII before the @."
        )
    return address


def _make_comparable(options: Options) -> Options:
    """The options with their times as the site stores times: aware or naive."""
    if options.send_after is None and options.expires_at is None:
        return options

    def convert(moment: datetime | None) -> datetime | None:
        if moment is None or timezone.is_aware(moment) == settings.USE_TZ:
            return moment
        return timezone.make_aware(moment) if settings.USE_TZ else timezone.make_naive(moment)

    return replace(
        options, send_after=convert(options.send_after), expires_at=convert(options.expires_at)
    )


def _is_in(written: object, keys: set[str]) -> bool:
    if not keys:
        return False  # most messages: nothing is parsed a second time
    try:
        return addresses.normalise(written) in keys
    except InvalidAddress:
        return False


def _in_ascii(written: Any) -> Any:
    """An address with its domain as in the envelope: Django's own encoding (IDNA 2003) can
    name another domain, and a reader who answers all would write there."""
    if str(written).isascii():
        return written
    address = addresses.parse(written)
    if address.domain in str(written):
        return written
    return email.utils.formataddr((address.display_name, address.spec))


def _split_headers(
    headers: Mapping[str, Any], suppressed: set[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Headers that Django writes, and those that are written raw."""
    written, raw = {}, {}
    for name, value in headers.items():
        if name.lower() in _RAW_HEADERS:
            raw[name] = str(value)
        elif name not in ("To", "Cc"):
            written[name] = value
        # These replace what is written for `message.to` and `message.cc`. Names that are
        # not recipients (a mailing list's own address, say) stay.
        elif left := _drop(str(value), suppressed):
            written[name] = left
    return written, raw


def _drop(value: str, suppressed: set[str]) -> str:
    mailboxes = email.utils.getaddresses([value])
    left = [mailbox for mailbox in mailboxes if not _is_in(mailbox[1], suppressed)]
    if len(left) == len(mailboxes):
        return value
    return ", ".join(map(email.utils.formataddr, left))


def _write_raw(headers: Mapping[str, str]) -> bytes:
    lines = []
    for name, value in headers.items():
        line = f"{name}: {value}"
        if not (line.isascii() and line.isprintable()) or len(line) > _MAX_LINE:
            raise InvalidMessage(
                f"The header {name!r} must be one line of at most {_MAX_LINE} printable ASCII "
                f"characters, and is {value!r}."
            )
        lines.append(f"{line}\r\n".encode("ascii"))
    return b"".join(lines)

"""Addresses, in one place: how they are parsed, written in an envelope and compared.

Two addresses are the same person's where their ``key`` is equal: ASCII letters in lower
case, the domain in its ASCII form (IDNA 2008). Nothing more is folded: Unicode
normalisation or case folding would map an address that a stranger chose onto another
person's (``ß`` to ``ss``, the Kelvin sign to ``k``).

Source: RFC 5321 section 2.4 (local parts may not be altered, domains are case-insensitive),
RFC 5891 (IDNA), CVE-2019-19844 (why Unicode case mapping is not used).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.headerregistry import parser  # type: ignore[attr-defined]

from connect_mailer.exceptions import InvalidAddress

# RFC 5321, sections 4.5.3.1.1 and 4.5.3.1.3: octets of a local part, and of a path less
# its angle brackets.
MAX_LOCAL_OCTETS = 64
MAX_ADDRESS_OCTETS = 254
# Characters that are looked at, with a display name: more don't fit on a line of a header.
# Source: RFC 5322, section 2.1.1.
MAX_TEXT_LENGTH = 998

# For error messages.
EXAMPLE = "name@example.com"

_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")

# What needs no parser, as most addresses of most sites: an addr-spec, and one after a few words.
_PLAIN = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9.-]+", re.ASCII)
_NAMED = r"([\w'&!-]+(?: [\w'&!-]+)*) <([\w+-]+(?:\.[\w+-]+)*)@([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)>"
_DOT_ATOM = re.compile(
    r"[^\s\x00-\x20\x7f()<>@,;:\\\".\[\]]+(\.[^\s\x00-\x20\x7f()<>@,;:\\\".\[\]]+)*"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Half a surrogate pair, which can't be encoded.
_HALF = re.compile(r"[\ud800-\udfff]")
# What IDNA takes for dots as well. Nobody writes them into an envelope, and a full-width stop is
# not the stop that it looks like. Source: RFC 3490, section 3.1 (IDNA 2008 has no such rule).
_OTHER_DOTS = re.compile("[\u3002\uff0e\uff61]")
_HOST_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """One mailbox.

    ``local`` is as it was written (quoted where it has to be); ``domain`` is ASCII, lower case.
    """

    display_name: str
    local: str
    domain: str

    @property
    def spec(self) -> str:
        """The address as it goes into an envelope: ``local@domain``."""
        return f"{self.local}@{self.domain}"

    @property
    def key(self) -> str:
        """What two spellings of the same address have in common; stored in the tables."""
        return f"{to_lower(self.local)}@{self.domain}"


def parse(text: object) -> Address:
    """Parse ``local@domain`` or ``Name <local@domain>`` (lazy strings, too).

    Raises:
        InvalidAddress: not exactly one mailbox, or a domain that has no ASCII form.
    """
    value = str(text).strip()
    if len(value) > MAX_TEXT_LENGTH:
        raise InvalidAddress(f"{value[:50]!r}… is too long for an address")
    if _PLAIN.fullmatch(value):
        display_name = ""
        local, _, domain = value.rpartition("@")
    elif named := re.fullmatch(_NAMED, value, re.ASCII):
        display_name, local, domain = named.groups()
    else:
        display_name, local, domain = _parse_mailbox(value)
    if not _is_local_part(local):
        raise InvalidAddress(f"{value!r} is not an address: its local part {local!r} is malformed")
    domain = _domain_to_ascii(domain, value)
    if len(local.encode()) > MAX_LOCAL_OCTETS or len(local) + len(domain) >= MAX_ADDRESS_OCTETS:
        raise InvalidAddress(
            f"{value!r} is too long for an address: at most {MAX_LOCAL_OCTETS} octets before "
            f"the @ and {MAX_ADDRESS_OCTETS} in all"
        )
    return Address(display_name=display_name, local=local, domain=domain)


def normalise(text: object) -> str:
    """Return the ``key`` of an address: the form in which addresses are stored and compared.

    Raises:
        InvalidAddress: as ``parse``.
    """
    return parse(text).key


def find_key(text: object) -> str | None:
    """Return what ``normalise`` does, and ``None`` where that raises."""
    try:
        return normalise(text)
    except InvalidAddress:
        return None


def _parse_mailbox(value: str) -> tuple[str, str, str]:
    if _CONTROL.search(value):
        raise InvalidAddress(f"{value!r} is not an address: it has a control character")
    try:
        mailbox, rest = parser.get_mailbox(value)
        # Of text that is cut off, the parts fail only when they are read.
        display_name = mailbox.display_name or ""
        if "=?" in value:
            # Python decodes encoded words everywhere, and what is in one may be another person's
            # address, or a NUL. They belong in display names only: so the rest is read from a
            # text that has none, which is unmistakable, as no control character got here.
            # Source: RFC 2047, section 5 (none in an addr-spec, none in a quoted string).
            mailbox, rest = parser.get_mailbox(value.replace("=?", "=\x01?"))
        local, domain, rest = (
            None if part is None else str(part).replace("\x01", "")
            for part in (mailbox.local_part, mailbox.domain, rest)
        )
    except (
        HeaderParseError,
        IndexError,
        AttributeError,
        TypeError,
        ValueError,
        RecursionError,  # comments in comments
    ) as error:
        raise InvalidAddress(f"{value!r} is not an address such as {EXAMPLE}") from error
    if rest:
        raise InvalidAddress(f"{value!r} is not one address: {rest!r} is left over")
    if local is None or domain is None:
        raise InvalidAddress(f"{value!r} is not an address such as {EXAMPLE}")
    # Whatever a parser makes of a text: no database takes these.
    if _CONTROL.search(local + domain) or _HALF.search(local + domain):
        raise InvalidAddress(f"{value!r} is not an address: it has a character that none has")
    if not _DOT_ATOM.fullmatch(local) and '"' in value:
        # The parser hands a quoted local part on without its quotes.
        escaped = local.replace("\\", "\\\\").replace('"', '\\"')
        local = f'"{escaped}"'
    return display_name, local, domain


def to_lower(text: str) -> str:
    """ASCII letters in lower case, and nothing else."""
    return text.lower() if text.isascii() else text.translate(_LOWER)


def _is_local_part(local: str) -> bool:
    return bool(_DOT_ATOM.fullmatch(local)) or (
        len(local) > 2 and local.startswith('"') and local.endswith('"')
    )


def _domain_to_ascii(domain: str, value: str) -> str:
    domain = to_lower(domain)
    if not domain.isascii():
        if _OTHER_DOTS.search(domain):
            raise InvalidAddress(f"{value!r} has a dot in its domain that is not '.'")
        lowered = domain.lower()
        # Only ASCII may become ASCII: the Kelvin sign's lower case is an ordinary "k".
        if sum(map(str.isascii, lowered)) != sum(map(str.isascii, domain)):
            raise InvalidAddress(f"{value!r} has a letter in its domain that looks like another")
        import idna  # not by every process at its start

        try:
            domain = idna.encode(lowered).decode("ascii")
        except idna.IDNAError as error:
            raise InvalidAddress(
                f"{value!r} has a domain that is no internationalised domain name: {error}"
            ) from error
    if not _HOST_NAME.fullmatch(domain):
        raise InvalidAddress(f"{value!r} is not an address: {domain!r} is not a domain name")
    return domain

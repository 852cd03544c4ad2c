"""What log records have beside their text, for who keeps logs as data (docs/operations.rst)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal

from connect_mailer.addresses import EXAMPLE
from connect_mailer.conf import conf

Field = Literal["id", "stream", "attempt", "ses_id", "error", "notification", "event", "source"]

_ADDRESS: Final = re.compile(r"[^\s<>\[\](),;:\"']+@[^\s<>\[\](),;:\"']+")


def make_extra(fields: dict[Field, object], *, recipients: Iterable[str] = ()) -> dict[str, object]:
    """``extra=`` of a record: each field as ``mail_…``; of ``recipients``, hashes alone."""
    extra: dict[str, object] = {f"mail_{name}": value for name, value in fields.items()}
    if hashes := [conf.hash_address(address) for address in recipients]:
        extra["mail_recipients"] = hashes
    return extra


def mask(text: object) -> str:
    """A text of SES's or of a server's, with hashes where it names addresses."""
    return _ADDRESS.sub(
        lambda found: found[0] if found[0] == EXAMPLE else conf.hash_address(found[0]), str(text)
    )

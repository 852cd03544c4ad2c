"""SES's account suppression list against ``Unsubscribe``, both ways.

SES keeps a list of its own for the account and region: what is on it is not delivered, even
if this app sends it. It knows two reasons, ``BOUNCE`` and ``COMPLAINT``; opt-outs and what an
operator suppressed have no place there and stay here.

Source: SES developer guide, "Using the Amazon SES account-level suppression list".
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from connect_mailer import addresses
from connect_mailer.account.aws import AWS
from connect_mailer.exceptions import AccountError, InvalidAddress
from connect_mailer.models import Unsubscribe, UnsubscribeKey

REASONS: Final[dict[str, str]] = {
    "BOUNCE": Unsubscribe.Source.BOUNCE,
    "COMPLAINT": Unsubscribe.Source.COMPLAINT,
}
_SOURCES: Final = {source: reason for reason, source in REASONS.items()}
# As many as SES gives at most. Source: SES API reference v2, ListSuppressedDestinations.
PAGE_SIZE: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One address on SES's list; ``reason`` is a key of ``REASONS``."""

    address: str
    reason: str
    since: datetime


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some entries, and the token of the page after them; empty: there is none."""

    entries: Sequence[Entry]
    next_token: str


def read_pages(aws: AWS, *, token: str = "") -> Iterator[Page]:
    """SES's list, a page at a time; ``token`` is where to go on."""
    for page in aws.pages("sesv2", "ListSuppressedDestinations", token=token, PageSize=PAGE_SIZE):
        yield Page(
            entries=[
                Entry(
                    address=str(one["EmailAddress"]),
                    reason=str(one["Reason"]),
                    since=one["LastUpdateTime"],
                )
                for one in page.get("SuppressedDestinationSummaries", ())
            ],
            next_token=page.get("NextToken") or "",
        )


def pull(entries: Iterable[Entry]) -> tuple[int, list[str]]:
    """Add a row of ``Unsubscribe`` for each entry that has none.

    Returns how many are new, and the addresses that were skipped because they are none.
    """
    wanted: set[UnsubscribeKey] = set()
    skipped = []
    for entry in entries:
        try:
            wanted.add((addresses.normalise(entry.address), str(REASONS[entry.reason]), ""))
        except (InvalidAddress, KeyError):
            skipped.append(entry.address)
    new = wanted - Unsubscribe.objects.find_keys({address for address, _source, _list in wanted})
    Unsubscribe.objects.add_all(new)
    return len(new), skipped


def find_missing(entries: Iterable[Entry]) -> list[Entry]:
    """Those that ``Unsubscribe`` lacks, whatever their source there."""
    by_key: dict[str, Entry] = {}
    for entry in entries:
        try:
            by_key[addresses.normalise(entry.address)] = entry
        except InvalidAddress:
            continue
    known = {address for address, _source, _list in Unsubscribe.objects.find_keys(by_key.keys())}
    return [entry for key, entry in by_key.items() if key not in known]


def find_local() -> Iterator[tuple[str, str]]:
    """Address and reason of what SES's list could have, by address."""
    rows = (
        Unsubscribe.objects.filter(mailing_list="", source__in=_SOURCES)
        .order_by("address", "source")
        .values_list("address", "source")
    )
    last = None
    for address, source in rows.iterator(chunk_size=PAGE_SIZE):
        if address != last:
            yield address, _SOURCES[source]
        last = address


def put(aws: AWS, address: str, reason: str) -> None:
    """Put one address onto SES's list."""
    aws.call("sesv2", "PutSuppressedDestination", EmailAddress=address, Reason=reason)


def release(aws: AWS, address: str) -> bool:
    """Take one address off SES's list; ``False``: it was not on it."""
    try:
        aws.call("sesv2", "DeleteSuppressedDestination", EmailAddress=address)
    except AccountError as error:
        if error.is_missing:
            return False
        raise
    return True


def synchronise(aws: AWS, *, pause_seconds: float = 1.0) -> tuple[int, int]:
    """Pull, then push what SES's list lacks; return how many are new here and there.

    ``pause_seconds`` is waited between two calls.
    Source: SES developer guide, "Service quotas": one call a second, all but for sending.
    """
    pulled = pushed = 0
    there: set[str] = set()
    for page in read_pages(aws):
        there.update(entry.address.lower() for entry in page.entries)
        pulled += pull(page.entries)[0]
        time.sleep(pause_seconds)
    for address, reason in find_local():
        if address not in there:
            put(aws, address, reason)
            pushed += 1
            time.sleep(pause_seconds)
    return pulled, pushed

"""SES's account suppression list against ``Unsubscribe``, both ways.

SES keeps a list of its own for the account and region: what is on it is not delivered, even
if this app sends it. It knows two reasons, ``BOUNCE`` and ``COMPLAINT``; opt-outs and what an
operator suppressed have no place there and stay here.

Source: SES developer guide, "Using the Amazon SES account-level suppression list".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from connect_mailer import addresses, imports
from connect_mailer.account.aws import AWS
from connect_mailer.exceptions import AccountError, InvalidAddress
from connect_mailer.imports import Entry
from connect_mailer.models import Unsubscribe

REASONS: Final[dict[str, str]] = {
    "BOUNCE": Unsubscribe.Source.BOUNCE,
    "COMPLAINT": Unsubscribe.Source.COMPLAINT,
}
_SOURCES: Final = {source: reason for reason, source in REASONS.items()}
# As many as SES gives at most. Source: SES API reference v2, ListSuppressedDestinations.
PAGE_SIZE: Final = 1000
# Between two calls. Source: SES developer guide, "Service quotas": one call a second, all but for
# sending.
PAUSE_SECONDS: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some entries of SES's list, and the token of the page after them; empty: there is none."""

    entries: Sequence[Entry]
    next_token: str

    @property
    def addresses(self) -> set[str]:
        """As ``find_local`` has them."""
        return {entry.address.lower() for entry in self.entries}


def read_pages(aws: AWS, *, token: str = "", pause_seconds: float = 0.0) -> Iterator[Page]:
    """SES's list, a page at a time; ``token`` is where to go on.

    ``pause_seconds`` is waited between two calls.
    """
    for page in aws.pages("sesv2", "ListSuppressedDestinations", token=token, PageSize=PAGE_SIZE):
        next_token = page.get("NextToken") or ""
        yield Page(
            entries=[
                Entry(
                    address=str(one["EmailAddress"]),
                    source=REASONS.get(one["Reason"], str(one["Reason"])),
                    since=one["LastUpdateTime"],
                )
                for one in page.get("SuppressedDestinationSummaries", ())
            ],
            next_token=next_token,
        )
        if next_token:
            time.sleep(pause_seconds)


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


def push(
    aws: AWS,
    rows: Iterable[tuple[str, str]],
    *,
    pause_seconds: float,
    tell: Callable[[], object] = lambda: None,
) -> int:
    """Put addresses, each with its reason, onto SES's list; return how many.

    ``tell`` is called after each; ``pause_seconds`` is waited between two.
    """
    number = 0
    for address, reason in rows:
        aws.call("sesv2", "PutSuppressedDestination", EmailAddress=address, Reason=reason)
        number += 1
        tell()
        time.sleep(pause_seconds)
    return number


def release(aws: AWS, address: str) -> bool:
    """Take one address off SES's list; ``False``: it was not on it."""
    try:
        aws.call("sesv2", "DeleteSuppressedDestination", EmailAddress=address)
    except AccountError as error:
        if error.is_missing:
            return False
        raise
    return True


def synchronise(aws: AWS) -> tuple[int, int]:
    """Pull, then push what SES's list lacks; return how many are new here and there."""
    pulled = 0
    there: set[str] = set()
    for page in read_pages(aws, pause_seconds=PAUSE_SECONDS):
        there |= page.addresses
        pulled += imports.store(page.entries).new
    lacking = (row for row in find_local() if row[0] not in there)
    return pulled, push(aws, lacking, pause_seconds=PAUSE_SECONDS)

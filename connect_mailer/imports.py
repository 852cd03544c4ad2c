"""What other apps know of who is not to be written to, as rows of ``Unsubscribe``.

Tables are read as they are, so the old app may be gone from the site. Everything is done in
chunks and may be done again: what is there already is left alone.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.db import connections, router
from django.utils import timezone

from connect_mailer import addresses
from connect_mailer.conf import MAX_LIST_LENGTH
from connect_mailer.exceptions import ConnectMailerError
from connect_mailer.feedback import events
from connect_mailer.models import Unsubscribe, UnsubscribeKey

CHUNK: Final = 1000
Source = Unsubscribe.Source


class ImportFailed(ConnectMailerError):
    """There is nothing to import from. The text says what was looked for."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One address that another app does not write to; ``since`` where it knows that."""

    address: str
    source: str
    mailing_list: str = ""
    since: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A row that another app has and that makes nobody one who is not to be written to."""

    reason: str


@dataclass(kw_only=True)
class Tally:
    """What became of the entries."""

    read: int = 0
    new: int = 0
    known: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """How many were left out, by the reason."""


def store(
    entries: Iterable[Entry | Skipped],
    *,
    is_dry: bool = False,
    only_unknown: bool = False,
    tell: Callable[[int], object] = lambda count: None,
) -> Tally:
    """Add a row for each entry that has none; with ``only_unknown``, whose address has none.

    ``tell`` is called with the number of entries of each chunk that is done.
    """
    tally = Tally()
    for chunk in _chunks(entries):
        _store_chunk(chunk, tally, is_dry=is_dry, only_unknown=only_unknown)
        tally.read += len(chunk)
        tell(len(chunk))
    return tally


def _chunks(entries: Iterable[Entry | Skipped]) -> Iterator[list[Entry | Skipped]]:
    iterator = iter(entries)
    while chunk := [entry for _, entry in zip(range(CHUNK), iterator, strict=False)]:
        yield chunk


def _store_chunk(
    chunk: Sequence[Entry | Skipped], tally: Tally, *, is_dry: bool, only_unknown: bool
) -> None:
    wanted: dict[UnsubscribeKey, Entry] = {}
    reasons: list[str] = []
    for entry in chunk:
        if isinstance(entry, Skipped):
            reasons.append(entry.reason)
            continue
        try:
            wanted.setdefault(_read_key(entry), entry)
        except ValueError as error:
            reasons.append(str(error))
    tally.skipped.update(reasons)
    there = Unsubscribe.objects.find_keys({address for address, _source, _list in wanted})
    reached = {address for address, _source, _list in there}
    new = [key for key in wanted if key not in there and not (only_unknown and key[0] in reached)]
    tally.new += len(new)
    tally.known += len(chunk) - len(reasons) - len(new)
    if is_dry or not new:
        return
    Unsubscribe.objects.add_all(new)
    _keep_dates({key: since for key in new if (since := wanted[key].since)})


def _keep_dates(dates: dict[UnsubscribeKey, datetime]) -> None:
    """Since when, as the other app had it: a new row says today."""
    rows = Unsubscribe.objects.using(router.db_for_write(Unsubscribe))
    changed = []
    for row in rows.filter(address__in={key[0] for key in dates}):
        since = dates.get((row.address, row.source, row.mailing_list))
        if since is not None:
            row.created_at = since
            changed.append(row)
    rows.bulk_update(changed, ["created_at"])


def _read_key(entry: Entry) -> UnsubscribeKey:
    """The row that an entry asks for.

    Raises:
        ValueError: it can't be one; the text says why.
    """
    key = addresses.normalise(entry.address)
    if entry.source not in Source.values:
        raise ValueError(f"the source {entry.source!r} is none of {Source.values}")
    if len(entry.mailing_list) > MAX_LIST_LENGTH:
        raise ValueError(
            f"the mailing list {entry.mailing_list!r} has more than {MAX_LIST_LENGTH} characters"
        )
    return key, str(entry.source), entry.mailing_list


# Where they come from


def count_rows(*tables: str) -> int | None:
    """How many rows there are to read; ``None`` where a table is missing."""
    connection = connections[router.db_for_read(Unsubscribe)]
    with connection.cursor() as cursor:
        if not set(tables) <= set(connection.introspection.table_names(cursor)):
            return None
        total = 0
        for table in tables:
            cursor.execute(f"SELECT COUNT(*) FROM {connection.ops.quote_name(table)}")  # noqa: S608
            total += cursor.fetchone()[0]
    return total


def read_connect() -> Iterator[Entry]:
    """OFA Connect's own table. Its label, ``mailer``, is pinax django-mailer's too: that one
    has other tables."""
    for address, source, since in _read("mailer_unsubscribe", "address", "source", "created_at"):
        yield Entry(
            address=address,
            source=Source.BOUNCE if source == "bounce" else Source.USER,
            since=since,
        )


def read_bouncy() -> Iterator[Entry | Skipped]:
    """Hard bounces and complaints of django-bouncy, from before this app listened to them."""
    columns = ("address", "created_at", "hard", "action", "bounce_subtype")
    for address, since, is_hard, action, subtype in _read("django_bouncy_bounce", *columns):
        if not is_hard:
            yield Skipped(reason="a soft bounce")
        elif events.is_delayed(action):
            yield Skipped(reason="the reader's server was still trying")
        else:
            opted_out = subtype == events.UNSUBSCRIBED
            source = Source.USER if opted_out else Source.BOUNCE
            yield Entry(address=address, source=source, since=since)
    names = ("address", "created_at", "feedback_type")
    for address, since, kind in _read("django_bouncy_complaint", *names):
        if events.is_not_spam(kind):
            yield Skipped(reason="a reader who said that it was not spam")
        else:
            yield Entry(address=address, source=Source.COMPLAINT, since=since)


def read_django_ses() -> Iterator[Entry]:
    """django-ses's ``BlacklistedEmail``: it doesn't say why, and bounces are most of them."""
    for (address,) in _read("django_ses_blacklistedemail", "email"):
        yield Entry(address=address, source=Source.BOUNCE)


def read_django_mailer() -> Iterator[Entry]:
    """pinax django-mailer's ``DontSendEntry``, which operators add by hand."""
    for address, since in _read("mailer_dontsendentry", "to_address", "when_added"):
        yield Entry(address=address, source=Source.MANUAL, since=since)


# Source: django-post-office 3.12, ``RecipientDeliveryStatus``.
_POST_OFFICE_OUTCOMES: Final = {
    70: Source.BOUNCE,  # hard bounced
    80: Source.COMPLAINT,  # spam complaint
    90: Source.USER,  # unsubscribed
}
_POST_OFFICE_FAILED: Final = 1
_FAILED: Final = "failed to be sent, which doesn't say that the address is bad"


def read_post_office() -> Iterator[Entry | Skipped]:
    """Recipients of django-post-office's mail that bounced, complained or opted out.

    Mail that is ``failed`` without such an outcome says only that a server did not take it:
    nothing about its recipients.
    """
    columns = ("to", "status", "recipient_delivery_status", "last_updated")
    for recipients, status, outcome, since in _read("post_office_email", *columns):
        source = _POST_OFFICE_OUTCOMES.get(outcome)
        if source is None:
            failed = status == _POST_OFFICE_FAILED and outcome is None
            yield Skipped(reason=_FAILED if failed else "no hard bounce, complaint or opt-out")
        else:
            for address in str(recipients).split(","):
                yield Entry(address=address.strip(), source=source, since=since)


def read_csv(path: Path) -> Iterator[Entry]:
    """A CSV file with the columns ``address`` and, if need be, ``source``, ``mailing_list``.

    A file of one column needs no header. Without a source, an operator added it (``manual``).
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            first = next(rows, [])
            names = [name.strip().lower() for name in first]
            if "address" not in names:
                if len(first) > 1:
                    raise ImportFailed(
                        f"{path} has no column 'address'; its first line is {first}."
                    )
                names = ["address"]
                if first:
                    yield Entry(address=first[0].strip(), source=Source.MANUAL)
            for row in rows:
                values = dict(zip(names, (value.strip() for value in row), strict=False))
                if values.get("address"):
                    yield Entry(
                        address=values["address"],
                        source=values.get("source") or Source.MANUAL,
                        mailing_list=values.get("mailing_list", ""),
                    )
    except (OSError, UnicodeDecodeError) as error:
        raise ImportFailed(f"{path} can't be read: {error}") from error


def _read(table: str, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Some columns of a table that may be any app's, a chunk at a time, by its key.

    Raises:
        ImportFailed: there is no such table, or it has other columns.
    """
    connection = connections[router.db_for_read(Unsubscribe)]
    quote = connection.ops.quote_name
    with connection.cursor() as cursor:
        if table not in connection.introspection.table_names(cursor):
            raise ImportFailed(f"There is no table {table!r} in this database.")
        there = {one.name for one in connection.introspection.get_table_description(cursor, table)}
        if missing := {"id", *columns} - there:
            raise ImportFailed(
                f"The table {table!r} has no column {', '.join(sorted(missing))}: it is another "
                "app's, or of a release that this app does not know."
            )
        names = ", ".join(map(quote, ("id", *columns)))
        sql = f"SELECT {names} FROM {quote(table)} WHERE id > %s ORDER BY id LIMIT {CHUNK}"  # noqa: S608
        last = 0
        while True:
            cursor.execute(sql, [last])
            rows = cursor.fetchall()
            if not rows:
                return
            last = rows[-1][0]
            for row in rows:
                yield tuple(_make_time(value) for value in row[1:])


def _make_time(value: Any) -> Any:
    """A time as Django's fields have it: drivers give it naive, or as text (SQLite)."""
    if isinstance(value, str) and value[4:5] == "-" and value[10:11] in (" ", "T"):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return value
    if isinstance(value, datetime):
        if settings.USE_TZ and timezone.is_naive(value):
            return value.replace(tzinfo=UTC)
        if not settings.USE_TZ and timezone.is_aware(value):
            return timezone.make_naive(value)
    return value

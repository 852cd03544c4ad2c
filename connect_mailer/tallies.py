"""How many were sent, bounced, complained: counted where it happens, added up later.

A counter that many processes raise is a row that all of them wait for, until each commits. So
none is raised: whoever counts inserts a row of its own into ``Tally``, in its transaction, and
``fold`` makes one row of those of five minutes, and of those of an hour once that is past.
What is read is the sum at any time, folded or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Final

from django.conf import settings
from django.db import connections, transaction
from django.db.models import QuerySet
from django.db.models.sql import Query
from django.utils import timezone

from connect_mailer import telemetry
from connect_mailer.clock import DatabaseNow
from connect_mailer.models import Tally
from connect_mailer.statements import Statement, insert

COUNTS: Final = (
    "sent",
    "failed",
    "written",
    "suppressed",
    "delivered",
    "bounced",
    "soft_bounced",
    "complained",
)

_COUNTED: Final = ("stream", "domain", *COUNTS)

# Addresses that SES offers for tests; it doesn't count them either.
# Source: SES developer guide, "Using the mailbox simulator".
SIMULATOR_DOMAIN: Final = "simulator.amazonses.com"

MOMENT: Final = 0
MINUTES: Final = 300
HOUR: Final = 3600
DAY: Final = 86400

# Older than this (seconds), rows are folded into the next longer span.
_MOMENT_AGE: Final = 60
_MINUTES_AGE: Final = 2 * HOUR
# Days that the numbers are kept.
KEEP_DAYS: Final = 100
_CHUNK: Final = 5000


def is_simulated(address: str) -> bool:
    """Whether an address is the simulator's."""
    return address.lower().endswith(f"@{SIMULATOR_DOMAIN}")


def count(rows: Iterable[Tally], *, using: str) -> None:
    """Insert ``rows``, without a time yet: as of now, in one statement."""
    counted = [row for row in rows if any(getattr(row, name) for name in COUNTS)]
    if counted:
        with connections[using].cursor() as cursor:
            cursor.execute(*insert_counted(counted, using=using))
        tell_counted(counted, using=using)


def insert_counted(rows: Sequence[Tally], *, using: str) -> Statement:
    """The statement of ``count``, for who runs it with others, and then calls ``tell_counted``."""
    values = [[getattr(row, name) for name in _COUNTED] for row in rows]
    return insert(Tally, {}, _COUNTED, values, connections[using], computed=_write_moment(using))


@cache
def _write_moment(using: str) -> tuple[tuple[str, str], ...]:
    now, _ = Query(None).get_compiler(using).compile(DatabaseNow())
    return ("at", now), ("span", str(MOMENT))


def tell_counted(rows: Iterable[Tally], *, using: str) -> None:
    """``tell_metrics`` of rows that were inserted."""
    sums = (row for row in rows if not row.domain)
    tell_metrics(
        ((name, row.stream, getattr(row, name)) for row in sums for name in COUNTS), using=using
    )


def tell_metrics(counts: Iterable[tuple[str, str, int]], *, using: str) -> None:
    """Raise metrics, by name (``counters``) and stream, once this is committed."""
    if not telemetry.has_metrics():
        return
    sums = Counter[tuple[str, str]]()
    for name, stream, number in counts:
        sums[name, stream] += number
    if sums := +sums:
        transaction.on_commit(partial(telemetry.add, sums), using=using, robust=True)


def fold(*, using: str) -> None:
    """Make few rows of many, and forget those that are older than ``KEEP_DAYS``.

    Two at a time take different rows, or one of them gives up.
    """
    tallies = Tally.objects.using(using)
    tallies.filter(at__lt=DatabaseNow() - timedelta(days=KEEP_DAYS)).delete()
    for span, age, into in (
        (MOMENT, _MOMENT_AGE, MINUTES),
        (MINUTES, _MINUTES_AGE, HOUR),
    ):
        # Whole spans of what follows, so that each is one row.
        end = floor(timezone.now() - timedelta(seconds=age), into)
        old = tallies.filter(span=span, at__lt=end)
        while old.exists() and _fold_some(old.values_list("pk", flat=True), into, using):
            pass


def _fold_some(pks: QuerySet[Tally, int], into: int, using: str) -> bool:
    with transaction.atomic(using=using):
        features = connections[using].features
        locked = Tally.objects.using(using).select_for_update(
            skip_locked=features.has_select_for_update_skip_locked
        )
        rows = list(locked.filter(pk__in=list(pks[:_CHUNK])))
        sums: dict[tuple[datetime, int, str, str], Counter[str]] = {}
        for row in rows:
            # What is told by domain is of interest by day only.
            span = DAY if row.domain and into == HOUR else into
            key = (floor(row.at, span), span, row.stream, row.domain)
            counts = sums.setdefault(key, Counter())
            for name in COUNTS:
                counts[name] += getattr(row, name)
        gone, _ = Tally.objects.using(using).filter(pk__in=[row.pk for row in rows]).delete()
        if gone != len(rows):  # no row locks here (SQLite), and another one was faster
            transaction.set_rollback(True, using=using)
            return False
        Tally.objects.using(using).bulk_create(
            Tally(at=at, span=span, stream=stream, domain=domain, **counts)
            for (at, span, stream, domain), counts in sums.items()
        )
    return bool(rows)


def floor(at: datetime, span: int) -> datetime:
    """Where the span of ``span`` seconds that ``at`` is in begins, in UTC."""
    if settings.USE_TZ:
        seconds = int(at.timestamp()) // span * span
        return datetime.fromtimestamp(seconds, UTC)
    start = datetime(1970, 1, 1)  # noqa: DTZ001 - as the site stores it
    return start + timedelta(seconds=int((at - start).total_seconds()) // span * span)

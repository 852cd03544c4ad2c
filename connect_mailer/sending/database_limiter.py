"""The shared limiter of a site without Redis: one locked row, the database's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from django.db import DEFAULT_DB_ALIAS, Error, connections, models, transaction

from connect_mailer.clock import DatabaseNow
from connect_mailer.exceptions import LimiterUnavailable
from connect_mailer.models import LimiterState
from connect_mailer.sending import limiter
from connect_mailer.sending.limiter import Bucket, Hint, Memory, Reservation
from connect_mailer.transactions import limit_idling

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(kw_only=True)
class _LockedRow:
    bucket: Bucket
    hint: Hint
    now_us: int


class DatabaseLimiter:
    """The bucket as a row of ``LimiterState``: three short queries a batch.

    Call it outside of a transaction: the row stays locked until the outermost one ends.

    Args:
        using: alias of the database.
        clock: monotonic seconds.
        name: whose bucket it is: one for each SES account and region.
    """

    def __init__(
        self,
        using: str = DEFAULT_DB_ALIAS,
        clock: Callable[[], float] = time.monotonic,
        *,
        name: str = limiter.DEFAULT_NAME,
    ) -> None:
        self._using = using
        self._name = name
        self._memory = Memory(clock)

    def reserve(self, costs: Sequence[int], rate: float) -> Reservation:
        """See ``Limiter``."""
        interval_ns = limiter.to_interval_ns(costs, rate)
        with self._locked() as row:
            row.bucket, grant = limiter.reserve(
                row.bucket, row.hint, now_us=row.now_us, costs=costs, interval_ns=interval_ns
            )
        self._memory.learn_grant(costs, grant)
        return grant.to_reservation(age_us=self._memory.age_us())

    def give_back(self, tokens: int) -> None:
        """See ``Limiter``."""
        memory = self._memory
        if tokens > 0 and memory.interval_ns:
            with self._locked() as row:
                row.bucket = limiter.give_back(
                    row.bucket,
                    row.hint,
                    now_us=row.now_us,
                    tokens=tokens,
                    interval_ns=memory.interval_ns,
                    ends_us=memory.ends_us,
                )

    def put_off(self, seconds: float) -> None:
        """See ``Limiter``."""
        with self._locked() as row:
            row.bucket = limiter.put_off(
                row.bucket,
                row.hint,
                now_us=row.now_us,
                interval_ns=self._memory.interval_ns,
                late_us=int(seconds * 1e6),
            )

    def slow_down(self) -> None:
        """See ``Limiter``."""
        with self._locked() as row:
            row.bucket = limiter.slow_down(
                row.bucket, row.hint, now_us=row.now_us, interval_ns=self._memory.interval_ns
            )

    def close(self) -> None:
        """See ``Limiter``. The connection is Django's."""

    @contextmanager
    def _locked(self) -> Iterator[_LockedRow]:
        """The row, locked; what becomes of ``bucket`` inside is stored."""
        try:
            with transaction.atomic(using=self._using):
                self._lock()
                own_us = self._memory.now_us()
                before, now_us = self._read()
                row = _LockedRow(bucket=before, hint=self._memory.hint(own_us), now_us=now_us)
                yield row
                if row.bucket != before:
                    self._rows.update(**asdict(row.bucket))
        except Error as error:
            connections[self._using].close_if_unusable_or_obsolete()
            text = " ".join(str(error).split())
            raise LimiterUnavailable(f"The limiter's database: {text}") from error
        self._memory.learn(own_us=own_us, now_us=now_us, arrival_us=row.bucket.arrival_us)

    @property
    def _rows(self) -> models.QuerySet[LimiterState]:
        return LimiterState.objects.using(self._using).filter(name=self._name)

    def _lock(self) -> None:
        # An UPDATE, and before the clock is read: SQLite takes its lock only to write, and
        # PostgreSQL's clock stands still while a statement waits for one.
        rows = limit_idling(self._rows)
        if not rows.update(slowdown=models.F("slowdown")):
            is_mysql = connections[self._using].vendor == "mysql"
            LimiterState.objects.using(self._using).bulk_create(
                [LimiterState(name=self._name)],
                # Where another one was faster, IGNORE leaves a shared lock behind on MySQL, and
                # the UPDATEs of two who hold that block each other.
                ignore_conflicts=not is_mysql,
                update_conflicts=is_mysql,
                update_fields=["slowdown"] if is_mysql else None,
            )
            rows.update(slowdown=models.F("slowdown"))

    def _read(self) -> tuple[Bucket, int]:
        # Locking again costs nothing, and MySQL reads the newest version only so.
        arrival_us, slowdown, slowdown_us, now = (
            self._rows.select_for_update()
            .annotate(now=DatabaseNow())
            .values_list("arrival_us", "slowdown", "slowdown_us", "now")
            .get()
        )
        epoch = _EPOCH if now.tzinfo else _EPOCH.replace(tzinfo=None)
        return (
            Bucket(arrival_us=arrival_us, slowdown=slowdown, slowdown_us=slowdown_us),
            (now - epoch) // timedelta(microseconds=1),
        )

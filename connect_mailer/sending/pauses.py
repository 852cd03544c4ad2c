"""Pauses: of the whole account, for a while and by itself; of one stream, by an operator.

A pause is a lease. The drains ask every half second, and what is paused they claim no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from connect_mailer.clock import DatabaseNow
from connect_mailer.models import Lease, OutgoingMessage
from connect_mailer.sending import leases
from connect_mailer.sending.wakeups import PAUSE

# What ends by a person's hand has no end of its own: 100 years.
_FOR_EVER_SECONDS: Final = 100 * 365 * 86400

_NAMES: Final = {f"pause {stream}": stream.value for stream in OutgoingMessage.Stream}


@dataclass(frozen=True, kw_only=True)
class Pause:
    """A pause in force. ``stream`` empty: all mail, until ``ends_at`` (otherwise ``None``)."""

    stream: str
    reason: str
    since: datetime | None
    ends_at: datetime | None


def pause(stream: str, reason: str, *, using: str) -> bool:
    """Send nothing of ``stream`` until ``resume``; ``False``: it is paused already."""
    name = f"pause {OutgoingMessage.Stream(stream)}"
    return leases.acquire(name, _FOR_EVER_SECONDS, using=using, note=reason) is not None


def resume(stream: str, *, using: str) -> bool:
    """End the pause of ``stream`` (empty: of the account, to try again now).

    ``False``: there was none. Waking a worker is the caller's part.
    """
    name = f"pause {OutgoingMessage.Stream(stream)}" if stream else PAUSE
    return leases.release(name, using=using)


def find_pauses(*, using: str) -> list[Pause]:
    """Those in force, that of the account first."""
    rows = Lease.objects.using(using).filter(
        name__in=[PAUSE, *_NAMES], expires_at__gt=DatabaseNow()
    )
    return [
        Pause(
            stream=_NAMES.get(row.name, ""),
            reason=row.note,
            since=row.since,
            ends_at=None if row.name in _NAMES else row.expires_at,
        )
        for row in rows.order_by("name")
    ]


def find_paused(*, using: str, by_operators_only: bool = False) -> frozenset[str]:
    """The streams of which nothing is sent now; ``by_operators_only``: until a person says so."""
    alive = leases.find_alive(PAUSE, *_NAMES, using=using)
    streams = _NAMES.items()
    return frozenset(
        stream
        for name, stream in streams
        if name in alive or (PAUSE in alive and not by_operators_only)
    )

"""Leases: what one process of the site may do at a time, told by rows with an end.

Flags with an expiry (a wake-up is pending, the account is paused) are leases, too.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

from django.db import IntegrityError, transaction
from django.db.models import DurationField, ExpressionWrapper, F

from connect_mailer.clock import DatabaseNow
from connect_mailer.models import Lease


def acquire(name: str, seconds: float, *, using: str, note: str = "") -> UUID | None:
    """Take the lease ``name`` for ``seconds``; ``None``: another process holds it."""
    holder = uuid4()
    leases = Lease.objects.using(using).filter(name=name)
    end = DatabaseNow() + timedelta(seconds=seconds)
    if leases.filter(expires_at__lte=DatabaseNow()).update(
        holder=holder, since=DatabaseNow(), expires_at=end, note=note
    ):
        return holder
    if leases.exists():
        return None
    try:
        with transaction.atomic(using=using):
            leases.create(name=name, holder=holder, since=DatabaseNow(), expires_at=end, note=note)
    except IntegrityError:  # another process was the first
        return None
    return holder


def renew(name: str, holder: UUID, seconds: float, *, using: str) -> bool:
    """Extend a lease from now on; ``False``: it was lost to another process."""
    return bool(
        Lease.objects.using(using)
        .filter(name=name, holder=holder)
        .update(expires_at=DatabaseNow() + timedelta(seconds=seconds))
    )


def release(name: str, holder: UUID | None = None, *, using: str) -> bool:
    """Give a lease back (without ``holder``: whoever has it); ``False``: nobody had it."""
    leases = Lease.objects.using(using).filter(name=name, expires_at__gt=DatabaseNow())
    if holder is not None:
        leases = leases.filter(holder=holder)
    return bool(leases.update(expires_at=DatabaseNow()))


def find_alive(*names: str, using: str) -> dict[str, str]:
    """Those of ``names`` that are held now, with their notes."""
    return dict(
        Lease.objects.using(using)
        .filter(name__in=names, expires_at__gt=DatabaseNow())
        .values_list("name", "note")
    )


def find_rest(*names: str, using: str) -> float:
    """Seconds until none of ``names`` is held any more; 0: none is."""
    rests = (
        Lease.objects.using(using)
        .filter(name__in=names, expires_at__gt=DatabaseNow())
        .values_list(
            ExpressionWrapper(F("expires_at") - DatabaseNow(), output_field=DurationField()),
            flat=True,
        )
    )
    return max((rest.total_seconds() for rest in rests), default=0.0)

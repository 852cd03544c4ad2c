"""Mail that a log handler makes of what the app itself logs.

A site may mail its log to its admins through this very outbox. When sending fails, each line
about it would queue another message, which fails as well: so while the app is at work, mail
made by a log handler is let through once an hour at most.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from django.db import Error

from connect_mailer.sending import leases

INTERVAL_SECONDS = 3600

_LEASE = "log mail"
_at_work = ContextVar("connect_mailer_at_work", default=False)


@contextmanager
def at_work() -> Iterator[None]:
    """What is logged in here is about the sending of mail."""
    token = _at_work.set(True)
    try:
        yield
    finally:
        _at_work.reset(token)


def is_one_too_many(*, using: str) -> bool:
    """Whether the message that is being queued is mail about mail, and not the first this hour."""
    if not _at_work.get() or not _is_in_log_handler():
        return False
    try:
        return leases.acquire(_LEASE, INTERVAL_SECONDS, using=using) is None
    except Error:
        return True  # it could not be queued either


def _is_in_log_handler() -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is logging.Logger.callHandlers.__code__:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False

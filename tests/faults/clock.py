"""A wrong clock: what Python says the time is, off by some seconds, in this process."""

from __future__ import annotations

import datetime as dt
import time


def put_off(seconds: float) -> None:
    """Be wrong from now on. The monotonic clock, which no one sets, stays as it is."""
    if not seconds:
        return
    right, right_ns, real = time.time, time.time_ns, dt.datetime
    off = dt.timedelta(seconds=seconds)

    class Wrong(real):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
            return real.now(tz) + off

        @classmethod
        def utcnow(cls) -> dt.datetime:
            return real.now(dt.UTC).replace(tzinfo=None) + off

    time.time = lambda: right() + seconds
    time.time_ns = lambda: right_ns() + int(seconds * 1e9)
    dt.datetime = Wrong  # type: ignore[misc]

"""The site's Celery app in a worker that stops itself where the environment says.

``FAULT_POINT`` is such as ``before claim`` or ``after settle`` (the functions of the outbox),
``FAULT_SIGNAL`` what all processes of the worker get there, and ``FAULT_MARK`` a file that
says that it has happened: once is enough. With ``FAULT_ALONE`` only the process that came there
gets it, as from the kernel where memory is short.

A quarter of a minute until a dead drain is no longer waited for is for sites; here it is a few
seconds. So is a minute between sweeps, but for workers with a ``FAULT_SWEEP_SECONDS``.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery.signals import celeryd_after_setup, worker_process_init

from tests.site.celery import app as app


@celeryd_after_setup.connect
def _sweep_often(**kwargs: Any) -> None:
    from connect_mailer import tasks

    tasks.SWEEP_SECONDS = int(os.environ.get("FAULT_SWEEP_SECONDS", "1"))  # type: ignore[misc]


@worker_process_init.connect
def _prepare(**kwargs: Any) -> None:
    from connect_mailer.sending import delivery, outbox

    delivery.DRAIN_LEASE_SECONDS = 4
    if point := os.environ.get("FAULT_POINT"):
        when, _, name = point.partition(" ")
        setattr(outbox, name, _stop_around(getattr(outbox, name), when))


def _stop_around(act: Any, when: str) -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            _stop()
        done = act(*args, **kwargs)
        # A claim of nothing is no claim.
        if when == "after" and (done or done is None):
            _stop()
        return done

    return wrapped


def _stop() -> None:
    try:
        Path(os.environ["FAULT_MARK"]).touch(exist_ok=False)
    except FileExistsError:
        return
    number = signal.Signals[os.environ["FAULT_SIGNAL"]]
    if os.environ.get("FAULT_ALONE"):
        os.kill(os.getpid(), number)
    if number == signal.SIGSTOP:
        # What other threads have begun comes to its end: between their look at the lease and
        # the last byte of a request nothing could call it back.
        time.sleep(1)
    os.killpg(0, number)

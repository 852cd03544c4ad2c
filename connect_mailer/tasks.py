"""The Celery tasks, all without arguments: what they do is decided by the database.

``deliver`` drains the outbox, ``sweep`` wakes a drain for what is due or soon will be, ``purge``
forgets old rows. Nothing has to be scheduled: each worker that has the app loaded asks for a
sweep every minute (see ``_find_sweep_seconds``), with or without beat.

Workers import this module at their start, other processes with their first mail; what only a task
needs is imported by it.
"""

from __future__ import annotations

import logging
import threading
import time
from math import inf
from typing import Any, Final

from celery import shared_task
from celery.signals import worker_ready, worker_shutting_down
from django.db import Error, transaction

from connect_mailer.conf import conf
from connect_mailer.sending import leases, log_mail
from connect_mailer.sending.wakeups import (
    BROKER_DOWN,
    HELP,
    PAUSE,
    REMEMBER_SECONDS,
    WAKE,
    name_drain,
)

logger = logging.getLogger(__name__)

# Asking the broker never takes longer, however it is out of reach.
PUBLISH_SECONDS: Final = 3.0
# A wake-up that no worker took by then is asked for again.
WAKE_SECONDS: Final = 15
HELP_SECONDS: Final = 5
# A broker that was down is not asked again for this long: each asking may take seconds of
# somebody's request. A worker that reaches it again sweeps at once.
BROKER_DOWN_SECONDS: Final = 60
SWEEP_SECONDS: Final = 60
# The leases of one dead worker end one after the other, over about so long: a drain that took
# some of its rows asks for the one that takes the next.
SOON_SECONDS: Final = 20
PURGE_SECONDS: Final = 3600


@shared_task(name="connect_mailer.tasks.deliver", ignore_result=True)
def deliver() -> None:
    """Deliver what is due."""
    from connect_mailer.sending import outbox
    from connect_mailer.sending.delivery import drain_outbox

    is_eager = bool(deliver.request.is_eager)
    if drain_outbox(wake=wake, ask_for_help=_ask_for_help, one_pass=is_eager) and not is_eager:
        _wake_later(SOON_SECONDS, using=outbox.get_database())


@shared_task(name="connect_mailer.tasks.sweep", ignore_result=True)
def sweep() -> None:
    """Wake a drain for what is due: after a lost wake-up, a dead worker, a pause.

    Now, or for the moment when it is due if that comes before the next sweep has looked.
    """
    from connect_mailer import tallies
    from connect_mailer.health import guard
    from connect_mailer.sending import outbox
    from connect_mailer.sending.pauses import find_paused

    using = outbox.get_database()
    interval = _find_sweep_seconds()
    # A broker that was down and brings this works again: what waited for it goes at once.
    is_back = leases.release(BROKER_DOWN, using=using)
    # Half of it: the worker that swept last may be dead, and the others were told to wait.
    if not leases.acquire("sweep", interval / 2, using=using) and not is_back:
        return
    # A wake-up that is pending may be lost, so it is not asked about here.
    if outbox.is_due(using=using, paused=find_paused(using=using, by_operators_only=True)):
        # A drain that has the lease looks after it; but it may be dead.
        rest = leases.find_rest(PAUSE, name_drain(1), using=using)
        if rest < 2 * interval:
            _publish(deliver, **({"countdown": rest} if rest else {}))
    _wake_later(2 * interval, using=using)
    if leases.acquire("purge", PURGE_SECONDS, using=using):
        _publish(purge)
    tallies.fold(using=using)
    guard.check(using=using)


def _wake_later(within_seconds: float, *, using: str) -> None:
    """Ask for a drain at the moment when the next row is due, if that is so soon."""
    from connect_mailer.sending import outbox

    soonest = outbox.find_wait(within_seconds, using=using)
    if soonest is None:
        return
    wait = max(soonest, leases.find_rest(PAUSE, name_drain(1), using=using))
    if wait < within_seconds:
        _publish(deliver, countdown=wait)


def _find_sweep_seconds() -> float:
    """From one sweep of a worker to the next: each lease of a row has a sweep look at it."""
    return min(SWEEP_SECONDS, conf.lease_seconds / 2)


@shared_task(name="connect_mailer.tasks.purge", ignore_result=True)
def purge() -> None:
    """Forget finished rows and bodies after their time (``KEEP_DAYS``, ``KEEP_BODIES_DAYS``)."""
    from connect_mailer.sending import outbox
    from connect_mailer.sending.suppression import forget_expired

    forgotten = outbox.purge(
        keep_days=conf.keep_days,
        keep_bodies_days=conf.keep_bodies_days,
        using=outbox.get_database(),
    )
    forget_expired()
    logger.info("Forgot %d finished rows.", forgotten)


@shared_task(name="connect_mailer.tasks.sync_suppression", ignore_result=True)
def sync_suppression() -> None:
    """Copy between SES's account suppression list and ``Unsubscribe``, both ways.

    For a schedule of the site's own, such as once a day: it is never asked for by itself. SES
    allows about one such call a second, so a long list takes a while.
    """
    from connect_mailer.account.aws import AWS
    from connect_mailer.account.suppressed import synchronise

    pulled, pushed = synchronise(AWS())
    logger.info("Suppression: %d rows are new here, %d entries at SES.", pulled, pushed)


def wake_on_commit(*, using: str) -> None:
    """Wake a drain once the transaction on ``using`` is committed: once for all its messages."""
    pending = transaction.get_connection(using).run_on_commit
    if not any(callback is wake for _, callback, *_ in pending):
        transaction.on_commit(wake, using=using, robust=True)


def wake() -> None:
    """Ask for a drain, unless one is running or was asked for already.

    Never raises, and takes at most 3 s where the broker is down: ``sweep`` finds what waits.
    Within ``REMEMBER_SECONDS`` after that, this process asks for nothing.
    """
    from connect_mailer.sending import outbox

    global _asked_at
    now = time.monotonic()
    if now - _asked_at < REMEMBER_SECONDS:
        return
    using = outbox.get_database()
    try:
        alive = leases.find_alive(WAKE, BROKER_DOWN, name_drain(1), using=using)
        if not alive and leases.acquire(WAKE, WAKE_SECONDS, using=using):
            _publish_deliver(using)
    except Error as error:
        with log_mail.at_work():
            logger.warning("No drain could be asked for: %s", error)
        return
    if not deliver.app.conf.task_always_eager:  # then it ran, and looks no more
        _asked_at = now


def _ask_for_help() -> None:
    """Ask for a second drain, at most every few seconds; sending waits meanwhile."""
    from connect_mailer.sending import outbox

    using = outbox.get_database()
    if leases.find_alive(BROKER_DOWN, using=using):
        return
    if leases.acquire(HELP, HELP_SECONDS, using=using):
        _publish_deliver(using)


def _publish_deliver(using: str) -> None:
    if not _publish(deliver):
        leases.acquire(BROKER_DOWN, BROKER_DOWN_SECONDS, using=using)


def _publish(task: Any, **options: Any) -> bool:
    """Hand a task to the broker; ``False``: it was not taken in time."""
    published = threading.Event()

    def publish() -> None:
        with log_mail.at_work():
            try:
                # One try, none of Celery's retries: it is asked for again anyway.
                task.apply_async(queue=conf.queue, retry=False, **options)
                published.set()
            except Exception as error:  # noqa: BLE001
                # Whatever a broker's library raises: the mail is in the database, and whoever
                # stored it must not fail for this.
                logger.warning("The broker is out of reach, mail waits for it: %r", error)

    if task.app.conf.task_always_eager:
        publish()  # runs here and now, in the caller's transaction
        return True
    # A broker that doesn't answer at all blocks whoever asks it, and libraries differ in how
    # long: the caller waits for this thread, but not for ever.
    thread = threading.Thread(target=publish, name="connect_mailer-wake", daemon=True)
    thread.start()
    thread.join(PUBLISH_SECONDS)
    if thread.is_alive():
        with log_mail.at_work():
            logger.warning("The broker doesn't answer; mail waits for it.")
    return published.is_set()


@worker_ready.connect
def _start_sweeping(sender: Any, **kwargs: Any) -> None:
    """In the worker's main process: the first sweep now, the next every minute or so.

    Runs again after each reconnection to the broker, with a new timer.
    """
    global _timer
    if _timer is not None:
        _timer.cancel()
    _publish(sweep)
    _timer = sender.timer.call_repeatedly(_find_sweep_seconds(), _publish, (sweep,))


@worker_shutting_down.connect
def _stop_drains(**kwargs: Any) -> None:
    """A pool of threads gets no signal of its own."""
    from connect_mailer.sending.delivery import stopping

    stopping.set()


_timer: Any = None
# When this process knew last of a drain that is to look (monotonic seconds).
_asked_at = -inf

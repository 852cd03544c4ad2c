"""The drain: takes rows out of the outbox and hands them to the transport, at the right pace.

One thread does the pacing and the database, and calls to the transport go on beside it (``calls``).
There is no barrier: while they are in flight, results are settled and the next rows are claimed.
"""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from math import inf
from typing import Any
from uuid import UUID

from billiard import current_process
from django.db import (
    DatabaseError,
    InterfaceError,
    InternalError,
    OperationalError,
    connections,
    router,
)
from django.db.models import BinaryField, QuerySet
from django.db.models.functions import Substr

from connect_mailer import telemetry
from connect_mailer.any_of import AnyOf
from connect_mailer.conf import CALL_SECONDS, conf
from connect_mailer.exceptions import (
    AccountProblem,
    DeliveryError,
    InDoubt,
    LimiterUnavailable,
    Rejected,
    SenderDenied,
    Throttled,
)
from connect_mailer.logs import make_extra, mask
from connect_mailer.models import (
    MAX_ID_LENGTH,
    MAX_RECIPIENTS,
    MESSAGE_ID_TAG,
    OutgoingContent,
    OutgoingMessage,
    OutgoingRecipient,
    Tally,
    Unsubscribe,
)
from connect_mailer.sending import leases, log_mail, outbox
from connect_mailer.sending.calls import Calls, Steps, blocking
from connect_mailer.sending.database_limiter import DatabaseLimiter
from connect_mailer.sending.limiter import AHEAD_SECONDS, Limiter, RedisLimiter, Reservation
from connect_mailer.sending.mime import has_way_out
from connect_mailer.sending.pauses import find_paused
from connect_mailer.sending.rate import account_rate
from connect_mailer.sending.ses import Envelope, SESClient
from connect_mailer.sending.suppression import Candidate, Suppression
from connect_mailer.sending.transport import Transport, get_transport
from connect_mailer.sending.wakeups import HELP, PAUSE, REMEMBER_SECONDS, WAKE, name_drain
from connect_mailer.tallies import count, is_simulated

logger = logging.getLogger(__name__)

Status = OutgoingMessage.Status

# Seconds. A drain that found nothing looks again this often, and ends after LINGER_SECONDS:
# a site that sends its mail one by one needs no wake-up for each.
POLL_SECONDS = 0.05
LINGER_SECONDS = 0.5
# Results wait this long for company, so that one statement settles many.
SETTLE_SECONDS = 0.05
# Answers are taken so often: to be woken by each would cost more than all else that it needs.
GATHER_SECONDS = 0.01
# How often a drain renews its lease and asks whether the account is paused.
HEARTBEAT_SECONDS = 0.5
DRAIN_LEASE_SECONDS = 15
# A drain that could not reach the limiter or the database tries again after this long.
OUTAGE_SECONDS = 1.0

# A call that starts this late (a busy machine) is caught up with; later, and what follows
# shifts. Far less than the strictest accounts allow: a burst of so many seconds, of which one
# recipient is a part. With a backlog the account is never idle, so what one call was late is what
# all after it are early, for good.
LATE_SECONDS = 0.015
BURST_SECONDS = 0.1

# A drain asks for slots when those that are taken begin in so many seconds: as soon as it may, it
# would get them one by one.
REFILL_SECONDS = AHEAD_SECONDS / 2

# Calls are handed over this long before they are to start: a thread that waits for the moment
# is more exact than a loop that asks the database.
HAND_OVER_SECONDS = 0.03

# A wide row takes all at once of what the account allows, so a call before it that is late
# would be one too many: it is sent this much into its slot. Others are by as much as one recipient
# takes: the difference is what follows a wide row too early, which the burst has to allow.
STRAGGLER_SECONDS = 0.05

# Rows that a drain holds, in units of its threads: so many that these have enough to do while the
# database is asked for more, and few, as who comes first now comes after them. Where SES answers
# fast the former takes more. It looks for no fewer than a part of them, as that takes as many
# statements for a few as for many.
READY_AHEAD = 5
MAX_READY_AHEAD = 20
LOOK_PART = 0.4

# Bytes of bodies that a drain holds at once, but for one message that is larger.
MAX_BYTES = 32_000_000

# Of a larger body, so many bytes are read at a time.
PIECE_BYTES = 4_000_000

# Distinct senders that SES denied one after the other until it is taken for the account.
MAX_DENIED_SENDERS = 5

MAX_DELAY_SECONDS = 3600


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One claimed row, ready to go, with its place in time (monotonic seconds)."""

    pk: int
    claim: UUID
    stream: str
    attempts: int
    envelope: Envelope
    starts_at: float
    width_seconds: float
    lease_ends_at: float

    @property
    def sender(self) -> str:
        """The envelope's."""
        return self.envelope.sender

    @property
    def interval_seconds(self) -> float:
        """Of one recipient."""
        return self.width_seconds / len(self.envelope.recipients)

    @property
    def grace_seconds(self) -> float:
        """How late it may start without a shift of what follows."""
        return _find_grace(self.interval_seconds)

    @property
    def delay_seconds(self) -> float:
        """From the start of the slot to the call."""
        is_wide = self.width_seconds > AHEAD_SECONDS
        return STRAGGLER_SECONDS if is_wide else min(self.interval_seconds, STRAGGLER_SECONDS)


def _find_grace(interval_seconds: float) -> float:
    return max(min(LATE_SECONDS, (BURST_SECONDS - interval_seconds) / 4), 0.0)


@dataclass(frozen=True, kw_only=True)
class DrainLease:
    """What allows a drain to run, as one of ``MAX_DRAINS``."""

    name: str
    holder: UUID


@contextmanager
def _handling(hear: Callable[[Any, int, Any], None], signals: Iterable[int]) -> Iterator[None]:
    """Let ``hear`` have these signals, and what handled each before.

    Only a main thread hears any: in others it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in signals}
    try:
        for number, before in previous.items():
            signal.signal(number, partial(hear, before))
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def on_signals(act: Callable[[], None], *signals: int) -> AbstractContextManager[None]:
    """Call ``act`` at SIGTERM or SIGINT (or ``signals``) instead of ending in mid-call.

    What listened before comes next, where it is a handler of Python's, but for two cases:
    Ctrl-C is not raised, and in a child of Celery's pool the worker's main process decides
    when it ends. Only a main thread hears signals; a pool of threads has
    ``worker_shutting_down``.
    """

    def hear(before: Any, number: int, frame: Any) -> None:
        act()
        is_passed_on = before is not signal.default_int_handler and not current_process().daemon
        if callable(before) and is_passed_on:
            before(number, frame)

    return _handling(hear, signals or (signal.SIGTERM, signal.SIGINT))


@contextmanager
def raising_afterwards(act: Callable[[], None]) -> Iterator[None]:
    """Keep back what handlers of signals raise: Ctrl-C, a time limit of Celery's.

    ``act`` is called instead, and it is raised when this is left: between any two steps of what is
    within, it could lose what these hand over. What is raised once more is raised at once.
    """
    raised: list[BaseException] = []

    def hear(before: Callable[..., object], number: int, frame: Any) -> None:
        try:
            before(number, frame)
        except BaseException as error:
            if raised:
                raise
            raised.append(error)
            act()

    handled = [one for one in signal.valid_signals() if callable(signal.getsignal(one))]
    try:
        with _handling(hear, handled):
            yield
    finally:
        if raised:
            raise raised.pop()


class Outages:
    """Logs when something goes out of reach and when it is back, not each try in between."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def begin(self, name: str, text: str) -> None:
        if name not in self._names:
            self._names.add(name)
            logger.error("%s", mask(text))

    def end(self, name: str) -> None:
        if name in self._names:
            self._names.discard(name)
            logger.warning("The %s is back; delivery goes on.", name)


class NotStarted(Exception):
    """The drain ends, or too little of the lease is left for a call."""


# Set when this process is to end: drains claim nothing more, finish, settle, give back.
stopping = threading.Event()
outages = Outages()


@log_mail.at_work()
def drain_outbox(
    *, wake: Callable[[], None], ask_for_help: Callable[[], None], one_pass: bool = False
) -> int:
    """Deliver what is due, as one of the drains that this site may run; return how many rows.

    ``wake`` is called where a next drain is to go on.
    """
    using = outbox.get_database()
    # Before the first look: whoever stores a row from now on asks for another drain.
    leases.release(WAKE, using=using)
    sent, has_work = 0, _has_work(using)
    if has_work:
        lease = _enter(using)
        if lease is None:
            return 0
        try:
            drain = _make_drain(using, lease, ask_for_help=ask_for_help, one_pass=one_pass)
            drain.run()
        finally:
            leases.release(lease.name, lease.holder, using=using)
        sent = drain.sent
        if one_pass or drain.longest_wait_seconds >= conf.drain_seconds:
            return sent
        has_work = _has_work(using)
    elif one_pass:
        return 0
    # Whoever asked for this drain, or saw it running, asks for no other one for a moment.
    if not has_work:
        time.sleep(REMEMBER_SECONDS)
        has_work = _has_work(using)
    if has_work:
        wake()
    return sent


def _has_work(using: str) -> bool:
    """Whether anything is due and may be sent."""
    return outbox.is_due(using=using, paused=find_paused(using=using))


def _enter(using: str) -> DrainLease | None:
    """Become the first drain; or one more, if the running ones asked for help."""
    for number in range(1, conf.max_drains + 1):
        if number == 2 and not leases.release(HELP, using=using):
            return None
        name = name_drain(number)
        if holder := leases.acquire(name, DRAIN_LEASE_SECONDS, using=using):
            return DrainLease(name=name, holder=holder)
    return None


def _make_drain(
    using: str, lease: DrainLease, *, ask_for_help: Callable[[], None], one_pass: bool
) -> Drain:
    transport = get_transport()
    rate = account_rate.get(transport if isinstance(transport, SESClient) else None)
    return Drain(
        transport=transport,
        limiter=None if rate is None else get_limiter(using),
        rate=rate,
        using=using,
        lease=lease,
        one_pass=one_pass,
        ask_for_help=ask_for_help if conf.max_drains > 1 else None,
    )


_limiters: dict[tuple[Any, ...], Limiter] = {}


def get_limiter(using: str) -> Limiter:
    """The limiter of this process for the settings in force: it remembers what it saw."""
    redis = conf.redis
    key = (using, repr(redis))
    if key not in _limiters:
        _limiters[key] = (
            DatabaseLimiter(using) if redis is None else RedisLimiter(redis.url, redis.options)
        )
    return _limiters[key]


class Drain:
    """One run over the outbox.

    ``limiter`` ``None``: not paced. ``lease``: renewed while it runs, and a paused account
    ends it. ``one_pass``: take what may be sent now and end, without waiting for more (eager
    Celery, tests). ``ask_for_help`` is called while calls in flight are the bottleneck.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        limiter: Limiter | None,
        rate: float | None,
        using: str,
        lease: DrainLease | None = None,
        one_pass: bool = False,
        ask_for_help: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._limiter = limiter
        self._rate = rate or 0.0
        self._using = using
        self._lease = lease
        self._one_pass = one_pass
        self._ask_for_help = ask_for_help
        self._clock = clock

        now = clock()
        self._concurrency = conf.concurrency
        self._ready = READY_AHEAD * self._concurrency
        self._lease_seconds = conf.lease_seconds
        # No call starts with less of its lease left, unless the lease itself is too short.
        self._call_seconds = min(CALL_SECONDS + conf.upload_seconds, self._lease_seconds - 1)
        self._max_attempts = conf.max_attempts
        self._retry_delay_seconds = conf.retry_delay_seconds
        self._holds_doubtful = conf.in_doubt == "hold"
        self._pause_seconds = conf.pause_seconds
        self._has_contact_list = bool(conf.ses_contact_list)
        self._keeps_bodies = conf.keep_bodies_days > 0
        self._ends_at = now + conf.drain_seconds
        self._look_at = self._beat_at = self._settle_at = self._clear_at = 0.0
        self._full_since = self._idle_since = inf

        self._slots: deque[Slot] = deque()
        self._bytes = 0  # of the bodies that are held: in slots and in flight
        self._calls = Calls(self._call, self._concurrency)
        self._results: list[tuple[outbox.Result, float]] = []  # and when the lease ends
        self._denied: set[str] = set()
        self._failing: set[object] = set()  # what the database refused when it was last tried
        self._paused: frozenset[str] | None = None  # streams, as of the last beat
        self._stop = threading.Event()
        self._turns = threading.Lock()
        self._late_seconds = 0.0  # by which calls were late, all together
        self._told_seconds = 0.0  # and what of it the limiter knows
        self._gives_back = threading.Event()
        self._is_ending = False
        self.sent = 0
        self.longest_wait_seconds = 0.0

    def run(self) -> int:
        """Deliver until nothing is due; return the number of rows that the transport took."""
        with (
            log_mail.at_work(),
            # Heroku stops every process of a dyno by SIGTERM, prefork children too.
            on_signals(self._stop.set, signal.SIGTERM),
            raising_afterwards(self._stop.set),
        ):
            telemetry.prepare()
            try:
                self._run_until_over()
            except BaseException:
                # A mistake, say: what SES has taken is written down all the same, or it would be
                # sent again.
                self.end()
                self._run_until_over()
                raise
            finally:
                self._calls.close()
        return self.sent

    def _run_until_over(self) -> None:
        while self._step():
            self._wait()

    def end(self) -> None:
        """Claim nothing more and give back what has not started."""
        self._is_ending = True
        self._gives_back.set()
        while self._slots:
            slot = self._slots.popleft()
            self._bytes -= len(slot.envelope.mime)
            self._add(self._postpone(slot), slot.lease_ends_at)

    # One turn

    def _step(self) -> bool:
        """Do what is to be done now; ``False``: the drain is over."""
        now = self._clock()
        if self._stop.is_set() or stopping.is_set():
            self.end()
        elif now >= self._ends_at:
            self._is_ending = True
        if now >= self._beat_at:
            self._guard(self._beat)
        self._dispatch(now)
        late_seconds = self._late_seconds - self._told_seconds
        if late_seconds and self._limiter:
            # They took time from what comes next: that nobody else gets it.
            self._tell_limiter(partial(self._limiter.put_off, late_seconds))
            self._told_seconds += late_seconds
        if not self._is_ending and now >= self._look_at and self._count_free():
            self._guard(self._look)
        # One pass waits for nothing but answers.
        is_last = self._is_ending or (self._one_pass and not (self._slots or self._calls.in_flight))
        if self._results and (now >= self._settle_at or is_last):
            self._guard(self._settle)
        return not self._is_ending or bool(self._slots or self._calls.in_flight or self._results)

    def _count_free(self) -> int:
        """How many rows to look for; few are not worth it."""
        free = self._ready - self._calls.in_flight - len(self._slots)
        is_worth_it = self._bytes < MAX_BYTES and free >= LOOK_PART * self._ready
        return free if is_worth_it else 0

    def _wait(self) -> None:
        """Sleep until something is to be done, and take the answers that came."""
        moments = [self._beat_at]
        if self._slots:
            moments.append(self._find_call_time(self._slots[0]) - self._hand_over_seconds)
        if self._results:
            moments.append(self._settle_at)
        if not self._is_ending:
            moments.append(self._ends_at)
            if self._count_free():
                moments.append(self._look_at)
        seconds = max(min(moments) - self._clock(), 0)
        time.sleep(min(seconds, GATHER_SECONDS) if self._calls.in_flight else seconds)
        for slot, answer in self._calls.take():
            self._take(slot, answer)

    def _guard(self, act: Callable[[], object]) -> None:
        """Let the database go away and come back: nothing that is known gets lost."""
        try:
            act()
        except (DatabaseError, InterfaceError) as error:
            outages.begin("database", f"The outbox's database is out of reach: {error}")
            self._failing.add(act)
            connections[self._using].close_if_unusable_or_obsolete()
            later = self._clock() + OUTAGE_SECONDS
            self._look_at, self._settle_at, self._beat_at = (
                max(moment, later) for moment in (self._look_at, self._settle_at, self._beat_at)
            )
            self._give_up_results()
        else:
            # A full disk may have room for a lease, and for nothing else: that is one outage.
            self._failing.discard(act)
            if not self._failing:
                outages.end("database")

    def _beat(self) -> None:
        """Renew the lease, and stop for a pause of the account."""
        now = self._clock()
        self._beat_at = now + HEARTBEAT_SECONDS
        outbox.line_up(using=self._using)
        if self._lease is None or now > self._ends_at + CALL_SECONDS:
            return  # a call that never ends must not keep other drains away
        if not leases.renew(
            self._lease.name, self._lease.holder, DRAIN_LEASE_SECONDS, using=self._using
        ):
            logger.warning("The drain lost its lease (%s) and ends.", self._lease.name)
            self._lease = None
            self.end()
        else:
            paused = find_paused(using=self._using)
            if self._paused is not None and paused - self._paused:
                # What is ready goes back, perhaps of the stream that goes on as well: the next
                # drain takes that.
                self.end()
            self._paused = paused
        if self._ask_for_help and now - self._full_since >= HEARTBEAT_SECONDS:
            self._ask_for_help()

    # Looking for work

    def _look(self) -> None:
        """Reserve, claim, and give each row its slot of time."""
        free = self._count_free()
        paused = self._paused or frozenset()
        costs = outbox.peek(free, using=self._using, paused=paused)
        if not all(map(_is_cost, costs)):
            for pk in outbox.end_damaged(using=self._using):
                logger.error("Row %s failed: its cost is damaged", pk, extra=make_extra({"id": pk}))
            costs = outbox.peek(free, using=self._using, paused=paused)
            costs = list(takewhile(_is_cost, costs))
        now = self._clock()
        if not costs:
            self._rest(now)
            return
        self._idle_since = inf
        reservation = self._reserve(costs)
        if not reservation.granted:
            self._postpone_look(now, reservation.wait_seconds)
            return
        now = self._clock()
        # It counts from when it decided, which may be as long ago: so much later all begins.
        late_seconds = reservation.age_seconds - _find_grace(reservation.interval_seconds)
        if late_seconds > 0 and self._limiter:
            self._tell_limiter(partial(self._limiter.put_off, late_seconds))
        if self._limiter and reservation.granted < sum(costs):
            granted_seconds = reservation.granted * reservation.interval_seconds
            self._look_at = now + reservation.wait_seconds + granted_seconds - REFILL_SECONDS
        rows = outbox.claim(
            tokens=reservation.granted,
            slots=free,
            max_bytes=MAX_BYTES - self._bytes,
            lease_seconds=self._lease_seconds,
            using=self._using,
            paused=paused,
        )
        starts_at = now + reservation.wait_seconds
        used = 0
        for row, envelope in self._prepare(rows, now + self._lease_seconds):
            cost = len(envelope.recipients)
            self._slots.append(
                Slot(
                    pk=row.pk,
                    claim=row.claim,
                    stream=row.stream,
                    attempts=row.attempts,
                    envelope=envelope,
                    starts_at=starts_at + used * reservation.interval_seconds,
                    width_seconds=cost * reservation.interval_seconds,
                    lease_ends_at=now + self._lease_seconds,
                )
            )
            used += cost
            self._bytes += len(envelope.mime)
        if self.sent and not self._calls.has_new and len(rows) == free:
            # All calls had been begun before this was done.
            self._ready = min(self._ready * 2, MAX_READY_AHEAD * self._concurrency)
        if self._limiter and used < reservation.granted:
            self._tell_limiter(partial(self._limiter.give_back, reservation.granted - used))
        if self._one_pass and (self._limiter or not rows):
            self._is_ending = True
        elif not rows:  # another drain was faster
            self._look_at = now + POLL_SECONDS

    def _reserve(self, costs: Sequence[int]) -> Reservation:
        if self._limiter is None:
            return Reservation(granted=sum(costs), wait_seconds=0.0, interval_seconds=0.0)
        try:
            reservation = self._limiter.reserve(costs, self._rate)
        except LimiterUnavailable as error:
            self._lose_limiter(error)
            return Reservation(granted=0, wait_seconds=OUTAGE_SECONDS, interval_seconds=0.0)
        outages.end("limiter")
        telemetry.note_wait(reservation.wait_seconds)
        return reservation

    def _tell_limiter(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except LimiterUnavailable as error:
            self._lose_limiter(error)

    def _lose_limiter(self, error: LimiterUnavailable) -> None:
        outages.begin("limiter", f"The limiter is out of reach, so nothing is sent: {error}")

    def _rest(self, now: float) -> None:
        """Nothing is due: linger while something may come, then end."""
        self._look_at = now + POLL_SECONDS
        if self._calls.in_flight or self._slots or self._results:
            self._idle_since = inf
        else:
            self._idle_since = min(self._idle_since, now)
        if now - self._idle_since >= (0.0 if self._one_pass else LINGER_SECONDS):
            self._is_ending = True

    def _postpone_look(self, now: float, seconds: float) -> None:
        """Nothing may be sent yet. A wait that outlasts this drain is left to another one."""
        self._look_at = now + seconds + AHEAD_SECONDS - REFILL_SECONDS
        if self._one_pass or now + seconds >= self._ends_at:
            self._is_ending = True
            self.longest_wait_seconds = seconds

    def _prepare(
        self, rows: Sequence[outbox.Claimed], lease_ends_at: float
    ) -> list[tuple[outbox.Claimed, Envelope]]:
        """Ask suppression again and load the bodies; what won't be sent is a result at once."""
        try:
            outcomes = self._load_all(rows)
        except BaseException:
            # The database went away, a time limit of Celery's: none of them was sent.
            for row in rows:
                self._add(
                    outbox.Postponed.of(row, delay_seconds=0, error=row.last_error, counts=False),
                    lease_ends_at,
                )
            raise
        prepared = []
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, Envelope):
                prepared.append((row, outcome))
            else:
                self._add(outcome, lease_ends_at)
        return prepared

    def _load_all(self, rows: Sequence[outbox.Claimed]) -> list[Envelope | outbox.Result]:
        """What is to be sent for each row, or what becomes of it instead."""
        try:
            return self._load(rows) if rows else []
        except Exception as error:
            if self._is_outage(error):
                raise
            # Most likely what one of them holds can't be read: that holds up no other.
            return [self._load_alone(row) for row in rows]

    def _load_alone(self, row: outbox.Claimed) -> Envelope | outbox.Result:
        try:
            return self._load([row])[0]
        except Exception as error:
            if self._is_outage(error):
                raise
            return self._judge(row, error)

    def _is_outage(self, error: Exception) -> bool:
        """Whether an error is about the database, and not about what it was asked for.

        An operational error is one of the database's that went away, and also one of a page that
        can't be read, or of a time limit, in a database that is there.
        """
        if not isinstance(error, OperationalError | InterfaceError):
            return False
        return not self._is_connected() or "locked" in str(error)  # SQLite, by another one

    def _is_connected(self) -> bool:
        """Whether the outbox's database is there, and that of who is not written to."""
        asked = {self._using, router.db_for_write(Unsubscribe)}
        return all(
            connections[alias].connection is not None and connections[alias].is_usable()
            for alias in asked
        )

    def _load(self, rows: Sequence[outbox.Claimed]) -> list[Envelope | outbox.Result]:
        recipients = self._load_recipients(rows)
        bodies = self._load_bodies(rows)
        outcomes: list[Envelope | outbox.Result] = []
        for row in rows:
            kept = recipients.get(row.pk)
            body = bodies.get(row.content_id) if row.content_id else None
            if row.in_doubt and self._holds_doubtful:
                end = (Status.FAILED, f"In doubt: SES may have taken it. {row.last_error}")
            elif row.has_expired and row.in_doubt:
                end = (
                    Status.EXPIRED,
                    f"In doubt: SES may have taken it before {row.expires_at}. {row.last_error}",
                )
            elif row.has_expired:
                end = (Status.EXPIRED, f"Not sent before {row.expires_at}.")
            elif row.attempts > self._max_attempts:
                end = (Status.FAILED, f"Given up after {row.attempts - 1} tries. {row.last_error}")
            elif body is None or kept is None:
                end = (Status.FAILED, "Its body or its recipients are gone from the database.")
            elif not kept:
                end = (Status.SUPPRESSED, "")
            else:
                mime = bytes(body)
                envelope = Envelope(
                    sender=row.sender,
                    recipients=tuple(kept),
                    mime=mime,
                    tags={**row.tags, MESSAGE_ID_TAG: str(row.uuid)},
                    # SES puts a link for one reader in, so it takes no others with her.
                    topic=row.mailing_list
                    if self._has_contact_list
                    and len(kept) == 1
                    and row.stream == OutgoingMessage.Stream.DEFAULT
                    and not has_way_out(mime)
                    else None,
                )
                outcomes.append(envelope)
                continue
            status, error = end
            logger.log(
                logging.ERROR if status == Status.FAILED else logging.INFO,
                "Row %s is not sent, it is %s. %s",
                row.pk,
                status,
                mask(error),
                extra=_describe(row),
            )
            outcomes.append(outbox.Ended.of(row, status=status, error=error))
        return outcomes

    def _load_bodies(self, rows: Sequence[outbox.Claimed]) -> dict[UUID, Any]:
        contents = OutgoingContent.objects.using(self._using)
        small = {row.content_id for row in rows if row.content_id and row.size <= PIECE_BYTES}
        bodies: dict[UUID, Any] = dict(
            contents.filter(AnyOf("pk", small)).values_list("pk", "mime") if small else ()
        )
        for row in rows:
            if row.content_id and row.content_id not in small:
                with suppress(OutgoingContent.DoesNotExist):
                    content = contents.filter(pk=row.content_id)
                    bodies[row.content_id] = b"".join(_read_in_pieces(content))
        return bodies

    def _load_recipients(self, rows: Sequence[outbox.Claimed]) -> dict[int, list[str]]:
        """Whom each row is still to be written to, in the form that SES gets.

        Of a row that had somebody, and has nobody left, there is an empty list.
        """
        recipients: dict[int, list[Any]] = {}
        found = OutgoingRecipient.objects.using(self._using).filter(
            AnyOf("message", [row.pk for row in rows]), status=OutgoingRecipient.Status.QUEUED
        )
        for pk, *values in found.order_by("pk").values_list(
            "message_id", "pk", "address", "envelope", "kind"
        ):
            recipients.setdefault(pk, []).append(values)
        suppression = Suppression.load(
            address for of_row in recipients.values() for _pk, address, *_ in of_row
        )
        kept: dict[int, list[str]] = {}
        suppressed, counted = [], []
        for row in rows:
            of_row = recipients.get(row.pk)
            if not of_row:
                continue
            reasons = suppression.judge(
                [Candidate(key=address, kind=kind) for _pk, address, _envelope, kind in of_row],
                stream=row.stream,
                mailing_list=row.mailing_list,
            )
            kept[row.pk] = []
            for (pk, _address, envelope, _kind), reason in zip(of_row, reasons, strict=True):
                if not reason:
                    kept[row.pk].append(envelope)
                    continue
                status = OutgoingRecipient.Status.SUPPRESSED
                suppressed.append(OutgoingRecipient(pk=pk, status=status, reason=reason))
                counted.append(Tally(stream=row.stream, suppressed=1))
        if suppressed:
            OutgoingRecipient.objects.using(self._using).bulk_update(
                suppressed, ["status", "reason"]
            )
            count(counted, using=self._using)
        return kept

    # Sending

    def _dispatch(self, now: float) -> None:
        """Hand over the calls whose slot is near; some wait until another one ends."""
        while self._slots and self._find_call_time(self._slots[0]) <= now + self._hand_over_seconds:
            slot = self._slots.popleft()
            try:
                self._calls.start(slot)
            except RuntimeError:
                self._slots.appendleft(slot)
                raise
        is_full = self._calls.in_flight >= self._concurrency
        self._full_since = min(self._full_since, now) if is_full else inf

    @property
    def _hand_over_seconds(self) -> float:
        """Not at the expense of calls that could start now."""
        return HAND_OVER_SECONDS if self._calls.in_flight < self._concurrency // 2 else 0.0

    def _find_call_time(self, slot: Slot) -> float:
        return max(slot.starts_at, self._clear_at) + slot.delay_seconds

    def _await_turn(self, slot: Slot) -> None:
        """What is late shifts what follows, so that slots never bunch."""
        with blocking(), self._turns:  # while it waits as well: who wakes up late is late
            turn_at = self._find_call_time(slot)
            seconds = turn_at - self._clock()
            if self._gives_back.wait(seconds) if seconds > 0 else self._gives_back.is_set():
                raise NotStarted
            late_seconds = max(self._clock() - slot.grace_seconds - turn_at, 0.0)
            if self._calls.in_flight < self._concurrency:  # or SES gets less than it allows anyway
                self._late_seconds += late_seconds
            self._clear_at = turn_at + late_seconds - slot.delay_seconds + slot.width_seconds

    def _call(self, slot: Slot) -> Steps[str]:
        """In threads of its own, and nothing of the database."""
        with ExitStack() as delivery:
            # A connection is open by then: to open it takes longer than many a slot, and calls
            # that were late by that would come at once with those that have one.
            def begin() -> None:
                self._await_turn(slot)
                now = self._clock()
                if slot.lease_ends_at - now < self._call_seconds:
                    # This process was suspended or starved, and the row may be another's by now.
                    raise NotStarted
                delivery.enter_context(
                    telemetry.delivering(
                        slot.envelope.tags,
                        waited_seconds=now - (slot.lease_ends_at - self._lease_seconds),
                        uuid=slot.envelope.tags[MESSAGE_ID_TAG],
                        stream=slot.stream,
                        attempt=slot.attempts,
                    )
                )

            return (yield from self._transport.steps(slot.envelope, begin))

    def _take(self, slot: Slot, answer: str | BaseException) -> None:
        """Turn an answer into what becomes of the row."""
        self._bytes -= len(slot.envelope.mime)
        result: outbox.Result
        if isinstance(answer, str):
            result = outbox.Sent.of(
                slot,
                ses_message_id=answer[:MAX_ID_LENGTH],
                to_simulator=any(map(is_simulated, slot.envelope.recipients)),
            )
            if logger.isEnabledFor(logging.INFO):
                logger.info(
                    "Sent row %s as %s.",
                    slot.pk,
                    result.ses_message_id,
                    extra=_describe(slot, ses_message_id=result.ses_message_id),
                )
            self.sent += 1
            self._denied.clear()
            outages.end("account")
        else:
            result = self._judge(slot, answer)
        self._add(result, slot.lease_ends_at)

    def _judge(self, slot: Slot | outbox.Claimed, error: BaseException) -> outbox.Result:
        if isinstance(error, NotStarted):
            return self._postpone(slot)
        extra = _describe(slot, error=error)
        if isinstance(error, Throttled):
            logger.warning("Throttled at row %s: %s", slot.pk, mask(error), extra=extra)
            if self._limiter:
                self._tell_limiter(self._limiter.slow_down)
            # Sooner than the drain would end for want of work.
            return self._postpone(slot, str(error), delay_seconds=LINGER_SECONDS / 2)
        if isinstance(error, AccountProblem):
            self._pause(str(error))
            return self._postpone(slot, str(error))
        if isinstance(error, InDoubt):
            logger.warning("Row %s is in doubt: %s", slot.pk, mask(error), extra=extra)
            return outbox.Doubtful.of(slot, error=str(error))
        if isinstance(error, Rejected) or slot.attempts >= self._max_attempts:
            logger.error("Row %s failed: %s", slot.pk, mask(error), extra=extra)
            return outbox.Ended.of(slot, status=Status.FAILED, error=str(error))
        if isinstance(error, SenderDenied):
            self._denied.add(slot.sender)
            if len(self._denied) >= MAX_DENIED_SENDERS:
                self._pause(str(error))
        delay = min(
            self._retry_delay_seconds * 2.0 ** min(slot.attempts - 1, 20), MAX_DELAY_SECONDS
        )
        text = str(error) if isinstance(error, DeliveryError) else f"Unexpected: {error!r}"
        logger.warning(
            "Row %s goes back after attempt %d: %s",
            slot.pk,
            slot.attempts,
            mask(text),
            exc_info=None if isinstance(error, DeliveryError) else error,
            extra=extra,
        )
        spread = random.uniform(0.8, 1.2)  # noqa: S311 - so that they don't come back at once
        return outbox.Postponed.of(slot, delay_seconds=delay * spread, error=text, counts=True)

    def _postpone(
        self, slot: Slot | outbox.Claimed, error: str = "", delay_seconds: float = 0.0
    ) -> outbox.Postponed:
        """Back into the queue without counting as an attempt."""
        return outbox.Postponed.of(slot, delay_seconds=delay_seconds, error=error, counts=False)

    def _pause(self, reason: str) -> None:
        """Stop all drains of the site for a while; nothing is failed."""
        outages.begin(
            "account",
            f"Nothing can be sent through this account; the next try is in "
            f"{self._pause_seconds} s: {reason}",
        )
        take = partial(leases.acquire, PAUSE, self._pause_seconds, using=self._using, note=reason)
        self._guard(take)
        self.end()

    # Settling

    def _add(self, result: outbox.Result, lease_ends_at: float) -> None:
        if not self._results:
            self._settle_at = max(self._settle_at, self._clock() + SETTLE_SECONDS)
        self._results.append((result, lease_ends_at))

    def _settle(self) -> None:
        results = [result for result, _ in self._results]
        try:
            outbox.settle(results, keep_bodies=self._keeps_bodies, using=self._using)
        except DatabaseError as error:
            if not self._is_theirs(error):
                raise
            self._settle_one_by_one()
        else:
            self._results.clear()
        if self._one_pass:
            self._look_at = self._clock()  # for what was queued meanwhile

    def _is_theirs(self, error: DatabaseError) -> bool:
        """Whether it may be what was to be written that the database refused."""
        return not isinstance(error, OperationalError) and self._is_connected()

    def _settle_one_by_one(self) -> None:
        """What can't be written down of one holds up no other.

        Where it is all of them, it is not theirs (a database that only reads), and they wait; so
        do those that an internal error hit, as of a disk on which a few of them had room.
        """
        refused: list[tuple[tuple[outbox.Result, float], DatabaseError]] = []
        waiting = list(self._results)
        for known in waiting:
            try:
                outbox.settle([known[0]], keep_bodies=self._keeps_bodies, using=self._using)
            except DatabaseError as error:
                if not self._is_theirs(error):
                    raise
                refused.append((known, error))
            else:
                self._results.remove(known)
        trouble: DatabaseError | None = None
        for known, reason in refused:
            if len(refused) == len(waiting) or isinstance(reason, InternalError):
                trouble = reason
            else:
                self._results.remove(known)
                _tell_unsettled(known[0], reason)
        if trouble is not None:
            raise trouble

    def _give_up_results(self) -> None:
        """What can't be written down while the lease holds is another drain's to decide."""
        now = self._clock()
        kept = []
        for result, lease_ends_at in self._results:
            if now + OUTAGE_SECONDS < lease_ends_at:
                kept.append((result, lease_ends_at))
            else:
                _tell_unsettled(result)
        self._results = kept


def _tell_unsettled(result: outbox.Result, error: Exception | None = None) -> None:
    logger.error(
        "Row %s could not be settled: %s",
        result.pk,
        result,
        exc_info=error,
        extra=make_extra({"id": result.pk, "stream": result.stream}),
    )


def _is_cost(cost: int) -> bool:
    return 0 < cost <= MAX_RECIPIENTS


def _read_in_pieces(content: QuerySet[OutgoingContent]) -> Iterator[bytes]:
    """The MIME of one content: a database's client may need five times as much as it reads."""
    start, length = 1, PIECE_BYTES
    while length == PIECE_BYTES:
        piece: Any = Substr("mime", start, PIECE_BYTES, output_field=BinaryField())
        found = bytes(content.values_list(piece, flat=True).get())
        yield found
        start, length = start + PIECE_BYTES, len(found)


def _describe(
    row: Slot | outbox.Claimed, *, ses_message_id: str = "", error: BaseException | None = None
) -> dict[str, object]:
    """For the log: which row a record is about."""
    return make_extra(
        {
            "id": row.pk,
            "stream": row.stream,
            "attempt": row.attempts,
            "ses_id": ses_message_id,
            "error": type(error).__name__ if error else "",
        },
        recipients=row.envelope.recipients if isinstance(row, Slot) else (),
    )

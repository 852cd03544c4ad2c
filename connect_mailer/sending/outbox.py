"""The outbox: rows in, claims out, results back.

Every statement that decides (who claims, who settles) is conditional on what the row says at
that moment and on the database's clock; nothing relies on what a process read before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple, Self, TypeVar
from uuid import UUID, uuid4

from django.db import connections, router, transaction
from django.db.models import (
    BooleanField,
    Case,
    CharField,
    DurationField,
    Exists,
    Expression,
    ExpressionWrapper,
    F,
    Model,
    OuterRef,
    Q,
    QuerySet,
    Value,
    When,
)
from django.db.models.functions import Coalesce, Greatest

from connect_mailer import signals, telemetry
from connect_mailer.clock import DatabaseNow
from connect_mailer.models import (
    MAX_RECIPIENTS,
    MessageEvent,
    NotificationReceipt,
    OutgoingContent,
    OutgoingMessage,
    OutgoingRecipient,
    Tally,
    Unsubscribe,
)
from connect_mailer.sending import at_once, bulk
from connect_mailer.sending.envelope import Draft, Recipient
from connect_mailer.tallies import SIMULATOR_DOMAIN, count, tell_metrics
from connect_mailer.transactions import again_at_deadlock, limit_idling, single_statement

_M = TypeVar("_M", bound=Model)

Status = OutgoingMessage.Status
# Those of ended leases before those that come for the first time.
_OPEN = (Status.SENDING, Status.QUEUED)
_FINISHED = tuple(status for status in Status if status not in _OPEN)

# Lanes are ranks: the transactional stream has those before this one.
FIRST_DEFAULT_LANE = 10
LAST_LANE = 19

# Rows that one statement of `purge` touches: a lock that nobody notices.
PURGE_CHUNK = 1000

# Rows that one statement lets into the line.
LINE_CHUNK = 5000

# The rows of one call of `send_messages()` take their turns this far apart, so that those of
# another one come in between. About the slowest that an account sends: what was queued before
# is at least that far on, and so nobody waits for a batch to end.
TURN_SECONDS = 1.0

_MAX_ERROR = 2000

# An event of SES may settle a row before its drain does, and knows at least as much: that it
# was sent, or that SES took it and rejected it afterwards.
_SETTLED_BY_EVENT = Q(status=Status.SENT) | (Q(status=Status.FAILED) & ~Q(ses_message_id=""))


def get_database() -> str:
    """Alias of the database that the outbox is in."""
    return router.db_for_write(OutgoingMessage)


# In: the caller's transaction


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A draft and its bytes; ``None`` where nobody is left to write to."""

    draft: Draft
    mime: bytes | None


def can_store_at_once(draft: Draft, *, using: str) -> bool:
    """Whether a message can be stored in one statement: on PostgreSQL, with one row of its own."""
    return (
        connections[using].vendor == "postgresql"
        and router.db_for_write(Unsubscribe) == using
        and len(draft.recipients) <= MAX_RECIPIENTS
    )


def store_unless_suppressed(frozen: Frozen, *, using: str) -> bool:
    """Insert a message in one statement, unless one of its recipients is on ``Unsubscribe``.

    Returns whether it was inserted. Only where ``can_store_at_once``.
    """
    draft = frozen.draft
    now: Any = DatabaseNow()
    values = _describe(draft, now)
    with single_statement(using):
        is_stored = bulk.insert_message(
            {
                **values,
                **_find_place(values),
                "size": len(frozen.mime or b""),
                "cost": len(draft.recipients),
            },
            frozen.mime,
            [(one.address.key, one.address.spec, one.kind) for one in draft.recipients],
            using=using,
        )
    if is_stored:
        tell_metrics([("queued", values["stream"], 1)], using=using)
    return is_stored


def store(batch: Sequence[Frozen], *, using: str) -> list[OutgoingMessage]:
    """Insert rows, at most ``MAX_RECIPIENTS`` recipients each, in three statements.

    The rows of one message share its content. Recipients who are not written to are on its
    first row, with the reason.
    """
    number = sum(max(len(range(0, len(one.draft.kept), MAX_RECIPIENTS)), 1) for one in batch)
    # As a value where rows are copied.
    now: Any = bulk.ask_time(using) if bulk.can_copy(number, using=using) else DatabaseNow()
    contents, rows = _make_rows(batch, now)
    messages = [row for row, _ in rows]
    # Without a savepoint: the caller has one, and each is two round trips.
    with transaction.atomic(using=using, savepoint=False):
        bulk.insert(contents, using=using)
        bulk.insert(messages, using=using, needs_ids=True)
        if messages and messages[0].pk is None:
            _fetch_ids(messages, using)
        bulk.insert(
            [_make_recipient(row, recipient) for row, found in rows for recipient in found],
            using=using,
        )
        count(
            (
                Tally(stream=row.stream, suppressed=sum(bool(one.reason) for one in recipients))
                for row, recipients in rows
            ),
            using=using,
        )
        queued = (row for row in messages if row.status == Status.QUEUED)
        tell_metrics((("queued", row.stream, 1) for row in queued), using=using)
    return messages


def _make_rows(
    batch: Sequence[Frozen], now: Any
) -> tuple[list[OutgoingContent], list[tuple[OutgoingMessage, Sequence[Recipient]]]]:
    contents: list[OutgoingContent] = []
    rows: list[tuple[OutgoingMessage, Sequence[Recipient]]] = []
    place = 0
    for frozen in batch:
        draft = frozen.draft
        left_out = [recipient for recipient in draft.recipients if recipient.reason]
        if frozen.mime is None:
            row = OutgoingMessage(
                **_describe(draft, now), status=Status.SUPPRESSED, finished_at=now
            )
            rows.append((row, left_out))
            continue
        content = OutgoingContent(mime=frozen.mime)
        contents.append(content)
        kept = draft.kept
        for start in range(0, len(kept), MAX_RECIPIENTS):
            part = kept[start : start + MAX_RECIPIENTS]
            values = _describe(draft, now)
            row = OutgoingMessage(
                **values,
                **_find_place(values, place),
                content=content,
                size=len(frozen.mime),
                cost=len(part),
            )
            place += 1
            rows.append((row, part if start else [*part, *left_out]))
    return contents, rows


def _find_place(values: Mapping[str, Any], place: int = 0) -> dict[str, Any]:
    """Where a row that is queued stands in line: the one after so many of its batch."""
    turn = values["due_at"]
    return {
        "lane": None if values["send_after"] else values["rank"],
        "turn": turn + timedelta(seconds=place * TURN_SECONDS) if place else turn,
    }


def _describe(draft: Draft, now: Any) -> dict[str, Any]:
    """What all rows of a message say."""
    options = draft.options
    subject = str(draft.message.subject)
    if not subject.isprintable():
        subject = "".join(filter(str.isprintable, subject))
    is_first = options.stream == OutgoingMessage.Stream.TRANSACTIONAL
    # A trace that the caller names itself is left as it is.
    trace = telemetry.get_trace_tags()
    return {
        "stream": options.stream,
        "priority": options.priority,
        "rank": options.priority + (0 if is_first else FIRST_DEFAULT_LANE),
        "send_after": options.send_after,
        "expires_at": options.expires_at,
        "due_at": options.send_after or now,
        "sender": draft.sender.spec,
        "subject": subject[:255],
        "mailing_list": options.mailing_list,
        "tags": {**trace, **draft.tags},
    }


def _make_recipient(row: OutgoingMessage, recipient: Recipient) -> OutgoingRecipient:
    status = OutgoingRecipient.Status
    return OutgoingRecipient(
        message=row,
        address=recipient.address.key,
        envelope=recipient.address.spec,
        kind=recipient.kind,
        status=status.SUPPRESSED if recipient.reason else status.QUEUED,
        reason=recipient.reason,
    )


def _fetch_ids(messages: Sequence[OutgoingMessage], using: str) -> None:
    """MySQL tells no ids of a bulk insert."""
    ids = dict(
        OutgoingMessage.objects.using(using)
        .filter(uuid__in=[message.uuid for message in messages])
        .values_list("uuid", "pk")
    )
    for message in messages:
        message.pk = ids[message.uuid]


# Out: what a drain takes


def _line(using: str, paused: Collection[str] = ()) -> QuerySet[OutgoingMessage]:
    """Rows that may be claimed: open and due. They stand in line, in this order.

    That the lane is set would say it all; the rest makes sure. ``paused``: streams that are
    left out.
    """
    first, last = _find_lanes(paused)
    line = OutgoingMessage.objects.using(using).filter(lane__gte=first)
    if last < LAST_LANE:
        line = line.filter(lane__lte=last)
    return line.filter(status__in=OutgoingMessage.OPEN, due_at__lte=DatabaseNow()).order_by(
        "lane", "turn"
    )


def _find_lanes(paused: Collection[str]) -> tuple[int, int]:
    """The first and the last of what isn't paused: each stream has lanes of its own."""
    first = FIRST_DEFAULT_LANE if OutgoingMessage.Stream.TRANSACTIONAL in paused else 0
    return first, FIRST_DEFAULT_LANE - 1 if OutgoingMessage.Stream.DEFAULT in paused else LAST_LANE


def _waiting(status: str, using: str) -> QuerySet[OutgoingMessage]:
    """Open rows that are due and don't stand in line yet.

    By one status at a time: it is then one range of the index on every database.
    """
    waiting = OutgoingMessage.objects.using(using).filter(
        status=status, lane=None, due_at__lte=DatabaseNow()
    )
    # By the index, whose order MySQL sees only where what is null is left out of it, and
    # PostgreSQL only where it is not.
    if connections[using].vendor == "mysql":
        return waiting.order_by("due_at")
    return waiting.order_by("lane", "due_at")


def _still_due(pks: Sequence[int], using: str) -> QuerySet[OutgoingMessage]:
    """Those of some rows that nobody else took since they were read.

    Told by what they are not, for which no index but the key's is any good: a planner that
    knows the table as it was before a large batch would look through that for a few rows.
    """
    return (
        OutgoingMessage.objects.using(using)
        .filter(pk__in=pks)
        .exclude(status__in=_FINISHED)
        .exclude(due_at__gt=DatabaseNow())
    )


def _any(queryset: QuerySet[OutgoingMessage]) -> bool:
    """``exists()``, which would drop the order, and with it what makes planners use the index."""
    return bool(queryset.values_list("pk", flat=True)[:1])


def is_due(*, using: str, paused: Collection[str] = ()) -> bool:
    """Whether there is anything to send now, of what isn't ``paused``."""
    if set(paused) == set(OutgoingMessage.Stream):
        return False
    return _any(_line(using, paused)) or any(_any(_waiting(status, using)) for status in _OPEN)


def find_wait(within_seconds: float, *, using: str) -> float | None:
    """Seconds until the next row is due that is not due yet; ``None``: not within so many."""
    wait = ExpressionWrapper(F("due_at") - DatabaseNow(), output_field=DurationField())
    waits: list[timedelta] = []
    for status in _OPEN:  # one range of the index for each
        rows = OutgoingMessage.objects.using(using).filter(
            status=status,
            lane=None,
            due_at__gt=DatabaseNow(),
            due_at__lte=DatabaseNow() + timedelta(seconds=within_seconds),
        )
        waits += rows.order_by("lane", "due_at").values_list(wait, flat=True)[:1]
    return min((wait.total_seconds() for wait in waits), default=None)


@again_at_deadlock
def line_up(*, using: str) -> bool:
    """Let rows whose time has come into the line: scheduled, to be retried, of ended leases.

    At most ``LINE_CHUNK`` of each kind; return whether there were any.
    """
    entered = 0
    for status in _OPEN:
        if not _any(_waiting(status, using)):
            continue
        with _row_locks(using):
            waiting = limit_idling(_lock(_waiting(status, using)))
            pks = list(waiting.values_list("pk", flat=True)[:LINE_CHUNK])
            entered += _still_due(pks, using).update(
                lane=F("rank"), turn=Coalesce("turn", "due_at")
            )
    return entered > 0


def peek(limit: int, *, using: str, paused: Collection[str] = ()) -> list[int]:
    """What the next rows cost, in recipients, without a lock. ``paused``: not of these streams."""
    costs = _line(using, paused).values_list("cost", flat=True)[:limit]
    found = list(costs)
    if len(found) < limit and line_up(using=using):
        found = list(costs.all())
    return found


class Claimed(NamedTuple):
    """A row that a drain has claimed, as of then: ``attempts`` counts the one that is to come.

    ``in_doubt``: a drain that had it before may have sent it. A plain tuple: an instance of a
    model costs more than all else that a claim does for a row.
    """

    pk: int
    uuid: UUID
    claim: UUID
    stream: str
    sender: str
    mailing_list: str
    tags: Any
    content_id: UUID | None
    cost: int
    size: int
    attempts: int
    in_doubt: bool
    last_error: str
    expires_at: datetime | None
    has_expired: bool


_CLAIMED = ("id", *Claimed._fields[1:-1])


@again_at_deadlock
def claim(
    *,
    tokens: int,
    slots: int,
    max_bytes: int,
    lease_seconds: float,
    using: str,
    paused: Collection[str] = (),
) -> list[Claimed]:
    """Claim the next rows for one drain, most important first, but none of ``paused`` streams.

    It stops before the row that overshoots ``tokens`` (recipients), ``slots`` (rows) or
    ``max_bytes`` (of their bodies; one row is always taken).
    """
    token = uuid4()
    if at_once.is_possible(using):
        with single_statement(using):
            rows = at_once.claim(
                token=token,
                lanes=_find_lanes(paused),
                tokens=tokens,
                slots=slots,
                max_bytes=max_bytes,
                lease_seconds=lease_seconds,
                columns=_CLAIMED,
                using=using,
            )
        claimed_rows = (Claimed(*row) for row in rows)
        return [row._replace(tags=json.loads(row.tags)) for row in claimed_rows]
    with _row_locks(using):
        candidates = _lock(_line(using, paused)).annotate(
            has_expired=ExpressionWrapper(
                Q(expires_at__isnull=False, expires_at__lte=DatabaseNow()),
                output_field=BooleanField(),
            )
        )
        taken: list[Claimed] = []
        for status, *values in candidates.values_list("status", *_CLAIMED, "has_expired")[:slots]:
            row = Claimed(*values)
            tokens -= row.cost
            max_bytes -= row.size
            if tokens < 0 or (taken and max_bytes < 0):
                break
            taken.append(
                row._replace(
                    claim=token,
                    attempts=row.attempts + 1,
                    in_doubt=row.in_doubt or status == Status.SENDING,
                )
            )
        if not taken:
            return []
        claimed = _still_due([row.pk for row in taken], using).update(
            # Before the status itself: MySQL sees what was set further to the left.
            in_doubt=Case(When(status=Status.SENDING, then=Value(True)), default=F("in_doubt")),
            status=Status.SENDING,
            claim=token,
            lane=None,
            due_at=DatabaseNow() + timedelta(seconds=lease_seconds),
            attempts=F("attempts") + 1,
        )
    if claimed < len(taken):  # no row locks here (SQLite), and another drain was faster
        won = set(
            OutgoingMessage.objects.using(using).filter(claim=token).values_list("pk", flat=True)
        )
        taken = [row for row in taken if row.pk in won]
    return taken


def _lock(queryset: QuerySet[_M]) -> QuerySet[_M]:
    """Lock rows, but for those that another one has locked, where the database can."""
    if connections[queryset.db].features.has_select_for_update_skip_locked:
        return queryset.select_for_update(skip_locked=True)
    return queryset


def _row_locks(using: str) -> AbstractContextManager[Any]:
    if connections[using].features.has_select_for_update_skip_locked:
        return transaction.atomic(using=using)
    return nullcontext()


# Back: what became of it

_R = TypeVar("_R", bound="Result")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one claimed row."""

    pk: int
    claim: UUID
    stream: str

    @classmethod
    def of(cls, row: Any, **fields: Any) -> Self:
        """The result of ``row``, or of anything else with its ``pk``, ``claim`` and ``stream``."""
        return cls(pk=row.pk, claim=row.claim, stream=row.stream, **fields)


@dataclass(frozen=True, kw_only=True)
class Sent(Result):
    """The transport took it. ``to_simulator``: some recipients are SES's own, for tests."""

    ses_message_id: str
    to_simulator: bool = False


@dataclass(frozen=True, kw_only=True)
class Postponed(Result):
    """Back into the queue, due in ``delay_seconds``; ``counts``: as an attempt."""

    delay_seconds: float
    error: str
    counts: bool


@dataclass(frozen=True, kw_only=True)
class Doubtful(Result):
    """No answer came. The row keeps its lease, so that an event can still settle it."""

    error: str


@dataclass(frozen=True, kw_only=True)
class Ended(Result):
    """Not sent: ``status`` is ``failed``, ``expired`` or ``suppressed``."""

    status: str
    error: str


@again_at_deadlock
def settle(results: Sequence[Result], *, keep_bodies: bool, using: str) -> None:
    """Write down what became of claimed rows, in a few statements for all of them.

    Only where the claim still holds; but what was sent is recorded in any case, and first.
    Signals are sent after commit.
    """
    sent = [result for result in results if isinstance(result, Sent)]
    others = [result for result in results if not isinstance(result, Sent)]
    with transaction.atomic(using=using) if others else nullcontext():
        if sent:
            _settle_sent(sent, keep_bodies=keep_bodies, using=using)
        if others:
            _settle_others(others, using=using)


def _settle_others(results: Sequence[Result], *, using: str) -> None:
    rows = OutgoingMessage.objects.using(using)
    results = _find_held(results, using)
    if not results:
        return
    ended = [result for result in results if isinstance(result, Ended)]
    tallies: list[Tally] = []
    postponed = [result for result in results if isinstance(result, Postponed)]
    for is_due in (True, False):
        _update(
            [result for result in postponed if is_due is not bool(result.delay_seconds)],
            using,
            status=Status.QUEUED,
            claim=None,
            lane=F("rank") if is_due else None,
            # A retry comes after those that came before it was due.
            turn=lambda result: (
                Greatest(Coalesce("turn", "due_at"), _find_due(result))
                if result.counts
                else F("turn")
            ),
            due_at=_find_due,
            attempts=lambda result: F("attempts") - (0 if result.counts else 1),
            last_error=lambda result: Value(result.error[:_MAX_ERROR]),
        )
    doubtful = [result for result in results if isinstance(result, Doubtful)]
    tell_metrics((("in_doubt", result.stream, 1) for result in doubtful), using=using)
    _update(
        doubtful,
        using,
        in_doubt=True,
        last_error=lambda result: Value(result.error[:_MAX_ERROR]),
    )
    for stream, ended_ones in _by_stream(ended):
        number = _update(
            ended_ones,
            using,
            status=lambda result: Value(result.status),
            claim=None,
            lane=None,
            turn=None,
            finished_at=DatabaseNow(),
            last_error=lambda result: Value(result.error[:_MAX_ERROR]),
        )
        suppressed = sum(result.status == Status.SUPPRESSED for result in ended_ones)
        tallies.append(Tally(stream=stream, failed=max(number - suppressed, 0)))
    count(tallies, using=using)
    _note_events(results, using)
    pks = [result.pk for result in ended]
    _announce(signals.message_suppressed, rows.filter(pk__in=pks, status=Status.SUPPRESSED))
    _announce(
        signals.message_failed,
        rows.filter(pk__in=pks, status__in=[Status.FAILED, Status.EXPIRED]),
    )
    if any(result.status == Status.SUPPRESSED for result in ended):
        OutgoingContent.objects.release(rows.filter(pk__in=pks, status=Status.SUPPRESSED))


def _find_due(result: Postponed) -> Any:
    # SQLite's clock has milliseconds: a sum of nothing would be due in the next.
    seconds = result.delay_seconds
    return DatabaseNow() + timedelta(seconds=seconds) if seconds else DatabaseNow()


def _by_stream(results: Sequence[_R]) -> Iterator[tuple[str, list[_R]]]:
    for stream in sorted({result.stream for result in results}):
        yield stream, [result for result in results if result.stream == stream]


def _note_events(results: Sequence[Result], using: str) -> None:
    """Keep what a row's own columns forget with its next attempt."""
    events = []
    for result in results:
        if isinstance(result, Postponed) and result.counts:
            kind, detail = MessageEvent.Kind.POSTPONED, result.error
        elif isinstance(result, Doubtful):
            kind, detail = MessageEvent.Kind.DOUBT, result.error
        elif isinstance(result, Ended) and result.error:
            kind, detail = MessageEvent.Kind.FAILED, result.error
        else:
            continue
        events.append(
            MessageEvent(
                message_id=result.pk, kind=kind, at=DatabaseNow(), detail=detail[:_MAX_ERROR]
            )
        )
    if events:
        MessageEvent.objects.using(using).bulk_create(events)


def _settle_sent(sent: Sequence[Sent], *, keep_bodies: bool, using: str) -> None:
    if at_once.is_possible(using):
        with single_statement(using):
            changed, counted = at_once.settle(
                [result.pk for result in sent],
                [result.ses_message_id for result in sent],
                [result.stream for result in sent],
                keep_bodies=keep_bodies,
                using=using,
            )
        tell_metrics((("sent", stream, number) for stream, number, _ in counted), using=using)
        tell_metrics((("written", stream, number) for stream, _, number in counted), using=using)
        _announce_all(signals.message_sent, changed, using)
        return
    with transaction.atomic(using=using):
        tallies = [
            _settle_stream(of_stream, stream, keep_bodies=keep_bodies, using=using)
            for stream, of_stream in _by_stream(sent)
        ]
        count(tallies, using=using)


def _settle_stream(sent: Sequence[Sent], stream: str, *, keep_bodies: bool, using: str) -> Tally:
    pks = [result.pk for result in sent]
    rows = OutgoingMessage.objects.using(using).filter(pk__in=pks)
    # Whose signal an event has not sent yet.
    _announce(signals.message_sent, rows.exclude(_SETTLED_BY_EVENT))
    number = rows.exclude(_SETTLED_BY_EVENT).update(
        status=Status.SENT,
        claim=None,
        lane=None,
        turn=None,
        in_doubt=False,
        last_error="",
        ses_message_id=_ByKey({result.pk: result.ses_message_id for result in sent}),
        sent_at=DatabaseNow(),
        finished_at=DatabaseNow(),
    )
    recipients = OutgoingRecipient.objects.using(using).filter(
        message__in=pks, status=OutgoingRecipient.Status.QUEUED
    )
    if any(result.to_simulator for result in sent):
        simulated = recipients.filter(address__endswith=f"@{SIMULATOR_DOMAIN}")
        simulated.update(status=OutgoingRecipient.Status.SENT)  # and not counted
    # What an event has settled, it has counted.
    written = recipients.update(status=OutgoingRecipient.Status.SENT)
    if not keep_bodies:
        OutgoingContent.objects.release(rows)
    return Tally(stream=stream, sent=number, written=written)


def _find_held(results: Sequence[Result], using: str) -> list[Result]:
    """Those whose claim still holds, their rows locked.

    A drain that was suspended past a lease may even have claimed a row of its own anew: what it
    says about the first claim must not touch the second.
    """
    rows = OutgoingMessage.objects.using(using).filter(
        pk__in=[result.pk for result in results], status=Status.SENDING
    )
    if connections[using].features.has_select_for_update:
        rows = limit_idling(rows.select_for_update())
    else:
        # SQLite has one lock for all, and gives it to who begins by writing.
        rows.update(status=Status.SENDING)
    held = dict(rows.values_list("pk", "claim"))
    return [result for result in results if held.get(result.pk) == result.claim]


def _update(results: Sequence[Any], using: str, **changes: Any) -> int:
    """One UPDATE for all results; a callable value is different for each of them.

    Returns how many rows it changed.
    """
    if not results:
        return 0
    return (
        OutgoingMessage.objects.using(using)
        .filter(pk__in=[result.pk for result in results])
        .update(**{name: _choose(name, value, results) for name, value in changes.items()})
    )


def _choose(name: str, value: Any, results: Sequence[Any]) -> Any:
    if not callable(value):
        return value
    return Case(
        *(When(pk=result.pk, then=value(result)) for result in results),
        output_field=OutgoingMessage._meta.get_field(name),  # type: ignore[arg-type]
    )


class _ByKey(Expression):
    """A text for each row by its key: what ``Case`` would write, at a tenth of its cost."""

    def __init__(self, texts: Mapping[int, str]) -> None:
        super().__init__(output_field=CharField())
        self._texts = texts

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[str | int, ...]]:
        """See ``Expression``."""
        pk = connection.ops.quote_name(OutgoingMessage._meta.pk.column)
        whens = "WHEN %s THEN %s " * len(self._texts)
        params: Iterable[str | int] = chain.from_iterable(self._texts.items())
        return f"CASE {pk} {whens}END", tuple(params)


def _announce(signal: Any, rows: QuerySet[OutgoingMessage]) -> None:
    """Send a signal for the rows as they are now, after commit; nothing is asked if none listen."""
    if signal.has_listeners(OutgoingMessage):
        _announce_all(signal, list(rows.values_list("pk", flat=True)), rows.db)


def _announce_all(signal: Any, pks: Sequence[int], using: str) -> None:
    def send() -> None:
        for message in OutgoingMessage.objects.using(using).filter(pk__in=pks):
            signal.send_robust(sender=OutgoingMessage, message=message)

    if pks and signal.has_listeners(OutgoingMessage):
        transaction.on_commit(send, using=using, robust=True)


def announce_suppressed(messages: Iterable[OutgoingMessage], *, using: str) -> None:
    """``message_suppressed`` for rows that were stored just now, after commit."""
    pks = [message.pk for message in messages if message.status == Status.SUPPRESSED]
    if pks:
        rows = OutgoingMessage.objects.using(using).filter(pk__in=pks)
        _announce(signals.message_suppressed, rows)


# By hand and by the clock


def send_again(queryset: QuerySet[OutgoingMessage]) -> int:
    """Queue finished rows anew, where their body is kept; return how many.

    Suppression is asked again when they are sent. Waking a worker is the caller's part
    (``connect_mailer.tasks.wake`` on commit).
    """
    return _queue_again(queryset, using=get_database())


@again_at_deadlock
def _queue_again(queryset: QuerySet[OutgoingMessage], *, using: str) -> int:
    with transaction.atomic(using=using):
        # Rows before their recipients, as everywhere: or two would wait for each other.
        pks = list(
            queryset.using(using)
            .filter(status__in=[Status.FAILED, Status.EXPIRED, Status.SENT])
            .exclude(content=None)
            .select_for_update()
            .values_list("pk", flat=True)
        )
        OutgoingRecipient.objects.using(using).filter(message__in=pks).exclude(
            status=OutgoingRecipient.Status.SUPPRESSED
        ).update(status=OutgoingRecipient.Status.QUEUED)
        return (
            OutgoingMessage.objects.using(using)
            .filter(pk__in=pks)
            .update(
                status=Status.QUEUED,
                attempts=0,
                due_at=DatabaseNow(),
                lane=F("rank"),
                turn=DatabaseNow(),
                expires_at=None,
                in_doubt=False,
                ses_message_id="",
                sent_at=None,
                finished_at=None,
            )
        )


@again_at_deadlock
def send_now(pks: Sequence[int], *, using: str) -> list[int]:
    """Let queued rows that wait for their time into the line now; return which.

    Waking a worker is the caller's part.
    """
    with transaction.atomic(using=using):
        queued = _lock_queued(pks, using)
        _filter_queued(queued, using).update(
            due_at=DatabaseNow(), lane=F("rank"), turn=DatabaseNow()
        )
    return queued


@again_at_deadlock
def cancel(pks: Sequence[int], reason: str, *, using: str) -> list[int]:
    """Let queued rows end ``failed``; return which. Their bodies are kept as those of others."""
    with transaction.atomic(using=using):
        queued = _lock_queued(pks, using)
        _filter_queued(queued, using).update(
            status=Status.FAILED,
            lane=None,
            turn=None,
            last_error=reason[:_MAX_ERROR],
            finished_at=DatabaseNow(),
        )
        rows = OutgoingMessage.objects.using(using).filter(pk__in=queued, status=Status.FAILED)
        _announce(signals.message_failed, rows)
    return queued


def end_damaged(*, using: str) -> list[int]:
    """Let rows end ``failed`` that stand in line and cost what no call can; return which."""
    pks = _line(using).exclude(cost__range=(1, MAX_RECIPIENTS)).values_list("pk", flat=True)
    reason = f"Its cost is damaged: a call has 1 to {MAX_RECIPIENTS} recipients."
    return cancel(list(pks), reason, using=using)


def _filter_queued(pks: Sequence[int], using: str) -> QuerySet[OutgoingMessage]:
    return OutgoingMessage.objects.using(using).filter(pk__in=pks, status=Status.QUEUED)


def _lock_queued(pks: Sequence[int], using: str) -> list[int]:
    rows = _filter_queued(pks, using).order_by("pk").select_for_update()
    return list(rows.values_list("pk", flat=True))


def purge(*, keep_days: int, keep_bodies_days: int, using: str) -> int:
    """Forget finished rows after ``keep_days`` and sent bodies after ``keep_bodies_days``.

    Returns the number of rows that were forgotten. In chunks, so that no lock is held long, and
    without waiting for rows that somebody else is at: the next purge finds those.
    """
    old = DatabaseNow() - timedelta(days=keep_days)
    messages = OutgoingMessage.objects.using(using)
    forgotten = _in_chunks(messages.filter(finished_at__lt=old), _forget)
    bodies = messages.filter(
        status=Status.SENT,
        finished_at__lt=DatabaseNow() - timedelta(days=keep_bodies_days),
        content__isnull=False,
    )
    _in_chunks(bodies, OutgoingContent.objects.release)
    # Two rows of one message that were settled at the same moment may both have left it behind.
    used = Exists(messages.filter(content=OuterRef("pk")))
    _in_chunks(OutgoingContent.objects.using(using).filter(~used), _delete)
    receipts = NotificationReceipt.objects.using(router.db_for_write(NotificationReceipt))
    _in_chunks(receipts.filter(received_at__lt=old), _delete)
    return forgotten


def _forget(messages: QuerySet[OutgoingMessage]) -> None:
    OutgoingContent.objects.release(messages)
    messages.delete()


def _delete(rows: QuerySet[Any]) -> None:
    rows.delete()


def _in_chunks(queryset: QuerySet[Any], act: Callable[[QuerySet[Any]], None]) -> int:
    """Work off a queryset that ``act`` shrinks; return how many rows that were.

    They are locked first, or what was queued again at that moment would be deleted.
    """
    total = 0
    rows = queryset
    if connections[queryset.db].features.has_select_for_update_skip_locked:
        # Locked, they stay as they are. MariaDB may look for the rest of what was asked by
        # another index than the key's, and wait at a row that it doesn't want.
        rows = queryset.model._default_manager.using(queryset.db)
    while number := _work_off(queryset, rows, act, using=queryset.db):
        total += number
    return total


@again_at_deadlock
def _work_off(
    queryset: QuerySet[Any],
    rows: QuerySet[Any],
    act: Callable[[QuerySet[Any]], None],
    *,
    using: str,
) -> int:
    with transaction.atomic(using=using):
        pks = list(_lock(queryset).values_list("pk", flat=True)[:PURGE_CHUNK])
        if pks:
            act(rows.filter(pk__in=pks))
    return len(pks)

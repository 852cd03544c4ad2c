"""No sequence of what may happen to rows loses one, or lets two drains hold one at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.core.mail import EmailMessage
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from connect_mailer.feedback import events, settlement
from connect_mailer.models import OutgoingContent, OutgoingMessage, OutgoingRecipient
from connect_mailer.sending import envelope, outbox
from connect_mailer.testing.sns import make_delivery, make_event, make_mail

Status = OutgoingMessage.Status
Stream = OutgoingMessage.Stream

HOUR = timedelta(hours=1)
ENDS = ["failed", "expired", "suppressed"]
KINDS = ["sent", "retry", "given back", "doubtful", *ENDS]
EVENTS = ["Send", "Delivery", "Reject"]
place = st.floats(0, 1)
claims = st.sampled_from(["of the living", "of the dead"])
kinds = st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)


@dataclass
class Row:
    """What ought to be true of one row."""

    rank: int
    is_open: bool = True
    is_due: bool = True
    attempts: int = 0
    in_doubt: bool = False
    claim: UUID | None = None
    is_leased: bool = False  # to whoever has the claim


class Outbox(RuleBasedStateMachine):
    """The real outbox beside what ought to be: which rows are open, and who holds which."""

    def __init__(self) -> None:
        super().__init__()
        self.transaction = transaction.atomic()
        self.transaction.__enter__()
        self.rows: dict[int, Row] = {}
        # What some drain took to be its own, the newest last: it may be wrong by now.
        self.held: list[outbox.Claimed] = []

    def teardown(self) -> None:
        """Whatever happened before: all that is open can be delivered."""
        try:
            self.become_due()
            self.end_leases(self.find(is_leased=True))
            self.held = []
            self.claim(slots=1000, tokens=10_000, paused=None)
            assert {row.pk for row in self.held} == set(self.find(is_open=True))
            self.settle_as([(row, "sent") for row in self.held], keeps=False)
            assert not self.find(is_open=True)
            self.all_is_as_it_should_be()
            assert not outbox.is_due(using="default")
        finally:
            transaction.set_rollback(True)
            self.transaction.__exit__(None, None, None)

    def find(self, **values: Any) -> list[int]:
        """The rows that ought to be so."""
        return [
            pk
            for pk, row in self.rows.items()
            if all(getattr(row, name) == value for name, value in values.items())
        ]

    def is_alive(self, row: OutgoingMessage) -> bool:
        """Whether a claim still counts."""
        return row.pk in self.rows and self.rows[row.pk].claim == row.claim

    # What may happen

    @initialize(
        kinds=kinds,
        event=st.sampled_from([None, *EVENTS]),
        keep_days=st.sampled_from([None, 30]),
        is_again=st.booleans(),
    )
    def begin(
        self, kinds: list[str], event: str | None, keep_days: int | None, is_again: bool
    ) -> None:
        """Something has become of some rows, and a drain holds others: what follows is rarer."""
        self.queue(number=4, recipients=1, priority=5, stream="default", is_later=False)
        self.queue(number=1, recipients=1, priority=0, stream="default", is_later=False)
        # What is paused, the most important one, no more than is paid for: each time, as chance
        # finds these too seldom.
        self.claim(slots=100, tokens=1000, paused="default")
        self.claim(slots=1, tokens=1000, paused=None)
        self.claim(slots=100, tokens=3, paused=None)
        if event:  # before the answer has been written down
            self.hear_event_of(self.held[0].pk, event)
        self.settle_as(list(zip(self.held, kinds, strict=False)), keeps=False)
        if keep_days:  # none of them is so old, but bodies go
            self.purge(keep_days=keep_days)
        for pk in self.find(is_open=False) if is_again else []:
            self.send_one_again(pk)

    @precondition(lambda self: len(self.find(is_open=True)) < 8)
    @rule(
        number=st.integers(1, 2),
        recipients=st.sampled_from([1, 1, 60]),
        priority=st.sampled_from([0, 5]),
        stream=st.sampled_from(Stream.values),
        is_later=st.booleans(),
    )
    def queue(
        self, number: int, recipients: int, priority: int, stream: str, is_later: bool
    ) -> None:
        options = envelope.Options(
            stream=stream,
            priority=priority,
            send_after=timezone.now() + HOUR if is_later else None,
        )
        to = [f"u{n}@example.org" for n in range(recipients)]
        message = EmailMessage("a", "b", "site@example.com", bcc=to)
        frozen = outbox.Frozen(draft=envelope.read(message, options), mime=b"a")
        stored = outbox.store([frozen] * number, using="default")
        assert len(stored) == number * (2 if recipients > 50 else 1)
        for row in stored:
            self.rows[row.pk] = Row(rank=row.rank, is_due=not is_later)

    @rule(
        slots=st.sampled_from([1, 3, 100]),
        tokens=st.sampled_from([3, 1000]),
        paused=st.sampled_from([None, None, *Stream.values]),
    )
    def claim(self, slots: int, tokens: int, paused: str | None) -> None:
        streams = {paused} - {None}
        outbox.line_up(using="default")  # as a drain does every half second
        outbox.peek(slots, using="default", paused=streams)
        rows = outbox.claim(
            tokens=tokens,
            slots=slots,
            max_bytes=10**9,
            lease_seconds=600,
            using="default",
            paused=streams,
        )
        assert len(rows) <= slots
        assert sum(row.cost for row in rows) <= tokens
        assert paused not in {row.stream for row in rows}
        for row in rows:
            ought = self.rows[row.pk]
            assert not ought.is_leased, "two drains hold one row"
            assert ought.is_open
            assert ought.is_due
            ought.in_doubt |= ought.claim is not None  # whoever had it may have sent it
            ought.attempts += 1
            ought.claim, ought.is_leased = row.claim, True
            assert (row.attempts, row.in_doubt) == (ought.attempts, ought.in_doubt)
        left = [
            ought.rank
            for ought in self.rows.values()
            if ought.is_open
            and ought.is_due
            and not ought.is_leased
            # Each stream has lanes of its own.
            and paused != (Stream.DEFAULT if ought.rank >= 10 else Stream.TRANSACTIONAL)
        ]
        if slots == 100 and tokens == 1000:
            assert not left, "rows that nobody finds"
        # The most important ones first.
        assert max((self.rows[row.pk].rank for row in rows), default=0) <= min(left, default=99)
        self.held += rows

    @precondition(lambda self: self.find(is_leased=True))
    @rule(place=place, is_alone=st.booleans(), slots=st.sampled_from([1, 100]))
    def take_over(self, place: float, is_alone: bool, slots: int) -> None:
        """A drain that is suspended past its lease, and another one that takes what it held."""
        self.end_lease(place=place, is_alone=is_alone)
        self.claim(slots=slots, tokens=1000, paused=None)

    @rule(slots=st.sampled_from([3, 100]), kinds=kinds)
    def deliver(self, slots: int, kinds: list[str]) -> None:
        """What a drain does most: it claims, and says what became of that."""
        self.claim(slots=slots, tokens=1000, paused=None)
        self.settle(claims="of the living", kinds=kinds, keeps=False)

    @precondition(lambda self: self.held)
    @rule(claims=claims, kinds=kinds, keeps=st.booleans())
    def settle(self, claims: str, kinds: list[str], keeps: bool) -> None:
        is_alive = claims == "of the living"
        # If there are none of those, the others.
        ordered = sorted(self.held, key=lambda row: self.is_alive(row) != is_alive)
        self.settle_as(list(zip(ordered, kinds, strict=False)), keeps=keeps)

    def settle_as(self, kinds: list[tuple[outbox.Claimed, str]], *, keeps: bool) -> None:
        self.held = [row for row in self.held if all(row is not chosen for chosen, _ in kinds)]
        known = self.find_known_to_ses()
        results = [make_result(row, kind) for row, kind in kinds]
        outbox.settle(results, keep_bodies=keeps, using="default")
        now = self.find_known_to_ses()
        assert now | known == now, "SES has said it already"
        for row, kind in sorted(kinds, key=lambda pair: pair[1] != "sent"):
            ought = self.rows.get(row.pk)
            if ought is not None and kind == "sent":
                assert row.pk in now, "it was sent, and nobody knows"
            if ought is None or not ought.is_open:
                continue
            if kind == "sent":  # in any case
                self.finish(row.pk)
            elif ought.claim != row.claim:
                continue  # another one has it by now
            elif kind == "doubtful":
                ought.in_doubt = True
            elif kind in ENDS:
                self.finish(row.pk)
            else:
                ought.claim, ought.is_leased = None, False
                ought.is_due = kind == "given back"
                ought.attempts -= kind == "given back"

    def find_known_to_ses(self) -> dict[int, list[str]]:
        """What SES has taken, as a drain or an event says: what became of it, and its name there.

        That stays, whatever else a drain says.
        """
        rows = OutgoingMessage.objects.exclude(ses_message_id="")
        return {pk: said for pk, *said in rows.values_list("pk", "status", "ses_message_id")}

    @precondition(lambda self: self.held)
    @rule(place=place, event=st.sampled_from(EVENTS), kind=st.sampled_from(KINDS))
    def hear_event_first(self, place: float, event: str, kind: str) -> None:
        """SES tells of a message before its answer has been written down."""
        row = pick(place, self.held)
        if row.pk in self.rows:
            self.hear_event_of(row.pk, event)
        self.settle_as([(row, kind)], keeps=False)

    @precondition(lambda self: self.held)
    @rule(place=place)
    def kill(self, place: float) -> None:
        killed = pick(place, [row.claim for row in self.held])
        self.held = [row for row in self.held if row.claim != killed]

    @precondition(lambda self: self.find(is_leased=True))
    @rule(place=place, is_alone=st.booleans())
    def end_lease(self, place: float, is_alone: bool) -> None:
        leased = self.find(is_leased=True)
        self.end_leases([pick(place, leased)] if is_alone else leased)

    def end_leases(self, pks: list[int]) -> None:
        OutgoingMessage.objects.filter(pk__in=pks).update(due_at=timezone.now() - HOUR)
        for pk in pks:
            self.rows[pk].is_leased = False

    @precondition(lambda self: self.find(is_due=False))
    @rule()
    def become_due(self) -> None:
        OutgoingMessage.objects.filter(status=Status.QUEUED).update(due_at=timezone.now() - HOUR)
        for ought in self.rows.values():
            ought.is_due = True

    @precondition(lambda self: self.rows)
    @rule(place=place, kind=st.sampled_from(EVENTS))
    def hear_event(self, place: float, kind: str) -> None:
        self.hear_event_of(pick(place, list(self.rows)), kind)

    def hear_event_of(self, pk: int, kind: str) -> None:
        message = OutgoingMessage.objects.get(pk=pk)
        to = list(message.recipients.values_list("address", flat=True))
        mail = make_mail(to, ses_message_id=f"event-{pk}", tag=message.uuid)
        event = events.read(
            make_delivery(to, mail=mail, event=True)
            if kind == "Delivery"
            else make_event(kind, mail=mail)
        )
        assert event is not None
        settlement.settle(event, using="default")
        if self.rows[pk].is_open:
            self.finish(pk)

    @precondition(lambda self: self.find(is_open=False))
    @rule(place=place, is_any=st.booleans())
    def send_again(self, place: float, is_any: bool) -> None:
        self.send_one_again(pick(place, list(self.rows) if is_any else self.find(is_open=False)))

    def send_one_again(self, pk: int) -> None:
        if outbox.send_again(OutgoingMessage.objects.filter(pk=pk)):
            assert not self.rows[pk].is_open, "it was about to be sent"
            # Who holds it from before may still say that it was sent, but nothing else.
            self.rows[pk] = Row(rank=self.rows[pk].rank)

    @rule(place=place, act=st.sampled_from([outbox.cancel, outbox.send_now]))
    def operate(self, place: float, act: Any) -> None:
        queued = self.find(is_open=True, claim=None)
        pks = [pick(place, list(self.rows))] if self.rows else []
        args = ["no more"] if act is outbox.cancel else []
        assert act(pks, *args, using="default") == [pk for pk in pks if pk in queued]
        for pk in set(pks) & set(queued):
            self.rows[pk].is_due = True
            if act is outbox.cancel:
                self.finish(pk)

    @precondition(lambda self: self.rows)
    @rule(keep_days=st.sampled_from([0, 0, 30]))
    def purge(self, keep_days: int) -> None:
        outbox.purge(keep_days=keep_days, keep_bodies_days=0, using="default")
        left = set(OutgoingMessage.objects.values_list("pk", flat=True))
        assert left >= set(self.find(**({} if keep_days else {"is_open": True})))
        self.rows = {pk: ought for pk, ought in self.rows.items() if pk in left}

    def finish(self, pk: int) -> None:
        ought = self.rows[pk]
        ought.is_open, ought.is_due, ought.is_leased, ought.claim = False, True, False, None

    # What always holds

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        rows = OutgoingMessage.objects.in_bulk()
        assert set(rows) == set(self.rows)
        bodies = set(OutgoingContent.objects.values_list("pk", flat=True))
        waiting = set(
            OutgoingRecipient.objects.filter(status="queued").values_list("message", flat=True)
        )
        for pk, ought in self.rows.items():
            row = rows[pk]
            assert row.claim == ought.claim
            if ought.is_open:
                assert row.status == (Status.SENDING if ought.claim else Status.QUEUED)
                assert (row.attempts, row.in_doubt) == (ought.attempts, ought.in_doubt)
                assert row.finished_at is None
                assert row.content_id in bodies
                assert pk in waiting
                if ought.is_leased or not ought.is_due:
                    assert row.lane is None
            else:
                assert row.status not in OutgoingMessage.OPEN
                assert row.finished_at is not None
                assert (row.lane, row.turn) == (None, None)
                if row.status in (Status.FAILED, Status.EXPIRED) and not row.ses_message_id:
                    assert row.content_id in bodies, "it could not be sent again"


def pick(place: float, among: list[Any]) -> Any:
    return among[round(place * (len(among) - 1))]


def make_result(row: outbox.Claimed, kind: str) -> outbox.Result:
    if kind == "sent":
        return outbox.Sent.of(row, ses_message_id=f"ses-{row.pk}")
    if kind == "doubtful":
        return outbox.Doubtful.of(row, error="no answer")
    if kind in ("retry", "given back"):
        counts = kind == "retry"
        delay: Any = 3600 if counts else 0
        return outbox.Postponed.of(row, delay_seconds=delay, error=kind, counts=counts)
    return outbox.Ended.of(row, status=kind, error=kind)


@pytest.mark.django_db
def test_no_sequence_loses_a_row_or_lets_two_drains_hold_it() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Outbox,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[*Phase] if os.environ.get("TEST_SHRINK", "1") else [Phase.generate],
        ),
    )

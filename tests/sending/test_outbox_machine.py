"""No sequence of what may happen to rows loses one, or lets two drains hold one at once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.core.mail import EmailMessage
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.feedback import events, records
from connect_mailer.models import OutgoingMessage, OutgoingRecipient
from connect_mailer.sending import outbox
from connect_mailer.testing.sns import make_delivery, make_event, make_mail

Status = OutgoingMessage.Status

AGO = timedelta(hours=1)
KINDS = ["sent", "retry", "given back", "doubtful", "failed", "expired", "suppressed"]
drains = st.integers(0, 1)
some = st.floats(0, 1)


class Outbox(RuleBasedStateMachine):
    """The real outbox beside what ought to be: which rows are open, and who holds which."""

    def __init__(self) -> None:
        super().__init__()
        self.transaction = transaction.atomic()
        self.transaction.__enter__()
        self.open: set[int] = set()
        self.finished: set[int] = set()
        self.leases: dict[int, UUID] = {}  # those that have not ended
        self.held: dict[int, list[OutgoingMessage]] = {0: [], 1: []}

    def teardown(self) -> None:
        """Whatever happened before: all that is open can be delivered."""
        try:
            OutgoingMessage.objects.filter(status__in=OutgoingMessage.OPEN).update(
                due_at=timezone.now() - AGO
            )
            self.leases.clear()
            self.claim(drain=0, slots=1000, tokens=10_000)
            assert {row.pk for row in self.held[0]} >= self.open
            outbox.settle(
                [outbox.Sent.of(row, ses_message_id=f"last-{row.pk}") for row in self.held[0]],
                keep_bodies=False,
                using="default",
            )
            assert not OutgoingMessage.objects.filter(status__in=OutgoingMessage.OPEN).exists()
            assert not outbox.is_due(using="default")
        finally:
            transaction.set_rollback(True)
            self.transaction.__exit__(None, None, None)

    def pick(self, place: float, pks: set[int]) -> int | None:
        return sorted(pks)[int(place * (len(pks) - 1))] if pks else None

    # What may happen

    @initialize()
    def begin(self) -> None:
        self.queue(number=3, recipients=1, priority=5, stream="default", is_later=False)

    @precondition(lambda self: len(self.open) < 8)
    @rule(
        number=st.integers(1, 3),
        recipients=st.sampled_from([1, 1, 60]),
        priority=st.sampled_from([0, 5]),
        stream=st.sampled_from(OutgoingMessage.Stream.values),
        is_later=st.booleans(),
    )
    def queue(
        self, number: int, recipients: int, priority: int, stream: str, is_later: bool
    ) -> None:
        before = set(OutgoingMessage.objects.values_list("pk", flat=True))
        to = [f"u{n}@example.org" for n in range(recipients)]
        ConnectMailerBackend(
            priority=priority,
            stream=stream,
            send_after=timezone.now() + AGO if is_later else None,
        ).send_messages([EmailMessage("a", "b", "site@example.com", bcc=to) for _ in range(number)])
        made = set(OutgoingMessage.objects.values_list("pk", flat=True)) - before
        assert len(made) == number * (2 if recipients > 50 else 1)
        self.open |= made

    @rule(drain=drains, slots=st.integers(1, 4), tokens=st.sampled_from([3, 100]))
    def claim(self, drain: int, slots: int, tokens: int) -> None:
        outbox.peek(slots, using="default")
        rows = outbox.claim(
            tokens=tokens, slots=slots, max_bytes=10**9, lease_seconds=600, using="default"
        )
        assert sum(row.cost for row in rows) <= tokens
        for row in rows:
            assert row.pk in self.open
            assert row.pk not in self.leases, "two drains hold one row"
            assert row.claim is not None
            self.leases[row.pk] = row.claim
        self.held[drain] += rows

    @rule(
        drain=drains,
        kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5),
        keeps=st.booleans(),
    )
    def settle(self, drain: int, kinds: list[str], keeps: bool) -> None:
        drain = drain if self.held[drain] else 1 - drain
        settled = list(zip(self.held[drain], kinds, strict=False))
        self.held[drain] = self.held[drain][len(settled) :]
        claims = dict(OutgoingMessage.objects.values_list("pk", "claim"))
        outbox.settle(
            [make_result(row, kind) for row, kind in settled], keep_bodies=keeps, using="default"
        )
        for row, kind in settled:
            if kind == "sent" and row.pk in self.open:  # in any case
                self.finish(row.pk)
        for row, kind in settled:
            if row.pk not in self.open or kind == "doubtful" or claims[row.pk] != row.claim:
                continue  # the last: another one has it by now
            self.leases.pop(row.pk, None)
            if kind in ("failed", "expired", "suppressed"):
                self.finish(row.pk)

    @precondition(lambda self: any(self.held.values()))
    @rule(drain=drains)
    def kill(self, drain: int) -> None:
        self.held[drain] = []

    @precondition(lambda self: self.leases)
    @rule(place=some, all_of_them=st.booleans())
    def end_lease(self, place: float, all_of_them: bool) -> None:
        pk = self.pick(place, set(self.leases))
        ended = set(self.leases) if all_of_them else {pk} - {None}
        OutgoingMessage.objects.filter(pk__in=ended).update(due_at=timezone.now() - AGO)
        self.leases = {pk: claim for pk, claim in self.leases.items() if pk not in ended}

    @rule()
    def become_due(self) -> None:
        OutgoingMessage.objects.filter(status=Status.QUEUED).update(due_at=timezone.now() - AGO)

    @rule(place=some, kind=st.sampled_from(["Send", "Delivery", "Reject"]))
    def hear_event(self, place: float, kind: str) -> None:
        pk = self.pick(place, self.open | self.finished)
        if pk is None:
            return
        message = OutgoingMessage.objects.get(pk=pk)
        to = list(message.recipients.values_list("address", flat=True))
        mail = make_mail(to, ses_message_id=f"event-{pk}", tag=message.uuid)
        event = events.read(
            make_delivery(to, mail=mail, event=True)
            if kind == "Delivery"
            else make_event(kind, mail=mail)
        )
        assert event is not None
        records.settle(event, using="default")
        if OutgoingMessage.objects.get(pk=pk).status not in OutgoingMessage.OPEN:
            self.finish(pk)

    @precondition(lambda self: self.finished)
    @rule(place=some)
    def send_again(self, place: float) -> None:
        pk = self.pick(place, self.finished if place < 0.9 else self.finished | self.open)
        if outbox.send_again(OutgoingMessage.objects.filter(pk=pk)):
            assert pk in self.finished, "it was about to be sent"
            self.finished.discard(pk)
            self.open.add(pk)
            # Who holds it from before may still say that it was sent, but nothing else.
            self.leases.pop(pk, None)

    @precondition(lambda self: self.finished)
    @rule()
    def purge(self) -> None:
        outbox.purge(keep_days=0, keep_bodies_days=0, using="default")
        self.finished &= set(OutgoingMessage.objects.values_list("pk", flat=True))

    def finish(self, pk: int) -> None:
        self.leases.pop(pk, None)
        self.open.discard(pk)
        self.finished.add(pk)

    # What always holds

    @invariant()
    def nothing_is_lost(self) -> None:
        rows = OutgoingMessage.objects.in_bulk()
        assert set(rows) == self.open | self.finished
        waiting = set(
            OutgoingRecipient.objects.filter(status="queued").values_list("message", flat=True)
        )
        for row in rows.values():
            if row.pk in self.open:
                assert row.status in OutgoingMessage.OPEN
                assert row.content_id is not None
                assert row.pk in waiting
                if row.pk in self.leases:
                    assert (row.status, row.claim) == (Status.SENDING, self.leases[row.pk])
                    assert row.lane is None
            else:
                assert row.status not in OutgoingMessage.OPEN
                assert row.finished_at is not None
                assert (row.claim, row.lane, row.turn) == (None, None, None)


def make_result(row: OutgoingMessage, kind: str) -> outbox.Result:
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
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

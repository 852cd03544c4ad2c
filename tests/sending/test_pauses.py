"""A stream that is paused, while the other one goes on."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from django.core.mail import EmailMessage

from connect_mailer import tasks
from connect_mailer.backend import ConnectMailerBackend, TransactionalBackend
from connect_mailer.models import OutgoingMessage
from connect_mailer.sending import leases, pauses
from connect_mailer.sending.delivery import Drain, DrainLease, drain_outbox
from connect_mailer.sending.limiter import Reservation
from tests.sending.calling import Sink

pytestmark = pytest.mark.django_db

USING = "default"


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Sink:
    made = Sink()
    monkeypatch.setattr("connect_mailer.sending.delivery.get_transport", lambda: made)
    return made


def _queue(*to: str, backend: type = ConnectMailerBackend) -> None:
    backend().send_messages(
        [EmailMessage("Hello", "Text", "site@example.com", [address]) for address in to]
    )


def _drain() -> None:
    drain_outbox(wake=lambda: None, ask_for_help=lambda: None, one_pass=True)


@pytest.mark.parametrize(
    ("stream", "goes_on"),
    [("default", "urgent@example.org"), ("transactional", "news@example.org")],
)
def test_the_other_stream_goes_on(sink: Sink, stream: str, goes_on: str) -> None:
    _queue("news@example.org")
    _queue("urgent@example.org", backend=TransactionalBackend)
    assert pauses.pause(stream, "Too many bounces", using=USING)
    assert not pauses.pause(stream, "Again", using=USING)
    _drain()
    assert sink.taken == [goes_on]
    assert pauses.resume(stream, using=USING)
    assert not pauses.resume(stream, using=USING)
    _drain()
    assert len(sink.taken) == 2


def test_nothing_is_woken_for_what_is_paused(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[Any] = []
    monkeypatch.setattr(tasks, "_publish", published.append)
    leases.acquire("purge", 60, using=USING)
    _queue("news@example.org")
    pauses.pause("default", "", using=USING)
    tasks.sweep()
    assert published == []
    pauses.resume("default", using=USING)
    leases.release("sweep", using=USING)
    tasks.sweep()
    assert published == [tasks.deliver]


def test_a_pause_is_found_with_its_reason() -> None:
    assert pauses.find_pauses(using=USING) == []
    pauses.pause("default", "A mistake in the digest", using=USING)
    leases.acquire("pause", 60, using=USING, note="Daily quota exceeded")
    account, stream = pauses.find_pauses(using=USING)
    assert (account.stream, account.reason) == ("", "Daily quota exceeded")
    assert account.since
    assert account.ends_at
    assert (stream.stream, stream.reason) == ("default", "A mistake in the digest")
    assert stream.since
    assert stream.ends_at is None
    assert pauses.find_paused(using=USING) == {"default", "transactional"}
    assert pauses.resume("", using=USING)
    assert pauses.find_paused(using=USING) == {"default"}


def test_a_running_drain_gives_back_what_it_has_not_sent() -> None:
    sink = Sink()
    _queue("a@example.org", "b@example.org", "c@example.org")
    now = itertools.count(0, 0.01)
    late = [0.0]

    class PausingLimiter:
        """Grants one at a time; while it is asked the second time, an operator pauses."""

        calls = 0

        def reserve(self, costs: Any, rate: float) -> Reservation:
            self.calls += 1
            if self.calls == 2:
                pauses.pause("default", "", using=USING)
                late[0] = 1.0  # the next beat is due
            return Reservation(granted=1, wait_seconds=0, interval_seconds=0.001)

        def give_back(self, tokens: int) -> None: ...
        def put_off(self, seconds: float) -> None: ...
        def slow_down(self) -> None: ...
        def close(self) -> None: ...

    holder = leases.acquire("drain 1", 60, using=USING)
    assert holder
    Drain(
        transport=sink,
        limiter=PausingLimiter(),
        rate=100.0,
        using=USING,
        lease=DrainLease(name="drain 1", holder=holder),
        clock=lambda: next(now) + late[0],
    ).run()
    assert sink.taken == ["a@example.org"]
    rows = OutgoingMessage.objects.order_by("pk").values_list("status", "attempts")
    assert list(rows) == [("sent", 1), ("queued", 0), ("queued", 0)]

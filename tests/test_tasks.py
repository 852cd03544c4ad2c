"""The tasks, and how they are asked for."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import timedelta
from math import inf
from typing import Any

import pytest
from celery import current_app
from django.core.mail import EmailMessage
from django.utils import timezone

from connect_mailer import tasks
from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.models import Lease, NotificationReceipt, OutgoingContent, OutgoingMessage
from connect_mailer.sending import leases, outbox
from connect_mailer.sending.wakeups import REMEMBER_SECONDS
from tests.servers import make_environment

pytestmark = pytest.mark.django_db


def queue(*to: str, **options: Any) -> None:
    ConnectMailerBackend(**options).send_messages(
        [EmailMessage("Hi", "Body", "site@example.com", [address]) for address in to]
    )


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The tasks that were handed to the broker."""
    seen: list[tuple[str, dict[str, Any]]] = []
    for task in (tasks.deliver, tasks.sweep, tasks.purge):
        monkeypatch.setattr(
            task,
            "apply_async",
            lambda task=task, **kwargs: seen.append((task.name.rpartition(".")[2], kwargs)),
        )
    return seen


@pytest.fixture
def locmem(settings: Any) -> None:
    settings.CONNECT_MAILER = {"TRANSPORT": "django.core.mail.backends.locmem.EmailBackend"}


class TestWake:
    def test_once_while_a_wake_up_is_pending(self, published: list[Any]) -> None:
        for _ in range(100):
            tasks.wake()

        assert published == [("deliver", {"queue": None, "retry": False})]

    def test_this_process_remembers_it_for_a_moment(
        self,
        published: list[Any],
        django_assert_num_queries: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(tasks, "REMEMBER_SECONDS", 1000)  # however slow this machine is
        tasks.wake()

        with django_assert_num_queries(0):
            tasks.wake()

    def test_a_drain_that_found_nothing_looks_again_after_that_moment(
        self, published: list[Any], locmem: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tasks, "REMEMBER_SECONDS", 1000)  # however slow this machine is
        tasks.wake()
        moments: list[float] = []

        def sleep(seconds: float) -> None:
            moments.append(seconds)
            tasks.wake()  # asks for nothing: this process knows of a drain that is to look
            queue("late@example.org")
            monkeypatch.setattr(tasks, "_asked_at", -inf)  # as the moment is over

        monkeypatch.setattr("time.sleep", sleep)
        tasks.deliver()

        assert moments == [REMEMBER_SECONDS]
        assert len(published) == 2

    def test_not_while_a_drain_runs(self, published: list[Any]) -> None:
        assert leases.acquire("drain 1", 10, using="default")

        tasks.wake()

        assert published == []

    def test_again_once_the_drain_has_looked(self, published: list[Any], locmem: None) -> None:
        tasks.wake()
        tasks.deliver()
        tasks.wake()

        assert len(published) == 2

    def test_the_queue_of_the_settings(self, published: list[Any], settings: Any) -> None:
        settings.CUCUMBER_ROUTE_QUEUE = "mail"

        tasks.wake()

        assert published[0][1]["queue"] == "mail"

    def test_after_the_commit_only(
        self, published: list[Any], django_capture_on_commit_callbacks: Any
    ) -> None:
        with django_capture_on_commit_callbacks(execute=True):
            queue("a@example.org")
            queue("b@example.org")
            assert published == []
        assert len(published) == 1

    @pytest.mark.parametrize("is_listening", [True, False])
    def test_a_broker_that_is_down(self, is_listening: bool) -> None:
        # In a process of its own: Celery keeps its connections for as long as it lives.
        with socket.create_server(("127.0.0.1", 0)) as broker:
            port = broker.getsockname()[1]
            if not is_listening:
                broker.close()
            output = subprocess.run(
                [sys.executable, "-W", "error", "-c", WAKE_TWICE, f"redis://127.0.0.1:{port}/0"],
                env=make_environment(TEST_DATABASE="sqlite"),
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )

        # It is not asked again for a while, flag or no flag.
        assert output.stderr.count("mail waits for it") == 1, output.stderr
        assert output.stdout == "queued\n"


# A site that queues twice, with a broker that can't be talked to.
WAKE_TWICE = """
import logging, sys, django
from celery import Celery
app = Celery(broker=sys.argv[1], set_as_current=True)
app.set_default()
logging.basicConfig(format="%(message)s")
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from connect_mailer.sending import leases, outbox
from connect_mailer.sending.wakeups import REMEMBER_SECONDS
from connect_mailer.tasks import wake
wake()
wake()
leases.release("wake", using="default")  # as a drain does
wake()
print("queued")
"""


class TestDeliver:
    def test_many_times_over_costs_a_few_look_ups_each(
        self,
        published: list[Any],
        monkeypatch: pytest.MonkeyPatch,
        django_assert_num_queries: Any,
    ) -> None:
        monkeypatch.setattr("time.sleep", lambda _: None)
        before = list(Lease.objects.values())
        for _ in range(3):
            # That it has looked; then twice whether a stream is paused, whether anything is in
            # line, and whether anything whose time or lease has ended waits for that.
            with django_assert_num_queries(1 + 2 * (1 + 1 + 2)) as asked:
                tasks.deliver()
            verbs = [query["sql"].split()[0] for query in asked.captured_queries]
            assert verbs == ["UPDATE", *["SELECT"] * 8]
        assert list(Lease.objects.values()) == before
        assert published == []


class TestEager:
    def test_mail_leaves_on_commit_in_one_pass(
        self,
        locmem: None,
        mailoutbox: list[Any],
        monkeypatch: pytest.MonkeyPatch,
        django_capture_on_commit_callbacks: Any,
    ) -> None:
        monkeypatch.setitem(current_app.conf, "task_always_eager", True)

        with django_capture_on_commit_callbacks(execute=True):
            queue(*(f"u{n}@example.org" for n in range(60)))

        assert len(mailoutbox) == 60
        assert set(OutgoingMessage.objects.values_list("status", flat=True)) == {"sent"}
        assert not leases.find_alive("drain 1", "wake", using="default")


class TestSweep:
    def test_wakes_a_drain_for_what_is_due(self, published: list[Any]) -> None:
        queue("a@example.org")

        tasks.sweep()

        assert [name for name, _ in published] == ["deliver", "purge"]

    def test_even_where_a_wake_up_is_pending_but_got_lost(self, published: list[Any]) -> None:
        queue("a@example.org")
        tasks.wake()
        published.clear()

        tasks.sweep()

        assert published[0][0] == "deliver"

    def test_one_at_a_time(self, published: list[Any]) -> None:
        queue("a@example.org")
        tasks.sweep()
        published.clear()

        tasks.sweep()

        assert published == []

    @pytest.mark.parametrize("reason", ["nothing", "not due", "paused", "running"])
    def test_not_without_need(self, published: list[Any], reason: str) -> None:
        if reason == "not due":
            queue("a@example.org", send_after=timezone.now() + timedelta(hours=1))
        elif reason == "paused":
            queue("a@example.org")
            leases.acquire("pause", 3600, using="default")
        elif reason == "running":
            leases.acquire("drain 1", 15, using="default")

        tasks.sweep()

        assert [name for name, _ in published] == ["purge"]

    @pytest.mark.parametrize(
        "reason", ["leased", "scheduled", "paused", "running, or dead", "paused, then scheduled"]
    )
    def test_for_the_moment_when_there_is_need(self, published: list[Any], reason: str) -> None:
        queue("a@example.org")
        if "scheduled" in reason:
            OutgoingMessage.objects.update(due_at=timezone.now() + timedelta(seconds=40), lane=None)
        if "paused" in reason:
            seconds = 20 if "scheduled" in reason else 40
            leases.acquire("pause", seconds, using="default")
        if reason == "leased":
            outbox.claim(tokens=1, slots=1, max_bytes=10**9, lease_seconds=40, using="default")
        if "running" in reason:
            leases.acquire("drain 1", 40, using="default")

        tasks.sweep()

        name, options = published[0]
        assert name == "deliver"
        assert 0 < options["countdown"] <= 40
        assert options["countdown"] == pytest.approx(40, abs=20)

    def test_now_and_for_that_moment(self, published: list[Any]) -> None:
        for _ in range(2):
            queue("a@example.org")
        outbox.claim(tokens=1, slots=1, max_bytes=10**9, lease_seconds=40, using="default")

        tasks.sweep()

        assert [options.get("countdown", 0) for _, options in published[:2]] == [
            0,
            pytest.approx(40, abs=20),
        ]

    def test_a_drain_asks_for_the_next_lease_to_end(
        self, published: list[Any], locmem: None
    ) -> None:
        for _ in range(3):
            queue("a@example.org")
        for seconds in (10, 1000):
            outbox.claim(tokens=1, slots=1, max_bytes=10**9, lease_seconds=seconds, using="default")

        tasks.deliver()

        [(name, options)] = published
        assert name == "deliver"
        assert 0 < options["countdown"] <= 10

    def test_soon_enough_for_each_lease(self, published: list[Any], settings: Any) -> None:
        settings.CONNECT_MAILER = {"LEASE_SECONDS": 30}
        queue("a@example.org")
        outbox.claim(tokens=1, slots=1, max_bytes=10**9, lease_seconds=30, using="default")
        tasks.sweep()
        # Whoever swept may be the one that died.
        assert leases.find_rest("sweep", using="default") <= 7.5
        assert published[0][1]["countdown"] <= 30

    def test_what_a_dead_worker_held(self, published: list[Any]) -> None:
        queue("a@example.org")
        OutgoingMessage.objects.update(
            status="sending", due_at=timezone.now() - timedelta(seconds=1)
        )

        tasks.sweep()

        assert published[0][0] == "deliver"


class TestPurge:
    def finish(self, days_ago: float, status: str = "sent") -> OutgoingMessage:
        queue("a@example.org")
        row = OutgoingMessage.objects.latest("pk")
        row.status = status
        row.finished_at = timezone.now() - timedelta(days=days_ago)
        row.save()
        return row

    def test_forgets_finished_rows_and_receipts(self, settings: Any) -> None:
        settings.CONNECT_MAILER = {"KEEP_DAYS": 30}
        old, recent = self.finish(31, "failed"), self.finish(29, "failed")
        queue("waits@example.org")
        NotificationReceipt.objects.create(message_id="a")
        NotificationReceipt.objects.update(received_at=timezone.now() - timedelta(days=31))
        NotificationReceipt.objects.create(message_id="b")

        tasks.purge()

        left = set(OutgoingMessage.objects.values_list("pk", flat=True))
        assert old.pk not in left
        assert recent.pk in left
        assert len(left) == OutgoingContent.objects.count() == 2
        assert NotificationReceipt.objects.get().message_id == "b"

    def test_bodies_go_earlier_but_for_failed_ones(self, settings: Any) -> None:
        settings.CONNECT_MAILER = {"KEEP_BODIES_DAYS": 3}
        old, recent, failed = self.finish(4), self.finish(2), self.finish(4, "failed")

        tasks.purge()

        for row in (old, recent, failed):
            row.refresh_from_db()
        assert old.content is None
        assert recent.content is not None
        assert failed.content is not None

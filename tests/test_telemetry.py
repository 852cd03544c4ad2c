"""What the app tells Prometheus, OpenTelemetry and the log, with those libraries themselves."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db import transaction
from django.test import RequestFactory
from django.utils import timezone
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from connect_mailer import metrics, telemetry
from connect_mailer.backend import ConnectMailerBackend, TransactionalBackend
from connect_mailer.conf import conf
from connect_mailer.feedback import events, settlement
from connect_mailer.logs import mask
from connect_mailer.models import OutgoingMessage, Unsubscribe
from connect_mailer.sending import pauses
from connect_mailer.sending.delivery import Drain
from connect_mailer.sending.limiter import Reservation
from connect_mailer.sending.transport import get_transport
from connect_mailer.testing.outbox import deliver_all
from connect_mailer.testing.ses import Fault, LocalSES
from tests.servers import make_environment

# What is counted is counted when it is committed.
committed = pytest.mark.django_db(transaction=True)


@pytest.fixture
def ses(settings: Any) -> Iterator[LocalSES]:
    with LocalSES() as server:
        settings.AWS_ACCESS_KEY_ID = settings.AWS_SECRET_ACCESS_KEY = "test"
        settings.CONNECT_MAILER = {
            "SES_REGION": "us-east-1",
            "SES_ENDPOINT_URL": server.url,
            "REDIS_URL": None,
        }
        yield server


def _queue(*to: str, backend: Any = ConnectMailerBackend, **options: Any) -> None:
    backend(**options).send_messages([EmailMessage("Hi", "", "site@example.com", to=list(to))])


# Metrics


@pytest.fixture
def count() -> Any:
    """By how much a metric has grown since the test began."""

    def get(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"connect_mailer_{name}", labels) or 0.0

    telemetry.has_metrics()
    seen: dict[str, float] = {
        f"{sample.name}{sample.labels}": sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
    }
    return lambda name, **labels: (
        get(name, **labels) - seen.get(f"connect_mailer_{name}{labels}", 0.0)
    )


@committed
def test_what_is_queued_and_sent_is_counted_by_stream(ses: LocalSES, count: Any) -> None:
    Unsubscribe.objects.create(address="gone@example.org", source="bounce")
    _queue("a@example.org", "b@example.org", "gone@example.org")
    _queue("gone@example.org")
    _queue("c@example.org", backend=TransactionalBackend)
    assert count("queued_messages_total", stream="default") == 1
    assert count("queued_messages_total", stream="transactional") == 1
    assert count("suppressed_recipients_total", stream="default") == 2
    assert count("sent_messages_total", stream="default") == 0
    deliver_all()
    assert count("sent_messages_total", stream="default") == 1
    assert count("sent_messages_total", stream="transactional") == 1
    assert count("written_recipients_total", stream="default") == 2
    assert count("ses_call_seconds_count", answer="Sent") == 2


@committed
def test_what_is_rolled_back_is_not_counted(count: Any) -> None:
    with transaction.atomic():
        _queue("a@example.org")
        transaction.set_rollback(True)
    assert count("queued_messages_total", stream="default") == 0


@committed
@pytest.mark.parametrize(
    ("fault", "metric", "answer"),
    [
        (Fault(lost="after"), "in_doubt_messages_total", "InDoubt"),
        (Fault(code="MessageRejected"), "failed_messages_total", "Rejected"),
        (Fault(code="TooManyRequestsException"), None, "Throttled"),
    ],
)
def test_what_goes_wrong_is_counted(
    ses: LocalSES, count: Any, fault: Fault, metric: str | None, answer: str
) -> None:
    ses.inject(fault)
    _queue("a@example.org")
    deliver_all()
    if metric:
        assert count(metric, stream="default") == 1
    assert count("ses_call_seconds_count", answer=answer) == 1
    assert count("sent_messages_total", stream="default") == 0


@committed
def test_waits_for_the_limiter_are_noted(ses: LocalSES, count: Any) -> None:
    class Limiter:
        def reserve(self, costs: Any, rate: float) -> Reservation:
            return Reservation(granted=0, wait_seconds=3, interval_seconds=0.1)

    _queue("a@example.org")
    Drain(
        transport=get_transport(), limiter=Limiter(), rate=10, using="default", one_pass=True
    ).run()
    assert count("limiter_wait_seconds_count") == 1
    assert count("limiter_wait_seconds_sum") == pytest.approx(3)


@committed
def test_what_comes_back_is_counted_once(count: Any) -> None:
    _queue("a@example.org")
    OutgoingMessage.objects.update(status="sent", ses_message_id="x", lane=None, turn=None)
    event = events.read(
        {
            "notificationType": "Bounce",
            "mail": {"messageId": "x", "destination": ["a@example.org"]},
            "bounce": {
                "bounceType": "Permanent",
                "bouncedRecipients": [{"emailAddress": "a@example.org"}],
            },
        }
    )
    assert event
    with transaction.atomic():
        settlement.settle(event, using="default")
        settlement.settle(event, using="default")
    assert count("bounced_recipients_total", stream="default") == 1


def _show() -> dict[tuple[str, ...], float]:
    response = metrics.show(RequestFactory().get("/metrics/"))
    assert response["Content-Type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.content.decode())
        for sample in family.samples
        if sample.name.startswith("connect_mailer_")
    }


@pytest.mark.django_db
def test_the_outbox_is_shown(django_assert_num_queries: Any) -> None:
    _queue("a@example.org")
    _queue("b@example.org", send_after=timezone.now() + timedelta(days=1))
    OutgoingMessage.objects.filter(send_after=None).update(
        turn=timezone.now() - timedelta(minutes=5)
    )
    pauses.pause("default", "to see", using="default")
    with django_assert_num_queries(5):
        shown = _show()
    assert shown["connect_mailer_waiting_messages", "now", "default"] == 1
    assert shown["connect_mailer_waiting_messages", "later", "default"] == 1
    assert shown["connect_mailer_waiting_messages", "now", "transactional"] == 0
    assert 300 <= shown["connect_mailer_oldest_waiting_seconds", "default"] < 900
    assert shown["connect_mailer_oldest_waiting_seconds", "transactional"] == 0
    assert shown["connect_mailer_paused", "default"] == 1
    assert shown["connect_mailer_paused", "transactional"] == 0
    # What has not happened yet is there, as 0.
    assert ("connect_mailer_failed_messages_total", "transactional") in shown


@pytest.mark.django_db
def test_a_registry_of_the_sites_own_takes_the_collector_without_a_query(
    django_assert_num_queries: Any,
) -> None:
    collector = metrics.OutboxCollector()
    with django_assert_num_queries(0):
        REGISTRY.register(collector)
    try:
        assert REGISTRY.get_sample_value("connect_mailer_paused", {"stream": "default"}) == 0
    finally:
        REGISTRY.unregister(collector)


def _run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=make_environment(TEST_DATABASE="sqlite", **environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_SEND = """
import sys
{first}
import django
from celery import current_app
current_app.conf.broker_url = "memory://"
from django.conf import settings
settings.CONNECT_MAILER = {{"TRANSPORT": "django.core.mail.backends.dummy.EmailBackend"}}
django.setup()
from django.core.mail import EmailMessage
from django.core.management import call_command
from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.models import OutgoingMessage
from connect_mailer.testing.outbox import deliver_all
call_command("migrate", verbosity=0)
ConnectMailerBackend().send_messages([EmailMessage("Hi", "", None, ["jo@example.org"])])
deliver_all()
{last}
"""


def test_processes_that_share_a_directory_are_shown_together(tmp_path: Path) -> None:
    show = """
from django.test import RequestFactory
from connect_mailer.metrics import show
print(show(RequestFactory().get("/")).content.decode())
"""
    _run(_SEND.format(first="", last=""), PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    shown = _run(_SEND.format(first="", last=show), PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert 'connect_mailer_queued_messages_total{stream="default"} 2.0' in shown
    assert 'connect_mailer_sent_messages_total{stream="default"} 2.0' in shown
    assert 'connect_mailer_paused{stream="default"} 0.0' in shown


def test_without_the_packages_mail_goes_all_the_same() -> None:
    missing = "sys.modules['prometheus_client'] = sys.modules['opentelemetry'] = None"
    show = "row = OutgoingMessage.objects.get(); print(row.status, set(row.tags))"
    assert _run(_SEND.format(first=missing, last=show)) == "sent set()\n"


# Spans


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    telemetry._import_tracing.cache_clear()
    yield exporter
    telemetry._import_tracing.cache_clear()
    provider.shutdown()


def _by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.django_db
def test_from_send_mail_to_ses_it_is_one_trace(ses: LocalSES, spans: InMemorySpanExporter) -> None:
    with trace.get_tracer("site").start_as_current_span("GET /sign-up/"):
        _queue("a@example.org")
    deliver_all()
    found = _by_name(spans)
    request, queue = found["GET /sign-up/"], found["queue outbox"]
    deliver, call = found["deliver outbox"], found["SESv2.SendEmail"]
    for parent, child in ((request, queue), (queue, deliver), (deliver, call)):
        assert child.parent
        assert child.parent.span_id == parent.context.span_id
        assert child.context.trace_id == request.context.trace_id
    assert [span.kind for span in (queue, deliver, call)] == [
        SpanKind.PRODUCER,
        SpanKind.CONSUMER,
        SpanKind.CLIENT,
    ]
    row = OutgoingMessage.objects.get()
    assert deliver.attributes
    assert deliver.attributes["messaging.message.id"] == str(row.uuid)
    assert deliver.attributes["connect_mailer.stream"] == "default"
    # So that what reads SES's events finds the trace as well.
    [mail] = ses.mailbox()
    assert f"{queue.context.trace_id:032x}" in mail.tags["traceparent"]
    assert "example.org" not in "".join(span.to_json() for span in found.values())


@pytest.mark.django_db
def test_messages_of_two_traces_in_one_drain_stay_apart(
    ses: LocalSES, spans: InMemorySpanExporter
) -> None:
    _queue("a@example.org")
    _queue("b@example.org")
    deliver_all()
    queued = [s for s in spans.get_finished_spans() if s.name == "queue outbox"]
    called = [s for s in spans.get_finished_spans() if s.name == "SESv2.SendEmail"]
    traces = {span.context.trace_id for span in called}
    assert len(traces) == 2
    assert traces == {span.context.trace_id for span in queued}


@pytest.mark.django_db
def test_a_span_says_what_failed_and_names_nobody(
    ses: LocalSES, spans: InMemorySpanExporter
) -> None:
    ses.inject(Fault(code="MessageRejected", message="Not verified: a@example.org"))
    _queue("a@example.org")
    deliver_all()
    for name in ("deliver outbox", "SESv2.SendEmail"):
        span = _by_name(spans)[name]
        assert span.status.status_code == StatusCode.ERROR
        assert span.attributes
        assert span.attributes["error.type"] == "Rejected"
        assert "example.org" not in span.to_json()


@pytest.mark.django_db
def test_where_spans_go_nowhere_there_are_none(ses: LocalSES) -> None:
    _queue("a@example.org")
    deliver_all()
    assert OutgoingMessage.objects.get().tags == {}
    assert set(ses.mailbox()[0].tags) == {"connect-mailer-id"}


@pytest.mark.django_db
def test_a_trace_that_the_caller_names_is_left_as_it_is(spans: InMemorySpanExporter) -> None:
    own = f"00-{'ab' * 16}-{'cd' * 8}-01"
    _queue("a@example.org", metadata={"traceparent": own})
    assert OutgoingMessage.objects.get().tags == {"traceparent": own}


# Logs


@pytest.mark.django_db
def test_a_record_says_which_message_and_names_nobody(
    ses: LocalSES, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "connect_mailer.sending.delivery")
    ses.inject(Fault(code="TooManyRequestsException", message="Too fast for a@example.org"))
    _queue("a@example.org")
    deliver_all()
    OutgoingMessage.objects.update(due_at=timezone.now() - timedelta(minutes=1))
    deliver_all()
    row = OutgoingMessage.objects.get()
    throttled, sent = (
        record for record in caplog.records if record.name == "connect_mailer.sending.delivery"
    )
    hashed = conf.hash_address("a@example.org")
    for record in (throttled, sent):
        fields = vars(record)
        assert fields["mail_id"] == row.pk
        assert fields["mail_stream"] == "default"
        assert fields["mail_recipients"] == [hashed]
        assert "example.org" not in str(fields)
    assert vars(throttled)["mail_error"] == "Throttled"
    assert hashed in throttled.getMessage()
    assert vars(sent)["mail_ses_id"] == row.ses_message_id


@pytest.mark.django_db
def test_what_is_given_up_is_in_the_log(
    ses: LocalSES, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _queue("a@example.org")
    OutgoingMessage.objects.update(attempts=conf.max_attempts, last_error="550 a@example.org")
    deliver_all()
    [record] = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert "Given up after" in record.getMessage()
    assert vars(record)["mail_id"] == OutgoingMessage.objects.get().pk
    assert "example.org" not in str(vars(record))


@pytest.mark.parametrize(
    "text",
    ["<jo@example.org>: 550", "of jo@example.org, kim@example.org: no", "'jo@example.org'"],
)
def test_addresses_in_the_words_of_others_are_hashed(text: str) -> None:
    assert "@" not in mask(text)
    assert conf.hash_address("jo@example.org") in mask(text)


def test_the_example_of_an_error_is_told() -> None:
    text = "'jo' is not an address such as name@example.com"
    assert mask(text) == text

"""What the app tells of its work: metrics for Prometheus, spans for OpenTelemetry.

Where a site lacks ``prometheus_client`` or ``opentelemetry-api``, nothing is imported and nothing
is done; the first who has something to tell imports what is there. ``metrics`` shows the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, Final

# The tag of a row that carries its trace to whoever sends it, and on to SES's events.
# Source: W3C Trace Context, section 3.2, "Traceparent Header". SES takes its characters.
TRACE_TAG: Final = "traceparent"

# Source: OpenTelemetry semantic conventions, "Messaging spans" and "AWS SDK".
_OUTBOX: Final = {
    "messaging.system": "connect_mailer",
    "messaging.destination.name": "outbox",
}
_SEND_EMAIL: Final = {
    "rpc.system": "aws-api",
    "rpc.service": "SESv2",
    "rpc.method": "SendEmail",
}


# Metrics


@cache
def _get_counters() -> Any:
    if find_spec("prometheus_client") is None:
        return None
    from connect_mailer import counters

    return counters


def prepare() -> None:
    """Import what there is, before anything that may not be late."""
    _get_counters()
    _import_tracing()


def has_metrics() -> bool:
    """Whether it is worth counting."""
    return _get_counters() is not None


def add(counts: Mapping[tuple[str, str], int]) -> None:
    """Raise counters, by name (``counters``) and stream."""
    if counters := _get_counters():
        for key, number in counts.items():
            counters.COUNTERS[key].inc(number)


def note_wait(seconds: float) -> None:
    """Note for how long the limiter lets a drain wait."""
    if counters := _get_counters():
        counters.LIMITER_WAIT.observe(seconds)


# Spans


def _get_tracing() -> Any:
    """The API, if a site has it and has said where spans go: it often comes with other packages."""
    tracing = _import_tracing()
    if tracing is None or isinstance(
        tracing.trace.get_tracer_provider(), tracing.trace.ProxyTracerProvider
    ):
        return None
    return tracing


@cache
def _import_tracing() -> Any:
    if find_spec("opentelemetry") is None:
        return None
    try:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:  # other packages of that namespace, without the API
        return None
    return SimpleNamespace(
        trace=trace,
        tracer=trace.get_tracer("connect_mailer"),
        propagator=TraceContextTextMapPropagator(),
        Context=Context,
    )


def _span(name: str, kind: str, **options: Any) -> AbstractContextManager[None]:
    tracing = _get_tracing()
    return nullcontext() if tracing is None else _trace(tracing, name, kind, **options)


@contextmanager
def _trace(tracing: Any, name: str, kind: str, **options: Any) -> Iterator[None]:
    with tracing.tracer.start_as_current_span(
        name,
        kind=tracing.trace.SpanKind[kind],
        record_exception=False,
        set_status_on_exception=False,
        **options,
    ) as span:
        try:
            yield
        except BaseException as error:
            # Not its text: SES's words may name addresses.
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(tracing.trace.StatusCode.ERROR)
            raise


def queueing(number: int) -> AbstractContextManager[None]:
    """A span around the queueing of ``number`` messages."""
    return _span(
        "queue outbox",
        "PRODUCER",
        attributes={
            **_OUTBOX,
            "messaging.operation.name": "queue",
            "messaging.operation.type": "send",
            "messaging.batch.message_count": number,
        },
    )


def get_trace_tags() -> dict[str, str]:
    """What a row keeps, so that its delivery is a part of the trace that is going on."""
    tracing = _get_tracing()
    if tracing is None:
        return {}
    carrier: dict[str, str] = {}
    tracing.propagator.inject(carrier)
    return {TRACE_TAG: carrier[TRACE_TAG]} if TRACE_TAG in carrier else {}


def delivering(
    tags: Mapping[str, str], *, waited_seconds: float, uuid: str, stream: str, attempt: int
) -> AbstractContextManager[None]:
    """A span around the delivery of one row, in the trace of who queued it.

    ``waited_seconds``: since it was claimed, which the span covers as well.
    """
    tracing = _get_tracing()
    if tracing is None:
        return nullcontext()
    return _span(
        "deliver outbox",
        "CONSUMER",
        # Of nothing else that goes on here: one drain is a part of many traces.
        context=tracing.propagator.extract(tags, tracing.Context()),
        start_time=time.time_ns() - int(waited_seconds * 1e9),
        attributes={
            **_OUTBOX,
            "messaging.operation.name": "deliver",
            "messaging.operation.type": "process",
            "messaging.message.id": uuid,
            "connect_mailer.stream": stream,
            "connect_mailer.attempt": attempt,
        },
    )


# Both


def calling_ses() -> AbstractContextManager[None]:
    """A span around one call of ``SendEmail``, which is timed as well."""
    if _get_tracing() is None and _get_counters() is None:
        return nullcontext()
    return _call()


@contextmanager
def _call() -> Iterator[None]:
    answer, started = "Sent", time.perf_counter()
    try:
        with _span("SESv2.SendEmail", "CLIENT", attributes=_SEND_EMAIL):
            yield
    except BaseException as error:
        answer = type(error).__name__
        raise
    finally:
        if counters := _get_counters():
            counters.SES_CALL.labels(answer).observe(time.perf_counter() - started)

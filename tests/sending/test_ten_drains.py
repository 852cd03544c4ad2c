"""Drains in processes of their own, on the database of this test run; ten of them at once."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from connect_mailer.testing.ses import LocalSES
from tests import servers
from tests.conftest import database
from tests.site.running import (
    MySQLSite,
    Site,
    SQLiteSite,
    count_arrivals,
    everybody,
    make_sqlite,
    open_site,
    wait_for,
)

NUMBER = 500


@pytest.fixture
def ses() -> Iterator[LocalSES]:
    with LocalSES(rate=2000) as server:
        yield server


@pytest.fixture
def site(ses: LocalSES, tmp_path: Path) -> Iterator[Site]:
    # Few of them take the whole: each drain holds five rows for each of its threads.
    options = {"CONCURRENCY": 2, "RATE": 1000, "DRAIN_SECONDS": 100, "LEASE_SECONDS": 120}
    if database == "sqlite":
        server, kind = make_sqlite(timeout=60), SQLiteSite
        env = {"SITE_DATABASE": str(tmp_path / "site.sqlite3")}
    else:
        is_mysql = database == "mysql"
        server, kind = (servers.mysql(), MySQLSite) if is_mysql else (servers.postgres(), Site)
        env = {}
    with open_site(
        ses.url, kind=kind, server=server, env=env, broker_url="memory://", **options
    ) as made:
        yield made


def test_ten_drains_send_each_message_once(site: Site, ses: LocalSES) -> None:
    site.run("queue", str(NUMBER))

    said = site.run("drain", "10")

    assert int(said.splitlines()[-1]) == NUMBER
    assert site.count() == {"sent": NUMBER}
    assert count_arrivals(ses) == dict.fromkeys(everybody(NUMBER), 1)
    # That others are in the way is no outage: nobody waits a second for it, or reads of it.
    assert "out of reach" not in said


def test_a_drain_is_killed(site: Site, ses: LocalSES) -> None:
    number = 400
    ses.configure(latency_seconds=0.2)  # there is much left when it dies, however busy all are
    options = json.loads(site.env["SITE_CONNECT_MAILER"])
    site.env["SITE_CONNECT_MAILER"] = json.dumps({**options, "LEASE_SECONDS": 5})
    site.run("queue", str(number))
    drain = site.start("tests.site", "drain", SITE_KEY_ID="killed")
    wait_for(lambda: len(ses.mailbox()) >= 20, tell=drain.read)
    # These are in flight when it dies, however fast it is.
    ses.configure(latency_seconds=30)
    in_flight = len(ses.mailbox()) + options["CONCURRENCY"]
    wait_for(lambda: len(ses.mailbox()) >= in_flight, tell=drain.read)
    drain.send_to_group(signal.SIGKILL)
    drain.wait()
    settled = {
        address
        for (address,) in site.ask(
            "SELECT address FROM connect_mailer_outgoingrecipient WHERE status = 'sent'"
        )
    }
    assert settled

    ses.configure(latency_seconds=0)
    # Each ends when nothing is due: the last one is there when those leases have ended.
    wait_for(lambda: bool(site.run("drain")) and site.count() == {"sent": number})

    accepted = {
        address
        for mail in ses.mailbox()
        if mail.access_key_id == "killed"
        for address in mail.recipients
    }
    arrivals = count_arrivals(ses)
    assert set(arrivals) == everybody(number)
    assert max(arrivals.values()) == 2
    twice = {address for address, times in arrivals.items() if times > 1}
    # What SES had taken and nobody had written down, and no other.
    assert twice <= accepted - settled


def test_purge_runs_beside_drains(site: Site, ses: LocalSES) -> None:
    purge = site.start("tests.site", "purge")
    wait_for(lambda: "0" in purge.read().split(), tell=purge.read)
    site.run("queue", str(NUMBER))

    said = site.run("drain", "3")

    wait_for(lambda: site.count() == {}, tell=purge.read)
    for table in ("content", "recipient"):
        query = f"SELECT 1 FROM connect_mailer_outgoing{table}"
        wait_for(lambda: not site.ask(query), tell=purge.read)  # noqa: B023
    assert purge.process.poll() is None, purge.read()
    forgotten = [int(number) for number in purge.read().split()]
    assert sum(forgotten) == NUMBER
    assert len([number for number in forgotten if number]) > 2  # while others were sent
    assert int(said.splitlines()[-1]) == NUMBER
    assert count_arrivals(ses) == dict.fromkeys(everybody(NUMBER), 1)
    assert "out of reach" not in said

"""The limiter's Redis or database stops, stalls, forgets, is followed by one with a wrong clock."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from connect_mailer.testing.ses import LocalSES
from tests import servers
from tests.faults.conftest import APP, CUT, Valkey
from tests.site.running import Process, count_arrivals, everybody, open_site, wait_for

pytestmark = pytest.mark.usefixtures("valkey")

KEY = "connect_mailer:limiter:{default}"
IS_OUT = "The limiter is out of reach"
IS_BACK = "The limiter is back"

RATE = 40
DRAINS = 2
CALLS = 5


def wait_for_more(number: int, ses: LocalSES, worker: Process) -> None:
    enough = len(ses.mailbox()) + number
    wait_for(lambda: len(ses.mailbox()) >= enough, tell=worker.read)


def check_that_nothing_is_sent(ses: LocalSES) -> None:
    before = len(ses.mailbox())
    time.sleep(2)
    assert len(ses.mailbox()) - before <= DRAINS * CALLS  # what was reserved


def test_redis_stops_stalls_and_forgets(own_valkey: Valkey) -> None:
    number = 300
    with (
        LocalSES(rate=RATE, burst_seconds=0.3, latency_seconds=0.01) as ses,
        open_site(
            ses.url,
            redis_url=own_valkey.url,
            env={"SITE_BROKER_URL": f"{servers.valkey_url()}/0"},
            MAX_DRAINS=DRAINS,
            CONCURRENCY=CALLS,
        ) as site,
    ):
        site.run("queue", str(number))
        worker = site.start_worker(app=APP)
        wait_for_more(20, ses, worker)

        own_valkey.stop()
        wait_for(lambda: IS_OUT in worker.read(), tell=worker.read)
        check_that_nothing_is_sent(ses)
        own_valkey.start()
        wait_for_more(20, ses, worker)

        own_valkey.ask("FLUSHALL")
        wait_for_more(20, ses, worker)

        # Slow, as under a load of others: each slot is taken long after it was asked for.
        for _ in range(4):
            own_valkey.ask("CLIENT", "PAUSE", 300, "ALL")
            wait_for_more(10, ses, worker)

        outages = worker.read().count(IS_OUT)
        own_valkey.send_signal(signal.SIGSTOP)
        wait_for(lambda: worker.read().count(IS_OUT) > outages, tell=worker.read)
        own_valkey.send_signal(signal.SIGCONT)
        wait_for(lambda: site.count() == {"sent": number}, tell=worker.read)
        output = worker.read()

    assert count_arrivals(ses) == dict.fromkeys(everybody(number), 1)
    assert ses.stats().throttled == 0
    # Twice, in each of the processes that send; not for each row or try.
    assert 2 <= output.count(IS_OUT) <= 2 * DRAINS
    assert 1 <= output.count(IS_BACK) <= 2 * DRAINS


# Nothing is due but what is released: a drain that waits for more asks the limiter at that moment.
HOLD = "UPDATE connect_mailer_outgoingmessage SET lane = NULL, due_at = now() + interval '1 hour'"
RELEASE = """
    UPDATE connect_mailer_outgoingmessage SET lane = rank, turn = now(), due_at = now()
    WHERE id = (SELECT min(id) FROM connect_mailer_outgoingmessage WHERE status = 'queued')
"""


def test_a_replica_takes_over_whose_clock_is_wrong(own_valkey: Valkey, tmp_path: Path) -> None:
    """Each does so while the slot lasts that fifty recipients got from the one before it."""
    rate, recipients = 20, 50
    # How wrong each clock is, and whether its copy is one of before that slot.
    replicas = [(0, True), (3600, False), (-3600, True)]
    number = len(replicas) + 1
    with (
        LocalSES(rate=rate, burst_seconds=0.3, latency_seconds=0.01) as ses,
        open_site(
            ses.url,
            redis_url=own_valkey.url,
            env={"SITE_BROKER_URL": f"{servers.valkey_url()}/0"},
        ) as site,
    ):
        site.run("queue", str(number), str(recipients))
        site.ask(HOLD)
        # One process, which knows what it was told last.
        worker = site.start_worker("-c", "1", app=APP)
        own_valkey.ask("HSET", KEY, "arrival_us", 1)
        primary = own_valkey
        for place, (seconds, is_old) in enumerate(replicas):
            replica = Valkey(tmp_path / str(place), clock_off_seconds=seconds)
            assert abs(replica.ask("TIME")[0] - time.time() - seconds) < 60
            replica.follow(primary)
            wait_for(lambda: read_bucket(replica) == read_bucket(primary))  # noqa: B023
            if is_old:
                replica.ask("REPLICAOF", "NO", "ONE")
            site.ask(RELEASE)
            wait_for(lambda: len(ses.mailbox()) == place + 1, tell=worker.read)  # noqa: B023
            if not is_old:
                wait_for(lambda: read_bucket(replica) == read_bucket(primary))  # noqa: B023
            replica.take_over(primary)
            primary = replica
        site.ask(RELEASE)
        wait_for(lambda: site.count() == {"sent": number}, tell=worker.read)
        output = worker.read()
        primary.stop()

    assert len(ses.mailbox()) == number
    assert ses.stats().throttled == 0
    assert output.count(IS_OUT) <= len(replicas)


def read_bucket(server: Valkey) -> object:
    return server.ask("HGETALL", KEY)


def test_its_database_goes_away_stalls_and_forgets() -> None:
    number = 300
    with (
        LocalSES(rate=RATE, burst_seconds=0.3, latency_seconds=0.01) as ses,
        open_site(
            ses.url,
            broker_url=f"{servers.valkey_url()}/0",
            MAX_DRAINS=DRAINS,
            CONCURRENCY=CALLS,
        ) as site,
    ):
        site.run("queue", str(number))
        worker = site.start_worker(app=APP)
        wait_for_more(20, ses, worker)

        # In the middle of a reservation.
        site.ask(CUT.format(when="TRUE", times=2, table="limiterstate"))
        wait_for(lambda: IS_OUT in worker.read(), tell=worker.read)
        wait_for_more(20, ses, worker)

        # It ends all connections and takes none, for longer than one try.
        site.shut_out()
        wait_for(lambda: "database is out of reach" in worker.read(), tell=worker.read)
        check_that_nothing_is_sent(ses)
        site.let_in()
        wait_for_more(20, ses, worker)

        site.ask("DELETE FROM connect_mailer_limiterstate")
        wait_for_more(20, ses, worker)

        wait_for(lambda: site.count() == {"sent": number}, tell=worker.read)
        output = worker.read()

    assert count_arrivals(ses) == dict.fromkeys(everybody(number), 1)
    assert ses.stats().throttled == 0
    # Each outage once, in each of the processes that send; not for each row or try.
    assert 1 <= output.count(IS_OUT) <= 3 * DRAINS
    assert 1 <= output.count(IS_BACK) <= 3 * DRAINS
    assert 1 <= output.count("database is out of reach") <= 3 * DRAINS

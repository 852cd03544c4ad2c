"""Workers that are killed, stopped, suspended; clocks that are wrong."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from connect_mailer.testing.ses import Fault, LocalSES
from tests.faults.conftest import APP
from tests.site.running import count_arrivals, count_last_arrivals, everybody, open_site, wait_for

pytestmark = pytest.mark.usefixtures("valkey")


@pytest.mark.parametrize(
    "point",
    ["before claim", "after claim", "while SES answers", "before settle", "after settle"],
)
def test_a_worker_is_killed(ses: LocalSES, tmp_path: Path, point: str) -> None:
    ses.configure(latency_seconds=2 if point == "while SES answers" else 0.01)
    with open_site(ses.url, LEASE_SECONDS=5, CONCURRENCY=10, MAX_DRAINS=1) as site:
        site.run("queue", "100")
        env = {} if point == "while SES answers" else {"FAULT_POINT": point}
        mark = tmp_path / "mark"
        worker = site.start_worker(app=APP, **env, FAULT_SIGNAL="SIGKILL", FAULT_MARK=str(mark))
        if point == "while SES answers":
            wait_for(lambda: len(ses.mailbox()) >= 5, tell=worker.read)
            worker.send_to_group(signal.SIGKILL)
        worker.wait()
        accepted = count_last_arrivals(ses)
        settled = {
            address
            for (address,) in site.ask(
                "SELECT address FROM connect_mailer_outgoingrecipient WHERE status = 'sent'"
            )
        }
        assert settled <= set(accepted)
        assert bool(settled) == (point == "after settle")
        assert bool(accepted) == (point not in ("before claim", "after claim"))

        ses.configure(latency_seconds=0.01)
        # Its own sweeps come too late: it has to know when those leases end.
        longer = json.dumps({"LEASE_SECONDS": 1200, "CONCURRENCY": 10, "MAX_DRAINS": 1})
        again = site.start_worker(app=APP, FAULT_SWEEP_SECONDS="600", SITE_CONNECT_MAILER=longer)
        wait_for(lambda: site.count() == {"sent": 100}, tell=lambda: again.read())

    arrivals = count_arrivals(ses)
    assert set(arrivals) == everybody(100)
    twice = {address for address, number in arrivals.items() if number > 1}
    assert max(arrivals.values()) <= 2
    # Those that SES had taken and nobody had written down, and no other.
    assert twice <= set(accepted) - settled


def test_one_process_of_a_worker_is_killed(ses: LocalSES, tmp_path: Path) -> None:
    """Where memory is short, the kernel takes that one; the rest of the worker goes on."""
    with open_site(ses.url, LEASE_SECONDS=5, CONCURRENCY=10, MAX_DRAINS=1) as site:
        site.run("queue", "100")
        env = {"FAULT_POINT": "before settle", "FAULT_SIGNAL": "SIGKILL", "FAULT_ALONE": "1"}
        worker = site.start_worker(app=APP, **env, FAULT_MARK=str(tmp_path / "mark"))
        wait_for(lambda: "WorkerLostError" in worker.read(), tell=worker.read)
        # Nothing is sent until the drain's lease has ended.
        accepted = set(count_last_arrivals(ses))
        wait_for(lambda: site.count() == {"sent": 100}, tell=worker.read)
        assert worker.process.poll() is None

    arrivals = count_arrivals(ses)
    assert set(arrivals) == everybody(100)
    assert max(arrivals.values()) == 2
    assert {address for address, number in arrivals.items() if number > 1} <= accepted


def test_what_a_killed_worker_had_is_held(ses: LocalSES) -> None:
    ses.configure(latency_seconds=2)
    options = {"IN_DOUBT": "hold", "LEASE_SECONDS": 5, "CONCURRENCY": 10, "MAX_DRAINS": 1}
    with open_site(ses.url, **options) as site:
        site.run("queue", "100")
        worker = site.start_worker(app=APP)
        wait_for(lambda: len(ses.mailbox()) >= 5, tell=worker.read)
        worker.send_to_group(signal.SIGKILL)
        worker.wait()
        accepted = set(count_last_arrivals(ses))

        ses.configure(latency_seconds=0.01)
        again = site.start_worker(app=APP)
        wait_for(lambda: set(site.count()) == {"sent", "failed"}, tell=lambda: again.read())
        ended = site.ask(ENDED)

    sent = {address for address, status, _ in ended if status == "sent"}
    held = {address: error for address, status, error in ended if status == "failed"}
    assert sent | set(held) == everybody(100)
    assert all(error.startswith("In doubt: SES may have taken it.") for error in held.values())
    # What it had claimed and not begun is held as well: nobody knows.
    assert accepted < set(held)
    assert count_arrivals(ses) == dict.fromkeys(sent | accepted, 1)


ENDED = """
    SELECT address, message.status, last_error
    FROM connect_mailer_outgoingmessage AS message
    JOIN connect_mailer_outgoingrecipient AS recipient ON recipient.message_id = message.id
"""


def test_heroku_stops_a_dyno(ses: LocalSES) -> None:
    """SIGTERM to each process, in the middle of slow answers; SIGKILL 30 s later."""
    for seconds in (8, 6, 4, 2):
        ses.inject(Fault(delay_seconds=seconds, times=8))
    with open_site(ses.url, LEASE_SECONDS=60, MAX_DRAINS=2) as site:
        site.run("queue", "400")
        worker = site.start_worker(app=APP)
        wait_for(lambda: len(ses.mailbox()) >= 40, tell=worker.read)

        worker.send_to_group(signal.SIGTERM)
        worker.wait(30)  # and whoever is there after that gets killed

        left = site.count()
        assert left.get("sending", 0) == 0
        assert left["sent"] == len(ses.mailbox()) < 400

        again = site.start_worker(app=APP)
        wait_for(lambda: site.count() == {"sent": 400}, tell=lambda: again.read())
    assert set(count_arrivals(ses)) == everybody(400)
    assert set(count_arrivals(ses).values()) == {1}


@pytest.mark.parametrize("point", ["after claim", "before settle"])
def test_a_worker_is_suspended_past_its_lease(ses: LocalSES, tmp_path: Path, point: str) -> None:
    with open_site(ses.url, LEASE_SECONDS=5, CONCURRENCY=10, MAX_DRAINS=1) as site:
        site.run("queue", "50")
        mark = str(tmp_path / "mark")
        env = {"FAULT_POINT": point, "FAULT_SIGNAL": "SIGSTOP", "FAULT_MARK": mark}
        suspended = site.start_worker(app=APP, **env)
        wait_for(suspended.is_suspended, tell=suspended.read)
        taken = set(count_last_arrivals(ses))
        assert bool(taken) == (point == "before settle")

        other = site.start_worker(app=APP)
        wait_for(lambda: site.count() == {"sent": 50}, tell=other.read)
        arrivals = count_arrivals(ses)
        other.send_to_group(signal.SIGTERM)
        other.wait(60)
        rows = site.ask("SELECT * FROM connect_mailer_outgoingmessage ORDER BY id")

        suspended.send_to_group(signal.SIGCONT)
        # It is at work again: it takes what is queued now.
        site.run("queue", "1")
        wait_for(lambda: site.count() == {"sent": 51}, tell=suspended.read)

        first = rows[-1][0]
        assert rows == site.ask(
            f"SELECT * FROM connect_mailer_outgoingmessage WHERE id <= {first} ORDER BY id"
        )
    assert set(arrivals) == everybody(50)
    assert {address for address, number in arrivals.items() if number > 1} == taken
    assert len(ses.mailbox()) == sum(arrivals.values()) + 1

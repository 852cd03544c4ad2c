"""Machines whose clocks differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connect_mailer.testing.ses import LocalSES
from tests.faults.conftest import APP, make_wrong_clock
from tests.site.running import Site, count_arrivals, everybody, open_site, wait_for

NO_REDIS = "memory://"
RATE = 200


@pytest.fixture
def ses() -> Iterator[LocalSES]:
    with LocalSES(rate=2000, latency_seconds=0.01) as server:
        yield server


@pytest.fixture(params=["redis", "database"])
def site(request: pytest.FixtureRequest, ses: LocalSES) -> Iterator[Site]:
    """A site whose limiter is there."""
    # However busy the machine is, they take the whole.
    options: dict[str, Any] = {"LEASE_SECONDS": 60, "RATE": RATE, "DRAIN_SECONDS": 100}
    if request.param == "redis":
        request.getfixturevalue("valkey")
        made = open_site(ses.url, **options)
    else:
        made = open_site(ses.url, broker_url=NO_REDIS, **options)
    with made as opened:
        yield opened


def test_ten_drains_on_two_machines_whose_clocks_differ_by_five_minutes(
    site: Site, ses: LocalSES
) -> None:
    site.run("queue", "1000")
    drains = [
        site.start("tests.faults", "drain", CLOCK_OFF_SECONDS=str(seconds))
        for seconds in (300, 0) * 5
    ]
    outputs = [drain.wait() for drain in drains]

    assert [drain.process.returncode for drain in drains] == [0] * 10, outputs
    # The last line, after what was logged.
    assert sum(int(output.splitlines()[-1]) for output in outputs) == 1000
    assert site.count() == {"sent": 1000}
    assert count_arrivals(ses) == dict.fromkeys(everybody(1000), 1)
    # Never faster than that, all of them together; however busy the machine is.
    received = sorted(mail.received_at for mail in ses.mailbox())
    assert (received[-1] - received[0]).total_seconds() > 0.9 * 1000 / RATE


@pytest.mark.usefixtures("valkey")
def test_two_workers_whose_clocks_differ_by_five_minutes(ses: LocalSES, tmp_path: Path) -> None:
    """For one of them, what the other one asks for is five minutes away, or was due long ago."""
    with open_site(ses.url, LEASE_SECONDS=5, CONCURRENCY=5, MAX_DRAINS=2) as site:
        site.run("queue", "200")
        # Whoever is the first dies, so that something is asked for at the end of its leases.
        env = {"FAULT_POINT": "after claim", "FAULT_SIGNAL": "SIGKILL", "FAULT_ALONE": "1"}
        mark = tmp_path / "mark"
        workers = [
            site.start_worker(app=APP, **env, FAULT_MARK=str(mark), **clock)
            for clock in (make_wrong_clock(300), {})
        ]
        wait_for(lambda: site.count() == {"sent": 200}, tell=lambda: [w.read() for w in workers])
        assert mark.exists()
        wait_for(lambda: any("Substantial drift" in worker.read() for worker in workers))
    assert count_arrivals(ses) == dict.fromkeys(everybody(200), 1)

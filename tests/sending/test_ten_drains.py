"""Ten drains at once, each with a connection of its own, on the database of this test run."""

from __future__ import annotations

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

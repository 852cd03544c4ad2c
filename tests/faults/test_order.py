"""Who leaves first where fifty thousand wait."""

from __future__ import annotations

import signal

import pytest

from connect_mailer.testing.ses import LocalSES
from tests.faults.conftest import APP
from tests.site.running import Site, everybody, open_site, wait_for

pytestmark = pytest.mark.usefixtures("valkey")

DIGESTS = 50_000

# Copies of the one row that is there, as of one call of `send_messages()`.
COPY = """
    CREATE TEMP TABLE copies AS
        SELECT n, gen_random_uuid() AS body, nextval('connect_mailer_outgoingmessage_id_seq') AS id
        FROM generate_series(1, {number} - 1) AS n;
    INSERT INTO connect_mailer_outgoingcontent SELECT copy.* FROM copies,
        connect_mailer_outgoingcontent AS row,
        jsonb_populate_record(row, jsonb_build_object('id', body)) AS copy;
    INSERT INTO connect_mailer_outgoingmessage SELECT copy.* FROM copies,
        connect_mailer_outgoingmessage AS row,
        jsonb_populate_record(row, jsonb_build_object('id', copies.id, 'content_id', body,
            'uuid', gen_random_uuid(), 'turn', turn + n * interval '1 second')) AS copy;
    INSERT INTO connect_mailer_outgoingrecipient SELECT copy.* FROM copies,
        connect_mailer_outgoingrecipient AS row,
        jsonb_populate_record(row, jsonb_build_object('message_id', copies.id, 'id',
            nextval('connect_mailer_outgoingrecipient_id_seq'))) AS copy;
    UPDATE connect_mailer_outgoingrecipient
        SET address = 'digest' || message_id, envelope = 'digest' || message_id || '@example.org';
    ANALYZE;
"""

# What was claimed by then.
CLAIMED = """
    SELECT 'digest' || id || '@example.org' FROM connect_mailer_outgoingmessage
    WHERE status <> 'queued' AND stream = 'default'
"""


def test_behind_fifty_thousand_digests() -> None:
    """A password reset leaves first, and ten of somebody else's don't wait for all of them."""
    with (
        LocalSES(rate=100, latency_seconds=0.01) as ses,
        # One call after the other: then they arrive in the order in which they leave.
        open_site(ses.url, MAX_DRAINS=1, CONCURRENCY=1) as site,
    ):
        site.run("queue", "1")
        site.ask(COPY.format(number=DIGESTS))
        assert site.count() == {"queued": DIGESTS}
        worker = site.start_worker(app=APP)
        wait_for(lambda: len(ses.mailbox()) >= 20, tell=worker.read)

        # Nothing is claimed while this is committed.
        worker.send_to_group(signal.SIGSTOP)
        site.run("reset")
        claimed = find_claimed(site)
        worker.send_to_group(signal.SIGCONT)
        wait_for(lambda: "reset@example.org" in find_arrivals(ses), tell=worker.read)

        site.run("send", "10")
        wait_for(lambda: everybody(10) <= set(find_arrivals(ses)), tell=worker.read)

        arrivals = find_arrivals(ses)
        assert set(arrivals[: arrivals.index("reset@example.org")]) <= claimed
        # Each second brings one of either, and far more than one is sent in that.
        assert len(arrivals) < DIGESTS / 10
        assert site.count()["queued"] > DIGESTS * 9 / 10


def find_arrivals(ses: LocalSES) -> list[str]:
    """Who was written to, the first one first."""
    return [address for mail in ses.mailbox() for address in mail.recipients]


def find_claimed(site: Site) -> set[str]:
    return {address for (address,) in site.ask(CLAIMED)}

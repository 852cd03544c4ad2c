"""What SES answers, or doesn't: the account, storms, lost answers, bad rows."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import cycle
from typing import Any

import pytest

from connect_mailer.testing.feedback import FeedbackPublisher
from connect_mailer.testing.ses import Fault, LocalSES, Mail
from connect_mailer.testing.sns import SNSSigner
from tests.faults.conftest import APP
from tests.site.running import count_arrivals, everybody, open_site, wait_for

pytestmark = pytest.mark.usefixtures("valkey")

ACCOUNT = {
    "TooManyRequestsException": "Daily message quota exceeded.",
    "SendingPausedException": "Sending is paused.",
    "AccountSuspendedException": "The account is suspended.",
    "ExpiredTokenException": "The token has expired.",
    "InvalidSignatureException": "The signature is wrong.",
    "UnrecognizedClientException": "The token is wrong.",
}

PAUSED = "SELECT note FROM connect_mailer_lease WHERE name = 'pause' AND expires_at > now()"
# And no call is on its way any more.
QUIET = (
    f"{PAUSED} AND NOT EXISTS (SELECT FROM connect_mailer_outgoingmessage WHERE status = 'sending')"
)


def test_a_problem_of_the_account_stops_all_and_fails_nothing(ses: LocalSES) -> None:
    drains, calls = 2, 5
    with open_site(
        ses.url, PAUSE_SECONDS=2, CONCURRENCY=calls, MAX_DRAINS=drains, MAX_ATTEMPTS=1
    ) as site:
        worker = site.start_worker(app=APP)

        def is_quiet_for(reason: str) -> bool:
            return any(reason in note for (note,) in site.ask(QUIET))

        for number, (code, message) in enumerate(ACCOUNT.items(), 1):
            refused = ses.stats().refused
            ses.inject(Fault(code=code, message=message, times=None))
            site.run("queue", "100")
            wait_for(lambda m=message: is_quiet_for(m), tell=worker.read)  # type: ignore[misc]
            ses.clear_faults()
            wait_for(lambda n=number: site.count() == {"sent": 100 * n}, tell=worker.read)  # type: ignore[misc]
            # What was in flight, once for each try that there was; not the backlog.
            assert 0 < ses.stats().refused - refused < 100
        output = worker.read()
    assert 0 < output.count("Nothing can be sent through this account") <= drains * len(ACCOUNT)
    assert set(count_arrivals(ses).values()) == {len(ACCOUNT)}


def test_one_refusal_stops_every_worker(ses: LocalSES) -> None:
    drains, calls = 2, 5
    # Calls in flight are the bottleneck, however busy the machine is: so there are two drains.
    ses.configure(latency_seconds=1)
    with open_site(ses.url, PAUSE_SECONDS=5, CONCURRENCY=calls, MAX_DRAINS=drains) as site:
        site.run("queue", "300")
        workers = [site.start_worker("-c", "1", app=APP) for _ in range(2)]
        at_work = (
            "SELECT 1 FROM connect_mailer_lease WHERE name LIKE 'drain %' AND expires_at > now()"
        )
        wait_for(lambda: len(site.ask(at_work)) == drains, tell=workers[0].read)
        ses.inject(Fault(code="SendingPausedException"))
        wait_for(lambda: bool(site.ask(PAUSED)), tell=workers[0].read)
        [(since, until)] = site.ask(
            "SELECT since, expires_at FROM connect_mailer_lease WHERE name = 'pause'"
        )
        wait_for(lambda: datetime.now(UTC) > until)
        ses.configure(latency_seconds=0.01)
        wait_for(lambda: site.count() == {"sent": 300}, tell=workers[0].read)
    assert set(count_arrivals(ses).values()) == {1}
    assert ses.stats().refused == 1
    meanwhile = [mail for mail in ses.mailbox() if since < mail.received_at < until]
    # A second's worth of the other drain, which has that long to know; not of five.
    assert len(meanwhile) <= 2 * calls


def test_storms(ses: LocalSES) -> None:
    ses.inject(
        Fault(code="TooManyRequestsException", message="Maximum sending rate exceeded.", times=40)
    )
    ses.inject(Fault(code="InternalFailure", status=500, times=20))
    ses.inject(Fault(status=503, times=20))
    ses.inject(Fault(code="AccessDeniedException", times=20))
    with open_site(ses.url, RETRY_DELAY=1) as site:
        site.run("queue", "100")
        worker = site.start_worker(app=APP)
        wait_for(lambda: site.count() == {"sent": 100}, tell=worker.read)
    assert set(count_arrivals(ses)) == everybody(100)
    assert set(count_arrivals(ses).values()) == {1}


def test_lost_answers_and_a_bad_message_in_each_batch(ses: LocalSES) -> None:
    lost = {
        "u1@example.org": {"lost": "after"},
        "u2@example.org": {"lost": "after", "reset": True},
        "u3@example.org": {"lost": "cut"},
        # Longer than a call waits: accepted, and the answer comes too late.
        "u4@example.org": {"delay_seconds": 30.0},
    }
    for recipient, fault in lost.items():
        ses.inject(Fault(recipient=recipient, **fault))
    ses.inject(Fault(recipient="u5@example.org", lost="before"))
    bad = {f"u{n}@example.org" for n in range(6, 60, 10)}
    for recipient in bad:
        ses.inject(Fault(code="MessageRejected", message="No.", recipient=recipient, times=None))
    with open_site(ses.url, LEASE_SECONDS=15, CONCURRENCY=10) as site:
        site.run("queue", "60")
        worker = site.start_worker(app=APP)
        wait_for(
            lambda: site.count() == {"sent": 60 - len(bad), "failed": len(bad)}, tell=worker.read
        )
        errors = site.ask(
            "SELECT DISTINCT last_error FROM connect_mailer_outgoingmessage WHERE status = 'failed'"
        )
    assert errors == [("MessageRejected: No.",)]
    arrivals = count_arrivals(ses)
    assert set(arrivals) == everybody(60) - bad
    assert {address for address, number in arrivals.items() if number == 2} == set(lost)
    assert max(arrivals.values()) == 2


@pytest.fixture
def black_hole() -> Iterator[str]:
    """URL of a server whose queue of connections is full: connecting to it times out."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for client in waiting:
            client.close()


def test_ses_can_not_be_connected_to(ses: LocalSES, black_hole: str) -> None:
    with open_site(ses.url, RETRY_DELAY=1) as site:
        site.run("queue", "10")
        worker = site.start_worker(app=APP, SITE_SES_URL=black_hole)
        tried = (
            "SELECT 1 FROM connect_mailer_outgoingmessage "
            "WHERE status = 'queued' AND last_error LIKE 'ConnectTimeoutError%'"
        )
        wait_for(lambda: bool(site.ask(tried)), tell=worker.read)
        worker.send_to_group(signal.SIGTERM)
        worker.wait(60)

        again = site.start_worker(app=APP)
        wait_for(lambda: site.count() == {"sent": 10}, tell=again.read)
    assert set(count_arrivals(ses).values()) == {1}


# A body that the server can't read, as after a damage of its disk.
# What is read of a page is either wrong, or can't be had from the disk.
DAMAGE = """
    CREATE FUNCTION unreadable() RETURNS bytea LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'missing chunk number 0' USING ERRCODE = '{error}'; END $$;
    ALTER TABLE connect_mailer_outgoingcontent RENAME TO damaged;
    CREATE VIEW connect_mailer_outgoingcontent AS SELECT id, CASE WHEN id = (
        SELECT content_id FROM connect_mailer_outgoingmessage ORDER BY id LIMIT 1
    ) THEN unreadable() ELSE mime END AS mime FROM damaged;
"""


@pytest.mark.parametrize("error", ["data_corrupted", "io_error"])
def test_rows_that_can_not_be_processed(ses: LocalSES, error: str) -> None:
    with open_site(ses.url, MAX_ATTEMPTS=2, RETRY_DELAY=1) as site:
        site.run("queue", "20")
        ids = [pk for (pk,) in site.ask("SELECT id FROM connect_mailer_outgoingmessage ORDER BY 1")]
        row = "connect_mailer_outgoingmessage"
        site.ask(DAMAGE.format(error=error))
        site.ask(f"UPDATE {row} SET tags = '[1]' WHERE id = {ids[1]}")
        site.ask(f"UPDATE {row} SET content_id = NULL WHERE id = {ids[2]}")
        to = "connect_mailer_outgoingrecipient"
        site.ask(f"DELETE FROM {to} WHERE message_id = {ids[3]}")
        site.ask(f"UPDATE {to} SET address = '', envelope = '' WHERE message_id = {ids[4]}")

        worker = site.start_worker(app=APP)
        wait_for(lambda: site.count() == {"sent": 15, "failed": 5}, tell=worker.read)

        failed = site.ask(
            f"SELECT last_error, attempts FROM {row} WHERE status = 'failed' ORDER BY id"
        )
    assert "missing chunk number 0" in failed[0][0]
    assert "mapping" in failed[1][0]
    assert [attempts for _, attempts in failed] == [2, 2, 1, 1, 1]
    assert "gone from the database" in failed[2][0] == failed[3][0]
    assert "BadRequest" in failed[4][0]
    assert count_arrivals(ses) == dict.fromkeys((f"u{n}@example.org" for n in range(5, 20)), 1)


class SendEvents(FeedbackPublisher):
    """Of all events *Send* alone: that SES has taken a message."""

    def _make_messages(self, mail: Mail) -> Iterator[dict[str, Any]]:
        yield next(super()._make_messages(mail))


class TestInDoubt:
    """SES accepts each message, and drops the connection before it answers."""

    def test_with_events_none_arrives_twice(self) -> None:
        signer = SNSSigner.generate()
        env = {"SITE_SIGNER": signer.to_pem(), "SITE_TOPIC": signer.topic_arn}
        with LocalSES(rate=2000) as ses, open_site(ses.url, env=env, LEASE_SECONDS=900) as site:
            server = site.start("tests.site", "serve")
            wait_for(lambda: server.read().endswith("\n"), tell=server.read)
            url = f"http://127.0.0.1:{int(server.read())}/mail/bouncy/"
            # Several, as from SNS: the site has the next one before it has answered.
            publishers = [SendEvents(signer, url, events=True, retry_seconds=1) for _ in range(4)]
            turns = cycle(publishers)
            ses._on_accepted = lambda mail: next(turns)(mail)
            ses.inject(Fault(lost="after", times=1000))
            site.run("queue", "1000")

            site.start_worker(app=APP)
            wait_for(
                lambda: site.count() == {"sent": 1000},
                400,
                tell=lambda: (site.count(), [len(p.statuses) for p in publishers], server.read()),
            )

            arrivals = count_arrivals(ses)
            assert arrivals == dict.fromkeys(everybody(1000), 1)
            assert not site.ask("SELECT 1 FROM connect_mailer_outgoingmessage WHERE in_doubt")
            for publisher in publishers:
                publisher.close()
                assert set(publisher.statuses) == {200}

    def test_without_events_hold_lists_them_all(self, ses: LocalSES) -> None:
        ses.inject(Fault(lost="after", times=1000))
        with open_site(ses.url, LEASE_SECONDS=5, IN_DOUBT="hold") as site:
            site.run("queue", "1000")

            worker = site.start_worker(app=APP)
            wait_for(lambda: site.count() == {"failed": 1000}, tell=worker.read)

            assert site.ask(
                "SELECT count(*) FROM connect_mailer_outgoingmessage "
                "WHERE in_doubt AND last_error LIKE 'In doubt: %'"
            ) == [(1000,)]
            page = site.run("look", "/admin/connect_mailer/outgoingmessage/?in_doubt__exact=1")
            assert "1000 outgoing messages" in page
        assert count_arrivals(ses) == dict.fromkeys(everybody(1000), 1)

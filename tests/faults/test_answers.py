"""What SES answers, or doesn't: the account, storms, lost answers, bad rows."""

from __future__ import annotations

import signal
import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from connect_mailer.testing.feedback import FeedbackPublisher
from connect_mailer.testing.ses import Fault, LocalSES
from connect_mailer.testing.sns import SNSSigner
from tests.faults.conftest import APP
from tests.site.running import count_arrivals, everybody, open_site, wait_for

pytestmark = pytest.mark.usefixtures("valkey")

ACCOUNT = [
    Fault(code="TooManyRequestsException", message="Daily message quota exceeded.", times=None),
    Fault(code="SendingPausedException", times=None),
    Fault(code="AccountSuspendedException", times=None),
    Fault(code="ExpiredTokenException", times=None),
    Fault(code="InvalidSignatureException", times=None),
    Fault(code="UnrecognizedClientException", times=None),
]


PAUSED = "SELECT note FROM connect_mailer_lease WHERE name = 'pause' AND expires_at > now()"


def test_a_problem_of_the_account_stops_all_and_fails_nothing(ses: LocalSES) -> None:
    drains, calls = 2, 5
    with open_site(
        ses.url, PAUSE_SECONDS=2, CONCURRENCY=calls, MAX_DRAINS=drains, MAX_ATTEMPTS=1
    ) as site:
        worker = site.start_worker(app=APP)
        for number, fault in enumerate(ACCOUNT, 1):
            refused = ses.stats().refused
            ses.inject(fault)
            site.run("queue", "100")
            wait_for(lambda: bool(site.ask(PAUSED)), tell=worker.read)
            assert fault.message in site.ask(PAUSED)[0][0]
            ses.clear_faults()
            wait_for(lambda n=number: site.count() == {"sent": 100 * n}, tell=worker.read)  # type: ignore[misc]
            # What was in flight, and in one more try if there was one; not the backlog.
            assert ses.stats().refused - refused <= 2 * drains * calls
        output = worker.read()
    assert 0 < output.count("Nothing can be sent through this account") <= drains * len(ACCOUNT)
    assert set(count_arrivals(ses).values()) == {len(ACCOUNT)}


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
        wait_for(lambda: site.count() == {"sent": 100}, 100, tell=worker.read)
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
DAMAGE = """
    CREATE FUNCTION unreadable() RETURNS bytea LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'missing chunk number 0' USING ERRCODE = 'data_corrupted'; END $$;
    ALTER TABLE connect_mailer_outgoingcontent RENAME TO damaged;
    CREATE VIEW connect_mailer_outgoingcontent AS SELECT id, CASE WHEN id = (
        SELECT content_id FROM connect_mailer_outgoingmessage ORDER BY id LIMIT 1
    ) THEN unreadable() ELSE mime END AS mime FROM damaged;
"""


def test_rows_that_can_not_be_processed(ses: LocalSES) -> None:
    with open_site(ses.url, MAX_ATTEMPTS=2, RETRY_DELAY=1) as site:
        site.run("queue", "20")
        ids = [pk for (pk,) in site.ask("SELECT id FROM connect_mailer_outgoingmessage ORDER BY 1")]
        row = "connect_mailer_outgoingmessage"
        site.ask(DAMAGE)
        site.ask(f"UPDATE {row} SET tags = '[1]' WHERE id = {ids[1]}")
        site.ask(f"UPDATE {row} SET content_id = NULL WHERE id = {ids[2]}")
        site.ask(f"DELETE FROM connect_mailer_outgoingrecipient WHERE message_id = {ids[3]}")

        worker = site.start_worker(app=APP)
        wait_for(lambda: site.count() == {"sent": 16, "failed": 4}, tell=worker.read)

        failed = site.ask(
            f"SELECT last_error, attempts FROM {row} WHERE status = 'failed' ORDER BY id"
        )
    assert "missing chunk number 0" in failed[0][0]
    assert "mapping" in failed[1][0]
    assert [attempts for _, attempts in failed] == [2, 2, 1, 1]
    assert "gone from the database" in failed[2][0] == failed[3][0]
    assert count_arrivals(ses) == dict.fromkeys((f"u{n}@example.org" for n in range(4, 20)), 1)


class TestInDoubt:
    """SES accepts each message, and drops the connection before it answers."""

    def test_with_events_none_arrives_twice(self) -> None:
        signer = SNSSigner.generate()
        env = {"SITE_SIGNER": signer.to_pem(), "SITE_TOPIC": signer.topic_arn}
        with LocalSES(rate=2000) as ses, open_site(ses.url, env=env) as site:
            server = site.start("tests.site", "serve")
            wait_for(lambda: server.read().endswith("\n"), tell=server.read)
            url = f"http://127.0.0.1:{int(server.read())}/mail/bouncy/"
            publisher = FeedbackPublisher(signer, url, events=True, retry_seconds=1)
            ses._on_accepted = publisher
            ses.inject(Fault(lost="after", times=200))
            site.run("queue", "200")

            site.start_worker(app=APP)
            wait_for(
                lambda: site.count() == {"sent": 200},
                200,
                tell=lambda: (site.count(), Counter(publisher.statuses), server.read()),
            )

            arrivals = count_arrivals(ses)
            assert arrivals == dict.fromkeys(everybody(200), 1)
            assert not site.ask("SELECT 1 FROM connect_mailer_outgoingmessage WHERE in_doubt")
            publisher.close()
            assert set(publisher.statuses) == {200}

    def test_without_events_hold_lists_them_all(self, ses: LocalSES) -> None:
        ses.inject(Fault(lost="after", times=1000))
        with open_site(ses.url, LEASE_SECONDS=5, IN_DOUBT="hold") as site:
            site.run("queue", "1000")

            worker = site.start_worker(app=APP)
            wait_for(lambda: site.count() == {"failed": 1000}, 100, tell=worker.read)

            assert site.ask(
                "SELECT count(*) FROM connect_mailer_outgoingmessage "
                "WHERE in_doubt AND last_error LIKE 'In doubt: %'"
            ) == [(1000,)]
        assert count_arrivals(ses) == dict.fromkeys(everybody(1000), 1)

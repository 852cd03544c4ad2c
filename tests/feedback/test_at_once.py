"""Fifty simultaneous deliveries of one notification are one write."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from django.db import connection, connections, transaction
from django.db.models import Sum
from django.utils import timezone
from django_bouncy.models import Bounce, Delivery

from connect_mailer.feedback import events, records, settlement
from connect_mailer.models import NotificationReceipt, OutgoingMessage, Tally, Unsubscribe
from connect_mailer.testing.sns import make_bounce, make_delivery, make_mail
from tests.feedback.site import DELIVERIES, deliver
from tests.servers import make_environment

PEOPLE = ["a@example.com", "b@example.com"]


@pytest.mark.parametrize(
    ("transaction_mode", "users"), [("DEFERRED", "people.Person"), ("IMMEDIATE", "people.Member")]
)
def test_on_sqlite(tmp_path, transaction_mode, users):
    """Also, users are found and linked whose keys are UUIDs."""
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "tests.feedback.site",
            str(tmp_path / "db.sqlite3"),
            transaction_mode,
            users,
        ],
        capture_output=True,
        check=False,
        env=make_environment(TEST_DATABASE="sqlite"),
        timeout=300,
    )
    assert result.returncode == 0, result.stderr.decode()
    outcome = json.loads(result.stdout)
    # Who waited too long for the lock is answered 503, and SNS comes again.
    assert set(outcome["answers"]) <= {"200", "503"}
    assert outcome["answers"]["200"] >= 1
    assert sum(outcome["answers"].values()) == DELIVERIES
    assert outcome["rows"] == [1, 2, 2]
    assert outcome["linked"] == ["b@example.com"]


@pytest.fixture
def _server():
    if connection.vendor == "sqlite":
        pytest.skip("its own test is above")


@pytest.mark.usefixtures("_server")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("make", "expected"), [(make_bounce, [2, 0, 2]), (make_delivery, [0, 2, 0])]
)
def test_on_a_server(signer, make, expected):
    message = OutgoingMessage.objects.create(
        sender="site@example.com", due_at=timezone.now(), status="sent", ses_message_id="an-id"
    )
    for address in PEOPLE:
        message.recipients.create(address=address, envelope=address, status="sent")
    mail = make_mail(PEOPLE, ses_message_id="an-id")
    answers = deliver(signer.notification(make(PEOPLE, mail=mail)))
    assert set(answers) <= {"200", "503"}
    assert answers["200"] >= 1
    assert NotificationReceipt.objects.count() == 1
    assert [table.objects.count() for table in (Bounce, Delivery, Unsubscribe)] == expected
    assert message.events.count() == 2
    counted = Tally.objects.aggregate(delivered=Sum("delivered"), bounced=Sum("bounced"))
    assert sum(counted.values()) == 2 + expected[0]  # bounces by domain as well


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["bounced", "complained", "delivered"])
def test_what_changed_since_it_was_looked_at_is_not_taken_back(signer, post, monkeypatch, status):
    message = OutgoingMessage.objects.create(
        sender="site@example.com", due_at=timezone.now(), status="sent", ses_message_id="an-id"
    )
    for address in PEOPLE:
        message.recipients.create(address=address, envelope=address, status="sent")
    judge = settlement.judge

    def be_late(*args, **kwargs):
        monkeypatch.setattr(settlement, "judge", judge)
        if connection.vendor == "postgresql":  # others have a lock by then
            message.recipients.filter(address=PEOPLE[0]).update(status=status)
        return judge(*args, **kwargs)

    monkeypatch.setattr(settlement, "judge", be_late)
    mail = make_mail(PEOPLE, ses_message_id="an-id")
    assert post(signer.notification(make_delivery(PEOPLE, mail=mail))).status_code == 200
    first = status if connection.vendor == "postgresql" else "delivered"
    found = dict(message.recipients.values_list("address", "status"))
    assert found == {PEOPLE[0]: first, PEOPLE[1]: "delivered"}
    assert NotificationReceipt.objects.count() == 1
    assert Delivery.objects.count() == 2
    counted = Tally.objects.aggregate(Sum("delivered"))["delivered__sum"]
    assert counted == (1 if connection.vendor == "postgresql" else 2)


@pytest.mark.django_db
@pytest.mark.parametrize("codes", [["550 a", "550 b"], ["550 a", "550 a"]], ids=["own", "same"])
@pytest.mark.parametrize("was", ["sent", "delivered"])
def test_each_recipient_gets_what_was_said_of_her(signer, post, codes, was):
    message = OutgoingMessage.objects.create(
        sender="site@example.com", due_at=timezone.now(), status="sent", ses_message_id="an-id"
    )
    everybody = [*PEOPLE, "c@example.com"]
    for address, status in zip(everybody, ["sent", was, "sent"], strict=True):
        message.recipients.create(address=address, envelope=address, status=status)
    bounced = [
        {"emailAddress": address, "status": "5.1.1", "diagnosticCode": code}
        for address, code in zip(PEOPLE, codes, strict=True)
    ]
    mail = make_mail(everybody, ses_message_id="an-id")
    assert post(signer.notification(make_bounce(bounced, mail=mail))).status_code == 200
    reasons = [f"Permanent/General: {code}" for code in codes]
    expected = list(zip(PEOPLE, ["bounced"] * 2, reasons, strict=True))
    found = message.recipients.order_by("pk").values_list("address", "status", "reason")
    assert list(found) == [*expected, ("c@example.com", "sent", "")]
    noted = message.events.order_by("address").values_list("address", "kind", "detail")
    assert list(noted) == expected
    rows = Bounce.objects.order_by("address").values_list("address", "diagnostic_code")
    assert list(rows) == list(zip(PEOPLE, codes, strict=True))
    unsubscribed = Unsubscribe.objects.order_by("address").values_list("address", "detail")
    assert list(unsubscribed) == list(zip(PEOPLE, reasons, strict=True))


@contextmanager
def held(take: Callable[[], object], give_back: Callable[[], object]) -> Iterator[None]:
    """Something that another transaction has, until the block ends, or for long."""
    is_held, done = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                take()
                is_held.set()
                done.wait(20)
                give_back()
        finally:
            connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert is_held.wait(60)
        yield
    finally:
        done.set()
        thread.join()


def run(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


@pytest.mark.usefixtures("_server")
@pytest.mark.django_db(transaction=True)
def test_a_lock_that_is_held_is_not_waited_for(signer, post):
    body = signer.notification(make_bounce(PEOPLE), message_id=str(uuid.uuid4()))
    receipt = NotificationReceipt(message_id=json.loads(body)["MessageId"])
    with held(receipt.save, lambda: transaction.set_rollback(True)):
        assert post(body).status_code == 503
    assert post(body).status_code == 200


@pytest.mark.usefixtures("_server")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("make", "table"),
    [(make_delivery, NotificationReceipt), (make_delivery, OutgoingMessage), (make_bounce, Bounce)],
)
def test_a_table_that_is_locked_is_not_waited_for(signer, post, make, table):
    """As in a migration, or while it is vacuumed in full."""
    body = signer.notification(make(PEOPLE))
    name = connection.ops.quote_name(table._meta.db_table)
    lock, unlock = (
        (f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE", "SELECT 1")
        if connection.vendor == "postgresql"
        else (f"LOCK TABLES {name} WRITE", "UNLOCK TABLES")
    )
    with held(lambda: run(lock), lambda: run(unlock)):
        assert post(body).status_code == 503
    assert post(body).status_code == 200


@pytest.mark.skipif(connection.vendor != "mysql", reason="others set it for one transaction")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("again", [False, True])
def test_the_time_to_wait_for_locks_is_as_it_was(signer, post, again):
    body = signer.notification(make_bounce(PEOPLE))
    with connection.cursor() as cursor:
        cursor.execute("SET innodb_lock_wait_timeout = 37, lock_wait_timeout = 38")
        try:
            for _ in range(1 + again):
                assert post(body).status_code == 200
            cursor.execute("SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout")
            assert cursor.fetchone() == (37, 38)
        finally:
            cursor.execute("SET innodb_lock_wait_timeout = DEFAULT, lock_wait_timeout = DEFAULT")


@pytest.mark.parametrize(("number", "is_plain"), [(50, True), (51, False)])
def test_one_statement_is_about_no_more_than_mail_has(number: int, is_plain: bool) -> None:
    """So many values as there might be else, SQLite takes in no statement of older versions."""
    event = events.read(make_delivery([f"{n}@example.com" for n in range(number)]))
    assert event is not None
    assert records.is_plain(event, using="default") is is_plain

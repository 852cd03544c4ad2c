"""Fifty simultaneous deliveries of one notification are one write."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid

import pytest
from django.db import connection, connections, transaction
from django_bouncy.models import Bounce

from connect_mailer.models import NotificationReceipt, Unsubscribe
from connect_mailer.testing.sns import make_bounce
from tests.feedback.site import DELIVERIES, deliver
from tests.servers import make_environment

PEOPLE = ["a@example.com", "b@example.com"]


@pytest.mark.parametrize("transaction_mode", ["DEFERRED", "IMMEDIATE"])
def test_on_sqlite(tmp_path, transaction_mode):
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "tests.feedback.site",
            str(tmp_path / "db.sqlite3"),
            transaction_mode,
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


@pytest.fixture
def _server():
    if connection.vendor == "sqlite":
        pytest.skip("its own test is above")


@pytest.mark.usefixtures("_server")
@pytest.mark.django_db(transaction=True)
def test_on_a_server(signer):
    answers = deliver(signer.notification(make_bounce(PEOPLE)))
    assert set(answers) <= {"200", "503"}
    assert answers["200"] >= 1
    rows = [table.objects.count() for table in (NotificationReceipt, Bounce, Unsubscribe)]
    assert rows == [1, 2, 2]


@pytest.mark.usefixtures("_server")
@pytest.mark.django_db(transaction=True)
def test_a_lock_that_is_held_is_not_waited_for(signer, post):
    body = signer.notification(make_bounce(PEOPLE), message_id=str(uuid.uuid4()))
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                NotificationReceipt.objects.create(message_id=json.loads(body)["MessageId"])
                held.set()
                done.wait(20)
                transaction.set_rollback(True)
        finally:
            connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        assert post(body).status_code == 503
    finally:
        done.set()
        thread.join()
    assert post(body).status_code == 200


@pytest.mark.skipif(connection.vendor != "mysql", reason="others set it for one transaction")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("again", [False, True])
def test_the_time_to_wait_for_locks_is_as_it_was(signer, post, again):
    body = signer.notification(make_bounce(PEOPLE))
    with connection.cursor() as cursor:
        cursor.execute("SET innodb_lock_wait_timeout = 37")
        try:
            for _ in range(1 + again):
                assert post(body).status_code == 200
            cursor.execute("SELECT @@innodb_lock_wait_timeout")
            assert cursor.fetchone() == (37,)
        finally:
            cursor.execute("SET innodb_lock_wait_timeout = DEFAULT")

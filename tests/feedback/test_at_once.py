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
def _postgresql():
    if connection.vendor != "postgresql":
        pytest.skip("its own test is above")


@pytest.mark.usefixtures("_postgresql")
@pytest.mark.django_db(transaction=True)
def test_on_postgresql(signer):
    answers = deliver(signer.notification(make_bounce(PEOPLE)))
    assert set(answers) <= {"200", "503"}
    assert answers["200"] >= 1
    rows = [table.objects.count() for table in (NotificationReceipt, Bounce, Unsubscribe)]
    assert rows == [1, 2, 2]


@pytest.mark.usefixtures("_postgresql")
@pytest.mark.django_db(transaction=True)
def test_a_lock_that_is_held_is_not_waited_for(signer, post):
    body = signer.notification(make_bounce(PEOPLE), message_id=str(uuid.uuid4()))
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                NotificationReceipt.objects.create(message_id=json.loads(body)["MessageId"])
                held.set()
                done.wait(60)
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

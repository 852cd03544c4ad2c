"""All that a request waits for shares one deadline."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
from django.core.cache import caches
from django.core.management import call_command
from django.db import connection

from connect_mailer.exceptions import NotificationUndecided
from connect_mailer.feedback import sns, webhook
from connect_mailer.feedback.brief import LOCK_SECONDS, brief_transaction, execute
from connect_mailer.feedback.deadline import ANSWER_SECONDS, Deadline
from connect_mailer.models import NotificationReceipt

pytestmark = pytest.mark.django_db


class Clock:
    """Time goes on when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def told() -> Iterator[list[str]]:
    """The statements that the database got."""
    statements: list[str] = []

    def note(run, sql, params, *rest):
        statements.append(sql % tuple(params) if params else sql)
        return run(sql, params, *rest)

    with connection.execute_wrapper(note):
        yield statements


def find_waits(statements: list[str]) -> list[float]:
    """How long the database was told to wait, for a lock, in seconds."""
    names = r"lock_timeout = |PRAGMA busy_timeout = |SESSION\.innodb_lock_wait_timeout = "
    found = re.findall(rf"(?:{names})(\d+)", " ".join(statements))
    return [int(one) / (1 if connection.vendor == "mysql" else 1000) for one in found]


@pytest.fixture
def hanging_server(monkeypatch) -> Iterator[list[socket.socket]]:
    """Every name is a server that takes connections and says nothing."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)

        def accept() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        yield taken
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for one in taken:
        one.close()


def test_what_is_left_is_handed_down_until_nothing_is():
    clock = Clock()
    deadline = Deadline(clock=clock)
    assert deadline.left() == ANSWER_SECONDS < 10
    assert deadline.left(0.5) == 0.5
    clock.now = ANSWER_SECONDS - 0.25
    assert deadline.left(0.5) == 0.25
    clock.now = ANSWER_SECONDS
    with pytest.raises(NotificationUndecided):
        deadline.left(0.5)


def test_a_certificate_gets_the_time_that_the_cache_left(signer, monkeypatch):
    clock = Clock()
    waits = []

    class Slow(dict):
        def get(self, key, /):
            clock.now += ANSWER_SECONDS - 1

    def wait(self, timeout):
        waits.append(timeout)
        raise TimeoutError

    monkeypatch.setattr(sns.Future, "result", wait)
    certificates = sns.Certificates(lambda host, target: b"")
    get = partial(certificates.get_key, signer.certificate_url, host=signer.host, cache=Slow())
    with pytest.raises(NotificationUndecided):
        get(deadline=Deadline(clock=clock))
    assert waits == [1.0]


def test_a_cache_and_a_server_that_hang_together_are_waited_for_once(
    post, signer, hanging_server, monkeypatch
):
    done = threading.Event()
    monkeypatch.setattr(sns, "CACHE_SECONDS", 0.5)
    monkeypatch.setattr(type(caches["default"]), "get", lambda *args: done.wait(60))
    monkeypatch.setattr(webhook, "certificates", sns.Certificates())
    monkeypatch.setattr(webhook, "Deadline", partial(Deadline, 1.0))
    started = time.monotonic()
    try:
        assert post(signer.notification("x")).status_code == 503
    finally:
        taken = time.monotonic() - started
        done.set()
    # The cache alone has half a second, the server eight.
    assert taken < sns.DOWNLOAD_SECONDS
    assert not NotificationReceipt.objects.exists()


@pytest.mark.parametrize(
    ("left", "given"), [(3.0, 3.0), (ANSWER_SECONDS, sns.DOWNLOAD_SECONDS)], ids=["late", "early"]
)
def test_a_confirmation_gets_the_time_that_is_left(
    post, signer, settings, monkeypatch, left, given
):
    settings.BOUNCY_AUTO_SUBSCRIBE = True
    waits = []

    def fetch(host, target, *, seconds):
        waits.append(seconds)
        return b""

    monkeypatch.setattr(sns, "fetch", fetch)
    monkeypatch.setattr(webhook, "Deadline", partial(Deadline, left, clock=Clock()))
    assert post(signer.subscription_confirmation()).status_code == 200
    assert waits == [given]


def test_the_database_gets_the_time_that_is_left(post, signer, told, monkeypatch):
    monkeypatch.setattr(webhook, "Deadline", partial(Deadline, 1.5, clock=Clock()))
    assert post(signer.notification("x")).status_code == 200
    waits = find_waits(told)
    assert waits
    least = 2 if connection.vendor == "mysql" else 1.51  # whole seconds there
    assert min(waits) <= least
    if connection.vendor == "postgresql":
        assert int(re.findall(r"statement_timeout = (\d+)", " ".join(told))[0]) <= 1501


def test_time_that_was_lost_is_taken_from_what_follows(told):
    clock = Clock()
    deadline = Deadline(clock=clock)

    def write(message_id: str) -> list[int]:
        told.clear()
        NotificationReceipt.objects.create(message_id=message_id)
        return [round(one) for one in find_waits(told)]

    def lose_time() -> None:
        with brief_transaction("default", deadline):
            execute([("SELECT 1", [])], "default", deadline=deadline)
            assert write("a") == []
            clock.now = ANSWER_SECONDS - 1
            assert write("b") == [1]
            clock.now = ANSWER_SECONDS
            write("c")

    with pytest.raises(NotificationUndecided):
        lose_time()
    assert not NotificationReceipt.objects.exists()


@pytest.mark.skipif(connection.vendor != "postgresql", reason="others can't be told so")
def test_a_statement_is_ended_as_well():
    from django.db import OperationalError, transaction

    with pytest.raises(OperationalError), transaction.atomic():
        execute([("SELECT pg_sleep(60)", [])], "default", deadline=Deadline(0.2))


@pytest.mark.skipif(connection.vendor != "postgresql", reason="another wait each")
def test_a_cache_in_a_table_is_waited_for_as_briefly(post, signer, settings, told):
    settings.CACHES = {
        **settings.CACHES,
        "table": {
            "BACKEND": "django.core.cache.backends.db.DatabaseCache",
            "LOCATION": "kept_certificates",
        },
    }
    settings.BOUNCY_KEY_CACHE = "table"
    call_command("createcachetable")
    signer.trust()
    told.clear()
    assert post(signer.notification("x")).status_code == 200
    first = next(sql for sql in told if "kept_certificates" in sql)
    before = told[: told.index(first)]
    assert find_waits(before)
    assert max(find_waits(before)) <= LOCK_SECONDS + 0.01

"""Several processes at one outbox in PostgreSQL, with a real Valkey and a local SES."""

from __future__ import annotations

import base64
import io
import json
import pickle
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from connect_mailer.testing.ses import LocalSES
from tests.site.running import Site, count_arrivals, open_site, wait_for


@pytest.fixture
def ses() -> Iterator[LocalSES]:
    with LocalSES(rate=2000, latency_seconds=0.01) as server:
        yield server


@pytest.fixture
def site(ses: LocalSES, valkey: object) -> Iterator[Site]:
    with open_site(ses.url) as made:
        yield made


def test_four_processes_send_each_of_2000_rows_once(site: Site, ses: LocalSES) -> None:
    site.run("queue", "2000")

    drains = [site.start("tests.site", "drain") for _ in range(4)]
    outputs = [drain.wait() for drain in drains]

    assert [drain.process.returncode for drain in drains] == [0] * 4, outputs
    assert sum(map(int, outputs)) == 2000
    assert count_arrivals(ses) == Counter({f"u{n}@example.org": 1 for n in range(2000)})
    assert site.count() == {"sent": 2000}
    assert ses.stats().throttled == 0


def test_the_database_goes_away_and_comes_back(site: Site, ses: LocalSES) -> None:
    ses.configure(rate=200, latency_seconds=0.2)
    site.run("queue", "400")

    drain = site.start("tests.site", "drain")
    for arrived in (50, 150, 250):
        wait_for(lambda arrived=arrived: len(ses.mailbox()) >= arrived)  # type: ignore[misc]
        site.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    output = drain.wait()

    assert drain.process.returncode == 0, output
    assert output.splitlines()[-1] == "400"
    assert site.count() == {"sent": 400}
    assert set(count_arrivals(ses).values()) == {1}


def test_a_worker_finds_what_the_broker_lost_and_stops_cleanly(site: Site, ses: LocalSES) -> None:
    site.run("queue", "20")

    worker = site.start_worker()
    wait_for(lambda: len(ses.mailbox()) == 20)
    wait_for(lambda: site.count() == {"sent": 20})
    worker.process.send_signal(signal.SIGTERM)
    output = worker.wait(60)

    assert worker.process.returncode == 0, output
    assert "Traceback" not in output


def test_a_thousand_calls_of_send_mail_ask_for_a_few_drains(site: Site, ses: LocalSES) -> None:
    worker = site.start_worker()
    wait_for(lambda: " ready." in worker.read())

    senders = [site.start("tests.site", "send_each", "250") for _ in range(4)]
    outputs = [sender.wait() for sender in senders]

    assert [sender.process.returncode for sender in senders] == [0] * 4, outputs
    wait_for(lambda: site.count() == {"sent": 1000}, tell=worker.read)
    assert worker.read().count("Task connect_mailer.tasks.deliver[") // 2 < 50


def test_sigterm_to_every_process_of_a_worker(site: Site, ses: LocalSES) -> None:
    ses.configure(rate=20)
    site.run("queue", "60")
    worker = site.start_worker()
    wait_for(lambda: len(ses.mailbox()) >= 5)
    # As Heroku stops a dyno: the children of the pool get it, too.
    worker.send_to_group(signal.SIGTERM)
    worker.wait(60)
    left = site.count()
    assert left.get("sending", 0) == 0
    assert left["sent"] == len(ses.mailbox()) < 60

    site.start_worker()
    site.ask("UPDATE connect_mailer_lease SET expires_at = now()")
    ses.configure(rate=2000)
    wait_for(lambda: site.count() == {"sent": 60}, 100)
    assert set(count_arrivals(ses).values()) == {1}


def test_the_doctor_asks_who_takes_the_queue(ses: LocalSES) -> None:
    def ask(site: Site) -> dict[str, str]:
        said = site.start("tests.site", "manage", "mailer_doctor", "--json").wait()
        findings = json.loads(said[said.index("[") :])
        [found] = [one for one in findings if one["part"] == "worker"]
        return {name: str(found[name]) for name in ("level", "text")}

    with open_site(ses.url) as site:
        assert ask(site)["level"] == "error"
        worker = site.start_worker()
        wait_for(lambda: " ready." in worker.read())
        assert ask(site)["level"] == "ok"
        site.env["SITE_CONNECT_MAILER"] = json.dumps({"QUEUE": "mail"})
        assert "'mail'" in ask(site)["text"]


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Pickles as Python 2 did, whose plain strings were bytes."""

    dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined]

    def save_str(self, text: str) -> None:
        if not text.isascii() or len(text) > 255:
            super().save_str(text)
            return
        self.write(pickle.SHORT_BINSTRING + bytes([len(text)]) + text.encode())
        self.memoize(text)

    dispatch[str] = save_str


def make_old_task(name: str, arguments: list[Any], *, protocol: int, serializer: str) -> str:
    """A task as Celery 3 (protocol 1) or Celery 4 put it into a list of Redis.

    Source: Celery's "Task messages" (both versions), and kombu's virtual transports.
    """
    task_id = str(uuid.uuid4())
    rest = {"retries": 0, "eta": None, "expires": None, "timelimit": [None, None]}
    embedded = {"callbacks": None, "errbacks": None, "chord": None}
    if protocol == 1:
        headers: dict[str, Any] = {}
        value: Any = {
            "task": name,
            "id": task_id,
            "args": arguments,
            "kwargs": {},
            "utc": True,
            "taskset": None,
            **rest,
            **embedded,
        }
    else:
        headers = {
            "lang": "py",
            "task": name,
            "id": task_id,
            "root_id": task_id,
            "parent_id": None,
            "group": None,
            **rest,
        }
        value = [arguments, {}, {"chain": None, **embedded}]
    if serializer == "json":
        body, kind, encoding = json.dumps(value).encode(), "application/json", "utf-8"
    else:
        file = io.BytesIO()
        Python2Pickler(file, protocol=2).dump(value)
        body, kind, encoding = file.getvalue(), "application/x-python-serialize", "binary"
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": encoding,
            "content-type": kind,
            "headers": headers,
            "properties": {
                "body_encoding": "base64",
                "correlation_id": task_id,
                "delivery_info": {"exchange": "celery", "routing_key": "celery", "priority": 0},
                "delivery_mode": 2,
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )


def test_what_old_apps_left_in_the_broker_is_sent_once(ses: LocalSES, valkey: redis.Redis) -> None:
    mime = "Subject: S\nFrom: site@example.com\nTo: s{}@example.org\n\nö\n"
    tasks = [
        make_old_task(
            "seacucumber.tasks.SendEmailTask",
            ["site@example.com", [f"s{n}@example.org"], mime.format(n)],
            protocol=protocol,
            serializer="pickle",
        )
        for n, protocol in enumerate((1, 2))
    ] + [
        make_old_task(
            "djcelery_email_send_multiple",
            [
                [
                    {
                        "subject": "D",
                        "body": "ö",
                        "from_email": "site@example.com",
                        "to": [f"d{n}{m}@example.org"],
                        "attachments": [],
                        "headers": {},
                    }
                    for m in range(2)
                ],
                {"fail_silently": False},
            ],
            protocol=protocol,
            serializer=serializer,
        )
        for n, (protocol, serializer) in enumerate(((1, "pickle"), (1, "json"), (2, "json")))
    ]
    # Each twice, as a broker may deliver what a worker did not acknowledge in time.
    valkey.lpush("celery", *tasks, *tasks)
    accept = 'CELERY_ACCEPT_CONTENT = ["json", "pickle"]'
    with open_site(ses.url, env={"SITE_SETTINGS": accept, "C_FORCE_ROOT": "1"}) as site:
        worker = site.start_worker()
        everybody = {"s0", "s1", *(f"d{n}{m}" for n in range(3) for m in range(2))}
        wait_for(lambda: len(ses.mailbox()) >= len(everybody), tell=worker.read)
        wait_for(lambda: not valkey.exists("celery", "unacked"), tell=worker.read)
        wait_for(lambda: site.count() == {"sent": len(everybody)}, tell=worker.read)
    assert count_arrivals(ses) == Counter({f"{one}@example.org": 1 for one in everybody})

"""From the queue to SES: messages a second and CPU of the workers, beside boto3 alone and peers.

Two worker processes, 50 calls in flight in each, against a local SES that answers after 50 ms
or at once. Queueing, imports and set-up come before the clock starts; it ends when the last
row is settled. Rounds are interleaved, and another one is first in each. The CPU of the servers
is shown for one message, too: they are on the same machine, so what they take is missing elsewhere.

*boto3* and *lean* are the floors: the client alone, boto3's in 50 threads, messages from memory,
no database, no pace. The peers run as they are published, through django-ses where they need a
backend: those that Celery runs in two workers with 50 threads each, django-post-office in two
processes with 50 threads each; those that send one message after the other in one process, and
fewer messages.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

from tests.benchmarks._peers import find_queues
from tests.benchmarks._site import say

ROUNDS = int(os.environ.get("DRAIN_ROUNDS", "3"))
# Of the peers, which take long.
PEER_ROUNDS = int(os.environ.get("DRAIN_PEER_ROUNDS", "1"))
PROCESSES = 2
CONCURRENCY = 50
# Messages of a round, where SES answers after 50 ms and at once.
MESSAGES = {0.05: 8000, 0.0: 12_000}
# Of those that take one message after the other, in one process.
SLOW_MESSAGES = 100

MIME = (
    b"From: site@example.com\r\nTo: u@example.org\r\nSubject: News\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: text/plain; charset="utf-8"\r\n\r\n' + 20 * (b"Body " * 10 + b"\r\n")
)
BODY = 20 * ("Body " * 10 + "\n")


def main() -> None:
    """Print the tables."""
    from tests.benchmarks import _peers, _site

    with _site.servers(peers=True):
        _peers.prepare()
        rounds = f"median of {ROUNDS} rounds, of peers {PEER_ROUNDS}"
        say(_site.describe(f"{PROCESSES} worker processes, {rounds}"))
        for seconds in MESSAGES:
            _compare(seconds)


class Figures(NamedTuple):
    """Of one round: messages a second; CPU of one message in microseconds, of whom."""

    rate: float
    workers: float
    postgres: float
    valkey: float
    ses: float


def _compare(seconds: float) -> None:
    from tests.benchmarks import _site

    taken: dict[str, list[Figures]] = {}
    with _site.sink(seconds) as ses:
        for number in range(ROUNDS):
            names = tuple(ROLES) if number < PEER_ROUNDS else OURS
            # Another one is first in each round.
            for name in names[number % len(names) :] + names[: number % len(names)]:
                taken.setdefault(name, []).append(_run(name, ses, MESSAGES[seconds]))
    medians = {
        name: Figures(*map(statistics.median, zip(*taken[name], strict=True)))
        for name in ROLES
        if name in taken
    }
    floor = medians["boto3"]
    title = f"answers after {seconds * 1000:.0f} ms"
    say(
        f"\n{title:<26}{'a second':>9}{'of boto3':>10}{'CPU, us':>9}{'of boto3':>10}"
        f"{'PostgreSQL':>12}{'Valkey':>8}{'SES':>6}"
    )
    for name, of_one in medians.items():
        say(
            f"{name:<26}{of_one.rate:>9,.0f}{of_one.rate / floor.rate:>10.2f}"
            f"{of_one.workers:>9,.0f}{of_one.workers / floor.workers:>10.2f}"
            f"{of_one.postgres:>12,.0f}{of_one.valkey:>8,.0f}{of_one.ses:>6,.0f}"
        )


def _run(name: str, ses: Any, messages: int) -> Figures:
    from tests.benchmarks import _site

    prepare, _ = ROLES[name]
    messages = FEWER.get(name, messages)
    processes = 1 if name in ALONE else PROCESSES
    prepare(messages)
    each = messages // processes
    workers = [
        _site.start("drain", name, str(each), SITE_SES_URL=ses.url) for _ in range(processes)
    ]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n", name
    servers = (_site.find_postgres(), _site.find_valkey(), ses.pid)
    before = [_site.read_cpu(server) for server in servers]
    started = time.perf_counter()
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    results = [json.loads(worker.stdout.readline()) for worker in workers]
    after = [_site.read_cpu(server) for server in servers]
    for worker in workers:
        worker.communicate()
    sent = sum(result["sent"] for result in results)
    assert sent == messages, (name, sent, messages)
    seconds = max(result["ended"] for result in results) - started
    cpu = [sum(result["cpu"] for result in results)]
    cpu += [now - then for now, then in zip(after, before, strict=True)]
    return Figures(sent / seconds, *(one / sent * 1e6 for one in cpu))


# In a worker's process


def work(name: str, *args: str) -> None:
    """Get ready, wait for the word, work, and say what it cost."""
    _, make = ROLES[name]
    act = make(int(args[0]))
    say("ready")
    sys.stdin.readline()
    started = _read_cpu()
    sent = act()
    ended = _settled_at or time.perf_counter()
    say(json.dumps({"sent": sent, "cpu": _read_cpu() - started, "ended": ended}))


def _read_cpu() -> float:
    """Of this process and those that it had."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _nothing(messages: int) -> None:
    pass


def _queue(messages: int) -> None:
    from tests.benchmarks import _site

    _site.empty()
    _site.queue(messages)
    _site.allow_help()


# When the last row was settled, of the clock that all processes have. A drain then lingers.
_settled_at = 0.0


def make_drain(client: str) -> Callable[[int], Callable[[], int]]:
    """What makes a worker ready to drain the outbox through that client."""

    def make(messages: int) -> Callable[[], int]:
        from django.conf import settings

        from connect_mailer.sending import delivery, outbox, rate, transport

        options = {"SES_CLIENT": client, "DRAIN_SECONDS": 600}
        settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, **options}
        # Clients are made, and what they need is imported, by a worker's first drain.
        account_rate = rate.account_rate.get(transport.get_ses_client())
        assert account_rate is not None
        delivery.get_limiter("default").reserve([1], account_rate)
        settle = outbox.settle

        def note_time(*args: Any, **kwargs: Any) -> None:
            global _settled_at
            settle(*args, **kwargs)
            _settled_at = time.perf_counter()

        outbox.settle = note_time
        return lambda: delivery.drain_outbox(wake=lambda: None, ask_for_help=lambda: None)

    return make


def _alone(client: str) -> Callable[[int], Callable[[], int]]:
    def make(messages: int) -> Callable[[], int]:
        import uuid

        from connect_mailer.sending.calls import Calls
        from connect_mailer.sending.delivery import GATHER_SECONDS
        from connect_mailer.sending.ses import Envelope, SESClient, at_once

        ses = SESClient(
            region="us-east-1",
            endpoint_url=os.environ["SITE_SES_URL"],
            access_key_id="test",
            secret_access_key="test",
            configuration_set=None,
            tenant=None,
            concurrency=CONCURRENCY,
            connect_timeout=3,
            read_timeout=10,
            is_lean=client == "lean",
        )
        envelopes = [
            Envelope(
                sender="site@example.com",
                recipients=(f"u{number}@example.org",),
                mime=MIME,
                tags={"connect-mailer-id": str(uuid.uuid4())},
            )
            for number in range(messages)
        ]
        ses.get_account()

        def act() -> int:
            with ThreadPoolExecutor(CONCURRENCY) as pool:
                return len(list(pool.map(ses.send, envelopes)))

        def act_without_threads() -> int:
            calls: Calls[Envelope] = Calls(partial(ses.steps, begin=at_once), CONCURRENCY)
            for envelope in envelopes:
                calls.start(envelope)
            taken = 0
            while taken < messages:
                time.sleep(GATHER_SECONDS)
                taken += len(list(calls.take()))
            calls.close()
            return taken

        return act_without_threads if client == "lean" else act

    return make


def _loop(path: str) -> Callable[[int], Callable[[], int]]:
    """Django's ``send_messages()`` through a backend that sends at once."""

    def make(messages: int) -> Callable[[], int]:
        from django.core.mail import EmailMessage
        from django.utils.module_loading import import_string

        from tests.benchmarks import _peers

        _peers.send_by_ses()
        backend = import_string(path)()
        mails = [
            EmailMessage("News", BODY, "site@example.com", [f"u{number}@example.org"])
            for number in range(messages)
        ]
        return lambda: int(backend.send_messages(mails))

    return make


def _queue_by(path: str) -> Callable[[int], None]:
    def prepare(messages: int) -> None:
        from django.core.mail import EmailMessage
        from django.utils.module_loading import import_string

        from tests.benchmarks import _peers

        _peers.empty()
        import_string(path)().send_messages(
            [
                EmailMessage("News", BODY, "site@example.com", [f"u{number}@example.org"])
                for number in range(messages)
            ]
        )

    return prepare


def _work_off(act: str, processes: int) -> Callable[[int], Callable[[], int]]:
    """What drains a queue in ``_peers``."""

    def make(messages: int) -> Callable[[], int]:
        from tests.benchmarks import _peers

        _peers.prepare()
        _peers.send_by_ses()
        return partial(getattr(_peers, act), messages * processes)

    return make


LOOPS = {
    "django-ses, in a loop": "django_ses.SESBackend",
    "django-anymail, in a loop": "anymail.backends.amazon_ses.EmailBackend",
}
# What drains the queue of a peer.
DRAINS = {
    "django-post-office": "drain_post_office",
    "django-mailer": "drain_mailer",
    "django-celery-email": "drain_by_celery",
    "seacucumber's design": "drain_by_celery",
}
# Those of which one process is started.
ALONE = (*LOOPS, "django-mailer", "django-post-office")
# How many messages they get that take long.
FEWER = {
    **dict.fromkeys(("django-post-office", "django-celery-email", "seacucumber's design"), 3000),
    **dict.fromkeys((*LOOPS, "django-mailer"), SLOW_MESSAGES),
}

ROLES: dict[str, tuple[Callable[[int], None], Callable[[int], Callable[[], int]]]] = {
    "boto3": (_nothing, _alone("boto3")),
    "lean": (_nothing, _alone("lean")),
    "connect_mailer, boto3": (_queue, make_drain("boto3")),
    "connect_mailer": (_queue, make_drain("lean")),
}
OURS = tuple(ROLES)
ROLES |= {
    name: (_queue_by(path), _work_off(DRAINS[name], 1 if name in ALONE else PROCESSES))
    for name, path in find_queues().items()
}
ROLES |= {
    name: (_nothing, _loop(path))
    for name, path in LOOPS.items()
    if find_spec(path.partition(".")[0])
}

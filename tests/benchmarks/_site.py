"""The site that the benchmarks run: servers, an outbox, and processes of its own."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

say = partial(print, flush=True)

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def servers(*, peers: bool = False) -> Iterator[None]:
    """A database of its own in PostgreSQL, Valkey, and Django on both in this process too.

    ``peers``: with their apps, and the database connection is kept, as web processes do.
    """
    from tests import servers

    name = _name_database()
    _ask(f'CREATE DATABASE "{name}"')
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "tests.site.settings",
        "SITE_DATABASE": name,
        "SITE_REDIS_URL": f"{servers.valkey_url()}/0",
        "SITE_SES_URL": "http://127.0.0.1:9",
        "SITE_PEERS": "1" if peers else "",
    }
    import django
    from django.core.management import call_command
    from django.db import connections

    from tests.site.celery import app

    app.set_default()
    django.setup()
    call_command("migrate", verbosity=0)
    try:
        yield
    finally:
        connections.close_all()
        _ask(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def copies(number: int) -> Iterator[list[str]]:
    """The names of databases that are as the one of ``servers`` is now."""
    from django.db import connections

    connections.close_all()
    names = [_name_database() for _ in range(number)]
    for name in names:
        _ask(f'CREATE DATABASE "{name}" TEMPLATE "{os.environ["SITE_DATABASE"]}"')
    try:
        yield names
    finally:
        for name in names:
            _ask(f'DROP DATABASE "{name}" WITH (FORCE)')


def _name_database() -> str:
    return f"bench_{uuid.uuid4().hex}"


def _ask(sql: str) -> None:
    import psycopg

    from tests import servers

    server = servers.postgres()
    with psycopg.connect(
        host=server["HOST"], port=server["PORT"] or None, user=server["USER"],
        dbname=server["NAME"], autocommit=True,
    ) as connection:  # fmt: skip
        connection.execute(sql)


class Sink(NamedTuple):
    """An SES that accepts everything: where it is, and its process."""

    url: str
    pid: int


@contextmanager
def sink(seconds: float) -> Iterator[Sink]:
    """An SES that answers after so long."""
    process = start_module("tests.benchmarks._sink", str(seconds))
    try:
        yield Sink(process.stdout.readline().strip(), process.pid)
    finally:
        process.communicate()


def read_cpu(pid: int) -> float:
    """Seconds of CPU of a process and its children, those that it has seen end included."""
    # Source: proc(5), /proc/pid/stat.
    ticks = sum(map(int, _read_stat(pid)[11:15]))
    for path in Path("/proc").glob("[0-9]*/stat"):
        stat = _read_stat(int(path.parent.name))
        if stat and int(stat[1]) == pid:
            ticks += int(stat[11]) + int(stat[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _read_stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return []


def find_postgres() -> int:
    """The process of the server that has the others as its children."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    return int(_read_stat(pid)[1])


def find_valkey() -> int:
    """The limiter's process."""
    import redis

    with redis.Redis.from_url(os.environ["SITE_REDIS_URL"]) as client:
        return int(client.info("server")["process_id"])


def start(benchmark: str, *args: str, **environment: str) -> Any:
    """A process that calls ``work(*args)`` of a benchmark, with Django set up."""
    return start_module("tests.benchmarks._site", benchmark, *args, **environment)


def start_module(name: str, *args: str, **environment: str) -> Any:
    """``python -m name``, with pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", name, *args],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def describe(what: str) -> str:
    """The machine, in one line."""
    from importlib.metadata import version

    from django.db import connection

    return (
        f"{platform.python_implementation()} {platform.python_version()}, Django "
        f"{version('django')}, boto3 {version('boto3')}, {connection.vendor} "
        f"{'.'.join(map(str, connection.get_database_version()))}, {os.cpu_count()} cores; {what}"
    )


def compare(title: str, acts: dict[str, tuple[Callable[[], Any], int]], rounds: int) -> None:
    """Do each act in turn and print how many a second it makes; each says how many it is.

    Another one is first in each round, and one round more warms up.
    """
    wall: dict[str, list[float]] = {name: [] for name in acts}
    cpu: dict[str, list[float]] = {name: [] for name in acts}
    names = list(acts)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            act, number = acts[name]
            started, cpu_started = time.perf_counter(), time.process_time()
            act()
            taken = time.perf_counter() - started, time.process_time() - cpu_started
            if turn:
                wall[name].append(taken[0] / number)
                cpu[name].append(taken[1] / number)
    first = statistics.median(wall[names[0]])
    say(f"\n{title:<32}{'a second':>10}{'of first':>10}{'us each':>10}{'CPU us':>10}")
    for name in names:
        median = statistics.median(wall[name])
        say(
            f"{name:<32}{1 / median:>10,.0f}{first / median:>10.2f}{median * 1e6:>10,.0f}"
            f"{statistics.median(cpu[name]) * 1e6:>10,.0f}"
        )


def empty() -> None:
    """Forget all mail."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "TRUNCATE connect_mailer_outgoingmessage, connect_mailer_outgoingcontent, "
            "connect_mailer_lease CASCADE"
        )


def queue(messages: int, body: str = 20 * ("Body " * 10 + "\n"), costs: Sequence[int] = ()) -> None:
    """Queue messages, of one recipient or as many as ``costs`` says, without a wake-up."""
    from unittest import mock

    from django.core.mail import EmailMessage
    from django.db import connection

    from connect_mailer import tasks
    from connect_mailer.backend import ConnectMailerBackend

    def make(number: int) -> EmailMessage:
        to = [f"u{number}-{other}@example.org" for other in range(costs[number] if costs else 1)]
        return EmailMessage("News", body, "site@example.com", bcc=to)

    with mock.patch.object(tasks, "_publish"):
        for start in range(0, messages, 2000):
            batch = [make(number) for number in range(start, min(start + 2000, messages))]
            ConnectMailerBackend().send_messages(batch)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


def allow_help() -> None:
    """Let a second drain run from the start."""
    from connect_mailer.sending import leases, wakeups

    leases.acquire(wakeups.HELP, 600, using="default")


def _main(benchmark: str, *args: str) -> None:
    import importlib
    import logging

    import django

    from tests.site.celery import app

    app.set_default()
    django.setup()
    # As a worker logs.
    logging.basicConfig(level=logging.INFO, stream=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    importlib.import_module(f"tests.benchmarks.{benchmark}").work(*args)


if __name__ == "__main__":
    _main(*sys.argv[1:])

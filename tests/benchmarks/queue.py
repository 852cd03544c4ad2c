"""Queueing: messages a second beside Django's serialisation alone, and one ``send_mail()``.

Each round queues ``--messages`` small text messages in one ``send_messages()``, durable in the
database, and writes the same ones by ``message().as_bytes()``, which is what it can't do without.
Peers, where they are installed: django-post-office.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

ROUNDS = 7
SINGLES = 100


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks queue")
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    has_post_office = _configure()
    from django.db import connection
    from django.test.utils import setup_databases, teardown_databases

    logging.disable(logging.CRITICAL)
    kept = setup_databases(verbosity=0, interactive=False)
    try:
        version = ".".join(map(str, connection.get_database_version()))
        print(  # noqa: T201
            f"CPython {platform.python_version()}, {connection.vendor} {version}; "
            f"median of {options.rounds} interleaved rounds"
        )
        number = options.messages
        batches: dict[str, Callable[[], Any]] = {
            "message().as_bytes() alone": lambda: [m.message().as_bytes() for m in make(number)],
            "send_messages()": lambda: send_ours(make(number)),
        }
        singles: dict[str, Callable[[], Any]] = {
            "send_mail()": lambda: [send_ours(make(1)) for _ in range(SINGLES)],
        }
        if has_post_office:
            batches["django-post-office"] = lambda: send_theirs(make(number))
            singles["django-post-office"] = lambda: [send_theirs(make(1)) for _ in range(SINGLES)]
        _compare(f"{number:,} in one call", batches, number, options.rounds)
        _compare("one by one", singles, SINGLES, options.rounds)
    finally:
        teardown_databases(kept, verbosity=0)


def _configure() -> bool:
    import django
    from django.conf import settings

    from tests import settings as base

    options = {name: getattr(base, name) for name in dir(base) if name.isupper()}
    apps = list(base.INSTALLED_APPS)
    has_post_office = importlib.util.find_spec("post_office") is not None
    if has_post_office:
        apps.append("post_office")
    databases = {"default": {**base.DATABASES["default"], "CONN_MAX_AGE": None}}
    settings.configure(
        **options | {"INSTALLED_APPS": apps, "DATABASES": databases, "LOGGING_CONFIG": None}
    )
    django.setup()
    from celery import current_app

    # A broker that takes everything at once: what asking one costs is not the database's.
    current_app.conf.broker_url = "memory://"
    return has_post_office


def make(number: int) -> list[Any]:
    """Small messages, as a site would make them."""
    from django.core.mail import EmailMessage

    return [
        EmailMessage(
            f"Your order {n}",
            f"Dear customer {n},\n\nyour order is on its way.\n\nThe shop\n",
            "The shop <shop@example.com>",
            [f"customer{n}@example.org"],
        )
        for n in range(number)
    ]


def send_ours(messages: list[Any]) -> None:
    """Through our backend."""
    from connect_mailer.backend import ConnectMailerBackend

    ConnectMailerBackend().send_messages(messages)


def send_theirs(messages: list[Any]) -> None:
    """Through django-post-office's backend."""
    from post_office import EmailBackend

    EmailBackend().send_messages(messages)


def _compare(title: str, acts: dict[str, Callable[[], Any]], number: int, rounds: int) -> None:
    wall: dict[str, list[float]] = {name: [] for name in acts}
    cpu: dict[str, list[float]] = {name: [] for name in acts}
    names = list(acts)
    for turn in range(rounds + 1):
        # Another one is first each time; the first round warms up.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started, cpu_started = time.perf_counter(), time.process_time()
            acts[name]()
            taken = time.perf_counter() - started, time.process_time() - cpu_started
            if turn:
                wall[name].append(taken[0] / number)
                cpu[name].append(taken[1] / number)
    print(f"\n{title:<32}{'a second':>10}{'us each':>10}{'CPU us':>10}")  # noqa: T201
    for name in names:
        median = statistics.median(wall[name])
        print(  # noqa: T201
            f"{name:<32}{1 / median:>10,.0f}{median * 1e6:>10,.0f}"
            f"{statistics.median(cpu[name]) * 1e6:>10,.0f}"
        )

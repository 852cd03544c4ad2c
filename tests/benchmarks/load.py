"""What a million messages ask of the database and of the limiter's Redis.

Counted for some thousand messages, small ones with one recipient each, queued in calls of
``send_messages()`` with a thousand each, and one by one; delivered by one drain, without a rate.
CPU is of the database server's processes, WAL what it wrote for replicas and backups. ``sent rows``
are the tables and indexes afterwards, vacuumed: what ``KEEP_DAYS`` keeps.
"""

from __future__ import annotations

import os
from typing import Any

from tests.benchmarks._site import say

BATCH = 1000
MESSAGES = {BATCH: 10_000, 1: 2000}
TABLES = ("outgoingmessage", "outgoingrecipient", "outgoingcontent", "tally")


def main() -> None:
    """Print the table."""
    from tests.benchmarks import _site

    with _site.servers(), _site.sink(0.0) as ses:
        say(_site.describe("for a million messages"))
        say(f"\n{'':<34}{'statements':>12}{'CPU':>10}{'WAL':>9}{'limiter calls':>15}")
        for batch, messages in MESSAGES.items():
            _site.empty()
            title = "send_mail(), one by one" if batch == 1 else f"send_messages(), {batch:,} each"
            _tell(title, messages, lambda: _queue(messages, batch))  # noqa: B023 - called at once
        _site.empty()
        _queue(MESSAGES[BATCH], BATCH)
        _tell("delivery", MESSAGES[BATCH], lambda: _deliver(ses.url))
        size = _measure_size() / MESSAGES[BATCH]
        say(f"\nsent rows: {size * 1e6 / 1e9:.1f} GB")


def _queue(messages: int, batch: int) -> None:
    from unittest import mock

    from django.core.mail import EmailMessage

    from connect_mailer import tasks
    from connect_mailer.backend import ConnectMailerBackend

    body = 20 * ("Body " * 10 + "\n")
    with mock.patch.object(tasks, "_publish"):
        for start in range(0, messages, batch):
            ConnectMailerBackend().send_messages(
                [
                    EmailMessage("News", body, "site@example.com", [f"u{n}@example.org"])
                    for n in range(start, start + batch)
                ]
            )


def _deliver(url: str) -> None:
    from django.conf import settings

    from tests.benchmarks.drain import make_drain

    settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "SES_ENDPOINT_URL": url}
    make_drain("lean")(0)()


def _tell(title: str, messages: int, act: Any) -> None:
    import redis
    from django.db import connection

    statements = 0

    def count(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal statements
        statements += 1
        return execute(sql, params, many, context)

    with redis.Redis.from_url(os.environ["SITE_REDIS_URL"]) as client:
        client.config_resetstat()
        before = _read_server()
        with connection.execute_wrapper(count):
            act()
        cpu, wal = (now - then for now, then in zip(_read_server(), before, strict=True))
        stats: Any = client.info("commandstats")
    calls = stats.get("cmdstat_evalsha", {}).get("calls", 0)
    say(
        f"{title:<34}{statements / messages * 1e6:>12,.0f}{cpu / messages * 1e6 / 60:>7.1f} min"
        f"{wal / messages * 1e6 / 1e9:>6.1f} GB{calls / messages * 1e6:>15,.0f}"
    )


def _read_server() -> tuple[float, int]:
    """Seconds of CPU of the server, and bytes of WAL."""
    from django.db import connection

    from tests.benchmarks import _site

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        (wal,) = cursor.fetchone()
    return _site.read_cpu(_site.find_postgres()), int(wal)


def _measure_size() -> int:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("VACUUM FULL")
        cursor.execute(
            "SELECT sum(pg_total_relation_size(('connect_mailer_' || name)::regclass)) "
            "FROM unnest(%s::text[]) AS name",
            [list(TABLES)],
        )
        (size,) = cursor.fetchone()
    return int(size)

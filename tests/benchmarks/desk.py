"""How long the pages of the admin take with ``--rows`` messages on PostgreSQL.

As many recipients, events and unsubscribes, and the tallies of a hundred days. Prints the first
time, the median and the queries of each page.

To fill takes minutes and to ask takes seconds: with ``--keep`` the database stays, in the server
that ``TEST_POSTGRES_URI`` names, and the next run finds it filled. ``--explain`` prints the
plans of queries that take long.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlencode

from tests.benchmarks.claim import _configure

ROUNDS = 5


def main() -> None:
    """Fill a database, ask for the pages, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks desk")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--keep", action="store_true", help="fill once, ask as often as you like")
    parser.add_argument("--explain", type=float, metavar="MS", help="plans of slower queries")
    options = parser.parse_args()
    rows = options.rows
    with tempfile.TemporaryDirectory(prefix="connect-mailer-") as folder:
        _configure(Path(folder))
        from django.db import connection
        from django.test.utils import setup_databases, teardown_databases

        if connection.vendor != "postgresql":
            raise SystemExit("This one is for PostgreSQL: TEST_DATABASE=postgres.")
        logging.disable(logging.CRITICAL)
        # Not serialised: Django would read what is kept, to write it anew between tests.
        kept = setup_databases(
            verbosity=0, interactive=False, keepdb=options.keep, serialized_aliases=()
        )
        try:
            from connect_mailer.models import Unsubscribe

            start = time.perf_counter()
            if not Unsubscribe.objects.exists():
                fill(rows)
            print(  # noqa: T201
                f"CPython {platform.python_version()}, PostgreSQL, {rows:,} messages "
                f"(filled in {time.perf_counter() - start:.0f} s), median of {ROUNDS}"
            )
            _measure(rows, options.explain)
        finally:
            teardown_databases(kept, verbosity=0, keepdb=options.keep)


def fill(rows: int) -> None:
    """A month of mail, in the order in which it came."""
    from django.db import connection
    from django.utils import timezone

    from connect_mailer.models import (
        MessageEvent,
        OutgoingMessage,
        OutgoingRecipient,
        Tally,
        Unsubscribe,
    )

    models = (OutgoingMessage, OutgoingRecipient, MessageEvent, Unsubscribe)

    step = f"(({rows} - n) * interval '30 days' / {rows})"
    is_queued = f"n > {rows - rows // 50}"  # a batch that is queued just now
    address = "'u' || lpad(n::text, 9, '0') || '@example.org'"
    statements = (
        f"""INSERT INTO connect_mailer_outgoingmessage (
            uuid, status, stream, priority, rank, due_at, in_doubt, attempts, sender, subject,
            mailing_list, tags, size, cost, ses_message_id, last_error, created_at, sent_at,
            finished_at, lane, turn)
        SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(n), 12, '0'))::uuid,
            CASE WHEN {is_queued} THEN 'queued' WHEN n % 1000 = 0 THEN 'failed' ELSE 'sent' END,
            CASE WHEN n % 50 = 0 THEN 'transactional' ELSE 'default' END,
            5, 15, at, false, 1, 'site@example.com', 'Hello ' || n, '', '{{}}', 500, 1,
            'id-' || lpad(n::text, 9, '0'), '', at,
            CASE WHEN {is_queued} THEN NULL ELSE at END,
            CASE WHEN {is_queued} THEN NULL ELSE at END,
            CASE WHEN {is_queued} THEN 15 END, CASE WHEN {is_queued} THEN at END
        FROM generate_series(1, {rows}) AS n, LATERAL (SELECT now() - {step} AS at) AS time""",
        f"""INSERT INTO connect_mailer_outgoingrecipient
            (message_id, address, envelope, kind, status, reason)
        SELECT n, {address}, {address}, 'to',
            CASE WHEN n % 100 = 0 THEN 'bounced' ELSE 'delivered' END, ''
        FROM generate_series(1, {rows}) AS n""",
        f"""INSERT INTO connect_mailer_messageevent (message_id, kind, address, at, detail)
        SELECT n, CASE WHEN n % 100 = 0 THEN 'bounced' ELSE 'delivered' END, {address},
            now() - {step}, 'smtp; 550 5.1.1'
        FROM generate_series(1, {rows}) AS n""",
        f"""INSERT INTO connect_mailer_unsubscribe
            (address, source, mailing_list, detail, created_at, modified_at)
        SELECT {address},
            CASE WHEN n % 2000 = 0 THEN 'complaint' WHEN n % 50000 = 1 THEN 'manual'
                WHEN n % 10 = 0 THEN 'bounce' ELSE 'user' END,
            CASE WHEN n % 5 = 3 THEN 'digest' ELSE '' END, 'smtp; 550 5.1.1', now() - {step}, now()
        FROM generate_series(1, {rows}) AS n""",
    )
    tables = ", ".join(f"'{model._meta.db_table}'::regclass" for model in models)
    with connection.cursor() as cursor:
        # Indexes are faster made of all rows than kept up, and a table that is not logged is
        # faster filled; neither makes a difference to who reads it.
        cursor.execute("SET maintenance_work_mem = '1GB'")
        cursor.execute("SET session_replication_role = replica")  # no look-ups of foreign keys
        cursor.execute(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) "
            f"FROM pg_constraint WHERE contype = 'u' AND conrelid IN ({tables})"
        )
        constraints = cursor.fetchall()
        for table, name, _definition in constraints:
            cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
        cursor.execute(
            "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index "
            f"WHERE NOT indisprimary AND indrelid IN ({tables})"
        )
        indexes = cursor.fetchall()
        for name, _definition in indexes:
            cursor.execute(f"DROP INDEX {name}")
        for model in reversed(models):
            cursor.execute(f"ALTER TABLE {model._meta.db_table} SET UNLOGGED")
        for statement in statements:
            cursor.execute(statement)
        for _name, definition in indexes:
            cursor.execute(definition)
        for table, name, definition in constraints:
            cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
        cursor.execute("VACUUM ANALYZE")
    now = timezone.now().replace(minute=0, second=0, microsecond=0)
    Tally.objects.bulk_create(
        Tally(
            at=now - timedelta(hours=hour),
            span=3600,
            stream=stream,
            domain=domain,
            sent=13_000,
            written=13_000,
            bounced=130,
        )
        for hour in range(100 * 24)
        for stream, domain in (("default", ""), ("transactional", ""), ("default", "example.org"))
    )
    # Five minutes of two busy drains and of notifications, not folded yet.
    Tally.objects.bulk_create(
        Tally(at=timezone.now() - timedelta(seconds=n / 100), stream="default", written=5)
        for n in range(30_000)
    )


def _measure(rows: int, explained_ms: float | None) -> None:
    from django.contrib.auth.models import User
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    client = Client()
    ada, _created = User.objects.get_or_create(
        username="ada", defaults={"is_staff": True, "is_superuser": True}
    )
    client.force_login(ada)
    print(f"\n{'page':<52}{'first, ms':>10}{'ms':>8}{'queries':>9}")  # noqa: T201
    for name, path in _list_pages(rows):
        times: list[float] = []
        for _ in range(1 + ROUNDS):
            start = time.perf_counter()
            with CaptureQueriesContext(connection) as captured:
                response = client.get(f"/admin/connect_mailer/{path}")
            times.append((time.perf_counter() - start) * 1e3)
            assert response.status_code == 200, (path, response.status_code)
        print(  # noqa: T201
            f"{name:<52}{times[0]:>10.0f}{statistics.median(times[1:]):>8.0f}{len(captured):>9}"
        )
        for query in captured.captured_queries if explained_ms is not None else ():
            if float(query["time"]) * 1e3 >= (explained_ms or 0):
                with connection.cursor() as cursor:
                    cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS) {query['sql']}")
                    lines = [line for (line,) in cursor.fetchall()]
                print("\n    ".join(["", query["sql"], *lines, ""]))  # noqa: T201


def _list_pages(rows: int) -> Iterator[tuple[str, str]]:
    from django.utils import timezone

    from connect_mailer.models import OutgoingMessage, Unsubscribe

    at = timezone.now() - timedelta(days=9)
    month = f"created_at__year={at.year}&created_at__month={at.month}"
    day = f"{month}&created_at__day={at.day}"
    week = urlencode({"created_at__gte": timezone.now() - timedelta(days=7)})
    last, last_of_day = min(rows, 10_000) // 50, min(rows // 31, 10_000) // 50
    someone = f"u{rows // 2:09}%40example.org"
    yield "mail health", "health/"
    messages, unsubscribes = "outgoingmessage/", "unsubscribe/"
    yield "messages", messages
    yield "messages, last page", f"{messages}?p={last}"
    yield "messages, oldest first", f"{messages}?o=4"
    for status in OutgoingMessage.Status.values:
        yield f"messages, {status}", f"{messages}?status__exact={status}"
    yield "messages, in doubt", f"{messages}?in_doubt__exact=1"
    yield "messages, transactional", f"{messages}?stream__exact=transactional"
    yield (
        "messages, transactional and failed",
        f"{messages}?stream__exact=transactional&status__exact=failed",
    )
    yield "messages of the last 7 days", f"{messages}?{week}"
    yield "messages of a month", f"{messages}?{month}"
    yield "messages of a day", f"{messages}?{day}"
    yield "messages of a day, last page", f"{messages}?{day}&p={last_of_day}"
    yield "messages of a day, failed", f"{messages}?{day}&status__exact=failed"
    yield "messages of a recipient", f"{messages}?q={someone}"
    yield "messages of a recipient whom nobody wrote to", f"{messages}?q=no%40example.org"
    yield "messages by SES id", f"{messages}?q=id-{rows // 3:09}"
    yield "messages by a word of the subject", f"{messages}?q=hello"
    yield "messages by a sender", f"{messages}?q=site%40example.com"
    yield "messages by a part of an address", f"{messages}?q=u{rows // 1000}"
    yield "messages by a part that is in none", f"{messages}?q=nothing"
    yield "one message", f"{messages}{rows // 2}/change/"
    yield "unsubscribes", unsubscribes
    yield "unsubscribes, last page", f"{unsubscribes}?p={last}"
    yield "unsubscribes, oldest first", f"{unsubscribes}?o=5"
    yield "unsubscribes by address", f"{unsubscribes}?o=1"
    for source in Unsubscribe.Source.values:
        yield f"unsubscribes, {source}", f"{unsubscribes}?source__exact={source}"
    yield "unsubscribes of a month", f"{unsubscribes}?{month}"
    yield "unsubscribes of a day", f"{unsubscribes}?{day}"
    yield "unsubscribes of a day, complaint", f"{unsubscribes}?{day}&source__exact=complaint"
    yield "unsubscribes, an address", f"{unsubscribes}?q={someone}"
    yield "unsubscribes, how an address begins", f"{unsubscribes}?q=u{rows // 2000}"
    yield "unsubscribes, a part of an address", f"{unsubscribes}?q=example"
    yield "unsubscribes, a part that is in none", f"{unsubscribes}?q=nothing"
    yield "one unsubscribe", f"{unsubscribes}{Unsubscribe.objects.order_by('pk')[0].pk}/change/"
    yield "add several", f"{unsubscribes}several/"

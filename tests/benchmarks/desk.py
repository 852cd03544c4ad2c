"""How long the pages of the admin take with ``--rows`` messages on PostgreSQL.

As many recipients, a hundredth of them bounced with an event and an unsubscribe each, and the
tallies of a hundred days. Prints the median and the queries of each page.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from tests.benchmarks.claim import _configure

ROUNDS = 5


def main() -> None:
    """Fill a database, ask for the pages, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks desk")
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="connect-mailer-") as folder:
        _configure(Path(folder))
        from django.db import connection
        from django.test.utils import setup_databases, teardown_databases

        if connection.vendor != "postgresql":
            raise SystemExit("This one is for PostgreSQL: TEST_DATABASE=postgres.")
        logging.disable(logging.CRITICAL)
        kept = setup_databases(verbosity=0, interactive=False)
        try:
            start = time.perf_counter()
            fill(rows)
            print(  # noqa: T201
                f"CPython {platform.python_version()}, PostgreSQL, {rows:,} messages "
                f"(filled in {time.perf_counter() - start:.0f} s), median of {ROUNDS}"
            )
            _measure(rows)
        finally:
            teardown_databases(kept, verbosity=0)


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
        SELECT {address}, 'bounce', '', 'smtp; 550 5.1.1', now() - {step}, now()
        FROM generate_series(1, {rows}, 100) AS n""",
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


def _measure(rows: int) -> None:
    from django.contrib.auth.models import User
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext
    from django.utils import timezone

    from connect_mailer.models import Unsubscribe

    client = Client()
    client.force_login(User.objects.create_superuser("ada"))
    day = timezone.now() - timedelta(days=9)
    date = f"created_at__year={day.year}&created_at__month={day.month}&created_at__day={day.day}"
    messages, unsubscribes = "outgoingmessage/", "unsubscribe/"
    someone = f"u{rows // 2:09}%40example.org"
    unsubscribe = Unsubscribe.objects.order_by("pk")[0]
    print(f"\n{'page':<52}{'ms':>8}{'queries':>9}")  # noqa: T201
    for name, path in (
        ("mail health", "health/"),
        ("messages", messages),
        ("messages, page 100", f"{messages}?p=100"),
        ("messages, failed", f"{messages}?status__exact=failed"),
        ("messages, transactional", f"{messages}?stream__exact=transactional"),
        ("messages of a day", f"{messages}?{date}"),
        ("messages of a recipient", f"{messages}?q={someone}"),
        ("messages of a recipient whom nobody wrote to", f"{messages}?q=no%40example.org"),
        ("messages by SES id", f"{messages}?q=id-{rows // 3:09}"),
        ("messages by a word", f"{messages}?q=hello"),
        ("messages by a word that is in none", f"{messages}?q=nothing"),
        ("one message", f"{messages}{rows // 2}/change/"),
        ("unsubscribes", unsubscribes),
        ("unsubscribes of a day", f"{unsubscribes}?{date}"),
        ("unsubscribes, a part of an address", f"{unsubscribes}?q=example"),
        ("one unsubscribe", f"{unsubscribes}{unsubscribe.pk}/change/"),
    ):
        times, queries = [], 0
        for _ in range(ROUNDS):
            start = time.perf_counter()
            with CaptureQueriesContext(connection) as captured:
                response = client.get(f"/admin/connect_mailer/{path}")
            times.append(time.perf_counter() - start)
            queries = len(captured)
            assert response.status_code == 200, (path, response.status_code)
        print(f"{name:<52}{statistics.median(times) * 1e3:>8.0f}{queries:>9}")  # noqa: T201

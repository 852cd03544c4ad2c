"""What a drain asks the outbox, with an empty table and with one full of finished rows.

The full one has ``--rows`` sent rows, and a tenth as many that are scheduled for the future, half
of them of a rank that leaves before what is due. Prints the plan of each statement beside the
full table, as the database explains it, and the medians of both.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS = 15
BATCH = 50
# Of statements that have a plan.
VERBS = ("SELECT", "UPDATE", "DELETE", "WITH")


def main() -> None:
    """Print the plans and the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks claim")
    parser.add_argument("--rows", type=int, default=10_000_000, help="sent rows in the full table")
    parser.add_argument(
        "--ask", action="store_true", help="measure once told to by Enter, when all else is quiet"
    )
    options = parser.parse_args()
    rows = options.rows

    def measure() -> tuple[dict[str, float], dict[str, list[str]]]:
        if options.ask:
            print("Ready to measure.", flush=True)  # noqa: T201
            sys.stdin.readline()
        return _measure()

    with tempfile.TemporaryDirectory(prefix="connect-mailer-") as folder:
        _configure(Path(folder))
        from django.db import connection
        from django.test.utils import setup_databases, teardown_databases

        logging.disable(logging.CRITICAL)
        kept = setup_databases(verbosity=0, interactive=False)
        try:
            version = ".".join(map(str, connection.get_database_version()))
            print(  # noqa: T201
                f"CPython {platform.python_version()}, {connection.vendor} {version}; "
                f"{BATCH} rows at once, median of {ROUNDS} rounds"
            )
            empty, _ = measure()
            fill(rows)
            full, plans = measure()
            for name, lines in plans.items():
                print(f"\n{name}\n    " + "\n    ".join(lines))  # noqa: T201
            print(f"\n{'ms':<44}{'empty':>10}{f'{rows:,}':>14}")  # noqa: T201
            for name, seconds in empty.items():
                print(f"{name:<44}{seconds * 1e3:>10.2f}{full[name] * 1e3:>14.2f}")  # noqa: T201
        finally:
            teardown_databases(kept, verbosity=0)


def _configure(folder: Path) -> None:
    import django
    from django.conf import settings

    from tests import settings as base

    options = {name: getattr(base, name) for name in dir(base) if name.isupper()}
    database = dict(base.DATABASES["default"])
    if database["ENGINE"].endswith("sqlite3"):
        # A file, as on a site: ten million rows are more than a machine's memory.
        path = str(folder / "outbox.sqlite3")
        database |= {"NAME": path, "TEST": {"NAME": path}}
        database["OPTIONS"] = {
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        }
    settings.configure(**options | {"DATABASES": {"default": database}, "LOGGING_CONFIG": None})
    django.setup()


def fill(rows: int) -> None:
    """Add sent rows of the last 30 days, and scheduled ones; the oldest have recipients."""
    from django.db import connection

    from connect_mailer.models import OutgoingMessage

    # MySQL needs the one of a foreign key.
    indexes = [index for index in OutgoingMessage._meta.indexes if index.fields != ["content"]]
    with connection.schema_editor() as editor:
        for index in indexes:
            editor.remove_index(OutgoingMessage, index)
    if connection.vendor == "postgresql":
        number, uuid = "generate_series(1, {rows}) AS n", "gen_random_uuid()"
        now, ago, tags = "now()", "now() - (n % 2592000) * interval '1 second'", "'{}'::jsonb"
        later = "now() + (n % 86400 + 3600) * interval '1 second'"
        no, nothing = "false", "NULL::uuid"
    elif connection.vendor == "mysql":
        number, uuid = "(SELECT seq AS n FROM seq_1_to_{rows}) AS s", "uuid()"  # of MariaDB
        now, ago = "utc_timestamp(6)", "utc_timestamp(6) - INTERVAL (n % 2592000) SECOND"
        later = "utc_timestamp(6) + INTERVAL (n % 86400 + 3600) SECOND"
        tags, no, nothing = "'{}'", "0", "NULL"
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION sql_mode = concat(@@sql_mode, ',PIPES_AS_CONCAT')")
    else:
        number = (
            "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {rows}) "
            "SELECT n FROM s)"
        )
        uuid, tags, no, nothing = "lower(hex(randomblob(16)))", "'{}'", "0", "NULL"
        now = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
        ago = "strftime('%Y-%m-%d %H:%M:%f', 'now', '-' || (n % 2592000) || ' seconds')"
        later = "strftime('%Y-%m-%d %H:%M:%f', 'now', '+' || (n % 86400 + 3600) || ' seconds')"
        with connection.cursor() as cursor:  # the unique index grows in no order
            cursor.execute("PRAGMA cache_size = -2000000")

    def insert(count: int, status: str, rank: int, due_at: str, turn: str, finished: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"""
                INSERT INTO connect_mailer_outgoingmessage (
                    uuid, status, stream, priority, rank, due_at, turn, claim, in_doubt, attempts,
                    sender, subject, mailing_list, tags, size, cost, ses_message_id, last_error,
                    created_at, sent_at, finished_at)
                SELECT {uuid}, '{status}', 'default', 5, {rank}, {due_at}, {turn}, {nothing}, {no},
                    1, 'site@example.com', 'Hello', '', {tags}, 500, 1, '010001' || n, '', {now},
                    {finished}, {finished}
                FROM {number.format(rows=count)}""")

    insert(rows, "sent", 15, ago, "NULL", ago)
    for rank in (5, 15):
        insert(rows // 20, "queued", rank, later, later, "NULL")
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO connect_mailer_outgoingrecipient "
            "(message_id, address, envelope, kind, status, reason) "
            "SELECT id, 'u' || id || '@example.org', 'u' || id || '@example.org', 'to', 'sent', '' "
            "FROM connect_mailer_outgoingmessage WHERE status = 'sent' "
            "ORDER BY finished_at LIMIT %s",
            [max(rows // 20, 20_000)],
        )
    with connection.schema_editor() as editor:
        for index in indexes:
            editor.add_index(OutgoingMessage, index)
    with connection.cursor() as cursor:
        analyze = f"ANALYZE TABLE {OutgoingMessage._meta.db_table}"
        cursor.execute(analyze if connection.vendor == "mysql" else "ANALYZE")
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA cache_size = -2000")  # as it was


def _measure() -> tuple[dict[str, float], dict[str, list[str]]]:
    from django.core.mail import EmailMessage
    from django.db import connection

    from connect_mailer.backend import ConnectMailerBackend
    from connect_mailer.models import OutgoingMessage
    from connect_mailer.sending import outbox

    times: dict[str, list[float]] = {}
    plans: dict[str, list[str]] = {}

    def step(name: str, act: Callable[[], Any]) -> Any:
        asked: list[tuple[str, Any]] = []

        def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            asked.append((sql, params))
            return execute(sql, params, many, context)

        with connection.execute_wrapper(note):
            started = time.perf_counter()
            result = act()
            times.setdefault(name, []).append(time.perf_counter() - started)
        for number, (sql, params) in enumerate(asked, 1):
            if name not in plans and sql.lstrip().startswith(VERBS):
                plans[f"{name}, statement {number}"] = explain(sql, params)
        plans[name] = []
        return result

    for _ in range(ROUNDS):
        ConnectMailerBackend().send_messages(
            [
                EmailMessage("Hello", "Body", "site@example.com", [f"u{n}@example.org"])
                for n in range(BATCH)
            ]
        )
        step("is anything due? (yes)", lambda: outbox.is_due(using="default"))
        step("line_up (nothing)", lambda: outbox.line_up(using="default"))
        step("peek", lambda: outbox.peek(BATCH, using="default"))
        rows = step(
            "claim",
            lambda: outbox.claim(
                tokens=BATCH, slots=BATCH, max_bytes=10**9, lease_seconds=60, using="default"
            ),
        )
        results = [outbox.Sent.of(row, ses_message_id=f"id-{row.pk}") for row in rows]
        step(
            "settle: sent",
            lambda results=results: outbox.settle(results, keep_bodies=False, using="default"),
        )
        if len(rows) != BATCH:
            raise AssertionError(f"claimed {len(rows)} rows")
        step("is anything due? (no)", lambda: outbox.is_due(using="default"))
    OutgoingMessage.objects.filter(ses_message_id__startswith="id-").delete()
    for keep_seconds in range(ROUNDS):
        step(
            "purge",
            lambda seconds=keep_seconds: outbox.purge(
                keep_days=30 - (100 * seconds + 100) / 86400, keep_bodies_days=30, using="default"
            ),
        )
    return (
        {name: statistics.median(taken) for name, taken in times.items()},
        {name: lines for name, lines in plans.items() if lines},
    )


def explain(sql: str, params: Any) -> list[str]:
    """The plan of a statement, line by line."""
    from django.db import connection

    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
            return [row[-1] for row in cursor.fetchall()]
        if connection.vendor == "mysql":
            cursor.execute(f"EXPLAIN FORMAT=TRADITIONAL {sql}", params)
            names = [column[0] for column in cursor.description]
            plans = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
            return [
                " ".join(
                    f"{name}={one[name]}" for name in ("table", "type", "key", "rows", "Extra")
                )
                for one in plans
            ]
        cursor.execute(f"EXPLAIN {sql}", params)
        return [row[0] for row in cursor.fetchall()]

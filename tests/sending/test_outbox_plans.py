"""How the databases find the next rows: by an index, whatever else is in the table."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.core.mail import EmailMessage
from django.db import connection
from django.db.models import Q, QuerySet
from django.utils import timezone

from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.models import OutgoingContent, OutgoingMessage, OutgoingRecipient
from connect_mailer.sending import outbox
from tests.benchmarks.claim import explain

is_mysql = connection.vendor == "mysql"
pytestmark = pytest.mark.django_db(transaction=is_mysql)  # where counting what is there commits

ROWS = 3000
OLD = datetime(2000, 1, 1, tzinfo=UTC)
LINE, WAITING = "connect_mailer_in_line", "connect_mailer_unsent"


def make_rows(number: int, **fields: Any) -> None:
    now = timezone.now()
    OutgoingMessage.objects.bulk_create(
        OutgoingMessage(sender="site@example.com", **{"due_at": now, **fields})
        for _ in range(number)
    )


def analyze() -> None:
    with connection.cursor() as cursor:
        tables = f"{OutgoingMessage._meta.db_table}, {OutgoingRecipient._meta.db_table}"
        cursor.execute(f"ANALYZE TABLE {tables}" if is_mysql else "ANALYZE")


@pytest.fixture
def full() -> Iterator[None]:
    """Far more rows that are finished or scheduled than any that are to be looked at.

    The line fills up after the database counted what is in the table.
    """
    now, later = timezone.now(), timezone.now() + timedelta(days=1)
    make_rows(ROWS, status="sent", finished_at=now)
    for rank in (5, 15):
        make_rows(ROWS // 2, rank=rank, due_at=later, turn=later)
    analyze()
    make_rows(ROWS, lane=15, turn=now)
    yield
    if connection.vendor == "sqlite":  # where the statistics outlive the transaction
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS sqlite_stat1")


class Plans:
    """What a call asked, each statement with its plan as one text."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        self.asked.append((sql, params))
        return execute(sql, params, many, context)

    def of(self, verb: str) -> list[str]:
        """The plans of what begins so, and on PostgreSQL of what does all at once."""
        return [
            "\n".join(explain(sql, params))
            for sql, params in self.asked
            if sql.lstrip().startswith((verb, "WITH")) and "connect_mailer_outgoing" in sql
        ]


def plan(act: Any) -> Plans:
    plans = Plans()
    with connection.execute_wrapper(plans):
        act()
    return plans


def goes_by(index: str, text: str) -> bool:
    """By that index and no other, in its order, so that nothing is sorted."""
    text, _, _ = text.partition("WindowAgg")  # what follows is about the rows that were found
    bad = ("Seq Scan", "SCAN", "type=ALL", "Sort", "TEMP B-TREE", "filesort")
    return index in text and not any(words in text for words in bad)


def goes_by_key(text: str) -> bool:
    """By the keys of a few rows, once they were found in the line."""
    found, _, written = text.partition("WindowAgg")
    # Other rows with the same body are found by that.
    text = (written or found).partition("CTE released")[0]
    bad = (LINE, WAITING, "connect_mailer_body", "Seq Scan on connect_mailer_outgoingmessage")
    # The last two have keys alone; MariaDB has no condition that would leave rows out of them.
    keys = (
        "pkey",
        "PRIMARY KEY (rowid=?)",
        "key=PRIMARY",
        "key=connect_mailer_in_doubt",
        "key=connect_mailer_urgent",
    )
    return any(key in text for key in keys) and not any(words in text for words in bad)


@pytest.mark.usefixtures("full")
def test_the_next_rows_are_found_by_an_index() -> None:
    looks = plan(lambda: outbox.peek(50, using="default")).of("SELECT")
    looks += plan(lambda: outbox.is_due(using="default")).of("SELECT")
    looks += plan(lambda: claim(50)).of("SELECT")[:1]

    assert len(looks) == 3
    for text in looks:
        assert goes_by(LINE, text), text


@pytest.mark.usefixtures("full")
def test_what_becomes_due_is_found_by_an_index() -> None:
    looks = plan(lambda: outbox.line_up(using="default")).of("SELECT")

    assert len(looks) == 2
    for text in looks:
        assert goes_by(WAITING, text), text


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        ("connect_mailer_ses_id", OutgoingMessage.objects.filter(OutgoingMessage.has_ses_id("7"))),
        # As events are looked up.
        (
            "connect_mailer_ses_id",
            OutgoingMessage.objects.filter(Q(uuid=uuid4()) | OutgoingMessage.has_ses_id("7")),
        ),
        ("connect_mailer_body", OutgoingMessage.objects.filter(content=uuid4())),
        ("connect_mailer_finished", OutgoingMessage.objects.filter(finished_at__lt=OLD)),
        ("connect_mailer_created", OutgoingMessage.objects.filter(created_at__lt=OLD)),
        (WAITING, OutgoingMessage.objects.filter(status="failed").order_by("-pk")),
        ("connect_mailer_recipient", OutgoingRecipient.objects.filter(address="u7@example.org")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_few_rows_that_are_asked_for_are_found_by_an_index(
    index: str, rows: QuerySet[Any]
) -> None:
    now = timezone.now()
    contents = [OutgoingContent(mime=b"") for _ in range(ROWS)]
    OutgoingContent.objects.bulk_create(contents)
    OutgoingMessage.objects.bulk_create(
        OutgoingMessage(
            sender="site@example.com",
            status="sent",
            due_at=now,
            finished_at=now,
            ses_message_id=f"{n}",
            content=content,
        )
        for n, content in enumerate(contents)
    )
    message = OutgoingMessage.objects.all()[0]
    OutgoingRecipient.objects.bulk_create(
        OutgoingRecipient(message=message, address=f"u{n}@example.org") for n in range(ROWS)
    )
    analyze()

    (text,) = plan(lambda: list(rows)).of("SELECT")

    assert index in text, text


@pytest.mark.usefixtures("full")
def test_what_was_found_is_written_by_its_key() -> None:
    make_rows(20, rank=5)
    rows: list[Any] = []

    lines_up = plan(lambda: outbox.line_up(using="default")).of("UPDATE")
    claims = plan(lambda: rows.extend(claim(50))).of("UPDATE")
    results = [outbox.Sent.of(row, ses_message_id=f"id-{row.pk}") for row in rows]
    settles = plan(lambda: outbox.settle(results, keep_bodies=False, using="default"))

    assert len(rows) == 50
    statements = [*lines_up, *claims, *settles.of("UPDATE")[:1], *settles.of("SELECT")]
    assert len(statements) >= 4
    for text in statements:
        assert goes_by_key(text), text


def claim(slots: int) -> list[outbox.Claimed]:
    return outbox.claim(
        tokens=slots, slots=slots, max_bytes=10**9, lease_seconds=60, using="default"
    )


def test_a_claim_and_its_results_are_a_few_statements(django_assert_num_queries: Any) -> None:
    ConnectMailerBackend().send_messages(
        [EmailMessage("A", "b", "site@example.com", [f"u{n}@example.org"]) for n in range(30)]
    )
    # With row locks: savepoint, the rows, the claim, release. Without: the rows, the claim.
    # PostgreSQL: one, between savepoint and release.
    locks = connection.features.has_select_for_update_skip_locked
    at_once = connection.vendor == "postgresql"
    with django_assert_num_queries(3 if at_once else 4 if locks else 2):
        rows = claim(30)
    assert len(rows) == 30
    results = [outbox.Sent.of(row, ses_message_id=f"id-{row.pk}") for row in rows]
    # Savepoint, rows, recipients, which bodies, rows, whose they are, bodies, the tally, release.
    with django_assert_num_queries(3 if at_once else 9):
        outbox.settle(results, keep_bodies=False, using="default")

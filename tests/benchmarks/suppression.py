"""Who of many recipients is not written to, with a million rows on ``Unsubscribe``.

One in a hundred of those who are asked about is there. The floors are one ``IN`` query by 500
addresses, by Django's ORM and in plain SQL; *one by one* is how Connect asked.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence

from tests.benchmarks._site import compare, describe, say, servers

ASKED = 20_000
SINGLES = 300
CHUNK = 500


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks suppression")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with servers():
        say(describe(f"median of {options.rounds} interleaved rounds"))
        _fill(options.rows)
        rng = random.Random(1)
        keys = [
            _name(rng.randrange(options.rows)) if rng.random() < 0.01 else f"u{number}@example.net"
            for number in range(ASKED)
        ]
        rng.shuffle(keys)
        compare(
            f"{options.rows:,} rows; recipients",
            {
                "IN by 500, plain SQL": (lambda: _ask_by(_ask_in_sql, keys), ASKED),
                "IN by 500, ORM": (lambda: _ask_by(_ask_by_orm, keys), ASKED),
                "ours, by 500": (lambda: _ask_by(_ask_us, keys), ASKED),
                "ours, all at once": (lambda: _ask_us(keys), ASKED),
                "one by one, ORM": (lambda: _ask_by_orm(keys[:SINGLES], each=1), SINGLES),
            },
            options.rounds,
        )


def _name(number: int) -> str:
    return f"reader{number}@example.org"


def _fill(rows: int) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO connect_mailer_unsubscribe
                (address, source, mailing_list, created_at, modified_at)
            SELECT 'reader' || number || '@example.org', 'bounce', '', now(), now()
            FROM generate_series(0, %s) AS number
            """,
            [rows - 1],
        )
        cursor.execute("VACUUM ANALYZE connect_mailer_unsubscribe")


def _chunks(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _ask_by(ask: Callable[[Sequence[str]], int], keys: Sequence[str]) -> None:
    found = sum(ask(chunk) for chunk in _chunks(keys, CHUNK))
    assert ASKED // 200 < found < ASKED // 50, found


def _ask_in_sql(keys: Sequence[str]) -> int:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT address, source, mailing_list FROM connect_mailer_unsubscribe "
            f"WHERE address IN ({', '.join(['%s'] * len(keys))})",
            keys,
        )
        return len(cursor.fetchall())


def _ask_by_orm(keys: Sequence[str], each: int = CHUNK) -> int:
    from connect_mailer.models import Unsubscribe

    return sum(
        len(
            Unsubscribe.objects.filter(address__in=chunk).values_list(
                "address", "source", "mailing_list"
            )
        )
        for chunk in _chunks(keys, each)
    )


def _ask_us(keys: Sequence[str]) -> int:
    """As the queue does: who is left of messages with one recipient each."""
    from connect_mailer.sending.suppression import Candidate, Suppression

    suppression = Suppression.load(keys)
    return sum(
        bool(reason)
        for key in keys
        for reason in suppression.judge(
            [Candidate(key=key, kind="to")], stream="default", mailing_list=""
        )
    )

"""A claim, and what the transport took, in one statement each: on PostgreSQL.

``outbox`` says the same in several statements for every database. Here the work that a batch
makes is nearly all the database's, and a row is written, with all its indexes, half as often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from uuid import UUID

from django.db import connections, models

from connect_mailer.models import OutgoingContent, OutgoingMessage, OutgoingRecipient, Tally
from connect_mailer.tallies import SIMULATOR_DOMAIN

# `line` leaves out what another one has locked, or has taken since. `tokens` and `bytes` are
# what a row needs together with all before it.
_CLAIM = """
WITH line AS MATERIALIZED (
    SELECT id, lane, turn, cost, size FROM {messages}
    WHERE lane BETWEEN %s AND %s AND status IN ('queued', 'sending')
        AND due_at <= statement_timestamp()
    ORDER BY lane, turn LIMIT %s FOR UPDATE SKIP LOCKED
), sums AS MATERIALIZED (
    SELECT id AS chosen, row_number() OVER upto AS place, sum(cost) OVER upto AS tokens,
        sum(size) OVER upto AS bytes
    FROM line WINDOW upto AS (ORDER BY lane, turn, id ROWS UNBOUNDED PRECEDING)
)
UPDATE {messages} AS message SET status = 'sending', claim = %s, lane = NULL,
    due_at = statement_timestamp() + make_interval(secs => %s), attempts = attempts + 1,
    in_doubt = in_doubt OR status = 'sending'
FROM sums WHERE message.id = chosen AND tokens <= %s AND (place = 1 OR bytes <= %s)
RETURNING place, {columns}, coalesce(expires_at <= statement_timestamp(), false)
"""

# All parts see the tables as they were before the statement, but for what RETURNING hands on.
# The last one asks for `settled`, so rows are locked before their recipients, as everywhere.
# Keys in an array, and OFFSET, which keeps a part as it is written: whatever a planner takes the
# tables for, it goes by those keys.
_SETTLE = """
WITH result AS MATERIALIZED (
    SELECT * FROM unnest(%(keys)s::bigint[], %(ses_ids)s::text[], %(streams)s::text[])
        AS result (key, ses_id, stream)
), these AS MATERIALIZED (
    SELECT array_agg(key) AS keys FROM result
), body AS MATERIALIZED (
    SELECT DISTINCT content_id FROM {messages}
    WHERE id = ANY((SELECT keys FROM these)::bigint[]) AND NOT %(keep_bodies)s
), settled AS (
    UPDATE {messages} AS row SET status = 'sent', claim = NULL, lane = NULL, turn = NULL,
        in_doubt = false, last_error = '', ses_message_id = ses_id,
        sent_at = statement_timestamp(), finished_at = statement_timestamp(),
        content_id = CASE WHEN %(keep_bodies)s THEN content_id END
    FROM result
    WHERE row.id = ANY((SELECT keys FROM these)::bigint[]) AND row.id = key
        AND status <> 'sent' AND NOT (status = 'failed' AND ses_message_id <> '')
    RETURNING row.id, row.stream
), written AS (
    UPDATE {recipients} SET status = 'sent' FROM result
    WHERE message_id = ANY((SELECT keys FROM these)::bigint[]) AND message_id = key
        AND status = 'queued'
    RETURNING stream, address
), released AS (
    DELETE FROM {contents} AS content USING body
    WHERE content.id = body.content_id AND NOT EXISTS (
        SELECT FROM {messages} AS row
        WHERE row.content_id = content.id AND row.id NOT IN (SELECT id FROM settled) OFFSET 0
    )
), counted AS (
    INSERT INTO {tallies} ({names})
    SELECT {values} FROM (
        SELECT stream, 1 AS sent, 0 AS written FROM settled
        UNION ALL SELECT stream, 0, 1 FROM written WHERE address NOT LIKE %(simulated)s
    ) AS one GROUP BY stream
    RETURNING stream, sent, written
)
SELECT id, NULL AS stream, NULL::int AS sent, NULL::int AS written FROM settled
UNION ALL SELECT NULL, * FROM counted
"""


def is_possible(using: str) -> bool:
    """Whether that database is one for these statements."""
    return connections[using].vendor == "postgresql"


def claim(
    *,
    token: UUID,
    lanes: tuple[int, int],
    tokens: int,
    slots: int,
    max_bytes: int,
    lease_seconds: float,
    columns: Sequence[str],
    using: str,
) -> list[tuple[Any, ...]]:
    """As ``outbox.claim``, of the first to the last of ``lanes``.

    Returns those columns of each row as they are then, and whether it has expired.
    """
    sql = _CLAIM.format(**_tables(), columns=", ".join(columns))
    with connections[using].cursor() as cursor:
        cursor.execute(sql, [*lanes, slots, token, lease_seconds, tokens, max_bytes])
        return [row[1:] for row in sorted(cursor.fetchall())]


def settle(
    keys: list[int], ses_ids: list[str], streams: list[str], *, keep_bodies: bool, using: str
) -> tuple[list[int], list[tuple[str, int, int]]]:
    """As ``outbox.settle``, for rows that were sent.

    Returns which did not say so yet, and of each stream how many these are and how many
    recipients were written to, as it was counted.
    """
    sql = _SETTLE.format(**_tables(), **_tally())
    values: dict[str, Any] = {
        "keys": keys,
        "ses_ids": ses_ids,
        "streams": streams,
        "keep_bodies": keep_bodies,
        "simulated": f"%@{SIMULATOR_DOMAIN}",
    }
    with connections[using].cursor() as cursor:
        cursor.execute(sql, values)
        rows = cursor.fetchall()
    changed = [pk for pk, *_ in rows if pk is not None]
    return changed, [(stream, sent, written) for pk, stream, sent, written in rows if pk is None]


@cache
def _tables() -> Mapping[str, str]:
    return {
        "messages": _quote(OutgoingMessage),
        "recipients": _quote(OutgoingRecipient),
        "contents": _quote(OutgoingContent),
        "tallies": _quote(Tally),
    }


def _quote(model: type[models.Model]) -> str:
    return f'"{model._meta.db_table}"'


@cache
def _tally() -> Mapping[str, str]:
    """The columns of a tally, and what is counted into them: their defaults, but for these."""
    counted = {
        "at": "statement_timestamp()",
        "stream": "stream",
        "sent": "sum(sent)",
        "written": "sum(written)",
    }
    fields = [field for field in Tally._meta.concrete_fields if not field.primary_key]
    return {
        "names": ", ".join(f'"{field.column}"' for field in fields),
        "values": ", ".join(counted.get(field.name, repr(field.get_default())) for field in fields),
    }

"""What most notifications are, in one statement: SES sent a mail, or delivered it.

They come for each mail of a site, and need nothing but rows: a receipt, django-bouncy's, and
what is noted in the outbox. On PostgreSQL one statement writes all of it, in a transaction of
its own. Any other notification, and any that finds the outbox in another state, is left to
``records``, which says how an event is recorded; tests compare the two.
"""

# ruff: noqa: S608 (all text in the statements is this module's own)

from __future__ import annotations

from django.db import connections
from django.utils import timezone

from connect_mailer.feedback import events, records
from connect_mailer.feedback.events import Event
from connect_mailer.feedback.records import Statement
from connect_mailer.feedback.sns import Notification
from connect_mailer.models import MessageEvent, OutgoingMessage, OutgoingRecipient, Tally
from connect_mailer.tallies import COUNTS, MOMENT, SIMULATOR_DOMAIN, tell_metrics
from connect_mailer.transactions import single_statement

_Status = OutgoingRecipient.Status


def take(event: Event, notification: Notification, *, using: str) -> bool:
    """Write all of it, or nothing (``False``), and then others have to do it.

    Raises:
        IntegrityError: as of ``records.make_receipt``.
    """
    connection = connections[using]
    if (
        connection.vendor != "postgresql"
        or records.binds_on_server(connection)
        or event.kind not in (events.DELIVERY, events.SEND)
        or not records.can_take_at_once(event, using=using)
    ):
        return False
    settled = _settle(event, using)
    if settled is None:
        return False
    steps = [
        records.insert_receipt(notification, connection),
        records.insert_rows(event, notification, connection),
        *settled,
    ]
    # A second delivery must not break a transaction that is open.
    with single_statement(using):
        told = [step for step in steps if step is not None]
        counted = records.execute(told, using, finds=told[-1][0] is _COUNT)
        tell_metrics((("delivered", stream, number) for stream, number in counted), using=using)
    return True


def _settle(event: Event, using: str) -> list[Statement] | None:
    """Statements that record it in the outbox; ``None``: that is not as plain as that.

    Plain: the drain has settled the message, and all whom the event is about are recipients
    of it. What changes between this look and the statements is decided by them: they change
    who is still ``sent``, and count who was changed.
    """
    names = [event.tag, event.ses_message_id or None]
    found = records.execute([(_FIND_MESSAGES, names)], using, finds=True)
    if not found:
        return []
    # As `records` finds it: the tag is our own name of a row.
    pk, stream, status, _uuid = min(found, key=lambda row: (row[3] != event.tag, row[0]))
    if status != OutgoingMessage.Status.SENT:
        return None
    recipients = records.execute([(_FIND_RECIPIENTS, [pk])], using, finds=True)
    known = {address for address, status in recipients if status != _Status.SUPPRESSED}
    reported = [recipient.address for recipient in event.recipients]
    if not known.issuperset(reported) or any(status == _Status.QUEUED for _, status in recipients):
        return None
    if not reported:
        return []
    at = records.make_time(event.happened_at) or timezone.now()
    detail = events.read_text(event.details.get("smtpResponse"), records.MAX_REASON) or ""
    return [
        (_SETTLE, [pk, reported]),
        (_NOTE, [pk, at, detail, reported]),
        (_COUNT, [stream]),
    ]


_MESSAGES, _RECIPIENTS, _EVENTS, _TALLIES = (
    model._meta.db_table for model in (OutgoingMessage, OutgoingRecipient, MessageEvent, Tally)
)
_FIND_MESSAGES = f"""
    SELECT id, stream, status, uuid FROM {_MESSAGES} WHERE uuid = %s OR ses_message_id = %s
"""
_FIND_RECIPIENTS = f"SELECT address, status FROM {_RECIPIENTS} WHERE message_id = %s"
_SETTLE = f"""
    UPDATE {_RECIPIENTS} SET status = '{_Status.DELIVERED}', reason = ''
    WHERE message_id = %s AND address = ANY(%s) AND status = '{_Status.SENT}'
    RETURNING address
"""
_NOTE = f"""
    INSERT INTO {_EVENTS} (message_id, kind, address, at, detail)
    SELECT %s, '{MessageEvent.Kind.DELIVERED}', address, %s, %s
    FROM unnest(%s::text[]) AS address
"""
# After a receipt and django-bouncy's rows, `_SETTLE` is step2: see `records.execute`.
_COUNT = f"""
    INSERT INTO {_TALLIES} (at, span, stream, domain, {", ".join(COUNTS)})
    SELECT STATEMENT_TIMESTAMP(), {MOMENT}, %s, '',
        {", ".join("count(*)" if name == "delivered" else "0" for name in COUNTS)}
    FROM step2 WHERE split_part(address, '@', -1) <> '{SIMULATOR_DOMAIN}' HAVING count(*) > 0
    RETURNING stream, delivered
"""

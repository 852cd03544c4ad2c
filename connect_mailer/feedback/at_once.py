"""What most notifications are, in one statement on PostgreSQL, a transaction of its own.

The outbox is looked at first, without a lock. Where the drain has settled the message, what an
event changes is what ``settlement`` says, and is written if nobody changed it meanwhile. All else
is left to a transaction of several statements (``webhook``).
"""

from __future__ import annotations

from django.contrib.auth import get_user_model
from django.db import DataError, connections, router

from connect_mailer.feedback import consequences, events, receivers, records, settlement
from connect_mailer.feedback.brief import ask, binds_on_server, execute
from connect_mailer.feedback.deadline import Deadline
from connect_mailer.feedback.events import Event
from connect_mailer.feedback.settlement import Outcome
from connect_mailer.feedback.sns import Notification
from connect_mailer.models import OutgoingMessage, Unsubscribe, look_for_users, read_user_ids
from connect_mailer.tallies import tell_counted
from connect_mailer.transactions import single_statement


def take(
    event: Event, notification: Notification, *, suppresses: bool, using: str, deadline: Deadline
) -> bool:
    """Write all of it, or nothing (``False``), and then it has to be done in another way.

    Raises:
        IntegrityError: as of ``records.make_receipt``.
    """
    connection = connections[using]
    if (
        connection.vendor != "postgresql"
        or binds_on_server(connection)
        or event.kind == events.SUBSCRIPTION
        or consequences.may_follow(event)
        # Of which list is asked for, and the site is told.
        or (suppresses and receivers.is_opt_out(event))
        or not records.is_plain(event, using=using)
        # Then they are asked for, and nothing has said yet how long that may take.
        or (suppresses and not event.destination)
    ):
        return False
    wanted = receivers.find_wanted(event) if suppresses else {}
    looks = []
    if message := settlement.look_for(event, connection):
        looks.append(message)
    if wanted:
        users = look_for_users({address for address, _source in wanted}, using)
        if users is None or not _is_one_database(using):
            return False
        looks.append(users)
    answers = ask(looks, using, deadline)
    outcome = Outcome()
    if message and (found := settlement.read(event, answers[0])):
        if found.status != OutgoingMessage.Status.SENT or event.kind not in settlement.REPORTS:
            return False
        outcome = settlement.judge(event, found)
    statements = records.insert_all(event, notification, connection)
    if wanted:
        user_ids = read_user_ids(answers[-1])
        statements.append(records.insert_suppressed(wanted, user_ids, connection))
    statements += outcome.write(connection)
    try:
        # A second delivery must not break a transaction that is open.
        with single_statement(using):
            execute(statements, using, deadline=deadline, changes=len(outcome.changed) or None)
    except DataError:
        return False
    tell_counted(outcome.counted, using=using)
    receivers.log_suppressed(wanted)
    return True


def _is_one_database(using: str) -> bool:
    return using == router.db_for_write(Unsubscribe) == router.db_for_read(get_user_model())

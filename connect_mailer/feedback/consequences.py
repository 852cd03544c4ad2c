"""Who bounces softly again and again is not written to either, once the outbox knows of it."""

from __future__ import annotations

import logging
from collections import defaultdict
from datetime import timedelta
from typing import Final

from django.db.models import F, Window
from django.db.models.functions import RowNumber
from django.utils import timezone

from connect_mailer.conf import conf
from connect_mailer.feedback import events
from connect_mailer.feedback.events import Event
from connect_mailer.feedback.records import make_own_time
from connect_mailer.logs import make_extra
from connect_mailer.models import OutgoingRecipient, Unsubscribe

logger = logging.getLogger(__name__)

# Soft bounces that are about the mailbox, not about what was written.
# Source: SES developer guide, "Amazon SNS notification contents for Amazon SES", bounce types.
_COUNTED: Final = ("Transient/General", "Transient/MailboxFull", "Undetermined/")

Status = OutgoingRecipient.Status


def may_follow(event: Event) -> bool:
    """Whether an event is a soft bounce that ``follow`` counts."""
    return (
        event.kind == events.BOUNCE
        and f"{event.type}/{event.subtype}".startswith(_COUNTED)
        and bool(conf.soft_bounce_limit)
    )


def follow(event: Event) -> None:
    """Give up on whom a soft bounce is about, if it is one of ``SOFT_BOUNCE_LIMIT`` in a row."""
    if not may_follow(event):
        return
    limit = conf.soft_bounce_limit
    now = timezone.now()
    addresses = {
        address
        for recipient in event.recipients
        if not events.is_delayed(recipient.action)
        and (address := events.find_addressee(recipient.address, event.destination)) is not None
    }
    written = OutgoingRecipient.objects.filter(
        address__in=addresses,
        message__sent_at__gte=now - timedelta(days=conf.soft_bounce_days),
    ).exclude(status__in=[Status.QUEUED, Status.SUPPRESSED])
    if sent_at := make_own_time(event.sent_at):
        # Of what was sent since, it is too early to know: servers try for hours.
        written = written.exclude(status=Status.SENT, message__sent_at__gt=sent_at)
    written = (
        written.annotate(
            back=Window(RowNumber(), partition_by=F("address"), order_by=F("pk").desc())
        )
        .filter(back__lte=limit)
        .order_by("back")
    )
    last: defaultdict[str, list[str]] = defaultdict(list)
    for address, status, reason in written.values_list("address", "status", "reason"):
        # Other mail of which nothing is known arrived, as far as anybody knows.
        if status == Status.BOUNCED and _is_counted(reason):
            last[address].append(reason)
    details = {
        address: f"{limit} soft bounces in a row, at last: {reasons[0]}"
        for address, reasons in last.items()
        if len(reasons) == limit
    }
    if not details:
        return
    new = {(address, Unsubscribe.Source.BOUNCE.value, "") for address in details}
    new -= Unsubscribe.objects.find_keys(details.keys())
    expires = conf.soft_bounce_expires_days
    Unsubscribe.objects.add_all(
        new, details=details, expires_at=now + timedelta(days=expires) if expires else None
    )
    for address, source, _list in sorted(new):
        logger.info(
            "Not written to any more: %s (%d soft bounces)",
            conf.hash_address(address),
            limit,
            extra=make_extra(
                {"source": source, "ses_id": event.ses_message_id}, recipients=[address]
            ),
        )


def _is_counted(reason: str) -> bool:
    """Whether a reason (``records``) is a server's, and about the mailbox.

    Who is out of office answers with a soft bounce as well, but no server's words are in it.
    Source: SES developer guide, "Using the mailbox simulator", automatic responses.
    """
    return reason.startswith(_COUNTED) and ": " in reason

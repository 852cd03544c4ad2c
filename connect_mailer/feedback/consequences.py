"""What bounces and complaints mean for an address, once the outbox knows of them."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Final

from django.utils import timezone

from connect_mailer.conf import conf
from connect_mailer.feedback import events
from connect_mailer.feedback.events import Event
from connect_mailer.logs import make_extra
from connect_mailer.models import OutgoingRecipient, Unsubscribe

logger = logging.getLogger(__name__)

# Soft bounces that are about the mailbox, not about what was written.
# Source: SES developer guide, "Amazon SNS notification contents for Amazon SES", bounce types.
_COUNTED: Final = ("Transient/General", "Transient/MailboxFull", "Undetermined/")
_MAX_DETAIL: Final = 500

Status = OutgoingRecipient.Status


def follow(event: Event) -> None:
    """Say why on the rows that this event made, or give up on who bounces again and again."""
    if event.kind == events.COMPLAINT:
        _explain(event, Unsubscribe.Source.COMPLAINT)
    elif event.kind == events.BOUNCE and event.type == events.PERMANENT:
        _explain(event, Unsubscribe.Source.BOUNCE)
    elif event.kind == events.BOUNCE:
        _count_soft_bounces(event)


def _explain(event: Event, source: str) -> None:
    """A row that was to expire stays from now on."""
    reasons: dict[str, list[str]] = {}
    for recipient in event.recipients:
        address = events.find_addressee(recipient.address, event.destination)
        if address is None:
            continue
        if event.kind == events.COMPLAINT:
            detail = events.read_text(event.details.get("complaintFeedbackType")) or ""
        else:
            detail = recipient.diagnostic_code or recipient.status or ""
            detail = f"{event.type}/{event.subtype}: {detail}".rstrip(": ")
        reasons.setdefault(detail[:_MAX_DETAIL], []).append(address)
    for detail, addresses in reasons.items():
        Unsubscribe.objects.filter(address__in=addresses, source=source).update(
            detail=detail, expires_at=None
        )


def _count_soft_bounces(event: Event) -> None:
    limit = conf.soft_bounce_limit
    if not limit or not f"{event.type}/{event.subtype}".startswith(_COUNTED):
        return
    now = timezone.now()
    for recipient in event.recipients:
        address = events.find_addressee(recipient.address, event.destination)
        if address is None or events.is_delayed(recipient.action):
            continue
        written = OutgoingRecipient.objects.filter(
            address=address, message__sent_at__gte=now - timedelta(days=conf.soft_bounce_days)
        ).exclude(status__in=[Status.QUEUED, Status.SUPPRESSED])
        last = list(written.order_by("-pk").values_list("status", "reason")[:limit])
        # What was sent and of which nothing is known arrived, as far as anybody knows.
        if len(last) < limit or not all(
            status == Status.BOUNCED and reason.startswith(_COUNTED) for status, reason in last
        ):
            continue
        expires = conf.soft_bounce_expires_days
        _row, is_new = Unsubscribe.objects.suppress(
            address,
            Unsubscribe.Source.BOUNCE,
            detail=f"{limit} soft bounces in a row, at last: {last[0][1]}"[:_MAX_DETAIL],
            expires_at=now + timedelta(days=expires) if expires else None,
        )
        if is_new:
            logger.info(
                "Not written to any more: %s (%d soft bounces)",
                conf.hash_address(address),
                limit,
                extra=make_extra(
                    {"source": Unsubscribe.Source.BOUNCE.value, "ses_id": event.ses_message_id},
                    recipients=[address],
                ),
            )

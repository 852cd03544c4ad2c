"""From feedback to suppression: who bounced for good or complained is not written to again.

``suppress`` listens to django-bouncy's ``feedback`` signal (``apps`` connects it), so it serves
any sender of it; without django-bouncy there is nothing to listen to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from django.db import router
from django.db.models import Q

from connect_mailer.conf import MAX_LIST_LENGTH, conf
from connect_mailer.feedback import events, records
from connect_mailer.feedback.events import Event
from connect_mailer.logs import make_extra
from connect_mailer.models import OutgoingMessage, OutgoingRecipient, Unsubscribe
from connect_mailer.signals import DISPATCH_UID as DISPATCH_UID

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Batch:
    """What the rows of one notification ask for, and whom all of them may be about."""

    message: Mapping[str, Any]
    destination: frozenset[str] | None = None
    wanted: dict[tuple[str, str], str] = field(default_factory=dict)


_batch: ContextVar[_Batch | None] = ContextVar("batch", default=None)


@contextmanager
def together(message: Mapping[str, Any]) -> Iterator[None]:
    """Write what the signals of one notification ask for at the end, each address once."""
    batch = _Batch(message=message)
    token = _batch.set(batch)
    try:
        yield
    finally:
        _batch.reset(token)
    if batch.wanted:
        _suppress_all(batch.wanted, partial(_read_mailing_list, message))


def suppress(
    sender: Any,
    instance: Any,
    message: Mapping[str, Any],
    **kwargs: Any,
) -> None:
    """Receive ``feedback``: add an ``Unsubscribe`` where the row is a reason for one.

    A permanent bounce counts as ``bounce``, or as ``user`` where SES says that the recipient
    unsubscribed (of the mailing list of the mail, if the outbox knows it), but not while the
    remote server is still trying; a complaint as ``complaint``, whatever its type but
    ``not-spam``.
    """
    source = _find_source(instance)
    if source is None:
        return
    address = _find_address(instance, message)
    if address is None:
        logger.warning(
            "%s %s is not about a recipient of the mail: nobody is unsubscribed (%s)",
            type(instance).__name__,
            instance.pk,
            conf.hash_address(instance.address),
            extra=make_extra({"ses_id": instance.mail_id}, recipients=[instance.address]),
        )
        return
    wanted = {(address, source): _explain(instance)}
    batch = _batch.get()
    if batch is None:
        _suppress_all(wanted, partial(_read_mailing_list, message, instance.mail_id))
    else:
        batch.wanted |= wanted


def follow_subscription(event: Event) -> None:
    """Do as a reader told SES's own subscription management, whose topics are the site's lists.

    Events of another contact list than ``SES_CONTACT_LIST`` are not this site's. They come in any
    order, and late: one takes back only what happened before it, or nothing where it doesn't say
    when, so that who opted out since is not written to.

    Source: Amazon SNS FAQs, "Features and functionality" (standard topics: best-effort ordering).
    """
    contact_list = conf.ses.contact_list
    if not contact_list or event.details.get("contactList") != contact_list:
        return
    address = events.read_address(event.destination[0]) if len(event.destination) == 1 else None
    if address is None:
        logger.warning("A subscription event does not say whom it is about")
        return
    happened_at = records.make_own_time(event.happened_at)
    for mailing_list, is_left in sorted(events.read_choices(event).items()):
        if len(mailing_list) <= MAX_LIST_LENGTH and (
            Unsubscribe.objects.opt_out(address, mailing_list, at=happened_at)
            if is_left
            else happened_at is not None
            and Unsubscribe.objects.come_back(address, mailing_list, before=happened_at)
        ):
            logger.info(
                "%s %s %r in SES",
                conf.hash_address(address),
                "opted out of" if is_left else "came back to",
                mailing_list or "all mail",
                extra=make_extra({"event": event.kind, "source": "user"}, recipients=[address]),
            )


def suppress_all(event: Event) -> None:
    """Do for all recipients of an event what ``suppress`` does for one row."""
    if wanted := find_wanted(event):
        _suppress_all(wanted, partial(_find_mailing_list, event.tag, event.ses_message_id))


def is_opt_out(event: Event) -> bool:
    """Whether SES refused the mail because its recipient unsubscribed, there."""
    source = _judge_bounce(event.type, event.subtype, None)
    return event.kind == events.BOUNCE and source == Unsubscribe.Source.USER


def find_wanted(event: Event) -> dict[tuple[str, str], str]:
    """The rows of ``Unsubscribe`` that an event asks for: address, source, and why."""
    wanted: dict[tuple[str, str], str] = {}
    destination: frozenset[str] | None = None
    for recipient in event.recipients:
        if event.kind == events.COMPLAINT:
            detail = events.read_text(event.details.get("complaintFeedbackType")) or ""
            source = _judge_complaint(detail)
        elif event.kind == events.BOUNCE:
            code = recipient.diagnostic_code or recipient.status
            detail = events.describe_bounce(event.type, event.subtype, code)
            source = _judge_bounce(event.type, event.subtype, recipient.action)
        else:
            return {}
        if source is None:
            continue
        if destination is None:
            destination = frozenset(event.destination) or _find_recipients(event.ses_message_id)
        address = events.find_addressee(recipient.address, destination)
        address = None if address is None else events.read_address(address)
        if address is None:
            logger.warning(
                "%s is not about a recipient of the mail: nobody is unsubscribed (%s)",
                event.kind,
                conf.hash_address(recipient.address),
                extra=make_extra(
                    {"event": event.kind, "ses_id": event.ses_message_id},
                    recipients=[recipient.address],
                ),
            )
        else:
            wanted[address, source] = detail
    return wanted


def _find_source(row: Any) -> str | None:
    from django_bouncy.models import Bounce, Complaint

    if isinstance(row, Complaint):
        return _judge_complaint(row.feedback_type)
    if not isinstance(row, Bounce):
        return None
    return _judge_bounce(events.PERMANENT if row.hard else "", row.bounce_subtype, row.action)


def _explain(row: Any) -> str:
    """Why, for who asks why an address is not written to."""
    from django_bouncy.models import Complaint

    if isinstance(row, Complaint):
        return row.feedback_type or ""
    code = row.diagnostic_code or row.status
    return events.describe_bounce(row.bounce_type, row.bounce_subtype, code)


def _judge_complaint(feedback_type: str | None) -> str | None:
    return None if events.is_not_spam(feedback_type) else Unsubscribe.Source.COMPLAINT.value


def _judge_bounce(kind: str, subtype: str, action: str | None) -> str | None:
    if kind != events.PERMANENT or events.is_delayed(action):
        return None
    if subtype == events.UNSUBSCRIBED:
        return Unsubscribe.Source.USER.value
    return Unsubscribe.Source.BOUNCE.value


def _find_address(row: Any, message: Mapping[str, Any]) -> str | None:
    reported = events.read_address(row.address)
    if reported is None:
        return None
    batch = _batch.get()
    if batch is None or batch.message is not message:
        destination = _find_destination(row, message)
    else:
        # The same for all rows, and there may be fifty.
        if batch.destination is None:
            batch.destination = _find_destination(row, message)
        destination = batch.destination
    address = events.find_addressee(reported, destination)
    return None if address is None else events.read_address(address)


def _find_destination(row: Any, message: Mapping[str, Any]) -> frozenset[str]:
    if destination := events.read_destination(message):
        return frozenset(destination)
    return _find_recipients(row.mail_id)


def _find_recipients(ses_message_id: str) -> frozenset[str]:
    return frozenset(
        OutgoingRecipient.objects.filter(message__ses_message_id=ses_message_id)
        .exclude(message__ses_message_id="")
        .exclude(status=OutgoingRecipient.Status.SUPPRESSED)
        .values_list("address", flat=True)
    )


def _suppress_all(
    wanted: Mapping[tuple[str, str], str], find_mailing_list: Callable[[], str]
) -> None:
    user = Unsubscribe.Source.USER
    if others := {key: why for key, why in wanted.items() if key[1] != user}:
        records.suppress(others)
        log_suppressed(others)
    if opt_outs := {key[0]: why for key, why in wanted.items() if key[1] == user}:
        # SES refuses mail to who left one topic of the contact list, which is one mailing list.
        mailing_list = find_mailing_list()
        for address in Unsubscribe.objects.opt_out_all(opt_outs, mailing_list):
            logger.info(
                "%s opted out of %r, as SES says",
                conf.hash_address(address),
                mailing_list or "all mail",
                extra=make_extra({"source": user.value}, recipients=[address]),
            )


def _read_mailing_list(message: Mapping[str, Any], ses_message_id: str = "") -> str:
    event = events.read(message)
    if event is None:
        return _find_mailing_list(None, ses_message_id)
    return _find_mailing_list(event.tag, event.ses_message_id)


def _find_mailing_list(tag: UUID | None, ses_message_id: str) -> str:
    """The mailing list of the mail, by our tag or else by SES's id; blank: none is known."""
    found = OutgoingMessage.objects.using(router.db_for_write(OutgoingMessage))
    for which in (Q(uuid=tag) if tag else None, OutgoingMessage.has_ses_id(ses_message_id)):
        if which is not None:
            for mailing_list in found.filter(which).values_list("mailing_list", flat=True)[:1]:
                return mailing_list
    return ""


def log_suppressed(wanted: Iterable[tuple[str, str]]) -> None:
    """Say who is not written to any more, and from what source."""
    if logger.isEnabledFor(logging.INFO):
        for address, source in wanted:
            logger.info(
                "Not written to any more: %s (%s)",
                conf.hash_address(address),
                source,
                extra=make_extra({"source": source}, recipients=[address]),
            )

"""The e-mail backends, by the names that settings use."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import django
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.db import Error, transaction

from connect_mailer import tasks, telemetry
from connect_mailer.conf import conf
from connect_mailer.exceptions import DeliveryError, InvalidAddress, InvalidMessage, MessagesRefused
from connect_mailer.logs import mask
from connect_mailer.models import MAX_RECIPIENTS, OutgoingMessage
from connect_mailer.optout import headers as optout_headers
from connect_mailer.sending import envelope, log_mail, outbox
from connect_mailer.sending.envelope import Draft, Options
from connect_mailer.sending.suppression import Suppression

logger = logging.getLogger(__name__)


class _Backend(BaseEmailBackend):
    """What the backends share: options as arguments or as ``OPTIONS`` in ``MAILERS``."""

    def __init__(
        self,
        fail_silently: bool = False,
        *,
        stream: str = OutgoingMessage.Stream.DEFAULT,
        priority: int = 5,
        mailing_list: str = "",
        send_after: datetime | None = None,
        expires_at: datetime | None = None,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if django.VERSION < (6, 1):
            kwargs["fail_silently"] = fail_silently
        super().__init__(**kwargs)
        self.fail_silently = fail_silently
        self.options = Options(
            stream=stream,
            priority=priority,
            mailing_list=mailing_list,
            send_after=send_after,
            expires_at=expires_at,
            tags=tags,
            metadata=metadata or {},
        )

    def _read(
        self, messages: Sequence[EmailMessage]
    ) -> tuple[list[Draft], list[tuple[EmailMessage, Exception]]]:
        drafts: list[Draft] = []
        errors: list[tuple[EmailMessage, Exception]] = []
        for message in messages:
            try:
                draft = envelope.read(message, self.options)
            except (InvalidAddress, InvalidMessage) as error:
                errors.append((message, error))
            else:
                if draft.recipients:
                    drafts.append(draft)
        return drafts, errors


class ConnectMailerBackend(_Backend):
    """Queues: suppresses, freezes, stores in the caller's transaction, and wakes a worker.

    Args:
        fail_silently: log what could not be queued instead of raising it.
        stream: ``"default"``, or ``"transactional"`` for account mail: opt-outs don't stop
            it, and it leaves before all else.
        priority: 0 (first) to 9 (last), within the stream.
        mailing_list: the list that the mail is of, for opt-outs of one list alone.
        send_after, expires_at: not before; not after (it ends ``expired``).
        tags, metadata: go to SES as message tags.

    A message's attributes of the same names win over these; tags and metadata add up.
    """

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Queue messages; return how many. Suppressed ones don't count.

        Nothing is sent before the transaction commits, or at all where it rolls back.

        Raises:
            MessagesRefused: some can't be sent as they are; the others are queued.
            DatabaseError: the outbox is out of reach; nothing is queued. The caller's
                transaction stays usable.
        """
        messages = list(email_messages or ())
        using = outbox.get_database()
        if not messages or log_mail.is_one_too_many(using=using):
            return 0
        drafts, errors = self._read(messages)
        try:
            with telemetry.queueing(len(drafts)):
                queued = self._queue(drafts, errors, using)
        except Error:
            if not self.fail_silently:
                raise
            with log_mail.at_work():
                logger.exception("%d messages could not be queued.", len(messages))
            return 0
        if errors:
            order = {id(message): place for place, message in enumerate(messages)}
            errors.sort(key=lambda pair: order[id(pair[0])])
            refused = MessagesRefused(errors, accepted=queued, total=len(messages))
            if not self.fail_silently:
                raise refused from errors[0][1]
            with log_mail.at_work():
                logger.error("%s", mask(refused))
        return queued

    def _queue(
        self, drafts: list[Draft], errors: list[tuple[EmailMessage, Exception]], using: str
    ) -> int:
        if not drafts:
            return 0
        if len(drafts) == 1 and _store_at_once(drafts[0], using):
            tasks.wake_on_commit(using=using)
            return 1
        with transaction.atomic(using=using):
            suppression = Suppression.load(
                recipient.address.key for draft in drafts for recipient in draft.recipients
            )
            batch: list[outbox.Frozen] = []
            queued = 0
            for draft in drafts:
                draft = draft.judged_by(suppression)
                try:
                    batch += _freeze(draft)
                except InvalidMessage as error:
                    errors.append((draft.message, error))
                else:
                    queued += bool(draft.kept)
            rows = outbox.store(batch, using=using)
            outbox.announce_suppressed(rows, using=using)
            if queued:
                tasks.wake_on_commit(using=using)
        return queued


class TransactionalBackend(ConnectMailerBackend):
    """The same for account mail, such as password resets: ``stream="transactional"``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("stream", OutgoingMessage.Stream.TRANSACTIONAL)
        super().__init__(*args, **kwargs)


# As Connect called what sent without its filter: for mail that opt-outs must not stop, which
# django-allauth's adapter asked for (``ACCOUNT_IGNORE_UNSUBSCRIBE``).
DefaultBackend = TransactionalBackend


class SESBackend(_Backend):
    """Sends directly through SES, one call an envelope: no queue, no filter, no pacing.

    The default transport of the queue, and usable alone, for mail that must not depend on
    the database (reports of errors).
    """

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Send messages; return how many. It stops at the first that SES doesn't take.

        Raises:
            MessagesRefused: some can't be sent as they are; the others are sent.
            DeliveryError: SES did not take one; the child says why.
        """
        from connect_mailer.sending.transport import get_ses_client  # not by who only queues

        messages = list(email_messages or ())
        drafts, errors = self._read(messages)
        client = get_ses_client()
        sent = 0
        try:
            for draft in drafts:
                try:
                    mime = envelope.freeze(draft)
                except InvalidMessage as error:
                    errors.append((draft.message, error))
                    continue
                for call in draft.split(MAX_RECIPIENTS, mime):
                    client.send(call)
                sent += 1
        except DeliveryError as error:
            if not self.fail_silently:
                raise
            logger.error("SES did not take a message: %s", mask(error))
        if errors and not self.fail_silently:
            raise MessagesRefused(errors, accepted=sent, total=len(messages)) from errors[0][1]
        return sent


def _store_at_once(draft: Draft, using: str) -> bool:
    """Store one message to whom nobody objects, in one round trip to the database.

    ``False``: nothing was done, as it takes more than that.
    """
    if not outbox.can_store_at_once(draft, using=using) or len(_take_apart(draft)) > 1:
        return False
    try:
        (frozen,) = _freeze(draft)
    except InvalidMessage:
        return False  # which is no mistake where all recipients are suppressed
    return outbox.store_unless_suppressed(frozen, using=using)


def _freeze(draft: Draft) -> list[outbox.Frozen]:
    """The message as it is stored: once, or once for each reader with her own link."""
    if not draft.kept:
        return [outbox.Frozen(draft=draft, mime=None)]
    # Frozen as the whole that it is: its readers see to whom else it went.
    return [
        outbox.Frozen(draft=part, mime=envelope.freeze(draft, _make_headers(part)))
        for part in _take_apart(draft)
    ]


def _take_apart(draft: Draft) -> list[Draft]:
    """``UNSUBSCRIBE_SPLIT``: each reader gets a copy, if that gives her a link of her own."""
    is_split = (
        conf.unsubscribe_split
        and draft.options.stream == OutgoingMessage.Stream.DEFAULT
        and not draft.has_way_out
    )
    return draft.apart() if is_split else [draft]


def _make_headers(draft: Draft) -> dict[str, str]:
    """One-click opt-out, where exactly one reader can follow the link."""
    if draft.options.stream != OutgoingMessage.Stream.DEFAULT or len(draft.kept) != 1:
        return {}
    if conf.ses_contact_list:
        return {}  # SES writes its own
    return optout_headers.for_recipient(
        draft.kept[0].address.key, mailing_list=draft.options.mailing_list
    )

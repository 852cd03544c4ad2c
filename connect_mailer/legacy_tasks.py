"""Tasks that older apps had queued when a site moved over: into the outbox, once.

They have the names that those apps gave them, so a worker that finds one in the broker runs
it here. A task that the broker delivers twice is queued once: its Celery id is remembered,
for as long as those of notifications are. It is acknowledged only once that is done, and tried
again while the database is out of reach, or not migrated yet.

Source: seacucumber 1.5.2, ``tasks.py``; django-celery-email 3.0.0, ``tasks.py`` and
``utils.py``. Both ask Celery for its default serialiser, which was pickle before Celery 4: such
tasks are run only where the site's ``accept_content`` has ``"pickle"``.
"""

from __future__ import annotations

import base64
import email
import email.policy
import logging
from collections.abc import Mapping, Sequence
from email.utils import getaddresses
from typing import Any, Final
from uuid import uuid4

from celery import shared_task
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.db import Error, IntegrityError, transaction

from connect_mailer.addresses import find_key
from connect_mailer.exceptions import MessagesRefused
from connect_mailer.models import NotificationReceipt

logger = logging.getLogger(__name__)

# What django-celery-email's dict has that is an argument of Django's message; the rest of it
# are attributes.
_ARGUMENTS: Final = (
    *("subject", "body", "from_email", "to", "bcc", "headers", "cc", "reply_to", "alternatives"),
)
_LOSES_NOTHING: Final[dict[str, Any]] = {
    "bind": True,
    "ignore_result": True,
    "acks_late": True,
    "reject_on_worker_lost": True,
    "autoretry_for": (Error,),
    "max_retries": None,
    "retry_backoff": True,  # 1 s, 2 s, 4 s, ... and at most 10 minutes
}
_OPT_OUT_HEADERS: Final = ("List-Unsubscribe", "List-Unsubscribe-Post")


@shared_task(name="seacucumber.tasks.SendEmailTask", **_LOSES_NOTHING)
def send_email(task: Any, /, from_email: str, recipients: Sequence[str], message: str) -> None:
    """A message of seacucumber: the whole of it as text, and whom it goes to."""
    _queue(task.request.id, [_read_mime(from_email, recipients, message)])


@shared_task(name="djcelery_email_send_multiple", **_LOSES_NOTHING)
def send_multiple(
    task: Any,
    /,
    messages: Sequence[Mapping[str, Any]],
    backend_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> None:
    """Messages of django-celery-email: dicts of what Django's messages are made of."""
    _queue(task.request.id, [_read_dict(message) for message in messages])


@shared_task(name="djcelery_email_send", **_LOSES_NOTHING)
def send(
    task: Any, /, message: Mapping[str, Any], backend_kwargs: Any = None, **kwargs: Any
) -> None:
    """One message, as older releases of django-celery-email queued them."""
    _queue(task.request.id, [_read_dict(message)])


def _queue(task_id: str | None, messages: Sequence[EmailMessage]) -> None:
    # Loaded when a task comes: most sites never have one.
    from connect_mailer.backend import ConnectMailerBackend
    from connect_mailer.sending import outbox

    using = outbox.get_database()
    receipts = NotificationReceipt.objects.using(using)
    with transaction.atomic(using=using):
        try:
            with transaction.atomic(using=using):
                receipts.create(message_id=f"task {task_id or uuid4()}")
        except IntegrityError:
            logger.info("The task %s was queued before.", task_id)
            return
        try:
            ConnectMailerBackend().send_messages(messages)
        except MessagesRefused as error:
            # The others are queued; these can't be sent as they are, by whatever app.
            logger.error("Of the task %s: %s", task_id, error)


def _read_mime(from_email: str, recipients: Sequence[str], text: str) -> EmailMessage:
    from connect_mailer.sending.ses import Envelope
    from connect_mailer.sending.transport import FrozenMessage

    mime = text.encode("utf-8", "surrogateescape").replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    parsed = email.message_from_bytes(mime, policy=email.policy.SMTP)
    # The app writes these headers itself, and keeps those of a message that has them.
    own = {name: str(parsed[name]) for name in _OPT_OUT_HEADERS if name in parsed}
    if own:
        for name in own:
            del parsed[name]
        mime = parsed.as_bytes()
    message = FrozenMessage(
        Envelope(sender=from_email, recipients=tuple(recipients), mime=mime, tags={})
    )
    message.extra_headers = own
    # The envelope says who gets it, the header only how they are named there.
    named = {
        kind: {find_key(one) for _, one in getaddresses(map(str, parsed.get_all(kind, [])))}
        for kind in ("to", "cc")
    }
    message.to, message.cc, message.bcc = [], [], []
    for recipient in recipients:
        key = find_key(getaddresses([recipient])[0][1])
        kinds = [kind for kind, keys in named.items() if key in keys]
        getattr(message, kinds[0] if kinds else "bcc").append(recipient)
    return message


def _read_dict(values: Mapping[str, Any]) -> EmailMessage:
    arguments = {name: values[name] for name in _ARGUMENTS if name in values}
    make = EmailMultiAlternatives if "alternatives" in values else EmailMessage
    message = make(**arguments)
    for filename, contents, mimetype in values.get("attachments", ()):
        message.attach(filename, base64.b64decode(contents), mimetype)
    for name, value in values.items():
        if name not in (*_ARGUMENTS, "attachments"):
            setattr(message, name, value)
    return message

"""Messages that another app still has to send, into the outbox.

That app's own code makes them, from its templates, attachments and pickles, so it has to be
installed still. What was taken over is done with there in the same transaction, so that neither
app sends it again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from django.apps import apps
from django.core.mail import EmailMessage
from django.db import Error, transaction

from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.exceptions import InvalidMessage, MessagesRefused
from connect_mailer.sending import outbox

_CHUNK: Final = 100


@dataclass(frozen=True, kw_only=True)
class OldQueue:
    """How one app keeps what it has to send."""

    app: str
    """As in ``INSTALLED_APPS``: labels may be those of other apps as well."""
    model: str
    waiting: Mapping[str, Collection[int]]
    """What to filter the rows by."""
    read: Callable[[Any], EmailMessage]
    """The message of a row."""
    finish: Callable[[Any], object]
    """Let that app not send the row."""

    def is_installed(self) -> bool:
        """Whether its own code is there to read it with."""
        return apps.is_installed(self.app)

    def count(self) -> int:
        """How many messages wait."""
        total: int = self._find().count()
        return total

    def take(self, tell: Callable[[int], object] = lambda count: None) -> Taken:
        """Move every message that waits into the outbox; those that can't be sent stay.

        ``tell`` is called with 1 for each that was looked at.
        """
        taken = Taken()
        backend = ConnectMailerBackend()
        using = outbox.get_database()
        for pk in self._walk():
            try:
                with transaction.atomic(using=using):
                    # Gone where that app's own command was faster.
                    for row in self._find().select_for_update().filter(pk=pk):
                        backend.send_messages([self.read(row)])
                        self.finish(row)
                        taken.messages += 1
            except Error:
                raise
            except MessagesRefused as error:
                [(_, reason)] = error.errors
                taken.left[pk] = str(reason)
            except Exception as error:  # noqa: BLE001 (of a template, a file, a pickle: its owner is told)
                taken.left[pk] = str(error)
            tell(1)
        return taken

    def _find(self) -> Any:
        [config] = [one for one in apps.get_app_configs() if one.name == self.app]
        model: Any = config.get_model(self.model)
        return model._base_manager.using(outbox.get_database()).filter(**self.waiting)

    def _walk(self) -> Iterator[Any]:
        last = None
        while True:
            rows = self._find() if last is None else self._find().filter(pk__gt=last)
            pks = list(rows.order_by("pk").values_list("pk", flat=True)[:_CHUNK])
            if not pks:
                return
            last = pks[-1]
            yield from pks


@dataclass(kw_only=True)
class Taken:
    """What became of a queue."""

    messages: int = 0
    left: dict[Any, str] = field(default_factory=dict)
    """Keys of the rows that stay there, and why."""


# Of this app, 0 leaves first. Source: django-post-office 3.12, ``PRIORITY``.
_POST_OFFICE_PRIORITIES: Final = {0: 8, 1: 5, 2: 2, 3: 0}
# Source: the same, ``STATUS``: sent, failed, queued, requeued.
_POST_OFFICE_SENT: Final = 0
_POST_OFFICE_QUEUED: Final = (2, 3)


def _read_post_office(row: Any) -> EmailMessage:
    message: Any = row.email_message()
    message.send_after = row.scheduled_time
    message.expires_at = row.expires_at
    message.priority = _POST_OFFICE_PRIORITIES.get(row.priority, 5)
    read: EmailMessage = message
    return read


def _finish_post_office(row: Any) -> None:
    row.status = _POST_OFFICE_SENT
    row.save(update_fields=["status"])


# Source: django-mailer 2.3, ``PRIORITIES``: high, medium, low, deferred. What is deferred was
# refused once and waits for ``retry_deferred``: it is to be sent, too.
_MAILER_PRIORITIES: Final = {1: 2, 2: 5, 3: 8, 4: 8}


def _read_mailer(row: Any) -> EmailMessage:
    message: Any = row.email
    if message is None:
        raise InvalidMessage("it can't be read: what it was pickled from is no longer there")
    message.priority = _MAILER_PRIORITIES.get(row.priority, 5)
    read: EmailMessage = message
    return read


QUEUES: Final = {
    "post-office": OldQueue(
        app="post_office",
        model="Email",
        waiting={"status__in": _POST_OFFICE_QUEUED},
        read=_read_post_office,
        finish=_finish_post_office,
    ),
    "django-mailer": OldQueue(
        app="mailer",
        model="Message",
        waiting={"priority__in": tuple(_MAILER_PRIORITIES)},
        read=_read_mailer,
        finish=lambda row: row.delete(),
    ),
}
"""By the name of the source of ``mailer_import``."""

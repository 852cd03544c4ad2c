"""What becomes of mail, told as SES tells it: SNS notifications posted to a site's webhook."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from connect_mailer.testing.ses import Mail
from connect_mailer.testing.sns import (
    MESSAGE_ID_TAG,
    SNSSigner,
    make_bounce,
    make_complaint,
    make_delivery,
    make_event,
    make_mail,
)

SIMULATOR: Final = "simulator.amazonses.com"

# SNS tries again this often, so many seconds apart, where the answer is not 2xx or 4xx.
# Source: SNS developer guide, "Message delivery retries", the default of an HTTP endpoint.
RETRIES: Final = 3
RETRY_SECONDS: Final = 20.0


class FeedbackPublisher:
    """Answers mail to the mailbox simulator, through signed notifications to ``url``.

    Give it to ``LocalSES(on_accepted=…)``. ``bounce@simulator.amazonses.com`` bounces for
    good, ``suppressionlist@`` as well, ``ooto@`` is a soft bounce (an automatic answer),
    ``complaint@`` is delivered and then complains, ``success@`` is delivered; labels
    (``bounce+label@``) work. With ``events``, all other mail has its ``Send`` and
    ``Delivery`` events, too, and notifications are of the form that event publishing has.
    ``delay_seconds`` pass between a mail and what is told about it; without ``events`` a site
    knows the mail by SES's answer alone, which it must have recorded by then.

    Source: SES developer guide, "Using the mailbox simulator", and "Contents of Amazon SNS
    notifications for Amazon SES" (bounce types).
    """

    def __init__(
        self,
        signer: SNSSigner,
        url: str,
        *,
        events: bool = False,
        delay_seconds: float = 0.0,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._signer = signer
        self._url = url
        self._events = events
        self._delay_seconds = delay_seconds
        self._retry_seconds = retry_seconds
        self._mails: queue.Queue[tuple[Mail, float] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="sns")
        self.statuses: list[int] = []
        """Of every post, in order; 0: there was no answer."""
        self._thread.start()

    def __call__(self, mail: Mail) -> None:
        """Publish what becomes of ``mail``, soon and in another thread."""
        self._mails.put((mail, time.monotonic() + self._delay_seconds))

    def flush(self) -> None:
        """Wait until everything so far is published."""
        self._mails.join()

    def close(self) -> None:
        """Publish what is left, and end."""
        self._mails.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._mails.get()) is not None:
            mail, due_at = item
            try:
                for message in self._make_messages(mail):
                    time.sleep(max(0.0, due_at - time.monotonic()))
                    self._post(self._signer.notification(message, version="2"))
            finally:
                self._mails.task_done()
        self._mails.task_done()

    def _post(self, body: str) -> None:
        for attempt in range(RETRIES + 1):
            try:
                status = self._signer.post(self._url, body)
            except OSError:
                status = 0
            self.statuses.append(status)
            if 200 <= status < 500 and status != 429:
                return
            if attempt < RETRIES:
                time.sleep(self._retry_seconds)

    def _make_messages(self, mail: Mail) -> Iterator[dict[str, Any]]:
        about: Mapping[str, Any] = make_mail(
            mail.recipients,
            source=mail.sender,
            ses_message_id=mail.message_id,
            tag=mail.tags.get(MESSAGE_ID_TAG) if self._events else None,
        )
        if self._events:
            yield make_event("Send", mail=about)
        for recipient in mail.recipients:
            local, _, domain = recipient.lower().rpartition("@")
            kind = local.partition("+")[0] if domain == SIMULATOR else ""
            options: dict[str, Any] = {"mail": about, "event": self._events}
            if kind == "bounce":
                yield make_bounce([recipient], **options)
            elif kind == "suppressionlist":
                yield make_bounce([recipient], subtype="OnAccountSuppressionList", **options)
            elif kind == "ooto":
                yield make_bounce([recipient], bounce_type="Transient", **options)
            elif kind or self._events:
                yield make_delivery([recipient], **options)
            if kind == "complaint":
                yield make_complaint([recipient], **options)

"""Signals, each sent robustly, after commit: a receiver that raises stops nothing."""

from __future__ import annotations

from typing import Final

from django.dispatch import Signal

# Of the outbox; the sender is the class ``OutgoingMessage``.

message_sent = Signal()
"""The transport took ``message``, an ``OutgoingMessage``."""

message_failed = Signal()
"""``message`` ended ``failed`` or ``expired``; ``message.last_error`` says why."""

message_suppressed = Signal()
"""Nobody was left to write ``message`` to, when it was queued or when it was to be sent."""

# Of readers; the sender is the class ``Unsubscribe``.

unsubscribed = Signal()
"""A reader opted out, who had not before. It has ``address`` (normalised) and ``mailing_list``
(blank for all mail)."""

resubscribed = Signal()
"""An opt-out was taken back, by the reader or because she registered again. It has ``address`` and
``mailing_list``. Another reason not to write to her (a bounce, a complaint) may still be there."""

# Of the one that listens to django-bouncy's ``feedback`` for this app.
DISPATCH_UID: Final = "connect_mailer.feedback.suppress"

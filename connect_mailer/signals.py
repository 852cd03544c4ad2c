"""Signals, each sent robustly, after commit.

Of the outbox, with ``message=`` the row; the sender is the class ``OutgoingMessage``:

``message_sent``
    The transport took an ``OutgoingMessage``.
``message_failed``
    An ``OutgoingMessage`` ended ``failed`` or ``expired``; ``message.last_error`` says why.
``message_suppressed``
    Nobody was left to write to, when queued or when sent.

Of readers, with ``address=`` (normalised) and ``mailing_list=`` (blank: all mail); the sender
is the class ``Unsubscribe``:

``unsubscribed``
    A reader opted out, who had not before.
``resubscribed``
    An opt-out was taken back, by the reader or because she registered again. Another reason
    not to write to her (a bounce, a complaint) may still be there.
"""

from __future__ import annotations

from django.dispatch import Signal

message_sent = Signal()
message_failed = Signal()
message_suppressed = Signal()
unsubscribed = Signal()
resubscribed = Signal()

"""Signals of the outbox. Each is sent robustly, after commit, with ``message=`` the row.

``message_sent``
    The transport took an ``OutgoingMessage``.
``message_failed``
    An ``OutgoingMessage`` ended ``failed`` or ``expired``; ``message.last_error`` says why.
``message_suppressed``
    Nobody was left to write to, when queued or when sent.

The sender is the class ``OutgoingMessage``.
"""

from __future__ import annotations

from django.dispatch import Signal

message_sent = Signal()
message_failed = Signal()
message_suppressed = Signal()

"""The operator's desk: how the mail is doing, what became of each message, who is left out."""

from __future__ import annotations

from connect_mailer.admin.health import HealthAdmin
from connect_mailer.admin.messages import OutgoingMessageAdmin
from connect_mailer.admin.unsubscribes import UnsubscribeAdmin

__all__ = ["HealthAdmin", "OutgoingMessageAdmin", "UnsubscribeAdmin"]

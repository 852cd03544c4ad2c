"""Every exception of the app: one root, and one child for each decision that a caller makes.

Where a caller would already catch a built-in (``ValueError`` for bad input, Django's
``ImproperlyConfigured`` for settings), the child is that built-in as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core.exceptions import ImproperlyConfigured


class ConnectMailerError(Exception):
    """The root: ``except ConnectMailerError`` catches all that the app raises itself."""


class ConfigurationError(ConnectMailerError, ImproperlyConfigured):
    """A setting has a value that can't be used. The text names it and the way out."""


# What callers of the backends see


class InvalidAddress(ConnectMailerError, ValueError):
    """An address that can't be written to. The text names it and says why."""


class InvalidMessage(ConnectMailerError, ValueError):
    """One message that can't be sent as it is. The text says what to change."""


class MessagesRefused(InvalidMessage):
    """Some messages of one ``send_messages()`` call were refused; the others were accepted.

    ``errors`` has one ``(message, exception)`` pair a refused message, in order; ``accepted``
    is the number that the call would have returned.
    """

    def __init__(
        self, errors: Sequence[tuple[Any, Exception]], *, accepted: int, total: int
    ) -> None:
        self.errors = list(errors)
        self.accepted = accepted
        reasons = "; ".join(
            f"{str(getattr(message, 'subject', message))!r}: {error}"
            for message, error in self.errors
        )
        super().__init__(
            f"{len(self.errors)} of {total} messages refused, {accepted} accepted. {reasons}"
        )


# What a delivery may answer: each child is one row of the table in ``sending/ses.py``


class DeliveryError(ConnectMailerError):
    """A transport did not take a message. The text is the transport's own words."""


class Throttled(DeliveryError):
    """Sent too fast. Slow down for all; the attempt does not count."""


class AccountProblem(DeliveryError):
    """Quota, pause, suspension or credentials: nothing can be sent for a while."""


class SenderDenied(DeliveryError):
    """This sender may not send (identity not verified, access denied): back off."""


class Unavailable(DeliveryError):
    """The transport is out of reach or failed before it took the message: try again."""


class InDoubt(DeliveryError):
    """The request was written and no answer came: the message may have been sent."""


class Rejected(DeliveryError):
    """Refused for good: this message will never be sent."""


# What an operator's commands see


class AccountError(ConnectMailerError):
    """AWS did not do what an operator asked for. The text has the action and AWS's words.

    ``action`` is named as in IAM policies (``ses:GetAccount``), ``code`` is AWS's own, empty
    where AWS was not reached.
    """

    def __init__(self, *, action: str, code: str, words: str) -> None:
        self.action = action
        self.code = code
        super().__init__(f"{action}: {f'{code}: ' if code else ''}{words}")

    @property
    def is_denied(self) -> bool:
        """Whether the credentials are good, and not allowed to do that."""
        return self.code in (
            "AccessDenied",
            "AccessDeniedException",
            "AuthorizationError",
            "AuthorizationErrorException",
        )

    @property
    def is_missing(self) -> bool:
        """Whether there is no such thing."""
        return self.code in ("NotFound", "NotFoundException")


# What the opt-out page answers


class InvalidToken(ConnectMailerError, ValueError):
    """An unsubscribe link that this site did not write, or that was altered: answer 404."""


# What the limiter and the webhook answer


class LimiterUnavailable(ConnectMailerError):
    """The shared limiter is out of reach, so nothing may be sent."""


class NotificationRefused(ConnectMailerError):
    """Forged, foreign or malformed: answer 400 and write nothing."""


class NotificationUndecided(ConnectMailerError):
    """It could not be decided now whether a notification is genuine: answer 503."""

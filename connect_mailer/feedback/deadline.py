"""One deadline for a request: all that it waits for shares the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from connect_mailer.exceptions import NotificationUndecided

# SNS waits 15 s for an answer, and then sends the notification again.
# Source: Amazon SNS Developer Guide, "Amazon SNS message delivery retries".
ANSWER_SECONDS: Final = 9.0


class Deadline:
    """When a request that began now has to be answered."""

    def __init__(
        self, seconds: float = ANSWER_SECONDS, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._ends_at = clock() + seconds

    def left(self, at_most: float = ANSWER_SECONDS) -> float:
        """Seconds that may be waited for something, ``at_most`` so many.

        Raises:
            NotificationUndecided: there are none.
        """
        seconds = min(at_most, self._ends_at - self._clock())
        if seconds <= 0:
            raise NotificationUndecided("the time for an answer is over")
        return seconds

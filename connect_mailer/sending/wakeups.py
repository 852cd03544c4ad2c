"""Names of the leases by which drains, and those who ask for them, know of each other."""

from __future__ import annotations

from typing import Final

# Nothing is sent until it ends; its note says why.
PAUSE: Final = "pause"
# A drain was asked for and has not looked yet.
WAKE: Final = "wake"
# The broker did not take the last wake-up.
BROKER_DOWN: Final = "broker down"
# The drains that run could do with another one.
HELP: Final = "help"


def name_drain(number: int) -> str:
    """The lease of the drain ``number``, from 1."""
    return f"drain {number}"

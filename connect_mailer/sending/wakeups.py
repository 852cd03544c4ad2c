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

# A process that knows of a drain that is asked for, or runs, asks for no other one for so long:
# who queues mail one by one in a loop asks the database once. A drain looks for the last time
# this long after others could know of it.
REMEMBER_SECONDS: Final = 0.1


def name_drain(number: int) -> str:
    """The lease of the drain ``number``, from 1."""
    return f"drain {number}"

"""``tests.site`` with the clock of ``CLOCK_OFF_SECONDS``."""

from __future__ import annotations

import os
import sys

from tests.faults import clock

clock.put_off(float(os.environ["CLOCK_OFF_SECONDS"]))

from tests.site.__main__ import main  # noqa: E402 - with that clock

main(*sys.argv[1:])

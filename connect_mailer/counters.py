"""What this process counted and timed, as ``prometheus_client`` keeps it.

Only ``telemetry`` and ``metrics`` import it, where that package is installed.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Histogram

PREFIX: Final = "connect_mailer"
STREAMS: Final = ("default", "transactional")

# By the names that who counts knows them by. A metric's name ends with what one of it is.
_COUNTERS: Final = {
    "queued": ("queued_messages", "Messages that were stored to be sent."),
    "sent": ("sent_messages", "Messages that were sent."),
    "failed": ("failed_messages", "Messages that failed or expired."),
    "in_doubt": ("in_doubt_messages", "Calls of SendEmail to which no answer came."),
    "written": ("written_recipients", "Recipients who were written to."),
    "suppressed": ("suppressed_recipients", "Recipients who may not be written to."),
    "delivered": ("delivered_recipients", "Recipients whose server took the mail."),
    "bounced": ("bounced_recipients", "Recipients who bounced for good."),
    "soft_bounced": ("soft_bounced_recipients", "Recipients who bounced for now."),
    "complained": ("complained_recipients", "Recipients who complained."),
}


def _make_counters() -> dict[tuple[str, str], Counter]:
    counters: dict[tuple[str, str], Counter] = {}
    for name, (metric, text) in _COUNTERS.items():
        counter = Counter(f"{PREFIX}_{metric}", text, ["stream"])
        # Those that are not raised yet are 0, or a first failure would be no increase.
        counters |= {(name, stream): counter.labels(stream) for stream in STREAMS}
    return counters


# By name and stream.
COUNTERS: Final = _make_counters()
LIMITER_WAIT: Final = Histogram(
    f"{PREFIX}_limiter_wait_seconds",
    "Waits that the limiter asked for.",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
SES_CALL: Final = Histogram(
    f"{PREFIX}_ses_call_seconds", "How long SendEmail took, by what came of it.", ["answer"]
)
SES_CALL.labels("Sent")

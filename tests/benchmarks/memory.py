"""What a drain's process has in memory at most: for a small and a large backlog, and large mail.

A drain holds what it is about to send and no more, so the backlog makes no difference, and of
messages of 40 MB, the largest that SES takes, it holds one: the body and its request, of which
boto3's own client makes several copies. Real drains in processes of their own, on PostgreSQL,
against a local SES that answers at once; the peak is what Linux says (``VmHWM``).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.benchmarks._site import say

BACKLOGS = (1000, 10_000, 100_000)
LARGE_MESSAGES = 4
# As SES counts, just below its 40 MB.
LARGE_BYTES = 41_000_000
LINE = "x" * 76 + "\n"


def main() -> None:
    """Print the table."""
    from tests.benchmarks import _site

    with _site.servers(), _site.sink(0.0) as ses:
        say(_site.describe("MB of one worker process"))
        say(f"\n{'':<36}{'before':>10}{'at most':>10}{'of the drain':>14}")
        for backlog in BACKLOGS:
            _site.empty()
            _site.queue(backlog)
            _weigh(f"{backlog:,} small messages", backlog, ses.url)
        for client, words in (("lean", ""), ("boto3", ", boto3's client")):
            _site.empty()
            for _ in range(LARGE_MESSAGES):
                _site.queue(1, LINE * (LARGE_BYTES // len(LINE)))
            label = f"{LARGE_MESSAGES} messages of 40 MB{words}"
            _weigh(label, LARGE_MESSAGES, ses.url, client)


def _weigh(label: str, messages: int, url: str, client: str = "lean") -> None:
    from tests.benchmarks import _site

    worker = _site.start("memory", client, SITE_SES_URL=url)
    assert worker.stdout.readline() == "ready\n"
    worker.stdin.write("go\n")
    worker.stdin.flush()
    result = json.loads(worker.stdout.readline())
    worker.communicate()
    assert result["sent"] == messages, (result, messages)
    before, most = result["before"], result["most"]
    say(f"{label:<36}{before:>10.0f}{most:>10.0f}{most - before:>14.0f}")


def work(client: str) -> None:
    """One drain."""
    from tests.benchmarks.drain import make_drain

    drain = make_drain(client)(0)
    say("ready")
    sys.stdin.readline()
    before = _find_peak()
    sent = drain()
    say(json.dumps({"sent": sent, "before": before, "most": _find_peak()}))


def _find_peak() -> float:
    # Not ``ru_maxrss``, which begins with what the parent process had.
    [line] = [one for one in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in one]
    return int(line.split()[1]) * 1024 / 1e6

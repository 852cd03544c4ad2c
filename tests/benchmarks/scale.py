"""One limiter for a large site: 200 drains at 10,000 recipients a second, on one Valkey.

Each drain is a thread that does with the limiter what a drain does, and sends nothing: it asks for
50 rows of one recipient, takes what it is granted, and asks again when the first slot of that
begins. Counted once all have begun.
"""

from __future__ import annotations

import threading
import time

from tests.benchmarks._site import say

DRAINS, RATE, SECONDS = 200, 10_000.0, 10.0
PROCESSES = 4
WARM_UP_SECONDS = 2.0


def main() -> None:
    """Print the table."""
    import redis

    from tests import servers
    from tests.benchmarks import _site

    url = servers.valkey_url()
    say(f"\n{'drains':>8}{'rate':>8}{'used':>9}{'calls/s':>9}{'Valkey, CPU':>13}{'of a drain':>15}")
    for drains, rate in ((2, 500.0), (20, 2000.0), (DRAINS, RATE)):
        with redis.Redis.from_url(url) as client:
            client.flushall()
            client.config_resetstat()
            before = client.info()
            processes = [
                _site.start_module("tests.benchmarks.scale", url, str(share), str(rate))
                for share in _split(drains)
            ]
            counts: list[int] = []
            for process in processes:
                counts += map(int, process.communicate()[0].split())
            after = client.info()
            calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        cpu = sum(
            after[f"used_cpu_{kind}"] - before[f"used_cpu_{kind}"] for kind in ("user", "sys")
        )
        span = SECONDS + WARM_UP_SECONDS
        used = sum(counts) / SECONDS / rate
        each = f"{min(counts)}-{max(counts)}"
        say(f"{drains:>8}{rate:>8.0f}{used:>9.1%}{calls / span:>9.0f}{cpu / span:>13.1%}{each:>15}")


def _split(drains: int) -> list[int]:
    processes = min(PROCESSES, drains)
    return [drains // processes + (number < drains % processes) for number in range(processes)]


def _simulate(url: str, drains: int, rate: float) -> None:
    from connect_mailer.sending.limiter import RedisLimiter

    counts = [0] * drains
    begin = time.monotonic() + WARM_UP_SECONDS
    end = begin + SECONDS

    def drain(number: int) -> None:
        limiter = RedisLimiter(url)
        while (now := time.monotonic()) < end:
            reservation = limiter.reserve([1] * 50, rate)
            counts[number] += reservation.granted if now >= begin else 0
            time.sleep(min(reservation.wait_seconds, max(end - now, 0)))
        limiter.close()

    threads = [threading.Thread(target=drain, args=[number]) for number in range(drains)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say(*counts)


if __name__ == "__main__":
    import sys

    _simulate(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))

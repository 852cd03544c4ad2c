"""How much of the account's rate is used, and how often SES throttles.

Real drains, in processes of their own, with a backlog in PostgreSQL and one limiter in Valkey,
against a local SES that counts as SES does. Start-up is included: the clock starts with the
first message that SES gets, when the drains' connections are still to be opened.

Peers: Celery's ``rate_limit`` and django-ses's throttle know of one process and of messages
only, so with several workers or recipients they are off by that factor; see the documentation.

``LIMITER_SECONDS`` and ``LIMITER_CELLS`` (such as ``8/500/1-50/0.1``: workers, rate, recipients of
a message, the burst that SES allows in seconds; several with spaces) make it shorter.
"""

from __future__ import annotations

import itertools
import os
import random
import time

from tests.benchmarks._site import say

SECONDS = float(os.environ.get("LIMITER_SECONDS", "60"))
WORKERS, RATES, RECIPIENTS, BURSTS = (1, 2, 8), (14, 100, 500), ("1", "5", "1-50"), (1.0, 0.1)


def main() -> None:
    """Print the table."""
    from tests.benchmarks import _site

    cells = [
        (int(workers), float(rate), recipients, float(burst))
        for workers, rate, recipients, burst in (
            cell.split("/") for cell in os.environ.get("LIMITER_CELLS", "").split()
        )
    ] or list(itertools.product(WORKERS, RATES, RECIPIENTS, BURSTS))
    with _site.servers():
        say(_site.describe(f"{SECONDS:.0f} s each"))
        say(
            f"\n{'workers':>8}{'rate':>6}{'recipients':>12}{'burst':>7}{'used':>9}{'throttled':>11}"
        )
        for cell in cells:
            used, throttled = _measure(*cell)
            workers, rate, recipients, burst = cell
            say(
                f"{workers:>8}{rate:>6.0f}{recipients:>12}{burst:>7}{used:>9.1%}{throttled:>11}",
            )


def _measure(workers: int, rate: float, recipients: str, burst: float) -> tuple[float, int]:
    import redis

    from connect_mailer.testing.ses_process import RemoteLocalSES
    from tests.benchmarks import _site

    with redis.Redis.from_url(os.environ["SITE_REDIS_URL"]) as client:
        client.flushall()
    _site.empty()
    low, _, high = recipients.partition("-")
    rng = random.Random(1)
    left, costs = rate * (SECONDS + 5), []
    while left > 0:
        costs.append(rng.randint(int(low), int(high or low)))
        left -= costs[-1]
    _site.queue(len(costs), "Body", costs)
    with RemoteLocalSES(rate=rate, burst_seconds=burst, latency_seconds=0.05) as ses:
        drains = [
            _site.start("limiter", str(SECONDS), SITE_SES_URL=ses.url) for _ in range(workers)
        ]
        for drain in drains:
            assert drain.stdout.readline() == "ready\n"
        for drain in drains:
            drain.stdin.write("go\n")
            drain.stdin.flush()
        while not ses.stats().accepted:
            time.sleep(0.01)
        time.sleep(SECONDS)
        stats = ses.stats()
        for drain in drains:
            drain.terminate()
            drain.communicate()
    # Of the time from the first call to the last, in which the first one's own slot is none.
    return stats.achieved_rate / rate, stats.throttled


def work(seconds: str) -> None:
    """One drain."""
    import sys

    from django.conf import settings

    from connect_mailer.conf import conf
    from connect_mailer.sending.delivery import Drain
    from connect_mailer.sending.limiter import RedisLimiter
    from connect_mailer.sending.rate import account_rate
    from connect_mailer.sending.transport import get_ses_client

    settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "DRAIN_SECONDS": int(float(seconds)) + 60}
    client, redis = get_ses_client(), conf.redis
    assert redis is not None
    rate = account_rate.get(client)
    say("ready")
    sys.stdin.readline()
    Drain(
        transport=client,
        limiter=RedisLimiter(redis.url, redis.options),
        rate=rate,
        using="default",
    ).run()

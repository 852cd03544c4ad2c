"""How much of the account's rate is used over a minute, and how often SES throttles.

Real drains, in processes of their own, with a backlog in PostgreSQL and one limiter in Valkey,
against a local SES that counts as SES does. Start-up is included: the clock starts with the
first message that SES gets, when the drains' connections are still to be opened, and a drain
hands over every 20 seconds, as on a site. *Used* is the part of the minute that is covered by
the messages that came, each for as long as the rate allows it for its recipients.

A cell is ``WHO/WORKERS/RATE/RECIPIENTS/BURST``, such as ``connect_mailer/8/500/1-50/0.1``: rate in
recipients a second, recipients of a message, and for how many seconds' worth at once SES has
patience. The cells of a wave are measured side by side, each with a database, a limiter and an
SES of its own. Every two of the values of workers, rate and recipients meet, with both bursts.

Peers know of one process and of messages only: *Celery* is ``rate_limit`` with the rate divided
by the number of workers, *django-ses* its ``AWS_SES_AUTO_THROTTLE`` as it is set by default.

``LIMITER_SECONDS`` makes it shorter, and ``LIMITER_CELLS`` says which cells (a space between two,
a semicolon between two waves).
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
from contextlib import suppress
from typing import Any

from tests.benchmarks._site import say

SECONDS = float(os.environ.get("LIMITER_SECONDS", "60"))
_FEW = ("1/14/1", "1/100/5", "1/500/1-50", "2/14/5", "2/100/1-50")
_MANY = ("8/14/1-50", "8/100/1")
_LARGE = ("2/500/1", "8/500/5")
_PEERS = ("1/14/1", "2/100/1", "8/100/5")
# As much in a wave as two cores have time for.
WAVES = [
    [f"connect_mailer/{cell}/0.1" for cell in _FEW],
    [f"connect_mailer/{cell}/0.1" for cell in _MANY],
    [f"connect_mailer/{cell}/0.1" for cell in _LARGE],
    [f"connect_mailer/{cell}/1" for cell in _FEW],
    [f"connect_mailer/{cell}/1" for cell in (*_MANY, *_LARGE)],
    [f"{peer}/{cell}/1" for peer in ("celery", "django-ses") for cell in _PEERS],
]


def main() -> None:
    """Print the table."""
    from tests.benchmarks import _site

    chosen = os.environ.get("LIMITER_CELLS", "")
    with _site.servers():
        say(_site.describe(f"{SECONDS:.0f} s each"))
        say(
            f"\n{'':<16}{'workers':>9}{'rate':>6}{'recipients':>12}{'burst, s':>10}{'used':>9}"
            f"{'accepted':>10}{'throttled':>11}"
        )
        for wave in [one.split() for one in chosen.split(";")] if chosen else WAVES:
            for cell, found in zip(wave, _measure(wave), strict=True):
                who, workers, rate, recipients, burst = cell.split("/")
                say(
                    f"{who:<16}{workers:>9}{rate:>6}{recipients:>12}{burst:>10}"
                    f"{found['used']:>9.1%}{found['accepted']:>10}{found['throttled']:>11}"
                )


def _measure(wave: list[str]) -> list[dict[str, Any]]:
    from tests.benchmarks import _site

    url = os.environ["SITE_REDIS_URL"].rpartition("/")[0]
    with _site.copies(len(wave)) as names:
        cells = [
            _site.start("limiter", "cell", cell, SITE_DATABASE=name, SITE_REDIS_URL=f"{url}/{at}")
            for at, (cell, name) in enumerate(zip(wave, names, strict=True), 1)
        ]
        for cell in cells:
            assert cell.stdout.readline() == "ready\n"
        for cell in cells:
            cell.stdin.write("go\n")
            cell.stdin.flush()
        return [json.loads(cell.communicate()[0]) for cell in cells]


def work(what: str, *args: str) -> None:
    """A process of a cell: what measures it, or one of its workers."""
    {"cell": _measure_cell, **ROLES}[what](*args)


def _measure_cell(cell: str) -> None:
    import redis

    from connect_mailer.testing.ses_process import RemoteLocalSES
    from tests.benchmarks import _peers, _site

    who, workers, rate_text, recipients, burst = cell.split("/")
    rate = float(rate_text)
    low, _, high = recipients.partition("-")
    rng = random.Random(1)
    left, costs = rate * (SECONDS + 5), []
    while left > 0:
        costs.append(rng.randint(int(low), int(high or low)))
        left -= costs[-1]
    with redis.Redis.from_url(os.environ["SITE_REDIS_URL"]) as client:
        client.flushdb()
    if who == "connect_mailer":
        _site.queue(len(costs), "Body", costs)
    elif who == "celery":
        _peers.SeacucumberBackend().send_messages(_make_mails(json.dumps(costs)))
    with RemoteLocalSES(rate=rate, burst_seconds=float(burst), latency_seconds=0.05) as ses:
        started = [
            _site.start("limiter", who, str(rate), workers, json.dumps(costs), SITE_SES_URL=ses.url)
            for _ in range(int(workers))
        ]
        for worker in started:
            assert worker.stdout.readline() == "ready\n"
        say("ready")
        sys.stdin.readline()
        for worker in started:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        while not ses.stats().accepted:
            time.sleep(0.01)
        time.sleep(SECONDS)
        stats = ses.stats()
        mails = ses.mailbox()
        for worker in started:
            worker.kill()
            worker.communicate()
    covered = 0.0
    for mail in mails:
        passed = (mail.received_at - mails[0].received_at).total_seconds()
        covered += max(min(len(mail.recipients) / rate, SECONDS - passed), 0)
    found = {"used": covered / SECONDS, "accepted": len(mails), "throttled": stats.throttled}
    say(json.dumps(found))


# Workers


def _wait_for_word() -> None:
    say("ready")
    sys.stdin.readline()


def _drain(rate: str, workers: str, costs: str) -> None:
    import redis  # noqa: F401 - by a worker's first drain, but here by thirty workers at once

    from connect_mailer.conf import conf
    from connect_mailer.sending.delivery import Drain
    from connect_mailer.sending.limiter import RedisLimiter
    from connect_mailer.sending.rate import account_rate
    from connect_mailer.sending.transport import get_ses_client

    client, options = get_ses_client(), conf.redis
    assert options is not None
    limiter = RedisLimiter(options.url, options.options)
    _wait_for_word()
    while True:
        Drain(
            transport=client, limiter=limiter, rate=account_rate.get(client), using="default"
        ).run()


def _make_mails(costs: str) -> list[Any]:
    from django.core.mail import EmailMessage

    return [
        EmailMessage("News", "Body", "site@example.com", [f"u{n}@example.org" for n in range(cost)])
        for cost in json.loads(costs)
    ]


def _work_tasks(rate: str, workers: str, costs: str) -> None:
    from celery.contrib.testing.worker import start_worker

    from tests.benchmarks import _peers
    from tests.site.celery import app

    _peers.send_by_ses()
    task = _peers._get_task()
    app.finalize()
    task.rate_limit = f"{float(rate) / int(workers)}/s"
    _wait_for_word()
    with start_worker(
        app, concurrency=_peers.THREADS, pool="threads", perform_ping_check=False, loglevel=50
    ):
        time.sleep(SECONDS * 2)


def _send_by_django_ses(rate: str, workers: str, costs: str) -> None:
    from tests.benchmarks import _peers

    _peers.send_by_ses()
    from botocore.exceptions import ClientError
    from django_ses import SESBackend

    backend, mails = SESBackend(aws_auto_throttle=0.5), _make_mails(costs)
    backend.open()
    _wait_for_word()
    for mail in itertools.cycle(mails):
        with suppress(ClientError):  # throttled, after retries of boto3's own
            backend.send_messages([mail])


ROLES = {"connect_mailer": _drain, "celery": _work_tasks, "django-ses": _send_by_django_ses}

"""The local SES of the demo, in a process of its own: ``python -m demo.ses PORT``.

Its mailbox simulator answers as SES does, through SNS: signed notifications, posted to the
site, and posted again where the site asks for it.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from connect_mailer.testing.ses import SIMULATOR_DOMAIN, LocalSES, Mail
from connect_mailer.testing.sns import (
    MESSAGE_ID_TAG,
    SNSSigner,
    make_bounce,
    make_complaint,
    make_delivery,
    make_mail,
)

# Recipients per second that the account allows.
RATE = 50
LATENCY_SECONDS = 0.05
# From the mail to the notification about it.
ANSWERS_AFTER = timedelta(seconds=0.5)
TRIES = 4


def main(port: str) -> None:
    """Serve until SIGTERM."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda signum, frame: stopped.set())
    accepted: queue.SimpleQueue[Mail] = queue.SimpleQueue()
    signer = SNSSigner.from_pem(Path(os.environ["DEMO_FOLDER"], "signer.pem").read_text())
    url = f"{os.environ['DEMO_SITE_URL']}/mail/bouncy/"
    threading.Thread(target=answer, args=(accepted, signer, url), daemon=True).start()
    with LocalSES(
        port=int(port),
        rate=RATE,
        latency_seconds=LATENCY_SECONDS,
        on_accepted=accepted.put,
    ):
        stopped.wait()


def answer(accepted: queue.SimpleQueue[Mail], signer: SNSSigner, url: str) -> None:
    """Post what becomes of each message, until the process ends."""
    while True:
        mail = accepted.get()
        wait = (mail.received_at + ANSWERS_AFTER - datetime.now(UTC)).total_seconds()
        for number, event in enumerate(make_events(mail)):
            time.sleep(max(0, wait))
            # SNS has both versions in use.
            body = signer.notification(event, version="1" if number % 2 else "2")
            post(signer, url, body)


def post(signer: SNSSigner, url: str, body: str) -> None:
    """Post a notification, and again while the site can't take it."""
    for _ in range(TRIES):
        try:
            status = signer.post(url, body)
        except OSError as error:
            print(f"{url}: {error}", file=sys.stderr, flush=True)
        else:
            print(f"{url}: {status}", file=sys.stderr, flush=True)
            if status < 500:
                return
        time.sleep(1)


def make_events(mail: Mail) -> list[dict[str, Any]]:
    """Return what SES would tell about a message to the simulator's addresses."""
    events = []
    about = make_mail(
        mail.recipients,
        source=mail.sender,
        ses_message_id=mail.message_id,
        tag=mail.tags.get(MESSAGE_ID_TAG),
    )
    for address in mail.recipients:
        local, _, domain = address.lower().rpartition("@")
        if domain != SIMULATOR_DOMAIN:
            continue
        match local.partition("+")[0]:
            case "bounce":
                events.append(make_bounce([address], mail=about, event=True))
            case "complaint":
                events.append(make_complaint([address], mail=about, event=True))
            case "ooto":
                events.append(
                    make_bounce([address], bounce_type="Transient", mail=about, event=True)
                )
            case "success":
                events.append(make_delivery([address], mail=about, event=True))
    return events


if __name__ == "__main__":
    main(*sys.argv[1:])

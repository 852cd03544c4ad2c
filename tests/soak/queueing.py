"""The site that queues: ``python -m tests.soak.queueing COUNT SECONDS JOURNAL``.

Writes one line a message to the journal, after ``send_messages()`` has said what became of
it: ``+N`` accepted, ``?N`` an error (the commit itself may have got through or not).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import django

from tests.site.celery import app

BATCH = 20


def main(count: int, seconds: float, journal: Path) -> None:
    """Queue ``count`` messages, spread over ``seconds``."""
    app.set_default()
    django.setup()
    from django.core.mail import EmailMessage
    from django.db import DatabaseError, InterfaceError, connection

    from connect_mailer.backend import ConnectMailerBackend

    started_at = time.monotonic()
    with journal.open("a", buffering=1) as lines:
        for first in range(0, count, BATCH):
            numbers = range(first, min(first + BATCH, count))
            messages = [
                EmailMessage(f"m{number}", "Body", None, [f"u{number}@example.org"])
                for number in numbers
            ]
            try:
                sign = "+" if ConnectMailerBackend().send_messages(messages) else "-"
            except (DatabaseError, InterfaceError):
                connection.close()
                sign = "?"
            lines.writelines(f"{sign}{number}\n" for number in numbers)
            due_at = started_at + seconds * (first + BATCH) / count
            time.sleep(max(due_at - time.monotonic(), 0))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))

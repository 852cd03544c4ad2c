"""``manage.py mailer_deliver``: the drain for sites without a Celery worker."""

from __future__ import annotations

import threading
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from django.db import Error, close_old_connections

from connect_mailer import tasks
from connect_mailer.sending import leases, outbox
from connect_mailer.sending.delivery import drain_outbox, on_signals, outages, stopping

# How often --forever looks for mail that is due.
POLL_SECONDS = 1.0


class Command(BaseCommand):
    """Delivers as one of the drains of the site, at the pace that they share."""

    help = "Deliver the mail that is due, and forget old rows: from cron, or --forever."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """One option."""
        parser.add_argument(
            "--forever", action="store_true", help="go on until SIGTERM or Ctrl-C (systemd)"
        )

    def handle(self, *, forever: bool, **options: Any) -> None:
        """Deliver, and say how many rows were sent."""
        sent = 0
        with on_signals(stopping.set):
            while True:
                go_on = threading.Event()
                try:
                    sent += self._deliver(go_on)
                except Error as error:
                    if not forever:
                        raise
                    outages.begin("database", f"The outbox's database is out of reach: {error}")
                    close_old_connections()
                if stopping.is_set() or not (forever or go_on.is_set()):
                    break
                if not go_on.is_set():
                    stopping.wait(POLL_SECONDS)
        stopping.clear()
        self.stdout.write(f"{sent} sent.")

    def _deliver(self, go_on: threading.Event) -> int:
        sent = drain_outbox(wake=go_on.set, ask_for_help=lambda: None)
        outages.end("database")
        if leases.acquire("purge", tasks.PURGE_SECONDS, using=outbox.get_database()):
            tasks.purge()
        return sent

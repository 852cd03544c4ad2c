"""``manage.py mailer_import``: what another app knew, before it goes."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError

from connect_mailer import imports
from connect_mailer.account import suppressed
from connect_mailer.account.aws import AWS
from connect_mailer.exceptions import AccountError
from connect_mailer.imports import Entry, ImportFailed, Skipped
from connect_mailer.management.output import Progress
from connect_mailer.queues import QUEUES, OldQueue

_Read = Callable[[], Iterator[Entry | Skipped]]
# How each is read, and the tables that it is read from.
_TABLES: Final[dict[str, tuple[_Read, tuple[str, ...]]]] = {
    "connect": (imports.read_connect, ("mailer_unsubscribe",)),
    "bouncy": (imports.read_bouncy, ("django_bouncy_bounce", "django_bouncy_complaint")),
    "django-ses": (imports.read_django_ses, ("django_ses_blacklistedemail",)),
    "django-mailer": (imports.read_django_mailer, ("mailer_dontsendentry",)),
    "post-office": (imports.read_post_office, ("post_office_email",)),
}


class Command(BaseCommand):
    """Each source may be imported again: what is there already is left alone."""

    help = "Import who is not written to from another mail app, from SES or from a CSV file."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """From where."""
        parser.add_argument("source", choices=[*_TABLES, "ses", "csv"])
        parser.add_argument("file", nargs="?", type=Path, help="csv: the file")
        parser.add_argument("--dry-run", action="store_true", help="say what it would do")

    def handle(self, *, source: str, file: Path | None, dry_run: bool, **options: Any) -> None:
        """Import, and report."""
        if (source == "csv") != (file is not None):
            raise CommandError("Name the file: manage.py mailer_import csv FILE")
        entries = self._open(source, file)
        try:
            with Progress(self.stderr, total=self._count(source)) as progress:
                tally = imports.store(
                    entries,
                    is_dry=dry_run,
                    only_unknown=source == "bouncy",
                    tell=progress.advance,
                )
        except (ImportFailed, AccountError) as error:
            raise CommandError(str(error)) from error
        would = "would be " if dry_run else ""
        self.stdout.write(
            f"{tally.read:,} read: {tally.new:,} {would}new, {tally.known:,} known, "
            f"{tally.skipped.total():,} skipped."
        )
        for reason, count in tally.skipped.most_common():
            self.stdout.write(f"  skipped {count:,}: {reason}")
        if source in QUEUES:
            self._take_queue(QUEUES[source], is_dry=dry_run)

    def _count(self, source: str) -> int | None:
        """How much there is to read, for whoever watches; ``None`` where that isn't known."""
        if source not in _TABLES or not self.stderr.isatty():
            return None
        return imports.count_rows(*_TABLES[source][1])

    def _open(self, source: str, file: Path | None) -> Iterable[Entry | Skipped]:
        if file is not None:
            return imports.read_csv(file)
        if source == "ses":
            pages = suppressed.read_pages(AWS(), pause_seconds=suppressed.PAUSE_SECONDS)
            return (entry for page in pages for entry in page.entries)
        return _TABLES[source][0]()

    def _take_queue(self, queue: OldQueue, *, is_dry: bool) -> None:
        if not queue.is_installed():
            self.stdout.write(
                f"Its queue is left alone: {queue.app} has to be in INSTALLED_APPS for that."
            )
            return
        waiting = queue.count()
        if is_dry:
            self.stdout.write(f"{waiting:,} queued messages would be taken over.")
            return
        with Progress(self.stderr, total=waiting) as progress:
            taken = queue.take(progress.advance)
        for pk, reason in taken.left.items():
            self.stdout.write(f"  message {pk} is left there: {reason}")
        self.stdout.write(
            f"{taken.messages:,} queued messages are in the outbox, {len(taken.left):,} are not."
        )

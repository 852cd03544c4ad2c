"""``manage.py mailer_import``: what another app knew, before it goes."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from connect_mailer import imports
from connect_mailer.account import suppressed
from connect_mailer.account.aws import AWS
from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.exceptions import AccountError, MessagesRefused
from connect_mailer.imports import Entry, ImportFailed
from connect_mailer.management.output import Progress
from connect_mailer.sending import outbox

_TABLES: Final[dict[str, Callable[[], Iterator[Entry]]]] = {
    "connect": imports.read_connect,
    "bouncy": imports.read_bouncy,
    "django-ses": imports.read_django_ses,
    "django-mailer": imports.read_django_mailer,
    "post-office": imports.read_post_office,
}
# Source: django-post-office 3.12, ``STATUS``: sent, failed, queued, requeued.
_POST_OFFICE_SENT: Final = 0
_POST_OFFICE_QUEUED: Final = (2, 3)
_QUEUE_CHUNK: Final = 100


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
            with Progress(self.stderr) as progress:
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
        if source == "post-office":
            self._take_queue(is_dry=dry_run)

    def _open(self, source: str, file: Path | None) -> Iterable[Entry]:
        if file is not None:
            return imports.read_csv(file)
        if source == "ses":
            return (
                Entry(
                    address=one.address,
                    source=suppressed.REASONS.get(one.reason, one.reason),
                    since=one.since,
                )
                for page in suppressed.read_pages(AWS())
                for one in page.entries
            )
        return _TABLES[source]()

    def _take_queue(self, *, is_dry: bool) -> None:
        """What django-post-office still has to send becomes rows of the outbox.

        Its own code makes the messages, from templates and attachments too. A row that was
        taken over is marked as sent there in the same transaction, so that neither app sends
        it again.
        """
        label = "post_office"
        if not apps.is_installed(label):
            self.stdout.write(
                "Its queue is left alone: post_office has to be in INSTALLED_APPS for that."
            )
            return
        model: Any = apps.get_model(label, "Email")
        using = outbox.get_database()
        queued = model.objects.using(using).filter(status__in=_POST_OFFICE_QUEUED).order_by("pk")
        if is_dry:
            self.stdout.write(f"{queued.count():,} queued messages would be taken over.")
            return
        taken = 0
        refused: list[int] = []
        backend = ConnectMailerBackend()
        while pks := list(
            queued.exclude(pk__in=refused).values_list("pk", flat=True)[:_QUEUE_CHUNK]
        ):
            for pk in pks:
                with transaction.atomic(using=using):
                    row = queued.select_for_update().filter(pk=pk).first()
                    if row is None:
                        continue  # its own command was faster
                    message = row.email_message()
                    message.send_after = row.scheduled_time
                    message.expires_at = row.expires_at
                    try:
                        backend.send_messages([message])
                    except MessagesRefused as error:
                        refused.append(pk)
                        self.stdout.write(f"  message {pk} is left there: {error}")
                        continue
                    model.objects.using(using).filter(pk=pk).update(status=_POST_OFFICE_SENT)
                    taken += 1
        self.stdout.write(f"{taken:,} queued messages are in the outbox, {len(refused):,} are not.")

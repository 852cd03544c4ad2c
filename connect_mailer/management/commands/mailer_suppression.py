"""``manage.py mailer_suppression``: SES's own list of the account, and ``Unsubscribe``."""

from __future__ import annotations

from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from connect_mailer import imports
from connect_mailer.account import suppressed
from connect_mailer.account.aws import AWS
from connect_mailer.exceptions import AccountError
from connect_mailer.management.output import Progress, format_table


class Command(BaseCommand):
    """Both ways; what is there already is left alone, so that it can be run again."""

    help = "Compare SES's account suppression list with Unsubscribe, or copy between them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What to do, and how fast."""
        parser.add_argument(
            "action",
            choices=["pull", "push", "diff"],
            help="pull: SES's entries become rows here; push: bounces and complaints from here "
            "onto SES's list; diff: show what differs",
        )
        parser.add_argument(
            "--resume",
            metavar="TOKEN",
            default="",
            help="pull: go on where a pull that was interrupted says it stopped",
        )
        parser.add_argument(
            "--rate",
            type=float,
            default=1.0,
            help="calls a second (1: what SES allows for these)",
        )

    def handle(self, *, action: str, resume: str, rate: float, **options: Any) -> None:
        """Do it, and report."""
        if rate <= 0:
            raise CommandError(f"--rate is {rate:g}; it must be above 0.")
        if resume and action != "pull":
            raise CommandError("--resume is for pull; push and diff begin at the start.")
        self._seconds = 1 / rate
        self._token = resume
        try:
            {"pull": self._pull, "push": self._push, "diff": self._diff}[action](AWS())
        except (AccountError, KeyboardInterrupt) as error:
            go_on = "manage.py mailer_suppression " + action
            if action == "pull" and self._token:
                go_on += f" --resume {self._token}"
            reason = str(error) or "Interrupted."
            raise CommandError(f"{reason}\nGo on with: {go_on}") from error

    def _pages(self, aws: AWS) -> Iterator[suppressed.Page]:
        pages = suppressed.read_pages(aws, token=self._token, pause_seconds=self._seconds)
        for page in pages:
            yield page
            self._token = page.next_token

    def _pull(self, aws: AWS) -> None:
        new = 0
        skipped = Counter[str]()
        with Progress(self.stderr) as progress:
            # Page by page, so that what comes before the token is there.
            for page in self._pages(aws):
                found = imports.store(page.entries, tell=progress.advance)
                new += found.new
                skipped += found.skipped
        self.stdout.write(f"{progress.done:,} on SES's list, {new:,} new here.")
        for reason, count in skipped.most_common():
            self.stdout.write(f"  skipped {count:,}: {reason}")

    def _push(self, aws: AWS) -> None:
        there = {address for page in self._pages(aws) for address in page.addresses}
        lacking = [row for row in suppressed.find_local() if row[0] not in there]
        with Progress(self.stderr, total=len(lacking)) as progress:
            suppressed.push(aws, lacking, pause_seconds=self._seconds, tell=progress.advance)
        self.stdout.write(f"{len(lacking):,} put onto SES's list, {len(there):,} were there.")

    def _diff(self, aws: AWS) -> None:
        there: set[str] = set()
        rows: list[tuple[str, str, str]] = []
        for page in self._pages(aws):
            there |= page.addresses
            rows += [
                (entry.address, entry.source, "SES only")
                for entry in suppressed.find_missing(page.entries)
            ]
        rows += [
            (address, reason.lower(), "here only")
            for address, reason in suppressed.find_local()
            if address not in there
        ]
        if rows:
            self.stdout.write(format_table(("Address", "Reason", "Where"), rows))
        self.stdout.write(f"{len(rows):,} differ; {len(there):,} on SES's list.")

"""``manage.py ses_address``: who may be a sender."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from connect_mailer.account import identities
from connect_mailer.account.aws import AWS
from connect_mailer.exceptions import AccountError
from connect_mailer.management.output import format_table


class Command(BaseCommand):
    """SES's verified identities: addresses, and domains."""

    help = "List, verify or delete the addresses and domains that the account may send from."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What to do, and with whom."""
        parser.add_argument("action", choices=["verify", "list", "delete"])
        parser.add_argument(
            "identity", nargs="?", default="", help="an address or a domain (verify, delete)"
        )

    def handle(self, *, action: str, identity: str, **options: Any) -> None:
        """Do it, and say what comes next."""
        if (action == "list") == bool(identity):
            raise CommandError(
                "ses_address list takes no address."
                if identity
                else f"Say which: manage.py ses_address {action} site@example.com"
            )
        aws = AWS()
        try:
            {"list": self._list, "verify": self._verify, "delete": self._delete}[action](
                aws, identity
            )
        except AccountError as error:
            if error.is_missing:
                raise CommandError(f"SES in {aws.region} knows no identity {identity}.") from error
            raise CommandError(str(error)) from error

    def _list(self, aws: AWS, identity: str) -> None:
        found = identities.list_identities(aws)
        if not found:
            self.stdout.write(
                f"No identity in {aws.region}: manage.py ses_address verify example.com"
            )
            return
        rows = [
            (
                one.name,
                "domain" if one.is_domain else "address",
                "yes" if one.is_verified else "NOT YET",
            )
            for one in found
        ]
        self.stdout.write(format_table(("Identity", "Kind", "Verified"), rows))

    def _verify(self, aws: AWS, identity: str) -> None:
        tokens = identities.verify(aws, identity)
        if "@" in identity:
            self.stdout.write(f"SES has mailed a link to {identity}: follow it within 24 hours.")
            return
        rows = [
            (f"{token}._domainkey.{identity}", "CNAME", f"{token}.dkim.amazonses.com")
            for token in tokens
        ]
        self.stdout.write(format_table(("Name", "Type", "Value"), rows))
        self.stdout.write(
            "\nAdd these records to the DNS of the domain; SES looks for them for 72 hours."
        )

    def _delete(self, aws: AWS, identity: str) -> None:
        identities.delete(aws, identity)
        self.stdout.write(f"{identity} can't be sent from any more.")

"""``manage.py ses_usage``: what the account may send, and has sent."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError

from connect_mailer.account.aws import AWS
from connect_mailer.exceptions import AccountError
from connect_mailer.management.output import format_table

_COUNTS: Final = ("DeliveryAttempts", "Bounces", "Complaints", "Rejects")


class Command(BaseCommand):
    """Quota and rate of the account in this region, and the statistics of two weeks."""

    help = "Show the quota and the use of the site's SES account."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """One option."""
        parser.add_argument("--json", action="store_true", dest="as_json", help="for programs")

    def handle(self, *, as_json: bool, **options: Any) -> None:
        """Ask SES, and write it down."""
        aws = AWS()
        try:
            account = aws.call("sesv2", "GetAccount")
        except AccountError as error:
            raise CommandError(
                f"{error}\nThe credentials need ses:GetAccount; "
                "`manage.py mailer_doctor --policy` prints all that they need."
            ) from error
        quota = account["SendQuota"]
        limit, sent = quota["Max24HourSend"], quota["SentLast24Hours"]
        usage: dict[str, Any] = {
            "region": aws.region,
            "max_24_hour_send": limit,
            "sent_last_24_hours": sent,
            "max_send_rate": quota["MaxSendRate"],
            "sending_enabled": account["SendingEnabled"],
            "production_access": account["ProductionAccessEnabled"],
            "enforcement_status": account.get("EnforcementStatus", ""),
        }
        statistics = self._get_statistics(aws)
        if statistics is not None:
            usage["two_weeks"] = statistics
        if as_json:
            self.stdout.write(json.dumps(usage))
            return
        is_unlimited = limit < 0
        rows = [
            ("Region", aws.region),
            ("Sent in 24 hours", f"{sent:,.0f}"),
            ("Quota of 24 hours", "unlimited" if is_unlimited else f"{limit:,.0f}"),
            ("Left", "unlimited" if is_unlimited else f"{max(limit - sent, 0):,.0f}"),
            ("Rate", f"{quota['MaxSendRate']:g} recipients/s"),
            ("Sending", "on" if account["SendingEnabled"] else "OFF"),
            ("Access", "production" if account["ProductionAccessEnabled"] else "sandbox"),
            ("Standing", account.get("EnforcementStatus", "unknown")),
        ]
        if statistics is None:
            rows.append(("Two weeks", "not told: the credentials lack ses:GetSendStatistics"))
        else:
            attempts = statistics["DeliveryAttempts"] or 1
            rows += [
                (
                    f"{name} in two weeks",
                    f"{count:,}" + (f" ({count / attempts:.2%})" if name != _COUNTS[0] else ""),
                )
                for name, count in statistics.items()
            ]
        self.stdout.write(format_table(("What", "How much"), rows))

    def _get_statistics(self, aws: AWS) -> dict[str, int] | None:
        try:
            points = aws.call("ses", "GetSendStatistics").get("SendDataPoints", [])
        except AccountError as error:
            if error.is_denied:
                return None
            raise CommandError(str(error)) from error
        return {name: sum(int(point[name]) for point in points) for name in _COUNTS}

"""``manage.py mailer_doctor``: does mail flow, and does what is said about it come back?"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any, Final
from uuid import uuid4

from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.core.management.base import BaseCommand, CommandError
from django.core.validators import validate_email

from connect_mailer.account.aws import AWS
from connect_mailer.account.findings import Finding, Level, error, note, ok
from connect_mailer.account.plan import make_plan
from connect_mailer.account.ses_chain import examine_aws, make_policy
from connect_mailer.account.site import examine_site, get_webhook_url
from connect_mailer.backend import TransactionalBackend
from connect_mailer.conf import conf
from connect_mailer.exceptions import AccountError, ConfigurationError
from connect_mailer.models import OutgoingMessage, OutgoingRecipient

POLL_SECONDS: Final = 0.5


class Command(BaseCommand):
    """Looks at the whole chain; exits with 1 where mail or feedback doesn't flow."""

    help = "Check the site, its workers, SES and SNS, and say what to do; or set feedback up."
    # The system checks are among the findings.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What to do beyond looking."""
        parser.add_argument("--json", action="store_true", dest="as_json", help="for programs")
        parser.add_argument("--policy", action="store_true", help="print the IAM policy it needs")
        parser.add_argument(
            "--send", metavar="ADDRESS", default="", help="send one message, and wait for its event"
        )
        parser.add_argument(
            "--wait", type=float, default=120.0, metavar="SECONDS", help="for how long (120)"
        )
        parser.add_argument(
            "--setup", action="store_true", help="make topic, configuration set and subscription"
        )
        parser.add_argument("--topic", default="", help="with --setup: name of the SNS topic")
        parser.add_argument(
            "--configuration-set", default="", help="with --setup: its name (as the topic's)"
        )
        parser.add_argument("--yes", action="store_true", help="with --setup: don't ask")

    def handle(
        self, *, as_json: bool, policy: bool, send: str, wait: float, setup: bool, **options: Any
    ) -> None:
        """Do one of the three."""
        if policy:
            self.stdout.write(make_policy(reads=True))
        elif setup:
            self._set_up(
                topic=options["topic"],
                configuration_set=options["configuration_set"],
                asks=not options["yes"],
            )
        else:
            self._examine(as_json=as_json, send=send, wait_seconds=wait)

    # Looking

    def _examine(self, *, as_json: bool, send: str, wait_seconds: float) -> None:
        findings = []
        for finding in self._find(send, wait_seconds):
            findings.append(finding)
            if not as_json:
                self._write(finding)
        errors = sum(finding.level == Level.ERROR for finding in findings)
        if as_json:
            self.stdout.write(json.dumps([finding.as_dict() for finding in findings], indent=2))
        else:
            warnings = sum(finding.level == Level.WARNING for finding in findings)
            self.stdout.write(f"\n{errors} errors, {warnings} warnings.")
        if errors:
            raise SystemExit(1)

    def _find(self, address: str, wait_seconds: float) -> Iterator[Finding]:
        yield from examine_site()
        if conf.is_ses:
            yield from examine_aws(AWS())
        else:
            yield note("transport", f"Mail is sent by {conf.transport}: AWS is not asked.")
        if address:
            yield from self._send(address, wait_seconds)

    def _write(self, finding: Finding) -> None:
        style = {
            Level.OK: self.style.SUCCESS,
            Level.NOTE: self.style.NOTICE,
            Level.WARNING: self.style.WARNING,
            Level.ERROR: self.style.ERROR,
        }[finding.level]
        self.stdout.write(f"{style(f'{finding.level:>7}')}  {finding.part}: {finding.text}")
        if finding.advice:
            self.stdout.write(f"{'':>9}{finding.advice}")

    # Sending

    def _send(self, address: str, wait_seconds: float) -> Iterator[Finding]:
        try:
            validate_email(address)
        except ValidationError:
            yield error("send", f"{address!r} is no address.", "Give one: --send you@example.com")
            return
        subject = f"connect_mailer: does mail flow? ({uuid4().hex[:8]})"
        body = "It does: this message came through the outbox of the site.\n"
        TransactionalBackend().send_messages([EmailMessage(subject, body, to=[address])])
        # The youngest of that subject, which has a random part.
        row = OutgoingMessage.objects.filter(subject=subject).order_by("-pk")
        ends_at = time.monotonic() + wait_seconds
        is_open = row.filter(status__in=OutgoingMessage.OPEN)
        while is_open.exists() and time.monotonic() < ends_at:
            time.sleep(POLL_SECONDS)
        message = row.get()
        if message.status != OutgoingMessage.Status.SENT:
            recipient = message.recipients.get()
            yield error(
                "send",
                f"The message is {message.status}: "
                f"{message.last_error or recipient.reason or 'no worker has taken it'}",
                "See the lines above.",
            )
            return
        yield ok("send", f"SES took the message as {message.ses_message_id}.")
        recipients = OutgoingRecipient.objects.filter(message=message)
        waiting = recipients.filter(status=OutgoingRecipient.Status.SENT)
        while waiting.exists() and time.monotonic() < ends_at:
            time.sleep(POLL_SECONDS)
        status = recipients.get().status
        if status == OutgoingRecipient.Status.SENT:
            yield error(
                "feedback",
                f"No event about the message came within {wait_seconds:.0f} s.",
                "Events about deliveries need a configuration set that publishes DELIVERY; "
                "see the lines about events, topic, subscription and webhook.",
            )
        else:
            yield ok("feedback", f"Its event came back: {status}.")

    # Setting up

    def _set_up(self, *, topic: str, configuration_set: str, asks: bool) -> None:
        if not topic:
            raise CommandError("Name the topic: --setup --topic mail-feedback")
        try:
            url = get_webhook_url()
        except ConfigurationError as failure:
            raise CommandError(str(failure)) from failure
        if not url:
            raise CommandError(
                'Set CONNECT_MAILER["UNSUBSCRIBE_BASE_URL"] or ORIGIN first: where is this site?'
            )
        aws = AWS()
        try:
            plan = make_plan(
                aws,
                topic=topic,
                configuration_set=configuration_set or conf.ses.configuration_set or topic,
                webhook_url=url,
            )
            if not plan.steps:
                self.stdout.write("All of it is there.")
            for number, step in enumerate(plan.steps, 1):
                self.stdout.write(f"{number}. {step.text}.")
            if plan.steps and asks and input(f"In {aws.region}. Go on? [y/N] ").lower() != "y":
                raise CommandError("Nothing was changed.")
            for number, step in enumerate(plan.steps, 1):
                step.do()
                self.stdout.write(f"{number}. Done.")
        except AccountError as failure:
            raise CommandError(
                f"{failure}\nWhat was done is kept: the same command goes on from there."
            ) from failure
        self.stdout.write(
            "\nThe settings for it:\n\n"
            f'BOUNCY_TOPIC_ARN = ["{plan.topic_arn}"]\n'
            f'CONNECT_MAILER = {{"SES_CONFIGURATION_SET": "{plan.configuration_set}"}}\n'
        )
        if plan.topic_arn not in conf.topic_arns or not conf.auto_subscribe:
            self.stdout.write(
                "SNS asks the site to confirm: run the site with the first and with "
                "BOUNCY_AUTO_SUBSCRIBE = True, and run this command once more."
            )

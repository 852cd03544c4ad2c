"""The main job, step by step, with a check of all that is claimed. Needs Django set up."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django_bouncy.models import Bounce, Complaint

from connect_mailer.models import OutgoingMessage, OutgoingRecipient, Unsubscribe
from connect_mailer.testing import RemoteLocalSES
from connect_mailer.testing.ses import Mail
from demo import newsletter
from demo.browser import Browser, post_one_click
from demo.newsletter import BOUNCES, COMPLAINS, OUT_OF_OFFICE, READER
from demo.processes import Process, Processes
from demo.screen import Check, Screen

FIRST = "Demo Gazette of May"
SECOND = "Demo Gazette of June"
THIRD = "Demo Gazette of July"


@dataclass(frozen=True, kw_only=True)
class Round:
    """What came of one issue of the newsletter."""

    queued: int
    seconds: Sequence[float]
    mails: list[Mail]
    others: list[Mail]

    @property
    def arrived(self) -> Counter[str]:
        """How many messages each recipient got."""
        return Counter(address for mail in self.mails for address in mail.recipients)

    @property
    def rate(self) -> float:
        """Recipients per second, from the first message that SES accepted to the last."""
        mails = self.mails + self.others
        # The last call, for one recipient, ends the time: its slot comes after it.
        return (sum(len(mail.recipients) for mail in mails) - 1) / max(self.duration, 1e-6)

    @property
    def duration(self) -> float:
        """Seconds from the first message that SES accepted to the last."""
        times = [mail.received_at for mail in self.mails]
        return (max(times) - min(times)).total_seconds()


class Story:
    """Steps 1 to 5; ``checks`` is what they found."""

    def __init__(
        self,
        screen: Screen,
        processes: Processes,
        ses: RemoteLocalSES,
        *,
        site_url: str,
        rate: int,
    ) -> None:
        self._screen = screen
        self._processes = processes
        self._ses = ses
        self._rate = rate
        self._browser = Browser(site_url)
        self._letters = newsletter.make_letters()
        self._first: list[Mail] = []
        self.checks: list[Check] = []

    def tell(self) -> None:
        """All of it, in order."""
        self._browser.get("/")
        self._send_first()
        self._take_feedback()
        self._opt_out()
        self._send_again()
        self._survive()

    # 1

    def _send_first(self) -> None:
        expected = self._count_expected(set())
        total = sum(expected.values())
        self._screen.step(
            f"1. {len(self._letters)} messages for {total} recipients; "
            f"SES allows {self._rate} recipients a second"
        )
        sent = self._send(FIRST, total)
        self._first = sent.mails
        [copied] = [letter for letter in self._letters if len(letter.bcc) > 1]
        calls = [mail for mail in sent.mails if mail.message["To"] == copied.to[0]]
        throttled = self._ses.stats().throttled

        self._check(
            "each recipient got each message once",
            f"{sent.queued} messages, {sent.arrived.total()} recipients",
            sent.queued == len(self._letters) and sent.arrived == expected,
        )
        self._check(
            f"{len(copied.bcc)} Bcc recipients, none of them in the mail",
            f"{len(calls)} calls for {' + '.join(str(len(mail.recipients)) for mail in calls)}",
            len(calls) == 3
            and not any(address.encode() in mail.mime for mail in calls for address in copied.bcc),
        )
        self._check(
            "as fast as the account allows",
            f"{sent.rate:.1f} of {self._rate} recipients/s",
            # The first and the last call are late by what the machine is busy with.
            0.5 * self._rate <= sent.rate <= 1.1 * self._rate,
        )
        self._check("and never faster", f"SES throttled {throttled}", throttled == 0)
        self._check(
            "send_mail() did not wait for it",
            f"median {1000 * statistics.median(sent.seconds):.1f} ms, "
            f"p95 {1000 * statistics.quantiles(sent.seconds, n=20)[-1]:.1f} ms; "
            f"all {len(sent.seconds)} in {sum(sent.seconds):.1f} s, "
            f"delivered in {sent.duration:.1f} s",
            sum(sent.seconds) < sent.duration,
        )

    # 2

    def _take_feedback(self) -> None:
        self._screen.step("2. SES tells of bounces and complaints, by signed SNS notifications")
        with self._screen.busy("waiting for SNS"):
            self._processes.wait_for(
                "What SNS posts", lambda: Bounce.objects.count() > 1 and Complaint.objects.exists()
            )
        rows = [
            ("Bounce", row.address, f"{row.bounce_type}/{row.bounce_subtype}")
            for row in Bounce.objects.order_by("-hard")
        ]
        rows += [("Complaint", row.address, row.feedback_type) for row in Complaint.objects.all()]
        sources = dict(Unsubscribe.objects.values_list("address", "source"))
        recipients = OutgoingRecipient.objects.filter(address__in=[row[1] for row in rows])
        outcomes = dict(recipients.values_list("address", "status"))
        self._screen.table(
            "What came back",
            ("row", "address", "type", "in the outbox", "Unsubscribe row"),
            [(*row, outcomes[row[1]], sources.get(row[1], "none")) for row in rows],
        )
        self._check(
            "hard bounce: not written to again",
            self._count(Bounce.objects.filter(address=BOUNCES, hard=True), "Bounce")
            + f" → Unsubscribe row ({sources.get(BOUNCES, 'none')})",
            sources.get(BOUNCES) == "bounce" and Bounce.objects.filter(hard=True).count() == 1,
        )
        self._check(
            "complaint: not written to again",
            self._count(Complaint.objects.filter(address=COMPLAINS), "Complaint")
            + f" → Unsubscribe row ({sources.get(COMPLAINS, 'none')})",
            sources.get(COMPLAINS) == "complaint" and Complaint.objects.count() == 1,
        )
        self._check(
            "soft bounce: no Unsubscribe row",
            self._count(Bounce.objects.filter(address=OUT_OF_OFFICE, hard=False), "Bounce")
            + f", {len(sources)} Unsubscribe rows in all",
            Bounce.objects.filter(address=OUT_OF_OFFICE, hard=False).count() == 1
            and set(sources) == {BOUNCES, COMPLAINS},
        )
        self._check(
            "the outbox says so at each recipient",
            ", ".join(f"{address.partition('@')[0]}: {how}" for address, how in outcomes.items()),
            outcomes == {BOUNCES: "bounced", COMPLAINS: "complained", OUT_OF_OFFICE: "bounced"},
        )

    # 3

    def _opt_out(self) -> None:
        self._screen.step(f"3. {READER} opts out, by one click in her mail program")
        [mail] = [mail for mail in self._first if mail.recipients == (READER,)]
        link = str(mail.message["List-Unsubscribe"]).strip("<>")
        offered = mail.message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
        self._screen.say(f"[dim]POST {link[:72]}…[/]")
        status = post_one_click(link)
        user = get_user_model().objects.get(email=READER)
        row = Unsubscribe.objects.filter(address=READER).first()
        self._check(
            "one-click opt-out from the mail's header",
            f"HTTP {status} → Unsubscribe row ({row.source if row else 'none'})",
            offered
            and status == 200
            and row is not None
            and row.source == "user"
            and row.user_id == user.pk,
        )

    # 4

    def _send_again(self) -> None:
        withheld = {BOUNCES, COMPLAINS, READER}
        expected = self._count_expected(withheld)
        self._screen.step("4. The same letters to the same readers again, and a password reset")
        sent = self._send(SECOND, sum(expected.values()) + 1, reset_for=READER)
        rows = OutgoingRecipient.objects.filter(
            status=OutgoingRecipient.Status.SUPPRESSED
        ).select_related("message")
        labels = dict(Unsubscribe.Source.choices)
        self._screen.table(
            "Who was not written to, and why",
            ("recipient", "as", "why", "the message was"),
            [
                (row.address, row.kind, str(labels.get(row.reason, row.reason)), row.message.status)
                for row in rows.order_by("pk")
            ],
        )
        reasons = {row.address: row.reason for row in rows}
        self._check(
            "2nd round: who is not written to, and why",
            ", ".join(f"{address.partition('@')[0]}: {why}" for address, why in reasons.items())
            + f"; {len(rows)} withheld",
            reasons == {BOUNCES: "bounce", COMPLAINS: "complaint", READER: "user"}
            and not withheld & set(sent.arrived),
        )
        self._check(
            "2nd round: everybody else got it once",
            f"{len(sent.mails)} calls, {sent.arrived.total()} recipients, "
            f"{sent.rate:.1f}/s, {self._ses.stats().throttled} throttled",
            sent.arrived == expected
            and sent.arrived[OUT_OF_OFFICE] == 1
            and self._ses.stats().throttled == 0,
        )
        resets = [mail for mail in sent.others if mail.recipients == (READER,)]
        after = sum(
            len(mail.recipients)
            for mail in sent.mails
            if resets and mail.received_at > resets[0].received_at
        )
        self._check(
            "password reset to who opted out arrived",
            f"ahead of {after} recipients who waited" if resets else "it never came",
            len(resets) == 1 and b"/accounts/reset/" in resets[0].mime,
        )
        outbox = Counter(OutgoingMessage.objects.values_list("status", flat=True))
        self._check(
            "the outbox knows what became of each call",
            ", ".join(f"{number} {status}" for status, number in sorted(outbox.items())),
            outbox == {"sent": len(self._first) + len(sent.mails) + 1, "suppressed": 3},
        )
        errors = {process.name: process.count_errors() for process in self._processes.started}
        self._check(
            "no process logged an error",
            ", ".join(f"{name}: {number}" for name, number in errors.items()),
            not any(errors.values()),
        )

    # 5

    def _survive(self) -> None:
        expected = self._count_expected({BOUNCES, COMPLAINS, READER})
        total = sum(expected.values())
        self._screen.step("5. The same once more, and in the middle of it a worker is killed")
        with self._screen.busy("waiting until SES has told of all that went before"):
            self._processes.wait_for("What SES tells", self._is_all_told)
        killed: list[str] = []
        claimed: set[str] = set()

        def kill() -> None:
            worker = self._processes.wait_for("A worker that sends", self._find_busy_worker)
            # Before and after: what it claims in between is in one of the two.
            claimed.update(self._processes.wait_for("A claim of its", self._find_claimed))
            self._processes.kill(worker)
            claimed.update(self._find_claimed())
            killed.append(worker.name)

        sent = self._send(THIRD, total, midway=kill)
        twice = sent.arrived - expected
        self._check(
            "SIGKILL in mid-batch: every message arrived",
            f"{killed[0]} died with {len(claimed)} recipients in its hands; "
            f"{len(sent.arrived)} got it, {twice.total()} of them twice, "
            f"in {sent.duration:.0f} s",
            # What SES had accepted and nobody had written down yet, SES alone knows of.
            not expected - sent.arrived
            and set(sent.arrived) == set(expected)
            and set(twice) <= claimed,
        )
        outbox = Counter(
            OutgoingMessage.objects.filter(subject=THIRD).values_list("status", flat=True)
        )
        self._check(
            "and the outbox knows it",
            ", ".join(f"{number} {status}" for status, number in sorted(outbox.items())),
            set(outbox) == {"sent", "suppressed"},
        )

    def _find_busy_worker(self) -> Process | None:
        """A worker with a drain that has begun and not ended, by its log."""
        for process in self._processes.started:
            log = process.log.read_text(errors="replace")
            if log.count("tasks.deliver[") % 2:
                return process
        return None

    def _find_claimed(self) -> set[str]:
        rows = OutgoingRecipient.objects.filter(message__status=OutgoingMessage.Status.SENDING)
        return set(rows.values_list("envelope", flat=True))

    # How it is done

    def _send(
        self,
        subject: str,
        total: int,
        *,
        reset_for: str = "",
        midway: Callable[[], None] | None = None,
    ) -> Round:
        before = self._ses.stats()
        todo = [midway] if midway else []
        with (
            ThreadPoolExecutor(1) as visitor,
            self._screen.flow(total) as show,
        ):
            copied = max(len(letter.recipients) for letter in self._letters)
            answer = visitor.submit(self._visit, subject, reset_for, before.recipients + copied)
            start = time.monotonic()

            def is_over() -> bool:
                now = self._ses.stats()
                recipients = now.recipients - before.recipients
                seconds = time.monotonic() - start
                show(now.accepted - before.accepted, recipients, recipients / max(seconds, 1))
                if todo and recipients > total / 3:
                    todo.pop()()
                return answer.done() and (bool(answer.exception()) or self._is_settled())

            self._processes.wait_for("The end of delivery", is_over)
            result = answer.result()
        mails = self._ses.mailbox(since=before.accepted)
        return Round(
            queued=result["queued"],
            seconds=result["seconds"],
            mails=[mail for mail in mails if mail.message["Subject"] == subject],
            others=[mail for mail in mails if mail.message["Subject"] != subject],
        )

    def _visit(self, subject: str, reset_for: str, wide: int) -> Any:
        result = self._browser.submit_for_json("/newsletter/", subject=subject)
        if reset_for:
            # Once the blind copies are through: each of those calls takes up to a second of
            # what SES allows, and nothing passes a call that is on its way.
            self._processes.wait_for(
                "The blind copies", lambda: self._ses.stats().recipients >= wide
            )
            self._browser.submit("/accounts/password_reset/", email=reset_for)
        return result

    def _is_settled(self) -> bool:
        return not OutgoingMessage.objects.filter(status__in=OutgoingMessage.OPEN).exists()

    def _is_all_told(self) -> bool:
        sent = OutgoingRecipient.Status.SENT
        return not OutgoingRecipient.objects.filter(status=sent).exists()

    def _count_expected(self, withheld: set[str]) -> Counter[str]:
        return Counter(
            address
            for letter in self._letters
            for address in letter.recipients
            if address not in withheld
        )

    def _count(self, rows: Any, name: str) -> str:
        number = rows.count()
        return f"{number} {name} row{'s' if number != 1 else ''}"

    def _check(self, what: str, numbers: str, held: bool) -> None:
        self.checks.append(Check(what=what, numbers=numbers, held=held))
        mark = "[green]✓[/]" if held else "[bold red]✗[/]"
        self._screen.say(f"{mark} {what}: [bold]{numbers}[/]")

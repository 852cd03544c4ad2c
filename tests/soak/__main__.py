"""``python -m tests.soak``: a site under one fault after the other, and an exact account.

Messages are queued all the while; every few seconds something breaks, chosen by the seed. In
the end each message that ``send_messages()`` accepted must have been sent, or have ended in a
state that says why. That SES accepted a message once more must be explained, message by
message, by a call of it that was in flight when its worker was killed or suspended (SES had
accepted it and nobody had written that down), or whose answer SES was told to sever.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psycopg
import redis

from connect_mailer.testing.ses import Fault, Mail
from connect_mailer.testing.sns import MESSAGE_ID_TAG
from tests.soak.site import TABLE, Site

WORKERS: Final = 4
LEASE_SECONDS: Final = 30
STOP_SECONDS: Final = 30.0
# Until the database has ended what a dead worker had begun.
GRACE_SECONDS: Final = 0.5
SETTINGS: Final = {
    "MAX_DRAINS": 4,
    "CONCURRENCY": 20,
    "LEASE_SECONDS": LEASE_SECONDS,
    "DRAIN_SECONDS": 10,
    "PAUSE_SECONDS": 2,
    "RETRY_DELAY": 1,
}

KILLED: Final = "in flight at a kill"
SUSPENDED: Final = "in flight at a suspension"
SEVERED: Final = "answer severed"

# What a row that SES refused says; no other fault of these fails one.
REJECTED: Final = "MessageRejected: As told."


@dataclass(kw_only=True)
class Journal:
    """What happened, as far as the account needs it. Messages by the uuid of their row."""

    happened: Counter[str] = field(default_factory=Counter)
    calls: dict[str, list[Mail]] = field(default_factory=dict)
    """Those that SES accepted, of each message."""
    fates: dict[str, str] = field(default_factory=dict)
    """What became of a worker and when, by its key."""
    unanswered: dict[str, str] = field(default_factory=dict)
    """Accepted calls whose worker can't know it, by SES's id, and why."""
    excused: Counter[str] = field(default_factory=Counter)
    """How many of those there are of each message: so often it may arrive once more."""
    stuck: list[str] = field(default_factory=list)
    """Workers that were told to stop and had to be killed after ``STOP_SECONDS``."""
    seen: int = 0

    def excuse(self, mail: Mail, why: str) -> None:
        """A call that was accepted and of which its worker can't know; once for each."""
        if mail.message_id not in self.unanswered:
            self.unanswered[mail.message_id] = why
            self.excused[mail.tags[MESSAGE_ID_TAG]] += 1


class Soak:
    """One run."""

    def __init__(self, site: Site, chance: random.Random) -> None:
        self._site = site
        self._chance = chance
        self._suspended: dict[int, float] = {}
        self._stopped_at: dict[str, datetime] = {}  # when a worker was suspended, by its key
        self._dead: set[str] = set()  # keys of those that were killed
        self._recent: list[Mail] = []
        self.journal = Journal()
        self._faults: dict[str, Callable[[], None]] = {
            "worker killed": self._kill,
            "worker stopped (SIGTERM to all)": self._stop,
            "worker suspended past its lease": self._suspend,
            "broker and limiter flushed": self._flush,
            "broker and limiter killed": self._restart_valkey,
            "database connections cut": self._site.terminate_backends,
            "database crashed and restarted": self._restart_postgres,
            "SES: throttled": self._answer("TooManyRequestsException", times=50),
            "SES: daily quota": self._answer(
                "TooManyRequestsException", "Daily message quota exceeded.", times=3
            ),
            "SES: sending paused": self._answer("SendingPausedException", times=3),
            "SES: account suspended": self._answer("AccountSuspendedException", times=3),
            "SES: credentials expired": self._answer("ExpiredTokenException", times=3),
            "SES: 500": self._answer("InternalServiceErrorException", times=40),
            "SES: 503": self._answer("ServiceUnavailable", times=40),
            "SES: message rejected": self._answer("MessageRejected", times=3),
            "SES: accepted, then reset": lambda: self._inject(lost="after", reset=True, times=10),
            "SES: accepted, then closed": lambda: self._inject(lost="after", times=10),
            "SES: answer cut": lambda: self._inject(lost="cut", times=10),
            "SES: closed before it was accepted": lambda: self._inject(lost="before", times=10),
            "SES: slow": lambda: self._inject(delay_seconds=6.0, times=20),
        }

    def run(self, seconds: float) -> None:
        """Let something happen every few seconds; each kind once before any comes again."""
        ends_at = time.monotonic() + seconds
        left: list[str] = []
        while time.monotonic() < ends_at:
            if not left:
                left = self._chance.sample(sorted(self._faults), len(self._faults))
            name = left.pop()
            print(f"{seconds - (ends_at - time.monotonic()):6.1f} s  {name}", flush=True)
            self._faults[name]()
            self.journal.happened[name] += 1
            self._rest(self._chance.uniform(2.0, 5.0))

    def settle(self, patience_seconds: float) -> bool:
        """Let no fault happen any more, and wait until nothing is open."""
        self._site.ses.clear_faults()
        end = time.monotonic() + patience_seconds
        while self._suspended or self._site.count_open():
            if time.monotonic() > end:
                return False
            self._rest(1.0)
        self._collect()
        return True

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            for number, resume_at in list(self._suspended.items()):
                if now >= resume_at:
                    del self._suspended[number]
                    self._site.tell(number, signal.SIGCONT)
            self._collect()
            time.sleep(0.2)

    def _collect(self) -> None:
        mails = self._site.ses.mailbox(since=self.journal.seen)
        self.journal.seen += len(mails)
        for mail in mails:
            self.journal.calls.setdefault(mail.tags[MESSAGE_ID_TAG], []).append(mail)
            if mail.lost:
                self.journal.excuse(mail, SEVERED)
            if mail.access_key_id in self._dead:  # SES had not read it yet
                self.journal.excuse(mail, KILLED)
            stopped_at = self._stopped_at.get(mail.access_key_id)
            # Begun before its worker was suspended, and out once that went on.
            if stopped_at and mail.signed_at and mail.signed_at <= stopped_at < mail.received_at:
                self.journal.excuse(mail, SUSPENDED)
        self._recent = [*self._recent, *mails][-50_000:]

    # Faults

    def _choose(self) -> int:
        awake = [number for number in range(WORKERS) if number not in self._suspended]
        return self._chance.choice(awake)

    def _note_flight(self, number: int, why: str) -> None:
        """What SES accepted from a worker, which runs no more, and nobody has written down."""
        time.sleep(GRACE_SECONDS)
        self._collect()
        key = self._site.keys[number]
        calls = [mail for mail in self._recent if mail.access_key_id == key]
        unsettled = self._site.find_unsettled([mail.tags[MESSAGE_ID_TAG] for mail in calls])
        for mail in calls:
            if mail.tags[MESSAGE_ID_TAG] in unsettled:
                self.journal.excuse(mail, why)

    def _kill(self) -> None:
        self._end(self._choose(), signal.SIGKILL)

    def _stop(self) -> None:
        self._end(self._choose(), signal.SIGTERM)

    def _end(self, number: int, what: signal.Signals) -> None:
        if not self._site.end(number, what, seconds=STOP_SECONDS):
            self.journal.stuck.append(f"worker-{number}, at {datetime.now(UTC):%H:%M:%S}")
            what = signal.SIGKILL
        key = self._site.keys[number]
        self.journal.fates[key] = f"{what.name} at {datetime.now(UTC):%H:%M:%S.%f}"
        if what == signal.SIGKILL:
            self._dead.add(key)
            self._note_flight(number, KILLED)
        self._site.replace(number)

    def _suspend(self) -> None:
        if len(self._suspended) >= WORKERS - 2:
            return
        number = self._choose()
        self._site.tell(number, signal.SIGSTOP)
        key = self._site.keys[number]
        self._stopped_at[key] = datetime.now(UTC)
        self.journal.fates[key] = f"suspended at {self._stopped_at[key]:%H:%M:%S.%f}"
        self._suspended[number] = time.monotonic() + LEASE_SECONDS + 4
        self._note_flight(number, SUSPENDED)

    def _flush(self) -> None:
        with redis.Redis.from_url(self._site.redis_url) as client:
            client.flushall()

    def _restart_valkey(self) -> None:
        self._site.stop_valkey()
        self._rest(3.0)
        self._site.start_valkey()

    def _restart_postgres(self) -> None:
        self._site.restart_postgres(lambda: self._rest(2.0))

    def _inject(self, **values: object) -> None:
        self._site.ses.inject(Fault(**values))  # type: ignore[arg-type]

    def _answer(self, code: str, message: str = "As told.", *, times: int) -> Callable[[], None]:
        return lambda: self._inject(code=code, message=message, times=times)


def account(site: Site, journal: Journal, lines: list[str], *, is_settled: bool) -> bool:
    """Print what became of every message; return whether the promise held."""
    accepted = {f"m{line[1:]}" for line in lines if line.startswith("+")}
    refused = {f"m{line[1:]}" for line in lines if line.startswith("?")}
    rows = {
        subject: (str(uuid), status, error)
        for subject, uuid, status, error in site.ask(
            f"SELECT subject, uuid, status, last_error FROM {TABLE}"
        )
    }
    subjects = {uuid: subject for subject, (uuid, _, _) in rows.items()}
    often = {uuid: len(calls) for uuid, calls in journal.calls.items()}
    arrived = {subjects.get(uuid, uuid): number for uuid, number in often.items()}
    states = Counter(rows[subject][1] for subject in accepted if subject in rows)
    rejected = {
        subject
        for subject, (_, status, error) in rows.items()
        if status == "failed" and error == REJECTED
    }
    lost = [subject for subject in accepted - rejected if subject not in arrived]
    # In doubt, and refused when it was sent once more: it says that.
    refused_later = [
        subject
        for subject in arrived
        if subject in rejected and journal.excused[rows[subject][0]] == arrived[subject]
    ]
    unsaid = [
        subject
        for subject in arrived.keys() - refused_later
        if rows.get(subject, ("", ""))[1] != "sent"
    ]
    again = {uuid: number - 1 for uuid, number in often.items() if number > 1}
    unexplained = {
        subjects.get(uuid, uuid): number - journal.excused[uuid]
        for uuid, number in again.items()
        if number > journal.excused[uuid]
    }
    strangers = set(arrived) - accepted - refused
    reasons = Counter(journal.unanswered.values())
    stats = site.ses.stats()
    held = {
        "nothing is open any more": is_settled,
        "each accepted message was sent, or says that SES rejected it": not lost,
        "each that SES accepted is `sent`, unless all of its calls are in doubt": not unsaid,
        "nothing was sent that nobody queued": not strangers,
        "twice: only a call in flight at a kill or suspension, or severed": not unexplained,
        "never faster than the account allows": stats.throttled == 0,
        f"each worker that was stopped ended within {STOP_SECONDS:g} s": not journal.stuck,
    }
    print("\nWhat happened")
    for name, count in sorted(journal.happened.items()):
        print(f"  {count:6,}  {name}")
    print("\nThe account")
    how_often = Counter(often.values())
    for name, number in (
        ("accepted by send_messages()", len(accepted)),
        ("refused by it with an error (database gone)", len(refused)),
        ("accepted by SES, messages", len(arrived)),
        ("accepted by SES, calls", sum(often.values())),
        *((f"  messages that arrived {number} x", n) for number, n in sorted(how_often.items())),
        ("accepted by SES once more", sum(again.values())),
        ("in doubt: accepted, and the worker can't know it", len(journal.unanswered)),
        *((f"  {why}", count) for why, count in sorted(reasons.items())),
        ("in doubt, and refused when it was sent once more", len(refused_later)),
        *((f"rows {state}", count) for state, count in sorted(states.items())),
        ("lost", len(lost)),
    ):
        print(f"  {number:9,}  {name}")
    print()
    for name, is_so in held.items():
        print(f"  {'held' if is_so else 'BROKEN':<7} {name}")
    for worker in journal.stuck:
        print(f"  did not stop: {worker}")
    for name, found in (("lost", lost), ("not `sent`", unsaid), ("twice", list(unexplained))):
        for subject in found[:5]:
            print(f"  {name}: {subject} {rows.get(subject)}")
            for call in journal.calls.get(rows.get(subject, (subject,))[0], ()):
                by = journal.fates.get(call.access_key_id, "alive")
                why = journal.unanswered.get(call.message_id, "")
                print(f"    {call.received_at:%H:%M:%S.%f}, of a worker {by} {why}")
    return all(held.values())


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    options = parser.parse_args()
    seconds = options.minutes * 60
    print(f"{options.messages:,} messages in {options.minutes:g} minutes, seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="connect-mailer-soak-") as name:
        folder, journal_file = Path(name), Path(name) / "journal"
        journal_file.touch()
        rate = max(2 * options.messages / seconds, 50)
        with Site(folder, rate=rate, workers=WORKERS, settings=SETTINGS) as site:
            soak = Soak(site, random.Random(options.seed))
            queueing = site.start(
                "queueing",
                *("tests.soak.queueing", str(options.messages)),
                *(str(seconds * 0.9), str(journal_file)),
            )
            soak.run(seconds)
            code = queueing.wait()
            is_settled = soak.settle(180 + seconds)
            held = account(
                site, soak.journal, journal_file.read_text().split(), is_settled=is_settled
            )
            if code:
                print((folder / "queueing.log").read_text()[-3000:])
            if not held:
                for log in sorted(folder.glob("worker-*.log")):
                    print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
    print("PASS" if held and not code else "FAIL")
    return 0 if held and not code else 1


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(main())
    except (KeyboardInterrupt, psycopg.OperationalError) as error:
        sys.exit(f"Interrupted: {error!r}")

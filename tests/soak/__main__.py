"""``python -m tests.soak``: a site under one fault after the other, and an exact account.

Messages are queued all the while; every few seconds something breaks, chosen by the seed. In
the end each message that ``send_messages()`` accepted must have been sent, or have ended in a
state that says why; and one that SES accepted twice must have been in flight when a worker was
killed or suspended, or its answer must have been severed.
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
from pathlib import Path
from typing import Final

import psycopg
import redis

from connect_mailer.testing.ses import Fault
from tests.soak.site import TABLE, Site

WORKERS: Final = 4
LEASE_SECONDS: Final = 16
STOP_SECONDS: Final = 30.0
SETTINGS: Final = {
    "MAX_DRAINS": 4,
    "CONCURRENCY": 20,
    "LEASE_SECONDS": LEASE_SECONDS,
    "DRAIN_SECONDS": 10,
    "PAUSE_SECONDS": 2,
    "RETRY_DELAY": 1,
}


@dataclass(kw_only=True)
class Journal:
    """What happened, as far as the account needs it."""

    happened: Counter[str] = field(default_factory=Counter)
    in_flight: set[str] = field(default_factory=set)
    """Subjects of what was claimed when a worker was killed or suspended."""
    severed: int = 0
    """Calls that SES accepted and whose answer it was told to sever, at most."""
    arrived: Counter[str] = field(default_factory=Counter)
    """How often SES accepted each message, by subject."""
    seen: int = 0


class Soak:
    """One run."""

    def __init__(self, site: Site, chance: random.Random) -> None:
        self._site = site
        self._chance = chance
        self._suspended: dict[int, float] = {}
        self.journal = Journal()
        self._faults: dict[str, Callable[[], None]] = {
            "worker killed": self._kill,
            "worker stopped (SIGTERM to all)": self._stop,
            "worker suspended past its lease": self._suspend,
            "broker and limiter flushed": self._flush,
            "broker and limiter killed": self._restart_valkey,
            "database connections cut": self._site.terminate_backends,
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
            "SES: accepted, then reset": self._sever("after", reset=True),
            "SES: accepted, then closed": self._sever("after"),
            "SES: answer cut": self._sever("cut"),
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
        self.journal.arrived.update(str(mail.message["Subject"]) for mail in mails)

    # Faults

    def _choose(self) -> int:
        awake = [number for number in range(WORKERS) if number not in self._suspended]
        return self._chance.choice(awake)

    def _note_flight(self) -> None:
        self.journal.in_flight |= self._site.find_sending()

    def _kill(self) -> None:
        number = self._choose()
        # Before and after: what is claimed in between is in one of the two.
        self._note_flight()
        self._site.tell(number, signal.SIGKILL)
        self._note_flight()
        self._site.end(number, signal.SIGKILL, seconds=STOP_SECONDS)

    def _stop(self) -> None:
        if not self._site.end(self._choose(), signal.SIGTERM, seconds=STOP_SECONDS):
            self.journal.happened["worker that did not stop in time"] += 1

    def _suspend(self) -> None:
        if len(self._suspended) >= WORKERS - 2:
            return
        number = self._choose()
        self._note_flight()
        self._site.tell(number, signal.SIGSTOP)
        self._note_flight()
        self._suspended[number] = time.monotonic() + LEASE_SECONDS + 4

    def _flush(self) -> None:
        with redis.Redis.from_url(self._site.redis_url) as client:
            client.flushall()

    def _restart_valkey(self) -> None:
        self._site.stop_valkey()
        self._rest(3.0)
        self._site.start_valkey()

    def _inject(self, **values: object) -> None:
        self._site.ses.inject(Fault(**values))  # type: ignore[arg-type]

    def _answer(self, code: str, message: str = "As told.", *, times: int) -> Callable[[], None]:
        return lambda: self._inject(code=code, message=message, times=times)

    def _sever(self, lost: str, *, reset: bool = False) -> Callable[[], None]:
        def sever() -> None:
            self.journal.severed += 10
            self._inject(lost=lost, reset=reset, times=10)

        return sever


def account(site: Site, journal: Journal, lines: list[str], *, is_settled: bool) -> bool:
    """Print what became of every message; return whether the promise held."""
    accepted = {f"m{line[1:]}" for line in lines if line.startswith("+")}
    doubtful = {f"m{line[1:]}" for line in lines if line.startswith("?")}
    rows = {
        subject: (status, error)
        for subject, status, error in site.ask(f"SELECT subject, status, last_error FROM {TABLE}")
    }
    states = Counter(rows[subject][0] for subject in accepted if subject in rows)
    unexplained = [
        subject
        for subject in accepted
        if not journal.arrived[subject]
        and not (subject in rows and rows[subject][0] in ("failed", "expired") and rows[subject][1])
    ]
    unsaid = [
        subject
        for subject in accepted
        if journal.arrived[subject] and rows.get(subject, ("lost", ""))[0] != "sent"
    ]
    twice = {subject: count - 1 for subject, count in journal.arrived.items() if count > 1}
    elsewhere = sum(count for subject, count in twice.items() if subject not in journal.in_flight)
    stranger = set(journal.arrived) - accepted - doubtful
    held = {
        "nothing is open any more": is_settled,
        "each accepted message was sent, or says why not": not unexplained,
        "each that SES accepted is `sent`": not unsaid,
        "nothing was sent that nobody queued": not stranger,
        "twice: only what was in flight at a kill, or whose answer was severed": (
            elsewhere <= journal.severed
        ),
    }
    print("\nWhat happened")
    for name, count in sorted(journal.happened.items()):
        print(f"  {count:6,}  {name}")
    print("\nThe account")
    for name, number in (
        ("accepted by send_messages()", len(accepted)),
        ("refused with an error (database gone)", len(doubtful)),
        ("accepted by SES, calls", journal.arrived.total()),
        ("accepted by SES, messages", len(journal.arrived)),
        ("accepted by SES more than once", sum(twice.values())),
        ("  of these not in flight at a kill", elsewhere),
        ("in flight at kills and suspensions", len(journal.in_flight)),
        ("answers severed, at most", journal.severed),
        *((f"rows {state}", count) for state, count in sorted(states.items())),
        ("lost", len(unexplained)),
    ):
        print(f"  {number:9,}  {name}")
    print()
    for name, is_so in held.items():
        print(f"  {'held' if is_so else 'BROKEN':<7} {name}")
    for name, subjects in (("lost", unexplained), ("not `sent`", unsaid)):
        for subject in subjects[:5]:
            print(f"  {name}: {subject} {rows.get(subject)}")
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

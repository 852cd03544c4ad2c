"""Break rules of the outbox in a copy, each several times; its state machine must notice.

``python -m tests.sending.mutants`` prints one line a try and exits 1 if one went unnoticed;
with WORDs it takes only the rules that have one. With ``TEST_DATABASE=postgres``, claims and what
was sent are those of ``at_once``. A search at random may miss what a second one finds, so once
says little. How a failure could be shorter is not asked.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.feedback.mutants import make_mutants, try_all

TIMES = 3
TESTS = ["tests/sending/test_outbox_machine.py"]

MUTANTS = make_mutants(
    "outbox.py",
    (
        "the claim counts when it is settled",
        "if held.get(result.pk) == result.claim]",
        "if result.pk in held]",
    ),
    (
        "a lease holds until it ends",
        *("lane=None, due_at__lte=DatabaseNow()\n", "lane=None\n"),
        *(".exclude(due_at__gt=DatabaseNow())\n", "\n"),  # and not when another one has taken it
    ),
    ("a retry waits", 'lane=F("rank") if is_due else None', 'lane=F("rank")'),
    ("a retry keeps its attempts", 'F("attempts") - (0 if result.counts else 1)', "Value(0)"),
    ("what is given back was no attempt", "- (0 if result.counts else 1)", "- 0"),
    (
        "purge takes finished rows",
        "_in_chunks(messages.filter(finished_at__lt=old), _forget)",
        "_in_chunks(messages.filter(created_at__lt=old), _forget)",
    ),
    (
        "purge takes no body of what was not sent",
        "        status=Status.SENT,\n        finished_at__lt",
        "        finished_at__lt",
    ),
    ("sent again, it is not finished", "                finished_at=None,\n", ""),
    ("sent again, it starts anew", "                attempts=0,\n", ""),
    (
        "what is open is not sent again",
        "status__in=[Status.FAILED, Status.EXPIRED, Status.SENT]",
        "status__in=list(Status)",
    ),
    (
        "paused streams stay",
        "FIRST_DEFAULT_LANE - 1 if OutgoingMessage.Stream.DEFAULT in paused else LAST_LANE",
        "LAST_LANE",
    ),
    (
        "what has ended leaves the line",
        "            lane=None,\n            turn=None,\n            finished_at",
        "            finished_at",
    ),
    (
        "only queued rows are cancelled",
        "filter(pk__in=pks, status=Status.QUEUED)",
        "filter(pk__in=pks)",
    ),
)

if os.environ.get("TEST_DATABASE") == "postgres":
    MUTANTS += make_mutants(
        "at_once.py",
        ("a claim has a lease", "make_interval(secs => %s)", "make_interval(secs => 0 * %s)"),
        ("whoever takes over is in doubt", "in_doubt OR status = 'sending'", "in_doubt"),
        ("the most important first", "ORDER BY lane, turn LIMIT", "ORDER BY turn LIMIT"),
        ("no more than was paid for", "tokens <= %s AND", "tokens <= 1000 * %s AND"),
        ("sent is written down in any case", "AND row.id = key\n", "AND row.id = key AND false\n"),
        (
            "what an event settled stays",
            "        AND status <> 'sent' AND NOT (status = 'failed' AND ses_message_id <> '')\n",
            "",
        ),
    )
else:
    MUTANTS += make_mutants(
        "outbox.py",
        ("a claim has a lease", "timedelta(seconds=lease_seconds)", "timedelta(0)"),
        (
            "whoever takes over is in doubt",
            "in_doubt=row.in_doubt or status == Status.SENDING",
            "in_doubt=row.in_doubt",
        ),
        (
            "doubt is written down",
            'Case(When(status=Status.SENDING, then=Value(True)), default=F("in_doubt"))',
            'F("in_doubt")',
        ),
        ("the most important first", '"lane", "turn"\n    )', '"turn"\n    )'),
        ("no more than was paid for", "if tokens < 0 or", "if"),
        ("sent is written down in any case", "pks = [result.pk for result in sent]", "pks = []"),
        ("what an event settled stays", "rows.exclude(_SETTLED_BY_EVENT).update", "rows.update"),
    )


if __name__ == "__main__":
    os.environ["TEST_SHRINK"] = ""
    mutants = [mutant for mutant in MUTANTS for _ in range(TIMES)]
    sending = Path("connect_mailer/sending")
    sys.exit(1 if try_all(mutants, sending, TESTS, sys.argv[1:]) else 0)

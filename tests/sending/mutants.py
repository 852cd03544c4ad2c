"""Break rules of the outbox in a copy, each several times; its state machine must notice.

``python -m tests.sending.mutants`` prints one line a try and exits 1 if one went unnoticed;
with a WORD it takes only the rules that have it. A search at random may miss what a second one
finds, so once says little.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.feedback.mutants import Mutant, try_all

TIMES = 3
TESTS = ["tests/sending/test_outbox_machine.py"]

MUTANTS = [
    Mutant(rule=rule, file="outbox.py", old=old, new=new)
    for rule, old, new in (
        ("the claim counts when it is settled", ", claim=claim, status=Status.SENDING)", ")"),
        (
            "a lease holds until it ends",
            "status=status, lane=None, due_at__lte=DatabaseNow())",
            "status=status, lane=None)",
        ),
        ("a claim has a lease", "timedelta(seconds=lease_seconds)", "timedelta(0)"),
        (
            "whoever takes over is in doubt",
            "row.in_doubt = row.in_doubt or row.status == Status.SENDING",
            "pass",
        ),
        (
            "doubt is written down",
            'Case(When(status=Status.SENDING, then=Value(True)), default=F("in_doubt"))',
            'F("in_doubt")',
        ),
        (
            "a retry keeps its attempts",
            'F("attempts") - (0 if result.counts else 1)',
            "Value(0)",
        ),
        ("what is given back was no attempt", "- (0 if result.counts else 1)", "- 0"),
        ("a retry waits", 'lane=F("rank") if at_once else None', 'lane=F("rank")'),
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
        ("sent is written down in any case", "pks = [result.pk for result in sent]", "pks = []"),
        (
            "what an event settled stays",
            "rows.exclude(_SETTLED_BY_EVENT).update",
            "rows.update",
        ),
        ("paused streams stay", "if OutgoingMessage.Stream.DEFAULT in paused:", "if False:"),
        ("the most important first", '.order_by("lane", "turn")', '.order_by("turn")'),
        ("no more than was paid for", "if tokens < 0 or", "if"),
        (
            "what has ended leaves the line",
            "                lane=None,\n                turn=None,\n",
            "",
        ),
        (
            "only queued rows are cancelled",
            "filter(pk__in=pks, status=Status.QUEUED)",
            "filter(pk__in=pks)",
        ),
    )
]


if __name__ == "__main__":
    mutants = [mutant for mutant in MUTANTS for _ in range(TIMES)]
    word = "".join(sys.argv[1:2])
    sys.exit(1 if try_all(mutants, Path("connect_mailer/sending"), TESTS, word=word) else 0)

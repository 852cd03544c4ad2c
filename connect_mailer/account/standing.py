"""How the account is, in SES's words: asked by one process for all that show it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Final

from connect_mailer.clock import DatabaseNow
from connect_mailer.conf import CALL_SECONDS
from connect_mailer.exceptions import DeliveryError
from connect_mailer.models import Lease
from connect_mailer.sending import leases
from connect_mailer.sending.ses import Account
from connect_mailer.sending.transport import get_ses_client

# SES takes one such question a second, of the drains as well.
FRESH_SECONDS: Final = 10
_NAME: Final = "account"
_POLL_SECONDS: Final = 0.1


def load_account(*, using: str) -> Account | str:
    """What SES said within the last ``FRESH_SECONDS``, to this process or another; or an error.

    While one process asks, the others take what was said before that, or wait for the first
    answer. It is the note of a lease, whose holder is the one that asks.
    """
    rows = Lease.objects.using(using).filter(name=_NAME)
    while True:
        last = rows.values_list("note", flat=True).first() or ""
        holder = leases.acquire(_NAME, CALL_SECONDS, using=using, note=last)
        if holder is not None:
            break
        if last:
            return _read(last)
        time.sleep(_POLL_SECONDS)
    try:
        answer: dict[str, Any] = asdict(get_ses_client().get_account())
    except DeliveryError as error:
        answer = {"error": str(error)}
    note = json.dumps(answer)
    end = DatabaseNow() + timedelta(seconds=FRESH_SECONDS)
    rows.filter(holder=holder).update(note=note, expires_at=end)
    return _read(note)


def _read(note: str) -> Account | str:
    answer = json.loads(note)
    return str(answer["error"]) if "error" in answer else Account(**answer)

"""Delivering the outbox inside a test."""

from __future__ import annotations

from connect_mailer.sending import outbox
from connect_mailer.sending.delivery import Drain
from connect_mailer.sending.transport import get_transport


def deliver_all() -> int:
    """Deliver everything that is due, now and in this process; return how many rows were sent.

    Through the transport that the settings name (in tests usually Django's ``locmem``: the
    messages are in ``django.core.mail.outbox`` afterwards), without pacing, Celery or Redis.
    It works inside a test's transaction. What fails goes back into the queue as always, and
    is not tried again in the same call.
    """
    drain = Drain(
        transport=get_transport(),
        limiter=None,
        rate=None,
        using=outbox.get_database(),
        one_pass=True,
    )
    return drain.run()

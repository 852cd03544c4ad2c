"""The reputation guard: tells the admins, or pauses, before AWS does.

It looks at the last 10,000 recipients each minute, and never acts on few messages or few
people: somebody with two mailboxes must not be able to stop a site.
"""

from __future__ import annotations

import logging
from typing import Final

from django.core.mail import EmailMessage
from django.utils.translation import gettext as _

from connect_mailer.conf import conf
from connect_mailer.health import figures
from connect_mailer.health.figures import Limits, Window
from connect_mailer.models import MessageEvent, OutgoingMessage
from connect_mailer.sending import leases, pauses
from connect_mailer.tallies import SIMULATOR_DOMAIN

logger = logging.getLogger(__name__)

MIN_PEOPLE: Final = 10
# The admins are told again, and a stream that an operator resumed is paused again, after a day.
_AGAIN_SECONDS: Final = 86400
# Addresses that are looked at to find so many people.
_MAX_ADDRESSES: Final = 500


def check(*, using: str) -> None:
    """Warn or pause as ``GUARD`` says, where the rates are as bad as that."""
    guard = conf.guard
    if not any(guard.values()):
        return
    window = figures.load_last_recipients(using=using)
    if window.written < figures.MIN_RECIPIENTS:
        return
    if (pair := guard["pause"]) and (reason := _judge(window, pair, using)):
        _pause(reason, using)
    if (pair := guard["warn"]) and (reason := _judge(window, pair, using)):
        _warn(reason, using)


def _judge(window: Window, pair: tuple[float, float], using: str) -> str:
    """Which limit is reached, in words; empty: none, or by too few people."""
    limits = Limits(bounces=pair[0], complaints=pair[1])
    for rate, limit, kind, text in (
        (
            window.bounce_rate,
            limits.bounces,
            MessageEvent.Kind.BOUNCED,
            _("%(rate).2f %% of the last %(number)d recipients bounced."),
        ),
        (
            window.complaint_rate,
            limits.complaints,
            MessageEvent.Kind.COMPLAINED,
            _("%(rate).2f %% of the last %(number)d recipients complained."),
        ),
    ):
        if rate >= limit and _count_people(kind, window, using) >= MIN_PEOPLE:
            return text % {"rate": rate * 100, "number": window.written}
    return ""


def _count_people(kind: str, window: Window, using: str) -> int:
    """Distinct mailboxes: what comes after a plus is the same person."""
    events = MessageEvent.objects.using(using).filter(kind=kind, at__gte=window.since)
    addresses = events.exclude(address__endswith=f"@{SIMULATOR_DOMAIN}").values_list(
        "address", flat=True
    )
    people = set()
    for address in addresses.order_by("address").distinct()[:_MAX_ADDRESSES]:
        local, _at, domain = address.rpartition("@")
        people.add((local.partition("+")[0], domain))
    return len(people)


def _pause(reason: str, using: str) -> None:
    if not leases.acquire("guard pause", _AGAIN_SECONDS, using=using):
        return
    if pauses.pause(OutgoingMessage.Stream.DEFAULT, reason, using=using):
        logger.error("The default stream is paused: %s", reason)
        _tell(
            _("Mail is paused: too many bounces or complaints"),
            _(
                "%(reason)s At such rates Amazon SES may suspend the account, so the stream "
                "“default” is paused; the transactional one goes on. Find out what was sent to "
                "whom, and resume the stream on the page “Mail health” of the admin."
            )
            % {"reason": reason},
        )


def _warn(reason: str, using: str) -> None:
    if leases.acquire("guard warning", _AGAIN_SECONDS, using=using):
        logger.warning("The reputation of the site's mail is bad: %s", reason)
        _tell(
            _("Too many bounces or complaints"),
            _(
                "%(reason)s At such rates Amazon SES reviews an account, and may suspend it. The "
                "page “Mail health” of the admin says which domains they come from."
            )
            % {"reason": reason},
        )


def _tell(subject: str, text: str) -> None:
    from connect_mailer.backend import TransactionalBackend

    if admins := conf.admins:
        message = EmailMessage(subject, text, conf.server_email, admins)
        TransactionalBackend(fail_silently=True).send_messages([message])

"""Subscriptions that were ended: until they begin again, no bounce or complaint comes back.

One is a lease without an end, named after its topic, so that the health page and the doctor
can tell. It is over when SNS confirms the topic's subscription again, or posts anything of it
that leaves a row; that is looked for by who asks, so that notifications cost nothing more.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from django.apps import apps
from django.utils import timezone

from connect_mailer.models import MAX_RECIPIENTS, Lease

_PREFIX: Final = "ended "
_FOR_EVER: Final = timedelta(days=36500)
# How many of the newest rows are looked at: there are no indexes by topic.
_NEWEST: Final = 20 * MAX_RECIPIENTS


def note_ended(topic_arn: str, *, using: str) -> None:
    """Remember that SNS posts nothing of ``topic_arn`` any more."""
    now = timezone.now()
    Lease.objects.using(using).update_or_create(
        name=_make_name(topic_arn),
        defaults={
            "holder": uuid.uuid4(),
            "since": now,
            "expires_at": now + _FOR_EVER,
            "note": topic_arn,
        },
    )


def note_begun(topic_arn: str, *, using: str) -> None:
    """Forget that it was ended."""
    Lease.objects.using(using).filter(name=_make_name(topic_arn)).delete()


def find_ended(*, using: str) -> Iterator[tuple[str, datetime]]:
    """Topics of which nothing has come since their subscription was ended, and when that was."""
    for lease in Lease.objects.using(using).filter(name__startswith=_PREFIX).order_by("since"):
        if lease.since is not None and not _is_alive(lease.note, lease.since):
            yield lease.note, lease.since


def _is_alive(topic_arn: str, since: datetime) -> bool:
    return any(
        topic == topic_arn and created_at > since
        for model in apps.get_app_config("django_bouncy").get_models()
        for topic, created_at in model._default_manager.order_by("-pk").values_list(
            "sns_topic", "created_at"
        )[:_NEWEST]
    )


def _make_name(topic_arn: str) -> str:
    return _PREFIX + hashlib.sha256(topic_arn.encode()).hexdigest()[:40]

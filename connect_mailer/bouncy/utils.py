"""What ``django_bouncy.utils`` had, on this app's own verification.

For sites whose code called it; the webhook does without. Each name says what replaces it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.http import HttpResponse

from connect_mailer.exceptions import NotificationRefused
from connect_mailer.feedback import sns, webhook


def verify_notification(data: Mapping[str, Any]) -> bool:
    """Whether SNS signed ``data`` (the decoded body) for a topic in ``BOUNCY_TOPIC_ARN``.

    Raises:
        NotificationUndecided: the certificate can't be had now.
    """
    try:
        webhook.authenticate(json.dumps(data).encode())
    except NotificationRefused:
        return False
    return True


def approve_subscription(data: Mapping[str, Any]) -> HttpResponse:
    """Confirm a subscription, if it is genuine and of a topic in ``BOUNCY_TOPIC_ARN``.

    Status 200, or 400 where it is neither, or asks for something else. ``SubscribeURL`` is not
    visited.

    Raises:
        NotificationUndecided: the certificate can't be had now, or SNS doesn't answer.
    """
    notification: sns.Notification | None = None
    with suppress(NotificationRefused):
        notification = webhook.authenticate(json.dumps(data).encode())
    if notification is None or notification.type != sns.SUBSCRIPTION:
        return HttpResponse("Refused", status=400, content_type="text/plain")
    status = webhook.confirm(notification)
    return HttpResponse(status=status, content_type="text/plain")


def clean_time(time_string: str) -> datetime:
    """A time as SES and SNS write it; naive, in UTC, where ``USE_TZ`` is off.

    Raises:
        ValueError: it is none.
    """
    time = datetime.fromisoformat(time_string)
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return time if settings.USE_TZ else time.astimezone(UTC).replace(tzinfo=None)

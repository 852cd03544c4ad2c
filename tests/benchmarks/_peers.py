"""What others use, as published, and seacucumber's design on boto3: itself it needs Python 2.

Each is there where it is installed (``tox -e bench`` has them all).
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

# By name: the package, and the backend that queues.
QUEUES = {
    "django-post-office": ("post_office", "post_office.EmailBackend"),
    "django-mailer": ("mailer", "mailer.backend.DbBackend"),
    "django-celery-email": ("djcelery_email", "djcelery_email.backends.CeleryEmailBackend"),
    "seacucumber's design": ("", "tests.benchmarks._peers.SeacucumberBackend"),
}


def find_queues() -> dict[str, str]:
    """The backends that queue, of those that are installed."""
    return {name: path for name, (app, path) in QUEUES.items() if not app or find_spec(app)}


def list_apps() -> list[str]:
    """What ``INSTALLED_APPS`` needs for them."""
    return [app for app, _ in QUEUES.values() if app and find_spec(app)]


def mend() -> None:
    """Give Django back what django-celery-email reads and Django 6.0 has dropped."""
    if not hasattr(EmailMessage, "mixed_subtype"):
        EmailMessage.mixed_subtype = "mixed"  # type: ignore[attr-defined]


class SeacucumberBackend(BaseEmailBackend):
    """One Celery task a message, which carries the message."""

    def send_messages(self, email_messages: Any) -> int:
        """As seacucumber 1.5.2 queued."""
        task = _get_task()
        number = 0
        for message in email_messages:
            mime = message.message().as_string()
            task.apply_async(args=[message.from_email, message.recipients(), mime])
            number += 1
        return number


def _get_task() -> Any:
    from celery import shared_task

    return shared_task(_send, name="bench.seacucumber", ignore_result=True)


def _send(sender: str, recipients: list[str], mime: str) -> None:
    """As seacucumber 1.5.2 sent, with boto3's client in the place of boto's."""
    global _client
    if _client is None:
        import boto3

        _client = boto3.client(
            "sesv2", region_name="us-east-1", endpoint_url=os.environ["SITE_SES_URL"]
        )
    _client.send_email(
        FromEmailAddress=sender,
        Destination={"ToAddresses": recipients},
        Content={"Raw": {"Data": mime.encode()}},
    )


_client: Any = None

"""What others use, as published, and seacucumber's design on boto3: itself it needs Python 2.

Each is there where it is installed (``tox -e bench`` has them all).
"""

from __future__ import annotations

import os
import time
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


def prepare() -> None:
    """Register the tasks of those that have any.

    Django gets back what django-celery-email reads and 6.0 has dropped, and its task is its own:
    connect_mailer takes the ones that it left in a broker.
    """
    from tests.site.celery import app

    _get_task()
    app.finalize()
    app.tasks.pop("djcelery_email_send_multiple", None)
    if find_spec("djcelery_email"):
        import djcelery_email.tasks  # noqa: F401
    if not hasattr(EmailMessage, "mixed_subtype"):
        EmailMessage.mixed_subtype = "mixed"  # type: ignore[attr-defined]


# Threads of a worker, where a peer can have them.
THREADS = 50
DJANGO_SES = "django_ses.SESBackend"


def send_by_ses() -> None:
    """Let django-ses and django-anymail, and all that use them, find the local SES."""
    from django.conf import settings

    url = os.environ["SITE_SES_URL"]
    os.environ["AWS_ENDPOINT_URL_SESV2"] = url
    os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "test"
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    settings.USE_SES_V2, settings.AWS_SES_REGION_NAME = True, "us-east-1"
    settings.AWS_SES_REGION_ENDPOINT_URL, settings.AWS_SES_AUTO_THROTTLE = url, None
    settings.MAILER_EMAIL_BACKEND = settings.CELERY_EMAIL_BACKEND = DJANGO_SES
    settings.MAILER_USE_FILE_LOCK = False
    settings.POST_OFFICE = {
        "BACKENDS": {"default": DJANGO_SES},
        "THREADS_PER_PROCESS": THREADS,
        # Each batch starts processes and threads, and each thread makes a client.
        "BATCH_SIZE": 5000,
        "LOG_LEVEL": 0,
    }


def empty() -> None:
    """Forget what they have queued."""
    import redis
    from django.apps import apps

    with redis.Redis.from_url(os.environ["SITE_REDIS_URL"]) as client:
        client.flushdb()
    for name in ("post_office.Email", "mailer.Message"):
        if apps.is_installed(name.partition(".")[0]):
            apps.get_model(name).objects.all().delete()


def drain_post_office(messages: int) -> int:
    """Two processes with threads, as ``send_queued_mail --processes 2`` has them."""
    from post_office.mail import send_queued_mail_until_done
    from post_office.models import STATUS, Email

    send_queued_mail_until_done(processes=2)
    return Email.objects.filter(status=STATUS.sent).count()


def drain_mailer(messages: int) -> int:
    """One after the other, as ``send_mail`` does."""
    from mailer.engine import send_all
    from mailer.models import MessageLog

    before = MessageLog.objects.count()
    send_all()
    return MessageLog.objects.count() - before


def drain_by_celery(messages: int) -> int:
    """One of two Celery workers with threads; until both together have sent all."""
    import redis
    from celery.contrib.testing.worker import start_worker
    from celery.signals import task_success

    from tests.site.celery import app

    own: list[int] = []
    with redis.Redis.from_url(os.environ["SITE_REDIS_URL"]) as client:

        def count(result: Any = None, **kwargs: Any) -> None:
            own.append(result or 1)
            client.incrby("sent", own[-1])

        task_success.connect(count, weak=False)
        worker = start_worker(
            app, concurrency=THREADS, pool="threads", perform_ping_check=False, loglevel="CRITICAL"
        )
        worker.__enter__()  # its end is not waited for
        begun = time.monotonic()
        while int(client.get("sent") or 0) < messages:
            time.sleep(0.01)
            if time.monotonic() > begun + 120:
                raise TimeoutError(f"{client.get('sent')} of {messages} are sent")
    return sum(own)


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
        from botocore.config import Config

        config = Config(max_pool_connections=THREADS)
        _client = boto3.client("sesv2", config=config)
    _client.send_email(
        FromEmailAddress=sender,
        Destination={"ToAddresses": recipients},
        Content={"Raw": {"Data": mime.encode()}},
    )


_client: Any = None

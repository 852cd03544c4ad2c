"""Genuine notifications a second on one core, ours beside django-ses's view, and forgeries.

Both views are on one site and get the same kind of signed body through Django's WSGI
handler; both have the certificate in their cache and verify the signature. What they write:

``ours``
    receipt (no notification twice), one row a recipient, ``Unsubscribe``; atomic. It asks the
    outbox, which doesn't know the mail, as it doesn't know who sends without it.
``settled``
    the same for a mail of the outbox: its recipients, its history and the tallies as well.
``told``
    as ``ours``, and a receiver of the site's listens to ``feedback``: instances are made.
``equal``
    django-ses, with the receiver that a site would write to record all that ``settled`` records,
    by Django's ORM, in bulk wherever it has that: receipt, one row a recipient, ``Unsubscribe``
    with its user, the message, its recipients, its history, the tallies. Atomic.
``recorded``
    django-ses, with a receiver that records what ``ours`` does: receipt, one row a recipient by
    ``create()``, and its own blacklist. Atomic, but no outbox.
``bulk``
    the same with ``bulk_create()``, for who has thought of it.
``bare``
    django-ses as installed: the blacklist for bounces, nothing for deliveries, so a
    notification that comes twice counts twice.
``floor``
    a view of Django that reads nothing, checks nothing and makes one insert in a transaction:
    nobody who writes can be faster.

Rounds of all are interleaved, and the median of each is shown, so that a machine that slows
down slows all.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import platform
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from io import BytesIO
from typing import Any
from unittest import mock

ROUNDS = 5
NOTIFICATIONS = {1: 150, 10: 60, 50: 30}
FORGERIES = 2000

_PATHS = {"ours": "/ours/", "settled": "/ours/", "told": "/ours/", "floor": "/floor/"}
_MODE = {"bulk": False, "records": False, "equal": False}

urlpatterns: list[Any] = []


def main() -> None:
    """Print the tables."""
    _configure()
    from django.core.handlers.wsgi import WSGIHandler
    from django.db import connection
    from django.test.utils import setup_databases, teardown_databases

    logging.disable(logging.CRITICAL)
    kept = setup_databases(verbosity=0, interactive=False)
    # After the server of the database was started, which so has the other cores.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    try:
        print(  # noqa: T201
            f"{platform.python_implementation()} {platform.python_version()}, "
            f"{connection.vendor} {'.'.join(map(str, connection.get_database_version()))}, "
            f"one of {os.cpu_count()} cores; median of {ROUNDS} interleaved rounds\n"
        )
        bench = _Bench(WSGIHandler())
        bench.compare()
        bench.split()
        bench.flood()
    finally:
        teardown_databases(kept, verbosity=0)


def _configure() -> None:
    import django
    from django.conf import settings

    from connect_mailer.testing.sns import TOPIC_ARN
    from tests import settings as base

    options = {name: getattr(base, name) for name in dir(base) if name.isupper()}
    databases = {
        alias: {**database, "CONN_MAX_AGE": None} for alias, database in base.DATABASES.items()
    }
    settings.configure(
        **options
        | {
            "DATABASES": databases,
            "INSTALLED_APPS": [*base.INSTALLED_APPS, "django_ses"],
            "MIDDLEWARE": [],
            "ROOT_URLCONF": __name__,
            "BOUNCY_TOPIC_ARN": [TOPIC_ARN],
            "AWS_SNS_EVENT_TRUSTED_TOPIC_ARNS": [TOPIC_ARN],
            "AWS_SES_ADD_BOUNCE_TO_BLACKLIST": True,
            "LOGGING_CONFIG": None,
        }
    )
    django.setup()
    from django.urls import path
    from django.views.decorators.csrf import csrf_exempt
    from django_ses import signals
    from django_ses.views import SESEventWebhookView

    from connect_mailer.feedback.webhook import endpoint

    urlpatterns[:] = [
        path("floor/", csrf_exempt(_insert_one)),
        path("ours/", endpoint),
        path("theirs/", csrf_exempt(SESEventWebhookView.as_view())),
    ]
    signals.delivery_received.connect(_record_delivery)
    signals.bounce_received.connect(_record_bounce)


def _insert_one(request: Any) -> Any:
    from django.db import transaction
    from django.http import HttpResponse

    from connect_mailer.models import NotificationReceipt

    with transaction.atomic():
        NotificationReceipt.objects.create(message_id=str(uuid.uuid4()))
    return HttpResponse(b"OK")


def _listen(**kwargs: Any) -> None:
    pass


def _record_delivery(
    sender: Any, mail_obj: Any, delivery_obj: Any, raw_message: bytes, **kwargs: Any
) -> None:
    from django_bouncy.models import Delivery

    details = {
        "delivered_time": delivery_obj["timestamp"],
        "processing_time": delivery_obj["processingTimeMillis"],
        "smtp_response": delivery_obj["smtpResponse"],
    }
    _record(Delivery, raw_message, mail_obj, [(a, details) for a in delivery_obj["recipients"]])


def _record_bounce(
    sender: Any, mail_obj: Any, bounce_obj: Any, raw_message: bytes, **kwargs: Any
) -> None:
    from django_bouncy.models import Bounce

    recipients = [
        (
            recipient["emailAddress"],
            {
                "hard": bounce_obj["bounceType"] == "Permanent",
                "bounce_type": bounce_obj["bounceType"],
                "bounce_subtype": bounce_obj["bounceSubType"],
                "action": recipient["action"],
                "status": recipient["status"],
                "diagnostic_code": recipient["diagnosticCode"],
                "feedback_id": bounce_obj["feedbackId"],
                "feedback_timestamp": bounce_obj["timestamp"],
            },
        )
        for recipient in bounce_obj["bouncedRecipients"]
    ]
    _record(Bounce, raw_message, mail_obj, recipients)


def _record(
    model: Any, raw_message: bytes, mail: Any, recipients: list[tuple[str, dict[str, Any]]]
) -> None:
    from django.db import transaction

    from connect_mailer.models import NotificationReceipt

    if not _MODE["records"]:
        return
    notification = json.loads(raw_message)
    shared = {
        "sns_topic": notification["TopicArn"],
        "sns_messageid": notification["MessageId"],
        "mail_timestamp": mail["timestamp"],
        "mail_id": mail["messageId"],
        "mail_from": mail["source"],
    }
    with transaction.atomic():
        NotificationReceipt.objects.create(message_id=notification["MessageId"])
        if _MODE["bulk"] or _MODE["equal"]:
            model.objects.bulk_create(
                model(address=address, **shared, **details) for address, details in recipients
            )
        else:
            for address, details in recipients:
                model.objects.create(address=address, **shared, **details)
        if _MODE["equal"]:
            _settle(mail, recipients)


def _settle(mail: Any, recipients: list[tuple[str, dict[str, Any]]]) -> None:
    """What a site's developer would write beside, of a delivery or a permanent bounce."""
    from collections import Counter

    from django.contrib.auth import get_user_model
    from django.db.models.functions import Lower
    from django.utils import timezone

    from connect_mailer.models import (
        MessageEvent,
        OutgoingMessage,
        OutgoingRecipient,
        Tally,
        Unsubscribe,
    )

    reasons = {address.lower(): details.get("diagnostic_code") for address, details in recipients}
    is_bounce = "hard" in recipients[0][1]
    if is_bounce:
        people = get_user_model().objects.annotate(lower=Lower("email"))
        users = dict(people.filter(lower__in=reasons).values_list("lower", "pk"))
        Unsubscribe.objects.bulk_create(
            [
                Unsubscribe(
                    address=address, source="bounce", detail=reason, user_id=users.get(address)
                )
                for address, reason in reasons.items()
            ],
            update_conflicts=True,
            update_fields=["detail", "expires_at", "modified_at"],
            unique_fields=["address", "source", "mailing_list"],
        )
    message = (
        OutgoingMessage.objects.select_for_update().filter(ses_message_id=mail["messageId"]).first()
    )
    if message is None:
        return
    status = "bounced" if is_bounce else "delivered"
    open_ = ["queued", "sent", "delivered"] if is_bounce else ["queued", "sent"]
    known = OutgoingRecipient.objects.filter(message=message, status__in=open_)
    changed = set(known.filter(address__in=reasons).values_list("address", flat=True))
    for reason in set(reasons.values()):
        about = [address for address in changed if reasons[address] == reason]
        known.filter(address__in=about).update(status=status, reason=reason or "")
    now = timezone.now()
    MessageEvent.objects.bulk_create(
        MessageEvent(message=message, kind=status, address=address, at=now, detail=reason or "")
        for address, reason in reasons.items()
    )
    tallies = [Tally(stream=message.stream, at=now, **{status: len(changed)})]
    if is_bounce:
        domains = Counter(address.rpartition("@")[2] for address in changed)
        tallies += [
            Tally(stream=message.stream, at=now, domain=domain, bounced=number)
            for domain, number in domains.items()
        ]
    Tally.objects.bulk_create(tallies)


class _Bench:
    def __init__(self, handler: Any) -> None:
        from cryptography import x509
        from django_ses import utils

        from connect_mailer.testing.sns import SNSSigner

        self._handler = handler
        self._signer = SNSSigner.generate()
        self._signer.trust()
        certificate = x509.load_pem_x509_certificate(self._signer.certificate_pem.encode())
        utils._CERT_CACHE[self._signer.certificate_url] = certificate

    # Side by side

    def compare(self) -> None:
        """A table of each kind and size of notification."""
        print(  # noqa: T201
            f"{'notification':<26}{'view':<10}{'a second':>9}{'us each':>9}{'CPU us':>9}"
            f"{'ours is':>10}{'settled is':>12}"
        )
        for kind in ("delivery", "bounce"):
            for size in NOTIFICATIONS:
                self._compare(kind, size)

    def _compare(self, kind: str, size: int) -> None:
        from django.conf import settings
        from django_bouncy import signals

        names = ("ours", "settled", "told", "equal", "recorded", "bulk", "bare", "floor")
        wall: dict[str, list[float]] = {name: [] for name in names}
        cpu: dict[str, list[float]] = {name: [] for name in names}
        for number in range(ROUNDS + 1):
            # Another one is first each time.
            for name in names[number % len(names) :] + names[: number % len(names)]:
                bodies = [
                    self._make(kind, size, is_known=name in ("settled", "equal"))
                    for _ in range(NOTIFICATIONS[size])
                ]
                _MODE.update(records=name != "bare", bulk=name == "bulk", equal=name == "equal")
                # It has a blacklist of its own, where the receiver doesn't write one.
                settings.AWS_SES_ADD_BOUNCE_TO_BLACKLIST = name != "equal"
                if name == "told":
                    signals.feedback.connect(_listen)
                seconds, cpu_seconds = self._time(_PATHS.get(name, "/theirs/"), bodies, {200})
                signals.feedback.disconnect(_listen)
                if number:  # the first warms up
                    wall[name].append(seconds / len(bodies))
                    cpu[name].append(cpu_seconds / len(bodies))
        ours, settled = (statistics.median(wall[name]) for name in ("ours", "settled"))
        for name in names:
            median = statistics.median(wall[name])
            label = f"{kind}, {size} recipient{'s' if size > 1 else ''}" if name == "ours" else ""
            ratio = "" if name == "ours" else f"{median / ours:.2f} x"
            ratio_settled = "" if name == "settled" else f"{median / settled:.2f} x"
            print(  # noqa: T201
                f"{label:<26}{name:<10}{1 / median:>9.0f}{median * 1e6:>9.0f}"
                f"{statistics.median(cpu[name]) * 1e6:>9.0f}{ratio:>10}{ratio_settled:>12}",
                flush=True,
            )

    def _make(self, kind: str, size: int, *, is_known: bool = False) -> bytes:
        from connect_mailer.testing.sns import make_bounce, make_delivery, make_mail

        recipients = [f"{uuid.uuid4().hex}@example.com" for _ in range(size)]
        mail = make_mail(recipients, ses_message_id=str(uuid.uuid4()))
        make = make_delivery if kind == "delivery" else make_bounce
        if is_known:
            self._send(recipients, mail["messageId"])
        return self._signer.notification(make(recipients, mail=mail)).encode()

    def _send(self, recipients: list[str], ses_message_id: str) -> None:
        """What the outbox has of a mail that the drain has settled."""
        from django.utils import timezone

        from connect_mailer.models import OutgoingMessage, OutgoingRecipient

        message = OutgoingMessage.objects.create(
            sender="site@example.com",
            due_at=timezone.now(),
            sent_at=timezone.now(),
            status="sent",
            ses_message_id=ses_message_id,
        )
        OutgoingRecipient.objects.bulk_create(
            OutgoingRecipient(message=message, address=address, envelope=address, status="sent")
            for address in recipients
        )

    def _time(
        self, path: str, bodies: Sequence[bytes], expected: set[int], method: str = "POST"
    ) -> tuple[float, float]:
        statuses: set[int] = set()
        started, cpu_started = time.perf_counter(), time.process_time()
        for body in bodies:
            statuses.add(self._post(path, body, method))
        taken = time.perf_counter() - started, time.process_time() - cpu_started
        if statuses != expected:
            raise AssertionError(f"{path} answered {statuses}")
        return taken

    def _post(self, path: str, body: bytes, method: str = "POST") -> int:
        status = 0

        def start(line: str, headers: object) -> None:
            nonlocal status
            status = int(line[:3])

        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "SCRIPT_NAME": "",
            "SERVER_NAME": "www.example.com",
            "SERVER_PORT": "443",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_TYPE": "text/plain; charset=UTF-8",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.url_scheme": "https",
            "wsgi.input": BytesIO(body),
        }
        response = self._handler(environ, start)
        b"".join(response)
        response.close()
        return status

    # Where the time goes

    def split(self) -> None:
        """A table of what a notification of ours spends its time with."""
        title = "where ours spends it, us"
        print(f"\n{title:<34}{'1':>9}{'10':>9}{'50':>9}  recipients")  # noqa: T201
        for kind, is_known in itertools.product(("delivery", "bounce"), (False, True)):
            print(f"{kind}{', settled' if is_known else ''}")  # noqa: T201
            columns = [self._split(kind, size, is_known) for size in NOTIFICATIONS]
            for name in columns[0]:
                figures = "".join(f"{column[name]:>9.0f}" for column in columns)
                print(f"  {name:<32}{figures}")  # noqa: T201

    def _split(self, kind: str, size: int, is_known: bool) -> dict[str, float]:
        """The median of several batches: each part, and what is waited for within it."""
        batches = [
            [self._make(kind, size, is_known=is_known) for _ in range(NOTIFICATIONS[size])]
            for _ in range(ROUNDS)
        ]
        columns = [self._split_one(bodies) for bodies in batches]
        return {name: statistics.median(column[name] for column in columns) for name in columns[0]}

    def _split_one(self, bodies: list[bytes]) -> dict[str, float]:
        from django.db import connection

        from connect_mailer.feedback import events, sns, webhook

        names = ("JSON, fields, addresses", "certificate", "signature")
        spent = dict.fromkeys((*names, "statements and commit"), 0.0)
        queries = 0

        def count(execute: Callable[..., Any], *rest: Any) -> Any:
            nonlocal queries
            queries += 1
            return _timed(execute, spent, "statements and commit")(*rest)

        with ExitStack() as stack:
            for owner, attribute, name in (
                (sns, "parse", names[0]),
                (events, "read", names[0]),
                (webhook.certificates, "get_key", names[1]),
                (sns, "verify", names[2]),
                (connection, "_commit", "statements and commit"),
            ):
                timed = _timed(getattr(owner, attribute), spent, name)
                stack.enter_context(mock.patch.object(owner, attribute, timed))
            stack.enter_context(connection.execute_wrapper(count))
            seconds, cpu_seconds = self._time("/ours/", bodies, {200})
        spent["all else: Django, making of SQL"] = seconds - sum(spent.values())
        spent["all"] = seconds
        spent["of it the process's own (CPU)"] = cpu_seconds
        each = {name: value / len(bodies) * 1e6 for name, value in spent.items()}
        return each | {"number of statements": queries / len(bodies)}

    # Forgeries

    def flood(self) -> None:
        """A table of what each kind of forgery costs."""
        print(f"\n{'forgery':<44}{'us each':>9}{'answer':>8}{'queries':>9}{'downloads':>11}")  # noqa: T201
        genuine = json.loads(self._make("bounce", 1))
        other = genuine | {"MessageId": str(uuid.uuid4())}
        host = self._signer.host

        def name_certificate() -> bytes:
            name = f"https://{host}/SimpleNotificationService-{uuid.uuid4().hex}.pem"
            return json.dumps(genuine | {"SigningCertURL": name}).encode()

        evil = "https://sns.us-east-1.amazonaws.com.evil.example/SimpleNotificationService-a.pem"
        topic = "arn:aws:sns:us-east-1:999999999999:evil"
        for label, answer, make in (
            ("no POST", 404, lambda: b""),
            ("no JSON", 400, lambda: b"\xff" * 300),
            ("nested 100,000 deep", 400, lambda: b"[" * 100_000),
            ("two MiB", 413, lambda: b" " * 2**21),
            ("newline in MessageId", 400, _dump(genuine | {"MessageId": "a\nb"})),
            ("a topic of the sender's own", 400, _dump(genuine | {"TopicArn": topic})),
            ("certificate elsewhere", 400, _dump(genuine | {"SigningCertURL": evil})),
            ("signature is no base64", 400, _dump(genuine | {"Signature": "?"})),
            ("signature of another message", 400, _dump(other)),
            ("certificate made up, each another", 503, name_certificate),
        ):
            method = "GET" if answer == 404 else "POST"
            self._flood(label, answer, [make() for _ in range(FORGERIES)], method)

    def _flood(self, label: str, answer: int, bodies: list[bytes], method: str) -> None:
        from django.db import connection

        from connect_mailer.exceptions import NotificationUndecided
        from connect_mailer.feedback import sns, webhook

        downloads = queries = 0

        def download(host: str, target: str) -> bytes:
            nonlocal downloads
            downloads += 1
            raise NotificationUndecided("nothing is there")

        def count(execute: Callable[..., Any], *rest: Any) -> Any:
            nonlocal queries
            queries += 1
            return execute(*rest)

        certificates = sns.Certificates(download)
        with (
            mock.patch.object(webhook, "certificates", certificates),
            connection.execute_wrapper(count),
        ):
            taken = [
                self._time("/ours/", bodies[start::ROUNDS], {answer}, method)[0]
                / len(bodies[start::ROUNDS])
                for start in range(ROUNDS)
            ]
        figures = f"{statistics.median(taken) * 1e6:>9.0f}{answer:>8}{queries:>9}{downloads:>11}"
        print(f"{label:<44}{figures}", flush=True)  # noqa: T201


def _dump(fields: dict[str, Any]) -> Callable[[], bytes]:
    body = json.dumps(fields).encode()
    return lambda: body


def _timed(call: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - started

    return timed

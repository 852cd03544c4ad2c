"""``/mail/bouncy/``: the one door that strangers reach. HTTP only; see ``sns`` and ``records``.

Status codes tell SNS what to do: it never repeats what was answered with 4xx, and repeats
what was answered with 5xx, by its delivery policy.

Source: Amazon SNS Developer Guide, "Amazon SNS message delivery retries".
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from contextlib import contextmanager
from typing import Any, Final

from django.apps import apps
from django.core.cache import caches
from django.core.cache.backends.db import BaseDatabaseCache
from django.db import IntegrityError, connections, router
from django.http import Http404, HttpRequest, HttpResponse, UnreadablePostError

from connect_mailer.conf import conf
from connect_mailer.exceptions import (
    ConfigurationError,
    NotificationRefused,
    NotificationUndecided,
)
from connect_mailer.feedback import (
    at_once,
    consequences,
    events,
    receivers,
    records,
    settlement,
    sns,
    subscriptions,
)
from connect_mailer.feedback.brief import TableCache, brief_transaction, execute
from connect_mailer.feedback.deadline import Deadline
from connect_mailer.feedback.endpoint import endpoint as endpoint
from connect_mailer.logs import make_extra
from connect_mailer.models import NotificationReceipt

logger = logging.getLogger(__name__)

certificates: Final = sns.Certificates()
_TOPIC_LOG_SECONDS: Final = 3600.0
_topic_logged_at: float | None = None


def answer(request: HttpRequest) -> HttpResponse:
    """Take what SNS posts.

    200: taken, or taken before. 400: forged, foreign or malformed, and nothing was written.
    404: any method but POST, and subscriptions unless ``BOUNCY_AUTO_SUBSCRIBE``. 413: too
    large. 503: not decided or not written, so SNS shall try again. No answer repeats a part
    of its request.
    """
    if request.method != "POST":
        raise Http404
    deadline = Deadline()
    try:
        body = _read_body(request)
        if len(body) > sns.MAX_BODY_BYTES:
            return _answer(413, "Too large")
        notification = authenticate(body, deadline)
    except NotificationRefused as error:
        logger.info("Notification refused: %s", error)
        return _answer(400, "Refused")
    except UnreadablePostError:
        return _answer(503, "Try again")
    except NotificationUndecided as error:
        logger.warning("Notification not decided, SNS shall try again: %s", error)
        return _answer(503, "Try again")
    except Exception:
        logger.exception("Notification not decided, SNS shall try again")
        return _answer(503, "Try again")
    # From here on it is genuine: whatever a receiver raises, SNS shall try again.
    try:
        status = _HANDLERS[notification.type](notification, request, deadline)
    except NotificationUndecided as error:
        logger.warning(
            "Notification not decided, SNS shall try again: %s",
            error,
            extra=_describe(notification),
        )
        return _answer(503, "Try again")
    except Exception:
        logger.exception(
            "Notification not taken, SNS shall try again", extra=_describe(notification)
        )
        return _answer(503, "Try again")
    if status == 404:
        raise Http404
    return _answer(status, "OK" if status == 200 else "Refused")


def _read_body(request: HttpRequest) -> bytes:
    # Not `request.body`: it has the site's own limit for uploads, which may be lower than
    # what SNS sends, and none at all where the client gives no length.
    body: bytes = request.read(sns.MAX_BODY_BYTES + 1)
    # Receivers of the `notification` signal find the request as they always did.
    request._body = body  # noqa: SLF001 (Django has no public way)
    return body


def authenticate(body: bytes, deadline: Deadline | None = None) -> sns.Notification:
    """Return what ``body`` says, if SNS signed it for a topic in ``BOUNCY_TOPIC_ARN``.

    Raises:
        NotificationRefused: it is forged, foreign or malformed.
        NotificationUndecided: the certificate can't be had now.
    """
    notification = sns.parse(body)
    topic_arns = conf.topic_arns
    try:
        sns.check_topic(notification, topic_arns)
    except NotificationRefused:
        _log_topic(notification.topic_arn, is_any_set=bool(topic_arns))
        raise
    sns.check_certificate_url(notification, conf.cert_domain_regex)
    deadline = deadline or Deadline()
    cache = caches[conf.key_cache]
    key = certificates.get_key(
        notification.signing_cert_url,
        host=sns.get_host(notification.topic_arn),
        cache=TableCache(cache, deadline)
        if isinstance(cache, BaseDatabaseCache)
        else sns.BriefCache(cache, deadline),
        deadline=deadline,
    )
    sns.verify(notification, key)
    return notification


def _take(notification: sns.Notification, request: HttpRequest, deadline: Deadline) -> int:
    if "django_bouncy" not in apps.app_configs:
        raise ConfigurationError(
            "INSTALLED_APPS lacks 'connect_mailer.bouncy', which keeps bounces and complaints."
        )
    from django_bouncy import signals

    try:
        message = sns.load_json(notification.message)
    except ValueError as error:
        message = None
        if notification.message.lstrip().startswith("{"):
            # SES writes none like that; whatever it says, somebody should look.
            logger.warning(
                "Notification %s can't be read: %s",
                _quote(notification.message_id),
                _quote(str(error)),
                extra=_describe(notification),
            )
    event = events.read(message)
    using = router.db_for_write(NotificationReceipt)
    with _unless_taken(notification, using, deadline):
        if event is None:
            with brief_transaction(using, deadline):
                records.make_receipt(notification, using=using, deadline=deadline)
                _signal_notification(notification, request)
                # The first that comes after a subscription is one of these.
                subscriptions.note_begun(notification.topic_arn, using=using)
            logger.info(
                "Notification %s is not about mail",
                _quote(notification.message_id),
                extra=_describe(notification),
            )
            return 200
        listening = {receiver[0][0] for receiver in signals.feedback.receivers}
        needs_rows = not listening <= {receivers.DISPATCH_UID}
        if (
            needs_rows
            or signals.notification.has_listeners()
            or not at_once.take(
                event, notification, suppresses=bool(listening), using=using, deadline=deadline
            )
        ):
            with brief_transaction(using, deadline):
                if not needs_rows and records.is_plain(event, using=using):
                    statements = records.insert_all(event, notification, connections[using])
                    execute(statements, using, deadline=deadline)
                    _signal_notification(notification, request)
                    if listening:
                        receivers.suppress_all(event)
                else:
                    records.make_receipt(notification, using=using, deadline=deadline)
                    _signal_notification(notification, request)
                    _signal_feedback(event, message, notification)
                if settlement.settle(event, using=using):
                    consequences.follow(event)
                if event.kind == events.SUBSCRIPTION:
                    receivers.follow_subscription(event)
        _log_event(event, notification)
    return 200


def _signal_feedback(
    event: events.Event, message: Mapping[str, Any], notification: sns.Notification
) -> None:
    from django_bouncy import signals

    rows = records.make_rows(event, notification)
    with receivers.together(message):
        for row in rows:
            signals.feedback.send(
                sender=type(row), instance=row, message=message, notification=notification.data
            )


def _log_event(event: events.Event, notification: sns.Notification) -> None:
    if event.kind in events.WRITTEN or event.kind in events.SILENT:
        # Hashing the addresses of a record that nobody keeps costs more than all else here.
        if logger.isEnabledFor(logging.INFO):
            logger.info(
                "Notification %s taken: %s, %d recipients",
                _quote(notification.message_id),
                event.kind,
                len(event.recipients),
                extra=_describe(notification, event),
            )
    else:
        logger.warning(
            "Notification %s has an unknown type of event: %s",
            _quote(notification.message_id),
            _quote(event.kind),
            extra=_describe(notification, event),
        )


def _subscribe(notification: sns.Notification, request: HttpRequest, deadline: Deadline) -> int:
    using = router.db_for_write(NotificationReceipt)
    if records.is_taken(notification, using=using, deadline=deadline):
        _log_again(notification)
        return 200
    _signal_notification(notification, request)
    if not conf.auto_subscribe:
        logger.warning(
            "A subscription of %s waits to be confirmed; set BOUNCY_AUTO_SUBSCRIBE for that",
            notification.topic_arn,
            extra=_describe(notification),
        )
        return 404
    status = confirm(notification, deadline)
    if status == 200:
        with _unless_taken(notification, using, deadline), brief_transaction(using, deadline):
            records.make_receipt(notification, using=using, deadline=deadline)
            subscriptions.note_begun(notification.topic_arn, using=using)
    return status


def confirm(notification: sns.Notification, deadline: Deadline | None = None) -> int:
    """Confirm the subscription that a genuine notification asks for; return 200, or 400.

    Raises:
        NotificationUndecided: SNS does not answer.
    """
    host = sns.get_host(notification.topic_arn)
    pattern = conf.subscribe_domain_regex
    if pattern is not None and not pattern.search(host):
        logger.warning("BOUNCY_SUBSCRIBE_DOMAIN_REGEX does not accept %s", host)
        return 400
    target = sns.make_subscribe_target(notification)
    result = _ask_to_confirm(host, target, (deadline or Deadline()).left(sns.DOWNLOAD_SECONDS))
    if "django_bouncy" in apps.app_configs:
        from django_bouncy import signals

        signals.subscription.send(
            sender="bouncy_approve_subscription", result=result, notification=notification.data
        )
    logger.info(
        "The subscription of %s is confirmed",
        notification.topic_arn,
        extra=_describe(notification),
    )
    return 200


def _ask_to_confirm(host: str, target: str, seconds: float) -> bytes:
    # In a thread, because the look-up of a name has no time-out.
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sns-subscribe")
    try:
        return executor.submit(sns.fetch, host, target, seconds=seconds).result(timeout=seconds)
    except NotInTime as error:
        raise NotificationUndecided(f"{host} did not answer in time") from error
    finally:
        executor.shutdown(wait=False)


def _unsubscribe(notification: sns.Notification, request: HttpRequest, deadline: Deadline) -> int:
    using = router.db_for_write(NotificationReceipt)
    with _unless_taken(notification, using, deadline):
        with brief_transaction(using, deadline):
            records.make_receipt(notification, using=using, deadline=deadline)
            _signal_notification(notification, request)
            subscriptions.note_ended(notification.topic_arn, using=using)
        logger.error(
            "The subscription of %s was ended: no bounce or complaint comes back any more until "
            "it is subscribed again",
            notification.topic_arn,
            extra=_describe(notification),
        )
    return 200


def _signal_notification(notification: sns.Notification, request: HttpRequest) -> None:
    if "django_bouncy" in apps.app_configs:
        from django_bouncy import signals

        signals.notification.send(
            sender="bouncy_endpoint", notification=notification.data, request=request
        )


_HANDLERS: Final[dict[str, Callable[[sns.Notification, HttpRequest, Deadline], int]]] = {
    sns.NOTIFICATION: _take,
    sns.SUBSCRIPTION: _subscribe,
    sns.UNSUBSCRIPTION: _unsubscribe,
}


@contextmanager
def _unless_taken(notification: sns.Notification, using: str, deadline: Deadline) -> Iterator[None]:
    """Let it go where the transaction inside finds that the notification was taken before."""
    try:
        yield
    except IntegrityError:
        if not records.is_taken(notification, using=using, deadline=deadline):
            raise
        _log_again(notification)


def _log_again(notification: sns.Notification) -> None:
    logger.info(
        "Notification %s was taken before",
        _quote(notification.message_id),
        extra=_describe(notification),
    )


def _log_topic(topic_arn: str, *, is_any_set: bool) -> None:
    global _topic_logged_at
    now = time.monotonic()
    if _topic_logged_at is not None and now - _topic_logged_at < _TOPIC_LOG_SECONDS:
        return
    _topic_logged_at = now
    logger.warning(
        "A notification was refused: its sender, unverified, chose the topic %s. %s",
        _quote(topic_arn),
        "It is not in BOUNCY_TOPIC_ARN."
        if is_any_set
        else "BOUNCY_TOPIC_ARN is empty, so all are refused; take the ARN from the AWS console.",
    )


def _describe(
    notification: sns.Notification, event: events.Event | None = None
) -> dict[str, object]:
    if event is None:
        return make_extra({"notification": notification.message_id})
    return make_extra(
        {
            "notification": notification.message_id,
            "event": _quote(event.kind)[1:-1],
            "ses_id": _quote(event.ses_message_id)[1:-1],
        },
        recipients=(recipient.address for recipient in event.recipients),
    )


def _quote(text: str) -> str:
    """A text that strangers may have written, for one line of the log."""
    return ascii(text[:100])


def _answer(status: int, text: str) -> HttpResponse:
    # Bytes, or Django looks for a charset first.
    return HttpResponse(text.encode(), status=status, content_type="text/plain")

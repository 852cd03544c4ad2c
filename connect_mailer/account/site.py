"""The site's side of the chain, as the doctor looks at it.

``examine_quickly`` asks the database and nothing else, so that a page may show it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from django.conf import settings
from django.core.checks import ERROR
from django.db import DatabaseError
from django.db.models.expressions import CombinedExpression

from connect_mailer import checks
from connect_mailer.account.findings import Finding, error, note, ok, warning
from connect_mailer.clock import DatabaseNow
from connect_mailer.conf import conf
from connect_mailer.exceptions import ConfigurationError
from connect_mailer.feedback import subscriptions
from connect_mailer.links import make_url
from connect_mailer.models import Lease, OutgoingMessage
from connect_mailer.optout.headers import unsubscribe_url
from connect_mailer.sending import leases, outbox
from connect_mailer.sending.wakeups import BROKER_DOWN, PAUSE
from connect_mailer.tallies import SIMULATOR_DOMAIN

# A worker sweeps once a minute; after this long none does.
SWEEP_SECONDS: Final = 300
# Mail that is due and has waited for this long is not flowing.
WAITING_SECONDS: Final = 900
# A request whose time is wrong by more is refused.
# Source: AWS General Reference, Signature Version 4, "within 15 minutes".
MAX_SKEW_SECONDS: Final = 300.0
SKEW_SECONDS: Final = 30.0
HTTP_SECONDS: Final = 10.0
INSPECT_SECONDS: Final = 2.0
SIMULATOR: Final = f"success@{SIMULATOR_DOMAIN}"

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


def examine_quickly() -> Iterator[Finding]:
    """Settings, the queue, what is paused, and whether a worker sweeps."""
    yield from _examine_settings()
    yield from _examine_queue()
    yield from _examine_subscriptions()


def examine_site() -> Iterator[Finding]:
    """All of the site's side: ``examine_quickly``, and its Redis, workers and addresses."""
    yield from examine_quickly()
    yield from _examine_redis()
    yield from _examine_workers()
    yield from _examine_webhook()
    yield from _examine_links()


def _examine_settings() -> Iterator[Finding]:
    # The app's own alone: this is asked at each look at a page.
    own = (*checks.COMPATIBILITY, *checks.SECURITY)
    found = [message for check in own for message in check()]
    for message in found:
        make = error if message.level >= ERROR else warning
        yield make("settings", f"{message.id}: {message.msg}", message.hint or "")
    if not found:
        yield ok("settings", "The system checks of the app find nothing.")


def _examine_queue() -> Iterator[Finding]:
    using = outbox.get_database()
    try:
        alive = leases.find_alive(PAUSE, BROKER_DOWN, using=using)
        waits = OutgoingMessage.objects.using(using).filter(
            status=OutgoingMessage.Status.QUEUED, due_at__lt=_ago(WAITING_SECONDS)
        )
        is_waiting = waits.exists()
        all_leases = Lease.objects.using(using)
        sweeps = all_leases.filter(name="sweep", expires_at__gt=_ago(SWEEP_SECONDS)).exists()
        now = all_leases.annotate(now=DatabaseNow()).values_list("now", flat=True).first()
    except DatabaseError as failure:
        yield error(
            "database",
            f"The tables can't be read: {failure}",
            "Run manage.py migrate, and see that the database is up.",
        )
        return
    if now is not None:
        now = now if now.tzinfo else now.astimezone()
        yield from compare_clocks("the database's", now.timestamp())
    if PAUSE in alive:
        yield error(
            "pause",
            f"Sending is paused, and is tried again by itself: {alive[PAUSE]}",
            "The words are SES's: mend what they name.",
        )
    if BROKER_DOWN in alive:
        yield error(
            "broker",
            "The Celery broker was out of reach within the last minute.",
            "Check the broker's URL and that it is up. Mail waits meanwhile, none is lost.",
        )
    if is_waiting:
        yield error(
            "queue",
            f"Mail that is due has waited for more than {WAITING_SECONDS // 60} minutes.",
            "See the lines about worker, rate and pause.",
        )
    else:
        yield ok("queue", "Nothing that is due has waited for long.")
    if sweeps:
        yield ok("sweep", "A worker sweeps every minute.")
    else:
        yield warning(
            "sweep",
            f"No worker has swept for {SWEEP_SECONDS // 60} minutes: a wake-up that is lost "
            "leaves mail waiting.",
            "Start a Celery worker of this site that takes the queue; it sweeps by itself. "
            "Without Celery, run manage.py mailer_deliver.",
        )


def _examine_subscriptions() -> Iterator[Finding]:
    try:
        for topic_arn, since in subscriptions.find_ended(using=outbox.get_database()):
            yield error(
                "subscription",
                f"The subscription of {topic_arn} was ended ({since:%Y-%m-%d %H:%M} UTC): no "
                "bounce or complaint comes back.",
                "Subscribe the webhook to the topic again; this goes away when something comes.",
            )
    except DatabaseError:
        return  # another line has said so


def _ago(seconds: float) -> CombinedExpression:
    return DatabaseNow() - timedelta(seconds=seconds)


def compare_clocks(whose: str, seconds: float) -> Iterator[Finding]:
    """This machine's clock against another, given as seconds since 1970."""
    skew = time.time() - seconds
    text = f"This machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'}"
    advice = "Let the machine set its clock by NTP."
    if abs(skew) > MAX_SKEW_SECONDS:
        yield error("clock", f"{text} {whose} clock; AWS refuses what is signed so.", advice)
    elif abs(skew) > SKEW_SECONDS:
        yield warning("clock", f"{text} {whose} clock.", advice)


def _examine_redis() -> Iterator[Finding]:
    import redis

    try:
        address = conf.redis
    except ConfigurationError:
        return  # a system check has said so
    if address is None:
        yield note("redis", "No Redis is set: the limiter is a row of the database.")
        return
    options = {"socket_connect_timeout": 3.0, "socket_timeout": 3.0, **address.options}
    try:
        with redis.Redis.from_url(address.url, **options) as client:
            seconds, _ = client.time()
            memory = client.info("memory")
    except (redis.RedisError, OSError, ValueError) as failure:
        yield error(
            "redis",
            f"The limiter's Redis can't be asked: {failure}",
            "Until it can, nothing is sent. Check REDIS_URL or the broker's URL.",
        )
        return
    host = urlsplit(address.url).hostname
    if host in _LOOPBACK and not settings.DEBUG:
        yield note(
            "redis",
            f"The limiter's Redis is at {host}: each machine with workers would have its own, "
            "and send at the full rate.",
            "Where there is more than one machine, name one Redis for all of them.",
        )
    else:
        yield ok("redis", "The limiter's Redis answers.")
    yield from compare_clocks("Redis's", float(seconds))
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if memory.get("maxmemory") and policy != "noeviction":
        yield warning(
            "eviction",
            f"Redis drops keys when its memory is full ({policy}): Celery's queued tasks too.",
            "Set maxmemory-policy to noeviction.",
        )


def _examine_workers() -> Iterator[Finding]:
    from celery import current_app

    if current_app.conf.task_always_eager:
        yield note("worker", "Celery is eager: mail is delivered by the process that queues it.")
        return
    queue = conf.queue or current_app.conf.task_default_queue
    try:
        inspect = current_app.control.inspect(timeout=INSPECT_SECONDS)
        queues: dict[str, Any] = inspect.active_queues() or {}
        tasks: dict[str, Any] = inspect.registered() or {} if queues else {}
    except Exception as failure:  # noqa: BLE001 (whatever a broker's library raises)
        mend = (
            'Install what Celery needs for it: pip install "celery[redis]" for Redis.'
            if isinstance(failure, ImportError)
            else "Check the broker's URL. Mail waits meanwhile, none is lost."
        )
        text = f"The Celery broker can't be asked, {_name_broker()}: {failure!r}"
        yield error("broker", text, mend)
        return
    listening = [
        name for name, taken in queues.items() if queue in {one.get("name") for one in taken}
    ]
    if not queues:
        yield error("worker", "No Celery worker answers.", "Start one: celery -A yoursite worker")
    elif not listening:
        yield error(
            "worker",
            f"Of {len(queues)} Celery workers none takes the queue {queue!r}.",
            f'Start one with -Q {queue}, or set CONNECT_MAILER["QUEUE"].',
        )
    elif not any("connect_mailer.tasks.deliver" in tasks.get(name, ()) for name in listening):
        yield error(
            "worker",
            f"The workers on {queue!r} don't know this app's tasks.",
            "Let the Celery app call autodiscover_tasks(), and restart the workers.",
        )
    else:
        yield ok("worker", f"{len(listening)} of {len(queues)} workers take the queue {queue!r}.")


def _name_broker() -> str:
    """Its URL, without a password."""
    from celery import current_app
    from kombu.utils.url import maybe_sanitize_url

    url = current_app.conf.broker_write_url or current_app.conf.broker_url
    if url:
        return str(maybe_sanitize_url(url))
    return (
        "Celery's default at localhost (no broker is set, or the site's package doesn't load its "
        "Celery app)"
    )


def get_webhook_url() -> str:
    """Where SNS has to post, or nothing where the site doesn't know its own address.

    Raises:
        ConfigurationError: the URLs of the app are not included.
    """
    # With cryptography, which a process that only shows the admin need not load.
    from connect_mailer.feedback.endpoint import endpoint

    return make_url(endpoint)


def _examine_webhook() -> Iterator[Finding]:
    try:
        url = get_webhook_url()
    except ConfigurationError as failure:
        yield error("webhook", str(failure), "SNS has nowhere to post to until then.")
        return
    if not url:
        return  # a system check has said so
    status, words = _ask(Request(url, b"{}", {"Content-Type": "text/plain"}, method="POST"))  # noqa: S310
    if status == 400:
        yield ok("webhook", f"{url} answers, and refuses what is not signed.")
    elif 300 <= status < 400:
        yield error(
            "webhook",
            f"{url} sends who posts on to {words}.",
            "If that is the login page, exempt it: LOGIN_EXEMPT_URLS needs r'^mail/bouncy/$' "
            "(Django's own LoginRequiredMiddleware knows that it is exempt). If it is the same "
            "page by https, name https in UNSUBSCRIBE_BASE_URL or ORIGIN.",
        )
    else:
        yield error(
            "webhook",
            f"{url} answers {status or 'nothing'} where 400 is right: {words}",
            "SNS has to reach it by POST from the internet, without login, CSRF token or "
            "filter in front of it.",
        )


def _examine_links() -> Iterator[Finding]:
    try:
        url = unsubscribe_url(SIMULATOR)
    except ConfigurationError:
        return  # the webhook's line has said so
    if not url:
        return
    shown = url.rpartition("/unsubscribe/")[0] + "/unsubscribe/…"
    status, words = _ask(Request(url))  # noqa: S310 (the site's own address)
    if status != 200:
        yield error(
            "links",
            f"{shown}, the link to opt out, answers {status or 'nothing'}: {words}",
            "Readers have to reach it without a login; mail providers, too.",
        )
    elif not url.startswith("https:") and not settings.DEBUG:
        yield warning(
            "links",
            f"{shown}, the link to opt out, is not https.",
            "Mail providers take one-click links by https only (RFC 8058).",
        )
    else:
        yield ok("links", f"{shown}, the link to opt out, answers.")


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _ask(request: Request) -> tuple[int, str]:
    """Status and a word about it: where it redirects to, or why there is none (status 0)."""
    try:
        with build_opener(_NoRedirect).open(request, timeout=HTTP_SECONDS) as answer:
            return int(answer.status), "OK"
    except HTTPError as answer:
        with answer:
            return answer.code, answer.headers.get("Location") or answer.reason
    except (URLError, OSError, ValueError) as failure:
        return 0, str(getattr(failure, "reason", failure))


def read_date(text: str) -> float | None:
    """Seconds since 1970 of an HTTP date; ``None``: it is none."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None

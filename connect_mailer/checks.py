"""System checks: mistakes that would show only when mail is sent, named at start-up.

Ids are stable and never used again with another meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any, Final

import django
from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as Caution
from django.db import router
from django.urls import NoReverseMatch, get_script_prefix, reverse
from django.utils.module_loading import import_string

from connect_mailer.conf import (
    CALL_SECONDS,
    KEYS,
    SES_BACKEND,
    SETTING,
    Conf,
    conf,
)
from connect_mailer.exceptions import ConfigurationError, InvalidMessage
from connect_mailer.links import make_url

_TOPIC = r"arn:aws(-cn|-us-gov)?:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]{1,256}(\.fifo)?"
# Like SNS's, and anybody's.
_NOT_SNS = (
    "sns.us-east-1.amazonaws.com.example.org",
    "snsxus-east-1xamazonawsxcom",
    "sns-us-east-1.amazonaws.com",
    "example.org/sns.us-east-1.amazonaws.com",
)
_ADMIN_EMAIL_HANDLER = "django.utils.log.AdminEmailHandler"


def check_settings() -> list[CheckMessage]:
    """E001 to E003: ``CONNECT_MAILER`` and the settings with names of their own."""
    try:
        unknown = conf.unknown_keys()
    except ConfigurationError as error:
        return [Error(str(error), id="connect_mailer.E001")]
    messages: list[CheckMessage] = [
        Error(
            f'{SETTING}["{key}"] means nothing.',
            hint=_find_similar(key) or f"Known keys: {', '.join(sorted(KEYS))}.",
            id="connect_mailer.E002",
        )
        for key in unknown
    ]
    # One property may be made of others: what they say is said once.
    wrong: dict[str, None] = {}
    for name, attribute in vars(Conf).items():
        if isinstance(attribute, property):
            try:
                getattr(conf, name)
            except ConfigurationError as error:
                wrong[str(error)] = None
    return messages + [Error(text, id="connect_mailer.E003") for text in wrong]


def _find_similar(key: str) -> str:
    found = get_close_matches(key.upper(), KEYS, 1)
    return f"Did you mean {found[0]!r}?" if found else ""


def check_transport() -> list[CheckMessage]:
    """E004, E005: what the queue is delivered through."""
    transport = _try(lambda: conf.transport)
    if transport is None or transport == SES_BACKEND:
        return []
    path = conf.get_mailers().get(transport, {}).get("BACKEND", transport)
    try:
        backend = import_string(path)
    except ImportError as error:
        aliases = " or an alias in MAILERS" if django.VERSION >= (6, 1) else ""
        return [
            Error(
                f"The transport {transport!r} can't be imported: {error}",
                hint=f'Set {SETTING}["TRANSPORT"] to the dotted path of a backend{aliases}.',
                id="connect_mailer.E004",
            )
        ]
    if _queues(backend):
        return [
            Error(
                f"The transport {transport!r} is the queue itself, which would be delivered "
                "into itself for ever.",
                hint=f'Set {SETTING}["TRANSPORT"] to {SES_BACKEND!r}, or leave it out.',
                id="connect_mailer.E005",
            )
        ]
    return []


def check_lease() -> list[CheckMessage]:
    """E006: a lease that ends while a call to SES may still be going on."""
    seconds = _try(lambda: conf.lease_seconds)
    if seconds is not None and seconds <= CALL_SECONDS:
        return [
            Error(
                f'{SETTING}["LEASE_SECONDS"] is {seconds}, and one call to SES may take '
                f"{CALL_SECONDS - 1:.0f} s: its row would be sent by another worker meanwhile.",
                hint="Use 60 or more; 300 is the default.",
                id="connect_mailer.E006",
            )
        ]
    return []


def check_sqlite() -> list[CheckMessage]:
    """W009: an SQLite database in which a worker and the site would lock each other out."""
    from celery import current_app

    from connect_mailer.models import OutgoingMessage

    alias = router.db_for_write(OutgoingMessage)
    database = settings.DATABASES.get(alias, {})
    name = str(database.get("NAME", ""))
    if (
        not str(database.get("ENGINE", "")).endswith("sqlite3")
        or name == ":memory:"  # nobody else is there
        or "mode=memory" in name
        or current_app.conf.task_always_eager
    ):
        return []
    options = database.get("OPTIONS", {})
    begins = str(options.get("transaction_mode", "")).upper()
    pragmas = str(options.get("init_command", "")).lower().replace(" ", "")
    if begins in ("IMMEDIATE", "EXCLUSIVE") and "journal_mode=wal" in pragmas:
        return []
    return [
        Caution(
            f"A worker and the site write to one SQLite database, DATABASES[{alias!r}], which "
            "lets one of them at a time: the others fail with 'database is locked'.",
            hint='Give it "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20, '
            '"init_command": "PRAGMA journal_mode=WAL"}, or use PostgreSQL.',
            id="connect_mailer.W009",
        )
    ]


def check_feedback() -> list[CheckMessage]:
    """W001, W002, W006, E007, E008: bounces and complaints that would not come in."""
    messages: list[CheckMessage] = []
    if conf.legacy("BOUNCY_VERIFY_CERTIFICATE") in (False, "False", "false", "0"):
        messages.append(
            Error(
                "BOUNCY_VERIFY_CERTIFICATE is off, which would let anybody unsubscribe anybody; "
                "it is ignored, and every notification is verified.",
                hint="Remove the setting.",
                id="connect_mailer.E007",
            )
        )
    if not apps.is_installed("django_bouncy"):
        messages.append(
            Caution(
                "Bounces and complaints are not taken: django-bouncy is not installed.",
                hint='Add "connect_mailer.bouncy" to INSTALLED_APPS.',
                id="connect_mailer.W001",
            )
        )
        return messages
    topics = _try(lambda: conf.topic_arns)
    if topics == ():
        messages.append(
            Caution(
                "BOUNCY_TOPIC_ARN is empty, so /mail/bouncy/ accepts nothing: bounces and "
                "complaints don't become Unsubscribe rows.",
                hint="Set it to the ARNs of the SNS topics that SES publishes to.",
                id="connect_mailer.W002",
            )
        )
    messages += [
        Caution(
            f"BOUNCY_TOPIC_ARN has {topic!r}, which is no ARN of an SNS topic, so it allows none.",
            hint="It should look like 'arn:aws:sns:us-east-1:123456789012:ses-feedback'.",
            id="connect_mailer.W006",
        )
        for topic in topics or ()
        if not re.fullmatch(_TOPIC, topic)
    ]
    if conf.key_cache not in settings.CACHES:
        messages.append(
            Error(
                f"BOUNCY_KEY_CACHE is {conf.key_cache!r}, and there is no such cache.",
                hint=f"Use one of CACHES: {', '.join(settings.CACHES)}.",
                id="connect_mailer.E008",
            )
        )
    return messages


def check_old_patterns() -> list[CheckMessage]:
    """E009: a pattern that was meant to say which hosts are SNS's, and says more."""
    messages: list[CheckMessage] = []
    for name, read in (
        ("BOUNCY_CERT_DOMAIN_REGEX", lambda: conf.cert_domain_regex),
        ("BOUNCY_SUBSCRIBE_DOMAIN_REGEX", lambda: conf.subscribe_domain_regex),
    ):
        pattern = _try(read)
        if pattern and (host := next(filter(pattern.search, _NOT_SNS), None)):
            messages.append(
                Error(
                    f"{name} is {pattern.pattern!r}, which also accepts hosts that anybody can "
                    f"have, such as {host!r}. It is not needed: the app accepts SNS's own hosts "
                    "only, whatever it says.",
                    hint="Remove the setting.",
                    id="connect_mailer.E009",
                )
            )
    return messages


def check_login() -> list[CheckMessage]:
    """W007, W008: pages behind a login that keeps SNS and readers out, or let out too much."""
    patterns = getattr(settings, "LOGIN_EXEMPT_URLS", None)
    if patterns is None:
        return []
    try:
        exempt = [re.compile(pattern) for pattern in patterns]
    except (re.error, TypeError):
        return []  # for whoever reads the setting to say
    public = _find_public_paths()
    messages: list[CheckMessage] = [
        Caution(
            f"/{path} is not in LOGIN_EXEMPT_URLS, so whoever asks for it gets the login page.",
            hint=f"Add r'^{path.partition('/')[0]}/(bouncy|unsubscribe)/'.",
            id="connect_mailer.W007",
        )
        for path in public
        if not any(pattern.match(path) for pattern in exempt)
    ]
    for pattern in exempt:
        let_out = next(filter(pattern.match, public), None)
        other = f"{let_out.partition('/')[0]}box/secret" if let_out else ""
        if let_out and pattern.match(other):
            messages.append(
                Caution(
                    f"LOGIN_EXEMPT_URLS has {pattern.pattern!r}, which also lets out /{other}.",
                    hint=f"Use r'^{let_out.partition('/')[0]}/(bouncy|unsubscribe)/'.",
                    id="connect_mailer.W008",
                )
            )
    return messages


def _find_public_paths() -> list[str]:
    """Paths that SNS and readers ask for, as the site has them, without the first slash."""
    from connect_mailer.feedback.endpoint import endpoint
    from connect_mailer.optout.views import unsubscribe

    paths = []
    for view, arguments in ((endpoint, {}), (unsubscribe, {"token": "token"})):
        try:
            paths.append(reverse(view, kwargs=arguments).removeprefix(get_script_prefix()))
        except NoReverseMatch:
            continue
    return paths


def check_links() -> list[CheckMessage]:
    """E012, W003, W004: links to opt out that mail lacks, or that mail providers don't take."""
    url = _try(lambda: conf.unsubscribe_base_url)
    if url == "" and not _try(lambda: conf.unsubscribe_mailto or conf.ses.contact_list):
        return [
            Caution(
                "Mail has no link to opt out, since the site's address is not known.",
                hint=f'Set {SETTING}["UNSUBSCRIBE_BASE_URL"], such as "https://www.example.com".',
                id="connect_mailer.W003",
            )
        ]
    if url and hasattr(settings, "ROOT_URLCONF"):
        from connect_mailer.optout.views import unsubscribe

        try:
            make_url(unsubscribe, token="any")  # noqa: S106 (no secret)
        except ConfigurationError as error:
            return [Error(f"Mail can't be queued: {error}", id="connect_mailer.E012")]
    if url and url.startswith("http:") and not settings.DEBUG:
        return [
            Caution(
                f"Links to opt out start with {url!r}; mail providers take one-click links by "
                "https only (RFC 8058).",
                hint=f'Use https in {SETTING}["UNSUBSCRIBE_BASE_URL"] or ORIGIN.',
                id="connect_mailer.W004",
            )
        ]
    return []


def check_senders() -> list[CheckMessage]:
    """W013: mail from Django's own defaults, which SES sends for nobody."""
    if _try(lambda: conf.transport) != SES_BACKEND:
        return []
    names = ["DEFAULT_FROM_EMAIL"]
    if settings.ADMINS or settings.MANAGERS:
        names.append("SERVER_EMAIL")
    return [
        Caution(
            f"{name} is {getattr(settings, name)!r}; SES refuses mail from there.",
            hint="Set it to an address of a domain that is verified in SES.",
            id="connect_mailer.W013",
        )
        for name in names
        if re.search(r"@localhost\b", str(getattr(settings, name)))
    ]


def check_signing() -> list[CheckMessage]:
    """E011, W011, W012: signatures of the site's own that mail would not get."""
    from connect_mailer.sending.signature import sign

    is_set = [bool(conf.legacy(name)) for name in ("DKIM_DOMAIN", "DKIM_PRIVATE_KEY")]
    if not all(is_set):
        return [
            Caution(
                "Mail is not signed: only one of DKIM_DOMAIN and DKIM_PRIVATE_KEY is set.",
                hint="Set both, or neither where SES signs itself (Easy DKIM).",
                id="connect_mailer.W012",
            )
        ] * any(is_set)
    options = _try(lambda: conf.dkim)
    messages: list[CheckMessage] = []
    try:
        if options is not None:
            sign(b"From: site@example.com\r\n\r\n", options)
    except (ConfigurationError, InvalidMessage) as error:
        messages.append(Error(str(error), id="connect_mailer.E011"))
    if _try(lambda: conf.ses.contact_list):
        messages.append(
            Caution(
                "SES adds no link to opt out to mail that the site signs itself.",
                hint=f'Leave {SETTING}["SES_CONTACT_LIST"] or DKIM_DOMAIN out.',
                id="connect_mailer.W011",
            )
        )
    return messages


def check_error_mail() -> list[CheckMessage]:
    """W005: mail about errors that depends on what failed."""
    if not settings.ADMINS:
        return []
    mailers = conf.get_mailers()
    default = mailers.get("default", {}).get("BACKEND") if mailers else settings.EMAIL_BACKEND
    for name, handler in _get_handlers().items():
        if not str(handler.get("class", "")).endswith("AdminEmailHandler"):
            continue
        path = handler.get("email_backend")
        if using := handler.get("using"):
            path = mailers.get(using, {}).get("BACKEND")
        backend = _try(partial(import_string, str(path or default)))
        if backend is not None and _queues(backend):
            return [
                Caution(
                    f"The log handler {name!r} queues its mail in the database: when that or a "
                    "transaction fails, nobody is told.",
                    hint=f'Give it "email_backend": {SES_BACKEND!r} in LOGGING (Django >= 6.1 '
                    'with MAILERS: "using", the alias of a mailer with that backend).',
                    id="connect_mailer.W005",
                )
            ]
    return []


def _get_handlers() -> dict[str, dict[str, Any]]:
    """The site's log handlers, and Django's own ``mail_admins`` where that is still in force."""
    logging = settings.LOGGING if settings.LOGGING_CONFIG else {}
    handlers = dict(logging.get("handlers", {}))
    # Django's LOGGING lies beneath the site's, which takes its loggers over or switches them off.
    takes_over = "handlers" in logging.get("loggers", {}).get("django", {})
    if not takes_over and (not logging or not logging.get("disable_existing_loggers", True)):
        handlers["mail_admins (Django's own)"] = {"class": _ADMIN_EMAIL_HANDLER}
    return handlers


def _queues(backend: Any) -> bool:
    from connect_mailer.backend import ConnectMailerBackend

    return isinstance(backend, type) and issubclass(backend, ConnectMailerBackend)


def _try(read: Callable[[], Any]) -> Any:
    """A setting, or ``None`` where another check has told what is wrong with it."""
    try:
        return read()
    except (ConfigurationError, ImportError):
        return None


COMPATIBILITY: Final = (
    check_settings,
    check_transport,
    check_lease,
    check_sqlite,
    check_login,
    check_links,
    check_senders,
    check_signing,
    check_error_mail,
)
SECURITY: Final = (
    check_feedback,
    check_old_patterns,
)

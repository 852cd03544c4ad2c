"""Settings: the one module that reads Django's settings and the environment.

Values are read when they are asked for, so ``override_settings`` works everywhere. A value
that can't be used raises ``ConfigurationError``, which the system checks turn into errors at
start-up; nothing is guessed.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast
from urllib.parse import parse_qs, urlsplit

from django.conf import settings
from django.utils.crypto import salted_hmac

from connect_mailer.exceptions import ConfigurationError

SES_BACKEND: Final = "connect_mailer.backend.SESBackend"
LEGACY_SES_BACKEND: Final = "seacucumber.backend.SESBackend"
QUEUEING_BACKENDS: Final = frozenset(
    {
        "connect_mailer.backend.ConnectMailerBackend",
        "connect_mailer.backend.TransactionalBackend",
        "connect_mailer.backend.DefaultBackend",
    }
)

SETTING: Final = "CONNECT_MAILER"
KEYS: Final = frozenset(
    {
        "TRANSPORT",
        "RATE",
        "REDIS_URL",
        "QUEUE",
        "MAX_ATTEMPTS",
        "RETRY_DELAY",
        "CONCURRENCY",
        "MAX_DRAINS",
        "DRAIN_SECONDS",
        "LEASE_SECONDS",
        "PAUSE_SECONDS",
        "IN_DOUBT",
        "SES_REGION",
        "SES_ENDPOINT_URL",
        "SES_CONFIGURATION_SET",
        "SES_TENANT",
        "SES_CONTACT_LIST",
        "SES_CLIENT",
        "UNSUBSCRIBE_BASE_URL",
        "UNSUBSCRIBE_MAILTO",
        "UNSUBSCRIBE_SPLIT",
        "MAILING_LISTS",
        "KEEP_DAYS",
        "KEEP_BODIES_DAYS",
        "GUARD",
        "SOFT_BOUNCE_LIMIT",
        "SOFT_BOUNCE_DAYS",
        "SOFT_BOUNCE_EXPIRES",
    }
)

# Seconds that one call to SES may take: to connect, and from then on to answer.
CONNECT_TIMEOUT_SECONDS: Final = 3.0
READ_TIMEOUT_SECONDS: Final = 10.0
# Both, and a little.
CALL_SECONDS: Final = CONNECT_TIMEOUT_SECONDS + READ_TIMEOUT_SECONDS + 1

# Characters in the name of a mailing list: what its column holds.
MAX_LIST_LENGTH: Final = 100

# Source: SES developer guide, "Manual DKIM signing": headers that SES writes itself.
NEVER_SIGNED: Final = frozenset({"message-id", "date", "return-path", "bounces-to"})

# An address that needs no escaping in a URL.
_MAILTO: Final = re.compile(r"[A-Za-z0-9!$'*+/=_~.-]+@[A-Za-z0-9.-]+", re.ASCII)

_MISSING: Final = object()
_PERIODS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, kw_only=True)
class RedisAddress:
    """Where the shared limiter lives, as ``redis.Redis.from_url(url, **options)`` takes it."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SESOptions:
    """What a client of SES needs to know. ``None``: boto3 finds it in its own ways."""

    region: str | None
    endpoint_url: str | None
    access_key_id: str | None = field(repr=False)
    secret_access_key: str | None = field(repr=False)
    session_token: str | None = field(repr=False)
    configuration_set: str | None
    tenant: str | None
    contact_list: str | None


@dataclass(frozen=True, kw_only=True)
class DKIMOptions:
    """How the app signs mail itself."""

    domain: str
    selector: str
    private_key: str = field(repr=False)
    headers: tuple[str, ...]


class Conf:
    """Every setting as a property: the value in force now, checked and with its default."""

    # How it is sent

    @property
    def transport(self) -> str:
        """Dotted path of the backend that sends, or (Django >= 6.1) an alias in ``MAILERS``.

        The old environment can't ask for a queue to deliver the queue: a queueing path there
        means SES. In ``CONNECT_MAILER["TRANSPORT"]`` it is a mistake that the checks name.
        """
        explicit = self._get("TRANSPORT", None)
        if explicit is not None:
            if not isinstance(explicit, str) or not explicit:
                raise _wrong("TRANSPORT", explicit, "a dotted path such as", repr(SES_BACKEND))
            path = self.get_mailers().get(explicit, {}).get("BACKEND", explicit)
            return SES_BACKEND if path in (SES_BACKEND, LEGACY_SES_BACKEND) else explicit
        legacy = self.legacy("ORIGINAL_EMAIL_BACKEND") or os.environ.get("EMAIL_BACKEND")
        if not legacy or legacy == LEGACY_SES_BACKEND or legacy in QUEUEING_BACKENDS:
            return SES_BACKEND
        return str(legacy)

    @property
    def is_ses(self) -> bool:
        """Whether the transport is SES through this app's own client."""
        return self.transport == SES_BACKEND

    @property
    def rate(self) -> float | Literal["auto"]:
        """Recipients per second, or ``"auto"``: what SES allows."""
        value = self._get("RATE", None)
        name = "RATE"
        if value is None:
            value, name = self.legacy("CUCUMBER_RATE_LIMIT"), "CUCUMBER_RATE_LIMIT"
        if value is None or value == "auto":
            return "auto"
        return _parse_rate(name, value)

    @property
    def redis(self) -> RedisAddress | None:
        """Where the limiter lives; ``None``: no Redis, so in the database."""
        value = self._get("REDIS_URL", _MISSING)
        if value is None or value == "":
            return None
        if value is not _MISSING:
            if not isinstance(value, str) or not _is_redis(value):
                raise _wrong(
                    "REDIS_URL", value, "a URL such as 'redis://localhost:6379/0', or None"
                )
            return _redis_address(value, {})
        from celery import current_app

        broker = current_app.conf.broker_url
        url = broker[0] if isinstance(broker, list | tuple) and broker else broker
        url = str(url or "").split(";")[0]
        if not _is_redis(url):
            return None
        tls = current_app.conf.broker_use_ssl
        return _redis_address(url, tls if isinstance(tls, Mapping) else {})

    @property
    def queue(self) -> str | None:
        """Celery queue of the tasks; ``None``: Celery's default."""
        value = self._get("QUEUE", None) or self.legacy("CUCUMBER_ROUTE_QUEUE")
        if value is not None and not isinstance(value, str):
            raise _wrong("QUEUE", value, "the name of a Celery queue")
        return value or None

    @property
    def max_attempts(self) -> int:
        """Attempts at one row before it ends ``failed``."""
        return self._number("MAX_ATTEMPTS", 60, legacy="CUCUMBER_MAX_RETRIES", at_least=1)

    @property
    def retry_delay_seconds(self) -> int:
        """Seconds before the second attempt; it doubles from there."""
        return self._number("RETRY_DELAY", 60, legacy="CUCUMBER_RETRY_DELAY", at_least=1)

    @property
    def concurrency(self) -> int:
        """Calls in flight per drain."""
        return self._number("CONCURRENCY", 50, at_least=1)

    @property
    def max_drains(self) -> int:
        """Drains that may run at once on the whole site."""
        return self._number("MAX_DRAINS", 2, at_least=1)

    @property
    def drain_seconds(self) -> int:
        """Seconds after which a drain hands over to the next."""
        return self._number("DRAIN_SECONDS", 20, at_least=1)

    @property
    def lease_seconds(self) -> int:
        """Seconds after which a row that is still ``sending`` belonged to a dead worker."""
        return self._number("LEASE_SECONDS", 300, at_least=5)

    @property
    def pause_seconds(self) -> int:
        """Seconds that a problem with the account pauses all before the next try."""
        return self._number("PAUSE_SECONDS", 60, at_least=1)

    @property
    def in_doubt(self) -> Literal["resend", "hold"]:
        """What becomes of a call of which nobody knows whether SES took it."""
        value = self._get("IN_DOUBT", "resend")
        if value not in ("resend", "hold"):
            raise _wrong("IN_DOUBT", value, "'resend' or 'hold'")
        return cast(Literal["resend", "hold"], value)

    @property
    def ses(self) -> SESOptions:
        """Region, endpoint, credentials and what is added to each call."""
        endpoint = self._text("SES_ENDPOINT_URL")
        if endpoint is None and (host := self.legacy("CUCUMBER_SES_REGION_ENDPOINT")):
            endpoint = host if "://" in host else f"https://{host}"
        return SESOptions(
            region=(
                self._text("SES_REGION")
                or self.legacy("CUCUMBER_SES_REGION_NAME")
                or self.legacy("AWS_SES_REGION_NAME")
            ),
            endpoint_url=endpoint,
            # From the environment, boto3 takes them itself, with the session token that may
            # belong to them.
            access_key_id=getattr(settings, "AWS_ACCESS_KEY_ID", None),
            secret_access_key=getattr(settings, "AWS_SECRET_ACCESS_KEY", None),
            session_token=getattr(settings, "AWS_SESSION_TOKEN", None),
            configuration_set=self._text("SES_CONFIGURATION_SET"),
            tenant=self._text("SES_TENANT"),
            contact_list=self._text("SES_CONTACT_LIST"),
        )

    @property
    def is_lean(self) -> bool:
        """Whether mail goes through the lean sender where it can, and not through boto3."""
        value = self._get("SES_CLIENT", "lean")
        if value not in ("lean", "boto3"):
            raise _wrong("SES_CLIENT", value, "'lean' or 'boto3'")
        return bool(value == "lean")

    # What is kept

    @property
    def keep_days(self) -> int:
        """Days after which a finished row is forgotten."""
        return self._number("KEEP_DAYS", 30, at_least=0)

    @property
    def keep_bodies_days(self) -> int:
        """Days for which the body of a sent message is kept; 0: not at all."""
        return self._number("KEEP_BODIES_DAYS", 0, at_least=0)

    # Reputation

    @property
    def guard(self) -> Mapping[str, tuple[float, float] | None]:
        """Shares of bounces and of complaints at which admins are told, and mail is paused."""
        value = self._get("GUARD", {})
        guard = {"warn": (0.05, 0.001), "pause": None}
        wanted = "a dict such as {'warn': (0.05, 0.001), 'pause': (0.10, 0.005)}, of shares or None"
        if not isinstance(value, Mapping) or not set(value) <= set(guard):
            raise _wrong("GUARD", value, wanted)
        for pair in value.values():
            is_pair = isinstance(pair, list | tuple) and len(pair) == 2
            if pair is not None and not (
                is_pair and all(isinstance(share, int | float) and 0 < share <= 1 for share in pair)
            ):
                raise _wrong("GUARD", value, wanted)
        return {
            name: None if pair is None else (float(pair[0]), float(pair[1]))
            for name, pair in {**guard, **value}.items()
        }

    @property
    def admins(self) -> list[str]:
        """The addresses of Django's ``ADMINS``: pairs with a name, or (Django >= 6.0) alone."""
        return [str(one if isinstance(one, str) else one[1]) for one in settings.ADMINS]

    @property
    def server_email(self) -> str:
        """Django's ``SERVER_EMAIL``: who writes to admins."""
        return str(settings.SERVER_EMAIL)

    @property
    def soft_bounce_limit(self) -> int:
        """Soft bounces in a row that make an ``Unsubscribe``; 0: none do."""
        return self._number("SOFT_BOUNCE_LIMIT", 5, at_least=0)

    @property
    def soft_bounce_days(self) -> int:
        """Days within which they came."""
        return self._number("SOFT_BOUNCE_DAYS", 14, at_least=1)

    @property
    def soft_bounce_expires_days(self) -> int:
        """Days after which such a row is forgotten; 0: never."""
        return self._number("SOFT_BOUNCE_EXPIRES", 90, at_least=0)

    # Opt-out

    @property
    def unsubscribe_base_url(self) -> str:
        """Scheme and host for links in mail, without a slash at the end; empty: no links."""
        name = "UNSUBSCRIBE_BASE_URL"
        value = self._get(name, None)
        if value is None:
            value, name = self.legacy("ORIGIN"), "ORIGIN"
        if not value:
            return ""
        parts = urlsplit(str(value))
        if parts.scheme not in ("https", "http") or not parts.netloc or not str(value).isascii():
            raise _wrong(name, value, "scheme and host, such as 'https://www.example.com'")
        return str(value).rstrip("/")

    @property
    def mailing_lists(self) -> Mapping[str, str]:
        """Names of the lists that readers may leave one by one, and their titles."""
        value = self._get("MAILING_LISTS", {})
        if not isinstance(value, Mapping) or not all(
            isinstance(name, str) and 0 < len(name) <= MAX_LIST_LENGTH for name in value
        ):
            raise _wrong(
                "MAILING_LISTS",
                value,
                "a dict such as {'digest': 'Weekly digest'}, with names of at most",
                f"{MAX_LIST_LENGTH} characters",
            )
        return value

    @property
    def unsubscribe_mailto(self) -> str:
        """Address that takes opt-outs by mail; empty: none."""
        value = self._text("UNSUBSCRIBE_MAILTO") or ""
        if value and not _MAILTO.fullmatch(value):
            raise _wrong("UNSUBSCRIBE_MAILTO", value, "an address such as 'leave@example.com'")
        return value

    @property
    def unsubscribe_split(self) -> bool:
        """Whether mail to several recipients becomes an envelope for each of them."""
        value = self._get("UNSUBSCRIBE_SPLIT", False)
        if not isinstance(value, bool):
            raise _wrong("UNSUBSCRIBE_SPLIT", value, "True or False")
        return value

    @property
    def email_secret_key(self) -> str:
        """``EMAIL_SECRET_KEY``, which signed the links of Connect; empty: none are taken."""
        return str(self.legacy("EMAIL_SECRET_KEY") or "")

    @property
    def dkim(self) -> DKIMOptions | None:
        """``DKIM_*``: how the app signs mail itself; ``None``: it doesn't, so SES does."""
        domain, key = self.legacy("DKIM_DOMAIN"), self.legacy("DKIM_PRIVATE_KEY")
        if not domain or not key:
            return None
        headers = self.legacy("DKIM_HEADERS") or ("From", "To", "Cc", "Subject")
        entries = headers.split(",") if isinstance(headers, str) else headers
        selector = self.legacy("DKIM_SELECTOR") or "ses"
        if not isinstance(entries, list | tuple):
            raise _wrong("DKIM_HEADERS", headers, "a list of names, such as ['From', 'Subject']")
        names = tuple(str(name).strip() for name in entries)
        for name, value in (("DKIM_DOMAIN", domain), ("DKIM_SELECTOR", selector)):
            if not str(value).isascii():
                raise _wrong(name, value, "ASCII; of a domain, its form that begins with xn--")
        if unsigned := [name for name in names if name.lower() in NEVER_SIGNED]:
            raise ConfigurationError(
                f"DKIM_HEADERS has {unsigned}, which SES writes itself after the signature: no "
                "reader's server would believe it. Leave them out."
            )
        return DKIMOptions(
            domain=str(domain),
            selector=str(selector),
            private_key=key.decode() if isinstance(key, bytes) else str(key),
            headers=names,
        )

    # Feedback

    @property
    def topic_arns(self) -> tuple[str, ...]:
        """``BOUNCY_TOPIC_ARN``: the SNS topics that are listened to; empty: none."""
        value = self.legacy("BOUNCY_TOPIC_ARN")
        if not value:
            return ()
        entries = value.split(",") if isinstance(value, str) else value
        if not isinstance(entries, list | tuple | set | frozenset) or not all(
            isinstance(entry, str) for entry in entries
        ):
            raise ConfigurationError(
                f"BOUNCY_TOPIC_ARN is {value!r}; it must be a list of topic ARNs such as "
                "['arn:aws:sns:us-east-1:123456789012:ses-feedback'], or one string with "
                "commas between them."
            )
        return tuple(entry.strip() for entry in entries if entry.strip())

    @property
    def auto_subscribe(self) -> bool:
        """``BOUNCY_AUTO_SUBSCRIBE``: whether subscriptions of allowed topics are confirmed."""
        value = self.legacy("BOUNCY_AUTO_SUBSCRIBE")
        if isinstance(value, str):
            return value.strip().lower() in ("1", "true", "yes", "on")
        return bool(value)

    @property
    def key_cache(self) -> str:
        """``BOUNCY_KEY_CACHE``: alias of the Django cache that keeps signing certificates."""
        return str(self.legacy("BOUNCY_KEY_CACHE") or "default")

    @property
    def cert_domain_regex(self) -> re.Pattern[str] | None:
        """``BOUNCY_CERT_DOMAIN_REGEX``: narrows the hosts that certificates come from."""
        return self._pattern("BOUNCY_CERT_DOMAIN_REGEX")

    @property
    def subscribe_domain_regex(self) -> re.Pattern[str] | None:
        """``BOUNCY_SUBSCRIBE_DOMAIN_REGEX``: narrows the hosts that are asked to subscribe."""
        return self._pattern("BOUNCY_SUBSCRIBE_DOMAIN_REGEX")

    # Logs

    def hash_address(self, address: str) -> str:
        """What stands for an address in the log: the same address, the same 12 hex digits."""
        return salted_hmac("connect_mailer.log", address.lower(), algorithm="sha256").hexdigest()[
            :12
        ]

    # How they are read

    def unknown_keys(self) -> list[str]:
        """Keys of ``CONNECT_MAILER`` that mean nothing."""
        return sorted(str(key) for key in self._dict() if key not in KEYS)

    def legacy(self, name: str) -> Any:
        """A setting with a name of its own: Django's settings first, then the environment."""
        value = getattr(settings, name, _MISSING)
        return os.environ.get(name) if value is _MISSING else value

    def get_mailers(self) -> Mapping[str, Mapping[str, Any]]:
        """Django's ``MAILERS`` (>= 6.1), or nothing."""
        mailers: Mapping[str, Mapping[str, Any]] = getattr(settings, "MAILERS", {})
        return mailers

    def _dict(self) -> Mapping[str, Any]:
        value = getattr(settings, SETTING, None) or {}
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{SETTING} is {value!r}; it must be a dict.")
        return value

    def _get(self, key: str, default: Any) -> Any:
        return self._dict().get(key, default)

    def _text(self, key: str) -> str | None:
        value = self._get(key, None)
        if value is not None and not isinstance(value, str):
            raise _wrong(key, value, "a string")
        return value or None

    def _pattern(self, name: str) -> re.Pattern[str] | None:
        value = self.legacy(name)
        if not value:
            return None
        try:
            return re.compile(value)
        except (re.error, TypeError) as error:
            raise _wrong(name, value, "a regular expression") from error

    def _number(self, key: str, default: int, *, legacy: str = "", at_least: int) -> int:
        value, name = self._get(key, None), key
        if value is None and legacy:
            value, name = self.legacy(legacy), legacy
        if value is None:
            return default
        try:
            if isinstance(value, bool) or int(value) != float(value):
                raise ValueError
            number = int(value)
        except (TypeError, ValueError, OverflowError):
            number = at_least - 1
        if number < at_least:
            raise _wrong(name, value, f"a whole number, at least {at_least}")
        return number


conf = Conf()


def _wrong(name: str, value: object, *wanted: str) -> ConfigurationError:
    label = f'{SETTING}["{name}"]' if name in KEYS else name
    return ConfigurationError(f"{label} is {value!r}; it must be {' '.join(wanted)}.")


def _parse_rate(name: str, value: object) -> float:
    number, _, period = str(value).strip().partition("/")
    try:
        if isinstance(value, bool):
            raise ValueError
        rate = float(number) / _PERIODS[period.strip() or "s"]
    except (KeyError, ValueError):
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise _wrong(
            name, value, "recipients per second: 'auto', a number above 0, or such as '10/m'"
        )
    return rate


def _is_redis(url: str) -> bool:
    return urlsplit(url).scheme in ("redis", "rediss", "redis+socket", "unix")


def _redis_address(url: str, tls: Mapping[str, Any]) -> RedisAddress:
    """Translate what Celery understands and redis-py doesn't.

    Source: Celery's Redis broker settings (``redis+socket://``, ``broker_use_ssl``,
    ``ssl_cert_reqs=CERT_NONE``).
    """
    parts = urlsplit(url)
    if parts.scheme == "redis+socket":
        database = parse_qs(parts.query).get("virtual_host", ["0"])[0]
        return RedisAddress(url=f"unix://{parts.path}?db={database}")
    if parts.scheme != "rediss":
        return RedisAddress(url=url)
    options = dict(tls)
    query = parse_qs(parts.query)
    if "ssl_cert_reqs" in query:
        options["ssl_cert_reqs"] = query["ssl_cert_reqs"][0]
    requirement = options.get("ssl_cert_reqs")
    if isinstance(requirement, str):
        requirement = requirement.lower().removeprefix("cert_")
        options["ssl_cert_reqs"] = requirement
    if requirement in ("none", ssl.CERT_NONE):
        options["ssl_check_hostname"] = False
    base = parts._replace(
        query="&".join(
            pair for pair in parts.query.split("&") if not pair.startswith("ssl_cert_reqs=")
        )
    ).geturl()
    return RedisAddress(url=base, options=options)

"""Settings: the one module that reads Django's settings and the environment.

Values are read when they are asked for, so ``override_settings`` works everywhere. A value
that can't be used raises ``ConfigurationError``, which the system checks turn into errors at
start-up; nothing is guessed.
"""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from urllib.parse import parse_qs, urlsplit

from django.conf import settings
from django.utils.crypto import salted_hmac

from connect_mailer.exceptions import ConfigurationError, InvalidMessage

if TYPE_CHECKING:
    from connect_mailer.options import DKIMOptions, RedisAddress, SESOptions

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
# Both, and a little: all of a call but for the writing of a large message (``upload_seconds``).
CALL_SECONDS: Final = CONNECT_TIMEOUT_SECONDS + READ_TIMEOUT_SECONDS + 1

# Characters in the name of a mailing list: what its column holds.
MAX_LIST_LENGTH: Final = 100
# As an unsubscribe link writes it (JSON: six for a character that is not ASCII): so much fits a
# line of 998 beside the longest address and 150 for the site's own part of the URL.
_MAX_ESCAPED_LIST: Final = 240
_LIST_NAME: Final = (
    f"of at most {MAX_LIST_LENGTH} characters, or {_MAX_ESCAPED_LIST // 6} that are not ASCII"
)

# Source: SES developer guide, "Manual DKIM signing": headers that SES writes itself.
NEVER_SIGNED: Final = frozenset({"message-id", "date", "return-path", "bounces-to"})

# An address that needs no escaping in a URL.
_MAILTO: Final = r"[A-Za-z0-9!$'*+/=_~.-]+@[A-Za-z0-9.-]+"

_MISSING: Final = object()
_PERIODS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Conf:
    """Every setting as a property: the value in force now, checked and with its default.

    The docstrings are the reference (``docs/settings.rst``). Their fields: ``setting``, the
    name or names; ``type``; ``default``; ``legacy``, where it is looked for without that key.
    """

    # How it is sent

    @property
    def transport(self) -> str:
        """What the queue is delivered through.

        Any backend that sends ``message.message()``, such as Django's own (``smtp``, ``console``,
        ``filebased``, ``locmem``, ``dummy``), gets the frozen message. A backend that queues is a
        mistake (``connect_mailer.E005``); only the old environment may name one, or
        ``seacucumber.backend.SESBackend``: there it means SES.

        :setting: TRANSPORT
        :type: dotted path of an e-mail backend, or (Django >= 6.1) an alias in ``MAILERS``
        :default: ``"connect_mailer.backend.SESBackend"``
        :legacy: ``ORIGINAL_EMAIL_BACKEND``; then ``EMAIL_BACKEND``, from the environment only
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
        """Recipients per second, of all workers together.

        ``"auto"`` is what SES says (``GetAccount``, asked again every five minutes); a number is
        capped by it. If SES doesn't let the site ask, ``"auto"`` is 1 a second, with a warning in
        the log. Other transports are not paced unless a number is given.

        :setting: RATE
        :type: ``"auto"``, a number, or a text such as ``"10/s"``, ``"600/m"``, ``"36000/h"``
        :default: ``"auto"``
        :legacy: ``CUCUMBER_RATE_LIMIT``
        """
        value = self._get("RATE", None)
        name = "RATE"
        if value is None:
            value, name = self.legacy("CUCUMBER_RATE_LIMIT"), "CUCUMBER_RATE_LIMIT"
        if value is None or value == "auto":
            return "auto"
        return _parse_rate(name, value)

    @property
    def redis(self) -> RedisAddress | None:
        """Where the limiter that all workers share lives.

        ``None``, and a broker that is not Redis: in a row of the database. Celery's
        ``broker_use_ssl`` and ``ssl_cert_reqs`` are taken over from the broker.

        :setting: REDIS_URL
        :type: a URL (``redis://``, ``rediss://``, ``unix://``, ``redis+socket://``), or ``None``
        :default: Celery's broker, if that is Redis
        """
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
        """Celery queue of the app's tasks.

        :setting: QUEUE
        :type: name of a Celery queue
        :default: Celery's default queue
        :legacy: ``CUCUMBER_ROUTE_QUEUE``
        """
        value = self._get("QUEUE", None) or self.legacy("CUCUMBER_ROUTE_QUEUE")
        if value is not None and not isinstance(value, str):
            raise _wrong("QUEUE", value, "the name of a Celery queue")
        return value or None

    @property
    def max_attempts(self) -> int:
        """Attempts at one row before it ends ``failed``.

        Being throttled, and a problem with the account, don't count.

        :setting: MAX_ATTEMPTS
        :type: whole number, at least 1
        :default: ``60``
        :legacy: ``CUCUMBER_MAX_RETRIES``
        """
        return self._number("MAX_ATTEMPTS", 60, legacy="CUCUMBER_MAX_RETRIES", at_least=1)

    @property
    def retry_delay_seconds(self) -> int:
        """Before the second attempt at a row; it doubles from there, up to an hour.

        :setting: RETRY_DELAY
        :type: seconds, at least 1
        :default: ``60``
        :legacy: ``CUCUMBER_RETRY_DELAY``
        """
        return self._number("RETRY_DELAY", 60, legacy="CUCUMBER_RETRY_DELAY", at_least=1)

    @property
    def concurrency(self) -> int:
        """Calls of the transport in flight per drain.

        :setting: CONCURRENCY
        :type: whole number, at least 1
        :default: ``50``
        """
        return self._number("CONCURRENCY", 50, at_least=1)

    @property
    def max_drains(self) -> int:
        """Drains that may run at once on the whole site.

        So a queue full of mail doesn't take all Celery workers. A second one starts only while
        calls in flight, not the rate, hold the first one up.

        :setting: MAX_DRAINS
        :type: whole number, at least 1
        :default: ``2``
        """
        return self._number("MAX_DRAINS", 2, at_least=1)

    @property
    def drain_seconds(self) -> int:
        """A drain hands over to the next after this long, so that a worker can be stopped.

        :setting: DRAIN_SECONDS
        :type: seconds, at least 1
        :default: ``20``
        """
        return self._number("DRAIN_SECONDS", 20, at_least=1)

    @property
    def lease_seconds(self) -> int:
        """A row that is still ``sending`` after this long belonged to a worker that died.

        More than 14, since one call may take 13 (``connect_mailer.E006``). A fifth of it may go
        into the writing of a request to SES: 60 seconds, in which a message of 40 MB (56 as base64)
        needs 8 Mbit/s. With a shorter lease it needs more; with a slower line, a longer lease.

        :setting: LEASE_SECONDS
        :type: seconds, at least 5
        :default: ``300``
        """
        return self._number("LEASE_SECONDS", 300, at_least=5)

    @property
    def upload_seconds(self) -> float:
        """What the writing of a request to SES may take.

        In proportion to the lease, so that it is over before that, with the call's timeouts. The
        same for all sizes: up to 50 calls share the line, and small ones wait for large ones.
        """
        return self.lease_seconds / 5

    @property
    def pause_seconds(self) -> int:
        """How long a problem with the account pauses all sending before the next try.

        Such a problem is the daily quota, sending that AWS has paused, or the credentials.

        :setting: PAUSE_SECONDS
        :type: seconds, at least 1
        :default: ``60``
        """
        return self._number("PAUSE_SECONDS", 60, at_least=1)

    @property
    def in_doubt(self) -> Literal["resend", "hold"]:
        """What becomes of a row in doubt, of which nobody knows whether SES took it.

        Once its lease has ended: ``"resend"``: it is sent again, so that a reader may get it
        twice; ``"hold"``: it ends ``failed``, so that a reader may not get it. See
        :ref:`in-doubt`.

        :setting: IN_DOUBT
        :type: ``"resend"`` or ``"hold"``
        :default: ``"resend"``
        """
        value = self._get("IN_DOUBT", "resend")
        if value not in ("resend", "hold"):
            raise _wrong("IN_DOUBT", value, "'resend' or 'hold'")
        return cast(Literal["resend", "hold"], value)

    @property
    def ses_region(self) -> str | None:
        """Region of the SES account.

        :setting: SES_REGION
        :type: name of an AWS region
        :default: as boto3 finds it, else ``us-east-1``
        :legacy: ``CUCUMBER_SES_REGION_NAME``, ``AWS_SES_REGION_NAME``
        """
        name, region = "SES_REGION", self._text("SES_REGION")
        for old in ("CUCUMBER_SES_REGION_NAME", "AWS_SES_REGION_NAME"):
            if not region:
                name, region = old, self.legacy(old)
        if region and not re.fullmatch("[a-z][a-z0-9-]*", str(region)):
            raise _wrong(name, region, "the name of an AWS region, such as 'eu-west-1'")
        return region

    @property
    def ses_endpoint_url(self) -> str | None:
        """Where SES is, if it is not where boto3 looks.

        :setting: SES_ENDPOINT_URL
        :type: a URL
        :default: as boto3 finds it
        :legacy: ``CUCUMBER_SES_REGION_ENDPOINT``, a host name
        """
        url = self._text("SES_ENDPOINT_URL")
        if url is None and (host := self.legacy("CUCUMBER_SES_REGION_ENDPOINT")):
            url = host if "://" in host else f"https://{host}"
        if url and not re.match("https?://[^/]", url):
            raise _wrong(
                "SES_ENDPOINT_URL", url, "a URL, such as 'https://email.eu-west-1.amazonaws.com'"
            )
        return url

    @property
    def ses_configuration_set(self) -> str | None:
        """Configuration set that each call names.

        One that publishes events lets SES tell what became of a message.

        :setting: SES_CONFIGURATION_SET
        :type: name of an SES configuration set
        :default: none
        """
        return self._text("SES_CONFIGURATION_SET")

    @property
    def ses_tenant(self) -> str | None:
        """Tenant that each call names.

        :setting: SES_TENANT
        :type: name of an SES tenant
        :default: none
        """
        return self._text("SES_TENANT")

    @property
    def ses_contact_list(self) -> str | None:
        """Readers opt out through SES's own subscription management.

        Its topics are the names in ``MAILING_LISTS``; the app then adds no header of its own.
        See :doc:`unsubscribe`.

        :setting: SES_CONTACT_LIST
        :type: name of a contact list
        :default: none
        """
        return self._text("SES_CONTACT_LIST")

    @property
    def credentials(self) -> tuple[str | None, str | None, str | None]:
        """Key, secret and (where they are temporary) session token.

        Of Django's settings only: without them boto3 finds credentials in its own ways, which
        are the same names in the environment, a profile, the role of the machine.

        :setting: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
        :type: texts
        :default: as boto3 finds them
        """
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        key, secret, token = (getattr(settings, name, None) for name in names)
        return key, secret, token

    @property
    def ses(self) -> SESOptions:
        """All that a client of SES needs to know."""
        from connect_mailer.options import SESOptions

        key, secret, token = self.credentials
        return SESOptions(
            region=self.ses_region,
            endpoint_url=self.ses_endpoint_url,
            access_key_id=key,
            secret_access_key=secret,
            session_token=token,
            configuration_set=self.ses_configuration_set,
            tenant=self.ses_tenant,
            contact_list=self.ses_contact_list,
        )

    @property
    def is_lean(self) -> bool:
        """What writes the request to SES.

        ``"lean"``: the :ref:`lean sender <lean>`, wherever it comes to the same; ``"boto3"``: boto3
        in any case. The log says which it is when a process sends first. For a message of 40 MB
        boto3 takes 100 MB more.

        boto3 has no limit for the writing of a request as a whole: over a line that is slow, but
        never stands still, a large message can take longer than ``LEASE_SECONDS``, and then is sent
        twice.

        :setting: SES_CLIENT
        :type: ``"lean"`` or ``"boto3"``
        :default: ``"lean"``
        """
        value = self._get("SES_CLIENT", "lean")
        if value not in ("lean", "boto3"):
            raise _wrong("SES_CLIENT", value, "'lean' or 'boto3'")
        return bool(value == "lean")

    # What is kept

    @property
    def keep_days(self) -> int:
        """Finished rows of the outbox, and receipts of SNS, are deleted after this long.

        :setting: KEEP_DAYS
        :type: days
        :default: ``30``
        """
        return self._number("KEEP_DAYS", 30, at_least=0)

    @property
    def keep_bodies_days(self) -> int:
        """For how long the body of a *sent* message is kept, to be sent again from the admin.

        0: it is deleted when it was sent. Bodies of failed and expired messages are kept as long
        as their rows.

        :setting: KEEP_BODIES_DAYS
        :type: days
        :default: ``0``
        """
        return self._number("KEEP_BODIES_DAYS", 0, at_least=0)

    # Reputation

    @property
    def guard(self) -> Mapping[str, tuple[float, float] | None]:
        """Shares of hard bounces and of complaints at which admins are told, and mail is paused.

        Looks at the last 10,000 recipients, each minute. Where their hard bounces or complaints
        reach the pair of ``"warn"`` (the default is where AWS starts to review an account),
        ``ADMINS`` are told, once a day, by mail of the transactional stream. At the pair of
        ``"pause"``, such as ``(0.10, 0.005)``, where AWS may pause an account, the default stream
        is paused until an operator resumes it; the transactional stream goes on. ``None``: not at
        all. Never for fewer than 1,000 recipients or 10 people; addresses of SES's mailbox
        simulator don't count.

        :setting: GUARD
        :type: dict of pairs: a share of bounces, a share of complaints
        :default: ``{"warn": (0.05, 0.001), "pause": None}``
        """
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
        """So many soft bounces in a row make an ``Unsubscribe`` with the source ``bounce``.

        Soft is: mailbox full, or a server that gives no reason. In a row is: without a message
        that arrived in between; without delivery events, what did not bounce counts as arrived,
        if it was sent before the message that bounced. 0: they never do.

        :setting: SOFT_BOUNCE_LIMIT
        :type: whole number
        :default: ``5``
        """
        return self._number("SOFT_BOUNCE_LIMIT", 5, at_least=0)

    @property
    def soft_bounce_days(self) -> int:
        """They have to be of messages sent within so many days.

        :setting: SOFT_BOUNCE_DAYS
        :type: days, at least 1
        :default: ``14``
        """
        return self._number("SOFT_BOUNCE_DAYS", 14, at_least=1)

    @property
    def soft_bounce_expires_days(self) -> int:
        """After this long such an address is written to again; 0: never.

        :setting: SOFT_BOUNCE_EXPIRES
        :type: days
        :default: ``90``
        """
        return self._number("SOFT_BOUNCE_EXPIRES", 90, at_least=0)

    # Opt-out

    @property
    def unsubscribe_base_url(self) -> str:
        """Scheme and host for links in mail.

        Empty: mail has no link and no ``List-Unsubscribe`` header.

        :setting: UNSUBSCRIBE_BASE_URL
        :type: scheme and host, such as ``"https://www.example.com"``
        :default: empty
        :legacy: ``ORIGIN``
        """
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
        """The lists that readers may leave one by one: names, and titles for readers.

        Where it names any, a ``mailing_list`` that is not among them is refused when a message is
        queued. A title may be a lazy translation; a name has at most 100 characters, or 40 of
        other scripts than ASCII, which take more room in a link.

        :setting: MAILING_LISTS
        :type: dict of names and titles, such as ``{"digest": "Weekly digest"}``
        :default: ``{}``
        """
        value = self._get("MAILING_LISTS", {})
        if not isinstance(value, Mapping) or not all(
            name and _is_list_name(name) for name in value
        ):
            raise _wrong(
                "MAILING_LISTS",
                value,
                "a dict such as {'digest': 'Weekly digest'}, with names",
                _LIST_NAME,
            )
        return value

    def check_list(self, name: str) -> None:
        """Refuse what can't be the list of a mail or a link; blank is of none.

        Raises:
            InvalidMessage: too long, or not in ``MAILING_LISTS`` where that names any.
        """
        check_list_name(name)
        lists = self.mailing_lists
        if name and lists and name not in lists:
            raise InvalidMessage(
                f"mailing_list is {name!r}; it must be one of MAILING_LISTS: {list(lists)}."
            )

    @property
    def unsubscribe_mailto(self) -> str:
        """A second way out in ``List-Unsubscribe``, for mail clients that know no other.

        Such mail is for you to read; its subject is the reader's token (:ref:`by-mail`).

        :setting: UNSUBSCRIBE_MAILTO
        :type: address, such as ``"leave@example.com"``
        :default: none
        """
        value = self._text("UNSUBSCRIBE_MAILTO") or ""
        if value and not re.fullmatch(_MAILTO, value, re.ASCII):
            raise _wrong("UNSUBSCRIBE_MAILTO", value, "an address such as 'leave@example.com'")
        return value

    @property
    def unsubscribe_split(self) -> bool:
        """Whether mail to several recipients becomes an envelope for each of them.

        Each then has a link of her own. It is mail of the default stream only, and counts as many
        messages in the outbox.

        :setting: UNSUBSCRIBE_SPLIT
        :type: ``True`` or ``False``
        :default: ``False``
        """
        value = self._get("UNSUBSCRIBE_SPLIT", False)
        if not isinstance(value, bool):
            raise _wrong("UNSUBSCRIBE_SPLIT", value, "True or False")
        return value

    @property
    def email_secret_key(self) -> str:
        """Signed the links of Connect (``?email=…&code=…``).

        As long as it is set, those in old mail work.

        :setting: EMAIL_SECRET_KEY
        :type: text
        :default: none
        """
        return str(self.legacy("EMAIL_SECRET_KEY") or "")

    @property
    def dkim_selector(self) -> str:
        """The key's name in the DNS: ``<selector>._domainkey.<domain>``.

        :setting: DKIM_SELECTOR
        :type: text
        :default: ``"ses"``
        """
        return _ascii("DKIM_SELECTOR", self.legacy("DKIM_SELECTOR") or "ses")

    @property
    def dkim_headers(self) -> tuple[str, ...]:
        """What is signed besides ``List-Unsubscribe`` and ``List-Unsubscribe-Post``.

        :setting: DKIM_HEADERS
        :type: list of names, or one text with commas between them
        :default: ``("From", "To", "Cc", "Subject")``
        """
        headers = self.legacy("DKIM_HEADERS") or ("From", "To", "Cc", "Subject")
        entries = headers.split(",") if isinstance(headers, str) else headers
        if not isinstance(entries, list | tuple):
            raise _wrong("DKIM_HEADERS", headers, "a list of names, such as ['From', 'Subject']")
        names = tuple(str(name).strip() for name in entries)
        if unsigned := [name for name in names if name.lower() in NEVER_SIGNED]:
            raise ConfigurationError(
                f"DKIM_HEADERS has {unsigned}, which SES writes itself after the signature: no "
                "reader's server would believe it. Leave them out."
            )
        return names

    @property
    def dkim(self) -> DKIMOptions | None:
        r"""How the app signs mail itself, where both are set; leave them out where SES does.

        SES's way is called Easy DKIM. Here it needs ``pip install connect-mailer[dkim]``. The
        key is RSA, as PEM; ends of lines may be ``\n``.

        :setting: DKIM_DOMAIN, DKIM_PRIVATE_KEY
        :type: a domain; a key
        :default: none
        """
        domain, key = self.legacy("DKIM_DOMAIN"), self.legacy("DKIM_PRIVATE_KEY")
        if not domain or not key:
            return None
        from connect_mailer.options import DKIMOptions

        return DKIMOptions(
            domain=_ascii("DKIM_DOMAIN", domain),
            selector=self.dkim_selector,
            private_key=key.decode() if isinstance(key, bytes) else str(key),
            headers=self.dkim_headers,
        )

    # Feedback

    @property
    def topic_arns(self) -> tuple[str, ...]:
        """The SNS topics that are listened to. Empty: every notification is refused.

        :setting: BOUNCY_TOPIC_ARN
        :type: list of ARNs, or one text with commas between them
        :default: empty
        """
        value = self.legacy("BOUNCY_TOPIC_ARN")
        if not value:
            return ()
        entries = value.split(",") if isinstance(value, str) else value
        if isinstance(entries, list | tuple | set | frozenset):
            entries = [entry for entry in entries if entry is not None]  # a variable that is unset
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
        """Whether subscriptions of those topics are confirmed when SNS asks.

        :setting: BOUNCY_AUTO_SUBSCRIBE
        :type: bool; in the environment ``true``, ``1``, ``yes``, ``on``
        :default: ``False``
        """
        value = self.legacy("BOUNCY_AUTO_SUBSCRIBE")
        if isinstance(value, str):
            return value.strip().lower() in ("1", "true", "yes", "on")
        return bool(value)

    @property
    def key_cache(self) -> str:
        """Where certificates of SNS are kept for a day.

        :setting: BOUNCY_KEY_CACHE
        :type: alias in ``CACHES``
        :default: ``"default"``
        """
        return str(self.legacy("BOUNCY_KEY_CACHE") or "default")

    @property
    def cert_domain_regex(self) -> re.Pattern[str] | None:
        """Narrows the hosts that certificates come from. It can't widen them.

        :setting: BOUNCY_CERT_DOMAIN_REGEX
        :type: regular expression
        :default: none
        """
        return self._pattern("BOUNCY_CERT_DOMAIN_REGEX")

    @property
    def subscribe_domain_regex(self) -> re.Pattern[str] | None:
        """Narrows the hosts that are asked to confirm a subscription. It can't widen them.

        :setting: BOUNCY_SUBSCRIBE_DOMAIN_REGEX
        :type: regular expression
        :default: none
        """
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


def check_list_name(name: object) -> None:
    """Refuse what no list of any site can be called; blank is of none.

    Raises:
        InvalidMessage: it is none.
    """
    if not _is_list_name(name):
        raise InvalidMessage(
            f"mailing_list is {name!r}; it must be empty, or the name of a list, {_LIST_NAME}."
        )


def _is_list_name(name: object) -> bool:
    """Whether it can be the name of a mailing list: its column holds it, and so does a link."""
    if not isinstance(name, str) or len(name) > MAX_LIST_LENGTH:
        return False
    if name.isascii() and name.isprintable():
        return True  # without the work, as it is asked of each message
    return len(json.dumps(name)) - len('""') <= _MAX_ESCAPED_LIST


def _wrong(name: str, value: object, *wanted: str) -> ConfigurationError:
    label = f'{SETTING}["{name}"]' if name in KEYS else name
    return ConfigurationError(f"{label} is {value!r}; it must be {' '.join(wanted)}.")


def _ascii(name: str, value: object) -> str:
    if not str(value).isascii():
        raise _wrong(name, value, "ASCII; of a domain, its form that begins with xn--")
    return str(value)


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
    from connect_mailer.options import RedisAddress

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

"""Where the drain hands a frozen message over: SES, or a Django e-mail backend."""

from __future__ import annotations

import email
import email.message
import email.policy
import os
import smtplib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol, cast

from django.core import mail
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.utils.module_loading import import_string

from connect_mailer.conf import CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS, conf
from connect_mailer.exceptions import Rejected, Unavailable
from connect_mailer.sending.calls import Steps, blocking
from connect_mailer.sending.ses import Envelope, SESClient


class Transport(Protocol):
    """Takes envelopes, many at once and from many threads."""

    def steps(self, envelope: Envelope, begin: Callable[[], None]) -> Steps[str]:
        """Hand over; return the message id, or an empty string where there is none.

        ``begin`` is called once, before anything is handed over; what it raises ends the call.
        A step ends where it waits for an answer (``calls``).

        Raises:
            DeliveryError: the child says what is to be done about it.
        """


_clients: dict[tuple[Any, ...], SESClient] = {}


def get_ses_client() -> SESClient:
    """The SES client of this process for the settings in force: one, with its connections."""
    options = asdict(conf.ses)
    key = (os.getpid(), conf.concurrency, conf.is_lean, conf.upload_seconds, *options.values())
    if key not in _clients:
        _clients.clear()  # other settings, or a parent process's
        _clients[key] = SESClient(
            **options,
            concurrency=conf.concurrency,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=READ_TIMEOUT_SECONDS,
            is_lean=conf.is_lean,
            upload_seconds=conf.upload_seconds,
        )
    return _clients[key]


def get_transport() -> Transport:
    """The transport that the settings name."""
    return get_ses_client() if conf.is_ses else DjangoTransport(conf.transport)


class DjangoTransport:
    """A Django backend, by dotted path or (Django >= 6.1) by its alias in ``MAILERS``."""

    def __init__(self, name: str) -> None:
        self._name = name

    def steps(self, envelope: Envelope, begin: Callable[[], None]) -> Steps[str]:
        """Hand over to a backend of its own: backends keep a connection, not for threads."""
        yield from ()  # it waits in this thread
        with blocking():
            begin()
            return self._send(envelope)

    def _send(self, envelope: Envelope) -> str:
        try:
            count = self._connect().send_messages([FrozenMessage(envelope)])
        except smtplib.SMTPRecipientsRefused as error:
            codes = {code for code, _ in error.recipients.values()}
            kind = Rejected if all(500 <= code < 600 for code in codes) else Unavailable
            raise kind(str(error)) from error
        except smtplib.SMTPResponseException as error:
            kind = Rejected if 500 <= error.smtp_code < 600 else Unavailable
            raise kind(str(error)) from error
        except OSError as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error
        if count == 0:  # some backends of others return nothing
            raise Unavailable(f"The backend {self._name} says that it sent nothing.")
        return ""

    def _connect(self) -> BaseEmailBackend:
        mailers = getattr(mail, "mailers", {})
        backend: Any = mailers[self._name] if self._name in mailers else import_string(self._name)()
        # What it can't send it has to say, and a server that never answers must not hold a
        # drain for ever (Django's own SMTP backend waits without end unless told).
        backend.fail_silently = False
        if getattr(backend, "timeout", 0) is None:
            backend.timeout = READ_TIMEOUT_SECONDS
        return cast(BaseEmailBackend, backend)


class FrozenMessage(EmailMessage):
    """A stored message as Django's backends take one: ``message()`` is what was frozen."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        parsed = email.message_from_bytes(envelope.mime, policy=email.policy.default)
        body = parsed.get_body(("plain", "html"))
        super().__init__(
            subject=str(parsed["Subject"] or ""),
            body="" if body is None else str(body.get_content()),
            from_email=envelope.sender,
            to=[str(value) for value in parsed.get_all("To", [])],
            cc=[str(value) for value in parsed.get_all("Cc", [])],
        )

    def message(  # type: ignore[override]
        self, *, policy: email.policy.Policy[Any] = email.policy.default
    ) -> Any:
        """The frozen message, parsed; as a whole it serialises to the bytes that were frozen."""
        if isinstance(policy, email.policy.EmailPolicy):
            # As a text, too: it would encode what is longer than a line, such as a link.
            policy = policy.clone(refold_source="none")
        message: Any = email.message_from_bytes(
            self._envelope.mime, _class=_FrozenMIME, policy=policy
        )
        message.frozen = self._envelope.mime
        return message

    def recipients(self) -> list[str]:
        """The envelope's recipients, blind copies among them."""
        return list(self._envelope.recipients)


class _FrozenMIME(email.message.EmailMessage):
    frozen: bytes | None = None  # of the root only, not of its parts

    def as_bytes(
        self,
        unixfrom: bool = False,
        policy: email.policy.Policy | None = None,
        linesep: str | None = None,
    ) -> bytes:
        if self.frozen is None:
            return super().as_bytes(unixfrom, policy)
        # Django's SMTP backend asks for CRLF, by argument in 5.2 and by policy later.
        end = linesep or (policy or self.policy).linesep
        return self.frozen if end == "\r\n" else self.frozen.replace(b"\r\n", b"\n")

"""Amazon SES, API v2: one envelope a call, and what each answer means.

boto3 makes the calls, or ``lean`` as boto3 would make them.

Nothing of Django's settings or database: values are passed in. boto3 is imported by whoever
sends first, so that a web process that only queues never loads it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from connect_mailer import telemetry
from connect_mailer.exceptions import (
    AccountProblem,
    DeliveryError,
    InDoubt,
    InvalidMessage,
    Rejected,
    SenderDenied,
    Throttled,
    Unavailable,
)
from connect_mailer.sending.calls import Steps, blocking, run

logger = logging.getLogger(__name__)

# Source: SES developer guide, "Service quotas", message quotas: 40 MB after the attachments'
# base64 encoding. SES itself says "more than 41943040 bytes long".
MAX_MESSAGE_BYTES: Final = 40 * 1024 * 1024

# Source: SES API reference v2, MessageTag.
_TAG: Final = re.compile(r"[A-Za-z0-9_-]{1,256}", re.ASCII)

# What each error of SES means, by its code. A code that is unknown goes by the HTTP status.
# Source: SES API reference v2, SendEmail and "Common Errors"; developer guide, "Errors
# related to the sending quotas", which come under several codes and are told by their words.
_MEANINGS: Final[dict[str, type[DeliveryError]]] = {
    # Too fast, for all.
    "TooManyRequestsException": Throttled,
    "Throttling": Throttled,
    "ThrottlingException": Throttled,
    "LimitExceededException": Throttled,
    "RequestLimitExceeded": Throttled,
    # The account, for all and for a while.
    "SendingPausedException": AccountProblem,
    "AccountSuspendedException": AccountProblem,
    "ConfigurationSetSendingPausedException": AccountProblem,
    "ExpiredToken": AccountProblem,
    "ExpiredTokenException": AccountProblem,
    "IncompleteSignature": AccountProblem,
    "InvalidAccessKeyId": AccountProblem,
    "InvalidClientTokenId": AccountProblem,
    "InvalidSignatureException": AccountProblem,
    "MissingAuthenticationToken": AccountProblem,
    "MissingAuthenticationTokenException": AccountProblem,
    # The configuration set, tenant or contact list of the settings.
    "NotFoundException": AccountProblem,
    "OptInRequired": AccountProblem,
    "RequestExpired": AccountProblem,  # this machine's clock is wrong
    "SignatureDoesNotMatch": AccountProblem,
    "UnrecognizedClientException": AccountProblem,
    # This sender, perhaps not the others.
    "AccessDenied": SenderDenied,
    "AccessDeniedException": SenderDenied,
    "MailFromDomainNotVerifiedException": SenderDenied,
    "NotAuthorized": SenderDenied,
    # This message, for good.
    "BadRequestException": Rejected,
    "InvalidParameterValue": Rejected,
    "MessageRejected": Rejected,
    "RequestEntityTooLarge": Rejected,
    "RequestEntityTooLargeException": Rejected,
    "ValidationError": Rejected,
    "ValidationException": Rejected,
    # It may have been accepted: "aborted before a reply is sent".
    "RequestAbortedException": InDoubt,
}

# Words that say more than the code. They have to begin what SES says: further on it may
# quote the message, and who wrote that shall not pause the account.
# "Not verified" may also be about a recipient, while the account is in the sandbox: that row
# backs off in the same way, and comes right with the sandbox left or the address verified.
_WORDS: Final[tuple[tuple[str, type[DeliveryError]], ...]] = (
    ("daily message quota exceeded", AccountProblem),
    ("daily sending quota exceeded", AccountProblem),
    ("maximum sending rate exceeded", Throttled),
    ("sending paused", AccountProblem),
    ("email address is not verified", SenderDenied),
)

_MAX_WORDS: Final = 500

# Where nothing names a region: there seacucumber sent, through boto 2's default.
# Source: boto 2.49, boto/ses/connection.py, SESConnection.DefaultRegionName.
LEGACY_REGION: Final = "us-east-1"


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """One call: ASCII addr-specs, at most 50 recipients, and the message's final bytes.

    ``topic`` is for SES's own subscription management: of the contact list, blank for the
    list as a whole, ``None`` for mail that nobody subscribes to.
    """

    sender: str
    recipients: tuple[str, ...]
    mime: bytes = field(repr=False)
    tags: Mapping[str, str]
    topic: str | None = None


def at_once() -> None:
    """Begin a call when it is ready."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """What SES says of the account in this region; 24-hour numbers are recipients."""

    max_send_rate: float  # recipients a second
    max_24_hour_send: float  # -1: unlimited
    sent_last_24_hours: float
    sending_enabled: bool
    production_access: bool
    enforcement_status: str


def size_as_ses_counts(mime: bytes) -> int:
    """The size, in bytes, that SES compares with ``MAX_MESSAGE_BYTES``."""
    return len(mime)


def check_tag(name: str, value: str) -> None:
    """Refuse a message tag that SES would refuse.

    Raises:
        InvalidMessage: name or value; the text says which.
    """
    for what, text in (("name", name), ("value", value)):
        if not _TAG.fullmatch(text):
            raise InvalidMessage(
                f"The {what} {text!r} of the message tag {name!r} must be 1 to 256 ASCII "
                "letters, digits, underscores or dashes: SES takes no others."
            )


class SESClient:
    """SES for one region and account: one client of boto3 a process, for many threads.

    Args: ``None`` leaves a value to boto3's own ways of finding it; ``concurrency`` is the
    number of connections that are kept; timeouts are seconds. ``is_lean``: messages are sent
    without boto3's own machinery where that comes to the same (``lean``); ``upload_seconds``: what
    the writing of a request may take there. boto3 knows no such limit.
    """

    def __init__(
        self,
        *,
        region: str | None,
        endpoint_url: str | None,
        access_key_id: str | None,
        secret_access_key: str | None,
        session_token: str | None = None,
        configuration_set: str | None,
        tenant: str | None,
        contact_list: str | None = None,
        concurrency: int,
        connect_timeout: float,
        read_timeout: float,
        is_lean: bool = True,
        upload_seconds: float = 60.0,
    ) -> None:
        self._make: Callable[[], tuple[Any, Any]] = partial(
            _make_client,
            region=region,
            endpoint_url=endpoint_url,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            session_token=session_token,
            concurrency=concurrency,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
        )
        self._extra: dict[str, Any] = {
            name: value
            for name, value in (
                ("ConfigurationSetName", configuration_set),
                ("TenantName", tenant),
            )
            if value
        }
        self._contact_list = contact_list
        self._lock = threading.Lock()
        self._client: Any = None
        self._credentials: Any = None
        self._is_lean = is_lean
        self._upload_seconds = upload_seconds
        self._send_email: Callable[..., Steps[Any]] | None = None
        self._pid = 0

    def send(self, envelope: Envelope, begin: Callable[[], None] = at_once) -> str:
        """Send; return SES's message id. ``begin`` is called when all is ready to be sent.

        Raises:
            DeliveryError: the child says what is to be done.
        """
        return run(self.steps(envelope, begin))

    def steps(self, envelope: Envelope, begin: Callable[[], None]) -> Steps[str]:
        """As ``send``, in steps (``calls``): it waits for SES without a thread."""
        extra = dict(self._extra)
        if self._contact_list and envelope.topic is not None:
            extra["ListManagementOptions"] = {"ContactListName": self._contact_list} | (
                {"TopicName": envelope.topic} if envelope.topic else {}
            )
        with ExitStack() as call:

            def begin_call() -> None:
                begin()
                call.enter_context(telemetry.calling_ses())

            with self._translating():
                client = self._get_client()
                answer = yield from (self._send_email or self._choose(client))(
                    begin_call,
                    # No FromEmailAddress: with raw content SES writes it over the message's own
                    # From, display name and all. The envelope's sender is SES's own anyway.
                    # All recipients, whatever their kind: who sees whom is in the headers.
                    Destination={"ToAddresses": list(envelope.recipients)},
                    Content={"Raw": {"Data": envelope.mime}},
                    EmailTags=[
                        {"Name": name, "Value": value} for name, value in envelope.tags.items()
                    ],
                    **extra,
                )
            if not answer.get("MessageId"):
                raise InDoubt("SES answered 200 without a message id.")
            return str(answer["MessageId"])

    def get_account(self) -> Account:
        """Ask for the account's limits, and get ready to send.

        Raises:
            SenderDenied: these credentials may not ask (``ses:GetAccount``).
            DeliveryError: as ``send``, but never ``InDoubt``: nothing was changed.
        """
        try:
            with self._translating():
                answer = self._get_client().get_account()
        except InDoubt as error:
            raise Unavailable(str(error)) from error
        if self._send_email is None:
            self._choose(self._client)  # it takes longer than many a slot of time
        quota = answer.get("SendQuota", {})
        return Account(
            max_send_rate=float(quota.get("MaxSendRate", 1.0)),
            max_24_hour_send=float(quota.get("Max24HourSend", -1.0)),
            sent_last_24_hours=float(quota.get("SentLast24Hours", 0.0)),
            sending_enabled=bool(answer.get("SendingEnabled", True)),
            production_access=bool(answer.get("ProductionAccessEnabled", False)),
            enforcement_status=str(answer.get("EnforcementStatus", "")),
        )

    def close(self) -> None:
        """Close the kept connections. The client can be used again."""
        with self._lock:
            client, self._client, self._send_email = self._client, None, None
            if client is not None and self._pid == os.getpid():
                client.close()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        """What boto3 raises becomes what it means."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            answer = _translate_answer(error.response)
            if _get_code(error.response) == "NotFoundException" and not (
                self._extra or self._contact_list
            ):
                # It is a header of the message that names a configuration set.
                answer = Rejected(str(answer))
            raise answer from error
        except BotoCoreError as error:
            raise _translate_failure(error) from error
        except Exception as error:
            if not _went_through(error, "botocore.parsers", "parse"):
                raise
            # Something that botocore stumbles over, such as a gateway's page.
            raise InDoubt(f"An answer that can't be read, {type(error).__name__}") from error

    def _get_client(self) -> Any:
        if self._client is None or self._pid != os.getpid():
            with self._lock:
                if self._client is None or self._pid != os.getpid():
                    self._client, self._credentials = self._make()
                    self._send_email, self._pid = None, os.getpid()
        return self._client

    def _choose(self, client: Any) -> Callable[..., Steps[Any]]:
        """How messages are sent: once there are credentials, it can be told."""
        with self._lock:
            if self._send_email is None:
                lean = self._make_lean(client) if self._is_lean else None
                logger.info("Mail is sent by %s.", "boto3" if lean is None else "the lean sender")
                self._send_email = partial(_send_by, client) if lean is None else lean
        return self._send_email

    def _make_lean(self, client: Any) -> Callable[..., Steps[Any]] | None:
        from connect_mailer.sending.lean import make_lean

        try:
            return make_lean(client, self._credentials, self._upload_seconds)
        except (AttributeError, KeyError, TypeError, ValueError):
            # A botocore that is made differently inside: boto3 knows its way.
            logger.warning("The lean sender doesn't know this botocore.", exc_info=True)
            return None


def _make_client(
    *,
    region: str | None,
    endpoint_url: str | None,
    access_key_id: str | None,
    secret_access_key: str | None,
    session_token: str | None,
    concurrency: int,
    connect_timeout: float,
    read_timeout: float,
) -> tuple[Any, Any]:
    """A client of boto3, and the credentials of its session."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import InvalidRegionError

    # A session of its own: boto3's default session is not safe for threads.
    session = boto3.session.Session(
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key,
        aws_session_token=session_token,
        region_name=region,
    )
    try:
        client = session.client(
            "sesv2",
            region_name=session.region_name or LEGACY_REGION,
            endpoint_url=endpoint_url,
            config=Config(
                # Each attempt has to pay for its tokens, so none is boto3's own.
                retries={"total_max_attempts": 1, "mode": "standard"},
                max_pool_connections=concurrency,
                connect_timeout=connect_timeout,
                read_timeout=read_timeout,
                tcp_keepalive=True,
            ),
        )
    except InvalidRegionError as error:
        raise AccountProblem(f"The region of SES can't be used: {error}") from error
    except ValueError as error:
        raise AccountProblem(
            f'CONNECT_MAILER["SES_ENDPOINT_URL"] can\'t be used: {error}'
        ) from error
    return client, session.get_credentials()


def _send_by(client: Any, begin: Callable[[], None], **call: Any) -> Steps[Any]:
    yield from ()  # it waits in this thread
    with blocking():
        begin()
        return client.send_email(**call)


def _get_code(response: Mapping[str, Any]) -> str:
    return str(response.get("Error", {}).get("Code", ""))


def _translate_answer(response: Mapping[str, Any]) -> DeliveryError:
    """What an error that was answered means."""
    code = _get_code(response)
    words = str(response.get("Error", {}).get("Message", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    text = _clean(f"{code}: {words}")
    for phrase, meaning in _WORDS:
        if words.lower().startswith(phrase):
            return meaning(text)
    if code in _MEANINGS:
        return _MEANINGS[code](text)
    if status == 429:
        return Throttled(text)
    if status in (502, 504) or 200 <= status < 300:
        # A gateway, which asked and got no answer; or an error in a good answer's clothes.
        return InDoubt(text)
    if status == 403:
        return AccountProblem(text)
    # 5xx; a proxy's answer, which has no code of SES (boto3 then gives the status for it); a
    # code that SES did not have when this was written. Tried again, and failed with these
    # words when the attempts are spent: only what is known to be for good is failed at once.
    return Unavailable(text)


def _translate_failure(error: Exception) -> DeliveryError:
    """What it means that there was no answer, or none that could be read."""
    from botocore import exceptions

    text = _clean(f"{type(error).__name__}: {error}")
    if isinstance(error, exceptions.ParamValidationError):
        return Rejected(text)
    if isinstance(
        error,
        exceptions.EndpointConnectionError
        | exceptions.ConnectTimeoutError
        | exceptions.ProxyConnectionError,
    ) or _went_through(error, "urllib3.connection", "connect"):
        # While TLS is negotiated, a reset or a timeout has no name of its own.
        return Unavailable(text)
    if isinstance(
        error, exceptions.HTTPClientError | exceptions.IncompleteReadError | exceptions.SSLError
    ):
        # A read timeout, a closed connection, half an answer: the request had been written.
        return InDoubt(text)
    # What boto3 raises before there is a request: credentials, profile, region, endpoint.
    return AccountProblem(text)


def _went_through(error: BaseException | None, module: str, function: str) -> bool:
    """Whether an error, or what it came from, was raised in a function: no type may say it."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if (frame.f_globals.get("__name__"), frame.f_code.co_name) == (module, function):
                return True
        error = error.__cause__ or error.__context__
    return False


def _clean(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)[:_MAX_WORDS]

"""A local Amazon SES: speaks SES's own HTTP to an unmodified boto3 and keeps what it accepts.

    with LocalSES(rate=50) as ses:
        client = boto3.client("sesv2", endpoint_url=ses.url, region_name="us-east-1", ...)
        client.send_email(...)
        [mail] = ses.mailbox()

It knows ``SendEmail`` with raw content and ``GetAccount`` of the SES API v2, ``GetSendQuota``
of v1, and what an operator asks of the account (``account``); it paces, refuses and breaks as
SES and networks do. ``python -m connect_mailer.testing.ses`` runs it in a process of its own,
which ``RemoteLocalSES`` starts and steers.

Source: https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendEmail.html
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from email.message import EmailMessage
from email.parser import BytesHeaderParser, BytesParser
from email.policy import SMTP, compat32
from email.utils import getaddresses
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import parse_qs, urlsplit

from connect_mailer.testing.account import LocalAccount, SESError, not_allowed, refuse_xml, xml
from connect_mailer.testing.http import Answer, Ending, HTTPServer, Request

MAX_RECIPIENTS: Final = 50
MAX_MESSAGE_BYTES: Final = 40 * 1024 * 1024
DAY_SECONDS: Final = 86_400.0
SIMULATOR_DOMAIN: Final = "simulator.amazonses.com"

_FROM = re.compile(rb"^from:[ \t]*((?:[^\r\n]|\r?\n[ \t])*)\r?\n", re.IGNORECASE | re.MULTILINE)
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_TAG = re.compile(r"[A-Za-z0-9_-]{1,256}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the account behaves; ``LocalSES.configure`` changes it while it runs."""

    rate: float = 1000.0
    """Recipients per second."""
    burst_seconds: float = 1.0
    """Seconds' worth of recipients that a rested account takes at once (at least one).

    As with SES, a call goes through as long as one is left, whatever it costs; what it took
    too much has to be waited for.
    Source: "What happens when you reach your Amazon SES sending limits", SES Developer Guide.
    """
    daily_quota: float = 1_000_000.0
    """Recipients in any 24 hours (the mailbox simulator's don't count); -1: unlimited."""
    latency_seconds: float = 0.0
    """From the decision to the answer."""
    verified_identities: tuple[str, ...] | None = None
    """Addresses and domains that may be senders (in the sandbox: also be written to).

    ``None``: all.
    """
    configuration_sets: tuple[str, ...] | None = None
    """Those that exist; ``None``: all."""
    production_access: bool = True
    """Whether the account has left the sandbox."""
    sending_paused: bool = False
    suspended: bool = False
    may_get_account: bool = True
    """Whether the credentials allow ``GetAccount`` and ``GetSendQuota``."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to the next calls that it fits, instead of what else would.

    With ``code`` or ``status`` the answer is that error. ``lost`` closes the connection
    without an answer (``cut``: in the middle of it); ``before`` it is accepted, or ``after``.
    """

    code: str = ""
    message: str = "Injected by a test."
    status: int = 0
    lost: Literal["", "before", "after", "cut"] = ""
    reset: bool = False
    """Whether a lost connection ends by a reset instead of an orderly close."""
    delay_seconds: float = 0.0
    times: int | None = 1
    """How many calls it meets; ``None``: all, until ``clear_faults()``."""
    recipient: str = ""
    """Only calls that write to this address."""
    sender: str = ""
    """Only calls that come from this address."""
    operation: Literal["SendEmail", "GetAccount"] = "SendEmail"


@dataclass(frozen=True, kw_only=True)
class Mail:
    """One call that was accepted: one message in the mailbox."""

    message_id: str
    received_at: datetime
    sender: str
    recipients: tuple[str, ...]
    mime: bytes = field(repr=False)
    tags: Mapping[str, str]
    configuration_set: str
    tenant: str
    contact_list: str = ""
    topic: str = ""
    access_key_id: str = ""
    """Whose call it was."""
    signed_at: datetime | None = None
    """When it began, to the second, by the caller's clock."""
    lost: str = ""
    """What became of the answer: see ``Fault``."""

    @property
    def message(self) -> EmailMessage:
        """The message, parsed."""
        return BytesParser(policy=SMTP).parsebytes(self.mime)


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What came so far."""

    accepted: int
    """Calls of ``SendEmail`` that were accepted, whether or not the answer got through."""
    recipients: int
    """Recipients of those."""
    throttled: int
    """Calls refused because they came too fast."""
    refused: int
    """Calls that got any other error."""
    connections_opened: int
    achieved_rate: float
    """Recipients per second, from the first accepted call to the last; 0 with fewer than two."""


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One call of ``SendEmail``, as far as it could be understood."""

    sender: str
    recipients: tuple[str, ...]
    mime: bytes
    tags: Mapping[str, str]
    configuration_set: str
    tenant: str
    contact_list: str
    topic: str


class LocalSES:
    """An SES account of one's own, on a port of 127.0.0.1; a context manager.

    Keyword arguments are those of ``Settings``. ``on_accepted`` is called with each message,
    in the thread of its connection. ``clock`` returns seconds and is what the rate and the
    quota are measured by.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        on_accepted: Callable[[Mail], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        **settings: Any,
    ) -> None:
        self.settings = Settings(**settings)
        self.account = LocalAccount()
        self._on_accepted = on_accepted
        self._clock = clock
        self._lock = threading.Lock()
        self._server = HTTPServer(self._answer, port=port)
        self.url = self._server.url
        self.clear()

    # How it is run

    def start(self) -> Self:
        """Begin to answer."""
        self._server.start()
        return self

    def close(self) -> None:
        """Stop answering and close every connection."""
        self._server.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close_connections(self) -> None:
        """Close every open connection, as SES does with idle ones."""
        self._server.close_connections()

    # How it is steered

    def configure(self, **settings: Any) -> None:
        """Change settings from now on."""
        with self._lock:
            self.settings = replace(self.settings, **settings)

    def inject(self, fault: Fault) -> None:
        """Let a fault happen; of several that fit a call, the oldest does."""
        with self._lock:
            self._faults.append(fault)

    def clear_faults(self) -> None:
        """Let no injected fault happen any more."""
        with self._lock:
            self._faults.clear()

    def clear(self) -> None:
        """Forget mailbox, counters, faults and what was spent of rate and quota."""
        with self._lock:
            self._faults: list[Fault] = []
            self._mailbox: list[Mail] = []
            self._spent: deque[tuple[float, int]] = deque()
            self._spent_today = 0
            self._paid_until = float("-inf")
            self._recipients = self._throttled = self._refused = 0
            self._first: tuple[float, int] | None = None
            self._last = 0.0

    # What can be read

    def mailbox(self, *, since: int = 0) -> list[Mail]:
        """Accepted messages in order, without the first ``since``."""
        with self._lock:
            return self._mailbox[since:]

    def stats(self) -> Stats:
        """Counters."""
        with self._lock:
            rate = 0.0
            if self._first is not None and self._last > self._first[0]:
                rate = (self._recipients - self._first[1]) / (self._last - self._first[0])
            return Stats(
                accepted=len(self._mailbox),
                recipients=self._recipients,
                throttled=self._throttled,
                refused=self._refused,
                connections_opened=self._server.connections_opened,
                achieved_rate=rate,
            )

    # What it answers

    def _answer(self, request: Request) -> Answer:
        path = urlsplit(request.path).path
        if path.startswith("/_local/"):
            return self._control(request, path.removeprefix("/_local/"))
        if not request.headers.get("authorization", "").startswith("AWS4-HMAC-SHA256 "):
            return _error(
                SESError("MissingAuthenticationTokenException", "Missing Authentication Token")
            )
        match request.method, path:
            case "POST", "/v2/email/outbound-emails":
                return self._send_email(request)
            case "GET", "/v2/email/account":
                return self._get_account()
            case "POST", "/" if b"Action=GetSendQuota" in request.body:
                return self._get_send_quota()
        return self.account.answer(request)

    def _send_email(self, request: Request) -> Answer:
        fault = None
        try:
            call = _parse_send_email(request.body)
            fault = self._take_fault("SendEmail", call)
            if fault is not None and (fault.lost == "before" or fault.code or fault.status):
                return self._break(fault)
            self.account.check_allowed("ses:SendEmail")
            mail = self._accept(
                call, lost=fault.lost if fault else "", **_read_signature(request.headers)
            )
        except SESError as error:
            with self._lock:
                if error.message == _TOO_FAST:
                    self._throttled += 1
                else:
                    self._refused += 1
            return _error(error, delay_seconds=self.settings.latency_seconds)
        if self._on_accepted is not None:
            self._on_accepted(mail)
        answer = _json({"MessageId": mail.message_id}, self.settings.latency_seconds)
        if fault is None:
            return answer
        ending = Ending.KEEP
        if fault.lost == "cut":
            ending = Ending.CUT
        elif fault.lost == "after":
            ending = Ending.RESET if fault.reset else Ending.DROP
        return replace(
            answer, ending=ending, delay_seconds=answer.delay_seconds + fault.delay_seconds
        )

    def _accept(self, call: _Call, **about: Any) -> Mail:
        """Put a call into the mailbox, or raise what SES would answer."""
        settings = self.settings
        _check(call, settings)
        cost = len(call.recipients)
        counted = sum(not _is_simulator(address) for address in call.recipients)
        with self._lock:
            now = self._clock()
            while self._spent and self._spent[0][0] <= now - DAY_SECONDS:
                self._spent_today -= self._spent.popleft()[1]
            if 0 <= settings.daily_quota <= self._spent_today and counted:
                raise SESError("TooManyRequestsException", "Daily message quota exceeded.")
            # A bucket as the time until which it is paid for: it holds burst_seconds.
            one = 1 / settings.rate
            start = max(self._paid_until, now)
            if start - now > max(settings.burst_seconds, one) - one + 1e-9:
                raise SESError("TooManyRequestsException", _TOO_FAST)
            self._paid_until = start + cost * one
            self._spent.append((now, counted))
            self._spent_today += counted
            self._recipients += cost
            self._first = self._first or (now, cost)
            self._last = now
            mail = Mail(
                message_id=_message_id(), received_at=datetime.now(UTC), **vars(call), **about
            )
            self._mailbox.append(mail)
        return mail

    def _get_account(self) -> Answer:
        if fault := self._take_fault("GetAccount", None):
            return self._break(fault)
        settings = self.settings
        try:
            self.account.check_allowed("ses:GetAccount")
            if not settings.may_get_account:
                raise not_allowed("ses:GetAccount")
        except SESError as error:
            return _error(error)
        return _json(
            {
                "DedicatedIpAutoWarmupEnabled": False,
                "EnforcementStatus": "SHUTDOWN" if settings.suspended else "HEALTHY",
                "ProductionAccessEnabled": settings.production_access,
                "SendQuota": self._quota(),
                "SendingEnabled": not (settings.sending_paused or settings.suspended),
                "SuppressionAttributes": {"SuppressedReasons": []},
            },
            settings.latency_seconds,
        )

    def _quota(self) -> dict[str, float]:
        with self._lock:
            since = self._clock() - DAY_SECONDS
            return {
                "Max24HourSend": self.settings.daily_quota,
                "MaxSendRate": self.settings.rate,
                "SentLast24Hours": float(sum(count for at, count in self._spent if at > since)),
            }

    def _get_send_quota(self) -> Answer:
        """The API v1's way to ask for the same."""
        try:
            self.account.check_allowed("ses:GetSendQuota")
            if not self.settings.may_get_account:
                raise not_allowed("ses:GetSendQuota")
        except SESError as error:
            return refuse_xml(error.code.removesuffix("Exception"), error.message, error.status)
        values = "".join(f"<{key}>{value}</{key}>" for key, value in self._quota().items())
        return xml(f"<GetSendQuotaResult>{values}</GetSendQuotaResult>", "GetSendQuotaResponse")

    def _take_fault(self, operation: str, call: _Call | None) -> Fault | None:
        with self._lock:
            for index, fault in enumerate(self._faults):
                if fault.operation != operation or (
                    call is not None
                    and (
                        fault.recipient not in ("", *call.recipients)
                        or fault.sender not in ("", call.sender)
                    )
                ):
                    continue
                if fault.times is not None:
                    if fault.times <= 1:
                        del self._faults[index]
                    else:
                        self._faults[index] = replace(fault, times=fault.times - 1)
                return fault
        return None

    def _break(self, fault: Fault) -> Answer:
        """The answer, or none, of a call that a fault keeps from being accepted."""
        if fault.lost:
            ending = Ending.RESET if fault.reset else Ending.DROP
            return Answer(ending=ending, delay_seconds=fault.delay_seconds)
        with self._lock:
            self._refused += 1
        return _error(
            SESError(fault.code, fault.message, status=fault.status),
            delay_seconds=fault.delay_seconds,
        )

    # Steered over HTTP, by RemoteLocalSES

    def _control(self, request: Request, name: str) -> Answer:
        values = json.loads(request.body or b"{}")
        match request.method, name:
            case "GET", "mailbox":
                query = parse_qs(urlsplit(request.path).query)
                mails = self.mailbox(since=int(query.get("since", ["0"])[0]))
                return _json([mail_to_json(mail) for mail in mails])
            case "GET", "stats":
                return _json(asdict(self.stats()))
            case "GET", "settings":
                return _json(asdict(self.settings))
            case "POST", "settings":
                self.configure(**values)
            case "POST", "faults":
                self.inject(Fault(**values))
            case "DELETE", "faults":
                self.clear_faults()
            case "POST", "clear":
                self.clear()
            case "POST", "close_connections":
                self.close_connections()
            case _:
                return Answer(status=404)
        return _json({})


_TOO_FAST: Final = "Maximum sending rate exceeded."


def _read_signature(headers: Mapping[str, str]) -> dict[str, Any]:
    """Who signed a request, and when; nothing of it is checked."""
    key = headers.get("authorization", "").partition("Credential=")[2].partition("/")[0]
    try:
        signed_at = datetime.strptime(headers.get("x-amz-date", ""), "%Y%m%dT%H%M%S%z")
    except ValueError:
        return {"access_key_id": key}
    return {"access_key_id": key, "signed_at": signed_at}


def _parse_send_email(body: bytes) -> _Call:
    """Understand a call, or raise what SES would answer."""
    try:
        request = json.loads(body)
        mime = base64.b64decode(request["Content"]["Raw"]["Data"], validate=True)
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise SESError("BadRequestException", "Only raw content is understood here.") from error
    end = match.end() if (match := _HEADER_END.search(mime)) else len(mime)
    header = mime[:end]
    if sender := request.get("FromEmailAddress"):
        # SES writes it over the message's own From, display name and all.
        mime = b"From: " + sender.encode() + b"\r\n" + _FROM.sub(b"", header) + mime[end:]
        found = [sender.encode()]
    else:
        found = _FROM.findall(header)
    if not found:
        raise SESError("BadRequestException", "Missing required header 'From'.")
    if len(found) > 1:
        raise SESError("BadRequestException", "Duplicate header 'From'.")
    management = request.get("ListManagementOptions", {})
    destination = request.get("Destination")
    recipients = (
        [
            address
            for kind in ("To", "Cc", "Bcc")
            for address in destination.get(f"{kind}Addresses", ())
        ]
        if destination
        else _header_recipients(mime)
    )
    return _Call(
        sender=_addr_spec(found[0].decode("latin-1")),
        recipients=tuple(_addr_spec(address) for address in recipients),
        mime=mime,
        tags={tag["Name"]: tag["Value"] for tag in request.get("EmailTags", ())},
        configuration_set=request.get("ConfigurationSetName", ""),
        tenant=request.get("TenantName", ""),
        contact_list=management.get("ContactListName", ""),
        topic=management.get("TopicName", ""),
    )


def _header_recipients(mime: bytes) -> list[str]:
    headers = BytesHeaderParser(policy=compat32).parsebytes(mime)
    values = [str(value) for name in ("To", "Cc", "Bcc") for value in headers.get_all(name, [])]
    return [address for _, address in getaddresses(values)]


def _addr_spec(text: str) -> str:
    if "<" not in text:
        return text.strip()
    return getaddresses([text])[0][1]


def _check(call: _Call, settings: Settings) -> None:
    """Raise what SES would answer to a call, its pace aside."""
    if not call.recipients:
        raise SESError("BadRequestException", "Missing final '@domain'.")
    if len(call.recipients) > MAX_RECIPIENTS:
        raise SESError("BadRequestException", f"Recipient count exceeds {MAX_RECIPIENTS}.")
    for address in (call.sender, *call.recipients):
        local, at, domain = address.rpartition("@")
        if not at or not local or not domain:
            raise SESError("BadRequestException", "Missing final '@domain'.")
        if not address.isascii():
            raise SESError("BadRequestException", "Local address contains illegal character.")
    for name, value in call.tags.items():
        for part in (name, value):
            if not _TAG.fullmatch(part):
                raise SESError(
                    "BadRequestException",
                    f"Invalid tag <{part}>: only alphanumeric ASCII characters, '_', and '-' "
                    "are allowed, 256 at most.",
                )
    if len(call.mime) > MAX_MESSAGE_BYTES:
        raise SESError(
            "BadRequestException",
            f"Message length is more than {MAX_MESSAGE_BYTES} bytes long: '{len(call.mime)}'.",
        )
    sets = settings.configuration_sets
    if call.configuration_set and sets is not None and call.configuration_set not in sets:
        raise SESError(
            "NotFoundException", f"Configuration set <{call.configuration_set}> does not exist."
        )
    if settings.suspended:
        raise SESError("AccountSuspendedException", "Sending suspended for this account.")
    if settings.sending_paused:
        raise SESError("SendingPausedException", "Sending paused for this account.")
    must_be_verified = [call.sender]
    if not settings.production_access:
        must_be_verified += [one for one in call.recipients if not _is_simulator(one)]
    if failed := [one for one in must_be_verified if not _is_verified(one, settings)]:
        raise SESError(
            "MessageRejected",
            "Email address is not verified. The following identities failed the check in region "
            f"US-EAST-1: {', '.join(failed)}",
        )


def _is_verified(address: str, settings: Settings) -> bool:
    identities: Iterable[str] | None = settings.verified_identities
    return identities is None or address in identities or address.rpartition("@")[2] in identities


def _is_simulator(address: str) -> bool:
    return address.lower().endswith("@" + SIMULATOR_DOMAIN)


def _message_id() -> str:
    """An id of the length and form of SES's own."""
    return f"01000{time.time_ns() // 1_000_000:011x}-{uuid.uuid4()}-000000"


def _json(value: object, delay_seconds: float = 0.0) -> Answer:
    return Answer(
        body=json.dumps(value).encode(),
        headers={"Content-Type": "application/json", "x-amzn-RequestId": str(uuid.uuid4())},
        delay_seconds=delay_seconds,
    )


def _error(error: SESError, *, delay_seconds: float = 0.0) -> Answer:
    answer = replace(
        _json({"message": error.message}, delay_seconds),
        status=error.status,
    )
    if not error.code:  # not SES, but something on the way to it
        return replace(answer, body=b"<html></html>", headers={"Content-Type": "text/html"})
    return replace(answer, headers={**answer.headers, "x-amzn-ErrorType": error.code})


def mail_to_json(mail: Mail) -> dict[str, Any]:
    """A message as the control interface writes it."""
    return {
        **vars(mail),
        "received_at": mail.received_at.isoformat(),
        "signed_at": mail.signed_at and mail.signed_at.isoformat(),
        "mime": base64.b64encode(mail.mime).decode("ascii"),
    }


def mail_from_json(value: dict[str, Any]) -> Mail:
    """A message as the control interface wrote it."""
    return Mail(
        **{
            **value,
            "received_at": datetime.fromisoformat(value["received_at"]),
            "signed_at": value["signed_at"] and datetime.fromisoformat(value["signed_at"]),
            "recipients": tuple(value["recipients"]),
            "mime": base64.b64decode(value["mime"]),
        }
    )


if __name__ == "__main__":
    from connect_mailer.testing.ses_process import main

    main()

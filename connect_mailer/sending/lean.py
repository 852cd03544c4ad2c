"""``SendEmail`` without boto3's client around it: the same request at a fraction of the cost.

What a request looks like, boto3 says: its client is asked for one once, which is not sent.
Endpoint, region, headers and what is signed are taken from that, and a request made here must
come out the same. Where it does not, or where somebody's hooks, a proxy or a CA of the site's own
have a part in it, boto3 goes on sending. Credentials, the first signature of a day, the parsing of
errors, connections and TLS are those of boto3's client and of botocore's and urllib3's own code.
"""

from __future__ import annotations

import base64
import hmac
import json
import random
import re
import uuid
from collections.abc import Mapping
from hashlib import sha256
from time import gmtime, strftime
from types import FunctionType, SimpleNamespace
from typing import Any, Final, cast

from botocore import exceptions, parsers
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse, HeadersDict
from botocore.client import BaseClient

from connect_mailer.sending.calls import Steps, blocking
from connect_mailer.sending.exchange import Begin, Exchange

# What a call passes in boto3. A listener that isn't botocore's own may do anything.
_EVENTS: Final = (
    "provide-client-params", "before-parameter-build", "before-endpoint-resolution",
    "before-call", "request-created", "choose-signer", "before-sign", "before-send",
    "response-received", "before-parse", "needs-retry", "after-call", "after-call-error",
)  # fmt: skip
_PROBE: Final[dict[str, Any]] = {
    "Destination": {"ToAddresses": ["probe@example.com"]},
    "Content": {"Raw": {"Data": b"\xff"}},
    "EmailTags": [{"Name": "probe", "Value": "probe"}],
}
_CHANGES: Final = re.compile(
    "amz-sdk-invocation-id|authorization|content-length|x-amz-(date|security-token)", re.IGNORECASE
)
_STAYS: Final = re.compile("amz-sdk-request|content-type|user-agent", re.IGNORECASE)
_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(.+)/\d{8}/(.+)/(.+)/aws4_request, SignedHeaders=(.+), Signature="
)
# Of a large message, so much is encoded at a time: it is in memory once.
_PIECE_BYTES: Final = 256 * 1024


def make_lean(client: Any, credentials: Any, upload_seconds: float) -> LeanSender | None:
    """``client.send_email`` made lean; ``None``: something about ``client`` is unusual.

    ``credentials`` are those of the client's session. ``upload_seconds`` is what the writing of one
    request may take; no answer in the client's read timeout, or no progress, ends a call as well.

    Raises:
        BotoCoreError: there can be no request, for want of credentials or a region.
    """
    if _has_hooks(client):
        return None
    recorded = _record(client)
    scope = _AUTHORIZATION.match(_to_text(recorded.headers["Authorization"]))
    is_usual = recorded.method == "POST" and re.match("https?://[^@#]+$", recorded.url)
    is_known = all(_CHANGES.fullmatch(k) or _STAYS.fullmatch(k) for k in recorded.headers)
    if not scope or not is_usual or not is_known or not _goes_straight(client, recorded.url):
        return None
    lean = LeanSender(client, credentials, recorded, scope, upload_seconds)
    headers, body = lean.make_request(**_PROBE)
    is_same = body == recorded.body and _compare(headers) == _compare(recorded.headers)
    return lean if is_same else None


def _has_hooks(client: Any) -> bool:
    """Whether anything but botocore itself listens to calls, or is wrapped around them."""
    call = vars(BaseClient)["_make_api_call"]
    if not isinstance(call, FunctionType):
        return True
    find = client.meta.events._emitter._handlers.prefix_search  # noqa: SLF001
    found = [handler for event in _EVENTS for handler in find(f"{event}.sesv2.SendEmail")]
    names = [getattr(one, "func", one).__module__ for one in found]
    return not all(n.startswith("botocore.") for n in [call.__globals__["__name__"], *names])


def _goes_straight(client: Any, url: str) -> bool:
    """Whether no proxy is on the way, and TLS is as it is for everybody."""
    http = client._endpoint.http_session  # noqa: SLF001
    is_usual = (http._verify, http._cert_file) == (True, None) or url.startswith("http:")  # noqa: SLF001
    return is_usual and not http._proxy_config.proxy_url_for(url)  # noqa: SLF001


def _record(client: Any) -> Any:
    """The request that boto3 would write for the probe."""
    requests = []

    def take(request: Any, **kwargs: Any) -> AWSResponse:
        requests.append(request)
        return AWSResponse(request.url, 200, cast(Any, {}), SimpleNamespace(stream=tuple))

    client.meta.events.register_first("before-send.sesv2.SendEmail", take)
    try:
        client.send_email(**_PROBE)
    finally:
        client.meta.events.unregister("before-send.sesv2.SendEmail", take)
    return requests[0]


def _to_text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _compare(headers: Mapping[str, str | bytes]) -> object:
    found = _AUTHORIZATION.match(_to_text(headers["Authorization"]))
    return found and found.groups(), {
        name: _CHANGES.fullmatch(name) is not None or _to_text(headers[name]) for name in headers
    }


class _Signer:
    """Signs as botocore does, and keeps of its first signature what is the same all day.

    ``date`` is that of the first one, and ``signs`` for whom and on which day it is good.
    """

    def __init__(self, credentials: Any, scope: re.Match[str], request: Any) -> None:
        auth = SigV4Auth(credentials, scope[3], scope[2])
        auth.add_auth(request)
        self._headers = dict(request.headers.items())
        self.date = self._headers["X-Amz-Date"]
        self.signs = (credentials, self.date[:8])
        del request.headers["Authorization"]
        canonical = auth.canonical_request(request).removesuffix(sha256(request.body).hexdigest())
        self._canonical = canonical.split(f":{self.date}\n")
        self._scope = auth.credential_scope(request)
        # Source: IAM user guide, "Create a signed AWS API request".
        key = f"AWS4{credentials.secret_key}".encode()
        for part in self._scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        # A copy of it lets no other thread go first, as a digest at once does.
        self._hmac = hmac.new(key, digestmod=sha256)
        self._start = self._headers["Authorization"].rpartition("=")[0]
        if self.sign(request.body, self.date) != self._headers:
            raise ValueError("botocore signs in another way.")

    def sign(self, body: bytes | bytearray, date: str) -> dict[str, str]:
        """The headers that are signed, and the signature."""
        canonical = f":{date}\n".join(self._canonical) + sha256(body).hexdigest()
        digest = sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{date}\n{self._scope}\n{digest}".encode()
        signed = self._hmac.copy()
        signed.update(text)
        value = f"{self._start}={signed.hexdigest()}"
        return {**self._headers, "X-Amz-Date": date, "Authorization": value}


class LeanSender:
    """Calls of ``SendEmail``, in steps (``calls``): takes and returns what boto3 does.

    Raises:
        ClientError: as boto3, what SES answered.
        Unavailable: SES did not get the whole request, so it can't have taken the message.
        InDoubt: there was no answer to it.
    """

    def __init__(
        self,
        client: Any,
        credentials: Any,
        request: Any,
        scope: re.Match[str],
        upload_seconds: float,
    ) -> None:
        model, http = client.meta.service_model, client._endpoint.http_session  # noqa: SLF001
        self._parser = parsers.create_parser(model.resolved_protocol)
        self._shape = model.operation_model("SendEmail").output_shape
        self._url, self._credentials, self._scope = request.url, credentials, scope
        kept = {k: _to_text(v) for k, v in request.headers.items() if _STAYS.fullmatch(k)}
        signed = scope[4].split(";")
        self._signer: _Signer | None = None
        self._signed = {name: value for name, value in kept.items() if name.lower() in signed}
        self._unsigned = {name: value for name, value in kept.items() if name not in self._signed}
        pool = http._manager.connection_from_url(request.url)  # noqa: SLF001
        http._setup_ssl_cert(pool, request.url, http._verify)  # noqa: SLF001
        self._exchange = Exchange(
            pool,
            request.url,
            read_seconds=client.meta.config.read_timeout,
            upload_seconds=upload_seconds,
        )

    def __call__(self, begin: Begin, **call: Any) -> Steps[Mapping[str, Any]]:
        """As ``send_email`` of boto3's client; ``begin`` is called before anything is sent."""
        answer = yield from self._exchange.post(*self.make_request(**call), begin)
        if answer.status == 200:
            try:
                return {"MessageId": json.loads(answer.body)["MessageId"]}
            except (ValueError, KeyError, TypeError):
                return {}
        said = {
            "status_code": answer.status,
            "headers": HeadersDict(answer.headers),
            "body": answer.body,
        }
        raise exceptions.ClientError(self._parser.parse(said, self._shape), "SendEmail")

    def make_request(self, **call: Any) -> tuple[Any, bytearray]:
        """Headers and body for the arguments of ``send_email``."""
        text = json.dumps({**call, "Content": {"Raw": {"Data": ""}}})
        # No text within has these quotes: they would be escaped.
        before, quote, after = text.partition('"Data": "')
        mime, body = call["Content"]["Raw"]["Data"], bytearray((before + quote).encode())
        for start in range(0, len(mime), 3 * _PIECE_BYTES):
            body += base64.b64encode(mime[start : start + 3 * _PIECE_BYTES])
        body += after.encode()
        # To tell calls apart; one of the system's would let another thread go first.
        call_id = uuid.UUID(int=random.getrandbits(128), version=4)
        more = {"amz-sdk-invocation-id": str(call_id), "Content-Length": str(len(body))}
        signer, date = self._signer, strftime("%Y%m%dT%H%M%SZ", gmtime())
        with blocking():  # where they are to be refreshed
            credentials = self._credentials.get_frozen_credentials()
        if signer is None or signer.signs != (credentials, date[:8]):
            request = AWSRequest("POST", self._url, self._signed, b"{}")
            self._signer = signer = _Signer(credentials, self._scope, request)
            date = signer.date
        return signer.sign(body, date) | self._unsigned | more, body

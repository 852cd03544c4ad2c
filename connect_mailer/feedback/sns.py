"""Whether a request really comes from Amazon SNS, and from a topic of ours.

Nothing here touches the database or the settings: bytes go in, a ``Notification`` comes out,
or ``NotificationRefused`` (it is forged, foreign or malformed) or ``NotificationUndecided``
(nobody can tell now). The cheap questions come first, so that a flood of forgeries costs
little, and nothing is downloaded for a topic that isn't ours.

Source: Amazon SNS Developer Guide, "Verifying the signatures of Amazon SNS messages" and
"HTTP/HTTPS notification JSON format".
"""

from __future__ import annotations

import base64
import functools
import http.client
import json
import logging
import re
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from urllib.parse import urlencode

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from connect_mailer.exceptions import NotificationRefused, NotificationUndecided
from connect_mailer.feedback.deadline import Deadline

logger = logging.getLogger(__name__)

# SNS's own limit of a message is 256 KiB; JSON may write a character with six.
MAX_BODY_BYTES: Final = 1024 * 1024
MAX_DOWNLOAD_BYTES: Final = 64 * 1024
# From the look-up of the name to the last byte.
DOWNLOAD_SECONDS: Final = 8.0
MAX_DOWNLOADS: Final = 4
# For how long a certificate that could not be had is not asked for again, and how many of
# them are remembered at most.
FAILURE_SECONDS: Final = 20.0
MAX_FAILURES: Final = 256
# Downloads that a process starts: so many at once, and one more each so many seconds.
DOWNLOAD_BUDGET: Final = 8
REFILL_SECONDS: Final = 5.0
_TABLES: Final = 2
_COUNTERS: Final = 2**14
MAX_CERTIFICATES: Final = 32
# For how long a process uses a certificate without asking the cache for it again, and for how
# long it waits for the cache.
FRESH_SECONDS: Final = 30.0
CACHE_SECONDS: Final = 0.5
MAX_WAITING: Final = 8
CERTIFICATE_CACHE_SECONDS: Final = 24 * 3600
MIN_KEY_BITS: Final = 2048

NOTIFICATION: Final = "Notification"
SUBSCRIPTION: Final = "SubscriptionConfirmation"
UNSUBSCRIPTION: Final = "UnsubscribeConfirmation"

# What is signed, in this order; "Subject" only where there is one.
SIGNED_FIELDS: Final = {
    NOTIFICATION: ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    SUBSCRIPTION: (
        "Message",
        "MessageId",
        "SubscribeURL",
        "Timestamp",
        "Token",
        "TopicArn",
        "Type",
    ),
}
SIGNED_FIELDS[UNSUBSCRIPTION] = SIGNED_FIELDS[SUBSCRIPTION]
_REQUIRED_ALWAYS: Final = ("SignatureVersion", "Signature", "SigningCertURL")
_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "1": hashes.SHA1(),  # noqa: S303 (what SNS signs with by default)
    "2": hashes.SHA256(),
}
_PADDING: Final = padding.PKCS1v15()
# The signed text is cut at newlines: one in any other field would let a stranger cut a
# genuine message again, into other fields, under the same signature.
_MAY_HAVE_CONTROLS: Final = frozenset({"Message", "Subject", "Signature"})
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_TOPIC: Final = re.compile(
    r"arn:(?P<partition>aws|aws-cn|aws-us-gov):sns:(?P<region>[a-z0-9-]{1,30}):[0-9]{12}:"
    r"[A-Za-z0-9_.-]{1,256}",
    re.ASCII,
)
_PEM_NAME: Final = re.compile(r"/SimpleNotificationService-[A-Za-z0-9]{1,128}\.pem", re.ASCII)


class Cache(Protocol):
    """The part of a Django cache that is used here."""

    def get(self, key: Any, /) -> Any: ...
    def set(self, key: Any, value: Any, /, timeout: float | None) -> Any: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Notification:
    """What SNS posts, of any of its three types. ``data`` is all of it, as a dict."""

    type: str
    message_id: str
    topic_arn: str
    message: str
    signature_version: str
    signature: str
    signing_cert_url: str
    subject: str | None
    token: str
    data: dict[str, Any] = field(repr=False)


def parse(body: bytes) -> Notification:
    """Read a request's body.

    Raises:
        NotificationRefused: it is not what SNS posts. The text repeats nothing of it.
    """
    try:
        data = load_json(body.decode("utf-8"))
    except ValueError:
        raise NotificationRefused("the body is not JSON in UTF-8") from None
    if not isinstance(data, dict):
        raise NotificationRefused("the body is not a JSON object")
    kind = data.get("Type")
    if not isinstance(kind, str) or kind not in SIGNED_FIELDS:
        raise NotificationRefused("Type is none of SNS's")
    if data.get("Subject", "") is None:
        del data["Subject"]
    for name in (*SIGNED_FIELDS[kind], *_REQUIRED_ALWAYS):
        if name == "Subject" and name not in data:
            continue
        _check_field(name, data.get(name))
    subject = data.get("Subject") if kind == NOTIFICATION else None
    if subject is not None and "\nMessageId\n" in f"\n{subject}":
        # The text of a genuine message without a subject, cut elsewhere.
        raise NotificationRefused("Subject has a line of the signed text")
    if data["SignatureVersion"] not in _HASHES:
        raise NotificationRefused("SignatureVersion is neither 1 nor 2")
    return Notification(
        type=kind,
        message_id=data["MessageId"],
        topic_arn=data["TopicArn"],
        message=data["Message"],
        signature_version=data["SignatureVersion"],
        signature=data["Signature"],
        signing_cert_url=data["SigningCertURL"],
        subject=subject,
        token=data.get("Token", "") if kind != NOTIFICATION else "",
        data=data,
    )


def load_json(text: str) -> Any:
    """``json.loads``, but any doubtful text is a ``ValueError``: duplicate keys (of which
    two readers may take different ones), NaN, numbers too long to convert, deep nesting.
    """
    try:
        return json.loads(text, object_pairs_hook=_make_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_topic(notification: Notification, topic_arns: Collection[str]) -> None:
    """Compare the signed topic with those that are listened to. Headers prove nothing.

    Raises:
        NotificationRefused: it is none of them; nothing has been looked up or downloaded.
    """
    if notification.topic_arn not in topic_arns:
        raise NotificationRefused("the topic is not listened to")
    if _TOPIC.fullmatch(notification.topic_arn) is None:
        raise NotificationRefused("the topic is no ARN of a topic")


def get_host(topic_arn: str) -> str:
    """Return the host of SNS in the region and partition of a topic that was checked."""
    match = _TOPIC.fullmatch(topic_arn)
    if match is None:
        raise NotificationRefused("the topic is no ARN of a topic")
    suffix = ".cn" if match["partition"] == "aws-cn" else ""
    return f"sns.{match['region']}.amazonaws.com{suffix}"


def check_certificate_url(notification: Notification, pattern: re.Pattern[str] | None) -> None:
    """Compare the certificate's address, as a raw string, with the only form that SNS uses.

    Nothing is parsed, decoded or resolved, so there is nothing to disagree about. A
    ``pattern`` (the old ``BOUNCY_CERT_DOMAIN_REGEX``) can only narrow what is accepted.

    Raises:
        NotificationRefused: it is another form, or of another region than the topic.
    """
    host = get_host(notification.topic_arn)
    prefix = f"https://{host}"
    url = notification.signing_cert_url
    if not url.startswith(prefix) or not _PEM_NAME.fullmatch(url[len(prefix) :]):
        raise NotificationRefused("the certificate's address is not one of SNS")
    if pattern is not None and not pattern.search(host):
        raise NotificationRefused("the certificate's host is not accepted by the settings")


def make_signed_text(notification: Notification) -> bytes:
    """Return what SNS signs: names and values, each on its line, in a fixed order."""
    data = notification.data
    return "".join(
        f"{name}\n{data[name]}\n" for name in SIGNED_FIELDS[notification.type] if name in data
    ).encode()


def verify(notification: Notification, key: rsa.RSAPublicKey) -> None:
    """Check the signature: RSA PKCS#1 v1.5 over SHA-1 (version 1) or SHA-256 (version 2).

    Raises:
        NotificationRefused: it is not the signature of this text by this key.
    """
    text = notification.signature
    try:
        signature = base64.b64decode(text)
    except ValueError:
        raise NotificationRefused("the signature is not base64") from None
    # Stricter than decoding with validation, which takes what is left over in the last bits.
    if base64.b64encode(signature).decode() != text:
        raise NotificationRefused("the signature is not written as base64 writes it")
    algorithm = _HASHES[notification.signature_version]
    try:
        key.verify(signature, make_signed_text(notification), _PADDING, algorithm)
    except InvalidSignature:
        raise NotificationRefused("the signature is wrong") from None
    except UnsupportedAlgorithm as error:
        raise NotificationUndecided(
            "this machine's policy does not let SHA-1 be verified; set the topic's "
            "SignatureVersion to 2"
        ) from error


def read_certificate(pem: object, *, host: str, now: datetime) -> rsa.RSAPublicKey:
    """Return the public key of SNS's certificate, if it is one.

    Exactly one PEM certificate, RSA of 2048 bits at least, in its dates, in the name of SNS
    (Amazon's own say ``sns.amazonaws.com``; with the region is accepted as well).

    Raises:
        ValueError: it is not.
    """
    if isinstance(pem, str):
        pem = pem.encode("ascii", "replace")
    if not isinstance(pem, bytes) or len(pem) > MAX_DOWNLOAD_BYTES:
        raise ValueError("not a PEM file")
    certificate = _load_certificate(pem)
    if not certificate.starts <= now <= certificate.ends:
        raise ValueError("the certificate is not in its dates")
    if not certificate.names & {"sns.amazonaws.com", "sns.amazonaws.com.cn", host}:
        raise ValueError("the certificate is not in the name of SNS")
    return certificate.key


def make_subscribe_target(notification: Notification) -> str:
    """Return path and query of the call that confirms a subscription, for ``get_host``.

    It is built from the signed topic and token; ``SubscribeURL`` is never visited.
    """
    query = {
        "Action": "ConfirmSubscription",
        "TopicArn": notification.topic_arn,
        "Token": notification.token,
    }
    return f"/?{urlencode(query)}"


def fetch(
    host: str,
    target: str,
    *,
    seconds: float = DOWNLOAD_SECONDS,
    port: int = 443,
    context: ssl.SSLContext | None = None,
) -> bytes:
    """GET over verified TLS: no proxy, no redirect, status 200, 64 KiB at most.

    ``seconds`` is the time for all of it, so a server that trickles gains nothing. The
    look-up of the name can't be interrupted: callers wait with a time-out of their own.

    Raises:
        NotificationUndecided: for any reason.
    """
    deadline = time.monotonic() + seconds
    context = context or ssl.create_default_context()
    context.sslsocket_class = _DeadlineSocket
    connection = http.client.HTTPSConnection(host, port)
    try:
        connection.sock = _connect(host, port, context, deadline)
        connection.request("GET", target, headers={"Accept": "*/*", "Connection": "close"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise NotificationUndecided(f"{host} answered {response.status}")
        body = response.read(MAX_DOWNLOAD_BYTES + 1)
        # A cut answer may still look whole to who doesn't count.
        if len(body) > MAX_DOWNLOAD_BYTES or response.length:
            raise NotificationUndecided(f"{host} sent too much, or not all of it")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotificationUndecided(f"{host}: {type(error).__name__}") from error
    else:
        return body
    finally:
        connection.close()


class Certificates:
    """Where keys come from: the cache, else this process's own memory, else SNS.

    Only what was found good is kept, and it is examined again whenever it is used. The cache
    is asked again after ``FRESH_SECONDS``. What could not be had is not asked for again for
    ``FAILURE_SECONDS``, except in the cache.

    Anybody who knows a topic can make up a name in each request, and only a download tells a
    new certificate from such a name. So downloads have a budget (``DOWNLOAD_BUDGET``, one
    more each ``REFILL_SECONDS``), and while it is spent, the name that was asked for most
    often gets the next one: SNS names one certificate in all that it sends until it takes a
    new one, about yearly, and sends again what was answered 503, while a made-up name that
    is repeated is tried, fails, and starts again from nothing. Who wants to keep out a
    certificate that was asked for *n* times has to repeat another new name more than *n*
    times in each ``REFILL_SECONDS``, and *n* grows. Names are counted by their hash (which
    has a secret of the process) in tables of fixed size, so a flood can neither fill the
    memory nor push a genuine name out: each name has a counter in every table, and the least
    of them counts, so that one gains by sharing only where it shares all. What any process of
    the site has downloaded is in the cache, and needs no budget.
    """

    def __init__(
        self,
        download: Callable[[str, str], bytes] = fetch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._download = download
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, bytes] = OrderedDict()
        # What was found good a moment ago, wherever it came from, and until when that counts.
        self._fresh: OrderedDict[str, tuple[object, float]] = OrderedDict()
        self._failed: OrderedDict[str, float] = OrderedDict()
        self._running: dict[str, Future[bytes]] = {}
        self._budget = float(DOWNLOAD_BUDGET)
        self._refilled_at = clock()
        self._asked = [0] * (_TABLES * _COUNTERS)
        # Of those that wait for the budget, the one asked for most often: address, host.
        self._next: tuple[str, str] | None = None

    def get_key(
        self, url: str, *, host: str, cache: Cache, deadline: Deadline | None = None
    ) -> rsa.RSAPublicKey:
        """Return the key of the certificate at ``url``, an address that was checked.

        The download goes on after the ``deadline``, for who comes next.

        Raises:
            NotificationUndecided: it can't be had now.
        """
        now = datetime.now(UTC)
        kept, until = self._fresh.get(url, (None, 0.0))
        if until > self._clock():
            try:
                return read_certificate(kept, host=host, now=now)
            except ValueError as error:
                logger.warning("A kept signing certificate is not used: %s", error)
        cached, known = _ask(cache, url), self._known.get(url)
        # The last one may be all that there is: what came out of a cache that is gone since.
        for pem in (cached, known, kept):
            if pem is not None:
                try:
                    key = read_certificate(pem, host=host, now=now)
                except ValueError as error:
                    logger.warning("A kept signing certificate is not used: %s", error)
                else:
                    if known is not None and pem is not cached:
                        _tell(cache, url, known)
                    self._refresh(url, pem)
                    return key
        pem = self._wait(url, host, known, deadline or Deadline())
        try:
            key = read_certificate(pem, host=host, now=now)
        except ValueError as error:
            raise NotificationUndecided(f"the certificate from {host}: {error}") from error
        _tell(cache, url, pem)
        self._refresh(url, pem)
        return key

    def forget(self, url: str) -> None:
        """Ask the cache the next time: its entry was taken out."""
        self._fresh.pop(url, None)

    def _refresh(self, url: str, pem: object) -> None:
        with self._lock:
            self._fresh[url] = pem, self._clock() + FRESH_SECONDS
            while len(self._fresh) > MAX_CERTIFICATES:
                self._fresh.popitem(last=False)

    def _wait(self, url: str, host: str, known: bytes | None, deadline: Deadline) -> bytes:
        with self._lock:
            if (pem := self._known.get(url)) is not None and pem != known:
                return pem  # came while this one looked
            if url not in self._running:
                self._refuse_failed(url)
                self._start_next(url, host)
            running = self._running.get(url)
        if running is None:
            raise NotificationUndecided("too many certificates are asked for")
        try:
            return running.result(timeout=deadline.left(DOWNLOAD_SECONDS))
        except TimeoutError as error:
            raise NotificationUndecided(f"{host} did not answer in time") from error

    def _start_next(self, url: str, host: str) -> None:
        for place in _find_counters(url):
            self._asked[place] += 1
        waiting = sorted(
            dict.fromkeys(filter(None, (self._next, (url, host)))),
            key=lambda address: self._count_asked(address[0]),
            reverse=True,
        )
        now = self._clock()
        self._budget += (now - self._refilled_at) / REFILL_SECONDS
        self._budget = min(self._budget, float(DOWNLOAD_BUDGET))
        self._refilled_at = now
        while waiting and self._budget >= 1 and len(self._running) < MAX_DOWNLOADS:
            self._budget -= 1
            self._start(*waiting.pop(0))
        self._next = waiting[0] if waiting else None

    def _count_asked(self, url: str) -> int:
        return min(self._asked[place] for place in _find_counters(url))

    def _start(self, url: str, host: str) -> None:
        times = self._count_asked(url)
        for place in _find_counters(url):
            self._asked[place] -= times  # the others that are counted there keep theirs
        running = self._running[url] = Future()
        threading.Thread(
            target=self._run, args=(url, host, running), name="sns-certificate", daemon=True
        ).start()

    def _run(self, url: str, host: str, running: Future[bytes]) -> None:
        try:
            pem = self._download(host, url.removeprefix(f"https://{host}"))
            read_certificate(pem, host=host, now=datetime.now(UTC))
        except Exception as error:  # noqa: BLE001 (it is raised where it is waited for)
            with self._lock:
                self._running.pop(url, None)
                self._failed[url] = self._clock() + FAILURE_SECONDS
                while len(self._failed) > MAX_FAILURES:
                    self._failed.popitem(last=False)
            if not isinstance(error, NotificationUndecided):
                error = NotificationUndecided(f"the certificate from {host}: {error}")
            running.set_exception(error)
        else:
            with self._lock:
                self._running.pop(url, None)
                self._known[url] = pem
                while len(self._known) > MAX_CERTIFICATES:
                    self._known.popitem(last=False)
            running.set_result(pem)

    def _refuse_failed(self, url: str) -> None:
        until = self._failed.pop(url, None)
        if until is not None and until > self._clock():
            self._failed[url] = until
            raise NotificationUndecided("the certificate could not be had a moment ago")


class BriefCache:
    """A cache that is waited for ``CACHE_SECONDS`` at most, whatever its own time-outs are.

    Raises:
        TimeoutError: it did not answer.
        NotificationUndecided: the ``deadline`` is over.
    """

    _free = threading.BoundedSemaphore(MAX_WAITING)

    def __init__(self, cache: Cache, deadline: Deadline | None = None) -> None:
        self._cache = cache
        self._deadline = deadline or Deadline()

    def get(self, key: Any, /) -> Any:
        """As the cache's own."""
        return self._wait(lambda: self._cache.get(key))

    def set(self, key: Any, value: Any, /, timeout: float | None) -> Any:
        """As the cache's own."""
        return self._wait(lambda: self._cache.set(key, value, timeout=timeout))

    def _wait(self, call: Callable[[], Any]) -> Any:
        answer: Future[Any] = Future()

        def run() -> None:
            try:
                answer.set_result(call())
            except Exception as error:  # noqa: BLE001 (it is raised where it is waited for)
                answer.set_exception(error)
            finally:
                self._free.release()

        seconds = self._deadline.left(CACHE_SECONDS)
        ends_at = time.monotonic() + seconds
        # So many threads at most hang there, however many requests come.
        if not self._free.acquire(timeout=seconds):
            raise TimeoutError
        threading.Thread(target=run, name="sns-cache", daemon=True).start()
        # An answer that is there is taken, though this process may have stood still meanwhile.
        return answer.result(timeout=max(ends_at - time.monotonic(), 0.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Certificate:
    key: rsa.RSAPublicKey
    starts: datetime
    ends: datetime
    names: frozenset[str]


@functools.lru_cache(maxsize=MAX_CERTIFICATES)
def _load_certificate(pem: bytes) -> _Certificate:
    if pem.count(b"-----BEGIN") != 1:
        raise ValueError("not exactly one PEM certificate")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key = certificate.public_key()
        names = _read_names(certificate)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise ValueError(f"not a certificate ({type(error).__name__})") from error
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < MIN_KEY_BITS:
        raise ValueError(f"not an RSA key of {MIN_KEY_BITS} bits or more")
    return _Certificate(
        key=key,
        starts=certificate.not_valid_before_utc,
        ends=certificate.not_valid_after_utc,
        names=names,
    )


def _read_names(certificate: x509.Certificate) -> frozenset[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return frozenset(str(attribute.value) for attribute in common)
    return frozenset(extension.value.get_values_for_type(x509.DNSName))


def _find_counters(url: str) -> list[int]:
    """Where it is counted, once in each table: one follows the other."""
    return [table * _COUNTERS + hash((table, url)) % _COUNTERS for table in range(_TABLES)]


def _ask(cache: Cache, url: str) -> object:
    try:
        return cache.get(url)
    except Exception:
        logger.exception("The cache of signing certificates is out of reach")
        return None


def _tell(cache: Cache, url: str, pem: bytes) -> None:
    try:
        cache.set(url, pem, timeout=CERTIFICATE_CACHE_SECONDS)
    except Exception:
        logger.exception("The cache of signing certificates is out of reach")


class _DeadlineSocket(ssl.SSLSocket):
    """A socket that has one time-out for all its reads and writes together."""

    deadline: float = 0.0

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.hurry()
        return super().recv_into(*args, **kwargs)

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self.hurry()
        super().sendall(*args, **kwargs)

    def hurry(self) -> None:
        self.settimeout(_left(self.deadline))


def _connect(host: str, port: int, context: ssl.SSLContext, deadline: float) -> ssl.SSLSocket:
    error: OSError = OSError("no address")
    for family, kind, protocol, _name, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        plain = socket.socket(family, kind, protocol)
        try:
            plain.settimeout(_left(deadline))
            plain.connect(address)
            plain.settimeout(_left(deadline))
            secure = context.wrap_socket(plain, server_hostname=host)
        except OSError as failure:
            plain.close()
            error = failure
            continue
        if isinstance(secure, _DeadlineSocket):
            secure.deadline = deadline
        return secure
    raise error


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _check_field(name: str, value: object) -> None:
    if not isinstance(value, str) or (not value and name != "Subject"):
        raise NotificationRefused(f"{name} is missing, empty or not a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise NotificationRefused(f"{name} has half a surrogate pair") from None
    if name not in _MAY_HAVE_CONTROLS and _CONTROL.search(value):
        raise NotificationRefused(f"{name} has a control character")


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key twice in one object")
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")

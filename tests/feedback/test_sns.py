"""Authenticity apart from the webhook: downloads, certificates, memory, the signed text."""

from __future__ import annotations

import functools
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from connect_mailer.exceptions import NotificationRefused, NotificationUndecided
from connect_mailer.feedback import sns
from connect_mailer.feedback.deadline import Deadline
from connect_mailer.testing.sns import TOPIC_ARN, SNSSigner

HOST = "sns.us-east-1.amazonaws.com"
NOW = datetime.now(UTC)


class DictCache(dict):
    asked = 0

    def get(self, key, /):
        self.asked += 1
        return super().get(key)

    def set(self, key, value, timeout):
        self[key] = value


def make_urls(number: int) -> list[str]:
    return [f"https://{HOST}/SimpleNotificationService-{n}.pem" for n in range(number)]


# The signed text


def test_the_signed_text_of_a_notification():
    # Source: Amazon SNS Developer Guide, "Verifying the signatures of Amazon SNS messages"
    fields = {
        "Type": "Notification",
        "MessageId": "id",
        "TopicArn": TOPIC_ARN,
        "Message": "a\nb é",
        "Timestamp": "2012-04-25T21:49:25.719Z",
        "SignatureVersion": "1",
        "Signature": "x",
        "SigningCertURL": "x",
        "MessageAttributes": {"unsigned": "x"},
    }
    head, tail = (
        "Message\na\nb é\nMessageId\nid\n",
        f"Timestamp\n2012-04-25T21:49:25.719Z\nTopicArn\n{TOPIC_ARN}\nType\nNotification\n",
    )
    for subject, middle in ((None, ""), ("hi", "Subject\nhi\n")):
        given = fields if subject is None else {**fields, "Subject": subject}
        text = sns.make_signed_text(sns.parse(json.dumps(given).encode()))
        assert text == (head + middle + tail).encode()
    null = sns.parse(json.dumps({**fields, "Subject": None}).encode())
    assert sns.make_signed_text(null) == (head + tail).encode()


@pytest.mark.parametrize("kind", [sns.SUBSCRIPTION, sns.UNSUBSCRIPTION])
def test_the_signed_text_of_a_confirmation(kind):
    fields = dict.fromkeys(sns.SIGNED_FIELDS[kind], "x") | {
        "Type": kind,
        "Subject": "unsigned",
        "SignatureVersion": "1",
        "Signature": "x",
        "SigningCertURL": "x",
    }
    assert sns.make_signed_text(sns.parse(json.dumps(fields).encode())).decode() == (
        "Message\nx\nMessageId\nx\nSubscribeURL\nx\nTimestamp\nx\nToken\nx\nTopicArn\nx\n"
        f"Type\n{kind}\n"
    )


@pytest.mark.parametrize(
    ("arn", "host"),
    [
        ("arn:aws:sns:eu-west-1:123456789012:a", "sns.eu-west-1.amazonaws.com"),
        ("arn:aws-cn:sns:cn-north-1:123456789012:a", "sns.cn-north-1.amazonaws.com.cn"),
        ("arn:aws-us-gov:sns:us-gov-west-1:123456789012:a", "sns.us-gov-west-1.amazonaws.com"),
    ],
)
def test_the_host_of_a_topic(arn, host):
    assert sns.get_host(arn) == host
    signer = SNSSigner.generate(topic_arn=arn)
    notification = sns.parse(signer.notification("x").encode())
    sns.check_topic(notification, [arn])
    sns.check_certificate_url(notification, None)


@pytest.mark.parametrize("arn", ["arn:aws-iso:sns:x:123456789012:a", "arn:aws:sns:a.b:1:x", "x"])
def test_a_topic_that_is_listed_and_no_arn(arn, signer):
    notification = sns.parse(signer.notification("x", TopicArn=arn).encode())
    with pytest.raises(NotificationRefused):
        sns.check_topic(notification, [arn])
    with pytest.raises(NotificationRefused):
        sns.get_host(arn)


# Certificates


def test_a_good_certificate(signer):
    for pem in (signer.certificate_pem, signer.certificate_pem.encode()):
        key = sns.read_certificate(pem, host=HOST, now=NOW)
        assert key.key_size == 2048
    regional = SNSSigner.generate(name=HOST)
    assert sns.read_certificate(regional.certificate_pem, host=HOST, now=NOW)


BAD_SIGNERS = {
    "small key": {"key_bits": 1024},
    "expired": {"valid_until": NOW - timedelta(hours=1)},
    "not yet valid": {"valid_from": NOW + timedelta(hours=1)},
    "another name": {"name": "s3.amazonaws.com"},
    "another region": {"name": "sns.us-west-2.amazonaws.com"},
    "a wildcard": {"name": "*.amazonaws.com"},
    "a longer name": {"name": "sns.amazonaws.com.evil.example"},
}


@pytest.mark.parametrize("fields", BAD_SIGNERS.values(), ids=BAD_SIGNERS)
def test_a_certificate_that_is_not_sns(fields):
    pem = SNSSigner.generate(**fields).certificate_pem
    with pytest.raises(ValueError):  # noqa: PT011 (its reasons differ)
        sns.read_certificate(pem, host=HOST, now=NOW)


def test_what_is_no_single_certificate(signer):
    other = SNSSigner.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sns.amazonaws.com")])
    others = [
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, algorithm)
        .public_bytes(serialization.Encoding.PEM)
        for key, algorithm in (
            (ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()),
            (ed25519.Ed25519PrivateKey.generate(), None),
        )
    ]
    pem = signer.certificate_pem
    for value in (
        None,
        7,
        [],
        "",
        b"\0" * 100,
        "x" * 70_000,
        pem + other.certificate_pem,
        pem + pem,
        signer.to_pem(),
        pem[:-60],
        pem.replace("CERTIFICATE", "PUBLIC KEY"),
        pem + " " * 70_000,
        *others,
    ):
        with pytest.raises(ValueError):  # noqa: PT011 (its reasons differ)
            sns.read_certificate(value, host=HOST, now=NOW)


# Where keys come from


def test_a_good_download_is_cached_and_a_bad_cache_entry_replaced(signer):
    cache = DictCache({signer.certificate_url: "nonsense"})
    pem = signer.certificate_pem.encode()
    certificates = sns.Certificates(lambda host, target: pem)
    assert certificates.get_key(signer.certificate_url, host=HOST, cache=cache)
    assert cache == {signer.certificate_url: pem}


@pytest.mark.parametrize("fields", BAD_SIGNERS.values(), ids=BAD_SIGNERS)
def test_a_bad_certificate_is_neither_used_nor_cached(fields):
    signer = SNSSigner.generate(**fields)
    pem = signer.certificate_pem.encode()
    for cache in (DictCache(), DictCache({signer.certificate_url: pem})):
        before = dict(cache)
        certificates = sns.Certificates(lambda host, target: pem)
        with pytest.raises(NotificationUndecided):
            certificates.get_key(signer.certificate_url, host=HOST, cache=cache)
        assert cache == before


def test_a_failure_is_remembered_for_a_while_only(signer):
    now = [0.0]
    asked = []

    def download(host, target):
        asked.append(target)
        if len(asked) == 1:
            raise NotificationUndecided("down")
        return signer.certificate_pem.encode()

    certificates = sns.Certificates(download, clock=lambda: now[0])
    cache = DictCache()
    for now[0] in (0.0, 1.0, sns.FAILURE_SECONDS - 1):
        with pytest.raises(NotificationUndecided):
            certificates.get_key(signer.certificate_url, host=HOST, cache=cache)
    assert len(asked) == 1
    now[0] = sns.FAILURE_SECONDS + 1
    assert certificates.get_key(signer.certificate_url, host=HOST, cache=cache)
    assert len(asked) == 2


class Flood:
    """Made-up names, on a clock of the test's own; ``genuine`` is at its address."""

    def __init__(self, genuine: SNSSigner) -> None:
        self.now = 0.0
        self.asked: list[str] = []
        self.genuine = genuine
        self.certificates = sns.Certificates(self._download, clock=lambda: self.now)
        self._made_up = 0

    def _download(self, host: str, target: str) -> bytes:
        self.asked.append(target)
        if not self.genuine.certificate_url.endswith(target):
            raise NotificationUndecided("not there")
        return self.genuine.certificate_pem.encode()

    def make_up(self, number: int, *, seconds: float, times: int = 1) -> None:
        for _ in range(number):
            self._made_up += 1
            self.now += seconds / number
            url = f"https://{HOST}/SimpleNotificationService-{self._made_up}.pem"
            for _ in range(times):
                assert not self.get(url)
        wait_for_downloads(self.certificates)

    def get(self, url: str) -> bool:
        try:
            self.certificates.get_key(url, host=HOST, cache=DictCache())
        except NotificationUndecided:
            return False
        return True

    def try_genuine(self, **made_up: float) -> int:
        """How often a genuine notification comes until it is taken, in the flood."""
        for number in range(1, 100):
            if self.get(self.genuine.certificate_url):
                return number
            self.make_up(**made_up)
        return 100


def wait_for_downloads(certificates: sns.Certificates) -> None:
    for running in list(certificates._running.values()):
        wait([running], timeout=30)


def test_made_up_names_have_few_downloads(signer):
    flood = Flood(signer)
    flood.make_up(2000, seconds=0)
    assert len(flood.asked) == sns.DOWNLOAD_BUDGET
    flood.make_up(2000, seconds=600)
    assert len(flood.asked) <= sns.DOWNLOAD_BUDGET + 600 / sns.REFILL_SECONDS
    # What is left unused doesn't add up.
    flood.now += 24 * 3600
    before = len(flood.asked)
    flood.make_up(2000, seconds=0)
    assert len(flood.asked) == before + sns.DOWNLOAD_BUDGET


def test_a_genuine_certificate_is_had_at_once_before_and_after_a_flood(signer):
    assert Flood(signer).try_genuine() == 1
    flood = Flood(signer)
    flood.make_up(2000, seconds=0)
    flood.now += 2 * sns.REFILL_SECONDS
    assert flood.get(signer.certificate_url)


def test_a_genuine_certificate_is_had_in_a_flood(signer):
    # A hundred names a second; one notification that SNS sends again each 20 seconds.
    flood = Flood(signer)
    flood.make_up(2000, seconds=20)
    assert flood.try_genuine(number=2000, seconds=20) < 20
    # Each name three times: as above, it is asked for more often in the end.
    flood = Flood(signer)
    flood.make_up(600, seconds=20, times=3)
    assert flood.try_genuine(number=600, seconds=20, times=3) < 30


def test_a_name_that_is_repeated_falls_back(signer):
    flood = Flood(signer)
    flood.make_up(sns.DOWNLOAD_BUDGET, seconds=0)
    flood.make_up(1, seconds=0, times=1000)
    assert not flood.get(signer.certificate_url)
    # The next download is the other's, once; then it is this one's turn.
    flood.now += 2 * sns.REFILL_SECONDS
    assert flood.get(signer.certificate_url)
    assert len(flood.asked) == sns.DOWNLOAD_BUDGET + 2


def test_a_name_that_failed_is_counted_from_nothing(signer):
    flood = Flood(signer)
    repeated = make_urls(1)[0]
    flood.make_up(sns.DOWNLOAD_BUDGET, seconds=0)
    for _ in range(1000):
        assert not flood.get(repeated)
    flood.now += sns.REFILL_SECONDS
    assert not flood.get(repeated)
    assert repeated.endswith(flood.asked[-1])
    flood.now += sns.FAILURE_SECONDS + 1
    flood.make_up(sns.DOWNLOAD_BUDGET, seconds=0)
    for url in (repeated, signer.certificate_url, signer.certificate_url):
        assert not flood.get(url)
    flood.now += sns.REFILL_SECONDS
    assert flood.get(signer.certificate_url)


def test_what_failed_is_remembered_in_bounded_memory(signer):
    flood = Flood(signer)
    flood.make_up(sns.MAX_FAILURES * 2, seconds=sns.MAX_FAILURES * 2 * sns.REFILL_SECONDS)
    assert len(flood.asked) >= sns.MAX_FAILURES * 2 - 1
    assert len(flood.certificates._failed) == sns.MAX_FAILURES


def test_what_was_downloaded_for_another_reaches_the_cache(signer):
    now = [0.0]
    pem = signer.certificate_pem.encode()
    certificates = sns.Certificates(lambda host, target: pem, clock=lambda: now[0])
    assert certificates.get_key(signer.certificate_url, host=HOST, cache=DictCache())
    emptied = DictCache()
    for now[0], expected in (
        (sns.FRESH_SECONDS - 1, {}),
        (sns.FRESH_SECONDS + 1, {signer.certificate_url: pem}),
    ):
        assert certificates.get_key(signer.certificate_url, host=HOST, cache=emptied)
        assert emptied == expected


def test_the_cache_is_asked_again_after_a_while_and_what_it_had_is_examined_each_time(
    signer,
):
    now = [0.0]

    def download(host, target):
        raise NotificationUndecided("nothing is there")

    certificates = sns.Certificates(download, clock=lambda: now[0])
    full = DictCache({signer.certificate_url: signer.certificate_pem})
    get = functools.partial(certificates.get_key, signer.certificate_url, host=HOST)
    for _ in range(2):
        assert get(cache=full)
    assert full.asked == 1
    now[0] = sns.FRESH_SECONDS + 1
    assert get(cache=full)
    assert full.asked == 2
    certificates.forget(signer.certificate_url)
    assert get(cache=full)
    assert full.asked == 3


def test_what_a_cache_had_outlives_it(signer):
    now = [0.0]

    def download(host, target):
        raise NotificationUndecided("nothing is there")

    certificates = sns.Certificates(download, clock=lambda: now[0])
    cache = DictCache({signer.certificate_url: signer.certificate_pem})
    for _ in range(3):
        assert certificates.get_key(signer.certificate_url, host=HOST, cache=cache)
        cache.clear()
        now[0] += sns.FRESH_SECONDS + 1


def test_what_was_good_a_moment_ago_is_examined_and_bounded():
    signer = SNSSigner.generate(name=HOST)
    urls = make_urls(sns.MAX_CERTIFICATES * 2)
    full = DictCache(dict.fromkeys(urls, signer.certificate_pem))
    asked = []

    def download(host, target):
        asked.append(target)
        raise NotificationUndecided("nothing is there")

    certificates = sns.Certificates(download)
    for url in urls:
        assert certificates.get_key(url, host=HOST, cache=full)
    assert len(certificates._fresh) == sns.MAX_CERTIFICATES
    with pytest.raises(NotificationUndecided):
        certificates.get_key(urls[-1], host="sns.eu-west-1.amazonaws.com", cache=DictCache())
    assert len(asked) == 1


def test_a_cache_that_does_not_answer_is_not_waited_for(signer, monkeypatch):
    monkeypatch.setattr(sns, "CACHE_SECONDS", 0.05)
    done = threading.Event()
    waited = []

    class Hanging:
        def get(self, key, /):
            waited.append(done.wait(20))

        def set(self, key, value, /, timeout):
            waited.append(done.wait(20))

    pem = signer.certificate_pem.encode()
    for _ in range(sns.MAX_WAITING * 2):
        certificates = sns.Certificates(lambda host, target: pem)
        cache = sns.BriefCache(Hanging())
        assert certificates.get_key(signer.certificate_url, host=HOST, cache=cache)
        assert not waited
    assert sum(thread.name == "sns-cache" for thread in threading.enumerate()) <= sns.MAX_WAITING
    done.set()


def test_what_a_cache_has_answered_is_taken_though_time_was_lost(monkeypatch):
    monkeypatch.setattr(sns, "CACHE_SECONDS", 0.05)
    start = threading.Thread.start

    def start_slowly(thread):
        start(thread)
        thread.join()
        time.sleep(0.1)

    monkeypatch.setattr(threading.Thread, "start", start_slowly)
    cache = DictCache()
    cache.set("a", b"pem", timeout=None)
    assert sns.BriefCache(cache).get("a") == b"pem"


def test_a_cache_is_not_asked_after_the_end():
    asked = []

    class Quick:
        def get(self, key, /):
            asked.append(key)

    cache = sns.BriefCache(Quick(), Deadline(0))
    with pytest.raises(NotificationUndecided):
        cache.get("a certificate")
    assert not asked


def test_one_download_of_a_certificate_at_a_time_and_few_in_all(signer):
    free = threading.Event()
    started = threading.Semaphore(0)
    asked = []

    def download(host, target):
        asked.append(target)
        started.release()
        assert free.wait(30)
        return signer.certificate_pem.encode()

    certificates = sns.Certificates(download)
    urls = make_urls(sns.MAX_DOWNLOADS)
    results = []

    def get(url):
        results.append(certificates.get_key(url, host=HOST, cache=DictCache()))

    threads = [threading.Thread(target=get, args=(url,)) for url in urls * 3]
    for thread in threads:
        thread.start()
    for _ in urls:
        assert started.acquire(timeout=30)
    with pytest.raises(NotificationUndecided, match="too many"):
        certificates.get_key(signer.certificate_url, host=HOST, cache=DictCache())
    free.set()
    for thread in threads:
        thread.join()
    assert len(results) == len(threads)
    assert sorted(asked) == sorted(url.removeprefix(f"https://{HOST}") for url in urls)
    assert certificates.get_key(signer.certificate_url, host=HOST, cache=DictCache())


def test_who_waits_gives_up(signer, monkeypatch):
    monkeypatch.setattr(sns, "DOWNLOAD_SECONDS", 0.01)
    free = threading.Event()
    certificates = sns.Certificates(lambda host, target: b"x" * free.wait(30))
    with pytest.raises(NotificationUndecided, match="in time"):
        certificates.get_key(signer.certificate_url, host=HOST, cache=DictCache())
    free.set()


# The download


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, Callable[[], ssl.SSLContext]]:
    signer = SNSSigner.generate(name="localhost")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(signer.to_pem())
        file.flush()
        server.load_cert_chain(file.name)
    return server, lambda: ssl.create_default_context(cadata=signer.certificate_pem)


@contextmanager
def serve(context: ssl.SSLContext, answer: Callable[[ssl.SSLSocket], None]) -> Iterator[int]:
    """One TLS connection on a free port, answered by ``answer`` after the request."""
    listener = socket.create_server(("localhost", 0))

    def run() -> None:
        plain, _address = listener.accept()
        with plain:
            try:
                with context.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(65_536)
                    answer(connection)
            except OSError:
                return  # the client went away

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join(30)
        listener.close()


def fetch(tls, answer, **options) -> bytes:
    server, make_client = tls
    options.setdefault("context", make_client())
    with serve(server, answer) as port:
        return sns.fetch("localhost", "/x.pem", port=port, **options)


def respond(status: str, body: bytes = b"", *headers: str) -> Callable[[ssl.SSLSocket], None]:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return lambda connection: connection.sendall("\r\n".join(lines).encode() + body)


def test_a_download(tls, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert fetch(tls, respond("200 OK", b"x" * sns.MAX_DOWNLOAD_BYTES)) == b"x" * 65_536


@pytest.mark.parametrize(
    "answer",
    [
        respond("301 Moved", b"", "Location: https://localhost/"),
        respond("302 Found", b"x", "Location: http://169.254.169.254/"),
        respond("204 No Content"),
        respond("206 Partial Content", b"x"),
        respond("403 Forbidden", b"<Error/>"),
        respond("404 Not Found"),
        respond("500 Oh"),
        respond("200 OK", b"x" * 65_537),
        lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"),
        lambda connection: connection.sendall(b"nonsense\r\n\r\n"),
        lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000),
        lambda connection: None,
    ],
)
def test_a_download_that_fails(tls, answer):
    with pytest.raises(NotificationUndecided):
        fetch(tls, answer)


def test_a_download_from_who_cannot_prove_the_name(tls):
    with pytest.raises(NotificationUndecided, match="SSLCertVerificationError"):
        fetch(tls, respond("200 OK", b"x"), context=None)


def test_a_trickle_does_not_outlast_the_time_of_the_whole(tls):
    done = threading.Event()

    def trickle(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        # Each byte comes well before a time-out of one read would end.
        while not done.wait(0.05):
            connection.sendall(b"x")

    server, make_client = tls
    with serve(server, trickle) as port:
        with pytest.raises(NotificationUndecided, match="Timeout"):
            sns.fetch("localhost", "/", port=port, seconds=0.5, context=make_client())
        done.set()


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(NotificationUndecided, match="ConnectionRefused"):
        sns.fetch("127.0.0.1", "/", port=port)

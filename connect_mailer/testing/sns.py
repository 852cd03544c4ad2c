"""Signed SNS notifications, for tests of what a site makes of bounces and complaints.

::

    signer = SNSSigner.generate()
    with signer.trusted():                      # its certificate is in BOUNCY_KEY_CACHE
        bounce = signer.notification(make_bounce(["jane@example.com"]))
        client.post("/mail/bouncy/", bounce, content_type="text/plain")

The site must listen to the signer's topic (``BOUNCY_TOPIC_ARN``). There is no setting that
adds a certificate to those that are trusted: only who can write to the site's cache can.

Another process makes the same signer from ``to_pem()``, and its ``post()`` sends over HTTP
as SNS does.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from connect_mailer.feedback.sns import (
    NOTIFICATION,
    SIGNED_FIELDS,
    SUBSCRIPTION,
    UNSUBSCRIPTION,
    get_host,
)

TOPIC_ARN: Final = "arn:aws:sns:us-east-1:123456789012:ses-feedback"
SES_MESSAGE_ID: Final = "0100019a00000000-00000000-0000-4000-8000-000000000000-000000"
MESSAGE_ID_TAG: Final = "connect-mailer-id"
CONFIRMATION_TOKEN: Final = "2336412f37fb687f5d51e6e241d59b68"  # noqa: S105 (opens nothing)

Version = Literal["1", "2"]


class Cache(Protocol):
    """The part of a Django cache that a signer uses."""

    def set(self, key: Any, value: Any, /, timeout: float | None) -> Any: ...
    def delete(self, key: Any, /) -> Any: ...


class SNSSigner:
    """Signs as SNS does, by a throw-away key, whose certificate has SNS's name.

    ``topic_arn`` is the topic of what it signs; ``certificate_url`` is where a site would
    download the certificate, and its key in the cache.
    """

    def __init__(
        self, key: rsa.RSAPrivateKey, certificate: x509.Certificate, *, topic_arn: str = TOPIC_ARN
    ) -> None:
        self.key = key
        self.certificate = certificate
        self.topic_arn = topic_arn
        self.host = get_host(topic_arn)
        name = certificate.fingerprint(hashes.SHA256()).hex()[:32]
        self.certificate_url = f"https://{self.host}/SimpleNotificationService-{name}.pem"

    @classmethod
    def generate(
        cls,
        *,
        topic_arn: str = TOPIC_ARN,
        key_bits: int = 2048,
        name: str = "sns.amazonaws.com",
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
    ) -> SNSSigner:
        """Make a new key and its self-signed certificate, valid from yesterday for a year."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=key_bits)
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(valid_from or now - timedelta(days=1))
            .not_valid_after(valid_until or now + timedelta(days=365))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate, topic_arn=topic_arn)

    @classmethod
    def from_pem(cls, pem: str, *, topic_arn: str = TOPIC_ARN) -> SNSSigner:
        """Make the signer whose ``to_pem()`` this was."""
        data = pem.encode()
        key = serialization.load_pem_private_key(data, password=None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise TypeError("the key in the PEM is not an RSA key")
        return cls(key, x509.load_pem_x509_certificate(data), topic_arn=topic_arn)

    def to_pem(self) -> str:
        """Key and certificate, for another process. For tests only: it isn't encrypted."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return key.decode() + self.certificate_pem

    @property
    def certificate_pem(self) -> str:
        """The certificate alone: what a site would download."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def trust(self, cache: Cache | None = None) -> None:
        """Put the certificate into a cache; by default the site's ``BOUNCY_KEY_CACHE``."""
        (cache or _get_cache()).set(self.certificate_url, self.certificate_pem, timeout=None)

    def distrust(self, cache: Cache | None = None) -> None:
        """Take the certificate out of the cache again."""
        from connect_mailer.feedback.webhook import certificates

        (cache or _get_cache()).delete(self.certificate_url)
        certificates.forget(self.certificate_url)

    @contextmanager
    def trusted(self, cache: Cache | None = None) -> Iterator[None]:
        """``trust()`` for a ``with`` block."""
        self.trust(cache)
        try:
            yield
        finally:
            self.distrust(cache)

    def notification(
        self,
        message: str | Mapping[str, Any],
        *,
        subject: str | None = None,
        message_id: str | None = None,
        version: Version = "1",
        **fields: Any,
    ) -> str:
        """Return a signed ``Notification``, as SNS posts it. A dict becomes its JSON."""
        text = message if isinstance(message, str) else json.dumps(message)
        extra = {} if subject is None else {"Subject": subject}
        return self.sign(
            {
                "Type": NOTIFICATION,
                "MessageId": message_id or str(uuid.uuid4()),
                "TopicArn": self.topic_arn,
                **extra,
                "Message": text,
                "Timestamp": _now(),
                "UnsubscribeURL": f"https://{self.host}/?Action=Unsubscribe",
                **fields,
            },
            version=version,
        )

    def subscription_confirmation(
        self,
        *,
        token: str = CONFIRMATION_TOKEN,
        version: Version = "1",
        **fields: Any,
    ) -> str:
        """Return a signed ``SubscriptionConfirmation``."""
        return self._confirmation(SUBSCRIPTION, token, version, fields)

    def unsubscribe_confirmation(
        self,
        *,
        token: str = CONFIRMATION_TOKEN,
        version: Version = "1",
        **fields: Any,
    ) -> str:
        """Return a signed ``UnsubscribeConfirmation``."""
        return self._confirmation(UNSUBSCRIPTION, token, version, fields)

    def _confirmation(
        self, kind: str, token: str, version: Version, fields: Mapping[str, Any]
    ) -> str:
        url = f"https://{self.host}/?Action=ConfirmSubscription&TopicArn={self.topic_arn}"
        return self.sign(
            {
                "Type": kind,
                "MessageId": str(uuid.uuid4()),
                "Token": token,
                "TopicArn": self.topic_arn,
                "Message": f"You have chosen to subscribe to the topic {self.topic_arn}.\n",
                "SubscribeURL": f"{url}&Token={token}",
                "Timestamp": _now(),
                **fields,
            },
            version=version,
        )

    def sign(self, fields: Mapping[str, Any], *, version: Version = "1") -> str:
        """Return ``fields`` as JSON with a signature; what is in them already stays."""
        names = SIGNED_FIELDS.get(str(fields.get("Type")), SIGNED_FIELDS[NOTIFICATION])
        text = "".join(f"{name}\n{fields[name]}\n" for name in names if name in fields)
        algorithm = hashes.SHA256() if version == "2" else hashes.SHA1()  # noqa: S303
        signature = self.key.sign(
            text.encode("utf-8", "surrogatepass"), padding.PKCS1v15(), algorithm
        )
        return json.dumps(
            {
                "SignatureVersion": version,
                "Signature": base64.b64encode(signature).decode(),
                "SigningCertURL": self.certificate_url,
                **fields,
            }
        )

    def post(self, url: str, body: str, *, timeout_seconds: float = 15.0) -> int:
        """POST ``body`` as SNS does; return the status of the answer.

        Raises:
            OSError: there was no answer.
        """
        headers = make_headers(body)
        request = urllib.request.Request(url, body.encode(), headers, method="POST")  # noqa: S310
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout_seconds) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code


def make_headers(body: str) -> dict[str, str]:
    """Return the headers with which SNS posts ``body``."""
    data = json.loads(body)
    return {
        "Content-Type": "text/plain; charset=UTF-8",
        "User-Agent": "Amazon Simple Notification Service Agent",
        "x-amz-sns-message-type": str(data.get("Type")),
        "x-amz-sns-message-id": str(data.get("MessageId")),
        "x-amz-sns-topic-arn": str(data.get("TopicArn")),
    }


def make_mail(
    destination: Sequence[str],
    *,
    source: str = "site@example.com",
    ses_message_id: str = SES_MESSAGE_ID,
    tag: str | uuid.UUID | None = None,
    timestamp: str | None = None,
) -> dict[str, Any]:
    """Return the ``mail`` object of an event; ``tag`` is an ``OutgoingMessage``'s uuid."""
    mail: dict[str, Any] = {
        "timestamp": timestamp or _now(),
        "source": source,
        "sourceArn": f"arn:aws:ses:us-east-1:123456789012:identity/{source}",
        "sendingAccountId": "123456789012",
        "messageId": ses_message_id,
        "destination": list(destination),
    }
    if tag is not None:
        mail["tags"] = {MESSAGE_ID_TAG: [str(tag)]}
    return mail


def make_bounce(
    recipients: Sequence[str | Mapping[str, Any]],
    *,
    bounce_type: str = "Permanent",
    subtype: str = "General",
    mail: Mapping[str, Any] | None = None,
    event: bool = False,
) -> dict[str, Any]:
    """Return a bounce of ``recipients``; ``event``: as event publishing has it."""
    records = [
        {
            "emailAddress": recipient,
            "action": "failed",
            "status": "5.1.1" if bounce_type == "Permanent" else "4.4.7",
            "diagnosticCode": "smtp; 550 5.1.1 user unknown",
        }
        if isinstance(recipient, str)
        else dict(recipient)
        for recipient in recipients
    ]
    return make_event(
        "Bounce",
        {
            "bounceType": bounce_type,
            "bounceSubType": subtype,
            "bouncedRecipients": records,
            "timestamp": _now(),
            "feedbackId": f"0100019a-{uuid.uuid4()}-000000",
            "reportingMTA": "dsn; mta.example.com",
        },
        mail=mail or make_mail([record["emailAddress"] for record in records]),
        event=event,
    )


def make_complaint(
    recipients: Sequence[str],
    *,
    feedback_type: str | None = "abuse",
    subtype: str | None = None,
    mail: Mapping[str, Any] | None = None,
    event: bool = False,
) -> dict[str, Any]:
    """Return a complaint of ``recipients``."""
    details: dict[str, Any] = {
        "complainedRecipients": [{"emailAddress": recipient} for recipient in recipients],
        "timestamp": _now(),
        "feedbackId": f"0100019a-{uuid.uuid4()}-000000",
        "complaintSubType": subtype,
        "userAgent": "ExampleCorp Feedback Loop (V0.01)",
        "arrivalDate": _now(),
    }
    if feedback_type is not None:
        details["complaintFeedbackType"] = feedback_type
    return make_event("Complaint", details, mail=mail or make_mail(recipients), event=event)


def make_delivery(
    recipients: Sequence[str], *, mail: Mapping[str, Any] | None = None, event: bool = False
) -> dict[str, Any]:
    """Return a delivery to ``recipients``."""
    details = {
        "timestamp": _now(),
        "processingTimeMillis": 546,
        "recipients": list(recipients),
        "smtpResponse": "250 ok:  Message 64111812 accepted",
        "reportingMTA": "a8-70.smtp-out.amazonses.com",
    }
    return make_event("Delivery", details, mail=mail or make_mail(recipients), event=event)


def make_event(
    kind: str,
    details: Mapping[str, Any] | None = None,
    *,
    mail: Mapping[str, Any],
    event: bool = True,
) -> dict[str, Any]:
    """Return any event, such as ``Send`` or ``Reject``; ``details`` is the object of its kind."""
    return {
        "eventType" if event else "notificationType": kind,
        kind.lower(): dict(details or {}),
        "mail": dict(mail),
    }


def _get_cache() -> Cache:
    from django.core.cache import caches

    from connect_mailer.conf import conf

    cache: Cache = caches[conf.key_cache]
    return cache


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

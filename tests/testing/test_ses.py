"""The local SES, asked by an unmodified boto3."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError

from connect_mailer.testing import Fault, FeedbackPublisher, LocalSES, RemoteLocalSES, SNSSigner

MIME = b"From: Site <site@example.com>\r\nTo: jo@example.org\r\nSubject: Hi\r\n\r\nBody\r\n"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ses(clock: Clock) -> Iterator[LocalSES]:
    with LocalSES(clock=clock) as server:
        yield server


def make_client(url: str, service: str = "sesv2") -> Any:
    return boto3.client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}),
    )


def send(client: Any, *to: str, mime: bytes = MIME, **extra: Any) -> Any:
    return client.send_email(
        Content={"Raw": {"Data": mime}},
        Destination={"ToAddresses": list(to or ("jo@example.org",))},
        **extra,
    )


def test_what_is_accepted_is_in_the_mailbox(ses: LocalSES) -> None:
    client = make_client(ses.url)

    answer = send(
        client,
        "jo@example.org",
        "eve@example.org",
        EmailTags=[{"Name": "a", "Value": "1"}],
        ConfigurationSetName="set",
        TenantName="tenant",
    )

    (mail,) = ses.mailbox()
    assert mail.message_id == answer["MessageId"]
    assert (mail.sender, mail.recipients) == (
        "site@example.com",
        ("jo@example.org", "eve@example.org"),
    )
    assert (mail.mime, mail.message["Subject"], dict(mail.tags)) == (MIME, "Hi", {"a": "1"})
    assert (mail.configuration_set, mail.tenant) == ("set", "tenant")
    assert (mail.access_key_id, mail.lost) == ("test", "")
    assert mail.signed_at is not None
    assert ses.stats().recipients == 2


def test_a_from_address_replaces_the_header(ses: LocalSES) -> None:
    send(make_client(ses.url), FromEmailAddress="other@example.com")

    assert ses.mailbox()[0].message["From"] == "other@example.com"


def test_the_rate_is_counted_in_recipients(ses: LocalSES, clock: Clock) -> None:
    ses.configure(rate=10)
    client = make_client(ses.url)
    send(client, *(f"u{n}@example.org" for n in range(10)))

    with pytest.raises(client.exceptions.TooManyRequestsException, match="sending rate exceeded"):
        send(client)

    clock.now += 0.1
    send(client)
    assert (ses.stats().accepted, ses.stats().throttled) == (2, 1)


def test_a_message_larger_than_the_burst_has_to_be_waited_for(ses: LocalSES, clock: Clock) -> None:
    ses.configure(rate=10)
    client = make_client(ses.url)
    send(client, *(f"u{n}@example.org" for n in range(50)))

    clock.now += 4
    with pytest.raises(client.exceptions.TooManyRequestsException):
        send(client)
    clock.now += 0.1
    send(client)


def test_the_daily_quota(ses: LocalSES, clock: Clock) -> None:
    ses.configure(daily_quota=1)
    client = make_client(ses.url)
    send(client)

    with pytest.raises(client.exceptions.TooManyRequestsException, match="Daily message quota"):
        send(client)
    send(client, "success@simulator.amazonses.com")
    clock.now += 86_401
    send(client)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"sending_paused": True}, "SendingPausedException"),
        ({"suspended": True}, "AccountSuspendedException"),
        ({"verified_identities": ("example.org",)}, "MessageRejected"),
        ({"verified_identities": ("example.com",), "production_access": False}, "MessageRejected"),
    ],
)
def test_an_account_that_may_not(ses: LocalSES, settings: dict[str, Any], error: str) -> None:
    ses.configure(**settings)
    client = make_client(ses.url)

    with pytest.raises(getattr(client.exceptions, error)):
        send(client)
    assert ses.mailbox() == []


def test_limits_of_a_message(ses: LocalSES) -> None:
    client = make_client(ses.url)

    with pytest.raises(ClientError):
        send(client, *(f"u{n}@example.org" for n in range(51)))
    with pytest.raises(client.exceptions.BadRequestException, match="From"):
        send(client, mime=b"To: jo@example.org\r\n\r\nBody")


def test_the_account(ses: LocalSES) -> None:
    ses.configure(rate=14, daily_quota=50_000)
    send(make_client(ses.url))

    quota = make_client(ses.url).get_account()["SendQuota"]
    assert quota == {"MaxSendRate": 14.0, "Max24HourSend": 50_000.0, "SentLast24Hours": 1.0}
    assert make_client(ses.url, "ses").get_send_quota()["MaxSendRate"] == 14.0
    ses.configure(may_get_account=False)
    with pytest.raises(ClientError, match="AccessDenied"):
        make_client(ses.url).get_account()


def test_faults(ses: LocalSES) -> None:
    client = make_client(ses.url)
    ses.inject(Fault(code="MessageRejected", recipient="jo@example.org"))
    ses.inject(Fault(lost="after"))

    with pytest.raises(client.exceptions.MessageRejected, match="Injected"):
        send(client)
    with pytest.raises(ConnectionClosedError):
        send(client)
    assert len(ses.mailbox()) == 1
    send(client)


def test_a_process_of_its_own() -> None:
    with RemoteLocalSES(rate=5) as remote:
        client = make_client(remote.url)
        assert client.get_account()["SendQuota"]["MaxSendRate"] == 5.0
        send(client)
        (mail,) = remote.mailbox()
        assert (mail.mime, mail.recipients) == (MIME, ("jo@example.org",))
        remote.configure(sending_paused=True)
        with pytest.raises(client.exceptions.SendingPausedException):
            send(client)
        remote.configure(sending_paused=False)
        remote.inject(Fault(code="MessageRejected"))
        with pytest.raises(client.exceptions.MessageRejected):
            send(client)
        assert remote.stats().refused == 2
        remote.clear()
        assert remote.mailbox() == []
    with pytest.raises(OSError, match="refused"):
        remote.stats()


class TestFeedback:
    @pytest.fixture
    def signer(self) -> SNSSigner:
        return SNSSigner.generate()

    @pytest.mark.django_db(transaction=True)
    def test_the_mailbox_simulator(
        self, ses: LocalSES, signer: SNSSigner, live_server: Any, settings: Any
    ) -> None:
        from django_bouncy.models import Bounce, Complaint, Delivery

        from connect_mailer.models import Unsubscribe

        settings.BOUNCY_TOPIC_ARN = [signer.topic_arn]
        publisher = FeedbackPublisher(signer, f"{live_server.url}/mail/bouncy/", retry_seconds=0)
        ses._on_accepted = publisher
        client = make_client(ses.url)
        with signer.trusted():
            for kind in ("bounce", "bounce+x", "ooto", "complaint", "success", "suppressionlist"):
                send(client, f"{kind}@simulator.amazonses.com")
            send(client, "somebody@example.org")
            publisher.flush()
        publisher.close()

        assert publisher.statuses == [200] * 7
        assert set(Bounce.objects.values_list("address", "hard")) == {
            ("bounce@simulator.amazonses.com", True),
            ("bounce+x@simulator.amazonses.com", True),
            ("suppressionlist@simulator.amazonses.com", True),
            ("ooto@simulator.amazonses.com", False),
        }
        assert Complaint.objects.get().address == "complaint@simulator.amazonses.com"
        assert Delivery.objects.count() == 2
        assert set(Unsubscribe.objects.values_list("address", "source")) == {
            ("bounce@simulator.amazonses.com", "bounce"),
            ("bounce+x@simulator.amazonses.com", "bounce"),
            ("suppressionlist@simulator.amazonses.com", "bounce"),
            ("complaint@simulator.amazonses.com", "complaint"),
        }

    def test_tries_again_as_sns_does(self, ses: LocalSES, signer: SNSSigner) -> None:
        publisher = FeedbackPublisher(signer, "http://127.0.0.1:1/", retry_seconds=0)
        ses._on_accepted = publisher

        send(make_client(ses.url), "bounce@simulator.amazonses.com")
        publisher.flush()
        publisher.close()

        assert publisher.statuses == [0] * 4

    def test_waits_as_ses_does(self, ses: LocalSES, signer: SNSSigner) -> None:
        publisher = FeedbackPublisher(
            signer, "http://127.0.0.1:1/", delay_seconds=0.2, retry_seconds=0
        )
        ses._on_accepted = publisher
        start = time.monotonic()

        send(make_client(ses.url), "bounce@simulator.amazonses.com")
        publisher.close()

        assert publisher.statuses
        assert time.monotonic() - start >= 0.2

"""Connect's page "Outgoing Email Configuration", a test a sentence: still true here."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from connect_mailer.testing import Fault, LocalSES
from connect_mailer.testing.sns import make_bounce, make_complaint, make_event, make_mail
from tests.connect.conftest import HEROKU, ROOT, Connect
from tests.site.running import wait_for

UNSUBSCRIBE = "connect_mailer.Unsubscribe"
WEBHOOK = "/mail/bouncy/"


@contextmanager
def run_worker(connect: Connect) -> Iterator[None]:
    """A worker of the deployment, stopped when all is said."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tests.connect.celery", "worker", "-c", "2"],
        cwd=ROOT,
        env=connect.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        worker.terminate()
        try:
            worker.wait(60)
        finally:
            worker.kill()


def count_statuses(connect: Connect) -> dict[str, int]:
    statuses = [row["status"] for row in connect.read("connect_mailer.OutgoingMessage")]
    return {status: statuses.count(status) for status in set(statuses)}


# Outgoing Email Configuration


def test_notifications(connect: Connect, ses: LocalSES) -> None:
    """Connect is heavily reliant on outgoing email notifications."""
    assert connect.send("jane@example.org") == 1
    connect.deliver()
    [mail] = ses.mailbox()
    assert mail.message["Subject"] == "New message"


def test_no_replies(connect: Connect) -> None:
    """Incoming email replies are not supported yet."""
    received = make_event("Received", mail=make_mail(["no-reply@connect.example.org"]), event=False)
    assert connect.post_feedback(received) == 200
    for model in ("connect_mailer.OutgoingMessage", UNSUBSCRIBE, "django_bouncy.Delivery"):
        assert connect.read(model) == []


def test_made_sure_to_be_sent(connect: Connect, ses: LocalSES) -> None:
    """Making sure those emails are sent by Connect (and reliably received by the end-user) means
    it's necessary to link Connect to a 3rd party transactional email service provider."""
    connect.send("jane@example.org")
    ses.inject(Fault(code="ServiceUnavailableException", status=503))
    assert connect.deliver() == 0
    assert count_statuses(connect) == {"queued": 1}  # kept, for when the provider is back
    connect.set_setting("CONNECT_MAILER", {"TRANSPORT": "django.core.mail.backends.dummy.Nothing"})
    assert any(message.startswith("connect_mailer.E004") for message in connect.check())


# Email Service Provider


def test_ses(deploy: Callable[..., Connect]) -> None:
    """The recommended outgoing email service provider for Connect is Amazon's Simple Email
    Service (or SES.)"""
    assert deploy().get_conf("is_ses")
    unset = deploy("EMAIL_BACKEND")
    unset.set_setting("ORIGINAL_EMAIL_BACKEND", "")
    assert unset.get_conf("is_ses")


def test_the_queue_and_its_workers(connect: Connect, ses: LocalSES, valkey: object) -> None:
    """Connect comes pre-installed with the Sea Cucumber library, which will put all outgoing
    messages into Connect's task queue, allowing your Heroku workers to stagger their outgoing
    email to match the send speed limits spelled out on Amazon S3."""
    everybody = [f"u{n}@example.org" for n in range(45)]
    assert connect.send(*everybody) == 45
    assert ses.mailbox() == []
    with run_worker(connect):
        wait_for(lambda: len(ses.mailbox()) == 45, 100)
        wait_for(lambda: count_statuses(connect) == {"sent": 45})
    # The account takes 20 a second, and none of the 45 came when it was too early.
    assert ses.stats().throttled == 0
    assert sorted(mail.recipients[0] for mail in ses.mailbox()) == sorted(everybody)


def test_what_is_set(connect: Connect, ses: LocalSES) -> None:
    """To use the Sea Cucumber library, make sure your AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY settings are correct and have the correct SES permissions and then set
    the EMAIL_BACKEND environment variable to seacucumber.backend.SESBackend"""
    assert HEROKU["EMAIL_BACKEND"] == "seacucumber.backend.SESBackend"
    assert connect.get_conf("transport") == "connect_mailer.backend.SESBackend"
    connect.send("jane@example.org")
    # With a key that is wrong nothing is lost: it waits until somebody has put that right.
    ses.inject(Fault(code="InvalidClientTokenId", status=403))
    assert connect.deliver() == 0
    assert count_statuses(connect) == {"queued": 1}


def test_no_mail_comes_in(connect: Connect) -> None:
    """Connect does not support incoming email."""
    mail = "From: jane@example.org\r\nTo: no-reply@connect.example.org\r\n\r\nHello"
    assert connect.post(WEBHOOK, mail)[0] == 400
    assert connect.read("connect_mailer.OutgoingMessage") == []


def test_where_a_reply_goes(connect: Connect, ses: LocalSES) -> None:
    """Users who reply to emails from Connect such as new message digests and notifications will
    receive the (quite ugly) "Your email could not be delivered" reply by default."""
    connect.send("jane@example.org")
    connect.deliver()
    [mail] = ses.mailbox()
    # To the sender's own address: the app names no other.
    assert (mail.message["Reply-To"], mail.message["Return-Path"]) == (None, None)
    assert mail.message["From"] == "no-reply@connect.example.org"


def test_a_friendly_address(connect: Connect, ses: LocalSES) -> None:
    """It's recommended you use an outgoing address like `no-reply@yourdomain.com` and have that
    address reply with a friendly "Your email was not received, please visit Connect to comment."
    """
    # Such an answer is mail from elsewhere; the app's part is that it goes out as is.
    connect.send("jane@example.org", reply_to=["no-reply@yourdomain.com"])
    connect.deliver()
    [mail] = ses.mailbox()
    assert mail.sender == "no-reply@connect.example.org"
    assert mail.message["Reply-To"] == "no-reply@yourdomain.com"


# Handling Bounces


def test_unsubscribe_is_built_in(connect: Connect) -> None:
    """Connect has a built-in 'Unsubscribe' feature."""
    assert connect.get("/mail/unsubscribe/thanks/")[0] == 200
    assert connect.read(UNSUBSCRIBE) == []


def test_each_message_checks_the_table(connect: Connect, ses: LocalSES) -> None:
    """Each outgoing message checks the open_connect.mailer.models.Unsubscribe table for a record
    that matches the outgoing email address."""
    connect.send("Jane@Example.org", "joe@example.org")  # checked, and there was none
    connect.unsubscribe("jane@example.org")
    connect.deliver()  # checked again
    assert [mail.recipients for mail in ses.mailbox()] == [("joe@example.org",)]


def test_it_is_discarded(connect: Connect, ses: LocalSES) -> None:
    """If a record is found, the outgoing message is discarded."""
    connect.unsubscribe("jane@example.org")
    assert connect.send("jane@example.org") == 0
    assert connect.deliver() == 0
    assert ses.mailbox() == []
    assert count_statuses(connect) == {"suppressed": 1}


def test_bounces_and_complaints_come_in(connect: Connect) -> None:
    """Installed by default is OFA's in-house-built Django Bouncy application, which will allow
    you to send bounces and spam complaints from SES directly into Connect via Amazon's Simple
    Notification Service (or SNS.)"""
    assert connect.post_feedback(make_bounce(["jane@example.org"])) == 200
    assert connect.post_feedback(make_complaint(["joe@example.org"])) == 200
    assert [row["address"] for row in connect.read("django_bouncy.Bounce")] == ["jane@example.org"]
    assert [row["address"] for row in connect.read("django_bouncy.Complaint")] == [
        "joe@example.org"
    ]


def test_who_is_denied(connect: Connect) -> None:
    """Hard bounces and complaints are configured to create Unsubscribe objects in Connect, which
    will result in the app being denied."""
    connect.post_feedback(make_bounce(["jane@example.org"]))
    connect.post_feedback(make_complaint(["joe@example.org"]))
    connect.post_feedback(make_bounce(["ann@example.org"], bounce_type="Transient"))
    assert {row["address"]: row["source"] for row in connect.read(UNSUBSCRIBE)} == {
        "jane@example.org": "bounce",
        "joe@example.org": "complaint",
    }
    assert connect.send("jane@example.org", "joe@example.org", "ann@example.org") == 1


@pytest.mark.parametrize(
    "name",
    [
        "BOUNCY_TOPIC_ARN",
        "BOUNCY_AUTO_SUBSCRIBE",
        "BOUNCY_KEY_CACHE",
        "BOUNCY_CERT_DOMAIN_REGEX",
        "BOUNCY_SUBSCRIBE_DOMAIN_REGEX",
        "BOUNCY_VERIFY_CERTIFICATE",
    ],
)
def test_what_its_readme_configures(name: str) -> None:
    """More details about configuring Django Bouncy can be found in the Django Bouncy Readme."""
    settings = (ROOT / "docs" / "settings.rst").read_text("utf-8")
    assert re.search(rf"^( +{name}$|``{name}``)", settings, re.MULTILINE)


def test_closed_by_default(deploy: Callable[..., Connect]) -> None:
    """In order to prevent nefarious third parties from bulk un-subscribing connect members, by
    default BOUNCY_AUTO_SUBSCRIBE is set to False and BOUNCY_TOPIC_ARN is empty."""
    connect = deploy("BOUNCY_AUTO_SUBSCRIBE", "BOUNCY_TOPIC_ARN")
    assert connect.get_conf("auto_subscribe") is False
    assert connect.get_conf("topic_arns") == []
    assert connect.post_feedback(make_bounce(["jane@example.org"])) == 400
    assert connect.read(UNSUBSCRIBE) == []


def test_opened_by_the_environment(connect: Connect) -> None:
    """Both of these can be overridden by setting their relevant environment variables."""
    assert connect.get_conf("auto_subscribe") is True
    assert connect.get_conf("topic_arns") == [HEROKU["BOUNCY_TOPIC_ARN"]]
    assert connect.post_feedback(make_bounce(["jane@example.org"])) == 200


def test_the_path(connect: Connect) -> None:
    """The path Django Bouncy is installed at on Connect is
    https://connect.yourdomain.local/mail/bouncy/."""
    assert connect.get(WEBHOOK)[0] == 404  # SNS posts
    assert connect.post(WEBHOOK, "{}")[0] == 400
    assert connect.post_feedback(make_bounce(["jane@example.org"])) == 200


def test_a_path_that_is_not_exempt_is_named(connect: Connect) -> None:
    """It's important that the Django Bouncy path is included in the LOGIN_EXEMPT_URLS list in
    the connect.settings.authentication_settings settings file."""
    connect.set_setting("LOGIN_EXEMPT_URLS", [r"^user/*", r"^mail/unsubscribe/"])
    [message] = connect.check()
    assert message.startswith("connect_mailer.W007 /mail/bouncy/ is not in LOGIN_EXEMPT_URLS")


def test_otherwise_sns_is_sent_to_the_login(connect: Connect) -> None:
    """Otherwise Connect will attempt to forward Amazon SNS to your login provider."""
    connect.set_setting("LOGIN_EXEMPT_URLS", [r"^user/*", r"^mail/unsubscribe/"])
    assert connect.post(WEBHOOK, "{}")[:2] == [302, "/user/login/?next=/mail/bouncy/"]


def test_exempt_by_default(connect: Connect) -> None:
    """By default mail/* is in that list."""
    assert "^mail/*" in connect.get_setting("LOGIN_EXEMPT_URLS")
    assert connect.post_feedback(make_bounce(["jane@example.org"])) == 200

"""The signer: what users test their receivers with."""

from __future__ import annotations

import pytest
from django.core.cache import caches
from django_bouncy.models import Bounce, Complaint, Delivery

from connect_mailer.models import MESSAGE_ID_TAG
from connect_mailer.testing import sns
from connect_mailer.testing.http import Answer, Ending, HTTPServer, Request
from connect_mailer.testing.sns import (
    TOPIC_ARN,
    SNSSigner,
    make_bounce,
    make_complaint,
    make_delivery,
    make_event,
    make_mail,
)

URL = "/mail/bouncy/"


@pytest.fixture(scope="module")
def signer() -> SNSSigner:
    return SNSSigner.generate()


@pytest.fixture(autouse=True)
def _listening(settings):
    settings.ROOT_URLCONF = "tests.feedback.urls"
    settings.BOUNCY_TOPIC_ARN = TOPIC_ARN


def test_the_tag_is_the_apps_own():
    assert sns.MESSAGE_ID_TAG == MESSAGE_ID_TAG


def test_a_signer_goes_to_another_process_as_text(signer):
    other = SNSSigner.from_pem(signer.to_pem())
    assert other.certificate_pem == signer.certificate_pem
    assert other.certificate_url == signer.certificate_url
    assert "PRIVATE" not in signer.certificate_pem


@pytest.mark.django_db
@pytest.mark.parametrize("version", ["1", "2"])
def test_it_is_trusted_only_in_the_block(client, signer, version):
    with signer.trusted():
        body = signer.notification("x", version=version)
        assert client.post(URL, body, content_type="text/plain").status_code == 200
        body = signer.unsubscribe_confirmation(version=version)
        assert client.post(URL, body, content_type="text/plain").status_code == 200
    assert caches["default"].get(signer.certificate_url) is None


@pytest.mark.django_db
def test_the_certificate_goes_into_the_sites_own_cache(signer, settings):
    locmem = "django.core.cache.backends.locmem.LocMemCache"
    settings.CACHES = {
        "default": {"BACKEND": locmem},
        "keys": {"BACKEND": locmem, "LOCATION": "keys"},
    }
    settings.BOUNCY_KEY_CACHE = "keys"
    with signer.trusted():
        assert caches["default"].get(signer.certificate_url) is None
        assert caches["keys"].get(signer.certificate_url) == signer.certificate_pem


def test_it_posts_as_sns_does(signer, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    requests, statuses = [], iter((200, 400, 503))

    def answer(request: Request) -> Answer:
        requests.append(request)
        return Answer(status=next(statuses), ending=Ending.CLOSE)

    server = HTTPServer(answer)
    server.start()
    body = signer.notification("é")
    try:
        assert [signer.post(f"{server.url}{URL}", body) for _ in range(3)] == [200, 400, 503]
    finally:
        server.close()
    request = requests[0]
    assert (request.method, request.path, request.body) == ("POST", URL, body.encode())
    assert request.headers["content-type"] == "text/plain; charset=UTF-8"
    assert request.headers["x-amz-sns-message-type"] == "Notification"


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("message", "table"),
    [
        (make_bounce(["a@example.com"]), Bounce),
        (make_complaint(["a@example.com"]), Complaint),
        (make_delivery(["a@example.com"], event=True), Delivery),
    ],
)
def test_what_it_signs_is_taken(client, signer, message, table):
    with signer.trusted():
        client.post(URL, signer.notification(message), content_type="text/plain")
    assert table.objects.get().address == "a@example.com"


def test_events_have_their_forms():
    mail = make_mail(["a@example.com"], tag="t", ses_message_id="i")
    assert mail["tags"] == {MESSAGE_ID_TAG: ["t"]}
    event = make_event("Reject", {"reason": "Bad content"}, mail=mail)
    assert event == {"eventType": "Reject", "reject": {"reason": "Bad content"}, "mail": mail}
    assert make_bounce(["a@example.com"])["notificationType"] == "Bounce"
    assert make_bounce(["a@example.com"])["mail"]["destination"] == ["a@example.com"]


def test_headers_are_those_of_sns(signer):
    headers = sns.make_headers(signer.subscription_confirmation())
    assert headers["x-amz-sns-message-type"] == "SubscriptionConfirmation"
    assert headers["x-amz-sns-topic-arn"] == TOPIC_ARN
    assert headers["Content-Type"] == "text/plain; charset=UTF-8"

"""Mail about errors, set up as the README shows: through SES, past the outbox."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import django
import pytest
from django.core.mail import EmailMessage
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from django.utils.log import AdminEmailHandler

from connect_mailer.backend import ConnectMailerBackend
from connect_mailer.models import OutgoingMessage
from connect_mailer.testing.ses import LocalSES

pytestmark = pytest.mark.django_db(transaction=True)

SES = "connect_mailer.backend.SESBackend"


def fail(request: HttpRequest) -> HttpResponse:
    """A view that queues mail and then breaks, in one transaction."""
    ConnectMailerBackend().send_messages([EmailMessage("Hi", "", None, ["jo@example.org"])])
    raise RuntimeError("broken")


urlpatterns = [path("fail/", fail)]


@pytest.fixture
def ses(settings: Any) -> Iterator[LocalSES]:
    with LocalSES() as server:
        settings.AWS_ACCESS_KEY_ID = settings.AWS_SECRET_ACCESS_KEY = "test"
        settings.CONNECT_MAILER = {"SES_REGION": "us-east-1", "SES_ENDPOINT_URL": server.url}
        yield server


@pytest.fixture
def handler(settings: Any) -> Iterator[None]:
    """Django's handler of the "django" logger, with the way out of the README."""
    address = "admin@example.com"
    settings.ADMINS = [address] if django.VERSION >= (6, 0) else [("Admin", address)]
    way_out = {"email_backend": SES}
    if hasattr(settings, "MAILERS"):
        settings.MAILERS = {**settings.MAILERS, "errors": {"BACKEND": SES}}
        way_out = {"using": "errors"}
    made = AdminEmailHandler(**way_out)
    logger = logging.getLogger("django.request")
    logger.addHandler(made)
    yield
    logger.removeHandler(made)


def test_a_view_that_fails_in_atomic_requests(
    ses: LocalSES, handler: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import connection

    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    settings.ROOT_URLCONF = __name__

    response = Client(raise_request_exception=False).get("/fail/")

    assert response.status_code == 500
    (mail,) = ses.mailbox()
    assert mail.recipients == ("admin@example.com",)
    assert "broken" in mail.mime.decode()
    assert OutgoingMessage.objects.count() == 0  # rolled back with the request

"""URLs of the site: those of the test site, and a page that sends."""

from __future__ import annotations

from django.core.mail import EmailMessage
from django.http import HttpRequest, HttpResponse
from django.urls import path

from connect_mailer.backend import ConnectMailerBackend
from tests.urls import urlpatterns as test_urlpatterns


def send(request: HttpRequest, name: str) -> HttpResponse:
    """Queue a message in the transaction of the request."""
    message = EmailMessage("Hi", "Text", None, [f"{name}@example.org"])
    return HttpResponse(str(ConnectMailerBackend().send_messages([message])))


urlpatterns = [*test_urlpatterns, path("send/<name>/", send)]

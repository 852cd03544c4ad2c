"""A site that listens to a signer's topic and trusts its certificate; it downloads nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.http import HttpResponse
from django.test import Client

from connect_mailer.exceptions import NotificationUndecided
from connect_mailer.feedback import sns, webhook
from connect_mailer.testing.sns import TOPIC_ARN, SNSSigner

Post = Callable[..., HttpResponse]


@functools.cache
def _make_signer() -> SNSSigner:
    return SNSSigner.generate()


@pytest.fixture(scope="session")
def signer() -> SNSSigner:
    return _make_signer()


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that the webhook tried to download; nothing is there."""
    asked: list[str] = []

    def download(host: str, target: str) -> bytes:
        asked.append(f"https://{host}{target}")
        raise NotificationUndecided("nothing is downloaded in tests")

    monkeypatch.setattr(webhook, "certificates", sns.Certificates(download))
    return asked


@pytest.fixture(autouse=True)
def site(settings, signer: SNSSigner, downloads: list[str], monkeypatch) -> Iterator[None]:
    settings.ROOT_URLCONF = "tests.feedback.urls"
    settings.BOUNCY_TOPIC_ARN = [TOPIC_ARN]
    monkeypatch.setattr(webhook, "_topic_logged_at", None)
    # A machine with much to do may stand still for longer than a cache is waited for.
    monkeypatch.setattr(sns, "CACHE_SECONDS", 8.0)
    signer.trust()
    yield
    caches["default"].clear()


@pytest.fixture
def post() -> Post:
    client = Client()

    def post(body: str | bytes, *, method: str = "POST", **headers: Any) -> HttpResponse:
        headers.setdefault("content_type", "text/plain; charset=UTF-8")
        # As bytes: the client's post() would decode them first.
        data = body if isinstance(body, bytes) else body.encode()
        return client.generic(method, "/mail/bouncy/", data, **headers)

    return post

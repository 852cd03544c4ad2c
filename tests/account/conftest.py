"""An account at the local SES, which the commands ask."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import call_command

from connect_mailer.testing import LocalSES


@pytest.fixture
def ses(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[LocalSES]:
    """The local SES, to which all of AWS leads."""
    with LocalSES() as server:
        for name in ("SNS", "SQS", "STS"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{name}", server.url)
        settings.AWS_ACCESS_KEY_ID = settings.AWS_SECRET_ACCESS_KEY = "test"
        settings.CONNECT_MAILER = {
            **settings.CONNECT_MAILER,
            "SES_ENDPOINT_URL": server.url,
            "SES_REGION": "eu-west-1",
        }
        yield server


@pytest.fixture
def run() -> Callable[..., str]:
    """Run a command; return what it wrote."""

    def call(name: str, *args: str, **options: Any) -> str:
        output = io.StringIO()
        call_command(name, *args, stdout=output, stderr=output, **options)
        return output.getvalue()

    return call

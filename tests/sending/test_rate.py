"""The rate: what the settings say, capped by what SES says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from connect_mailer.sending.rate import REFRESH_SECONDS, RETRY_SECONDS, AccountRate
from connect_mailer.sending.ses import SESClient
from connect_mailer.sending.transport import get_ses_client
from connect_mailer.testing.ses import Fault, LocalSES


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ses(settings: Any) -> Iterator[LocalSES]:
    with LocalSES(rate=14) as server:
        settings.AWS_ACCESS_KEY_ID = settings.AWS_SECRET_ACCESS_KEY = "test"
        settings.CONNECT_MAILER = {"SES_REGION": "us-east-1", "SES_ENDPOINT_URL": server.url}
        yield server


@pytest.fixture
def client(ses: LocalSES) -> SESClient:
    return get_ses_client()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(("rate", "expected"), [("auto", 14.0), (5, 5.0), (500, 14.0)])
def test_a_number_is_capped_by_what_ses_says(
    client: SESClient, settings: Any, rate: Any, expected: float
) -> None:
    settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "RATE": rate}

    assert AccountRate().get(client) == expected


@pytest.mark.parametrize(("rate", "expected"), [("auto", None), (5, 5.0)])
def test_other_transports_are_paced_only_by_a_number(
    settings: Any, rate: Any, expected: float | None
) -> None:
    settings.CONNECT_MAILER = {"RATE": rate}

    assert AccountRate().get(None) == expected


def test_the_answer_is_kept_and_refreshed(ses: LocalSES, client: SESClient, clock: Clock) -> None:
    rate = AccountRate(clock)
    assert rate.get(client) == 14.0
    ses.configure(rate=50)

    assert rate.get(client) == 14.0
    clock.now += REFRESH_SECONDS
    assert rate.get(client) == 50.0


def test_not_allowed_to_ask(
    ses: LocalSES, client: SESClient, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    ses.configure(may_get_account=False)
    rate = AccountRate()

    assert rate.get(client) == rate.get(client) == 1.0
    assert len(caplog.records) == 1
    assert "ses:GetAccount" in caplog.text
    settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "RATE": 5}
    assert rate.get(client) == 5.0


def test_the_last_answer_holds_while_ses_is_out_of_reach(
    ses: LocalSES, client: SESClient, clock: Clock
) -> None:
    rate = AccountRate(clock)
    assert rate.get(client) == 14.0
    ses.configure(rate=50)
    ses.inject(Fault(operation="GetAccount", code="InternalFailure", status=500))

    clock.now += REFRESH_SECONDS
    assert rate.get(client) == 14.0
    clock.now += RETRY_SECONDS
    assert rate.get(client) == 50.0


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_rate_that_is_none(
    client: SESClient, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    account = client.get_account()
    monkeypatch.setattr(client, "get_account", lambda: replace(account, max_send_rate=rate))

    assert AccountRate().get(client) == 1.0


def test_nothing_known_yet(ses: LocalSES, client: SESClient) -> None:
    ses.inject(Fault(operation="GetAccount", code="InternalFailure", status=500))

    assert AccountRate().get(client) == 1.0

"""``django_bouncy.utils`` on this app's own verification."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from connect_mailer.bouncy import utils
from connect_mailer.feedback import sns
from connect_mailer.testing import SNSSigner


@pytest.fixture
def signer(settings: Any) -> SNSSigner:
    signer = SNSSigner.generate()
    settings.BOUNCY_TOPIC_ARN = [signer.topic_arn]
    signer.trust()
    return signer


def test_what_sns_signed_is_verified(signer: SNSSigner, settings: Any) -> None:
    data = json.loads(signer.notification({"a": 1}))

    assert utils.verify_notification(data)
    assert not utils.verify_notification({**data, "Message": "other"})
    settings.BOUNCY_TOPIC_ARN = []
    assert not utils.verify_notification(data)


def test_a_forged_subscription_is_not_approved(signer: SNSSigner) -> None:
    data = json.loads(signer.notification({"a": 1}))

    assert (
        utils.approve_subscription({**data, "Type": "SubscriptionConfirmation"}).status_code == 400
    )


@pytest.mark.parametrize("kind", ["Notification", "UnsubscribeConfirmation"])
def test_what_asks_for_no_subscription_approves_none(
    signer: SNSSigner, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    called = []
    monkeypatch.setattr(sns, "fetch", lambda *args, **kwargs: called.append(args))
    make = signer.notification if kind == "Notification" else signer.unsubscribe_confirmation
    data = json.loads(make({"a": 1}) if kind == "Notification" else make())

    assert utils.approve_subscription(data).status_code == 400
    assert not called


def test_times(settings: Any) -> None:
    assert utils.clean_time("2014-05-28T22:41:02.000Z") == datetime(
        2014, 5, 28, 22, 41, 2, tzinfo=UTC
    )
    settings.USE_TZ = False
    assert utils.clean_time("2014-05-28T23:41:02+01:00") == datetime(2014, 5, 28, 22, 41, 2)  # noqa: DTZ001
    with pytest.raises(ValueError, match="yesterday"):
        utils.clean_time("yesterday")

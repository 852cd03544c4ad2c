"""Settings: defaults, the old names, and errors that name value and way out."""

from __future__ import annotations

import os
import ssl
from typing import Any

import pytest
from celery import current_app

from connect_mailer.conf import SES_BACKEND, Conf, conf
from connect_mailer.exceptions import ConfigurationError


@pytest.fixture(autouse=True)
def bare(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the app, and none of its names in the environment."""
    settings.CONNECT_MAILER = {}
    for name in list(os.environ):
        if name.startswith(("AWS_", "BOUNCY_", "CUCUMBER_", "EMAIL_", "ORIG")):
            monkeypatch.delenv(name)


def test_defaults() -> None:
    assert conf.transport == SES_BACKEND
    assert conf.rate == "auto"
    assert conf.queue is None
    assert (conf.max_attempts, conf.retry_delay_seconds) == (60, 60)
    assert (conf.concurrency, conf.max_drains, conf.drain_seconds) == (50, 2, 20)
    assert (conf.lease_seconds, conf.pause_seconds, conf.in_doubt) == (300, 60, "resend")
    assert (conf.keep_days, conf.keep_bodies_days) == (30, 0)
    assert (conf.topic_arns, conf.auto_subscribe, conf.key_cache) == ((), False, "default")
    assert conf.unsubscribe_base_url == ""


@pytest.mark.parametrize(
    "path",
    [
        "seacucumber.backend.SESBackend",
        "connect_mailer.backend.ConnectMailerBackend",
        "connect_mailer.backend.TransactionalBackend",
        "connect_mailer.backend.SESBackend",
        "",
    ],
)
@pytest.mark.parametrize("name", ["EMAIL_BACKEND", "ORIGINAL_EMAIL_BACKEND"])
def test_the_old_environment_means_ses(
    monkeypatch: pytest.MonkeyPatch, name: str, path: str
) -> None:
    monkeypatch.setenv(name, path)

    assert conf.transport == SES_BACKEND


def test_transport_by_precedence(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_BACKEND", "a.B")
    assert conf.transport == "a.B"
    settings.ORIGINAL_EMAIL_BACKEND = "c.D"
    assert conf.transport == "c.D"
    settings.CONNECT_MAILER = {"TRANSPORT": "e.F"}
    assert conf.transport == "e.F"
    settings.CONNECT_MAILER = {"TRANSPORT": "seacucumber.backend.SESBackend"}
    assert conf.is_ses


def test_an_alias_of_ses_is_ses(settings: Any) -> None:
    settings.MAILERS = {"errors": {"BACKEND": SES_BACKEND}, "other": {"BACKEND": "a.B"}}
    settings.CONNECT_MAILER = {"TRANSPORT": "errors"}
    assert conf.is_ses
    settings.CONNECT_MAILER = {"TRANSPORT": "other"}
    assert conf.transport == "other"


@pytest.mark.parametrize(
    ("value", "rate"),
    [(14, 14.0), ("14", 14.0), ("14/s", 14.0), ("30/m", 0.5), ("3600/h", 1.0), (0.5, 0.5)],
)
def test_rate(settings: Any, monkeypatch: pytest.MonkeyPatch, value: object, rate: float) -> None:
    monkeypatch.setenv("CUCUMBER_RATE_LIMIT", str(value))
    assert conf.rate == rate
    settings.CONNECT_MAILER = {"RATE": value}
    assert conf.rate == rate


@pytest.mark.parametrize("value", [0, -1, "fast", "1/d", "1/", "inf", "nan", True, [], "1/s/s"])
def test_wrong_rate_is_named(settings: Any, value: object) -> None:
    settings.CONNECT_MAILER = {"RATE": value}

    if value == "1/":
        assert conf.rate == 1.0
        return
    with pytest.raises(ConfigurationError) as caught:
        _ = conf.rate
    assert repr(value) in str(caught.value)
    assert "'auto'" in str(caught.value)


@pytest.mark.parametrize(
    ("broker", "url"),
    [
        ("redis://cache:6379/1", "redis://cache:6379/1"),
        (["redis://one:6379/0", "redis://two:6379/0"], "redis://one:6379/0"),
        ("redis://one:6379/0;redis://two:6379/0", "redis://one:6379/0"),
        ("redis+socket:///run/redis.sock?virtual_host=3", "unix:///run/redis.sock?db=3"),
        ("rediss://cache:6380/0", "rediss://cache:6380/0"),
        ("amqp://rabbit//", None),
        ("memory://", None),
        ("sqs://", None),
    ],
)
def test_the_limiter_lives_where_the_broker_is_redis(
    monkeypatch: pytest.MonkeyPatch, broker: object, url: str | None
) -> None:
    monkeypatch.setattr(current_app.conf, "broker_url", broker)

    assert (conf.redis.url if conf.redis else None) == url


@pytest.mark.parametrize("spelling", ["none", "CERT_NONE", "cert_none"])
def test_tls_that_verifies_nothing(settings: Any, spelling: str) -> None:
    settings.CONNECT_MAILER = {"REDIS_URL": f"rediss://h:1/0?ssl_cert_reqs={spelling}"}

    assert conf.redis is not None
    assert conf.redis.url == "rediss://h:1/0"
    assert conf.redis.options == {"ssl_cert_reqs": "none", "ssl_check_hostname": False}


def test_tls_options_of_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current_app.conf, "broker_url", "rediss://h:1/0")
    monkeypatch.setitem(current_app.conf, "broker_use_ssl", {"ssl_cert_reqs": ssl.CERT_NONE})

    assert conf.redis is not None
    assert conf.redis.options["ssl_cert_reqs"] == ssl.CERT_NONE
    assert conf.redis.options["ssl_check_hostname"] is False


def test_no_redis_on_request(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current_app.conf, "broker_url", "redis://cache")
    settings.CONNECT_MAILER = {"REDIS_URL": None}

    assert conf.redis is None


@pytest.mark.parametrize(
    ("value", "arns"),
    [
        (None, ()),
        ("", ()),
        ([], ()),
        ("arn:a", ("arn:a",)),
        ("arn:a, arn:b,", ("arn:a", "arn:b")),
        (["arn:a", "arn:b"], ("arn:a", "arn:b")),
        (("arn:a",), ("arn:a",)),
        ([None], ()),
    ],
)
def test_topics(settings: Any, value: object, arns: tuple[str, ...]) -> None:
    settings.BOUNCY_TOPIC_ARN = value

    assert conf.topic_arns == arns


def test_settings_win_over_the_environment(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOUNCY_TOPIC_ARN", "arn:env")
    monkeypatch.setenv("BOUNCY_AUTO_SUBSCRIBE", "True")
    assert (conf.topic_arns, conf.auto_subscribe) == (("arn:env",), True)
    settings.BOUNCY_TOPIC_ARN = None
    settings.BOUNCY_AUTO_SUBSCRIBE = False
    assert (conf.topic_arns, conf.auto_subscribe) == ((), False)


def test_ses_by_the_old_names(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.AWS_ACCESS_KEY_ID, settings.AWS_SECRET_ACCESS_KEY = "id", "secret"
    monkeypatch.setenv("AWS_SES_REGION_NAME", "eu-west-1")
    monkeypatch.setenv("CUCUMBER_SES_REGION_ENDPOINT", "email.eu-west-1.amazonaws.com")

    assert conf.ses.region == "eu-west-1"
    assert conf.ses.endpoint_url == "https://email.eu-west-1.amazonaws.com"
    assert (conf.ses.access_key_id, conf.ses.secret_access_key) == ("id", "secret")
    assert "secret" not in repr(conf.ses)


@pytest.mark.parametrize("key", ["MAX_ATTEMPTS", "CONCURRENCY", "LEASE_SECONDS", "KEEP_DAYS"])
@pytest.mark.parametrize("value", [-1, 1.5, "many", True, [], float("inf")])
def test_wrong_numbers_are_named(settings: Any, key: str, value: object) -> None:
    settings.CONNECT_MAILER = {key: value}
    name = {
        "MAX_ATTEMPTS": "max_attempts",
        "CONCURRENCY": "concurrency",
        "LEASE_SECONDS": "lease_seconds",
        "KEEP_DAYS": "keep_days",
    }[key]

    with pytest.raises(ConfigurationError, match=key) as caught:
        getattr(conf, name)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("origin", ["www.example.com", "ftp://x", "https://", "https://ü.example"])
def test_wrong_origin_is_named(settings: Any, origin: str) -> None:
    settings.ORIGIN = origin

    with pytest.raises(ConfigurationError, match="ORIGIN"):
        _ = conf.unsubscribe_base_url


def test_addresses_are_hashed_with_the_key_of_the_site(settings: Any) -> None:
    before = conf.hash_address("Jo@example.com")
    assert before == conf.hash_address("jo@example.com")
    assert "jo" not in before
    settings.SECRET_KEY = "another key"
    assert conf.hash_address("jo@example.com") != before


def test_every_property_has_a_default() -> None:
    for name, attribute in vars(Conf).items():
        if isinstance(attribute, property):
            getattr(conf, name)


def test_who_writes_to_ses(settings: Any) -> None:
    settings.CONNECT_MAILER = {}
    assert conf.is_lean
    settings.CONNECT_MAILER = {"SES_CLIENT": "boto3"}
    assert not conf.is_lean
    settings.CONNECT_MAILER = {"SES_CLIENT": "boto"}
    with pytest.raises(ConfigurationError, match="'lean' or 'boto3'"):
        assert conf.is_lean

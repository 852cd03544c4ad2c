"""``mailer_doctor``: against a good set-up, and against one broken part after the other."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from celery import current_app
from django.core.management import CommandError, call_command
from django.utils import timezone

from connect_mailer.account import site
from connect_mailer.account.findings import Level
from connect_mailer.models import Lease, OutgoingMessage
from connect_mailer.sending import leases
from connect_mailer.sending.wakeups import BROKER_DOWN, PAUSE
from connect_mailer.testing import Fault, LocalSES, deliver_all
from connect_mailer.testing.account import LocalIdentity, LocalSubscription, LocalTopic
from tests import servers

pytestmark = pytest.mark.django_db(transaction=True)

TOPIC = "arn:aws:sns:eu-west-1:123456789012:mail-feedback"
HOUR = json.dumps(
    {"healthyRetryPolicy": {"minDelayTarget": 60, "maxDelayTarget": 60, "numRetries": 59}}
)


@pytest.fixture
def site_url(live_server: Any, settings: Any) -> str:
    return str(live_server.url)


@pytest.fixture(autouse=True)
def _good(
    ses: LocalSES,
    settings: Any,
    site_url: str,
    valkey: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everything as it should be."""
    settings.DEBUG = True  # so that http and a Redis on this machine are right
    settings.BOUNCY_TOPIC_ARN = [TOPIC]
    settings.DEFAULT_FROM_EMAIL = "Site <site@example.com>"
    settings.CONNECT_MAILER = {
        **settings.CONNECT_MAILER,
        "SES_CONFIGURATION_SET": "site",
        "REDIS_URL": servers.valkey_url(),
        "UNSUBSCRIBE_BASE_URL": site_url,
    }
    ses.account.identities["example.com"] = LocalIdentity()
    ses.account.configuration_sets["site"] = {
        "sns": {
            "Enabled": True,
            "MatchingEventTypes": ["SEND", "DELIVERY", "BOUNCE", "COMPLAINT"],
            "SnsDestination": {"TopicArn": TOPIC},
        }
    }
    ses.account.topics[TOPIC] = LocalTopic(
        subscriptions={
            f"{TOPIC}:1": LocalSubscription(
                protocol="http",
                endpoint=f"{site_url}/mail/bouncy/",
                attributes={"DeliveryPolicy": HOUR, "RedrivePolicy": "{}"},
            )
        }
    )
    leases.acquire("sweep", 50, using="default")


class Doctor:
    """Runs the command."""

    def __call__(self, *args: str) -> str:
        """What it wrote, whatever it exits with."""
        self.code = 0
        output = io.StringIO()
        try:
            call_command("mailer_doctor", *args, stdout=output, stderr=output)
        except SystemExit as end:
            self.code = end.code
        return output.getvalue()

    def find(self, *args: str) -> list[dict[str, str]]:
        """What is not in order."""
        findings = json.loads(self("--json", *args))
        assert self.code == any(one["level"] == "error" for one in findings)
        return [one for one in findings if one["level"] != "ok"]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """One that doesn't ask workers, who are waited for."""
    monkeypatch.setattr(site, "_examine_workers", lambda: iter(()))
    return Doctor()


class Inspect:
    """What workers answer; `tests/test_workers.py` asks real ones."""

    def __init__(self, **tasks: list[str]) -> None:
        self.tasks = tasks

    def __call__(self, timeout: float) -> Inspect:
        return self

    def active_queues(self) -> dict[str, Any]:
        return {name: [{"name": "celery"}] for name in self.tasks}

    def registered(self) -> dict[str, Any]:
        return self.tasks


DELIVER = "connect_mailer.tasks.deliver"


@pytest.mark.parametrize(
    ("workers", "queue", "words"),
    [
        ({"one": [DELIVER]}, None, ""),
        ({"one": [], "two": [DELIVER]}, None, ""),
        ({"one": [DELIVER]}, "mail", "'mail'"),
        ({"one": []}, None, "don't know this app's tasks"),
    ],
)
def test_workers(
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    workers: dict[str, list[str]],
    queue: str | None,
    words: str,
) -> None:
    monkeypatch.setattr(current_app.control, "inspect", Inspect(**workers))
    settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "QUEUE": queue}

    found = Doctor().find()

    assert [one["part"] for one in found] == (["worker"] if words else [])
    assert words in "".join(one["text"] for one in found)


def test_no_worker_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "INSPECT_SECONDS", 0.1)

    (found,) = Doctor().find()

    assert (found["part"], found["level"]) == ("worker", "error"), found["text"]


def test_each_part_has_a_line(doctor: Doctor) -> None:
    written = doctor("--no-color")

    parts = {line.split()[1].rstrip(":") for line in written.splitlines() if "  " in line}
    assert parts >= {
        *("settings", "queue", "sweep", "redis", "webhook", "links", "credentials"),
        *("region", "sandbox", "sending", "rate", "sender", "dkim", "mail-from"),
        *("configuration-set", "events", "topic", "subscription", "delivery-policy"),
        "dead-letter-queue",
    }
    assert written.endswith("0 errors, 0 warnings.\n")


Break = Callable[[LocalSES, Any], object]


def change(**values: Any) -> Break:
    """Keys of CONNECT_MAILER."""

    def break_it(ses: LocalSES, settings: Any) -> None:
        settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, **values}

    return break_it


def set_(**values: Any) -> Break:
    """Settings."""
    return lambda ses, settings: [setattr(settings, *item) for item in values.items()]


def subscription(ses: LocalSES) -> LocalSubscription:
    (found,) = ses.account.topics[TOPIC].subscriptions.values()
    return found


def publish(*types: str, **values: Any) -> Break:
    return lambda ses, settings: ses.account.configuration_sets["site"]["sns"].update(
        {"MatchingEventTypes": list(types), **values}
    )


def identity(**values: Any) -> Break:
    return lambda ses, settings: ses.account.identities.update(
        {"example.com": LocalIdentity(**values)}
    )


def refuse(code: str) -> Break:
    return lambda ses, settings: ses.inject(Fault(operation="GetAccount", code=code, status=403))


def wait_for_long(ses: LocalSES, settings: Any) -> None:
    OutgoingMessage.objects.create(
        sender="site@example.com", due_at=timezone.now() - timedelta(hours=1)
    )


BROKEN: dict[str, tuple[Break, str, Level, str]] = {
    "wrong credentials": (
        lambda ses, settings: setattr(ses.account, "are_credentials_valid", False),
        *("credentials", Level.ERROR, "UnrecognizedClientException"),
    ),
    "a key that is unknown": (
        refuse("InvalidClientTokenId"),
        *("credentials", Level.ERROR, "AWS_ACCESS_KEY_ID is whole"),
    ),
    "a secret that is not the key's": (
        refuse("SignatureDoesNotMatch"),
        *("credentials", Level.ERROR, "SMTP"),
    ),
    "a session that is over": (
        refuse("ExpiredTokenException"),
        *("credentials", Level.ERROR, "The time of AWS_SESSION_TOKEN is over"),
    ),
    "SES out of reach": (
        change(SES_ENDPOINT_URL="http://127.0.0.1:1"),
        *("credentials", Level.ERROR, "ses:GetAccount"),
    ),
    "a policy without GetAccount": (
        lambda ses, settings: ses.account.denied.add("ses:GetAccount"),
        *("policy", Level.WARNING, "ses:GetAccount"),
    ),
    "a policy without SNS": (
        lambda ses, settings: ses.account.denied.add("sns:ListSubscriptionsByTopic"),
        *("policy", Level.WARNING, "sns:ListSubscriptionsByTopic"),
    ),
    "no region": (change(SES_REGION=None), "region", Level.NOTE, "us-east-1"),
    "sandbox": (
        lambda ses, settings: ses.configure(production_access=False),
        *("sandbox", Level.ERROR, "sandbox"),
    ),
    "sending paused": (
        lambda ses, settings: ses.configure(sending_paused=True),
        *("sending", Level.ERROR, "off"),
    ),
    "suspended": (
        lambda ses, settings: ses.configure(suspended=True),
        *("sending", Level.ERROR, "SHUTDOWN"),
    ),
    "quota used up": (
        lambda ses, settings: ses.configure(daily_quota=0),
        *("quota", Level.ERROR, "used up"),
    ),
    "sender unknown": (
        lambda ses, settings: ses.account.identities.clear(),
        *("sender", Level.ERROR, "knows neither"),
    ),
    "sender not verified": (identity(is_verified=False), "sender", Level.ERROR, "not verified"),
    "sender is no address": (
        set_(DEFAULT_FROM_EMAIL="Site"),
        *("sender", Level.ERROR, "DEFAULT_FROM_EMAIL"),
    ),
    "server's sender unknown": (
        set_(
            ADMINS=["ops@example.net"],
            SERVER_EMAIL="root@example.org",
            LOGGING_CONFIG=None,
            LOGGING={},
        ),
        *("sender", Level.ERROR, "SERVER_EMAIL"),
    ),
    "no DKIM": (identity(dkim="PENDING"), "dkim", Level.WARNING, "PENDING"),
    "MAIL FROM broken": (identity(mail_from="FAILED"), "mail-from", Level.WARNING, "FAILED"),
    "no MAIL FROM": (identity(mail_from_domain=""), "mail-from", Level.NOTE, "SPF"),
    "no such configuration set": (
        lambda ses, settings: ses.account.configuration_sets.clear(),
        *("configuration-set", Level.ERROR, "'site'"),
    ),
    "no complaints published": (
        publish("BOUNCE", "DELIVERY"),
        *("events", Level.ERROR, "no COMPLAINT"),
    ),
    "destination disabled": (
        publish("BOUNCE", "COMPLAINT", Enabled=False),
        *("events", Level.ERROR, "no BOUNCE"),
    ),
    "published elsewhere": (
        publish("BOUNCE", "COMPLAINT", SnsDestination={"TopicArn": TOPIC + "2"}),
        *("events", Level.ERROR, TOPIC + "2"),
    ),
    "no events that settle": (publish("BOUNCE", "COMPLAINT"), "events", Level.NOTE, "DELIVERY"),
    "no feedback at all": (change(SES_CONFIGURATION_SET=None), "events", Level.ERROR, "no bounces"),
    "feedback twice": (
        identity(topics={"Bounce": TOPIC, "Complaint": TOPIC}),
        *("events", Level.WARNING, "twice"),
    ),
    "topic not in the settings": (
        set_(BOUNCY_TOPIC_ARN=[]),
        *("settings", Level.WARNING, "BOUNCY_TOPIC_ARN"),
    ),
    "topic deleted": (
        lambda ses, settings: ses.account.topics.clear(),
        *("topic", Level.ERROR, TOPIC),
    ),
    "not subscribed": (
        lambda ses, settings: ses.account.topics[TOPIC].subscriptions.clear(),
        *("subscription", Level.ERROR, "no subscription"),
    ),
    "not confirmed": (
        lambda ses, settings: setattr(subscription(ses), "is_confirmed", False),
        *("subscription", Level.ERROR, "confirmed"),
    ),
    "raw delivery": (
        lambda ses, settings: subscription(ses).attributes.update(RawMessageDelivery="true"),
        *("subscription", Level.ERROR, "raw"),
    ),
    "default delivery policy": (
        lambda ses, settings: subscription(ses).attributes.pop("DeliveryPolicy"),
        *("delivery-policy", Level.WARNING, "60 s"),
    ),
    "no dead-letter queue": (
        lambda ses, settings: subscription(ses).attributes.pop("RedrivePolicy"),
        *("dead-letter-queue", Level.WARNING, "lost"),
    ),
    "webhook behind a login": (
        set_(ROOT_URLCONF="tests.account.login_urls"),
        *("webhook", Level.ERROR, "LOGIN_EXEMPT_URLS"),
    ),
    "webhook not included": (
        set_(ROOT_URLCONF="django.contrib.auth.urls"),
        *("webhook", Level.ERROR, "not included"),
    ),
    "site out of reach": (
        change(UNSUBSCRIBE_BASE_URL="http://127.0.0.1:1"),
        *("webhook", Level.ERROR, "nothing"),
    ),
    "rate above SES's": (change(RATE=5000), "rate", Level.NOTE, "5000"),
    "Redis out of reach": (
        change(REDIS_URL="redis://127.0.0.1:1"),
        *("redis", Level.ERROR, "nothing is sent"),
    ),
    "no Redis": (change(REDIS_URL=None), "redis", Level.NOTE, "database"),
    "unknown setting": (change(RTAE=3), "settings", Level.ERROR, "RTAE"),
    "no sweep": (
        lambda ses, settings: Lease.objects.all().delete(),
        *("sweep", Level.WARNING, "swept"),
    ),
    "paused": (
        lambda ses, settings: leases.acquire(PAUSE, 60, using="default", note="Quota exceeded"),
        *("pause", Level.ERROR, "Quota exceeded"),
    ),
    "broker down": (
        lambda ses, settings: leases.acquire(BROKER_DOWN, 60, using="default"),
        *("broker", Level.ERROR, "out of reach"),
    ),
    "mail waits": (wait_for_long, "queue", Level.ERROR, "15 minutes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(name: str, doctor: Doctor, ses: LocalSES, settings: Any) -> None:
    break_it, part, level, words = BROKEN[name]
    break_it(ses, settings)

    found = [one for one in doctor.find() if one["part"] == part]

    assert [one["level"] for one in found] == [level]
    assert words in found[0]["text"] + found[0]["advice"]
    assert level == Level.NOTE or found[0]["advice"]


@pytest.mark.parametrize(
    ("url", "error", "words", "advice"),
    [
        ("redis://:secret@example.com:6379/0", OSError("gone"), "redis://:**@example.com", "URL"),
        ("redis://example.com", ModuleNotFoundError("packaging"), "packaging", "celery[redis]"),
        (None, OSError("refused"), "no broker is set", "URL"),
    ],
)
def test_a_broker_that_can_not_be_asked(
    monkeypatch: pytest.MonkeyPatch, url: str | None, error: Exception, words: str, advice: str
) -> None:
    def fail(timeout: float) -> None:
        raise error

    monkeypatch.setattr(current_app.control, "inspect", fail)
    monkeypatch.setattr(current_app.conf, "broker_url", url)

    (found,) = Doctor().find()

    assert (found["part"], found["level"]) == ("broker", "error")
    assert words in found["text"]
    assert advice in found["advice"]
    assert "secret" not in found["text"]


def test_redis_that_evicts(doctor: Doctor, valkey: redis.Redis) -> None:
    valkey.config_set("maxmemory", "100mb")
    valkey.config_set("maxmemory-policy", "allkeys-lru")
    try:
        (found,) = doctor.find()
    finally:
        valkey.config_set("maxmemory", "0")
        valkey.config_set("maxmemory-policy", "noeviction")
    assert (found["part"], found["level"]) == ("eviction", "warning")


@pytest.mark.parametrize(("seconds", "level"), [(60.0, "warning"), (-3600.0, "error")])
def test_a_clock_that_is_wrong(seconds: float, level: str) -> None:
    (found,) = site.compare_clocks("AWS's", datetime.now(UTC).timestamp() - seconds)

    assert (found.part, found.level) == ("clock", level)
    assert list(site.compare_clocks("AWS's", datetime.now(UTC).timestamp())) == []


def test_the_policy_names_every_action(doctor: Doctor, ses: LocalSES) -> None:
    (statement,) = json.loads(doctor("--policy"))["Statement"]

    assert {"ses:SendEmail", "ses:SendRawEmail", "ses:GetAccount"} <= set(statement["Action"])
    assert "sns:GetSubscriptionAttributes" in statement["Action"]


class TestSend:
    def test_a_message_and_no_event(self, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: deliver_all())

        (found,) = doctor.find("--send", "you@example.org", "--wait", "1")

        assert (found["part"], found["level"]) == ("feedback", "error")

    def test_a_message_and_its_event(self, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
        def pass_time(seconds: float) -> None:
            deliver_all()
            for row in OutgoingMessage.objects.filter(status="sent"):
                row.recipients.update(status="delivered")

        monkeypatch.setattr("time.sleep", pass_time)

        assert doctor.find("--send", "you@example.org") == []

    def test_nobody_delivers(self, doctor: Doctor) -> None:
        (found,) = doctor.find("--send", "you@example.org", "--wait", "0.1")

        assert (found["part"], found["level"]) == ("send", "error")

    def test_no_address(self, doctor: Doctor) -> None:
        (found,) = doctor.find("--send", "you")

        assert "'you'" in found["text"]
        assert not OutgoingMessage.objects.exists()


class TestSetup:
    @pytest.fixture(autouse=True)
    def _bare(self, ses: LocalSES) -> None:
        ses.account.configuration_sets.clear()
        ses.account.topics.clear()

    def set_up(self, doctor: Doctor) -> str:
        return doctor("--setup", "--topic", "mail-feedback", "--yes")

    def test_it_makes_what_the_doctor_asks_for(
        self, doctor: Doctor, ses: LocalSES, settings: Any
    ) -> None:
        written = self.set_up(doctor)

        assert f'BOUNCY_TOPIC_ARN = ["{TOPIC}"]' in written
        assert [one["part"] for one in doctor.find()] == ["subscription"]  # to be confirmed
        subscription(ses).is_confirmed = True
        assert doctor.find() == []
        assert json.loads(ses.account.topics[TOPIC].attributes["Policy"])["Statement"]
        assert "mail-feedback-undelivered" in ses.account.queues

    def test_again_it_has_nothing_to_do(self, doctor: Doctor, ses: LocalSES) -> None:
        self.set_up(doctor)
        subscription(ses).is_confirmed = True

        assert "All of it is there." in self.set_up(doctor)

    def test_it_goes_on_where_it_broke_off(self, doctor: Doctor, ses: LocalSES) -> None:
        ses.account.denied.add("sqs:CreateQueue")
        with pytest.raises(CommandError, match=r"(?s)sqs:CreateQueue.*goes on from there"):
            self.set_up(doctor)
        ses.account.denied.clear()

        written = self.set_up(doctor)

        assert "1. Make the SQS queue" in written
        assert subscription(ses).attributes["DeliveryPolicy"]

    def test_it_mends_a_subscription(self, doctor: Doctor, ses: LocalSES) -> None:
        self.set_up(doctor)
        subscription(ses).is_confirmed = True
        subscription(ses).attributes.clear()

        self.set_up(doctor)

        assert doctor.find() == []

    def test_it_asks_first(
        self, doctor: Doctor, ses: LocalSES, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("builtins.input", lambda prompt: "n")

        with pytest.raises(CommandError, match=r"Nothing was changed"):
            doctor("--setup", "--topic", "mail-feedback")
        assert ses.account.topics == {}

    def test_it_needs_names(self, doctor: Doctor, settings: Any) -> None:
        with pytest.raises(CommandError, match=r"--topic"):
            doctor("--setup")
        settings.CONNECT_MAILER = {"UNSUBSCRIBE_BASE_URL": ""}
        with pytest.raises(CommandError, match="UNSUBSCRIBE_BASE_URL"):
            self.set_up(doctor)

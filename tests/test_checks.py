"""System checks: each mistake is named, and a good set-up is silent."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from celery import current_app
from django.core.checks import run_checks

from connect_mailer.checks import check_sqlite

pytestmark = pytest.mark.django_db  # some of Django's checks ask the database

GOOD = {"UNSUBSCRIBE_BASE_URL": "https://www.example.com"}
QUEUE = "connect_mailer.backend.ConnectMailerBackend"
SES = "connect_mailer.backend.SESBackend"


@pytest.fixture(autouse=True)
def good(settings: Any) -> None:
    settings.CONNECT_MAILER = dict(GOOD)
    settings.BOUNCY_TOPIC_ARN = ["arn:aws:sns:us-east-1:123456789012:feedback"]
    settings.ADMINS = []


def run() -> dict[str, str]:
    """Our messages by id, as one text each."""
    found: dict[str, str] = {}
    for message in run_checks():
        if str(message.id).startswith("connect_mailer."):
            name = str(message.id).partition(".")[2]
            found[name] = f"{found.get(name, '')} {message.msg} {message.hint}"
    return found


def test_a_good_set_up_is_silent() -> None:
    assert run() == {}


@pytest.mark.parametrize(
    ("options", "name", "words"),
    [
        ("nothing", "E001", "'nothing'"),
        ({"RATES": 1}, "E002", 'CONNECT_MAILER["RATES"]'),
        ({"SES_REGON": "eu-west-1"}, "E002", "Did you mean 'SES_REGION'?"),
        ({"xyz": 1}, "E002", "Known keys: CONCURRENCY"),
        ({"SES_REGION": "eu-west-1 "}, "E003", "'eu-west-1 '"),
        ({"SES_ENDPOINT_URL": "localhost:8005"}, "E003", "'localhost:8005'"),
        ({"RATE": "fast"}, "E003", "'fast'"),
        ({"IN_DOUBT": "maybe"}, "E003", "'maybe'"),
        ({"LEASE_SECONDS": 2}, "E003", "at least 5"),
        ({"UNSUBSCRIBE_BASE_URL": "example.com"}, "E003", "'example.com'"),
        ({"TRANSPORT": "no.such.Backend"}, "E004", "no.such.Backend"),
        ({"TRANSPORT": QUEUE}, "E005", "itself"),
        ({"TRANSPORT": "connect_mailer.backend.TransactionalBackend"}, "E005", "itself"),
        ({"LEASE_SECONDS": 10}, "E006", "13 s"),
        ({"UNSUBSCRIBE_BASE_URL": "http://www.example.com"}, "W004", "https"),
        ({"UNSUBSCRIBE_BASE_URL": ""}, "W003", "UNSUBSCRIBE_BASE_URL"),
        ({"UNSUBSCRIBE_MAILTO": "Leave <leave@example.com>"}, "E003", "'Leave <"),
        ({"UNSUBSCRIBE_SPLIT": "no"}, "E003", "True or False"),
        ({"MAILING_LISTS": {"x" * 101: "Too long"}}, "E003", "100 characters"),
        ({"MAILING_LISTS": {"\N{GREEK SMALL LETTER ALPHA}" * 41: "Too long"}}, "E003", "ASCII"),
    ],
)
def test_mistakes_in_the_dict(settings: Any, options: Any, name: str, words: str) -> None:
    settings.CONNECT_MAILER = {**GOOD, **options} if isinstance(options, dict) else options

    found = run()

    assert words in found[name]


def test_good_transports(settings: Any) -> None:
    for path in (
        SES,
        "seacucumber.backend.SESBackend",
        "django.core.mail.backends.smtp.EmailBackend",
    ):
        settings.CONNECT_MAILER = {**GOOD, "TRANSPORT": path}
        assert run() == {}


def test_no_topic(settings: Any) -> None:
    settings.BOUNCY_TOPIC_ARN = None

    assert set(run()) == {"W002"}


def test_topics_that_are_none(settings: Any) -> None:
    settings.BOUNCY_TOPIC_ARN = ["arn:aws:sns:us-east-1:123456789012:feedback", "feedback"]

    assert "'feedback'" in run()["W006"]


def test_a_cache_that_is_not_there(settings: Any) -> None:
    settings.BOUNCY_KEY_CACHE = "keys"

    assert "'keys'" in run()["E008"]


def test_django_bouncy_is_missing(settings: Any) -> None:
    settings.INSTALLED_APPS = [
        name for name in settings.INSTALLED_APPS if name != "connect_mailer.bouncy"
    ]

    assert set(run()) == {"W001"}


def test_verification_can_not_be_switched_off(settings: Any) -> None:
    settings.BOUNCY_VERIFY_CERTIFICATE = False

    assert set(run()) == {"E007"}


@pytest.mark.urls("django.contrib.auth.urls")
def test_links_without_the_page_that_they_lead_to(settings: Any) -> None:
    assert "include('connect_mailer.urls')" in run()["E012"]

    settings.CONNECT_MAILER = {"UNSUBSCRIBE_BASE_URL": ""}
    assert "E012" not in run()


def test_senders_that_ses_refuses(settings: Any) -> None:
    settings.DEFAULT_FROM_EMAIL = "The shop <webmaster@localhost>"
    settings.SERVER_EMAIL = "root@localhost"
    assert "DEFAULT_FROM_EMAIL is 'The shop <webmaster@localhost>'" in run()["W013"]
    assert "SERVER_EMAIL" not in run()["W013"], "it writes to nobody"

    settings.MANAGERS = ["manager@example.com"]
    assert "SERVER_EMAIL is 'root@localhost'" in run()["W013"]

    smtp = "django.core.mail.backends.smtp.EmailBackend"
    settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "TRANSPORT": smtp}
    assert "W013" not in run()


def test_mail_about_errors_that_is_queued(settings: Any) -> None:
    settings.ADMINS = ["admin@example.com"]
    settings.SERVER_EMAIL = "errors@example.com"
    if hasattr(settings, "MAILERS"):
        settings.MAILERS = {"default": {"BACKEND": QUEUE}, "errors": {"BACKEND": SES}}
        way_out = {"using": "errors"}
    else:
        settings.EMAIL_BACKEND = QUEUE
        way_out = {"email_backend": SES}
    handler = {"class": "django.utils.log.AdminEmailHandler"}

    assert set(run()) == {"W005"}
    logging = {"version": 1, "disable_existing_loggers": False}
    settings.LOGGING = {**logging, "handlers": {"mail_admins": {**handler, **way_out}}}
    # Django's own handler is still there, at the logger "django".
    assert set(run()) == {"W005"}
    settings.LOGGING = {**settings.LOGGING, "loggers": {"django": {"handlers": ["mail_admins"]}}}
    assert run() == {}
    settings.LOGGING = {
        **settings.LOGGING,
        "handlers": {**settings.LOGGING["handlers"], "mine": handler},
    }
    assert set(run()) == {"W005"}


@pytest.mark.parametrize("way", ["UNSUBSCRIBE_MAILTO", "SES_CONTACT_LIST"])
def test_another_way_out_is_one(settings: Any, way: str) -> None:
    settings.CONNECT_MAILER = {"UNSUBSCRIBE_BASE_URL": "", way: "leave@example.com"}

    assert run() == {}


def test_signing(settings: Any) -> None:
    settings.DKIM_DOMAIN = "example.com"
    assert "only one of" in run()["W012"]

    settings.DKIM_PRIVATE_KEY = "no key"
    settings.CONNECT_MAILER["SES_CONTACT_LIST"] = "readers"
    found = run()
    assert "DKIM_PRIVATE_KEY can't be read" in found["E011"]
    assert "SES_CONTACT_LIST" in found["W011"]

    settings.DKIM_HEADERS = ["From", "Date"]
    assert "['Date']" in run()["E003"]


@pytest.mark.parametrize(
    ("pattern", "is_refused"),
    [
        (r"sns.[a-z0-9\-]+.amazonaws.com$", True),  # django-bouncy's default
        (r"^sns\.[a-z0-9-]+\.amazonaws\.com", True),
        (r"^sns\.eu-west-1\.amazonaws\.com$", False),
        ("", False),
    ],
)
def test_old_patterns_that_let_strangers_in(settings: Any, pattern: str, is_refused: bool) -> None:
    settings.BOUNCY_CERT_DOMAIN_REGEX = settings.BOUNCY_SUBSCRIBE_DOMAIN_REGEX = pattern

    assert ("E009" in run()) == is_refused


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ([r"^mail/(bouncy|unsubscribe)/"], set()),
        ([r"^mail/bouncy/$", r"^mail/unsubscribe/"], set()),
        ([r"^mail/"], set()),
        ([r"^mail/*"], {"W008"}),  # Connect's own
        ([r"^mail/bouncy/$"], {"W007"}),
        ([r"^accounts/"], {"W007"}),
        ([], {"W007"}),
        ([r".*"], {"W008"}),
    ],
)
def test_login_exempt_urls(settings: Any, patterns: list[str], found: set[str]) -> None:
    settings.LOGIN_EXEMPT_URLS = patterns

    assert set(run()) == found


SQLITE = "django.db.backends.sqlite3"
READY = {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode = WAL;"}


@pytest.mark.parametrize(
    ("database", "is_eager", "warns"),
    [
        ({"ENGINE": SQLITE, "NAME": "site.sqlite3"}, False, True),
        ({"ENGINE": SQLITE, "NAME": "a", "OPTIONS": READY | {"init_command": ""}}, False, True),
        (
            {"ENGINE": SQLITE, "NAME": "a", "OPTIONS": READY | {"transaction_mode": None}},
            False,
            True,
        ),
        ({"ENGINE": SQLITE, "NAME": "a", "OPTIONS": READY}, False, False),
        ({"ENGINE": SQLITE, "NAME": "site.sqlite3"}, True, False),
        ({"ENGINE": SQLITE, "NAME": ":memory:"}, False, False),
        ({"ENGINE": "django.db.backends.postgresql", "NAME": "site"}, False, False),
    ],
)
def test_sqlite_with_workers(
    monkeypatch: Any, settings: Any, database: dict[str, Any], is_eager: bool, warns: bool
) -> None:
    monkeypatch.setitem(current_app.conf, "task_always_eager", is_eager)

    with mock.patch.dict(settings.DATABASES, {"default": database}):
        found = check_sqlite()

    assert [message.id for message in found] == ["connect_mailer.W009"] * warns

"""Each section of ``docs/moving.rst``, followed to the letter on a site that has that app."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from connect_mailer.testing import LocalSES, SNSSigner
from connect_mailer.testing.account import LocalSuppression
from tests import servers
from tests.moving.site import MovingSite, read_section
from tests.site.running import wait_for

TOPIC = "arn:aws:sns:eu-west-1:123456789012:mail-feedback"
SIGNER = SNSSigner.generate(topic_arn=TOPIC)


@pytest.fixture
def ses() -> Iterator[LocalSES]:
    with LocalSES(rate=2000) as server:
        yield server


@pytest.fixture
def make_site(tmp_path: Path, ses: LocalSES, valkey: object) -> Iterator[Callable[..., MovingSite]]:
    with ExitStack() as stack:

        def make(name: str, *packages: str) -> MovingSite:
            site = MovingSite(
                tmp_path,
                name,
                {
                    # boto3's own, so that an old site sends here as well.
                    "AWS_ENDPOINT_URL": ses.url,
                    "AWS_DEFAULT_REGION": "eu-west-1",
                    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
                    "AWS_SECRET_ACCESS_KEY": "secret",
                    "SES_KEY_ID": "AKIAEXAMPLE",
                    "SES_KEY": "secret",
                    "WEBHOOK_SECRET": "a:secret",
                    "BROKER_URL": f"{servers.valkey_url()}/5",
                    "SIGNER": SIGNER.to_pem(),
                    "TOPIC_ARN": TOPIC,
                    "C_FORCE_ROOT": "1",
                },
            )
            stack.callback(site.close)
            site.install(*packages)
            return site

        yield make


def move(site: MovingSite, title: str) -> str:
    """Follow a section; return what its commands printed."""
    blocks = read_section(title)
    assert {block.language for block in blocks} == {"diff", "console"}
    printed = "".join(map(site.follow, blocks))
    assert "connect_mailer.W" not in printed
    assert "connect_mailer.E" not in printed
    return printed


def check(site: MovingSite) -> None:
    """What the page promised of that app's data, and the main job."""
    site.run("python run.py after.py")
    site.run("python run.py try_mail.py")


def list_recipients(ses: LocalSES) -> Counter[str]:
    return Counter(address.lower() for mail in ses.mailbox() for address in mail.recipients)


def test_django_ses(make_site: Callable[..., MovingSite], ses: LocalSES) -> None:
    site = make_site("django-ses", "django-ses[events]~=4.8")
    site.run("python manage.py migrate")
    site.run("python run.py before.py")

    printed = move(site, "django-ses")

    assert "3 read: 2 would be new, 1 known, 0 skipped." in printed
    assert "3 read: 2 new, 1 known, 0 skipped." in printed
    check(site)
    assert list_recipients(ses) == {"old@example.org": 1, "reader@example.org": 1}
    assert ses.mailbox()[-1].configuration_set == "site"


def test_django_anymail(make_site: Callable[..., MovingSite], ses: LocalSES) -> None:
    ses.account.suppressed["bounced@example.org"] = LocalSuppression(reason="BOUNCE")
    ses.account.suppressed["spam@example.org"] = LocalSuppression(reason="COMPLAINT")
    site = make_site("django-anymail", "django-anymail~=15.2")
    site.run("python manage.py migrate")
    site.run("python run.py before.py")

    printed = move(site, "django-anymail")

    assert "2 read: 2 new, 0 known, 0 skipped." in printed
    check(site)
    old, news, _ = ses.mailbox()
    assert (old.recipients, news.recipients) == (("old@example.org",), ("new@example.org",))
    assert old.configuration_set == news.configuration_set == "site"
    assert (news.tags["tag"], news.tags["issue"]) == ("news", "7")


def test_django_post_office(make_site: Callable[..., MovingSite], ses: LocalSES) -> None:
    site = make_site("django-post-office", "django-post-office~=3.12")
    site.run("python manage.py migrate")
    site.run("python run.py before.py")

    printed = move(site, "django-post-office")

    assert "6 queued messages would be taken over." in printed
    assert "4 queued messages are in the outbox, 2 are not." in printed
    assert "is left there: 'nobody' is not an address" in printed
    assert "is left there: Unexpected end of expression in if tag." in printed
    assert "skipped 1: failed to be sent" in printed
    check(site)
    assert list_recipients(ses) == {"jo@example.org": 2, "reader@example.org": 1}


def test_django_mailer(make_site: Callable[..., MovingSite], ses: LocalSES) -> None:
    site = make_site("django-mailer", "django-mailer~=2.3")
    site.run("python manage.py migrate")
    site.run("python run.py before.py")

    printed = move(site, "django-mailer")

    assert "3 read: 2 new, 1 known, 0 skipped." in printed
    assert "6 queued messages would be taken over." in printed
    assert "5 queued messages are in the outbox, 1 are not." in printed
    check(site)
    assert list_recipients(ses) == {
        "jo@example.org": 3,
        "eve@example.org": 1,
        "max@example.org": 1,
        "reader@example.org": 1,
    }


def test_django_celery_email(make_site: Callable[..., MovingSite], ses: LocalSES) -> None:
    site = make_site("django-celery-email", "django-celery-email~=3.0")
    site.run("python manage.py migrate")
    site.run("python run.py before.py")

    move(site, "django-celery-email")

    expected = {f"u{n}@example.org": 1 for n in range(4)}
    expected.update({"eve@example.org": 1, "max@example.org": 1})
    wait_for(lambda: list_recipients(ses) == expected)
    site.stop_workers()
    check(site)


def test_seacucumber(make_site: Callable[..., MovingSite], ses: LocalSES) -> None:
    site = make_site("seacucumber", "--no-deps", "seacucumber==1.5.2")
    site.run("python before.py")

    printed = move(site, "seacucumber")

    assert "3 read: 2 new, 0 known, 1 skipped." in printed
    wait_for(lambda: len(ses.mailbox()) >= 3)
    site.stop_workers()
    check(site)
    assert set(list_recipients(ses).values()) == {1}

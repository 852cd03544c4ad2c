"""The main job on a site of Connect's shape, by the environment of its Heroku app alone."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from urllib.parse import urlencode

import pytest

from connect_mailer.testing import LocalSES
from connect_mailer.testing.sns import make_bounce
from tests.connect.conftest import HEROKU, Connect


def test_mail_goes_a_bounce_comes_back_and_nobody_writes_again(
    connect: Connect, ses: LocalSES
) -> None:
    user = connect.add_user("Jane@example.org")

    assert connect.send("jane@example.org", "joe@example.org") == 2
    assert ses.mailbox() == []
    assert connect.deliver() == 2
    assert sorted(mail.recipients for mail in ses.mailbox()) == [
        ("jane@example.org",),
        ("joe@example.org",),
    ]

    assert connect.post_feedback(make_bounce(["jane@example.org"])) == 200
    [row] = connect.read("connect_mailer.Unsubscribe")
    assert (row["address"], row["source"], row["user_id"]) == ("jane@example.org", "bounce", user)

    assert connect.send("JANE@example.org", "joe@example.org") == 1
    assert connect.deliver() == 1
    assert ses.mailbox()[-1].recipients == ("joe@example.org",)
    assert len(ses.mailbox()) == 3


def test_links_in_old_mail_work_without_login(connect: Connect, ses: LocalSES) -> None:
    user = connect.add_user("jane+news@example.org")
    secret = HEROKU["EMAIL_SECRET_KEY"]
    digest = hashlib.sha256(f"{secret}jane+news@example.org".encode()).digest()
    code = re.sub(r"[^A-Za-z0-9_-]", "", base64.b64encode(digest).decode())
    link = f"/mail/unsubscribe/?{urlencode({'email': 'jane+news@example.org', 'code': code})}"

    assert connect.get("/groups/")[0] == 302  # the login is there
    status, _, page = connect.get(link)
    assert (status, "<form" in page) == (200, True)
    assert connect.read("connect_mailer.Unsubscribe") == []
    assert connect.post(link)[0] == 200
    [row] = connect.read("connect_mailer.Unsubscribe")
    assert (row["address"], row["source"], row["user_id"]) == (
        "jane+news@example.org", "user", user,
    )  # fmt: skip
    assert connect.get(link.replace(code, code[::-1]))[0] == 404


def test_links_in_new_mail_work_without_login(connect: Connect, ses: LocalSES) -> None:
    connect.send("jane@example.org")
    connect.deliver()
    [mail] = ses.mailbox()
    link = mail.message["List-Unsubscribe"].strip("<>")
    assert link.startswith(f"{HEROKU['ORIGIN']}/mail/unsubscribe/")

    assert connect.post(link.removeprefix(HEROKU["ORIGIN"]), "List-Unsubscribe=One-Click")[0] == 200
    assert connect.send("jane@example.org") == 0


@pytest.mark.parametrize(
    ("value", "topics"),
    [(None, []), ("", []), (HEROKU["BOUNCY_TOPIC_ARN"], [HEROKU["BOUNCY_TOPIC_ARN"]])],
)
def test_every_form_that_the_topic_had(
    connect: Connect, value: str | None, topics: list[str]
) -> None:
    connect.set_setting("BOUNCY_TOPIC_ARN", value)
    assert connect.get_conf("topic_arns") == topics
    expected = 200 if topics else 400
    assert connect.post_feedback(make_bounce(["jane@example.org"])) == expected


def test_nothing_is_wrong_but_what_the_checks_say_of_the_login(connect: Connect) -> None:
    [message] = connect.check()
    assert message == (
        "connect_mailer.W008 LOGIN_EXEMPT_URLS has '^mail/*', which also lets out /mailbox/secret."
    )
    connect.set_setting("LOGIN_EXEMPT_URLS", [r"^mail/(bouncy|unsubscribe)/"])
    assert connect.check() == []


def test_account_mail_goes_past_opt_outs_and_not_past_bounces(
    connect: Connect, ses: LocalSES
) -> None:
    connect.unsubscribe("jane@example.org")
    connect.post_feedback(make_bounce(["joe@example.org"]))

    assert connect.reset_password("jane@example.org") == 1
    assert connect.reset_password("joe@example.org") == 0
    connect.deliver()
    [mail] = ses.mailbox()
    assert (mail.recipients, mail.message["Subject"]) == (("jane@example.org",), "Password reset")
    connect.set_setting("ACCOUNT_IGNORE_UNSUBSCRIBE", False)
    assert connect.reset_password("jane@example.org") == 0


@pytest.mark.parametrize(
    ("name", "value", "check", "reason"),
    [
        ("BOUNCY_VERIFY_CERTIFICATE", False, "E007", "would let anybody unsubscribe anybody"),
        # As django-bouncy published them: their dots are any character, and any host ends so.
        ("BOUNCY_CERT_DOMAIN_REGEX", r"sns.[a-z0-9\-]+.amazonaws.com$", "E009", "snsx"),
        ("BOUNCY_SUBSCRIBE_DOMAIN_REGEX", r"sns.[a-z0-9\-]+.amazonaws.com$", "E009", "snsx"),
    ],
)
def test_what_verifies_less_is_refused_with_the_reason(
    connect: Connect, name: str, value: object, check: str, reason: str
) -> None:
    connect.set_setting(name, value)
    [message] = [one for one in connect.check() if name in one]
    assert message.startswith(f"connect_mailer.{check} ")
    assert reason in message


def test_what_the_environment_names_sends(deploy: Callable[..., Connect]) -> None:
    """Connect hands it on as ORIGINAL_EMAIL_BACKEND; on a laptop there is none."""
    assert deploy().get_conf("is_ses")
    laptop = deploy("EMAIL_BACKEND")
    assert laptop.get_conf("transport") == "django.core.mail.backends.console.EmailBackend"

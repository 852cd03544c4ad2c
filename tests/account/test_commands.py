"""``ses_usage``, ``ses_address``, ``mailer_suppression``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError

from connect_mailer import tasks
from connect_mailer.models import Unsubscribe
from connect_mailer.testing import LocalSES
from connect_mailer.testing.account import LocalIdentity, LocalSuppression

Run = Callable[..., str]


def test_usage_is_a_table(ses: LocalSES, run: Run) -> None:
    ses.configure(rate=14.0, daily_quota=50_000.0)
    ses.account.statistics = [
        {
            "Timestamp": "2026-01-01T00:00:00Z",
            "DeliveryAttempts": 200,
            "Bounces": 5,
            "Complaints": 1,
            "Rejects": 0,
        }
    ] * 2

    written = dict(line.split("  ", 1) for line in run("ses_usage").splitlines() if line)

    assert written["Quota of 24 hours"].strip() == "50,000"
    assert written["Rate"].strip() == "14 recipients/s"
    assert written["Access"].strip() == "production"
    assert written["Bounces in two weeks"].strip() == "10 (2.50%)"


def test_usage_for_programs(ses: LocalSES, run: Run) -> None:
    ses.configure(daily_quota=-1.0)
    ses.account.denied.add("ses:GetSendStatistics")

    usage = json.loads(run("ses_usage", as_json=True))

    assert (usage["region"], usage["max_24_hour_send"]) == ("eu-west-1", -1.0)
    assert "two_weeks" not in usage
    assert "ses:GetSendStatistics" in run("ses_usage")


def test_usage_that_may_not_be_asked_for(ses: LocalSES, run: Run) -> None:
    ses.configure(may_get_account=False)

    with pytest.raises(CommandError, match=r"not authorized to perform: ses:GetAccount"):
        run("ses_usage")


def test_addresses_are_listed_by_pages(ses: LocalSES, run: Run) -> None:
    ses.account.page_size = 2
    ses.account.identities = {
        "example.com": LocalIdentity(),
        "site@example.org": LocalIdentity(is_verified=False),
        "example.net": LocalIdentity(),
    }

    lines = run("ses_address", "list").splitlines()[2:]

    assert [line.split() for line in lines] == [
        ["example.com", "domain", "yes"],
        ["example.net", "domain", "yes"],
        ["site@example.org", "address", "NOT", "YET"],
    ]


def test_an_address_is_verified_and_deleted(ses: LocalSES, run: Run) -> None:
    assert "mailed a link to site@example.com" in run("ses_address", "verify", "site@example.com")
    assert not ses.account.identities["site@example.com"].is_verified

    run("ses_address", "delete", "site@example.com")

    assert ses.account.identities == {}
    assert "No identity" in run("ses_address", "list")


def test_a_domain_needs_three_records(ses: LocalSES, run: Run) -> None:
    for _ in range(2):  # again is no error: the records are asked for once more
        written = run("ses_address", "verify", "example.com")
        assert written.count("._domainkey.example.com") == 3


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("delete", "who@example.com"), "knows no identity who@example.com"),
        (("verify",), "Say which"),
        (("list", "example.com"), "takes no address"),
    ],
)
def test_what_ses_address_refuses(
    ses: LocalSES, run: Run, args: tuple[str, ...], words: str
) -> None:
    with pytest.raises(CommandError, match=words):
        run("ses_address", *args)


@pytest.mark.django_db
class TestSuppression:
    @pytest.fixture(autouse=True)
    def _lists(self, ses: LocalSES, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        ses.account.suppressed = {
            "Both@example.org": LocalSuppression(reason="BOUNCE"),
            "ses@example.org": LocalSuppression(reason="COMPLAINT"),
        }
        for address, source in (
            ("both@example.org", Unsubscribe.Source.BOUNCE),
            ("here@example.org", Unsubscribe.Source.COMPLAINT),
            ("reader@example.org", Unsubscribe.Source.USER),
        ):
            Unsubscribe.objects.suppress(address, source)

    def test_pull_adds_what_is_missing_once(self, ses: LocalSES, run: Run) -> None:
        user = get_user_model().objects.create_user("jo", "SES@example.org")
        ses.account.suppressed["nonsense"] = LocalSuppression(reason="BOUNCE")
        ses.account.page_size = 1

        first, second = run("mailer_suppression", "pull"), run("mailer_suppression", "pull")

        assert "3 on SES's list, 1 new here." in first
        assert "'nonsense'" in first
        assert "0 new here." in second
        row = Unsubscribe.objects.get(address="ses@example.org")
        assert (row.source, row.user) == ("complaint", user)

    def test_push_puts_bounces_and_complaints_only(self, ses: LocalSES, run: Run) -> None:
        assert "1 put onto SES's list, 2 were there." in run("mailer_suppression", "push")
        assert ses.account.suppressed["here@example.org"].reason == "COMPLAINT"
        assert "reader@example.org" not in ses.account.suppressed
        assert "0 put onto" in run("mailer_suppression", "push")

    def test_diff_changes_nothing(self, ses: LocalSES, run: Run) -> None:
        lines = run("mailer_suppression", "diff").splitlines()

        assert [line.split() for line in lines[2:4]] == [
            ["ses@example.org", "complaint", "SES", "only"],
            ["here@example.org", "complaint", "here", "only"],
        ]
        assert lines[4] == "2 differ; 2 on SES's list."
        assert (len(ses.account.suppressed), Unsubscribe.objects.count()) == (2, 3)

    def test_an_interrupted_pull_goes_on_where_it_stopped(
        self, ses: LocalSES, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ses.account.page_size = 1

        def interrupt(seconds: float) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("time.sleep", interrupt)
            with pytest.raises(CommandError, match=r"pull --resume 1$"):
                run("mailer_suppression", "pull")
        assert not Unsubscribe.objects.filter(address="ses@example.org").exists()

        assert "1 on SES's list, 1 new here." in run("mailer_suppression", "pull", "--resume", "1")

    def test_what_the_credentials_do_not_allow_is_named(self, ses: LocalSES, run: Run) -> None:
        ses.account.denied.add("ses:ListSuppressedDestinations")

        with pytest.raises(CommandError, match="ses:ListSuppressedDestinations"):
            run("mailer_suppression", "pull")

    @pytest.mark.parametrize("args", [("push", "--resume", "x"), ("pull", "--rate", "0")])
    def test_what_it_refuses(self, ses: LocalSES, run: Run, args: tuple[str, ...]) -> None:
        with pytest.raises(CommandError, match=r"--resume|--rate"):
            run("mailer_suppression", *args)

    def test_the_task_brings_both_lists_together(self, ses: LocalSES, settings: Any) -> None:
        tasks.sync_suppression()

        assert Unsubscribe.objects.filter(address="ses@example.org").exists()
        assert "here@example.org" in ses.account.suppressed

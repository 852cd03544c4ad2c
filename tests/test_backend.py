"""The queueing backends, as a site uses them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

import django
import pytest
from django.core import mail
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.db import DatabaseError, connection, transaction
from django.test import TestCase

from connect_mailer import signals, tasks
from connect_mailer.backend import ConnectMailerBackend, SESBackend, TransactionalBackend
from connect_mailer.exceptions import InvalidMessage, MessagesRefused, Rejected
from connect_mailer.models import (
    OutgoingContent,
    OutgoingMessage,
    OutgoingRecipient,
    Unsubscribe,
)
from connect_mailer.sending import outbox
from connect_mailer.sending.bulk import COPY_ROWS
from connect_mailer.testing.ses import Fault, LocalSES

pytestmark = pytest.mark.django_db

PATH = "connect_mailer.backend.ConnectMailerBackend"


def make(to: Any = ("jo@example.org",), **kwargs: Any) -> EmailMessage:
    return EmailMessage("Hello", "Body", "site@example.com", list(to), **kwargs)


def queue(*messages: EmailMessage, **options: Any) -> int:
    return ConnectMailerBackend(**options).send_messages(messages)


def read_mime(row: OutgoingMessage) -> str:
    assert row.content is not None
    return bytes(row.content.mime).decode()


HAS_MAILERS = django.VERSION >= (6, 1)


@pytest.fixture(params=["EMAIL_BACKEND", "MAILERS"] if HAS_MAILERS else ["EMAIL_BACKEND"])
def site(request: pytest.FixtureRequest, settings: Any) -> None:
    """A site that sends through the queue by either setting."""
    if request.param == "MAILERS":
        settings.MAILERS = {
            "default": {"BACKEND": PATH},
            "urgent": {"BACKEND": PATH, "OPTIONS": {"stream": "transactional", "priority": 1}},
        }
    else:
        if HAS_MAILERS:
            if hasattr(settings, "MAILERS"):
                del settings.MAILERS
            request.applymarker(
                pytest.mark.filterwarnings(
                    "ignore::django.utils.deprecation.RemovedInDjango2028Warning"
                )
            )
        settings.EMAIL_BACKEND = PATH


@pytest.mark.filterwarnings("ignore:.*EMAIL_BACKEND.*", "ignore:.*mailers.*")
class TestThroughDjango:
    @pytest.fixture(autouse=True)
    def _site(self, site: None) -> None:
        pass

    def test_send_mail(self) -> None:
        sent = mail.send_mail("Hi", "text", None, ["jo@example.org"], html_message="<p>html</p>")

        assert sent == 1
        row = OutgoingMessage.objects.get()
        assert (row.status, row.stream, row.subject) == ("queued", "default", "Hi")
        assert "<p>html</p>" in read_mime(row)

    def test_send_mass_mail(self) -> None:
        data = [(f"Hi {n}", "text", "site@example.com", [f"u{n}@example.org"]) for n in range(3)]

        assert mail.send_mass_mail(data) == 3
        assert OutgoingMessage.objects.count() == 3

    def test_mail_admins(self, settings: Any) -> None:
        settings.ADMINS = (
            ["admin@example.org"] if django.VERSION >= (6, 0) else [("A", "admin@example.org")]
        )

        mail.mail_admins("Down", "text")

        assert OutgoingRecipient.objects.get().address == "admin@example.org"


if HAS_MAILERS:

    def test_options_of_a_mailer(settings: Any) -> None:
        options = {"stream": "transactional", "priority": 1, "tags": ["reset"]}
        settings.MAILERS = {"urgent": {"BACKEND": PATH, "OPTIONS": options}}

        make().send(using="urgent")

        row = OutgoingMessage.objects.get()
        assert (row.stream, row.priority, row.rank) == ("transactional", 1, 1)
        assert row.tags == {"tag": "reset"}

    def test_an_unknown_option_of_a_mailer_is_an_error(settings: Any) -> None:
        settings.MAILERS = {"default": {"BACKEND": PATH, "OPTIONS": {"colour": "red"}}}

        with pytest.raises(Exception, match="colour"):
            make().send(using="default")


@pytest.mark.parametrize(
    "number",
    [
        20,
        pytest.param(
            200, marks=pytest.mark.skipif(connection.vendor != "postgresql", reason="copies none")
        ),
    ],
)
def test_one_query_asks_for_all_recipients(django_assert_num_queries: Any, number: int) -> None:
    messages = [make([f"u{n}@example.org", f"v{n}@example.org"]) for n in range(number)]
    # savepoint, suppression, 3 inserts, release
    expected = 6
    is_copied = number >= COPY_ROWS
    if is_copied:  # rows that are copied are told their time and ids before
        expected += 2
    elif not connection.features.can_return_rows_from_bulk_insert:  # MySQL is asked for the ids
        expected += 1
    with transaction.atomic():
        with django_assert_num_queries(expected) as queries:
            assert queue(*messages) == number
        copied = [q["sql"] for q in queries.captured_queries if q["sql"].startswith("COPY ")]
        assert len(copied) == (3 if is_copied else 0)
        about = [q["sql"] for q in queries.captured_queries if "unsubscribe" in q["sql"].lower()]
        assert len(about) == 1


@pytest.mark.skipif(connection.vendor != "postgresql", reason="one statement can't insert it all")
class TestOneMessage:
    @pytest.mark.django_db(transaction=True)
    def test_is_one_statement(
        self, django_assert_num_queries: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tasks, "_asked_at", inf)  # a drain was asked for a moment ago

        with django_assert_num_queries(1):
            assert queue(make(["jo@example.org", "al@example.org"])) == 1

        row = OutgoingMessage.objects.get()
        assert row.recipients.count() == row.cost == 2
        assert bytes(row.content.mime).rstrip().endswith(b"\r\n\r\nBody")
        assert row.turn == row.due_at

    def test_is_one_statement_in_a_savepoint(self, django_assert_num_queries: Any) -> None:
        with transaction.atomic(), django_assert_num_queries(3):
            assert queue(make()) == 1

    def test_of_whom_somebody_is_suppressed_takes_more(self) -> None:
        Unsubscribe.objects.suppress("gone@example.org", "bounce")

        assert queue(make(["jo@example.org", "gone@example.org"])) == 1

        row = OutgoingMessage.objects.get()
        assert dict(row.recipients.values_list("address", "reason")) == {
            "jo@example.org": "",
            "gone@example.org": "bounce",
        }

    def test_that_cant_be_written_is_none_where_all_are_suppressed(self) -> None:
        Unsubscribe.objects.suppress("gone@example.org", "bounce")

        assert queue(make(["gone@example.org"], headers={"X-A": "two\nlines"})) == 0

        assert OutgoingMessage.objects.get().status == "suppressed"


def test_the_callers_message_is_not_changed() -> None:
    Unsubscribe.objects.suppress("gone@example.org", "bounce")
    message = make(
        ["jo@example.org", "gone@example.org"],
        cc=["cc@example.org"],
        bcc=["bcc@example.org"],
        headers={"X-A": "1", "List-Unsubscribe": "<mailto:x@example.com>"},
    )
    before = {name: repr(value) for name, value in vars(message).items()}

    queue(message)

    assert {name: repr(value) for name, value in vars(message).items()} == before


class TestSuppression:
    def test_suppressed_recipients_are_rows_with_the_reason(self) -> None:
        Unsubscribe.objects.suppress("Gone@Example.org", "bounce")

        assert queue(make(["Jo <jo@example.org>", "GONE@example.org"])) == 1

        row = OutgoingMessage.objects.get()
        found = set(row.recipients.values_list("address", "status", "reason"))
        assert found == {
            ("jo@example.org", "queued", ""),
            ("gone@example.org", "suppressed", "bounce"),
        }
        assert row.cost == 1
        assert "gone" not in read_mime(row).lower()

    def test_a_message_to_nobody_is_not_queued(self) -> None:
        Unsubscribe.objects.suppress("gone@example.org", "complaint")

        assert queue(make(["gone@example.org"])) == 0

        row = OutgoingMessage.objects.get()
        assert (row.status, row.content) == ("suppressed", None)
        assert row.finished_at is not None
        assert row.recipients.get().reason == "complaint"

    def test_nobody_left_in_to_stops_cc_and_bcc(self) -> None:
        Unsubscribe.objects.suppress("gone@example.org", "user")

        assert queue(make(["gone@example.org"], cc=["cc@example.org"], bcc=["b@example.org"])) == 0
        assert set(OutgoingRecipient.objects.values_list("address", "reason")) == {
            ("gone@example.org", "user"),
            ("cc@example.org", "nobody left in To"),
            ("b@example.org", "nobody left in To"),
        }

    def test_no_to_from_the_start_goes_to_who_is_left(self) -> None:
        Unsubscribe.objects.suppress("gone@example.org", "user")

        assert queue(make([], bcc=["gone@example.org", "b@example.org"])) == 1

    def test_domains_are_compared_in_ascii(self) -> None:
        Unsubscribe.objects.suppress("jo@xn--bcher-kva.example", "manual")

        assert queue(make(["jo@bücher.example"])) == 0

    def test_an_opt_out_does_not_stop_account_mail(self) -> None:
        Unsubscribe.objects.suppress("jo@example.org", "user")

        assert queue(make()) == 0
        assert TransactionalBackend().send_messages([make()]) == 1

    @pytest.mark.parametrize("source", ["bounce", "complaint", "manual"])
    def test_all_else_stops_account_mail_too(self, source: str) -> None:
        Unsubscribe.objects.suppress("jo@example.org", source)

        assert TransactionalBackend().send_messages([make()]) == 0

    def test_an_opt_out_of_one_list(self) -> None:
        Unsubscribe.objects.suppress("jo@example.org", "user", "digest")

        assert queue(make(), mailing_list="digest") == 0
        assert queue(make(), mailing_list="news") == 1
        assert queue(make()) == 1

    def test_a_header_that_replaces_to_names_nobody_who_is_suppressed(self) -> None:
        Unsubscribe.objects.suppress("gone@example.org", "bounce")
        shown = "The list <list@example.com>, gone@example.org, jo@example.org"

        queue(make(["jo@example.org", "gone@example.org"], headers={"To": shown}))

        mime = read_mime(OutgoingMessage.objects.get())
        assert "gone@" not in mime
        assert "list@example.com" in mime

    def test_signal(self, django_capture_on_commit_callbacks: Any) -> None:
        Unsubscribe.objects.suppress("jo@example.org", "user")
        heard = []

        def hear(message: OutgoingMessage, **kwargs: Any) -> None:
            heard.append(message)

        signals.message_suppressed.connect(hear)
        try:
            with django_capture_on_commit_callbacks(execute=True):
                queue(make(), make(["other@example.org"]))
                assert heard == []
        finally:
            signals.message_suppressed.disconnect(hear)
        assert [message.status for message in heard] == ["suppressed"]


class TestRows:
    def test_more_than_fifty_recipients_share_one_content(self) -> None:
        assert queue(make([], bcc=[f"u{n}@example.org" for n in range(120)])) == 1

        assert list(OutgoingMessage.objects.order_by("pk").values_list("cost", flat=True)) == [
            50,
            50,
            20,
        ]
        assert OutgoingContent.objects.count() == 1
        assert OutgoingRecipient.objects.values("address").distinct().count() == 120

    def test_a_recipient_named_twice_is_written_to_once(self) -> None:
        queue(make(["jo@example.org"], cc=["JO@example.org"], bcc=["Jo <jo@EXAMPLE.org>"]))

        assert OutgoingRecipient.objects.get().kind == "to"

    def test_the_local_part_is_sent_as_it_was_written(self) -> None:
        queue(make(["Jo.Doe@Example.ORG"]))

        recipient = OutgoingRecipient.objects.get()
        assert (recipient.address, recipient.envelope) == (
            "jo.doe@example.org",
            "Jo.Doe@example.org",
        )

    def test_options_and_attributes(self) -> None:
        later = datetime(2030, 1, 1, tzinfo=UTC)
        message = make()
        message.priority = 2  # type: ignore[attr-defined]
        message.send_after = later  # type: ignore[attr-defined]
        message.expires_at = later + timedelta(days=1)  # type: ignore[attr-defined]
        message.tags = ["second"]  # type: ignore[attr-defined]
        message.metadata = {"order": 12}  # type: ignore[attr-defined]

        queue(message, priority=7, mailing_list="digest", tags=["first"])

        row = OutgoingMessage.objects.get()
        assert (row.priority, row.rank, row.mailing_list) == (2, 12, "digest")
        assert (row.send_after, row.due_at) == (later, later)
        assert row.expires_at == later + timedelta(days=1)
        assert row.tags == {"tag": "first", "tag-2": "second", "order": "12"}
        assert not outbox.is_due(using="default")

    def test_lists_that_the_site_names(self, settings: Any) -> None:
        settings.CONNECT_MAILER = {"MAILING_LISTS": {"digest": "Weekly digest"}}

        assert queue(make(), mailing_list="digest") == 1
        with pytest.raises(MessagesRefused, match="'news'"):
            queue(make(), mailing_list="news")

    def test_account_mail_ranks_before_all_else(self) -> None:
        queue(make(), priority=0)
        TransactionalBackend(priority=9).send_messages([make(["reset@example.org"])])

        first = OutgoingMessage.objects.order_by("rank").first()
        assert first is not None
        assert first.stream == "transactional"


class TestHeaders:
    def test_one_click_opt_out_is_not_folded(self) -> None:
        queue(make(["jo@example.org"]))

        lines = read_mime(OutgoingMessage.objects.get()).split("\r\n")
        links = [line for line in lines if line.startswith("List-Unsubscribe: ")]
        assert len(links) == 1
        assert links[0].startswith("List-Unsubscribe: <https://www.example.com/")
        assert links[0].endswith(">")
        assert "List-Unsubscribe-Post: List-Unsubscribe=One-Click" in lines

    def test_none_for_several_readers_or_account_mail(self) -> None:
        queue(make(["jo@example.org", "eve@example.org"]))
        TransactionalBackend().send_messages([make()])

        for row in OutgoingMessage.objects.all():
            assert "List-Unsubscribe" not in read_mime(row)

    def test_the_callers_own_header_wins_and_is_not_folded(self) -> None:
        url = "https://www.example.org/leave?" + "x" * 200

        queue(make(headers={"list-unsubscribe": f"<{url}>"}))

        mime = read_mime(OutgoingMessage.objects.get())
        assert f"list-unsubscribe: <{url}>\r\n" in mime
        assert mime.lower().count("list-unsubscribe") == 1

    def test_long_subjects_and_bodies_survive(self) -> None:
        message = EmailMultiAlternatives(
            "Grüße " * 30, "zeile ä " * 300, "Säte <site@example.com>", ["jo@example.org"]
        )
        message.attach_alternative("<p>ä</p>" * 300, "text/html")
        message.attach("bericht.pdf", b"%PDF" * 1000, "application/pdf")

        queue(message)

        parsed = _parse(read_mime(OutgoingMessage.objects.get()))
        assert parsed["Subject"].strip() == ("Grüße " * 30).strip()
        assert parsed.get_body(("plain",)).get_content().strip() == ("zeile ä " * 300).strip()
        assert [part.get_filename() for part in parsed.iter_attachments()] == ["bericht.pdf"]

    def test_bcc_is_never_in_the_bytes(self) -> None:
        queue(make(bcc=["secret@example.org"]))

        assert "secret" not in read_mime(OutgoingMessage.objects.get())


class TestRefusals:
    @pytest.mark.parametrize(
        ("message", "words"),
        [
            (make(headers={"Bcc": "secret@example.org"}), "Bcc"),
            (make(headers={"bcc": "secret@example.org"}), "bcc"),
            (make(headers={"X-\xc4": "1"}), "'X-\xc4'"),
            (make(headers={"X Y": "1"}), "'X Y'"),
            (make(headers={"": "1"}), "''"),
            (make(headers={"Resent-Bcc": "secret@example.org"}), "Resent-Bcc"),
            (make(headers={"X-A": "1\r\nBcc: x@example.org"}), "written"),
            (make(headers={"List-Unsubscribe": "<a>\r\nBcc: x@example.org"}), "List-Unsubscribe"),
            (EmailMessage("a\nb", "", "site@example.com", ["jo@example.org"]), "written"),
            (make(["jö@example.org"]), "ASCII"),
            (make(["nobody"]), "nobody"),
            (make(["jo@example.org, eve@example.org"]), "left over"),
            (EmailMessage("a", "", "not an address", ["jo@example.org"]), "not an address"),
            (EmailMessage("a", "", "jö@example.org", ["jo@example.org"]), "ASCII"),
        ],
    )
    def test_a_bad_message_is_named(self, message: EmailMessage, words: str) -> None:
        with pytest.raises(MessagesRefused, match=words) as caught:
            queue(message)

        assert isinstance(caught.value, ValueError)
        assert caught.value.accepted == 0
        assert OutgoingMessage.objects.count() == 0

    @pytest.mark.parametrize(
        "options",
        [
            {"priority": 10},
            {"priority": -1},
            {"priority": True},
            {"stream": "fast"},
            {"send_after": "tomorrow"},
            {"tags": "one"},
            {"mailing_list": "x" * 101},
            {"mailing_list": 7},
        ],
    )
    def test_bad_options_are_named(self, options: dict[str, Any]) -> None:
        name, value = next(iter(options.items()))
        message = make()
        setattr(message, name, value)

        with pytest.raises(InvalidMessage, match=name) as caught:
            queue(message)
        assert repr(value) in str(caught.value)
        with pytest.raises(InvalidMessage, match=name):
            ConnectMailerBackend(**options)

    @pytest.mark.parametrize("metadata", [{"a b": "1"}, {"a": "ä"}, {"a": ""}, {"a": "x" * 257}])
    def test_tags_that_ses_would_refuse(self, metadata: dict[str, str]) -> None:
        with pytest.raises(MessagesRefused, match="tag"):
            queue(make(), metadata=metadata)

    def test_the_good_ones_are_queued(self) -> None:
        good, bad = make(["a@example.org"]), make(["b"])

        with pytest.raises(MessagesRefused, match=r"1 of 3 messages refused, 2 accepted") as caught:
            queue(good, bad, make(["c@example.org"]))

        assert [message for message, _ in caught.value.errors] == [bad]
        assert OutgoingMessage.objects.count() == 2

    def test_fail_silently(self) -> None:
        assert queue(make(["a@example.org"]), make(["b"]), fail_silently=True) == 1

    def test_too_large_before_anything_is_stored(self) -> None:
        message = make()
        message.attach("big.bin", b"\0" * 31_000_000, "application/octet-stream")

        with pytest.raises(ValueError, match="SES takes at most"):
            queue(message)
        assert OutgoingContent.objects.count() == 0

    def test_nothing_to_do(self) -> None:
        assert queue() == 0
        assert queue(make([])) == 0


class TestDirect:
    """``SESBackend``: at once, and past the tables."""

    @pytest.fixture
    def ses(self, settings: Any) -> Iterator[LocalSES]:
        with LocalSES() as server:
            settings.AWS_ACCESS_KEY_ID = settings.AWS_SECRET_ACCESS_KEY = "test"
            settings.CONNECT_MAILER = {"SES_REGION": "us-east-1", "SES_ENDPOINT_URL": server.url}
            yield server

    def test_one_call_an_envelope_and_no_filter(
        self, ses: LocalSES, django_assert_num_queries: Any
    ) -> None:
        Unsubscribe.objects.suppress("u0@example.org", "bounce")
        message = make([], bcc=[f"u{n}@example.org" for n in range(60)])

        with django_assert_num_queries(0):
            assert SESBackend(metadata={"a": "1"}).send_messages([message, make()]) == 2

        assert [len(mail.recipients) for mail in ses.mailbox()] == [50, 10, 1]
        assert dict(ses.mailbox()[0].tags) == {"a": "1"}
        assert OutgoingMessage.objects.count() == 0

    def test_what_ses_does_not_take_is_raised(self, ses: LocalSES) -> None:
        ses.inject(Fault(code="MessageRejected", times=None))

        with pytest.raises(Rejected, match="MessageRejected"):
            SESBackend().send_messages([make()])
        assert SESBackend(fail_silently=True).send_messages([make()]) == 0

    def test_bad_messages_are_named_and_the_others_sent(self, ses: LocalSES) -> None:
        bad = [make(["nobody"]), make(headers={"X-A": "1\nBcc: x@example.org"})]

        with pytest.raises(MessagesRefused, match="2 of 3 messages refused, 1 accepted"):
            SESBackend().send_messages([*bad, make()])
        assert SESBackend(fail_silently=True).send_messages([*bad, make()]) == 1
        assert len(ses.mailbox()) == 2

    def test_nothing_to_do(self, ses: LocalSES) -> None:
        assert SESBackend().send_messages([]) == 0
        assert SESBackend().send_messages([make([])]) == 0


class TestTransactions:
    def test_a_failed_insert_leaves_the_callers_transaction_usable(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        describe = outbox._describe

        def spoil(*args: Any) -> dict[str, Any]:
            return {**describe(*args), "stream": None}  # which the database refuses

        monkeypatch.setattr(outbox, "_describe", spoil)
        with transaction.atomic():
            with pytest.raises(DatabaseError):
                queue(make())
            assert queue(make(), fail_silently=True) == 0
            assert OutgoingMessage.objects.count() == 0
            assert OutgoingContent.objects.count() == 0

    def test_wake_ups_are_coalesced(self) -> None:
        with TestCase.captureOnCommitCallbacks() as callbacks, transaction.atomic():
            for _ in range(5):
                queue(make())
        assert callbacks.count(tasks.wake) == 1

    @pytest.mark.django_db(transaction=True)
    def test_a_rollback_takes_the_mail_with_it(self) -> None:
        with transaction.atomic():
            queue(make())
            transaction.set_rollback(True)
        assert OutgoingMessage.objects.count() == 0
        assert OutgoingContent.objects.count() == 0


def _parse(mime: str) -> Any:
    import email.policy

    return email.message_from_string(mime, policy=email.policy.default)

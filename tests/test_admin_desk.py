"""The pages of the admin beyond Django's own: health, one message, many addresses."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.contrib.admin.models import ADDITION, DELETION, LogEntry
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.template import Context, Template
from django.test.utils import CaptureQueriesContext
from django.urls import resolve
from django.utils import timezone
from django_bouncy.models import Bounce

from connect_mailer import tasks
from connect_mailer.account.standing import load_account
from connect_mailer.admin import lists
from connect_mailer.admin.messages import list_steps
from connect_mailer.models import (
    Lease,
    MessageEvent,
    OutgoingContent,
    OutgoingMessage,
    OutgoingRecipient,
    Tally,
    Unsubscribe,
)
from connect_mailer.sending import leases, pauses
from connect_mailer.sending.ses import SESClient
from connect_mailer.testing.account import LocalSuppression
from connect_mailer.testing.ses import LocalSES

pytestmark = pytest.mark.django_db

HEALTH = "/admin/connect_mailer/health/"
MESSAGES = "/admin/connect_mailer/outgoingmessage/"
UNSUBSCRIBES = "/admin/connect_mailer/unsubscribe/"


@pytest.fixture(autouse=True)
def woken(monkeypatch):
    calls = []
    monkeypatch.setattr(tasks, "wake_on_commit", lambda *, using: calls.append(using))
    return calls


@pytest.fixture
def ses(settings):
    with LocalSES() as server:
        settings.AWS_ACCESS_KEY_ID = settings.AWS_SECRET_ACCESS_KEY = "test"
        settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "SES_ENDPOINT_URL": server.url}
        yield server


@pytest.fixture
def elsewhere(settings):
    """A site that doesn't send through SES."""
    settings.CONNECT_MAILER = {
        **settings.CONNECT_MAILER,
        "TRANSPORT": "django.core.mail.backends.locmem.EmailBackend",
    }


def _make(*recipients, body=b"", status="queued", **fields):
    fields = {"due_at": timezone.now(), "sender": "news@example.com", "subject": "News", **fields}
    row = OutgoingMessage.objects.create(
        status=status,
        content=OutgoingContent.objects.create(mime=body) if body else None,
        **fields,
    )
    for address in recipients or ("ada@example.com",):
        OutgoingRecipient.objects.create(message=row, address=address, envelope=address)
    return row


def _operator(client, *codenames):
    user = User.objects.create_user("operator", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client.force_login(user)
    return user


def _text(response):
    return response.content.decode()


def _told(response):
    return [str(message) for message in response.context["messages"]]


def _tally(hours=0, **fields):
    at = timezone.now() - timedelta(hours=hours)
    fields = {"stream": "default", **fields}
    Tally.objects.create(at=at, span=3600 if hours else 0, **fields)


# Health


def test_the_health_page_has_a_permission_of_its_own(client):
    _operator(client, "view_outgoingmessage", "view_tally")
    assert client.get(HEALTH).status_code == 403
    assert client.get(HEALTH + "account/").status_code == 403
    User.objects.all().delete()
    _operator(client, "view_health")
    page = client.get(HEALTH)
    assert page.status_code == 200
    assert "Pause “default”" not in _text(page)
    assert (
        client.post(HEALTH + "pause/", {"stream": "default", "action": "pause"}).status_code == 403
    )
    assert not pauses.find_pauses(using="default")
    assert HEALTH in _text(client.get("/admin/"))


def test_what_waits_and_what_was_sent(admin_client):
    _make(lane=15, turn=timezone.now() - timedelta(minutes=30))
    _make(lane=5, turn=timezone.now(), stream="transactional")
    _make(lane=None, due_at=timezone.now() + timedelta(hours=1))
    _make(status="sent")
    _tally(sent=3, written=1200, failed=2, suppressed=7)
    _tally(hours=30, sent=5, written=5)
    transactional, default = admin_client.get(HEALTH).context["streams"]
    assert (transactional.waiting.ready, transactional.waiting.later) == (1, 0)
    assert (default.waiting.ready, default.waiting.later) == (1, 1)
    assert default.waiting.oldest < timezone.now() - timedelta(minutes=29)
    assert default.counts["written"] == 1200
    assert (default.counts["sent"], default.counts["failed"], default.counts["suppressed"]) == (
        (3, 2, 7)
    )
    assert "1,200" in _text(admin_client.get(HEALTH))


@pytest.mark.parametrize(
    ("minutes", "sent_minutes_ago", "word"),
    [
        (None, None, "nothing waits"),
        (5, None, "flows"),
        (30, None, "stands still"),
        (30, 4, "flows"),
        (90, 40, "stands still"),
    ],
)
def test_a_stream_says_whether_its_mail_flows(minutes, sent_minutes_ago, word, admin_client):
    now = timezone.now()
    if minutes:
        _make(lane=15, turn=now - timedelta(minutes=minutes))
    if sent_minutes_ago:
        at = now - timedelta(minutes=sent_minutes_ago)
        Tally.objects.create(at=at, stream="default", written=1)
    page = _text(admin_client.get(HEALTH))
    default = page[page.index("stream-default") : page.index("mailer-account")]
    assert f">{word}</span>" in default


def test_numbers_lead_to_their_messages_for_who_may_see_them(client):
    _make(lane=15, turn=timezone.now())
    link = f"{MESSAGES}?stream__exact=default&amp;status__exact=queued"
    _operator(client, "view_health")
    assert link not in _text(client.get(HEALTH))
    User.objects.all().delete()
    _operator(client, "view_health", "view_outgoingmessage")
    assert link in _text(client.get(HEALTH))


@pytest.mark.parametrize(
    ("bounced", "complained", "standings"),
    [
        (0, 0, ("good", "good")),
        (49, 0, ("good", "good")),
        (50, 1, ("review", "review")),
        (100, 5, ("suspension", "suspension")),
    ],
)
def test_rates_are_judged_as_aws_does(bounced, complained, standings, admin_client):
    _tally(written=1000, bounced=bounced, complained=complained)
    found = admin_client.get(HEALTH).context["figures"].last_day
    assert (found.bounce_standing, found.complaint_standing) == standings


def test_a_few_recipients_are_not_judged(admin_client):
    _tally(written=999, bounced=300)
    found = admin_client.get(HEALTH).context["figures"].last_day
    assert (found.bounce_standing, found.complaint_standing) == ("unknown", "unknown")
    assert "too few to judge" in _text(admin_client.get(HEALTH))


def test_the_last_recipients_are_the_newest_ones(admin_client):
    _tally(written=9_000, bounced=10)
    _tally(hours=50, written=2_000, bounced=20)
    _tally(hours=60, written=9_000, bounced=4_000)
    found = admin_client.get(HEALTH).context["figures"]
    assert (found.last_recipients.written, found.last_recipients.bounced) == (11_000, 30)
    assert found.last_week.bounced == 4_030
    assert found.last_day.bounced == 10
    assert sum(day.counts["bounced"] for day in found.days) == 4_030
    assert sum(point.counts["written"] for point in found.hour) == 9_000


def test_the_health_page_asks_the_same_however_much_there_is(admin_client):
    def count():
        with CaptureQueriesContext(connection) as queries:
            assert admin_client.get(HEALTH).status_code == 200
        return len(queries)

    before = count()
    for hours in range(50):
        _tally(hours=hours, written=5)
        _tally(hours=hours, domain=f"example{hours}.org", bounced=1)
        _make()
    assert count() == before
    assert before < 12


def test_the_domains_that_bounce_most_come_first(admin_client):
    for number in range(15):
        _tally(hours=2, domain=f"{number}.example.org", bounced=number)
    domains = admin_client.get(HEALTH).context["domains"]
    assert [row["domain"] for row in domains[:2]] == ["14.example.org", "13.example.org"]
    assert len(domains) == 10


def test_a_stream_is_paused_and_resumed_and_that_is_on_record(client, woken):
    _operator(client, "view_health", "pause_health")
    send = {"stream": "default", "action": "pause", "reason": "A wrong <link>"}
    told = _told(client.post(HEALTH + "pause/", send, follow=True))
    assert told == ["The stream “default” is paused."]
    [pause] = pauses.find_pauses(using="default")
    assert (pause.stream, pause.reason) == ("default", "A wrong <link> (operator)")
    page = _text(client.get(HEALTH))
    assert "A wrong &lt;link&gt; (operator)" in page
    assert "Resume “default”" in page
    assert "Pause “transactional”" in page
    assert _told(client.post(HEALTH + "pause/", send, follow=True)) == ["That was done already."]
    assert not woken
    client.post(HEALTH + "pause/", {"stream": "default", "action": "resume"})
    assert not pauses.find_pauses(using="default")
    assert woken == ["default"]
    entries = LogEntry.objects.order_by("pk").values_list("object_id", "change_message")
    assert list(entries) == [
        ("default", "Paused: A wrong <link> (operator)"),
        ("default", "Resumed."),
    ]


def test_an_account_that_is_paused_is_tried_at_once(admin_client, woken):
    leases.acquire("pause", 60, using="default", note="Daily quota exceeded")
    assert "Daily quota exceeded" in _text(admin_client.get(HEALTH))
    admin_client.post(HEALTH + "pause/", {"stream": "", "action": "resume"})
    assert not pauses.find_pauses(using="default")
    assert woken


@pytest.mark.parametrize(
    "sent",
    [
        {"stream": "", "action": "pause"},
        {"stream": "else", "action": "pause"},
        {"stream": "default", "action": "drop"},
        {},
    ],
)
def test_nothing_else_is_done_to_a_stream(sent, admin_client):
    assert admin_client.post(HEALTH + "pause/", sent).status_code == 403
    assert admin_client.get(HEALTH + "pause/").status_code == 403
    assert not pauses.find_pauses(using="default")


def test_the_account_is_shown_with_the_end_of_its_quota(admin_client, ses):
    ses.configure(rate=14, daily_quota=1000)
    _tally(written=500)
    page = admin_client.get(HEALTH + "account/")
    assert "of 1,000" in _text(page)
    assert "of 14 a second" in _text(page)
    left = page.context["runs_out_at"] - timezone.now()
    assert timedelta(minutes=110) < left < timedelta(minutes=130)
    assert [finding.part for finding in page.context["findings"]]


def test_an_account_that_may_not_be_asked(admin_client, ses):
    ses.configure(may_get_account=False)
    assert "SES did not say how the account is" in _text(admin_client.get(HEALTH + "account/"))


@pytest.fixture
def asked(ses, monkeypatch):
    """How often SES was asked for the account."""
    calls = []
    ask = SESClient.get_account
    monkeypatch.setattr(SESClient, "get_account", lambda client: calls.append(1) or ask(client))
    return calls


def _end_leases():
    # By more than the clock of a database may be coarser than Python's.
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))


def test_ses_is_asked_for_the_account_once_in_a_while(admin_client, asked):
    for _ in range(3):
        assert "of 1,000,000" in _text(admin_client.get(HEALTH + "account/"))
    assert len(asked) == 1
    _end_leases()
    admin_client.get(HEALTH + "account/")
    assert len(asked) == 2


def test_while_one_process_asks_the_others_take_the_last_answer(ses, asked):
    ses.configure(daily_quota=7)
    assert load_account(using="default").max_24_hour_send == 7
    ses.configure(daily_quota=8)
    _end_leases()
    leases.acquire("account", 60, using="default", note=Lease.objects.get(name="account").note)
    assert load_account(using="default").max_24_hour_send == 7
    assert len(asked) == 1


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite's is one connection's alone")
@pytest.mark.django_db(transaction=True)
def test_many_processes_at_once_ask_ses_once(asked):
    barrier = threading.Barrier(8)

    def load(_number):
        barrier.wait(60)
        try:
            return load_account(using="default")
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as threads:
        accounts = list(threads.map(load, range(8)))
    assert len(asked) == 1
    assert {account.max_24_hour_send for account in accounts} == {1_000_000}


def test_no_transaction_waits_for_ses():
    view = resolve(HEALTH + "account/").func
    assert view._non_atomic_requests == {"default"}


def test_without_ses_there_is_no_account(admin_client, elsewhere):
    assert "no account to ask" in _text(admin_client.get(HEALTH + "account/"))


# One message


def test_the_life_of_a_message_is_told_in_order(admin_client):
    now = timezone.now()
    row = _make(status="sent", sent_at=now, ses_message_id="0100-a", finished_at=now)
    for minutes, kind in ((5, "bounced"), (2, "delivered"), (-1, "postponed")):
        MessageEvent.objects.create(
            message=row,
            kind=kind,
            at=now + timedelta(minutes=minutes),
            address="ada@example.com",
            detail=f"Words of {kind} <b>",
        )
    OutgoingMessage.objects.filter(pk=row.pk).update(created_at=now - timedelta(minutes=3))
    row.refresh_from_db()
    steps = list_steps(row)
    assert [step["kind"] for step in steps] == [
        *("queued", "postponed", "sent", "delivered", "bounced"),
    ]
    page = _text(admin_client.get(f"{MESSAGES}{row.pk}/change/"))
    assert "SES id 0100-a" in page
    assert "Words of bounced &lt;b&gt;" in page


@pytest.mark.parametrize(
    ("status", "error", "kinds"),
    [
        ("queued", "", ["queued", "queued"]),
        ("failed", "Rejected", ["queued", "failed"]),
        ("suppressed", "", ["queued", "suppressed"]),
        ("expired", "Not sent before", ["queued", "expired"]),
    ],
)
def test_the_end_of_a_message_is_told(status, error, kinds):
    finished = None if status == "queued" else timezone.now()
    row = _make(status=status, last_error=error, finished_at=finished)
    assert sorted(step["kind"] for step in list_steps(row)) == sorted(kinds)


def test_who_is_due_at_once_is_queued_first():
    row = _make()
    OutgoingMessage.objects.filter(pk=row.pk).update(due_at=row.created_at - timedelta(seconds=1))
    row.refresh_from_db()
    assert [step["label"] for step in list_steps(row)] == ["queued", "due"]


@pytest.mark.parametrize(
    ("status", "is_due"), [("queued", True), ("sending", True), ("sent", False)]
)
def test_what_is_over_is_not_due(admin_client, status, is_due):
    page = _text(admin_client.get(f"{MESSAGES}{_make(status=status).pk}/change/"))
    assert ("Due:" in page) == is_due
    assert "Created:" in page


def _act(client, row, name):
    return client.post(f"{MESSAGES}{row.pk}/act/", {"act": name}, follow=True)


def test_a_queued_message_is_sent_now(client, woken):
    user = _operator(client, "view_outgoingmessage", "change_outgoingmessage")
    row = _make(body=b"x", due_at=timezone.now() + timedelta(hours=3))
    page = _text(client.get(f"{MESSAGES}{row.pk}/change/"))
    assert "Send now" in page
    assert "Cancel" not in page
    assert _told(_act(client, row, "send_now")) == ["1 message is due now."]
    row.refresh_from_db()
    assert row.lane == row.rank
    assert row.due_at <= timezone.now()
    assert woken
    assert LogEntry.objects.get(user=user).change_message == "Made due at once."
    assert row.events.get().detail == "Made due at once by operator."


def test_a_queued_message_is_cancelled_and_sent_again(client, woken):
    _operator(client, "view_outgoingmessage", "change_outgoingmessage", "cancel_outgoingmessage")
    row = _make(body=b"x")
    assert _told(_act(client, row, "cancel")) == ["1 message is cancelled."]
    row.refresh_from_db()
    assert (row.status, row.last_error, row.lane) == ("failed", "Cancelled by operator.", None)
    assert [step["kind"] for step in list_steps(row)] == ["queued", "operator"]
    _act(client, row, "send_again")
    row.refresh_from_db()
    assert row.status == "queued"
    messages = LogEntry.objects.order_by("pk").values_list("change_message", flat=True)
    assert list(messages) == ["Cancelled.", "Queued again."]


@pytest.mark.parametrize("status", ["sending", "sent", "failed", "suppressed"])
@pytest.mark.parametrize("name", ["cancel", "send_now"])
def test_only_what_is_queued_is_hurried_or_cancelled(status, name, admin_client):
    row = _make(status=status)
    assert _told(_act(admin_client, row, name)) == [
        "1 message was not waiting: nothing was changed."
    ]
    row.refresh_from_db()
    assert row.status == status
    assert not LogEntry.objects.exists()
    assert not row.events.exists()


@pytest.mark.parametrize("name", ["cancel", "send_now", "send_again", "delete", ""])
def test_each_button_needs_its_permission(name, client):
    _operator(client, "view_outgoingmessage", "add_outgoingmessage")
    row = _make(body=b"x")
    assert _act(client, row, name).status_code == 403
    assert client.get(f"{MESSAGES}{row.pk}/act/").status_code == 403
    assert "formaction" not in _text(client.get(f"{MESSAGES}{row.pk}/change/"))


HTML = b"Content-Type: text/html; charset=latin-1\n\n<p>Gr\xfc\xdfe <img src='http://x/'></p>"


def test_a_body_is_shown_where_it_can_do_nothing(client):
    _operator(client, "view_outgoingmessage", "preview_outgoingmessage")
    row = _make(body=HTML)
    assert "What was written" in _text(client.get(f"{MESSAGES}{row.pk}/change/"))
    assert "<iframe" in _text(client.get(f"{MESSAGES}{row.pk}/preview/"))
    body = client.get(f"{MESSAGES}{row.pk}/body/")
    assert "Grüße" in _text(body)
    rules = body["Content-Security-Policy"]
    assert rules.startswith("sandbox; default-src 'none'")
    assert "allow-" not in rules
    assert body["X-Frame-Options"] == "SAMEORIGIN"
    assert LogEntry.objects.get().change_message == "Read the body."


@pytest.mark.parametrize(
    ("codenames", "fields"),
    [
        (["view_outgoingmessage"], {"body": HTML}),
        (["view_outgoingmessage", "change_outgoingmessage"], {"body": HTML}),
        (["view_outgoingmessage", "preview_outgoingmessage"], {}),
        (
            ["view_outgoingmessage", "preview_outgoingmessage"],
            {"body": HTML, "stream": "transactional"},
        ),
    ],
)
def test_a_body_is_not_shown(codenames, fields, client):
    _operator(client, *codenames)
    row = _make(**fields)
    assert "What was written" not in _text(client.get(f"{MESSAGES}{row.pk}/change/"))
    for name in ("preview", "body"):
        assert client.get(f"{MESSAGES}{row.pk}/{name}/").status_code == 403


def test_a_body_needs_the_message_to_be_seen(client):
    _operator(client, "preview_outgoingmessage")
    assert client.get(f"{MESSAGES}{_make(body=HTML).pk}/body/").status_code in (403, 404)
    assert client.get(f"{MESSAGES}999999/body/").status_code == 404


# Long lists


def test_words_are_looked_for_in_the_newest_and_addresses_in_all(admin_client, monkeypatch):
    monkeypatch.setattr(lists, "SEARCHED_ROWS", 1)
    old = _make("old@example.com", subject="Digest")
    new = _make("new@example.com", subject="Digest")

    def find(query):
        rows = admin_client.get(MESSAGES, {"q": query}).context["cl"].result_list
        return {row.pk for row in rows}

    assert find("old@example.com") == {old.pk}
    assert find("digest") == find("NEW@") == {new.pk}
    assert find(" ") == {old.pk, new.pk}


@pytest.mark.parametrize(
    ("url", "query"),
    [
        (MESSAGES, {}),
        (MESSAGES, {"status__exact": "failed"}),
        (MESSAGES, {"created_at__gte": "2020-01-01 00:00:00+00:00"}),
        (UNSUBSCRIBES, {}),
        (UNSUBSCRIBES, {"source__exact": "bounce"}),
    ],
)
def test_lists_and_their_filters_are_of_all(url, query, admin_client, monkeypatch):
    monkeypatch.setattr(lists, "SEARCHED_ROWS", 1)
    for number in range(3):
        _make(status="failed")
        _suppress(f"{number}@example.com")
    assert len(admin_client.get(url, query).context["cl"].result_list) == 3


def test_a_list_is_counted_up_to_a_point(admin_client, monkeypatch):
    monkeypatch.setattr(lists, "MAX_COUNT", 3)
    for _ in range(5):
        _make()
    response = admin_client.get(MESSAGES)
    assert "≥3 outgoing messages" in _text(response)


@pytest.mark.parametrize(
    ("url", "columns"), [(MESSAGES, {"created"}), (UNSUBSCRIBES, {"address", "created"})]
)
def test_a_list_is_sorted_by_what_has_an_index(url, columns, admin_client):
    _make()
    _suppress()
    changes = admin_client.get(url).context["cl"]
    assert set(changes.sortable_by) == columns
    assert all(changes.get_ordering_field(column) for column in columns)


@pytest.mark.skipif(connection.vendor != "postgresql", reason="reads its plans")
@pytest.mark.parametrize(
    ("url", "query", "index"),
    [
        (MESSAGES, {"status__exact": "failed"}, "unsent"),
        (MESSAGES, {"in_doubt__exact": "1"}, "in_doubt"),
        (MESSAGES, {"stream__exact": "transactional"}, "urgent"),
        (MESSAGES, {"created_at__year": "2026", "created_at__month": "11"}, "created"),
        (MESSAGES, {"q": "0100-ab-000000"}, "ses_id"),
        (MESSAGES, {"q": "ada@example.com"}, "recipient"),
        (UNSUBSCRIBES, {"source__exact": "manual"}, "source"),
        (UNSUBSCRIBES, {"created_at__year": "2026", "created_at__month": "11"}, "since"),
        (UNSUBSCRIBES, {"q": "ada@example.com"}, "unsubscribe_once"),
    ],
)
def test_a_filter_goes_by_its_index(url, query, index, admin_client):
    # One of many, as the database knows: of tables that seem empty all plans cost the same.
    now = timezone.now()
    rows = OutgoingMessage.objects.bulk_create(
        OutgoingMessage(due_at=now, sender="news@example.com", status="sent") for _ in range(1000)
    )
    OutgoingRecipient.objects.bulk_create(
        OutgoingRecipient(message=row, address=f"r{row.pk}@example.com") for row in rows
    )
    _make("ada@example.com", ses_message_id="0100-ab-000000")
    _suppress()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
        cursor.execute("SET LOCAL enable_seqscan = off")
    with CaptureQueriesContext(connection) as captured:
        assert admin_client.get(url, query).status_code == 200
    plans = []
    with connection.cursor() as cursor:
        for sql in (one["sql"] for one in captured if "connect_mailer_" in one["sql"]):
            cursor.execute(f"EXPLAIN {sql}")
            plans += [line for (line,) in cursor.fetchall()]
    assert any(f"connect_mailer_{index} " in plan for plan in plans), "\n".join(plans)


@pytest.mark.parametrize("grouped", [True, False])
def test_a_great_number_is_written_in_groups(grouped, settings):
    settings.USE_THOUSAND_SEPARATOR = grouped
    text = Template("{{ number }}").render(Context({"number": lists.AtLeast(10_000)}))
    assert text == "≥10,000"


@pytest.mark.parametrize(
    ("url", "query", "text"),
    [
        (MESSAGES, {}, "No mail was queued yet"),
        (MESSAGES, {"status__exact": "failed"}, "There is none of these."),
        (MESSAGES, {"q": "digest"}, "Nothing is found."),
        (UNSUBSCRIBES, {}, "Everybody may be written to"),
        (UNSUBSCRIBES, {"created_at__year": "2001"}, "There is none of these."),
    ],
)
def test_an_empty_list_says_why(url, query, text, admin_client):
    assert text in _text(admin_client.get(url, query))


def test_files_of_a_page_have_the_nonce_of_the_site():
    page = Template("{% load mailer_lists %}<script{% mailer_nonce %}>")
    assert page.render(Context({"csp_nonce": "a1"})) == '<script nonce="a1">'
    assert page.render(Context()) == "<script>"


def test_dates_lead_from_months_to_days(admin_client):
    row = _make()
    created = timezone.now().replace(day=15, hour=12)
    OutgoingMessage.objects.filter(pk=row.pk).update(created_at=created - timedelta(days=62))
    _make()
    response = admin_client.get(MESSAGES)
    assert "created_at__month=" in _text(response)
    at = timezone.localtime(created - timedelta(days=62))
    chosen = {"created_at__year": at.year, "created_at__month": at.month}
    response = admin_client.get(MESSAGES, chosen)
    assert [row.pk for row in response.context["cl"].result_list] == [row.pk]
    assert f"created_at__day={at.day}" in _text(response)
    response = admin_client.get(MESSAGES, {**chosen, "created_at__day": at.day})
    assert [row.pk for row in response.context["cl"].result_list] == [row.pk]


# Who is not written to


def _suppress(address="ada@example.com", source="bounce", **fields):
    return Unsubscribe.objects.suppress(address, source, **fields)[0]


def test_why_somebody_is_not_written_to(admin_client):
    row = _suppress()
    message = _make("ada@example.com", status="sent", subject="Digest 7")
    message.recipients.update(status="bounced", reason="Permanent/General: smtp; 550 5.1.1 gone")
    other = _make("ada@example.com", status="suppressed", subject="Digest 8")
    _make("bob@example.com", subject="For Bob")
    page = _text(admin_client.get(f"{UNSUBSCRIBES}{row.pk}/change/"))
    assert "Permanent/General: smtp; 550 5.1.1 gone" in page
    for one in (message, other):
        assert f"{MESSAGES}{one.pk}/change/" in page
    assert "For Bob" not in page


def test_why_leads_to_what_ses_said(admin_client):
    Bounce.objects.create(
        address="ada@example.com",
        hard=True,
        bounce_type="Permanent",
        bounce_subtype="General",
        diagnostic_code="smtp; 550 5.1.1 gone",
        mail_timestamp=timezone.now(),
        mail_from="news@example.com",
    )
    link = "/admin/django_bouncy/bounce/?q=ada%40example.com"
    assert link in _text(admin_client.get(f"{UNSUBSCRIBES}{_suppress().pk}/change/"))
    assert admin_client.get(link).context["cl"].result_count == 1
    other = _suppress(source="user")
    assert "django_bouncy/bounce/?q" not in _text(
        admin_client.get(f"{UNSUBSCRIBES}{other.pk}/change/")
    )


def test_who_failed_to_be_written_to_is_not_said_to_wait(admin_client):
    row = _make(status="failed", last_error="Rejected")
    page = _text(admin_client.get(f"{MESSAGES}{row.pk}/change/"))
    assert ">not sent</span>" in page
    OutgoingMessage.objects.filter(pk=row.pk).update(status="queued")
    page = _text(admin_client.get(f"{MESSAGES}{row.pk}/change/"))
    assert ">not sent</span>" not in page


SEVERAL = UNSUBSCRIBES + "several/"


def test_several_are_looked_at_and_then_added(client):
    _operator(client, "view_unsubscribe", "add_unsubscribe")
    bob = User.objects.create_user("bob", email="bob@example.com")
    _suppress("ada@example.com", "manual")
    text = "Ada@example.com\n\nBob <BOB@example.com>\nbob@example.com\nno address\neve@x.org,digest"
    page = client.post(SEVERAL, {"text": text})
    preview = page.context["preview"]
    assert list(preview.new) == [
        ("bob@example.com", "manual", ""),
        ("eve@x.org", "manual", "digest"),
    ]
    assert preview.known == 2
    [invalid] = preview.invalid
    assert (invalid.number, invalid.text) == (5, "no address")
    assert "is not an address" in invalid.error
    assert Unsubscribe.objects.count() == 1
    told = _told(client.post(SEVERAL, {"text": text, "add": "1"}, follow=True))
    assert told == ["2 addresses are added."]
    assert Unsubscribe.objects.get(address="bob@example.com").user == bob
    assert LogEntry.objects.filter(action_flag=ADDITION).count() == 2


def test_an_export_can_be_imported(admin_client):
    _suppress("ada@example.com", "bounce")
    _suppress("eve@example.com", "user", mailing_list="digest")
    rows = Unsubscribe.objects.values_list("pk", flat=True)
    response = admin_client.post(UNSUBSCRIBES, {"action": "export", "_selected_action": rows})
    content = b"".join(response.streaming_content)
    assert content.startswith(b"address,source,mailing_list,created_at\r\n")
    before = set(Unsubscribe.objects.values_list("address", "source", "mailing_list"))
    Unsubscribe.objects.all().delete()
    page = admin_client.post(SEVERAL, {"file": SimpleUploadedFile("x.csv", content)})
    assert not page.context["preview"].invalid
    text = page.context["form"].cleaned_data["text"]
    admin_client.post(SEVERAL, {"text": text, "add": "1"})
    assert set(Unsubscribe.objects.values_list("address", "source", "mailing_list")) == before


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        ({}, "There is no address."),
        ({"text": "\n \n"}, "There is no address."),
        ({"file": b"\xff\xfe\x00"}, "not text in UTF-8"),
    ],
)
def test_what_is_no_list_is_an_error_of_the_form(sent, error, admin_client):
    if "file" in sent:
        sent = {"file": SimpleUploadedFile("x.csv", sent["file"])}
    assert error in _text(admin_client.post(SEVERAL, sent))


def test_an_unknown_source_is_named(admin_client):
    page = admin_client.post(SEVERAL, {"text": "address,source\nada@example.com,whim"})
    [line] = page.context["preview"].invalid
    assert "'whim' is no source" in line.error


def test_several_need_the_permission_to_add(client):
    _operator(client, "view_unsubscribe")
    assert client.get(SEVERAL).status_code == 403
    assert "Add several" not in _text(client.get(UNSUBSCRIBES))


def test_whoever_is_released_is_off_the_list_of_ses_as_well(admin_client, ses):
    ses.account.suppressed["ada@example.com"] = LocalSuppression(reason="BOUNCE")
    row = _suppress()
    told = _told(admin_client.post(f"{UNSUBSCRIBES}{row.pk}/release/", follow=True))
    assert told == [
        "1 row is removed.",
        "Taken off SES's own suppression list, too: ada@example.com",
    ]
    assert not Unsubscribe.objects.exists()
    assert LogEntry.objects.get().action_flag == DELETION


def test_another_reason_stays_and_is_told(admin_client, ses):
    row = _suppress()
    _suppress(source="user")
    told = _told(admin_client.post(f"{UNSUBSCRIBES}{row.pk}/release/", follow=True))
    assert told == [
        "1 row is removed.",
        "Still not written to, for another reason: ada@example.com",
    ]


def test_a_list_of_ses_that_can_not_be_changed_is_told(admin_client, ses, settings):
    row = _suppress()
    ses.close()
    told = _told(admin_client.post(f"{UNSUBSCRIBES}{row.pk}/release/", follow=True))
    assert told[0] == "1 row is removed."
    assert "could not be changed" in told[1]


def test_too_many_at_once_are_not_released_in_part(admin_client, elsewhere):
    for number in range(51):
        _suppress(f"u{number}@example.com")
    rows = Unsubscribe.objects.values_list("pk", flat=True)
    sent = {"action": "release", "_selected_action": rows, "select_across": "1"}
    told = _told(admin_client.post(UNSUBSCRIBES, sent, follow=True))
    assert told == ["At most 50 at once, since SES is asked about each: none is released."]
    assert Unsubscribe.objects.count() == 51


def test_releasing_needs_the_permission_to_delete(client, elsewhere):
    _operator(client, "view_unsubscribe", "change_unsubscribe", "add_unsubscribe")
    row = _suppress()
    assert client.post(f"{UNSUBSCRIBES}{row.pk}/release/").status_code == 403
    client.post(UNSUBSCRIBES, {"action": "release", "_selected_action": [row.pk]})
    assert Unsubscribe.objects.exists()
    assert "/release/" not in _text(client.get(f"{UNSUBSCRIBES}{row.pk}/change/"))

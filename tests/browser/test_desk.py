"""The operator's desk, as she sees it."""

from __future__ import annotations

import random
from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission, User
from django.utils import timezone

from connect_mailer.models import (
    Lease,
    MessageEvent,
    OutgoingContent,
    OutgoingMessage,
    OutgoingRecipient,
    Tally,
    Unsubscribe,
)
from connect_mailer.sending import pauses
from connect_mailer.testing.ses import LocalSES

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

ADMIN = "/admin/connect_mailer/"
# Of Django's own admin, on one version or the other.
DJANGO = (
    "#header",
    "#nav-sidebar",
    "#toggle-nav-sidebar",
    ".breadcrumbs",
    "nav",
    "#changelist-filter",
    "#changelist-search",
    "#changelist-form .actions",
    "#result_list",
    ".paginator",
    ".object-tools",
)
FIELDSETS = ("fieldset > h2", "fieldset > details > summary")


def _log_in(page, **fields):
    ada = User.objects.create_user("ada", password="secret", is_staff=True, **fields)
    ada.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    page.goto("/admin/login/?next=/admin/password_change/")
    page.locator("#id_username").fill("ada")
    page.locator("#id_password").fill("secret")
    page.locator("#login-form [type=submit]").click()
    page.wait_for_url("**/password_change/")


@pytest.fixture
def open_desk(open_page):
    """Open a page of the admin, logged in."""

    def open_path(path, *, is_superuser=True):
        page = open_page("/admin/login/")
        _log_in(page, is_superuser=is_superuser)
        page.goto(ADMIN + path)
        return page

    return open_path


@pytest.fixture
def ses(settings):
    """The account that the page asks for."""
    with LocalSES() as server:
        server.configure(rate=14, daily_quota=50_000)
        settings.AWS_ACCESS_KEY_ID = settings.AWS_SECRET_ACCESS_KEY = "test"
        settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "SES_ENDPOINT_URL": server.url}
        yield server


def _fill_tallies(seed=3):
    dice = random.Random(seed)
    now = timezone.now()
    rows = []
    for hour in range(31 * 24):
        at = (now - timedelta(hours=hour + 2)).replace(minute=0, second=0, microsecond=0)
        written = dice.randint(200, 900) * (3 if 8 <= at.hour <= 18 else 1)
        bounced = dice.randint(0, written // 40)
        rows.append(
            Tally(
                at=at,
                span=3600,
                stream="default",
                sent=written,
                written=written,
                delivered=written - bounced,
                bounced=bounced,
                suppressed=dice.randint(0, 9),
                failed=dice.randint(0, 1),
                complained=dice.random() < written / 9000,
            )
        )
        rows.append(Tally(at=at, span=3600, stream="transactional", sent=40, written=40))
    for minutes in range(60):
        at = now - timedelta(minutes=minutes)
        rows.append(Tally(at=at, stream="default", sent=180, written=dice.randint(180, 800)))
    for number, domain in enumerate(["example.net", "mail.example.org", "example.com"]):
        rows.append(
            Tally(
                at=now - timedelta(days=2),
                span=86400,
                stream="default",
                domain=domain,
                bounced=400 // (number + 1),
                soft_bounced=12,
                complained=number,
            )
        )
    Tally.objects.bulk_create(rows)


def _make(address="grace@example.org", *, body=b"", **fields):
    fields = {"status": "sent", "sender": "news@example.com", "subject": "Weekly digest", **fields}
    row = OutgoingMessage.objects.create(
        due_at=timezone.now(),
        content=OutgoingContent.objects.create(mime=body) if body else None,
        **fields,
    )
    OutgoingRecipient.objects.create(
        message=row, address=address, envelope=address, status="delivered"
    )
    return row


def test_health_of_a_new_site(open_desk, check_page, ses):
    page = open_desk("health/")
    page.locator("#mailer-account[data-loaded]").wait_for()
    assert page.get_by_text("0 of 50,000").is_visible()
    assert page.locator(".mailer-plot").count() == 0
    check_page(page, "health-empty", exclude=DJANGO)
    for name in ("outgoingmessage", "unsubscribe"):
        page.goto(f"{ADMIN}{name}/")
        page.locator(".mailer-empty").wait_for()
        check_page(page, f"{name}-none", exclude=DJANGO)


def test_health_of_a_busy_site(open_desk, check_page, ses):
    _fill_tallies()
    pauses.pause("default", "The digest has a wrong link (ada)", using="default")
    row = _make(status="queued")
    OutgoingMessage.objects.filter(pk=row.pk).update(
        lane=15, turn=timezone.now() - timedelta(minutes=50)
    )
    page = open_desk("health/")
    page.locator("#mailer-account[data-loaded]").wait_for()
    assert page.locator(".mailer-plot canvas").count() == 2
    check_page(page, "health", exclude=DJANGO)
    page.goto(f"{ADMIN}outgoingmessage/")
    page.get_by_text("The stream “default” is paused").wait_for()
    check_page(page, "messages-paused", exclude=DJANGO)
    page.goto(f"{ADMIN}health/")
    page.get_by_role("button", name="Resume “default”").click()
    page.get_by_text("Mail of “default” is sent again.").wait_for()
    assert not pauses.find_pauses(using="default")
    page.get_by_label("Why “transactional” is paused").fill("A test")
    page.get_by_role("button", name="Pause “transactional”").click()
    page.get_by_text("is paused.").wait_for()
    assert "A test (ada)" in page.locator(".mailer-why").inner_text()


def test_health_of_a_small_site(open_desk, check_page, ses):
    _make()
    _make("ada@example.org", stream="transactional", subject="Reset your password")
    _make("linus@example.net").recipients.update(status="bounced", reason="550 5.1.1")
    now = timezone.now()
    Tally.objects.create(at=now, stream="default", sent=2, written=2, delivered=1, bounced=1)
    Tally.objects.create(at=now, stream="default", domain="example.net", bounced=1)
    Tally.objects.create(at=now, stream="transactional", sent=1, written=1, delivered=1)
    page = open_desk("health/")
    page.locator("#mailer-account[data-loaded]").wait_for()
    check_page(page, "health-small", exclude=DJANGO)
    page.goto(ADMIN + "outgoingmessage/")
    assert page.locator("#result_list tbody tr").count() == 3
    check_page(page, "messages-three", exclude=DJANGO)


@pytest.mark.parametrize("language", ["de", "es", "fr"])
def test_the_desk_in_other_words(open_desk, check_page, ses, settings, language):
    settings.LANGUAGE_CODE = language
    _fill_tallies()
    row = _make(status="queued", sent_at=timezone.now())
    page = open_desk("health/")
    page.locator("#mailer-account[data-loaded]").wait_for()
    assert page.get_by_text("Bounce rate").count() == 0
    check_page(page, f"health-{language}", exclude=DJANGO)
    page.goto(f"{ADMIN}outgoingmessage/{row.pk}/change/")
    check_page(page, f"message-{language}", exclude=(*DJANGO, *FIELDSETS))
    page.goto(f"{ADMIN}unsubscribe/")
    check_page(page, f"unsubscribes-{language}", exclude=DJANGO)


def test_health_where_nothing_can_be_sent(open_desk, check_page, ses, settings):
    ses.close()
    Lease.objects.create(
        name="pause",
        holder=uuid4(),
        since=timezone.now(),
        expires_at=timezone.now() + timedelta(minutes=1),
        note="Daily message quota exceeded.",
    )
    page = open_desk("health/")
    page.locator("#mailer-account[data-loaded]").wait_for()
    assert page.get_by_text("SES did not say how the account is").is_visible()
    check_page(page, "health-held-up", exclude=DJANGO)


def test_the_life_of_a_message(open_desk, check_page):
    now = timezone.now()
    row = _make(sent_at=now, ses_message_id="0100018f-ab", finished_at=now, attempts=2)
    queued_at = now - timedelta(minutes=3)
    OutgoingMessage.objects.filter(pk=row.pk).update(created_at=queued_at, due_at=queued_at)
    for minutes, kind, address, detail in (
        (-2, "postponed", "", "TooManyRequestsException: Maximum sending rate exceeded."),
        (1, "delivered", "grace@example.org", "250 2.0.0 OK 1764000000"),
        (9, "opened", "", ""),
    ):
        MessageEvent.objects.create(
            message=row,
            kind=kind,
            address=address,
            detail=detail,
            at=now + timedelta(minutes=minutes),
        )
    page = open_desk(f"outgoingmessage/{row.pk}/change/")
    assert page.locator(".mailer-timeline li").count() == 5
    page.get_by_text("Details").click()
    check_page(page, "message", exclude=(*DJANGO, *FIELDSETS))
    page.goto(ADMIN + "outgoingmessage/")
    check_page(page, "messages-one", exclude=DJANGO)


def test_what_is_queued_can_be_hurried_and_cancelled(open_desk, check_page):
    row = _make(status="queued", body=b"Content-Type: text/html\n\n<p>Hello</p>")
    page = open_desk(f"outgoingmessage/{row.pk}/change/")
    check_page(page, "message-queued", exclude=(*DJANGO, *FIELDSETS))
    page.get_by_role("button", name="Send now").click()
    page.get_by_text("1 message is due now.").wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled by ada.").first.wait_for()
    check_page(page, "message-cancelled", exclude=(*DJANGO, *FIELDSETS))
    page.get_by_role("link", name="What was written").click()
    page.frame_locator("iframe").get_by_text("Hello").wait_for()
    check_page(page, "preview", exclude=(*DJANGO, "iframe"))


def test_who_may_only_look(open_desk, check_page, ses):
    row = _make(status="queued", body=b"Content-Type: text/plain\n\nHello")
    unsubscribe, _ = Unsubscribe.objects.suppress("grace@example.org", "bounce")
    page = open_desk("health/", is_superuser=False)
    page.locator("#mailer-account[data-loaded]").wait_for()
    assert page.locator("#content button").count() == 0
    check_page(page, "health-viewer", exclude=DJANGO)
    for name, pk in (("outgoingmessage", row.pk), ("unsubscribe", unsubscribe.pk)):
        page.goto(f"{ADMIN}{name}/{pk}/change/")
        assert page.locator("#content button").count() == 0
        check_page(page, f"{name}-viewer", exclude=(*DJANGO, *FIELDSETS))


def test_a_body_can_do_nothing(browser, live_server):
    tracker = f"{live_server.url}/mail/tracker.png"
    row = _make(
        body=b"Content-Type: text/html\n\n<h1>Hello</h1><script>top.document.title = 'x'</script>"
        + f"<img src='{tracker}'><a href='/x' target='_top'>A link</a>".encode()
    )
    # What is tried in the frame is blocked, and logged: so not by `open_page`.
    with browser.new_context(base_url=live_server.url) as context:
        page = context.new_page()
        _log_in(page, is_superuser=True)
        page.goto(f"{ADMIN}outgoingmessage/{row.pk}/change/")
        answered = []
        page.on("response", lambda response: answered.append(response.url))
        page.get_by_role("link", name="What was written").click()
        frame = page.frame_locator("iframe")
        frame.get_by_role("heading", name="Hello").wait_for()
        frame.get_by_role("link", name="A link").click()
        assert page.title() != "x"
        assert page.url.endswith("/preview/")
        assert tracker not in answered
        assert any(url.endswith("/body/") for url in answered)


def test_who_is_not_written_to(open_desk, check_page):
    row, _ = Unsubscribe.objects.suppress(
        "grace@example.org", "bounce", detail="Permanent/General: smtp; 550 5.1.1 User unknown"
    )
    message = _make()
    message.recipients.update(status="bounced", reason=row.detail)
    page = open_desk(f"unsubscribe/{row.pk}/change/")
    assert page.get_by_text("550 5.1.1 User unknown").count() == 2
    check_page(page, "unsubscribe", exclude=(*DJANGO, "fieldset > h2"))
    page.get_by_role("link", name="Weekly digest").first.click()
    page.get_by_text("What happened").first.wait_for()
    page.goto(ADMIN + "unsubscribe/")
    check_page(page, "unsubscribes", exclude=DJANGO)
    page.goto(ADMIN + "unsubscribe/add/")
    check_page(page, "unsubscribe-add", exclude=(*DJANGO, "fieldset > h2"))
    page.goto(ADMIN + "unsubscribe/?q=nobody")
    page.get_by_text("Nothing is found.").wait_for()
    check_page(page, "unsubscribes-not-found", exclude=DJANGO)
    page.get_by_role("link", name="Add several").click()
    check_page(page, "several", exclude=DJANGO)
    page.get_by_label("Addresses").fill("ada@example.com\nnobody\ngrace@example.org, digest")
    page.get_by_role("button", name="Look at them first").click()
    page.get_by_text("'nobody' is not an address").wait_for()
    check_page(page, "several-preview", exclude=DJANGO)
    page.get_by_role("button", name="Add them").click()
    page.get_by_text("2 addresses are added.").wait_for()
    assert Unsubscribe.objects.count() == 3


def test_a_long_list_of_messages(open_desk, check_page):
    statuses = OutgoingMessage.Status.values
    for number in range(60):
        _make(
            f"reader{number}@example.org",
            status=statuses[number % len(statuses)],
            last_error="" if number % 5 else "Rejected: Address contains illegal characters.",
            subject=f"Weekly digest {number}",
        )
    page = open_desk("outgoingmessage/")
    assert page.locator("#result_list tbody tr").count() == 50
    check_page(page, "messages", exclude=DJANGO)
    page.goto(ADMIN + "outgoingmessage/?status__exact=failed")
    assert page.locator("#result_list tbody tr").count() == 10
    check_page(page, "messages-failed", exclude=DJANGO)

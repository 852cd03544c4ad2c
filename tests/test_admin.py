from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from connect_mailer import tasks
from connect_mailer.models import (
    Lease,
    OutgoingContent,
    OutgoingMessage,
    OutgoingRecipient,
    Unsubscribe,
)

pytestmark = pytest.mark.django_db

UNSUBSCRIBES = "/admin/connect_mailer/unsubscribe/"
MESSAGES = "/admin/connect_mailer/outgoingmessage/"


@pytest.fixture
def woken(monkeypatch):
    calls = []
    monkeypatch.setattr(tasks, "wake_on_commit", lambda *, using: calls.append(using))
    return calls


def _make(*recipients, body=b"", status="sent", **fields):
    row = OutgoingMessage.objects.create(
        status=status,
        due_at=timezone.now(),
        sender=fields.pop("sender", "site@example.com"),
        subject=fields.pop("subject", "Hello"),
        content=OutgoingContent.objects.create(mime=body) if body else None,
        **fields,
    )
    for address in recipients or ("ada@example.com",):
        OutgoingRecipient.objects.create(message=row, address=address, envelope=address)
    return row


def _text(response):
    return response.content.decode()


def _found(client, query, url=MESSAGES):
    response = client.get(url, {"q": query})
    assert response.status_code == 200
    return {str(row.pk) for row in response.context["cl"].result_list}


def _told(response):
    return [str(message) for message in response.context["messages"]]


def _operator(client, *codenames):
    user = User.objects.create_user("operator", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client.force_login(user)
    return user


# Who is not written to


def test_an_address_is_added_by_hand(admin_client):
    ada = User.objects.create_user("ada", email="ada@example.com")
    response = admin_client.post(
        UNSUBSCRIBES + "add/", {"address": " Ada <ADA@Example.com>", "mailing_list": ""}
    )
    assert response.status_code == 302
    row = Unsubscribe.objects.get()
    assert (row.address, row.source, row.user) == ("ada@example.com", "manual", ada)
    assert LogEntry.objects.get().object_id == str(row.pk)


def test_the_source_can_not_be_chosen(admin_client):
    admin_client.post(UNSUBSCRIBES + "add/", {"address": "ada@example.com", "source": "bounce"})
    assert Unsubscribe.objects.get().source == "manual"


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("ADA@example.COM", "already exists"),
        ("ada", "is not an address"),
        ("ada@example.com, bob@example.com", "is not one address"),
        ("", "This field is required"),
    ],
)
def test_what_can_not_be_added_is_an_error_of_the_form(address, error, admin_client):
    Unsubscribe.objects.suppress("ada@example.com", "manual")
    response = admin_client.post(UNSUBSCRIBES + "add/", {"address": address})
    assert response.status_code == 200
    errors = str(response.context["errors"])
    assert error in errors
    assert Unsubscribe.objects.count() == 1


def test_one_address_may_have_several_reasons(admin_client):
    Unsubscribe.objects.suppress("ada@example.com", "bounce")
    admin_client.post(UNSUBSCRIBES + "add/", {"address": "ada@example.com"})
    assert set(Unsubscribe.objects.values_list("source", flat=True)) == {"bounce", "manual"}


def test_a_row_is_not_rewritten_but_its_user_may_be(admin_client):
    row, _ = Unsubscribe.objects.suppress("ada@example.com", "bounce")
    ada = User.objects.create_user("ada")
    admin_client.post(
        f"{UNSUBSCRIBES}{row.pk}/change/",
        {"address": "bob@example.com", "source": "manual", "user": ada.pk},
    )
    row.refresh_from_db()
    assert (row.address, row.source, row.user) == ("ada@example.com", "bounce", ada)


def test_unsubscribes_are_searched_filtered_and_linked(admin_client):
    ada = User.objects.create_user("ada", email="ada@example.com")
    of_ada, _ = Unsubscribe.objects.suppress("ada@example.com", "user")
    canada, _ = Unsubscribe.objects.suppress("canada@example.com", "bounce")
    idn, _ = Unsubscribe.objects.suppress("eve@müller.example", "complaint")
    assert _found(admin_client, "ADA@example.com", UNSUBSCRIBES) == {str(of_ada.pk)}
    for part in ("ada", "Ada"):
        assert _found(admin_client, part, UNSUBSCRIBES) == {str(of_ada.pk), str(canada.pk)}
    assert _found(admin_client, "eve@Müller.example", UNSUBSCRIBES) == {str(idn.pk)}
    response = admin_client.get(UNSUBSCRIBES, {"source__exact": "bounce"})
    assert [row.pk for row in response.context["cl"].result_list] == [canada.pk]
    link = reverse("admin:auth_user_change", args=[ada.pk])
    assert f'<a href="{link}">ada</a>' in _text(admin_client.get(UNSUBSCRIBES))


def test_a_list_of_unsubscribes_costs_the_same_however_long(admin_client):
    def count():
        with CaptureQueriesContext(connection) as queries:
            admin_client.get(UNSUBSCRIBES)
        return len(queries)

    Unsubscribe.objects.suppress("first@example.com", "user")
    before = count()
    for number in range(20):
        User.objects.create_user(f"user{number}", email=f"{number}@example.com")
        Unsubscribe.objects.suppress(f"{number}@example.com", "user")
    assert count() == before


# What became of each message


def test_an_empty_outbox(admin_client):
    assert admin_client.get(MESSAGES).status_code == 200


def test_the_list_says_what_became_of_a_message(admin_client):
    _make("ada@example.com", "bob@example.com", "eve@example.com", subject="News")
    _make(status="failed", subject="", last_error="x" * 500)
    page = _text(admin_client.get(MESSAGES))
    assert "ada@example.com and 2 more" in page
    assert "(no subject)" in page
    assert "mailer-failed" in page
    assert "x" * 100 not in page


def test_the_list_names_first_who_is_written_to(admin_client):
    row = _make("left@example.com", "reads@example.com")
    row.recipients.filter(address="left@example.com").update(status="suppressed")
    assert "reads@example.com and 1 more" in _text(admin_client.get(MESSAGES))


def test_a_list_of_messages_costs_the_same_however_long_and_loads_no_body(admin_client):
    def capture():
        with CaptureQueriesContext(connection) as queries:
            admin_client.get(MESSAGES)
        assert not [query for query in queries if "mime" in query["sql"]]
        return len(queries)

    _make("first@example.com", body=b"bytes")
    before = capture()
    for number in range(20):
        _make(f"{number}@example.com", f"{number}@example.org", body=b"bytes")
    assert capture() == before
    assert before <= 12


def test_a_message_is_shown_with_everybody_on_it_and_can_not_be_changed(admin_client):
    row = _make("ada@example.com", "bob@example.com", body=b"the bytes")
    row.recipients.filter(address="bob@example.com").update(
        status="suppressed", reason="hard bounce"
    )
    url = f"{MESSAGES}{row.pk}/change/"
    with CaptureQueriesContext(connection) as queries:
        page = _text(admin_client.get(url))
    assert not [query for query in queries if "mime" in query["sql"]]
    for shown in ("ada@example.com", "bob@example.com", "hard bounce", str(row.uuid)):
        assert shown in page
    assert 'name="_save"' not in page
    assert admin_client.post(url, {"subject": "x"}).status_code == 403
    assert admin_client.get(MESSAGES + "add/").status_code == 403


def test_messages_are_found(admin_client):
    mine = _make("ada@example.com", subject="Weekly digest", ses_message_id="0100-ab-000000")
    other = _make("canada@example.com", sender="other@example.org")
    both = {str(mine.pk), str(other.pk)}
    mine.recipients.update(status="suppressed")
    mine, other = {str(mine.pk)}, {str(other.pk)}
    assert _found(admin_client, "Ada <ADA@example.com>") == mine
    assert _found(admin_client, "ada@exam") == both
    assert _found(admin_client, "digest") == mine
    assert _found(admin_client, "0100-ab-000000") == mine
    assert _found(admin_client, "<0100-ab-000000@eu-west-1.amazonses.com>") == mine
    assert _found(admin_client, "Other@example.org") == other
    assert _found(admin_client, "nobody@example.com") == set()


def test_messages_are_filtered(admin_client):
    _make(status="sent")
    failed = _make(status="failed", stream="transactional")
    for query in ({"status__exact": "failed"}, {"stream__exact": "transactional"}):
        rows = admin_client.get(MESSAGES, query).context["cl"].result_list
        assert [row.pk for row in rows] == [failed.pk]
    old = admin_client.get(MESSAGES, {"created_at__lt": timezone.now() - timedelta(days=1)})
    assert not old.context["cl"].result_list


# Sending again


def test_messages_in_doubt_are_listed(admin_client):
    held = _make("held@example.org", status="failed", in_doubt=True)
    _make("other@example.org", status="failed")

    rows = admin_client.get(MESSAGES, {"in_doubt__exact": "1"}).context["cl"].result_list

    assert [row.pk for row in rows] == [held.pk]


def _send_again(client, *rows):
    return client.post(
        MESSAGES,
        {"action": "send_again", "_selected_action": [row.pk for row in rows]},
        follow=True,
    )


def test_messages_whose_body_is_kept_are_sent_again(admin_client, woken):
    rows = [
        _make(body=b"a", status="failed"),
        _make(body=b"b", status="sent"),
        _make(body=b"c", status="expired"),
        _make(body=b"d", status="queued"),
        _make(status="sent"),
    ]
    response = _send_again(admin_client, *rows)
    assert _told(response) == [
        "3 messages are queued again.",
        "1 message is on its way already.",
        "1 message can't be sent again: its body is no longer kept.",
    ]
    statuses = OutgoingMessage.objects.order_by("pk").values_list("status", flat=True)
    assert list(statuses) == ["queued"] * 4 + ["sent"]
    assert woken == ["default"]
    assert set(
        LogEntry.objects.filter(action_flag=CHANGE).values_list("object_id", "change_message")
    ) == {(str(row.pk), "Queued again.") for row in rows[:3]}


def test_sending_again_needs_the_permission_to_change(client, woken):
    row = _make(body=b"a", status="failed")
    _operator(client, "view_outgoingmessage")
    assert "send_again" not in _text(client.get(MESSAGES))
    _send_again(client, row)
    row.refresh_from_db()
    assert row.status == "failed"
    assert not woken


def test_an_operator_who_may_send_again(client, woken):
    row = _make(body=b"a", status="failed")
    _operator(client, "change_outgoingmessage")
    assert client.get(f"{MESSAGES}{row.pk}/change/").status_code == 200
    _send_again(client, row)
    row.refresh_from_db()
    assert row.status == "queued"
    assert woken


# Deleting


def test_only_superusers_delete_messages(client):
    row = _make()
    _operator(client, "view_outgoingmessage", "delete_outgoingmessage")
    assert client.post(f"{MESSAGES}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert OutgoingMessage.objects.exists()


def test_the_body_goes_with_the_last_message_that_needs_it(admin_client):
    first = _make(body=b"shared")
    second = _make()
    OutgoingMessage.objects.filter(pk=second.pk).update(content=first.content)
    admin_client.post(f"{MESSAGES}{first.pk}/delete/", {"post": "yes"})
    assert OutgoingContent.objects.exists()
    admin_client.post(
        MESSAGES, {"action": "delete_selected", "_selected_action": second.pk, "post": "yes"}
    )
    assert not OutgoingMessage.objects.exists()
    assert not OutgoingContent.objects.exists()
    assert LogEntry.objects.filter(action_flag=DELETION).count() == 2


# A pause


@pytest.mark.parametrize(("minutes", "shown"), [(5, True), (-5, False)])
def test_a_pause_is_told(minutes, shown, admin_client):
    Lease.objects.create(
        name="pause",
        holder=uuid4(),
        expires_at=timezone.now() + timedelta(minutes=minutes),
        note="Daily <quota> exceeded",
    )
    response = admin_client.get(MESSAGES)
    assert ("Sending is paused" in _text(response)) is shown
    assert ("Daily &lt;quota&gt; exceeded" in _text(response)) is shown


def test_no_pause_no_word(admin_client):
    assert not _told(admin_client.get(MESSAGES))


def test_tables_of_the_machinery_are_not_in_the_admin(admin_client):
    page = _text(admin_client.get("/admin/"))
    assert MESSAGES in page
    for model in ("lease", "limiterstate", "notificationreceipt", "outgoingcontent"):
        assert f"/admin/connect_mailer/{model}/" not in page

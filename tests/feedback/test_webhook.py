"""The webhook as SNS and strangers see it, and what is left in the database."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.core.cache import caches
from django.db import IntegrityError, OperationalError, connection
from django.http import Http404
from django.test import Client
from django.utils import timezone
from django_bouncy import signals
from django_bouncy.models import Bounce, Complaint, Delivery

from connect_mailer import signals as outbox_signals
from connect_mailer import tallies, telemetry
from connect_mailer.account.site import examine_quickly
from connect_mailer.exceptions import NotificationRefused, NotificationUndecided
from connect_mailer.feedback import receivers, sns, webhook
from connect_mailer.models import (
    MessageEvent,
    NotificationReceipt,
    OutgoingContent,
    OutgoingMessage,
    OutgoingRecipient,
    Tally,
    Unsubscribe,
)
from connect_mailer.testing.sns import (
    SES_MESSAGE_ID,
    TOPIC_ARN,
    SNSSigner,
    make_bounce,
    make_complaint,
    make_delivery,
    make_event,
    make_headers,
    make_mail,
)

pytestmark = pytest.mark.django_db

TABLES = (NotificationReceipt, Bounce, Complaint, Delivery, Unsubscribe, OutgoingMessage)


def count_all() -> int:
    return sum(table.objects.count() for table in TABLES)


def suppressed() -> set[tuple[str, str]]:
    return set(Unsubscribe.objects.values_list("address", "source"))


@pytest.fixture
def connected():
    made = []

    def connect(signal, receiver):
        signal.connect(receiver, weak=False)
        made.append((signal, receiver))

    yield connect
    for signal, receiver in made:
        signal.disconnect(receiver)


@pytest.fixture(params=["nobody listens", "a site's receiver listens"])
def post(request, post, connected):
    """All of this file twice: where nobody needs instances of the rows, none are made."""
    if request.param == "a site's receiver listens":
        connected(signals.feedback, lambda **kwargs: None)
    return post


def make_message(*recipients: str, **fields) -> OutgoingMessage:
    if "content" not in fields:
        fields["content"] = OutgoingContent.objects.create(mime=b"Subject: x\r\n\r\n")
    message = OutgoingMessage.objects.create(
        sender="site@example.com", due_at=timezone.now(), **fields
    )
    for recipient in recipients:
        OutgoingRecipient.objects.create(message=message, address=recipient, envelope=recipient)
    return message


def statuses(message: OutgoingMessage) -> dict[str, str]:
    return dict(message.recipients.values_list("address", "status"))


# Entry


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE"])
def test_only_post_is_there(method):
    assert Client().generic(method, "/mail/bouncy/").status_code == 404


def test_csrf_and_login_are_not_asked_for_and_no_cookie_is_set(signer, settings):
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    client = Client(enforce_csrf_checks=True)
    answer = client.post(
        "/mail/bouncy/", signer.notification("x"), content_type="application/x-www-form-urlencoded"
    )
    assert answer.status_code == 200
    assert not answer.cookies


def test_a_body_above_one_mebibyte_is_too_large(post):
    assert post(b" " * (1024 * 1024)).status_code == 400
    assert post(b" " * (1024 * 1024 + 1)).status_code == 413


def test_the_sites_own_limit_for_uploads_does_not_apply(post, signer, settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    assert post(signer.notification("x" * 1000)).status_code == 200


def test_receivers_can_read_the_request(post, signer, connected):
    seen = []
    connected(signals.notification, lambda request, **kwargs: seen.append(request.body))
    body = signer.notification("x")
    post(body)
    assert seen == [body.encode()]


# Topic, certificate, signature


@pytest.mark.parametrize("topics", [None, "", [], (), "  ", ","])
def test_without_topics_all_is_refused(post, signer, settings, topics, downloads):
    settings.BOUNCY_TOPIC_ARN = topics
    assert post(signer.notification(make_bounce(["a@example.com"]))).status_code == 400
    assert count_all() == 0
    assert downloads == []


def test_a_topic_as_a_string_is_one_entry(post, signer, settings):
    settings.BOUNCY_TOPIC_ARN = signer.topic_arn
    assert post(signer.notification("x")).status_code == 200
    settings.BOUNCY_TOPIC_ARN = signer.topic_arn + "-more"
    assert post(signer.notification("x")).status_code == 400


def test_the_header_proves_nothing(post, signer):
    body = signer.notification("x", TopicArn="arn:aws:sns:us-east-1:123456789012:other")
    assert post(body, HTTP_X_AMZ_SNS_TOPIC_ARN=signer.topic_arn).status_code == 400


def test_a_foreign_topic_is_logged_once_an_hour_and_as_unverified(post, signer, caplog):
    caplog.set_level(logging.WARNING, logger="connect_mailer.feedback.webhook")
    for _ in range(3):
        post(signer.notification("x", TopicArn="arn:aws:sns:us-east-1:1:a\x0ab"))
        post(signer.notification("x", TopicArn="other\u2028topic"))
        post(signer.notification("x", TopicArn="other"))
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("connect_mailer")]
    assert "unverified" in line
    assert line.isprintable()


@pytest.mark.parametrize("version", ["1", "2"])
def test_both_versions_of_the_signature_are_verified(post, signer, version):
    message = make_bounce(["a@example.com"])
    body = signer.notification(message, version=version, subject="A subject")
    assert post(body).status_code == 200
    assert suppressed() == {("a@example.com", "bounce")}


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("name", ["Message", "MessageId", "Subject", "Timestamp", "Signature"])
def test_a_changed_field_breaks_the_signature(post, signer, name, version):
    data = json.loads(signer.notification("text", subject="subject", version=version))
    data[name] = data[name][:-2] + ("A=" if data[name].endswith("B=") else "B=")
    assert post(json.dumps(data)).status_code == 400
    assert count_all() == 0


def test_an_added_or_removed_subject_breaks_the_signature(post, signer):
    data = json.loads(signer.notification("x"))
    assert post(json.dumps({**data, "Subject": "s"})).status_code == 400
    data = json.loads(signer.notification("x", subject="s"))
    del data["Subject"]
    assert post(json.dumps(data)).status_code == 400


def test_a_message_cut_again_into_a_subject_is_refused(post, signer):
    text = "bounce\nMessageId\nfake\nSubject\nrest"
    data = json.loads(signer.notification(text, message_id="real"))
    data |= {
        "Message": "bounce",
        "MessageId": "fake",
        "Subject": "rest\nMessageId\nreal",
    }
    assert post(json.dumps(data)).status_code == 400
    assert count_all() == 0


def test_another_key_is_refused(post, signer):
    stranger = SNSSigner.generate()
    body = stranger.notification("x", SigningCertURL=signer.certificate_url)
    assert post(body).status_code == 400


def test_a_certificate_that_cannot_be_had_is_undecided(post, downloads):
    stranger = SNSSigner.generate()
    for _ in range(3):
        assert post(stranger.notification("x")).status_code == 503
    assert downloads == [stranger.certificate_url]
    stranger.trust()
    assert post(stranger.notification("x")).status_code == 200


def test_a_cache_that_is_down_is_worked_around(post, signer, monkeypatch):
    pem = signer.certificate_pem.encode()
    asked = []

    def download(host, target):
        asked.append(target)
        return pem

    def fail(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setattr(webhook, "certificates", sns.Certificates(download))
    monkeypatch.setattr(type(caches["default"]), "get", fail)
    monkeypatch.setattr(type(caches["default"]), "set", fail)
    assert post(signer.notification("x")).status_code == 200
    assert post(signer.notification("x")).status_code == 200
    assert len(asked) == 1


def test_a_cache_that_hangs_is_not_waited_for(post, signer, monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(sns, "CACHE_SECONDS", 0.05)

    def get(*args):
        done.wait(20)
        return signer.certificate_pem

    monkeypatch.setattr(type(caches["default"]), "get", get)
    try:
        assert post(signer.notification("x")).status_code == 503
    finally:
        done.set()


@pytest.mark.skipif(connection.vendor != "sqlite", reason="servers have a limit of their own")
def test_sqlite_waits_briefly_where_it_is_set_to_wait_long(post, signer, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", {"timeout": 60})
    waits = []

    def note(execute, sql, *rest):
        waits.append(connection.connection.execute("PRAGMA busy_timeout").fetchone()[0])
        return execute(sql, *rest)

    with connection.execute_wrapper(note):
        assert post(signer.notification("x")).status_code == 200
    assert set(waits[1:]) == {2000}
    with connection.cursor() as cursor:
        assert cursor.execute("PRAGMA busy_timeout").fetchone() == (60_000,)


def test_verification_cannot_be_switched_off(post, signer, settings):
    settings.BOUNCY_VERIFY_CERTIFICATE = False
    data = json.loads(signer.notification("x")) | {"Message": "y"}
    assert post(json.dumps(data)).status_code == 400


def test_the_old_patterns_only_narrow(post, signer, settings):
    settings.BOUNCY_CERT_DOMAIN_REGEX = r"sns.[a-z0-9\-]+.amazonaws.com$"
    assert post(signer.notification("x")).status_code == 200
    settings.BOUNCY_CERT_DOMAIN_REGEX = r"eu-west-1"
    assert post(signer.notification("x")).status_code == 400
    settings.BOUNCY_CERT_DOMAIN_REGEX = r".*"
    body = signer.notification("x", SigningCertURL="https://evil.example/x.pem")
    assert post(body).status_code == 400
    settings.BOUNCY_CERT_DOMAIN_REGEX = "("
    assert post(signer.notification("x")).status_code == 503


def test_no_signal_before_the_signature_is_verified(post, signer, connected):
    seen = []
    connected(signals.notification, lambda **kwargs: seen.append(kwargs))
    data = json.loads(signer.notification("x")) | {"Message": "y"}
    post(json.dumps(data))
    assert seen == []


# Writing


def test_a_bounce_becomes_a_row_and_an_opt_out(post, signer, connected, django_user_model):
    user = django_user_model.objects.create(username="a", email="A@Example.com")
    seen = []
    connected(signals.feedback, lambda **kwargs: seen.append(kwargs))
    message = make_bounce(["A@Example.COM"])
    body = signer.notification(message)
    assert post(body).status_code == 200
    bounce = Bounce.objects.get()
    assert (bounce.address, bounce.hard, bounce.bounce_subtype, bounce.mail_from) == (
        "a@example.com",
        True,
        "General",
        "site@example.com",
    )
    assert bounce.sns_messageid == json.loads(body)["MessageId"]
    assert Unsubscribe.objects.get().user == user
    (call,) = seen
    assert call["sender"] is Bounce
    assert call["instance"] == bounce
    assert call["message"] == message
    assert call["notification"]["Message"] == json.dumps(message)


def test_a_receiver_gets_the_row_of_each_delivery(signer, connected):
    seen = []
    connected(signals.feedback, lambda instance, **kwargs: seen.append(instance))
    body = signer.notification(make_delivery(["a@example.com", "b@example.com"]))
    assert Client().post("/mail/bouncy/", body, content_type="text/plain").status_code == 200
    assert seen == list(Delivery.objects.order_by("pk"))
    assert len(seen) == 2


def test_a_second_delivery_writes_nothing(post, signer, connected):
    body = signer.notification(make_bounce(["a@example.com"]))
    assert post(body).status_code == 200
    before = count_all()
    seen = []
    connected(signals.notification, lambda **kwargs: seen.append(kwargs))
    connected(signals.feedback, lambda **kwargs: seen.append(kwargs))
    assert post(body).status_code == 200
    assert count_all() == before
    assert seen == []


def test_an_id_in_capitals_is_another_one(post, signer):
    for message_id in ("0a1b", "0A1B"):
        body = signer.notification(make_bounce([f"{message_id}@x.org"]), message_id=message_id)
        assert post(body).status_code == 200
    assert NotificationReceipt.objects.count() == 2


def test_a_bounce_is_not_of_who_looks_like_it(post, signer):
    assert post(signer.notification(make_bounce(["\xe9ve@example.com"]))).status_code == 200
    assert not Unsubscribe.objects.address_exists("eve@example.com")
    assert Unsubscribe.objects.address_exists("\xe9ve@example.com")


@pytest.mark.parametrize("signal", [signals.notification, signals.feedback])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError,
        OperationalError,
        IntegrityError,
        NotificationUndecided,
        NotificationRefused,
        Http404,
    ],
)
def test_a_receiver_that_raises_leaves_nothing(post, signer, connected, signal, error):
    def fail(**kwargs):
        raise error("no")

    connected(signal, fail)
    body = signer.notification(make_bounce(["a@example.com", "b@example.com"]))
    assert post(body).status_code == 503
    assert count_all() == 0
    signal.disconnect(fail)
    assert post(body).status_code == 200
    assert Bounce.objects.count() == 2


def test_a_database_that_fails_is_undecided(post, signer):
    def fail(execute, sql, *rest):
        if "INSERT" in sql:
            raise OperationalError("gone")
        return execute(sql, *rest)

    with connection.execute_wrapper(fail):
        assert post(signer.notification("x")).status_code == 503


@pytest.mark.parametrize("make", [make_delivery, make_bounce, make_complaint])
@pytest.mark.parametrize("number", [1, 50])
@pytest.mark.parametrize("is_ours", [True, False], ids=["our mail", "other mail"])
def test_few_statements_where_nobody_listens(signer, make, number, is_ours):
    """On PostgreSQL two: what is asked, of the outbox and of users, and what is written."""
    statements = []

    def note(execute, sql, *rest):
        if "SAVEPOINT" not in sql and not sql.startswith("SET @"):
            statements.append(sql)
        return execute(sql, *rest)

    people = [f"{n}@example.com" for n in range(number)]
    mail = make_mail(people, ses_message_id="an-id")
    if is_ours:
        message = make_message(*people, ses_message_id="an-id", status="sent", content=None)
        message.recipients.update(status="sent")
    body = signer.notification(make(people, mail=mail))
    with connection.execute_wrapper(note):
        assert Client().post("/mail/bouncy/", body, content_type="text/plain").status_code == 200
    if connection.vendor == "postgresql":
        assert len(statements) == 2
    else:
        # Receipt, rows, the outbox with a lock where there is one, users, opt-outs; and what
        # changes there: recipients, their history, the tallies.
        asked = 3 + connection.features.has_select_for_update
        opt_outs = 0 if make is make_delivery else 2
        assert len(statements) == asked + opt_outs + (3 if is_ours else 0)


@pytest.mark.parametrize("is_told", [True, False], ids=["a site is told", "nobody is told"])
def test_a_site_that_disconnects_the_receiver_suppresses_nobody(post, signer, connected, is_told):
    if is_told:
        connected(signals.notification, lambda **kwargs: None)
    signals.feedback.disconnect(dispatch_uid=receivers.DISPATCH_UID)
    try:
        assert post(signer.notification(make_bounce(["a@example.com"]))).status_code == 200
    finally:
        signals.feedback.connect(receivers.suppress, dispatch_uid=receivers.DISPATCH_UID)
    assert Bounce.objects.count() == 1
    assert not suppressed()


def test_more_recipients_than_a_mail_has(post, signer):
    people = [f"{n}@example.com" for n in range(1000)]
    assert post(signer.notification(make_bounce(people))).status_code == 200
    assert Bounce.objects.count() == Unsubscribe.objects.count() == 1000


@pytest.mark.parametrize("make", [make_bounce, make_complaint, make_delivery])
def test_what_is_reported_again_is_written_once(post, signer, make):
    row = make_message("a@example.com", status="sent", ses_message_id=SES_MESSAGE_ID)
    table = {make_bounce: Bounce, make_complaint: Complaint, make_delivery: Delivery}[make]
    mail = make_mail(["a@example.com"])
    # The others are about her too, as nobody else was written to.
    others = [f"{n}@elsewhere.example" for n in range(9)]
    message = make(["a@example.com", "A@Example.com"] * 1000 + others, mail=mail)
    assert post(signer.notification(message)).status_code == 200
    assert row.events.count() == 1
    assert table.objects.count() == 1 + len(others)


@pytest.mark.parametrize("make", [make_bounce, make_complaint, make_delivery])
@pytest.mark.parametrize("use_tz", [True, False])
def test_rows_are_the_same_whether_somebody_listens(signer, connected, settings, make, use_tz):
    settings.USE_TZ = use_tz
    own = {"id", "sns_messageid", "created_at", "modified_at"}
    table = {make_bounce: Bounce, make_complaint: Complaint, make_delivery: Delivery}[make]
    notification = make(["a@example.com", "b@example.com"])
    for _ in range(2):
        body = signer.notification(notification)
        assert Client().post("/mail/bouncy/", body, content_type="text/plain").status_code == 200
        connected(signals.feedback, lambda **kwargs: None)
    rows = [
        {name: value for name, value in row.items() if name not in own}
        for row in table.objects.order_by("pk").values()
    ]
    assert rows[:2] == rows[2:]
    assert all(row.created_at and row.modified_at for row in table.objects.all())


@pytest.mark.parametrize("kind", [make_bounce, make_complaint, make_delivery])
@pytest.mark.parametrize("is_told", [True, False], ids=["destination", "no destination"])
def test_the_number_of_queries_does_not_depend_on_the_recipients(post, signer, kind, is_told):
    from django.test.utils import CaptureQueriesContext

    def count(prefix: str, number: int) -> int:
        people = [f"{prefix}{n}@example.com" for n in range(number)]
        ses_id = f"{prefix}-id"
        make_message(*people, ses_message_id=ses_id, status="sending", content=None)
        mail = make_mail(people if is_told else [], ses_message_id=ses_id)
        with CaptureQueriesContext(connection) as queries:
            assert post(signer.notification(kind(people, mail=mail))).status_code == 200
        return len(queries)

    assert count("one", 1) == count("many", 50)


def test_rows_have_ids_where_a_bulk_insert_returns_none(post, signer, monkeypatch, connected):
    monkeypatch.setattr(type(connection.features), "can_return_rows_from_bulk_insert", False)
    seen = []
    connected(signals.feedback, lambda instance, **kwargs: seen.append(instance))
    post(signer.notification(make_bounce(["a@example.com", "b@example.com"])))
    assert [(row.pk, row.address) for row in seen] == list(
        Bounce.objects.order_by("pk").values_list("pk", "address")
    )


# Meaning


@pytest.mark.parametrize("event", [False, True])
@pytest.mark.parametrize(
    ("bounce_type", "subtype", "source"),
    [
        ("Permanent", "General", "bounce"),
        ("Permanent", "NoEmail", "bounce"),
        ("Permanent", "Suppressed", "bounce"),
        ("Permanent", "OnAccountSuppressionList", "bounce"),
        ("Permanent", "UnsubscribedRecipient", "user"),
        ("Transient", "General", None),
        ("Transient", "MailboxFull", None),
        ("Transient", "MessageTooLarge", None),
        ("Transient", "CustomTimeoutExceeded", None),
        ("Transient", "ContentRejected", None),
        ("Transient", "AttachmentRejected", None),
        ("Undetermined", "Undetermined", None),
        ("Unheard-of", "General", None),
    ],
)
def test_bounces(post, signer, bounce_type, subtype, source, event):
    message = make_bounce(["a@example.com"], bounce_type=bounce_type, subtype=subtype, event=event)
    assert post(signer.notification(message)).status_code == 200
    assert Bounce.objects.get().hard is (bounce_type == "Permanent")
    assert suppressed() == ({("a@example.com", source)} if source else set())


def refuse_unsubscribed(*people, destination=None, event=False, **mail):
    """What SES says of mail to a contact who left its topic."""
    destination = people if destination is None else destination
    mail = make_mail(destination, **mail)
    return make_bounce([*people], subtype="UnsubscribedRecipient", mail=mail, event=event)


def opted_out() -> list[tuple[str, str, str]]:
    return list(Unsubscribe.objects.values_list("address", "source", "mailing_list"))


@pytest.mark.parametrize("event", [False, True])
@pytest.mark.parametrize("status", ["sent", "sending"])
@pytest.mark.parametrize("mailing_list", ["digest", ""])
def test_who_left_a_topic_leaves_the_list_of_the_mail(
    post, signer, connected, django_capture_on_commit_callbacks, status, mailing_list, event
):
    told = []
    connected(
        outbox_signals.unsubscribed,
        lambda address, mailing_list, **kwargs: told.append((address, mailing_list)),
    )
    by_id = {"mailing_list": mailing_list, "status": status, "ses_message_id": SES_MESSAGE_ID}
    message = make_message("a@example.com", **by_id)
    for _ in range(2):
        body = signer.notification(refuse_unsubscribed("a@example.com", event=event))
        with django_capture_on_commit_callbacks(execute=True):
            assert post(body).status_code == 200
        assert opted_out() == [("a@example.com", "user", mailing_list)]
        assert told == [("a@example.com", mailing_list)]
    assert statuses(message) == {"a@example.com": "bounced"}
    assert "UnsubscribedRecipient" in Unsubscribe.objects.get().detail


def test_who_left_a_topic_is_found_by_the_tag_before_the_id(post, signer):
    make_message("a@example.com", mailing_list="other", ses_message_id=SES_MESSAGE_ID)
    message = make_message("a@example.com", mailing_list="digest", status="sending")
    assert post(signer.notification(refuse_unsubscribed("a@example.com", tag=message.uuid)))
    assert opted_out() == [("a@example.com", "user", "digest")]


@pytest.mark.parametrize("ses_message_id", ["", "another"])
def test_who_left_a_topic_by_unknown_mail_leaves_all(post, signer, ses_message_id):
    make_message("a@example.com", mailing_list="digest")
    refused = refuse_unsubscribed(
        "a@example.com", ses_message_id=ses_message_id, tag=uuid.uuid4(), event=True
    )
    assert post(signer.notification(refused)).status_code == 200
    assert opted_out() == [("a@example.com", "user", "")]


@pytest.mark.parametrize("number", [1, 50])
def test_who_left_a_topic_costs_no_more_statements_for_many(signer, number):
    statements = []

    def note(execute, sql, *rest):
        statements.append(sql)
        return execute(sql, *rest)

    people = [f"{n}@example.com" for n in range(number)]
    body = signer.notification(refuse_unsubscribed(*people))
    with connection.execute_wrapper(note):
        assert Client().post("/mail/bouncy/", body, content_type="text/plain").status_code == 200
    assert len(opted_out()) == number
    assert len(statements) <= 14


def test_who_leaves_a_topic_again_left_it_now(post, signer):
    """So that nothing older takes it back."""
    old = timezone.now() - timedelta(days=1)
    Unsubscribe.objects.opt_out("a@example.com")
    Unsubscribe.objects.update(modified_at=old)
    assert post(signer.notification(refuse_unsubscribed("a@example.com"))).status_code == 200
    assert not Unsubscribe.objects.come_back("a@example.com", before=old + timedelta(hours=1))


def test_who_was_not_written_to_leaves_nothing(post, signer):
    make_message("a@example.com", mailing_list="digest", ses_message_id=SES_MESSAGE_ID)
    written_to = ["a@example.com", "b@example.com"]
    refused = refuse_unsubscribed("eve@example.com", "b@example.com", destination=written_to)
    assert post(signer.notification(refused)).status_code == 200
    assert opted_out() == [("b@example.com", "user", "digest")]


def test_an_opt_out_is_of_the_notifications_transaction(signer, connected, monkeypatch):
    """Nothing is left of it where what comes after it fails, and SNS tries again."""
    make_message("a@example.com", mailing_list="digest", ses_message_id=SES_MESSAGE_ID)
    with monkeypatch.context() as patch:
        patch.setattr(webhook.settlement, "settle", lambda *args, **kwargs: 1 / 0)
        body = signer.notification(refuse_unsubscribed("a@example.com"))
        answer = Client().post("/mail/bouncy/", body, content_type="text/plain")
    assert answer.status_code == 503
    assert not opted_out()


@pytest.mark.parametrize(
    ("feedback_type", "source"),
    [
        ("abuse", "complaint"),
        ("auth-failure", "complaint"),
        ("fraud", "complaint"),
        ("other", "complaint"),
        ("virus", "complaint"),
        (None, "complaint"),
        ("unheard-of", "complaint"),
        ("not-spam", None),
        ("Not-Spam ", None),
    ],
)
def test_complaints(post, signer, feedback_type, source):
    message = make_complaint(["a@example.com"], feedback_type=feedback_type)
    assert post(signer.notification(message)).status_code == 200
    assert Complaint.objects.count() == 1
    assert suppressed() == ({("a@example.com", source)} if source else set())


def test_a_complaint_from_the_accounts_suppression_list(post, signer):
    message = make_complaint(
        ["a@example.com"], feedback_type=None, subtype="OnAccountSuppressionList"
    )
    post(signer.notification(message))
    assert suppressed() == {("a@example.com", "complaint")}


def test_a_recipient_who_is_only_delayed_is_not_suppressed(post, signer):
    message = make_bounce(
        [
            {"emailAddress": "a@example.com", "action": "delayed"},
            {"emailAddress": "b@example.com", "action": "failed"},
        ]
    )
    post(signer.notification(message))
    assert suppressed() == {("b@example.com", "bounce")}


@pytest.mark.parametrize(
    "text",
    [
        "Successfully validated SNS topic for Amazon SES event publishing.",
        "[]",
        "null",
        "1",
        '"x"',
        "{}",
        '{"notificationType": "Bounce"}',
        '{"notificationType": [], "mail": {}}',
        '{"notificationType": "Bounce", "mail": []}',
        '{"a": 1, "a": 2}',
        "[" * 100_000,
    ],
)
def test_what_is_not_about_mail_is_taken_and_changes_nothing(post, signer, text):
    assert post(signer.notification(text)).status_code == 200
    assert count_all() == NotificationReceipt.objects.count() == 1


@pytest.mark.parametrize(
    "kind",
    [
        "Open",
        "Click",
        "Rendering Failure",
        "DeliveryDelay",
        "Subscription",
        "Send",
        "Reject",
        "X\n",
    ],
)
def test_other_events_are_taken(post, signer, kind, caplog):
    message = make_event(kind, mail=make_mail(["a@example.com"]))
    with caplog.at_level(logging.INFO):
        assert post(signer.notification(message)).status_code == 200
    assert count_all() == 1
    assert ("unknown type" in caplog.text) is (kind == "X\n")
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_odd_values_are_cut_and_cleaned(post, signer):
    message = make_bounce(["a@example.com"], subtype="s\0" * 500)
    message["bounce"]["bouncedRecipients"] = [
        {"emailAddress": "no address"},
        {"no": "address"},
        7,
        None,
        {
            "emailAddress": "a@example.com",
            "action": "x" * 500,
            "status": 5,
            "diagnosticCode": "a\0b\ud800" + "x" * 9000,
        },
    ]
    message["mail"] |= {"messageId": "i" * 500, "timestamp": "nonsense", "source": "s" * 500}
    body = signer.notification(message, message_id="m" * 500)
    assert post(body).status_code == 200
    row = Bounce.objects.get()
    assert (len(row.action), row.status, row.diagnostic_code[:3]) == (150, "5", "ab?")
    assert (len(row.diagnostic_code), row.bounce_subtype) == (5000, "s" * 50)
    assert (len(row.mail_id), len(row.mail_from), len(row.sns_messageid)) == (100, 254, 100)
    assert len(NotificationReceipt.objects.get().message_id) <= 100
    assert post(body).status_code == 200
    assert Bounce.objects.count() == 1


def test_a_delivery_keeps_its_numbers(post, signer):
    message = make_delivery(["a@example.com", "b@example.com"])
    message["delivery"]["processingTimeMillis"] = 10**30
    assert post(signer.notification(message)).status_code == 200
    assert {row.processing_time for row in Delivery.objects.all()} == {2**31 - 1}


def test_times_without_time_zones(post, signer, settings):
    settings.USE_TZ = False
    message = make_complaint(["a@example.com"])
    message["mail"]["timestamp"] = "2012-05-25T14:59:38.623-07:00"
    assert post(signer.notification(message)).status_code == 200
    assert Complaint.objects.get().mail_timestamp.isoformat() == "2012-05-25T21:59:38.623000"


# Addresses that strangers wrote


@pytest.mark.parametrize(
    ("reported", "destination", "expected"),
    [
        ("Jane <A@Example.com>", ["a@example.com", "b@example.com"], "a@example.com"),
        ("<a@example.com>", ["a@example.com", "b@example.com"], "a@example.com"),
        ("rfc822; a@example.com", ["a@example.com", "b@example.com"], "a@example.com"),
        ("a@xn--bcher-kva.example", ["a@bücher.example"], "a@xn--bcher-kva.example"),
        ("victim@example.com", ["a@example.com"], "a@example.com"),
        ("victim@example.com", ["a@example.com", "b@example.com"], None),
        ("victim@example.com", ["a@example.com", "A@EXAMPLE.com"], "a@example.com"),
        ("victim@example.com", ["a@example.com", "no address"], None),
        ("victim@example.com", ["a@example.com", 5], None),
        ("victim@example.com", ["a@example.com", ["b@example.com"]], None),
        ("victim@example.com", [], None),
        ("maß@example.com", ["mass@example.com", "b@example.com"], None),
        ("mark@example.com", ["mar\u212a@example.com", "b@example.com"], None),
        ("mar\u212a@example.com", ["mark@example.com", "b@example.com"], None),
        ("a@example.com", ["\uff41@example.com", "b@example.com"], None),
    ],
)
def test_only_who_was_written_to_is_unsubscribed(post, signer, reported, destination, expected):
    message = make_bounce([reported], mail=make_mail(destination))
    assert post(signer.notification(message)).status_code == 200
    assert Bounce.objects.count() == 1
    assert suppressed() == ({(expected, "bounce")} if expected else set())


@pytest.mark.parametrize(
    ("reported", "sent_to", "expected"),
    [
        ("a@example.com", ["a@example.com", "b@example.com"], "a@example.com"),
        ("victim@example.com", ["a@example.com"], "a@example.com"),
        ("victim@example.com", ["a@example.com", "b@example.com"], None),
    ],
)
def test_without_a_destination_our_own_row_tells(post, signer, reported, sent_to, expected):
    make_message(*sent_to, ses_message_id=SES_MESSAGE_ID, status="sent")
    mail = make_mail([])
    del mail["destination"]
    assert post(signer.notification(make_bounce([reported], mail=mail))).status_code == 200
    assert suppressed() == ({(expected, "bounce")} if expected else set())


def test_many_are_unsubscribed_together_and_known_ones_once(post, signer, caplog):
    """Who was known already is told why, and for good."""
    caplog.set_level(logging.INFO)
    Unsubscribe.objects.suppress("a@example.com", "bounce", expires_at=timezone.now())
    Unsubscribe.objects.suppress("b@example.com", "manual")
    post(signer.notification(make_bounce(["b@example.com", "a@example.com", "c@example.com"])))
    assert suppressed() == {
        ("a@example.com", "bounce"),
        ("b@example.com", "manual"),
        ("b@example.com", "bounce"),
        ("c@example.com", "bounce"),
    }
    bounced = Unsubscribe.objects.filter(source="bounce")
    assert {(row.detail, row.expires_at) for row in bounced} == {
        ("Permanent/General: smtp; 550 5.1.1 user unknown", None)
    }
    assert caplog.text.count("Not written to any more") == 3


def test_soft_bounces_are_followed(post, signer, settings):
    settings.CONNECT_MAILER = {**settings.CONNECT_MAILER, "SOFT_BOUNCE_LIMIT": 1}
    message = make_message(
        "a@example.com", status="sent", ses_message_id=SES_MESSAGE_ID, sent_at=timezone.now()
    )
    message.recipients.update(status="sent")
    mail = make_mail(["a@example.com"], ses_message_id=SES_MESSAGE_ID)
    mail["timestamp"] = (timezone.now() + timedelta(seconds=1)).isoformat()
    bounce = make_bounce(["a@example.com"], bounce_type="Transient", mail=mail)
    assert post(signer.notification(bounce)).status_code == 200
    assert suppressed() == {("a@example.com", "bounce")}


def test_what_only_begins_like_a_word_is_another_one(post, signer):
    """Cut as its column cuts it, it would be that word."""
    complaint = make_complaint(["a@example.com"], feedback_type=f"not-spam{' ' * 142}x")
    assert post(signer.notification(complaint)).status_code == 200
    bounce = make_bounce(["b@example.com"])
    bounce["bounce"]["bouncedRecipients"][0]["action"] = f"delayed{' ' * 143}x"
    assert post(signer.notification(bounce)).status_code == 200
    assert suppressed() == {("a@example.com", "complaint"), ("b@example.com", "bounce")}


def test_what_looks_like_an_event_and_is_none_is_loud(post, signer, caplog):
    assert post(signer.notification('{"eventType": "Bounce", "eventType": "x"}')).status_code == 200
    assert "can't be read" in caplog.text


@pytest.mark.parametrize("name", ["kind", "id"])
def test_fields_of_the_log_are_one_line(post, signer, caplog, name):
    caplog.set_level(logging.INFO)
    message = make_event("Send", mail=make_mail(["a@example.com"], ses_message_id="a\nb"))
    if name == "kind":
        message["eventType"] = "a\nb"
    assert post(signer.notification(message)).status_code == 200
    said = [str(value) for record in caplog.records for value in vars(record).values()]
    assert not any("a\nb" in text for text in said)


# The outbox


A, B, ROBOT = "a@example.com", "b@example.com", "success@simulator.amazonses.com"


@pytest.mark.parametrize(
    ("kind", "by"),
    [("Delivery", "both"), ("Delivery", "id"), ("Delivery", "neither"), ("Send", "both")],
)
@pytest.mark.parametrize(
    ("status", "recipients", "reported"),
    [
        ("sent", {A: "sent"}, [A]),
        ("sent", {A: "sent", B: "sent"}, [A, B]),
        ("sent", {A: "sent", B: "sent"}, [B]),
        ("sent", {A: "sent", B: "suppressed"}, [A]),
        ("sent", {A: "sent", B: "suppressed"}, [B]),
        ("sent", {A: "bounced", B: "delivered"}, [A, B]),
        ("sent", {A: "queued"}, [A]),
        ("sent", {A: "sent"}, [B]),
        ("sent", {A: "sent", B: "sent"}, ["c@example.com"]),
        ("sent", {A: "sent"}, [A, A]),
        ("sent", {A: "sent", ROBOT: "sent"}, [A, ROBOT]),
        ("sent", {ROBOT: "sent"}, [ROBOT]),
        ("sent", {A: "sent"}, []),
        ("sending", {A: "queued"}, [A]),
        ("queued", {A: "queued"}, [A]),
        ("failed", {A: "sent"}, [A]),
    ],
)
def test_a_delivery_is_recorded_the_same_whether_somebody_listens(
    signer,
    connected,
    by,
    status,
    recipients,
    reported,
    kind,
    monkeypatch,
    django_capture_on_commit_callbacks,
):
    """Where nobody does, PostgreSQL takes most of them by a way of their own."""
    metrics: list[object] = []
    monkeypatch.setattr(telemetry, "has_metrics", lambda: True)
    monkeypatch.setattr(telemetry, "add", metrics.append)
    tag = uuid.uuid4()
    mail = make_mail(
        list(recipients),
        ses_message_id="" if by == "neither" else "an-id",
        tag=tag if by == "both" else None,
    )
    event = make_delivery(reported, mail=mail)
    body = signer.notification(event if kind == "Delivery" else make_event("Send", mail=mail))
    outcomes = []
    for _ in range(2):
        # The tag is of the second, where both have the id.
        other_id = "" if by == "neither" else "an-id"
        other = make_message(status="sent", ses_message_id=other_id, content=None)
        message = make_message(uuid=tag, status=status, ses_message_id="an-id", content=None)
        for row in (message, other):
            for address, state in recipients.items():
                row.recipients.create(address=address, envelope=address, status=state)
        for _twice in range(2):
            with django_capture_on_commit_callbacks(execute=True):
                answer = Client().post("/mail/bouncy/", body, content_type="text/plain")
            assert answer.status_code == 200
        outcomes.append([*read_all([message, other]), list(metrics)])
        metrics.clear()
        for table in (OutgoingMessage, Tally, Delivery, NotificationReceipt, MessageEvent):
            table.objects.all().delete()
        connected(signals.feedback, lambda **kwargs: None)
    assert outcomes[0] == outcomes[1]


def read_all(messages) -> list[object]:
    """What a notification changed of these messages, and what it added."""
    times = ("created_at", "modified_at")
    rows = [
        {name: value for name, value in row.items() if name not in ("id", *times)}
        for row in Delivery.objects.order_by("pk").values()
    ]
    read: list[object] = [rows, NotificationReceipt.objects.count()]
    read += Tally.objects.order_by("pk").values_list("span", "stream", "domain", *tallies.COUNTS)
    for message in messages:
        message.refresh_from_db()
        read += [message.status, message.ses_message_id]
        read += message.recipients.order_by("pk").values_list("address", "status", "reason")
        read += message.events.order_by("pk").values_list("kind", "address", "at", "detail")
    return read


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (lambda mail: make_event("Send", mail=mail), "sent"),
        (lambda mail: make_delivery(["a@example.com"], mail=mail), "delivered"),
        (lambda mail: make_bounce(["a@example.com"], mail=mail), "bounced"),
        (lambda mail: make_complaint(["a@example.com"], mail=mail), "complained"),
    ],
)
def test_an_event_before_the_drains_own_settle(
    post, signer, message, status, connected, django_capture_on_commit_callbacks
):
    seen = []
    connected(outbox_signals.message_sent, lambda message, **kwargs: seen.append(message))
    row = make_message(
        "a@example.com", status="sending", in_doubt=True, claim=uuid.uuid4(), attempts=1
    )
    mail = make_mail(["a@example.com"], tag=row.uuid)
    with django_capture_on_commit_callbacks(execute=True):
        assert post(signer.notification(message(mail))).status_code == 200
    row.refresh_from_db()
    assert (row.status, row.ses_message_id) == ("sent", SES_MESSAGE_ID)
    assert row.sent_at is not None
    assert row.finished_at is not None
    assert (row.in_doubt, row.claim, row.content) == (False, None, None)
    assert OutgoingContent.objects.count() == 0
    assert statuses(row) == {"a@example.com": status}
    assert seen == [row]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def test_times_of_the_outbox_without_time_zones_are_local(post, signer, settings, zone):
    """As all others of its tables; those of django-bouncy's are in UTC."""
    settings.USE_TZ, settings.TIME_ZONE = False, zone
    at = "2026-03-01T12:00:00.000Z"
    local = datetime(2026, 3, 1, 12, tzinfo=UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    sent, rejected = (make_message("a@example.com", status="sending") for _ in "ab")
    mail = make_mail(["a@example.com"], tag=sent.uuid, timestamp=at)
    bounce = make_bounce(["a@example.com"], mail=mail)
    bounce["bounce"]["timestamp"] = at
    other = {**make_mail(["a@example.com"], tag=rejected.uuid), "messageId": "another"}
    # The second one is of a message that is sent already, which is written in another way.
    for message in (
        bounce,
        {**bounce, "bounce": {**bounce["bounce"], "feedbackId": "another"}},
        make_event("Open", {"timestamp": at}, mail=mail),
        make_event("Reject", {"timestamp": at, "reason": "x"}, mail=other),
    ):
        assert post(signer.notification(message)).status_code == 200
    sent.refresh_from_db()
    assert sent.sent_at == local
    for row, number in ((sent, 3), (rejected, 1)):
        assert [*row.events.values_list("at", flat=True)] == [local] * number
    found = Bounce.objects.values_list("feedback_timestamp", "mail_timestamp")
    assert {*found} == {(datetime.fromisoformat(at).replace(tzinfo=None),) * 2}


def test_the_tag_names_the_row_where_the_id_is_of_another(post, signer):
    other, row = (
        make_message("a@example.com", status="sent", ses_message_id=SES_MESSAGE_ID) for _ in "ab"
    )
    mail = make_mail(["a@example.com"], tag=row.uuid)
    post(signer.notification(make_bounce(["a@example.com"], mail=mail)))
    assert statuses(row) == {"a@example.com": "bounced"}
    assert statuses(other) == {"a@example.com": "queued"}


def test_an_event_without_an_id_is_about_no_row_without_one(post, signer):
    rows = [make_message("a@example.com", status="sending") for _ in "ab"]
    for tag in (uuid.uuid4(), rows[1].uuid):
        mail = make_mail(["a@example.com"], ses_message_id="", tag=tag)
        post(signer.notification(make_bounce(["a@example.com"], mail=mail)))
    assert [statuses(row)["a@example.com"] for row in rows] == ["queued", "bounced"]


def test_the_body_is_kept_where_the_site_keeps_it_or_another_row_needs_it(post, signer, settings):
    content = OutgoingContent.objects.create(mime=b"x")
    first, second = (make_message(f"{n}@example.com", content=content) for n in "ab")
    post(signer.notification(make_event("Send", mail=make_mail([], tag=first.uuid))))
    assert OutgoingContent.objects.count() == 1
    settings.CONNECT_MAILER = {"KEEP_BODIES_DAYS": 1}
    post(signer.notification(make_event("Send", mail=make_mail([], tag=second.uuid))))
    second.refresh_from_db()
    assert second.content == content


def test_events_never_downgrade(post, signer):
    row = make_message("a@example.com", "b@example.com", status="sent", ses_message_id="kept")
    OutgoingRecipient.objects.filter(address="b@example.com").update(status="suppressed")
    mail = make_mail(["a@example.com", "b@example.com"], tag=row.uuid)
    people = ["a@example.com", "b@example.com"]
    post(signer.notification(make_complaint(people, mail=mail)))
    for message in (
        make_bounce(people, mail=mail),
        make_delivery(people, mail=mail),
        make_event("Send", mail=mail),
        make_event("Reject", {"reason": "Bad content"}, mail=mail),
    ):
        post(signer.notification(message))
    row.refresh_from_db()
    assert (row.status, row.ses_message_id) == ("sent", "kept")
    assert statuses(row) == {"a@example.com": "complained", "b@example.com": "suppressed"}


def test_a_bounce_says_why_and_other_recipients_are_only_sent(post, signer):
    row = make_message("a@example.com", "b@example.com", ses_message_id=SES_MESSAGE_ID)
    mail = make_mail(["a@example.com", "b@example.com"])
    post(signer.notification(make_bounce(["a@example.com"], mail=mail)))
    assert statuses(row) == {"a@example.com": "bounced", "b@example.com": "sent"}
    reason = row.recipients.get(address="a@example.com").reason
    assert reason == "Permanent/General: smtp; 550 5.1.1 user unknown"


def test_the_first_id_that_is_known_is_kept(post, signer):
    row = make_message("a@example.com", status="sending", ses_message_id="first")
    post(signer.notification(make_event("Send", mail=make_mail([], tag=row.uuid))))
    row.refresh_from_db()
    assert (row.status, row.ses_message_id) == ("sent", "first")


@pytest.mark.parametrize("status", ["sending", "sent"])
def test_a_rejected_message_has_failed(post, signer, status):
    row = make_message("a@example.com", status=status)
    mail = make_mail(["a@example.com"], tag=row.uuid)
    post(signer.notification(make_event("Reject", {"reason": "Bad content"}, mail=mail)))
    row.refresh_from_db()
    assert row.status == "failed"
    assert row.last_error.endswith("Bad content")
    post(signer.notification(make_event("Send", mail=mail)))
    row.refresh_from_db()
    assert row.status == "failed"


# Subscriptions


def test_subscriptions_are_not_confirmed_by_default(post, signer, monkeypatch):
    monkeypatch.setattr(sns, "fetch", lambda *args, **kwargs: pytest.fail("a call was made"))
    assert post(signer.subscription_confirmation()).status_code == 404
    assert count_all() == 0


def test_a_subscription_is_confirmed_on_the_derived_host(
    post, signer, settings, monkeypatch, connected
):
    settings.BOUNCY_AUTO_SUBSCRIBE = True
    calls, seen = [], []

    def fetch(host, target, *, seconds):
        calls.append((host, target))
        return b"<ConfirmSubscriptionResponse/>"

    monkeypatch.setattr(sns, "fetch", fetch)
    connected(signals.subscription, lambda **kwargs: seen.append(kwargs))
    body = signer.subscription_confirmation(
        token="a b&c", SubscribeURL="https://evil.example/?Token=x"
    )
    answer = post(body)
    assert answer.status_code == 200
    assert b"Confirm" not in answer.content
    assert calls == [
        (
            "sns.us-east-1.amazonaws.com",
            (
                "/?Action=ConfirmSubscription"
                "&TopicArn=arn%3Aaws%3Asns%3Aus-east-1%3A123456789012%3Ases-feedback&Token=a+b%26c"
            ),
        )
    ]
    (call,) = seen
    assert call["sender"] == "bouncy_approve_subscription"
    assert call["result"] == b"<ConfirmSubscriptionResponse/>"
    assert call["notification"]["Token"] == "a b&c"
    # Who sends it again makes the site call nobody.
    assert post(body).status_code == 200
    settings.BOUNCY_SUBSCRIBE_DOMAIN_REGEX = "eu-west-1"
    assert post(signer.subscription_confirmation()).status_code == 400
    assert len(calls) == len(seen) == 1


def test_a_subscription_that_cannot_be_confirmed_is_tried_again(
    post, signer, settings, monkeypatch
):
    settings.BOUNCY_AUTO_SUBSCRIBE = True

    def fail(*args):
        raise NotificationUndecided("down")

    monkeypatch.setattr(sns, "fetch", fail)
    assert post(signer.subscription_confirmation()).status_code == 503


def test_a_subscription_of_a_foreign_topic_is_never_confirmed(post, signer, settings, monkeypatch):
    settings.BOUNCY_AUTO_SUBSCRIBE = True
    monkeypatch.setattr(sns, "fetch", lambda *args, **kwargs: pytest.fail("a call was made"))
    arn = "arn:aws:sns:us-east-1:999999999999:ses-feedback"
    assert post(signer.subscription_confirmation(TopicArn=arn)).status_code == 400
    stranger = SNSSigner.generate()
    body = stranger.subscription_confirmation(SigningCertURL=signer.certificate_url)
    assert post(body).status_code == 400


def test_an_ended_subscription_is_loud(post, signer, caplog, monkeypatch):
    monkeypatch.setattr(sns, "fetch", lambda *args, **kwargs: pytest.fail("a call was made"))
    body = signer.unsubscribe_confirmation()
    for _ in range(2):
        assert post(body).status_code == 200
    assert caplog.text.count("was ended") == 1
    (finding,) = find_ended()
    assert TOPIC_ARN in finding


@pytest.mark.parametrize(
    "come", ["delivery", "validation", "confirmation", "nothing", "other topic"]
)
def test_an_ended_subscription_is_told_until_it_begins_again(
    post, signer, settings, monkeypatch, come
):
    settings.BOUNCY_AUTO_SUBSCRIBE = True
    monkeypatch.setattr(sns, "fetch", lambda *args, **kwargs: b"")
    # What came before doesn't count.
    assert post(signer.notification(make_delivery(["a@example.com"]))).status_code == 200
    assert post(signer.unsubscribe_confirmation()).status_code == 200
    assert find_ended()
    if come == "delivery":
        assert post(signer.notification(make_delivery(["a@example.com"]))).status_code == 200
    elif come == "validation":
        text = "Successfully validated SNS topic for Amazon SES event publishing."
        assert post(signer.notification(text)).status_code == 200
    elif come == "confirmation":
        assert post(signer.subscription_confirmation()).status_code == 200
    elif come == "other topic":
        Delivery.objects.create(sns_topic="another", mail_timestamp=timezone.now())
    assert bool(find_ended()) is (come in ("nothing", "other topic"))


def find_ended() -> list[str]:
    return [
        finding.text
        for finding in examine_quickly()
        if finding.part == "subscription" and finding.level == "error"
    ]


# Answers and logs


def test_answers_repeat_nothing_and_logs_have_no_address(post, signer, caplog):
    caplog.set_level(logging.DEBUG)
    marker = "marker-7d1f"
    bodies = [
        signer.notification(make_bounce([f"{marker}@example.com"])),
        signer.notification(marker),
        signer.notification("x", TopicArn=f"arn:aws:sns:us-east-1:123456789012:{marker}"),
        json.dumps({"Type": marker}),
        marker,
    ]
    for body in bodies:
        headers = make_headers(body) if body.startswith("{") else {}
        answer = post(
            body, **{f"HTTP_{k.upper().replace('-', '_')}": v for k, v in headers.items()}
        )
        assert marker not in answer.content.decode()
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("connect_mailer")]
    assert not any(f"{marker}@" in line for line in ours)


def test_without_the_bouncy_app_it_is_undecided(post, signer, monkeypatch):
    from django.apps import apps

    configs = {k: v for k, v in apps.app_configs.items() if k != "django_bouncy"}
    monkeypatch.setattr(apps, "app_configs", configs)
    assert post(signer.notification("x")).status_code == 503


def test_not_found_is_the_sites_own_page(rf):
    with pytest.raises(Http404):
        webhook.endpoint(rf.get("/mail/bouncy/"))

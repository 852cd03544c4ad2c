"""``mailer_import post-office`` where that app is installed, with its own rows."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.management import call_command
from django.utils import timezone
from post_office import mail
from post_office.models import Attachment, Email, EmailTemplate

from connect_mailer.models import OutgoingMessage, Unsubscribe

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _media(settings: Any, tmp_path: Any) -> None:
    settings.MEDIA_ROOT = str(tmp_path)


def run(*args: str) -> str:
    output = io.StringIO()
    call_command("mailer_import", "post-office", *args, stdout=output, stderr=output)
    return output.getvalue()


def test_its_queue_becomes_the_outbox_once() -> None:
    template = EmailTemplate.objects.create(name="hi", subject="Hi {{ name }}", content="Text")
    mail.send("jo@example.org", "site@example.com", template=template, context={"name": "Jo"})
    later = timezone.now() + timedelta(days=1)
    letter = mail.send(
        ["eve@example.org"],
        "site@example.com",
        subject="Later",
        message="Text",
        html_message="<p>Text</p>",
        cc=["max@example.org"],
        scheduled_time=later,
    )
    attachment = Attachment(name="a.txt")
    attachment.file.save("a.txt", ContentFile(b"attached"), save=True)
    letter.attachments.add(attachment)
    mail.send("sent@example.org", "site@example.com", subject="Old", message="Text")
    Email.objects.filter(subject="Old").update(status=0)

    assert "2 queued messages would be taken over." in run("--dry-run")
    assert OutgoingMessage.objects.count() == 0
    assert "2 queued messages are in the outbox, 0 are not." in run()
    assert "0 queued messages are in the outbox" in run()

    first, second = OutgoingMessage.objects.order_by("pk")
    assert (first.subject, second.subject) == ("Hi Jo", "Later")
    assert second.send_after == later
    assert b"a.txt" in bytes(second.content.mime)  # type: ignore[union-attr]
    assert set(second.recipients.values_list("address", "kind")) == {
        ("eve@example.org", "to"),
        ("max@example.org", "cc"),
    }
    assert not Email.objects.filter(status__in=[2, 3]).exists()


def test_what_cannot_be_queued_stays_there() -> None:
    mail.send("jo@example.org", "site@example.com", subject="Good", message="Text")
    bad = mail.send("eve@example.org", "site@example.com", subject="Bad", message="Text")
    Email.objects.filter(pk=bad.pk).update(from_email="nobody")

    written = run()

    assert f"message {bad.pk} is left there" in written
    assert "1 queued messages are in the outbox, 1 are not." in written
    assert Email.objects.get(pk=bad.pk).status == 2


def test_who_bounced_is_not_written_to() -> None:
    for name, outcome in (("hard", 70), ("spam", 80), ("out", 90), ("soft", 60), ("fine", 20)):
        one = mail.send(f"{name}@example.org", "site@example.com", subject=name, message="x")
        Email.objects.filter(pk=one.pk).update(status=0, recipient_delivery_status=outcome)

    run()

    assert dict(Unsubscribe.objects.values_list("address", "source")) == {
        "hard@example.org": "bounce",
        "spam@example.org": "complaint",
        "out@example.org": "user",
    }

from datetime import timedelta

from django.core.files.base import ContentFile
from django.core.mail import send_mail
from django.utils import timezone
from post_office import mail
from post_office.models import Attachment, Email, EmailTemplate

SITE = "site@example.com"

# What waits: by Django's own function, by a template, and for a time to come.
send_mail("By Django", "Text", None, ["jo@example.org"])
template = EmailTemplate.objects.create(name="hi", subject="Hi {{ name }}", content="Text")
mail.send("jo@example.org", SITE, template=template, context={"name": "Jo"}, priority="high")
letter = mail.send(
    ["eve@example.org"],
    SITE,
    subject="Later",
    message="Text",
    html_message="<p>Text</p>",
    cc=["max@example.org"],
    scheduled_time=timezone.now() + timedelta(days=1),
)
attachment = Attachment(name="a.txt")
attachment.file.save("a.txt", ContentFile(b"attached"), save=True)
letter.attachments.add(attachment)
bad = mail.send("eve@example.org", SITE, subject="Bad", message="Text")
Email.objects.filter(pk=bad.pk).update(from_email="nobody")
broken = EmailTemplate.objects.create(name="broken", subject="Broken", content="Text")
mail.send("eve@example.org", SITE, template=broken, context={}, render_on_delivery=True)
EmailTemplate.objects.filter(pk=broken.pk).update(content="{% if %}")
# What has gone, and what became of it.
for name, outcome, status in (
    ("hard", 70, 0),
    ("spam", 80, 0),
    ("out", 90, 0),
    ("soft", 60, 0),
    ("fine", 20, 0),
    ("failed", None, 1),
):
    one = mail.send(f"{name}@example.org", SITE, subject=name, message="Text")
    Email.objects.filter(pk=one.pk).update(status=status, recipient_delivery_status=outcome)
# To somebody who bounced, and who is not to be written to any more.
mail.send("hard@example.org", SITE, subject="Again", message="Text")

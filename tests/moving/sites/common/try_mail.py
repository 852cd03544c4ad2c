"""Mail goes, a bounce comes back, and nobody writes there again: on every site that has moved."""

import os

from django.core.mail import send_mail
from django.test import Client

from connect_mailer.models import OutgoingMessage, Unsubscribe
from connect_mailer.testing import SNSSigner, deliver_all
from connect_mailer.testing.sns import make_bounce

signer = SNSSigner.from_pem(os.environ["SIGNER"], topic_arn=os.environ["TOPIC_ARN"])
signer.trust()


def send() -> int:
    return send_mail("After", "Text", None, ["Reader@example.org"])


assert send() == 1
deliver_all()
assert OutgoingMessage.objects.get(subject="After").status == "sent"
body = signer.notification(make_bounce(["reader@example.org"]))
answer = Client().post("/mail/bouncy/", body, content_type="text/plain")
assert answer.status_code == 200, answer.content
assert Unsubscribe.objects.address_exists("reader@example.org")
assert send() == 0

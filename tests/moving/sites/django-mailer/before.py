import mailer
from django.core.mail import EmailMultiAlternatives, send_mail
from django.utils import timezone
from mailer.models import DontSendEntry, Message

assert send_mail("By Django", "Text", None, ["jo@example.org"]) == 1
letter = EmailMultiAlternatives("Letter", "Text", None, ["eve@example.org"], cc=["max@example.org"])
letter.attach_alternative("<p>Text</p>", "text/html")
letter.attach("a.txt", "attached", "text/plain")
assert letter.send() == 1
mailer.send_mail("High", "Text", None, ["jo@example.org"], priority="high")
send_mail("Deferred", "Text", None, ["jo@example.org"])
Message.objects.order_by("-pk")[0].defer()  # refused once, and to be tried again
send_mail("Left", "Text", None, ["Left@example.org"])
# Pickled from what is no longer there.
Message.objects.create(message_data="bm90IGEgcGlja2xl")
for address in ("left@example.org", "LEFT@example.org", "other@example.org"):
    DontSendEntry.objects.create(to_address=address, when_added=timezone.now())

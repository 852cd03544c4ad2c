from django.core.mail import EmailMessage, EmailMultiAlternatives, get_connection

# Its last release wants this of messages, which have had it no more since Django 6.
EmailMessage.mixed_subtype = "mixed"
letter = EmailMultiAlternatives("Letter", "Text", None, ["eve@example.org"], cc=["max@example.org"])
letter.attach_alternative("<p>Text</p>", "text/html")
letter.attach("a.txt", "attached", "text/plain")
others = [EmailMessage(f"No. {n}", "Text", None, [f"u{n}@example.org"]) for n in range(4)]
# In tasks of two, which no worker of old takes any more.
assert len(get_connection().send_messages([letter, *others])) == 3

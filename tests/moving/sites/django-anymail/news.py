"""The site's own code."""

from datetime import timedelta

from django.core.mail import EmailMessage
from django.utils import timezone


def send_news(address: str, *, later: bool = False) -> int:
    message = EmailMessage("News", "Text", None, [address])
    message.tags = ["news"]
    message.metadata = {"issue": 7}
    if later:
        message.send_at = timezone.now() + timedelta(days=1)
    return message.send()

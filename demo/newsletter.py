"""The site's newsletter: 200 messages of all shapes, sent as any site sends its mail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from django.core.mail import EmailMultiAlternatives, send_mail

MESSAGES = 200

# This reader will opt out. She gets a letter of her own, a blind copy and a copy.
READER = "ruth@example.org"

# The mailbox simulator of SES answers for these.
# Source: "Sending test emails ... with the simulator", Amazon SES Developer Guide.
BOUNCES = "bounce@simulator.amazonses.com"
COMPLAINS = "complaint@simulator.amazonses.com"
OUT_OF_OFFICE = "ooto@simulator.amazonses.com"


@dataclass(frozen=True, kw_only=True)
class Letter:
    """One message, before it is written."""

    to: tuple[str, ...]
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()
    attachment: str = ""

    @property
    def recipients(self) -> tuple[str, ...]:
        """All who are to get it."""
        return self.to + self.cc + self.bcc

    def send(self, subject: str) -> int:
        """Send it; return 1, or 0 where nobody may be written to."""
        text = f"Dear reader,\n\nthis is the {subject}.\n"
        html = f"<h1>{subject}</h1><p>Dear reader, this is the news.</p>"
        if not (self.cc or self.bcc or self.attachment):
            return send_mail(subject, text, None, self.to, html_message=html)
        message = EmailMultiAlternatives(subject, text, None, self.to, bcc=self.bcc, cc=self.cc)
        message.attach_alternative(html, "text/html")
        if self.attachment:
            message.attach("figures.csv", self.attachment, "text/csv")
        return message.send()


def make_letters() -> list[Letter]:
    """Return the letters of one issue: the same readers each time."""
    return list(_make_letters())


def _make_letters() -> Iterator[Letter]:
    friends = tuple(f"friend{number:03}@example.net" for number in range(119))
    yield Letter(to=("friends@example.com",), bcc=(*friends, READER))
    for address in (BOUNCES, COMPLAINS, OUT_OF_OFFICE, READER):
        yield Letter(to=(address,))
    for number in range(MESSAGES - 5):
        reader = f"reader{number:03}@example.org"
        if number % 10 == 3:
            yield Letter(to=(reader,), attachment="month,copies\nMay,4711\n")
        elif number == 5:
            yield Letter(to=(reader, f"desk{number:03}@example.org"), cc=(READER,))
        elif number % 10 == 5:
            yield Letter(
                to=(reader, f"desk{number:03}@example.org"), cc=(f"chief{number:03}@example.org",)
            )
        else:
            yield Letter(to=(reader,))

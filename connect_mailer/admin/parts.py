"""What several pages of the admin need."""

from __future__ import annotations

from datetime import datetime

from django.utils.html import format_html
from django.utils.timezone import is_aware, localtime

from connect_mailer.exceptions import InvalidAddress


def make_badge(status: str, label: str) -> str:
    """A status that can be told apart at a glance: by its colour, and by its word."""
    return format_html('<span class="mailer-status mailer-{}">{}</span>', status, label)


def find_key(text: str) -> str | None:
    """What an address, however it is written, is stored as; ``None``: it is none."""
    from connect_mailer.addresses import normalise

    try:
        return normalise(text)
    except InvalidAddress:
        return None


def to_local(at: datetime) -> datetime:
    """In the time zone of the site; without ``USE_TZ`` it is already."""
    return localtime(at) if is_aware(at) else at

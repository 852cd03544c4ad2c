"""What several pages of the admin need."""

from __future__ import annotations

from django.utils.html import format_html

from connect_mailer import addresses
from connect_mailer.exceptions import InvalidAddress


def make_badge(status: str, label: str) -> str:
    """A status that can be told apart at a glance: by its colour, and by its word."""
    return format_html('<span class="mailer-status mailer-{}">{}</span>', status, label)


def find_key(text: str) -> str | None:
    """What an address, however it is written, is stored as; ``None``: it is none."""
    try:
        return addresses.normalise(text)
    except InvalidAddress:
        return None

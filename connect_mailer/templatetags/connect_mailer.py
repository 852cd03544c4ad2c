"""``{% load connect_mailer %}``: links for the text of a mail."""

from __future__ import annotations

from django import template

from connect_mailer import optout

register = template.Library()


@register.simple_tag
def unsubscribe_url(address: str, mailing_list: str = "") -> str:
    """The link under which ``address`` leaves a list, or all mail: ``optout.unsubscribe_url``."""
    return optout.unsubscribe_url(address, mailing_list)


# As it was called in Connect.
register.simple_tag(unsubscribe_url, name="unsubscribe_link")

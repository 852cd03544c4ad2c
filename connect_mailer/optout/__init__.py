"""How readers opt out: the link in the mail, its headers and its pages."""

from connect_mailer.optout.headers import unsubscribe_url

__all__ = ["unsubscribe_url"]

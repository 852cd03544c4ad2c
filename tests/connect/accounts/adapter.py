"""Account mail, as the adapter of django-allauth sends it in Connect."""

from __future__ import annotations

from django.conf import settings
from django.core.mail import EmailMessage

from connect_mailer.backend import ConnectMailerBackend, DefaultBackend


def send_mail(email: str) -> int:
    """A password reset: past the filter, or through it."""
    ignores = getattr(settings, "ACCOUNT_IGNORE_UNSUBSCRIBE", False)
    backend = DefaultBackend() if ignores else ConnectMailerBackend()
    return backend.send_messages([EmailMessage("Password reset", "Here", None, [email])])

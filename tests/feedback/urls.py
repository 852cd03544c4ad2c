"""URLs of the feedback tests."""

from __future__ import annotations

from django.urls import path

from connect_mailer.feedback.webhook import endpoint

urlpatterns = [path("mail/bouncy/", endpoint)]

"""What ``include("django_bouncy.urls")`` resolves to."""

from __future__ import annotations

from django.urls import path

from connect_mailer.feedback.endpoint import endpoint

urlpatterns = [path("", endpoint)]

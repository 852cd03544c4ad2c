"""The site's pages."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from demo import views

urlpatterns = [
    path("", views.home, name="home"),
    path("newsletter/", views.send_newsletter, name="newsletter"),
    path("letter/", views.send_letter, name="letter"),
    path("mailbox/", views.mailbox, name="mailbox"),
    path("favicon.ico", RedirectView.as_view(url="/static/admin/img/icon-yes.svg")),
    # Before Django's own, whose password reset goes through the default mailer.
    path("accounts/password_reset/", views.PasswordReset.as_view(), name="password_reset"),
    path("accounts/", include("django.contrib.auth.urls")),
    path("admin/", admin.site.urls),
    path("mail/", include("connect_mailer.urls")),
]

"""A site whose login stands before the webhook."""

from __future__ import annotations

from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import RedirectView

from tests.urls import urlpatterns as open_patterns

urlpatterns = [
    path("mail/bouncy/", csrf_exempt(RedirectView.as_view(url="/login/"))),
    *open_patterns,
]

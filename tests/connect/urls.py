"""Connect's URLs, as far as mail goes."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import include, path


def show_groups(request: HttpRequest) -> HttpResponse:
    return HttpResponse("Groups")


urlpatterns = [
    path("groups/", show_groups),
    path("mail/", include("connect_mailer.urls")),
]

"""Connect's login: every page but those in ``LOGIN_EXEMPT_URLS``."""

from __future__ import annotations

import re
from collections.abc import Callable

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse


class LoginRequiredMiddleware:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        path = request.path_info.lstrip("/")
        if request.user.is_authenticated or any(
            re.match(pattern, path) for pattern in settings.LOGIN_EXEMPT_URLS
        ):
            return self.get_response(request)
        return redirect_to_login(request.get_full_path())

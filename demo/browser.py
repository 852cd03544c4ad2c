"""A visitor of the site, as far as the demo needs one."""

from __future__ import annotations

import json
import urllib.request
from http.cookiejar import CookieJar
from typing import Any
from urllib.parse import urlencode


class Browser:
    """Keeps cookies, and sends Django's CSRF token with each form."""

    def __init__(self, site_url: str) -> None:
        self._site_url = site_url
        self._cookies = CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self._cookies)
        )

    def get(self, path: str) -> str:
        """Return a page of the site."""
        with self._opener.open(self._site_url + path, timeout=30) as response:
            return str(response.read().decode())

    def submit(self, path: str, **fields: str) -> str:
        """Submit a form of the site; return the answer (JSON where the site has it)."""
        token = next(cookie.value for cookie in self._cookies if cookie.name == "csrftoken")
        body = urlencode({"csrfmiddlewaretoken": token, **fields}).encode()
        request = urllib.request.Request(
            self._site_url + path, body, {"Accept": "application/json"}, method="POST"
        )
        with self._opener.open(request, timeout=120) as response:
            return str(response.read().decode())

    def submit_for_json(self, path: str, **fields: str) -> Any:
        """Submit a form of the site; return what its answer says."""
        return json.loads(self.submit(path, **fields))


def post_one_click(url: str) -> int:
    """Opt out as a mail provider does, which has no cookies; return the status.

    Source: RFC 8058 section 3.1.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, b"List-Unsubscribe=One-Click", timeout=30) as response:
        return int(response.status)

"""The pages behind an unsubscribe link, for readers and for their mail providers.

GET shows a question and changes nothing, because scanners follow links. POST opts out, at
once: it comes from the button on that page, or straight from a mail provider, which has
neither login nor cookie nor CSRF token and sends a body that needn't be read.

Source: RFC 8058 sections 3.1 (the POST has no context, the answer may not redirect) and 3.2
(the body is ``List-Unsubscribe=One-Click``, urlencoded or multipart).
"""

from __future__ import annotations

import base64
import hashlib
import logging

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import render
from django.template.loader import render_to_string
from django.utils import translation
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt

from connect_mailer.conf import conf
from connect_mailer.exceptions import InvalidToken
from connect_mailer.models import Unsubscribe
from connect_mailer.optout.tokens import read_token

logger = logging.getLogger(__name__)


@login_not_required
@csrf_exempt
@never_cache
def unsubscribe(request: HttpRequest, token: str) -> HttpResponse:
    """Ask (GET, HEAD) or opt out (POST)."""
    if request.method not in ("GET", "HEAD", "POST"):
        return HttpResponseNotAllowed(["GET", "HEAD", "POST"])
    try:
        optout = read_token(token)
    except InvalidToken:
        return _page(request, "unsubscribe_invalid", status=404)
    if request.method != "POST":
        return _page(request, "unsubscribe_confirm", optout=optout)
    row, created = Unsubscribe.objects.suppress(
        optout.address, Unsubscribe.Source.USER, optout.mailing_list
    )
    logger.info(
        "unsubscribe %s: %s opted out%s of %s",
        row.pk,
        conf.hash_address(optout.address),
        "" if created else " again",
        repr(optout.mailing_list) if optout.mailing_list else "all mail",
    )
    return _page(request, "unsubscribe_done", optout=optout)


def _page(request: HttpRequest, name: str, *, status: int = 200, **context: object) -> HttpResponse:
    style = render_to_string("connect_mailer/pages.css")
    # A LocaleMiddleware has decided already; without one, readers still have a language.
    language = getattr(request, "LANGUAGE_CODE", None) or translation.get_language_from_request(
        request
    )
    with translation.override(language):
        response = render(
            request,
            f"connect_mailer/{name}.html",
            {"site_name": request.get_host(), "style": style, **context},
            status=status,
        )
    response.headers["Content-Security-Policy"] = _policy(style)
    # The URL of the page is a key: it goes to no search engine and to no other site.
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Robots-Tag"] = "noindex"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _policy(style: str) -> str:
    """No script, no frame, nothing from elsewhere; the page's own style by its hash.

    A site's ``base.html`` may add style sheets, fonts and images of the site.
    """
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'self' 'sha256-{digest}'; font-src 'self'; "
        "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )

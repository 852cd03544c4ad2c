"""The pages behind an unsubscribe link, for readers and for their mail providers.

GET and HEAD show what is and change nothing, because scanners follow links. POST opts out, at
once: it comes from the button on that page, or straight from a mail provider, which has
neither login nor cookie nor CSRF token and sends a body that needn't be read. Which list, or
all mail, is in the token, so each button is a form without fields that has a link of its own.

Source: RFC 8058 sections 3.1 (the POST has no context, the answer may not redirect) and 3.2
(the body is ``List-Unsubscribe=One-Click``, urlencoded or multipart).
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
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
from connect_mailer.optout.preferences import Preferences, isolate
from connect_mailer.optout.tokens import OptOut, read_link, read_old_link

logger = logging.getLogger(__name__)

_View = Callable[..., HttpResponse]


def _page_for_all(view: _View) -> _View:
    """For readers without a login and for providers without a token; kept in no cache.

    Every answer has the headers, the refusals too: the URL is a key wherever it is asked for.
    """

    @login_not_required
    @csrf_exempt
    @never_cache
    @wraps(view)
    def answer(request: HttpRequest, **kwargs: Any) -> HttpResponse:
        response: HttpResponse
        if request.method not in ("GET", "HEAD", "POST"):
            response = HttpResponseNotAllowed(["GET", "HEAD", "POST"])
        else:
            try:
                response = view(request, **kwargs)
            except InvalidToken:
                response = _render(request, "unsubscribe_invalid", status=404)
        response.headers.setdefault("Content-Security-Policy", _policy(style=""))  # no page
        # The URL of the page is a key: it goes to no search engine and to no other site.
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Robots-Tag"] = "noindex"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    return answer


@_page_for_all
def unsubscribe(request: HttpRequest, token: str) -> HttpResponse:
    """Ask, and show what one is subscribed to (GET, HEAD), or opt out (POST)."""
    return _ask_or_opt_out(request, read_link(token))


@_page_for_all
def unsubscribe_by_old_link(request: HttpRequest) -> HttpResponse:
    """The same for the links of Connect, ``?email=…&code=…``: from all mail."""
    address = read_old_link(request.GET.get("email", ""), request.GET.get("code", ""))
    return _ask_or_opt_out(request, OptOut(address=address, mailing_list=""))


@_page_for_all
def subscribe_again(request: HttpRequest, token: str) -> HttpResponse:
    """Take an opt-out back (POST). GET and HEAD show what one is subscribed to."""
    optout = read_link(token)
    if request.method != "POST":
        return _show(request, "unsubscribe_confirm", optout)
    if Unsubscribe.objects.come_back(optout.address, optout.mailing_list):
        _log("came back to", optout)
    return _show(request, "unsubscribe_back", optout)


@_page_for_all
def thanks(request: HttpRequest) -> HttpResponse:
    """Say that it is done. Nothing here leads to it; sites and old pages know its name."""
    return _render(request, "unsubscribe_thanks")


def _ask_or_opt_out(request: HttpRequest, optout: OptOut) -> HttpResponse:
    if request.method != "POST":
        return _show(request, "unsubscribe_confirm", optout)
    is_new = Unsubscribe.objects.opt_out(optout.address, optout.mailing_list)
    _log("opted out of" if is_new else "opted out again of", optout)
    # What is known without asking: the provider's request is worth one query and one insert.
    return _render(request, "unsubscribe_done", preferences=Preferences.after(optout))


def _show(request: HttpRequest, name: str, optout: OptOut) -> HttpResponse:
    return _render(request, name, preferences=Preferences.load(optout))


def _log(what: str, optout: OptOut) -> None:
    which = repr(optout.mailing_list) if optout.mailing_list else "all mail"
    logger.info("%s %s %s", conf.hash_address(optout.address), what, which)


def _render(
    request: HttpRequest, name: str, *, status: int = 200, **context: object
) -> HttpResponse:
    language = _choose_language(request)
    site_name = request.get_host()
    with translation.override(language):
        style = render_to_string("connect_mailer/pages.css")
        response = render(
            request,
            f"connect_mailer/{name}.html",
            {
                "language": language,
                "is_rtl": settings.USE_I18N and translation.get_language_bidi(),
                "site_name": site_name,
                "isolated_site_name": isolate(site_name),
                "style": style,
                **context,
            },
            status=status,
        )
    response.headers["Content-Security-Policy"] = _policy(style)
    return response


def _choose_language(request: HttpRequest) -> str:
    """The language that the page will be in, and has to say that it is."""
    if not settings.USE_I18N:
        return "en"
    # A LocaleMiddleware has decided already; without one, readers still have a language.
    language: str = getattr(
        request, "LANGUAGE_CODE", None
    ) or translation.get_language_from_request(request)
    if language.startswith("en"):
        return language
    text = _translate("Unsubscribed", language)
    if text == "Unsubscribed":
        return "en"  # neither this app nor the site has a catalog
    # Without one of that language, Django takes the texts of the site's own.
    own = settings.LANGUAGE_CODE
    is_own = text == _translate("Unsubscribed", own)
    return own if is_own and own.split("-")[0] != language.split("-")[0] else language


def _translate(text: str, language: str) -> str:
    with translation.override(language):
        return translation.gettext(text)


def _policy(style: str) -> str:
    """No script, no frame, nothing from elsewhere; the page's own style by its hash.

    A site's ``base.html`` may add style sheets, fonts and images of the site.
    """
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'self' 'sha256-{digest}'; font-src 'self'; "
        "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )

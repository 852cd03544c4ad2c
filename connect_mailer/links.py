"""The addresses of the app's pages, as the world sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from django.urls import NoReverseMatch, get_resolver, reverse

from connect_mailer.conf import conf
from connect_mailer.exceptions import ConfigurationError


def make_url(view: Callable[..., Any], **kwargs: str) -> str:
    """The URL of a view of the app; empty where the site has no base URL.

    Raises:
        ConfigurationError: the site has one, but did not include ``connect_mailer.urls``.
    """
    base = conf.unsubscribe_base_url
    try:
        # By the view, because a site may have a URL of its own of the same name; and in the
        # root URLconf, because a request may be served by another (`request.urlconf`), while
        # the link has to be the same wherever it is written.
        return base and base + reverse(
            view, urlconf=cast("str", get_resolver().urlconf_name), kwargs=kwargs
        )
    except NoReverseMatch as error:
        raise ConfigurationError(
            "UNSUBSCRIBE_BASE_URL or ORIGIN is set, but the URLs of the app are not included: add "
            "path('mail/', include('connect_mailer.urls')) to the root URLconf, or set "
            "CONNECT_MAILER['UNSUBSCRIBE_BASE_URL'] to ''."
        ) from error

"""The way out in each mail: the link, and the two headers of one-click unsubscribe.

Source: RFC 2369 section 3.2 (``List-Unsubscribe``), RFC 8058 section 3.1
(``List-Unsubscribe-Post``, and that the link alone must identify the reader and the list).
"""

from __future__ import annotations

from connect_mailer.conf import conf
from connect_mailer.links import make_url
from connect_mailer.optout.tokens import make_token

# What a line holds beside the name of the header (RFC 5322 section 2.1.1: 998 in all).
_MAX_LINKS = 970


def unsubscribe_url(address: str, mailing_list: str = "") -> str:
    """Return the link under which ``address`` leaves ``mailing_list`` (blank: all mail).

    Empty where the site has no base URL. The address is not in it in clear text.

    Raises:
        InvalidAddress: ``address`` is none.
        InvalidMessage: ``mailing_list`` is none, as when a message is queued.
        ConfigurationError: the site has a base URL, but did not include ``connect_mailer.urls``.
    """
    conf.check_list(mailing_list)
    if not conf.unsubscribe_base_url:
        return ""
    from connect_mailer.optout.views import unsubscribe

    return make_url(unsubscribe, token=make_token(address, mailing_list))


def for_recipient(address: str, mailing_list: str = "") -> dict[str, str]:
    """Return the headers that let the one recipient of a message opt out in her mail client.

    Empty where the site has neither a base URL nor an address for it. A link is longer than a
    line of a header should be: write it unfolded, or mail clients will not find it. The page
    always has its link, the address for it only if there is room on that line.

    Raises: as ``unsubscribe_url``.
    """
    url, mailto = unsubscribe_url(address, mailing_list), conf.unsubscribe_mailto
    # The best first (RFC 2369 section 2). A sender can be forged, so the subject says, signed,
    # who opts out.
    links = [f"<{url}>"] if url else []
    if mailto:
        second = f"<mailto:{mailto}?subject={make_token(address, mailing_list)}>"
        if sum(map(len, links)) + len(second) <= _MAX_LINKS:
            links.append(second)
    if not links:
        return {}
    headers = {"List-Unsubscribe": ", ".join(links)}
    if url:
        headers["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    return headers

"""What an unsubscribe link carries: who opts out, and of which list, signed.

A token is ``base64url(JSON [version, address, list])``, a dot and an HMAC-SHA256 under
``SECRET_KEY``: nothing is stored, and only characters that no URL has to escape. It has no
expiry, because mail is opened years later, and it is read under ``SECRET_KEY_FALLBACKS`` as
well, so that a key can be rotated. The address is not in clear text, which keeps it out of
sight in logs and histories; whoever has the link can decode it, and opting that address out
is all that the link can do.

Guesses need no rate limit: a guess is right once in 2**256, and what it wins is an opt-out.

The links of Connect, ``?email=…&code=…``, are read as well: they are in old mail.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from django.core.signing import BadSignature, Signer
from django.utils.crypto import constant_time_compare

from connect_mailer import addresses
from connect_mailer.conf import conf
from connect_mailer.exceptions import InvalidAddress, InvalidToken

VERSION: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class OptOut:
    """Who opts out (``address`` as it is stored), and of which list; blank: of all mail."""

    address: str
    mailing_list: str


def make_token(address: str, mailing_list: str = "") -> str:
    """Return the token with which ``address`` leaves ``mailing_list``.

    Two spellings of one address have the same token.

    Raises:
        InvalidAddress: ``address`` is none.
    """
    return _signer().sign_object([VERSION, addresses.normalise(address), mailing_list])


def read_token(token: str) -> OptOut:
    """Return what ``make_token`` put into ``token``.

    Raises:
        InvalidToken: it was not made with a key of this site, or not in a known version.
    """
    try:
        version, *fields = _signer().unsign_object(token)
    except (BadSignature, UnicodeEncodeError) as error:
        raise InvalidToken("the unsubscribe link was not written by this site") from error
    if version != VERSION:
        raise InvalidToken(f"the unsubscribe link has the unknown version {version!r}")
    address, mailing_list = fields
    return OptOut(address=address, mailing_list=mailing_list)


def read_link(token: str) -> OptOut:
    """Return what the link of ``token`` opts out of now: of its list, or else of all mail.

    A list that the site does not name, never did or does no longer, is one that nobody could
    show to the reader or tell from the rest, and she wants no more mail.

    Raises:
        InvalidToken: as ``read_token``.
    """
    optout = read_token(token)
    if optout.mailing_list in conf.mailing_lists:
        return optout
    return OptOut(address=optout.address, mailing_list="")


def read_old_link(email: str, code: str) -> str:
    """Return whom a link of Connect opts out: ``email``, normalised, if ``code`` is of it.

    Raises:
        InvalidToken: it is not, or ``EMAIL_SECRET_KEY`` is not set.

    Source: Connect's ``unsubscribe_url``, which did not escape the address: a plus in it is
    decoded as a space.
    """
    secret = conf.email_secret_key
    if secret:
        for address in (email, email.replace(" ", "+")):
            if constant_time_compare(code, make_old_code(address, secret)):
                try:
                    return addresses.normalise(address)
                except InvalidAddress:
                    continue
    raise InvalidToken("the old unsubscribe link was not written by this site")


def make_old_code(email: str, secret: str) -> str:
    """Return the code that Connect put into its links beside the address."""
    digest = hashlib.sha256((secret + email.lower()).encode()).digest()
    return re.sub(r"[^A-Za-z0-9_-]", "", base64.b64encode(digest).decode("ascii"))


def _signer() -> Signer:
    # Made anew each time: it takes its keys from the settings when it is made.
    return Signer(sep=".", salt="connect_mailer.optout")

"""DKIM signatures of the site's own, by dkimpy (``pip install connect-mailer[dkim]``).

For a site that can't use Easy DKIM, where SES signs itself.

Source: RFC 6376; RFC 8058 section 4 (both headers of one-click unsubscribe must be signed).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from connect_mailer.exceptions import ConfigurationError, InvalidMessage

if TYPE_CHECKING:
    from connect_mailer.options import DKIMOptions

_ALWAYS_SIGNED: Final = ("List-Unsubscribe", "List-Unsubscribe-Post")


def sign(mime: bytes, options: DKIMOptions) -> bytes:
    """Return a message with its signature before it.

    Raises:
        ConfigurationError: dkimpy is missing, or the key can't be used.
        InvalidMessage: dkimpy can't read the message.
    """
    try:
        import dkim
    except ImportError as error:
        raise ConfigurationError(
            "DKIM_DOMAIN is set, but dkimpy is not installed: install connect-mailer[dkim], or "
            "remove the setting where SES signs itself (Easy DKIM)."
        ) from error
    names = {name.lower(): name for name in ("From", *options.headers, *_ALWAYS_SIGNED)}
    # From once more than it is there, so that no second one can be added (RFC 6376, 8.15).
    signed = [name.encode("ascii") for name in ("From", *names.values())]
    key = _read_key(options.private_key)
    try:
        signature: bytes = dkim.sign(
            mime,
            options.selector.encode("ascii"),
            options.domain.encode("ascii"),
            key,
            canonicalize=(b"relaxed", b"relaxed"),
            include_headers=signed,
        )
    except dkim.DKIMException as error:
        raise InvalidMessage(f"It can't be signed: {error}") from error
    return signature + mime


@lru_cache(maxsize=4)
def _read_key(pem: str) -> bytes:
    """The key in the one form that dkimpy reads (PKCS #1, in lines), whichever it is in."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    try:
        # In an environment variable, the ends of the lines are often written as \n.
        key = load_pem_private_key(pem.replace("\\n", "\n").strip().encode(), None)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"DKIM_PRIVATE_KEY can't be read; it must be a PEM without a password: {error}"
        ) from error
    if not isinstance(key, RSAPrivateKey) or key.key_size < 1024:
        raise ConfigurationError("DKIM_PRIVATE_KEY must be an RSA key of at least 1024 bits.")
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())

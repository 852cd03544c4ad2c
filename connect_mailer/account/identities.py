"""Who may be a sender: SES's verified identities, addresses and domains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from connect_mailer.account.aws import AWS
from connect_mailer.exceptions import AccountError


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One identity; ``is_verified``: it may be sent from."""

    name: str
    kind: str  # "EMAIL_ADDRESS", "DOMAIN" or "MANAGED_DOMAIN"
    is_verified: bool
    is_enabled: bool

    @property
    def is_domain(self) -> bool:
        """Whether it stands for all addresses of a domain."""
        return self.kind != "EMAIL_ADDRESS"


def list_identities(aws: AWS) -> list[Identity]:
    """All of them, in the order of their names."""
    return sorted(
        (
            Identity(
                name=str(one["IdentityName"]),
                kind=str(one["IdentityType"]),
                is_verified=one.get("VerificationStatus", "SUCCESS") == "SUCCESS",
                is_enabled=bool(one.get("SendingEnabled")),
            )
            for page in aws.pages("sesv2", "ListEmailIdentities", PageSize=1000)
            for one in page["EmailIdentities"]
        ),
        key=lambda identity: identity.name,
    )


def verify(aws: AWS, name: str) -> Sequence[str]:
    """Ask SES to verify an address (it is sent a link) or a domain.

    Returns the DKIM tokens of a domain, each for a CNAME record
    ``<token>._domainkey.<domain>`` to ``<token>.dkim.amazonses.com``; SES looks for them.
    An identity that is there already is left as it is.

    Source: SES API reference v2, CreateEmailIdentity.
    """
    try:
        answer = aws.call("sesv2", "CreateEmailIdentity", EmailIdentity=name)
    except AccountError as error:
        if error.code != "AlreadyExistsException":
            raise
        answer = get(aws, name)
    return tuple(answer.get("DkimAttributes", {}).get("Tokens", ()))


def delete(aws: AWS, name: str) -> None:
    """Forget an identity: it can't be sent from any more."""
    aws.call("sesv2", "DeleteEmailIdentity", EmailIdentity=name)


def get(aws: AWS, name: str) -> dict[str, Any]:
    """What SES says of one identity (SES API reference v2, GetEmailIdentity)."""
    return aws.call("sesv2", "GetEmailIdentity", EmailIdentity=name)


def find_for(aws: AWS, sender: str) -> tuple[str, dict[str, Any]] | None:
    """The identity that allows ``sender`` (an address), the address itself or a domain over it.

    An identity that isn't verified is the answer only where no other is verified.
    """
    labels = sender.rpartition("@")[2].split(".")
    names = [sender, *(".".join(labels[start:]) for start in range(len(labels) - 1))]
    found = None
    for name in names:
        try:
            identity = get(aws, name)
        except AccountError as error:
            if error.is_missing:
                continue
            raise
        if identity.get("VerifiedForSendingStatus"):
            return name, identity
        found = found or (name, identity)
    return found

"""What ``conf`` hands over as one: how to reach Redis and SES, how to sign.

Imported with the first of them that is asked for: most processes of a site ask for none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RedisAddress:
    """Where the shared limiter lives, as ``redis.Redis.from_url(url, **options)`` takes it."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SESOptions:
    """What a client of SES needs to know. ``None``: boto3 finds it in its own ways."""

    region: str | None
    endpoint_url: str | None
    access_key_id: str | None = field(repr=False)
    secret_access_key: str | None = field(repr=False)
    session_token: str | None = field(repr=False)
    configuration_set: str | None
    tenant: str | None
    contact_list: str | None


@dataclass(frozen=True, kw_only=True)
class DKIMOptions:
    """How the app signs mail itself."""

    domain: str
    selector: str
    private_key: str = field(repr=False)
    headers: tuple[str, ...]

"""Who is not written to, asked when a message is queued and again when it is sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.db import connections, router

from connect_mailer.any_of import AnyOf
from connect_mailer.clock import DatabaseNow
from connect_mailer.models import OutgoingMessage, OutgoingRecipient, Unsubscribe

NO_TO_LEFT = "nobody left in To"

# The gravest reason is the one that is told.
_GRAVITY = ("complaint", "bounce", "manual", "user")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A recipient as far as suppression goes: ``key`` is the normalised address."""

    key: str
    kind: str


class Suppression:
    """The ``Unsubscribe`` rows of some addresses, as they were a moment ago."""

    def __init__(self, rows: Iterable[tuple[str, str, str]]) -> None:
        self._rows: dict[str, list[tuple[str, str]]] = {}
        for address, source, mailing_list in rows:
            self._rows.setdefault(address, []).append((source, mailing_list))

    @classmethod
    def load(cls, keys: Iterable[str]) -> Suppression:
        """Ask for normalised addresses, in one query (or as few as the database allows)."""
        using = router.db_for_write(Unsubscribe)
        wanted = sorted(set(keys))
        limit = connections[using].features.max_query_params or len(wanted) or 1
        rows: list[tuple[str, str, str]] = []
        for start in range(0, len(wanted), limit):
            rows += (
                Unsubscribe.objects.using(using)
                .filter(AnyOf("address", wanted[start : start + limit]))
                .values_list("address", "source", "mailing_list")
            )
        return cls(rows)

    def find_reason(self, key: str, *, stream: str, mailing_list: str) -> str:
        """Why ``key`` is not written to on this stream and list; empty: it is."""
        rows = self._rows.get(key)
        if not rows:
            return ""
        sources = {source for source, of_list in rows if not of_list or of_list == mailing_list}
        if stream == OutgoingMessage.Stream.TRANSACTIONAL:
            sources.discard(Unsubscribe.Source.USER)
        return next((source for source in _GRAVITY if source in sources), "")

    def judge(
        self, candidates: Sequence[Candidate], *, stream: str, mailing_list: str
    ) -> list[str]:
        """A reason for each recipient of one message, in order; empty: is written to.

        A message whose ``To`` had somebody and has nobody left goes to nobody, as in Connect;
        one without ``To`` from the start goes to whoever is left.
        """
        reasons = [
            self.find_reason(candidate.key, stream=stream, mailing_list=mailing_list)
            for candidate in candidates
        ]
        if not any(reasons):
            return reasons
        to = [
            reason
            for candidate, reason in zip(candidates, reasons, strict=True)
            if candidate.kind == OutgoingRecipient.Kind.TO
        ]
        if to and all(to):
            return [reason or NO_TO_LEFT for reason in reasons]
        return reasons


def forget_expired() -> None:
    """Forget the rows whose time is over: those of soft bounces."""
    using = router.db_for_write(Unsubscribe)
    Unsubscribe.objects.using(using).filter(expires_at__lt=DatabaseNow()).delete()

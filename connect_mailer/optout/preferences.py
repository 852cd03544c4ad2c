"""What one reader is subscribed to, and the links that change it: what the pages show."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from django.db import router
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from connect_mailer.conf import conf
from connect_mailer.models import Unsubscribe
from connect_mailer.optout.tokens import OptOut, make_token


def isolate(name: object) -> SafeString:
    """A name that a sentence may be written around from right to left, whichever way it goes.

    Source: HTML standard, the element ``bdi``.
    """
    return format_html("<bdi>{}</bdi>", name)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One list, or all mail (``name`` is blank); ``title`` is for readers.

    POST to ``url`` opts out of it, POST to ``undo_url`` takes that back.
    """

    name: str
    title: object
    url: str
    undo_url: str
    is_left: bool

    @property
    def isolated_title(self) -> SafeString:
        """The title for the middle of a sentence."""
        return isolate(self.title)


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """What an unsubscribe link is about, and what else its reader may choose.

    ``this`` is what the link itself leaves; ``everything`` is all mail; ``lists`` are those
    that the site names. ``is_blocked``: whatever the reader chooses, she is not written to, as
    there is a row of another source.
    """

    address: str
    this: Choice
    everything: Choice
    lists: Collection[Choice]
    is_blocked: bool

    @property
    def is_left(self) -> bool:
        """Whether the reader left what the link is about, or all mail with it."""
        return self.this.is_left or self.everything.is_left

    @classmethod
    def load(cls, optout: OptOut) -> Self:
        """Ask for the reader's rows, in one query."""
        # Where they are written: a replica may not have yet what the reader did a moment ago.
        stored = Unsubscribe.objects.using(router.db_for_write(Unsubscribe))
        rows = stored.filter(address=optout.address).values_list("source", "mailing_list")
        left = {name for source, name in rows if source == Unsubscribe.Source.USER}
        is_blocked = any(
            source != Unsubscribe.Source.USER and name in ("", optout.mailing_list)
            for source, name in rows
        )
        return cls._make(optout, left=left, is_blocked=is_blocked)

    @classmethod
    def after(cls, optout: OptOut) -> Self:
        """What is certain right after an opt-out, without a query."""
        return cls._make(optout, left={optout.mailing_list}, is_blocked=False)

    @classmethod
    def _make(cls, optout: OptOut, *, left: Collection[str], is_blocked: bool) -> Self:
        # The views show this, and so import this module first.
        from connect_mailer.optout.views import subscribe_again, unsubscribe

        titles = {"": "", **conf.mailing_lists}

        def make(name: str) -> Choice:
            token = make_token(optout.address, name)
            return Choice(
                name=name,
                title=titles.get(name, name),
                url=reverse(unsubscribe, kwargs={"token": token}),
                undo_url=reverse(subscribe_again, kwargs={"token": token}),
                is_left=name in left,
            )

        return cls(
            address=optout.address,
            this=make(optout.mailing_list),
            everything=make(""),
            lists=[make(name) for name in conf.mailing_lists],
            is_blocked=is_blocked,
        )

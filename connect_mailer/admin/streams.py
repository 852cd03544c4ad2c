"""What the health page says of a stream, and what its buttons send."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.utils import timezone

from connect_mailer import tallies
from connect_mailer.health.figures import STILL_SECONDS, Waiting
from connect_mailer.models import OutgoingMessage
from connect_mailer.sending.pauses import Pause
from connect_mailer.sending.ses import Account


class PauseForm(forms.Form):
    """What a button of the page sends. An empty stream is the account: it can only go on."""

    stream = forms.ChoiceField(choices=[*OutgoingMessage.Stream.choices, ("", "")], required=False)
    action = forms.ChoiceField(choices=[("pause", ""), ("resume", "")])
    reason = forms.CharField(max_length=200, required=False)

    def clean(self) -> dict[str, Any]:
        """A pause is of one stream."""
        data = super().clean() or {}
        if data.get("action") == "pause" and not data.get("stream"):
            raise forms.ValidationError("Which stream?")
        return data


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One stream as the page shows it."""

    name: str
    label: str
    waiting: Waiting
    counts: dict[str, int]
    pause: Pause | None
    is_still: bool


def is_still(waiting: Waiting, moving: frozenset[str]) -> bool:
    """Whether mail is due since long and none is sent: a rate that is low looks different."""
    if not waiting.ready or waiting.oldest is None or waiting.stream in moving:
        return False
    return timezone.now() - waiting.oldest > timedelta(seconds=STILL_SECONDS)


def find_end_of_quota(account: Account, rate: float) -> datetime | None:
    """When the quota of 24 hours is used up, if ``rate`` recipients a second go on.

    ``None``: not within a day, after which what was sent today counts no more.
    """
    left = max(account.max_24_hour_send - account.sent_last_24_hours, 0)
    if account.max_24_hour_send < 0 or left >= rate * tallies.DAY:
        return None
    return timezone.now() + timedelta(seconds=left / rate)

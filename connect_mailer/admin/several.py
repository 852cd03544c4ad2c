"""Many addresses at once: pasted, or as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from connect_mailer import addresses
from connect_mailer.conf import MAX_LIST_LENGTH
from connect_mailer.exceptions import InvalidAddress
from connect_mailer.models import Unsubscribe, UnsubscribeKey

COLUMNS: Final = ("address", "source", "mailing_list")
MAX_LINES: Final = 50_000
MAX_BYTES: Final = 10_000_000
_CHUNK: Final = 500


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line that can't be taken, and why."""

    number: int
    text: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What would be done: keys are address, source and mailing list."""

    new: Sequence[UnsubscribeKey]
    known: int
    invalid: Sequence[Line]


class SeveralForm(forms.Form):
    """A text, a file, or both."""

    text = forms.CharField(
        label=gettext_lazy("Addresses"),
        required=False,
        widget=forms.Textarea(attrs={"rows": 10, "class": "vLargeTextField"}),
        help_text=gettext_lazy("One a line; after a comma, a mailing list where it is one alone."),
    )
    file = forms.FileField(
        label=gettext_lazy("CSV file"),
        required=False,
        help_text=gettext_lazy(
            "The first line may name its columns: address, source, mailing_list."
        ),
    )

    def clean(self) -> dict[str, Any]:
        """Add ``preview``; what came by file is text from here on, to be sent once more."""
        data = super().clean() or {}
        text = data.get("text", "")
        if file := data.get("file"):
            if file.size > MAX_BYTES:
                raise forms.ValidationError(_("This file is too large."))
            try:
                text = f"{text}\n{file.read().decode('utf-8-sig')}"
            except UnicodeDecodeError as error:
                raise forms.ValidationError(_("This file is not text in UTF-8.")) from error
        lines = text.replace("\0", "").splitlines()
        if not any(line.strip() for line in lines):
            raise forms.ValidationError(_("There is no address."))
        if len(lines) > MAX_LINES:
            raise forms.ValidationError(
                _("%(number)d lines are too many; at most %(most)d at once.")
                % {"number": len(lines), "most": MAX_LINES}
            )
        data["text"] = text.strip()
        data["preview"] = read(lines)
        return data


def read(lines: Iterable[str]) -> Preview:
    """Sort lines into new, known and invalid."""
    wanted: dict[UnsubscribeKey, None] = {}
    invalid: list[Line] = []
    columns: Sequence[str] = ("address", "mailing_list")
    number = known = 0
    for number, cells in enumerate(csv.reader(lines), 1):
        cells = [cell.strip().removeprefix("'") for cell in cells]
        if not any(cells):
            continue
        if "address" in (names := [cell.lower() for cell in cells]):
            columns = names
            continue
        named = dict(zip(columns, cells, strict=False))
        try:
            key = _read_cells(named)
        except ValueError as error:
            invalid.append(Line(number=number, text=", ".join(cells)[:200], error=str(error)))
            continue
        known += key in wanted
        wanted[key] = None
    keys = list(wanted)
    there: set[UnsubscribeKey] = set()
    for start in range(0, len(keys), _CHUNK):
        part = [address for address, _source, _list in keys[start : start + _CHUNK]]
        there.update(Unsubscribe.objects.find_keys(part))
    new = [key for key in keys if key not in there]
    return Preview(new=new, known=known + len(keys) - len(new), invalid=invalid)


def _read_cells(named: dict[str, str]) -> UnsubscribeKey:
    source = named.get("source") or Unsubscribe.Source.MANUAL.value
    if source not in Unsubscribe.Source.values:
        raise ValueError(
            _("%(source)r is no source; known are %(known)s.")
            % {"source": source, "known": ", ".join(Unsubscribe.Source.values)}
        )
    mailing_list = named.get("mailing_list", "")
    if len(mailing_list) > MAX_LIST_LENGTH:
        raise ValueError(_("The name of a list has at most 100 characters."))
    try:
        return addresses.normalise(named.get("address", "")), source, mailing_list
    except InvalidAddress as error:
        raise ValueError(str(error)) from error


def add(keys: Sequence[UnsubscribeKey]) -> list[Unsubscribe]:
    """Add rows, and return those that are there now."""
    added: list[Unsubscribe] = []
    for start in range(0, len(keys), _CHUNK):
        part = keys[start : start + _CHUNK]
        Unsubscribe.objects.add_all(part)
        wanted = set(part)
        rows = Unsubscribe.objects.filter(address__in=[key[0] for key in part])
        added += (row for row in rows if (row.address, row.source, row.mailing_list) in wanted)
    return added

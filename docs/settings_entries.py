"""What the docstrings of ``connect_mailer.conf.Conf`` say of each setting, for the reference."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from textwrap import indent

from connect_mailer.conf import Conf

_FIELD = re.compile(r"^:(setting|type|default|legacy): (.+(?:\n .+)*)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the docstring of one property says; ``names`` has more than one where they belong
    together."""

    attribute: str
    names: tuple[str, ...]
    type: str
    default: str
    legacy: str
    text: str

    def as_rst(self) -> str:
        """The entry as the page has it."""
        names = "\n             ".join(self.names)
        text = self.text + (f"\n\nLegacy: {self.legacy}." if self.legacy else "")
        return (
            f".. confval:: {names}\n   :type: {self.type}\n   :default: {self.default}\n\n"
            f"{indent(text, '   ')}\n"
        )


def read_entries() -> dict[str, Entry]:
    """Every setting that ``conf`` documents, by its first name."""
    entries = {}
    for attribute, value in vars(Conf).items():
        text = inspect.getdoc(value) or "" if isinstance(value, property) else ""
        fields = {name: " ".join(said.split()) for name, said in _FIELD.findall(text)}
        if "setting" in fields:
            names = tuple(fields["setting"].split(", "))
            entries[names[0]] = Entry(
                attribute=attribute,
                names=names,
                type=fields["type"],
                default=fields["default"],
                legacy=fields.get("legacy", ""),
                text=_FIELD.sub("", text).strip(),
            )
    return entries

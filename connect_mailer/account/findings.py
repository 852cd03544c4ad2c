"""What the doctor finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"  # good to know
    WARNING = "warning"  # mail flows, and something will go wrong
    ERROR = "error"  # mail or feedback doesn't flow


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: which part of the chain, how it is, and what to do about it."""

    part: str
    level: Level
    text: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def ok(part: str, text: str) -> Finding:
    """As it should be."""
    return Finding(part=part, level=Level.OK, text=text)


def note(part: str, text: str, advice: str = "") -> Finding:
    """Good to know."""
    return Finding(part=part, level=Level.NOTE, text=text, advice=advice)


def warning(part: str, text: str, advice: str) -> Finding:
    """Will go wrong."""
    return Finding(part=part, level=Level.WARNING, text=text, advice=advice)


def error(part: str, text: str, advice: str) -> Finding:
    """Doesn't work."""
    return Finding(part=part, level=Level.ERROR, text=text, advice=advice)

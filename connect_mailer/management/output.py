"""How the commands write: tables, and progress where somebody watches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from django.core.management.base import OutputWrapper

_REFRESH_SECONDS: Final = 0.2


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns that are as wide as they have to be; the text columns to the left."""
    table = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


class Progress:
    """A line that says how far it is, only where ``stream`` is a terminal; a context manager."""

    def __init__(self, stream: OutputWrapper, *, total: int | None = None) -> None:
        self._stream = stream if stream.isatty() else None
        self._total = total
        self._shown_at = 0.0
        self.done = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._stream is not None and self._shown_at:
            self._show(self._stream)
            self._stream.write("")

    def advance(self, count: int = 1) -> None:
        """``count`` more are done."""
        self.done += count
        if self._stream is not None and time.monotonic() - self._shown_at >= _REFRESH_SECONDS:
            self._shown_at = time.monotonic()
            self._show(self._stream)

    def _show(self, stream: OutputWrapper) -> None:
        total = ""
        if self._total:
            part = min(self.done / self._total, 1.0)
            bar = "#" * round(20 * part)
            total = f" of {self._total:,}  [{bar:<20}] {part:4.0%}"
        stream.write(f"\r{self.done:,}{total}", ending="")
        stream.flush()

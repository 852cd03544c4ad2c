"""What a person sees of the demo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from demo.processes import Process

TAIL_LINES = 25


@dataclass(frozen=True, kw_only=True)
class Check:
    """Something that was to hold, with its numbers, and whether it did."""

    what: str
    numbers: str
    held: bool


class Screen:
    """Prints; on a terminal it shows progress as well."""

    def __init__(self) -> None:
        console = Console(highlight=False)
        # A log is as wide as its lines.
        self._console = console if console.is_terminal else Console(highlight=False, width=110)

    def title(self, text: str) -> None:
        """What this is."""
        self._console.print(Panel(text, border_style="cyan", expand=False))

    def step(self, title: str) -> None:
        """What comes next."""
        self._console.print()
        self._console.print(f"[bold cyan]{escape(title)}[/]")

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(Padding(text, (0, 0, 0, 2), expand=False))

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Something that takes a while."""
        with self._console.status(escape(text)):
            yield

    @contextmanager
    def flow(self, total: int) -> Iterator[Callable[[int, int, float], None]]:
        """A bar for mail on its way: call with messages, recipients and their rate."""
        columns = (
            TextColumn("  {task.fields[messages]:>3} messages"),
            BarColumn(bar_width=26),
            TextColumn("{task.completed}/{task.total} recipients"),
            TextColumn("[cyan]{task.fields[rate]:4.1f}/s"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task("", total=total, messages=0, rate=0.0)

            def show(messages: int, recipients: int, rate: float) -> None:
                progress.update(bar, completed=recipients, messages=messages, rate=rate)

            yield show

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table."""
        table = Table(*columns, title=title, title_justify="left", title_style="bold")
        for row in rows:
            table.add_row(*map(escape, row))
        self._console.print(table)

    def close(self, checks: Sequence[Check], seconds: float) -> None:
        """The closing table."""
        table = Table("", "what was shown", "in numbers", title_style="bold", show_lines=False)
        for check in checks:
            mark = "[green]✓[/]" if check.held else "[bold red]✗[/]"
            table.add_row(mark, escape(check.what), escape(check.numbers))
        failed = sum(not check.held for check in checks)
        self._console.print()
        self._console.print(table)
        if failed:
            self._console.print(f"[bold red]{failed} of {len(checks)} did not hold.[/]")
        else:
            self._console.print(f"[bold green]All of it held[/] in {seconds:.0f} s.")

    def fail(self, error: Exception, processes: Iterable[Process]) -> None:
        """What went wrong, and the last lines that each process wrote."""
        for process in processes:
            lines = process.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            self._console.rule(f"{process.name}.log", align="left")
            for line in lines:
                self._console.print(line, markup=False, soft_wrap=True)
        self._console.rule()
        self._console.print(f"[bold red]{escape(type(error).__name__)}:[/] {escape(str(error))}")

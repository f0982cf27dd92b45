"""What a stage shows while it runs: a bar with the time left on a terminal, one line in a log."""

import contextlib
import html
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from dcsft_harness import ranks
from dcsft_harness.errors import visible, visible_lines

if TYPE_CHECKING:
    from rich.table import Table

Report = Callable[..., None]
"""Takes (done, in all), and by name figures to show beside the bar, such as loss=0.41."""


@contextlib.contextmanager
def stage(title: str, shown: bool = True) -> Iterator[Report]:
    """Shows a stage's progress on stderr, if it is `shown`; the report takes (done, in all)."""
    if not shown or ranks.rank() > 0 or not sys.stderr.isatty():
        yield lambda done, total, **figures: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(visible(title), total=None, figures="")

        def report(done: int, total: int, **figures: float) -> None:
            said = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
            bars.update(bar, completed=done, total=total, figures=said)

        yield report


class Clock:
    """Seconds since it was made, for a stage's closing line."""

    def __init__(self) -> None:
        """Starts it."""
        self._started = time.monotonic()

    def __str__(self) -> str:
        """The time as "12 s"."""
        return f"{time.monotonic() - self._started:.0f} s"


def closing(title: str, said: str, clock: Clock, output: object) -> None:
    """The one line that a finished stage leaves."""
    say(f"{title}: {said} ({clock}) -> {output}")


def say(line: str) -> None:
    """Prints one line on stderr; names in it come from outside, and terminals obey control characters."""
    click.echo(visible(line), err=True)


FORMATS = ("table", "markdown")
"""How tables are printed: drawn for a terminal, or as Markdown."""


def show(text: str, form: str | None = None) -> None:
    """Prints Markdown on stdout, each line as `say` does.

    Args:
        text: lines, some of which may be tables.
        form: one of `FORMATS`; None draws tables on a terminal, and prints Markdown elsewhere.
    """
    if form == "markdown" or (form is None and not sys.stdout.isatty()):
        click.echo(visible_lines(text))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 10_000)
    lines: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.startswith("|"):
            lines.append(line)
            continue
        if len(lines) > 2:
            console.print(_drawn(lines))
        lines = []
        console.print(Text(_plain(line)), soft_wrap=True)


_CELL = re.compile(r"(?<!\\)\|")


def _drawn(lines: Sequence[str]) -> "Table":
    """A Markdown table as one for a terminal; its second line says how columns are aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [[cell.strip() for cell in _CELL.split(line.strip())[1:-1]] for line in lines]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, rule in zip(cells[0], cells[1], strict=True):
        right = rule.endswith(":") and not rule.startswith(":")
        # Figures stay on one line; names may take several.
        table.add_column(Text(_plain(name)), justify="right" if right else "left", overflow="fold")
    for row in cells[2:]:
        table.add_row(
            *(Text(_plain(cell), style="bold" if re.fullmatch(r"\*\*.*\*\*", cell) else "") for cell in row)
        )
    return table


def _plain(text: str) -> str:
    """Markdown of a line as what it says, safe to print."""
    bare = re.sub(r"^(\*\*?)(.*)\1$", r"\2", text)
    return visible(html.unescape(re.sub(r"\\([\\`*\[\]|~$_])", r"\1", bare)))

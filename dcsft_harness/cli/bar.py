"""What a stage shows while it runs: a bar with the time left on a terminal, one line in a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import click

from dcsft_harness import ranks
from dcsft_harness.errors import visible, visible_lines

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


def show(text: str) -> None:
    """Prints lines on stdout, each as `say` does."""
    click.echo(visible_lines(text))

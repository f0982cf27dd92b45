"""A running stage's progress: a bar with the remaining time on a terminal, one line in a log."""

import contextlib
import html
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from dcsft_harness import ranks
from dcsft_harness.artifacts.usage import rounded
from dcsft_harness.errors import visible, visible_lines

if TYPE_CHECKING:
    from rich.table import Table

Report = Callable[..., None]
"""Called with (done, total), and by name figures to show beside the bar, such as loss=0.41."""

DOING = {
    "data": "reading",
    "sample": "sampling",
    "label": "labeling",
    "curate": "curating",
    "train": "training",
    "merge": "merging",
    "evaluate": "evaluating",
    "score": "evaluating",
    "leaderboard": "comparing",
}
"""First word of a stage -> the name of its main phase."""
SILENCE = 30.0
"""Seconds between the lines of a stage that runs without a terminal."""


@contextlib.contextmanager
def stage(title: str, shown: bool = True) -> Iterator[Report]:
    """Shows a stage's progress on stderr, if it is `shown`; the yielded callback takes (done, total).

    A stage is loading until its first report, and saving after its last one. Without a terminal it prints one
    line every `SILENCE` seconds.
    """
    if not shown or ranks.rank() > 0:
        yield lambda done, total, **figures: None
    elif sys.stderr is not None and sys.stderr.isatty():  # a program without a console has none
        with _bar(title) as report:
            yield report
    else:
        with _lines(title) as report:
            yield report


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[said]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        state = _State(title)
        bar = bars.add_task(visible(f"{title}: {state.phase}"), total=None, said="")

        def report(done: int, total: int, **figures: float) -> None:
            state.update(done, total, **figures)
            bars.update(
                bar,
                description=visible(f"{title}: {state.phase}"),
                completed=done,
                total=total,
                said=str(state),
            )

        yield report


@contextlib.contextmanager
def _lines(title: str) -> Iterator[Report]:
    state, ended = _State(title), threading.Event()

    def watch() -> None:
        while not ended.wait(SILENCE):
            say(f"{title}: {state.phase}{', ' if str(state) else ''}{state} ({state.clock})")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield state.update
    finally:
        ended.set()
        thread.join()


class _State:
    """A stage's progress, in words."""

    def __init__(self, title: str) -> None:
        self.clock = Clock()
        self.phase = "loading"
        self._said = ""
        self._running = DOING.get(title.split()[0], "running")
        self._first: tuple[float, int] | None = None

    def update(self, done: int, total: int, **figures: float) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        seconds, ended = now - self._first[0], done - self._first[1]
        words = [f"{done} of {total}"]
        if ended and seconds >= 1:
            rate = ended / seconds
            words += [
                f"{rate:.3g}/s",
                *([f"{rounded((total - done) / rate)} left"] if done < total else []),
            ]
        words += [f"{name} {value:.3g}" for name, value in figures.items()]
        self._said = ", ".join(words)
        self.phase = "saving" if done == total else self._running

    def __str__(self) -> str:
        return self._said


class Clock:
    """Seconds since its creation, for a stage's closing line."""

    def __init__(self) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    def __str__(self) -> str:
        """The time as "12 s"."""
        return f"{time.monotonic() - self._started:.0f} s"


def closing(title: str, said: str, clock: Clock, output: object) -> None:
    """Prints a finished stage's closing line."""
    say(f"{title}: {said} ({clock}) -> {output}")


def say(line: str) -> None:
    """Prints one line on stderr, with control characters made safe: names in it come from outside."""
    click.echo(visible(line), err=True)


FORMATS = ("table", "markdown")
"""The output formats of tables: drawn for a terminal, or Markdown."""


def show(text: str, form: str | None = None) -> None:
    """Prints Markdown on stdout, made safe as in `say`.

    `form` is one of `FORMATS`; None draws tables on a terminal, and prints Markdown elsewhere.
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
    """A Markdown table drawn for a terminal; its second line sets the alignment of columns."""
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
    """A line of Markdown as plain text, safe to print."""
    bare = re.sub(r"^(\*\*?)(.*)\1$", r"\2", text)
    bare = re.sub(r"(?<!\w)\*(\w+)\*(?!\w)", r"\1", bare)
    bare = re.sub(r"^!\[(.*)\]\((.*)\)$", r"\1: \2", bare)
    return visible(html.unescape(re.sub(r"\\([\\`*\[\]|~$_])", r"\1", bare)))

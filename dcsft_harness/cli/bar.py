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
from dcsft_harness.artifacts.usage import READING, rounded
from dcsft_harness.errors import visible, visible_lines

if TYPE_CHECKING:
    from rich.table import Table

Report = Callable[..., None]
"""Called with (done, total), and by name figures to show beside the bar, such as loss=0.41.

The total is None where it is not known. A `phase` names another one than the stage's main phase."""

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

_REFRESH = 0.5
"""Seconds between the changes of a notebook's line."""


@contextlib.contextmanager
def stage(title: str, shown: bool = True) -> Iterator[Report]:
    """Shows a stage's progress on stderr, if it is `shown`; the yielded callback takes (done, total).

    A stage is loading until its first report, and saving after its last one. Without a terminal it prints one
    line every `SILENCE` seconds, and in a notebook one line in the cell, which changes. Meanwhile rows that
    are read are reported too, see `usage.counted`.
    """
    if not shown or ranks.rank() > 0:
        yield lambda done, total, **figures: None
        return
    on_terminal = sys.stderr is not None and sys.stderr.isatty()  # a program without a console has none
    with (_cell if _in_notebook() else _bar if on_terminal else _lines)(title) as report:
        before = READING.set(report)
        try:
            yield report
        finally:
            READING.reset(before)


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

        def report(done: int, total: int | None, phase: str | None = None, **figures: float) -> None:
            state.update(done, total, phase, **figures)
            # `update` would keep the total of the phase before, and stop the clock where that one ended.
            (shown,) = bars.tasks
            shown.total = None if state.phase == "loading" else total
            description = visible(f"{title}: {state.phase}")
            bars.update(bar, description=description, completed=done, said=str(state))
            shown.finished_time = None

        yield report


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


@contextlib.contextmanager
def _cell(title: str) -> Iterator[Report]:
    """A line of the cell's output, which stays with the last count and the time."""
    from IPython.display import DisplayHandle

    state, line = _State(title), DisplayHandle()
    shown = 0.0

    def report(done: int, total: int | None, phase: str | None = None, **figures: float) -> None:
        nonlocal shown
        state.update(done, total, phase, **figures)
        if done == total or time.monotonic() - shown >= _REFRESH:
            shown = time.monotonic()
            line.update({"text/plain": visible(state.line())}, raw=True)

    line.display({"text/plain": visible(state.line())}, raw=True)
    try:
        yield report
        state.phase = "done"
    except BaseException:
        state.phase = "not finished"
        raise
    finally:
        line.update({"text/plain": visible(f"{state.line()} ({state.clock})")}, raw=True)


@contextlib.contextmanager
def _lines(title: str) -> Iterator[Report]:
    state, ended = _State(title), threading.Event()

    def watch() -> None:
        while not ended.wait(SILENCE):
            say(f"{state.line()} ({state.clock})")

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
        self.title, self.clock = title, Clock()
        self.phase = "loading"
        self._said = ""
        self._running = DOING.get(title.split()[0], "running")
        self._passes: dict[str, tuple[float, int, int]] = {}  # phase -> start, the count then, the last count

    def update(self, done: int, total: int | None, phase: str | None = None, **figures: float) -> None:
        now, running = time.monotonic(), phase or self._running
        start, before, last = self._passes.get(running, (now, done, done))
        if done < last:  # another pass
            start, before = now, done
        self._passes[running] = start, before, done
        seconds, ended = now - start, done - before
        words = [str(done) if total is None else f"{done} of {total}"]
        if ended and seconds >= 1:
            rate = ended / seconds
            words.append(f"{rate:.3g}/s")
            if total is not None and done < total:
                words.append(f"{rounded((total - done) / rate)} left")
        words += [f"{name} {value:.3g}" for name, value in figures.items()]
        self._said = ", ".join(words)
        self.phase = running
        if done == total:  # what was read is not what the stage does
            self.phase, self._said = ("loading", "") if phase == "reading" else ("saving", self._said)

    def __str__(self) -> str:
        return self._said

    def line(self) -> str:
        return ", ".join(filter(None, [f"{self.title}: {self.phase}", self._said]))


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


def write(text: str) -> None:
    """Prints text on stdout as it is, made safe as in `say`."""
    click.echo(visible_lines(text))


def show(text: str, form: str | None = None) -> None:
    """Prints Markdown on stdout, made safe as in `say`. Other text is for `write`.

    `form` is one of `FORMATS`; None draws tables on a terminal, and prints Markdown elsewhere.
    """
    if form == "markdown" or sys.stdout is None or (form is None and not sys.stdout.isatty()):
        write(text)
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
            cells = [[cell.strip() for cell in _CELL.split(one.strip())[1:-1]] for one in lines]
            table = _drawn(cells)
            whole = console.measure(table, options=console.options.update(width=10_000)).minimum
            if whole <= console.width:
                console.print(table)
            else:  # words would be cut
                console.print(Text("\n".join(_listed(cells))), soft_wrap=True)
        lines = []
        console.print(Text(_plain(line)), soft_wrap=True)


_CELL = re.compile(r"(?<!\\)\|")


def _listed(cells: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table as a list: each row's name, and below it its figures, a line each."""
    found = []
    for name, *row in cells[2:]:
        found += ["", _plain(name)]
        found += [
            f"  {_plain(head)}: {_plain(cell)}" for head, cell in zip(cells[0][1:], row, strict=True) if cell
        ]
    return [*found, ""]


def _drawn(cells: Sequence[Sequence[str]]) -> "Table":
    """A Markdown table drawn for a terminal; its second line sets the alignment of columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

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

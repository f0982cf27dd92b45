"""Board -> Summary: every number of the table, unrounded, and the remarks that belong under it.

Whatever prints a board prints a Summary, so that no two of its forms can disagree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .board import Board, Row, Task
from .statistics import (
    Codes,
    Estimate,
    Floats,
    accuracy,
    difference,
    mean_over_tasks,
    within_unit,
)


@dataclass(frozen=True, eq=False)
class Column:
    """A task, or the unweighted mean over the tasks of one distribution.

    Attributes:
        label: the task's name, "ID mean" or "OOD mean".
        distribution: "id", "ood" or None.
        tasks: the task, or those that the mean is over.
        is_mean: whether it is a mean.
    """

    label: str
    distribution: str | None
    tasks: tuple[Task, ...]
    is_mean: bool


@dataclass(frozen=True)
class Entry:
    """What one row has in one column.

    Attributes:
        n: scored items, which the accuracy is over; of all tasks of a mean together.
        unscored: further items, whose response could not be scored.
        unanswered: scored items in whose response no answer was found; they count as wrong. None
            where a task does not report answers.
        accuracy: in [0, 1]; None where it cannot be given.
        difference: to the baseline, on the items scored in both; None where it cannot be given.
    """

    n: int
    unscored: int
    unanswered: int | None
    accuracy: Estimate | None
    difference: Estimate | None


@dataclass(frozen=True, eq=False)
class Line:
    """One row of the table.

    Attributes:
        name: the row's name.
        is_baseline: whether differences are taken to it.
        entries: one per column; None where a task that the column needs was not evaluated.
    """

    name: str
    is_baseline: bool
    entries: tuple[Entry | None, ...]


@dataclass(frozen=True, eq=False)
class Summary:
    """A board's numbers.

    Attributes:
        columns: ID tasks, ID mean if they are several, OOD tasks, OOD mean, other tasks.
        lines: the baseline first, the others as given.
        baseline: the baseline's name, or None.
        remarks: sentences on blank cells and items left out.
    """

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    baseline: str | None
    remarks: tuple[str, ...]

    def overall(self, distribution: str) -> int | None:
        """The index of the column that stands for "id" or "ood": its mean, else its only task."""
        found = [i for i, column in enumerate(self.columns) if column.distribution == distribution]
        return found[-1] if found else None  # a mean follows its tasks


def summarise(board: Board) -> Summary:
    """Computes accuracies, means, differences and their intervals."""
    columns = tuple(_columns(board.tasks))
    baseline = None if board.baseline is None else board.row(board.baseline)
    lines = tuple(
        Line(row.name, row is baseline, tuple(_entry(row, baseline, column) for column in columns))
        for row in board.rows
    )
    return Summary(columns, lines, board.baseline, tuple(_remarks(board, columns, lines)))


def _columns(tasks: Sequence[Task]) -> Iterator[Column]:
    for distribution in ("id", "ood", None):
        members = tuple(task for task in tasks if task.distribution == distribution)
        for task in members:
            yield Column(task.name, distribution, (task,), False)
        # One OOD task still gets its mean: it is the figure that rows are compared by.
        if distribution is not None and len(members) > (distribution == "id"):
            yield Column(f"{distribution.upper()} mean", distribution, members, True)


def _entry(row: Row, baseline: Row | None, column: Column) -> Entry | None:
    if any(task.name not in row.cells for task in column.tasks):
        return None
    cells = [row.cells[task.name] for task in column.tasks]
    scores, clusters = _scores(row, column), [task.clusters for task in column.tasks]
    alone = len(scores) == 1  # a mean over one task is that task's accuracy, interval included
    return Entry(
        n=sum(len(cell.scores) - cell.unscored for cell in cells),
        unscored=sum(cell.unscored for cell in cells),
        unanswered=total([cell.unanswered for cell in cells]),
        accuracy=accuracy(scores[0], clusters[0])
        if alone
        else within_unit(mean_over_tasks(scores, clusters)),
        difference=_to_baseline(row, baseline, column, clusters),
    )


def total(counts: Sequence[int | None]) -> int | None:
    """The sum of some counts, None if one of them is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _to_baseline(
    row: Row, baseline: Row | None, column: Column, clusters: Sequence[Codes]
) -> Estimate | None:
    if baseline is None or row is baseline or any(task.name not in baseline.cells for task in column.tasks):
        return None
    return difference(_scores(row, column), _scores(baseline, column), clusters)


def _scores(row: Row, column: Column) -> list[Floats]:
    return [row.cells[task.name].scores for task in column.tasks]


def _remarks(board: Board, columns: Sequence[Column], lines: Sequence[Line]) -> Iterator[str]:
    for row in board.rows:
        for column in columns:
            missing = [task.name for task in column.tasks if task.name not in row.cells]
            if column.is_mean and missing:
                yield (
                    f"Row {row.name} has no {column.label}: it was not evaluated on {', '.join(missing)}, "
                    "and a mean is never taken over fewer tasks"
                )
    for line in lines:
        for column, entry in zip(columns, line.entries, strict=True):
            if entry is not None and entry.unscored and not column.is_mean:
                yield (
                    f"Row {line.name}: {entry.unscored} of {entry.n + entry.unscored} responses to "
                    f"{column.label} could not be scored; they are left out, not counted as wrong"
                )
    estimates = [e.difference for line in lines for e in line.entries if e is not None]
    if any(estimate is not None and estimate.low is None for estimate in estimates):
        yield "A difference has no interval where it does not vary between items or clusters"

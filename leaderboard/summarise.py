"""Board -> Summary: accuracies, means and differences, and what follows from them."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from . import comparing, seeds, standing
from .board import Board, LeftOut, Row, Task
from .difficulty import by_difficulty
from .provenance import public
from .published import Quoted
from .statistics import Codes, Estimate, Floats, accuracy, difference, mean_over_tasks, within_unit
from .summary import Apart, Column, Entry, Line, Summary, Worst

PAIRS = 20
"""Up to so many rows, every pair of them is tested."""


def summarise(
    board: Board,
    pairs: int = PAIRS,
    quoted: Sequence[Quoted] = (),
    labels: Mapping[str, str] | None = None,
) -> Summary:
    """Computes every number of a board.

    Args:
        board: rows that can be compared, and those kept apart from them.
        pairs: up to how many rows every pair is tested; the baseline's pairs always are.
        quoted: figures of others to show beside the board's.
        labels: item id -> difficulty.
    """
    columns = tuple(_columns(board.tasks))
    sides = _sides(board)
    baseline = next((side for name, side in sides if name == board.baseline), None)
    combined = {row.name for _, side in sides if len(side) > 1 for row in side}
    lines = tuple(
        Line(
            name,
            side is baseline,
            tuple(_entry(side, baseline, column) for column in columns),
            side,
            side[0].group if len(side) == 1 and side[0].name in combined else None,
            worst=_worst(side, columns),
            by_difficulty=by_difficulty(side, board.tasks, labels or {}),
        )
        for name, side in sides
    )
    lines, ranked_by = standing.standings(columns, lines)
    return Summary(
        columns,
        lines,
        board.baseline,
        (*board.remarks, *_remarks(columns, lines), *(one.remark for one in quoted if one.remark)),
        comparing.detectable(columns, lines),
        comparing.comparisons(columns, lines, pairs),
        ranked_by,
        tuple(quoted),
        tuple(Apart(told(one.reason), summarise(one.board, pairs, (), labels)) for one in board.apart),
        tuple(LeftOut(one.folder, told(one.reason)) for one in board.left_out),
    )


def told(reason: str) -> str:
    """A refusal as a board may repeat it: of absolute paths the last name stays."""
    return str(public(reason))


def _sides(board: Board) -> list[tuple[str, tuple[Row, ...]]]:
    """The lines by name: combined seeds before the first of them, the baseline first."""
    taken, found = {row.name for row in board.rows}, []
    groups: dict[str, list[Row]] = {}
    for row in board.rows:
        if row.group is not None:
            groups.setdefault(row.group, []).append(row)
    for row in board.rows:
        members = groups.get(row.group or "", [])
        if len(members) > 1 and members[0] is row and row.group is not None:
            found.append((row.group + (" (seeds)" if row.group in taken else ""), tuple(members)))
        found.append((row.name, (row,)))
    found.sort(key=lambda line: line[0] != board.baseline)  # stable: the rest stay as given
    return found


def _columns(tasks: Sequence[Task]) -> Iterator[Column]:
    for distribution in ("id", "ood", None):
        members = tuple(task for task in tasks if task.distribution == distribution)
        for task in members:
            yield Column(task.name, distribution, (task,), False)
        # One OOD task still gets its mean: it is the figure that rows are compared by.
        if distribution is not None and len(members) > (distribution == "id"):
            yield Column(f"{distribution.upper()} mean", distribution, members, True)


def _entry(side: tuple[Row, ...], baseline: tuple[Row, ...] | None, column: Column) -> Entry | None:
    if any(task.name not in row.cells for task in column.tasks for row in side):
        return None
    cells = [row.cells[task.name] for row in side for task in column.tasks]
    clusters = [task.clusters for task in column.tasks]
    part = seeds.part([scores_of(row, column) for row in side], clusters) if len(side) > 1 else None
    return Entry(
        n=sum(len(cell.scores) - cell.unscored for cell in cells) if part is None else part.n,
        unscored=sum(cell.unscored for cell in cells),
        unanswered=total([cell.unanswered for cell in cells]),
        accuracy=_accuracy(side, column, clusters),
        difference=_to_baseline(side, baseline, column, clusters),
        deviation=None if part is None else part.deviation,
    )


def _accuracy(side: tuple[Row, ...], column: Column, clusters: Sequence[Codes]) -> Estimate | None:
    if len(side) > 1:
        return within_unit(seeds.mean_of_seeds([scores_of(row, column) for row in side], clusters))
    scores = scores_of(side[0], column)
    if len(scores) == 1:  # a mean over one task is that task's accuracy, interval included
        return accuracy(scores[0], clusters[0])
    return within_unit(mean_over_tasks(scores, clusters))


def total(counts: Sequence[int | None]) -> int | None:
    """The sum of some counts, None if one of them is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _to_baseline(
    side: tuple[Row, ...], baseline: tuple[Row, ...] | None, column: Column, clusters: Sequence[Codes]
) -> Estimate | None:
    if baseline is None or side is baseline:
        return None
    if any(task.name not in row.cells for task in column.tasks for row in baseline):
        return None
    if len(side) == len(baseline) == 1:
        return difference(scores_of(side[0], column), scores_of(baseline[0], column), clusters)
    if set(side) & set(baseline):  # a seed against the seeds that it is one of
        return None
    found = seeds.difference_of_seeds(
        [scores_of(row, column) for row in side], [scores_of(row, column) for row in baseline], clusters
    )
    return None if found is None else found[0]


def scores_of(row: Row, column: Column) -> list[Floats]:
    """A row's scores on a column's tasks."""
    return [row.cells[task.name].scores for task in column.tasks]


def _worst(side: tuple[Row, ...], columns: Sequence[Column]) -> Worst | None:
    found = []
    for column in columns:
        if not column.is_mean and all(column.tasks[0].name in row.cells for row in side):
            scores = np.concatenate([scores_of(row, column)[0] for row in side])
            if not np.isnan(scores).all():
                found.append(Worst(column.label, float(np.nanmean(scores))))
    return min(found, key=lambda one: one.accuracy, default=None)


def _remarks(columns: tuple[Column, ...], lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        for column in columns:
            missing = [t.name for t in column.tasks if any(t.name not in row.cells for row in line.rows)]
            if column.is_mean and missing:
                yield (
                    f"Row {line.name} has no {column.label}: it was not evaluated on {', '.join(missing)}, "
                    "and a mean is never taken over fewer tasks"
                )
    for line in lines:
        counts = [
            f"{entry.unscored} of {entry.n + entry.unscored} responses to {column.label}"
            for column, entry in zip(columns, line.entries, strict=True)
            if entry is not None and entry.unscored and not column.is_mean and not line.is_group
        ]
        if counts:
            yield (
                f"Row {line.name}: {', '.join(counts)} could not be scored; they are left out, not counted "
                "as wrong"
            )
    estimates = [e.difference for line in lines for e in line.entries if e is not None]
    if any(estimate is not None and estimate.low is None for estimate in estimates):
        yield "A difference has no interval where it does not vary between items or clusters"
    for line in lines:
        if line.is_group:
            names = ", ".join(row.name for row in line.rows)
            yield f"{line.name} combines {len(line.rows)} seeds ({names}), the seed being a random effect"

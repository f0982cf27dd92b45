"""Where a board's lines stand: retention, rank and Pareto front."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from . import ranking
from .board import Row
from .statistics import Estimate, Floats
from .summary import Column, Front, Line, overall


def standings(columns: tuple[Column, ...], lines: tuple[Line, ...]) -> tuple[tuple[Line, ...], int | None]:
    """The lines with retention, rank and front, and the index of the column that ranks go by.

    Ranks go by the OOD figure, by the ID one where there is none, or by the only task. A line that
    lacks the figure has no rank; seeds that a line combines have none of their own.
    """
    chosen = [index for index in (overall(columns, "id"), overall(columns, "ood")) if index is not None]
    if not chosen and len(columns) == 1:
        chosen = [0]
    if not chosen:
        return lines, None
    size = _clusters(columns, chosen)
    placed = [line for line in lines if line.group is None and _complete(line, chosen)]
    if not placed:
        return lines, chosen[-1]
    values, sums = _prepared(placed, columns, chosen, size)
    draws = ranking.bootstrap(values, sums)
    means = np.stack([one.mean(axis=0) for one in values])
    ranks = dict(zip(placed, ranking.ranks(means[:, -1], draws[:, :, -1]), strict=True))
    both = len(chosen) == 2
    fronts = (
        dict(zip(placed, zip(ranking.front(means), ranking.front_shares(draws), strict=True), strict=True))
        if both
        else {}
    )
    made = [
        replace(
            line,
            rank=ranks.get(line),
            front=Front(bool(fronts[line][0]), float(fronts[line][1])) if line in fronts else None,
            retention=_retention(line, columns, chosen) if both and _complete(line, chosen) else None,
        )
        for line in lines
    ]
    return tuple(made), chosen[-1]


def _clusters(columns: Sequence[Column], chosen: Sequence[int]) -> int:
    """One more than the largest cluster code of the chosen columns."""
    codes = [task.clusters.max(initial=0) for index in chosen for task in columns[index].tasks]
    return int(max(codes)) + 1


def _complete(line: Line, chosen: Sequence[int]) -> bool:
    entries = [line.entries[index] for index in chosen]
    return all(entry is not None and entry.accuracy is not None for entry in entries)


def _prepared(
    lines: Sequence[Line], columns: Sequence[Column], chosen: Sequence[int], size: int
) -> tuple[list[Floats], np.ndarray]:
    """Each line's seeds' means, shape (S, M), and all contributions, shape (sum of S * M, size)."""
    rows = [row for line in lines for row in line.rows]
    sums = np.zeros((len(rows) * len(chosen), size), dtype=np.float32)
    means = np.empty((len(rows), len(chosen)))
    for at, row in enumerate(rows):
        for number, index in enumerate(chosen):
            column = columns[index]
            scores = _scores(row, column)
            ranking.dense_sums(
                scores, [task.clusters for task in column.tasks], sums[at * len(chosen) + number]
            )
            means[at, number] = np.mean([np.nanmean(task) for task in scores])
    edges = np.cumsum([len(line.rows) for line in lines])[:-1]
    return list(np.split(means, edges)), sums


def _retention(line: Line, columns: Sequence[Column], chosen: Sequence[int]) -> Estimate | None:
    own, ood = (columns[index] for index in chosen)
    return ranking.retention(
        [_scores(row, own) for row in line.rows],
        [_scores(row, ood) for row in line.rows],
        [task.clusters for task in own.tasks],
        [task.clusters for task in ood.tasks],
    )


def _scores(row: Row, column: Column) -> list[Floats]:
    return [row.cells[task.name].scores for task in column.tasks]

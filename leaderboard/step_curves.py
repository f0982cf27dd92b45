"""Summary -> accuracies over the steps of training runs: of each run, and of the seeds of a configuration."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .board import Row
from .provenance import Training
from .statistics import Estimate
from .summary import Line, Summary

_AT_STEP = re.compile(r"\s(?:@\s?|at step\s)\d+(?!\w)")
"""What a checkpoint's row has in its name beside its run's."""


class Point(NamedTuple):
    """An accuracy after so many steps; all in [0, 1] but the step.

    Attributes:
        step: steps of training.
        value: the accuracy; of several seeds their mean.
        low: where its 95 % interval begins; of several seeds the lowest one's accuracy.
        high: where the interval ends, or the highest seed's accuracy.
    """

    step: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """A run, or the runs of several seeds.

    Attributes:
        name: what its rows are called, their steps aside.
        seeds: how many runs; above 1 the points are means with the seeds' range.
        points: "ood" and "id", those that have two points or more, by step.
    """

    name: str
    seeds: int
    points: dict[str, list[Point]]


def curves(summary: Summary) -> list[Curve]:
    """All curves of two steps or more: those of several seeds first, then those of runs not all in them.

    A line is a point of several seeds if it combines runs of one length. Only lines of the same runs make a
    curve, so that no step is one of other seeds than the next.
    """
    combined: dict[frozenset[Path], list[tuple[float, Line]]] = {}
    single: dict[Path, list[tuple[float, Line]]] = {}
    for line in summary.lines:
        runs = [_run(row) for row in line.rows]
        steps = {run.ledger.get("steps") for run in runs if run is not None}
        step = next(iter(steps)) if len(steps) == 1 and None not in runs else None
        folders = frozenset(run.folder for run in runs if run is not None)
        if step is None or len(folders) < len(runs):
            continue
        if line.is_group:
            combined.setdefault(folders, []).append((step, line))
        else:
            (folder,) = folders
            single.setdefault(folder, []).append((step, line))
    combined = {runs: points for runs, points in combined.items() if len(_steps(points)) > 1}
    shown = {(run, step) for runs, points in combined.items() for run in runs for step in _steps(points)}
    found = [_curve(summary, points, points[-1][1].name, len(runs)) for runs, points in combined.items()]
    for run, points in single.items():
        if len(_steps(points)) > 1 and any((run, step) not in shown for step in _steps(points)):
            found.append(_curve(summary, points, run.name, 1))
    return found


def _run(row: Row) -> Training | None:
    return next((part.training for part in row.provenance if part.training is not None), None)


def _steps(points: Sequence[tuple[float, Line]]) -> set[float]:
    return {step for step, _ in points}


def _curve(summary: Summary, points: Sequence[tuple[float, Line]], otherwise: str, seeds: int) -> Curve:
    """The curve of some lines; `otherwise` is its name where they differ in more than their steps."""
    names = {_AT_STEP.sub("", line.name) for _, line in points}
    found = {}
    for distribution in ("ood", "id"):
        index = summary.overall(distribution)
        known = [
            point
            for step, line in sorted(points, key=lambda one: one[0])
            if index is not None and (point := _point(summary, step, line, index)) is not None
        ]
        if len(known) > 1:
            found[distribution] = known
    return Curve(names.pop() if len(names) == 1 else otherwise, seeds, found)


def _point(summary: Summary, step: float, line: Line, index: int) -> Point | None:
    mean = _accuracy(line, index)
    if mean is None:
        return None
    if not line.is_group:
        low, high = (mean.value if end is None else end for end in (mean.low, mean.high))
        return Point(step, mean.value, low, high)
    own = [_accuracy(one, index) for one in summary.lines if not one.is_group and one.rows[0] in line.rows]
    values = [one.value for one in own if one is not None]
    return Point(step, mean.value, min([mean.value, *values]), max([mean.value, *values]))


def _accuracy(line: Line, index: int) -> Estimate | None:
    entry = line.entries[index]
    return None if entry is None else entry.accuracy

"""Which lines of a board are tested against which, and the correction over each family of tests."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import median

import numpy as np

from . import power, seeds
from .board import Row
from .paired import holm, paired_test
from .statistics import Floats, difference, spread
from .summary import Column, Comparison, Detectable, Entry, Line, overall

SOME = 50
"""Of more rows than so many, the first stand for all where a median over rows is taken."""


def comparisons(columns: tuple[Column, ...], lines: Sequence[Line], pairs: int) -> tuple[Comparison, ...]:
    """Tests every line against the baseline, and every pair of lines where they are at most `pairs`.

    Seeds that a line combines are not tested on their own.
    """
    tested = [line for line in lines if line.group is None]
    headline = {overall(columns, "id"), overall(columns, "ood")}
    found: list[Comparison] = []
    baseline = next((line for line in lines if line.is_baseline), None)
    if baseline is not None:
        others = [(line, baseline) for line in tested if not line.is_baseline and not _shared(line, baseline)]
        found += _families("baseline", others, columns, headline)
    if len(tested) <= pairs:
        found += _families("pairs", list(combinations(tested, 2)), columns, headline)
    return tuple(found)


def _shared(line: Line, other: Line) -> bool:
    return bool(set(line.rows) & set(other.rows))


def _families(
    name: str, pairs: Sequence[tuple[Line, Line]], columns: Sequence[Column], headline: set[int | None]
) -> Iterator[Comparison]:
    families: dict[str, list[Comparison]] = {name: [], f"{name} by task": []}
    for line, other in pairs:
        for index, column in enumerate(columns):
            if index not in headline and column.is_mean:
                continue
            family = name if index in headline else f"{name} by task"
            one = compare(line, other, index, column, family)
            if one is not None:
                families[family].append(one)
    for made in families.values():
        yield from _corrected(made)


def _corrected(family: Sequence[Comparison]) -> Iterator[Comparison]:
    adjusted = iter(holm([one.p for one in family if one.p is not None]))
    for one in family:
        yield one if one.p is None else replace(one, p_holm=next(adjusted))


def compare(line: Line, other: Line, index: int, column: Column, family: str) -> Comparison | None:
    """Tests two lines in one column; None where one of them lacks it."""
    sides = [_scores(line.rows, column), _scores(other.rows, column)]
    clusters = [task.clusters for task in column.tasks]
    ours, theirs = sides
    if ours is None or theirs is None:
        return None
    names = (family, line.name, other.name, index)
    if len(ours) == len(theirs) == 1:
        entry = line.entries[index]
        known = entry.difference if other.is_baseline and entry is not None else None
        found = known or difference(ours[0], theirs[0], clusters)
        test = paired_test(ours[0], theirs[0], clusters)
        if found is None or test is None:
            return None
        return Comparison(*names, found, test.p, None, test.method, test.better, test.worse)
    combined = seeds.difference_of_seeds(ours, theirs, clusters)
    if combined is None:
        return None
    return Comparison(*names, combined[0], combined[1], None, "t, seeds as a random effect", None, None)


def _scores(rows: Sequence[Row], column: Column) -> list[list[Floats]] | None:
    if any(task.name not in row.cells for row in rows for task in column.tasks):
        return None
    return [[row.cells[task.name].scores for task in column.tasks] for row in rows]


def detectable(columns: Sequence[Column], lines: Sequence[Line]) -> tuple[Detectable | None, ...]:
    """The minimum detectable difference of each column."""
    return tuple(_detectable(index, column, lines) for index, column in enumerate(columns))


def _detectable(index: int, column: Column, lines: Sequence[Line]) -> Detectable | None:
    baseline = next((line for line in lines if line.is_baseline and not line.is_group), None)
    singles = [line for line in lines if not line.is_group and line.entries[index] is not None]
    if baseline is not None and baseline in singles:
        others = [line for line in singles if line is not baseline][:SOME]
        errors = [_standard_error(line, baseline, column) for line in others]
        known = [error for error in errors if error is not None]
        if known:
            return _possible(power.detectable(median(known)), True)
    values = [entry.accuracy.value for entry in _entries(singles, index) if entry.accuracy is not None]
    if not values or median(values) in (0.0, 1.0):
        return None
    # Of a mean over tasks: as many unrelated clusters as all of its tasks have.
    size = len(np.unique(np.concatenate([task.clusters for task in column.tasks])))
    return _possible(power.unpaired(median(values), size), False)


def _possible(difference: float, paired: bool) -> Detectable | None:
    """None where the items are so few that no difference between 0 and 1 is large enough."""
    return Detectable(difference, paired) if difference <= 1 else None


def _entries(lines: Sequence[Line], index: int) -> Iterator[Entry]:
    yield from (entry for line in lines if (entry := line.entries[index]) is not None)


def _standard_error(line: Line, baseline: Line, column: Column) -> float | None:
    ours, theirs = _scores(line.rows, column), _scores(baseline.rows, column)
    if ours is None or theirs is None:
        return None
    pairs = [one - other for one, other in zip(ours[0], theirs[0], strict=True)]
    found = spread(pairs, [task.clusters for task in column.tasks])
    return None if found is None or found.variance is None else found.variance**0.5

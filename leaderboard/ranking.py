"""Rank, Pareto front and retention, with what another draw of items and seeds would do to them.

One bootstrap serves both: clusters are drawn with replacement, the same ones for all rows and both
means (rows are paired), and a row of several seeds draws among these too. Efron and Tibshirani, An
Introduction to the Bootstrap (1993); ranks: Goldstein and Spiegelhalter, JRSS A 159 (1996).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .statistics import Codes, Estimate, Floats, interval, sandwich

DRAWS = 1000
AT_ONCE = 50


class Rank(NamedTuple):
    """A place among the rows.

    Attributes:
        rank: 1 is best; rows of one accuracy share the better place.
        low: 2.5th percentile of the rank over the bootstrap's draws.
        high: 97.5th percentile.
        of: how many rows were ranked.
    """

    rank: int
    low: int
    high: int
    of: int


def dense_sums(values: Sequence[Floats], clusters: Sequence[Codes], into: NDArray[np.float32]) -> None:
    """What each of the board's clusters contributes to the error of the mean over tasks.

    Like `statistics.contributions`, but with a place for every cluster.

    Args:
        values: per task, shape (n_t,), NaN for items to leave out; each has one that stays.
        clusters: per task, shape (n_t,).
        into: shape (G,), zeros, which become the contributions.
    """
    for task, codes in zip(values, clusters, strict=True):
        kept = ~np.isnan(task)
        errors = (task[kept] - task[kept].mean()) / (len(values) * int(kept.sum()))
        into += np.bincount(codes[kept], weights=errors, minlength=len(into)).astype(np.float32)


def bootstrap(
    values: Sequence[Floats], sums: NDArray[np.float32], seed: int = 0, draws: int = DRAWS
) -> Floats:
    """The rows' means in each draw, shape (draws, rows, M).

    To first order a draw that takes cluster g w_g times changes a mean by sum_g w_g * contribution_g.
    Of S seeds S - 1 are drawn: their mean then varies as much as the seeds' variance says it does.

    Args:
        values: per row, shape (S, M): M means of each of its seeds, in [0, 1].
        sums: shape (sum of S * M, G), what each cluster contributes to each of them.
        seed: of the draws.
        draws: how many.
    """
    rng = np.random.default_rng(seed)
    size, means = sums.shape[1], values[0].shape[1]
    found = np.empty((draws, len(values), means))
    for start in range(0, draws, AT_ONCE):
        count = min(AT_ONCE, draws - start)
        weights = np.stack(
            [np.bincount(rng.integers(0, size, size), minlength=size) for _ in range(count)]
        ).astype(np.float32)
        moved = (weights @ sums.T).astype(np.float64)
        at = 0
        for number, one in enumerate(values):
            seeds = len(one)
            of_row = one + moved[:, at : at + seeds * means].reshape(count, seeds, means)
            at += seeds * means
            if seeds > 1:
                chosen = rng.integers(0, seeds, (count, seeds - 1))
                of_row = of_row[np.arange(count)[:, None], chosen]
            found[start : start + count, number] = of_row.mean(axis=1)
    return found


def ranks(values: Floats, draws: Floats) -> list[Rank]:
    """The rows' ranks by one mean, with 95 % intervals.

    Args:
        values: shape (rows,), higher is better.
        draws: shape (draws, rows).
    """
    from scipy.stats import rankdata

    # float32 sums: rows that tie must not be told apart by their rounding.
    places = rankdata(-np.round(draws, 7), method="min", axis=1)
    low, high = np.percentile(places, [2.5, 97.5], axis=0, method="nearest")
    own = rankdata(-np.round(values, 12), method="min")
    return [
        Rank(int(rank), int(min(rank, first)), int(max(rank, last)), len(values))
        for rank, first, last in zip(own, low, high, strict=True)
    ]


def front(points: Floats) -> NDArray[np.bool_]:
    """Which points are on the Pareto front: none is as good in both coordinates and better in one.

    Args:
        points: shape (rows, 2), higher is better.
    """
    order = np.lexsort((-points[:, 1], -points[:, 0]))
    first, second = points[order, 0], points[order, 1]
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(second)[:-1]])
    kept = second > best_before
    for i in range(1, len(kept)):  # a point's twin is as good as itself
        if first[i] == first[i - 1] and second[i] == second[i - 1]:
            kept[i] = kept[i - 1]
    found = np.empty(len(points), dtype=bool)
    found[order] = kept
    return found


def front_shares(draws: Floats) -> Floats:
    """In what share of the draws each row is on the front; draws: shape (draws, rows, 2)."""
    return np.mean([front(np.round(points, 7)) for points in draws], axis=0)


def retention(
    ood: tuple[float, Floats, int, int], own: tuple[float, Floats, int, int], between: Floats | None = None
) -> Estimate | None:
    """The OOD mean as a share of the ID mean, with an interval by the delta method.

    Args:
        ood: mean, contributions of the board's clusters (shape (G,)), items, tasks.
        own: the same for the ID mean.
        between: shape (S,), each seed's own ratio, where the row has several; their variance is added.

    Returns:
        None where the ID mean is 0.
    """
    if own[0] <= 0:
        return None
    ratio, n = ood[0] / own[0], ood[2] + own[2]
    sums = (np.asarray(ood[1], dtype=np.float64) - ratio * np.asarray(own[1], dtype=np.float64)) / own[0]
    variance = sandwich(sums[sums != 0], n, ood[3] + own[3])
    degrees: float = max(1, int((sums != 0).sum()) - 1)
    if between is not None and len(between) > 1:
        extra = float(between.var(ddof=1)) / len(between)
        total = (variance or 0.0) + extra
        if total > 0:
            degrees = total**2 / ((variance or 0.0) ** 2 / degrees + extra**2 / (len(between) - 1))
            variance = total
    found = interval(ratio, variance, degrees, n)
    return found if found.low is None else found._replace(low=max(0.0, found.low))


def seed_ratios(values: Floats) -> Floats | None:
    """Each seed's OOD mean over its ID mean; values: shape (S, 2), ID first. None where one is over 0."""
    ratios = values[:, 1] / np.where(values[:, 0] > 0, values[:, 0], math.nan)
    return None if np.isnan(ratios).any() else ratios

"""Rank, Pareto front and retention, with their variation over other draws of items and seeds.

One bootstrap serves all: clusters are drawn with replacement, the same ones for all rows and both means (rows
are paired), and a row of several seeds also draws among these. Efron and Tibshirani, An Introduction to the
Bootstrap (1993); ranks: Goldstein and Spiegelhalter, JRSS A 159 (1996).

Ranks come from scipy's `rankdata`. Its `bootstrap` draws single observations, without clusters that several
rows and tasks share, so the draws are ours.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcsft_harness.leaderboard.stats.intervals import (
    CONFIDENCE,
    Codes,
    Estimate,
    Floats,
    by_cluster,
    sandwich,
    scored_by_all,
    scored_items,
)

DRAWS = 1000
AT_ONCE = 50


class Rank(NamedTuple):
    """A rank among the rows."""

    rank: int  # 1 is best; rows with equal accuracy share the better rank
    low: int  # 2.5th percentile of the rank over the bootstrap's draws
    high: int  # 97.5th percentile
    of: int  # the number of ranked rows


def dense_sums(values: Sequence[Floats], clusters: Sequence[Codes], into: NDArray[np.float32]) -> None:
    """Each cluster's contribution to the error of the mean over tasks, for all of the board's clusters.

    Like `statistics.contributions`, but with an entry for every cluster.

    Args:
        values: per task, shape (n_t,), NaN for items to leave out; each has at least one value.
        clusters: per task, shape (n_t,).
        into: shape (G,), zeros, filled with the contributions.
    """
    for task, codes in zip(values, clusters, strict=True):
        kept = ~np.isnan(task)
        errors = (task[kept] - task[kept].mean()) / (len(values) * int(kept.sum()))
        into += np.bincount(codes[kept], weights=errors, minlength=len(into)).astype(np.float32)


def bootstrap(
    values: Sequence[Floats], sums: NDArray[np.float32], seed: int = 0, draws: int = DRAWS
) -> Floats:
    """The rows' means in each draw, shape (draws, rows, M).

    To first order a draw that takes cluster g w_g times changes a mean by sum_g w_g * contribution_g. Of S
    seeds S - 1 are drawn: then the variance of their mean matches the seeds' variance.

    Args:
        values: per row, shape (S, M): M means of each of its seeds, in [0, 1].
        sums: shape (sum of S * M, G), each cluster's contribution to each of them.
        seed: of the draws.
        draws: the number of draws.
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
    """Ranks with 95 % intervals, of values of shape (rows,), higher is better, and draws of (draws, rows)."""
    from scipy.stats import rankdata

    # float32 sums: rounding must not break ties between rows.
    places = rankdata(-np.round(draws, 7), method="min", axis=1)
    low, high = np.percentile(places, [2.5, 97.5], axis=0, method="nearest")
    own = rankdata(-np.round(values, 12), method="min")
    return [
        Rank(int(rank), int(min(rank, first)), int(max(rank, last)), len(values))
        for rank, first, last in zip(own, low, high, strict=True)
    ]


def front(points: Floats) -> NDArray[np.bool_]:
    """Which points, shape (rows, 2), are on the Pareto front: none is as good in both and better in one."""
    order = np.lexsort((-points[:, 1], -points[:, 0]))
    first, second = points[order, 0], points[order, 1]
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(second)[:-1]])
    kept = second > best_before
    for i in range(1, len(kept)):  # a duplicate of a point is as good as the point
        if first[i] == first[i - 1] and second[i] == second[i - 1]:
            kept[i] = kept[i - 1]
    found = np.empty(len(points), dtype=bool)
    found[order] = kept
    return found


def front_shares(draws: Floats) -> Floats:
    """The share of draws in which each row is on the front; draws: shape (draws, rows, 2)."""
    shares: Floats = np.mean([front(np.round(points, 7)) for points in draws], axis=0)
    return shares


def retention(
    own: Sequence[Sequence[Floats]],
    ood: Sequence[Sequence[Floats]],
    own_clusters: Sequence[Codes],
    ood_clusters: Sequence[Codes],
) -> Estimate | None:
    """The OOD mean as a share of the ID mean, with an interval by the delta method.

    Args:
        own: seed -> ID task -> shape (n,), in [0, 1], NaN for items to leave out, of all seeds. The
            variance between several seeds is added to that of the items.
        ood: seed -> OOD task -> shape (n,).
        own_clusters: per ID task, shape (n,).
        ood_clusters: per OOD task, shape (n,).

    Returns:
        None if a task has no item that was scored with every seed, or the ID mean is 0. The value for several
        seeds is the ratio of the means that the board shows, not the mean of their ratios.
    """
    sides = [
        [_errors(tasks, clusters) for tasks in scored_by_all(seeds)]
        for seeds, clusters in ((own, own_clusters), (ood, ood_clusters))
    ]
    below, above = ([one for one in side if one is not None] for side in sides)
    whole = float(np.mean([one[0] for one in below])) if below else 0.0
    if len(below) < len(own) or len(above) < len(ood) or whole <= 0:
        return None
    ratio = float(np.mean([one[0] for one in above])) / whole
    codes = np.concatenate([above[0][2], below[0][2]])
    # To first order a seed moves the ratio by what it moves OOD - ratio * ID, over the ID mean.
    moved = np.array([ratio + (a[0] - ratio * b[0]) / whole for a, b in zip(above, below, strict=True)])
    errors = [np.concatenate([a[1], -ratio * b[1]]) / whole for a, b in zip(above, below, strict=True)]
    sums, n = by_cluster(np.mean(errors, axis=0), codes), len(codes)
    found = spread_of_ratio(moved, sums, n, len(own_clusters) + len(ood_clusters))
    return found if found.low is None else found._replace(low=max(0.0, found.low))


def spread_of_ratio(ratios: Floats, sums: Floats, n: int, tasks: int) -> Estimate:
    """The mean of the seeds' `ratios` with its interval: items and seeds each with their own t quantile."""
    from scipy.special import stdtrit

    items, value = sandwich(sums, n, tasks), float(ratios.mean())
    if items is None:
        return Estimate(value, None, None, n)
    level = (1 + CONFIDENCE) / 2
    margin = float(stdtrit(len(sums) - 1, level)) ** 2 * items
    if len(ratios) > 1:
        margin += float(stdtrit(len(ratios) - 1, level)) ** 2 * float(ratios.var(ddof=1)) / len(ratios)
    return Estimate(value, value - math.sqrt(margin), value + math.sqrt(margin), n)


def _errors(values: Sequence[Floats], clusters: Sequence[Codes]) -> tuple[float, Floats, Codes] | None:
    """The mean over tasks, each item's contribution to its error, and the items' clusters."""
    known = scored_items(values, clusters)
    if known is None:
        return None
    tasks, codes = known
    errors = [(task - task.mean()) / (len(tasks) * len(task)) for task in tasks]
    return float(np.mean([task.mean() for task in tasks])), np.concatenate(errors), codes

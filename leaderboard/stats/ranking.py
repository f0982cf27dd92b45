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

from dcsft_harness.leaderboard.stats import (
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

    Like `statistics.contributions`, but with an entry for every cluster. Values, NaN for items to leave out,
    and clusters are per task, shape (n_t,); each task has at least one value. The contributions go `into` an
    array of zeros, shape (G,).
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
    seeds S - 1 are drawn: then the variance of their mean matches the seeds' variance. `values` has per row M
    means of each of its S seeds, shape (S, M), in [0, 1]; `sums`, shape (sum of S * M, G), has each cluster's
    contribution to each of them.
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

    Scores are seed -> task -> shape (n,), in [0, 1], NaN for items to leave out, of all seeds; clusters are
    per task, shape (n,). The variance of several seeds' ratios is added to that of the items. None if a task
    has no item that was scored with every seed, or a seed's ID mean is 0.
    """
    made = []
    for tasks, others in zip(scored_by_all(own), scored_by_all(ood), strict=True):
        sides = [_errors(tasks, own_clusters), _errors(others, ood_clusters)]
        below, above = sides
        if below is None or above is None or below[0] <= 0:
            return None
        ratio = above[0] / below[0]
        errors = np.concatenate([above[1], -ratio * below[1]]) / below[0]
        made.append((ratio, by_cluster(errors, np.concatenate([above[2], below[2]])), len(errors)))
    ratios, n = np.array([one[0] for one in made]), made[0][2]
    sums = np.mean([one[1] for one in made], axis=0)
    found = spread_of_ratio(ratios, sums, n, len(own_clusters) + len(ood_clusters))
    return found if found.low is None else found._replace(low=max(0.0, found.low))


def spread_of_ratio(ratios: Floats, sums: Floats, n: int, tasks: int) -> Estimate:
    """The seeds' mean ratio with its interval: items and seeds each with their own t quantile."""
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

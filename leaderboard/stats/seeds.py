"""Several seeds of one configuration as one row: the seed is a random effect beside the items.

Seed s answers item i with y_si = mean + a_s + b_i + e_si. The mean over S seeds is off by the items'
part, the cluster-robust variance of the seeds' average, and by the seeds' part, the variance of the
seeds' means over S. Both hold the variance of e over S, so it is taken off once (two-way
clustering; Cameron, Gelbach and Miller, "Robust inference with multiway clustering", Journal of
Business & Economic Statistics 29, 2011): off the seeds' part, or, with two seeds, where that part
is too uncertain to take anything off it, off the items'. Each part is scaled by its own t quantile,
with clusters - 1 and S - 1 degrees of freedom:

    half width ^ 2 = t(G - 1) ^ 2 * items + t(S - 1) ^ 2 * seeds

Satterthwaite's degrees of freedom would promise too much with few seeds: in simulations such
intervals held the truth 86 % of the time with two seeds and 92 % with three; these hold it 94 to
97 % of the time with three or more, and at least 95 % with two.

No library has this: statsmodels' mixed models assume normal errors, and its two-way clustered covariance
needs more than a few seeds. Quantiles and roots are scipy's.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dcsft_harness.leaderboard.stats.intervals import (
    CONFIDENCE,
    Codes,
    Estimate,
    Floats,
    contributions,
    sandwich,
)


class Part(NamedTuple):
    """One side of a comparison: the seeds' mean, and what is needed to say how sure it is.

    Attributes:
        value: mean over seeds of the mean over tasks.
        sums: shape (G,), what each cluster contributes to the error of the seeds' average.
        between: the seeds' part of the variance; its degrees are seeds - 1.
        shared: what is taken off the items' part.
        seeds: how many.
        n: items, over all tasks.
        deviation: standard deviation of the seeds' values; None for one seed.
    """

    value: float
    sums: Floats
    between: float
    shared: float
    seeds: int
    n: int
    deviation: float | None


def part(seeds: Sequence[Sequence[Floats]], clusters: Sequence[Codes]) -> Part | None:
    """Combines the seeds of a configuration.

    Args:
        seeds: seed -> task -> shape (n,), in [0, 1]. An item that one of them could not be scored
            on is left out of all, so that the seeds' means are over the same items.
        clusters: per task, shape (n,).

    Returns:
        None where a task has no item that was scored with every seed.
    """
    found = [contributions(tasks, clusters) for tasks in scored_by_all(seeds)]
    known = [one for one in found if one is not None]
    if len(known) < len(found) or not known:
        return None
    values = np.array([value for value, _, _ in known])
    sums, n = np.stack([one for _, one, _ in known]), known[0][2]
    average, size = sums.mean(axis=0), len(known)
    if size == 1:
        return Part(float(values[0]), average, 0.0, 0.0, 1, n, None)
    raw = float(values.var(ddof=1)) / size
    noise = sum(sandwich(one, n, len(clusters)) or 0.0 for one in sums - average) / (size * (size - 1))
    between, shared = (raw, noise) if size == 2 else (max(0.0, raw - noise), 0.0)
    return Part(float(values.mean()), average, between, shared, size, n, float(values.std(ddof=1)))


def scored_by_all(seeds: Sequence[Sequence[Floats]]) -> list[list[Floats]]:
    """The same scores, NaN in all seeds where one of them has none; seed -> task -> shape (n,)."""
    gone = [np.isnan(np.stack(task)).any(axis=0) for task in zip(*seeds, strict=True)]
    return [[np.where(mask, np.nan, task) for task, mask in zip(s, gone, strict=True)] for s in seeds]


def mean_of_seeds(seeds: Sequence[Sequence[Floats]], clusters: Sequence[Codes]) -> Estimate | None:
    """The mean over seeds with an interval for another seed and another draw of items."""
    one = part(seeds, clusters)
    return None if one is None else _Error(one.sums, [one], one.n, len(clusters)).estimate(one.value)


def difference_of_seeds(
    seeds: Sequence[Sequence[Floats]], others: Sequence[Sequence[Floats]], clusters: Sequence[Codes]
) -> tuple[Estimate, float | None] | None:
    """The difference of two configurations, paired by item, and its two-sided p-value.

    The p-value is the level at which the interval would just reach 0.

    Args:
        seeds: seed -> task -> shape (n,); one seed is a row on its own, of which nothing is known
            beyond that seed.
        others: the other configuration's, over the same items.
        clusters: per task, shape (n,).

    Returns:
        The estimate and the p-value (None where there is no interval); None where a task has no
        item that was scored with every seed of both.
    """
    kept = scored_by_all([*seeds, *others])
    ours, theirs = (part(side, clusters) for side in (kept[: len(seeds)], kept[len(seeds) :]))
    if ours is None or theirs is None:
        return None
    value = ours.value - theirs.value
    error = _Error(ours.sums - theirs.sums, [ours, theirs], ours.n, len(clusters))
    return error.estimate(value), error.p(value)


class _Error:
    """The parts of a value's variance, each with its degrees of freedom."""

    def __init__(self, sums: Floats, sides: Sequence[Part], n: int, tasks: int) -> None:
        items = (sandwich(sums, n, tasks) or 0.0) - sum(side.shared for side in sides)
        parts = [(len(sums) - 1, max(0.0, items)), *((side.seeds - 1, side.between) for side in sides)]
        self._parts, self._n = [part for part in parts if part[1] > 0.0], n

    def margin(self, level: float) -> float:
        """Half the width of the interval that misses with probability `level`."""
        from scipy.special import stdtrit

        return math.sqrt(sum(float(stdtrit(free, 1 - level / 2)) ** 2 * size for free, size in self._parts))

    def estimate(self, value: float) -> Estimate:
        if not self._parts:
            return Estimate(value, None, None, self._n)
        margin = self.margin(1 - CONFIDENCE)
        return Estimate(value, value - margin, value + margin, self._n)

    def p(self, value: float) -> float | None:
        from scipy.optimize import brentq

        if not self._parts:
            return None
        least = 1e-12
        if self.margin(least) <= abs(value):
            return least
        return float(brentq(lambda level: self.margin(level) - abs(value), least, 1.0, xtol=1e-14))

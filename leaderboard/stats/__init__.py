"""Statistics of a board: intervals, paired tests, seeds, ranks."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Intervals: of accuracies, of means over tasks and seeds, and of paired differences.
#
# All intervals are two-sided at 95 %. NaN marks an item that could not be scored: it is left out, never
# counted as wrong.
#
# Wilson's interval comes from statsmodels, quantiles from scipy. The cluster-robust mean over tasks is ours:
# statsmodels has it as a regression on task indicators, which fits a model for every cell of a board of
# hundreds of rows. The sums here give the same values (the tests compare them) in one pass over the items.
#
# Sources: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
# (1927); Cameron and Miller, "A practitioner's guide to cluster-robust inference", Journal of Human
# Resources 50 (2015), for the sandwich variance, its finite-sample factor and the t quantile;
# Miller, "Adding error bars to evals", arXiv 2411.00640 (2024), for pairing and clustering in
# evaluations of language models.


# Intervals of an accuracy, of a mean over tasks, and of paired differences of either.

CONFIDENCE = 0.95
Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


class Estimate(NamedTuple):
    """A mean with its interval."""

    value: float  # the mean, in the unit of the values
    low: float | None  # lower end of the interval; None if the data cannot determine the uncertainty
    high: float | None  # upper end; None together with low
    n: int  # the number of items, over all tasks


def accuracy(scores: Floats, clusters: Codes) -> Estimate | None:
    """The mean score of one task, with an interval inside [0, 1].

    Wilson's interval for right-or-wrong scores of independent items. It would be too narrow for items that
    share clusters and is undefined for partial credit: there the interval is that of `mean_over_tasks`, cut
    to [0, 1]. If clustered items are all right or all wrong, that one would have no width: then the clusters
    are Wilson's observations. Both arrays have the shape (n,): scores in [0, 1], NaN if a response could not
    be scored, and clusters, equal codes for items that are not independent. None if no item was scored.
    """
    scored = ~np.isnan(scores)
    values, codes = scores[scored], clusters[scored]
    if len(values) == 0:
        return None
    groups = int(np.count_nonzero(np.bincount(codes - codes.min())))
    mean = float(values.mean())
    if np.all((values == 0.0) | (values == 1.0)) and (groups == len(values) or mean in (0.0, 1.0)):
        low, high = wilson(round(mean * groups), groups)
        return Estimate(mean, low, high, len(values))
    return within_unit(mean_over_tasks([values], [codes]))


@lru_cache(maxsize=4096)
def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a proportion, `right` (0 to n) of `n` (at least 1)."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(right, n, alpha=1 - CONFIDENCE, method="wilson")
    # The ends at 0 and n successes are exact; rounding would leave 1e-19.
    return (0.0 if right == 0 else float(low)), (1.0 if right == n else float(high))


def difference(
    scores: Sequence[Floats], baseline: Sequence[Floats], clusters: Sequence[Codes]
) -> Estimate | None:
    """The difference of two rows' unweighted means over tasks, paired by item.

    Only items scored in both rows count, so both means are over the same items. All arguments are per task,
    shape (n,), over the same items in the same order. The estimate is in [-1, 1] although its interval may
    reach further; None if a task has no item scored in both.
    """
    return mean_over_tasks([ours - theirs for ours, theirs in zip(scores, baseline, strict=True)], clusters)


def mean_over_tasks(values: Sequence[Floats], clusters: Sequence[Codes]) -> Estimate | None:
    """The unweighted mean over tasks of each task's mean, with a cluster-robust t interval.

    With T tasks of n_t items, the estimate is sum_t mean_t / T. Item i of task t contributes
    (x_i - mean_t) / (T n_t) to its error; contributions are summed over each of the G clusters,
    whichever tasks its items are in, and

        variance = G / (G - 1) * (N - 1) / (N - T) * sum over clusters of (sum of contributions)^2

    with N = sum of n_t and G - 1 degrees of freedom. This is least squares on T task indicators
    with cluster-robust errors (Cameron and Miller 2015, sections II.B and II.C), as statsmodels'
    `OLS(...).fit(cov_type="cluster", use_t=True)` gives it; for one task it is the clustered
    standard error of a mean, and with every item on its own the ordinary one. Tasks that share
    clusters need no assumption of independence; those that share none are taken as independent.

    Args:
        values: per task, shape (n_t,), NaN for items to leave out.
        clusters: per task, shape (n_t,); equal codes are one cluster, across tasks too.

    Returns:
        The estimate; None if a task has no value. The interval is None with fewer than two clusters, without
        a task of two items, and if no cluster deviates from its task's mean (two rows that agree on every
        item are not thereby shown to be equal).
    """
    found = spread(values, clusters)
    if found is None:
        return None
    return interval(found.value, found.variance, found.degrees, found.n)


class Spread(NamedTuple):
    """A mean over tasks and its uncertainty."""

    value: float  # the mean, in the unit of the values
    variance: float | None  # of that mean; None if the data cannot determine it
    degrees: float  # degrees of freedom of the variance: clusters - 1
    n: int  # the number of items, over all tasks


def spread(values: Sequence[Floats], clusters: Sequence[Codes]) -> Spread | None:
    """The mean over tasks with its variance; see `mean_over_tasks` for both."""
    found = contributions(values, clusters)
    if found is None:
        return None
    value, sums, n = found
    return Spread(value, sandwich(sums, n, len(values)), len(sums) - 1, n)


def contributions(values: Sequence[Floats], clusters: Sequence[Codes]) -> tuple[float, Floats, int] | None:
    """The mean over tasks, the contributions of each cluster to its error, and the number of items.

    The contributions are (x_i - mean_t) / (T n_t) summed by cluster, in the order of the clusters'
    codes; they sum to 0. None if a task has no value.
    """
    known = scored_items(values, clusters)
    if known is None:
        return None
    tasks, codes = known
    means = [float(task.mean()) for task in tasks]
    errors = np.concatenate(
        [(task - mean) / (len(tasks) * len(task)) for task, mean in zip(tasks, means, strict=True)]
    )
    return math.fsum(means) / len(tasks), by_cluster(errors, codes), len(codes)


def scored_items(values: Sequence[Floats], clusters: Sequence[Codes]) -> tuple[list[Floats], Codes] | None:
    """Each task's values without NaN, and the clusters of all of these in turn; None if a task has none."""
    kept = [~np.isnan(task) for task in values]
    if not values or not all(mask.any() for mask in kept):
        return None
    tasks = [task[mask] for task, mask in zip(values, kept, strict=True)]
    return tasks, np.concatenate([task[mask] for task, mask in zip(clusters, kept, strict=True)])


def by_cluster(values: Floats, codes: Codes) -> Floats:
    """The sum of the values of each cluster, shape (G,), in the order of the codes."""
    low = int(codes.min())
    if (
        int(codes.max()) - low > 8 * len(codes) + 64
    ):  # sparse codes: counting them would need too large a table
        codes, low = np.unique(codes, return_inverse=True)[1], 0
    present = np.bincount(codes - low) > 0
    return np.asarray(np.bincount(codes - low, weights=values)[present], dtype=np.float64)


def sandwich(sums: Floats, n: int, tasks: int) -> float | None:
    """The variance by the formula of `mean_over_tasks`, from each cluster's contribution, shape (G,).

    Of `n` items in a mean over `tasks` tasks; None if the data cannot determine it.
    """
    groups = len(sums)
    # Rounding leaves residues of 1e-17 if every item has the same value.
    if groups < 2 or n == tasks or np.abs(sums).max() < 1e-12 / n:
        return None
    return groups / (groups - 1) * (n - 1) / (n - tasks) * float(sums @ sums)


def interval(value: float, variance: float | None, degrees: float, n: int) -> Estimate:
    """The t interval of a value; without ends if its variance is unknown."""
    if variance is None:
        return Estimate(value, None, None, n)
    from scipy.special import stdtrit  # equal to scipy.stats.t.ppf, a hundred times faster on scalars

    margin = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Estimate(value, value - margin, value + margin, n)


def within_unit(estimate: Estimate | None) -> Estimate | None:
    """The same estimate with its interval cut to [0, 1], for means of scores."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return estimate
    return estimate._replace(low=max(0.0, estimate.low), high=min(1.0, estimate.high))


# Several seeds of one configuration as one row: the seed is a random effect, like the items.
#
# Seed s answers item i with y_si = mean + a_s + b_i + e_si. The mean over S seeds is off by the items' part,
# the cluster-robust variance of the seeds' average, and by the seeds' part, the variance of the seeds' means
# over S. Both hold the variance of e over S, so it is taken off once (two-way clustering; Cameron, Gelbach
# and Miller, "Robust inference with multiway clustering", Journal of Business & Economic Statistics 29,
# 2011): off the seeds' part, or, with two seeds, where that part is too uncertain to take anything off it,
# off the items'. Each part is scaled by its own t quantile, with clusters - 1 and S - 1 degrees of freedom:
#
#     half width ^ 2 = t(G - 1) ^ 2 * items + t(S - 1) ^ 2 * seeds
#
# Satterthwaite's degrees of freedom would promise too much with few seeds: in simulations such intervals held
# the truth 86 % of the time with two seeds and 92 % with three; these hold it 94 to 97 % of the time with
# three or more, and at least 95 % with two.
#
# No library has this: statsmodels' mixed models assume normal errors, and its two-way clustered covariance
# needs more than a few seeds. Quantiles and roots are scipy's.


class Part(NamedTuple):
    """One side of a comparison: the seeds' mean, and the parts of its variance."""

    value: float  # mean over seeds of the mean over tasks
    sums: Floats  # shape (G,), each cluster's contribution to the error of the seeds' average
    between: float  # the seeds' part of the variance; its degrees are seeds - 1
    shared: float  # the amount to subtract from the items' part
    seeds: int  # the number of seeds
    n: int  # items, over all tasks
    deviation: float | None  # standard deviation of the seeds' values; None for one seed


def part(seeds: Sequence[Sequence[Floats]], clusters: Sequence[Codes]) -> Part | None:
    """Combines the seeds of a configuration.

    `seeds` is seed -> task -> shape (n,), in [0, 1], or differences in [-1, 1]; clusters are per task, shape
    (n,). An item that could not be scored for one seed is left out of all, so that the seeds' means are over
    the same items. None if a task has no item that was scored with every seed.
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
    """The same scores, NaN in all seeds if one of them has none; seed -> task -> shape (n,)."""
    gone = [np.isnan(np.stack(task)).any(axis=0) for task in zip(*seeds, strict=True)]
    return [[np.where(mask, np.nan, task) for task, mask in zip(s, gone, strict=True)] for s in seeds]


def mean_of_seeds(seeds: Sequence[Sequence[Floats]], clusters: Sequence[Codes]) -> Estimate | None:
    """The mean over seeds, with an interval for another seed and another draw of items."""
    one = part(seeds, clusters)
    return None if one is None else _Error(one.sums, [one], one.n, len(clusters)).estimate(one.value)


def difference_of_seeds(
    seeds: Sequence[Sequence[Floats]],
    others: Sequence[Sequence[Floats]],
    clusters: Sequence[Codes],
    paired: bool = False,
    null: float = 0.0,
) -> tuple[Estimate, float | None] | None:
    """The difference of two configurations, paired by item, and its two-sided p-value.

    The p-value is the level at which the interval would just reach `null`.

    Args:
        seeds: seed -> task -> shape (n,); a single seed is a row by itself, and nothing is known about
            other seeds.
        others: the other configuration's, over the same items.
        clusters: per task, shape (n,).
        paired: whether seed s of both shares its random parts (cold start, labels, order of the data), as
            seeds of the same number do. Then the seeds' differences are one sample: the interval is narrower
            if the shared parts matter, and still valid if they do not.
        null: the difference that p tests against; the negative of a margin tests non-inferiority.

    Returns:
        The estimate and the p-value (None if there is no interval); None if a task has no item that was
        scored with every seed of both.

    Raises:
        ValueError: paired, with unequal numbers of seeds.
    """
    kept = scored_by_all([*seeds, *others])
    if paired:
        pairs = zip(kept[: len(seeds)], kept[len(seeds) :], strict=True)
        both = part([[a - b for a, b in zip(*pair, strict=True)] for pair in pairs], clusters)
        if both is None:
            return None
        single = _Error(both.sums, [both], both.n, len(clusters))
        return single.estimate(both.value), single.p(both.value - null)
    ours, theirs = (part(side, clusters) for side in (kept[: len(seeds)], kept[len(seeds) :]))
    if ours is None or theirs is None:
        return None
    value = ours.value - theirs.value
    error = _Error(ours.sums - theirs.sums, [ours, theirs], ours.n, len(clusters))
    return error.estimate(value), error.p(value - null)


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

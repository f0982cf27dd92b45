"""Intervals: of an accuracy, of a mean over tasks, and of paired differences of either.

All intervals are two-sided at 95 %. A value of NaN is an item that could not be scored: it is
left out, never taken for wrong.

Wilson's interval is statsmodels', quantiles are scipy's. Ours is the cluster-robust mean over tasks:
statsmodels has it as a regression on task indicators, which fits a model for every cell of a board of
hundreds of rows. The sums here are the same figures (the tests compare them) in one pass over the items.

Sources: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
(1927); Cameron and Miller, "A practitioner's guide to cluster-robust inference", Journal of Human
Resources 50 (2015), for the sandwich variance, its finite-sample factor and the t quantile;
Miller, "Adding error bars to evals", arXiv 2411.00640 (2024), for pairing and clustering in
evaluations of language models.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


class Estimate(NamedTuple):
    """A mean with its interval.

    Attributes:
        value: the mean, in the unit of the values.
        low: lower end of the interval; None where the data cannot tell how sure the mean is.
        high: upper end; None together with low.
        n: how many items it rests on, over all tasks.
    """

    value: float
    low: float | None
    high: float | None
    n: int


def accuracy(scores: Floats, clusters: Codes) -> Estimate | None:
    """The mean score of one task, with an interval inside [0, 1].

    Wilson's interval for right-or-wrong scores of independent items. It would be too narrow for
    items that share clusters and has no meaning for partial credit: there the interval is
    `mean_over_tasks`'s, cut to [0, 1]. Where clustered items are all right or all wrong, that
    one would have no width: then the clusters are Wilson's observations.

    Args:
        scores: shape (n,), in [0, 1], NaN where a response could not be scored.
        clusters: shape (n,), equal codes for items that are not independent.

    Returns:
        The estimate, or None where no item was scored.
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
    """Wilson's interval of a proportion, `right` of `n`.

    Args:
        right: successes, 0 to n.
        n: trials, at least 1.
    """
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(right, n, alpha=1 - CONFIDENCE, method="wilson")
    # The ends at 0 and n successes are exact; rounding would leave 1e-19.
    return (0.0 if right == 0 else float(low)), (1.0 if right == n else float(high))


def difference(
    scores: Sequence[Floats], baseline: Sequence[Floats], clusters: Sequence[Codes]
) -> Estimate | None:
    """The difference of two rows' unweighted means over tasks, paired by item.

    Only items scored in both rows count, so that both means are over the same items.

    Args:
        scores: per task, shape (n,).
        baseline: per task, the other row's scores of the same items in the same order.
        clusters: per task, shape (n,).

    Returns:
        The estimate, in [-1, 1] but with an interval that may reach beyond; None where a task has
        no item scored in both.
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
        The estimate; None where a task has no value. The interval is None with fewer than two
        clusters, with no task of two items, and where no cluster deviates from its task's mean (two
        rows that agree on every item are not thereby shown to be equal).
    """
    found = spread(values, clusters)
    if found is None:
        return None
    return interval(found.value, found.variance, found.degrees, found.n)


class Spread(NamedTuple):
    """A mean over tasks and how far it may be off.

    Attributes:
        value: the mean, in the unit of the values.
        variance: of that mean; None where the data cannot tell.
        degrees: degrees of freedom of the variance: clusters - 1.
        n: how many items it rests on, over all tasks.
    """

    value: float
    variance: float | None
    degrees: float
    n: int


def spread(values: Sequence[Floats], clusters: Sequence[Codes]) -> Spread | None:
    """The mean over tasks with its variance; see `mean_over_tasks` for both."""
    found = contributions(values, clusters)
    if found is None:
        return None
    value, sums, n = found
    return Spread(value, sandwich(sums, n, len(values)), len(sums) - 1, n)


def contributions(values: Sequence[Floats], clusters: Sequence[Codes]) -> tuple[float, Floats, int] | None:
    """The mean over tasks, what each cluster contributes to its error, and the number of items.

    The contributions are (x_i - mean_t) / (T n_t) summed by cluster, in the order of the clusters'
    codes; they sum to 0. None where a task has no value.
    """
    kept = [~np.isnan(task) for task in values]
    if not values or not all(mask.any() for mask in kept):
        return None
    tasks = [task[mask] for task, mask in zip(values, kept, strict=True)]
    means = [float(task.mean()) for task in tasks]
    errors = np.concatenate(
        [(task - mean) / (len(tasks) * len(task)) for task, mean in zip(tasks, means, strict=True)]
    )
    codes = np.concatenate([task[mask] for task, mask in zip(clusters, kept, strict=True)])
    return math.fsum(means) / len(tasks), by_cluster(errors, codes), len(codes)


def by_cluster(values: Floats, codes: Codes) -> Floats:
    """The sum of the values of each cluster, shape (G,), in the order of the codes."""
    low = int(codes.min())
    if (
        int(codes.max()) - low > 8 * len(codes) + 64
    ):  # sparse codes: counting them would take a table too large
        codes, low = np.unique(codes, return_inverse=True)[1], 0
    present = np.bincount(codes - low) > 0
    return np.asarray(np.bincount(codes - low, weights=values)[present], dtype=np.float64)


def sandwich(sums: Floats, n: int, tasks: int) -> float | None:
    """The variance by the formula of `mean_over_tasks`; None where the data have none to give.

    Args:
        sums: shape (G,), each cluster's contribution.
        n: items.
        tasks: tasks that the mean is over.
    """
    groups = len(sums)
    # Rounding leaves residues of 1e-17 where every item has the same value.
    if groups < 2 or n == tasks or np.abs(sums).max() < 1e-12 / n:
        return None
    return groups / (groups - 1) * (n - 1) / (n - tasks) * float(sums @ sums)


def interval(value: float, variance: float | None, degrees: float, n: int) -> Estimate:
    """The t interval of a value; without ends where its variance is not known."""
    if variance is None:
        return Estimate(value, None, None, n)
    margin = _t_quantile(degrees) * math.sqrt(variance)
    return Estimate(value, value - margin, value + margin, n)


def _t_quantile(degrees: float) -> float:
    from scipy.special import stdtrit  # as scipy.stats.t.ppf, a hundred times faster on scalars

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def within_unit(estimate: Estimate | None) -> Estimate | None:
    """The same estimate with its interval cut to [0, 1], for means of scores."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return estimate
    return estimate._replace(low=max(0.0, estimate.low), high=min(1.0, estimate.high))

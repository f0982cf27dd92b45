"""Statistics of a board: intervals, paired tests, seeds, ranks."""

import math
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
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


def mean_accuracy(scores: Sequence[Floats], clusters: Sequence[Codes]) -> Estimate | None:
    """The unweighted mean score over tasks, with an interval inside [0, 1]; of one task its `accuracy`.

    Both are per task, shape (n,). None if a task has no scored item.
    """
    if len(scores) == 1:
        return accuracy(scores[0], clusters[0])
    return within_unit(mean_over_tasks(scores, clusters))


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
    found = contributions(values, clusters)
    if found is None:
        return None
    value, sums, n = found
    variance = sandwich(sums, n, len(values))
    if variance is None:
        return Estimate(value, None, None, n)
    from scipy.special import stdtrit  # equal to scipy.stats.t.ppf, a hundred times faster on scalars

    margin = float(stdtrit(len(sums) - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Estimate(value, value - margin, value + margin, n)


def contributions(values: Sequence[Floats], clusters: Sequence[Codes]) -> tuple[float, Floats, int] | None:
    """The mean over tasks, the contributions of each cluster to its error, and the number of items.

    The contributions are (x_i - mean_t) / (T n_t) summed by cluster, in the order of the clusters'
    codes; they sum to 0. None if a task has no value.
    """
    found = _errors(values, clusters)
    if found is None:
        return None
    means, errors, codes = found
    return math.fsum(means) / len(means), by_cluster(errors, codes), len(codes)


def _errors(values: Sequence[Floats], clusters: Sequence[Codes]) -> tuple[list[float], Floats, Codes] | None:
    """Each task's mean, each item's contribution to the error of the mean over tasks, and its cluster."""
    known = scored_items(values, clusters)
    if known is None:
        return None
    tasks, codes = known
    means = [float(task.mean()) for task in tasks]
    errors = [(task - mean) / (len(tasks) * len(task)) for task, mean in zip(tasks, means, strict=True)]
    return means, np.concatenate(errors), codes


def scored_items(values: Sequence[Floats], clusters: Sequence[Codes]) -> tuple[list[Floats], Codes] | None:
    """Each task's values without NaN, and the clusters of all of these in turn; None if a task has none."""
    kept = [~np.isnan(task) for task in values]
    if not values or not all(mask.any() for mask in kept):
        return None
    if all(mask.all() for mask in kept):
        return list(values), np.concatenate(clusters)
    tasks = [task[mask] for task, mask in zip(values, kept, strict=True)]
    return tasks, np.concatenate([task[mask] for task, mask in zip(clusters, kept, strict=True)])


def by_cluster(values: Floats, codes: Codes) -> Floats:
    """The sum of the values of each cluster, shape (G,), in the order of the codes."""
    low = int(codes.min())
    if int(codes.max()) - low > 8 * len(codes) + 64:  # sparse: counting needs too large a table
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
# off the items'. Two seeds of equal means have no part to hold it, so nothing is taken off: up to 7 % of two
# seeds' differences would have no interval. Each part is scaled by its own t quantile, with clusters - 1 and
# S - 1 degrees of freedom:
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
    if size == 2:
        # Rounding leaves residues of 1e-17 if both seeds have the same mean.
        between, shared = (raw, noise) if np.ptp(values) > 1e-12 else (0.0, 0.0)
    else:
        between, shared = max(0.0, raw - noise), 0.0
    return Part(float(values.mean()), average, between, shared, size, n, float(values.std(ddof=1)))


def scored_by_all(seeds: Sequence[Sequence[Floats]]) -> list[list[Floats]]:
    """The same scores, NaN in all seeds if one of them has none; seed -> task -> shape (n,)."""
    gone = [np.isnan(np.stack(task)).any(axis=0) for task in zip(*seeds, strict=True)]
    if not any(mask.any() for mask in gone):
        return [list(s) for s in seeds]
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


# Tests of paired differences, and the correction for multiple tests.
#
# All tests are two-sided. Under the null hypothesis either row could have given either response, so the sign
# of each cluster's difference is a coin toss (Fisher's randomization test for pairs). For independent right-
# or-wrong items that is the exact McNemar test; with clusters, each one is tossed as a whole.
#
# McNemar's test and the power of a z test come from statsmodels; Holm's correction is ours for speed, and so
# are the sign flips of clusters: scipy's `permutation_test` counts 2^14 patterns in 0.2 s, which takes 0.5 ms
# here, and has no exact p-value for hundreds of clusters, which is a convolution here.
#
# Sources: McNemar, Psychometrika 12 (1947); Fisher, The Design of Experiments (1935), section 21;
# Holm, Scandinavian Journal of Statistics 6 (1979); Phipson and Smyth, "Permutation p-values should
# never be zero", Statistical Applications in Genetics and Molecular Biology 9 (2010); Hoeffding, Journal of
# the American Statistical Association 58 (1963).


PATTERNS = 20_000
"""Random sign patterns if counting all of them is infeasible."""
PARTS = 10
"""Factor on the number of draws if few of them exceed the observed sum."""
SHARED = 24
"""Up to this number of distinct sizes, all tests share the same draws; 3 MB each."""
ENUMERATED = 16
"""Up to this number of differing clusters, all 2^k sign patterns are counted."""
LATTICE = 1 << 18
"""Up to this number of steps of a common unit, the null distribution is computed exactly."""


class Tested(NamedTuple):
    """The result of a test."""

    p: float  # the p-value, in (0, 1]
    method: str  # "McNemar, exact", "sign flips, exact", "sign flips, N draws" or "sign flips, bound"
    better: int  # items on which the first row scores higher
    worse: int  # items on which it scores lower


def paired_test(
    scores: Sequence[Floats], others: Sequence[Floats], clusters: Sequence[Codes]
) -> Tested | None:
    """Tests whether two rows differ in their unweighted mean over tasks.

    All arguments are per task, shape (n,), over the same items in the same order: scores in [0, 1], NaN if a
    response could not be scored, and clusters, equal codes for items that are not independent. The
    test is over the items scored in both; None if a task has none.
    """
    pairs = [ours - theirs for ours, theirs in zip(scores, others, strict=True)]
    known = scored_items(pairs, clusters)
    if known is None:
        return None
    values, codes = known
    better, worse = (int(sum((sign * v > 0).sum() for v in values)) for sign in (1, -1))
    alone = np.bincount(codes - codes.min()).max() == 1  # each item is its own cluster
    if len(values) == 1 and np.isin(values[0], (-1.0, 0.0, 1.0)).all() and alone:
        return Tested(mcnemar(better, worse), "McNemar, exact", better, worse)
    weighted = np.concatenate([task / (len(values) * len(task)) for task in values])
    p, method = sign_flips(by_cluster(weighted, codes))
    return Tested(p, method, better, worse)


@lru_cache(maxsize=4096)
def mcnemar(better: int, worse: int) -> float:
    """McNemar's exact test: the two-sided binomial test on the items that are right in one row only."""
    from statsmodels.stats.contingency_tables import mcnemar as exact

    return float(exact([[0, better], [worse, 0]], exact=True).pvalue)


def sign_flips(sums: Floats) -> tuple[float, str]:
    """The probability that random signs give a sum as far from 0 as the observed one.

    Exact if the clusters' sums are multiples of a common unit (right-or-wrong items of tasks of one size:
    their distribution is a convolution of binomial ones) or are few; else from seeded draws, where the
    observed pattern counts as one of them, so that p is never 0. If Hoeffding's bound, 2 exp(-sum^2 / (2 *
    sum of squares)), is below the resolution of the draws, p is the bound. `sums` are the clusters'
    differences, shape (G,). Returns the p-value and the method's name.
    """
    sizes = np.abs(sums[np.abs(sums) > 1e-12 * max(1e-300, float(np.abs(sums).max(initial=0.0)))])
    observed = abs(float(sums.sum()))
    if len(sizes) == 0:
        return 1.0, "sign flips, exact"
    threshold = observed - 1e-9 * float(sizes.sum())
    steps = _on_lattice(sizes)
    if steps is not None:
        return _lattice(steps, observed / float(sizes.sum())), "sign flips, exact"
    if len(sizes) <= ENUMERATED:
        patterns = np.zeros(1)
        for size in sizes:
            patterns = np.concatenate([patterns - size, patterns + size])
        return float((np.abs(patterns) >= threshold).mean()), "sign flips, exact"
    bound = _bound(sizes, threshold)
    if bound < 1 / (PARTS * PATTERNS + 1):
        return bound, "sign flips, bound"
    return _drawn(sizes, threshold)


def _on_lattice(sizes: Floats) -> NDArray[np.int64] | None:
    """The sizes in steps of a common unit; None if there is none or it is too small."""
    least = float(sizes.min())
    for part in range(1, 25):
        steps = sizes / least * part
        whole = np.rint(steps)
        if whole.sum() > LATTICE:
            return None
        if np.abs(steps - whole).max() < 1e-7:
            return np.asarray(whole, dtype=np.int64)
    return None


def _lattice(steps: NDArray[np.int64], share: float) -> float:
    """P(|sum of random signs| >= the observed), by convolving the distributions of equal steps."""
    from scipy.signal import oaconvolve
    from scipy.special import bdtr
    from scipy.stats import binom

    total = int(steps.sum())
    observed = round(share * total)
    kinds, counts = np.unique(steps, return_counts=True)
    if len(kinds) == 1:
        m, least = int(counts[0]), (int(counts[0]) - observed // int(kinds[0])) // 2
        return min(1.0, 2 * float(bdtr(least, m, 0.5)))
    # Flipped steps: from 0 to total, and the sum is total - 2 * flipped.
    chances = np.ones(1)
    for kind, count in zip(kinds, counts, strict=True):
        one = np.zeros(int(kind * count) + 1)
        one[:: int(kind)] = binom.pmf(np.arange(int(count) + 1), int(count), 0.5)
        short = min(len(chances), len(one)) < 512
        chances = np.convolve(chances, one) if short else np.maximum(oaconvolve(chances, one), 0.0)
    flipped = np.arange(total + 1)
    return min(1.0, math.fsum(chances[np.abs(total - 2 * flipped) >= observed].tolist()))


def _bound(sizes: Floats, threshold: float) -> float:
    """An upper bound of P(|sum of random signs| >= threshold), by Hoeffding's inequality; never 0."""
    return max(2 * math.exp(-(max(0.0, threshold) ** 2) / (2 * float(sizes @ sizes))), sys.float_info.min)


def _drawn(sizes: Floats, threshold: float) -> tuple[float, str]:
    drawn = _Drawn(sizes)
    exceeding: list[int] = []
    while len(exceeding) < PARTS and (not exceeding or exceeding[0] < 100):  # few cannot resolve small p
        exceeding.append(int((np.abs(drawn.sums(len(exceeding))) >= threshold).sum()))
    draws = len(exceeding) * PATTERNS
    return (sum(exceeding) + 1) / (draws + 1), f"sign flips, {draws} draws"


class _Drawn:
    """Sums of some sizes under random signs, `PATTERNS` at a time.

    Sums of equal sizes are binomial, so the cost of a draw is the number of distinct sizes.
    """

    def __init__(self, sizes: Floats) -> None:
        from scipy.stats import binom

        kinds, counts = np.unique(np.round(sizes, 15), return_counts=True)
        often = np.argsort(counts, kind="stable")[-SHARED:]
        often = often[counts[often] > 1]
        self.single = np.repeat(np.delete(kinds, often), np.delete(counts, often))
        self.binomial: list[tuple[Floats, Floats]] = []
        for kind, count in zip(kinds[often].tolist(), counts[often].tolist(), strict=True):
            reach = math.ceil(5 * math.sqrt(count))  # 10 standard deviations
            heads = np.arange(max(0, count // 2 - reach), min(count, count // 2 + reach) + 1)
            self.binomial.append((kind * (2.0 * heads - count), np.cumsum(binom.pmf(heads, count, 0.5)[:-1])))

    def sums(self, part: int) -> Floats:
        """The sums of one part of the draws, shape (PATTERNS,)."""
        found = np.zeros(PATTERNS)
        for number, (values, chances) in enumerate(self.binomial):
            ordered, places = _uniform(part, number)
            ends = np.searchsorted(ordered, chances)
            found[places] += np.repeat(values, np.diff(ends, prepend=0, append=PATTERNS))
        if len(self.single):
            rng = np.random.default_rng((0, part))
            at_once = max(1, (1 << 22) // len(self.single))
            for start in range(0, PATTERNS, at_once):
                some = found[start : start + at_once]
                bits = rng.integers(0, 2, (len(some), len(self.single)), dtype=np.int8)
                some += (2.0 * bits - 1.0) @ self.single
        return found


@lru_cache(maxsize=SHARED * PARTS)
def _uniform(part: int, number: int) -> tuple[Floats, NDArray[np.int64]]:
    """Sorted numbers from 0 to 1, shape (PATTERNS,), and the draw of each.

    All tests of a board share them, so they are sorted once for hundreds of tests.
    """
    values = np.random.default_rng((0, part, number)).random(PATTERNS)
    places = np.argsort(values)
    return values[places], places


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of one family, in the given order.

    The k-th smallest of m times m - k + 1, never below an earlier one, at most 1: at most a share alpha of
    families has one below alpha by chance. What statsmodels' `multipletests` gives, which collects garbage in
    each call: 0.05 to 0.3 s where torch is loaded, and a board corrects many families.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(one) for one in adjusted]


ALPHA = 0.05
POWER = 0.8


@cache
def _standard_errors() -> float:
    """The true difference, in standard errors, that a two-sided z test at `ALPHA` detects with `POWER`.

    The root of statsmodels' power function: its own `solve_power` stops 3e-8 from it.
    """
    from scipy.optimize import brentq
    from statsmodels.stats.power import normal_power

    return float(brentq(lambda shift: normal_power(shift, 1, ALPHA) - POWER, 0.1, 10.0, xtol=1e-14))


def detectable(standard_error: float) -> float:
    """The difference that 4 of 5 repetitions of a test at 5 % detect, in the unit of its standard error."""
    return _standard_errors() * standard_error


def independent(clusters: Sequence[Codes]) -> float:
    """How many items of their own have a mean as uncertain as the unweighted one over tasks.

    The items of a cluster are all right or all wrong together; `clusters` are per task, shape (n_t,). For one
    task with clusters of one size, it is their number. For several tasks it follows from the smallest ones,
    which weigh as much as the others.
    """
    shares = [np.full(len(codes), 1 / (len(clusters) * len(codes))) for codes in clusters]
    weights = by_cluster(np.concatenate(shares), np.concatenate(clusters))
    return 1 / float(weights @ weights)


def unpaired(accuracy: float, n: float) -> float:
    """The detectable difference of two rows of this accuracy, in [0, 1], whose right answers are unrelated.

    Pairing helps to the extent that two rows get the same items right; this is the value without it, for `n`
    items, or clusters where items share them; see `independent`.
    """
    return detectable(math.sqrt(2 * accuracy * (1 - accuracy) / n))


# Rank, Pareto front and retention, with their variation over other draws of items and seeds.
#
# One bootstrap serves all: clusters are drawn with replacement, the same ones for all rows and both means
# (rows are paired), and a row of several seeds also draws among these. Efron and Tibshirani, An Introduction
# to the Bootstrap (1993); ranks: Goldstein and Spiegelhalter, JRSS A 159 (1996).
#
# Ranks come from scipy's `rankdata`. Its `bootstrap` draws single observations, without clusters that several
# rows and tasks share, so the draws are ours.


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

    Like `by_cluster`, but with an entry for every cluster. Values, NaN for items to leave out, and clusters
    are per task, shape (n_t,); each task has at least one value. The contributions go `into` an array of
    zeros, shape (G,).
    """
    for task, codes in zip(values, clusters, strict=True):
        kept = ~np.isnan(task)
        errors = (task[kept] - task[kept].mean()) / (len(values) * int(kept.sum()))
        into += np.bincount(codes[kept], weights=errors, minlength=len(into)).astype(np.float32)


def bootstrap(values: Sequence[Floats], sums: NDArray[np.float32], draws: int = DRAWS) -> Floats:
    """The rows' means in each draw, shape (draws, rows, M).

    To first order a draw that takes cluster g w_g times changes a mean by sum_g w_g * contribution_g. Of S
    seeds S - 1 are drawn: then the variance of their mean matches the seeds' variance. `values` has per row M
    means of each of its S seeds, shape (S, M), in [0, 1]; `sums`, shape (sum of S * M, G), has each cluster's
    contribution to each of them.
    """
    rng = np.random.default_rng(0)
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
    per task, shape (n,). The variance between several seeds is added to that of the items; the interval is
    None where neither varies. None if a task has no item that was scored with every seed, or the ID mean is
    0. The value for several seeds is the ratio of the means that the board shows, not the mean of their
    ratios.
    """
    sides = [
        [_errors(tasks, clusters) for tasks in scored_by_all(seeds)]
        for seeds, clusters in ((own, own_clusters), (ood, ood_clusters))
    ]
    below, above = ([one for one in side if one is not None] for side in sides)
    if len(below) < len(own) or len(above) < len(ood) or not below:
        return None
    ids, oods = ([float(np.mean(means)) for means, _, _ in side] for side in (below, above))
    whole = float(np.mean(ids))
    if whole <= 0:
        return None
    ratio = float(np.mean(oods)) / whole
    codes = np.concatenate([above[0][2], below[0][2]])
    # To first order a seed moves the ratio by what it moves OOD - ratio * ID, over the ID mean.
    moved = np.array([ratio + (a - ratio * b) / whole for a, b in zip(oods, ids, strict=True)])
    errors = [np.concatenate([a[1], -ratio * b[1]]) / whole for a, b in zip(above, below, strict=True)]
    sums, n, value = by_cluster(np.mean(errors, axis=0), codes), len(codes), float(moved.mean())
    # Rounding leaves residues of 1e-16 if every seed has the same value.
    between = float(moved.var(ddof=1)) / len(moved) if np.ptp(moved) > 1e-12 else 0.0
    seeds = Part(value, sums, between, 0.0, len(moved), n, None)
    found = _Error(sums, [seeds], n, len(own_clusters) + len(ood_clusters)).estimate(value)
    return found if found.low is None else found._replace(low=max(0.0, found.low))

"""Tests of paired differences, and the correction for multiple tests.

All tests are two-sided. Under the null hypothesis either row could have given either response, so the sign of
each cluster's difference is a coin toss (Fisher's randomization test for pairs). For independent
right-or-wrong items that is the exact McNemar test; with clusters, each one is tossed as a whole.

McNemar's test, Holm's correction and the power of a z test come from statsmodels. The sign flips of clusters
are ours: scipy's `permutation_test` counts 2^14 patterns in 0.2 s, which takes 0.5 ms here, and has no exact
p-value for hundreds of clusters, which is a convolution here.

Sources: McNemar, Psychometrika 12 (1947); Fisher, The Design of Experiments (1935), section 21;
Holm, Scandinavian Journal of Statistics 6 (1979); Phipson and Smyth, "Permutation p-values should
never be zero", Statistical Applications in Genetics and Molecular Biology 9 (2010); Hoeffding, Journal of
the American Statistical Association 58 (1963).
"""

import math
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcsft_harness.leaderboard.stats import Codes, Floats, by_cluster, scored_items

DRAWS = 20_000
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
    scores: Sequence[Floats], others: Sequence[Floats], clusters: Sequence[Codes], seed: int = 0
) -> Tested | None:
    """Tests whether two rows differ in their unweighted mean over tasks.

    All arguments are per task, shape (n,), over the same items in the same order: scores in [0, 1], NaN if a
    response could not be scored, and clusters, equal codes for items that are not independent. `seed` is that
    of the random sign patterns, if they are needed. The test is over the items scored in both; None if a task
    has none.
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
    p, method = sign_flips(by_cluster(weighted, codes), seed)
    return Tested(p, method, better, worse)


@lru_cache(maxsize=4096)
def mcnemar(better: int, worse: int) -> float:
    """McNemar's exact test: the two-sided binomial test on the items that are right in one row only."""
    from statsmodels.stats.contingency_tables import mcnemar as exact

    return float(exact([[0, better], [worse, 0]], exact=True).pvalue)


def sign_flips(sums: Floats, seed: int = 0) -> tuple[float, str]:
    """The probability that random signs give a sum as far from 0 as the observed one.

    Exact if the clusters' sums are multiples of a common unit (right-or-wrong items of tasks of one size:
    their distribution is a convolution of binomial ones) or are few; else from seeded draws, where the
    observed pattern counts as one of them, so that p is never 0. If Hoeffding's bound, 2 exp(-sum^2 / (2 *
    sum of squares)), is below the resolution of the draws, p is the bound. `sums` are the clusters'
    differences, shape (G,), and `seed` is that of the draws. Returns the p-value and the method's name.
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
        return float((np.abs(_all_patterns(sizes)) >= threshold).mean()), "sign flips, exact"
    bound = _bound(sizes, threshold)
    if bound < 1 / (PARTS * DRAWS + 1):
        return bound, "sign flips, bound"
    return _drawn(sizes, threshold, seed)


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
        chances = _convolve(chances, one)
    flipped = np.arange(total + 1)
    return min(1.0, math.fsum(chances[np.abs(total - 2 * flipped) >= observed].tolist()))


def _convolve(one: Floats, other: Floats) -> Floats:
    from scipy.signal import oaconvolve

    if min(len(one), len(other)) < 512:
        return np.convolve(one, other)
    products: NDArray[np.float64] = np.maximum(oaconvolve(one, other), 0.0)
    return products


def _all_patterns(sizes: Floats) -> Floats:
    """The sums of all 2^k sign patterns, shape (2^k,)."""
    found = np.zeros(1)
    for size in sizes:
        found = np.concatenate([found - size, found + size])
    return found


def _bound(sizes: Floats, threshold: float) -> float:
    """An upper bound of P(|sum of random signs| >= threshold), by Hoeffding's inequality; never 0."""
    return max(2 * math.exp(-(max(0.0, threshold) ** 2) / (2 * float(sizes @ sizes))), sys.float_info.min)


def _drawn(sizes: Floats, threshold: float, seed: int) -> tuple[float, str]:
    drawn = _Drawn(sizes, seed)
    exceeding, parts = drawn.exceeding(0, threshold), 1
    if exceeding < 100:  # too few to resolve small p-values
        exceeding += sum(drawn.exceeding(part, threshold) for part in range(1, PARTS))
        parts = PARTS
    return (exceeding + 1) / (parts * DRAWS + 1), f"sign flips, {parts * DRAWS} draws"


class _Drawn:
    """Sums of some sizes under random signs, `DRAWS` at a time.

    Sums of equal sizes are binomial, so the cost of a draw is the number of distinct sizes.
    """

    def __init__(self, sizes: Floats, seed: int) -> None:
        from scipy.stats import binom

        kinds, counts = np.unique(np.round(sizes, 15), return_counts=True)
        often = np.argsort(counts, kind="stable")[-SHARED:]
        often = often[counts[often] > 1]
        self.seed, self.single = seed, np.repeat(np.delete(kinds, often), np.delete(counts, often))
        self.binomial: list[tuple[Floats, Floats]] = []
        for kind, count in zip(kinds[often].tolist(), counts[often].tolist(), strict=True):
            reach = math.ceil(5 * math.sqrt(count))  # 10 standard deviations
            heads = np.arange(max(0, count // 2 - reach), min(count, count // 2 + reach) + 1)
            self.binomial.append((kind * (2.0 * heads - count), np.cumsum(binom.pmf(heads, count, 0.5)[:-1])))

    def exceeding(self, part: int, threshold: float) -> int:
        """The number of patterns of one part whose sum is at least the threshold in absolute value."""
        return int((np.abs(self.sums(part)) >= threshold).sum())

    def sums(self, part: int) -> Floats:
        """The sums of one part, shape (DRAWS,)."""
        found = np.zeros(DRAWS)
        for number, (values, chances) in enumerate(self.binomial):
            ordered, places = _uniform(self.seed, part, number)
            ends = np.searchsorted(ordered, chances)
            found[places] += np.repeat(values, np.diff(ends, prepend=0, append=DRAWS))
        if len(self.single):
            rng = np.random.default_rng((self.seed, part))
            at_once = max(1, (1 << 22) // len(self.single))
            for start in range(0, DRAWS, at_once):
                some = found[start : start + at_once]
                bits = rng.integers(0, 2, (len(some), len(self.single)), dtype=np.int8)
                some += (2.0 * bits - 1.0) @ self.single
        return found


@lru_cache(maxsize=SHARED * PARTS)
def _uniform(seed: int, part: int, number: int) -> tuple[Floats, NDArray[np.int64]]:
    """Sorted numbers from 0 to 1, shape (DRAWS,), and the draw of each.

    All tests of a board share them, so they are sorted once for hundreds of tests.
    """
    values = np.random.default_rng((seed, part, number)).random(DRAWS)
    places = np.argsort(values)
    return values[places], places


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of one family, in the given order.

    The k-th smallest of m times m - k + 1, never below an earlier one, at most 1: at most a share alpha of
    families has one below alpha by chance.
    """
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


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


def unpaired(accuracy: float, n: int) -> float:
    """The detectable difference of two rows of this accuracy, in [0, 1], whose right answers are unrelated.

    Pairing helps to the extent that two rows get the same items right; this is the value without it, for `n`
    items, or clusters where items share them.
    """
    return detectable(math.sqrt(2 * accuracy * (1 - accuracy) / n))

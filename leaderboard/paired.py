"""Tests of paired differences, and the correction for having made several of them.

All tests are two-sided. Under the null hypothesis either row could have given either response, so
the sign of each cluster's difference is a coin toss (Fisher's randomisation test for pairs): with
right-or-wrong items on their own that is the exact McNemar test, with clusters each of them is
tossed as one.

Sources: McNemar, Psychometrika 12 (1947); Fisher, The Design of Experiments (1935), section 21;
Holm, Scandinavian Journal of Statistics 6 (1979); Phipson and Smyth, "Permutation p-values should
never be zero", Statistical Applications in Genetics and Molecular Biology 9 (2010).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .statistics import Codes, Floats, by_cluster

DRAWS = 20_000
"""Random sign patterns where counting all of them is out of reach; ten times as many if few exceed."""
ENUMERATED = 16
"""Up to so many differing clusters all 2^k sign patterns are counted."""
LATTICE = 1 << 18
"""Up to so many steps of a common unit the null distribution is computed exactly."""


class Tested(NamedTuple):
    """What a test found.

    Attributes:
        p: the p-value, in (0, 1].
        method: "McNemar, exact", "sign flips, exact" or "sign flips, N draws".
        better: items on which the first row scores higher.
        worse: items on which it scores lower.
    """

    p: float
    method: str
    better: int
    worse: int


def paired_test(
    scores: Sequence[Floats], others: Sequence[Floats], clusters: Sequence[Codes], seed: int = 0
) -> Tested | None:
    """Tests whether two rows differ in their unweighted mean over tasks.

    Args:
        scores: per task, shape (n,), in [0, 1], NaN where a response could not be scored.
        others: per task, the other row's scores of the same items in the same order.
        clusters: per task, shape (n,), equal codes for items that are not independent.
        seed: of the random sign patterns, where they are needed.

    Returns:
        The test over the items scored in both; None where a task has none.
    """
    pairs = [ours - theirs for ours, theirs in zip(scores, others, strict=True)]
    kept = [~np.isnan(pair) for pair in pairs]
    if not pairs or not all(mask.any() for mask in kept):
        return None
    values = [pair[mask] for pair, mask in zip(pairs, kept, strict=True)]
    codes = np.concatenate([task[mask] for task, mask in zip(clusters, kept, strict=True)])
    better, worse = (int(sum((sign * v > 0).sum() for v in values)) for sign in (1, -1))
    if len(values) == 1 and _binary(values[0]) and _alone(codes):
        return Tested(mcnemar(better, worse), "McNemar, exact", better, worse)
    weighted = np.concatenate([task / (len(values) * len(task)) for task in values])
    p, method = sign_flips(by_cluster(weighted, codes), seed)
    return Tested(p, method, better, worse)


def _binary(differences: Floats) -> bool:
    return bool(np.isin(differences, (-1.0, 0.0, 1.0)).all())


def _alone(codes: Codes) -> bool:
    return bool(np.bincount(codes - codes.min()).max() == 1)


def mcnemar(better: int, worse: int) -> float:
    """McNemar's exact test: the two-sided binomial one on the items that differ.

    Args:
        better: items that only the first row has right.
        worse: items that only the second has right.
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5)))


def sign_flips(sums: Floats, seed: int = 0) -> tuple[float, str]:
    """The probability that random signs give a sum as far from 0 as the one observed.

    Exact where the clusters' sums are whole multiples of a common unit (right-or-wrong items of
    tasks of one size: their distribution is a convolution of binomial ones) or are few; else by
    seeded draws, where the observed pattern counts as one of them, so that p is never 0.

    Args:
        sums: shape (G,), each cluster's difference.
        seed: of the draws.

    Returns:
        The p-value and the method's name.
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
    return _drawn(sizes, threshold, seed)


def _on_lattice(sizes: Floats) -> NDArray[np.int64] | None:
    """The sizes in steps of a common unit, None where they have none or it is too fine."""
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
    return np.maximum(oaconvolve(one, other), 0.0)


def _all_patterns(sizes: Floats) -> Floats:
    """The sums of all 2^k sign patterns, shape (2^k,)."""
    found = np.zeros(1)
    for size in sizes:
        found = np.concatenate([found - size, found + size])
    return found


def _drawn(sizes: Floats, threshold: float, seed: int) -> tuple[float, str]:
    rng = np.random.default_rng(seed)
    exceeding, draws = _exceeding(rng, sizes, threshold, DRAWS), DRAWS
    if exceeding < 100:  # too few to tell a small p-value from a smaller one
        exceeding += _exceeding(rng, sizes, threshold, 9 * DRAWS)
        draws *= 10
    return (exceeding + 1) / (draws + 1), f"sign flips, {draws} draws"


def _exceeding(rng: np.random.Generator, sizes: Floats, threshold: float, draws: int) -> int:
    """How many of some random sign patterns give a sum of at least the threshold, either way.

    Sums of equal sizes are binomial, so that a draw costs as much as there are different sizes.
    """
    kinds, counts = np.unique(np.round(sizes, 15), return_counts=True)
    found = np.zeros(draws)
    many = counts > 1
    for kind, count in zip(kinds[many], counts[many], strict=True):
        found += kind * (2.0 * rng.binomial(int(count), 0.5, draws) - count)
    single, at_once = kinds[~many], max(1, (1 << 22) // max(1, int((~many).sum())))
    for start in range(0, draws if len(single) else 0, at_once):
        part = found[start : start + at_once]
        bits = rng.integers(0, 2, (len(part), len(single)), dtype=np.int8)
        part += (2.0 * bits - 1.0) @ single
    return int((np.abs(found) >= threshold).sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: at most alpha of families have one below alpha by chance.

    Args:
        p_values: of one family, in any order.

    Returns:
        The adjusted ones in the same order: the k-th smallest of m times m - k + 1, never below an
        earlier one, at most 1.
    """
    order = np.argsort(p_values, kind="stable")
    ranked = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(ranked)) if len(ranked) else ranked
    return [float(p) for p in adjusted]

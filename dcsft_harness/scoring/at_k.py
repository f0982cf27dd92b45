"""Metrics of K responses per item at every k up to K: avg@k, pass@k, maj@k and consistency@k.

Each is the expectation over the subsets of k of an item's responses, all equally likely:

- avg@k: the mean score. It is the same at every k, but a run with fewer responses varies more.
- pass@k: whether at least one response is right, by the unbiased estimator of Chen et al., "Evaluating large
  language models trained on code", arXiv 2107.03374 (2021): 1 - C(n - c, k) / C(n, k).
- maj@k: the score of the answer with the most votes (Wang et al., "Self-consistency improves chain of thought
  reasoning", arXiv 2203.11171). A response without an answer does not vote, tied answers share the
  score, and a subset without a vote scores 0.
- consistency@k: that answer's votes divided by k.

maj@k and consistency@k are counted exactly: they depend only on how many votes each answer has. Where
exact counting is infeasible, they are means over seeded subsets with standard errors in `Metrics.errors`.
Responses that could not be scored are left out; an item has no value at a k above its scored responses.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import NDArray

from dcsft_harness.records import RIGHT

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NAMES = ("avg", "maj", "pass", "consistency")
"""The metrics; "pass@8" is one of them at k = 8."""
ALWAYS = 16
"""Up to this number of responses, votes are always counted exactly."""
PATTERNS = 2_000
"""Above it, the most frequent of this number of distributions of votes are."""
COUNTED = 128
"""Above this number of responses, none is: binomial coefficients would leave float64's precision."""
SUBSETS = 512
"""Seeded orders of an item's responses, whose first k are subsets of every k."""


@dataclass(frozen=True, eq=False)
class Metrics:
    """Metrics by item and k; each array has the shape (items, K), column k - 1 for k, NaN for no value.

    Attributes:
        values: name of `NAMES` -> values in [0, 1]. Without votes there is no "maj" and no "consistency".
        errors: standard errors of "maj" from seeded subsets; 0 where it was counted.
    """

    values: dict[str, Floats]
    errors: Floats | None = None

    def means(self) -> dict[str, list[float | None]]:
        """Name -> the mean over items at k = 1, ..., K; None where no item has a value."""
        found = {}
        for name, values in self.values.items():
            known = ~np.isnan(values)
            n = known.sum(axis=0)
            sums = np.where(known, values, 0.0).sum(axis=0)
            found[name] = [float(sums[k] / n[k]) if n[k] else None for k in range(values.shape[1])]
        return found

    def error(self, k: int) -> float:
        """The standard error of maj@k's mean over items that comes from seeded subsets."""
        if self.errors is None:
            return 0.0
        known = self.errors[:, k - 1][~np.isnan(self.errors[:, k - 1])]
        return float(np.sqrt(known @ known) / max(len(known), 1))


def metrics(scores: Floats, votes: Ints | None = None, seed: int = 0) -> Metrics:
    """The metrics of some items.

    Args:
        scores: shape (items, K), in [0, 1]; NaN where a response could not be scored, or there is none.
        votes: shape (items, K): equal numbers in [0, K) for equal answers of an item, -1 for no answer; None
            where the task reports no answers.
        seed: of the subsets where votes cannot be counted.
    """
    scored = ~np.isnan(scores)
    n = scored.sum(axis=1)
    right = (np.where(scored, scores, 0.0) >= RIGHT).sum(axis=1)
    width = scores.shape[1]
    means = np.where(scored, scores, 0.0).sum(axis=1) / np.where(n == 0, np.nan, n)
    reached = np.arange(1, width + 1) <= n[:, None]
    values = {
        "avg": np.where(reached, means[:, None], np.nan),
        "pass": np.where(reached, pass_at(n, right, width), np.nan),
    }
    if votes is None:
        return Metrics(values)
    majority, consistency, errors = _majorities(scores, np.where(scored, votes, -2), n, seed)
    for found in (majority, consistency, errors):
        found[~reached] = np.nan
    return Metrics({**values, "maj": majority, "consistency": consistency}, errors)


def coded(items: Ints, votes: Ints) -> Ints:
    """Votes as numbers of their own item: 0, 1, ... in place of numbers that all items share.

    Args:
        items: of each response, a number of its item, from 0.
        votes: of each response, equal numbers for equal answers, -1 for none.
    """
    cast = votes >= 0
    top = int(votes.max(initial=0)) + 1
    keys, places = np.unique(items[cast] * top + votes[cast], return_inverse=True)
    owners = keys // top
    firsts = (
        np.concatenate([[0], np.flatnonzero(np.diff(owners)) + 1]) if len(owners) else np.zeros(0, np.int64)
    )
    ranks = np.arange(len(keys)) - np.repeat(firsts, np.diff([*firsts, len(keys)]))
    found = np.full(len(votes), -1)
    found[cast] = ranks[places.ravel()]
    return found


def pass_at(n: Ints, right: Ints, width: int) -> Floats:
    """pass@k of items for k = 1, ..., width, shape (items, width); NaN above an item's n.

    Args:
        n: scored responses, shape (items,).
        right: those of them that are right, same shape.
        width: the largest k.
    """
    pairs, places, _ = _pairs(n, right)
    return np.array([_pass_row(*pair, width) for pair in pairs]).reshape(-1, width)[places]


def _pairs(n: Ints, right: Ints) -> tuple[list[tuple[int, int]], Ints, list[int]]:
    """The different (n, right), where each item has its own, and how many items have each."""
    top = int(n.max(initial=0)) + 1
    keys, places, items = np.unique(n * top + right, return_inverse=True, return_counts=True)
    return [divmod(key, top) for key in keys.tolist()], places.ravel(), items.tolist()


@lru_cache(maxsize=1 << 14)
def _pass_row(n: int, right: int, width: int) -> tuple[float, ...]:
    # Whole numbers: their quotient is rounded once.
    return tuple(
        (comb(n, k) - comb(n - right, k)) / comb(n, k) if k <= n else np.nan for k in range(1, width + 1)
    )


def of_pool(n: Ints, right: Ints) -> list[dict[str, float]]:
    """Pool metrics if only g of each item's responses were used, for g = 1, 2, ..., over all subsets of g.

    Args:
        n: scored responses, shape (items,); items with fewer than g are left out.
        right: those of them that are right, same shape.

    Returns:
        For each g: pass@g, the expected shares of items that labels would call easy, medium and hard, and the
        number of items that these are over.
    """
    pairs, _, items = _pairs(n, right)
    found = []
    for g in range(1, int(n.max(initial=0)) + 1):
        total, easy, hard = 0, 0.0, 0.0
        for (count, some), weight in zip(pairs, items, strict=True):
            if count >= g:
                total += weight
                easy += weight * (comb(some, g) / comb(count, g))
                hard += weight * (comb(count - some, g) / comb(count, g))
        shares = {"easy": easy / total, "medium": (total - easy - hard) / total, "hard": hard / total}
        found.append({"pass": (total - hard) / total, **shares, "items": total})
    return found


def _majorities(scores: Floats, votes: Ints, n: Ints, seed: int) -> tuple[Floats, Floats, Floats]:
    """maj@k, consistency@k and the errors of the first; votes are -2 where a response does not count."""
    items, width = scores.shape
    counts = np.zeros((items, width), dtype=np.int64)
    sums = np.zeros((items, width))
    rows, columns = np.nonzero(votes >= 0)
    np.add.at(counts, (rows, votes[rows, columns]), 1)
    np.add.at(sums, (rows, votes[rows, columns]), scores[rows, columns])
    order = np.argsort(-counts, axis=1, kind="stable")
    counts = np.take_along_axis(counts, order, axis=1)
    # Equal answers have equal scores but where credit is partial; then an answer has their mean.
    worth = np.take_along_axis(sums, order, axis=1) / np.maximum(counts, 1)
    # As bytes, the highest first: they sort like the rows of numbers, but faster.
    table = np.ascontiguousarray(np.column_stack([n, counts]), dtype=">u4")
    _, firsts, places, often = np.unique(
        table.view(f"S{4 * (width + 1)}").ravel(),
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    patterns = table[firsts].astype(np.int64)
    exact = _exact(patterns, often)
    made = np.argsort(places, kind="stable")
    ends = np.cumsum(often)
    majority, consistency, errors = (np.zeros((items, width)) for _ in range(3))
    for number, pattern in enumerate(patterns.tolist()):
        at = made[ends[number] - often[number] : ends[number]]
        sizes = tuple(count for count in pattern[1:] if count)
        if exact[number]:
            shares, agreeing = win_shares(sizes, pattern[0])
            majority[at, : pattern[0]] = worth[at, : len(sizes)] @ shares
            consistency[at, : pattern[0]] = agreeing
            continue
        for item in at.tolist():
            some = _drawn(sizes, pattern[0], worth[item, : len(sizes)], (seed, item))
            for found, values in zip((majority, consistency, errors), some, strict=True):
                found[item, : pattern[0]] = values
    return majority, consistency, errors


def _exact(patterns: Ints, often: Ints) -> NDArray[np.bool_]:
    """Which distributions of votes are counted: small ones, and the most frequent of the others."""
    small = patterns[:, 0] <= ALWAYS
    larger = np.flatnonzero(~small & (patterns[:, 0] <= COUNTED))
    small[larger[np.argsort(-often[larger], kind="stable")[:PATTERNS]]] = True
    return small


@lru_cache(maxsize=1 << 13)
def win_shares(sizes: tuple[int, ...], n: int) -> tuple[Floats, Floats]:
    """The probability that each answer wins the vote of k of n responses, for every k.

    Args:
        sizes: votes of each answer, in falling order; the rest of the n responses do not vote.
        n: responses.

    Returns:
        Shares of shape (answers, n): the chance to win, tied answers sharing; a column's sum falls short of 1
        by the chance that nobody votes. And the expected votes of the winner over k, shape (n,).
    """
    subsets = np.array([float(comb(n, k)) for k in range(1, n + 1)])
    shares, agreeing = np.zeros((len(sizes), n)), np.zeros(n)
    for size in sorted(set(sizes)):
        members = [at for at, one in enumerate(sizes) if one == size]
        others = list(sizes)
        others.remove(size)
        for j in range(1, size + 1):
            # Subsets in which this answer has j votes and no other more, each over its number of winners.
            won = np.zeros(n)
            rest = comb(size, j) * _others(tuple(others), n - sum(sizes), j)[: n - j + 1]
            won[j - 1 : j - 1 + len(rest)] = rest / subsets[j - 1 : j - 1 + len(rest)]
            shares[members] += won
            agreeing += len(members) * j * won
    return shares, agreeing / np.arange(1, n + 1)


@lru_cache(maxsize=1 << 12)
def _others(sizes: tuple[int, ...], silent: int, j: int) -> Floats:
    """Ways to take x responses so that no answer has more than j votes, over 1 + the answers with j; by x."""
    # Answers that cannot have j votes are as good as silent ones.
    free = silent + sum(size for size in sizes if size < j)
    rivals = [size for size in sizes if size >= j]
    total = free + sum(rivals)
    ways = np.zeros((len(rivals) + 1, total + 1))  # by answers with j votes, and by responses
    ways[0, : free + 1] = [float(comb(free, x)) for x in range(free + 1)]
    for size in rivals:
        more = np.zeros_like(ways)
        for taken in range(j):
            more[:, taken:] += comb(size, taken) * ways[:, : total + 1 - taken]
        more[1:, j:] += comb(size, j) * ways[:-1, : total + 1 - j]
        ways = more
    shared: Floats = (ways / np.arange(1, len(rivals) + 2)[:, None]).sum(axis=0)
    return shared


def _drawn(
    sizes: tuple[int, ...], n: int, worth: Floats, seed: tuple[int, int]
) -> tuple[Floats, Floats, Floats]:
    """maj@k and consistency@k for k = 1, ..., n as means over seeded orders, and the errors of the first."""
    rng = np.random.default_rng(seed)
    given = np.repeat(np.arange(len(sizes) + 1), [*sizes, n - sum(sizes)])
    scored, squares, agreeing = np.zeros(n), np.zeros(n), np.zeros(n)
    at_once = max(1, (1 << 21) // (n * (len(sizes) + 1)))
    for start in range(0, SUBSETS, at_once):
        orders = rng.permuted(np.tile(given, (min(at_once, SUBSETS - start), 1)), axis=1)
        counts = np.cumsum(orders[:, :, None] == np.arange(len(sizes)), axis=1)
        most = counts.max(axis=2, initial=0)
        winners = (counts == most[:, :, None]) & (most[:, :, None] > 0)
        values = (winners @ worth) / np.maximum(winners.sum(axis=2), 1)
        scored += values.sum(axis=0)
        squares += (values**2).sum(axis=0)
        agreeing += most.sum(axis=0)
    means = scored / SUBSETS
    variances = np.maximum(squares / SUBSETS - means**2, 0.0) / (SUBSETS - 1)
    return means, agreeing / SUBSETS / np.arange(1, n + 1), np.sqrt(variances)

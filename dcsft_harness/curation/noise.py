"""How noisy labels are: how often G responses place an item of a given pass rate in each class.

A label is the class of one draw of G responses. With the pass rates of a pool's items known (by
`dcsft label --exact`) or estimated from the labels' own counts, two figures follow:

    changed: the expected share of items that another labeling with as many responses places in another class
    misplaced: the expected share of items that are not in the class that they get most often

The estimate is the distribution of pass rates under which the counts are likeliest, by the EM algorithm on a
grid, stopped early, which smooths it (Laird, JASA 73, 1978; Lord and Cressie, Biometrika 62, 1975, for
binomial counts). It starts from the Jeffreys prior. A beta distribution has too few parameters: on a pool of
many nearly solved items and some unsolved ones it was wrong by 13 points, this one by 3.
"""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GRID = 400
"""Pass rates of the grid: the quantiles of the Jeffreys prior, Beta(1/2, 1/2)."""
STEPS = 100
"""EM steps. Fewer leave the prior's shape, more fit the noise of the counts."""


class Noise(TypedDict):
    """The noise of a pool's labels.

    samples: G, the responses per item.
    changed, misplaced: shares in [0, 1], see the module's docstring.
    source: "exact" for known pass rates, "counts" for those estimated from labels.
    """

    samples: int
    changed: float
    misplaced: float
    source: str


def placement(rates: Floats, samples: int) -> Floats:
    """How often G responses place items in each class.

    Args:
        rates: pass rates in [0, 1], shape (n,).
        samples: G, at least 1.

    Returns:
        Probabilities of easy, medium and hard, shape (n, 3). With G = 1 no item is medium.
    """
    easy, hard = rates**samples, (1 - rates) ** samples
    return np.stack([easy, np.maximum(0.0, 1 - easy - hard), hard], axis=1)


def of_rates(rates: Floats, samples: int, weights: Floats | None = None, source: str = "exact") -> Noise:
    """The noise of labels with G responses, for items of these pass rates.

    Args:
        rates: shape (n,), in [0, 1].
        samples: G.
        weights: shares of the items with each rate, which sum to 1; None for equal ones.
        source: of the rates.
    """
    found = placement(rates, samples)
    weights = np.full(len(rates), 1 / len(rates)) if weights is None else weights
    changed = float(weights @ (1 - (found**2).sum(axis=1)))
    misplaced = float(weights @ (1 - found.max(axis=1)))
    return {"samples": samples, "changed": changed, "misplaced": misplaced, "source": source}


def of_counts(n: Ints, k: Ints) -> Noise | None:
    """The noise of labels, from their own counts.

    Args:
        n: scored responses of each item, shape (items,); items without any are left out.
        k: those of them that are right, same shape.

    Returns:
        None without an item with two responses: one response shows nothing of the next.
    """
    if n.max(initial=0) < 2:
        return None
    scored = n > 0
    rates, weights = distribution(n[scored], k[scored])
    return of_rates(rates, int(n.max()), weights, "counts")


def distribution(n: Ints, k: Ints) -> tuple[Floats, Floats]:
    """The distribution of pass rates behind counts.

    Args:
        n: responses of each item, shape (items,), at least 1.
        k: right ones, same shape.

    Returns:
        Pass rates, shape (GRID,), in (0, 1), and the share of items with each, which sum to 1.
    """
    rates = np.sin(np.pi * (np.arange(GRID) + 0.5) / (2 * GRID)) ** 2
    pairs, items = np.unique(np.stack([n, k]), axis=1, return_counts=True)
    logs = pairs[1][:, None] * np.log(rates) + (pairs[0] - pairs[1])[:, None] * np.log1p(-rates)
    likelihood = np.exp(logs - logs.max(axis=1, keepdims=True))
    weights = np.full(GRID, 1 / GRID)
    for _ in range(STEPS):
        weights = weights * (likelihood.T @ (items / (likelihood @ weights))) / items.sum()
    return rates, weights


def chi_squared(rates: Floats, n: Ints, k: Ints) -> tuple[float, int, float]:
    """Whether counts agree with known pass rates: Pearson's statistic over items.

    Items that are nearly always or never solved are left out: with fewer than a half expected right or wrong
    response, one response would decide the statistic.

    Args:
        rates: shape (items,), in [0, 1].
        n: responses of each, same shape.
        k: right ones, same shape.

    Returns:
        The statistic, the number of items in it (its expectation), and its distance from there in standard
        deviations.
    """
    used = n * np.minimum(rates, 1 - rates) >= 0.5
    p, n, k = rates[used], n[used], k[used]
    spread = n * p * (1 - p)
    statistic = float(((k - n * p) ** 2 / spread).sum())
    # The variance of a squared standardized binomial: 2 plus its excess kurtosis.
    deviation = float(np.sqrt((2 + (1 - 6 * p * (1 - p)) / spread).sum()))
    return statistic, int(used.sum()), (statistic - len(p)) / deviation if len(p) else 0.0

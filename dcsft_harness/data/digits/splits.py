"""Which real digit belongs to which split: pre-training, cold start, pool or evaluation."""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIZES = {"pretrain": 500, "cold": 100, "pool": 400, "eval": 300, "adversarial": 497}
"""Real digits per split; together all 1,797. "adversarial" is what the filter chooses from."""

SPLIT_SEED = 2602


class Digits(NamedTuple):
    """Some real digits.

    Attributes:
        images: float32 array (n, 8, 8), ink in [0, 1].
        values: int array (n,), 0..9.
        ids: int array (n,), the position in scikit-learn's file.
    """

    images: NDArray[np.float32]
    values: NDArray[np.int64]
    ids: NDArray[np.int64]


@cache
def _all() -> Digits:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images / 16.0).astype(np.float32)
    return Digits(images, data.target.astype(np.int64), np.arange(len(images)))


@cache
def split(name: str) -> Digits:
    """The real digits of one split; no digit is in two.

    Args:
        name: a key of `SIZES`.
    """
    digits = _all()
    order = np.random.Generator(np.random.PCG64(SPLIT_SEED)).permutation(len(digits.values))
    start = 0
    for key, size in SIZES.items():
        if key == name:
            chosen = order[start : start + size]
            return Digits(digits.images[chosen], digits.values[chosen], digits.ids[chosen])
        start += size
    raise KeyError(name)


@cache
def adversarial() -> Digits:
    """The digits of the "adversarial" split that a reference classifier gets wrong.

    ImageNet-A was made this way (Hendrycks et al., 2021): natural images, kept where a reference
    classifier fails. The references here are Gaussian naive Bayes and the nearest class mean, fitted
    to the pre-training split; a digit stays if either is wrong.
    """
    from sklearn.naive_bayes import GaussianNB

    train, candidates = split("pretrain"), split("adversarial")
    inputs = train.images.reshape(len(train.values), -1)
    queries = candidates.images.reshape(len(candidates.values), -1)
    bayes = GaussianNB(var_smoothing=1e-3).fit(inputs, train.values).predict(queries)
    means = np.stack([inputs[train.values == value].mean(0) for value in range(10)])
    nearest = np.square(queries[:, None] - means).sum(-1).argmin(1)
    wrong = (bayes != candidates.values) | (nearest != candidates.values)
    return Digits(candidates.images[wrong], candidates.values[wrong], candidates.ids[wrong])

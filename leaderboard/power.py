"""How small a difference a task of this size can show."""

import math
from functools import cache

ALPHA = 0.05
POWER = 0.8


@cache
def _standard_errors() -> float:
    """The true difference, in standard errors, that a two-sided z test at `ALPHA` finds with `POWER`."""
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    edge = float(ndtri(1 - ALPHA / 2))
    return float(
        brentq(lambda shift: ndtr(shift - edge) + ndtr(-shift - edge) - POWER, 0.1, 10.0, xtol=1e-14)
    )


def detectable(standard_error: float) -> float:
    """The difference that is found in 4 of 5 repetitions of a test at 5 %.

    Args:
        standard_error: of the difference, in the unit of the result.
    """
    return _standard_errors() * standard_error


def unpaired(accuracy: float, n: int) -> float:
    """The detectable difference of two rows whose right answers have nothing to do with each other.

    Pairing helps as far as two rows get the same items right; this is what holds without it.

    Args:
        accuracy: of both, in [0, 1].
        n: items, or clusters where items share them.
    """
    return detectable(math.sqrt(2 * accuracy * (1 - accuracy) / n))

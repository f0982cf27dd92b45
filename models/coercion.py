"""Reading values the way lmms-eval hands them over: numbers and booleans may arrive as text."""

import math
from collections.abc import Callable

from dcsft_harness.errors import HarnessError, unknown_name

DTYPES = ("auto", "float32", "bfloat16", "float16")
_TRUE, _FALSE = {"true", "1", "yes"}, {"false", "0", "no"}


def is_unset(value: object) -> bool:
    """Whether a value means "not given": None, or the text that a command line makes of it."""
    return value is None or (isinstance(value, str) and value.strip().lower() in {"none", "null", ""})


def as_int(name: str, value: object, low: int) -> int:
    """A whole number of at least `low`; `name` is what an error calls it.

    Raises:
        HarnessError: for anything else, booleans included.
    """
    number = as_float(name, value, float(low))
    if number != int(number):
        raise HarnessError(f"{name}={value!r} is not a whole number", f"Give an integer of at least {low}")
    return int(number)


def as_float(name: str, value: object, low: float, high: float = math.inf) -> float:
    """A finite number in `[low, high]`; `name` is what an error calls it.

    Raises:
        HarnessError: for anything else, booleans included.
    """
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
    if not (low <= number <= high) or math.isinf(number):
        bound = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise HarnessError(f"{name}={value!r} is out of range or not a number", f"Give a number {bound}")
    return number


def as_bool(name: str, value: object) -> bool:
    """True or False, also as text in any case; `name` is what an error calls it.

    Raises:
        HarnessError: for anything else.
    """
    text = str(value).strip().lower()
    if text in _TRUE | _FALSE:
        return text in _TRUE
    raise HarnessError(f"{name}={value!r} is neither true nor false", "Give True or False")


def as_text(name: str, value: object) -> str:
    """Any value as text."""
    return str(value)


def as_dtype(name: str, value: object) -> str:
    """One of `DTYPES`.

    Raises:
        HarnessError: for anything else, with near matches.
    """
    if str(value) not in DTYPES:
        raise unknown_name(name, str(value), DTYPES)
    return str(value)


def whole_from(low: int) -> Callable[[str, object], int]:
    """`as_int` with that least value."""
    return lambda name, value: as_int(name, value, low)

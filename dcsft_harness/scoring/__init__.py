"""Scorers: one response and its gold in, one `Verdict` out.

Labels, the GRPO reward and the evaluation metric all call the same `Scorer` from `SCORERS`. A scorer is one
file, which declares how it reads a gold of a user's rows and what it takes of an item beside the gold. It is
pure, deterministic and thread-safe, and never guesses: a response without an answer has `extracted=None`,
which is counted separately from a wrong answer.

    SCORERS["exact_word"]("Goose.", answer="goose")                          -> Verdict(1.0, "goose")
    SCORERS["choice"]("The answer is (B).", answer="B", choices=["3", "5"])  -> Verdict(1.0, "B")
    SCORERS["box_iou"]("[1, 2, 9, 9]", answer=[1, 2, 9, 8], image_size=(9, 9)) -> Verdict(1.0, [...])
    SCORERS["math"]("so x = 0.5", answer="1/2")                              -> Verdict(1.0, "x = 0.5")
    SCORERS["open_answer"]("It is 20 Ω.", answer=["20"])                     -> Verdict(1.0, "20 Ω")

`truncated=True` says that a response ran out of tokens: then only what is in a closed box, tag or
bracketed bounding box is its answer. A user's function is a scorer like these; see `get_scorer`.
"""

import functools
import hashlib
import importlib
import inspect
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from dcsft_harness.errors import HarnessError, cut, unknown_name
from dcsft_harness.scoring.verdict import FIELDS, NOT_FOUND, Response, Scorer, Verdict

_FILES = ("words", "boxes", "choice", "math", "open_answer")
SCORERS: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (importlib.import_module(f"{__name__}.{name}").SCORER for name in _FILES)
}

VERSIONS: dict[str, int] = {name: scorer.version for name, scorer in SCORERS.items()}
"""Scorer -> version; raised with every change that can alter a verdict.

A version is part of a score: scores record it, and a leaderboard does not mix versions. Scores that record
none are of version 1.
"""


def get_scorer(named: str | Callable[..., Any]) -> Scorer:
    """The scorer of that name, or a user's function as a scorer.

    Args:
        named: a key of `SCORERS`; "package.module:function"; or the function itself. It is called as
            `function(response, answer=gold)`, with those of `FIELDS` and `truncated` that it takes besides,
            and returns a `Verdict`, a number in [0, 1] or a bool. The gold is the row's solution as it is.

    Raises:
        HarnessError: it does not exist (with near matches), or it cannot be imported or called this way.
    """
    if isinstance(named, Scorer):
        return named
    if not isinstance(named, str) and not callable(named):
        raise unknown_name("scorer", str(named), SCORERS)
    if callable(named):
        inner: Any = named
        while isinstance(inner, functools.partial):
            inner = inner.func
        return _users(named, f"{inner.__module__}:{getattr(inner, '__qualname__', type(inner).__name__)}")
    if named in _FUNCTIONS:
        return _FUNCTIONS[named]
    if ":" in named:
        return _users(_imported(named), named)
    if named not in SCORERS:
        raise unknown_name("scorer", named, SCORERS)
    return SCORERS[named]


_FUNCTIONS: dict[str, Scorer] = {}
"""Functions that were passed as scorers in this process, by name."""


def scorer_name(named: object) -> object:
    """The name under which `get_scorer` finds a scorer; a function is checked, and found in this process."""
    if not callable(named) or isinstance(named, Scorer):
        return named.name if isinstance(named, Scorer) else named
    scorer = get_scorer(named)
    _FUNCTIONS[scorer.name] = scorer
    return scorer.name


ScorerName = Annotated[str, BeforeValidator(scorer_name)]
"""A stage's option that names a scorer; Python also takes the function itself."""


def _imported(named: str) -> object:
    module, _, path = named.partition(":")
    if module.endswith(".py"):
        module = module.removesuffix(".py").replace("/", ".")
        raise HarnessError(f"scorer {named!r} names a file", f"Name its module: {module}:{path}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # behind all else: the user's module, as `python -m` would find it
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise HarnessError(
            f"scorer {named!r} cannot be imported ({error})",
            "Write package.module:function, of a module in this folder or an installed one",
        ) from error
    return found


def _users(function: object, name: str) -> Scorer:
    """A user's function as a scorer.

    Raises:
        HarnessError: it is no function, or has to be called in another way.
    """
    remedy = (
        f"Define it as function(response, *, answer); it may also take {', '.join(sorted(FIELDS))}, truncated"
    )
    if not callable(function):
        raise HarnessError(f"scorer {name!r} is {type(function).__name__}, not a function", remedy)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise HarnessError(f"scorer {name!r} has no signature ({error})", remedy) from error
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    fields = tuple(sorted(field for field in FIELDS if field in parameters))
    takes_truncated = takes_all or "truncated" in parameters
    more = {"truncated": False} if "truncated" in parameters else {}
    try:
        inspect.signature(function).bind("", answer="", **dict.fromkeys(fields), **more)
    except TypeError as error:
        raise HarnessError(
            f"scorer {name!r} cannot be called as scorer(response, answer=...) ({error})", remedy
        ) from error

    def score(response: str, **given: Any) -> Verdict:  # noqa: ANN401 - the item's own fields
        try:
            result = function(response, **{**more, **given})
        except HarnessError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise HarnessError(
                f"scorer {name!r} raises {type(error).__name__} ({cut(str(error))}; "
                f"{Path(last.filename).name}, line {last.lineno}) for the response {response[:80]!r}",
                "Correct the function, or return 0 where a response has no answer",
            ) from error
        if isinstance(result, Verdict):
            return result
        if getattr(result, "ndim", None) == 0:  # a number of numpy's or torch's
            result = result.item()
        is_number = isinstance(result, bool | int | float) and 0 <= result <= 1
        if not is_number:
            raise HarnessError(
                f"scorer {name!r} returned {type(result).__name__} {cut(str(result), 80)} for the response"
                f" {response[:80]!r}",
                "Return a Verdict, a bool, or a number from 0 to 1",
            )
        said = response.strip()
        return Verdict(float(result), said) if said else NOT_FOUND

    return Scorer(
        name,
        score,
        gold=lambda solution: solution,
        fields=fields,
        takes_truncated=takes_truncated,
        version=_version(function),
    )


def _version(function: Callable[..., object]) -> int:
    """A number made from the code of a user's function: from its whole module, which may hold helpers.

    A script that is run, or a notebook, holds much besides: there it is the function alone. Code that
    cannot be read is version 1. Plain values that the function keeps count, too: arguments of a partial,
    variables around it, attributes of its object. Lists and mappings may be caches, and do not.
    """
    kept: list[object] = []
    while isinstance(function, functools.partial):
        kept += [*function.args, *itertools.chain(*sorted(function.keywords.items()))]
        function = function.func
    kept += [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    owner = function.__self__ if inspect.ismethod(function) else function
    if not inspect.isroutine(owner):
        kept += itertools.chain(*sorted(getattr(owner, "__dict__", {}).items()))
    plain = [one for one in kept if isinstance(one, str | int | float | tuple)]
    state = json.dumps(plain, default=lambda one: type(one).__name__) if plain else ""
    function = inspect.unwrap(function)
    try:
        written = function if inspect.isroutine(function) else type(function)
        file = None if written.__module__ == "__main__" else inspect.getsourcefile(written)
        here = file is not None and Path(file).is_file()
        code = Path(str(file)).read_bytes() if here else inspect.getsource(written).encode()
    except (OSError, TypeError):
        return 1
    return int(hashlib.sha256(code + state.encode()).hexdigest()[:7], 16)


__all__ = [
    "FIELDS",
    "SCORERS",
    "VERSIONS",
    "Response",
    "Scorer",
    "ScorerName",
    "Verdict",
    "get_scorer",
    "scorer_name",
]

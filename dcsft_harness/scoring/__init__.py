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

import importlib
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator

from dcsft_harness.errors import unknown_name
from dcsft_harness.scoring import own
from dcsft_harness.scoring.verdict import FIELDS, Response, Scorer, Verdict

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
        return own.from_function(named)
    if named in _FUNCTIONS:
        return _FUNCTIONS[named]
    if ":" in named:
        return own.from_function(own.imported(named), named)
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

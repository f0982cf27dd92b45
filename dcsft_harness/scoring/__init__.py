"""Scorers: one response and its gold in, one `Verdict` out.

Labelling, the GRPO reward and the evaluation metric all call the same function from `SCORERS`.
A scorer is pure, deterministic and thread-safe, and never guesses: a response without an answer
has `extracted=None`, which is counted apart from a wrong answer.

    SCORERS["exact_word"]("Goose.", answer="goose")                          -> Verdict(1.0, "goose")
    SCORERS["choice"]("The answer is (B).", answer="B", choices=["3", "5"])  -> Verdict(1.0, "B")
    SCORERS["box_iou"]("[1, 2, 9, 9]", answer=[1, 2, 9, 8], image_size=(9, 9)) -> Verdict(1.0, [...])
    SCORERS["math"]("so x = 0.5", answer="1/2")                              -> Verdict(1.0, "0.5")
"""

from collections.abc import Callable

from dcsft_harness.errors import unknown_name
from dcsft_harness.scoring.boxes import box_iou
from dcsft_harness.scoring.choice import choice
from dcsft_harness.scoring.math import math
from dcsft_harness.scoring.open_answer import open_answer
from dcsft_harness.scoring.verdict import Verdict
from dcsft_harness.scoring.words import exact_word

Scorer = Callable[..., Verdict]
"""Called as `scorer(response, answer=..., **the item's own keywords)`."""

SCORERS: dict[str, Scorer] = {
    "exact_word": exact_word,
    "box_iou": box_iou,
    "choice": choice,
    "math": math,
    "open_answer": open_answer,
}

VERSIONS: dict[str, int] = {"exact_word": 1, "box_iou": 1, "choice": 1, "math": 1}
"""Scorer -> version; raise it with every change that can alter a verdict.

A version is part of a score: scores record it, and a leaderboard does not mix versions. Scores that record
none are of version 1.
"""


def get_scorer(name: str) -> Scorer:
    """The scorer of that name.

    Raises:
        HarnessError: if there is none, with near matches.
    """
    if name not in SCORERS:
        raise unknown_name("scorer", name, SCORERS)
    return SCORERS[name]


__all__ = ["SCORERS", "VERSIONS", "Scorer", "Verdict", "get_scorer"]

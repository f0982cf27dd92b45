"""What a scorer says of one response."""

import math
from dataclasses import dataclass

Extracted = str | list[float] | None


@dataclass(frozen=True)
class Verdict:
    """A score, and the answer that it was given for.

    Args:
        score: in [0, 1]; 1.0 is right.
        extracted: the answer found in the response, in the scorer's own form (a letter, a
            normalised word, a box in original-image pixels, an expression), so that a reader can
            see what was judged. None: the response states no answer that could be judged. Such a
            response scores 0 and is counted apart from a wrong one.

    Raises:
        ValueError: for a score outside [0, 1], or one above 0 without an answer. Both are faults
            of a scorer, not of its user.
    """

    score: float
    extracted: Extracted

    def __post_init__(self) -> None:
        """Refuse what no scorer may return; NaN fails the comparison and is refused too."""
        if not 0.0 <= self.score <= 1.0 or math.isnan(self.score):
            raise ValueError(f"a score is in [0, 1], not {self.score!r}")
        if self.extracted is None and self.score > 0.0:
            raise ValueError(f"no answer was found, so the score is 0, not {self.score!r}")


NOT_FOUND = Verdict(0.0, None)

"""Scorers and their verdicts."""

import itertools
import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

from dcsft_harness.errors import HarnessError

Extracted = str | list[float] | None


@dataclass(frozen=True)
class Verdict:
    """A score and the answer that was scored.

    Args:
        score: in [0, 1]; 1.0 is right.
        extracted: the answer that was judged, in the scorer's own form (a letter, a normalized word, a box
            in original-image pixels, an expression). None: the response states none; it scores 0 and is
            counted separately from a wrong one.

    Raises:
        ValueError: a scorer's fault: a score outside [0, 1], or one above 0 without an answer.
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


class Response(str):
    """A model's text that records whether it ran out of tokens; parts that lmms-eval cuts from it keep this.

    Attributes:
        truncated: whether it ended at the limit of tokens.
    """

    truncated: bool

    def __new__(cls, text: str, truncated: bool = False) -> "Response":
        """The text, and whether it was truncated."""
        made = super().__new__(cls, text)
        made.truncated = truncated
        return made

    # What lmms-eval's removal of reasoning uses.
    def __getitem__(self, at: SupportsIndex | slice) -> "Response":
        """A part of the text."""
        return Response(super().__getitem__(at), self.truncated)

    def __add__(self, more: str) -> "Response":
        """The text followed by another."""
        return Response(super().__add__(more), self.truncated)

    def strip(self, chars: str | None = None) -> "Response":
        """The text without white space around it."""
        return Response(super().strip(chars), self.truncated)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """The text in pieces."""
        return [Response(piece, self.truncated) for piece in super().rsplit(sep, maxsplit)]


def text_gold(solution: object) -> object:
    """A gold that is text or a number, as text; its accents are composed, as models write them (NFC).

    Raises:
        HarnessError: it is neither.
    """
    if isinstance(solution, bool) or not isinstance(solution, str | int | float):
        raise HarnessError(
            f"the answer is {type(solution).__name__}, not text or a number", "Write one text or number"
        )
    return unicodedata.normalize("NFC", str(solution).strip())


FIELDS = frozenset({"choices", "image_size", "box_space", "resized_size"})
"""An item's fields for a scorer besides its gold: options, (width, height) in pixels, the box space."""


@dataclass(frozen=True)
class Scorer:
    """One way to judge responses; the same for labels, rewards and evaluation.

    Called as `scorer(response, answer=gold, **fields, truncated=False)`.

    Attributes:
        name: a key of `SCORERS`, or "package.module:function".
        score: the function; pure, deterministic and thread-safe.
        gold: converts the solution of a user's row to a gold; raises HarnessError if it is not one.
        fields: the keywords of `FIELDS` that it takes beside `answer`.
        check: called with a gold and the fields of its item; raises HarnessError if they do not match.
        takes_truncated: whether it takes the keyword `truncated`.
        same: whether two extracted answers are equal, in either order; None: where their texts are. It need
            not be transitive, as `votes` is: 5 cm is 5 and 50 mm, which is not 5.
        form: what an answer states beside its value, such as a unit; `same` is transitive within a form.
        version: raised with every change that can alter a verdict.
    """

    name: str
    score: Callable[..., Verdict]
    gold: Callable[[object], object] = text_gold
    fields: tuple[str, ...] = ()
    check: Callable[..., None] | None = None
    takes_truncated: bool = True
    same: Callable[[str, str], bool] | None = None
    form: Callable[[str], object] = type
    version: int = 1

    def __call__(self, response: str, **given: Any) -> Verdict:  # noqa: ANN401 - the item's own fields
        """The verdict on one response; `given` is `answer`, the item's fields, and perhaps `truncated`."""
        return self.score(response, **given)

    def score_many(
        self,
        responses: Sequence[str],
        *,
        truncated: Sequence[bool] | None = None,
        **given: Any,  # noqa: ANN401 - `answer` and the item's fields
    ) -> list[Verdict]:
        """The verdicts on several responses to one item, in order.

        Args:
            responses: what the model wrote.
            truncated: for each, whether it ran out of tokens; None: none did.
            given: `answer`, and the item's fields.
        """
        cut = list(truncated or [False] * len(responses))
        verdicts = []
        for response, is_cut in zip(responses, cut, strict=True):
            more = {"truncated": True} if is_cut and self.takes_truncated else {}
            verdicts.append(self.score(response, **given, **more))
        return verdicts

    def votes(self, extracted: Sequence[Extracted]) -> list[str | None]:
        """The vote of each extracted answer to one item: the first answer of its class.

        Equal answers of one form are a class. Classes of different forms are merged if answers of theirs are
        equal, unless that would join two of the same form: 50 mm, 5 cm and 5 are one vote; 5 m, 5 cm and 5
        are three. So the classes never overlap, and do not depend on the order of the answers.

        Args:
            extracted: the answers as verdicts have them; None is no vote.
        """
        texts = [one if isinstance(one, str | None) else json.dumps(one) for one in extracted]
        if self.same is None or len(set(texts) - {None}) < 2:
            return texts
        same, first = self.same, dict[str, str]()
        forms = {text: self.form(text) for text in texts if text is not None}
        for text in forms:
            equal = (one for one in first.values() if forms[one] == forms[text] and same(one, text))
            first[text] = next(equal, text)
        groups = {text: {text} for text in first.values()}
        for one, other in itertools.combinations(first, 2):
            ours, theirs = groups[first[one]], groups[first[other]]
            if ours is not theirs and forms[one] != forms[other] and same(one, other):
                groups.update(dict.fromkeys(ours | theirs, ours | theirs))
        for group in groups.values():
            if 1 < len(group) == len({forms[text] for text in group}):
                leader = next(text for text in first if text in group)
                first = {text: leader if one in group else one for text, one in first.items()}
        return [None if text is None else first[text] for text in texts]

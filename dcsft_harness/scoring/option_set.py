"""The options of one question, and what counts as naming one of them.

    options = option_set(("3 cm", "5 cm"))
    options.named("5.0cm") -> 1        options.mentioned("so it is 5 cm long") -> [1]

An option is named by its text (case, spaces, LaTeX and a final period do not matter), by an equal
quantity ("2√5" is "2√5 cm", 5/19 is "5:19"), or by a number with more decimals that rounds to it.
Nothing is matched by nearness. An index stands for the first option of that text.
"""

import re
import string
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property, lru_cache

from dcsft_harness.scoring.expressions import same, value
from dcsft_harness.scoring.occurrences import Occurrences
from dcsft_harness.scoring.plain_text import plain
from dcsft_harness.scoring.quantities import Quantity, amounts, compatible, quantity, spelled, split_unit

DRAWN = tuple(string.ascii_uppercase[:10])
"""The letters A to J: what a response may choose from where the options are only in the figure."""

NO_OPTION = -1
"""In the place of an option's index: an answer is stated, and it is none of the options."""

# These answer a question only where they stand alone: "no" is also a determiner.
_WORDS_OF_SENTENCE = frozenset(
    {"yes", "no", "true", "false", "none", "one", "all", "both", "是", "否", "不是"}
)
_JUDGEMENTS = frozenset(
    {"yes", "no", "true", "false", "correct", "incorrect", "是", "否", "不是", "对", "错"}
)
_JUDGING = re.compile(
    r"(?i)\b(?:yes|no|true|false|(?:in)?correct|right|wrong)\b|[✓✔✅✗✘❌×√]|[对错是否]|正确"
)
_COORDINATES = re.compile(r"(?<=\d), (?=-?[\d(])")
_POINT = re.compile(r"\d, ?-?[\d(]")
_DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|without|unlike|than|except|instead of|eliminates?)|n't|不是|并非)"
    r"(?:\s(?:an?|the|in|at|be|that|of|region|equal to|option|just|only))*[\s\"'(]*$"
)
# A sentence that says so names an option only in passing.
_UNDECIDED = re.compile(
    r"(?i)\b(?:sorry|unable|impossible|unclear|insufficient|not enough|not possible"
    r"|(?:can(?:not|'t| not)|could(?: not|n't)) (?:\w+ )?"
    r"(?:see|view|tell|say|determine|answer|identify|provide|be (?:determined|answered)))\b"
    r"|无法|不能确定"
)
_LEFT_SIDE = re.compile(r"^\s*[^=.,;:]{1,20}=")  # "x = 5" is the quantity 5
_OPENS_SENTENCE = re.compile(r"\s(?:it|they|there|he|she|this|that|the|because|since)\b")
_EDGES = " \n.,;:!?\"'"
_NUMERIC = re.compile(r"[-+(\[]*[\d.√π]")
_DIGIT = re.compile(r"\d")
_CLOSED = re.compile(r"[√π^(]")  # what a value may have that no plain number has
_RATIO = re.compile(r"(\d{1,9})[:/](\d{1,9})")
_WRAPPED = re.compile(r"[(\[<](.*)[)\]>]", re.DOTALL)
_PRODUCT = re.compile(r"(?<=[\w)])[*·](?=[a-zπ√(])")  # 2*√3 is 2√3, but 2*3 is not 23


def key(text: str) -> str:
    """The form in which whole texts are compared: plain, lower case, no spaces or outer stops."""
    return _key(plain(text))


def _key(text: str) -> str:
    folded = "".join(text.lower().strip(_EDGES).split())
    return _PRODUCT.sub("", folded.replace("^", "").replace("degrees", "°").replace("degree", "°"))


class OptionSet:
    """The options of one question, prepared on demand: most responses need only the letters."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Take the texts, A first; nothing is computed yet."""
        self.texts = tuple(texts)
        self.letters = string.ascii_uppercase[: len(self.texts)]

    @cached_property
    def _plain(self) -> tuple[str, ...]:
        return tuple(map(plain, self.texts))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The comparable text of each option."""
        return tuple(map(_key, self._plain))

    @cached_property
    def are_letters(self) -> bool:
        """Whether the texts are only labels, as for options that are drawn in the figure."""
        return all(len(text.strip("()")) == 1 and text.strip("()").isalpha() for text in self.keys)

    @cached_property
    def are_own_letters(self) -> bool:
        """Whether the texts are the letters A, B, ... themselves."""
        return self.are_letters and "".join(text.strip("()") for text in self.keys) == self.letters.lower()

    @cached_property
    def are_judgements(self) -> bool:
        """Whether the texts are "yes", "no" and the like, which the letters before them only decorate."""
        return all(text in _JUDGEMENTS for text in self.keys)

    @cached_property
    def judge_themselves(self) -> bool:
        """Whether a text has "yes", "true" or the like in it, which said of an option is no verdict then."""
        return any(map(_JUDGING.search, self._plain))

    @cached_property
    def quantities(self) -> tuple[Quantity | None, ...]:
        """The quantity that each option is, if it is one."""
        return tuple(quantity(text.strip()) for text in self._plain)

    @cached_property
    def has_quantities(self) -> bool:
        """Whether any option is a quantity."""
        return any(self.quantities)

    @cached_property
    def _values(self) -> tuple[tuple[float, str | None] | None, ...]:
        """The value and the unit of each option that is arithmetic, whether or not it is a plain number."""
        return tuple(_value(text.strip(_EDGES)) for text in self._plain)

    @cached_property
    def _irrational(self) -> bool:
        """Whether there are values beside the plain quantities, such as 2√5."""
        return any(found and not amount for found, amount in zip(self._values, self.quantities, strict=True))

    @cached_property
    def _ratios(self) -> tuple[Fraction, ...]:
        """The options as fractions, where all of them are ratios such as 5:19; else none."""
        matches = [_RATIO.fullmatch(text) for text in self.keys]
        pairs = [(int(match[1]), int(match[2])) for match in matches if match]
        proper = len(pairs) == len(self.keys) and all(below for _, below in pairs)
        return tuple(Fraction(above, below) for above, below in pairs) if proper else ()

    @cached_property
    def _longest(self) -> int:
        """Characters beyond which no text can name an option, generous to spaces and a left side."""
        return 60 + 2 * max(map(len, self.texts))

    @cached_property
    def numeric(self) -> bool:
        """Whether most options begin with a number, so that a number in a response is a claim."""
        return 2 * sum(_NUMERIC.match(text) is not None for text in self.keys) > len(self.texts)

    def index(self, letter: str) -> int | None:
        """The option of an upper-case letter, if there is one."""
        found = self.letters.find(letter)
        return found if found >= 0 and len(letter) == 1 else None

    def literal(self, response: str) -> int | None:
        """The option that a response repeats character by character, unless it is a capital letter.

        Before letters are read as labels, for options such as "(c)", "(a)", "(b)" in that order.
        """
        if not 0 < len(response) <= 3 or response not in self.texts:
            return None
        if len(response) == 1 and response.isupper():
            return None
        return self.texts.index(response)

    def same(self, one: int, other: int) -> bool:
        """Whether two options cannot be told apart by their texts."""
        return one == other or (self.keys[one] == self.keys[other] != "")

    def named(self, text: str) -> int | None:
        """The option that a whole plain text is, by text or by quantity; None if none or several."""
        if len(text) > self._longest:
            return None
        if "≈" in text:
            sides = [self.named(side) for side in text.split("≈", 1)]
            return sides[0] if sides[0] is not None else sides[1]
        wanted = _key(text)
        letter = wanted.strip("()[]")
        if not letter or len(letter) == 1 and letter.isalpha():
            return self.literal(text.strip(_EDGES))
        if wanted in self.keys:
            return self.keys.index(wanted)
        wrapped = _WRAPPED.fullmatch(text.strip(_EDGES))
        inner = self.named(wrapped[1]) if wrapped else None
        if inner is not None:
            return inner
        ratio = _RATIO.fullmatch(wanted) if self._ratios else None
        if ratio and int(ratio[2]):
            return self._unique([Fraction(int(ratio[1]), int(ratio[2])) == one for one in self._ratios])
        return self._worth(_LEFT_SIDE.sub("", text, count=1).strip(" ,;:!?\"'[]="))

    def _worth(self, text: str) -> int | None:
        """The option that has the value of a whole text."""
        if not self.has_quantities and not self._irrational:
            return None
        amount = quantity(text.strip("()")) if _DIGIT.search(text) else spelled(text)
        if amount:
            return self._equal(amount)
        found = _value(text) if _CLOSED.search(text) else None
        return self._valued(*found) if found else None

    def _valued(self, number: float, unit: str | None) -> int | None:
        return self._unique(
            [one is not None and same(one[0], number) and compatible(one[1], unit) for one in self._values]
        )

    def _unique(self, hits: Sequence[bool]) -> int | None:
        """The option that is hit; None if there are several that can be told apart."""
        found = [index for index, hit in enumerate(hits) if hit]
        return found[0] if found and all(self.same(found[0], other) for other in found) else None

    def begun(self, text: str) -> int | None:
        """The option whose text a plain text begins with, followed by punctuation or the end."""
        text = _COORDINATES.sub(",", text[: self._longest]) if self._are_points else text
        found = self._occurrences.first(text[: self._longest].lower())
        if found is None:
            return None
        rest = text[len(found) :]
        opens = found in ("yes", "no") and _OPENS_SENTENCE.match(rest)
        rest = rest.lstrip(" \"')")
        return self._by_plain[found] if opens or not rest or rest[0] in ".,;:!-\n(" else None

    def mentioned(self, sentence: str) -> list[int]:
        """The distinct options that a plain sentence affirms, in order of last mention.

        Not counted: a mention after "not", "than" and the like, and one of "yes", "no", "all" and
        other words of the language that does not stand alone.
        """
        sentence = _COORDINATES.sub(",", sentence) if self._are_points else sentence
        lowered = sentence.lower()
        found: dict[int, None] = {}
        spans = self._occurrences.within(lowered)
        for start, end in spans:
            if _is_affirmed(lowered, start, end):
                index = self._by_plain[lowered[start:end]]
                found.pop(index, None)
                found[index] = None
        for start, end, amount in amounts(sentence) if self.has_quantities else ():
            if any(a < end and start < b for a, b in spans):
                continue
            equal = self._equal(amount)
            if equal is not None and not _DENIED.search(lowered, max(0, start - 30), start):
                found.pop(equal, None)
                found[equal] = None
        return list(found)

    def may_be_mentioned(self, text: str) -> bool:
        """Whether `mentioned` can find anything in a part of a text; only to save time."""
        if self.has_quantities:
            return True
        text = _COORDINATES.sub(",", text) if self._are_points else text
        return self._occurrences.any_in(text.lower())

    def given_up(self, sentence: str) -> bool:
        """Whether a sentence says that there is no telling, unless an option says so too."""
        return _UNDECIDED.search(sentence) is not None and not any(map(_UNDECIDED.search, self.texts))

    def _equal(self, found: Quantity) -> int | None:
        """The option of an equal quantity; failing that, the one that `found` rounds to."""
        hits = [option is not None and option.equals(found) for option in self.quantities]
        if not any(hits):
            return self._rounded(found, found.decimals) if found.decimals else None
        if found.unit and sum(hits) > 1:
            exact = [option is not None and option[:2] == found[:2] for option in self.quantities]
            hits = exact if any(exact) else hits
        return self._unique(hits)

    def _rounded(self, found: Quantity, written: int) -> int | None:
        """The nearest option, if `found` rounds to it, or if it is a root or fraction that rounds to `found`.

        5.43 is 5.4, but not 5: an option has to have decimals of its own. 4.47 is 2√5, but 4.5 is not.
        """
        number, best = float(found.value), None
        for index, (option, amount) in enumerate(zip(self._values, self.quantities, strict=True)):
            if option is None or not compatible(option[1], found.unit):
                continue
            distance = abs(option[0] - number)
            if best is None or distance < best[0]:
                given = amount.decimals if amount else None
                decimals = max(2, written) if given is None else given
                close = 0 < decimals <= written and distance <= 0.5 * 10**-decimals * (1 + 1e-9)
                best = (distance, index if close else None)
        return best[1] if best else None

    @cached_property
    def _by_plain(self) -> dict[str, int]:
        """Plain lower-case text -> option, without letters and pure numbers, which have own rules."""
        by_plain: dict[str, int] = {}
        for index, text in enumerate(self._plain):
            folded = _COORDINATES.sub(",", text).lower().strip(_EDGES)
            folded = folded.removeprefix("the ").removeprefix("a ").removeprefix("an ")
            amount = self.quantities[index]
            bare_number = amount is not None and folded.lstrip("-+")[:1].isdigit()
            bare_letter = len(folded) == 1 and folded.isascii() and folded.isalpha()
            if folded and not bare_number and not bare_letter:
                by_plain.setdefault(folded, index)
            bare, unit = split_unit(folded) or ("", None)
            if unit and amount is None and _CLOSED.search(bare):
                by_plain.setdefault(bare, index)
        return by_plain

    @cached_property
    def _are_points(self) -> bool:
        """Whether a text has numbers with a comma between them, as coordinates have."""
        return any(map(_POINT.search, self._plain))

    @cached_property
    def _occurrences(self) -> Occurrences:
        return Occurrences(self._by_plain)


def _value(text: str) -> tuple[float, str | None] | None:
    """The value and the unit of a plain text that is arithmetic, else None."""
    parts = split_unit(text)
    number = value(parts[0]) if parts else None
    return None if number is None or parts is None else (number, parts[1])


def _is_affirmed(lowered: str, start: int, end: int) -> bool:
    """Whether a sentence affirms the text that stands there: not "not ...", not "no" as a determiner."""
    if lowered[start:end] in _WORDS_OF_SENTENCE:
        after, before = lowered[end:].lstrip(), lowered[:start].rstrip()
        alone = not after or after[0] in ".,;:!\"')"
        return alone and (not before or before[-1] in ".,;:!\"'(" or before.endswith((" is", " be")))
    return not _DENIED.search(lowered, max(0, start - 30), start)


@lru_cache(maxsize=8192)
def option_set(texts: tuple[str, ...]) -> OptionSet:
    """The prepared options; kept, as G responses are scored against the same ones."""
    return OptionSet(texts)

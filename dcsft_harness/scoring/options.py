"""The options of one question: their texts, their values, and where a sentence mentions them.

    options = option_set(("3 cm", "2√5 cm"))
    options.named("3.0cm") -> 0      options.named("√20") -> 1
    options.mentions("so it is (B)") -> [Mention(9, 12, option=1, by_letter=True)]

An option is named by its letter, by its text (spaces, LaTeX and articles do not matter, nor does case unless
two options differ in it alone) or by an equal value: "2√5" is "2√5 cm", 5/19 is "5:19" and 96 is "3·2^5".
Nothing is matched by nearness.
"""

import re
import string
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from dcsft_harness.scoring.formulas import Unreadable, same_value
from dcsft_harness.scoring.math import Answer, equal, number_of, read
from dcsft_harness.scoring.normalize import plain
from dcsft_harness.scoring.phrases import ASIDE, DENIED_OPTION, DRAWN_LETTER, LETTER, PAIR, UNDECIDED
from dcsft_harness.scoring.units import DEGREES, Unit, in_figures, with_signs

DRAWN = tuple(string.ascii_uppercase[:10])
"""The letters A to J: what a response may choose from where the options are only in the figure."""

_LABELED = re.compile(r"(?:\(([A-Z])\)\s*|([A-Z])(?:[.)．、）]\s*|:\s+))(?=\S)")
_SUBSCRIPT = re.compile(r"(?<!log)(?<=[A-Za-z)}])(\$?)_(?=\{?\d)")
_EDGES = " \n.,;:!?\"'"
_ARTICLE = re.compile(r"^(?:the|an?) ")
_ORDINALS = ("first", "second", "third", "fourth", "fifth")
_JUDGEMENTS = frozenset({"yes", "no", "true", "false"})
"""They answer a question only where they stand alone: "no" is also a determiner."""
_NUMBER = re.compile(r"[-+\d(√π](?!.*\([A-J]\)|[A-J]\))")
_FIGURE = re.compile(
    r"(?<![\w.√^/:×·,-])(?<![×·*] )[-+]?\d(?<!inus .)(?<!ative .)\d{0,14}"
    r"(?:,\d{3})*(?:\.\d{1,15})?(?:[/:]\d{1,9})?"
    r"(?![\d√π^(/:]|[.,:]\d|\s?[-+*×·/√]\s?[\w(]|[a-z]?\^)"
    r"(?:\s?(?:°\s?[CF]?|%|(?:square |cubic )?(?!(?:and|or|is|are|was|not|but|than|the|a)\b)[A-Za-z]{1,12}))?"
)
_FORMULA = re.compile(r"\d|[a-zπ]\s?[-+*/^=<>≤≥]")
_WORDED = re.compile(
    r"[A-Za-z]{3}.*[A-Za-z]{3}.*[A-Za-z]{3}|\b(?:about|approx\w*)\b|≈|^\(?[A-J][).:]|[A-J]\)"
)
_DIGIT = re.compile(r"\d")
_ONE = re.compile(r"\b[Oo]nes?\b")
_BESIDE = re.compile(r"[ (.:,]*(?:the |an? )?")
_AND = re.compile(r"\)?,? (?:and|or|nor) (?:the |an? )?")
_OR = re.compile(r"\)?,? (?:or|nor) (?:the |an? )?")
_CAPITAL = re.compile(r"(?<![A-Za-z])[A-J](?![a-z])")


class Mention(NamedTuple):
    """Where a sentence names an option, and whether by its letter."""

    start: int
    end: int
    option: int
    by_letter: bool


@lru_cache(maxsize=8192)
def amount(text: str) -> tuple[Any, Unit | None] | None:
    """The number and the unit of a plain text that is one number or closed arithmetic; None of others.

    amount("2 1/2 hours") -> (5/2, Unit(3600, (("s", 1),)))      amount("3x + 2") -> None
    """
    text = with_signs(text.strip(_EDGES))
    if len(text) > 60 or not _NUMBER.match(text):
        return None
    try:
        return number_of(read(text))
    except Unreadable:
        return None


@lru_cache(maxsize=8192)
def _answer(text: str) -> Answer | None:
    """What `math` reads in a whole plain text with figures or signs; None in words."""
    text = text.strip(_EDGES)
    if len(text) > 60 or not _FORMULA.search(text) or _WORDED.search(text):
        return None
    try:
        return read(text)
    except Unreadable:
        return None


def with_figures(text: str) -> str:
    """A text without figures, its number words in figures; "one" is also a pronoun."""
    return text if _DIGIT.search(text) or _ONE.search(text) else in_figures(text)


def level(text: str) -> str:
    """A text with its subscripts as Unicode's are read: CO_2 and CO₂ are CO2."""
    return _SUBSCRIPT.sub(r"\1", text) if "_" in text else text


def key(text: str) -> str:
    """The form in which whole plain texts are compared: lower case, no spaces or outer stops."""
    found = _spelling(text.lower())
    return found.replace(",and", "and") if ",and" in found else found


def _spelling(text: str) -> str:
    return "".join(text.strip(_EDGES).split())


class OptionSet:
    """The options of one question, prepared on demand: most responses need only the letters."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Take the texts, A first; nothing is computed yet."""
        self.texts = tuple(texts)
        self.letters = string.ascii_uppercase[: len(self.texts)]

    @cached_property
    def _plain(self) -> tuple[str, ...]:
        return tuple(plain(level(text)).replace(". ", ".") for text in self.texts)

    @cached_property
    def dotted(self) -> tuple[str, ...]:
        """The texts with an abbreviation, as "E. coli", which would end a sentence."""
        return tuple(text for text in self.texts if ". " in text)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The comparable text of each option."""
        return tuple(map(key, self._plain))

    @cached_property
    def values(self) -> tuple[tuple[Any, Unit | None] | None, ...]:
        """The value of each option that is one."""
        return tuple(map(amount, self._plain))

    @cached_property
    def formulas(self) -> tuple[Answer, ...]:
        """What `math` reads in the options, where it reads all of them."""
        found = tuple(one for one in map(_answer, self._plain) if one is not None)
        return found if len(found) == len(self.texts) else ()

    @cached_property
    def numeric(self) -> bool:
        """Whether most options are values, so that a number in a response is a claim."""
        return 2 * sum(one is not None for one in self.values) > len(self.texts)

    @cached_property
    def drawn(self) -> bool:
        """Whether a letter in the figure may be an option: beside values, "point D" is none."""
        return not all(any(map(str.isdigit, text)) for text in self.texts)

    @cached_property
    def _longest(self) -> int:
        return 60 + 2 * max(map(len, self.texts))

    @cached_property
    def _words(self) -> tuple[tuple[str, list[int]], ...]:
        """Lower-case texts without their article, the longest first; no plain numbers, no letters.

        Each with its options, which are several where they differ in case alone.
        """
        words: dict[str, list[int]] = {}
        for index, text in enumerate(self._plain):
            folded = _ARTICLE.sub("", text.lower().strip(_EDGES), count=1)
            is_number = bool(folded) and not folded.strip("-+0123456789.,")
            if folded and not is_number and not (len(folded) == 1 and folded.isascii()):
                words.setdefault(folded, []).append(index)
        nouns = {word.rpartition(" ")[2] for word in words}
        if len(nouns) == 1 < len(words):  # "the right one" of "the left image" and "the right image"
            for word, found in list(words.items()):
                words.setdefault(f"{word.rpartition(' ')[0]} one", found)
        for word, found in list(words.items()):
            ordinal, _, noun = word.partition(" ")
            if noun and ordinal in _ORDINALS:  # "image 2" for "the second image"
                words.setdefault(f"{noun} {_ORDINALS.index(ordinal) + 1}", found)
        return tuple(sorted(words.items(), key=lambda one: -len(one[0])))

    @cached_property
    def has_asides(self) -> bool:
        """Whether a text has a word such as "than", which sets a clause apart elsewhere."""
        return any(map(ASIDE.search, self.texts))

    @cached_property
    def judge(self) -> bool:
        """Whether the texts are "yes", "no" and the like, which outweigh the letter before them."""
        return all(text in _JUDGEMENTS for text in self.keys)

    @cached_property
    def undecided(self) -> int | None:
        """The one option that says that nothing can be said."""
        found = [at for at, text in enumerate(self._plain) if UNDECIDED.search(text.lower())]
        return found[0] if len(found) == 1 else None

    @cached_property
    def roman(self) -> bool:
        """Whether a text begins with "I" that is no letter: "I and II only"."""
        return any(re.match(r"I(?: only|,| and\b)", text) for text in self._plain)

    def equation(self, sentence: str) -> int | None:
        """The one option of equations that a sentence has, spaces aside."""
        if "=" not in sentence or not all("=" in text for text in self.keys):
            return None
        squeezed = "".join(sentence.lower().split())
        found = {at: text for at, text in enumerate(self.keys) if text in squeezed}
        whole = [at for at, text in found.items() if not any(text in one != text for one in found.values())]
        return self.unique(whole)

    def index(self, letter: str) -> int | None:
        """The option of an upper-case letter; beyond the last one, the option whose text the letter is."""
        found = self.letters.find(letter)
        return found if found >= 0 else self.texts.index(letter) if letter in self.texts else None

    def same(self, one: int, other: int) -> bool:
        """Whether two options cannot be distinguished by their texts."""
        return one == other or (_spelling(self.texts[one]) == _spelling(self.texts[other]) != "")

    def unique(self, found: Sequence[int]) -> int | None:
        """The one option among some; None if there are several that differ."""
        return found[0] if found and all([self.same(found[0], other) for other in found[1:]]) else None

    def _spelled(self, found: Sequence[int], text: str) -> int | None:
        """The one of some options with equal keys that a text spells, with its case; None if several."""
        if len(found) == 1:
            return found[0]
        spelled = _spelling(_ARTICLE.sub("", text, count=1))
        exact = [at for at in found if _spelling(_ARTICLE.sub("", self._plain[at], count=1)) == spelled]
        return self.unique(exact or found)

    def of_text(self, text: str) -> int | None:
        """The option whose text a plain text is; None if none or several."""
        wanted = key(text)
        return self._spelled([at for at, one in enumerate(self.keys) if one == wanted], text)

    def named(self, text: str) -> int | None:
        """The option that a whole plain text is, by text or by value; None if none or several."""
        if len(text) > self._longest:
            return None
        wanted = key(text)
        if not wanted or len(wanted) == 1 and wanted.isalpha():
            return None
        if wanted in self.keys:
            return self.of_text(text)
        found = self._valued(text)
        if found is None and self.numeric:
            found = self._valued(with_figures(text))
        if found is None and self.formulas and (said := _answer(text)):  # 25 % is 1/4, x > 2 is (2, ∞)
            return self.unique([index for index, one in enumerate(self.formulas) if equal(one, said)])
        return found

    def _valued(self, text: str) -> int | None:
        """The option whose number and unit a text is."""
        found = amount(text.strip(_EDGES)) if any(self.values) else None
        alike = [index for index, one in enumerate(self.values) if one and found and _is_equal(one, found)]
        return self.unique(alike)

    def begun(self, text: str) -> int | None:
        """The option whose text a plain text begins with, followed by punctuation or the end."""
        lowered = _ARTICLE.sub("", text[: self._longest].lower(), count=1)
        for word, found in self._words:
            if lowered.startswith(word):
                rest = lowered[len(word) :].lstrip(" \"')")
                if not rest or rest[0] in ".,;:!-\n":
                    start = len(text[: self._longest]) - len(lowered)
                    return self._spelled(found, text[start : start + len(word)])
        return None

    def mentions(self, sentence: str) -> list[Mention]:
        """Where a plain sentence affirms options, in order, those in pairs ("A or B") left out."""
        found: list[Mention] = []

        def add(start: int, end: int, index: int | None, *, by_letter: bool = False) -> None:
            if index is not None and not any([one.start < end and start < one.end for one in found]):
                found.append(Mention(start, end, index, by_letter))

        patterns = (LETTER, DRAWN_LETTER) if self.drawn else (LETTER,)
        for pattern in patterns if _CAPITAL.search(sentence) else ():  # only to save time
            for match in pattern.finditer(sentence):
                letter = next(filter(None, match.groups())).upper()
                add(*match.span(), self.index(letter), by_letter=True)
        lowered = sentence.lower()
        for word, options in self._words if len(lowered) == len(sentence) else ():
            start = lowered.find(word)
            while start >= 0:
                end = start + len(word)
                if _is_whole(lowered, start, end):
                    add(start, end, self._spelled(options, sentence[start:end]))
                start = lowered.find(word, end)
        for match in _FIGURE.finditer(sentence) if self.numeric else ():
            add(*match.span(), self._valued(match[0]))
        pairs = [match.span() for match in PAIR.finditer(sentence)] if found else []
        # "not (A) Point A" denies both.
        denied = {
            one.option for one in found if DENIED_OPTION.search(lowered, max(0, one.start - 30), one.start)
        }
        for one, other in pairwise(sorted(found)) if denied else ():
            if one.option in denied and _OR.fullmatch(sentence, one.end, other.start):
                denied.add(other.option)
        found = [
            one
            for one in found
            if one.option not in denied
            and not any([start < one.end and one.start < end for start, end in pairs])
        ]
        return _unpaired(sentence, sorted(found)) if len(found) > 1 else found


def _unpaired(sentence: str, mentions: list[Mention]) -> list[Mention]:
    """The mentions, those of one option side by side as one, without "(A) the dog and the cat (B)"."""
    joined = mentions[:1]
    for one in mentions[1:]:
        last = joined[-1]
        if last.option == one.option and _BESIDE.fullmatch(sentence, last.end, one.start):
            joined[-1] = Mention(last.start, one.end, one.option, last.by_letter or one.by_letter)
        else:
            joined.append(one)
    paired = set[Mention]()
    for one, other in reversed(list(pairwise(joined))):
        gap = sentence[one.end : other.start]
        if one.option != other.option and (_AND.fullmatch(gap) or gap == ", " and other in paired):
            paired |= {one, other}
    return [one for one in joined if one not in paired]


def _is_equal(one: tuple[Any, Unit | None], other: tuple[Any, Unit | None]) -> bool:
    ours, theirs = one[1], other[1]
    if not (ours is None or theirs is None or ours == theirs):  # "5 degrees" is 5 °C
        bases = [unit.dimension for unit in (ours, theirs)]
        if DEGREES not in bases or not all(base and base[0][0][0] == "°" for base in bases):
            return False
    return same_value(one[0], other[0])


def _is_whole(lowered: str, start: int, end: int) -> bool:
    """Whether no letter, digit or operator continues the text there, and "no" stands alone."""
    word, before, after = lowered[start:end], lowered[start - 1 : start], lowered[end : end + 1]
    if word in _JUDGEMENTS:
        is_free = before in _BEFORE_ALONE or lowered[:start].endswith(
            (" is ", " be ", " so ", ", ", ". ", ": ", ") ")
        )
        return is_free and after in _AFTER_ALONE
    if _is_plain(word[0]) and _is_plain(before):
        return False
    return not (_is_plain(word[-1]) and _is_plain(after))


_BEFORE_ALONE, _AFTER_ALONE = frozenset(["", *'.,;:!"(\n']), frozenset(["", *".,;:!\"')"])


def _is_plain(character: str) -> bool:
    return character.isascii() and character.isalnum()


@lru_cache(maxsize=8192)
def option_set(texts: tuple[str, ...]) -> OptionSet:
    """The prepared options; kept, as G responses are scored against the same ones.

    Texts that all begin with their own letter, as "A. cat" and "(B) dog" do, are taken without it: a response
    may be the text alone.
    """
    labels = [_LABELED.match(text) for text in texts]
    letters = "".join((label[1] or label[2]) if label else " " for label in labels)
    if len(texts) > 1 and letters == string.ascii_uppercase[: len(texts)]:
        texts = tuple(_LABELED.sub("", text, count=1) for text in texts)
    return OptionSet(texts)

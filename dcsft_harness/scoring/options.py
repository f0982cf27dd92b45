"""The options of one question: their texts, their values, and where a sentence mentions them.

    options = option_set(("3 cm", "2√5 cm"))
    options.named("3.0cm") -> 0      options.named("4.47") -> 1
    options.mentions("so it is (B)") -> [Mention(9, 12, option=1, by_letter=True)]

An option is named by its letter, by its text (case, spaces, LaTeX and articles do not matter) or by an
equal value: "2√5" is "2√5 cm", 5/19 is "5:19", 96 is "3·2^5", and 4.47 is 2√5 as it has its two
decimals. Nothing is matched by nearness.
"""

import math
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

from dcsft_harness.scoring.normalize import plain
from dcsft_harness.scoring.phrases import ASIDE

DRAWN = tuple(string.ascii_uppercase[:10])
"""The letters A to J: what a response may choose from where the options are only in the figure."""

_EDGES = " \n.,;:!?\"'"
_ARTICLE = re.compile(r"^(?:the|an?) ")
_WORDS = dict(
    zip("zero one two three four five six seven eight nine ten eleven twelve".split(), range(13), strict=True)
)
_ALONE = frozenset({"yes", "no", "true", "false", "none", "one", "all", "both", "是", "否", "不是"})
"""They answer a question only where they stand alone: "no" is also a determiner."""

_LETTER = re.compile(
    r"[(\[<]([A-J])[)\]>]"
    r"|\b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer|OPTION)s?\s\(?([A-J])\b(?!['’-]\w)\)?"
    r"|\b(?:[Oo]ption|[Cc]hoice)\s\(?([a-j])\)(?!\w)"
    r"|选项?\s?([A-J])(?![A-Za-z0-9])|(?<![A-Za-z0-9])([A-J])\s?选?项"
)
_DRAWN_LETTER = re.compile(
    r"\b(?i:image|picture|figure|shape|graph|diagram|pattern|panel|box|point|label(?:l?ed)?|marked)"
    r"\s(?:with\s|as\s)?\(?([A-J])\b\)?"
)
_ORDINAL = r"(?:first|second|third|fourth|fifth)"
_PAIR = re.compile(
    r"(?<![A-Za-z])[(\[]?[A-J][)\]]?(?:(?:,? (?:and|or|nor|&) |, |/| ?(?:和|与|或|、) ?)"
    r"(?:(?i:option|point|box|picture|image|choice) )?[(\[]?[A-J](?![A-Za-z'’])[)\]]?)+"
    rf"|\b{_ORDINAL}(?: images?)?(?: \([A-J]\))?"
    rf"(?:(?:, (?:and |or )?| and | or | nor | to | & )(?:the )?{_ORDINAL}\b(?: images?)?(?: \([A-J]\))?)+"
)
"""Several options at once: "A and B", "neither the second nor the third image"."""
_DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|without|unlike|than|except|instead of|eliminat\w+|exclud\w+)|n't|不是"
    r"|不选|不(?:能|应该?|可)?)"
    r"(?:\s(?:an?|the|in|at|be|that|of|equal to|option|just|only))*[\s\"'(]*$"
)

_MARKED = re.compile(r"([A-J])(?<![A-Za-z0-9.(].)[.):]\s")
_JUDGEMENTS = frozenset({"yes", "no", "true", "false", "correct", "incorrect", "是", "否", "对", "错"})

_UNITS = {
    spelling: unit
    for unit, spellings in {
        "°": "° degree degrees deg 度", "%": "% percent", "mm": "mm millimeters", "cm": "cm centimeters 厘米",
        "m": "m meter meters metres 米", "km": "km kilometers", "in": "in inch inches", "ft": "ft foot feet",
        "kg": "kg kilograms", "g": "g grams", "lb": "lb pounds", "s": "s sec seconds", "min": "min minutes",
        "h": "h hour hours", "day": "day days", "l": "l liters", "ml": "ml",
    }.items()
    for spelling in spellings.split()
}  # fmt: skip
_UNIT = re.compile(
    r"([^A-Za-z°%度厘米]*)\s?((?:square |cubic |sq\.? )?[A-Za-z]{1,12}|°\s?[CF]?|%|度|厘米|米)(\^?[23])?"
)
_TOKEN = re.compile(r"\s*(?:(\d{1,15}(?:\.\d{1,15})?|\.\d{1,15})|([-+*·×/:^()√π]))")
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d,])")
_MIXED = re.compile(r"(?<![\d.])(\d{1,9}) (\d{1,9}/\d{1,9})(?!\d)")
_DECIMAL = re.compile(r"[-+(]?\d{0,15}\.(\d{1,15})\)?")
_AMOUNT = re.compile(
    r"(?<![\w.√^/:×·,-])(?<![\d°)\]]\s[-+*×·/:]\s)[-+]?"
    r"(?:\d{1,9} \d{1,9}/\d{1,9}|\d[\d,]{0,15}\d(?:\.\d{1,15})?|\d{1,15}(?:\.\d{1,15})?|\.\d{1,9}"
    r"|\d{0,9}[√π]\d{0,9}π?)(?:[/:]\d{1,9})?"
    r"(?![\d√π^(/:]|[.,:]\d|\s?[-+*×·/√]\s?[\w(]|\s?:\s?\d|[a-z]?\^)"
    r"(?:\s?(?:°\s?[CF]?|%|(?:square |cubic )?[A-Za-z]{1,12}(?:\^?[23])?))?"
)
_COUNTED = re.compile(
    rf"\b(?:is|are|exactly)\s(?P<amount>{'|'.join(sorted(_WORDS, key=len, reverse=True))})\b"
    r"(?!-|\s(?:and|or|of the)\b)"
)
_COORDINATES = re.compile(r"(?<=\d), (?=-?[\d(])")
_FACTOR = frozenset("x y z n hundred thousand million billion dozen times half o".split())


_MAY_BE_VALUE = re.compile(rf"[\dπ]|^\W*(?:(?i:minus|negative) )?(?i:{'|'.join(_WORDS)})\W*$")


class Value(NamedTuple):
    """A number, its unit in one spelling (None: none that is known), and the decimals it is written with."""

    number: float
    unit: str | None
    decimals: int | None
    """None for a root, a fraction or another form that is exact."""


class Mention(NamedTuple):
    """Where a sentence names an option, and whether by its letter."""

    start: int
    end: int
    option: int
    by_letter: bool


@lru_cache(maxsize=8192)
def value(text: str) -> Value | None:
    """The value of a plain text that is one number or closed arithmetic, with or without a unit.

    value("2 1/2 hours") -> Value(2.5, "h", None)      value("3x + 2") -> None
    """
    if len(text) > 60 or not _MAY_BE_VALUE.search(text):
        return None
    text = text.strip(_EDGES)
    unit, bare = None, text
    match = _UNIT.fullmatch(text)
    if match and match[1]:
        power = "2" if match[2].startswith("sq") else "3" if match[2].startswith("cubic") else ""
        name = match[2].lower().split(" ")[-1]
        unit = _UNITS.get(match[2].replace(" ", "")) or _UNITS.get(name)
        if unit is None:
            if name in _FACTOR or len(name) == 1:
                return None
        else:
            unit += power or (match[3] or "").strip("^")
        bare = match[1].strip()
    elif bare.lower().removeprefix("minus ").removeprefix("negative ") in _WORDS:
        first, _, last = bare.lower().rpartition(" ")
        return Value(float(-_WORDS[last] if first else _WORDS[last]), None, 0)
    number = _arithmetic(bare)
    decimal = _DECIMAL.fullmatch(bare)
    decimals = len(decimal[1]) if decimal else 0 if bare.lstrip("-+").replace(",", "").isdigit() else None
    return None if number is None else Value(number, unit, decimals)


@lru_cache(maxsize=8192)
def _arithmetic(text: str) -> float | None:
    if not any(character in "0123456789π" for character in text):
        return None
    for word in ("minus ", "negative "):
        text = "-" + text[len(word) :] if text.startswith(word) else text
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text) if "," in text else text
    text = _MIXED.sub(r"(\1+\2)", text)
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or (match[1] and tokens and tokens[-1][-1].isdigit()):
            return None  # two numbers side by side are a list
        tokens.append(match[1] or match[2])
        position = match.end()
    try:
        result = _sum(tokens := tokens[::-1], 0)
    except (ValueError, ArithmeticError, IndexError):
        return None
    return None if tokens or not math.isfinite(result) else result


def _sum(tokens: list[str], depth: int) -> float:
    """Recursive descent over reversed tokens, which it takes away."""
    if depth > 12:
        raise ValueError("nested too deep")
    total = _product(tokens, depth)
    while tokens and tokens[-1] in "+-":
        total += _product(tokens, depth) if tokens.pop() == "+" else -_product(tokens, depth)
    return total


def _product(tokens: list[str], depth: int) -> float:
    sign = -1.0 if tokens and tokens[-1] in "+-" and tokens.pop() == "-" else 1.0
    result = sign * _power(tokens, depth)
    while tokens and tokens[-1] not in "+-)":
        operator = tokens.pop() if tokens[-1] in "/:*·×" else "·"  # "2√5" is a product as well
        factor = _power(tokens, depth)
        result = result / factor if operator in "/:" else result * factor
    return result


def _power(tokens: list[str], depth: int) -> float:
    base = _atom(tokens, depth)
    if tokens and tokens[-1] == "^":
        tokens.pop()
        exponent = -_atom(tokens, depth) if tokens[-1] == "-" and tokens.pop() else _atom(tokens, depth)
        if abs(exponent) > 64 or base < 0 and exponent != int(exponent):
            raise ValueError("a power that is too large, or complex")
        base **= exponent
    return base


def _atom(tokens: list[str], depth: int) -> float:
    token = tokens.pop()
    if token == "(":
        inner = _sum(tokens, depth + 1)
        if tokens.pop() != ")":
            raise ValueError("an open bracket")
        return inner
    if token == "√":
        if depth > 12:
            raise ValueError("nested too deep")
        return math.sqrt(_atom(tokens, depth + 1))
    return math.pi if token == "π" else float(token)


def key(text: str) -> str:
    """The form in which whole texts are compared: plain, lower case, no spaces or outer stops."""
    return _key(plain(text))


def _key(text: str) -> str:
    folded = "".join(text.lower().strip(_EDGES).split())
    return folded.replace("^", "").replace("degrees", "°").replace("degree", "°").replace("*", "·")


class OptionSet:
    """The options of one question, prepared on demand: most responses need only the letters."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Take the texts, A first; nothing is computed yet."""
        self.texts = tuple(texts)
        self.letters = string.ascii_uppercase[: len(self.texts)]
        self._equal: dict[Value, int | None] = {}
        self._single = {text: i for i, text in enumerate(self.texts) if len(text) == 1 and text.isupper()}

    @cached_property
    def _plain(self) -> tuple[str, ...]:
        return tuple(map(plain, self.texts))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The comparable text of each option."""
        return tuple(map(_key, self._plain))

    @cached_property
    def values(self) -> tuple[Value | None, ...]:
        """The value of each option that is one."""
        return tuple(map(value, self._plain))

    @cached_property
    def numeric(self) -> bool:
        """Whether most options are values, so that a number in a response is a claim."""
        return 2 * sum(one is not None for one in self.values) > len(self.texts)

    @cached_property
    def _longest(self) -> int:
        return 60 + 2 * max(map(len, self.texts))

    @cached_property
    def _words(self) -> tuple[tuple[str, int], ...]:
        """Lower-case texts without their article, the longest first; no plain numbers, no letters."""
        words: dict[str, int] = {}
        for index, text in enumerate(self._plain):
            folded = _COORDINATES.sub(",", _ARTICLE.sub("", text.lower().strip(_EDGES), count=1))
            known = self.values[index]
            number = known is not None and known.decimals is not None
            if folded and not number and not (len(folded) == 1 and folded.isascii() and folded.isalpha()):
                words.setdefault(folded, index)
        return tuple(sorted(words.items(), key=lambda one: -len(one[0])))

    def index(self, letter: str) -> int | None:
        """The option of an upper-case letter; beyond the last one, the option whose text the letter is."""
        found = self.letters.find(letter)
        return found if found >= 0 and len(letter) == 1 else self._single.get(letter)

    def same(self, one: int, other: int) -> bool:
        """Whether two options cannot be distinguished by their texts."""
        return one == other or (self.keys[one] == self.keys[other] != "")

    def unique(self, found: Sequence[int]) -> int | None:
        """The one option among some; None if there are several that differ."""
        return found[0] if found and all(self.same(found[0], other) for other in found) else None

    def named(self, text: str) -> int | None:
        """The option that a whole plain text is, by text or by value; None if none or several."""
        if len(text) > self._longest:
            return None
        wanted = _key(text)
        if not wanted or len(wanted) == 1 and wanted.isalpha():
            return None
        if wanted in self.keys:
            return self.keys.index(wanted)
        for article in ("the", "a", "an"):
            if text[: len(article) + 1].lower() == article + " ":
                return self.named(text[len(article) + 1 :])
        if wanted[0] in "([" and wanted[-1] in ")]":
            return self.named(text.strip(_EDGES)[1:-1])
        if any(one is not None for one in self.values):
            found = value(text.strip(_EDGES))
            if found:
                return self.equal(found)
        for sign in ("=", "≈"):
            if sign in text and " and " not in text:
                return self.named(text.rpartition(sign)[2])
        return None

    def equal(self, found: Value) -> int | None:
        """The option of an equal value and a compatible unit; failing that, the one that it rounds to."""
        if found not in self._equal:
            if len(self._equal) > 1000:
                self._equal.clear()
            self._equal[found] = self._nearest(found)
        return self._equal[found]

    def _nearest(self, found: Value) -> int | None:
        hits: list[int] = []
        best = (math.inf, -1, 0)
        for index, one in enumerate(self.values):
            if one is None or None not in (one.unit, found.unit) and one.unit != found.unit:
                continue
            if math.isclose(one.number, found.number, rel_tol=1e-12, abs_tol=1e-12):
                hits.append(index)
            distance = abs(one.number - found.number)
            if distance < best[0]:
                decimals = max(2, found.decimals or 0) if one.decimals is None else one.decimals
                best = (distance, index, decimals)
        if hits:
            exact = [index for index in hits if self.values[index].unit == found.unit]  # type: ignore[union-attr]
            return self.unique(exact or hits)
        # 5.43 is 5.4, but not 5: an option has to have decimals of its own. 4.47 is 2√5, but 4.5 is not.
        close = 0 < best[2] <= (found.decimals or 0) and best[0] <= 0.5 * 10 ** -best[2] * (1 + 1e-9)
        return best[1] if close else None

    @cached_property
    def lettered(self) -> bool:
        """Whether things in the figure are named by the options' letters: "Point A", "B is closer"."""
        if self.texts == DRAWN:
            return True
        own = [
            letter for letter, text in zip(self.letters, self._plain, strict=True) if letter in text.split()
        ]
        return len(own) > 1

    @cached_property
    def _predicated(self) -> bool:
        """Whether the texts say something of what the letters name: "B is closer", not "Point B"."""
        return self.texts != DRAWN and any(len(text.split()) > 2 for text in self._plain)

    @cached_property
    def has_asides(self) -> bool:
        """Whether a text has a word such as "than", which sets a clause apart elsewhere."""
        return any(map(ASIDE.search, self.texts))

    @cached_property
    def judge(self) -> bool:
        """Whether the texts are "yes", "no" and the like, which outweigh the letter before them."""
        return all(text in _JUDGEMENTS for text in self.keys)

    def begun(self, text: str, *, loose: bool = False) -> int | None:
        """The option whose text a plain text begins with, followed by punctuation or the end.

        Args:
            text: a plain text.
            loose: whether anything may follow, and numbers count.
        """
        if loose:
            folded = _key(text[: self._longest])
            starts = [index for index, one in enumerate(self.keys) if one and folded.startswith(one)]
            return max(starts, key=lambda index: len(self.keys[index])) if starts else None
        lowered = text[: self._longest].lower()
        article = _ARTICLE.match(lowered)
        start = article.end() if article else 0
        for word, index in self._words:
            if lowered.startswith(word, start):
                rest = lowered[start + len(word) :].lstrip(" \"')")
                beside = _BESIDE.match(text, start + len(word))
                if beside and self.index(beside[1]) is not None:
                    return self.index(beside[1])
                if not rest or rest[0] in ".,;:!-\n(" or word in ("yes", "no") and _OPENS.match(rest):
                    return index
        return None

    def mentions(self, sentence: str) -> list[Mention]:
        """Where a plain sentence affirms options, in order, those in pairs ("A or B") left out."""
        if self._points:
            sentence = _COORDINATES.sub(",", sentence)
        patterns = [_LETTER] if not sentence.isascii() or has_any(sentence, _LETTER_KEYS) else []
        if self.lettered:
            patterns.append(_DRAWN_LETTER)
        found = [
            Mention(match.start(), match.end(), index, pattern is _LETTER or not self._predicated)
            for pattern in patterns
            for match in pattern.finditer(sentence)
            if (index := self.index(next(filter(None, match.groups())).upper())) is not None
        ]
        for match in _MARKED.finditer(sentence):
            index = self.index(match[1])
            if index is not None and self.begun(sentence[match.end() :], loose=True) == index:
                found.append(Mention(match.start(), match.end(), index, True))
        lowered = sentence.lower()
        for word, index in self._words if len(lowered) == len(sentence) else ():
            start = lowered.find(word)
            while start >= 0:
                end = start + len(word)
                if _is_whole(lowered, start, end) and not _overlaps(start, end, found):
                    found.append(Mention(start, end, index, False))
                start = lowered.find(word, end)
        if self._numbers:
            found += self._amounts(sentence, found)
        if not found:
            return found
        pairs = [match.span() for match in _PAIR.finditer(sentence)]
        return sorted(
            one
            for one in found
            if not any(start < one.end and one.start < end for start, end in pairs)
            and not _DENIED.search(lowered, max(0, one.start - 30), one.start)
        )

    @cached_property
    def _points(self) -> bool:
        return any("," in text and any(map(str.isdigit, text)) for text in self._plain)

    @cached_property
    def _numbers(self) -> bool:
        return any(one is not None and one.decimals is not None for one in self.values)

    def _amounts(self, sentence: str, found: list[Mention]) -> Iterator[Mention]:
        amounts: Iterable[re.Match[str]] = _AMOUNT.finditer(sentence) if _FIGURES.search(sentence) else ()
        for match in (*amounts, *_COUNTED.finditer(sentence)):
            amount = value(match["amount"] if match.re is _COUNTED else match[0])
            index = self.equal(amount) if amount else None
            if index is not None and not _overlaps(*match.span(), found):
                yield Mention(match.start(), match.end(), index, False)


_LETTER_KEYS = ("(", "[", "<", "ption", "PTION", "hoice", "etter", "nswer")
_FIGURES = re.compile("[0-9√π]")


def has_any(text: str, keys: tuple[str, ...]) -> bool:
    """Whether some key is in a text."""
    for key in keys:  # noqa: SIM110 - a generator takes twice the time
        if key in text:
            return True
    return False


_BESIDE = re.compile(r"[\s\"']{0,2}\(([A-J])\)")
_OPENS = re.compile(r"(?:it|they|there|he|she|this|that|the|because|since|you|i)\b")


def _overlaps(start: int, end: int, mentions: list[Mention]) -> bool:
    return any(one.start < end and start < one.end for one in mentions)


def in_pair(text: str, place: int) -> bool:
    """Whether the letter at a place is one of several that stand together: "A or B"."""
    return any(match.start() <= place < match.end() for match in _PAIR.finditer(text))


def _is_whole(lowered: str, start: int, end: int) -> bool:
    """Whether no letter, digit or operator continues what stands there, and "no" stands alone."""
    word = lowered[start:end]
    before, after = lowered[start - 1 : start], lowered[end : end + 1]
    if word in _ALONE:
        return after in ("", *".,;:!\"')") and (
            before in ("", *'.,;:!"(\n') or lowered[:start].endswith((" is ", " be ", ", ", ". ", ": ", ") "))
        )
    if (
        word[0].isascii()
        and word[0].isalnum()
        and (before.isalnum() and before.isascii() or before in tuple("_.√^/"))
    ):
        return False
    if word[-1].isascii() and word[-1].isalnum():
        return not (after.isalnum() and after.isascii() or after in tuple("_√π^/"))
    return True


@lru_cache(maxsize=8192)
def option_set(texts: tuple[str, ...]) -> OptionSet:
    """The prepared options; kept, as G responses are scored against the same ones."""
    return OptionSet(texts)

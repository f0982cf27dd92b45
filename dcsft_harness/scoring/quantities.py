"""Numbers with units, read exactly: "3" equals "3.0" and "6/2", and "5 cm" is not "5 m".

quantity("0.50 meters") -> Quantity(value=Fraction(1, 2), unit="m")
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

_NUMBER = (
    r"(?:(?P<whole>\d{1,9})\s+(?P<top>\d{1,9})/(?P<bottom>\d{1,9})"  # 2 1/2
    r"|(?P<value>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,15}(?:\.\d{1,15})?|\.\d{1,15})(?:\s?/\s?(?P<over>\d{1,9}))?)"
)
# A number that is not a part of a longer expression, name, time or range.
_IN_TEXT = re.compile(
    r"(?<![A-Za-z0-9_.√^/:×·,])(?<![\d°)\]]\s[-+*×·/]\s)(?<![A-Za-z0-9_)][-+*/])(?P<sign>[-+]?)" + _NUMBER +
    r"(?![\d√π^(:/]|[.,:]\d|\s?[-+*×·/√]\s?[\w(]|[a-zA-Z]?\^|\s?:\s?\d)"
    r"\s?(?P<unit>°\s?[CF]?|%|(?:square|cubic|sq\.?) [a-z]+|[A-Za-z]{1,12}(?:\^?[23])?)?"
)  # fmt: skip
_WHOLE = re.compile(
    r"(?P<sign>[-+]?)"
    + _NUMBER
    + r"\s?(?P<unit>[^\d\s=<>√π+*/^,;:-][^\d=<>√π+*/,;:]{0,20}(?:(?<!\s)\^?[23])?)?\.?"
)
_WORDS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
        " sixteen seventeen eighteen nineteen twenty".split()
    )
}
_FRACTIONS = {
    **dict.fromkeys(("half", "a half", "one half"), Fraction(1, 2)),
    **dict.fromkeys(("quarter", "a quarter", "one quarter", "one fourth"), Fraction(1, 4)),
    **dict.fromkeys(("a third", "one third"), Fraction(1, 3)),
    **{"two thirds": Fraction(2, 3), "three quarters": Fraction(3, 4), "three fourths": Fraction(3, 4)},
}
_LONGER_FIRST = "|".join(sorted(_WORDS, key=len, reverse=True))
_WORD = rf"(?P<minus>(?:minus|negative)\s)?(?P<word>{_LONGER_FIRST})(?P<half>\sand\sa\shalf)?"
_SPELLED = re.compile(rf"{_WORD}(?:\s(?P<unit>[a-z]+))?\.?", re.IGNORECASE)
_LONGEST_SPELLED = 45
_COUNTED = re.compile(
    rf"\b(?:is|[Tt]here are|exactly|total of)\s(?!one\b(?!\sand))(?P<amount>{_WORD})\b"
    r"(?!-|\s(?:and|or|hundred|thousand|[mb]illion|dozen|times)\b)"
)
_UNIT_LAST = re.compile(r"(.*?[\d)π])\s?([^\d\s()√π+*/^.,=-][^\d()√π+*/^=-]{0,20}(?:(?<!\s)\^?[23])?)\.?")

_SPELLINGS = {
    "°": "° degree deg 度",
    "%": "% percent",
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre 厘米",
    "m": "m meter metre 米",
    "km": "km kilometer kilometre",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard",
    "mile": "mi mile",
    "nmi": "nmi 海里",
    "g": "g gram",
    "kg": "kg kilogram",
    "lb": "lb pound",
    "s": "s sec second",
    "min": "min minute",
    "h": "h hour",
    "day": "day",
    "l": "l liter litre",
    "ml": "ml milliliter millilitre",
    "cent": "cent",
    "dollar": "dollar",
}
_UNITS = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}

_FACTOR = re.compile(
    r"\s*(?:[xyzn]|(?:and\s)?(?:a\s)?half|hundred|thousand|[mb]illion|dozen)\b", re.IGNORECASE
)
"""What makes another number of the one before it: "7x" and "5 million" are not 7 and 5."""


class Quantity(NamedTuple):
    """An exact value and its unit in a canonical spelling; None where no known unit is given."""

    value: Fraction
    unit: str | None
    decimals: int | None = 0
    """Digits after the decimal point, as written; None for a fraction."""

    def equals(self, other: "Quantity") -> bool:
        """Equal values, and compatible units."""
        return self.value == other.value and compatible(self.unit, other.unit)


def compatible(unit: str | None, other: str | None) -> bool:
    """Whether two units may be one: they count only where both sides give one that is known."""
    return None in (unit, other) or unit == other


def quantity(text: str) -> Quantity | None:
    """The quantity that a whole (plain) text is, or None: "x = 5" and "5 or 6" are not one."""
    match = _WHOLE.fullmatch(text.strip())
    return _from_match(match) if match else None


def spelled(text: str) -> Quantity | None:
    """The quantity that a whole text is in words, up to twenty: "minus three", "two and a half hours"."""
    if len(text) > _LONGEST_SPELLED:
        return None
    if text.replace("-", " ").lower() in _FRACTIONS:
        return Quantity(_FRACTIONS[text.replace("-", " ").lower()], None, None)
    match = _SPELLED.fullmatch(text)
    unit = _unit(match["unit"]) if match else None
    return _in_words(match, unit) if match and (unit or not match["unit"]) else None


def _in_words(match: "re.Match[str]", unit: str | None = None) -> Quantity:
    number = _WORDS[match["word"].lower()] + (Fraction(1, 2) if match["half"] else Fraction(0))
    return Quantity(-number if match["minus"] else number, unit, None if match["half"] else 0)


def amounts(sentence: str) -> Iterator[tuple[int, int, Quantity]]:
    """The quantities in a plain sentence, in order: where each starts, where it ends, and what it is.

    Numbers in words count only after "is", "there are" and the like: "the two sides" are no answer.
    """
    found = [(match.start(), match.end(), _from_match(match)) for match in _IN_TEXT.finditer(sentence)]
    for match in _COUNTED.finditer(sentence):
        found.append((*match.span("amount"), _in_words(match)))
    for start, end, amount in sorted(found, key=lambda one: one[0]):
        if amount:
            yield start, end, amount


def _from_match(match: "re.Match[str]") -> Quantity | None:
    """The quantity in a match of the patterns above; None for a division by zero, or before a factor."""
    return _quantity(*match.group("sign", "whole", "top", "bottom", "value", "over", "unit"))


@lru_cache(maxsize=8192)
def _quantity(
    sign: str, whole: str | None, top: str, bottom: str, number: str, over: str | None, unit: str | None
) -> Quantity | None:
    if unit and _FACTOR.match(unit):
        return None
    if whole:
        if int(bottom) == 0:
            return None
        value = int(whole) + Fraction(int(top), int(bottom))
    else:
        value = Fraction(number.replace(",", ""))
        if over:
            if int(over) == 0:
                return None
            value /= int(over)
    decimals = None if whole or over else len(number.partition(".")[2])
    return Quantity(-value if sign == "-" else value, _unit(unit), decimals)


def split_unit(text: str) -> tuple[str, str | None] | None:
    """A plain text before its unit, and the unit; None for a unit that is not known.

    split_unit("2√5 cm") -> ("2√5", "cm")       split_unit("3√2 a") -> None
    """
    match = _UNIT_LAST.fullmatch(text)
    if match is None:
        return text, None
    unit = _unit(match[2])
    return (match[1], unit) if unit else None


def _unit(text: str | None) -> str | None:
    if not text:
        return None
    text = text.strip(" .").lower()
    power = ""
    if text[:6] in ("square", "cubic "):
        power, text = ("2" if text[0] == "s" else "3"), text[6:].strip()
    elif len(text) > 1 and text[-1] in "23":
        power, text = text[-1], text[:-1].rstrip("^")
    known = _UNITS.get(text) or _UNITS.get(text.removesuffix("s"))
    return f"{known}{power}" if known else None

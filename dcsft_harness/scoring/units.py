"""One table of units and number words, for `math` and `open_answer`.

unit("square meters")       -> Unit(Fraction(1), (("m", 2),))
unit("km/h")                -> Unit(Fraction(5, 18), (("m", 1), ("s", -1)))
in_figures("minus 3")       -> "-3"           in_figures("two and a half") -> "2.5"
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

Dimension = tuple[tuple[str, int], ...]


class Unit(NamedTuple):
    """How many of the base units it is, and of what dimension; () for a plain factor such as "million"."""

    factor: Fraction
    dimension: Dimension


PERCENT: Dimension = (("%", 1),)

# Base -> factor -> spellings; plurals are added. A dimension of its own is its own base.
_TABLE: dict[str, dict[str, str]] = {
    "m": {
        "1": "m meter metre 米 公尺", "1/10": "dm decimeter decimetre 分米",
        "1/100": "cm centimeter centimetre 厘米",
        "1/1000": "mm millimeter millimetre 毫米", "1/1000000": "μm um micrometer 微米",
        "1/1000000000": "nm nanometer 纳米", "1000": "km kilometer kilometre 千米 公里", "500": "里",
        "0.0254": "in inch inches 英寸", "0.3048": "ft foot feet 英尺", "0.9144": "yd yard 码",
        "1609.344": "mi mile 英里", "1852": "nmi 海里",
    },
    "g": {
        "1": "g gram gramme 克", "1000": "kg kilogram 千克 公斤", "1/1000": "mg milligram 毫克",
        "500": "斤", "1000000": "t ton tonne 吨", "453.59237": "lb lbs pound 磅", "28.349523125": "oz ounce",
    },
    "s": {
        "1": "s sec second 秒", "60": "min minute 分钟 分", "3600": "h hr hour 小时 时",
        "1/1000": "ms millisecond",
        "86400": "day 天 日", "604800": "week 周", "31536000": "year 年", "2592000": "month 月",
    },
    "L": {"1": "l liter litre 升", "1/1000": "ml milliliter millilitre 毫升", "1/100": "cl"},
    "°": {"1": "° deg degree 度", "1/60": "′ arcminute"},
    "°C": {"1": "°c ℃ celsius 摄氏度 度"}, "°F": {"1": "°f fahrenheit"}, "K": {"1": "k kelvin"},
    "%": {"1": "% percent pct 百分比"},
    "N": {"1": "n newton 牛 牛顿", "1000": "kn"}, "J": {"1": "j joule 焦 焦耳", "1000": "kj kilojoule 千焦"},
    "cal": {"1": "cal calorie 卡", "1000": "kcal 千卡"}, "eV": {"1": "ev", "1000": "kev", "1000000": "mev"},
    "W": {"1": "w watt 瓦 瓦特", "1000": "kw kilowatt 千瓦", "1000000": "megawatt"},
    "V": {"1": "v volt 伏 伏特", "1000": "kv", "1/1000": "mv"},
    "A": {"1": "a amp ampere 安 安培", "1/1000": "ma 毫安"}, "Ω": {"1": "ω ohm 欧 欧姆", "1000": "kω"},
    "Pa": {"1": "pa pascal 帕", "1000": "kpa", "1000000": "mpa"}, "Hz": {"1": "hz hertz 赫兹", "1000": "khz"},
    "mol": {"1": "mol mole 摩尔"}, "M": {"1": "mol/l"}, "F": {"1": "f farad"}, "T": {"1": "tesla 特斯拉"},
    "dollar": {"1": "dollar usd 美元", "1/100": "cent 美分"},
    "yuan": {"1": "yuan rmb 元", "1/10": "角", "10000": "万元"},
    "acre": {"1": "acre"}, "hectare": {"1": "hectare ha 公顷"}, "mph": {"1": "mph"},
    "rad": {"1": "rad radian 弧度"},
    "": {"100": "hundred 百", "1000": "thousand 千", "10000": "万", "1000000": "million 百万",
         "100000000": "亿", "1000000000": "billion 十亿", "12": "dozen"},
}  # fmt: skip
_KNOWN: dict[str, Unit] = {}
for _base, _factors in _TABLE.items():
    for _factor, _spellings in _factors.items():
        for _spelling in _spellings.split():
            _of = Unit(Fraction(_factor), ((_base, 1),) if _base else ())
            _KNOWN.setdefault(_spelling, _of)
            if len(_spelling) > 3 and _spelling.isascii():
                _KNOWN.setdefault(f"{_spelling}s", _of)
_KNOWN.update(mins=_KNOWN["min"], hrs=_KNOWN["h"], secs=_KNOWN["s"], kgs=_KNOWN["kg"], days=_KNOWN["day"])

SINGLE = frozenset("mgshlLNJVWAKCF")
"""Letters that are units where a space or upright type sets them off, and variables elsewhere."""
_CASED = {"C": "°c", "F": "°f"}
_POWER_WORD = re.compile(r"(square|sq\.?|cubic|cu\.?|平方|立方)\s*")
_RAISED = re.compile(r"(.*?)\s*(?:\^?\s*\{?\s*(-?[1-4])\s*\}?|\s(squared|cubed))")


@lru_cache(maxsize=4096)
def unit(text: str) -> Unit | None:
    """The unit that a text names, products and quotients included; None where it names none that is known."""
    text = re.sub(r"[{}~]|\\[,;:! ]", " ", text).replace("²", "^2").replace("³", "^3")
    text = re.sub(r"\s+", " ", text.replace("℃", "°C").replace("\\cdot", "·").replace("\\", "")).strip(" .")
    if not text or len(text) > 40:
        return None
    factor, powers = Fraction(1), dict[str, int]()
    for place, piece in enumerate(re.split(r"\s*/\s*|\s+per\s+|每", text)):
        for one in re.split(r"\s*[·⋅*]\s*", piece.strip(" ()")):
            known = _single(one)
            if known is None:
                return None
            sign = -1 if place else 1
            factor *= known.factor**sign
            for base, power in known.dimension:
                powers[base] = powers.get(base, 0) + sign * power
    if powers.get("L"):  # a liter is a volume
        liters = powers.pop("L")
        factor, powers["m"] = factor * Fraction(1, 1000) ** liters, powers.get("m", 0) + 3 * liters
    return Unit(factor, tuple(sorted((base, power) for base, power in powers.items() if power)))


def _single(text: str) -> Unit | None:
    if len(text) == 1 and text.isascii() and text.isalpha() and text not in SINGLE:
        return None
    word = _POWER_WORD.match(text)
    power = 1
    if word:
        power, text = (3 if word[1][0] in "c立" else 2), text[word.end() :]
    known = _KNOWN.get(_CASED.get(text, text.lower()))
    raised = None if known else _RAISED.fullmatch(text)
    if raised and raised[1]:
        power = int(raised[2]) if raised[2] else 2 if raised[3] == "squared" else 3
        known = _KNOWN.get(raised[1].strip().lower())
    if known is None or power == 1:
        return known
    return Unit(known.factor**power, tuple((base, power * times) for base, times in known.dimension))


_WORDS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
        " sixteen seventeen eighteen nineteen twenty".split()
    )
} | {
    word: 10 * number
    for number, word in enumerate("thirty forty fifty sixty seventy eighty ninety".split(), 3)
}
_LONGER_FIRST = "|".join(sorted(_WORDS, key=len, reverse=True))
_SPELLED = re.compile(
    rf"\b({_LONGER_FIRST})(?:[- ](one|two|three|four|five|six|seven|eight|nine))?\b(?!-)", re.I
)
_FRACTIONS = [
    (re.compile(r"\b(?:a |one )half\b|(?<![\w-])half(?= |$)(?! of)", re.I), "1/2"),
    (re.compile(r"\b(?:a|one) (?:third)\b", re.I), "1/3"), (re.compile(r"\btwo thirds\b", re.I), "2/3"),
    (re.compile(r"\b(?:a|one) (?:quarter|fourth)\b", re.I), "1/4"),
    (re.compile(r"\bthree (?:quarters|fourths)\b", re.I), "3/4"),
]  # fmt: skip
_AND_A_HALF = re.compile(r"(\d) and (?:a|one) half\b", re.I)
_WORD_AND_A_HALF = re.compile(rf"\b({_LONGER_FIRST}) and (?:a|one) half\b", re.I)
_SIGN = re.compile(r"(?<!\d )(?<!\d)\b(?:[Mm]inus|[Nn]egative) (?=[\d$\\])")


def with_signs(text: str) -> str:
    """A text with "minus 3" and "5 and a half" in figures; "10 minus 3" stays."""
    if "inus " in text or "egative " in text:
        text = _SIGN.sub("-", text)
    return _AND_A_HALF.sub(r"\1.5", text) if " half" in text else text


def in_figures(text: str) -> str:
    """A text with its number words in figures, up to ninety-nine."""
    return with_signs(_SPELLED.sub(_figure, _halves(text)))


def _figure(match: "re.Match[str]") -> str:
    tens, ones = _WORDS[match[1].lower()], _WORDS.get((match[2] or "zero").lower(), 0)
    return match[0] if ones and tens < 20 else str(tens + ones)


def _halves(text: str) -> str:
    text = _WORD_AND_A_HALF.sub(lambda match: f"{_WORDS[match[1].lower()]}.5", text)
    for pattern, figures in _FRACTIONS:
        text = pattern.sub(figures, text)
    return text

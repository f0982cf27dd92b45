r"""One table of units and number words, for `math`, `choice` and `open_answer`.

unit("square meters")       -> Unit(Fraction(1), (("m", 2),))
unit("km/h")                -> Unit(Fraction(5, 18), (("m", 1), ("s", -1)))
in_figures("minus 3")       -> "-3"           in_figures("two and a half") -> "2.5"
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple


class Unit(NamedTuple):
    """How many of the base units it is, and of what dimension; () for a plain factor such as "million"."""

    factor: Fraction
    dimension: tuple[tuple[str, int], ...]


PERCENT, DEGREES, RADIANS = (("%", 1),), (("°", 1),), (("rad", 1),)

# Base -> factor -> spellings; plurals are added. A dimension of its own is its own base.
_TABLE: dict[str, dict[str, str]] = {
    "m": {"1": "m meter metre 米 公尺", "1/10": "dm decimeter 分米", "1/100": "cm centimeter centimetre 厘米",
          "1/1000": "mm millimeter millimetre 毫米", "1/1000000": "μm um micrometer 微米",
          "1/1000000000": "nm nanometer",
          "1000": "km kilometer kilometre 千米 公里", "500": "里", "0.0254": "in inch inches",
          "0.3048": "ft foot feet",
          "0.9144": "yd yard", "1609.344": "mi mile"},
    "g": {"1": "g gram 克", "1000": "kg kgs kilogram 千克 公斤", "1/1000": "mg milligram 毫克", "500": "斤",
          "1000000": "t ton tonne 吨", "453.59237": "lb lbs pound 磅", "28.349523125": "oz ounce"},
    "s": {"1": "s sec secs second 秒", "60": "min mins minute 分钟 分", "3600": "h hr hrs hour 小时 时",
          "1/1000": "ms millisecond", "86400": "day days 天 日", "604800": "week 周", "31536000": "year 年",
          "2592000": "month 月"},
    "L": {"1": "l liter litre 升", "1/1000": "ml milliliter millilitre 毫升", "1/100": "cl"},
    "°": {"1": "° deg degree 度"}, "°C": {"1": "°c celsius 摄氏度"}, "°F": {"1": "°f fahrenheit"},
    "K": {"1": "k kelvin"}, "%": {"1": "% percent pct"}, "N": {"1": "n newton 牛 牛顿", "1000": "kn"},
    "J": {"1": "j joule 焦 焦耳", "1000": "kj kilojoule 千焦", "3600000": "kwh 千瓦时"},
    "cal": {"1": "cal calorie 卡", "1000": "kcal 千卡"},
    "eV": {"1": "ev", "1000": "kev", "1000000": "mev"}, "W": {"1": "w watt 瓦 瓦特",
    "1000": "kw kilowatt 千瓦"},
    "V": {"1": "v volt 伏 伏特", "1000": "kv", "1/1000": "mv"}, "A": {"1": "a amp ampere 安 安培",
    "1/1000": "ma 毫安"},
    "H": {"1": "henry 亨"}, "T": {"1": "tesla 特斯拉"}, "S": {"1": "siemens"}, "Wb": {"1": "wb weber 韦伯"},
    "C": {"1": "coulomb 库仑"}, "dB": {"1": "db decibel 分贝"}, "lx": {"1": "lx lux"},
    "lm": {"1": "lm lumen"}, "B": {"1": "byte 字节"},
    "Ω": {"1": "ω ohm 欧 欧姆", "1000": "kω"}, "Pa": {"1": "pa pascal 帕", "1000": "kpa", "1000000": "mpa"},
    "Hz": {"1": "hz hertz 赫兹", "1000": "khz"}, "mol": {"1": "mol mole 摩尔"}, "F": {"1": "f farad"},
    "dollar": {"1": "dollar usd 美元", "1/100": "cent"}, "yuan": {"1": "yuan rmb 元", "1/10": "角",
    "10000": "万元"},
    "acre": {"1": "acre"}, "hectare": {"1": "hectare ha 公顷"}, "mph": {"1": "mph"},
    "rad": {"1": "rad radian 弧度"},
    "": {"100": "hundred", "1000": "thousand 千", "10000": "万", "1000000": "million", "100000000": "亿",
         "1000000000": "billion", "12": "dozen"},
}  # fmt: skip
_KNOWN = {
    spelling + plural: Unit(Fraction(factor), ((base, 1),) if base else ())
    for base, factors in _TABLE.items()
    for factor, spellings in factors.items()
    for spelling in spellings.split()
    for plural in (("", "s") if len(spelling) > 3 and spelling.isascii() else ("",))
}
SINGLE = frozenset("mgshlLNJVWAKCF")
"""Letters that are units where a space or upright type sets them off, and variables elsewhere."""
_CASED = {"C": "°c", "F": "°f", "H": "henry", "T": "tesla", "S": "siemens"}
_PREFIXED = re.compile(r"([pnμmkMGT])(F|H|T|S|Wb|C|W|A|V|Ω|s|g|N|J|Pa|Hz|eV|B)")
_PREFIXES = dict(
    zip("pnμmkMGT", (Fraction(10) ** power for power in (-12, -9, -6, -3, 3, 6, 9, 12)), strict=True)
)
_BASES = {"F": "farad", "C": "coulomb", "B": "byte", "H": "henry", "T": "tesla", "S": "siemens"}
"""Of units with a prefix, whose case counts: mW is not MW."""
_POWER_WORD = re.compile(r"(square|sq\.?|cubic|平方|立方)\s*")
_RAISED = re.compile(r"(.*?)\s*\^?\s*(-?[1-4])")


@lru_cache(maxsize=4096)
def unit(text: str) -> Unit | None:
    """The unit that a plain text names, products and quotients included; None where it names none."""
    text = re.sub(r"[{}~⟦⟧\s]+", " ", text).strip(" .")
    if not text or len(text) > 40:
        return None
    factor, powers = Fraction(1), dict[str, int]()
    for place, piece in enumerate(re.split(r" ?/ ?| per |每", text)):
        between = r" ?[·*] ?" if "^-" not in text else r" ?[·* ] ?"  # "m s^-2"
        for one in re.split(between, piece.strip(" ()")):
            known = _single(one)
            if known is None:
                return None
            sign = -1 if place else 1
            factor *= known.factor**sign
            for base, power in known.dimension:
                powers[base] = powers.get(base, 0) + sign * power
    liters = powers.pop("L", 0)  # a liter is a volume
    powers["m"] = powers.get("m", 0) + 3 * liters
    dimension = tuple(sorted((base, power) for base, power in powers.items() if power))
    return Unit(factor * Fraction(1, 1000) ** liters, dimension)


def _single(text: str) -> Unit | None:
    if len(text) == 1 and text.isascii() and text.isalpha() and text not in SINGLE and text not in _CASED:
        return None
    prefixed = _PREFIXED.fullmatch(text)
    if prefixed:
        base = _KNOWN[_BASES.get(prefixed[2], prefixed[2].lower())]
        return Unit(base.factor * _PREFIXES[prefixed[1]], base.dimension)
    word = _POWER_WORD.match(text)
    power, text = (3 if word[1][0] in "c立" else 2, text[word.end() :]) if word else (1, text)
    known = _KNOWN.get(_CASED.get(text, text.lower()))
    raised = None if known else _RAISED.fullmatch(text)
    if raised and raised[1]:
        power = int(raised[2])
        known = _KNOWN.get(raised[1].strip().lower())
    if known is None or power == 1:
        return known
    return Unit(known.factor**power, tuple((base, power * times) for base, times in known.dimension))


WORDS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
        " sixteen seventeen eighteen nineteen twenty".split()
    )
} | {
    word: 10 * number
    for number, word in enumerate("thirty forty fifty sixty seventy eighty ninety".split(), 3)
}
_SHARES = dict(half=2, halv=2, third=3, quarter=4, fourth=4, fifth=5, sixth=6, eighth=8, tenth=10)
_SPELLED = re.compile(
    rf"(?<!\bthe )(?<!these )(?<!those )(?<!between )\b({'|'.join(sorted(WORDS, key=len, reverse=True))})"
    rf"(?:[- ](one|two|three|four|five|six|seven|eight|nine))?\b(?!-(?!{'|'.join(_SHARES)}))", re.IGNORECASE
)  # fmt: skip
_SHARE = re.compile(rf"([1-9])(?<![\d.].)[- ]({'|'.join(_SHARES)})(?:s|es)?\b", re.IGNORECASE)
_AND_A_HALF = re.compile(r"(?<=\d) and (?:a|one) half\b", re.IGNORECASE)
_SIGN = re.compile(r"(?<!\d )(?<!\d)\b(?:[Mm]inus|[Nn]egative) (?=[\d$\\])")


def with_signs(text: str) -> str:
    """A text with "minus 3" and "5 and a half" in figures; "10 minus 3" stays."""
    if "inus " in text or "egative " in text:
        text = _SIGN.sub("-", text)
    return _AND_A_HALF.sub(".5", text) if " half" in text else text


def in_figures(text: str) -> str:
    """A text with its number words in figures, up to ninety-nine, and simple fractions: "two thirds"."""
    text = with_signs(_SPELLED.sub(_figure, text))
    return _SHARE.sub(lambda match: f"{match[1]}/{_SHARES[match[2].lower()]}", text)


def _figure(match: "re.Match[str]") -> str:
    tens, ones = WORDS[match[1].lower()], WORDS[(match[2] or "zero").lower()]
    return match[0] if ones and tens < 20 else str(tens + ones)

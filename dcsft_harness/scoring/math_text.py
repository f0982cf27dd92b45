r"""Texts in the form that math-verify reads: LaTeX, figures, and boxes without units.

    prepared("The area is 2√3.", "2")      -> r"The area is $2\sqrt{3}$."
    prepared(r"\boxed{5\,cm^2}", "5")      -> r"\boxed{5}"
    prepared("It is minus 3.", "3")         -> "It is -3."

math-verify reads no characters beyond LaTeX's: of "2√3" it takes the 2. So these are put in LaTeX first, and
so is an expression that ends a text without any dollar sign or box, of which it would take a part as well.
In a box it takes a unit that is not in \text{} for variables, unless the unit is a plain word that it knows.
"""

import re

from dcsft_harness.scoring.keyed import keyed_answer
from dcsft_harness.scoring.plain_text import in_figures, without_html
from dcsft_harness.scoring.quantities import spelled
from dcsft_harness.scoring.tags import boxes

_LATEX = {
    "π": "\\pi ", "°": "^\\circ ", "º": "^\\circ ", "²": "^2", "³": "^3", "½": "\\frac{1}{2}",
    "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}",
    **dict.fromkeys("−–‐‑‒﹣－", "-"), "·": "\\cdot ", "×": "\\times ",
}  # fmt: skip
_CHARACTER = re.compile(f"[{''.join(_LATEX)}]")
_MIXED = re.compile(r"(\d{1,9})\s?([¼½¾])")
_PARTS = {"¼": ".25", "½": ".5", "¾": ".75"}
_ROOT = re.compile(r"√\s?(?:\(([^()]{1,40})\)|\{([^{}]{1,40})\}|(\d{1,12}(?:\.\d{1,12})?|[A-Za-z]))")
_ANCHORS = ("$", "oxed", "\\(", "\\[")
_PIECE = (
    r"\\frac\{[^{}]{1,40}\}\{[^{}]{1,40}\}|\\sqrt\{[^{}]{1,40}\}|\\(?:pi|cdot|times)(?![A-Za-z])"
    r"|\d{1,12}(?:\.\d{1,12})?|[-+*/^() ]"
)
_CHINESE = re.compile(r"(?<=[\u4e00-\u9fff：，。、])(?=[-\d\\$])|(?<=\d)(?=[\u4e00-\u9fff])")
_WORDS_OF_UNITS = (
    r"(?:square|cubic|sq\.?)\s[a-z]+|(?:centi|milli|kilo)?(?:met(?:er|re)|gram|lit(?:er|re))s?|degrees?|dollars?"
    r"|cents?|units?|hours?|minutes?|seconds?|days?|miles?|feet|foot|inch(?:es)?|yards?|pounds?|[cmkd]m|ml|km/h|mph|m/s"
    r"|kg|sec|min|ft|in|yd|lb"
)
_UNIT = (
    rf"(?:(?:square |cubic )?(?:{_WORDS_OF_UNITS}|m|rad(?:ians)?)(?:\^[23]| squared| cubed)?"
    r"|[\u4e00-\u9fff]{1,6})"
)
_LAST = re.compile(rf"(?<![\w.\\}}])(?=[^ ])((?:{_PIECE}){{1,40}}+)((?:{_UNIT})?[.。]?)$")
_SCALE = re.compile(r"(?<=\\circ)\s?\}?\s?[CF]$")
_POWER = r"(?:\s?\^\s?\{?[23]\}?)?"
_GAP = r"(?:\s|\\[,;:! ]|~)*"
_UNIT_LAST = re.compile(rf"(?<=[\d}}i]){_GAP}(?:{_WORDS_OF_UNITS}){_POWER}{_GAP}$")
# "m" alone may be a variable, so only where the gold has none.
_LETTER_LAST = re.compile(rf"(?<=[\d}}i])(?:\s|\\[,;:! ]|~)+[mgshlL]{_POWER}{_GAP}$")
_CHINESE_LAST = re.compile(rf"(?<=[\d}}i]){_GAP}(?:\\text\s?\{{)?[\u4e00-\u9fff]{{1,6}}\}}?$")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_LETTER = re.compile(r"[A-Za-z]")
_DIGIT = re.compile(r"\d")
_LEAD = re.compile(r"^\s*\\(?:text|mathrm|textbf)\s?\{[^{}:]{0,40}:\s*\}")
_STYLE = re.compile(r"\\(?:underline|textcolor\s?\{[a-z]{1,20}\}|color\s?\{[a-z]{1,20}\})\s?\{([^{}]*)\}")
_THOUSANDS = re.compile(r"(?<=\d)\\,(?=\d{3}(?!\d))")


def prepared(text: str, gold: str) -> str:
    """The end of a response for math-verify; what its gold is decides whether "5 m" is 5 metres."""
    if "oxed" not in text:
        keyed = keyed_answer(text)
        if keyed and keyed.value:
            text = keyed.behind if _DIGIT.search(keyed.behind) else keyed.value.replace("\\\\", "\\")
        text = without_html(text) if "<" in text else text
        number = spelled(text.strip())
        text = str(number.value) if number else in_figures(text)
    return _anchored(_in_latex(_boxes_without_units(text, _LETTER.search(_COMMAND.sub("", gold)) is None)))


def prepared_gold(gold: str) -> str:
    """The gold for math-verify."""
    return _in_latex(_UNIT_LAST.sub("", gold))


def _boxes_without_units(text: str, letters: bool) -> str:
    """A text whose boxes hold values alone; `letters` says whether a single letter may be a unit."""
    if "oxed" not in text:
        return text
    for content in set(boxes(text)):
        bare = (
            _STYLE.sub(r"\1", _LEAD.sub("", content)).replace("\\degree", "^\\circ").replace("°", "^\\circ")
        )
        bare = _SCALE.sub("", bare)
        bare = _CHINESE_LAST.sub("", _UNIT_LAST.sub("", _THOUSANDS.sub("", bare.rstrip(" ."))))
        bare = _LETTER_LAST.sub("", bare) if letters else bare
        if bare.strip() and bare != content:
            text = text.replace(f"{{{content}}}", f"{{{bare}}}")
    return text


def _in_latex(text: str) -> str:
    """A text with the characters that math-verify does not read in LaTeX."""
    if text.isascii():
        return text
    text = _CHINESE.sub(" ", text)
    text = _MIXED.sub(lambda match: f"{match[1]}{_PARTS[match[2]]}", text)
    text = _ROOT.sub(lambda match: f"\\sqrt{{{match[1] or match[2] or match[3]}}}", text)
    return _CHARACTER.sub(lambda match: _LATEX[match[0]], text)


def _anchored(text: str) -> str:
    """A text without dollar signs, with some around the root, π or fraction that it ends in."""
    if "\\" not in text or any(anchor in text for anchor in _ANCHORS):
        return text
    text = text.rstrip()
    last = _LAST.search(text, max(0, len(text) - 200))
    if last is None or "\\" not in last[1]:
        return text
    return f"{text[: last.start()]}${last[1].strip()}$ {last[2]}"

r"""Expressions in LaTeX and plain text: turned into arithmetic, and compared by exact values.

same(parse(r"\frac{1}{\sqrt{2}}"), parse("√2/2"))      -> True
same(parse("(x+1)^2"), parse("x^2+2x+1"))              -> True
same(parse(r"\frac{1}{2006!}"), parse(r"\frac{1}{2004!}")) -> False

An expression is kept as the source of Python arithmetic, which is walked and never run. Rational arithmetic
is exact; roots, π and functions are taken to 60 digits, of which 40 have to agree relative to the value.
Names have a few fixed rational values. Depth, length and the size of powers are bounded, so that no
text costs more than milliseconds.
"""

import ast
import math
import operator
import re
import zlib
from fractions import Fraction
from functools import lru_cache
from typing import Any
from unicodedata import normalize

from mpmath.ctx_mp import MPContext

from dcsft_harness.scoring.normalize import COMMANDS, WIDE, in_signs
from dcsft_harness.scoring.units import unit

_LONGEST, _DEEPEST = 600, 24
"""Characters, and pairs of braces one in another, of one expression."""
_BITS = 40_000
"""Size of the largest exact integer."""


class Unreadable(ValueError):
    """The text is no expression that `parse` knows."""


_ENGLISH = (
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda nu xi rho sigma tau phi chi psi omega Gamma"
    " Delta Theta Lambda Sigma Phi Psi varepsilon vartheta varphi triangle ell"
)
GREEK = dict(zip(_ENGLISH.split(), "αβγδεζηθκλνξρστφχψωΓΔΘΛΣΦΨεθφ△l", strict=True))
_COMMANDS = COMMANDS | GREEK | {
    "ast": "·", "mid": "|", "vert": "|", "lvert": "|", "rvert": "|", "colon": ":", "prime": "'",
    "percent": "%", "langle": "(", "rangle": ")",
    "Rightarrow": "⇒", "or": "⟦or⟧", "lor": "⟦or⟧", "vee": "⟦or⟧", "land": "⟦and⟧", "{": "⦃", "}": "⦄",
    "%": "%", "#": "#",
    "|": "|", **dict.fromkeys(("circ", "degree", "textdegree"), "°"), **dict.fromkeys("$!", ""),
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_ARGUMENT = r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
_WORDS = re.compile(rf"\\(?:text[a-z]{{0,6}}|mathrm|mathsf|mathit|unit|mbox|operatorname\*?){_ARGUMENT}")
_UNWRAPPED = re.compile(
    rf"\\(?:boxed|fbox|underline|number|num|mathbf|boldsymbol|bm|mathbb|mathcal|textcolor\s*\{{\w*\}}|emph"
    rf"|overline(?=\s*\{{[A-Z]{{2}}\}})){_ARGUMENT}"
)
_COUNTED = re.compile(r"([-+]?\d[\d.,:]*)(\s*)(\D+(?:\^?\{?[23]\}?)?)")
_IN_LIST = re.compile(r",\s*(?:and |or )?|\s+(?:and|or)\s+")
_OPTIONS = re.compile(r"\(?[A-H](?:\)|(?:, ?[A-H])+)")
_QUANTITY = re.compile(rf"\\(?:quantity|SI|qty){_ARGUMENT}{_ARGUMENT}")
_NAMED = re.compile(r"\\(vec|hat|widehat|bar|tilde)\s*(?:\{([^{}]*)\}|([A-Za-z]))")
_DEGREE = re.compile(r"(?:\{\s*\})?\s*\^\s*(?:\{\s*°\s*'?\s*\}|°)|\{\s*°\s*\}|textdegree\b")
_MINUTES = re.compile(r"(\d+)°\s*(\d+)\s*(?:\^\s*)?\{?'\}?(?!')(?:\s*(\d+)\s*(?:\^\s*)?\{?(?:''|\")\}?)?")
_THIN = re.compile(r"(?<=\d)(?:\\[,!]|,\\! ?)(?=\d{3}(?!\d))")
_TWICE_ESCAPED = re.compile(
    r"\\(?=\\(?:[dt]?frac|left|right|sqrt|text|[lg]e|pi|circ|times)(?![a-z]))(?<!\\\\)"
)
_CIRCLED = re.compile(r"\\textcircled\s*\{?\s*(\d)\s*\}?")
_GLUED = re.compile(r"\\(?=math|bold|bm)(?<=[a-z].)")  # a letter in other type: \in\mathbb{R}
_UNIT_POWER = re.compile(r"(?<=[\dπ}])(\s?(?:[cdk]?m|mm|m/s|km/h))([23])(?!\w)")  # 36 cm2
_BRACED_UNIT = re.compile(r"(?<=[\dπ}])\{([a-z]{2,20})\}")
_APART = re.compile(
    r"(?<=\d)\s*μ\s?(?:⟦[A-Za-z]{1,2}⟧|[A-Z](?![\w⟦])|(?<=\s)[ms](?![\w⟦]))|⟦[kMmμ]⟧\s?Ω"
)  # \mu\text{F}
_NO_BRACKETS = str.maketrans("", "", "⟦⟧ ")
_PLAIN_NAMES = re.compile(r"(?<![A-Za-z\\⟦])(sqrt|pi|sin|cos|tan|ln|log)(?![a-z])")
_FRACTIONS = re.compile(r"\\[dtcs]frac(?![a-z])")
_ONE_BELOW = re.compile(r"_\s*\{\s*(\w)\s*\}")
_NUMBERED = re.compile(r"(?<![A-Za-z\d\\}])([a-zA-Z])([12])(?=\s?=)")  # x1 = 2
_POWER = re.compile("⁻?[⁰¹²³⁴-⁹]+")
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")
_LIMIT = re.compile(r"\\lim(?![a-z])\s*_\s*\{[^{}]*\}[^=.,;\n]*=")
_SUBSCRIPT = re.compile("[₀-₉ₐ-ₜ]+")
_BIG = re.compile(r"\\(?:[bB]ig{1,2}[lrm]?|left|right)(?![A-Za-z])\s*\.?|\\color\s*\{\w*\}")
_SYSTEM = re.compile(
    r"(?:(?:\\left\s*)?\\\{\s*)?\\begin\s*\{(cases|array|aligned|align\*?|split|gathered)\}"
    r"(?:\s*\{[lcr| ]*\})?(.*?)\\end\s*\{\1\}(?:\s*\\right\s*\.)?",
    re.DOTALL,
)
_ALIGNMENT = re.compile(r"&(?=\s*(?:[=<>≤≥&]|\\(?:[lg]e|approx|\\)|$))|(?<=\\\\)\[[\d.]+ ?[a-z]{2}\]")
_RELATED = re.compile(r"[=<>≤≥]|\\[lg]e")


def laid_out(text: str) -> str:
    """A text whose systems of equations are lists, and whose derivations are lines."""
    return _SYSTEM.sub(_listed, text) if "\\begin" in text else text


def _listed(match: "re.Match[str]") -> str:
    lines = [" ".join(line.split()).strip(" ,;") for line in _ALIGNMENT.sub("", match[2]).split("\\\\")]
    lines = [line for line in lines if line]
    if match[1] not in ("cases", "array"):
        return "\n".join(lines)
    is_system = all("," not in line and _RELATED.search(line) for line in lines)
    return ", ".join(lines) if is_system else match[0]  # pieces of a function, or a matrix


def clean(text: str) -> str:
    """LaTeX and Unicode in one form: signs as characters, words in ⟦⟧, sets in ⦃⦄, vectors in ⟨⟩."""
    if not text.isascii():
        text = text.replace("，", ", ").replace("根号", "√")
        text = _SUBSCRIPT.sub(r"_{\g<0>}", text)
        text = _POWER.sub(lambda match: f"^{{{normalize('NFKC', match[0])}}}", text)
    text = in_signs(text).replace("\x0c", "\\f").replace("\x08", "\\b")
    if "=" in text:
        text = _NUMBERED.sub(r"\1_\2", text.replace("<=", "≤").replace(">=", "≥").replace(" != ", " ≠ "))
    text = WIDE.sub(" ", text) if "  " in text else text
    text = _TIMES_TEN.sub("×", text) if "10" in text else text
    if "\\" in text:
        text = _TWICE_ESCAPED.sub("", _CIRCLED.sub(r"(\1)", _GLUED.sub(r" \\", text)))
        text = _LIMIT.sub("", text) if "\\lim" in text else text
        text = _BIG.sub("", _FRACTIONS.sub(r"\\frac", _THIN.sub("", laid_out(text))))
        for _ in range(3):
            text = _UNWRAPPED.sub(r"\1", _QUANTITY.sub(r"\1⟦\2⟧", text))
        text = _WORDS.sub(_word, text)
        text = text.replace("\\overrightarrow", "\\vec")
        text = _NAMED.sub(_named, text)
        text = _COMMAND.sub(
            lambda match: _COMMANDS.get(match[1], match[0] if match[1].isalpha() else " "), text
        )
    text = _BRACED_UNIT.sub(r"⟦\1⟧", text) if "{" in text else text
    if "μ" in text or "Ω" in text:
        text = _APART.sub(lambda match: f"⟦{match[0].strip().translate(_NO_BRACKETS)}⟧", text)
    text = _UNIT_POWER.sub(r"\1^\2", text) if "m2" in text or "m3" in text or "s2" in text else text
    text = _ONE_BELOW.sub(r"_\1", text) if "_" in text else text
    text = _PLAIN_NAMES.sub(r"\\\1", text).replace("\\pi", "π")
    if "°" in text or "textdegree" in text:
        text = _DEGREE.sub("°", text)
        text = _MINUTES.sub(_degrees, text)
    return text.replace("{,}", "").replace("~", " ")


def _degrees(match: "re.Match[str]") -> str:
    degrees, minutes, seconds = (Fraction(one or 0) for one in match.groups())
    return f"({degrees + minutes / 60 + seconds / 3600})°"


def _named(match: "re.Match[str]") -> str:
    """A name with a mark in ⟨⟩; a vector of one letter is printed bold as well, and then has no mark."""
    inner = (match[2] or match[3]).strip()
    return inner if match[1] == "vec" and len(inner) == 1 else f"⟨{match[1][-3:]} {inner}⟩"


def _word(match: "re.Match[str]") -> str:
    inner = match[1].strip(" ~")
    spaced = " " if not inner or match[1][0] in " ~" else ""
    is_words = any(one.isalpha() and one not in "eπ" for one in inner.replace("\\pi", "π"))
    if not is_words or _OPTIONS.fullmatch(inner):
        return f"{spaced}{inner}"  # figures, signs, Euler's number, letters of options
    pieces = _IN_LIST.split(inner)
    if len(pieces) > 1 and all(piece[:1].isdigit() for piece in pieces):  # 30 yuan, 50 yuan
        return spaced + ", ".join(_worded(one, "") if re.search("[^\\W\\d]", one) else one for one in pieces)
    return _worded(inner, spaced)


def _worded(inner: str, spaced: str) -> str:
    counted = _COUNTED.fullmatch(inner)
    if counted and (counted[2] or unit(counted[3])):
        spaced, inner = f"{spaced}{counted[1]}", counted[3]
    joined = re.sub(
        r" *\b(and|or)\b *", r"⟧⟦\1⟧⟦", re.sub("或者?", " or ", re.sub("[和及且]", " and ", inner))
    )
    return f"{spaced}⟦{joined}⟧".replace("⟦⟧", " ")


Node = str
"""The source of an expression; a name is "v" and its hexadecimal code."""
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|lg|exp|sqrt"
_PROSE = re.compile(
    r"(?<![A-Za-z])(?:[A-Za-z]*[a-z]{4}|[A-Z][a-z]{2}|(?i:yes|not?|the|and|are|for|get|has|was|can|but|its|our|one|two"
    r"|six|ten|let|so|we|is|it|of|or|to|if|on|at|by|an|do|my|us|all|any)(?![A-Za-z]))"
)
_NO_PROSE = re.compile(rf"\\[A-Za-z]+|⟨[^⟩]*⟩|{_FUNCTIONS}")
_MIXED = re.compile(r"(?<![\d.^{}\\/_])(?<!sqrt)(\d+)(?: *\\frac\{(\d+)\}\{(\d+)\}| (\d+)/(\d+)(?![\d.]))")
_DIGIT_ABOVE = re.compile(r"\\frac\s*(\d|[a-zα-ω])")
_DIGIT_BELOW = re.compile(r"(\\frac\s*\{[^{}]*\})\s*(\d|[a-zα-ω])")
_INNERMOST = re.compile(
    r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}|(?:\\sqrt|√)\s*(?:\[([^\[\]{}]*)\])?\s*(?:\{([^{}]*)\}|(\d+|[a-zα-ω]))"
    r"|_\s*\{([^{}]*)\}|(?<!frac)(?<!frac )(?<!\})\{([^{}]*)\}"
)
_CALL = re.compile(
    rf"\\({_FUNCTIONS})\s*(?:_\s*(\d|⟨\d+⟩))?\s*(?:\^\s*\(?(-?\d)\)?)?\s*(?:(?=\()|((?:[\dπ.]|[A-Za-zα-ωΑ-Ω](?!\())+°?))"
)
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>\d+(?:\.\d+)?(?:[eE][-+]?\d{{1,3}}(?![A-Za-z\d]))?|\.\d+)|(?P<call>(?:{_FUNCTIONS}|abs|root)\d*(?:__\d+)?(?=\())"
    rf"|(?P<name>(?:[∠△]\s*[A-Z\dα-ω]+|Δ\s*[A-Za-zα-ω]|⟦[A-Za-z]⟧|[A-Za-zα-ωΑ-Ωπ∞△]'*|⟨[^⟩]*⟩)(?:_(?:\w|⟨[^⟩]*⟩))?)"
    r"|(?P<other>\S))"
)
_OTHER = {"·": "*", "×": "*", "*": "*", "/": "/", "+": "+", "-": "-", "^": "**", "(": "(", ")": ")", "[": "(",
          "]": ")", ",": ",", "!": "**FACTORIAL", "%": "/100", "°": "*DEGREE"}  # fmt: skip


@lru_cache(maxsize=8192)
def parse(text: str) -> Node:
    """The source of a `clean` expression, without units, lists and relations.

    Raises:
        Unreadable: it is none.
    """
    if len(text) > _LONGEST:
        raise Unreadable("longer than an expression is")
    if _PROSE.search(_NO_PROSE.sub(" ", text)):
        raise Unreadable("words")
    text = _MIXED.sub(_mixed, _DIGIT_BELOW.sub(r"\1{\2}", _DIGIT_ABOVE.sub(r"\\frac{\1}", text)))
    for _ in range(_DEEPEST):
        text, count = _INNERMOST.subn(_group, text)
        if not count:
            break
    text = re.sub(r"\|([^|]+)\|", r"abs(\1)", _CALL.sub(_call, text.replace("√", "sqrt")))
    source, before = "", ""
    for match in _TOKEN.finditer(text):
        kind, token = str(match.lastgroup), match[str(match.lastgroup)]
        if kind == "other" and token not in _OTHER or kind == "number" and before in ("number", "name"):
            raise Unreadable(f"{token!r} inside an expression")
        if before in ("number", "name", ")") and (kind != "other" or token in "(["):
            source += "*"
        if kind == "number":
            number = str(Fraction(token))
            source += f"({number})" if "/" in number else number
        elif kind == "name":
            source += "v" + re.sub("[ ⟦⟧]", "", token).encode().hex()
        else:
            source += _OTHER.get(token, token)
        before = ")" if kind == "other" and token in ")]!%°" else kind
    try:
        ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise Unreadable("no expression") from error
    return source


def _mixed(match: "re.Match[str]") -> str:
    above, below = match[2] or match[4], match[3] or match[5]
    return f"({match[1]}+{above}/{below})" if int(above) < int(below) else match[0]


def _group(match: "re.Match[str]") -> str:
    above, below, index, inner, digit, under, plain = match.groups()
    if above is not None:
        return f"(({above})/({below}))"
    if under is not None:
        return f"_⟨{under}⟩"
    if plain is not None:
        return f"({plain})" if plain.strip() else ""
    return f"root({inner or digit},{index})" if index else f"sqrt({inner or digit})"


def _call(match: "re.Match[str]") -> str:
    name, base, power, argument = match.groups()
    name = f"{name}{(base or '').strip('⟨⟩')}"
    name = f"arc{name}" if power == "-1" else f"{name}__{power}" if power else name
    return f"{name}({argument})" if argument else name


def names(tree: Node) -> frozenset[str]:
    """The names in an expression, constants left out."""
    return frozenset(re.findall("v[0-9a-f]+", tree)) - _CONSTANTS.keys()


def is_name(tree: Node) -> bool:
    """Whether an expression is one name and nothing else."""
    return len(names(tree)) == 1 and re.fullmatch("v[0-9a-f]+", tree) is not None


_EXACT = MPContext()  # our own, as mpmath's global one is shared
_EXACT.dps = 60
_POINTS = 4
INFINITE = "v" + "∞".encode().hex()
PI = "v" + "π".encode().hex()
_CONSTANTS = {PI: +_EXACT.pi, "v65": +_EXACT.e, "v69": _EXACT.mpc(0, 1), INFINITE: None}
_RENAMED = {"ln": "log", "lg": "log10", "log": "log10", "arcsin": "asin", "arccos": "acos", "arctan": "atan"}
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@lru_cache(maxsize=8192)
def _body(tree: Node) -> ast.expr:
    return ast.parse(tree, mode="eval").body


def value(tree: Node, point: int = 0) -> Any:  # noqa: ANN401 - mpmath has no types
    """The value of an expression, a Fraction or a number of mpmath; its names are at one of the fixed points.

    Raises:
        Unreadable: it has none there, or one that is too large.
    """
    try:
        return _value(_body(tree), point, 1)
    except (ArithmeticError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise Unreadable(str(error)) from error


def _value(node: Any, point: int, degree: Any) -> Any:  # noqa: ANN401
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand, point, degree)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.Name):
        known = Fraction(1) * degree if node.id == "DEGREE" else _CONSTANTS.get(node.id)
        return _at(node.id, point) if known is None else known
    if isinstance(node, ast.Call):
        arguments = [_value(one, point, _EXACT.pi / 180) for one in node.args]
        return _called(ast.unparse(node.func), arguments, point)
    left = _value(node.left, point, degree)
    if isinstance(node.op, ast.Pow) and isinstance(node.right, ast.Name) and node.right.id == "FACTORIAL":
        is_whole = isinstance(left, Fraction) and left.denominator == 1 and 0 <= left <= 3000
        return Fraction(math.factorial(int(left))) if is_whole else _called("gamma", [left + 1], point)
    right = _value(node.right, point, degree)
    if isinstance(node.op, ast.Pow):
        return _raised(left, right)
    if not (isinstance(left, Fraction) and isinstance(right, Fraction)):
        left, right = _inexact(left), _inexact(right)
    elif left.numerator.bit_length() + right.numerator.bit_length() > _BITS:
        raise Unreadable("too large")
    return _OPERATORS[type(node.op)](left, right)


def _at(name: str, point: int) -> Fraction:
    if name == INFINITE:
        raise Unreadable("infinite")
    seed = zlib.crc32(f"{name}:{point}".encode())
    number = Fraction(seed % 97 + 3, seed // 97 % 89 + 11)
    return -number if point == _POINTS - 1 else number


def _inexact(number: Any) -> Any:  # noqa: ANN401
    return _EXACT.mpf(number.numerator) / number.denominator if isinstance(number, Fraction) else number


def _called(name: str, arguments: list[Any], point: int) -> Any:  # noqa: ANN401
    first, (name, _, power) = arguments[0], name.partition("__")
    if power:
        return _raised(_called(name, arguments, point), Fraction(power))
    if name == "abs":
        return abs(first)
    if name == "sqrt":
        if point == _POINTS - 1 and _EXACT.re(_inexact(first)) < 0:
            raise Unreadable("the root of a negative value")  # √a√b and √(ab) differ there alone
        return _raised(first, Fraction(1, 2))
    if name == "root":
        is_odd = isinstance(first, Fraction) and first < 0 and arguments[1] % 2
        return -_raised(-first, 1 / arguments[1]) if is_odd else _raised(first, 1 / arguments[1])
    if abs(first) > 10**6:
        raise Unreadable("too large")
    if name[:3] == "log" and name[3:]:
        return _EXACT.log(_inexact(first)) / _EXACT.log(int(name[3:]))
    return getattr(_EXACT, _RENAMED.get(name, name))(_inexact(first))


def _raised(base: Any, exponent: Any) -> Any:  # noqa: ANN401
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator == 1 and abs(exponent) * size <= _BITS:
            return base ** int(exponent)
    base, exponent = _inexact(base), _inexact(exponent)
    if base == 0 or abs(exponent) * abs(_EXACT.log(abs(base))) > 10**6:
        raise Unreadable("too large")
    return base**exponent


def same_value(a: Any, b: Any) -> bool:  # noqa: ANN401
    """Whether two values are one: exactly, or to 40 digits where roots or π are in them."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = _inexact(a), _inexact(b)
    size = max(abs(a), abs(b))
    return bool(abs(a - b) <= size * _EXACT.mpf(10) ** -40 or size < _EXACT.mpf(10) ** -50)


def _values(a: Node, b: Node) -> list[tuple[Any, Any]]:
    """The values of two expressions at the points where both have one."""
    found = []
    for point in range(_POINTS if names(a) | names(b) else 1):
        try:
            found.append((value(a, point), value(b, point)))
        except Unreadable:
            continue
    return found


def same(a: Node, b: Node) -> bool:
    """Whether two expressions have equal values, wherever both have one."""
    found = [] if a == b else _values(a, b)
    return a == b or bool(found) and all(same_value(*both) for both in found)


def proportion(a: Node, b: Node) -> int:
    """How two expressions relate: 1 or -1 for multiples by a positive or negative constant; else 0."""
    found = _values(a, b)
    ratios = [_inexact(left) / _inexact(right) for left, right in found if abs(right) > 1e-45]
    if len(ratios) < max(1, len(found)) or not all(same_value(ratio, ratios[0]) for ratio in ratios):
        return 0
    return 0 if _EXACT.im(ratios[0]) or abs(ratios[0]) < 1e-45 else 1 if _EXACT.re(ratios[0]) > 0 else -1

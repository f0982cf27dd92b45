r"""Expressions in LaTeX and plain text: parsed by rule, and compared by exact values.

same(parse(r"\frac{1}{\sqrt{2}}"), parse("√2/2"))      -> True
same(parse("(x+1)^2"), parse("x^2+2x+1"))              -> True
same(parse(r"\frac{1}{2006!}"), parse(r"\frac{1}{2004!}")) -> False

Rational arithmetic is exact; roots, π and functions are taken to 60 digits, of which 40 have to agree
relative to the value. Names stand for a few fixed rational numbers. What would take long has no value:
depth, length and the size of powers are bounded, so that no text costs more than milliseconds.
"""

import math
import re
import unicodedata
import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

from dcsft_harness.scoring.units import unit

LONGEST = 600
"""Characters of one expression."""
_DEEPEST = 24
_BITS = 40_000
"""Size of the largest exact integer."""


class Unreadable(ValueError):
    """The text is no expression that `parse` knows."""


_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "·": "*", "×": "*", "⋅": "*",
    "÷": "/", "⁄": "/",
    "º": "°", "˚": "°", "∘": "°", "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}",
    "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "⩽": "≤", "⩾": "≥", "≦": "≤", "≧": "≥", "℃": "°C", "∶": ":",
    "²": "^{2}", "³": "^{3}", "⁴": "^{4}", "ⁿ": "^{n}", "、": ", ", "，": ", ", "；": "; ",
    "。": ". ", "％": "%",
    "⟨": "(", "⟩": ")", "′": "'", "’": "'", "￥": "", "¥": "", "€": "", "£": "", "µ": "μ", "Ω": "Ω",
    "⟶": "→", "\u200b": "", "\x0c": "\\f", "\x08": "\\b",
    **{chr(0x2460 + i): f"({i + 1})" for i in range(20)},
}  # fmt: skip
_SIGN = re.compile(f"[{''.join(_SIGNS)}]")
_COMMANDS = {
    **dict.fromkeys(("times", "cdot", "ast", "centerdot"), "*"), "div": "/", "pi": "π",
    "infty": "∞", "cup": "∪",
    **dict.fromkeys(("le", "leq", "leqslant", "leqq"), "≤"),
    **dict.fromkeys(("ge", "geq", "geqslant", "geqq"), "≥"),
    **dict.fromkeys(("ne", "neq"), "≠"), **dict.fromkeys(("approx", "thickapprox", "simeq"), "≈"), "lt": "<",
    "gt": ">", "in": "∈", "pm": "±", "mp": "∓", "angle": "∠", "to": "→", "rightarrow": "→",
    "longrightarrow": "→",
    "Omega": "Ω", "mu": "μ", "mid": "|", "vert": "|", "lvert": "|", "rvert": "|", "colon": ":", "prime": "'",
    "Rightarrow": "⇒", "or": "⟦or⟧", "lor": "⟦or⟧", "vee": "⟦or⟧", "land": "⟦and⟧", "percent": "%",
    **dict.fromkeys(("circ", "degree", "textdegree", "degrees"), "°"), "yen": "", "euro": "", "pounds": "",
    **dict.fromkeys(
        "left right big Big bigg Bigg bigl bigr Bigl Bigr displaystyle limits nolimits quad qquad"
        " hfill newline rm bf it textstyle phantom".split(), " "),
}  # fmt: skip
_ESCAPED = {
    "{": "⦃",
    "}": "⦄",
    "%": "%",
    "$": "",
    "\\": "\n",
    "#": " ",
    "&": " ",
    "_": " ",
    "|": "|",
    "!": "",
}
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_ARGUMENT = r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
_WORDS = re.compile(rf"\\(?:text[a-z]{{0,6}}|mathrm|mathsf|mathit|unit|mbox|operatorname\*?){_ARGUMENT}")
_UNWRAPPED = re.compile(
    rf"\\(?:boxed|fbox|underline|number|num|mathbf|boldsymbol|bm|mathbb|mathcal|textcolor\s*\{{\w*\}}|displaylines"
    rf"|emph){_ARGUMENT}"
)
_QUANTITY = re.compile(rf"\\(?:quantity|SI|qty){_ARGUMENT}{_ARGUMENT}")
_NAMED = re.compile(
    r"\\(overrightarrow|vec|hat|widehat|bar|tilde|overset\{\\frown\})\s*(?:\{([^{}]*)\}|([A-Za-z]))"
)
_OVERLINE = re.compile(r"\\overline\s*\{([A-Z]{2})\}")
_DEGREE = re.compile(r"(?:\{\s*\})?\s*\^\s*(?:\{\s*°\s*'?\s*\}|°)|\{\s*°\s*\}|textdegree\b")
_THIN = re.compile(r"(?<=\d)\\[,!](?=\d{3}(?!\d))")
_BRACED_UNIT = re.compile(r"(?<=[\dπ}])\{([a-z]{2,20})\}")
_PLAIN_NAMES = re.compile(r"(?<![A-Za-z\\⟦])(sqrt|pi|sin|cos|tan|ln|log)(?![a-z])")
_COLOR = re.compile(r"\\color\s*\{\w*\}")
_FRACTIONS = re.compile(r"\\[dtcs]frac(?![a-z])")
_BIG = re.compile(r"\\(?:[bB]ig{1,2}[lrm]?|left|right)\s*\.?")


def clean(text: str) -> str:
    """LaTeX and Unicode in one form: signs as characters, words in ⟦⟧, sets in ⦃⦄, vectors in ⟨⟩."""
    if not text.isascii():
        text = _SIGN.sub(lambda match: _SIGNS[match[0]], text)
        text = unicodedata.normalize("NFKC", text)
    elif "\x0c" in text or "\x08" in text:
        text = text.replace("\x0c", "\\f").replace("\x08", "\\b")
    if "\\" in text:
        text = _BIG.sub(" ", _FRACTIONS.sub(r"\\frac", _THIN.sub("", text).replace("\\\\", "\n")))
        text = _COLOR.sub("", text) if "color" in text else text
        for _ in range(3):
            text = _UNWRAPPED.sub(r"\1", _QUANTITY.sub(r"\1⟦\2⟧", text))
        text = _WORDS.sub(_word, text)
        text = _OVERLINE.sub(
            r"\1", _NAMED.sub(lambda match: f"⟨{match[1][:4]} {match[2] or match[3]}⟩", text)
        )
        text = _COMMAND.sub(_command, text)
    if "{" in text:
        text = _BRACED_UNIT.sub(lambda match: f"⟦{match[1]}⟧" if unit(match[1]) else match[0], text)
    text = _PLAIN_NAMES.sub(r"\\\1", text) if _PLAIN_NAMES.search(text) else text
    text = text.replace("\\pi", "π")
    if "°" in text or "textdegree" in text:
        text = _DEGREE.sub("°", text)
    return text.replace("{,}", "").replace("~", " ").replace("$\\$", "$")


def _word(match: "re.Match[str]") -> str:
    inner = match[1].strip(" ~")
    if not inner:
        return " "
    spaced = " " if match[1][:1] in " ~" else ""
    if not any(one.isalpha() and one not in "eπ" for one in inner.replace("\\pi", "π")):
        return f"{spaced}{inner}"  # figures, signs, Euler's number
    joined = re.sub(r"\s*\b(and|or)\b\s*", r"⟧⟦\1⟧⟦", inner)
    return f"{spaced}⟦{joined}⟧".replace("⟦⟧", " ")


def _command(match: "re.Match[str]") -> str:
    name = match[1]
    if name in _COMMANDS:
        return _COMMANDS[name]
    if not name[0].isalpha():
        return _ESCAPED.get(name, " ")
    return match[0]


# Trees: ("n", Fraction), ("v", name), (operator, left, right), ("f", function, argument), ("deg", inner).
Node = tuple[Any, ...]

_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp sqrt abs".split()
)
_CONSTANTS = frozenset("πei∞")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?![A-Za-z\d]))?|\.\d+)|\\(?P<command>[A-Za-z]+)"
    r"|⟦(?P<word>[^⟧]*)⟧|⟨(?P<named>[^⟩]*)⟩|(?P<letter>[A-Za-zα-ωΑ-Ω]'*)|(?P<other>\S))"
)
_GREEK = frozenset("alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda nu xi rho"
                   " sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi triangle"
                   " ell".split())  # fmt: skip
_PROSE = re.compile(
    r"(?<![A-Za-z\\])(?:[A-Za-z]*[a-z]{4}|[A-Z][a-z]{2}|(?i:yes|not?|the|and|are|for|get|has|was|can|but|its|our|one"
    r"|two|six|ten|let|so|we|is|it|of|or|to|if|on|at|by|an|do|my|us|all|any)(?![A-Za-z]))"
)


@lru_cache(maxsize=8192)
def parse(text: str) -> Node:
    """The tree of a `clean` expression, without units, lists and relations.

    Raises:
        Unreadable: it is none.
    """
    if len(text) > LONGEST or text.count("{") + text.count("(") > 80:
        raise Unreadable("longer than an expression is")
    plain = re.sub(r"\\[A-Za-z]+|⟨[^⟩]*⟩", " ", text)
    if _PROSE.search(re.sub("|".join(_FUNCTIONS), " ", plain)):
        raise Unreadable("words")
    return _Parser(text).whole()


class _Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        for match in _TOKEN.finditer(text):
            kind = str(match.lastgroup)
            self._tokens.append((kind, match[kind]))
        self._at = 0
        self._depth = 0

    def whole(self) -> Node:
        tree = self._sum()
        if self._at < len(self._tokens):
            raise Unreadable(f"{self._tokens[self._at][1]!r} inside an expression")
        return tree

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _take(self, of: str) -> str:
        kind, token = self._peek()
        if kind != "other" or token not in of:
            return ""
        self._at += 1
        return token

    def _want(self, token: str) -> None:
        if not self._take(token):
            raise Unreadable(f"no {token!r}")

    def _sum(self) -> Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise Unreadable("nested too deep")
        negative = False
        while sign := self._take("+-"):
            negative ^= sign == "-"
        tree = self._product()
        tree = ("-", ("n", Fraction(0)), tree) if negative else tree
        while sign := self._take("+-"):
            tree = (sign, tree, self._signed(self._product))
        self._depth -= 1
        return tree

    def _signed(self, read: Callable[[], Node]) -> Node:
        negative = False
        while sign := self._take("+-"):
            negative ^= sign == "-"
        tree = read()
        return ("-", ("n", Fraction(0)), tree) if negative else tree

    def _product(self, stop: bool = False) -> Node:
        tree = self._power()
        while True:
            kind, token = self._peek()
            if kind == "other" and token in "*/" and not stop:
                self._at += 1
                tree = (token, tree, self._signed(self._power))
            elif kind in ("letter", "named", "command", "word") or (kind == "other" and token in "([√π∞∠△"):
                if stop and (kind == "command" and token in _FUNCTIONS or token in "(["):
                    return tree
                if kind == "word" and len(token) > 1:
                    raise Unreadable(f"the word {token!r}")
                tree = ("*", tree, self._power())
            elif kind == "number" and tree[0] not in ("n", "/") and self._tokens[self._at - 1][1] in ")]}":
                tree = ("*", tree, self._power())
            else:
                return tree

    def _power(self) -> Node:
        tree = self._atom()
        while True:
            if self._take("^"):
                tree = ("^", tree, self._exponent())
            elif self._take("!"):
                tree = ("f", "factorial", tree)
            elif self._take("°"):
                tree = ("deg", tree)
            elif self._take("%"):
                tree = ("/", tree, ("n", Fraction(100)))
            elif self._take("{"):  # perhaps an empty pair, as in 50{}^\circ
                if not self._take("}"):
                    tree = ("*", tree, self._sum())
                    self._want("}")
            else:
                return tree

    def _exponent(self) -> Node:
        return self._signed(self._group)

    def _group(self) -> Node:
        """What stands in braces, or one digit, letter or command, as LaTeX takes it; or a number."""
        if self._take("{"):
            tree = self._sum()
            self._want("}")
            return tree
        if self._take("("):
            tree = self._sum()
            self._want(")")
            return tree
        return self._atom()

    def _argument(self) -> Node:
        r"""What \frac and \sqrt take: braces, else one digit or letter."""
        kind, token = self._peek()
        if kind == "number" and len(token) > 1 and token.isdigit():
            self._tokens[self._at] = (kind, token[1:])
            return ("n", Fraction(int(token[0])))
        return self._group()

    def _atom(self) -> Node:
        kind, token = self._peek()
        self._at += 1
        if kind == "number":
            return self._number(token)
        if kind in ("letter", "named") or (kind == "word" and len(token) == 1):
            return self._name(token)
        if kind == "command":
            return self._call(token)
        if kind == "other":
            if token in "([{":
                tree = self._sum()
                self._want({"(": ")", "[": "]", "{": "}"}[token])
                return tree
            if token == "|":
                tree = self._sum()
                self._want("|")
                return ("f", "abs", tree)
            if token == "√":
                return ("f", "sqrt", self._group())
            if token in "π∞":
                return ("v", token)
            if token in "∠△":
                name = token
                while self._peek()[0] in ("letter", "number") or self._peek()[1] in _GREEK:
                    name += self._tokens[self._at][1]
                    self._at += 1
                if len(name) > 1:
                    return ("v", name)
        raise Unreadable(f"{token or 'the end'!r} where a value is due")

    def _number(self, token: str) -> Node:
        if len(token) > 400:
            raise Unreadable("too many digits")
        whole = ("n", Fraction(token))
        following = self._tokens[self._at : self._at + 7]
        if token.isdigit() and [one for _, one in following[:2]] == ["frac", "{"]:  # 2\frac{1}{2}
            above, below = (following[2][1], following[5][1]) if len(following) == 7 else ("", "")
            braces = [one for _, one in following[3:5]] + [following[6][1]] if len(following) == 7 else []
            if braces == ["}", "{", "}"] and above.isdigit() and below.isdigit() and int(above) < int(below):
                self._at += 7
                return ("n", whole[1] + Fraction(int(above), int(below)))
        if token.isdigit() and len(following) >= 3 and following[1][1] == "/":  # 2 1/2
            above, below = following[0][1], following[2][1]
            if above.isdigit() and below.isdigit() and int(above) < int(below):
                self._at += 3
                return ("n", whole[1] + Fraction(int(above), int(below)))
        return whole

    def _name(self, name: str) -> Node:
        if self._take("_"):
            name += "_" + "".join(map(str, _flat(self._group())))
        return ("v", name)

    def _call(self, name: str) -> Node:
        if name == "frac":
            above = self._argument()
            return ("/", above, self._argument())
        if name == "sqrt":
            if self._take("["):
                index = self._sum()
                self._want("]")
                return ("root", self._argument(), index)
            return ("f", "sqrt", self._argument())
        if name in _GREEK:
            return self._name(name)
        if name not in _FUNCTIONS:
            raise Unreadable(f"\\{name}")
        base: Node | None = None
        power: Node | None = None
        if self._take("_"):
            base = self._argument()
        if self._take("^"):
            power = self._exponent()
        inner = _in_radians(self._product(stop=True))
        if power == ("-", ("n", Fraction(0)), ("n", Fraction(1))) and name in ("sin", "cos", "tan"):
            return ("f", f"arc{name}", inner)
        if base is not None and name == "log":
            tree: Node = ("/", ("f", "ln", inner), ("f", "ln", base))
        else:
            tree = ("f", "lg" if name == "log" else name, inner)
        return tree if power is None else ("^", tree, power)


def _flat(tree: Node) -> list[Any]:
    return [one for part in tree for one in (_flat(part) if isinstance(part, tuple) else [part])]


def _in_radians(tree: Node) -> Node:
    if tree[0] == "deg":
        return ("/", ("*", tree[1], ("v", "π")), ("n", Fraction(180)))
    return tuple(_in_radians(part) if isinstance(part, tuple) else part for part in tree)


@lru_cache(maxsize=8192)
def names(tree: Node) -> frozenset[str]:
    """The names in an expression, constants left out."""
    if tree[0] == "v":
        return frozenset() if tree[1] in _CONSTANTS else frozenset({tree[1]})
    return frozenset().union(*(names(part) for part in tree if isinstance(part, tuple)))


@lru_cache(maxsize=1)
def _context() -> Any:  # noqa: ANN401 - mpmath's context, of our own, as its global one is shared
    from mpmath.ctx_mp import MPContext  # type: ignore[import-untyped]

    context = MPContext()
    context.dps = 60
    return context


_POINTS = 4


def _at(name: str, point: int) -> Fraction:
    seed = zlib.crc32(f"{name}:{point}".encode())
    value = Fraction(seed % 97 + 3, seed // 97 % 89 + 11)
    return -value if point == _POINTS - 1 else value


def value(tree: Node, point: int = 0) -> Any:  # noqa: ANN401 - a Fraction, or a number of mpmath's
    """The value of an expression with its names at one of the fixed points.

    Raises:
        Unreadable: it has none there, or one that is too large.
    """
    try:
        return _value(tree, point)
    except (ArithmeticError, ValueError, TypeError) as error:
        raise Unreadable(str(error)) from error


def _value(tree: Node, point: int) -> Any:  # noqa: ANN401 - as above
    kind = tree[0]
    if kind == "n":
        return tree[1]
    if kind == "v":
        return _named(tree[1], point)
    if kind == "deg":
        return _value(tree[1], point)
    if kind == "f":
        return _called(tree[1], _value(tree[2], point), point)
    left, right = _value(tree[1], point), _value(tree[2], point)
    if kind == "root":
        return _rooted(left, right)
    if kind == "^":
        return _raised(left, right)
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        if left.numerator.bit_length() + right.numerator.bit_length() > _BITS:
            raise Unreadable("too large")
    else:
        left, right = _inexact(left), _inexact(right)
    if kind == "/":
        return left / right
    return left * right if kind == "*" else left + right if kind == "+" else left - right


def _inexact(number: Any) -> Any:  # noqa: ANN401 - as above
    if not isinstance(number, Fraction):
        return number
    context = _context()
    return context.mpf(number.numerator) / context.mpf(number.denominator)


def _named(name: str, point: int) -> Any:  # noqa: ANN401 - as above
    context = _context()
    if name == "π":
        return +context.pi
    if name == "e":
        return +context.e
    if name == "i":
        return context.mpc(0, 1)
    if name == "∞":
        raise Unreadable("infinite")
    return _at(name, point)


def _called(name: str, argument: Any, point: int) -> Any:  # noqa: ANN401 - as above
    context = _context()
    if name == "abs":
        return abs(argument)
    if name == "factorial":
        if isinstance(argument, Fraction) and argument.denominator == 1 and 0 <= argument <= 3000:
            return Fraction(math.factorial(int(argument)))
        if abs(argument) > 10**6:
            raise Unreadable("too large")
        return context.gamma(_inexact(argument) + 1)
    if name == "sqrt":
        if point == _POINTS - 1 and context.re(_inexact(argument)) < 0:
            raise Unreadable("the root of a negative value")  # √a√b and √(ab) differ there alone
        return _raised(argument, Fraction(1, 2))
    if abs(argument) > 10**6:
        raise Unreadable("too large")
    function = {"ln": "log", "lg": "log10", "arcsin": "asin", "arccos": "acos", "arctan": "atan"}.get(
        name, name
    )
    return getattr(context, function)(_inexact(argument))


def _rooted(inner: Any, index: Any) -> Any:  # noqa: ANN401 - as above
    if not isinstance(index, Fraction) or index.denominator != 1 or not 1 <= index <= 1000:
        raise Unreadable("the index of a root")
    if isinstance(inner, Fraction) and inner < 0 and index % 2:
        return -_raised(-inner, 1 / index)
    return _raised(inner, 1 / index)


def _raised(base: Any, exponent: Any) -> Any:  # noqa: ANN401 - as above
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator == 1 and abs(exponent) * size <= _BITS:
            return base ** int(exponent)
        root = _exact_root(base, exponent)
        if root is not None:
            return root
    context = _context()
    base, exponent = _inexact(base), _inexact(exponent)
    if base == 0:
        raise Unreadable("a power of zero")
    if abs(exponent) * abs(context.log(abs(base))) > 10**6:
        raise Unreadable("too large")
    return base**exponent


def _exact_root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """The square root of a square number; roots of others are taken to 60 digits."""
    if exponent != Fraction(1, 2) or base < 0 or base.numerator.bit_length() > 4000:
        return None
    above, below = math.isqrt(base.numerator), math.isqrt(base.denominator)
    return Fraction(above, below) if above**2 == base.numerator and below**2 == base.denominator else None


def same_value(a: Any, b: Any) -> bool:  # noqa: ANN401 - as `value` returns them
    """Whether two values are one: exactly, or to 40 digits where roots or π are in them."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = _inexact(a), _inexact(b)
    if a == b:
        return True
    size = max(abs(a), abs(b))
    return bool(abs(a - b) <= size * _context().mpf(10) ** -40) or bool(
        size < _context().mpf(10) ** -50 and (a == 0 or b == 0)
    )


def same(a: Node, b: Node) -> bool:
    """Whether two expressions have equal values, wherever both have one."""
    if a == b:
        return True
    together = names(a) | names(b)
    compared = 0
    for point in range(_POINTS if together else 1):
        try:
            values = value(a, point), value(b, point)
        except Unreadable:
            continue
        if not same_value(*values):
            return False
        compared += 1
    return compared > 0


def proportion(a: Node, b: Node) -> str | None:
    """How two expressions relate that are constant multiples: "+", "-", "0" if both are zero; else None."""
    ratios: list[Any] = []
    zeros = 0
    for point in range(_POINTS):
        try:
            left, right = value(a, point), value(b, point)
        except Unreadable:
            continue
        nothing = [same_value(one, Fraction(0)) or abs(one) < 1e-45 for one in (left, right)]
        if all(nothing):
            zeros += 1
        elif any(nothing):
            return None
        else:
            ratios.append(_inexact(left) / _inexact(right))
    if not ratios:
        return "0" if zeros else None
    if not all(same_value(ratio, ratios[0]) for ratio in ratios):
        return None
    context = _context()
    if abs(context.im(ratios[0])) > 1e-40:
        return None
    return "+" if context.re(ratios[0]) > 0 else "-"

"""Values of closed arithmetic: "3/√2" is "(3√2)/2", "12-π" is no other option.

value("2(√5-1)") -> 2.4721359549995796      value("3x+2") -> None

For options and answers with roots, π and powers, which `quantities` does not read. No names, no
calls and no `eval`: a text that is not arithmetic from end to end has no value. Two values are the
same if they agree to 12 digits, far beyond what two different options share by chance.
"""

import math
import re

_TOKEN = re.compile(r"\s*(?:(\d{1,12}(?:\.\d{1,12})?|\.\d{1,12})|([-+*·×/^()√π]))")
_LONGEST = 60
_DEEPEST = 12


def value(text: str) -> float | None:
    """The value of a plain text that is arithmetic with numbers, + - * / ^, roots and π, else None."""
    if len(text) > _LONGEST:
        return None
    tokens: list[str] = []
    position, text = 0, text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or (match[1] and tokens and tokens[-1][-1].isdigit()):
            return None  # two numbers side by side are a mixed number or a list
        tokens.append(match[1] or match[2])
        position = match.end()
    try:
        parser = _Parser(tokens)
        result = parser.sum(0)
    except (ValueError, ArithmeticError):
        return None
    return result if parser.at_end() and math.isfinite(result) else None


def same(a: float, b: float) -> bool:
    """Whether two values are equal up to rounding in floating point."""
    return math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12)


class _Parser:
    """Recursive descent over the tokens of one expression; ValueError where there is no expression."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._next = 0

    def at_end(self) -> bool:
        return self._next == len(self._tokens)

    def _take(self, of: str) -> str:
        """The next token if it is one of `of`, which is then passed over; else an empty string."""
        token = "" if self.at_end() else self._tokens[self._next]
        if not token or token not in of:
            return ""
        self._next += 1
        return token

    def sum(self, depth: int) -> float:
        if depth > _DEEPEST:
            raise ValueError("nested too deep")
        total = self._product(depth)
        while sign := self._take("+-"):
            term = self._product(depth)
            total += term if sign == "+" else -term
        return total

    def _product(self, depth: int) -> float:
        sign = -1.0 if self._take("+-") == "-" else 1.0
        result = sign * self._power(depth)
        while not self.at_end() and self._tokens[self._next] not in "+-)":
            if self._take("/"):
                result /= self._power(depth)
            else:
                self._take("*·×")  # or nothing: "2√5" is a product as well
                result *= self._power(depth)
        return result

    def _power(self, depth: int) -> float:
        base = self._atom(depth)
        if self._take("^"):
            exponent = (-1.0 if self._take("-") else 1.0) * self._atom(depth)
            if abs(exponent) > 64 or base < 0 and exponent != int(exponent):
                raise ValueError("a power that is too large, or complex")
            base **= exponent
        return base

    def _atom(self, depth: int) -> float:
        if self._take("("):
            inner = self.sum(depth + 1)
            if not self._take(")"):
                raise ValueError("an open bracket")
            return inner
        if self._take("√"):
            if depth > _DEEPEST:
                raise ValueError("nested too deep")
            return math.sqrt(self._atom(depth + 1))
        if self._take("π"):
            return math.pi
        if self.at_end() or not self._tokens[self._next][-1].isdigit():
            raise ValueError("no number")
        self._next += 1
        return float(self._tokens[self._next - 1])

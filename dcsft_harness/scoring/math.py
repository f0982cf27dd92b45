r"""Free-form mathematical answers: golds that are read into their parts and checked, responses alike.

    math(r"... so \boxed{\frac{1}{2}}", answer="0.5")       -> Verdict(1.0, "\\frac{1}{2}")
    math(r"\boxed{10}", answer="$$7$$ $$10$$")              -> Verdict(0.0, "10"): one part of two
    math(r"\boxed{50 mm}", answer="5 cm")                   -> Verdict(1.0, "50 mm")

An answer is a list of parts: values with units, ratios, points, intervals, sets, equations, inequalities.
They are read by `formulas` and `units` and compared exactly.

A gold is refused where its plain restatement in a box would not be right, or where a part alone or another
value would be. Words, yes and no, matrices, sums and integrals are refused.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.scoring.formulas import (
    INFINITE,
    PI,
    Node,
    Unreadable,
    clean,
    is_name,
    laid_out,
    names,
    parse,
    proportion,
    same,
    value,
)
from dcsft_harness.scoring.normalize import (
    REFUSAL,
    answer_part,
    boxes,
    first_turn,
    json_answer,
    last,
    last_box,
)
from dcsft_harness.scoring.units import DEGREES, PERCENT, RADIANS, SINGLE, Unit, in_figures, unit, with_signs
from dcsft_harness.scoring.verdict import NOT_FOUND, Scorer, Verdict, text_gold

TAIL = 4_000
"""Characters of a response that are read, from its end."""
LONGEST_GOLD = 1_500


@dataclass(frozen=True)
class Part:
    """One part of an answer.

    Attributes:
        kind: "value", "ratio", "tuple" (a point or an interval) or "relation".
        text: as it was read.
        trees: the value; the members of a ratio; the sides of a relation.
        unit: of a value, where it is known.
        items: of a tuple; an end of an interval that is missing is infinite.
        marks: the brackets of a tuple, the signs of a relation.
        name: what has this value or lies in this interval, "" where it is not named.
        label: the name as it is written, also where it only labels a number: "a" of "a = 2".
    """

    kind: str
    text: str
    trees: tuple[Node, ...] = ()
    unit: Unit | None = None
    items: tuple["Part", ...] = ()
    marks: tuple[str, ...] = ()
    name: str = ""
    label: str = field(default="", compare=False)


@dataclass(frozen=True)
class Answer:
    """The parts of an answer, and whether their order counts."""

    parts: tuple[Part, ...]
    is_ordered: bool = False
    text: str = field(default="", compare=False)


_BLOCK = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
_CURRENCY = re.compile(r"\\\$|[€£¥￥](?=\s?\d)|(?<=\d)\s?[€£]")
_NUMBERING = re.compile(r"(?:^|(?<=[\s\d.;,}$)⟧]))\((\d{1,2})\)|(?:^|(?<=\s))(\d)\.(?=\s)")
_ENUMERATED = re.compile(r"(?:\(\d{1,2}\)\s*[,;]?\s*(?:and\s*)?){2,}|(?:\d\.\s?){2,}\d?|\d(?:\.\d){2,}")
_THOUSANDS = re.compile(
    r"(?<![\d.,])[1-9]\d{0,2}(?:(?:,\d{3})+(?![\d,])|(?: \d{3})+(?=\.\d)|(?: 000)+(?!\d))"
)
_SEPARATOR = r"\n|[;,→∪]|⟦\s*(?:or|and)\s*⟧|\b(?:or|and)\b|或者?|和|及|且"
_WHOLE = r"\s*∈\s*⟦?[ZNRQ]⟧?"
_SCOPE = re.compile(rf"[a-z](?:, ?[a-z])?{_WHOLE}[\W_]*")  # what a parameter is taken from: "k∈Z"
_SET = re.compile(rf"(?:⦃|\{{(?=[^{{}}]*\}}$))(\s*[A-Za-z](?:{_WHOLE})?\s*[|:])?(.+)[⦄}}]", re.DOTALL)
_IN_SET = re.compile(r"^[A-Za-z]\s*∈\s*(?=[⦃{])")  # x ∈ {2, 3}
_NUMBERS = re.compile(r"[-+]?\d+(?:\.\d+)?(?:\s+[-+]?\d+(?:\.\d+)?)+")
_NO_ZERO = re.compile(r"\.(?<![\w.)}\]].)(?=\d)")
_EDGES = " \t\n.,;:?。"
_COMPOUND = re.compile(
    r"(\d+(?:\.\d+)?)\s*⟦?\s*([A-Za-z]+|[\u4e00-\u9fff]{1,2})\s*⟧?(?:\s*⟦?and⟧?)?\s*"
    r"(\d+(?:\.\d+)?)\s*⟦?\s*([A-Za-z]+|[\u4e00-\u9fff]{1,2})(?![A-Za-z\u4e00-\u9fff])\s*⟧?"
)
_FIGURES = re.compile(r"-?\d+(?:\.\d+)?")
_CLOCK = re.compile(r"0\d")
_HALF_OF_DAY = re.compile(r"(?<=\d)\s*⟦?\s*([ap])\.?\s?m\b\.?\s*⟧?$", re.IGNORECASE)
_RELATION = r"[=<>≤≥≠≈∈]"
_BELOW = r"'*(?:_(?:\w|\{[^{}]{1,20}\}))?"
"""What may follow a letter in a name: primes and a subscript."""
_NAME = re.compile(
    r"\|?(?:\\(?:sin|cos|tan|cot)\s*)?(?:Δ?\s*[A-Za-zα-ωΑ-Ω]|⟨[^⟩]*⟩|\\[a-zA-Z]+|[A-Z]{1,4}|m?\s*[∠△]\s*[A-Zα-ω]{1,3}\d?|⟦[^⟧]{1,30}⟧)"
    rf"{_BELOW}(?:\(-?[^()+*/^-]{{1,20}}\))?\|?"
)
_OF_NAMES = re.compile(rf"\(?[A-Za-zα-ω]{{1,3}}{_BELOW}(?:\s*[,:]\s*[A-Za-zα-ω]{{1,3}}{_BELOW}){{1,3}}\)?")
"""What is named before a point or a ratio: "(x, y)" or "a:b"."""
_BEHIND = re.compile(
    r"(?P<upright>\s*(?:[/·]?\s*⟦[^⟧]+⟧(?:\s*\^\s*\{?-?\d\}?)?\s*)+(?:/\s*[A-Za-z]+)?)$"
    r"|(?<=[\d}\)π%°])(?P<spaced>\s+[A-Za-zΩμ][A-Za-z. ]{1,30}(?:\s?\^\s?\{?-?\d\}?)?)$"
    r"|(?<=[\d}\)π])(?P<glued>[A-Za-zμ]{2,}(?:\s?\^\s?\{?-?\d\}?)?"
    r"|\s*(?:[A-Za-zμ]{1,6}(?:\^\{?\d\}?)?\s?[/·]\s?\(?)+[A-Za-zμ]{1,5}(?:\^\{?-?\d\}?)?\)?)$"
    r"|(?P<sign>\s*(?:[\u4e00-\u9fff/]{1,8}|[kM]?Ω|°\s?[CF]?|%))$"
    r"|(?<=[\d})])(?P<letter>\s*[A-Za-z](?:\s?\^\s?\{?[23]\}?)?)$"
)
_NUMERIC = re.compile(
    r"[-+]?\s*\d+(?:\.\d+)?(?:\s*[×·][\s{]*10[\s}]*\^[\s{]*-?\d+[\s}]*)?|\((?:\\sqrt|[^A-Za-z()])+\)"
    r"|\d*(?:√|\\sqrt)\s*\{?\d+\}?"
)
"""What is a number, so that a letter behind it is a unit: 3×10^6 J, (2+√3) m, 10√3 m."""
_ANGLE_OF = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)[^+-]*$")
_COUNTED = re.compile(
    r"(?!.*\b(?i:or|and|if|when|where|is|are|not|no|times|than|the|a|answer|unique|correct|in total)\b)"
    r"(?=.{3})[A-Za-z.^\d/]+(?: [A-Za-z.^\d/]+){0,3}|(?!.*[或和及且不是])[\u4e00-\u9fff]{1,6}"
)
_BRACKETED = re.compile(r"(?<=[\d}π])\s*\(([A-Za-z^\d/{} ]{2,15})\)$")
_REMARK = re.compile(
    r"(?<=\S)\s*(?:⟦\([^⟧]*\)⟧|\((?!or|[^()]*[可唯])[^()]*[<>≤≥≠∈为][^()]*\))$|(?<=[\d}π%°])\s+\([A-H]\)$"
)
"""A remark behind a value: "3 \\text{(cm)}", "2x (x > 0)", or the option that has it: "5 + 6 = 11 (B)"."""
_PREFIX = re.compile(
    r"^(?:⟦(?:\([A-H]\)|[A-H][.)]|(?:final )?answer:)⟧|\([A-H]\)\s+(?=[-\d\\])|≈|about |approximately )\s*",
    re.IGNORECASE,
)
_CONJUNCTION = re.compile(r"\b(?:when|where|since|because|if|as|for|while|but|so|then|given)\b")
_FACTORS = frozenset("hundred thousand million billion".split())
_SIGNS = frozenset("=<>≤≥≠≈")  # golds of items that ask for the sign between two quantities
_INFINITE = Part("value", "∞", (INFINITE,))
_FLIPPED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}


def read(text: str) -> Answer:
    """An answer's parts.

    Raises:
        Unreadable: some of it is no mathematics.
    """
    if len(text) > LONGEST_GOLD or text.count("{") > 200:
        raise Unreadable(f"an answer of {len(text):,} characters")
    pieces, is_ordered = _pieces(_without_dollars(text))
    parts = tuple(part for piece in pieces for part in _members(piece))
    if not parts:
        raise Unreadable("an empty set")
    return Answer(parts, is_ordered and len(parts) == len(pieces), text.strip())


def _without_dollars(text: str) -> str:
    """A clean text whose blocks of mathematics are lines where nothing joins them."""
    found, behind = "", -1
    text = _CURRENCY.sub("", text)
    for block in _BLOCK.finditer(text):
        between = text[max(behind, 0) : block.start()]
        joined = between if behind < 0 else f"{between} " if between.strip() else "\n"
        found, behind = f"{found}{joined}{block[1] or block[2]}", block.end()
    text = re.sub(r"\$|\\[()\[\]]", " ", f"{found}{text[max(behind, 0) :]}")
    return _NO_ZERO.sub("0.", _COMPOUND.sub(_compound, clean(text))).strip(_EDGES)


def _compound(match: "re.Match[str]") -> str:
    """3 hours 30 minutes as 7/2 hours: of one dimension, the larger unit first."""
    large, small = unit(match[2]), unit(match[4])
    if not (large and small and large.dimension == small.dimension and large.factor > small.factor):
        return match[0]
    return f"{Fraction(match[1]) + Fraction(match[3]) * small.factor / large.factor} ⟦{match[2]}⟧"


@cache
def _scanner(marks: str) -> "re.Pattern[str]":
    return re.compile(rf"(?P<open>[(\[{{⦃])|(?P<close>[)\]}}⦄])|{marks}")


def _cut(text: str, marks: str) -> tuple[list[str], list[str]]:
    """The pieces of a text between marks outside of brackets, and the marks."""
    pieces, found, depth, start = [], [], 0, 0
    for match in _scanner(marks).finditer(text):
        depth += bool(match["open"]) - bool(match["close"])
        if depth <= 0 and not match["open"] and not match["close"]:
            pieces.append(text[start : match.start()].strip())
            found.append(match[0])
            start = match.end()
    return [*pieces, text[start:].strip()], found


def _pieces(text: str) -> tuple[list[str], bool]:
    """The texts of the parts, and whether their order counts."""
    if _ENUMERATED.fullmatch(text):
        return re.findall(r"\d+", text), False
    marks = list(_NUMBERING.finditer(text))
    if len(marks) > 1 and [int(one[1] or one[2]) for one in marks] == list(range(1, len(marks) + 1)):
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        numbered = [text[mark.end() : end].strip(_EDGES) for mark, end in zip(marks, ends, strict=True)]
        if all(numbered) and not text[: marks[0].start()].strip():
            return [piece for one in numbered for piece in _pieces(one)[0]], True
    if "(" not in text and "⦃" not in text:
        text = _THOUSANDS.sub(lambda match: re.sub("[, ]", "", match[0]), text)
    pieces, found = _cut(text, _SEPARATOR)
    pieces = [piece.strip(_EDGES) for piece in pieces if piece.strip(_EDGES)]
    pieces = [piece for piece in pieces if not _SCOPE.fullmatch(piece)] or pieces
    is_ordered = "\n" in found or "→" in found
    if is_ordered or len(pieces) == 1 or not set(text) - set("<>=≤≥≠,; "):
        pieces = [one for some in pieces for one in (some.split() if _NUMBERS.fullmatch(some) else [some])]
        return pieces, is_ordered or len(pieces) > 1
    return pieces, False


def _members(piece: str) -> Iterator[Part]:
    """The part that a piece is, or the parts: of a set, or of an expression with ±."""
    described = _SET.fullmatch(_IN_SET.sub("", piece))
    if described and ("⦃" in piece[:9] or described[1] or "," in piece):
        for one in _pieces(described[2])[0]:
            yield from _members(one)
    elif "±" in piece or "∓" in piece:
        yield _part(piece.replace("±", "+").replace("∓", "-"))
        yield _part(piece.replace("±", "-").replace("∓", "+"))
    else:
        yield _part(piece)


def _part(text: str) -> Part:
    text = _BRACKETED.sub(lambda match: f" ⟦{match[1]}⟧" if unit(match[1]) else match[0], text)
    text = _PREFIX.sub("", _REMARK.sub("", text).strip().strip("*`").strip(_EDGES)).strip()
    half = _HALF_OF_DAY.search(text)
    if half:
        return replace(_part(text[: half.start()]), text=text, name=parse(half[1].lower()))
    sides, signs = _cut(text, _RELATION)
    if signs:
        return _related(text, sides, tuple(signs))
    listed = re.fullmatch(rf"([A-Z]{_BELOW}\s*)?([(\[])(.*)([)\]])", text, re.DOTALL)
    items = _cut(listed[3], "[,;]")[0] if listed else []
    if listed and len(items) > 1:
        marks, label = (listed[2], listed[4]), (listed[1] or "").strip()
        ends = tuple(_INFINITE if "∞" in one else _part(one) for one in items)
        return Part("tuple", text, items=ends, marks=marks, label=label)
    members = _cut(text, ":")[0]
    if len(members) == 2 and _CLOCK.fullmatch(members[1]):
        return Part("tuple", text, items=tuple(map(_part, members)), marks=(":",))
    if len(members) < 2:
        return _valued(text)
    return Part("ratio", text, tuple(_valued(one).trees[0] for one in members))


def _valued(text: str) -> Part:
    """A value and its unit."""
    bare, named = _unit_off(text)
    tree = parse(bare.strip())
    if named and not named.dimension:
        tree, named = f"({tree})*({named.factor})", None
    return Part("value", text, (tree,), named)


def _unit_off(text: str) -> tuple[str, Unit | None]:
    """A value's text without its unit, and the unit if it is known."""
    match = _BEHIND.search(text)
    if match is None or not match.start():
        return text, None
    bare, written = text[: match.start()].strip(), re.sub(r"[{}⟦⟧]", "", match[0]).strip()
    known = unit(written)
    if match["letter"]:
        is_number = _NUMERIC.fullmatch(bare) is not None
        is_unit = written[0] in SINGLE and (match[0][0] == " " or is_number)
    else:
        is_unit = bool(known or match["sign"] or not match["glued"] and _COUNTED.fullmatch(written))
    first = written.partition(" ")[0].lower()
    if is_unit and not known and first in _FACTORS:  # 3.45 thousand dollars
        return bare, unit(first)
    if not is_unit or written == "°" and _ANGLE_OF.search(bare):
        return text, None
    return bare, known


def _related(text: str, sides: list[str], signs: tuple[str, ...]) -> Part:
    """An equation, an inequality, or a name with its value; of one name, an interval."""
    named = _NAME.fullmatch(sides[0]) is not None
    label = re.sub(r"[\s{}⟦⟧|△]|m\s*(?=∠)", "", sides[0]) if named else ""
    if all(map(_FIGURES.fullmatch, sides)) and len(set(map(Fraction, sides))) > 1:
        raise Unreadable("a number that is another")
    if any(map(_CONJUNCTION.search, sides[1:-1])):  # "y = 7 when x = 3"
        raise Unreadable("several equations")
    if set(signs) <= set("=≈∈"):
        last_side = Part("relation", "")
        with suppress(Unreadable):
            last_side = _part(sides[-1])
        if last_side.kind in ("tuple", "ratio") and (named or _OF_NAMES.fullmatch(sides[0])):
            return replace(last_side, label=label)
        if last_side.kind == "value" and "∈" not in signs:
            if not names(last_side.trees[0]) and (
                named or not re.search("[A-Za-z⟦]", re.sub(r"\\[a-z]+", "", "".join(sides[:-1])))
            ):
                return replace(last_side, label=label)
            if set(signs) == {"="} and named:
                with suppress(Unreadable):  # words, as in \\text{Area} = 2ab
                    last_side = replace(last_side, text=text, name=parse(sides[0]))
                return replace(last_side, label=label)
    trees = tuple(_valued(side or "x").trees[0] for side in sides)
    return _interval(text, trees, signs) or Part("relation", text, trees, marks=signs)


def _interval(text: str, trees: tuple[Node, ...], signs: tuple[str, ...]) -> Part | None:
    """An inequality of one name as the interval in which it lies."""
    if set(signs) <= set(">≥"):
        trees, signs = trees[::-1], tuple(_FLIPPED[sign] for sign in reversed(signs))
    if not set(signs) <= set("<≤"):
        return None
    if len(trees) == 2 and is_name(trees[0]):
        trees, signs = (*_INFINITE.trees, *trees), ("<", *signs)
    elif len(trees) == 2:
        trees, signs = (*trees, *_INFINITE.trees), (*signs, "<")
    if len(trees) != 3 or not (is_name(trees[1]) or len(names(trees[1])) > 1):
        return None
    if names(trees[1]) & (names(trees[0]) | names(trees[2])):
        return None
    ends = Part("value", text, trees[:1]), Part("value", text, trees[2:])
    marks = "(" if signs[0] == "<" else "[", ")" if signs[1] == "<" else "]"
    return Part("tuple", text, items=ends, marks=marks, name=trees[1])


def number_of(answer: Answer) -> tuple[Any, Unit | None] | None:
    """The number, exact or of mpmath, and the unit of an answer that is one number or ratio; None of others.

    Raises:
        Unreadable: it has no value, or one that is too large.
    """
    trees = answer.parts[0].trees
    if len(answer.parts) > 1 or answer.parts[0].kind not in ("value", "ratio") or len(trees) > 2:
        return None
    number = None if any(map(names, trees)) else value("/".join(f"({tree})" for tree in trees))
    return None if number is None else (number, answer.parts[0].unit)


def equal(gold: Answer, found: Answer) -> bool:
    """Whether an answer is the gold: as many parts, each equal; in order, where the gold has one."""
    waiting = list(found.parts)
    if len(gold.parts) != len(waiting):
        one, other = _point(gold), _point(found)
        said_twice = len(gold.parts) == 1 and all(_equal(gold.parts[0], one) for one in waiting)  # 7/2 or 3.5
        return said_twice or one is not None and other is not None and _equal(one, other)
    labels = sorted(part.label for part in gold.parts)
    if all(labels) and len(set(labels)) == len(labels) > 1 and labels == sorted(one.label for one in waiting):
        return all(_equal(part, one) for part in gold.parts for one in waiting if part.label == one.label)
    if gold.is_ordered:
        return all(map(_equal, gold.parts, waiting))
    for part in gold.parts:
        match = next((one for one in waiting if _equal(part, one)), None)
        if match is None:
            return False
        waiting.remove(match)
    return True


def _point(answer: Answer) -> Part | None:
    """An answer that is one part, or named coordinates, as a point: x = 2, y = 3."""
    named = {part.label: part for part in answer.parts}
    if len(named) == len(answer.parts) and "".join(sorted(named)) in ("xy", "xyz"):
        return Part("tuple", answer.text, items=tuple(named[one] for one in sorted(named)), marks=("(", ")"))
    return answer.parts[0] if len(answer.parts) == 1 else None


def _equal(gold: Part, found: Part) -> bool:
    if gold.text in _SIGNS:
        return tuple(_cut(found.text, _RELATION)[1]) == gold.marks
    kinds = {gold.kind, found.kind}
    if gold.name and found.name and gold.name != found.name:
        return kinds == {"value"} and _equal_relations(_relation(gold), _relation(found))
    if kinds == {"value"}:
        return _equal_values(gold, found)
    if kinds == {"tuple"}:
        are_alike = gold.marks == found.marks and len(gold.items) == len(found.items)
        return are_alike and all(map(_equal, gold.items, found.items))
    if kinds == {"ratio"} and len(gold.trees) == len(found.trees):
        first = gold.trees[0], found.trees[0]
        return all(
            same(f"({a})*({first[1]})", f"({b})*({first[0]})")
            for a, b in zip(gold.trees, found.trees, strict=True)
        )
    if kinds == {"ratio", "value"}:
        ratio, other = (gold, found) if gold.kind == "ratio" else (found, gold)
        return len(ratio.trees) == 2 and same(f"({ratio.trees[0]})/({ratio.trees[1]})", other.trees[0])
    if (gold.kind, found.kind) == ("value", "relation") and _states_value(gold, found):
        return True
    return kinds <= {"relation", "value"} and _equal_relations(_relation(gold), _relation(found))


def _states_value(gold: Part, found: Part) -> bool:
    """Whether an equation gives a quantity that value, as in "m + n = 7" and "3 + 2(n - 1) = 2n + 1"."""
    first, *_, last_side = found.trees or ("", "")
    is_quantity = len(names(first)) > 1 or frozenset() < names(first) <= names(last_side)
    return set(found.marks) == {"="} and is_quantity and not gold.name and same(gold.trees[0], last_side)


def _equal_values(gold: Part, found: Part) -> bool:
    wanted, given = gold.trees[0], found.trees[0]
    if gold.unit and found.unit:
        if gold.unit.dimension != found.unit.dimension:
            return _is_same_angle(gold, found) or _is_same_angle(found, gold)
        return same(f"({wanted})*({gold.unit.factor})", f"({given})*({found.unit.factor})")
    if same(wanted, given) or _is_same_angle(gold, found) or _is_same_angle(found, gold):
        return True
    if PERCENT not in (one.unit.dimension for one in (gold, found) if one.unit):
        return False
    wanted, given = (f"({one.trees[0]})/100" if one.unit else one.trees[0] for one in (gold, found))
    return same(wanted, given)


def _is_same_angle(one: Part, other: Part) -> bool:
    """Whether the first is in degrees and the other, which says so or has a π, is as much in radians."""
    if one.unit is None or one.unit.dimension != DEGREES:
        return False
    in_radians = other.unit.dimension == RADIANS if other.unit else PI in other.trees[0]
    return in_radians and same(f"({one.trees[0]})*{PI}/180", other.trees[0])


def _relation(part: Part) -> Part:
    """A named value as an equation."""
    if part.kind == "relation" or not part.name:
        return part
    return Part("relation", part.text, (part.name, *part.trees), marks=("=",))


def _equal_relations(gold: Part, found: Part) -> bool:
    if len(gold.trees) != len(found.trees) or len(gold.marks) != len(found.marks):
        return False
    turned = tuple(_FLIPPED.get(mark, mark) for mark in reversed(found.marks))
    if gold.marks == found.marks and all(map(same, gold.trees, found.trees)):
        return True
    if len(gold.trees) != 2:
        return False
    how = proportion(*(f"({one.trees[0]})-({one.trees[1]})" for one in (gold, found)))
    return how != 0 and gold.marks == (found.marks if how > 0 else turned)


_FIGURE = re.compile(r"\d{1,18}")


@lru_cache(maxsize=65536)
def parse_gold(answer: str) -> Answer:
    """A gold's parts, checked.

    Raises:
        HarnessError: it is no mathematics, is ambiguous, or a part of it or another value would be right.
    """
    text = answer.strip()
    try:
        gold = read(text)
        parts = gold.parts if len(gold.parts) > 1 else gold.parts[0].items
        alone = next((part for part in parts if equal(gold, Answer((part,)))), None)
        if alone:
            raise Unreadable(f"{alone.text!r} alone would be right")
        for tree in (tree for part in gold.parts for tree in part.trees if tree != INFINITE):
            value(tree)
        others = list(_other_values(text))
        if others and all(equal(gold, other) for other in others):
            raise Unreadable(f"another value, {others[0].text!r}, would be right")
    except Unreadable as error:
        raise HarnessError(
            f"the answer is not mathematics that can be judged: {cut(repr(text))} ({error})",
            "Write it as numbers or LaTeX, or use the exact_word scorer for words",
        ) from error
    return gold


def _other_values(text: str) -> Iterator[Answer]:
    """A gold with another first figure, and with another last one."""
    figures = list(_FIGURE.finditer(text))
    for figure in {figures[0], figures[-1]} if figures else ():
        try:
            yield read(f"{text[: figure.start()]}{int(figure[0]) + 1}{text[figure.end() :]}")
        except Unreadable:
            continue


_LISTED = re.compile(
    r"(?:[$*\s,;，；、和或]|\\[()\[\] ,;\\]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|\band\b|\bor\b|\(\d\)|\d\."
    r"|\((?:i+|[a-e])\)|[A-Za-z]{1,3}(?:_\w)?\s*=)*\\?"
)
"""What may stand between the boxes of one list."""
_CUE = re.compile(
    r"(?:\b(?:[Aa]nswers?|ANSWERS?)(?:\s*\*\*)?(?: (?:to [^.\n]{1,60} )?(?:is|are|would be|should be|=)\b"
    r"|\s*[:：])|####|答案[]是为:：]+)(?:\s*\*\*)?[:：]?\s*"
)
_SENTENCES = re.compile(r"(?<=[.!?])(?<!i\.e\.)\s+|[\n。]+")
_RUN = re.compile(
    r"⟦[^⟧]*⟧|\$[^$]*\$|\\[A-Za-z]+|[A-Z]_\d|(?:sin|cos|tan|log|ln)(?!['A-Za-z])|[π△α-ωΓΔΘΛΣΦΨ]"
    r"|[a-km-z](?!['A-Za-z]|\.[a-z]|: | \d+-[a-z])(?<![a-z][.'].)(?:(?<!\s\(.)|(?<![a-h])|(?!\)))"
    r"|[a-z]{2}(?!['A-Za-z])(?<=\d..)(?<!st|nd|rd|th|am|pm)"
    r"|(?P<word>(?<!\w)[A-Z]\d+[a-z](?!\w)|[A-Za-z]+'*|[\u4e00-\u9fff]+|[^\W\d_]|\")|\d{1,3}(?:,\d{3})+(?!\d)"
    r"|\d+(?:\.\d+)?(?:e[-+]?\d+(?!\w|\.\d))?|\.\d+|\s+|."
)
"""Words, and what formulas are of: a whole one in dollars, letters, figures, signs."""
_DOLLARS = re.compile(r" ?\$([^$]{1,300})\$ ?")
_MEASURED = re.compile(
    r"(?<=[\d}])(?:\s|(?=[A-Za-z]{2}|[\u4e00-\u9fff]))"
    r"((?:(?:square|cubic) )?(?:[A-Za-zμΩ]{1,12}|[\u4e00-\u9fff]{1,4})(?:\^\{?[23]\}?)?"
    r"(?:\s?/\s?[A-Za-z]{1,6}(?:\^\{?2\}?)?|[ ·][A-Za-z]{1,3}\^\{?-\d\}?| per [a-z]{1,8})?)"
    r"(?!\s?[-+*/^=(]|\w)"
)
_UPRIGHT = re.compile(r"\s*⟦([^⟧]*)⟧")
_VERB = re.compile(
    r"is|are|was|were|be|equals?|gives?|gets?|obtains?|becomes?|has|have|had|mak(?:es?|ing)|find|needs?|costs?|spen[dt]s?|pa(?:ys?|id)|to"
    r"|approximately|about|.{0,9}(?:[为是得有]|等于)"
)
_JOINS = frozenset("and or 和 或 及 且 或者 以及".split())
_POINT_NAME = re.compile(rf"(?<![A-Za-z])[A-Z]{_BELOW}(?=\s?\([-\d\\])")
_ASIDE = re.compile(
    r",? (?:since|because|as|where|(?:\d+ )?of (?:which|them)|so that|not|(?:out|instead) of)\b|: (?=[a-z])"
    r"|(?<=\d) of (?=(?:the|all|those) \d)"
    r"|(?<=[\w.])\s?\((?=[a-z]{3}|i\.e|[a-z]{1,2} [a-z]{2})"  # and no factor, as in 2(n - 1)
)
_YEARS = re.compile(
    r"(?i)\((?:19|20)\d\d\)|\b(?:in|since|by|from|between|after|before) (?:19|20)\d\d"
    r"(?:(?: ?[-–] ?| to | and )(?:19|20)\d\d)?"
    r"(?![\w%°]|[.,]\d| [a-z]+s\b|,? (?:with|at)\b)"
)
"""When something was, beside other numbers."""
_RATIO = re.compile(r"(?<=\bratio)([^.\n]{0,60}?\b(?<!from )\d+) to (?=\d)")
_SECOND = re.compile(
    r",? when\b(?!.* and (?:is|are|was|has) )|, while\b"
    r"|, which is(?! \W*\d\S*(?: \S+){0,2}$)|(?:(?<=^\d{4})|,) with\b(?!.* (?:is|are|costs?|=) )"
    r"|(?<![,.]) (?:that|who|which|where)\b(?![^:]*: )"
    r"| (?:[a-z]+ (?:exactly|at (?:least|most)|(?:more|fewer|less) than)"
    r"|ha(?:ve|s|d) an? \w+ (?:above|below))\b"
    r"|: (?=\d+ [a-z]+(?:,| and) \d|\d[\d.]* (?:plus|minus|times|[-+×*]) \d)"
    r"| to (?=[a-z]{3,}(?: [a-z]+)? \d)"
)
_VALUED = re.compile(
    r"(?:^(?:So, )?|\b(?!times|plus|minus)(?:[a-z]+s|are|were|have|get|find|take|need)\b|[=≈:])"
    r"(?: ?(?:about|approximately|[Oo]nly|him|her|them|us|me|an?)\b|[^A-Za-z,;=]|\\[A-Za-z]+)*"
    r"\d[^\s,;]*(?: [^\s\d]+){0,2}$"
)
"""A value behind a verb, behind which another number does not replace it: "It is 12, which is half of 24"."""
_TIMES = re.compile(r"(?<=[\w)⟧]) [xX] (?=[\d$(])|(?<=\d)[xX](?=\d)")
_BEFORE_FIGURES = re.compile(
    r"[=≈:]|\b(?:is|are|was|were|gets?|equals?|gives?|needs?|takes?|costs?)\b|[为是得有]"
)
_BETWEEN_FIGURES = re.compile(
    r"/?[A-Za-zμΩ°⟦⟧\u4e00-\u9fff$,]+(?: ?\^ ?\{?-?\d\}?)?(?:/[A-Za-z⟦⟧]+(?:\^\{?-?\d\}?)?)*"
)
"""Units and words of a calculation."""
_COUNT = re.compile(
    r"(?i)^(?:so,? )?there (?:is|are|was|were) (?:only |exactly )?(?!one\b)[a-z]+\b(?!-)(?=[^:=,]*$)"
    r"|^(?!one\b)[a-z]+\b(?= [a-z]+ (?:ha[ds]|have|scored) )"
)
"""Where a count may be in words, before other numbers: "There are two bags with at least 60 buttons"."""
_REJECTED = re.compile(
    r"(?:[,，;；]|或者?| or | and )?(?:(?! or | and )[^,，;；或()\n]){1,25}"
    r"\((?![^()\n]*=)[^()\n]*(?:舍|eject|iscard|not valid|xtraneous)[^()\n]*\)"
)
"""A root that is found and rejected: "x = 5 or x = -3 (rejected)"."""
_REJECTING = "舍", "ejected", "iscarded", "not valid", "xtraneous"
_NUMBERED_LINE = re.compile(r"^\W{0,4}\d[.)]\W{1,3}(.+)", re.MULTILINE)
_CHECK = re.compile(r"(?:\n|(?<=[.!$] ))[^\n:]{0,10}\b(?:[Cc]heck|[Vv]erif)[^\n:]{0,20}:[^\n=]*=[^\n]*$")
_CONCLUSION = re.compile(
    r"(?:,? (?:so|thus|hence|therefore)\b,?(?! that)|[⇒∴]|=>|[,，]\s?(?:所以|因此|解得|可得|故)"
    r"|(?-i:\\(?:Rightarrow|implies|therefore))\b"
    r"|^(?:since|because|as|if|when)\b(?!.* (?:so|thus|hence|therefore)\b).*,(?=[^,]*(?:=|\b(?:is|are)\b)))"
    r"(?:\s*\$?[A-Za-z](?:\s*[-+*/]\s*[A-Za-z])+\s*=)?",
    re.IGNORECASE,
)
"""Ends the reasons for an answer; what was asked for, such as "x + y =", belongs to it."""
_REMARKS = re.compile(r"(?:(?<=[\d)}$%°][.!])|(?<=[a-z]{2}[.!])) +(?=[A-Z][a-z]+,? )")
"""Ends what a cue states, where no correction follows."""
_CORRECTION = re.compile(r"[.!] +(?:Wait|Actually|No|Sorry|Hmm|Oops)\b")
_CALCULATION = re.compile(r"[=≈+×*·]|\\(?:times|approx|cdot)")
_MARKDOWN = re.compile(r"\*\*(?:(?<![\dxyn)]..)|(?!\d))|__|`+|^\s*(?:#{1,6}|[-•*>]) ", re.M)
_NEGATIVE = re.compile(r"\s*- (?![^\n]*(?:=|(?<![\\A-Za-z])[A-Za-z]{3}))[^\n]+\s*")
_EMPHASIS = re.compile(r"(?<=[\d)}])!\s*$")
_BEHIND_VALUE = re.compile(
    r"(\d(?:\\\)|[^\s()])*(?: [^\s\d(]+)?) \((?!(?:or|and)\b)([^()]+)\)(?=(?: [a-z]+){0,2}[.!]?\s*$)"
)
_REMARK_INSIDE = re.compile(r"[=≈]|(?<!\\)[A-Za-z]{2}|^(?:[-+*/×·^.\d% ²³]|\d,\d{3})+(?: ?[a-zA-Z])?$")
"""What makes a bracket behind a value a remark and no factor: "12 (7 + 5)", "3.5 kg (3500 g)"."""
_MATHEMATICS = re.compile(r"[\dπ√]|\\frac|\\sqrt|[a-zA-Zα-ωΑ-Ω]\s*[-+*/^=]")
_LABEL = re.compile(
    r"^(?:\(?\d[.)]\s+)?[A-Za-z\u4e00-\u9fff][^:=\d\n]{1,40}(?: \d)?: *"
    r"|(?:^|[\s,;])\(?[a-e1-9]\)\s+(?=[-\d$\\])",
    re.MULTILINE,
)
"""Words in front of a value on a line of its own, "Perimeter: 14 m"."""


def stated(part: str) -> Iterator[str]:
    """The texts that may be the answer of a response, likeliest first; each is to be read as a whole."""
    part = laid_out(part)
    boxed = _boxed(part) if "oxed" in part else json_answer(part)
    is_option = "oxed" not in part and boxed in set("ABCDEFGHIJ")
    if boxed is not None and not is_option:
        yield boxed
        return
    text = part.strip() if _NEGATIVE.fullmatch(part) else _MARKDOWN.sub("", part).strip()
    cue = last(_CUE, text) if "nswer" in text or "NSWER" in text or "答案" in text or "####" in text else None
    said = text[cue.end() :].strip() if cue else ""
    text = _CHECK.sub("", text).strip() or text
    lines = said or text
    if "\n" in lines[:200] and len(lines) < 200 and not _CALCULATION.search(lines):
        if _readable(lines):
            yield lines
            return
    if cue and said:
        line = said.split("\n")[0]
        yield _EMPHASIS.sub("", line if _CORRECTION.search(line) else _REMARKS.split(line, maxsplit=1)[0])
        is_heading = cue[0].rstrip(" *\n")[-1] in ":：]" and not REFUSAL.search(line)
        text = said[len(line) :].strip() if is_heading else ""  # a whole solution behind "Answer:"
    if not text or REFUSAL.search(text[-200:]):
        return
    for tail in (500, len(text)):  # as few characters as possible are split
        found = [one for one in _SENTENCES.split(text[-tail:]) if one and one.strip()]
        if len(found) > 4:  # the first may have begun earlier
            break
    for one in found[:-5:-1]:
        if REFUSAL.search(one):
            return
        yield _EMPHASIS.sub("", one)


def _boxed(text: str) -> str | None:
    """The last box's content, or those of the boxes in one list with it."""
    kept, start = list[str](), -1
    for begin, end, content in boxes(text):
        if not content.strip() or end > start >= 0:  # a box around one that is read
            continue
        if kept and not _LISTED.fullmatch(text[end + 1 : start]):
            break
        kept.append(content)
        start = text.rfind("boxed", 0, begin)
    return ", ".join(reversed(kept)) if len(set(kept)) > 1 else kept[0] if kept else None


def readings(text: str) -> list[Answer]:
    """What a stated text may be read as: all of it, or its mathematics; two for 24/7 ≈ 3.43."""
    text = _RATIO.sub(r"\1:", with_signs(text)) if " ratio" in text else with_signs(text)
    without = _YEARS.sub(" ", text)
    if without != text and re.search(r"\d", in_figures(without)) and (found := readings(without)):
        return found
    conclusion = last(_CONCLUSION, text)
    if conclusion and _MATHEMATICS.search(text, conclusion.end()):
        text = text[conclusion.end() :]
    whole = re.split(r"≈|\\approx|,? or (?:about|approximately|roughly)|,? i\.e\.,?(?= \W{0,2}\d)", text)
    if len(whole) > 1 and whole[0].strip(" $"):
        return [one for piece in (whole[0], whole[-1]) for one in readings(piece)]
    try:
        return [read(text)]
    except Unreadable:
        pass
    if (calculated := _calculated(text)) is not None:
        return [calculated]
    text = _COUNT.sub(lambda match: in_figures(match[0]), text)
    ends = ((one, one.start()) for one in _SECOND.finditer(text))
    second = next((one for one, end in ends if _VALUED.search(text, max(0, end - 100), end)), None)
    for aside in (second, _ASIDE.search(text)):
        found = _in_words(text[: aside.start()]) if aside else []
        if found and not (aside is second and any(names(tree) for tree in found[0].parts[-1].trees)):
            return [*found, *_in_words(text)[1:]]
    return _in_words(text)


def _calculated(text: str) -> Answer | None:
    """The result of a calculation that has units or words between its figures: "3 cm + 4 cm = 7 cm"."""
    left, _, right = text.rpartition("=")
    left = _BETWEEN_FIGURES.sub(" ", _TIMES.sub("×", re.split(_BEFORE_FIGURES, clean(left))[-1]))
    if not re.search(r"\d *[-+×·*/]", left):
        return None
    with suppress(Unreadable):
        found = _in_words(right)[:1]
        given, wanted = number_of(found[0]) if found else None, value(parse(left.strip()))
        if given and isinstance(given[0], Fraction) and isinstance(wanted, Fraction):
            return found[0] if abs(given[0] - wanted) <= abs(wanted) / 100 else None  # it may be rounded
    return None


def _in_words(sentence: str) -> list[Answer]:
    return _in_sentence(sentence) or _in_sentence(in_figures(sentence))


def _in_sentence(sentence: str) -> list[Answer]:
    """The last mathematics of a sentence, or of it what stands behind verbs; then these and all together."""
    text = re.sub(r"\\[()\[\]]|\$\$", "$", _CURRENCY.sub("", _POINT_NAME.sub("", sentence)))
    text = _DOLLARS.sub(_whole, clean(text)) if "$" in text else clean(text)
    text = _MEASURED.sub(_measured, _COMPOUND.sub(_compound, text))
    runs = list[tuple[Answer, bool]]()
    run, is_behind, is_near, is_joined, denied = "", False, False, False, 0
    for match in [*_RUN.finditer(text), None]:
        token = match[0] if match else ""
        if match and (not match["word"] or token in _FACTORS and run.rstrip()[-1:].isdigit()):
            run += token
            continue
        found = None if denied > 0 and run.lstrip()[:1] not in ("=", ":", ",") else _run(run)
        denied = 0 if run.strip() or token in ("is", "are", "by") else denied - 1
        denied = 3 if token in ("not", "than", "below", "above") else denied  # "not the number 11"
        if found is not None:
            is_behind = is_behind or run.lstrip()[0] == ":"
            both = _readable(f"{runs[-1][0].text}, {found.text}") if is_joined else None
            runs[-1:] = [(both, runs[-1][1])] if both else [*runs[-1:], (found, is_behind)]
        is_near = found is not None or is_near and not run.strip()
        is_joined = is_near and token in _JOINS
        is_near = is_joined or is_near and unit(token) is not None
        is_behind = _VERB.fullmatch(token) is not None or is_behind and found is None
        run = ""
    anywhere = [found for found, _ in runs]
    behind = [found for found, is_behind in runs if is_behind]
    lists = ("\n".join(one.text for one in some) for some in (behind, anywhere) if len(some) > 1)
    return [one for one in (*(behind or anywhere)[-1:], *map(_readable, lists)) if one]


def _whole(match: "re.Match[str]") -> str:
    """A formula in dollars that ends in names, of which some are words elsewhere, stays whole: $2a + c$."""
    ends_in_names = re.search(r"(?<![\\A-Za-z])[A-Za-z]", re.split(_RELATION, match[1])[-1])
    if ends_in_names and any(one["word"] for one in _RUN.finditer(match[1])):
        found = _readable(match[1])
        if found and not all(map(is_name, found.parts[0].trees)):
            return f'"{match[0].strip()}"'
    return f" {match[1].strip()} "


def _measured(match: "re.Match[str]") -> str:
    """A known unit behind a figure in upright type, which belongs to the figure; "12 in total" has none."""
    return f"⟦{match[1]}⟧" if match[1] != "in" and unit(match[1]) else match[0]


def _run(run: str) -> Answer | None:
    """The answer in a run of mathematics between words; None for none."""
    run = run.strip(" \t,;:.!?\"'*/^=").rstrip("+-<>(")
    if not _MATHEMATICS.search(run):
        return None
    run = re.split(r":\s(?=[\[(])", run)[-1]
    return _readable(run) or _readable(re.split(r",\s|;", run)[-1])


def _readable(text: str) -> Answer | None:
    try:
        return read(text)
    except Unreadable:
        return None


_number = lru_cache(maxsize=65536)(Fraction)
_PLAIN = re.compile(r"\s*(?:\\boxed\{)?\s*(-?\d{1,15}(?:\.\d{1,15})?)\s*\}?\s*\.?\s*")


@lru_cache(maxsize=65536)
def _plain_gold(answer: str) -> Fraction | None:
    """The value of a gold that is one number or fraction without a unit; None for others."""
    number, named = number_of(parse_gold(answer)) or (None, None)
    return number if isinstance(number, Fraction) and not named and ":" not in answer else None


def plain_number(response: str, answer: str) -> tuple[str, Fraction, Fraction] | None:
    """A response that is one plain number, its value and the gold's; None where either is more than that.

    Raises:
        HarnessError: the gold is refused by `parse_gold`.
    """
    wanted = _plain_gold(answer)
    found = _PLAIN.fullmatch(response) if wanted is not None and len(response) < 40 else None
    return (found[1], _number(found[1]), wanted) if found and wanted is not None else None


def math(response: str, *, answer: str | int | float, truncated: bool = False) -> Verdict:
    """Score 1.0 if the answer that a response states equals the gold, else 0.0.

    Args:
        response: what the model wrote. Its last box counts, or those in one list, or all as the gold's parts;
            without a box what follows "the answer is", else the mathematics of its last sentence.
        answer: the gold; several parts are in lines, numbered, with commas or in blocks of dollars.
        truncated: whether the response ran out of tokens: then only a closed box or answer tag counts.

    Returns:
        A score of 0.0 or 1.0; extracted is the text that was judged. None: no mathematics was found.

    Raises:
        HarnessError: the gold is no mathematics, or a part or another value would be right; see `parse_gold`.
    """
    found = plain_number(response, str(answer)) if not truncated else None
    if found is not None:
        return Verdict(float(found[1] == found[2]), found[0])
    gold = parse_gold(str(answer))
    if len(response) > 2 * TAIL and "<" not in response and "◁" not in response and "[/" not in response:
        response = response[-TAIL:]
    part = answer_part(response, truncated=truncated)[-TAIL:]
    return judged(part, gold, lambda found: equal(gold, found))


def judged(part: str, gold: Answer, is_right: Callable[[Answer], bool]) -> Verdict:
    """The verdict on the first text that may be the answer and is mathematics, or on a box that is none.

    Where the gold has several parts in order, all boxes or lines of a response are one more reading of it.
    """
    before = first_turn(part)
    if before is not None and (verdict := judged(before, gold, is_right)).extracted is not None:
        return verdict
    if any([word in part for word in _REJECTING]) and "oxed" not in part:
        left = _REJECTED.sub("", part)
        part = left if re.search(r"\d", left) else part
    for text in stated(part):
        remark = None if "oxed" in part else _BEHIND_VALUE.search(text)
        is_remark = remark is not None and _REMARK_INSIDE.search(remark[2]) and not unit(remark[2])
        found = readings(_BEHIND_VALUE.sub(r"\1", text)) if is_remark else []
        found = found or readings(text)
        found += _each(part) if gold.is_ordered else []
        if found:
            first = next((one for one in found if len(one.parts) == len(gold.parts)), found[0])
            said = _UPRIGHT.sub(r" \1", first.text).strip() or text.strip()
            return Verdict(float(any(map(is_right, found))), said)
        if "oxed" in part:
            return Verdict(0.0, text.strip()) if last_box(part) else NOT_FOUND
    return NOT_FOUND


def _each(part: str) -> list[Answer]:
    """The contents of all boxes as lines; else the lines without labels ("Area:"), and numbered sentences."""
    if "oxed" in part:
        every = ["\n".join([content for *_, content in boxes(part) if content.strip()][::-1])]
    else:
        every = [_LABEL.sub("\n", _MARKDOWN.sub("", part))]
        numbered = [
            found[0].text for line in _NUMBERED_LINE.findall(part)[-12:] if (found := _in_words(line))
        ]
        every += ["\n".join(numbered)] if len(numbered) > 1 else []
    return [one for one in map(_readable, every) if one]


_read = lru_cache(maxsize=1024)(readings)


def same_answer(one: str, other: str) -> bool:
    """Whether two extracted answers are equal, as `math` compares a gold with an answer."""
    return any(equal(ours, theirs) or equal(theirs, ours) for ours in _read(one) for theirs in _read(other))


def answer_form(text: str) -> object:
    """What an extracted answer states beside its values: units, names, an order, a second reading."""
    return repr([(one.is_ordered, sorted(map(_form, one.parts))) for one in _read(text)])


def _form(part: Part) -> str:
    return f"{part.kind} {part.unit is not None} {part.name != ''} {[*map(_form, part.items)]}"


def _gold_of_row(solution: object) -> object:
    gold = text_gold(solution)
    parse_gold(str(gold))
    return gold


SCORER = Scorer("math", math, gold=_gold_of_row, same=same_answer, form=answer_form, version=15)

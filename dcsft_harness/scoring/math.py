r"""Free-form mathematical answers: golds that are read into their parts and checked, responses alike.

    math(r"... so \boxed{\frac{1}{2}}", answer="0.5")       -> Verdict(1.0, "\\frac{1}{2}")
    math(r"\boxed{10}", answer="$$7$$ $$10$$")              -> Verdict(0.0, "10"): one part of two
    math(r"\boxed{50 mm}", answer="5 cm")                   -> Verdict(1.0, "50 mm")

An answer is a list of parts: values with units, ratios, points, intervals, sets, equations, inequalities.
They are read by `formulas` and `units` and compared exactly. math-verify, in child processes, judges what
these do not read (matrices, integrals, sums); see `math_worker`.

A gold is refused where its plain restatement in a box would not be right, or where a part alone or another
value would be. Words, yes and no are for `exact_word`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import math_worker
from dcsft_harness.scoring.formulas import (
    Node,
    Unreadable,
    clean,
    names,
    parse,
    proportion,
    same,
)
from dcsft_harness.scoring.normalize import answer_part, before_run_on, boxes, json_answer
from dcsft_harness.scoring.units import PERCENT, SINGLE, Unit, in_figures, unit, with_signs
from dcsft_harness.scoring.verdict import NOT_FOUND, Scorer, Verdict, text_gold

TAIL = 4_000
"""Characters of a response that are read, from its end."""
LONGEST_GOLD = 1_500
MOST_PARTS = 40


@dataclass(frozen=True)
class Part:
    """One part of an answer.

    Attributes:
        kind: "value", "ratio", "tuple", "interval", "relation", "sign" or "foreign" (for math-verify).
        text: as it was read.
        trees: the value; the members of a ratio; both sides of each relation of a chain.
        unit: of a value, where it is known.
        items: of a tuple or of a union of intervals.
        marks: the brackets, relation signs or name that belong to it.
    """

    kind: str
    text: str
    trees: tuple[Node, ...] = ()
    unit: Unit | None = None
    items: tuple["Part", ...] = ()
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The parts of an answer, and whether their order counts."""

    parts: tuple[Part, ...]
    is_ordered: bool = False
    text: str = field(default="", compare=False)


# ---------------------------------------------------------------- reading

_OPEN, _CLOSE = "([{⦃", ")]}⦄"
_BLOCK = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
_NUMBERING = re.compile(r"(?:^|(?<=[\s\d.;,}$)⟧]))\((\d{1,2})\)|(?:^|(?<=\s))(\d)\.(?=\s)")
_ENUMERATED = re.compile(r"(?:\((\d{1,2})\)\s*[,;]?\s*(?:and\s*)?){2,}|(?:\d\.\s?){2,}\d?|\d(?:\.\d){2,}")
_THOUSANDS = re.compile(
    r"(?<![\d.,])([1-9]\d{0,2}(?:,\d{3})+)(?![\d,])|(?<![\d.,])([1-9]\d{0,2}(?: \d{3})+)(?=\.\d)"
)
_SEPARATOR = re.compile(r"\n|[;,→]|⟦\s*(?:or|and)\s*⟧|\b(?:or|and)\b|或者?|和|及|且")
_NUMBERS = re.compile(r"[-+]?\d+(?:\.\d+)?(?:\s+[-+]?\d+(?:\.\d+)?)+")
_NO_ZERO = re.compile(r"\.(?<![\w.)}\]].)(?=\d)")
_LAST_DOT = " \t\n.,;:?。"
_RELATION = re.compile(r"[=<>≤≥≠≈∈⇒]")
_NAME = re.compile(
    r"\|?(?:[A-Za-z]|⟨[^⟩]*⟩|\\[a-zA-Z]+|[A-Z]{1,4}|[SVCLPR](?:_?\{[^{}]*\}|[△∠][A-Z]+)|[∠△]\s*[A-Z]{1,3}\d?|⟦[^⟧]{1,30}⟧)"
    r"'*(?:_(?:\d|[A-Za-z]|\{[^{}]{1,20}\}))?(?:\([A-Za-z,\d ]{1,8}\))?\|?"
)
_ALTERNATIVES = re.compile(r"\((?:or|not unique|the answer|answers? (?:may|is|are)|或|答案)", re.IGNORECASE)
_TRAILING_WORDS = re.compile(
    r"(?<=[\d}\)π%°])\s+([A-Za-zΩμ][A-Za-z. ]{1,30}?(?:\s?\^\s?\{?-?\d\}?)?)$|"
    r"(?<=[\d}\)π])([A-Za-zμ]{2,}(?:\s?\^\s?\{?-?\d\}?)?)$|"
    r"(?<=[\d}\)π])\s*((?:[A-Za-zμ]{1,6}(?:\^\{?\d\}?)?\s?[/·*]\s?\(?)+[A-Za-zμ]{1,5}(?:\^\{?\d\}?)?\)?)$|"
    r"(?<=[\d}\)πa-z])\s*([\u4e00-\u9fff/]{1,8})$|"
    r"\s*((?:Ω|°\s?[CF]?|%|′))$"
)
_TRAILING_TEXT = re.compile(r"\s*((?:[/·*]?\s*⟦[^⟧]+⟧(?:\s*\^\s*\{?\s*-?\d\s*\}?)?\s*)+(?:/\s*[A-Za-z]+)?)$")
_TRAILING_LETTER = re.compile(r"(\d|\})(\s*)([A-Za-z])((?:\s?\^\s?\{?[23]\}?)?)$")
_CURRENCY = re.compile(r"^(?:US|HK|RMB)?\s*[$¥€£]\s*(?=[-\d.])")
_REMARK = re.compile(r"(?<=\S)\s*⟦\([^⟧]*\)⟧$|(?<=[\d}π%°])\s+\([A-H]\)$")
"""A remark behind a value: "3 \\text{(cm)}", or the option that has it: "5 + 6 = 11 (B)"."""
_PREFIX = re.compile(
    r"^(?:⟦[^⟧]{0,40}[:=]\s*⟧|⟦\([A-H]\)⟧|\([A-H]\)\s+(?=[-\d\\])"
    r"|(?:A|Ans|Solution|Result)\s*:\s+(?=[-\d\\$])|"
    r"⟦(?:about|approximately|answer(?: is)?|the answer is)⟧|≈|about "
    r"|approximately )\s*",
    re.I,
)


def read(text: str) -> Answer:
    """An answer's parts.

    Raises:
        Unreadable: some of it is no mathematics.
    """
    if len(text) > LONGEST_GOLD or text.count("{") > 200:
        raise Unreadable(f"an answer of {len(text):,} characters")
    if _ALTERNATIVES.search(text):
        raise Unreadable("other answers are right as well")
    bare = _without_dollars(text)
    if re.fullmatch(r"\{[^{}]*,[^{}]*\}", bare):
        bare = f"⦃{bare[1:-1]}⦄"
    pieces, is_ordered = _pieces(bare)
    if not pieces or len(pieces) > MOST_PARTS:
        raise Unreadable(f"{len(pieces)} parts")
    parts = [part for piece in pieces for part in _members(piece)]
    if not parts:
        raise Unreadable("an empty set")
    return Answer(tuple(parts), is_ordered and len(parts) == len(pieces), text.strip())


def _without_dollars(text: str) -> str:
    """A clean text whose blocks of mathematics are lines where nothing joins them."""
    if "$" in text:
        found, behind = "", -1
        for block in _BLOCK.finditer(text := text.replace("\\$", "")):
            between = text[max(behind, 0) : block.start()]
            found += (
                "\n" if behind >= 0 and not between.strip() else f"{between} " if behind >= 0 else between
            )
            found, behind = f"{found}{block[1] or block[2]}", block.end()
        text = f"{found}{text[max(behind, 0) :]}".replace("$", " ")
    text = text.replace("\\(", " ").replace("\\)", " ").replace("\\[", " ").replace("\\]", " ")
    return _NO_ZERO.sub("0.", clean(text)).strip(_LAST_DOT)


def _pieces(text: str) -> tuple[list[str], bool]:
    """The texts of the parts, and whether they stand in an order."""
    if _ENUMERATED.fullmatch(text):
        return re.findall(r"\d+", text), False
    numbered = _numbered(text)
    if numbered:
        return [piece for one in numbered for piece in _pieces(one)[0]], True
    depth, start, pieces, is_ordered = 0, 0, [], False
    text = _THOUSANDS.sub(
        lambda match: re.sub("[, ]", "", match[0]) if _level(text, match.start()) == 0 else match[0], text
    )
    for match in re.finditer(rf"[{re.escape(_OPEN + _CLOSE)}]|{_SEPARATOR.pattern}", text):
        mark = match[0]
        if mark in _OPEN:
            depth += 1
        elif mark in _CLOSE:
            depth -= 1
        elif depth <= 0:
            pieces.append(text[start : match.start()])
            start = match.end()
            is_ordered |= mark in "\n→"
    pieces = [piece.strip(_LAST_DOT) for piece in [*pieces, text[start:]]]
    pieces = [piece for piece in pieces if piece]
    if len(pieces) == 1 and _NUMBERS.fullmatch(pieces[0]) and "/" not in pieces[0]:
        return pieces[0].split(), True
    if is_ordered:
        pieces = [
            one for piece in pieces for one in (piece.split() if _NUMBERS.fullmatch(piece) else [piece])
        ]
    return pieces, is_ordered


def _level(text: str, end: int) -> int:
    before = text[:end]
    return sum(map(before.count, _OPEN)) - sum(map(before.count, _CLOSE))


def _numbered(text: str) -> list[str] | None:
    """The texts behind "(1)", "(2)", ...; None unless they count up from one and each has something."""
    marks = [match for match in _NUMBERING.finditer(text) if _level(text, match.start()) == 0]
    if len(marks) < 2 or text[: marks[0].start()].strip():
        return None
    if [int(match[1] or match[2]) for match in marks] != list(range(1, len(marks) + 1)):
        return None
    ends = [match.start() for match in marks[1:]] + [len(text)]
    found = [text[mark.end() : end].strip(_LAST_DOT) for mark, end in zip(marks, ends, strict=True)]
    return found if all(found) else None


def _members(piece: str) -> Iterator[Part]:
    """The part that a piece is, or the parts: of a set, or of an expression with ±."""
    if piece.startswith("⦃") and piece.endswith("⦄"):
        inner = piece[1:-1]
        described = re.fullmatch(r"\s*[A-Za-z]\s*[|:](.+)", inner)
        if described is None:
            for one in _pieces(inner)[0]:
                yield from _members(one)
            return
        piece = described[1]
    if "±" in piece or "∓" in piece:
        for plus, minus in (("+", "-"), ("-", "+")):
            yield _part(piece.replace("±", plus).replace("∓", minus))
        return
    yield _part(piece)


def _split(text: str, marks: str) -> list[str]:
    """A text cut at characters outside brackets."""
    pieces, depth, start = [], 0, 0
    for place, mark in enumerate(text):
        if mark in _OPEN:
            depth += 1
        elif mark in _CLOSE:
            depth -= 1
        elif depth == 0 and mark in marks:
            pieces.append(text[start:place])
            start = place + 1
    return [*pieces, text[start:]]


def _part(text: str) -> Part:
    text = _PREFIX.sub("", _REMARK.sub("", text).strip().strip("*`").strip(_LAST_DOT)).strip()
    if text in tuple("<>=≤≥≠"):
        return Part("sign", text, marks=(text,))
    if not text:
        raise Unreadable("nothing")
    if "∪" in _level_zero(text):
        return Part("interval", text, items=tuple(_interval(one) for one in _split(text, "∪")), marks=("∪",))
    if _RELATION.search(_level_zero(text)):
        return _related(text)
    listed = re.fullmatch(r"(?:[A-Z]'?\s*)?([(\[])(.*)([)\]])", text, re.DOTALL)
    items = _split(listed[2], ",;") if listed else []
    if listed and len(items) > 1:
        return Part("tuple", text, items=tuple(map(_part, items)), marks=(listed[1], listed[3]))
    members = _split(text, ":")
    if len(members) > 1:
        return Part("ratio", text, trees=tuple(_valued(one).trees[0] for one in members))
    return _valued(text)


def _valued(text: str) -> Part:
    """A value and its unit."""
    bare, named = _unit_off(_CURRENCY.sub("", text.strip()))
    bare = bare.replace("⟦", "").replace("⟧", "") if re.search(r"⟦[A-Za-z]⟧", bare) else bare
    tree = parse(bare.strip())
    if named and not named.dimension:
        tree, named = ("*", tree, ("n", named.factor)), None
    return Part("value", text, trees=(tree,), unit=named)


def _unit_off(text: str) -> tuple[str, Unit | None]:
    """A value's text without its unit, and the unit if it is known.

    Raises:
        Unreadable: what stands behind the value is no unit.
    """
    match = _TRAILING_TEXT.search(text) or _TRAILING_WORDS.search(text)
    if match is not None and match.start() > 0:
        written = next(filter(None, match.groups()), "").replace("⟦", "").replace("⟧", "").strip()
        known = unit(written)
        value, is_set_off = text[: match.start()].strip(), "⟦" in match[0] or match[0][:1].isspace()
        if (
            known is not None
            or (is_set_off and _countable(written))
            or re.fullmatch(r"[\u4e00-\u9fff/]+", written)
        ):
            more, other = (
                _unit_off(value) if value[-1:] in "°%" or known and not known.dimension else (value, None)
            )
            return more, known or other
    letter = _TRAILING_LETTER.search(text)
    if letter and letter[3] in SINGLE:
        value = text[: letter.start()] + letter[1]
        is_number = re.fullmatch(r"[-+]?\s*\d+(?:\.\d+)?", value.strip()) is not None
        if letter[2] or is_number and not re.search(r"[A-Za-z]", value):
            return value, unit(letter[3] + letter[4].replace(" ", ""))
    return text, None


_NO_UNIT = re.compile(
    r"\b(?:or|and|if|when|where|is|are|not|no|times|than|the|a|answer|unique|correct|in total)\b", re.I
)


def _countable(word: str) -> bool:
    """Whether words behind a value may say what is counted: "360 sets", "5 square units"."""
    return (
        len(word) > 2
        and len(word.split()) <= 4
        and not _NO_UNIT.search(word)
        and re.fullmatch(r"[A-Za-z .²^\d/]+", word) is not None
    )


def _interval(text: str) -> Part:
    part = _part(text)
    if part.kind == "interval" or part.kind == "tuple" and len(part.items) == 2:
        return _as_interval(part) or part
    raise Unreadable("no interval")


_FLIPPED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}


def _related(text: str) -> Part:
    """An equation, inequality, or a name with its value."""
    signs = tuple(_RELATION.findall(_level_zero(text)))
    sides = [side.strip() for side in _split(text, "=<>≤≥≠≈∈⇒")]
    if len(sides) != len(signs) + 1:
        raise Unreadable("relations inside brackets")
    if signs == ("=",) and _NAME.fullmatch(sides[1]) and re.fullmatch(r"[-+\d./]+", sides[0]):  # 12 = x
        sides.reverse()
    if not sides[0] and len(sides) == 2:
        sides[0] = "x"
    if signs == ("∈",):
        inner = _interval(sides[1]) if re.search(r"[(\[]", sides[1]) else None
        if inner is not None:
            return inner
    if set(signs) <= {"=", "≈"}:
        is_name = _NAME.fullmatch(sides[0]) is not None
        try:
            last = _part(sides[-1])
        except Unreadable:
            last = None
        if last is not None and is_name and (last.kind != "value" or not _letters(last.trees[0])):
            return Part(last.kind, last.text, last.trees, last.unit, last.items, last.marks)
        if (
            last is not None
            and last.kind == "value"
            and not _letters(last.trees[0])
            and (
                len(sides) > 2
                and is_name
                or not any(re.search(r"[A-Za-z⟦]", re.sub(r"\\[a-z]+", "", side)) for side in sides[:-1])
            )
        ):
            return last
    if "⇒" in signs or "≈" in signs:
        raise Unreadable("a chain of steps")
    is_named = (
        signs == ("=",) and re.fullmatch(r"[a-zA-Z](?:_\d)?|[a-zA-Z]\([a-z]\)|⟨hat \w⟩", sides[0]) is not None
    )
    trees = tuple(_valued(side).trees[0] for side in sides)
    return Part("relation", text, trees, marks=(*signs, "name") if is_named else signs)


def _level_zero(text: str) -> str:
    kept, depth = [], 0
    for mark in text:
        depth += (mark in _OPEN) - (mark in _CLOSE)
        if depth == 0:
            kept.append(mark)
    return "".join(kept)


def _letters(tree: Node) -> bool:
    return bool(names(tree))


# ---------------------------------------------------------------- comparing


def equal(gold: Answer, found: Answer) -> bool:
    """Whether an answer is the gold: as many parts, each equal; in order, where the gold has one."""
    left, right = gold.parts, found.parts
    if len(left) != len(right):
        for one, several in ((left, right), (right, left)):
            if len(one) == 1 and "∪" in one[0].marks:  # x < 1 or x > 5
                return equal(Answer(one[0].items), Answer(several)) if len(several) > 1 else False
        return len(left) > 1 and len(right) == 1 and _equal_lists(gold, right[0])
    if gold.is_ordered or len(left) == 1:
        return all(map(_equal, left, right))
    waiting = list(right)
    for part in left:
        match = next((one for one in waiting if _equal(part, one)), None)
        if match is None:
            return False
        waiting.remove(match)
    return True


def _equal_lists(gold: Answer, one: Part) -> bool:
    """A list that a response puts in brackets: (7, 10) for 7 and 10."""
    if one.kind != "tuple" or one.marks != ("(", ")") or any(part.kind == "tuple" for part in gold.parts):
        return False
    return equal(gold, Answer(one.items, gold.is_ordered))


def _equal(gold: Part, found: Part) -> bool:
    if gold.kind == found.kind == "value":
        return _equal_values(gold, found)
    if gold.kind == "sign" or found.kind == "sign":
        return gold.marks == found.marks and gold.kind == found.kind
    if "ratio" in (gold.kind, found.kind):
        return _equal_ratios(gold, found)
    if "interval" in (gold.kind, found.kind) or (gold.kind == "relation") != (found.kind == "relation"):
        return _equal_ranges(gold, found)
    if gold.kind == found.kind == "relation":
        return _equal_relations(gold, found)
    if gold.kind == found.kind == "tuple":
        if (
            len(gold.items) != len(found.items)
            or ("[" in gold.marks or "]" in gold.marks)
            and gold.marks != found.marks
        ):
            return False
        if gold.marks != found.marks and len(gold.items) == 2:
            return False
        return all(map(_equal, gold.items, found.items))
    return False


def _equal_values(gold: Part, found: Part) -> bool:
    wanted, given = gold.trees[0], found.trees[0]
    units = gold.unit, found.unit
    if units[0] and units[1] and units[0].dimension == units[1].dimension:
        if units[0].factor == units[1].factor:
            return same(wanted, given)
        return same(("*", wanted, ("n", units[0].factor)), ("*", given, ("n", units[1].factor)))
    if units[0] and units[1]:
        return False
    if same(wanted, given):
        return True
    for one, other, of in ((wanted, given, units[0]), (given, wanted, units[1])):
        if of is not None and of.dimension == PERCENT:
            return same(("/", one, ("n", of.factor * 100)), other)
    return False


def _equal_ratios(gold: Part, found: Part) -> bool:
    if gold.kind != found.kind:
        ratio, other = (gold, found) if gold.kind == "ratio" else (found, gold)
        if len(ratio.trees) != 2 or other.kind != "value" or _is_time(ratio):
            return False
        return same(("/", *ratio.trees), other.trees[0])
    if len(gold.trees) != len(found.trees):
        return False
    if all(map(same, gold.trees, found.trees)):
        return True
    if _is_time(gold) or _is_time(found):
        return False
    crossed = zip(gold.trees[1:], found.trees[1:], strict=True)
    return all(same(("*", a, found.trees[0]), ("*", b, gold.trees[0])) for a, b in crossed)


def _is_time(ratio: Part) -> bool:
    """Whether it is a time: 8:40, which as a ratio would be written 1:5."""
    clock = re.fullmatch(r"\s*(\d{1,2})\s?:\s?([0-5]\d)\s*", ratio.text)
    if clock is None:
        return False
    from math import gcd

    return gcd(int(clock[1]), int(clock[2])) > 1 or clock[2][0] == "0"


def _as_interval(part: Part) -> Part | None:
    """A pair in brackets, or an inequality of one name, as (lower, upper) with its brackets; else None.

    A missing end is the tree ("v", "∞").
    """
    infinite: Node = ("v", "∞")
    if part.kind == "interval":
        return part
    if part.kind == "tuple" and len(part.items) == 2 and all(one.kind == "value" for one in part.items):
        ends = [one.trees[0] for one in part.items]
        ends = [infinite if "∞" in repr(end) else end for end in ends]
        return Part("interval", part.text, tuple(ends), marks=part.marks)
    if part.kind != "relation" or not set(part.marks) <= set("<>≤≥"):
        return None
    marks, trees = part.marks, part.trees
    if marks[0] in ">≥":
        marks, trees = tuple(_FLIPPED[mark] for mark in reversed(marks)), tuple(reversed(trees))
    if not set(marks) <= set("<≤"):
        return None
    brackets = {"<": "()", "≤": "[]"}
    if len(trees) == 3 and trees[1][0] == "v":
        return Part(
            "interval", part.text, (trees[0], trees[2]), marks=(brackets[marks[0]][0], brackets[marks[1]][1])
        )
    if len(trees) == 2 and trees[0][0] == "v" and trees[0][1] not in names(trees[1]) and trees[0][1] != "∞":
        return Part("interval", part.text, (infinite, trees[1]), marks=("(", brackets[marks[0]][1]))
    if len(trees) == 2 and trees[1][0] == "v" and trees[1][1] not in names(trees[0]):
        return Part("interval", part.text, (trees[0], infinite), marks=(brackets[marks[0]][0], ")"))
    return None


_SUM_OF_NAMES = re.compile(r"[A-Za-z](?:\s*[-+*]?\s*[A-Za-z])*\s*=\s*[^A-Za-z]+")


def _equal_ranges(gold: Part, found: Part) -> bool:
    if gold.kind == "value" and found.marks == ("=",) and _SUM_OF_NAMES.fullmatch(found.text):  # a + b = 7
        return same(gold.trees[0], found.trees[1])
    if gold.kind == "relation" and "name" in gold.marks and found.kind == "value":  # y = 2x, and 2x alone
        return same(gold.trees[1], found.trees[0])
    if found.kind == "relation" and "name" in found.marks and gold.kind == "value":
        return same(gold.trees[0], found.trees[1])
    if "∪" in gold.marks or "∪" in found.marks:
        return equal(Answer(gold.items or (gold,)), Answer(found.items or (found,)))
    left, right = _as_interval(gold), _as_interval(found)
    if left is None or right is None or left.marks != right.marks:
        return False
    return all(
        a == b or "∞" not in (a[1], b[1]) and same(a, b) for a, b in zip(left.trees, right.trees, strict=True)
    )


def _equal_relations(gold: Part, found: Part) -> bool:
    left, right = _as_interval(gold), _as_interval(found)
    if left is not None and right is not None and names(gold.trees[0]) == names(found.trees[0]):
        if _equal_ranges(left, right):
            return True
    signs, marks = (tuple(mark for mark in part.marks if mark != "name") for part in (gold, found))
    if len(signs) != len(marks):
        return False
    if len(signs) > 1:
        straight = signs == marks and all(map(same, gold.trees, found.trees))
        turned = tuple(_FLIPPED.get(mark, mark) for mark in reversed(marks))
        return straight or turned == signs and all(map(same, gold.trees, reversed(found.trees)))
    if all(map(same, gold.trees, found.trees)) and signs == marks:
        return True
    differences: list[Node] = [("-", *part.trees) for part in (gold, found)]
    how = proportion(differences[0], differences[1])
    if how == "0":  # identities: each holds everywhere
        return signs == marks and all(map(same, gold.trees, reversed(found.trees)))
    if how is None:
        return False
    return signs[0] == (marks[0] if how == "+" else _FLIPPED.get(marks[0], marks[0]))


# ---------------------------------------------------------------- golds


@lru_cache(maxsize=65536)
def parse_gold(answer: str) -> Answer:
    """A gold's parts, checked.

    Raises:
        HarnessError: it is no mathematics, is ambiguous, or a part of it would be right alone.
    """
    text = answer.strip()
    try:
        if re.fullmatch(r"\d\.\d\.", text):
            raise Unreadable("either a decimal or two items of a list")
        if re.fullmatch(r"(?:\d\.[ \t]+[-\d.]+\s*){2,}", text):
            raise Unreadable("either numbered parts or decimals")
        gold = read(text)
    except Unreadable as error:
        gold = _foreign_gold(text, str(error))
    if gold.parts[0].kind != "foreign":
        _check(gold, text)
    return gold


_FOREIGN = re.compile(
    r"\\(?:begin|sum|prod|i?int|lim|[dt]?binom|lfloor|lceil|max|min|gcd|cap|setminus|emptyset|varnothing|overline|dot)"
    r"(?![a-z])"
)
"""What math-verify reads, and `formulas` does not."""
_FIGURE = re.compile(r"\d{1,18}")


def _foreign_gold(text: str, reason: str) -> Answer:
    """A gold for math-verify, which reads more of LaTeX."""
    if not (_FOREIGN.search(text) and len(text) <= LONGEST_GOLD):
        raise _refused(text, reason)
    other = _FIGURE.sub(lambda match: str(int(match[0]) + 1), text, count=1)
    if math_worker.verify_many([(text, text), (text, other)]) != [True, False]:
        raise _refused(text, reason)
    return Answer((Part("foreign", text),), text=text)


def _refused(text: str, reason: str) -> HarnessError:
    cut = text if len(text) <= 120 else f"{text[:120]}..."
    return HarnessError(
        f"the answer is not mathematics that can be judged: {cut!r} ({reason or 'blank'})",
        "Write it as numbers or LaTeX, or use the exact_word scorer for words",
    )


def _check(gold: Answer, text: str) -> None:
    """Refuses a gold of which a part alone, or another value, would be right."""
    for part in gold.parts if len(gold.parts) > 1 else gold.parts[0].items:
        if equal(gold, Answer((part,))):
            raise _refused(text, f"{part.text!r} alone would be right")
    if not equal(gold, gold):
        raise _refused(text, "it has no value")
    figure = _FIGURE.search(text)
    if figure:
        other = f"{text[: figure.start()]}{int(figure[0]) + 1}{text[figure.end() :]}"
        try:
            changed = read(other)
        except Unreadable:
            return
        if (
            changed != gold
            and changed.parts != gold.parts
            and equal(gold, changed)
            and "_" not in text
            and "^" not in text
        ):
            raise _refused(text, f"another value, {other!r}, would be right")


# ---------------------------------------------------------------- responses

_LISTED = re.compile(
    r"(?:\$|\\\)|\\\]|\*\*)*\s*(?:[,;，；、]|\band\b|\bor\b|和|或)?\s*(?:\$|\\\(|\\\[|\*\*)*\s*"
    r"(?:\(\d\)|\d\.|[A-Za-z](?:_\d)?\s*=|\((?:i+|[a-e])\))?\s*(?:\$|\\\(|\\\[|\*\*)*\s*\\?"
)
_CUE = re.compile(
    r"(?:\b(?:[Ff]inal )?[Aa]nswer(?:\s*\*\*)?(?: (?:to [^.\n]{1,60} )?(?:is|would be|should be|=)\b"
    r"|\s*[:：])|####|答案[是为:：]+)(?:\s*\*\*)?[:：]?\s*"
)
_REFUSAL = re.compile(
    r"\b(?:cannot|can't|can not|could not|couldn't|unable|not (?:possible|able|enough|sufficient|visible"
    r"|provided|given)|impossible"
    r"|sorry|insufficient|enough information|missing|undetermined|no way)\b|无法|不能", re.IGNORECASE
)  # fmt: skip
_SENTENCES = re.compile(r"(?<=[^\s.\d])[.!?]\s+|(?<=\d)[.!?]\s+(?=\D)|。|\n+|(?<=[.!?])\s+(?=[A-Z])")
_RUN = re.compile(
    r"⟦[^⟧]*⟧|\\[A-Za-z]+|[A-Za-z\u4e00-\u9fff]+'*|\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?|\.\d+|\s+|."
)
_VERB = re.compile(
    r"(?:is|are|was|were|be|equals?|equal|gives?|gets?|obtains?|becomes?|has|have|had|makes?|find|need|needs|costs?|to|approximately|about)"
)
_ASIDE = re.compile(
    r",? (?:since|because|as|where|out of|of which|so that|when|if|not|rather than|and not)\b"
    r"|(?<=[\w.])\s?\((?=[a-z])|: (?=[a-z])|，因为"
)
_CONCLUDED = re.compile(
    r"[,;] (?:and )?(?:so|thus|hence|therefore|which (?:is|gives|equals|means))\b|\btherefore,? |所以|因此"
)
_MARKDOWN = re.compile(
    r"\*\*|__|`+|^\s*#{1,6} |^\s*[-•*] |</?(?:b|i|strong|em|p|br|u|center|span|div)\s?/?>", re.MULTILINE
)
_EMPHASIS = re.compile(r"(?<!\w)\*(?=\S)([^*\n]{1,80})(?<=\S)\*(?!\w)")


_SHORT_BOX = re.compile(r"(\\boxed)\s+([^\s{}]{1,20})(?=\s|$)")


def stated(part: str) -> Iterator[str]:
    """The texts that may be the answer of a response, likeliest first; each is to be read as a whole."""
    boxed = _boxed(_SHORT_BOX.sub(r"\1{\2}", part))
    if boxed is not None:
        yield boxed
        return
    keyed = json_answer(part)
    if keyed is not None:
        part = keyed[1] if re.search(r"\d", keyed[1]) else keyed[0].replace("\\\\", "\\")
    text = _MARKDOWN.sub("", before_run_on(part))
    text = (_EMPHASIS.sub(r"\1", text) if "*" in text else text).strip()
    cue = None
    if "nswer" in text or "答案" in text or "####" in text:
        for cue in _CUE.finditer(text):  # noqa: B007 - the last one is wanted
            pass
    if cue is not None and text[cue.end() :].strip():
        lines = text[cue.end() :].strip().split("\n")
        yield lines[0].strip() if len(lines[0].strip()) > 3 or len(lines) == 1 else " ".join(lines[:3])
        return
    if _REFUSAL.search(text[-200:]):
        return
    if len(text) <= 200:
        yield text
    yield from _last_sentences(text)


def _last_sentences(text: str) -> list[str]:
    """The last four sentences, last first; as few characters as possible are split for them."""
    for tail in (500, len(text)):
        found = [one for one in _SENTENCES.split(text[-tail:]) if one and one.strip()]
        if len(found) > 4:  # the first may have begun earlier
            break
    return found[:-5:-1]


def _boxed(text: str) -> str | None:
    """The last box's content, or those of the boxes that stand in one list with it."""
    if "oxed" not in text:
        return None
    found = [content for content in boxes(text) if content.strip()]
    if not found:
        return None
    kept, start = [found[0]], text.rfind(f"{{{found[0]}")
    for content in found[1:]:
        at = text.rfind(f"{{{content}", 0, start)
        if at < 0:
            break
        between = text[at + len(content) + 2 : start]
        if not _LISTED.fullmatch(between.removesuffix("boxed")):
            break
        kept.append(content)
        start = at
    return ", ".join(reversed(kept)) if len(set(kept)) > 1 else kept[0]


def readings(text: str) -> list[Answer]:
    """What a stated text may be read as: all of it, or its mathematics; two for 24/7 ≈ 3.43."""
    text = with_signs(text)
    whole = re.split(r"≈|\\approx", text) if "≈" in text or "\\approx" in text else [text]
    if len(whole) > 1 and whole[0].strip(" $"):
        return [one for piece in (whole[0], whole[-1]) for one in readings(piece)]
    try:
        return [read(text)]
    except Unreadable:
        pass
    concluded = _CONCLUDED.split(text)[-1]
    main = concluded if any(map(str.isdigit, concluded)) else text
    cut = _ASIDE.search(main)
    for sentence in [main[: cut.start()], main] if cut and cut.start() > 0 else [main]:
        for attempt in (sentence, in_figures(sentence)):
            found = _in_sentence(attempt)
            if found is not None:
                return [found]
    return []


def _in_sentence(sentence: str) -> Answer | None:
    """The mathematics behind the verb of a sentence, or else its last; None if there is none."""
    text = clean(re.sub(r"\$|\\[()\[\]]", " ", sentence.replace("\\$", "")))
    runs, behind_verb, run, verb = [], [], "", False
    tokens = [match[0] for match in _RUN.finditer(text)]
    for place, token in enumerate([*tokens, "\0"]):
        is_word = token == "\0" or (
            token[0].isalpha() and not _is_name(token, tokens, place) or token[0] in '"“”'
        )
        if not is_word:
            run += token
            continue
        following = token if place < len(tokens) else ""
        found = _run(run, following, "".join(tokens[place:]))
        if found is not None:
            runs.append(found)
            if verb:
                behind_verb.append(found)
                verb = False
        if (
            _VERB.fullmatch(token)
            or token in ("为", "是", "得", "有", "等于", "长为")
            or token[-1:] in "为是"
        ):
            verb = True
        run = ""
    chosen = behind_verb or runs
    return chosen[-1] if chosen else None


def _is_name(token: str, tokens: list[str], place: int) -> bool:
    """Whether letters in a sentence are mathematics: a function, or a letter beside a sign or figure."""
    if token in ("sin", "cos", "tan", "log", "ln"):
        return True
    if "\u4e00" <= token[0] <= "\u9fff" or len(token) > 3 or len(token) > 1 and not token.isupper():
        return False
    neighbors = []
    for step in (-1, 1):
        at = place + step
        if 0 <= at < len(tokens) and tokens[at].isspace():
            at += step
        neighbors.append(tokens[at] if 0 <= at < len(tokens) else "")
    glued = place > 0 and (tokens[place - 1][-1].isdigit() or tokens[place - 1] in "}π)")
    return glued or any(one and one in "+-*/^=<>≤≥∠△|_" for one in neighbors)


def _run(run: str, following: str, rest: str) -> Answer | None:
    """The answer in a run of mathematics between words; None for none."""
    run = run.strip(" \t,;:.!?\"'*/^=").rstrip("+-<>(")
    if not run or not re.search(r"[\dπ√]|\\frac|\\sqrt|[a-zA-Z]\s*[-+*/^=]", run):
        return None
    if re.match(r"[a-zA-Z]", following) and rest and not run.endswith(("°", "%")):
        word = re.match(r"(?:square |cubic |sq\.? )?[A-Za-z]+(?:\s?\^\s?\{?[23]\}?)?(?:/[A-Za-z]+)?", rest)
        known = unit(word[0]) if word and len(word[0]) > 1 else None
        if known is not None and word is not None:
            run = f"{run} {word[0]}"
    for text in (run, run.strip("()[]"), re.split(r",\s|;", run)[-1]):
        try:
            return read(text)
        except Unreadable:
            continue
    return None


_PLAIN = re.compile(r"\s*(?:\\boxed\{)?\s*(-?\d{1,15}(?:\.\d{1,15})?)\s*\}?\s*\.?\s*")
_PLAIN_BOX = re.compile(r"oxed\{(-?\d{1,15}(?:\.\d{1,15})?)\}[.$\s]*\Z")


def _plain(response: str, gold: Answer) -> Verdict | None:
    """The verdict for a plain number, which needs no reading; None for anything else."""
    found = _PLAIN.fullmatch(response) if len(response) < 40 else None
    if found is None or len(gold.parts) != 1 or gold.parts[0].kind != "value":
        return None
    wanted = _number_of(gold)
    return None if wanted is None else Verdict(float(_fraction(found[1]) == wanted), found[1])


def _number_of(gold: Answer) -> object:
    tree, unit_of = gold.parts[0].trees[0], gold.parts[0].unit
    if unit_of is not None or "%" in gold.text:
        return None
    if tree[0] == "/" and tree[1][0] == tree[2][0] == "n" and tree[2][1]:
        return tree[1][1] / tree[2][1]
    return tree[1] if tree[0] == "n" else None


@lru_cache(maxsize=65536)
def _fraction(text: str) -> object:
    return Fraction(text)


def math(response: str, *, answer: str | int | float, truncated: bool = False) -> Verdict:
    """Score 1.0 if the answer that a response states equals the gold, else 0.0.

    Args:
        response: what the model wrote. Its last box counts, or those in one list; without a box what follows
            "the answer is", else the mathematics of its last sentence.
        answer: the gold; several parts stand in lines, numbered, with commas or in blocks of dollars.
        truncated: whether the response ran out of tokens: then only a closed box or answer tag counts.

    Returns:
        A score of 0.0 or 1.0; extracted is the text that was judged. None: no mathematics was found.

    Raises:
        HarnessError: the gold is no mathematics, or a part or another value would be right; see `parse_gold`.
    """
    return score_many([response], answer=answer, truncated=[truncated])[0]


def score_many(
    responses: Sequence[str], *, answer: str | int | float, truncated: Sequence[bool] | None = None
) -> list[Verdict]:
    """Verdicts of several responses to one item, as `math`; math-verify gets its share in one batch."""
    gold = parse_gold(str(answer))
    plans = [
        _plan(response, gold, cut)
        for response, cut in zip(responses, truncated or [False] * len(responses), strict=True)
    ]
    texts = [plan for plan in plans if isinstance(plan, str)]
    verified = iter(math_worker.verify_many([(gold.text, text) for text in texts]))
    return [Verdict(float(next(verified)), plan.strip()) if isinstance(plan, str) else plan for plan in plans]


def _plan(response: str, gold: Answer, truncated: bool) -> Verdict | str:
    """The verdict on a response, or the text that math-verify has to compare with the gold."""
    plain = None if truncated else _plain(response, gold)
    if plain is not None:
        return plain
    if len(response) > 2 * TAIL and "<" not in response and "◁" not in response and "[/" not in response:
        response = response[-TAIL:]
    part = answer_part(response, truncated=truncated)[-TAIL:]
    is_foreign = gold.parts[0].kind == "foreign"
    for text in stated(part):
        if is_foreign and text.strip():
            return text
        found = readings(text)
        if found:
            return Verdict(float(any(equal(gold, one) for one in found)), found[0].text or text.strip())
        if "oxed" in part and text.strip():
            is_latex = _FOREIGN.search(text) and len(gold.parts) == 1 and len(text) <= LONGEST_GOLD
            return text if is_latex else Verdict(0.0, text.strip())
    return NOT_FOUND


def same_answer(one: str, other: str) -> bool:
    """Whether two extracted answers are equal as `math` compares a gold with an answer."""
    return any(equal(ours, theirs) for ours in _read_once(one) for theirs in _read_once(other))


@lru_cache(maxsize=1024)
def _read_once(text: str) -> list[Answer]:
    return readings(text)


def _gold_of_row(solution: object) -> object:
    gold = text_gold(solution)
    parse_gold(str(gold))
    return gold


SCORER = Scorer("math", math, gold=_gold_of_row, many=score_many, same=same_answer, version=2)

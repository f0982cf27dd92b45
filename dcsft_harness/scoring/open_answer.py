r"""Open questions with one or several golds, as MMMU has them: a number, a letter of the figure, or words.

    open_answer("The answer is 20 Ω.", answer=["20"])            -> Verdict(1.0, "20 Ω")
    open_answer("\boxed{0.29}", answer=["0.286"])                -> Verdict(1.0, "0.29")
    open_answer("**Embryonic period**", answer=["embryonic"])    -> Verdict(1.0, "Embryonic period")

A response is right if it states one of the golds:

- a letter ("C", of a part that the figure labels): `choice` with the letters A to J, or "structure C";
- a number, fraction or formula: as `math` compares, or equal to two decimals where the gold is a decimal, as
  MMMU's own evaluation rounds;
- words: the gold stands as whole words in what is stated, as MMMU's own evaluation looks for it.

What a response states is what `math` reads: the last \boxed{...}; else what follows the last "answer is" or
"answer:"; else the last sentence.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring.choice import choice
from dcsft_harness.scoring.formulas import Unreadable
from dcsft_harness.scoring.math import (
    Answer,
    answer_form,
    equal,
    judged,
    number_of,
    parse_gold,
    plain_number,
    same_answer,
    stated,
)
from dcsft_harness.scoring.normalize import answer_part, bounded, first_turn, plain
from dcsft_harness.scoring.options import amount
from dcsft_harness.scoring.phrases import ASIDE, DENIED
from dcsft_harness.scoring.units import PERCENT
from dcsft_harness.scoring.verdict import NOT_FOUND, Scorer, Verdict, text_gold

_IN_WORD = r"[^\W_\u3040-\u30ff\u4e00-\u9fff]"
"""A letter or digit of a script that has spaces between words."""
_DECIMAL = re.compile(r"[-+]?\d*\.?\d+")
_BRACKETED = re.compile(r"\([^()]*\)")
_REASON = re.compile(r"(?<=\w)(?:;|,? (?:because(?! of)|since)\b)")
"""Begins what a response reasons from."""
_AGAINST = re.compile(
    r",? (?:as opposed to|compared (?:to|with)|(?:up|down) from|versus|whereas"
    r"|(?<=, )which (?:follow|preced|c[ao]me|lead|led)\w*)\b(?:[^.\n]|\.\d)*"
)
"""What a response sets its answer against; and what is found faster."""
_AGAINST_WORDS = "opposed", "compared", " from", "versus", "whereas", ", which"
_SUBSCRIPT = re.compile(r"(?<=[A-Za-z)])_(?=\d)|(?<=[A-Za-z)\d])\^(?=\d?[-+](?!\w))|(?<=\bsp)\^(?=\d)")
"""What LaTeX writes before the digits and charges of chemical formulas: CO_2, Ca^2+."""
_SPACED_SIGN = re.compile(r" ?([=+<>≤≥]) ?")
_FORMULA = re.compile(r"(?:[A-Z][a-z]?\d*|[()]\d*){1,20}(?:\d?[-+])?")
_GENOTYPE = re.compile(r"(?:(?i:([a-z])\1))+")
"""Letters in pairs, whose case counts: AaBb."""
_FIGURES = re.compile(r"[-\d.,; ]+")
_MONEY = re.compile(r"(?<=\$)(\d[\d,.]*) ?([KMB])\b(?! ?[-+=*/^$\\])")
_MILLIONS = {"K": "thousand", "M": "million", "B": "billion"}
_LABELED = re.compile(
    r"(?i:(?:the )?(?:[a-z]{3,20}|fig\.) )\(?([A-J])\)?"
    r"|\(?([A-J])\)? (?:is|shows|represents|marks|points to) (?:the|an?) .*"
)


def open_answer(response: str, *, answer: str | Sequence[str], truncated: bool = False) -> Verdict:
    """Score 1.0 if the response states one of the golds, else 0.0.

    Args:
        response: what the model wrote.
        answer: the gold, or several of which each is right.
        truncated: whether the response ran out of tokens: then only a closed box or answer tag counts.

    Returns:
        A score of 0.0 or 1.0; extracted is what the response states, None where that is nothing.

    Raises:
        HarnessError: there is no gold, or one is blank.
    """
    golds = parse_golds(answer)
    part = bounded(answer_part(response, truncated=truncated))
    part = first_turn(part) or part
    is_against = "oxed" not in part and any([word in part for word in _AGAINST_WORDS])
    if is_against and not any(map(_AGAINST.search, golds)):
        part = _AGAINST.sub("", part)
    in_full = _MONEY.sub(lambda match: f"{match[1]} {_MILLIONS[match[2]]}", part)
    verdicts = [_judge(one, gold) for one in dict.fromkeys((part, in_full)) for gold in golds]
    right = next((verdict for verdict in verdicts if verdict.score == 1.0), None)
    return right or next((verdict for verdict in verdicts if verdict.extracted is not None), NOT_FOUND)


def parse_golds(answer: str | Sequence[str]) -> list[str]:
    """The golds as a list.

    Raises:
        HarnessError: there is none, or one is blank.
    """
    golds = [answer] if isinstance(answer, str) else list(answer)
    if not golds or not all(isinstance(gold, str) and gold.strip() for gold in golds):
        raise HarnessError(
            f"the answer of an open_answer item is blank: {answer!r}", "Write one text or more"
        )
    return golds


def _judge(part: str, gold: str) -> Verdict:
    if len(gold) == 1 and gold in "ABCDEFGHIJ":
        said = _stated(part)
        labeled = _LABELED.fullmatch(said) if said else None
        if labeled:
            letter = labeled[1] or labeled[2]
            return Verdict(float(letter == gold), letter)
        return choice(part, answer=gold)
    if _FORMULA.fullmatch(_level(gold)) or gold.startswith("O("):
        return _worded(part, gold)
    is_whole = " " not in gold.strip() or amount(plain(gold)) is not None or _FIGURES.fullmatch(gold)
    if any(character.isdigit() for character in gold) and is_whole:
        try:
            number = plain_number(part, gold)
            if number is not None:
                said, found, wanted = number
                return Verdict(float(found == wanted or _rounds_to(found, gold)), said)
            parsed = parse_gold(gold)
            verdict = judged(part, parsed, lambda answer: equal(parsed, answer) or _rounds(answer, gold))
            if verdict.extracted is not None or " " not in gold.strip():
                return verdict
        except HarnessError:  # "trans-1-Chloro-4-methylcyclohexane" has digits and is no mathematics
            pass
    return _worded(part, gold)


def _rounds(found: Answer, gold: str) -> bool:
    """Whether a value, or a percentage as a share, is a decimal gold to two decimals."""
    try:
        number, named = number_of(found) or (None, None)
    except Unreadable:
        return False
    divisors = (1, 100) if named is not None and named.dimension == PERCENT else (1,)
    return isinstance(number, Fraction) and any(_rounds_to(number / one, gold) for one in divisors)


def _rounds_to(number: Fraction, gold: str) -> bool:
    return bool(_DECIMAL.fullmatch(gold.strip())) and round(float(number), 2) == round(float(gold), 2)


def _worded(part: str, gold: str) -> Verdict:
    said = _stated(part)
    if said is None:
        return NOT_FOUND
    wanted, folded = _level(gold), said
    if not _GENOTYPE.fullmatch(wanted):
        wanted, folded = wanted.lower(), folded.lower()
    if _SPACED_SIGN.search(wanted):
        wanted, folded = (_SPACED_SIGN.sub(r"\1", one) for one in (wanted, folded))
    is_inside = "(" in wanted or f"({wanted})" in folded and _FORMULA.fullmatch(_level(gold))
    folded = folded if is_inside else _BRACKETED.sub(" ", folded)
    if not (ASIDE.search(wanted) or _REASON.search(wanted)):
        kept = _REASON.split(ASIDE.sub("", folded))[0]
        folded = kept if re.search(r"\w", kept) else folded
    match = re.search(rf"(?<!{_IN_WORD})(?<!-){re.escape(wanted)}(?!{_IN_WORD})", folded)
    right = match is not None and not DENIED.search(folded[: match.start()])
    return Verdict(float(right), said)


def _stated(part: str) -> str | None:
    text = next(stated(part), "")
    return _level(text) or None


def _level(text: str) -> str:
    """A plain text without outer stops, its chemical formulas on one line: CO2, Ca2+."""
    return _SUBSCRIPT.sub("", plain(text).replace("−", "-")).strip(" .")


def _golds_of_row(solution: object) -> object:
    golds = solution if isinstance(solution, list) else [solution]
    return parse_golds([str(text_gold(one)) for one in golds])


def _same(one: str, other: str) -> bool:
    return one.lower() == other.lower() or same_answer(one, other)


SCORER = Scorer("open_answer", open_answer, gold=_golds_of_row, same=_same, form=answer_form, version=16)

r"""Multiple choice: which option a response states.

    choice("... Therefore, the answer is (B) 5.", answer="B", choices=["3", "5"]) -> Verdict(1.0, "B")

What the tags mark as the answer (see `tags`) is searched, up to where the model makes up a further
question. Strongest first, and the first that states one option decides:

1. the last \boxed{...}, or without one the value of "answer" in JSON;
2. the whole response: a letter as a label, an option's text, an equal quantity ("3" is "3.0");
3. the last statement with a cue: "the answer is", "is correct", "答案是", "故选"; where the options are
   judged one by one ("A: no", "B ✅"), a statement beside the verdicts, then the one option found good;
4. the beginning: "(B) ...", "B. ...", "Yes, ...", unless the response lists the options there;
5. a weaker cue ("the result is"); the last line, if it is a label or an option; the sentence that
   concludes.

What only asks ("is it B?"), is weighed and found less likely, or supposes what is not so, is taken away
first; see `asides`.
A response in which none of these states exactly one option has no answer: there is no nearest
option and no random one. Where the last statement names none of the options ("the answer is 16",
"(E)" of four, "none of these") or the last box holds none, no earlier one is taken in its place. A
letter counts over the text beside it ("(C) 12" is C whatever C says), except over a plain yes or no.
Of a response of more than 12,000 characters the first 3,000 and the last 9,000 are read.
docs/design/scoring.md has the reasons.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring.asides import settled
from dcsft_harness.scoring.cues import Cue, has_key
from dcsft_harness.scoring.judged import judged, may_be_judged
from dcsft_harness.scoring.keyed import Keyed, is_several, keyed_answer
from dcsft_harness.scoring.labels import (
    bracketed,
    goes_through,
    is_alphabet,
    is_listing,
    label,
    without_listing,
)
from dcsft_harness.scoring.option_set import DRAWN, NO_OPTION, OptionSet, key, option_set
from dcsft_harness.scoring.plain_text import (
    before_run_on,
    bounded,
    last_sentence,
    last_words,
    plain,
    sentences,
)
from dcsft_harness.scoring.statements import chosen, conclusion, has_digit, remaining, stated, stated_at
from dcsft_harness.scoring.tags import answer_part, boxes, is_cut, is_thinking
from dcsft_harness.scoring.verdict import NOT_FOUND, Verdict

_LETTER_ONLY = re.compile(r"[\s(\[\"'*$`]*([A-Za-z])[\s)\]\"'*$`.:,]*")
_BEGINS_WITH_LETTER = re.compile(r"[(\[\"']?[A-Z][)\].:,]")
_DECIDED = re.compile(r"\b(?i:choose|select|pick|go(?:ing)? with|say|guess|option|answer is)\s\(?([B-HJ])$")
_BESIDE_VALUE = re.compile(r"[^A-Z]{1,80}[,;]\s?(?:[Oo]ption\s)?\(?([A-J])\)?")
_CONCLUDES = re.compile(
    r"(?i)^(?:therefore|thus|hence|so\b|in conclusion|to conclude|overall|finally|因此|所以|故|综上)"
)


def choice(response: str, *, answer: str, choices: Sequence[str | int | float] | None = None) -> Verdict:
    """Score 1.0 if the option that the response states is the gold, else 0.0.

    Args:
        response: what the model wrote.
        answer: the gold: an option's letter ("B", "(b)"), or its text, which a letter precedes.
        choices: the options in order, A first; None or empty where they are only in the figure,
            which allows the letters A to J.

    Returns:
        A score of 0.0 or 1.0; extracted is the letter in upper case, None if none is stated. An
        option with the gold's very text is right as well.

    Raises:
        HarnessError: if the answer is neither a letter nor a text of the options, or if there are
            more than 26 options.
    """
    options = option_set(tuple(map(str, choices)) if choices else DRAWN)
    if len(options.texts) > len(options.letters):
        raise HarnessError(f"{len(options.texts)} choices are more than there are letters", "Give at most 26")
    gold = _gold(answer, options)
    found = find(response, options)
    if found is None:
        return NOT_FOUND
    return Verdict(float(found == gold or options.same(found, gold)), options.letters[found])


@lru_cache(maxsize=8192)
def _gold(answer: str, options: OptionSet) -> int:
    letter = _LETTER_ONLY.fullmatch(str(answer))
    index = options.index(letter[1].upper()) if letter else None
    if index is None and key(str(answer)) in options.keys:
        index = options.keys.index(key(str(answer)))
    if index is None:
        raise HarnessError(
            f"the answer {answer!r} is no option of {list(options.texts)!r}",
            f"Give one of the letters A to {options.letters[-1]}",
        )
    return index


def find(response: str, options: OptionSet) -> int | None:
    """The index of the option that a response states, or None."""
    part = answer_part(response)
    if len(part) < 40:
        literal = options.literal(part.strip())
        if literal is not None:
            return literal
        letter = _LETTER_ONLY.fullmatch(part)
        if letter:
            index = options.index(letter[1].upper())
            return options.texts.index(letter[1]) if index is None and letter[1] in options.texts else index
    part = bounded(part)
    head = before_run_on(part)
    found = _find(head, options)
    if found is None and len(head) < len(part):  # what looked like a further question was this one
        found = _find(part, options)
    return found


def _find(part: str, options: OptionSet) -> int | None:
    """What the rules find in a text with its markup."""
    boxed = next(filter(str.strip, boxes(part)), "") if "oxed" in part else ""
    keyed = None if boxed else keyed_answer(part)
    if keyed is not None:
        return _find_keyed(keyed, options)
    found = _read_box(plain(boxed), options) if boxed else None
    if found is not None:
        return found
    thinking = is_thinking(part)
    if thinking and is_cut(part):
        return None
    for length in LAST_WORDS:  # only to save time: the last statement of the whole is found as well
        long = len(part) > 2 * length and (length < 200 or "\\" in part)
        ending = last_words(part, length) if long else ""
        if has_key(ending):
            words = settled(plain(ending))
            found = next(stated(words, options), None)
            if found is not None and found != NO_OPTION and not may_be_judged(words):
                return found
    # A box that holds no option states another value; only an explicit letter can still overrule it.
    return next(_found(settled(plain(part)), options, conclude=not boxed), None)


def _find_keyed(keyed: Keyed, options: OptionSet) -> int | None:
    """The option that is stated behind an object, or else the one that its answer is."""
    found = _find(keyed.behind, options) if keyed.behind else None
    if found is not None or is_several(keyed.value):
        return found
    value = plain(keyed.value)
    found = _read_box(value, options)
    return found if found is not None else next(_found(settled(value), options, conclude=True), None)


def _read_box(content: str, options: OptionSet) -> int | None:
    """The option in a box, which has to be all of it, or a label: no option in an equation counts."""
    for found in (options.named(content), label(content, options), options.begun(content)):
        if found is not None:
            return found
    beside = _BESIDE_VALUE.fullmatch(content)
    return options.index(beside[1]) if beside else None


def _found(text: str, options: OptionSet, *, conclude: bool) -> Iterator[int]:
    """What the rules 2 to 5 find in a plain text, strongest first; `conclude` allows the rule 5."""
    whole = options.named(text)
    if whole is not None:
        yield whole
    if is_alphabet(text):
        return
    each = None if options.judge_themselves else judged(text)
    text = each.rest if each else text
    weak: list[Cue] = []
    last = next(stated(text, options, weak), None)
    if last is not None and last != NO_OPTION:
        yield last
    only = options.index(each.only() or "") if each else None
    if each and only is not None and last is None:
        yield from _judged_last(each.behind, only, options, conclude=conclude)
        return
    rest = without_listing(text)
    if rest and not is_listing(rest) and (last != NO_OPTION or _BEGINS_WITH_LETTER.match(rest)):
        yield from _present(label(rest, options))
    if rest:
        yield from _present(options.begun(rest))
    if last == NO_OPTION:
        return
    for cue in weak:
        yield from stated_at(cue, text, options)
    yield from _ended(rest, options) if rest and conclude else ()


def _judged_last(behind: str, only: int, options: OptionSet, *, conclude: bool) -> Iterator[int]:
    """The option that is concluded behind verdicts, or else the only one that was found good."""
    found = next(_found(behind, options, conclude=conclude), None) if behind else None
    if found is not None:
        yield found
    elif not (options.given_up(behind) or options.numeric and has_digit(behind)):
        yield only


def _ended(text: str, options: OptionSet) -> Iterator[int]:
    """What the rule 5 finds: the option of the last line, or the one that the sentences conclude."""
    last, is_one_of_several = last_sentence(text)
    if is_one_of_several and goes_through(text, last):
        return
    if is_one_of_several and not is_listing(last):
        yield from _present(label(last, options), options.begun(last), options.named(last))
    if not is_cut(text):
        yield from _concluded(text, last, options)
    else:
        decided = _DECIDED.search(last)  # nothing has to follow
        yield from _present(options.index(decided[1]) if decided else None)


def _present(*candidates: int | None) -> Iterator[int]:
    return (candidate for candidate in candidates if candidate is not None)


LAST_WORDS = (150, 500)
"""Characters at the end of a long text that are searched for a statement before the rest is."""


def _concluded(text: str, last: str, options: OptionSet) -> Iterator[int]:
    """The option that the sentences conclude, from the last one and those that begin with "so"."""
    lettered = bracketed(last, options)
    if lettered:
        yield from lettered if len(lettered) == 1 else _present(remaining(last, options))
        return
    yield from _present(chosen(last, options))
    if options.numeric and not options.given_up(last):
        yield from _present(conclusion(last, options))
    if has_digit(last) if options.numeric else not options.may_be_mentioned(text):
        return  # the number that was concluded is no option
    parts = sentences(text)
    for part in reversed(parts[:-1] if options.numeric else parts):
        if _CONCLUDES.match(part):
            if not options.given_up(part):
                yield from _present(conclusion(part, options))
            if options.numeric and has_digit(part):
                return
    if not options.numeric:
        overall = [found for part in parts for found in _mentioned(part, options)]
        yield from overall[:1] if len(set(overall)) == 1 else ()
        ends = {conclusion(part, options) for part in (parts[0], last) if not options.given_up(part)} - {None}
        yield from _present(*ends) if len(ends) == 1 else ()


def _mentioned(part: str, options: OptionSet) -> list[int]:
    found = options.mentioned(part)
    return [] if found and options.given_up(part) else found

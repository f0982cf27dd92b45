r"""Options and golds of multiple-choice questions, in the forms in which benchmarks publish them.

    joined("A. 45° B. 60° ;C. 120°; D. No correct answer") -> ["45°", "60°", "120°", "No correct answer"]
    inside("... is ()\nChoices:\nA:40°\nB:60°") -> ["40°", "60°"]
    lettered("(C)", ["1", "2", "3"]) -> "C"

A list of options is in order, A first; a letter that is left out has an empty text.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from dcsft_harness.errors import HarnessError

LETTERS = "ABCDEFGHIJ"
"""The letters that options may have; `choice` allows the same where the options are only in a figure."""

_MEND = "Download the data again; or mend the row, or pass over it: --on-error skip"
_LETTER = re.compile(r"[\s(\[（【]*([A-Za-z])[\s)\]）】.:、]*")
_SEVERAL = re.compile(r"[A-J](?:[\s,;、&]*[A-J])+")
_AT_LINE = re.compile(r"(?m)^[ \t]*\(?([A-J])\)?[ \t]*[.:、．：)]")
_LINE = re.compile(r"\s*\n[^\n]+")
_USUAL = 4
"""Options that most questions have."""
_SPLIT_NAME = re.compile(r";(?=[A-Z]\.)")


def listed(choices: Sequence[str]) -> str:
    """The options as lines, "A. text"; those with an empty text are left out."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False) if text)


def joined(text: str) -> list[str]:
    """Options in one string, joined by ";" (We-Math).

    The separator also stands before every "X." inside an option ("∠AB;E.;" is "∠ABE."), between "①; ③",
    and is missing here and there ("A. 4 B. 3 C. 2 ;D. 1").

    Raises:
        HarnessError: there are fewer than two options.
    """
    marks: list[tuple[int, re.Match[str]]] = []
    at = 0
    while len(marks) < len(LETTERS):
        mark = _next(text, at, marks[-1][0] + 1 if marks else 0)
        if mark is None:
            break
        marks.append(mark)
        at = mark[1].end()
    if len(marks) < 2 or marks[0][0] > 0:
        raise HarnessError(f"the options {text!r} are not of the form 'A. ...; B. ...'", _MEND)
    return [_SPLIT_NAME.sub("", option).strip(" ;\n\t") for option in _between(text, marks)]


def _next(text: str, at: int, index: int) -> tuple[int, re.Match[str]] | None:
    """Where the next option begins: that of the letter, after a ";" or else a space; or of a later letter."""
    tries = [(index, ";"), (index, r"\s"), *((later, ";") for later in range(index + 1, len(LETTERS)))]
    for which, before in tries:
        found = _opening(LETTERS[which], before).search(text, at)
        if found:
            return which, found
    return None


@lru_cache(maxsize=64)
def _opening(letter: str, before: str) -> re.Pattern[str]:
    # What is no option has the next ";" at once: "∠AB;E.; B. ..."
    return re.compile(rf"(?:^|(?<={before}))\s*{letter}\s*[.．:：、)](?=\s*[^;\s])")


def inside(question: str) -> list[str]:
    """Options that stand inside a question, each on its line, all on one or some on each; none where unclear.

    The last run of them counts: a question may name a point "A." before.
    """
    marks = [(LETTERS.index(match[1]), match) for match in _AT_LINE.finditer(question)]
    runs: list[list[tuple[int, re.Match[str]]]] = []
    for index, match in marks:
        if index == 0:
            runs.append([])
        elif not runs or index != runs[-1][-1][0] + 1:
            continue
        runs[-1].append((index, match))
    if runs and len(runs[-1]) > 1:
        run = runs[-1]
        if (
            len(run) < _USUAL
        ):  # "A. x", "B. y", "C. z  D. w"; but no fifth option in "D. the bacterium E. coli"
            run = _goes_on(question, run, _blank(question, run[-1][1].end()))
        found = _between(question, run)
        return [*found[:-1], found[-1].split("\n\n")[0].strip()]
    return _on_lines(question)


def _blank(text: str, at: int) -> int:
    """Where the next blank line begins, or else the text ends."""
    end = text.find("\n\n", at)
    return len(text) if end < 0 else end


def _goes_on(text: str, marks: list[tuple[int, re.Match[str]]], end: int) -> list[tuple[int, re.Match[str]]]:
    """Marks and those of the letters that follow, before `end`, wherever white space is before them."""
    found = list(marks)
    for index in range(len(marks), len(LETTERS)):
        match = _inline(LETTERS[index]).search(text, found[-1][1].end() if found else 0, end)
        if match is None:
            break
        found.append((index, match))
    return found


@lru_cache(maxsize=64)
def _inline(letter: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^\s(;,]){letter}[)]?\s*[.、．：:]\s*(?=\S)")


def _begins(line: str, index: int) -> bool:
    match = _AT_LINE.match(line.strip())
    return match is not None and LETTERS.index(match[1]) == index


def _on_lines(question: str) -> list[str]:
    """Options of which some share a line: of the last line that has A and B, and of the lines after it."""
    text = question.strip()
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    for at in reversed(starts):
        end = (text.find("\n", at) + 1 or len(text) + 1) - 1
        first = _inline(LETTERS[0]).search(text, at, end)
        marks = _goes_on(text, [(0, first)] if first else [], end)
        if first is None or len(marks) < 2:
            continue
        # The next line with words belongs to the list if it begins with the next letter.
        while (line := _LINE.match(text, end)) and _begins(line[0], len(marks)):
            end = line.end()
            marks = _goes_on(text, marks, end)
        return [option.strip(" ;,") for option in _between(text[:end], marks)]
    return []


def _between(text: str, marks: Sequence[tuple[int, re.Match[str]]]) -> list[str]:
    """The texts between marks, by the marks' indices; empty where there is none."""
    found = [""] * (marks[-1][0] + 1)
    ends = [match.start() for _, match in marks[1:]] + [len(text)]
    for (index, match), end in zip(marks, ends, strict=True):
        found[index] = text[match.end() : end].strip()
    return found


def lettered(answer: str, choices: Sequence[str]) -> str | list[str]:
    r"""A gold that is a letter, bare or in brackets, or else an option's text.

    Args:
        answer: as published: "B", "(B)", "False"; or several letters, "C\nD".
        choices: the options; empty where they are only in the figure.

    Returns:
        The letter. Several where the gold is several: no response that states one option is right then.

    Raises:
        HarnessError: the gold is no option.
    """
    bare = _LETTER.fullmatch(answer)
    if bare and _holds(bare[1].upper(), choices):
        return bare[1].upper()
    if answer.strip() in choices:
        return LETTERS[choices.index(answer.strip())]
    if _SEVERAL.fullmatch(answer.strip()):
        letters = [character for character in answer if character in LETTERS]
        if all(_holds(one, choices) for one in letters):
            return letters
    raise _no_option(answer, choices)


def letter(answer: str, choices: Sequence[str]) -> str:
    """The same, where the gold has to be one option.

    Raises:
        HarnessError: the gold is no option, or several.
    """
    gold = lettered(answer, choices)
    if not isinstance(gold, str):
        raise HarnessError(f"the answer {answer!r} is more than one option", _MEND)
    return gold


def worded(answer: str, choices: Sequence[str]) -> str:
    """A gold that is an option's text (MathVista), as its letter: the first one, if texts are the same.

    Raises:
        HarnessError: the gold is no option.
    """
    if answer not in choices:
        raise _no_option(answer, choices)
    return LETTERS[choices.index(answer)]


def _holds(letter: str, choices: Sequence[str]) -> bool:
    index = LETTERS.find(letter)
    return index >= 0 and (not choices or (index < len(choices) and choices[index] != ""))


def _no_option(answer: str, choices: Sequence[str]) -> HarnessError:
    among = f"no option of {list(choices)!r}" if choices else f"none of the letters A to {LETTERS[-1]}"
    return HarnessError(f"the answer {answer!r} is {among}", _MEND)

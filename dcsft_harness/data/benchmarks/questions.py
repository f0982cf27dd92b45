"""Questions, options and gold answers, in the formats of published reasoning benchmarks."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from dcsft_harness.data.benchmarks import Entry, Hub, Opened, Row, downloads
from dcsft_harness.errors import HarnessError

# Options and gold answers of multiple-choice questions, in the formats of published benchmarks.
#
#     joined("A. 45° B. 60° ;C. 120°; D. No correct answer") -> ["45°", "60°", "120°", "No correct answer"]
#     inside("... is ()\nChoices:\nA:40°\nB:60°") -> ["40°", "60°"]
#     lettered("(C)", ["1", "2", "3"]) -> "C"
#
# A list of options is in order, A first; a skipped letter has an empty text.

LETTERS = "ABCDEFGHIJ"
"""The letters of options; `choice` allows the same if the options are only in a figure."""

_CORRECT = "Download the data again; or correct the row, or skip it: --on-error skip"
_LETTER = re.compile(r"[\s(\[（【]*([A-Za-z])[\s)\]）】.:、]*")
_SEVERAL = re.compile(r"[A-J](?:[\s,;、&]*[A-J])+")
_AT_LINE = re.compile(r"(?m)^[ \t]*\(?([A-J])\)?[ \t]*[.:、．：)]")
_LINE = re.compile(r"\s*\n[^\n]+")
_USUAL = 4
"""The options of most questions."""
_SPLIT_NAME = re.compile(r";(?=[A-Z]\.)")


def joined(text: str) -> list[str]:
    """Options in one string, joined by ";" (We-Math); at least two.

    The separator also occurs before every "X." inside an option ("∠AB;E.;" is "∠ABE."), and between "①; ③",
    and is sometimes missing ("A. 4 B. 3 C. 2 ;D. 1").

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
        raise HarnessError(f"the options {text!r} are not of the form 'A. ...; B. ...'", _CORRECT)
    return [_SPLIT_NAME.sub("", option).strip(" ;\n\t") for option in _between(text, marks)]


def _next(text: str, at: int, index: int) -> tuple[int, re.Match[str]] | None:
    """The start of the next option: of this letter, after a ";" or else a space; or of a later letter."""
    tries = [(index, ";"), (index, r"\s"), *((later, ";") for later in range(index + 1, len(LETTERS)))]
    for which, before in tries:
        found = _opening(LETTERS[which], before).search(text, at)
        if found:
            return which, found
    return None


def _opening(letter: str, before: str) -> re.Pattern[str]:
    # Text that is not an option has the next ";" immediately: "∠AB;E.; B. ..."
    return re.compile(rf"(?:^|(?<={before}))\s*{letter}\s*[.．:：、)](?=\s*[^;\s])")


def inside(question: str) -> list[str]:
    """Options inside a question, one or several per line; empty if unclear.

    The last list counts: a question may mention a point "A." before it.
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
        # "A. x", "B. y", "C. z  D. w"; but no fifth option in "D. the bacterium E. coli"
        if len(run) < _USUAL:
            blank = question.find("\n\n", run[-1][1].end())
            run = _continued(question, run, len(question) if blank < 0 else blank)
        found = _between(question, run)
        return [*found[:-1], found[-1].split("\n\n")[0].strip()]
    return _on_lines(question)


def _continued(
    text: str, marks: list[tuple[int, re.Match[str]]], end: int
) -> list[tuple[int, re.Match[str]]]:
    """The marks of consecutive letters before `end`, each preceded by white space."""
    found = list(marks)
    for index in range(len(marks), len(LETTERS)):
        match = _inline(LETTERS[index]).search(text, found[-1][1].end() if found else 0, end)
        if match is None:
            break
        found.append((index, match))
    return found


def _inline(letter: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^\s(;,]){letter}[)]?\s*[.、．：:]\s*(?=\S)")


def _begins(line: str, index: int) -> bool:
    match = _AT_LINE.match(line.strip())
    return match is not None and LETTERS.index(match[1]) == index


def _on_lines(question: str) -> list[str]:
    """Options of which some share a line: on the last line with both A and B, and on the lines after it."""
    text = question.strip()
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    for at in reversed(starts):
        end = (text.find("\n", at) + 1 or len(text) + 1) - 1
        first = _inline(LETTERS[0]).search(text, at, end)
        marks = _continued(text, [(0, first)] if first else [], end)
        if first is None or len(marks) < 2:
            continue
        # The next line with words belongs to the list if it begins with the next letter.
        while (line := _LINE.match(text, end)) and _begins(line[0], len(marks)):
            end = line.end()
            marks = _continued(text, marks, end)
        return [option.strip(" ;,") for option in _between(text[:end], marks)]
    return []


def _between(text: str, marks: Sequence[tuple[int, re.Match[str]]]) -> list[str]:
    """The texts between marks, by the marks' indices; empty if there is none."""
    found = [""] * (marks[-1][0] + 1)
    ends = [match.start() for _, match in marks[1:]] + [len(text)]
    for (index, match), end in zip(marks, ends, strict=True):
        found[index] = text[match.end() : end].strip()
    return found


def lettered(answer: str, choices: Sequence[str]) -> str | list[str]:
    r"""The letter of a gold answer that is a letter, bare or in brackets, or an option's text.

    The answer is as published: "B", "(B)", "False", or several letters, "C\nD"; `choices` is empty where the
    options are only in the figure. Returns several letters if the gold has several: then no response that
    states one option is right.

    Raises:
        HarnessError: the gold is not an option.
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
    """As `lettered`; a gold of several options is an error too."""
    gold = lettered(answer, choices)
    if not isinstance(gold, str):
        raise HarnessError(f"the answer {answer!r} is more than one option", _CORRECT)
    return gold


def worded(answer: str, choices: Sequence[str]) -> str:
    """The letter of a gold answer that is an option's text (MathVista): the first one, if texts are equal.

    Raises:
        HarnessError: the gold is not an option.
    """
    if answer not in choices:
        raise _no_option(answer, choices)
    return LETTERS[choices.index(answer)]


def _holds(letter: str, choices: Sequence[str]) -> bool:
    index = LETTERS.find(letter)
    return index >= 0 and (not choices or (index < len(choices) and choices[index] != ""))


def _no_option(answer: str, choices: Sequence[str]) -> HarnessError:
    among = f"options {list(choices)!r}" if choices else f"letters A to {LETTERS[-1]}"
    return HarnessError(f"the answer {answer!r} is not one of the {among}", _CORRECT)


# Shared by the six reasoning benchmarks: a question's text, images, breakdown parts and row.

COLUMNS: dict[str, Any] = {"id": "string", "choices": ["string"], "parts": ["string"]}
"""The benchmark's own id of the question; the options' texts, A first, empty if they are only in the figure;
the row's breakdown parts ("subject_algebra"), each with a metric `acc_PART`."""

FREE_FORM = "rows that are not multiple choice, which the paper does not ask"
SEVERAL = "golds of several letters, which no response that states one option matches"
BEYOND = "golds beyond the options that could be read, judged by letters alone"
"""Names of notes in the manifest."""
_SAID = 3
"""The most rows that are reported immediately; all are counted."""


def text(raw: Mapping[str, Any], column: str) -> str:
    """A column that must hold text, stripped; the error names the column and the value."""
    value = raw[column]
    if not isinstance(value, str) or not value.strip():
        raise HarnessError(
            f"the column {column!r} holds {value!r} where text is needed", "Download the data again"
        )
    return value.strip()


def texts(raw: Mapping[str, Any], column: str) -> list[str]:
    """A column that must hold a list of texts, or nothing; the error names the column and the value."""
    value = raw[column]
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise HarnessError(
            f"the column {column!r} holds {value!r}, which is not a list of texts", "Download the data again"
        )
    return list(value)


def add_picture(opened: Opened, image: object) -> tuple[str, int]:
    """Adds the image in an undecoded Image column; an error if there is none, or it cannot be read.

    Returns its name, which depends only on the bytes, and its row in the album.
    """
    data = downloads.image_bytes(image)()
    name = content_name(data)
    return name, opened.pictures.add(name, lambda: data).index


def content_name(data: bytes) -> str:
    """An image's name: 24 hex digits of its bytes' SHA-256."""
    return hashlib.sha256(data).hexdigest()[:24]


def clustered(
    opened: Opened,
    hub: Hub,
    columns: Sequence[str],
    name: str,
    images: Sequence[str],
    only: downloads.Only = None,
) -> Iterator[Entry]:
    """The published rows, with `cluster`: shared by those that share a name or an image, transitively.

    The column `name` has a row's name, or that of its problem if its rows form one cluster anyway; `images`
    are columns, which link nothing where they are empty. Rows outside `only` link nothing either, and have no
    cluster. A cluster is called by the first name in it.
    """
    first: dict[str, str] = {}
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    read = [name, *images, *([] if only is None else [only[0]])]
    for _, raw in downloads.rows(opened, hub, read, only):
        named = str(raw[name])
        leader.setdefault(named, named)
        for image in (raw[column] for column in images):
            data = image.get("bytes") if isinstance(image, dict) else None
            if data:
                other = first.setdefault(content_name(data), named)
                leader[lead(named)] = lead(other)
    for where, raw in downloads.rows(opened, hub, columns):
        named = str(raw[name])
        yield Entry(where, {**raw, "cluster": lead(named) if named in leader else None})


def slug(value: object) -> str:
    """A value as a part of a metric's name: "metric geometry - area" -> "metric_geometry_area"."""
    return re.sub(r"[^a-z0-9]+", "_", str(value).lower()).strip("_")


def parts(opened: Opened, known: Collection[str], pairs: Iterable[tuple[str, object]]) -> list[str]:
    """The breakdown parts of a row: those that the task has a metric for.

    A value that the published set did not have when the metrics were listed is noted in the manifest and
    reported once: its rows count only in the total. `pairs` are kind of part and value ("subject",
    "algebra"); the kind may be empty.
    """
    found = []
    for kind, value in pairs:
        part = slug(f"{kind} {value}")
        if part in known:
            found.append(part)
            continue
        counts = opened.notes.setdefault("parts without a metric", {})
        counts[part] = counts.get(part, 0) + 1
        if counts[part] == 1:
            opened.say(f"{kind} {value!r} has no metric of its own: its rows count only in the overall score")
    return found


def count(opened: Opened, note: str) -> None:
    """Adds one to a count in the manifest's notes."""
    opened.notes[note] = opened.notes.get(note, 0) + 1


def prompt(question: str, choices: Sequence[str]) -> str:
    """A question with its options as lines below it, "A. text"; those with an empty text are left out."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False) if text]
    return "\n".join([question, *lines])


def row(
    *,
    id: str,
    prompt: str,
    answer: str | Sequence[str],
    choices: Sequence[str],
    cluster: str,
    images: Sequence[int],
    **more: object,
) -> Row:
    """A multiple-choice row; `more` are `parts` and the source's own columns.

    `prompt` is without an instruction, which the task adds; `answer` is the gold letter, or several; rows
    that share a `cluster` are not independent; `images` are rows of the album, in order of the prompt.

    Raises:
        HarnessError: there are more options than letters.
    """
    if len(choices) > len(LETTERS):
        raise HarnessError(
            f"{len(choices)} options are more than the letters A to {LETTERS[-1]}", "Download the data again"
        )
    return {
        "id": id,
        "prompt": prompt,
        "answer": json.dumps(answer),
        "target": answer if isinstance(answer, str) else ", ".join(answer),
        # The scorer takes no empty option text: an empty response would match it.
        "choices": [text or f"(no option {letter})" for letter, text in zip(LETTERS, choices, strict=False)],
        "cluster": cluster,
        "images": list(images),
        **more,
    }


def inline_gold(
    opened: Opened, id: object, answer: str, choices: Sequence[str]
) -> tuple[str | list[str], list[str]]:
    """The gold of a question that lists its options itself, and the options that could be read.

    A gold letter beyond the options read means that the list was not read to its end: then the row has no
    option texts, and is scored by letters alone. Both this case and golds with several letters are noted.

    Raises:
        HarnessError: the gold is not an option.
    """
    try:
        gold = lettered(answer, choices)
    except HarnessError:
        if not choices:
            raise
        gold = lettered(answer, ())
        count(opened, BEYOND)
        if opened.notes[BEYOND] <= _SAID:
            opened.say(f"row {id}: the gold {answer!r} is none of {list(choices)}, so letters alone decide")
        choices = ()
    if not choices:
        count(opened, "questions whose list of options could not be read, judged by letters alone")
    if not isinstance(gold, str):
        count(opened, SEVERAL)
    elif gold != answer:
        count(opened, "golds given in brackets or as an option's text, read as its letter")
    return gold, list(choices)

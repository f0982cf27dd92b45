"""What the six reasoning benchmarks share: a question's text, pictures, the parts it counts in, its row."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from dcsft_harness.data.benchmarks import tables
from dcsft_harness.data.benchmarks.options import LETTERS, lettered, listed
from dcsft_harness.data.benchmarks.source import Opened, Row
from dcsft_harness.errors import HarnessError

COLUMNS: dict[str, Any] = {"id": "string", "choices": ["string"], "parts": ["string"]}
"""The benchmark's own id of the question; the options' texts, A first, none where they are only in the
figure; the parts of the benchmark that the row counts in ("subject_algebra"), each a metric `acc_PART`."""

FREE_FORM = "rows that are not multiple choice, which the paper does not ask"
SEVERAL = "golds of several letters, which no response that states one option matches"
BEYOND = "golds beyond the options that could be read, judged by letters alone"
"""Names of notes in the manifest."""
_SAID = 3
"""Rows that are told at once; all are counted."""


def text(raw: Mapping[str, Any], column: str) -> str:
    """A column that must hold text, without outer white space.

    Raises:
        HarnessError: it is missing or blank; names the column and the value.
    """
    value = raw[column]
    if not isinstance(value, str) or not value.strip():
        raise HarnessError(
            f"the column {column!r} holds {value!r} where text is needed", "Download the data again"
        )
    return value.strip()


def texts(raw: Mapping[str, Any], column: str) -> list[str]:
    """A column that holds a list of texts, or nothing.

    Raises:
        HarnessError: it holds something else; names the column and the value.
    """
    value = raw[column]
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise HarnessError(
            f"the column {column!r} holds {value!r}, which is no list of texts", "Download the data again"
        )
    return list(value)


def add_picture(opened: Opened, image: Any) -> tuple[str, int]:  # noqa: ANN401 - what an Image column holds
    """Adds the picture in an undecoded Image column.

    Returns:
        Its name, which is the same for the same bytes, and its row in the album.

    Raises:
        HarnessError: there is none, or it cannot be read.
    """
    data = tables.image_bytes(image)()
    name = content_name(data)
    return name, opened.pictures.add(name, lambda: data).index


def content_name(data: bytes) -> str:
    """A picture's name: 24 hex digits of its bytes' SHA-256."""
    return hashlib.sha256(data).hexdigest()[:24]


def linked(rows: Iterable[tuple[str, Iterable[Any]]]) -> dict[str, str]:
    """Rows that share a name or a picture, also by way of others: name -> the first name of its cluster.

    Args:
        rows: a name each (a problem's, where its rows are one cluster anyway), and what undecoded Image
            columns hold; what holds no picture links nothing.
    """
    first: dict[str, str] = {}
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for name, images in rows:
        leader.setdefault(name, name)
        for image in images:
            data = image.get("bytes") if isinstance(image, dict) else None
            if data:
                other = first.setdefault(content_name(data), name)
                leader[lead(name)] = lead(other)
    return {name: lead(name) for name in leader}


def slug(value: object) -> str:
    """A value as a part of a metric's name: "metric geometry - area" -> "metric_geometry_area"."""
    return re.sub(r"[^a-z0-9]+", "_", str(value).lower()).strip("_")


def parts(opened: Opened, known: Collection[str], pairs: Iterable[tuple[str, object]]) -> list[str]:
    """The parts that a row counts in, which are those that the task has a metric for.

    A value that the published set did not have when the metrics were listed is noted in the manifest, and
    said once: its rows count in the whole.

    Args:
        opened: takes the notes.
        known: the parts with a metric.
        pairs: kind of part and value ("subject", "algebra"); the kind may be empty.
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
            opened.say(f"{kind} {value!r} has no metric of its own: its rows count in the whole alone")
    return found


def count(opened: Opened, note: str) -> None:
    """Adds one to a count that the manifest will carry."""
    opened.notes[note] = opened.notes.get(note, 0) + 1


def prompt(question: str, choices: Sequence[str]) -> str:
    """A question and its options as lines below it; none where the question lists them itself."""
    return f"{question}\n{listed(choices)}" if any(choices) else question


def row(
    *,
    id: str,
    prompt: str,
    answer: str | Sequence[str],
    choices: Sequence[str],
    cluster: str,
    images: Sequence[int],
) -> Row:
    """A multiple-choice row; the source adds `parts` and its own columns.

    Args:
        id: the benchmark's own.
        prompt: question and options, without an instruction: that is the task's.
        answer: the gold letter, or several.
        choices: the options' texts.
        cluster: rows that are not independent share it.
        images: rows of the album, in order of the prompt.

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
        # The scorer takes no empty text for an option: an empty response would state it.
        "choices": [text or f"(no option {letter})" for letter, text in zip(LETTERS, choices, strict=False)],
        "cluster": cluster,
        "images": list(images),
    }


def inline_gold(
    opened: Opened, id: object, answer: str, choices: Sequence[str]
) -> tuple[str | list[str], list[str]]:
    """The gold of a question that lists its options itself, and the options as far as they could be read.

    Where the gold is a letter beyond those that were read, the list was not read to its end: the row then
    has no option texts, and is judged by letters alone. Both this and golds of several letters are noted.

    Raises:
        HarnessError: the gold is no option.
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

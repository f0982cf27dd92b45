"""MATH-Vision's multiple-choice questions (test split; Wang et al., NeurIPS 2024).

Five options each; in a quarter of the rows they are only drawn, and their texts are the letters. Tokens
"<image1>" stand where a picture was; the hub has one merged picture a row.
"""

import re
from collections.abc import Iterator
from typing import Any

from dcsft_harness.data.benchmarks import questions, tables
from dcsft_harness.data.benchmarks.options import letter
from dcsft_harness.data.benchmarks.source import Entry, Hub, Opened, Row, Source

SUBJECTS = (
    "algebra", "analytic geometry", "arithmetic", "combinatorial geometry", "combinatorics", "counting",
    "descriptive geometry", "graph theory", "logic", "metric geometry - angle", "metric geometry - area",
    "metric geometry - length", "solid geometry", "statistics", "topology", "transformation geometry",
)  # fmt: skip
PARTS = (
    *(f"subject_{questions.slug(subject)}" for subject in SUBJECTS),
    *(f"level_{level}" for level in range(1, 6)),
)

_HUB = Hub("MathLLMs/MathVision", split="test")
_TOKEN = re.compile(r"\s*<image\d+>")


def _entries(opened: Opened) -> Iterator[Entry]:
    columns = ("id", "question", "options", "decoded_image", "answer", "level", "subject")
    yield from tables.rows(opened, _HUB, columns)


def _row(opened: Opened, raw: Any) -> Row | None:  # noqa: ANN401 - the columns above
    options = questions.texts(raw, "options")
    if not options:
        questions.count(opened, questions.FREE_FORM)
        return None
    choices = [option.strip() for option in options]
    gold = letter(questions.text(raw, "answer"), choices)
    name, picture = questions.add_picture(opened, raw["decoded_image"])
    return {
        **questions.row(
            id=str(raw["id"]),
            prompt=questions.prompt(asked(questions.text(raw, "question"), choices), choices),
            answer=gold,
            choices=choices,
            cluster=name,
            images=[picture],
        ),
        "parts": questions.parts(opened, PARTS, [("subject", raw["subject"]), ("level", raw["level"])]),
        "subject": raw["subject"],
        "level": raw["level"],
    }


def asked(question: str, choices: list[str]) -> str:
    """The question without its token, if it has one: that is the row's picture.

    Where there are several, in the question or its options, they name parts of the merged picture and stay.
    """
    tokens = len(_TOKEN.findall(question)) + sum(len(_TOKEN.findall(choice)) for choice in choices)
    return _TOKEN.sub("", question).strip() if tokens == 1 else question


SOURCES = (
    Source(
        task="dcsft_mathvision",
        version=1,
        count=1_532,
        columns={**questions.COLUMNS, "subject": "string", "level": "int64"},
        entries=_entries,
        row=_row,
        hub=_HUB,
        needs="--source is a download of MathLLMs/MathVision",
        get="hf download --repo-type dataset MathLLMs/MathVision --local-dir DIR",
    ),
)

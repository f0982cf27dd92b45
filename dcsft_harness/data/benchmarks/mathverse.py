"""MathVerse's multiple-choice problems (testmini; Zhang et al., ECCV 2024): each in five versions.

The versions move the question from the text into the picture. In Vision Only it is all in the picture: the
model is shown no text of it, and the options that its response is judged by come from `question_for_eval`.
"""

from collections.abc import Iterator
from typing import Any

from dcsft_harness.data.benchmarks import options, questions, tables
from dcsft_harness.data.benchmarks.source import Entry, Hub, Opened, Row, Source

VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
SUBJECTS = ("Functions", "Plane Geometry", "Solid Geometry")
PARTS = (
    *(f"version_{questions.slug(version)}" for version in VERSIONS),
    *(f"subject_{questions.slug(subject)}" for subject in SUBJECTS),
)
CHOICE = "multi-choice"
DRAWN = "Answer the question that is in the image."
"""The prompt where the question is only in the picture."""

_HUB = Hub("AI4Math/MathVerse", split="testmini", config="testmini")


def _entries(opened: Opened) -> Iterator[Entry]:
    columns = (
        "sample_index", "problem_index", "problem_version", "question", "image", "answer", "question_type",
        "metadata", "question_for_eval",
    )  # fmt: skip
    read = (raw for _, raw in tables.rows(opened, _HUB, ("problem_index", "image", "question_type")))
    asked = (raw for raw in read if raw["question_type"] == CHOICE)
    clusters = questions.linked((str(raw["problem_index"]), [raw["image"]]) for raw in asked)
    for where, raw in tables.rows(opened, _HUB, columns):
        yield Entry(where, {**raw, "cluster": clusters.get(str(raw["problem_index"]))})


def _row(opened: Opened, raw: Any) -> Row | None:  # noqa: ANN401 - the columns above
    if raw["question_type"] != CHOICE:
        questions.count(opened, questions.FREE_FORM)
        return None
    whole = questions.text(raw, "question_for_eval")
    gold, choices = questions.inline_gold(
        opened, raw["sample_index"], questions.text(raw, "answer"), options.inside(whole)
    )
    _, picture = questions.add_picture(opened, raw["image"])
    version = questions.text(raw, "problem_version")
    subject = (raw["metadata"] or {}).get("subject")
    return {
        **questions.row(
            id=str(raw["sample_index"]),
            prompt=(raw["question"] or "").strip() or DRAWN,
            answer=gold,
            choices=choices,
            cluster=raw["cluster"],
            images=[picture],
        ),
        "parts": questions.parts(opened, PARTS, [("version", version), ("subject", subject)]),
        "version": version,
    }


SOURCES = (
    Source(
        task="dcsft_mathverse",
        version=2,
        count=2_180,
        columns={**questions.COLUMNS, "version": "string"},
        entries=_entries,
        row=_row,
        hub=_HUB,
        needs="--source is a download of AI4Math/MathVerse",
        get="hf download --repo-type dataset AI4Math/MathVerse --local-dir DIR",
        tally=("version", dict.fromkeys(VERSIONS, 436)),
    ),
)

"""MathVista's multiple-choice questions (testmini; Lu et al., ICLR 2024).

The gold is an option's text. Three questions have the same text twice, sixty-two are Chinese.
"""

from collections.abc import Iterator
from typing import Any

from dcsft_harness.data.benchmarks import questions, tables
from dcsft_harness.data.benchmarks.options import worded
from dcsft_harness.data.benchmarks.source import Entry, Hub, Opened, Row, Source

FIELDS: dict[str, tuple[str, ...]] = {
    "task": (
        "figure question answering", "geometry problem solving", "math word problem",
        "textbook question answering", "visual question answering",
    ),
    "skill": (
        "algebraic reasoning", "arithmetic reasoning", "geometry reasoning", "logical reasoning",
        "numeric commonsense", "scientific reasoning", "statistical reasoning",
    ),
    "category": ("general-vqa", "math-targeted-vqa"),
    "language": ("chinese", "english"),
    "grade": ("college", "elementary school", "high school", "not applicable"),
    "context": (
        "abstract scene", "bar chart", "document image", "function plot", "geometry diagram", "line plot",
        "map chart", "medical image", "natural image", "pie chart", "puzzle test", "scatter plot",
        "scientific figure", "synthetic scene", "table", "violin plot",
    ),
    "source": (
        "A-OKVQA", "AI2D", "ChartQA", "DocVQA", "FigureQA", "FunctionQA", "GEOS", "GeoQA+", "Geometry3K",
        "IQTest", "IconQA", "MapQA", "PMC-VQA", "PaperQA", "ScienceQA", "Super-CLEVR", "TQA", "TabMWP",
        "TheoremQA", "UniGeo", "VQA-AS", "VQA-RAD", "VQA2.0",
    ),
}  # fmt: skip
"""The metadata by which the authors' evaluation reports, and its values among the multiple-choice rows."""
PARTS = tuple(f"{field}_{questions.slug(value)}" for field, values in FIELDS.items() for value in values)

_HUB = Hub("AI4Math/MathVista", split="testmini")


def _entries(opened: Opened) -> Iterator[Entry]:
    columns = ("pid", "question", "decoded_image", "choices", "unit", "answer", "question_type", "metadata")
    yield from tables.rows(opened, _HUB, columns)


def _row(opened: Opened, raw: Any) -> Row | None:  # noqa: ANN401 - the columns above
    if raw["question_type"] != "multi_choice":
        questions.count(opened, questions.FREE_FORM)
        return None
    choices = questions.texts(raw, "choices")
    gold = worded(raw["answer"], choices)
    if choices.count(raw["answer"]) > 1:
        questions.count(opened, "golds whose text two options have: either is right")
    question = questions.text(raw, "question")
    if raw["unit"]:
        question = f"{question} (Unit: {raw['unit']})"
    name, picture = questions.add_picture(opened, raw["decoded_image"])
    return {
        **questions.row(
            id=str(raw["pid"]),
            prompt=questions.prompt(question, choices),
            answer=gold,
            choices=choices,
            cluster=name,
            images=[picture],
        ),
        "parts": questions.parts(opened, PARTS, _values(raw["metadata"] or {})),
    }


def _values(metadata: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for field in FIELDS:
        value = metadata.get("skills" if field == "skill" else field)
        for one in value if isinstance(value, list) else (value,):
            if one:
                yield field, one


SOURCES = (
    Source(
        task="dcsft_mathvista",
        version=1,
        count=540,
        columns=questions.COLUMNS,
        entries=_entries,
        row=_row,
        hub=_HUB,
        needs="--source is a download of AI4Math/MathVista",
        get="hf download --repo-type dataset AI4Math/MathVista --local-dir DIR",
    ),
)

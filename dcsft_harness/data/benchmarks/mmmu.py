"""MMMU's validation questions (Yue et al., CVPR 2024): 847 multiple-choice ones and 53 open ones.

Options are the text of a Python list. A row has up to seven pictures; "<image 2>" marks the place of the
second, in the question or as an option. As in lmms-eval, only pictures that the text names are shown: others
belong to the explanation of the answer (Pharmacy_4, Pharmacy_22). Open rows have golds, of which any one is
right, and no options.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dcsft_harness.data.benchmarks import options, questions, tables
from dcsft_harness.data.benchmarks.source import Entry, Hub, Opened, Row, Source, View
from dcsft_harness.errors import HarnessError

DISCIPLINES: dict[str, tuple[str, ...]] = {
    "art and design": ("Art", "Art_Theory", "Design", "Music"),
    "business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "health and medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    ),
    "humanities and social science": ("History", "Literature", "Psychology", "Sociology"),
    "tech and engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip
"""The benchmark's six disciplines and thirty subjects (table 1 of its paper)."""

PARTS = (
    "multiple_choice",
    "open",
    *(f"discipline_{questions.slug(discipline)}" for discipline in DISCIPLINES),
    *(f"subject_{questions.slug(one)}" for subjects in DISCIPLINES.values() for one in subjects),
)
MARK = re.compile(r"<image (\d+)>")
"""Where a picture belongs in the text."""
OPEN, CHOICE = "open", "multiple-choice"

_HUB = Hub("lmms-lab-encoder/MMMU", split="validation")
_IMAGES = tuple(f"image_{number}" for number in range(1, 8))
_AGAIN = "Download the data again; or mend the row, or pass over it: --on-error skip"


def _entries(opened: Opened) -> Iterator[Entry]:
    read = (raw for _, raw in tables.rows(opened, _HUB, ("id", *_IMAGES)))
    clusters = questions.linked((raw["id"], [raw[column] for column in _IMAGES]) for raw in read)
    columns = ("id", "question", "options", "answer", "question_type", *_IMAGES)
    for where, raw in tables.rows(opened, _HUB, columns):
        yield Entry(where, {**raw, "cluster": clusters[raw["id"]]})


def _row(opened: Opened, raw: Any) -> Row:  # noqa: ANN401 - the columns above
    id, kind = questions.text(raw, "id"), raw["question_type"]
    if kind not in (OPEN, CHOICE):
        raise HarnessError(f"the question_type is {kind!r}, not {CHOICE!r} or {OPEN!r}", _AGAIN)
    choices = _listed(raw["options"], "options") if kind == CHOICE else []
    prompt = questions.prompt(questions.text(raw, "question"), choices)
    numbers = _numbers(prompt, raw)
    pictures = [questions.add_picture(opened, raw[f"image_{number}"])[1] for number in numbers]
    made = questions.row(
        id=id,
        prompt=prompt,
        answer=options.letter(questions.text(raw, "answer"), choices) if kind == CHOICE else _golds(raw),
        choices=choices,
        cluster=raw["cluster"],
        images=pictures,
    )
    subject = re.sub(r"^[a-z]+_|_\d+$", "", id)
    discipline = next((name for name, subjects in DISCIPLINES.items() if subject in subjects), "unknown")
    pairs = [("", kind), ("discipline", discipline), ("subject", subject)]
    return {
        **made,
        "parts": questions.parts(opened, PARTS, pairs),
        "question_type": kind,
        "subject": subject,
        "numbers": numbers,
    }


def _numbers(prompt: str, raw: Mapping[str, Any]) -> list[int]:
    """The numbers of the pictures that the text names, in its order, each once.

    Raises:
        HarnessError: the text names a picture that the row does not have.
    """
    named = list(dict.fromkeys(int(number) for number in MARK.findall(prompt)))
    for number in named:
        if raw.get(f"image_{number}") is None:
            raise HarnessError(f"the text names <image {number}>, and the row has no image_{number}", _AGAIN)
    return named


def _listed(value: Any, column: str) -> list[str]:  # noqa: ANN401 - text of a Python list
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = None
    if (
        not isinstance(found, list)
        or not found
        or not all(isinstance(one, str | int | float) for one in found)
    ):
        raise HarnessError(f"the column {column!r} holds {value!r}, which is no list of texts", _AGAIN)
    return [str(one).strip() for one in found]


def _golds(raw: Mapping[str, Any]) -> list[str]:
    answer = questions.text(raw, "answer")
    return _listed(answer, "answer") if answer.startswith("[") else [answer]


SOURCES = (
    Source(
        task="dcsft_mmmu",
        version=2,
        changed="shows only the pictures that the text names",
        count=900,
        columns={**questions.COLUMNS, "question_type": "string", "subject": "string", "numbers": ["int64"]},
        entries=_entries,
        row=_row,
        hub=_HUB,
        needs="--source is a download of lmms-lab-encoder/MMMU or MMMU/MMMU",
        get="hf download --repo-type dataset lmms-lab-encoder/MMMU --local-dir DIR",
        tally=("question_type", {CHOICE: 847, OPEN: 53}),
    ),
)
VIEWS = (View("dcsft_mmmu_mc", of="dcsft_mmmu", column="question_type", values=(CHOICE,), count=847),)

"""Small data sets in the published schema of the six reasoning benchmarks, with what is odd about each.

    python tests/reasoning_fixtures.py FOLDER

writes FOLDER/mmk12, FOLDER/mmmu, ... as downloads of the hub's repositories look: Parquet files with the
columns and types of the dataset cards. Every question, picture and answer is made up.
"""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from PIL import ImageDraw

TEXT, WHOLE, REAL = Value("string"), Value("int64"), Value("float64")


def drawing(number: int, mode: str = "RGB", form: str = "PNG") -> dict[str, Any]:
    """An encoded picture, different for each number; in mode RGBA black on a transparent ground."""
    image = PILImage.new(mode, (40 + number, 30), {"RGBA": (0, 0, 0, 0), "L": 255}.get(mode, "white"))
    pen = ImageDraw.Draw(image)
    pen.rectangle((4, 4, 4 + number, 20), outline={"RGBA": (0, 0, 0, 255), "L": 0}.get(mode, "black"))
    data = io.BytesIO()
    image.save(data, form)
    return {"bytes": data.getvalue(), "path": f"{number}.{form.lower()}"}


# --- MMK12: options inside the question, subjects in the data's own spelling, pictures in several modes.
MMK12 = Features({"id": TEXT, "question": TEXT, "answer": TEXT, "subject": TEXT, "image": Image()})


def mmk12_test() -> list[dict[str, Any]]:
    def row(id, question, answer, subject, image):
        return {"id": id, "question": question, "answer": answer, "subject": subject, "image": image}

    return [
        row(
            "m1",
            "How long is AB?\nA. $$10.5$$\nB. $$12$$\nC. $$8$$\nD. $$9$$",
            "B",
            "math",
            drawing(1, "RGBA"),
        ),
        row("m2", "Point A. lies on BC. Its height is\nA.2\nB.3\nC.4\nD.5", "C", "math", drawing(2, "L")),
        row("p1", "Which circuit is closed? A. I  B. II  C. III  D. IV", "D", "physics", drawing(3)),
        row("p2", "Which lamp is lit?\nA. L1\nB. L2\nC. L3\nD. L4", "A", "physics", drawing(3)),
        # The list cannot be read: two options share a line and the last is in the figure.
        row("c1", "Which is an acid?\nA. HCl, B NaOH\nC (see the figure)", "C", "chemistry", drawing(4)),
        row("c2", "Which gas is formed?\nA、O2\nB、H2\nC、N2\nD、CO2", "B", "chemistry", drawing(5)),
        # Two golds: no single letter is right.
        row("b1", "Which two are cells?\nA. a\nB. b\nC. c\nD. d", "AC", "biology", drawing(6)),
        row("b2", "Which part is 3?\nA. root\nB. stem\n\nC. leaf\nD. bud", "C", "biology", drawing(7)),
    ]


def mmk12_train() -> list[dict[str, Any]]:
    golds = [
        "$$6$$",
        "30°",
        "$\\frac{1}{2}$",
        "2.5",
        "-4",
        "$$2\\sqrt{3}$$",
        "12",
        "7",
        "0.1",
        "250",
        "x+1",
        "9",
    ]
    rows = [
        {
            "id": f"t{n}",
            "question": f"Length {n} is ___.",
            "answer": gold,
            "subject": "math",
            "image": drawing(n + 10),
        }
        for n, gold in enumerate(golds)
    ]
    for id, prose in (
        ("w1", "rhombus."),
        ("w2", "2.5 (not unique)"),
        ("w3", ""),
    ):  # golds that no rule verifies
        rows.append({**rows[0], "id": id, "question": f"The shape {id} is ___.", "answer": prose})
    return rows


# --- MMMU: options as the text of a list, up to nine; pictures in the text and among the options; open rows.
MMMU = Features(
    {
        "id": TEXT,
        "question": TEXT,
        "options": TEXT,
        "explanation": TEXT,
        **{f"image_{number}": Image() for number in range(1, 8)},
        "img_type": TEXT,
        "answer": TEXT,
        "topic_difficulty": TEXT,
        "question_type": TEXT,
        "subfield": TEXT,
    }
)


def mmmu() -> list[dict[str, Any]]:
    def row(id, question, options, answer, images, kind="multiple-choice"):
        return {
            **dict.fromkeys(MMMU),
            "id": id,
            "question": question,
            "options": options,
            "answer": answer,
            **{f"image_{number}": image for number, image in images.items()},
            "img_type": "['Diagrams']",
            "topic_difficulty": "Easy",
            "question_type": kind,
            "subfield": "any",
        }

    one, two, three = drawing(21), drawing(22), drawing(23)
    return [
        row(
            "validation_Accounting_1",
            "<image 1> What is due?",
            "['$6', '$7', \"Wells' own\", '$9']",
            "B",
            {1: one},
        ),
        # The same picture as the first: not independent of it.
        row("validation_Accounting_2", "<image 1> And later?", "['$6', '$7']", "A", {1: one}),
        row(
            "validation_Music_3",
            "Compare <image 1> with <image 2>. Which is <image 1>?",
            "['a fugue', 'a canon', 'neither']",
            "C",
            {1: two, 2: three},
        ),
        row(
            "validation_Art_4",
            "Who drew <image 1>?",
            "['<image 2>', '<image 3>']",
            "B",
            {1: drawing(24), 2: drawing(25), 3: drawing(26)},
        ),
        row(
            "validation_Biology_7",
            "Which label?",
            "['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H', 'I']",
            "I",
            {1: drawing(27)},
        ),
        row(
            "validation_Chemistry_30",
            "Formula of <image 1>?",
            "[]",
            "['$MgS$', 'MgS']",
            {1: drawing(28)},
            "open",
        ),
        row("validation_Finance_8", "Interest in <image 1>?", "[]", "360", {1: drawing(29)}, "open"),
        row("validation_Physics_21", "Which point of <image 1>?", "[]", "A", {1: drawing(30)}, "open"),
    ]


# --- We-Math: one string of options; IDs that look like keys; all rows of a problem about one drawing.
WEMATH = Features(
    {
        "ID": TEXT,
        "split": TEXT,
        "knowledge concept": TEXT,
        "question": TEXT,
        "option": TEXT,
        "answer": TEXT,
        "image_path": Image(),
        "key": TEXT,
        "question number": WHOLE,
        "knowledge concept description": TEXT,
    }
)

WEMATH_OPTIONS = (
    "A. 45° B. 60° ;C. 120°; D. No correct answer",
    "A. The obtuse angle ∠AB;E.; B. The obtuse angle ∠AB;C.; C. There is none.; D. No correct answer",
    "A. ①; ③;B. ②; ③;C. ②; ④;D. ①; ④; E. No correct answer",
    "A. Yes, around point ;O.;B. Yes, around point ;P.;C. No.; F. No correct answer",
    "A. ⑤; B. ④; C. ③; D. ②; E. ①; F. Cannot be determined; G. No correct answer",
)


def wemath() -> list[dict[str, Any]]:
    problems = [
        ("2steps_1", "2steps"),
        ("2steps_2", "2steps"),
        ("2steps_3", "2steps"),
        ("3steps_1", "3steps"),
    ]
    problems += [("2steps_4", "2steps"), ("3steps_2", "3steps")]
    rows = []
    for number, (problem, kind) in enumerate(problems):
        for at, step in enumerate([*map(str, range(1, int(kind[0]) + 1)), "multi"]):
            rows.append(
                {
                    "ID": problem,
                    "split": "testmini",
                    "knowledge concept": "Angles",
                    "question": f"Question {step} of {problem}?",
                    "option": WEMATH_OPTIONS[(number + at) % len(WEMATH_OPTIONS)],
                    "answer": "ABC"[at % 3],
                    "image_path": drawing(40 + number),
                    "key": f"{kind}_{step}",
                    "question number": number,
                    "knowledge concept description": "Angles:\n1. ...",
                }
            )
    return rows


# --- MathVerse: five versions of a problem; golds in brackets, as a text, as two letters; free-form rows.
MATHVERSE = Features(
    {
        "sample_index": TEXT,
        "problem_index": TEXT,
        "problem_version": TEXT,
        "question": TEXT,
        "image": Image(),
        "answer": TEXT,
        "question_type": TEXT,
        "metadata": {"split": TEXT, "source": TEXT, "subject": TEXT, "subfield": TEXT},
        "query_wo": TEXT,
        "query_cot": TEXT,
        "question_for_eval": TEXT,
    }
)
VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")


def mathverse() -> list[dict[str, Any]]:
    problems = [
        (
            "1",
            "DE is parallel to BC; the size of angle CED is ()\nChoices:\nA:40°\nB:60°\nC:120°\nD:140°",
            "D",
            "Plane Geometry",
        ),
        ("2", "Which rate?\nChoices:\nA.$x$ is constant\nB.$x$ falls\nC.$x$ grows", "(C)", "Functions"),
        ("3", "True or false: it is opposite.\nChoice:\nA. True\nB. False", "False", "Plane Geometry"),
        ("4", "Choose 2 answers:\nChoices:\nA:$\\tan x$\nB:$\\cot x$\nC:$-\\tan x$", "A\nC", "Functions"),
    ]
    rows = []
    for index, question, answer, subject in problems:
        for version in VERSIONS:
            shown = "" if version == "Vision Only" else question
            rows.append(
                _verse(len(rows) + 1, index, version, shown, question, answer, "multi-choice", subject)
            )
    rows.append(_verse(99, "5", "Text Lite", "Find x.", "Find x.", "5", "free-form", "Plane Geometry"))
    return rows


def _verse(sample, index, version, shown, whole, answer, kind, subject):
    hint = "Please directly answer the question and provide the correct option letter, e.g., A, B, C, D."
    return {
        "sample_index": str(sample),
        "problem_index": index,
        "problem_version": version,
        "question": shown,
        "image": drawing(60 + int(index) * 2 + (version == "Vision Only")),
        "answer": answer,
        "question_type": kind,
        "metadata": {"split": "testmini", "source": "GeoQA", "subject": subject, "subfield": "Angle"},
        "query_wo": f"{hint}\nQuestion: {shown}"
        if shown
        else f"According to the question shown in the image, {hint}",
        "query_cot": f"{hint}\nQuestion: {shown}",
        "question_for_eval": whole,
    }


# --- MathVista: golds as texts, equal texts, a Chinese row, no choices where the answer is free.
MATHVISTA = Features(
    {
        "pid": TEXT,
        "question": TEXT,
        "image": TEXT,
        "decoded_image": Image(),
        "choices": List(TEXT),
        "unit": TEXT,
        "precision": REAL,
        "answer": TEXT,
        "question_type": TEXT,
        "answer_type": TEXT,
        "metadata": {
            "category": TEXT,
            "context": TEXT,
            "grade": TEXT,
            "img_height": WHOLE,
            "img_width": WHOLE,
            "language": TEXT,
            "skills": List(TEXT),
            "source": TEXT,
            "split": TEXT,
            "task": TEXT,
        },
        "query": TEXT,
    }
)


def mathvista() -> list[dict[str, Any]]:
    def row(pid, question, choices, answer, task, skills, language="english", kind="multi_choice", unit=None):
        return {
            "pid": pid,
            "question": question,
            "image": f"images/{pid}.jpg",
            "decoded_image": drawing(80 + int(pid), form="JPEG"),
            "choices": choices,
            "unit": unit,
            "precision": None if kind == "multi_choice" else 1.0,
            "answer": answer,
            "question_type": kind,
            "answer_type": "text" if kind == "multi_choice" else "integer",
            "metadata": {
                "category": "math-targeted-vqa",
                "context": "geometry diagram",
                "grade": "high school",
                "img_height": 30,
                "img_width": 40,
                "language": language,
                "skills": skills,
                "source": "GeoQA+",
                "split": "testmini",
                "task": task,
            },
            "query": f"Hint: ...\nQuestion: {question}",
        }

    geometry, figure = "geometry problem solving", "figure question answering"
    return [
        row(
            "1",
            "△ABC中，∠BOC＝（）",
            ["135°", "140°", "145°", "150°"],
            "145°",
            geometry,
            ["geometry reasoning", "algebraic reasoning"],
            "chinese",
        ),
        row("2", "Is Navy the maximum?", ["yes", "no"], "no", figure, ["statistical reasoning"]),
        row("3", "How far is it?", ["9", "12", "18", "18"], "18", geometry, ["geometry reasoning"]),
        row(
            "4", "Which letter is on top?", ["C", "A", "B"], "A", figure, ["statistical reasoning"], unit="cm"
        ),
        row("5", "How many?", None, "7", figure, ["arithmetic reasoning"], kind="free_form"),
    ]


# --- MATH-Vision: options that are only letters, tokens where pictures were, one merged picture.
MATHVISION = Features(
    {
        "id": TEXT,
        "question": TEXT,
        "options": List(TEXT),
        "image": TEXT,
        "decoded_image": Image(),
        "answer": TEXT,
        "solution": TEXT,
        "level": WHOLE,
        "subject": TEXT,
    }
)


def mathvision() -> list[dict[str, Any]]:
    def row(id, question, options, answer, level, subject):
        return {
            "id": id,
            "question": question,
            "options": options,
            "image": f"images/{id}.jpg",
            "decoded_image": drawing(100 + int(id), form="JPEG"),
            "answer": answer,
            "solution": None,
            "level": level,
            "subject": subject,
        }

    pictured = [f"<image{number}>" for number in range(3, 8)]
    return [
        row("2", "Which bike is dearest?\n<image1>", list("ABCDE"), "A", 2, "arithmetic"),
        row("3", "How wide is it?\n<image1>", ["1", "2", "3", "4", "5"], "E", 5, "metric geometry - length"),
        row("4", "The ant <image1> walks from <image2>. Where to?", pictured, "C", 2, "graph theory"),
        row("5", "Which holds?\n<image1>", ["A", "C", "C", "D", "it depends"], "C", 3, "arithmetic"),
        row("6", "How many?\n<image1>", [], "60", 1, "counting"),
    ]


SETS = {
    "mmk12": [("test", MMK12, mmk12_test), ("train", MMK12, mmk12_train)],
    "mmmu": [("validation", MMMU, mmmu)],
    "wemath": [("testmini", WEMATH, wemath)],
    "mathverse": [("testmini", MATHVERSE, mathverse)],
    "mathvista": [("testmini", MATHVISTA, mathvista)],
    "mathvision": [("test", MATHVISION, mathvision)],
}
TASKS = {
    "dcsft_mmk12": "mmk12",
    "dcsft_mmk12_pool": "mmk12",
    "dcsft_mmk12_cold": "mmk12",
    "dcsft_mmmu": "mmmu",
    "dcsft_wemath": "wemath",
    "dcsft_mathverse": "mathverse",
    "dcsft_mathvista": "mathvista",
    "dcsft_mathvision": "mathvision",
}
"""Task -> the folder that it is prepared from."""


def write(folder: Path) -> None:
    """Writes every set below a folder."""
    for name, splits in SETS.items():
        for split, features, rows in splits:
            save(folder / name, split, features, rows())


def prepare(folder: Path) -> Path:
    """Writes every set below a folder and prepares every task from it; returns the data root to use."""
    from dcsft_harness.data.benchmarks import prepared
    from dcsft_harness.data.benchmarks import prepared as making

    write(folder / "published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(prepared.VARIABLE, str(folder / "data"))
        for task, name in TASKS.items():
            making.prepare(task, folder / "published" / name, any_count=True)
    return folder / "data"


def save(folder: Path, split: str, features: Features, rows: list[dict[str, Any]]) -> None:
    """Writes one split as the hub names it."""
    path = folder / "data" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(str(path))


if __name__ == "__main__":
    write(Path(sys.argv[1]))

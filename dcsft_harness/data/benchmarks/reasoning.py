"""MathVerse, MATH-Vision, MathVista, MMK12, MMMU and We-Math: one source each."""

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from dcsft_harness.data.benchmarks import Entry, Hub, Opened, Row, Source, View, downloads, questions
from dcsft_harness.data.benchmarks.questions import letter, worded
from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import SCORERS

# MathVerse's multiple-choice problems (testmini; Zhang et al., ECCV 2024): each in five versions.
#
# The versions move the question from the text into the image. In Vision Only it is entirely in the image: the
# model sees no text of it, and the options for scoring come from `question_for_eval`.

MATHVERSE_VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
MATHVERSE_SUBJECTS = ("Functions", "Plane Geometry", "Solid Geometry")
MATHVERSE_PARTS = (
    *(f"version_{questions.slug(version)}" for version in MATHVERSE_VERSIONS),
    *(f"subject_{questions.slug(subject)}" for subject in MATHVERSE_SUBJECTS),
)
MATHVERSE_CHOICE = "multi-choice"
MATHVERSE_DRAWN = "Answer the question that is in the image."
"""The prompt if the question is only in the image."""

_MATHVERSE_HUB = Hub("AI4Math/MathVerse", split="testmini", config="testmini")


_MATHVERSE_COLUMNS = (
    "sample_index", "problem_index", "problem_version", "question", "image", "answer", "question_type",
    "metadata", "question_for_eval",
)  # fmt: skip


def _mathverse_row(opened: Opened, raw: Mapping[str, Any]) -> Row | None:
    if raw["question_type"] != MATHVERSE_CHOICE:
        questions.count(opened, questions.FREE_FORM)
        return None
    whole = questions.text(raw, "question_for_eval")
    gold, choices = questions.inline_gold(
        opened, raw["sample_index"], questions.text(raw, "answer"), questions.inside(whole)
    )
    _, picture = questions.add_picture(opened, raw["image"])
    version = questions.text(raw, "problem_version")
    subject = (raw["metadata"] or {}).get("subject")
    return questions.row(
        id=str(raw["sample_index"]),
        prompt=(raw["question"] or "").strip() or MATHVERSE_DRAWN,
        answer=gold,
        choices=choices,
        cluster=raw["cluster"],
        images=[picture],
        parts=questions.parts(opened, MATHVERSE_PARTS, [("version", version), ("subject", subject)]),
        version=version,
    )


_MATHVERSE = Source(
    task="dcsft_mathverse",
    version=2,
    count=2_180,
    columns={**questions.COLUMNS, "version": "string"},
    entries=partial(
        questions.clustered,
        hub=_MATHVERSE_HUB,
        columns=_MATHVERSE_COLUMNS,
        name="problem_index",
        images=["image"],
        only=("question_type", [MATHVERSE_CHOICE]),
    ),
    row=_mathverse_row,
    hub=_MATHVERSE_HUB,
    tally=("version", dict.fromkeys(MATHVERSE_VERSIONS, 436)),
)

# MATH-Vision's multiple-choice questions (test split; Wang et al., NeurIPS 2024).
#
# Each has five options; in a quarter of the rows they are only drawn, and their texts are the letters. Tokens
# "<image1>" mark the positions of images; the hub has one merged image per row.

MATHVISION_SUBJECTS = (
    "algebra", "analytic geometry", "arithmetic", "combinatorial geometry", "combinatorics", "counting",
    "descriptive geometry", "graph theory", "logic", "metric geometry - angle", "metric geometry - area",
    "metric geometry - length", "solid geometry", "statistics", "topology", "transformation geometry",
)  # fmt: skip
MATHVISION_PARTS = (
    *(f"subject_{questions.slug(subject)}" for subject in MATHVISION_SUBJECTS),
    *(f"level_{level}" for level in range(1, 6)),
)

_MATHVISION_HUB = Hub("MathLLMs/MathVision", split="test")
_TOKEN = re.compile(r"\s*<image\d+>")


def _mathvision_row(opened: Opened, raw: Mapping[str, Any]) -> Row | None:
    options = questions.texts(raw, "options")
    if not options:
        questions.count(opened, questions.FREE_FORM)
        return None
    choices = [option.strip() for option in options]
    gold = letter(questions.text(raw, "answer"), choices)
    name, picture = questions.add_picture(opened, raw["decoded_image"])
    return questions.row(
        id=str(raw["id"]),
        prompt=questions.prompt(mathvision_asked(questions.text(raw, "question"), choices), choices),
        answer=gold,
        choices=choices,
        cluster=name,
        images=[picture],
        parts=questions.parts(
            opened, MATHVISION_PARTS, [("subject", raw["subject"]), ("level", raw["level"])]
        ),
        subject=raw["subject"],
        level=raw["level"],
    )


def mathvision_asked(question: str, choices: list[str]) -> str:
    """The question without its token, if it has only one: that is the row's image.

    If there are several, in the question or its options, they name parts of the merged image and stay.
    """
    tokens = len(_TOKEN.findall(question)) + sum(len(_TOKEN.findall(choice)) for choice in choices)
    return _TOKEN.sub("", question).strip() if tokens == 1 else question


_MATHVISION = Source(
    task="dcsft_mathvision",
    version=1,
    count=1_532,
    columns={**questions.COLUMNS, "subject": "string", "level": "int64"},
    entries=partial(
        downloads.rows,
        hub=_MATHVISION_HUB,
        columns=("id", "question", "options", "decoded_image", "answer", "level", "subject"),
    ),
    row=_mathvision_row,
    hub=_MATHVISION_HUB,
)

# MathVista's multiple-choice questions (testmini; Lu et al., ICLR 2024).
#
# The gold is an option's text. Three questions have the same text twice, sixty-two are Chinese.

MATHVISTA_FIELDS: dict[str, tuple[str, ...]] = {
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
"""The metadata keys that the authors' evaluation reports, with their values in the multiple-choice rows."""
MATHVISTA_PARTS = tuple(
    f"{field}_{questions.slug(value)}" for field, values in MATHVISTA_FIELDS.items() for value in values
)

_MATHVISTA_HUB = Hub("AI4Math/MathVista", split="testmini")
_MATHVISTA_COLUMNS = (
    *("pid", "question", "decoded_image", "choices", "unit", "answer", "question_type", "metadata"),
)


def _mathvista_row(opened: Opened, raw: Mapping[str, Any]) -> Row | None:
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
    return questions.row(
        id=str(raw["pid"]),
        prompt=questions.prompt(question, choices),
        answer=gold,
        choices=choices,
        cluster=name,
        images=[picture],
        parts=questions.parts(opened, MATHVISTA_PARTS, _mathvista_values(raw["metadata"] or {})),
    )


def _mathvista_values(metadata: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for field in MATHVISTA_FIELDS:
        value = metadata.get("skills" if field == "skill" else field)
        for one in value if isinstance(value, list) else (value,):
            if one:
                yield field, one


_MATHVISTA = Source(
    task="dcsft_mathvista",
    version=1,
    count=540,
    columns=questions.COLUMNS,
    entries=partial(downloads.rows, hub=_MATHVISTA_HUB, columns=_MATHVISTA_COLUMNS),
    row=_mathvista_row,
    hub=_MATHVISTA_HUB,
)

# MMK12 (Meng et al., MM-Eureka, 2025): 2,000 multiple-choice test questions, 15,616 fill-in training ones.
#
# The test questions list their options themselves, as lines. The paper trained on 6,800 of the training
# questions whose GLM-4.5 solution was verified, 400 of them for the cold start. Neither that selection nor
# the solutions are published: pool and cold start here are our own draw, by a hash of the question's id,
# among the questions whose gold `math` can verify.

MMK12_SUBJECTS = {
    "math": ("math", "数学"),
    "physics": ("phys", "物理"),
    "chemistry": ("chem", "化学"),
    "biology": ("bio", "生物"),
}
"""Subject -> the prefix of its name in the data."""
MMK12_PARTS = tuple(f"subject_{subject}" for subject in MMK12_SUBJECTS)

MMK12_TRAINING = 15_616
MMK12_DRAWN, COLD = 6_800, 400
"""Number of questions in pool and cold start together, and in the cold start (section 6.2)."""
MMK12_SEED = 2602

_MMK12_TEST = Hub("FanqingM/MMK12", split="test")
_MMK12_TRAIN = Hub("FanqingM/MMK12", split="train")
_MMK12_COLUMNS = ("id", "question", "answer", "image")


def _test_row(opened: Opened, raw: Mapping[str, Any]) -> Row:
    question = questions.text(raw, "question")
    gold, choices = questions.inline_gold(
        opened, raw["id"], questions.text(raw, "answer"), questions.inside(question)
    )
    named = str(raw["subject"]).strip().lower()
    subject = next((name for name, begins in MMK12_SUBJECTS.items() if named.startswith(begins)), named)
    name, picture = questions.add_picture(opened, raw["image"])
    return questions.row(
        id=str(raw["id"]),
        prompt=question,
        answer=gold,
        choices=choices,
        cluster=name,
        images=[picture],
        parts=questions.parts(opened, MMK12_PARTS, [("subject", subject)]),
        subject=subject,
    )


def _drawn_entries(opened: Opened, cold: bool) -> Iterator[Entry]:
    chosen = _draw(opened, cold)
    for number, entry in enumerate(_training(opened, (*_MMK12_COLUMNS, "subject"))):
        if number in chosen:
            yield entry


def _training(opened: Opened, columns: tuple[str, ...]) -> Iterator[Entry]:
    """The training rows; with a column `solution` if the user has added one."""
    for table in downloads.tables(opened, _MMK12_TRAIN, columns):
        more = ("solution",) if "solution" in table.features else ()
        yield from downloads.entries(table, (*columns, *more))


def _draw(opened: Opened, cold: bool) -> set[int]:
    """The positions of the drawn rows; the manifest records how. The split must have the published size."""
    texts = [raw for _, raw in _training(opened, ("id", "answer"))]
    if len(texts) != MMK12_TRAINING and not opened.any_count:
        raise HarnessError(
            f"the train split has {len(texts):,} rows, but {MMK12_TRAINING:,} were published",
            "Complete the source; --any-count draws from what is there and records it in the manifest",
        )
    wanted = MMK12_DRAWN if len(texts) == MMK12_TRAINING else len(texts)
    if wanted == MMK12_DRAWN:
        opened.say(
            f"looking for {MMK12_DRAWN:,} questions whose gold `math` can verify, which takes a minute"
        )
    drawn: list[int] = []
    passed = 0
    for number in sorted(range(len(texts)), key=lambda at: (_key(texts[at]["id"]), at)):
        if len(drawn) == wanted:
            break
        if _verifies(texts[number]):
            drawn.append(number)
        else:
            passed += 1
    head = max(1, len(drawn) * COLD // MMK12_DRAWN)
    opened.notes["draw"] = {
        "by": "a hash of the id; our own draw, not the paper's",
        "seed": MMK12_SEED,
        "of": len(texts),
        "drawn": len(drawn),
        "cold start": head,
        "passed over, as `math` cannot verify their gold or solution": passed,
    }
    return set(drawn[:head] if cold else drawn[head:])


def _key(id: object) -> str:
    return hashlib.sha256(f"{MMK12_SEED}:{id}".encode()).hexdigest()


def _verifies(raw: Mapping[str, Any]) -> bool:
    if not isinstance(raw["answer"], str) or not raw["answer"].strip():
        return False
    return _is_right(_target(raw), raw["answer"].strip())


def _is_right(target: str, gold: str) -> bool:
    try:
        return SCORERS["math"](target, answer=gold).score == 1.0
    except HarnessError:  # the gold is not mathematics
        return False


def _target(raw: Mapping[str, Any]) -> str:
    """The target of SFT: the user's solution, else the gold in a box, as far as `math` reads it there."""
    solution = raw.get("solution")
    if isinstance(solution, str) and solution.strip():
        return solution.strip()
    gold = str(raw["answer"]).strip()
    whole = gold.strip("$").strip()
    bare = gold.replace("$", "").strip().removesuffix(".").strip()
    return f"\\boxed{{{bare}}}" if bare == whole or _is_right(f"\\boxed{{{bare}}}", gold) else gold


def _train_row(opened: Opened, raw: Mapping[str, Any]) -> Row:
    name, picture = questions.add_picture(opened, raw["image"])
    return {
        "id": str(raw["id"]),
        "prompt": questions.text(raw, "question"),
        "answer": json.dumps(questions.text(raw, "answer"), ensure_ascii=False),
        "target": _target(raw),
        "choices": [],
        "parts": [],
        "cluster": name,
        "images": [picture],
        "subject": str(raw["subject"]),
    }


_MMK12 = (
    Source(
        task="dcsft_mmk12",
        version=2,
        count=2_000,
        columns={**questions.COLUMNS, "subject": "string"},
        entries=partial(downloads.rows, hub=_MMK12_TEST, columns=(*_MMK12_COLUMNS, "subject")),
        row=_test_row,
        hub=_MMK12_TEST,
        tally=("subject", dict.fromkeys(MMK12_SUBJECTS, 500)),
    ),
    *(
        Source(
            task=task,
            version=3,
            count=count,
            columns={**questions.COLUMNS, "subject": "string"},
            entries=partial(_drawn_entries, cold=cold),
            row=_train_row,
            hub=_MMK12_TRAIN,
            changed="boxes golds that hold a $ or end with a full stop",
        )
        for task, count, cold in (
            ("dcsft_mmk12_pool", MMK12_DRAWN - COLD, False),
            ("dcsft_mmk12_cold", COLD, True),
        )
    ),
)

# MMMU's validation questions (Yue et al., CVPR 2024): 847 multiple-choice ones and 53 open ones.
#
# Options are the text of a Python list. A row has up to seven images; "<image 2>" marks the position of the
# second, in the question or as an option. As in lmms-eval, only images that the text names are shown: others
# belong to the explanation of the answer (Pharmacy_4, Pharmacy_22). Open rows have several golds, any one of
# which is right, and no options.

MMMU_DISCIPLINES: dict[str, tuple[str, ...]] = {
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

MMMU_PARTS = (
    "multiple_choice",
    "open",
    *(f"discipline_{questions.slug(discipline)}" for discipline in MMMU_DISCIPLINES),
    *(f"subject_{questions.slug(one)}" for subjects in MMMU_DISCIPLINES.values() for one in subjects),
)
MMMU_MARK = re.compile(r"<image (\d+)>")
"""The position of an image in the text."""
MMMU_OPEN, MMMU_CHOICE = "open", "multiple-choice"

_MMMU_HUB = Hub("lmms-lab-encoder/MMMU", split="validation")
_MMMU_IMAGES = tuple(f"image_{number}" for number in range(1, 8))
_MMMU_AGAIN = "Download the data again; or correct the row, or skip it: --on-error skip"


def _mmmu_row(opened: Opened, raw: Mapping[str, Any]) -> Row:
    id, kind = questions.text(raw, "id"), raw["question_type"]
    if kind not in (MMMU_OPEN, MMMU_CHOICE):
        raise HarnessError(
            f"the question_type is {kind!r}, not {MMMU_CHOICE!r} or {MMMU_OPEN!r}", _MMMU_AGAIN
        )
    choices = _listed(raw["options"], "options") if kind == MMMU_CHOICE else []
    prompt = questions.prompt(questions.text(raw, "question"), choices)
    numbers = _numbers(prompt, raw)
    pictures = [questions.add_picture(opened, raw[f"image_{number}"])[1] for number in numbers]
    made = questions.row(
        id=id,
        prompt=prompt,
        answer=questions.letter(questions.text(raw, "answer"), choices)
        if kind == MMMU_CHOICE
        else _golds(raw),
        choices=choices,
        cluster=raw["cluster"],
        images=pictures,
    )
    subject = re.sub(r"^[a-z]+_|_\d+$", "", id)
    discipline = next((name for name, subjects in MMMU_DISCIPLINES.items() if subject in subjects), "unknown")
    pairs = [("", kind), ("discipline", discipline), ("subject", subject)]
    return {
        **made,
        "parts": questions.parts(opened, MMMU_PARTS, pairs),
        "question_type": kind,
        "subject": subject,
        "numbers": numbers,
    }


def _numbers(prompt: str, raw: Mapping[str, Any]) -> list[int]:
    """The numbers of the images that the text names, each once, in its order; the row must have them."""
    named = list(dict.fromkeys(int(number) for number in MMMU_MARK.findall(prompt)))
    for number in named:
        if raw.get(f"image_{number}") is None:
            raise HarnessError(
                f"the text names <image {number}>, but the row has no image_{number}", _MMMU_AGAIN
            )
    return named


def _listed(value: str, column: str) -> list[str]:
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = None
    if (
        not isinstance(found, list)
        or not found
        or not all(isinstance(one, str | int | float) for one in found)
    ):
        raise HarnessError(
            f"the column {column!r} holds {value!r}, which is not a list of texts", _MMMU_AGAIN
        )
    return [str(one).strip() for one in found]


def _golds(raw: Mapping[str, Any]) -> list[str]:
    answer = questions.text(raw, "answer")
    return _listed(answer, "answer") if answer.startswith("[") else [answer]


_MMMU = Source(
    task="dcsft_mmmu",
    version=2,
    changed="shows only the pictures that the text names",
    count=900,
    columns={**questions.COLUMNS, "question_type": "string", "subject": "string", "numbers": ["int64"]},
    entries=partial(
        questions.clustered,
        hub=_MMMU_HUB,
        columns=("id", "question", "options", "answer", "question_type", *_MMMU_IMAGES),
        name="id",
        images=_MMMU_IMAGES,
    ),
    row=_mmmu_row,
    hub=_MMMU_HUB,
    needs="--source is a download of lmms-lab-encoder/MMMU or MMMU/MMMU",
    tally=("question_type", {MMMU_CHOICE: 847, MMMU_OPEN: 53}),
)
VIEWS = (View("dcsft_mmmu_mc", of="dcsft_mmmu", column="question_type", values=(MMMU_CHOICE,), count=847),)

# We-Math (testmini; Qiao et al., ACL 2025): problems of two or three steps, and each step as its own
# question.
#
# A problem ("ID") is three or four rows about the same drawing: the steps and the whole ("key"). Both columns
# use the same naming scheme: the problem "2steps_2" has a row with the key "2steps_1".

WEMATH_KEYS = {
    "2steps_1": 360, "2steps_2": 360, "2steps_multi": 360,
    "3steps_1": 165, "3steps_2": 165, "3steps_3": 165, "3steps_multi": 165,
}  # fmt: skip
"""Rows of each key."""
WEMATH_PARTS = ("one_step", "two_steps", "three_steps")
WEMATH_WHOLE = "multi"
"""The step value of a problem's row about the whole."""

_WEMATH_HUB = Hub("We-Math/We-Math", split="testmini")


def _wemath_entries(opened: Opened) -> Iterator[Entry]:
    columns = ("ID", "question", "option", "answer", "image_path", "key")
    seen: dict[tuple[Any, Any], str] = {}
    for where, raw in questions.clustered(opened, _WEMATH_HUB, columns, "ID", ["image_path"]):
        other = seen.setdefault((raw["ID"], raw["key"]), where)
        yield Entry(where, {**raw, "other": None if other == where else other})


def _wemath_row(opened: Opened, raw: Mapping[str, Any]) -> Row:
    key, problem = questions.text(raw, "key"), questions.text(raw, "ID")
    if key not in WEMATH_KEYS:
        raise HarnessError(f"the key {key!r} is none of {', '.join(WEMATH_KEYS)}", "Download the data again")
    if raw["other"] is not None:
        raise HarnessError(
            f"problem {problem!r} has the key {key!r} already, in {raw['other']}",
            "Download the data again, or skip the row: --on-error skip",
        )
    choices = questions.joined(questions.text(raw, "option"))
    gold = questions.letter(questions.text(raw, "answer"), choices)
    steps, step = int(key[0]), key.partition("_")[2]
    _, picture = questions.add_picture(opened, raw["image_path"])
    return questions.row(
        id=f"{problem}/{step}",
        prompt=questions.prompt(questions.text(raw, "question"), choices),
        answer=gold,
        choices=choices,
        cluster=raw["cluster"],
        images=[picture],
        parts=[WEMATH_PARTS[steps - 1] if step == WEMATH_WHOLE else WEMATH_PARTS[0]],
        problem=problem,
        key=key,
        steps=steps,
        step=step,
    )


_WEMATH = Source(
    task="dcsft_wemath",
    version=2,
    count=1_740,
    columns={**questions.COLUMNS, "problem": "string", "key": "string", "steps": "int64", "step": "string"},
    entries=_wemath_entries,
    row=_wemath_row,
    hub=_WEMATH_HUB,
    tally=("key", WEMATH_KEYS),
    together="problem",
)

SOURCES = (_MATHVERSE, _MATHVISION, _MATHVISTA, *_MMK12, _MMMU, _WEMATH)

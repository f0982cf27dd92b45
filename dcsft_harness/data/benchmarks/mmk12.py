"""MMK12 (Meng et al., MM-Eureka, 2025): 2,000 multiple-choice test questions, 15,616 fill-in training ones.

The test questions list their options themselves, as lines. The paper trained on 6,800 of the training
questions whose GLM-4.5 solution was verified, 400 of them for the cold start. Which they were, and the
solutions, is not published: pool and cold start here are a draw of our own, by a hash of the question's id,
among the questions whose gold `math` can verify.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from dcsft_harness.data.benchmarks import options, questions, tables
from dcsft_harness.data.benchmarks.source import Entry, Hub, Opened, Row, Source
from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import SCORERS

SUBJECTS = {
    "math": ("math", "数学"),
    "physics": ("phys", "物理"),
    "chemistry": ("chem", "化学"),
    "biology": ("bio", "生物"),
}
"""Subject -> how its name begins in the data."""
PARTS = tuple(f"subject_{subject}" for subject in SUBJECTS)

TRAINING = 15_616
DRAWN, COLD = 6_800, 400
"""Questions in pool and cold start together, and in the cold start (section 6.2)."""
SEED = 2602

_TEST = Hub("FanqingM/MMK12", split="test")
_TRAIN = Hub("FanqingM/MMK12", split="train")
_COLUMNS = ("id", "question", "answer", "image")
_NEEDS = "--source is a download of FanqingM/MMK12"
_GET = "hf download --repo-type dataset FanqingM/MMK12 --local-dir DIR"


def _test_entries(opened: Opened) -> Iterator[Entry]:
    yield from tables.rows(opened, _TEST, (*_COLUMNS, "subject"))


def _test_row(opened: Opened, raw: Any) -> Row:  # noqa: ANN401 - the columns above
    question = questions.text(raw, "question")
    gold, choices = questions.inline_gold(
        opened, raw["id"], questions.text(raw, "answer"), options.inside(question)
    )
    named = str(raw["subject"]).strip().lower()
    subject = next((name for name, begins in SUBJECTS.items() if named.startswith(begins)), named)
    name, picture = questions.add_picture(opened, raw["image"])
    return {
        **questions.row(
            id=str(raw["id"]), prompt=question, answer=gold, choices=choices, cluster=name, images=[picture]
        ),
        "parts": questions.parts(opened, PARTS, [("subject", subject)]),
        "subject": subject,
    }


def _pool_entries(opened: Opened) -> Iterator[Entry]:
    return _drawn_entries(opened, cold=False)


def _cold_entries(opened: Opened) -> Iterator[Entry]:
    return _drawn_entries(opened, cold=True)


def _drawn_entries(opened: Opened, cold: bool) -> Iterator[Entry]:
    chosen = _draw(opened, cold)
    for number, entry in enumerate(_training(opened, (*_COLUMNS, "subject"))):
        if number in chosen:
            yield entry


def _training(opened: Opened, columns: tuple[str, ...]) -> Iterator[Entry]:
    """The training rows; with a column `solution`, where the user has added one."""
    for table in tables.tables(opened, _TRAIN, columns):
        more = ("solution",) if "solution" in table.features else ()
        yield from tables.entries(table, (*columns, *more))


def _draw(opened: Opened, cold: bool) -> set[int]:
    """The positions of the rows that are drawn; the manifest tells how.

    Raises:
        HarnessError: the split has another number of rows than were published.
    """
    texts = [raw for _, raw in _training(opened, ("id", "answer"))]
    if len(texts) != TRAINING and not opened.any_count:
        raise HarnessError(
            f"the train split has {len(texts):,} rows, and {TRAINING:,} were published",
            "Complete the source; --any-count draws from what is there, and says so in the manifest",
        )
    wanted = DRAWN if len(texts) == TRAINING else len(texts)
    if wanted == DRAWN:
        opened.say(f"looking for {DRAWN:,} questions whose gold `math` can verify, which takes a minute")
    drawn: list[int] = []
    passed = 0
    for number in sorted(range(len(texts)), key=lambda at: (_key(texts[at]["id"]), at)):
        if len(drawn) == wanted:
            break
        if _verifies(texts[number]):
            drawn.append(number)
        else:
            passed += 1
    head = max(1, len(drawn) * COLD // DRAWN)
    opened.notes["draw"] = {
        "by": "a hash of the id; our own draw, not the paper's",
        "seed": SEED,
        "of": len(texts),
        "drawn": len(drawn),
        "cold start": head,
        "passed over, as `math` cannot verify their gold or solution": passed,
    }
    return set(drawn[:head] if cold else drawn[head:])


def _key(id: object) -> str:
    return hashlib.sha256(f"{SEED}:{id}".encode()).hexdigest()


def _verifies(raw: Mapping[str, Any]) -> bool:
    if not isinstance(raw["answer"], str) or not raw["answer"].strip():
        return False
    try:
        return SCORERS["math"](_target(raw), answer=raw["answer"].strip()).score == 1.0
    except HarnessError:  # the gold is no mathematics
        return False


def _target(raw: Mapping[str, Any]) -> str:
    """What SFT trains on: the user's solution, else the gold in a box."""
    solution = raw.get("solution")
    if isinstance(solution, str) and solution.strip():
        return solution.strip()
    bare = str(raw["answer"]).strip().strip("$").strip()
    return str(raw["answer"]).strip() if "$" in bare else f"\\boxed{{{bare}}}"


def _train_row(opened: Opened, raw: Any) -> Row:  # noqa: ANN401 - the columns above
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


SOURCES = (
    Source(
        task="dcsft_mmk12",
        version=2,
        count=2_000,
        columns={**questions.COLUMNS, "subject": "string"},
        entries=_test_entries,
        row=_test_row,
        hub=_TEST,
        needs=_NEEDS,
        get=_GET,
        tally=("subject", dict.fromkeys(SUBJECTS, 500)),
    ),
    *(
        Source(
            task=task,
            version=2,
            count=count,
            columns={**questions.COLUMNS, "subject": "string"},
            entries=entries,
            row=_train_row,
            hub=_TRAIN,
            needs=_NEEDS,
            get=_GET,
        )
        for task, count, entries in (
            ("dcsft_mmk12_pool", DRAWN - COLD, _pool_entries),
            ("dcsft_mmk12_cold", COLD, _cold_entries),
        )
    ),
)

"""We-Math (testmini; Qiao et al., ACL 2025): problems of two or three steps, and each step asked by itself.

A problem ("ID") is three or four rows about the same drawing: the steps and the whole ("key"). Both
columns use the same kind of name: the problem "2steps_2" has a row with the key "2steps_1".
"""

from collections.abc import Iterator
from typing import Any

from dcsft_harness.data.benchmarks import options, questions, tables
from dcsft_harness.data.benchmarks.source import Entry, Hub, Opened, Row, Source
from dcsft_harness.errors import HarnessError

KEYS = {
    "2steps_1": 360, "2steps_2": 360, "2steps_multi": 360,
    "3steps_1": 165, "3steps_2": 165, "3steps_3": 165, "3steps_multi": 165,
}  # fmt: skip
"""Rows of each key."""
PARTS = ("one_step", "two_steps", "three_steps")
WHOLE = "multi"
"""The step that a problem's row about all of it has."""

_HUB = Hub("We-Math/We-Math", split="testmini")


def _entries(opened: Opened) -> Iterator[Entry]:
    read = (raw for _, raw in tables.rows(opened, _HUB, ("ID", "image_path")))
    clusters = questions.linked((str(raw["ID"]), [raw["image_path"]]) for raw in read)
    seen: dict[tuple[Any, Any], str] = {}
    for where, raw in tables.rows(opened, _HUB, ("ID", "question", "option", "answer", "image_path", "key")):
        other = seen.setdefault((raw["ID"], raw["key"]), where)
        more = {"cluster": clusters[str(raw["ID"])], "other": None if other == where else other}
        yield Entry(where, {**raw, **more})


def _row(opened: Opened, raw: Any) -> Row:  # noqa: ANN401 - the columns above
    key, problem = questions.text(raw, "key"), questions.text(raw, "ID")
    if key not in KEYS:
        raise HarnessError(f"the key {key!r} is none of {', '.join(KEYS)}", "Download the data again")
    if raw["other"] is not None:
        raise HarnessError(
            f"problem {problem!r} has the key {key!r} already, in {raw['other']}",
            "Download the data again, or pass over the row: --on-error skip",
        )
    choices = options.joined(questions.text(raw, "option"))
    gold = options.letter(questions.text(raw, "answer"), choices)
    steps, step = int(key[0]), key.partition("_")[2]
    _, picture = questions.add_picture(opened, raw["image_path"])
    return {
        **questions.row(
            id=f"{problem}/{step}",
            prompt=questions.prompt(questions.text(raw, "question"), choices),
            answer=gold,
            choices=choices,
            cluster=raw["cluster"],
            images=[picture],
        ),
        "parts": [PARTS[steps - 1] if step == WHOLE else PARTS[0]],
        "problem": problem,
        "key": key,
        "steps": steps,
        "step": step,
    }


SOURCES = (
    Source(
        task="dcsft_wemath",
        version=2,
        count=1_740,
        columns={
            **questions.COLUMNS,
            "problem": "string",
            "key": "string",
            "steps": "int64",
            "step": "string",
        },
        entries=_entries,
        row=_row,
        hub=_HUB,
        needs="--source is a download of We-Math/We-Math",
        get="hf download --repo-type dataset We-Math/We-Math --local-dir DIR",
        tally=("key", KEYS),
        together="problem",
    ),
)

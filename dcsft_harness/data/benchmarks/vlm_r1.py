"""RefCOCO's validation and training expressions and LISA-Grounding, as VLM-R1 published them (omlab/VLM-R1).

Its files come as JSON lists (`problem`, `solution`) or as the JSON Lines that its trainer reads
(`conversations`). A solution is [x1, y1, x2, y2] in pixels of the original image; for RefCOCO the lower
right corner is one pixel further than COCO's, which is kept as published (and is what the paper trains on).
"""

import ast
import hashlib
import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcsft_harness.data.benchmarks import tables
from dcsft_harness.data.benchmarks.files import Files, json_rows
from dcsft_harness.data.benchmarks.grounding import COLUMNS, box_row, four
from dcsft_harness.data.benchmarks.source import Entry, Hub, Opened, Row, Source
from dcsft_harness.errors import HarnessError

HUB = "omlab/VLM-R1"
OTHER = "rec_jsons_internvl"
"""The stem of the archive that has files of the same names with boxes from 0 to 1000."""
ANNOTATIONS, COCO, LISA = "rec_jsons_processed.zip", "train2014.zip", "lisa_test.zip"
TRAIN = ("refcoco_train.jsonl", "refcoco_train.json")
COLD, POOL = 400, 9_600
"""Rows of the paper's 10,000 that train the cold start, and the others."""
SEED = 2602
_FOLDERS = ("train2014", "images", "coco", "coco/train2014", "lisa_test", "lisa-test", "lisa")


def _files(opened: Opened, hub: Hub) -> Files:
    if opened.folder is None:
        opened.say(f"downloading {', '.join(hub.files)} of {hub.path}")
    return Files(opened.folder or tables.fetch(hub))


def _annotations(opened: Opened, files: Files, names: tuple[str, ...]) -> tuple[Path, str | None]:
    # Those in pixels come first where both archives lie together.
    found = files.find(*(f"{Path(ANNOTATIONS).stem}/{name}" for name in names), *names)
    if found is None:
        raise HarnessError(
            f"{files.root} has no {' or '.join(names)}, also not in a zip archive",
            f"It is in {ANNOTATIONS} of {HUB} on the hub",
        )
    if OTHER in f"{found[0].relative_to(files.root)}/{found[1] or ''}":
        raise HarnessError(
            f"{': '.join(str(part) for part in found if part)} has boxes in thousandths, for InternVL",
            f"Take the file of {ANNOTATIONS}, whose boxes are in pixels: its name is the same",
        )
    opened.inputs[found[0].name] = found[0]
    return found


def _every(opened: Opened, hub: Hub, names: tuple[str, ...]) -> Iterator[Entry]:
    files = _files(opened, hub)
    for where, data in json_rows(_annotations(opened, files, names)):
        yield Entry(where, (files, data))


def _drawn(opened: Opened, hub: Hub, cold: bool) -> Iterator[Entry]:
    """The training rows of one of the two splits, drawn by their content, whatever their order.

    The first pass keeps 10,000 digests, the second reads the rows again.
    """
    files = _files(opened, hub)
    found = _annotations(opened, files, TRAIN)
    opened.notes["chosen"] = f"not the paper's: {COLD + POOL:,} distinct rows drawn by content, seed {SEED}"
    opened.say(f"the paper's list of rows is not published; these are {opened.notes['chosen']}")
    lowest: list[int] = []
    known: set[int] = set()
    for _, data in json_rows(found):
        rank = _rank(data)
        if rank in known or (len(lowest) == COLD + POOL and rank >= -lowest[0]):
            continue
        known.add(rank)
        heapq.heappush(lowest, -rank)
        if len(lowest) > COLD + POOL:
            known.discard(-heapq.heappop(lowest))
    ranks = sorted(known)
    wanted = set(ranks[:COLD] if cold else ranks[COLD:])
    for where, data in json_rows(found):
        if (rank := _rank(data)) in wanted:
            wanted.discard(rank)  # the same row again, of which there are some, is one item
            yield Entry(where, (files, data))


def _rank(data: Any) -> int:  # noqa: ANN401 - what the JSON says
    try:
        image, problem, solution = _fields(data)
        what = [image, problem, four(_box(solution), "solution")]
    except HarnessError:
        what = [str(data)]  # told when it is its turn
    return int.from_bytes(hashlib.sha256(f"{SEED} {json.dumps(what)}".encode()).digest()[:8], "big")


def _fields(data: Any) -> tuple[str, str, Any]:  # noqa: ANN401 - what the JSON says
    """Image, problem and solution of a row in either form."""
    try:
        if "conversations" in data:
            question, answer = (turn["value"] for turn in data["conversations"])
        else:
            question, answer = data["problem"], data["solution"]
        image = data["image"]
    except (KeyError, TypeError, ValueError) as error:
        has = ", ".join(sorted(data)) if isinstance(data, Mapping) else type(data).__name__
        raise HarnessError(
            f"a row needs image, problem and solution, or image and conversations; this one has {has}",
            f"Take {ANNOTATIONS} of {HUB} as it is now",
        ) from error
    for name, value in (("image", image), ("problem", question)):
        if not isinstance(value, str):
            raise HarnessError(f"{name} is {str(value)[:80]!r}, not text", "Mend the row or leave it out")
    return image, question.replace("<image>", "").strip(), answer


def _box(solution: Any) -> Any:  # noqa: ANN401 - a list, or one as text
    if not isinstance(solution, str):
        return solution
    text = solution.replace("<answer>", "").replace("</answer>", "").strip()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _row(opened: Opened, raw: tuple[Files, Any]) -> Row:
    files, data = raw
    image, problem, solution = _fields(data)
    if not problem:
        raise HarnessError("the problem has no words", "Mend the row or leave it out")
    size = (data["width"], data["height"]) if {"width", "height"} <= set(data) else None
    box = four(_box(solution), "solution")
    if size is not None and "normalized_solution" in data:
        _refuse_thousandths(box, four(data["normalized_solution"], "normalized_solution"), size)
    return box_row(opened, image, files.image(image, *_FOLDERS), problem, box, size)


def _refuse_thousandths(box: Sequence[float], thousandths: Sequence[float], size: tuple[int, int]) -> None:
    """Refuses a solution that is not in pixels, where the row tells it in thousandths as well."""
    scaled = [1000 * value / size[at % 2] for at, value in enumerate(box)]
    same, apart = (max(abs(a - b) for a, b in zip(one, thousandths, strict=True)) for one in (box, scaled))
    if same <= 1 and apart > 10:
        raise HarnessError(
            f"the solution {list(box)} is in thousandths of the image of {size[0]} x {size[1]} pixels",
            f"Take the file of {ANNOTATIONS}, whose boxes are in pixels",
        )


def _source(task: str, count: int, entries: Any, hub: Hub, names: str, **more: Any) -> Source:  # noqa: ANN401
    return Source(
        task=task,
        version=1,
        count=count,
        columns=COLUMNS,
        entries=lambda opened: entries(opened, hub),
        row=_row,
        hub=hub,
        needs=f"--source is a folder with {names}, unpacked or not",
        get=f"{' and '.join(hub.files)} of {HUB} on the hub; without --source they are downloaded",
        **more,
    )


_REFCOCO = Hub(HUB, split="", files=(ANNOTATIONS, COCO))

SOURCES = (
    _source(
        "dcsft_refcoco_val",
        10_834,
        lambda opened, hub: _every(opened, hub, ("refcoco_val.json",)),
        _REFCOCO,
        "refcoco_val.json and COCO's train2014",
    ),
    _source(
        "dcsft_lisa",
        1_658,
        lambda opened, hub: _every(opened, hub, ("lisa_test.json",)),
        Hub(HUB, split="", files=(ANNOTATIONS, LISA)),
        "lisa_test.json and the images of lisa_test",
    ),
    _source(
        "dcsft_refcoco_pool",
        POOL,
        lambda opened, hub: _drawn(opened, hub, cold=False),
        _REFCOCO,
        "refcoco_train.jsonl (or .json) and COCO's train2014",
        distinct=True,
    ),
    _source(
        "dcsft_refcoco_cold",
        COLD,
        lambda opened, hub: _drawn(opened, hub, cold=True),
        _REFCOCO,
        "refcoco_train.jsonl (or .json) and COCO's train2014",
        distinct=True,
    ),
)

"""Items as training conversations: messages with images, and their labels."""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dcsft_harness import environment, reading
from dcsft_harness.artifacts import storage, usage
from dcsft_harness.artifacts.lock import Scratch
from dcsft_harness.artifacts.storage import AT_ONCE, PLACE, reordered
from dcsft_harness.errors import HarnessError, reporting_refusals
from dcsft_harness.records import MARK

if TYPE_CHECKING:
    from datasets import Dataset, Features

    from dcsft_harness.lmms import Task
    from dcsft_harness.sampling.own_data import Part

TRAINING = "training"
"""The cache folder of a task's training data, which belongs to no artifact."""
CONVERSATION = ["prompt", "target", "images"]
"""The columns of an item that make a conversation."""
TURNS = "turns"
"""The column of the turns before the answer, if there are several; see `records.Item`."""
REJECTED = "rejected"
"""The column of rejected answers for preference training."""
BOX = "box"
"""The column of gold boxes, [x1, y1, x2, y2] in original-image pixels; present if any answer is a box."""

REFUSED = "refused"
"""The column with the reason why a task's row cannot be trained on; present if there is any such row."""
ROW = "row_name"
"""The column with each row's name in errors, for data that is not a curated set: "line 3", "doc_id 7"."""
_BLANK: dict[str, Any] = {"messages": [], "images": [], "item_id": "", BOX: None, REJECTED: ""}
"""What a row has that cannot be trained on."""


def write(folder: Path, items: Path, chosen: pa.Table) -> None:
    """Writes chosen items, in their order, with their label rows, which may have the column weight.

    Raises:
        HarnessError: an item is missing, occurs twice, has an empty cell, or its prompt has another number of
            image marks than images.
    """
    boxed = _has_boxes(items)
    columns = features(boxed=boxed, weighted="weight" in chosen.column_names)
    of_labels = list(columns)[2 + boxed :]  # all but messages, images and boxes, which the labels lack
    wanted = [*CONVERSATION, BOX] if boxed else CONVERSATION
    if TURNS in storage.names(items):
        wanted = [*wanted, TURNS]
    size = sum(path.stat().st_size for path in storage.files(items))
    scratch = folder.with_name(".scratch")
    done, count = 0, chosen.num_rows
    found = usage.counted(placed(items, chosen["item_id"], wanted), lambda: count, size=len)
    with storage.writing(folder, columns) as writer:
        for some in usage.counted(reordered(found, count, size, scratch), lambda: count, "saving", len):
            labels = chosen.slice(done, some.num_rows).select(of_labels)
            _refuse_unmatched(some, labels["item_id"])
            boxes = [some[BOX]] if boxed else []
            writer.table(pa.table([*_conversations(some), *boxes, *labels], list(columns)))
            done += some.num_rows


def _has_boxes(items: Path) -> bool:
    """Whether any item's answer is a box; rollouts of older versions do not record it."""
    if BOX not in storage.names(items):
        return False
    return any(table[BOX].null_count < table.num_rows for table in storage.read(items, [BOX], AT_ONCE))


def placed(items: Path, wanted: pa.ChunkedArray, names: Sequence[str]) -> Iterator[pa.Table]:
    """The items with these ids in storage order, with their positions.

    `wanted` holds each id once. Yields tables of the columns and of PLACE, an item's position in `wanted`.

    Raises:
        HarnessError: an item is missing, occurs twice, or has an empty cell.
    """
    ids, seen = wanted.combine_chunks(), np.zeros(len(wanted), bool)
    for table in storage.read(items, list(dict.fromkeys(["item_id", *names])), AT_ONCE):
        there = table["item_id"].combine_chunks()
        # Looking up the wanted ids here takes a fourth of the time of the reverse lookup.
        found = pc.index_in(ids, value_set=there)
        places, at = np.flatnonzero(found.is_valid()), found.drop_null()
        rest = there.take(np.setdiff1d(np.arange(len(there)), at, assume_unique=True))
        again = rest.filter(pc.is_in(rest, value_set=ids.take(places)))
        doubled = pa.concat_arrays([ids.take(places[seen[places]]), again])
        if len(doubled):
            raise HarnessError(f"{items} holds item {doubled[0]} twice", "Remove one of them")
        rows = table.select(names).combine_chunks().take(at)
        for name in names:
            if name not in (BOX, TURNS) and rows[name].null_count:
                raise HarnessError(f"{items}: the column {name!r} has empty cells", "Sample the pool again")
        seen[places] = True
        yield rows.append_column(PLACE, pa.array(places))
    if not seen.all():
        missing = ids[int(np.argmin(seen))]
        raise HarnessError(f"{items} lacks item {missing}", "Labels and rollouts do not belong together")


def _conversations(items: pa.Table) -> tuple[pa.Array, pa.Array]:
    """The columns messages and images of items; `conversation` makes those of one item."""
    images, prompts, targets = (items[name].combine_chunks() for name in ("images", "prompt", "target"))
    count = pc.list_value_length(images)
    marks = pa.array([MARK * number for number in range((pc.max(count).as_py() or 0) + 1)])
    in_front = pc.binary_join_element_wise(marks.take(count), prompts, "")
    asked = pc.if_else(pc.match_substring(prompts, MARK), prompts, in_front)
    if TURNS in items.column_names and items[TURNS].null_count < len(items):
        rows = items.select(["prompt", "target", TURNS]).to_pylist()
        made = [
            conversation({**row, "images": [None] * number})["messages"]
            for row, number in zip(rows, count.to_pylist(), strict=True)
        ]
        return pa.array(made, pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))), images
    turns = np.arange(2 * len(items)).reshape(2, -1).T.ravel()  # question, answer, question, ...
    content = pa.concat_arrays([asked, targets]).take(turns)
    roles = pa.array(["user", "assistant"]).take(np.arange(len(turns)) % 2)
    messages = pa.StructArray.from_arrays([roles, content], ["role", "content"])
    return pa.ListArray.from_arrays(np.arange(0, len(turns) + 1, 2, dtype=np.int32), messages), images


def _refuse_unmatched(items: pa.Table, ids: pa.ChunkedArray) -> None:
    """Refuses items whose prompt has different numbers of placeholders and images, naming the first."""
    marks = pc.count_substring(items["prompt"], MARK)
    images = pc.list_value_length(items["images"])
    wrong = np.flatnonzero(pc.and_(pc.greater(marks, 0), pc.not_equal(marks, images)).to_numpy())
    if len(wrong):
        first = int(wrong[0])
        raise _unmatched(ids[first].as_py(), marks[first].as_py(), images[first].as_py())


def _unmatched(item_id: str, marks: int, images: int) -> HarnessError:
    return HarnessError(
        f"item {item_id}: {marks} {MARK} placeholders for {images} images",
        f"The task's own text contains {MARK}, so a trainer could not place its images: leave the item out",
    )


def conversation(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item as `messages` and `images`: the prompt, with one MARK per image, and the target.

    Raises:
        HarnessError: the prompt has another number of image marks than images.
    """
    prompt, images = item["prompt"], len(item["images"])
    if MARK in prompt and prompt.count(MARK) != images:
        raise _unmatched(str(item.get("item_id")), prompt.count(MARK), images)
    turns = [{"role": "user", "content": prompt if MARK in prompt else MARK * images + prompt}]
    if item.get(TURNS):
        turns = reading.from_json(item[TURNS])
    return {"messages": [*turns, {"role": "assistant", "content": item["target"]}], "images": item["images"]}


def from_task(task: "Task") -> "Dataset":
    """All documents of a task as training data, in the columns of a curated set; without labels.

    See `stored`. The column `ROW` names each row. If images cannot be read, the column `REFUSED` gives the
    reason, and the row has no images.

    Raises:
        HarnessError: duplicate items, or a full disk.
    """
    from dcsft_harness.lmms import stored_images
    from dcsft_harness.sampling import read_items

    refused: dict[int, str] = {}
    items = read_items(task, len(task.eval_docs), refused)
    boxed = any(item.box is not None for item in items)
    left_out: Mapping[str, str] = getattr(task, "left_out", {})  # see `own_data.open_file`
    columns = features(boxed, labeled=False, texts=[REFUSED, ROW] if refused or left_out else [ROW])
    named: Mapping[int, str] = getattr(task, "row_names", {})
    without = (_BLANK | {ROW: where, REFUSED: why.rstrip(".")} for where, why in left_out.items())
    rows = (
        conversation({**asdict(item), "images": images})
        | {"item_id": item.item_id, BOX: item.box, REFUSED: refused.get(item.doc_id)}
        | {ROW: named.get(item.doc_id, f"doc_id {item.doc_id}")}
        for item, images in zip(items, stored_images(task, items, refused), strict=True)
    )
    return stored(task.config.task, columns, chain(rows, without))


def from_rows(
    path: Path,
    scorer: str | None,
    image_root: Path | None,
    outside: bool = False,
    pairs: bool = False,
    part: "Part | None" = None,
) -> "Dataset":
    """All rows of a user's own file or folder as training data; see `from_task`.

    Unusable rows have the column `REFUSED`, with the problem and, on a second line, its remedy. The scorer
    reads the answers, and so decides which are boxes; None accepts any. With `pairs`, each row needs a
    rejected answer, which becomes the column `REJECTED`. `part` None reads all rows.

    Raises:
        HarnessError: an unknown scorer, a file that cannot be read or has no rows, or a full disk.
    """
    from dcsft_harness.sampling import own_data, own_files, own_rows
    from dcsft_harness.scoring import get_scorer

    judge = own_data.ANY if scorer is None else get_scorer(scorer)
    boxed = "box_space" in judge.fields
    columns = features(boxed, labeled=False, texts=[REFUSED, ROW, *([REJECTED] if pairs else [])])

    def rows() -> Iterator[dict[str, Any]]:
        root = own_rows.Root(image_root or own_files.root_of(path), outside)
        for where, row, reason in own_data.examined(path, judge, root, part, pairs):
            if reason is None and pairs and row is not None:
                reason = _unfit(row)
            if row is None or reason is not None:
                assert reason is not None
                yield _BLANK | {ROW: where, REFUSED: f"{reason.problem}\n{reason.remedy}"}
                continue
            box = reading.from_json(row["answer"]) if boxed else None
            more = {"item_id": row["item_id"], BOX: box, REFUSED: None, REJECTED: row[REJECTED], ROW: where}
            yield conversation(row) | more

    return stored(own_files.name_of(path), columns, rows())


def _unfit(row: Mapping[str, Any]) -> HarnessError | None:
    """Why a row is no preference pair; None if it is one."""
    if row[REJECTED] is None:
        return HarnessError("no `rejected` answer", "Add one to each row")
    if row[REJECTED].strip() == row["target"].strip():
        return HarnessError("`rejected` equals the right answer", "Correct or remove the row")
    return None


def stored(name: str, columns: "Features", rows: Iterable[dict[str, Any]]) -> "Dataset":
    """Training data that belongs to no artifact, as an open dataset.

    It is mapped from its own folder below `TRAINING` in the cache, whose name begins with `name`. The folder
    is removed with the dataset; see `Scratch`.
    Rows have a value for each column and may have more, and are read once.

    Raises:
        HarnessError: a full disk.
    """
    from datasets import load_from_disk  # noqa: TID251 - just written

    above = environment.cache_root() / TRAINING
    kept, variable = "nothing half-written was kept", "DCSFT_CACHE"
    with reporting_refusals("training data", above, kept, variable):
        scratch = Scratch(name, above)
    try:
        with (
            reporting_refusals("training data", scratch.folder, kept, variable),
            storage.writing(scratch.folder, columns) as writer,
        ):
            writer.rows({name: row[name] for name in columns} for row in rows)
        found = load_from_disk(str(scratch.folder))  # noqa: TID251
    except BaseException:
        scratch.remove()
        raise
    weakref.finalize(found, scratch.remove)
    return found


def features(
    boxed: bool = False, labeled: bool = True, weighted: bool = False, texts: Iterable[str] = ()
) -> "Features":
    """The columns of a curated set: messages, images; box; item_id; difficulty and pass_rate; weight.

    `texts` are further columns, of texts.
    """
    from datasets import Features, Image, List, Value

    text = Value("string")
    columns = {"messages": List({"role": text, "content": text}), "images": List(Image())}
    if boxed:
        columns |= {BOX: List(Value("float64"))}
    columns |= {"item_id": text}
    if labeled:
        columns |= {"difficulty": text, "pass_rate": Value("float64")}
    if weighted:
        columns |= {"weight": Value("float64")}
    return Features(columns | dict.fromkeys(texts, text))

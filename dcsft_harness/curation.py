"""labels -> curated set: the items to train on, in the format that trainers read."""

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcsft_harness import cache, dataset_folder, manifest, overlap, records
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.labels import LABELS
from dcsft_harness.reorder import AT_ONCE, PLACE, reordered
from dcsft_harness.sampling import ITEMS

DATA = "data"
TRAINING = "training"
"""The folder in the cache that holds training data which is a task's and no artefact."""
CONVERSATION = ["prompt", "target", "images"]
"""What a conversation is made of, of an item's columns."""


@dataclass(frozen=True)
class CurationConfig:
    """Which items to keep.

    Attributes:
        keep: the difficulties to keep.
        mix: difficulty -> its share of the curated set, in (0, 1), beside what is kept.
        size: number of items of the curated set; None keeps all that qualify.
        seed: decides which items are drawn where not all fit, and their order.
    """

    keep: tuple[records.Difficulty, ...]
    mix: Mapping[records.Difficulty, float] = field(default_factory=dict)
    size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks names, shares and size.

        Raises:
            HarnessError: names the option and the value.
        """
        for name in (*self.keep, *self.mix):
            if name not in records.DIFFICULTIES:
                raise unknown_name("difficulty", name, records.DIFFICULTIES)
        if not self.keep:
            raise HarnessError("--keep names no difficulty", f"Choose from {', '.join(records.DIFFICULTIES)}")
        if len(set(self.keep)) != len(self.keep):
            raise HarnessError(f"--keep {','.join(self.keep)} names a difficulty twice", "Name each once")
        for name, share in self.mix.items():
            if not 0 < share < 1:
                raise HarnessError(f"--mix {name}={share} is out of range", "A share lies between 0 and 1")
            if name in self.keep:
                raise HarnessError(
                    f"--mix {name}={share}: {name} is in --keep already", "Name it in one of them"
                )
        if sum(self.mix.values()) >= 1:
            raise HarnessError(f"--mix shares add up to {sum(self.mix.values())}", "They must stay below 1")
        if self.size is not None and self.size < 1:
            raise HarnessError(f"--size {self.size} is out of range", "It must be at least 1")
        if self.seed < 0:
            raise HarnessError(f"--seed {self.seed} is out of range", "It must be at least 0")

    @staticmethod
    def parse_mix(texts: Sequence[str]) -> dict[records.Difficulty, float]:
        """Reads `name=share` options.

        Raises:
            HarnessError: not of that form.
        """
        mix: dict[records.Difficulty, float] = {}
        for text in texts:
            match = re.fullmatch(r"(\w+)=(\d+\.?\d*|\.\d+)", text)
            if match is None or match[1] not in records.DIFFICULTIES:
                raise HarnessError(f"--mix {text!r} is not difficulty=share", "Write for example hard=0.05")
            if match[1] in mix:
                raise HarnessError(f"--mix names {match[1]} twice", "Name each difficulty once")
            mix[match[1]] = float(match[2])
        return mix


def curate(labels: Path, output: Path, config: CurationConfig, exclude: Path | None = None) -> dict[str, Any]:
    """Draws the items to train on and writes them as a `datasets` folder.

    The folder's data/ has the columns messages (a user turn that begins with one "<image>" per image,
    and the assistant's target), images, item_id, difficulty and pass_rate (empty where sampling stopped
    once the label was settled): the convention that TRL, ms-swift and LLaMA-Factory read. Chosen items
    and their order depend on content and seed alone.

    Args:
        labels: what `labels.label` wrote.
        output: the folder to write.
        config: which items to keep.
        exclude: what `overlap.overlap` wrote of the same pool: its items are left out.

    Returns:
        The manifest's notes: items, how many of each difficulty, and how many labels were excluded.

    Raises:
        HarnessError: not a labels folder, another pool's overlap, too few items, or nothing left.
    """
    manifest.refuse_occupied(output)
    source = manifest.read(labels, "labels")
    rollouts = source.input_folder("rollouts")
    table = records.read_table(labels / LABELS, records.Label)
    inputs, labelled = {"labels": labels, "rollouts": rollouts}, table.num_rows
    if exclude is not None:
        table = overlap.without(table, exclude, source.notes.get("task"))
        inputs["overlap"] = exclude
    chosen = choose(table, config)
    settings = {**asdict(config), "keep": list(config.keep), "mix": dict(config.mix)}
    with manifest.writing("curated set", output, settings, inputs) as draft:
        _write(draft.folder / DATA, rollouts / ITEMS, chosen)
        mix: dict[str, int] = {
            name: int(_equal(chosen["difficulty"], name).sum()) for name in records.DIFFICULTIES
        }
        draft.notes.update({"items": chosen.num_rows, **mix, "task": source.notes.get("task")})
        draft.notes["unlabelled"] = source.notes.get("unlabelled", 0)
        draft.notes["excluded"] = labelled - table.num_rows
    return draft.notes


def choose(labels: pa.Table, config: CurationConfig) -> pa.Table:
    """The label rows of the curated set, in training order.

    Raises:
        HarnessError: a difficulty has fewer items than asked for, or nothing qualifies.
    """
    ids, names = labels["item_id"].combine_chunks(), labels["difficulty"]
    rows = pc.sort_indices(ids).to_numpy()  # the draw does not depend on the order of the labels
    _refuse_doubles(ids.take(rows))
    by_name = {name: rows[_equal(names, name)[rows]] for name in records.DIFFICULTIES}
    kept = rows[np.logical_or.reduce([_equal(names, name) for name in config.keep])[rows]]
    if len(kept) == 0:
        found = ", ".join(f"{len(by_name[name])} {name}" for name in records.DIFFICULTIES)
        raise HarnessError(
            f"no item is {' or '.join(config.keep)}: the set would be empty (the labels have {found})",
            "Keep other difficulties, or label a larger pool",
        )
    total = config.size or round(len(kept) / (1 - sum(config.mix.values())))
    mixed = {name: round(share * total) for name, share in config.mix.items()}
    plain = len(kept) if config.size is None else config.size - sum(mixed.values())
    rng = np.random.Generator(np.random.PCG64(config.seed))
    drawn = [_draw(rng, kept, plain, "+".join(config.keep))]
    drawn += [_draw(rng, by_name[name], number, name) for name, number in mixed.items()]
    return labels.take(rng.permutation(np.concatenate(drawn))).combine_chunks()


def _equal(names: pa.ChunkedArray, name: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.fill_null(pc.equal(names, name), False).to_numpy()
    return found


def _refuse_doubles(ids: pa.StringArray) -> None:
    """Refuses labels, in order of their ids, that hold an item twice: joins go by its id."""
    doubled = ids[1:].filter(pc.equal(ids[1:], ids[:-1]))
    if len(doubled):
        raise HarnessError(f"the labels hold item {doubled[0]} twice", "Remove one of them")


def _draw(rng: np.random.Generator, rows: NDArray[np.int64], number: int, name: str) -> NDArray[np.int64]:
    """`number` of the rows, which are in order of their ids."""
    if number > len(rows):
        raise HarnessError(
            f"{number} {name} items are asked for, the labels have {len(rows)}", "Lower --size or --mix"
        )
    return rows if number == len(rows) else rng.permutation(rows)[:number]


def _write(folder: Path, items: Path, chosen: pa.Table) -> None:
    """Writes the chosen items, in their order, with what their labels say."""
    size = sum(path.stat().st_size for path in dataset_folder.files(items))
    scratch = folder.with_name(".scratch")
    done = 0
    with dataset_folder.writing(folder, features()) as writer:
        for some in reordered(_placed(items, chosen["item_id"]), chosen.num_rows, size, scratch):
            labels = chosen.slice(done, some.num_rows).select(["item_id", "difficulty", "pass_rate"])
            writer.table(pa.table([*_conversations(some), *labels], features().arrow_schema.names))
            done += some.num_rows


def _placed(items: Path, wanted: pa.ChunkedArray) -> Iterator[pa.Table]:
    """The items with these ids as they lie on disk, and where each goes.

    Raises:
        HarnessError: one is not there, or twice, or has an empty cell.
    """
    ids, seen = wanted.combine_chunks(), np.zeros(len(wanted), bool)
    for table in dataset_folder.read(items, ["item_id", *CONVERSATION], AT_ONCE):
        place = pc.index_in(table["item_id"], ids)
        rows = table.select(CONVERSATION).append_column(PLACE, place).filter(pc.is_valid(place))
        places, times = np.unique(rows[PLACE].to_numpy(), return_counts=True)
        doubled = places[(times > 1) | seen[places]]
        if len(doubled):
            raise HarnessError(f"{items} holds item {ids[doubled[0]]} twice", "Remove one of them")
        for name in CONVERSATION:
            if rows[name].null_count:
                raise HarnessError(f"{items}: the column {name!r} has empty cells", "Make the rollouts again")
        seen[places] = True
        yield rows
    if not seen.all():
        missing = ids[int(np.argmin(seen))]
        raise HarnessError(f"{items} lacks item {missing}", "Labels and rollouts do not belong together")


def _conversations(items: pa.Table) -> tuple[pa.Array, pa.Array]:
    """The columns messages and images of items, as `conversation` makes them of one."""
    images, prompts, targets = (items[name].combine_chunks() for name in ("images", "prompt", "target"))
    count = pc.list_value_length(images)
    marks = pa.array(["<image>" * number for number in range((pc.max(count).as_py() or 0) + 1)])
    asked = pc.binary_join_element_wise(marks.take(count), prompts, "")
    turns = np.arange(2 * len(items)).reshape(2, -1).T.ravel()  # question, answer, question, ...
    content = pa.concat_arrays([asked, targets]).take(turns)
    roles = pa.array(["user", "assistant"]).take(np.arange(len(turns)) % 2)
    messages = pa.StructArray.from_arrays([roles, content], ["role", "content"])
    return pa.ListArray.from_arrays(np.arange(0, len(turns) + 1, 2, dtype=np.int32), messages), images


def conversation(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item as `messages` and `images`: one "<image>" per image, then the prompt, then the target."""
    return {
        "messages": [
            {"role": "user", "content": "<image>" * len(item["images"]) + item["prompt"]},
            {"role": "assistant", "content": item["target"]},
        ],
        "images": item["images"],
    }


def from_task(task: Any) -> Any:  # noqa: ANN401 - an lmms-eval task in, a datasets.Dataset out
    """All documents of a task as training data, in the columns of a curated set; nothing is labelled.

    The data set is mapped from a folder of its own below `TRAINING` in the cache, which goes with it, or at
    the latest with this process; only one that is killed leaves it there.

    Raises:
        HarnessError: duplicate items, an unreadable image, or a full disk.
    """
    from datasets import load_from_disk

    from dcsft_harness.harness import stored_images
    from dcsft_harness.sampling import read_items

    items = read_items(task, len(task.eval_docs))
    above = cache.root() / TRAINING
    above.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{task.config.task}-", dir=above))
    try:
        with (
            manifest.telling_refusals("training data", folder, "nothing half-written was kept"),
            dataset_folder.writing(folder, features(labelled=False)) as writer,
        ):
            writer.rows(
                {**conversation({**asdict(item), "images": images}), "item_id": item.item_id}
                for item, images in zip(items, stored_images(task, items), strict=True)
            )
        rows = load_from_disk(str(folder))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(rows, _remove, folder, os.getpid())
    return rows


def _remove(folder: Path, process: int) -> None:
    """Removes a folder, if this is the process that made it and not one forked from it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def features(labelled: bool = True) -> Any:  # noqa: ANN401 - datasets.Features
    """The columns of a curated set: messages, images, item_id, and with labels difficulty and pass_rate."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    columns = {"messages": List({"role": text, "content": text}), "images": List(Image()), "item_id": text}
    if labelled:
        columns |= {"difficulty": text, "pass_rate": Value("float64")}
    return Features(columns)

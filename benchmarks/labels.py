"""`dcsft label` and `dcsft curate` on a large finished rollouts folder: seconds and peak memory.

    python -m benchmarks.labels                      # 10 million responses, 1.25 million items
    python -m benchmarks.labels --rows 100000 --order mixed

The folder has the columns, lengths and encodings of a sampled one: 8 responses an item, of about 40
characters; one PNG an item, each another picture. It is made beforehand and its making is not timed.
Both commands run as a user runs them, each in a process of its own, see `processes`. `empty` is the same on
a folder of one item: what starting and importing cost. Prints one JSON object.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value
from PIL import Image as Pillow

from benchmarks.processes import measured
from dcsft_harness import dataset_folder, manifest, records
from dcsft_harness.sampling import ITEMS, ROLLOUTS

SAMPLES = 8
ITEMS_AT_ONCE = 100_000
TASK = "bench_pool"
NAMES = ["goose", "swan", "heron", "robin", "wren", "kite", "crane", "finch"]
SAID = [
    "Its neck takes {0} of the picture: a {1}",
    "At {0} it looks like a {1} to me.",
    "<answer> {1} </answer>",
    "The bill is {0} long. <answer> {1} </answer>",
]
PACKAGES = ("dcsft-harness", "pyarrow", "datasets", "numpy", "scipy")


def pictures(rng: np.random.Generator, count: int, side: int) -> Iterator[tuple[bytes, bytes]]:
    """PNG files, and the pixels that stand for them in an item's id: blots in grey, of some 300 bytes."""
    coarse = rng.integers(0, 256, (count, 14, 14), dtype=np.uint8)
    for blot in coarse:
        image = Pillow.fromarray(blot).resize((side, side), Pillow.Resampling.NEAREST)
        stored = io.BytesIO()
        image.save(stored, "PNG", compress_level=1)
        yield stored.getvalue(), records.pixels(image)


def described(rng: np.random.Generator, first: int, count: int, side: int) -> Iterator[dict[str, Any]]:
    """Items as rows of rollouts/items."""
    for number, (png, pixels) in enumerate(pictures(rng, count, side), first):
        prompt = f"Which bird is it? It was seen at place {number}. Name it in one word, in <answer> tags."
        answer = NAMES[number % len(NAMES)]
        key = records.item_id(TASK, prompt, answer, [pixels])
        item = records.Item(key, TASK, number, prompt, answer, f"<answer> {answer} </answer>")
        yield {**vars(item), "images": [{"bytes": png, "path": None}]}


def responses(rng: np.random.Generator, items: list[dict[str, Any]]) -> pa.Table:
    """SAMPLES rows an item: two in ten never solved, two in ten always, one response in 500 unscored."""
    count = len(items) * SAMPLES
    rate = np.clip(rng.uniform(-0.25, 1.25, len(items)), 0, 1).repeat(SAMPLES)
    right, scored = rng.random(count) < rate, rng.random(count) > 1 / 500
    forms, numbers = rng.integers(0, len(SAID), count), rng.integers(0, 10**6, count)
    gold = [row["answer"] for row in items for _ in range(SAMPLES)]
    names = [a if good else NAMES[NAMES.index(a) - 1] for a, good in zip(gold, right.tolist(), strict=True)]
    whose = np.arange(len(items)).repeat(SAMPLES)
    columns = {name: pa.array([row[name] for row in items]).take(whose) for name in ("item_id", "prompt")}
    return pa.table(
        {
            "item_id": columns["item_id"],
            "sample_index": np.tile(np.arange(SAMPLES), len(items)),
            "response": [
                SAID[form].format(number, name)
                for form, number, name in zip(forms, numbers, names, strict=True)
            ],
            "score": pa.array(right.astype(float), mask=~scored),
            "extracted": names,
            "n_tokens": rng.integers(4, 30, count),
            "finish_reason": ["stop"] * count,
            "seed": np.zeros(count, int),
            "task": [TASK] * count,
            "prompt": columns["prompt"],
            "answer": gold,
            "censored": np.zeros(count, bool),
            "error": pa.nulls(count, pa.string()),
        },
        schema=records.schema(records.Rollout),
    )


def make(folder: Path, rows: int, side: int, mixed: bool) -> None:
    """A finished rollouts folder; `mixed` holds all of it in memory."""
    rng, count = np.random.default_rng(0), rows // SAMPLES
    columns = {field.name: Value(str(field.type)) for field in records.schema(records.Item)}
    features, shape = Features({**columns, "images": List(Image())}), records.schema(records.Rollout)
    held = []
    with (
        manifest.writing("rollouts", folder, {"task": TASK, "samples": SAMPLES}) as draft,
        dataset_folder.writing(draft.folder / ITEMS, features) as items,
        pq.ParquetWriter(draft.folder / ROLLOUTS, shape, compression="zstd") as table,
    ):
        for first in range(0, count, ITEMS_AT_ONCE):
            some = list(described(rng, first, min(ITEMS_AT_ONCE, count - first), side))
            items.rows(some)
            held.append(responses(rng, some))
            if not mixed:
                table.write_table(held.pop())
        if mixed:
            order = rng.permutation(count * SAMPLES)
            whole = pa.concat_tables(held)
            for start in range(0, len(order), ITEMS_AT_ONCE * SAMPLES):
                table.write_table(whole.take(order[start : start + ITEMS_AT_ONCE * SAMPLES]))
        table.close()


def both(rollouts: Path, keep: str) -> dict[str, dict[str, float]]:
    """Labels and curates a rollouts folder, into a folder beside it that is removed again."""
    with tempfile.TemporaryDirectory(dir=rollouts.parent) as name:
        labels, curated = f"{name}/labels", f"{name}/curated"
        return {
            "label": measured(["label", str(rollouts), "--output", labels]),
            "curate": measured(["curate", labels, "--keep", keep, "--output", curated]),
        }


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="responses, 8 an item")
    parser.add_argument("--order", choices=["grouped", "mixed"], default="grouped", help="of an item's rows")
    parser.add_argument("--side", type=int, default=28, help="pixels of an image's sides")
    parser.add_argument("--keep", default="easy,medium")
    parser.add_argument("--folder", type=Path, help="where the folders are made and kept for another time")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        place = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place.mkdir(parents=True, exist_ok=True)
        made = {}
        for name, rows in (("empty", SAMPLES), ("full", given.rows)):
            made[name] = place / f"{given.order}-{rows}-{given.side}"
            if not (made[name] / manifest.NAME).is_file():
                make(made[name], rows, given.side, given.order == "mixed")
        found = {name: both(folder, given.keep) for name, folder in made.items()}
        sizes = {name: bytes_of(made["full"] / name) for name in (ITEMS,)}
        sizes[ROLLOUTS] = (made["full"] / ROLLOUTS).stat().st_size
    full = found["full"].values()
    said = {
        "settings": {key: str(value) for key, value in vars(given).items()},
        "machine": {"processor": platform.machine(), "cores": len(os.sched_getaffinity(0))},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "megabytes": {name: round(size / 1e6) for name, size in sizes.items()},
        **found,
        "seconds": round(sum(one["seconds"] for one in full), 2),
        "peak_mb": max(one["peak_mb"] for one in full),
    }
    print(json.dumps(said, indent=2))


if __name__ == "__main__":
    main()

"""`dcsft label` and `dcsft curate` on a large finished rollouts folder: seconds and peak memory.

    python -m benchmarks.labels                      # 10 million responses, 1.25 million items
    python -m benchmarks.labels --rows 100000 --order mixed

The folder has the columns and encodings of a sampled one: 8 responses per item, of about 40 characters; one
PNG per item, of 300 bytes. `long` imitates reasoning on photographs: 4 responses per item, prompts and
responses of 1,000 characters, PNGs of 9 kB (800,000 responses, 200,000 items, 2.9 GB). Folders are made
beforehand and not timed.
Both commands run as by a user, each in a new process, see `processes`. `empty` is the same on a folder with
one item: the cost of starting and importing. Prints one JSON object.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value
from PIL import Image as Pillow

from benchmarks.processes import measured
from dcsft_harness import records
from dcsft_harness.artifacts import manifest, storage
from dcsft_harness.sampling import ITEMS, ROLLOUTS

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


@dataclass(frozen=True)
class Payload:
    """How much a row holds.

    Attributes:
        samples: responses per item.
        characters: of a response and of a prompt, at least; 0 leaves them at about 40.
        side: pixels of a picture's sides.
        noise: whether a picture is RGB noise, 3 * side ** 2 bytes; else grey blots of some 300 bytes.
    """

    samples: int = 8
    characters: int = 0
    side: int = 28
    noise: bool = False


SHORT, LONG = Payload(), Payload(samples=4, characters=1000, side=56, noise=True)


def pictures(rng: np.random.Generator, count: int, payload: Payload) -> Iterator[tuple[bytes, bytes]]:
    """PNG files, and the pixels by which an item's id names them."""
    side = payload.side
    for _ in range(count):
        if payload.noise:
            image = Pillow.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        else:
            blot = Pillow.fromarray(rng.integers(0, 256, (14, 14), dtype=np.uint8))
            image = blot.resize((side, side), Pillow.Resampling.NEAREST)
        stored = io.BytesIO()
        image.save(stored, "PNG", compress_level=1)
        yield stored.getvalue(), records.pixels(image)


def described(rng: np.random.Generator, first: int, count: int, payload: Payload) -> Iterator[dict[str, Any]]:
    """Items as rows of rollouts/items."""
    for number, (png, pixels) in enumerate(pictures(rng, count, payload), first):
        prompt = f"Which bird is it? It was seen at place {number}. Name it in one word, in <answer> tags."
        prompt += prose(rng, payload.characters)
        answer = NAMES[number % len(NAMES)]
        key = records.item_id(TASK, prompt, answer, [pixels])
        item = records.Item(key, TASK, number, prompt, answer, f"<answer> {answer} </answer>")
        yield {**vars(item), "images": [{"bytes": png, "path": None}]}


def prose(rng: np.random.Generator, characters: int) -> str:
    """Text of this many characters that does not compress to nothing."""
    return base64.b64encode(rng.bytes(3 * characters // 4)).decode()


def responses(rng: np.random.Generator, items: list[dict[str, Any]], payload: Payload) -> pa.Table:
    """An item's rows: two in ten never solved, two in ten always, one response in 500 unscored."""
    samples = payload.samples
    count = len(items) * samples
    rate = np.clip(rng.uniform(-0.25, 1.25, len(items)), 0, 1).repeat(samples)
    right, scored = rng.random(count) < rate, rng.random(count) > 1 / 500
    forms, numbers = rng.integers(0, len(SAID), count), rng.integers(0, 10**6, count)
    gold = [row["answer"] for row in items for _ in range(samples)]
    names = [a if good else NAMES[NAMES.index(a) - 1] for a, good in zip(gold, right.tolist(), strict=True)]
    whose = np.arange(len(items)).repeat(samples)
    columns = {name: pa.array([row[name] for row in items]).take(whose) for name in ("item_id", "prompt")}
    return pa.table(
        {
            "item_id": columns["item_id"],
            "sample_index": np.tile(np.arange(samples), len(items)),
            "response": [
                prose(rng, payload.characters) + SAID[form].format(number, name)
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


def make(folder: Path, rows: int, payload: Payload, mixed: bool = False) -> None:
    """A finished rollouts folder; `mixed` holds all of its table in memory."""
    rng, count = np.random.default_rng(0), rows // payload.samples
    at_once = min(ITEMS_AT_ONCE, (1 << 28) // (payload.samples * (payload.characters + 100)))
    others = {"doc_id": Value("int64"), "box": List(Value("float64"))}
    columns = {name: others.get(name, Value("string")) for name in records.schema(records.Item).names}
    features, shape = Features({**columns, "images": List(Image())}), records.schema(records.Rollout)
    held = []
    with (
        manifest.writing("rollouts", folder, {"task": TASK, "samples": payload.samples}) as draft,
        storage.writing(draft.folder / ITEMS, features) as items,
        pq.ParquetWriter(draft.folder / ROLLOUTS, shape, compression="zstd") as table,
    ):
        for first in range(0, count, at_once):
            some = list(described(rng, first, min(at_once, count - first), payload))
            items.rows(some)
            held.append(responses(rng, some, payload))
            if not mixed:
                table.write_table(held.pop())
        if mixed:
            order = rng.permutation(count * payload.samples)
            whole = pa.concat_tables(held)
            for start in range(0, len(order), records.ROWS_AT_ONCE):
                table.write_table(whole.take(order[start : start + records.ROWS_AT_ONCE]))
        table.close()


def both(rollouts: Path, keep: str) -> dict[str, dict[str, float]]:
    """Labels and curates a rollouts folder into a folder next to it, which is removed afterwards."""
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
    parser.add_argument("--rows", type=int, default=10_000_000, help="short responses, 8 per item")
    parser.add_argument("--long-rows", type=int, default=800_000, help="long responses, 4 per item")
    parser.add_argument("--order", choices=["grouped", "mixed"], default="grouped", help="of an item's rows")
    parser.add_argument("--keep", default="easy,medium")
    parser.add_argument("--folder", type=Path, help="where the folders are made and kept for another time")
    given = parser.parse_args()
    cases = {"empty": (SHORT.samples, SHORT), "full": (given.rows, SHORT), "long": (given.long_rows, LONG)}
    with contextlib.ExitStack() as stack:
        place = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place.mkdir(parents=True, exist_ok=True)
        found, sizes = {}, {}
        for name, (rows, payload) in cases.items():
            folder = place / "-".join(str(value) for value in (given.order, rows, *vars(payload).values()))
            if not (folder / manifest.NAME).is_file():
                make(folder, rows, payload, given.order == "mixed")
            found[name] = both(folder, given.keep)
            sizes[name] = {ITEMS: bytes_of(folder / ITEMS), ROLLOUTS: (folder / ROLLOUTS).stat().st_size}
    full = found["full"].values()
    said = {
        "settings": {key: str(value) for key, value in vars(given).items()},
        "payload": {name: vars(payload) for name, (_, payload) in cases.items()},
        "machine": {"processor": platform.machine(), "cores": len(os.sched_getaffinity(0))},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "megabytes": {
            case: {name: round(size / 1e6) for name, size in one.items()} for case, one in sizes.items()
        },
        **found,
        "seconds": round(sum(one["seconds"] for one in full), 2),
        "peak_mb": max(one["peak_mb"] for one in full),
        "long_peak_mb": max(one["peak_mb"] for one in found["long"].values()),
    }
    print(json.dumps(said, indent=2))


if __name__ == "__main__":
    main()

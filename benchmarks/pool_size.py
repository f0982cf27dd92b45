"""`dcsft sample` with a model that costs nothing: how time and memory grow with the pool.

    python -m benchmarks.pool_size
    python -m benchmarks.pool_size --sizes 100 1000 10000 --side 56 --rounds 3
    python -m benchmarks.pool_size --task dcsft_digits_pool --sizes 100 1000

Every item of the JSONL pool has its own image, a PNG file; `dcsft_stub` gives all the same 8 responses. Each
size runs in a new process, see `processes`; figures are medians over the rounds. Prints one JSON object: the
seconds and the peak memory for each size, with and without pages of mapped files (`datasets` maps the pool,
and the kernel reclaims its pages at will), and the cost of a further item.
"""

import argparse
import contextlib
import json
import platform
import statistics
import tempfile
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.processes import measured

NAMES = ["goose", "swan", "heron", "robin", "wren"]
PACKAGES = ("dcsft-harness", "lmms-eval", "torch", "datasets", "pyarrow")


def make(folder: Path, count: int, side: int) -> Path:
    """A JSONL pool whose images are blots, all different."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        blots = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        blots.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        name = NAMES[number % len(NAMES)]
        rows.append({"problem": "Which bird is it?", "solution": name, "image": f"{number}.png"})
    path = folder / "pool.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def sampled(pool: list[str], count: int, batch: int) -> dict[str, float]:
    """Seconds and peak memory in MB of sampling the first items of a pool."""
    with tempfile.TemporaryDirectory() as folder:
        model = ["--model", "dcsft_stub", "--model-args", f"default=Goose.,batch_size={batch}"]
        output = ["--output", f"{folder}/rollouts"]
        return measured(["sample", *pool, "--limit", str(count), *model, *output])


def main() -> None:
    """Measures and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10000], help="items")
    parser.add_argument("--side", type=int, default=224, help="pixels of an image's sides")
    parser.add_argument("--task", help="an lmms-eval task instead of a JSONL pool")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    sizes = sorted(given.sizes)
    rounds = []
    with contextlib.ExitStack() as stack:
        pools = dict.fromkeys(sizes, ["--task", str(given.task)])
        if given.task is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for size in sizes:
                path = make(place / str(size), size, given.side)
                pools[size] = ["--data", str(path), "--scorer", "exact_word"]
        for _ in range(given.rounds):
            rounds.append({size: sampled(pools[size], size, given.batch_size) for size in sizes})
    names = ("seconds", "cpu_seconds", "peak_mb", "own_peak_mb")
    found = {
        size: {name: statistics.median(one[size][name] for one in rounds) for name in names} for size in sizes
    }
    said = {
        "settings": vars(given),
        "machine": {"processor": platform.machine(), "python": platform.python_version()},
        "versions": {name: version(name) for name in PACKAGES},
        "items": {
            size: {name: round(value, 2) for name, value in one.items()} for size, one in found.items()
        },
        "each_further_item": {
            f"{few} to {many}": {
                "milliseconds": round(
                    1e3 * (found[many]["seconds"] - found[few]["seconds"]) / (many - few), 3
                ),
                **{
                    name.replace("_mb", "_kb"): round(
                        1024 * (found[many][name] - found[few][name]) / (many - few), 1
                    )
                    for name in ("peak_mb", "own_peak_mb")
                },
            }
            for few, many in pairwise(sizes)
        },
    }
    print(json.dumps(said, indent=2))


if __name__ == "__main__":
    main()

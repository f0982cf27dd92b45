"""`dcsft leaderboard build` on a large board, and how long its page takes to open.

    python -m benchmarks.board                               # 500 rows, 20 tasks, 5,000 items each
    python -m benchmarks.board --rows 20 --responses own     # all responses differ

Scores folders are made beforehand and not timed. Rows are checkpoints of one run: an item that is hard for
one is hard for all, and rows differ by half a point. Half of the tasks have items in clusters of two, and one
response in 500 could not be scored. The board is built as by a user, in a new process (see `processes`), with
plots, the Parquet file of all items and the page; the page is opened from disk in headless Chromium, if there
is one. Prints one JSON object.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.processes import measured
from dcsft_harness import records
from dcsft_harness.artifacts import manifest

NAMES = ["goose", "swan", "heron", "robin", "wren", "kite", "crane", "finch", "eagle", "stork"]
LONG = "Its neck takes {0} of the picture, so that it looks more like a {1} than anything else. {1}"
BASELINE = "checkpoint 0"
OPENINGS = 5


def task_items(task: int, count: int) -> dict[str, list[Any]]:
    """The columns of a task's items; in every second task, items share clusters of two."""
    numbers = range(count)
    return {
        "task": [f"task_{task:02}"] * count,
        "item_id": [sha256(f"{task} {number}".encode()).hexdigest()[:32] for number in numbers],
        "doc_id": list(numbers),
        "answer": [NAMES[number % len(NAMES)] for number in numbers],
        "cluster": [f"picture {task} {number // 2}" if task % 2 else None for number in numbers],
    }


def answers(
    rng: np.random.Generator, gold: list[str], right: np.ndarray[Any, Any], own: bool
) -> dict[str, Any]:
    """A row's responses: one in 200 has no answer, one in 500 could not be scored."""
    count = len(gold)
    beside = rng.integers(0, len(NAMES), count)
    said = [g if good else NAMES[other] for g, good, other in zip(gold, right, beside, strict=True)]
    forms = rng.integers(0, 10**6, count) if own else [0] * count
    text = LONG if own else "<answer> {1} </answer>"
    silent = ~right & (rng.random(count) < 1 / 200)
    return {
        "score": pa.array(right.astype(float), mask=rng.random(count) < 1 / 500),
        "extracted": pa.array(said, mask=silent),
        "response": [text.format(number, word) for number, word in zip(forms, said, strict=True)],
        "n_tokens": rng.integers(4, 30, count),
        "finish_reason": ["stop"] * count,
    }


def make(home: Path, rows: int, tasks: int, items: int, own: bool) -> Iterator[Path]:
    """One scores folder per row."""
    known = [task_items(task, items) for task in range(tasks)]
    columns = {name: [value for one in known for value in one[name]] for name in known[0]}
    fixed = {name: pa.array(values) for name, values in columns.items()}
    shape = records.schema(records.Score)
    ease = np.random.default_rng(rows).uniform(-0.2, 1.2, tasks * items)
    for row in range(rows):
        rng = np.random.default_rng(row)
        right = rng.random(tasks * items) < ease + rng.normal(0, 0.005, tasks).repeat(items)
        values = {**fixed, **answers(rng, columns["answer"], right, own)}
        table = pa.table([pa.array(values[name]) if isinstance(values[name], list) else values[name]
                          for name in shape.names], schema=shape)  # fmt: skip
        folder = home / f"scores-{row}"
        with manifest.writing("scores", folder, {"name": f"checkpoint {row}"}) as draft:
            pq.write_table(table, draft.folder / "scores.parquet", compression="zstd")
            draft.notes |= {"pixels": None, "tasks": _task_notes(table, tasks, items)}
        yield folder


def _task_notes(table: pa.Table, tasks: int, items: int) -> dict[str, Any]:
    found = {}
    for task in range(tasks):
        part = table.slice(task * items, items)
        scores = part["score"].drop_null().to_numpy()
        silent = np.asarray(part["extracted"].is_null()) & np.asarray(part["score"].is_valid())
        found[f"task_{task:02}"] = {
            "version": 1,
            "distribution": "id" if task < tasks // 2 else "ood",
            "family": "classification",
            "n": len(scores),
            "accuracy": float(scores.mean()),
            "unanswered": int(silent.sum()),
            "unscored": items - len(scores),
            "prompt_sha256": "p",
            "generation": {"temperature": 0.0},
            "limit": None,
            "items_sha256": f"items of task {task}",
        }
    return found


def opened(page: Path) -> dict[str, float]:
    """Median seconds to open and use a page in headless Chromium, with a fresh browser each time.

    Returns:
        "opening" ends with the board's rows on the screen, "comparing" with the differences of two rows on
        all tasks, "an item" with an item's responses; empty where there is no Chromium or no Playwright.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None or find_spec("playwright") is None:
        return {}
    rounds = [_open(page, browser) for _ in range(OPENINGS)]
    return {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]}


def _open(page: Path, browser: str) -> dict[str, float]:
    from playwright.sync_api import sync_playwright

    ends = {
        "opening": ("", "tbody tr td[data-column]"),
        "comparing": ("#view=compare&a=checkpoint+1&b=checkpoint+2", "table.compare tbody strong"),
        "an item": ("#view=samples&task=task_03&a=checkpoint+1&b=checkpoint+2", "article.response pre"),
    }
    found = {}
    with sync_playwright() as playwright:
        for name, (address, sign) in ends.items():
            # Chromium's own sandbox does not run under root.
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            tab = chromium.new_page()
            start = time.perf_counter()
            tab.goto((page / "index.html").as_uri() + address, wait_until="commit")
            tab.wait_for_selector(sign)
            found[name] = time.perf_counter() - start
            chromium.close()
    return found


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """Makes the folders, builds their board, opens its page and prints the timings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--responses", choices=["short", "own"], default="short")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dcsft-bench-") as place:
        home = Path(place)
        own = given.responses == "own"
        folders = list(map(str, make(home, given.rows, given.tasks, given.items, own)))
        board = home / "board"
        took = measured(
            ["leaderboard", "build", *folders, "--baseline", BASELINE, "--output", str(board), "--strict"]
        )
        page = board / "page"
        sizes = {
            "scores": sum(_size(Path(folder)) for folder in folders),
            "items.parquet": (board / "items.parquet").stat().st_size,
            "page": _size(page),
        }
        found = {
            "settings": vars(given),
            "build": took,
            "megabytes": {name: round(size / 1e6, 1) for name, size in sizes.items()},
            "page files": sum(file.is_file() for file in page.rglob("*")),
            "page seconds": opened(page),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

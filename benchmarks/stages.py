"""Complete `sample` stages compared: stopping at the label, and syncing every batch to the disk.

    python -m benchmarks.stages --rounds 5

The first items of the digits suite's pools on the cold-started checkpoint, 32 at once. The time is what a
user waits for, including loading the model; it does not include importing packages.
"""

import argparse
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.measuring import Way, median, ratio, rounds
from dcsft_harness import stages
from dcsft_harness.artifacts import manifest

POOLS = {
    "classification": ("dcsft_digits_pool", "dcsft_digits_cold"),
    "grounding": ("dcsft_digits_ground_pool", "dcsft_digits_ground_cold"),
    "reasoning": ("dcsft_digits_reason_pool", "dcsft_digits_reason_cold"),
}
ITEMS = 256


def cold_start(folder: Path, data: str) -> str:
    """The checkpoint that the paper uses for labeling: the base after a short training."""
    stages.STAGES["train cold-start"](folder, model="digits", data=data, learning_rate=3e-4)
    return str(folder)


class Runs:
    """`dcsft sample` into temporary folders."""

    def __init__(self, home: Path, checkpoint: str, task: str) -> None:
        """A pool and the model that answers it."""
        self._home, self._number = home, 0
        self._options: dict[str, Any] = {
            "model": "dcsft_hf",
            "model_args": f"pretrained={checkpoint},batch_size=32",
            "task": task,
            "limit": ITEMS,
        }
        self.notes: dict[str, Any] = {}

    def __call__(self, name: str, **more: object) -> None:
        """One run."""
        self._number += 1
        folder = self._home / str(self._number)
        stages.STAGES["sample"](folder, **self._options, **more)
        self.notes[name] = manifest.read(folder, "rollouts").notes
        shutil.rmtree(folder)


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    """Context in which nothing waits for the disk."""
    with mock.patch.object(os, "fsync", lambda _: None):
        yield


def unsynced_run(run: Runs) -> None:
    """A run that writes its batches without syncing them."""
    with unsynced():
        run("unsynced")


def compare(home: Path, family: str, number: int) -> dict[str, Any]:
    """Ratios of one family's pool."""
    task, cold = POOLS[family]
    run = Runs(home, cold_start(home / f"cold-{family}", cold), task)
    ways: dict[str, Way] = {
        "all samples": lambda: run("all"),
        "stop when labelled": lambda: run("stopped", stop_when_labelled=True),
    }
    if family == "classification":
        ways["unsynced"] = lambda: unsynced_run(run)
    found = rounds(ways, number)
    full, stopped = run.notes["all"], run.notes["stopped"]
    result = {
        "task": task,
        "items": full["items"],
        "samples": full["responses"],
        "samples when stopped": stopped["responses"],
        "seconds": {name: round(median(found, name), 3) for name in ways},
        "stopped over full": round(ratio(found, "stop when labelled", "all samples"), 3),
    }
    if "unsynced" in found:
        result["synced over unsynced"] = round(ratio(found, "all samples", "unsynced"), 3)
    return result


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="dcsft-bench-"))
    try:
        print(json.dumps({family: compare(home, family, given.rounds) for family in POOLS}))
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()

"""Small artifacts and small disks for tests of the stages that read and write them."""

import contextlib
import os
import shutil
import subprocess

import pytest
from PIL import Image

from dcsft_harness import records, sampling
from dcsft_harness.artifacts import manifest

SCORES = {"easy": [1.0, 1.0], "medium": [1.0, 0.0], "hard": [0.0, 0.0], "unscored": [None, None]}


def picture(number=0, size=(8, 6)):
    """An RGB picture whose pixels tell its number."""
    return Image.new("RGB", size, (number % 256, number // 256, 77))


def item(number, task="pool"):
    prompt, answer = f"What is number {number}?", f"answer {number}"
    key = records.item_id(task, prompt, answer, [records.pixels(picture(number))])
    return records.Item(key, task, number, prompt, answer, f"It is {answer}")


def rollout(some, index, score=1.0):
    """Sample `index` of an item."""
    return records.Rollout(
        some.item_id, index, "said", score, "said", 2, "stop", 0, some.task, some.prompt, some.answer
    )


def rollouts(folder, kinds, backwards=False, with_items=False):
    """A rollouts artifact: one item for each entry of `kinds` (keys of SCORES, or lists of scores)."""
    items = [item(number) for number in range(len(kinds))]
    rows = [
        rollout(some, index, score)
        for some, kind in zip(items, kinds, strict=True)
        for index, score in enumerate(SCORES.get(kind, ()) if isinstance(kind, str) else kind)
    ]
    order = slice(None, None, -1 if backwards else 1)
    with manifest.writing("rollouts", folder, {"task": "pool", "samples": 2}) as draft:
        records.write_table(draft.folder / sampling.ROLLOUTS, records.Rollout, rows[order])
        if with_items:
            images = [[picture(some.doc_id)] for some in items]
            sampling.write_items(draft.folder / sampling.ITEMS, items[order], images[order])
    return folder


@contextlib.contextmanager
def small_disk(place, size="64k"):
    """A file system of its own; yields a function that remounts it, with options such as "ro"."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if shutil.which("mount") is None or os.geteuid() != 0 or subprocess.run(command).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield lambda options: subprocess.run(
            ["mount", "-o", f"remount,{options}", "tmpfs", str(place)], check=True
        )
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)

"""Accuracy by difficulty: what labels of evaluation items say of them, for every row alike."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dcsft_harness.artifacts import manifest
from dcsft_harness.curation.labels import LABELS
from dcsft_harness.errors import HarnessError
from dcsft_harness.records import DIFFICULTIES, Label, read_table

from .board import Row, Task
from .statistics import Estimate, accuracy


def read_labels(folders: Sequence[Path]) -> dict[str, str]:
    """Item id -> difficulty, from labels folders; items without one are absent.

    Raises:
        HarnessError: a folder holds no labels or has changed, or two give one item different ones.
    """
    found: dict[str, str] = {}
    for folder in folders:
        manifest.read(folder, "labels")
        manifest.refuse_changed(folder, LABELS)
        table = read_table(folder / LABELS, Label)
        for item, difficulty in zip(
            table["item_id"].to_pylist(), table["difficulty"].to_pylist(), strict=True
        ):
            if difficulty is not None and found.setdefault(item, difficulty) != difficulty:
                raise HarnessError(
                    f"{folder / LABELS}: item {item} is {difficulty}, and {found[item]} in other labels",
                    "Give the labels of one model",
                )
    return found


def by_difficulty(
    rows: Sequence[Row], tasks: Sequence[Task], labels: Mapping[str, str]
) -> dict[str, Estimate] | None:
    """The accuracy on the labelled items of each difficulty, over all tasks that a row has.

    Of several seeds each item counts with their mean score.

    Returns:
        Difficulty -> estimate, those that have items; None where no item is labelled.
    """
    shared = [task for task in tasks if all(task.name in row.cells for row in rows)]
    if not labels or not shared:
        return None
    kinds = np.array([labels.get(item, "") for task in shared for item in task.item_ids])
    codes = np.concatenate([task.clusters for task in shared])
    scores = np.mean([np.concatenate([row.cells[t.name].scores for t in shared]) for row in rows], axis=0)
    found = {kind: accuracy(scores[kinds == kind], codes[kinds == kind]) for kind in DIFFICULTIES}
    return {kind: estimate for kind, estimate in found.items() if estimate is not None} or None

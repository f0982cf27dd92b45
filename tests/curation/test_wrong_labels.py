"""How well suspects find wrong labels: some golds of the digits pool are replaced before curation.

`docs/design/curation.md` has the figures for other shares and seeds, measured with the same function.
"""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.data.digits import drawing, suite

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Found:
    """Counts of items.

    Attributes:
        items: of the pool.
        wrong: whose gold was replaced.
        hard: that were never solved.
        wrong_hard: both.
        suspects: as curation lists them.
        wrong_suspects: those whose gold was replaced.
    """

    items: int
    wrong: int
    hard: int
    wrong_hard: int
    suspects: int
    wrong_suspects: int


def corrupted(folder, share, seed):
    """Writes the digits pool as JSONL with wrong golds in a share of its rows; returns which ones."""
    rows, rng = suite.load("dcsft_digits_pool"), np.random.default_rng(seed)
    wrong = set(rng.permutation(len(rows))[: round(share * len(rows))].tolist())
    folder.mkdir(parents=True)
    with (folder / "pool.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            row["image"].save(folder / f"{number}.png")
            gold = json.loads(row["answer"])
            if number in wrong:
                gold = str(rng.choice([name for name in drawing.NAMES if name != gold]))
            line = {"problem": row["prompt"], "solution": gold, "image": f"{number}.png"}
            file.write(json.dumps(line) + "\n")
    return wrong


def measure(folder, share, seed, threshold):
    """Samples, labels and curates such a pool; counts what was found."""
    wrong = corrupted(folder / "pool", share, seed)
    rollouts, labels, curated = (str(folder / name) for name in ("rollouts", "labels", "curated"))
    data = ["--data", str(folder / "pool" / "pool.jsonl"), "--scorer", "exact_word"]
    arguments = ["--model-args", "pretrained=digits,batch_size=32"]
    assert main(["sample", *arguments, *data, "--output", rollouts]) == 0
    assert main(["label", rollouts, "--output", labels]) == 0
    keep = ["--keep", "easy,medium,hard", "--suspect", str(threshold)]
    assert main(["curate", labels, *keep, "--output", curated]) == 0
    text = (folder / "curated" / "suspects.jsonl").read_text(encoding="utf-8")
    suspects = {json.loads(line)["doc_id"] for line in text.splitlines()}
    hard = never_solved(folder)
    return Found(
        manifest.read(folder / "labels").notes["items"],
        len(wrong),
        len(hard),
        len(hard & wrong),
        len(suspects),
        len(suspects & wrong),
    )


def never_solved(folder):
    """The hard documents."""
    import pyarrow.parquet as pq
    from datasets import load_from_disk

    items = load_from_disk(str(folder / "rollouts" / "items")).remove_columns("images")
    places = dict(zip(items["item_id"], items["doc_id"], strict=True))
    labels = pq.read_table(folder / "labels" / "labels.parquet").to_pylist()
    return {places[row["item_id"]] for row in labels if row["difficulty"] == "hard"}


def test_suspects_find_half_of_the_wrong_labels_more_precisely_than_hard_items_do(tmp_path):
    found = measure(tmp_path, share=0.1, seed=0, threshold=0.75)
    assert found.wrong == 80
    recall, precision = found.wrong_suspects / found.wrong, found.wrong_suspects / found.suspects
    assert recall > 0.4  # 0.54 when this was written; 0.59 and 0.62 for seeds 1 and 2
    assert precision > 0.45  # 0.57; 0.57 and 0.61
    assert precision > found.wrong_hard / found.hard + 0.05  # 0.42 of the hard items
    right = found.items - found.wrong
    assert (found.suspects - found.wrong_suspects) / right < 0.1  # false alarms: 0.04

"""The embedded suite: disjoint, deterministic, and scored right by its own scorers."""

import itertools
import json

import numpy as np
import pytest

from dcsft_harness.digits import splits, suite
from dcsft_harness.tasks.verdicts import judge

SCORER = {"ground": "box_iou", "reason": "choice"}


def rows(name, count=30):
    return list(itertools.islice(suite.SETS[name](name), count))


def test_no_real_digit_is_in_two_splits_and_all_are_in_one():
    ids = [splits.split(name).ids for name in splits.SIZES]
    assert sorted(np.concatenate(ids).tolist()) == list(range(1797))
    assert set(splits.adversarial().ids) <= set(splits.split("adversarial").ids)


@pytest.mark.parametrize("name", list(suite.SETS))
def test_a_set_is_drawn_the_same_twice_and_its_targets_are_judged_right(name):
    scorer = next((value for part, value in SCORER.items() if part in name), "exact_word")
    for first, second in zip(rows(name), rows(name), strict=True):
        assert first.pop("image").tobytes() == second.pop("image").tobytes()
        assert first == second
        assert judge(scorer, first, first["target"]).score == 1.0, first


@pytest.mark.parametrize(
    "name", ["dcsft_digits_ground", "dcsft_digits_ground_l4", "dcsft_digits_ground_lisa"]
)
def test_boxes_lie_inside_their_image(name):
    for row in rows(name, 100):
        x1, y1, x2, y2 = json.loads(row["answer"])
        assert 0 <= x1 < x2 <= row["width"]
        assert 0 <= y1 < y2 <= row["height"]

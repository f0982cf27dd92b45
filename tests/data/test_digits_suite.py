"""The embedded suite: disjoint splits, reproducible sets, and targets that its own scorers accept."""

import collections
import itertools
import json
import os

import numpy as np
import pytest

from dcsft_harness import environment
from dcsft_harness.data.digits import curriculum, drawing, suite
from dcsft_harness.lmms.tasks import listing
from dcsft_harness.tasks import path
from dcsft_harness.tasks.verdicts import judge
from tests.fixtures import forked

SCORER = {"ground": "box_iou", "reason": "math"}


def rows(name, count=30):
    return list(itertools.islice(suite.SETS[name](name), count))


def test_every_real_digit_is_in_exactly_one_split():
    ids = [drawing.split(name).ids for name in drawing.SIZES]
    assert sorted(np.concatenate(ids).tolist()) == list(range(1797))
    assert set(drawing.adversarial().ids) <= set(drawing.split("adversarial").ids)


@pytest.mark.parametrize("name", list(suite.SETS))
@pytest.mark.usefixtures("pixels")
def test_a_set_is_reproducible_and_its_targets_are_scored_right(name):
    scorer = next((value for part, value in SCORER.items() if part in name), "exact_word")
    for first, second in zip(rows(name), rows(name), strict=True):
        assert first.pop("image").tobytes() == second.pop("image").tobytes()
        assert first == second
        assert judge(scorer, first, first["target"]).score == 1.0, first


@pytest.mark.parametrize(
    "name", ["dcsft_digits_ground", "dcsft_digits_ground_l4", "dcsft_digits_ground_lisa"]
)
def test_boxes_lie_inside_the_image(name):
    for row in rows(name, 100):
        x1, y1, x2, y2 = json.loads(row["answer"])
        assert 0 <= x1 < x2 <= row["width"]
        assert 0 <= y1 < y2 <= row["height"]


def test_a_scene_question_has_one_answer_and_all_kinds_occur():
    digits, rng = drawing.split("pretrain"), np.random.Generator(np.random.PCG64(5))
    asked = collections.Counter()
    for _ in range(300):
        scene = drawing.draw_scene(digits, rng, int(rng.integers(1, 4)))
        words, answer = drawing.question(scene, rng)
        kind, _, subject = words.rstrip("?").partition(" is ")
        asked[kind] += 1
        named = [
            thing
            for thing in scene.things
            if thing.color in subject.split() or drawing.NAMES[thing.value] in subject.split()
        ]
        answers = {
            "Which digit": [drawing.NAMES[thing.value] for thing in scene.things],
            "What colour": [thing.color for thing in scene.things],
        }.get(kind)
        if answers is not None:
            assert answers.count(answer) == 1
        if named and answers is not None:
            (thing,) = named
            assert answer in (drawing.NAMES[thing.value], thing.color)
        if kind == "Where":
            row, column = answer.split()
            (thing,) = named
            assert ("top", "middle", "bottom").index(row) == thing.middle[1] // 28
            assert ("left", "centre", "right").index(column) == thing.middle[0] // 28
    assert min(asked[kind] for kind in ("Which digit", "What colour", "Where")) > 50


def test_the_curriculum_starts_with_single_digits_and_ends_without_them():
    digits, rng = drawing.split("pretrain"), np.random.Generator(np.random.PCG64(6))
    early, late = (curriculum.batch(digits, rng, progress, 200) for progress in (0.0, 1.0))
    assert {one.family for one in early} == {"naming", "scene", "ground"}
    assert {one.family for one in late} == set(curriculum.FAMILIES)
    assert curriculum.PHASES[-1].until == 1
    for phase in curriculum.PHASES:
        assert sum(phase.mix) == pytest.approx(1)


COUNTS = {
    "dcsft_digits": 300,
    "dcsft_digits_r": 300,
    "dcsft_digits_a": 320,
    "dcsft_digits_x3": 900,
    "dcsft_digits_r_x3": 900,
    "dcsft_digits_a_x12": 960,
    "dcsft_digits_pool": 800,
    "dcsft_digits_pool_noisy": 800,
    "dcsft_digits_pool_large": 4000,
    "dcsft_digits_pool_large_noisy": 4000,
    "dcsft_digits_cold": 400,
    "dcsft_digits_ground": 300,
    "dcsft_digits_ground_l4": 300,
    "dcsft_digits_ground_lisa": 300,
    "dcsft_digits_ground_x3": 900,
    "dcsft_digits_ground_l4_x3": 900,
    "dcsft_digits_ground_lisa_x3": 900,
    "dcsft_digits_ground_pool": 800,
    "dcsft_digits_ground_cold": 400,
    "dcsft_digits_reason": 300,
    "dcsft_digits_reason_r": 300,
    "dcsft_digits_reason_x3": 900,
    "dcsft_digits_reason_r_x3": 900,
    "dcsft_digits_reason_pool": 800,
    "dcsft_digits_reason_cold": 400,
}

LOADED = ("dcsft_digits", "dcsft_digits_pool", "dcsft_digits_cold", "dcsft_digits_ground")
"""Sets that other fast tests draw too."""


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param(name, count, marks=() if name in LOADED else pytest.mark.slow)
        for name, count in COUNTS.items()
    ],
)
def test_every_set_has_its_size(name, count):
    assert len(suite.load(name)) == count


def test_every_set_belongs_to_a_task():
    tasks = {row["task"] for row in listing() if row["task"].startswith("dcsft_digits")}
    assert tasks == set(suite.SETS) == set(COUNTS)


def test_named_sets_only_hold_digits_of_their_split():
    # A real digit is identified by its place in scikit-learn's file, which is the cluster.
    split_of = {
        "dcsft_digits": "eval",
        "dcsft_digits_pool_noisy": "pool",
        "dcsft_digits_r": "eval",
        "dcsft_digits_pool": "pool",
        "dcsft_digits_cold": "cold",
        "dcsft_digits_a": "adversarial",
    }
    for name, split in split_of.items():
        assert set(map(int, suite.load(name)["cluster"])) <= set(drawing.split(split).ids.tolist()), name


@pytest.mark.parametrize("family", ["ground", "reason"])
def test_composed_sets_only_draw_digits_of_their_split(monkeypatch, family):
    drawn = {}
    if family == "ground":
        place, original = "dcsft_harness.data.digits.drawing.draw_scene", drawing.draw_scene
    else:
        place, original = "dcsft_harness.data.digits.drawing.draw_sum", drawing.draw_sum

    def watched(digits, rng, *more):
        result = original(digits, rng, *more)
        drawn.setdefault(name, set()).update(result.ids)
        return result

    monkeypatch.setattr(place, watched)
    for name in (name for name in suite.SETS if f"_{family}" in name):
        rows(name, 60)
        split = next((part for part in ("pool", "cold") if name.endswith(part)), "eval")
        assert drawn[name] <= set(drawing.split(split).ids.tolist()), name


POOLS = ("pool", "pool_large", "pool_noisy", "pool_large_noisy")


def test_the_tasks_of_the_pools_differ_in_their_set_only():
    small, *others = (
        (path() / "digits" / f"digits_{name}.yaml").read_text().partition("\n")[2] for name in POOLS
    )
    for name, other in zip(POOLS[1:], others, strict=True):
        assert small.replace("dcsft_digits_pool", f"dcsft_digits_{name}") == other


@pytest.mark.slow
def test_the_large_pool_redraws_the_digits_of_the_pool_ten_times_each():
    small, large = suite.load("dcsft_digits_pool"), suite.load("dcsft_digits_pool_large")
    assert len(large) == 4000
    assert set(collections.Counter(large["cluster"]).values()) == {10}
    assert set(large["cluster"]) == set(small["cluster"])
    pictures = [{image.tobytes() for image in rows["image"]} for rows in (small, large)]
    assert len(pictures[1]) == 4000 and not pictures[0] & pictures[1]


def test_renditions_show_the_same_digits_in_other_styles():
    plain, renditions = suite.load("dcsft_digits"), suite.load("dcsft_digits_r")
    assert plain["cluster"] == renditions["cluster"]
    assert plain["answer"] == renditions["answer"]
    assert set(plain["kind"]) == {"plain"} and set(renditions["kind"]) == set(drawing.STYLES)


def drawn(name, monkeypatch):
    """A set's rows; each image is replaced by the arguments that it would be drawn from."""
    with monkeypatch.context() as patch:
        for kind in ("plain", "rendition"):
            patch.setattr(drawing, kind, lambda digit, rng, *more: drawing.Image.new("RGB", (1, 1)))
        return list(suite.SETS[name](name))


@pytest.mark.parametrize(
    ("name", "each", "digits"), [("dcsft_digits_x3", 3, 300), ("dcsft_digits_r_x3", 3, 300)]
)
def test_larger_sets_draw_every_digit_equally_often(name, each, digits, monkeypatch):
    rows = drawn(name, monkeypatch)
    counts = collections.Counter(row["cluster"] for row in rows)
    assert len(rows) == each * digits and set(counts.values()) == {each} and len(counts) == digits


def test_drawings_of_a_digit_have_different_styles(monkeypatch):
    rows = drawn("dcsft_digits_r_x3", monkeypatch)
    styles: dict[str, list[str]] = {}
    for row in rows:
        styles.setdefault(row["cluster"], []).append(row["kind"])
    assert all(len(set(some)) == 3 for some in styles.values())
    counts = collections.Counter(row["kind"] for row in rows)
    assert set(counts) == set(drawing.STYLES) and set(counts.values()) == {225}
    small = [row["kind"] for row in drawn("dcsft_digits_r", monkeypatch)]
    assert small == [list(drawing.STYLES)[number % 4] for number in range(300)]


@pytest.mark.parametrize(("clean", "wrong"), [("dcsft_digits_pool", 48), ("dcsft_digits_pool_large", 240)])
def test_a_noisy_pool_is_the_clean_one_with_some_labels_replaced(clean, wrong, monkeypatch):
    right, noisy = (drawn(name, monkeypatch) for name in (clean, f"{clean}_noisy"))
    listed = suite.replaced(clean)
    assert listed == suite.replaced(f"{clean}_noisy") and len(listed) == wrong
    confused = drawing.next_likeliest(drawing.split("pool"))
    for number, (a, b) in enumerate(zip(right, noisy, strict=True)):
        assert b["right"] == a["answer"] and json.loads(b["answer"]) == b["target"]
        assert (b["answer"] != a["answer"]) == (number in listed)
        if number in listed:
            assert b["target"] == drawing.NAMES[confused[number % 400]]
        same = {name: a[name] for name in a if name not in ("answer", "target", "image")}
        assert same == {name: b[name] for name in same}


def test_a_noisy_pool_has_the_images_of_the_clean_one():
    for a, b in zip(rows("dcsft_digits_pool"), rows("dcsft_digits_pool_noisy"), strict=True):
        assert a["image"].tobytes() == b["image"].tobytes()


def test_the_next_likeliest_class_is_never_right_and_often_looks_alike():
    digits = drawing.split("pool")
    other = drawing.next_likeliest(digits)
    assert (other != digits.values).all()
    pairs = collections.Counter(zip(digits.values.tolist(), other.tolist(), strict=True))
    assert pairs.most_common(1)[0][1] > 3 * len(other) / 90  # by chance it would be one in 90


def test_adversarial_digits_are_plain_with_four_drawings_each():
    rows = suite.load("dcsft_digits_a")
    counts = collections.Counter(rows["cluster"])
    assert set(counts.values()) == {4}
    assert set(map(int, counts)) == set(drawing.adversarial().ids.tolist())
    assert set(rows["kind"]) == {"plain"}


@pytest.mark.parametrize("name", [name for name in suite.SETS if "_reason" in name])
def test_a_sum_is_answered_by_its_number_and_never_by_a_letter(name):
    for row in rows(name):
        gold = json.loads(row["answer"])
        question, *options = row["prompt"].split("\n")
        assert "option" not in question and row["choices"] == []
        texts = [option.removeprefix(f"{letter}. ") for letter, option in zip("ABCD", options, strict=True)]
        assert len(set(texts)) == 4 and gold in texts
        letter = "ABCD"[texts.index(gold)]
        assert row["target"].endswith(f" = {gold}")
        for response, score in {
            f"{row['target']} (A)": 1.0,  # the base's answer, whatever the letter
            f"{row['target']} (D)": 1.0,
            gold: 1.0,
            letter: 0.0,
            f"({letter})": 0.0,
            f"1 + 18 = 19 ({letter})": 0.0,
        }.items():
            assert judge("math", row, response).score == score, (row["prompt"], response)


@pytest.mark.slow
def test_two_caches_hold_identical_pixels(tmp_path, monkeypatch):
    one = suite.load("dcsft_digits_ground_cold")
    monkeypatch.setenv("DCSFT_CACHE", str(tmp_path))
    other = suite.load("dcsft_digits_ground_cold")
    assert [image.tobytes() for image in one["image"]] == [image.tobytes() for image in other["image"]]
    assert one.remove_columns("image").to_list() == other.remove_columns("image").to_list()


@pytest.mark.slow
def test_two_processes_can_draw_a_set_at_once(tmp_path):
    code = "from dcsft_harness.data.digits import suite; print(len(suite.load('dcsft_digits_pool')))"
    environment = os.environ | {"DCSFT_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    both = [forked.Popen(["-c", code], env=environment, stdout=-1, stderr=-1) for _ in range(2)]
    for one in both:
        said, errors = one.communicate(timeout=300)
        assert (one.returncode, said.strip()) == (0, "800"), errors
    (folder,) = tmp_path.iterdir()
    # Neither left half a set.
    assert {path.name for path in folder.iterdir()} <= {"dcsft_digits_pool", "dcsft_digits_pool.lock"}


def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setenv("DCSFT_CACHE", str(tmp_path))
    monkeypatch.setitem(suite.SETS, "dcsft_digits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        suite.load("dcsft_digits")
    # A lock file may stay; a folder would be taken for the set.
    assert [
        path for path in (environment.cache_root() / f"digits-v{suite.VERSION}").iterdir() if path.is_dir()
    ] == []

"""Boxes in the model's own space: what a score must not depend on, and where two IoU rules differ."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsft_harness import coordinates
from dcsft_harness.coordinates import BoxConvention
from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring.boxes import iou
from dcsft_harness.scoring.verdict import Response
from dcsft_harness.tasks.grounding.doc import mean_over_classes, process_box, process_ref_l4

SIDE = st.integers(56, 1400)


def document(size, box):
    return {
        "answer": json.dumps(box),
        "width": size[0],
        "height": size[1],
        "cluster": "image",
        "category": "o365_1",
        "box_width": float(box[2] - box[0]),
        "box_height": float(box[3] - box[1]),
    }


@st.composite
def boxes(draw, width, height):
    x1, x2 = sorted(draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    y1, y2 = sorted(draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    return [x1, y1, x2, y2]


@st.composite
def scenes(draw):
    """An image's size, a gold box and a predicted one, in pixels of the original image."""
    size = (draw(SIDE), draw(SIDE))
    return size, draw(boxes(*size)), draw(boxes(*size))


def scores(convention, size, gold, said):
    coordinates.declare(convention)
    metrics = process_ref_l4(document(size, gold), [f"[{', '.join(f'{value:.9f}' for value in said)}]"])
    return metrics["acc"]["score"], metrics["iou"]["score"], metrics["extracted"]


def close_to_a_threshold(value):
    return abs(value - 0.5) < 1e-6


@settings(max_examples=60, deadline=None)
@given(scenes(), st.integers(2, 5))
def test_scaling_the_image_and_the_limits_together_keeps_the_score(scene, times):
    """The resize of Qwen2.5-VL: all pixel values grow by one factor, so no share of an area changes."""
    size, gold, said = scene
    plain = BoxConvention("resized", factor=28, min_pixels=56 * 56, max_pixels=1280 * 28 * 28)
    scaled = BoxConvention(
        "resized",
        factor=28 * times,
        min_pixels=plain.min_pixels * times**2,
        max_pixels=plain.max_pixels * times**2,
    )
    try:
        resized = plain.resized_size(size)
    except ValueError:  # sides that differ too much for transformers
        return
    in_input = [said[at] * resized[at % 2] / size[at % 2] for at in range(4)]
    larger = tuple(side * times for side in size)
    assert scaled.resized_size(larger) == tuple(side * times for side in resized)
    one = scores(plain, size, gold, in_input)
    other = scores(scaled, larger, [value * times for value in gold], [value * times for value in in_input])
    assert one[1] == pytest.approx(other[1], abs=1e-6)
    assert one[0] == other[0] or close_to_a_threshold(one[1])
    # The logged box is in pixels of the original image, in whatever space its model wrote.
    assert one[2] == pytest.approx(said, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(scenes(), st.integers(2, 5))
def test_thousandths_do_not_depend_on_the_image_size(scene, times):
    size, gold, said = scene
    thousandths = [1000 * said[at] / size[at % 2] for at in range(4)]
    one = scores(BoxConvention("norm1000"), size, gold, thousandths)
    larger = tuple(side * times for side in size)
    other = scores(BoxConvention("norm1000"), larger, [value * times for value in gold], thousandths)
    assert one[1] == pytest.approx(other[1], abs=1e-6)
    assert one[1] == pytest.approx(iou(said, gold), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_the_space_is_declared_and_never_guessed_from_the_numbers(scene):
    """The same numbers in the three spaces are three boxes, each read as declared."""
    size, gold, said = scene
    resized = BoxConvention("resized", factor=28, min_pixels=56 * 56, max_pixels=500 * 28 * 28)
    try:
        input_size = resized.resized_size(size)
    except ValueError:
        return
    for convention, across in (
        (coordinates.PIXEL, (1, 1)),
        (resized, tuple(side / new for side, new in zip(size, input_size, strict=True))),
        (BoxConvention("norm1000"), tuple(side / 1000 for side in size)),
    ):
        box = [min(max(said[at] * across[at % 2], 0), size[at % 2]) for at in range(4)]
        assert scores(convention, size, gold, said)[2] == pytest.approx(box, abs=1e-6)


def official(documents, boxes):
    """Ref-L4's twelve metrics as its evaluator computes them, over all documents at once, in 32 bits."""
    golds = torch.tensor([json.loads(doc["answer"]) for doc in documents])
    said = torch.tensor(boxes)
    area = [(box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (golds, said)]
    sides = torch.min(golds[:, 2:], said[:, 2:]) - torch.max(golds[:, :2], said[:, :2])
    both = sides.clamp(min=0).prod(dim=1)
    found = (both / (area[0] + area[1] - both).clamp(min=1e-6)).numpy()
    sizes = np.array([math.sqrt(doc["box_width"] * doc["box_height"]) for doc in documents])
    parts = {"small": sizes < 128, "medium": (sizes >= 128) & (sizes <= 256), "large": sizes > 256}

    def share(values, threshold):
        return float((values > threshold).mean())

    def mean(values):
        return sum(share(values, percent / 100) for percent in range(50, 100, 5)) / 10

    metrics = {f"acc_{percent}": share(found, percent / 100) for percent in (50, 75, 90)}
    metrics["macc"] = mean(found)
    for name, inside in parts.items():
        if inside.any():
            metrics |= {f"acc_{name}": share(found[inside], 0.5), f"macc_{name}": mean(found[inside])}
    kinds = np.array([doc["category"] for doc in documents])
    metrics["acc_class"] = float(np.mean([share(found[kinds == kind], 0.5) for kind in set(kinds)]))
    metrics["macc_class"] = float(np.mean([mean(found[kinds == kind]) for kind in set(kinds)]))
    return metrics


@pytest.mark.usefixtures("pixels")
@pytest.mark.parametrize("seed", range(3))
def test_ref_l4_metrics_equal_its_evaluators_even_outside_the_image(seed):
    random = np.random.default_rng(seed)
    documents, said = [], []
    for number in range(400):
        size = [int(side) for side in random.integers(200, 1200, 2)]
        # Eighths, as a dataset's floats: some widths are at the limits of a size class.
        limits, others = random.choice([128.0, 256.0], 2), 8 + random.integers(0, 2400, 2) / 8
        width, height = map(float, limits if number % 5 == 0 else others)
        x, y = (random.integers(0, 8 * max(1, int(side - 60))) / 8 + 0.07 for side in size)
        box = [x, y, x + width, y + height]
        documents.append(
            document(size, box) | {"box_width": width, "box_height": height, "category": f"o365_{number % 7}"}
        )
        said.append(
            [
                round(float(value + shift), 2)
                for value, shift in zip(box, random.normal(0, 30, 4), strict=True)
            ]
        )
    scored = [process_ref_l4(doc, [str(box)]) for doc, box in zip(documents, said, strict=True)]
    wanted = official(documents, said)
    found = {}
    for name in wanted:
        if name.endswith("_class"):
            found[name] = mean_over_classes([one[name] for one in scored])
        else:
            values = [one[name]["score"] for one in scored if "score" in one[name]]
            found[name] = sum(values) / len(values)
    assert found == pytest.approx(wanted, abs=1e-9)
    ours = sum(one["clipped_acc_50"]["score"] for one in scored) / len(scored)
    assert abs(ours - wanted["acc_50"]) > 0.01  # these boxes leave their images


@pytest.mark.parametrize("space", ["pixel", "norm1000", "resized"])
def test_published_accuracies_read_a_box_like_their_scripts(space):
    """VLM-R1 converts the box to the image's pixels, DC-SFT uses the numbers as they are; neither clips."""
    convention = (
        BoxConvention(space, 28, 56 * 56, 200 * 28 * 28) if space == "resized" else BoxConvention(space)
    )
    coordinates.declare(convention)
    size, gold = (1000, 800), [800.0, 600.0, 1000.0, 800.0]
    width, height = {"pixel": size, "norm1000": (1000, 1000), "resized": (0, 0)}[space]
    if space == "resized":
        width, height = convention.resized_size(size)
    # Twice the gold's area, half of it below the image: IoU 0.5 unclipped, 1 clipped.
    box = [800.0, 600.0, 1000.0, 1000.0]
    said = [box[at] * (width, height)[at % 2] / size[at % 2] for at in range(4)]
    metrics = process_box(document(size, gold), [f"[{', '.join(f'{value:.9f}' for value in said)}]"])
    assert (metrics["acc"]["score"], metrics["iou"]["score"]) == (1.0, pytest.approx(1.0, abs=1e-6))
    assert metrics["vlm_r1_acc"]["score"] == float(papers_iou(box, gold) > 0.5) == 0.0
    assert metrics["dc_sft_acc"]["score"] == float(papers_iou(said, gold) >= 0.5)


def test_a_document_without_a_published_size_is_refused():
    doc = document((100, 100), [0, 0, 50, 50])
    del doc["box_width"]
    coordinates.declare(coordinates.PIXEL)
    with pytest.raises(HarnessError, match=r"no published size.*Prepare Ref-L4 again"):
        process_ref_l4(doc, ["[0, 0, 50, 50]"])


def papers_iou(a, b):
    """The rule of VLM-R1 and the paper: the intersection's far sides are one pixel in, then one is added."""
    left, top = max(a[0], b[0]), max(a[1], b[1])
    right, bottom = min(a[2] - 1, b[2] - 1), min(a[3] - 1, b[3] - 1)
    both = (right - left + 1) * (bottom - top + 1) if left < right and top < bottom else 0
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@settings(max_examples=300, deadline=None)
@given(scenes())
def test_the_papers_iou_only_differs_on_overlaps_of_one_pixel(scene):
    _, gold, said = scene
    shared = [min(gold[at + 2], said[at + 2]) - max(gold[at], said[at]) for at in (0, 1)]
    if min(shared) > 1:
        assert papers_iou(said, gold) == pytest.approx(iou(said, gold), abs=1e-12)
    else:
        # At most a line of one pixel, which does not count at all there.
        assert papers_iou(said, gold) == 0.0
        thin = max(0, min(shared)) * max(0, max(shared))
        assert iou(said, gold) <= thin / max(1, (gold[2] - gold[0]) * (gold[3] - gold[1])) + 1e-12


@settings(max_examples=100, deadline=None)
@given(scenes())
def test_accuracy_at_one_half_is_the_papers_for_boxes_of_two_pixels_and_more(scene):
    _, gold, said = scene
    if min(gold[2] - gold[0], gold[3] - gold[1]) < 4 or close_to_a_threshold(iou(said, gold)):
        return
    right = scores(coordinates.PIXEL, (2000, 2000), gold, said)[0]
    assert right == float(papers_iou(said, gold) >= 0.5)


@pytest.mark.usefixtures("pixels")
@pytest.mark.parametrize("said", ["It is at [10, 20, 110, 220], and next to", "[10, 20, 110, 220]"])
@pytest.mark.parametrize("truncated", [True, False])
def test_all_metrics_read_the_same_answer_of_a_truncated_response(said, truncated):
    metrics = process_ref_l4(document((640, 480), [10, 20, 110, 220]), [Response(said, truncated)])
    read = float(metrics["answered"])
    assert (metrics["acc"]["score"], metrics["extracted"] is not None) == (read, bool(read))
    assert read == 1.0 or truncated
    found = {name: one for name, one in metrics.items() if isinstance(one, dict) and "cluster" in one}
    assert {name: one.get("score", read) for name, one in found.items()} == dict.fromkeys(found, read)
    assert metrics["acc_class"]["value"] == metrics["macc_class"]["value"] == read


@pytest.mark.usefixtures("pixels")
def test_responses_scored_together_have_the_mean_of_their_metrics():
    doc = document((100, 100), [0, 0, 50, 50])
    said = ["[0, 0, 50, 50]", "nowhere", "[0, 0, 50, 40]", "[60, 60, 90, 90]"]
    together = process_ref_l4(doc, [said])
    alone = [process_ref_l4(doc, [text]) for text in said]
    for name in ("acc", "iou", "acc_50", "acc_75", "acc_90", "macc", "acc_small"):
        assert together[name]["score"] == pytest.approx(sum(one[name]["score"] for one in alone) / 4), name
    assert together["acc_class"]["value"] == pytest.approx(
        sum(one["acc_class"]["value"] for one in alone) / 4
    )


@pytest.mark.usefixtures("pixels")
def test_every_document_has_one_size_class():
    for side, name in ((127, "small"), (128, "medium"), (256, "medium"), (257, "large")):
        metrics = process_ref_l4(document((300, 300), [0, 0, side, side]), ["[0, 0, 1, 1]"])
        counted = {
            key
            for key, value in metrics.items()
            if key.startswith("acc_") and isinstance(value, dict) and "score" in value
        }
        assert counted == {"acc_50", "acc_75", "acc_90", f"acc_{name}"}

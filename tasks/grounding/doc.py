"""Functions of the grounding tasks' YAML files: our accuracy and IoU, and the published evaluations' metrics.

`acc` is `box_iou`: plain IoU >= 0.5 of the box cut to the image; `iou` is the mean of that IoU. The others
are the published rules, none of which cuts a box to the image:

- `vlm_r1_acc`: VLM-R1's evaluation, IoU > 0.5 with its inclusive intersection, boxes converted from the
  model's coordinates to the image's.
- `dc_sft_acc`: the paper's, IoU >= 0.5 with the same intersection, on the numbers as the model wrote them.
- Ref-L4's evaluator (Chen et al., 2024), in 32-bit numbers like the original: `acc_50`, `acc_75` and `acc_90`
  count IoU > t; `macc` is the mean over t of 0.50, 0.55 ... 0.95; small, medium and large depend on the
  square root of the box's published width times height (below 128 pixels, to 256, above); class level is the
  mean over categories of each one's own mean, with COCO's categories mapped to Objects365's. `clipped_acc_50`
  and related metrics are the same for boxes cut to the image.

All of them read a response's box with `parse_box`.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dcsft_harness import reading
from dcsft_harness.coordinates import declared
from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring.boxes import Box, iou, parse_box, to_pixels
from dcsft_harness.tasks.verdicts import Doc, part, process, responses

SIZES = {"small": (0.0, 128.0), "medium": (128.0, 256.0), "large": (256.0, math.inf)}
"""Name -> range of the square root of a gold box's area, in pixels; 256 itself is medium."""
THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
Overlap = Callable[[Sequence[float], Sequence[float]], float]


def process_box(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """Scores boxes with `box_iou` at 0.5, in the model's declared coordinates; see the module."""
    metrics = process("box_iou", doc, results)
    clipped = _overlaps(doc, results, iou)
    judged = _overlaps(doc, results, inclusive_iou, clip=False)
    raw = _overlaps(doc, results, inclusive_iou, clip=False, convert=False)
    return {
        **metrics,
        "iou": part(sum(clipped) / len(clipped), doc),
        "vlm_r1_acc": part(sum(overlap > 0.5 for overlap in judged) / len(judged), doc),
        "dc_sft_acc": part(sum(overlap >= 0.5 for overlap in raw) / len(raw), doc),
    }


def process_ref_l4(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """The same, and Ref-L4's metrics; an error if the document lacks the box's published size."""
    metrics = process_box(doc, results)
    share = _shares(_overlaps(doc, results, iou, clip=False))
    mean = sum(share.values()) / len(share)
    clipped = _shares(_overlaps(doc, results, iou))
    for name, threshold in (("acc_50", 0.5), ("acc_75", 0.75), ("acc_90", 0.9)):
        metrics[name] = part(share[threshold], doc)
        metrics[f"clipped_{name}"] = part(clipped[threshold], doc)
    metrics["macc"] = part(mean, doc)
    metrics["clipped_macc"] = part(sum(clipped.values()) / len(clipped), doc)
    size = _size(doc)
    for name in SIZES:
        metrics[f"acc_{name}"] = part(share[0.5], doc, name == size)
        metrics[f"macc_{name}"] = part(mean, doc, name == size)
    # Without a `score`: lmms-eval's standard errors are for a mean over documents, which these are not.
    metrics["acc_class"] = {"value": share[0.5], "class": doc["category"]}
    metrics["macc_class"] = {"value": mean, "class": doc["category"]}
    return metrics


def mean_over_classes(items: Sequence[dict[str, Any]]) -> float:
    """The mean over classes of the mean `value` of each one's documents, in [0, 1]."""
    values: dict[str, list[float]] = defaultdict(list)
    for item in items:
        values[item["class"]].append(item["value"])
    return float(sum(sum(some) / len(some) for some in values.values()) / len(values))


def inclusive_iou(box: Sequence[float], gold: Sequence[float]) -> float:
    """The overlap in VLM-R1 and the paper: one pixel is added to each side of the intersection.

    The lower right corners are first moved in by one, so that it is the plain IoU of boxes that share two
    pixels or more on each side.
    """
    left, top = max(box[0], gold[0]), max(box[1], gold[1])
    right, bottom = min(box[2], gold[2]) - 1, min(box[3], gold[3]) - 1
    both = (right - left + 1) * (bottom - top + 1) if left < right and top < bottom else 0.0
    union = (box[2] - box[0]) * (box[3] - box[1]) + (gold[2] - gold[0]) * (gold[3] - gold[1]) - both
    return both / union if union else 0.0


def _overlaps(
    doc: Doc, results: Sequence[Any], overlap: Overlap, clip: bool = True, convert: bool = True
) -> list[float]:
    """The overlap of each response's box with the gold; 0 if there is no box.

    `results` is lmms-eval's argument of `process_results`, and `overlap` a function of a box and the gold.
    With `clip`, boxes are cut to the image; with `convert`, they are converted from the model's coordinates.
    """
    gold = reading.from_json(doc["answer"])
    size, convention = (doc["width"], doc["height"]), declared()
    resized = convention.resized_size(size) if convention.space == "resized" else None

    def placed(stated: Box) -> Box:
        space = str(convention.space) if convert else "pixel"
        return to_pixels(stated, image_size=size, box_space=space, resized_size=resized, clip=clip)

    texts = responses(results)
    stated = [parse_box(text, truncated=bool(getattr(text, "truncated", False))) for text in texts]
    return [0.0 if box is None else overlap(placed(box), gold) for box in stated]


def _shares(overlaps: Sequence[float]) -> dict[float, float]:
    """Threshold -> share of the overlaps above it, compared in 32 bits like Ref-L4's evaluator."""
    found = np.asarray(overlaps, dtype=np.float32)
    return {threshold: float((found > np.float32(threshold)).mean()) for threshold in THRESHOLDS}


def _size(doc: Doc) -> str:
    if doc.get("box_width") is None or doc.get("box_height") is None:
        raise HarnessError("the document has no published size of its box", "Prepare Ref-L4 again")
    side = math.sqrt(doc["box_width"] * doc["box_height"])
    return "small" if side < SIZES["small"][1] else "medium" if side <= SIZES["medium"][1] else "large"

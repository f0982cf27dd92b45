"""What the grounding tasks' YAML files name: accuracy at IoU 0.5, mean IoU, and Ref-L4's own metrics.

Ref-L4 (Chen et al., 2024, evaluation script): an expression counts where IoU > t, for t of 0.5, 0.75 and
0.9; mAcc is the mean over t of 0.50, 0.55 ... 0.95; small, medium and large are by the square root of the
box's area (below 128 pixels, to 256, above); class level is the mean over categories of each one's own mean,
COCO's categories having been mapped to Objects365's. `acc` beside these is the paper's rule, IoU >= 0.5.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dcsft_harness.scoring.boxes import iou
from dcsft_harness.tasks.verdicts import Doc, part, process

SIZES = {"small": (0.0, 128.0), "medium": (128.0, 256.0), "large": (256.0, math.inf)}
"""Name -> range of the square root of a gold box's area, in pixels; 256 itself is medium."""
THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))


def process_box(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """Scores boxes with `box_iou` at 0.5, in the coordinates that the running model declares, and IoU."""
    metrics = process("box_iou", doc, results)
    overlaps = _overlaps(doc, metrics["extracted"])
    return {**metrics, "iou": part(sum(overlaps) / len(overlaps), doc)}


def process_ref_l4(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """The same, and Ref-L4's metrics."""
    metrics = process_box(doc, results)
    overlaps = _overlaps(doc, metrics["extracted"])
    share = {t: sum(overlap > t for overlap in overlaps) / len(overlaps) for t in THRESHOLDS}
    mean = sum(share.values()) / len(share)
    metrics["acc_50"] = part(share[0.5], doc)
    metrics["acc_75"] = part(share[0.75], doc)
    metrics["acc_90"] = part(share[0.9], doc)
    metrics["macc"] = part(mean, doc)
    size = _size(json.loads(doc["answer"]))
    for name in SIZES:
        metrics[f"acc_{name}"] = part(share[0.5], doc, name == size)
        metrics[f"macc_{name}"] = part(mean, doc, name == size)
    # Without a `score`: lmms-eval's standard errors are those of a mean over documents, which these are not.
    metrics["acc_class"] = {"value": share[0.5], "class": doc["category"]}
    metrics["macc_class"] = {"value": mean, "class": doc["category"]}
    return metrics


def mean_over_classes(items: Sequence[dict[str, Any]]) -> float:
    """The mean over classes of the mean `value` of each one's documents, in [0, 1]."""
    values: dict[str, list[float]] = defaultdict(list)
    for item in items:
        values[item["class"]].append(item["value"])
    return float(sum(sum(some) / len(some) for some in values.values()) / len(values))


def _overlaps(doc: Doc, extracted: Any) -> list[float]:  # noqa: ANN401 - a box, None, or a list of these
    """The IoU of each response's box with the gold, in [0, 1]; 0 where there is no box."""
    gold = json.loads(doc["answer"])
    several = isinstance(extracted, list) and not all(isinstance(value, float) for value in extracted)
    return [0.0 if box is None else iou(box, gold) for box in (extracted if several else [extracted])]


def _size(box: Sequence[float]) -> str:
    side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    return "small" if side < SIZES["small"][1] else "medium" if side <= SIZES["medium"][1] else "large"

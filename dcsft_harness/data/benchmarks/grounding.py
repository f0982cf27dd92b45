"""What every grounding benchmark shares: one expression, one box, in pixels of the upright image.

Published boxes are in pixels of the file as encoded: annotation tools and the published evaluations ignore
the EXIF orientation. Where a file has one, its boxes are turned with it.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from dcsft_harness.data.benchmarks.source import Opened, Row
from dcsft_harness.errors import HarnessError
from dcsft_harness.pictures import upright_box

PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}."
"""VLM-R1's, in whose form the paper has its grounding data (`problem` of rec_jsons_processed)."""

COLUMNS = {"width": "int64", "height": "int64"}
"""The image's, in pixels."""


def ask(expression: str) -> str:
    """The prompt for an expression.

    Raises:
        HarnessError: it has no words.
    """
    text = expression.strip().rstrip(".").rstrip() if isinstance(expression, str) else ""
    if not text:
        raise HarnessError(f"the expression {expression!r} has no words", "Mend the row or leave it out")
    return PROMPT.format(text)


def box_row(
    opened: Opened,
    name: str,
    read: Callable[[], bytes],
    prompt: str,
    box: Sequence[float],
    size: tuple[int, int] | None = None,
) -> Row:
    """The row that asks for a box.

    Args:
        opened: takes the image.
        name: the image's, unique in the set; rows that share it are one cluster.
        read: gives its bytes.
        prompt: what is asked.
        box: the gold [x1, y1, x2, y2], pixels of the image as encoded.
        size: (width, height) that the annotation gives the image; None where it gives none. Where only the
            upright image has this size, the box is in its pixels.

    Raises:
        HarnessError: the box has no area or does not lie in the image, or the image has another size.
    """
    picture = opened.pictures.add(name, read)
    width, height = picture.width, picture.height
    encoded = (height, width) if picture.orientation in (5, 6, 7, 8) else (width, height)
    if size is None or tuple(size) == encoded:
        box = upright_box(box, picture.orientation, (width, height))
    elif tuple(size) != (width, height):
        raise HarnessError(
            f"the image {name} has {width} x {height} pixels, and its annotation says {size[0]} x {size[1]}",
            "The box would not fit: fetch the original image, not a resized or rotated one",
        )
    _refuse_box(box, width, height)
    return {
        "prompt": prompt,
        "answer": json.dumps([float(value) for value in box]),
        "target": f"[{', '.join(f'{round(float(value), 2):g}' for value in box)}]",
        "cluster": name,
        "images": [picture.index],
        "width": width,
        "height": height,
    }


def _refuse_box(box: Sequence[float], width: int, height: int) -> None:
    """Refuses what is no box of the image: corners in another order, no area, most of it outside."""
    x1, y1, x2, y2 = box
    if not (x1 < x2 and y1 < y2):
        raise HarnessError(
            f"the box {list(box)} has no area, or a negative one", "Mend the row: x1 < x2 and y1 < y2"
        )
    inside = max(0.0, min(x2, width) - max(x1, 0)) * max(0.0, min(y2, height) - max(y1, 0))
    # Published boxes leave their image by a pixel or two; a box of another space leaves it by half.
    if inside < 0.5 * (x2 - x1) * (y2 - y1):
        raise HarnessError(
            f"most of the box {list(box)} is outside its image of {width} x {height} pixels",
            "Boxes are in pixels of the original image",
        )


def four(value: Any, name: str) -> list[float]:  # noqa: ANN401 - what a file says
    """Four finite numbers.

    Raises:
        HarnessError: it is something else; names the column.
    """
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 4 or not all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers
    ):
        raise HarnessError(f"{name} is {str(value)[:80]!r}, not four numbers", "Mend the row or leave it out")
    return [float(n) for n in numbers]


def from_xywh(box: Sequence[float]) -> list[float]:
    """[x, y, width, height] as [x1, y1, x2, y2]."""
    x, y, width, height = box
    return [x, y, x + width, y + height]

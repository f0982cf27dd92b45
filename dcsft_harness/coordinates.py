"""Box coordinates: declared by the model, read by grounding tasks.

Qwen2.5-VL answers in pixels of the image after its processor resized it; Qwen2-VL, Qwen3-VL and InternVL
answer in thousandths of width and height. A scorer that assumes the wrong space is off by the resize factor,
without any error. So the model declares its convention when it starts to generate, and tasks, which lmms-eval
scores in threads of the same process, read it. It also declares when it is opened, because lmms-eval's
response cache may leave nothing to generate.
"""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from dcsft_harness import reading
from dcsft_harness.errors import HarnessError, cut

BoxSpace = Literal["pixel", "resized", "norm1000"]

VARIABLE = "DCSFT_BOX_SPACE"
"""Environment variable for families that are not listed here, and for models that declare nothing, such as
lmms-eval's own: "pixel" or "norm1000"."""

SPACE_FILE = "box_space.json"
"""File in a run's checkpoint that records the coordinates of its training."""

_MEANS = "It is pixel (of the original image) or norm1000 (thousandths of width and height)"
_NORM1000 = ("qwen2_vl", "qwen3_vl", "qwen3_5", "internvl")
_RESIZED = ("qwen2_5_vl",)


@dataclass(frozen=True)
class BoxConvention:
    """The coordinates of a model's boxes, and the resize that its images went through."""

    # "pixel" (original image), "resized" (after the processor's resize) or "norm1000" (thousandths of width
    # and height); None if unknown
    space: BoxSpace | None
    # pixels that both sides of a resized image are multiples of; None if the processor does not resize by
    # pixel budget
    factor: int | None = None
    min_pixels: int | None = None  # least area of a resized image, in pixels
    max_pixels: int | None = None  # largest area of a resized image, in pixels

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The `(width, height)` of an image of `size` (width, height) after the resize.

        None if the processor does not resize by pixel budget. The arithmetic is transformers' own, with the
        model's limits: a ValueError if the sides differ by more than a factor of 200.
        """
        if self.factor is None or self.min_pixels is None or self.max_pixels is None:
            return None
        # Imported here: tasks import this module, and transformers' image code imports torch.
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        width, height = size
        new_height, new_width = smart_resize(height, width, self.factor, self.min_pixels, self.max_pixels)
        return int(new_width), int(new_height)


PIXEL = BoxConvention("pixel")
"""Boxes in pixels of the original image."""

_current: BoxConvention | None = None


def box_space(model_type: str) -> BoxSpace | None:
    """The box coordinates that a transformers model type was trained on.

    For a family that is not listed, the value of `$DCSFT_BOX_SPACE`, or None; another value is an error.
    """
    if model_type.startswith(_RESIZED):
        return "resized"
    return "norm1000" if model_type.startswith(_NORM1000) else _given()


def _given() -> BoxSpace | None:
    given = os.environ.get(VARIABLE)
    if given in ("pixel", "norm1000"):
        return cast(BoxSpace, given)
    if given:
        raise HarnessError(f"{VARIABLE} is {given!r}, which is not a coordinate space", _MEANS)
    return None


def taught(*folders: str | Path | None) -> BoxSpace | None:
    """The coordinates of training, from the first of these folders that records them.

    They are artifacts or checkpoints of runs, by folder, or hub names, which record nothing.

    Raises:
        HarnessError: a newer version of this package wrote one of them, or a checkpoint's file is damaged.
    """
    from dcsft_harness.artifacts import manifest

    for folder in folders:
        space = None
        if folder is not None and (Path(folder) / manifest.NAME).is_file():
            manifest.refuse_newer(Path(folder))
            with contextlib.suppress(HarnessError):  # another package's file of that name
                space = manifest.read(Path(folder)).notes.get("box_space")
        elif folder is not None and (Path(folder) / SPACE_FILE).is_file():
            space = _kept(Path(folder) / SPACE_FILE)
        if space in get_args(BoxSpace):
            return cast(BoxSpace, space)
    return None


def _kept(path: Path) -> str:
    try:
        found = reading.json_file(path)["box_space"]
        if found not in get_args(BoxSpace):
            raise ValueError(f"box_space is {cut(repr(found), 60)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{path} cannot be read ({type(error).__name__}: {error})"
        raise HarnessError(problem, f"Copy it again. {_MEANS}, or resized") from error
    return str(found)


def record(folder: Path, space: BoxSpace | None) -> None:
    """Records the coordinates of training, if any, in a run's checkpoint, which has no manifest."""
    if space is not None:
        (folder / SPACE_FILE).write_text(json.dumps({"box_space": space}) + "\n", encoding="utf-8")


def declare(convention: BoxConvention | None) -> None:
    """Sets the convention for scoring in this process; None removes it."""
    global _current
    _current = convention


def declared() -> BoxConvention:
    """The convention of the model that was last opened or generated in this process.

    For a model that declares no coordinates, the value of `$DCSFT_BOX_SPACE`; neither is an error.
    """
    if _current is not None and _current.space is not None:
        return _current
    given = _given()
    if given is not None:
        return BoxConvention(given)
    raise HarnessError(
        "unknown box coordinate space for this model; a wrong guess would give wrong scores",
        f"Set {VARIABLE}, or pass box_space to dcsft_hf or dcsft_vllm. {_MEANS}",
    )

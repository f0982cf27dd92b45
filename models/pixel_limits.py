"""Pixel limits of image processors: set, and verified on processed images.

transformers keeps the least and the largest area of a resized image in `size`, under the names
`shortest_edge` and `longest_edge`. Older configurations keep them as `min_pixels` and `max_pixels`, beside
`size` or inside it. A processor's class decides which of these it uses; it ignores the others without an
error. So this module trusts none of them: it processes test images and compares the resulting sizes.
"""

import contextlib
import warnings
from typing import Any, NamedTuple

from PIL import Image
from transformers import AutoImageProcessor, BaseImageProcessor, ProcessorMixin
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from dcsft_harness.errors import HarnessError

_LARGEST = 1 << 21
"""Most pixels of a test image: 2 million take a tenth of a second."""

# What processors raise on an unsupported `size` or image.
_REFUSALS = (ValueError, TypeError, KeyError, AttributeError, LookupError, ZeroDivisionError, RuntimeError)


class PixelLimits(NamedTuple):
    """Least and largest area of a resized image, in pixels."""

    low: int
    high: int


class _Rule(NamedTuple):
    """How a processor resizes by area."""

    factor: int  # pixels that both sides of a resized image are multiples of
    frames: int  # how `size` counts an image's area: 1, or the frames of a video's patch


def limits_in_force(processor: ProcessorMixin) -> PixelLimits | None:
    """The limits that a processor resizes images by; None if it does not resize by area.

    Test images have up to `_LARGEST` pixels; a larger limit is read from the processor's settings.
    """
    images = processor.image_processor
    if (rule := _rule(images)) is None or (stated := _stated(images, rule)) is None:
        return None
    return stated if _obeys(images, rule, stated) else None


def set_limits(
    processor: ProcessorMixin, name: str, low: int | None, high: int | None, trust_remote_code: bool = False
) -> PixelLimits | None:
    """Sets pixel limits on a checkpoint's processor, whichever way its configuration states them.

    The processor's image processor is replaced. `low` and `high` are `min_pixels` and `max_pixels`; None
    keeps its own. Returns the limits in force, as measured on images; None if the processor does not resize
    by area.

    Raises:
        HarnessError: the processor lacks or ignores the requested limits, or they contradict those that it
            keeps.
    """
    images = processor.image_processor
    rule = _rule(images)
    stated = _stated(images, rule) if rule is not None else None
    asked = ", ".join(
        f"{key}={value}" for key, value in (("min_pixels", low), ("max_pixels", high)) if value is not None
    )
    if rule is None or stated is None:
        if asked:
            raise HarnessError(
                f"{asked}: the {type(images).__name__} of {name} has no pixel limits", "Leave them out"
            )
        return None
    wanted = PixelLimits(stated.low if low is None else low, stated.high if high is None else high)
    if wanted.low > wanted.high:
        raise HarnessError(
            f"the limits would be min_pixels={wanted.low} > max_pixels={wanted.high}",
            "Pass both, the smaller one first",
        )
    if asked or not _has_edges(images):
        processor.image_processor = AutoImageProcessor.from_pretrained(
            name, trust_remote_code=trust_remote_code, **_settings(images, rule, wanted)
        )
    if not asked:
        return limits_in_force(processor)
    if (found := _stated(processor.image_processor, rule)) != wanted or not _obeys(
        processor.image_processor, rule, wanted
    ):
        raise HarnessError(
            f"{asked}: the {type(images).__name__} of {name} resizes images as before"
            + (f", by min_pixels={found.low} and max_pixels={found.high}" if found else ""),
            "Set the limits in the checkpoint's preprocessor_config.json, and leave them out here",
        )
    return wanted


def call_size(processor: ProcessorMixin, name: str, trust_remote_code: bool = False) -> dict[str, int] | None:
    """The limits of `set_limits` as a call's `size`, for an engine that opens the processor itself.

    None where the processor has no limits, or those that the checkpoint states in a usable form.
    """
    images = processor.image_processor
    if (rule := _rule(images)) is None or (limits := _stated(images, rule)) is None:
        return None
    saved = AutoImageProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    same = _has_edges(saved) and _stated(saved, rule) == limits
    return None if same else _size(rule, limits)


def resizes_like_qwen(processor: ProcessorMixin) -> bool:
    """Whether `coordinates.BoxConvention.resized_size` also holds for narrow images."""
    images = processor.image_processor
    rule, limits = _rule(images), limits_in_force(processor)
    if rule is None or limits is None:
        return False
    narrow = (rule.factor * 4, rule.factor // 2)
    return _shown(images, narrow) == _expected(narrow, rule, limits)


def _rule(images: BaseImageProcessor) -> _Rule | None:
    """How `size` is read, tried on small images; None if it holds no areas."""
    patch, merge = getattr(images, "patch_size", None), getattr(images, "merge_size", None)
    if not isinstance(patch, int) or not isinstance(merge, int) or patch < 1 or merge < 1:
        return None
    factor = patch * merge
    limits = PixelLimits(6 * factor**2, 20 * factor**2)
    pictures = [(factor, factor), (3 * factor, 4 * factor), (9 * factor, 5 * factor)]
    for frames in dict.fromkeys((1, int(getattr(images, "temporal_patch_size", None) or 1))):
        rule = _Rule(factor, frames)
        given = {"size": _size(rule, limits)}
        if all(_shown(images, one, **given) == _expected(one, rule, limits) for one in pictures):
            return rule
    return None


def _size(rule: _Rule, limits: PixelLimits) -> dict[str, int]:
    """Limits in the form of transformers 5: two areas under the names of edges."""
    return {"shortest_edge": limits.low * rule.frames, "longest_edge": limits.high * rule.frames}


def _settings(images: BaseImageProcessor, rule: _Rule, limits: PixelLimits) -> dict[str, Any]:
    """Creates a processor from a configuration that may state other limits, in any form."""
    declared = getattr(getattr(images, "valid_kwargs", None), "__annotations__", {})
    own = {"min_pixels": limits.low, "max_pixels": limits.high} if "max_pixels" in declared else {}
    # Limits at the top level of a configuration win over `size`, and over those only the same names.
    return {"size": _size(rule, limits), **own}


def _has_edges(images: BaseImageProcessor) -> bool:
    size = getattr(images, "size", None)
    return bool(size is not None and size.shortest_edge and size.longest_edge)


def _stated(images: BaseImageProcessor, rule: _Rule) -> PixelLimits | None:
    """The limits in a processor's settings, or its class's defaults."""
    size, usual = getattr(images, "size", None), getattr(type(images), "size", None) or {}
    found = []
    for edge, pixels in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        value = getattr(size, edge, None) or getattr(size, pixels, None) or usual.get(edge)
        if value is None:
            return None
        found.append(int(value))
    return PixelLimits(-(-found[0] // rule.frames), found[1] // rule.frames)


def _obeys(images: BaseImageProcessor, rule: _Rule, limits: PixelLimits) -> bool:
    """Whether images above and below the limits get the right size from a plain call."""
    above = min(2 * limits.high, _LARGEST)
    below = max(limits.low // 2, rule.factor**2)
    pictures = [_shape(area, rule.factor) for area in (above, below)]
    return all(_shown(images, one) == _expected(one, rule, limits) for one in pictures)


def _shape(area: int, factor: int) -> tuple[int, int]:
    """(width, height) of an image of about 3:2 and at most that area, but no narrower than a factor."""
    height = max(factor, int((area / 1.5) ** 0.5))
    return max(factor, area // height), height


_SHOWN: dict[tuple[object, ...], tuple[int, int] | None] = {}
"""What `_shown` found: class, settings, image and arguments -> size. A training asks for each five times."""


def _shown(images: BaseImageProcessor, picture: tuple[int, int], **given: object) -> tuple[int, int] | None:
    """(width, height) of an image after the resize; None if the processor does not report it."""
    key = (type(images), repr(images.to_dict()), picture, repr(given))
    if key not in _SHOWN:
        _SHOWN[key] = None
        with warnings.catch_warnings(), contextlib.suppress(*_REFUSALS):
            warnings.simplefilter("ignore")  # about images that no user gave
            made = images(Image.new("RGB", picture), return_tensors="pt", **given)
            _, rows, columns = (int(side) for side in made["image_grid_thw"][0])
            _SHOWN[key] = columns * images.patch_size, rows * images.patch_size
    return _SHOWN[key]


def _expected(picture: tuple[int, int], rule: _Rule, limits: PixelLimits) -> tuple[int, int]:
    width, height = picture
    rows, columns = smart_resize(height, width, rule.factor, limits.low, limits.high)
    return int(columns), int(rows)

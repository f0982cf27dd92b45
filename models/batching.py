"""Batches of prompts with different lengths and image sizes, and prompt sizes in tokens.

The processor sees one prompt at a time, so features cannot depend on other prompts in the batch, and a row
can be repeated without knowing how a model lays images out. If joined features differ from what the processor
returns for all prompts at once (the call in `generate`'s documentation), the processor makes the batch.
"""

import contextlib
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, ProcessorMixin

from dcsft_harness.errors import HarnessError

from .chat_template import question, render
from .resources import out_of_memory
from .weights import error_line

_LOG = logging.getLogger(__name__)

Features = Mapping[str, Tensor]
"""A processor's output for one prompt, with a batch dimension of one (or images first)."""

Way = Literal["joined", "processed", "single"]
"""How to make a batch: join single prompts' features, process all prompts at once, or one prompt per
batch."""

# What processors raise on prompts that they cannot process, and tensors on mismatched shapes.
_REFUSALS = (ValueError, TypeError, LookupError, AttributeError, StopIteration, RuntimeError)


@dataclass(frozen=True)
class Prepared:
    """A prompt that is ready for generation."""

    name: str  # the task and document, for errors
    key: str  # the item's key, for its draws
    features: Features  # the processor's output for this prompt alone
    text: str = ""  # the rendered chat
    images: tuple[Image.Image, ...] = ()  # its images in order

    @property
    def tokens(self) -> int:
        """Tokens of the prompt, images included."""
        return int(self.features["input_ids"].shape[1])


def process(
    processor: ProcessorMixin, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]
) -> Features:
    """A processor's output for rendered chats, left-padded, without labels.

    If a template writes the first token itself, the tokenizer adds no second one. Every chat has images, or
    none has.

    Raises:
        ValueError: or another of `_REFUSALS`: the processor cannot process them.
    """
    given: dict[str, Any] = {"images": [list(some) for some in images]} if any(images) else {}
    if len(texts) > 1:
        given |= {"padding": True, "padding_side": "left"}
    bos = processor.tokenizer.bos_token
    if bos and texts[0].startswith(bos):
        given["add_special_tokens"] = False
    made = dict(processor(text=list(texts), return_tensors="pt", **given))
    # PaliGemma's processor adds labels to every prompt, from which the model would compute a loss.
    return {name: value for name, value in made.items() if name != "labels"}


def on_device(features: Features, model: PreTrainedModel) -> dict[str, Tensor]:
    """Features on a model's device, pixels in the model's dtype."""
    return {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
        for name, tensor in features.items()
    }


def content_key(text: str, images: Sequence[Image.Image]) -> str:
    """A hash of a rendered prompt and the pixels of its RGB images."""
    digest = hashlib.sha256(text.encode())
    for image in images:
        digest.update(f"\0{image.size}\0".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


class _Memory:
    """Features of single prompts by their content, up to a limit; the least recently used ones go first."""

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._processors: WeakKeyDictionary[ProcessorMixin, str] = WeakKeyDictionary()
        self._kept: OrderedDict[str, Features] = OrderedDict()

    def key(self, processor: ProcessorMixin, text: str, images: Sequence[Image.Image]) -> str:
        """A hash of everything that decides a prompt's features: settings, vocabulary, text and pixels."""
        settings = self._processors.get(processor)
        if settings is None:
            settings = json.dumps(processor.to_dict(), sort_keys=True, default=repr)
            settings += processor.tokenizer.backend_tokenizer.to_str()
            self._processors[processor] = settings = hashlib.sha256(settings.encode()).hexdigest()
        return content_key(f"{settings}\0{text}", images)

    def get(self, key: str) -> Features | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: str, features: Features) -> None:
        self._kept[key] = features
        self._size += _bytes(features)
        while self._size > self._limit:
            self._size -= _bytes(self._kept.popitem(last=False)[1])


def _bytes(features: Features) -> int:
    return sum(value.nbytes for value in features.values() if isinstance(value, Tensor))


_MEMORY: ContextVar[_Memory | None] = ContextVar("features of prompts", default=None)
REMEMBERED = 2**29
"""Bytes of features that `remembering` keeps."""


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Keeps features in memory during the block: a recipe scores many checkpoints on the same prompts."""
    before = _MEMORY.set(_Memory(REMEMBERED))
    try:
        yield
    finally:
        _MEMORY.reset(before)


def process_one(processor: ProcessorMixin, text: str, images: Sequence[Image.Image]) -> Features:
    """`process` of one prompt, from memory within `remembering`."""
    memory = _MEMORY.get()
    if memory is None:
        return process(processor, [text], [images])
    key = memory.key(processor, text, images)
    found = memory.get(key)
    if found is None:
        found = process(processor, [text], [images])
        memory.put(key, found)
    return dict(found)


@contextlib.contextmanager
def refusals(name: str) -> Iterator[None]:
    """Turns a processor's errors on an unsupported prompt into one that begins with the task and document."""
    try:
        yield
    except _REFUSALS as error:
        if out_of_memory(error):
            raise
        raise HarnessError(
            f"{name}: the processor refuses the prompt ({error_line(error)})",
            "Crop or pad the image, or leave the row out"
            if "aspect ratio" in str(error)
            else "Check that its images are plain and that its text holds no image tokens of its own",
        ) from error


class Batcher:
    """Makes batches for a model by the method that its processor was found to support.

    Attributes:
        way: the method; found by trying it on `trials`.
        trials: short chats with images of several sizes; empty if the processor takes none.
    """

    def __init__(self, processor: ProcessorMixin, pad_token: int) -> None:
        """Compares, on the trials, joined features with the processor's own batch; pads on the left."""
        self._processor, self._pad = processor, pad_token
        self.image_names: Collection[str] = processor.image_processor.model_input_names
        self.trials = self._prepared(_TRIALS)
        self.way: Way = "joined"
        pairs = self._prepared(_PAIRS)  # which some processors do not support
        if not self._joins(self.trials) or (pairs and not self._joins([*self.trials, *pairs])):
            self.way = "processed"
            _LOG.info(
                "%s: prompts are processed together, because features of single prompts cannot be joined",
                type(processor).__name__,
            )

    def separate(self, reason: str) -> None:
        """Switches to one prompt per batch, with a warning."""
        self.way = "single"
        _LOG.warning(
            "%s: prompts go through the model one by one, which is slower (%s).",
            type(self._processor).__name__,
            reason,
        )

    def batch(self, rows: Sequence[Prepared]) -> dict[str, Tensor]:
        """Prompts, with features of equal names, as one batch; a single one where `way` is "single"."""
        if len(rows) > 1 and self.way == "processed":
            return dict(process(self._processor, [row.text for row in rows], [row.images for row in rows]))
        assert len(rows) == 1 or self.way == "joined"
        return collate([row.features for row in rows], self._pad, self.image_names)

    def _joins(self, rows: Sequence[Prepared]) -> bool:
        """Whether joined features equal what the processor returns for all prompts at once."""
        if len(rows) < 2:
            return True
        try:
            joined = collate([row.features for row in rows], self._pad, self.image_names)
            whole = process(self._processor, [row.text for row in rows], [row.images for row in rows])
        except _REFUSALS:
            return False
        return joined.keys() == whole.keys() and all(_alike(joined[name], whole[name]) for name in whole)

    def _prepared(self, chats: Sequence[tuple[list[tuple[int, int]], str]]) -> list[Prepared]:
        """The chats that the processor accepts."""
        made = []
        for number, (sizes, text) in enumerate(chats):
            images = tuple(_noise(size, number) for size in sizes)
            try:
                asked = question(len(images), text)
                chat = render(self._processor, asked, f"trial {number}", add_generation_prompt=True)
                features = process(self._processor, [chat], [images])
            except (HarnessError, *_REFUSALS):
                continue
            made.append(Prepared(f"trial {number}", str(number), features, chat, images))
        return made


_TRIALS = (
    ([(64, 64)], "What is this?"),
    ([(120, 60)], "How many boxes are there? Count them one by one and write the number alone."),
    ([(60, 200)], "Is it left or right of the other one, and why is that so?"),
)
"""Image sides in pixels, and the question: they differ in tokens, tiles and patches, each of few tiles."""

_PAIRS = (([(48, 96), (120, 120)], "Which of the two is larger?"),)


def _noise(size: tuple[int, int], seed: int) -> Image.Image:
    """An image that no other one can be mistaken for."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether the features are equal, up to rounding of pixels."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.allclose(one, other, atol=1e-4) if one.is_floating_point() else torch.equal(one, other)


def follows_tokens(name: str, features: Features, image_names: Collection[str]) -> bool:
    """Whether a feature has one entry per prompt token, `(1, tokens, ...)`."""
    tokens = features["input_ids"].shape
    return name not in image_names and features[name].shape[:2] == tokens


def continued(
    features: Features, tokens: Sequence[int], image_names: Collection[str] = ()
) -> dict[str, Tensor]:
    """A prompt's features with text tokens after it; others per token repeat their last entry."""
    found = dict(features)
    for name, part in features.items():
        if follows_tokens(name, features, image_names):
            last = part[:, -1:].expand(1, len(tokens), *part.shape[2:])
            more = part.new_tensor([list(tokens)]) if name == "input_ids" else last
            found[name] = torch.cat([part, more], dim=1)
    return found


def collate(rows: Sequence[Features], pad_token: int, image_names: Collection[str]) -> dict[str, Tensor]:
    """One batch, token features padded on the left, everything else joined in order.

    Image features, of the names `image_names`, are joined along their first dimension: rows, images or
    patches, depending on the model family, but always consecutive by prompt. Where other dimensions differ
    (tiles of an image, sides of a tile) they are zero-padded at the end, as the processors themselves pad.
    The attention mask is 0 where a row has `pad_token`.
    """
    batch = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        if follows_tokens(name, rows[0], image_names):
            longest = max(part.shape[1] for part in parts)
            value = pad_token if name == "input_ids" else 0
            parts = [
                functional.pad(part, (0, 0) * (part.dim() - 2) + (longest - part.shape[1], 0), value=value)
                for part in parts
            ]
        batch[name] = torch.cat(_grow(parts))
    return batch


def _grow(parts: list[Tensor]) -> list[Tensor]:
    """Tensors padded with zeros at the end of every dimension but the first to one shape."""
    target = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    grown = []
    for part in parts:
        missing = [
            extra for want, have in zip(target, part.shape[1:], strict=True) for extra in (want - have, 0)
        ]
        # `pad` counts dimensions from the last one, with two numbers (before, after) for each.
        grown.append(functional.pad(part, missing[::-1]) if any(missing) else part)
    return grown


# Prompt length in tokens, images included, without processing the images.


def tokenize(processor: ProcessorMixin, text: str) -> list[int]:
    """Token ids of a rendered prompt, images as placeholders.

    A template that writes the first token itself must not get a second one from the tokenizer.
    """
    bos = processor.tokenizer.bos_token
    special = not (bos and text.startswith(bos))
    return list(processor.tokenizer(text, add_special_tokens=special)["input_ids"])


def count_tokens(processor: ProcessorMixin, text: str, tokens: list[int], images: list[Image.Image]) -> int:
    """Tokens of prompt and images together.

    `text` is the rendered prompt and `tokens` its token ids, with one placeholder per image.
    """
    if not images:
        return len(tokens)
    counted: Any = getattr(processor, "_get_num_multimodal_tokens", None)
    if counted is None:
        return int(process(processor, [text], [images])["input_ids"].shape[1])
    sizes = [(image.height, image.width) for image in images]
    return len(tokens) - len(images) + int(sum(counted(image_sizes=sizes)["num_image_tokens"]))

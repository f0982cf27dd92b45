"""Joins prompts of different lengths and image sizes into one batch for a model.

Each prompt goes through the processor alone, so its features cannot depend on its neighbours,
and a row can be repeated without knowing how a model lays images out.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Features = Mapping[str, Tensor]
"""What a processor made of one prompt, batch dimension of one (or images first) included."""


def follows_tokens(name: str, features: Features, image_names: Collection[str]) -> bool:
    """Whether a feature has one entry per prompt token, `(1, tokens, ...)`."""
    tokens = features["input_ids"].shape
    return name not in image_names and features[name].shape[:2] == tokens


def collate(rows: Sequence[Features], pad_token: int, image_names: Collection[str]) -> dict[str, Tensor]:
    """One batch, token features padded on the left, everything else joined in order.

    Image features are joined along their first dimension, which is rows, images or patches,
    whatever the model family uses: all of them are consecutive by prompt. Where their other
    dimensions differ (tiles of an image, sides of a tile) they grow by zeros at the end, as
    the processors themselves pad.

    Args:
        rows: features of one prompt each, with equal names.
        pad_token: token id on the left of short prompts; the attention mask is 0 there.
        image_names: names that the image processor produces.
    """
    batch = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        if follows_tokens(name, rows[0], image_names):
            longest = max(part.shape[1] for part in parts)
            value = pad_token if name == "input_ids" else 0
            parts = [_pad_left(part, longest - part.shape[1], value) for part in parts]
        batch[name] = torch.cat(_grow(parts))
    return batch


def _pad_left(part: Tensor, columns: int, value: int) -> Tensor:
    """`part` of shape (1, tokens, ...) with `columns` entries of `value` before its tokens."""
    padding = part.new_full((part.shape[0], columns, *part.shape[2:]), value)
    return torch.cat([padding, part], dim=1)


def _grow(parts: list[Tensor]) -> list[Tensor]:
    """Tensors padded with zeros at the end of every dimension but the first to one shape."""
    target = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    grown = []
    for part in parts:
        missing = [
            extra for want, have in zip(target, part.shape[1:], strict=True) for extra in (want - have, 0)
        ]
        # `pad` counts dimensions from the last one, two numbers (before, after) for each.
        grown.append(functional.pad(part, missing[::-1]) if any(missing) else part)
    return grown

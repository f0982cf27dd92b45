"""Faster vision towers: patch embeddings as matrix products, attention grouped by length."""

import inspect
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Patch embeddings as matrix products: a convolution whose stride is its kernel is one.


def embed_by_product(model: nn.Module) -> int:
    """Makes patch embeddings of whole patches run as matrix products, in place; returns how many.

    Vision towers that get `(patches, channels, frames, height, width)` write the embedding as a convolution
    with a single position. Its kernels are several times slower than the product and take a quarter of a
    small model's prefill. Weights stay as they are, and so do checkpoints and adapters; results differ by
    rounding.
    """
    changed = 0
    for module in model.modules():
        if type(module) is nn.Conv3d and _moves_over_nothing(module):
            module.forward = partial(_product, module)  # type: ignore[method-assign]
            changed += 1
    return changed


def _moves_over_nothing(convolution: nn.Conv3d) -> bool:
    return (
        convolution.kernel_size == convolution.stride
        and convolution.groups == 1
        and convolution.padding == (0, 0, 0)
        and convolution.dilation == (1, 1, 1)
    )


def _product(convolution: nn.Conv3d, patches: Tensor) -> Tensor:
    """Such a convolution: `(patches, channels, *kernel)` to `(patches, width, 1, 1, 1)`."""
    if tuple(patches.shape[2:]) != convolution.kernel_size:
        return nn.Conv3d.forward(convolution, patches)
    product = functional.linear(patches.flatten(1), convolution.weight.flatten(1), convolution.bias)
    return product[..., None, None, None]


# Attention within images and windows, one call for all of the same length.
#
# Vision towers that pack their images into one sequence attend within each image, and some within each window
# of an image. Without FlashAttention, transformers runs these segments one by one in every layer: for a
# thousand image tokens that is dozens of small calls per image and layer.

# Vision towers pass their segments on, instead of splitting by them, if the name contains "flash".
_NAME = "dcsft_flash_like_sdpa"


def attend_by_length(model: nn.Module) -> int:
    """Makes packed vision attention run on all segments of the same length at once; returns how many modules.

    Results differ from one call per segment by rounding. Towers whose attention is not `sdpa`, and modules
    without segment ends among their arguments, are left unchanged.
    """
    modules = [module for module in model.modules() if _takes_segments(module)]
    for module in modules:
        module.config._attn_implementation_internal = _NAME  # type: ignore[union-attr]
    if modules:
        ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
    return len(modules)


def _takes_segments(module: nn.Module) -> bool:
    config = getattr(module, "config", None)
    return (
        getattr(config, "_attn_implementation_internal", None) in ("sdpa", _NAME)
        and hasattr(module, "num_key_value_groups")
        and "cu_seqlens" in inspect.signature(module.forward).parameters
    )


# Segment ends -> positions of the segments of each length. All layers of a tower get the same tensors, and
# reading them waits for the device.
_POSITIONS: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _positions(ends: Tensor) -> list[Tensor | int]:
    """Segments by length, from `(segments + 1,)` ends that increase from 0.

    One length if all are equal; else int64 tensors of positions, `(segments of a length, length)`.
    """
    if ends not in _POSITIONS:
        known = ends.tolist()
        starts: dict[int, list[int]] = {}
        for start, end in zip(known[:-1], known[1:], strict=True):
            if end > start:
                starts.setdefault(end - start, []).append(start)
        _POSITIONS[ends] = (
            list(starts)
            if len(starts) == 1
            else [
                torch.tensor(first, device=ends.device)[:, None] + torch.arange(length, device=ends.device)
                for length, first in starts.items()
            ]
        )
    found: list[Tensor | int] = _POSITIONS[ends]
    return found


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    cu_seq_lens_q: Tensor,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention of every token to its own segment, called by the tower's own layers.

    `query`, `key` and `value` are `(1, heads, tokens, width)`; `cu_seq_lens_q`, `(segments + 1,)`, is where
    segments end. Segments are complete, so the mask is unused. Without `scaling` it is one over the root of
    the width. Returns `(1, tokens, heads, width)`, and no weights.
    """
    states = [one[0].transpose(0, 1) for one in (query, key, value)]  # (tokens, heads, width)
    positions = _positions(cu_seq_lens_q)
    if isinstance(positions[0], int):
        segments = [torch.unflatten(one, 0, (-1, positions[0])) for one in states]
        return _together(segments, scaling, dropout).flatten(0, 1)[None], None
    output = torch.empty_like(states[2])
    for indices in positions:
        attended = _together([one[indices] for one in states], scaling, dropout)
        output[indices] = attended
    return output[None], None


def _together(segments: list[Tensor], scaling: float | None, dropout: float) -> Tensor:
    """Attention within each of `(segments, length, heads, width)`."""
    query, key, value = (one.transpose(1, 2) for one in segments)
    attended = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling)
    return attended.transpose(1, 2)

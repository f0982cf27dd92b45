"""Prompts go through the model once; what they leave is kept per item."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class UnsuitedModelError(Exception):
    """Why a model cannot decode on shared prompts."""


@dataclass
class Prompts:
    """What the prompts of some items left, padded on the left to one length.

    Attributes:
        keys: per layer `(items, kv_heads, prompt, width)`; `values` likewise.
        values: see `keys`.
        logits: `(items, vocabulary)` for the first token.
        positions: the last prompt token's position, `(..., items, 1)` with as many axes in
            front as the model's position ids have.
        tokens: int64 `(items, prompt)`.
        attention_mask: int64 `(items, prompt)`, 0 at padding.
    """

    keys: list[Tensor]
    values: list[Tensor]
    logits: Tensor
    positions: Tensor
    tokens: Tensor
    attention_mask: Tensor

    def __len__(self) -> int:
        """How many items."""
        return len(self.tokens)

    @property
    def longest(self) -> int:
        """Tokens of a prompt, padding included."""
        return self.tokens.shape[1]

    def select(self, items: Tensor) -> "Prompts":
        """Copies of those of int64 `items`."""
        return Prompts(
            [keys.index_select(0, items) for keys in self.keys],
            [values.index_select(0, items) for values in self.values],
            self.logits[items],
            self.positions.index_select(-2, items),
            self.tokens[items],
            self.attention_mask[items],
        )


def joined(parts: Sequence[Prompts]) -> Prompts:
    """Several prompts as one, in order; the parts are empty afterwards."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.longest for part in parts)
    # Freed layer by layer: all of them would be there twice otherwise.
    keys = [_taken([part.keys for part in parts], at, longest) for at in range(len(parts[0].keys))]
    values = [_taken([part.values for part in parts], at, longest) for at in range(len(parts[0].values))]
    return Prompts(
        keys,
        values,
        torch.cat([part.logits for part in parts]),
        torch.cat([part.positions for part in parts], dim=-2),
        torch.cat([_padded(part.tokens, longest, -1) for part in parts]),
        torch.cat([_padded(part.attention_mask, longest, -1) for part in parts]),
    )


def _taken(states: Sequence[list[Tensor]], layer: int, longest: int) -> Tensor:
    """One layer's states of several prompts, which lose theirs."""
    found = torch.cat([_padded(one[layer], longest, -2) for one in states])
    for one in states:
        one[layer] = found[:0]
    return found


def _padded(part: Tensor, longest: int, axis: int) -> Tensor:
    """Zeros on the left, up to a length."""
    missing = longest - part.shape[axis]
    return functional.pad(part, (0, 0) * (-axis - 1) + (missing, 0)) if missing else part


@torch.inference_mode()
def prefill(model: PreTrainedModel, batch: dict[str, Tensor]) -> Prompts:
    """Runs vision tower and prompts once, prepared as `generate` prepares its first step.

    Args:
        model: a transformers model, in evaluation mode.
        batch: model inputs, left-padded, on the model's device.

    Raises:
        UnsuitedModelError: where a layer keeps something else than all keys and values.
    """
    features = dict(batch)
    tokens, mask = features.pop("input_ids"), features.pop("attention_mask")
    known = {**features, "input_ids": tokens, "attention_mask": mask}
    positions = model._prepare_position_ids_for_generation(tokens, known)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    inputs = model.prepare_inputs_for_generation(
        tokens,
        past_key_values=cache,
        # Without a mask attention takes its faster causal form.
        attention_mask=None if bool(mask.all()) else mask,
        position_ids=positions,
        is_first_iteration=True,
        use_cache=True,
        logits_to_keep=1,
        **features,
    )
    logits = model(**inputs, return_dict=True).logits[:, -1]
    for layer in cache.layers:
        if type(layer) is not DynamicLayer or not layer.is_initialized:
            raise UnsuitedModelError(f"it caches by {type(layer).__name__}")
    last = positions[..., -1:]
    return Prompts(
        [layer.keys for layer in cache.layers],
        [layer.values for layer in cache.layers],
        logits,
        last.expand(*last.shape[:-2], len(tokens), 1),
        tokens,
        mask,
    )

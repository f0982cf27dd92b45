"""A key-value cache whose prompts are kept once per item, however many rows continue them.

Copying a prompt's keys and values for each of G samples costs G times its memory, and every
decoding step reads all copies. Here a step attends in two parts under one softmax: the queries
of an item's rows, side by side, over the item's prompt, and each row's query over the row's own
tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_NAME = "dcsft_shared_prompt"

# What attention functions are given by layers whose scores are not plain scaled products.
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask")

_FIRST_CAPACITY = 32

# Prompts of finished items are dropped once this share of them is finished: dropping copies the rest.
_IDLE_ITEMS = 0.25


class UnsuitedModelError(Exception):
    """Why a model cannot decode on shared prompts."""


class SharedLayer(CacheLayerMixin):
    """One layer's keys and values.

    Attributes:
        prompt_keys: `(items, kv_heads, prompt, width)`; `prompt_values` likewise.
        keys: buffer `(rows, kv_heads, capacity, width)` of the rows' own tokens; `values` likewise.
        length: tokens in the buffers.
    """

    def __init__(self, prompt_keys: Tensor, prompt_values: Tensor) -> None:
        """A layer with no rows yet."""
        super().__init__()
        self.prompt_keys, self.prompt_values = prompt_keys, prompt_values
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes the buffers for `(rows, kv_heads, 1, width)` states."""
        self.keys = _room(key_states, _FIRST_CAPACITY)
        self.values = _room(value_states, _FIRST_CAPACITY)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Appends one token of every row, `(rows, kv_heads, 1, width)`.

        Returns:
            The rows' own keys and values, views of `(rows, kv_heads, length, width)`.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.length == self.keys.shape[2]:
            self.keys = _grown(self.keys, 2 * self.length)
            self.values = _grown(self.values, 2 * self.length)
        self.keys[:, :, self.length] = key_states[:, :, 0]
        self.values[:, :, self.length] = value_states[:, :, 0]
        self.length += 1
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def keep_rows(self, rows: Tensor) -> None:
        """Drops all rows but those of int64 `rows`."""
        if self.is_initialized:
            self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)

    def keep_items(self, items: Tensor) -> None:
        """Drops the prompts of all items but those of int64 `items`."""
        self.prompt_keys = self.prompt_keys.index_select(0, items)
        self.prompt_values = self.prompt_values.index_select(0, items)

    def get_seq_length(self) -> int:
        """Tokens of a row: the padded prompt and its own."""
        return int(self.prompt_keys.shape[2]) + self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a step sees, and the first one's position."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


def _taken(parts: Sequence[CacheLayerMixin], prompt: int) -> SharedLayer:
    """One layer of several prefills as one of `prompt` tokens, padded on the left.

    Raises:
        UnsuitedModelError: where it keeps something else than all keys and values.
    """
    for part in parts:
        if type(part) is not DynamicLayer or not part.is_initialized:
            raise UnsuitedModelError(f"it caches by {type(part).__name__}")
    joined = SharedLayer(
        _joined([part.keys for part in parts], prompt), _joined([part.values for part in parts], prompt)
    )
    # Freed layer by layer: all of them would be there twice otherwise.
    for part in parts:
        part.keys = part.values = None
    return joined


def _joined(parts: Sequence[Tensor], prompt: int) -> Tensor:
    """States of several prefills, `(items, kv_heads, prompt, width)`, zeros at padding."""
    if len(parts) == 1:
        return parts[0]
    padded = [functional.pad(part, (0, 0, prompt - part.shape[2], 0)) for part in parts]
    return torch.cat(padded)


def _room(states: Tensor, capacity: int) -> Tensor:
    return states.new_empty((*states.shape[:2], capacity, states.shape[3]))


def _grown(buffer: Tensor, capacity: int) -> Tensor:
    """A buffer of `capacity` tokens that begins with those of `buffer`."""
    grown = _room(buffer, capacity)
    grown[:, :, : buffer.shape[2]] = buffer
    return grown


class SharedPromptCache(Cache):
    """The layers of a batch, which row continues which prompt, and the attention over both."""

    def __init__(
        self, prefilled: Sequence[DynamicCache], attention_mask: Tensor, samples: Sequence[int]
    ) -> None:
        """Takes over what prefilling left; the caches given are empty afterwards.

        Args:
            prefilled: the caches of forward passes over the prompts, in order.
            attention_mask: int64 `(items, prompt)` of all of them, 0 at padding.
            samples: rows that continue each item; the rows of an item are consecutive.

        Raises:
            UnsuitedModelError: where a layer keeps something else than all keys and values.
        """
        layers = zip(*(cache.layers for cache in prefilled), strict=True)
        super().__init__(layers=[_taken(parts, attention_mask.shape[1]) for parts in layers])
        device = attention_mask.device
        padded = (attention_mask == 0)[:, None, None, :]
        # (items, 1, 1, prompt); None spares a pass over the scores where nothing is padded.
        self._padding = padded if bool(padded.any()) else None
        counts = torch.tensor(samples, device=device)
        self._lay_out(torch.repeat_interleave(torch.arange(len(samples), device=device), counts))

    def _lay_out(self, item_of_row: Tensor) -> None:
        """Places rows in a grid of `(items, widest)`, where an item's rows are side by side.

        Args:
            item_of_row: int64 `(rows,)`, ascending.
        """
        items = self.layers[0].prompt_keys.shape[0]
        counts = torch.bincount(item_of_row, minlength=items)
        self._item_of_row, self._items, self._widest = item_of_row, items, int(counts.max())
        first = counts.cumsum(0) - counts
        rows = torch.arange(len(item_of_row), device=item_of_row.device)
        self._place = item_of_row * self._widest + rows - first[item_of_row]
        # Places without a row repeat row 0, whose results there are not read.
        self._row_at = torch.zeros(items * self._widest, dtype=torch.int64, device=rows.device)
        self._row_at[self._place] = rows
        self._full = len(rows) == items * self._widest

    def keep_rows(self, rows: Tensor) -> None:
        """Drops all rows but those of int64 `rows`, ascending, and prompts that none continues."""
        item_of_row = self._item_of_row[rows]
        for layer in self.layers:
            layer.keep_rows(rows)
        items, renumbered = torch.unique(item_of_row, return_inverse=True)
        if len(items) <= (1 - _IDLE_ITEMS) * self._items:
            for layer in self.layers:
                layer.keep_items(items)
            self._padding = None if self._padding is None else self._padding[items]
            item_of_row = renumbered
        self._lay_out(item_of_row)

    @contextmanager
    def attending(self, model: PreTrainedModel) -> Iterator[None]:
        """While it lasts, the model's decoder attends through this cache."""
        configs = {
            id(module.config): module.config
            for module in model.get_decoder().modules()
            if hasattr(getattr(module, "config", None), "_attn_implementation_internal")
        }
        before = {key: config._attn_implementation_internal for key, config in configs.items()}
        ALL_ATTENTION_FUNCTIONS.register(_NAME, self.attend)
        try:
            # The property of that name would switch sub-configurations too.
            for config in configs.values():
                config._attn_implementation_internal = _NAME
            yield
        finally:
            for key, config in configs.items():
                config._attn_implementation_internal = before[key]

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, None]:
        """Attention of one new token a row, called by the model's own layers.

        Args:
            module: the attention layer; its `layer_idx` says which.
            query: `(rows, heads, 1, width)`.
            key: the rows' own keys, `(rows, kv_heads, length, width)`; `value` likewise.
            value: see `key`.
            attention_mask: unused; padding is known from the prompts.
            scaling: factor of the scores; None is one over the root of the width.
            **kwargs: refused where they change scores.

        Returns:
            `(rows, 1, heads, width)`, and no weights.

        Raises:
            UnsuitedModelError: for several tokens a row, or scores that are not plain products.
        """
        refused = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
        if refused or query.shape[2] != 1:
            raise UnsuitedModelError(f"its attention uses {', '.join(refused) or 'several tokens at once'}")
        layer: SharedLayer = self.layers[module.layer_idx]
        rows, heads, _, width = query.shape
        kv_heads = key.shape[1]
        scaling = width**-0.5 if scaling is None else scaling
        own = (query * scaling).reshape(rows, kv_heads, heads // kv_heads, width)
        scores = torch.cat((self._prompt_scores(own, layer.prompt_keys), own @ key.transpose(2, 3)), dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        prompt = layer.prompt_keys.shape[2]
        on_prompt = self._to_rows(self._to_grid(weights[..., :prompt]) @ layer.prompt_values, rows)
        output = on_prompt + weights[..., prompt:] @ value
        return output.reshape(rows, 1, heads, -1), None

    def _prompt_scores(self, own: Tensor, prompt_keys: Tensor) -> Tensor:
        """Scores `(rows, kv_heads, group, prompt)` of queries `(rows, kv_heads, group, width)`."""
        scores = self._to_grid(own) @ prompt_keys.transpose(2, 3)
        if self._padding is not None:
            scores = scores.masked_fill_(self._padding, -torch.inf)
        return self._to_rows(scores, own.shape[0])

    def _to_grid(self, rows: Tensor) -> Tensor:
        """`(rows, kv_heads, group, n)` as `(items, kv_heads, widest * group, n)`."""
        placed = rows if self._full else rows.index_select(0, self._row_at)
        _, kv_heads, group, last = rows.shape
        grid = placed.reshape(self._items, self._widest, kv_heads, group, last)
        return grid.transpose(1, 2).reshape(self._items, kv_heads, self._widest * group, last)

    def _to_rows(self, grid: Tensor, rows: int) -> Tensor:
        """The way back from `_to_grid`."""
        _, kv_heads, together, last = grid.shape
        group = together // self._widest
        split = grid.view(self._items, kv_heads, self._widest, group, last).transpose(1, 2)
        flat = split.reshape(self._items * self._widest, kv_heads, group, last)
        return flat if self._full else flat.index_select(0, self._place)

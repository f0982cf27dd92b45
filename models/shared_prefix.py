"""Prefills each prompt once; the rows that share it decode together."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Prefills prompts once and keeps their keys and values per item.


class UnsuitedModelError(Exception):
    """Why a model cannot decode on shared prompts."""


@dataclass
class Prompts:
    """The prefilled prompts of some items, padded on the left to one length."""

    keys: list[Tensor]  # per layer `(items, kv_heads, prompt, width)`; `values` likewise
    values: list[Tensor]  # see `keys`
    logits: Tensor  # `(items, vocabulary)` for the first token
    # the last prompt token's position, `(..., items, 1)`; leading axes as in the model's position ids
    positions: Tensor
    tokens: Tensor  # int64 `(items, prompt)`
    attention_mask: Tensor  # int64 `(items, prompt)`, 0 at padding
    tickets: list[int] = field(default_factory=list)  # what identifies each item, where a caller sets it

    def __len__(self) -> int:
        """The number of items."""
        return len(self.tokens)

    @property
    def longest(self) -> int:
        """The length of a prompt in tokens, padding included."""
        return self.tokens.shape[1]

    def select(self, places: Sequence[int]) -> "Prompts":
        """A copy with the prompts at some places."""
        items = torch.tensor(places, device=self.tokens.device)
        return Prompts(
            [keys.index_select(0, items) for keys in self.keys],
            [values.index_select(0, items) for values in self.values],
            self.logits[items],
            self.positions.index_select(-2, items),
            self.tokens[items],
            self.attention_mask[items],
            [self.tickets[place] for place in places] if self.tickets else [],
        )


def joined(parts: Sequence[Prompts]) -> Prompts:
    """Joins prompts in order; empties the parts."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.longest for part in parts)
    # Freed layer by layer: otherwise all layers would exist twice.
    keys = [_taken([part.keys for part in parts], at, longest) for at in range(len(parts[0].keys))]
    values = [_taken([part.values for part in parts], at, longest) for at in range(len(parts[0].values))]
    return Prompts(
        keys,
        values,
        torch.cat([part.logits for part in parts]),
        torch.cat([part.positions for part in parts], dim=-2),
        torch.cat([_padded(part.tokens, longest, -1) for part in parts]),
        torch.cat([_padded(part.attention_mask, longest, -1) for part in parts]),
        [ticket for part in parts for ticket in part.tickets],
    )


def _taken(states: Sequence[list[Tensor]], layer: int, longest: int) -> Tensor:
    """Joins one layer's states of several prompts, and removes them from the parts."""
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
    """Runs vision tower and prompts once, with inputs prepared as for the first step of `generate`.

    The model is in evaluation mode; the batch is left-padded, on its device.

    Raises:
        UnsuitedModelError: a layer's cache is not the full keys and values.
    """
    prompts, cache = _prefilled(model, batch)
    for layer in cache.layers:
        if type(layer) is not DynamicLayer or not layer.is_initialized:
            raise UnsuitedModelError(f"it caches by {type(layer).__name__}")
    prompts.keys = [layer.keys for layer in cache.layers]
    prompts.values = [layer.values for layer in cache.layers]
    return prompts


def _prefilled(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Prompts, DynamicCache]:
    """`prefill` for any model: the prompts without keys and values, and the model's own cache of them."""
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    logits, positions, cache = _first_step(model, batch, 1)
    last = positions[..., -1:]
    return Prompts([], [], logits[:, -1], last.expand(*last.shape[:-2], len(tokens), 1), tokens, mask), cache


@torch.inference_mode()
def forced(model: PreTrainedModel, batch: dict[str, Tensor], keep: int) -> Tensor:
    """The logits behind the last tokens of given texts, with inputs prepared as `prefill` does.

    The last `keep` positions; the model is in evaluation mode, and the batch left-padded, on its device.
    Returns `(rows, keep, vocabulary)` of the model's float type.
    """
    return _first_step(model, batch, keep)[0][:, -keep:]


def _first_step(
    model: PreTrainedModel, batch: dict[str, Tensor], keep: int
) -> tuple[Tensor, Tensor, DynamicCache]:
    """The first step of `generate`: logits `(rows, at least keep, vocabulary)`, position ids and cache."""
    features = dict(batch)
    positions = model._prepare_position_ids_for_generation(batch["input_ids"], features)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    tokens, mask = features.pop("input_ids"), features.pop("attention_mask")
    inputs = model.prepare_inputs_for_generation(
        tokens,
        past_key_values=cache,
        # Without a mask, attention takes its faster causal form.
        attention_mask=None if bool(mask.all()) else mask,
        position_ids=positions,
        is_first_iteration=True,
        use_cache=True,
        logits_to_keep=keep,
        **features,
    )
    return model(**inputs, return_dict=True).logits, positions, cache


# Items that were admitted together and their rows: each prompt is kept once, with one attention call.
#
# Copying a prompt's keys and values for each of G samples costs G times its memory, and every decoding step
# reads all copies. Here a step attends in two parts under one softmax: the queries of an item's rows, side
# by side, over the item's prompt, and each row's query over the row's own tokens. The rows of a prefix
# group have the same length, so their own tokens need no padding.

# Labeling mostly gets short answers, and every page of a buffer has to be zeroed before use.
_FIRST_CAPACITY = 8

# Finished items' prompts are dropped once they reach this share: dropping copies the rest.
_IDLE_ITEMS = 0.25


class OwnTokens:
    """One layer's keys and values of the generated tokens.

    Attributes:
        keys: buffer `(rows, kv_heads, capacity, width)`; `values` likewise.
        values: see `keys`.
        length: tokens in the buffers.
    """

    def __init__(self) -> None:
        """Starts without tokens."""
        self.keys = self.values = torch.empty(0)
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds one token of every row, `(rows, kv_heads, 1, width)`.

        Returns all keys and values, views of `(rows, kv_heads, length, width)`.
        """
        if self.length == 0:
            self.keys, self.values = _room(keys, _FIRST_CAPACITY), _room(values, _FIRST_CAPACITY)
        elif self.length == self.keys.shape[2]:
            self.keys, self.values = _grown(self.keys), _grown(self.values)
        self.keys[:, :, self.length] = keys[:, :, 0]
        self.values[:, :, self.length] = values[:, :, 0]
        self.length += 1
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def move(self, sources: Tensor, holes: Tensor, count: int) -> None:
        """Puts rows into the places of others, and drops all but the first `count`."""
        if self.length and len(holes):
            for buffer in (self.keys, self.values):
                buffer[holes, :, : self.length] = buffer[sources, :, : self.length]
        self.keys, self.values = self.keys[:count], self.values[:count]


def _room(states: Tensor, capacity: int) -> Tensor:
    return states.new_empty((*states.shape[:2], capacity, states.shape[3]))


def _grown(buffer: Tensor) -> Tensor:
    length = buffer.shape[2]
    grown = _room(buffer, 2 * length)
    grown[:, :, :length] = buffer
    return grown


class PrefixGroup:
    """Prompts and the rows that continue them.

    Attributes:
        prompts: the prefilled prompts.
        rows: the number of rows.
    """

    def __init__(self, prompts: Prompts, samples: Sequence[int]) -> None:
        """Starts with rows without tokens; takes the prompts over.

        `samples` is the number of rows that continue each item; an item's rows are consecutive.
        """
        self.prompts = prompts
        self._own = [OwnTokens() for _ in prompts.keys]
        device = prompts.tokens.device
        counts = torch.tensor(samples, device=device)
        self._set_rows(torch.repeat_interleave(torch.arange(len(samples), device=device), counts))

    def _set_rows(self, item_of_row: Tensor) -> None:
        """Places rows, int64 `(rows,)`, in a grid `(items, widest)`, an item's rows side by side."""
        self.item_of_row, self.rows, self._items = item_of_row, len(item_of_row), len(self.prompts)
        padded = (self.prompts.attention_mask == 0)[:, None, None, :]
        # (items, 1, 1, prompt); None skips a pass over the scores if nothing is padded.
        self._padding = padded if bool(padded.any()) else None
        counts = torch.bincount(item_of_row, minlength=self._items)
        self._widest = int(counts.max())
        order = torch.argsort(item_of_row, stable=True)
        by_item = item_of_row[order]
        first = counts.cumsum(0) - counts
        self._place = torch.empty_like(item_of_row)
        rank = torch.arange(self.rows, device=item_of_row.device) - first[by_item]
        self._place[order] = by_item * self._widest + rank
        # Places without a row repeat row 0; their results are not read.
        self._row_at = torch.zeros(self._items * self._widest, dtype=torch.int64, device=order.device)
        self._row_at[self._place] = torch.arange(self.rows, device=order.device)
        self._full = bool((self._place == torch.arange(self.rows, device=order.device)).all()) and (
            self.rows == self._items * self._widest
        )

    def keep(self, places: Sequence[int]) -> list[int]:
        """Keeps the rows at `places`, ascending; returns the old place of each, in the new order.

        Prompts stay until the group is dropped. Copies only as many rows as it takes to fill the gaps.
        """
        count = len(places)
        order = list(range(count))
        alive = set(places)
        holes = [place for place in range(count) if place not in alive]
        sources = [place for place in places if place >= count]
        for hole, source in zip(holes, sources, strict=True):
            order[hole] = source
        device = self.item_of_row.device
        moved = torch.tensor(sources, dtype=torch.int64, device=device)
        into = torch.tensor(holes, dtype=torch.int64, device=device)
        for own in self._own:
            own.move(moved, into, count)
        self._set_rows(self.item_of_row[torch.tensor(order, dtype=torch.int64, device=device)])
        return order

    def drop_idle(self, held: Collection[int]) -> bool:
        """Drops prompts without rows that are not `held`, once there are enough; returns if any is left."""
        kept = (place for place, ticket in enumerate(self.prompts.tickets) if ticket in held)
        needed = sorted({*self.item_of_row.tolist(), *kept})
        if needed and len(needed) <= (1 - _IDLE_ITEMS) * self._items:
            self.prompts = self.prompts.select(needed)
            items = torch.tensor(needed, device=self.item_of_row.device)
            self._set_rows(torch.searchsorted(items, self.item_of_row))
        return bool(needed)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of one new token per row.

        The query is `(rows, heads, 1, width)`; the new tokens' keys and values `(rows, kv_heads, 1, width)`.
        `scaling` is the factor of the scores. Returns `(rows, heads, width)`.
        """
        rows, heads, _, width = query.shape
        kv_heads = key.shape[1]
        keys, values = self._own[layer].append(key, value)
        prompt_keys, prompt_values = self.prompts.keys[layer], self.prompts.values[layer]
        own = (query * scaling).reshape(rows, kv_heads, heads // kv_heads, width)
        grid = self._to_grid(own) @ prompt_keys.transpose(2, 3)
        if self._padding is not None:
            grid = grid.masked_fill_(self._padding, -torch.inf)
        scores = torch.cat((self._to_rows(grid), own @ keys.transpose(2, 3)), dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        prompt = prompt_keys.shape[2]
        on_prompt = self._to_rows(self._to_grid(weights[..., :prompt]) @ prompt_values)
        return (on_prompt + weights[..., prompt:] @ values).reshape(rows, heads, -1)

    def _to_grid(self, rows: Tensor) -> Tensor:
        """`(rows, kv_heads, group, n)` as `(items, kv_heads, widest * group, n)`."""
        placed = rows if self._full else rows.index_select(0, self._row_at)
        _, kv_heads, group, last = rows.shape
        grid = placed.reshape(self._items, self._widest, kv_heads, group, last)
        return grid.transpose(1, 2).reshape(self._items, kv_heads, self._widest * group, last)

    def _to_rows(self, grid: Tensor) -> Tensor:
        """The inverse of `_to_grid`."""
        _, kv_heads, together, last = grid.shape
        group = together // self._widest
        split = grid.view(self._items, kv_heads, self._widest, group, last).transpose(1, 2)
        flat = split.reshape(self._items * self._widest, kv_heads, group, last)
        return flat if self._full else flat.index_select(0, self._place)


# Rows with shared prompts go through the model together, one token at a time.

_NAME = "dcsft_shared_prompt"

# Arguments to attention functions from layers whose scores are not plain scaled products.
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask")


class _Passing(DynamicLayer):  # type: ignore[misc]
    """A cache layer that only passes states through: each prefix group keeps its own."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """The states unchanged."""
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Positions are given; some models only ask whether this is the first step."""
        return 1


def _following(
    model: PreTrainedModel, tokens: Tensor, positions: Tensor, cache: Cache, **more: Tensor | None
) -> Tensor:
    """The logits `(rows, vocabulary)` after one further token per row, int64 `(rows,)`."""
    output = model(
        input_ids=tokens[:, None],
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        return_dict=True,
        **more,
    )
    logits: Tensor = output.logits[:, -1]
    return logits


class Decoder:
    """The rows in progress, in the order of their prefix groups."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Starts without rows, for a model that prefills the prompts."""
        self._model = model
        self.groups: list[PrefixGroup] = []
        self._positions: Tensor | None = None

    def admit(self, prompts: Prompts, samples: Sequence[int]) -> Tensor:
        """Appends a prefix group's rows and takes its prompts over; `samples` rows continue each item.

        Returns the logits for the rows' first token, `(new rows, vocabulary)`.
        """
        group = PrefixGroup(prompts, samples)
        self.groups.append(group)
        positions = prompts.positions.index_select(-2, group.item_of_row)
        self._positions = (
            positions if self._positions is None else torch.cat((self._positions, positions), dim=-2)
        )
        return prompts.logits[group.item_of_row]

    def step(self, tokens: Tensor) -> Tensor:
        """Feeds int64 `(rows,)` tokens and returns the next logits, `(rows, vocabulary)`.

        Call it inside `attending`.

        Raises:
            UnsuitedModelError: where prompts cannot be shared.
        """
        assert self._positions is not None
        self._positions = self._positions + 1
        cache = Cache(layers=[_Passing() for _ in self.groups[0].prompts.keys])
        return _following(self._model, tokens, self._positions, cache)

    def keep(self, places: Sequence[int]) -> list[int]:
        """Keeps the rows at `places`, ascending; returns the old place of each, in the new order."""
        order: list[int] = []
        start = 0
        for group in self.groups:
            end = start + group.rows
            inside = [place - start for place in places if start <= place < end]
            if len(inside) < group.rows:
                order += [start + place for place in group.keep(inside)]
            else:
                order += range(start, end)
            start = end
        assert self._positions is not None
        kept = torch.tensor(order, dtype=torch.int64, device=self._positions.device)
        self._positions = self._positions.index_select(-2, kept) if order else None
        return order

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Context manager: the model's decoder attends through the prefix groups."""
        configs = {
            id(module.config): module.config
            for module in self._model.get_decoder().modules()
            if hasattr(getattr(module, "config", None), "_attn_implementation_internal")
        }
        before = {key: config._attn_implementation_internal for key, config in configs.items()}
        ALL_ATTENTION_FUNCTIONS.register(_NAME, self._attend)
        try:
            # The property of that name would also switch sub-configurations.
            for config in configs.values():
                config._attn_implementation_internal = _NAME
            yield
        finally:
            for key, config in configs.items():
                config._attn_implementation_internal = before[key]

    def _attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, None]:
        """Attention of one new token per row, called by the model's own layers; see `PrefixGroup.attend`.

        The mask is unused, as padding is known from the prompts; without `scaling` it is one over the root of
        the width. Returns `(rows, 1, heads, width)`, and no weights.

        Raises:
            UnsuitedModelError: several tokens per row, or scores that are not plain products.
        """
        refused = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
        if refused or query.shape[2] != 1 or key.shape[2] != 1:
            raise UnsuitedModelError(f"its attention uses {', '.join(refused) or 'several tokens at once'}")
        scaling = query.shape[3] ** -0.5 if scaling is None else scaling
        outputs, start = [], 0
        layer: int = module.layer_idx  # type: ignore[assignment]
        for group in self.groups:
            if group.rows:
                mine = slice(start, start + group.rows)
                outputs.append(group.attend(layer, query[mine], key[mine], value[mine], scaling))
                start += group.rows
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[:, None], None


# Models with states besides keys and values (recurrent ones, windows): each row copies its prompt's.


class ForkedRows:
    """Rows that continue copies of prefilled prompts, in the model's own cache and attention.

    Attributes:
        prompts: the prefilled prompts, without keys and values.
        logits: for the rows' first token, `(rows, vocabulary)`.
        item_of_row: int64 `(rows,)`, which of the prompts a row continues.
    """

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, batch: dict[str, Tensor], samples: Sequence[int]) -> None:
        """Runs vision tower and prompts of a left-padded batch once, then copies their states."""
        self._model = model
        self.prompts, self._cache = _prefilled(model, batch)
        device = self.prompts.tokens.device
        counts = torch.tensor(samples, device=device)
        self.item_of_row = torch.repeat_interleave(torch.arange(len(samples), device=device), counts)
        self.logits = self.prompts.logits[self.item_of_row]
        self._positions = self.prompts.positions.index_select(-2, self.item_of_row)
        mask = self.prompts.attention_mask
        self._mask = None if bool(mask.all()) else mask[self.item_of_row]
        if len(samples) != len(self.item_of_row):
            self._cache.reorder_cache(self.item_of_row)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Feeds int64 `(rows,)` tokens and returns the next logits, `(rows, vocabulary)`."""
        self._positions = self._positions + 1
        if self._mask is not None:
            self._mask = functional.pad(self._mask, (0, 1), value=1)
        return _following(self._model, tokens, self._positions, self._cache, attention_mask=self._mask)

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        """Keeps only the rows in int64 `rows`, in that order."""
        self._cache.reorder_cache(rows)
        self._positions = self._positions.index_select(-2, rows)
        self._mask = None if self._mask is None else self._mask[rows]

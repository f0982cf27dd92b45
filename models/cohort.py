"""Items that were admitted together and the rows that continue them: prompts kept once, one attention.

Copying a prompt's keys and values for each of G samples costs G times its memory, and every
decoding step reads all copies. Here a step attends in two parts under one softmax: the queries
of an item's rows, side by side, over the item's prompt, and each row's query over the row's own
tokens. The rows of a cohort are of one age, so their own tokens need no padding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .prefill import Prompts

# Short answers are the rule in labelling; every page that a buffer touches has to be zeroed first.
_FIRST_CAPACITY = 8

# Prompts of finished items are dropped once this share of them is finished: dropping copies the rest.
_IDLE_ITEMS = 0.25


class OwnTokens:
    """One layer's keys and values of what the rows have generated.

    Attributes:
        keys: buffer `(rows, kv_heads, capacity, width)`; `values` likewise.
        values: see `keys`.
        length: tokens in the buffers.
    """

    def __init__(self) -> None:
        """No tokens."""
        self.keys = self.values = torch.empty(0)
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds one token of every row, `(rows, kv_heads, 1, width)`.

        Returns:
            All keys and values, views of `(rows, kv_heads, length, width)`.
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
        if self.length:
            self.keys, self.values = (
                self._moved(buffer, sources, holes)[:count] for buffer in (self.keys, self.values)
            )

    def _moved(self, buffer: Tensor, sources: Tensor, holes: Tensor) -> Tensor:
        if len(holes):
            buffer[holes, :, : self.length] = buffer[sources, :, : self.length]
        return buffer


def _room(states: Tensor, capacity: int) -> Tensor:
    return states.new_empty((*states.shape[:2], capacity, states.shape[3]))


def _grown(buffer: Tensor) -> Tensor:
    """A buffer of twice the capacity that begins with those of `buffer`."""
    length = buffer.shape[2]
    grown = _room(buffer, 2 * length)
    grown[:, :, :length] = buffer
    return grown


class Cohort:
    """Prompts and the rows behind them.

    Attributes:
        prompts: what they continue.
        rows: how many.
    """

    def __init__(self, prompts: Prompts, samples: Sequence[int]) -> None:
        """Rows without tokens.

        Args:
            prompts: of the items; taken over.
            samples: rows that continue each item; the rows of an item are consecutive.
        """
        self.prompts = prompts
        self._own = [OwnTokens() for _ in prompts.keys]
        device = prompts.tokens.device
        counts = torch.tensor(samples, device=device)
        self._set_rows(torch.repeat_interleave(torch.arange(len(samples), device=device), counts))

    def _set_rows(self, item_of_row: Tensor) -> None:
        """Places rows in a grid of `(items, widest)`, where an item's rows are side by side.

        Args:
            item_of_row: int64 `(rows,)`.
        """
        self.item_of_row, self.rows, self._items = item_of_row, len(item_of_row), len(self.prompts)
        padded = (self.prompts.attention_mask == 0)[:, None, None, :]
        # (items, 1, 1, prompt); None spares a pass over the scores where nothing is padded.
        self._padding = padded if bool(padded.any()) else None
        counts = torch.bincount(item_of_row, minlength=self._items)
        self._widest = int(counts.max())
        order = torch.argsort(item_of_row, stable=True)
        by_item = item_of_row[order]
        first = counts.cumsum(0) - counts
        self._place = torch.empty_like(item_of_row)
        rank = torch.arange(self.rows, device=item_of_row.device) - first[by_item]
        self._place[order] = by_item * self._widest + rank
        # Places without a row repeat row 0, whose results there are not read.
        self._row_at = torch.zeros(self._items * self._widest, dtype=torch.int64, device=order.device)
        self._row_at[self._place] = torch.arange(self.rows, device=order.device)
        self._full = bool((self._place == torch.arange(self.rows, device=order.device)).all()) and (
            self.rows == self._items * self._widest
        )

    def keep(self, places: Sequence[int]) -> list[int]:
        """Drops all rows but those at `places`, ascending; a prompt stays while its cohort does.

        Only as many rows are copied as fill the gaps.

        Returns:
            The old place of each row that is left, in their new order.
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

    def drop_idle(self, kept: Sequence[int]) -> list[int] | None:
        """Drops the prompts of items that have neither rows nor a place in `kept`, once they are many.

        Returns:
            The old numbers of the items that are left; None where none is dropped.
        """
        needed = sorted({*self.item_of_row.tolist(), *kept})
        if not needed or len(needed) > (1 - _IDLE_ITEMS) * self._items:
            return None
        items = torch.tensor(needed, device=self.item_of_row.device)
        self.prompts = self.prompts.select(items)
        self._set_rows(torch.searchsorted(items, self.item_of_row))
        return needed

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of one new token a row.

        Args:
            layer: which.
            query: `(rows, heads, 1, width)`.
            key: the new tokens' keys, `(rows, kv_heads, 1, width)`; `value` likewise.
            value: see `key`.
            scaling: factor of the scores.

        Returns:
            `(rows, heads, width)`.
        """
        rows, heads, _, width = query.shape
        kv_heads = key.shape[1]
        keys, values = self._own[layer].append(key, value)
        prompt_keys, prompt_values = self.prompts.keys[layer], self.prompts.values[layer]
        own = (query * scaling).reshape(rows, kv_heads, heads // kv_heads, width)
        scores = torch.cat((self._prompt_scores(own, prompt_keys), own @ keys.transpose(2, 3)), dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        prompt = prompt_keys.shape[2]
        on_prompt = self._to_rows(self._to_grid(weights[..., :prompt]) @ prompt_values, rows)
        return (on_prompt + weights[..., prompt:] @ values).reshape(rows, heads, -1)

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

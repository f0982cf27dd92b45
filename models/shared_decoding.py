"""Rows behind shared prompts go through the model together, one token at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .cohort import Cohort
from .prefill import Prompts, UnsuitedModelError

_NAME = "dcsft_shared_prompt"

# What attention functions are given by layers whose scores are not plain scaled products.
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask")


class _Passing(CacheLayerMixin):  # type: ignore[misc]
    """A cache layer that hands states on: the cohorts keep them, each its own."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """The states as they come."""
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Positions are given; some models only ask whether this is the first step."""
        return 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Masks are not used."""
        return query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class Decoder:
    """The rows in flight, in the order of their cohorts."""

    def __init__(self, model: PreTrainedModel) -> None:
        """No rows.

        Args:
            model: a transformers model, in evaluation mode, that prefills the prompts.
        """
        self._model = model
        self.cohorts: list[Cohort] = []
        self._positions: Tensor | None = None

    def admit(self, prompts: Prompts, samples: Sequence[int]) -> Tensor:
        """Adds a cohort's rows behind the others.

        Args:
            prompts: of its items; taken over.
            samples: rows that continue each item.

        Returns:
            The logits for the rows' first token, `(new rows, vocabulary)`.
        """
        cohort = Cohort(prompts, samples)
        self.cohorts.append(cohort)
        positions = prompts.positions.index_select(-2, cohort.item_of_row)
        self._positions = (
            positions if self._positions is None else torch.cat((self._positions, positions), dim=-2)
        )
        return prompts.logits[cohort.item_of_row]

    def step(self, tokens: Tensor) -> Tensor:
        """Feeds int64 `(rows,)` tokens and gives the logits `(rows, vocabulary)` behind them.

        To be called while `attending`.

        Raises:
            UnsuitedModelError: where prompts cannot be shared.
        """
        assert self._positions is not None
        self._positions = self._positions + 1
        output = self._model(
            input_ids=tokens[:, None],
            position_ids=self._positions,
            past_key_values=Cache(layers=[_Passing() for _ in self.cohorts[0].prompts.keys]),
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def keep(self, places: Sequence[int]) -> list[int]:
        """Drops all rows but those at `places`, ascending; cohorts stay until `forget`.

        Returns:
            The old place of each row that is left, in their new order.
        """
        order: list[int] = []
        start = 0
        for cohort in self.cohorts:
            end = start + cohort.rows
            inside = [place - start for place in places if start <= place < end]
            if len(inside) < cohort.rows:
                order += [start + place for place in cohort.keep(inside)]
            else:
                order += range(start, end)
            start = end
        assert self._positions is not None
        kept = torch.tensor(order, dtype=torch.int64, device=self._positions.device)
        self._positions = self._positions.index_select(-2, kept) if order else None
        return order

    @contextmanager
    def attending(self) -> Iterator[None]:
        """While it lasts, the model's decoder attends through the cohorts."""
        configs = {
            id(module.config): module.config
            for module in self._model.get_decoder().modules()
            if hasattr(getattr(module, "config", None), "_attn_implementation_internal")
        }
        before = {key: config._attn_implementation_internal for key, config in configs.items()}
        ALL_ATTENTION_FUNCTIONS.register(_NAME, self._attend)
        try:
            # The property of that name would switch sub-configurations too.
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
        """Attention of one new token a row, called by the model's own layers.

        Args:
            module: the attention layer; its `layer_idx` says which.
            query: `(rows, heads, 1, width)`.
            key: the new tokens' keys, `(rows, kv_heads, 1, width)`; `value` likewise.
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
        if refused or query.shape[2] != 1 or key.shape[2] != 1:
            raise UnsuitedModelError(f"its attention uses {', '.join(refused) or 'several tokens at once'}")
        scaling = query.shape[3] ** -0.5 if scaling is None else scaling
        outputs, start = [], 0
        layer: int = module.layer_idx  # type: ignore[assignment]
        for cohort in self.cohorts:
            if cohort.rows:
                mine = slice(start, start + cohort.rows)
                outputs.append(cohort.attend(layer, query[mine], key[mine], value[mine], scaling))
                start += cohort.rows
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[:, None], None

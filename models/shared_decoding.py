"""One prefill for all samples of an item: prompts go through the model once, rows decode together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from .arguments import GenerationArguments
from .decoding import Completion, SpecialTokens, StopTexts, completion
from .shared_prompt import SharedPromptCache
from .token_choice import Draw

# Rows that have finished are dropped from the batch once they are this share of it: dropping
# copies the tokens of the others, and a few idle rows cost less.
_IDLE_ROWS = 1 / 8


@dataclass(frozen=True)
class Prefilled:
    """What prompts left that went through the model together.

    Attributes:
        cache: their keys and values.
        logits: `(items, vocabulary)` for the first token.
        positions: the last prompt token's position, `(..., items, 1)` with as many axes in
            front as the model's position ids have.
        tokens: int64 `(items, prompt)`.
        attention_mask: int64 `(items, prompt)`, 0 at padding.
    """

    cache: DynamicCache
    logits: Tensor
    positions: Tensor
    tokens: Tensor
    attention_mask: Tensor


@torch.inference_mode()
def prefill(model: PreTrainedModel, batch: dict[str, Tensor]) -> Prefilled:
    """Runs vision tower and prompts once, prepared as `generate` prepares its first step.

    Args:
        model: a transformers model, in evaluation mode.
        batch: model inputs, left-padded, on the model's device.
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
    return Prefilled(cache, logits, positions[..., -1:], tokens, mask)


def _left_padded(parts: list[Tensor]) -> Tensor:
    """Rows of different lengths, `(items, tokens)` each, as one tensor with zeros on the left."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([functional.pad(part, (longest - part.shape[1], 0)) for part in parts])


class Decoder:
    """The rows of a batch behind their shared prompts, one token at a time."""

    def __init__(self, model: PreTrainedModel, prefilled: list[Prefilled], samples: Sequence[int]) -> None:
        """Rows at their first token.

        Args:
            model: the model that prefilled.
            prefilled: the prompts, in order; their caches are empty afterwards.
            samples: rows that continue each item; the rows of an item are consecutive.

        Attributes:
            logits: `(rows, vocabulary)` for the first token.
            prompts: int64 `(items, prompt)` token ids.
            attention_mask: int64 `(items, prompt)`, 0 at padding.
            item_of_row: int64 `(rows,)`, of all rows at the start.

        Raises:
            UnsuitedModelError: where prompts cannot be shared.
        """
        self._model = model
        self.prompts = _left_padded([one.tokens for one in prefilled])
        self.attention_mask = _left_padded([one.attention_mask for one in prefilled])
        self.cache = SharedPromptCache([one.cache for one in prefilled], self.attention_mask, samples)
        rows = [item for item, count in enumerate(samples) for _ in range(count)]
        self.item_of_row = torch.tensor(rows, device=self.attention_mask.device)
        axes = prefilled[0].positions.shape[:-2]
        positions = [one.positions.expand(*axes, len(one.tokens), 1) for one in prefilled]
        self._positions = torch.cat(positions, dim=-2).index_select(-2, self.item_of_row)
        self.logits = torch.cat([one.logits for one in prefilled])[self.item_of_row]

    def step(self, tokens: Tensor) -> Tensor:
        """Feeds int64 `(rows,)` tokens and gives the logits `(rows, vocabulary)` behind them."""
        self._positions = self._positions + 1
        output = self._model(
            input_ids=tokens[:, None],
            position_ids=self._positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def keep_rows(self, rows: Tensor) -> None:
        """Drops all rows but those of int64 `rows`, ascending."""
        self.cache.keep_rows(rows)
        self._positions = self._positions.index_select(-2, rows)


class Rows:
    """What the rows have generated, and which of them still do."""

    def __init__(self, count: int, stops: StopTexts, eos: tuple[int, ...], limit: int) -> None:
        """Rows without tokens.

        Args:
            count: how many.
            stops: their stop texts.
            eos: ids that end a row.
            limit: tokens that a row may have.
        """
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self.batch = list(range(count))  # the row at each place of the batch
        self._stops, self._eos, self._limit = stops, frozenset(eos), limit
        self._finished = [False] * count

    def append(self, tokens: list[int]) -> None:
        """Adds a token at each place of the batch."""
        for row, token in zip(self.batch, tokens, strict=True):
            if not self._finished[row]:
                self.tokens[row].append(token)
                length = len(self.tokens[row])
                stopped = token in self._eos or self._stops.see(row, self.tokens[row], length)
                self._finished[row] = stopped or length == self._limit

    def going_on(self) -> list[int]:
        """The places of the batch whose rows are not finished."""
        return [place for place, row in enumerate(self.batch) if not self._finished[row]]

    def keep_places(self, places: list[int]) -> None:
        """Drops all places but these."""
        self.batch = [self.batch[place] for place in places]


@torch.inference_mode()
def complete_shared(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: SpecialTokens,
    slices: Iterable[dict[str, Tensor]],
    arguments: GenerationArguments,
    row_keys: list[list[int]],
) -> list[list[Completion]]:
    """Generates the responses to a batch of items.

    Args:
        model: a transformers model, in evaluation mode.
        tokenizer: its tokenizer.
        tokens: its special tokens.
        slices: model inputs of the items that prefill together, one row an item, left-padded, on
            the model's device; all items of all slices decode together.
        arguments: how to generate.
        row_keys: per item the int64 keys of its rows' draws (`keyed_noise.row_key`).

    Raises:
        UnsuitedModelError: where prompts cannot be shared.
    """
    tokens = tokens.stopping_at(tokenizer, arguments.stop)
    prefilled = [prefill(model, batch) for batch in slices]
    decoder = Decoder(model, prefilled, [len(keys) for keys in row_keys])
    keys = torch.tensor([key for keys in row_keys for key in keys], device=decoder.item_of_row.device)
    draw = Draw(arguments, tokens.eos, keys, decoder.prompts, decoder.attention_mask, decoder.item_of_row)
    stops = StopTexts(tokenizer, arguments, tokens.eos, len(keys))
    rows = Rows(len(keys), stops, tokens.eos, arguments.max_new_tokens)
    with decoder.cache.attending(model):
        _decode(decoder, draw, rows)
    done = iter(
        completion(tokenizer, row, tokens.eos, arguments, stopped)
        for row, stopped in zip(rows.tokens, stops.stopped_at, strict=True)
    )
    return [[next(done) for _ in keys] for keys in row_keys]


def _decode(decoder: Decoder, draw: Draw, rows: Rows) -> None:
    """Draws until every row is finished, dropping rows on the way."""
    step, chosen = 0, draw(decoder.logits, 0)
    rows.append(chosen.tolist())
    while places := rows.going_on():
        if len(places) <= (1 - _IDLE_ROWS) * len(rows.batch):
            kept = torch.tensor(places, device=chosen.device)
            decoder.keep_rows(kept)
            draw.keep_rows(kept)
            rows.keep_places(places)
            chosen = chosen[kept]
        step += 1
        chosen = draw(decoder.step(chosen), step)
        rows.append(chosen.tolist())

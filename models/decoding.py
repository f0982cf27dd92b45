"""One call of transformers' `generate` for a batch of rows, and what each row came to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.utils import GENERATION_CONFIG_NAME

from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms.generation import FinishReason, cut_at

from .arguments import GenerationArguments, checkpoint_settings
from .keyed_noise import KeyedGumbel
from .settings import ModelSettings


def checkpoint_generation(settings: ModelSettings) -> dict[str, object]:
    """What the checkpoint's generation config applies under `generation_config=checkpoint`; else nothing.

    Raises:
        HarnessError: the file cannot be read, or sets what cannot be applied.
    """
    if settings.generation_config != "checkpoint":
        return {}
    name = settings.pretrained
    file = Path(name) / GENERATION_CONFIG_NAME
    try:
        found = GenerationConfig.from_pretrained(name)
    except OSError as error:
        if not file.is_file():  # a checkpoint need not have one
            return {}
        said = str(error).strip().split("\n")[0][:300]
        raise HarnessError(
            f"{file} cannot be read ({said})", "Fix it, or use generation_config=neutral"
        ) from error
    where = f"generation_config=checkpoint: {file}"
    remedy = "Leave out generation_config=checkpoint, or take the setting out of the file"
    return checkpoint_settings(found.to_diff_dict(), vars(GenerationConfig()), where, remedy)


NOT_FINITE = -1
"""In place of a token: the row's logits are not finite, so that none could be chosen."""


class NotFiniteError(Exception):
    """Logits are not finite.

    Attributes:
        places: whose: rows of a batch, items of one, or tickets, as the raising function says.
    """

    def __init__(self, places: Iterable[int]) -> None:
        """Takes the places."""
        super().__init__("logits are not finite")
        self.places = set(places)


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that steer generation.

    Attributes:
        pad: fills short prompts and finished rows.
        bos: begins a sequence, where a model has such a token.
        eos: end a response; every id that the checkpoint names, in any of its files.
    """

    pad: int
    bos: int | None
    eos: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig) -> "SpecialTokens":
        """The union of what a checkpoint's tokenizer and generation config name."""
        configured = generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        eos = tuple(dict.fromkeys(token for token in [*ids, tokenizer.eos_token_id] if token is not None))
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else generation_config.pad_token_id
        return cls(pad if pad is not None else (eos[0] if eos else 0), tokenizer.bos_token_id, eos)

    def stopping_at(self, tokenizer: PreTrainedTokenizerBase, stops: tuple[str, ...]) -> "SpecialTokens":
        """With the ids of stop texts that are special tokens, which decoded text never shows."""
        special = set(tokenizer.all_special_tokens)
        extra = [tokenizer.convert_tokens_to_ids(stop) for stop in stops if stop in special]
        return SpecialTokens(self.pad, self.bos, tuple(dict.fromkeys((*self.eos, *extra))))

    def neutral_config(self) -> GenerationConfig:
        """A generation config that names tokens and nothing else."""
        return GenerationConfig(
            pad_token_id=self.pad, bos_token_id=self.bos, eos_token_id=list(self.eos) or None
        )


@dataclass(frozen=True)
class Completion:
    """What one row generated.

    Attributes:
        text: the response.
        n_tokens: tokens generated, the end token or those of the stop text included.
        finish_reason: "stop" or "length".
    """

    text: str
    n_tokens: int
    finish_reason: FinishReason


class StopTexts:
    """A stopping criterion per row: the end of the response contains a stop text.

    Only the last tokens are decoded at each step: a byte of a stop text takes at most one
    token, so a window of that many (and a few for what decoding joins) cannot miss it.

    Attributes:
        any: whether there are stop texts.
        stopped_at: per row, the tokens generated when it reached a stop text; None before.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        arguments: GenerationArguments,
        eos: tuple[int, ...],
        rows: int = 0,
        prompt_length: int = 0,
    ) -> None:
        """A criterion for one batch.

        Args:
            tokenizer: decodes the tokens.
            arguments: the stop texts, and whether special tokens are text.
            eos: ids that end a row anyway.
            rows: rows of the batch that `generate` makes.
            prompt_length: columns that `generate` hands over before the first generated token.
        """
        self._tokenizer, self._arguments, self._eos = tokenizer, arguments, set(eos)
        self._prompt_length, self.any = prompt_length, bool(arguments.stop)
        self._window = max((len(stop.encode()) for stop in arguments.stop), default=0) + 4
        self.stopped_at: list[int | None] = [None] * rows

    def reached(self, tokens: list[int]) -> bool:
        """Whether a row's last token, of those it has generated, completes a stop text."""
        if not self.any or tokens[-1] in self._eos:
            return False
        text = self._tokenizer.decode(
            tokens[-self._window :],
            skip_special_tokens=self._arguments.skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return any(stop in text for stop in self._arguments.stop)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """Bool `(rows,)`: which rows have reached a stop text."""
        generated = input_ids[:, self._prompt_length :]
        length = generated.shape[1]
        for row, tail in enumerate(generated[:, -self._window :].tolist()):
            if self.stopped_at[row] is None and self.reached(tail):
                self.stopped_at[row] = length
        done = [stopped is not None for stopped in self.stopped_at]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


class FiniteLogits:
    """A logits processor that changes nothing, and notes where a row's logits stop being finite.

    Attributes:
        first: int64 `(rows,)` on the logits' device, tokens generated before; -1 while they are finite.
    """

    def __init__(self, prompt_length: int) -> None:
        """For a batch whose prompts have this length, padding included."""
        self._prompt_length = prompt_length
        self.first: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are; nothing waits for the device."""
        bad = ~scores.amax(-1).isfinite()
        if self.first is None:
            self.first = torch.full_like(bad, -1, dtype=torch.int64)
        here = input_ids.shape[1] - self._prompt_length
        self.first = torch.where(bad & (self.first < 0), here, self.first)
        return scores

    def rows(self, lengths: Sequence[int]) -> list[int]:
        """Rows whose logits were not finite before their response of this many tokens had ended."""
        first = [] if self.first is None else self.first.tolist()
        return [row for row, (at, length) in enumerate(zip(first, lengths, strict=False)) if 0 <= at < length]


def warpers(arguments: GenerationArguments) -> list[Any]:
    """What a sampled distribution goes through, in the order of transformers' own sampling."""
    chain: list[Any] = [TemperatureLogitsWarper(arguments.temperature)]
    if arguments.top_k > 0:
        chain.append(TopKLogitsWarper(arguments.top_k))
    if arguments.top_p < 1.0:
        chain.append(TopPLogitsWarper(arguments.top_p))
    if arguments.min_p > 0.0:
        chain.append(MinPLogitsWarper(arguments.min_p))
    return chain


class RepetitionPenalty:
    """transformers' repetition penalty, prompt tokens included, for a padded batch.

    transformers' own counts a short prompt's padding as a token of it, and the padding token is often one
    that ends a response: rows would depend on what they are batched with.
    """

    def __init__(self, penalty: float, attention_mask: Tensor) -> None:
        """A processor for one batch.

        Args:
            penalty: divides positive scores, multiplies negative ones.
            attention_mask: `(rows, prompt length)`, 0 on the left where a row has padding.
        """
        self._penalty, self._mask = penalty, attention_mask != 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Float `(rows, vocabulary)` scores with the seen tokens' made smaller."""
        length = self._mask.shape[1]
        prompt = torch.where(self._mask, input_ids[:, :length], input_ids[:, length - 1 : length])
        seen = torch.cat((prompt, input_ids[:, length:]), dim=1)
        found = scores.gather(1, seen)
        found = torch.where(found < 0, found * self._penalty, found / self._penalty)
        return scores.scatter(1, seen, found)


def processors(
    arguments: GenerationArguments, row_keys: list[int], prompt_length: int, attention_mask: Tensor
) -> list[Any]:
    """The logits processors behind `generate`'s own: the penalty, and what makes search keyed sampling."""
    penalties: list[Any] = []
    if arguments.repetition_penalty != 1.0:
        penalties.append(RepetitionPenalty(arguments.repetition_penalty, attention_mask))
    if arguments.greedy:
        return penalties
    chain = warpers(arguments)
    return [*penalties, *chain, KeyedGumbel(row_keys, prompt_length, sparse=len(chain) > 1)]


def _config(tokens: SpecialTokens, arguments: GenerationArguments) -> GenerationConfig:
    """What `generate` does by itself: search greedily, up to a length."""
    config = tokens.neutral_config()
    config.update(
        do_sample=False,
        num_beams=1,
        max_new_tokens=arguments.max_new_tokens,
        min_new_tokens=arguments.min_new_tokens,
        use_cache=arguments.use_cache,
    )
    return config


@torch.inference_mode()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: SpecialTokens,
    batch: dict[str, Tensor],
    arguments: GenerationArguments,
    row_keys: list[int],
) -> list[Completion]:
    """Generates one response per row of `batch`.

    Args:
        model: a transformers model, in evaluation mode, whose own generation config is neutral.
        tokenizer: its tokenizer.
        tokens: its special tokens.
        batch: model inputs, left-padded, on the model's device.
        arguments: how to generate.
        row_keys: int64 keys of the rows' draws (`keyed_noise.row_key`); unused when greedy.

    Raises:
        NotFiniteError: logits of some rows are not finite.
    """
    tokens = tokens.stopping_at(tokenizer, arguments.stop)
    rows, prompt_length = batch["input_ids"].shape
    stops = StopTexts(tokenizer, arguments, tokens.eos, rows, prompt_length)
    finite = FiniteLogits(prompt_length)
    output = model.generate(
        **batch,
        generation_config=_config(tokens, arguments),
        logits_processor=[
            finite,
            *processors(arguments, row_keys, prompt_length, batch["attention_mask"]),
        ],
        stopping_criteria=[stops] if arguments.stop else [],
    )
    generated = output[:, prompt_length:].tolist()
    completions = [
        completion(tokenizer, row, tokens.eos, arguments, stopped)
        for row, stopped in zip(generated, stops.stopped_at, strict=True)
    ]
    if bad := finite.rows([one.n_tokens for one in completions]):
        raise NotFiniteError(bad)
    return completions


def completion(
    tokenizer: PreTrainedTokenizerBase,
    row: list[int],
    eos: tuple[int, ...],
    arguments: GenerationArguments,
    stopped_at: int | None,
) -> Completion:
    """One row's tokens (padding behind its end included) as a response."""
    end = next((at for at, token in enumerate(row) if token in eos), None)
    ended = end is not None and (stopped_at is None or end < stopped_at)
    content = row[:end] if ended else row[:stopped_at]
    text = tokenizer.decode(
        content, skip_special_tokens=arguments.skip_special_tokens, clean_up_tokenization_spaces=False
    )
    text, cut = cut_at(text, arguments.stop)
    stopped = ended or cut or stopped_at is not None
    return Completion(text, len(content) + int(ended), "stop" if stopped else "length")

"""How tokens are drawn: content-keyed noise, one decoding step, and a whole call of `generate`."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    MinPLogitsWarper,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dcsft_harness.lmms.protocols import FinishReason, cut_at

from .arguments import GenerationArguments
from .shared_prefix import Prompts

# Content-keyed sampling: the noise is a function of what is sampled, not of when.
#
# Adding an independent Gumbel draw to each logit and taking the largest is an exact draw from their softmax
# (the Gumbel-max trick). Here the draw of a token is a hash of (seed, item, sample index, step, token id), so
# batch size, order, process count and restarts cannot change it. The hash is SplitMix64 (Steele, Lea and
# Flood, OOPSLA 2014): row key and step choose the state of one stream, the token id is the position in it.

_MASK = (1 << 64) - 1
_SIGN = 1 << 63


def _signed(value: int) -> int:
    """An unsigned 64-bit number as the int64 of the same bits."""
    value &= _MASK
    return value - (1 << 64) if value & _SIGN else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def row_key(seed: int, item_key: str, sample_index: int) -> int:
    """The int64 key of a row's random stream.

    `item_key` is the item's content hash, as text; `sample_index` counts its responses from 0.
    """
    digest = hashlib.sha256(f"{seed}\0{sample_index}\0{item_key}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64; torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function, elementwise on int64 (products wrap)."""
    value = (value ^ _shift(value, 30)) * _MIX_1
    value = (value ^ _shift(value, 27)) * _MIX_2
    return value ^ _shift(value, 31)


def uniforms(row_keys: torch.Tensor, step: int | torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Uniform draws in the open interval (0, 1), float64.

    `row_keys` are int64, of any shape that broadcasts with the token ids; `step` is the tokens that the row
    has generated so far, a number or a tensor shaped as `row_keys`.
    """
    offset = _signed((step + 1) * _GOLDEN) if isinstance(step, int) else (step + 1) * _GOLDEN
    state = _mix(row_keys + offset)
    bits = _mix(state + (tokens + 1) * _GOLDEN)
    # 52 bits and a half: with 53 the largest value would round to 1, whose Gumbel is infinite.
    return (_shift(bits, 12).double() + 0.5) * 2.0**-52


def gumbels(row_keys: torch.Tensor, step: int | torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel draws, float64, shaped as the arguments broadcast (see `uniforms`)."""
    return -torch.log(-torch.log(uniforms(row_keys, step, tokens)))


def noisy(
    scores: torch.Tensor, row_keys: torch.Tensor, step: int | torch.Tensor, sparse: bool
) -> torch.Tensor:
    """Scores with the noise of one step.

    `scores` are float32 `(rows, vocabulary)`, minus infinity where a token is ruled out; `row_keys` int64
    `(rows,)`; `step` the tokens generated so far, also as int64 `(rows,)`. `sparse`: most tokens are ruled
    out, and only the others get noise. Returns float64 `(rows, vocabulary)` whose row-wise argmax is the
    draw.
    """
    summed = scores.double()
    if sparse:
        rows, tokens = torch.nonzero(torch.isfinite(scores), as_tuple=True)
        summed[rows, tokens] += gumbels(row_keys[rows], step if isinstance(step, int) else step[rows], tokens)
        return summed
    tokens = torch.arange(scores.shape[1], device=scores.device)
    return summed + gumbels(row_keys[:, None], step if isinstance(step, int) else step[:, None], tokens)


class KeyedGumbel:
    """The last logits processor of a sampled generation: makes greedy search draw."""

    def __init__(self, row_keys: list[int], prompt_length: int, sparse: bool) -> None:
        """Noise for one call of `generate`, from one key per row of the batch, see `row_key`.

        `prompt_length` columns come before the first generated token. `sparse`: see `noisy`.
        """
        self._keys = torch.tensor(row_keys, dtype=torch.int64)
        self._prompt_length = prompt_length
        self._sparse = sparse

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Adds this step's noise to float32 `(rows, vocabulary)`; the float64 result's argmax is drawn."""
        self._keys = self._keys.to(scores.device)
        return noisy(scores, self._keys, input_ids.shape[1] - self._prompt_length, self._sparse)


# One call of transformers' `generate` for a batch of rows, and each row's response.


NOT_FINITE = -1
"""Replaces a token: the row's logits are not finite, so none could be chosen."""


class NotFiniteError(Exception):
    """Logits are not finite.

    Attributes:
        places: rows of a batch, items of a batch, or tickets, depending on the raising function.
    """

    def __init__(self, places: Iterable[int]) -> None:
        """Takes the places."""
        super().__init__("logits are not finite")
        self.places = set(places)


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that steer generation."""

    pad: int  # fills short prompts and finished rows
    bos: int | None  # begins a sequence, where a model has such a token
    eos: tuple[int, ...]  # end a response; every id that the checkpoint names, in any of its files

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        generation_config: GenerationConfig,
        config: PreTrainedConfig | None = None,
    ) -> "SpecialTokens":
        """The union of what a checkpoint's tokenizer, generation config and configuration name.

        An id that a class of configurations has by default may be an ordinary token of this vocabulary: only
        special tokens count there.
        """
        found = [*_ids(generation_config.eos_token_id), *_ids(tokenizer.eos_token_id)]
        special = set(_special(tokenizer).values())
        for part in () if config is None else (config, config.get_text_config()):
            found += [token for token in _ids(getattr(part, "eos_token_id", None)) if token in special]
        eos = tuple(dict.fromkeys(found))
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else generation_config.pad_token_id
        return cls(pad if pad is not None else (eos[0] if eos else 0), tokenizer.bos_token_id, eos)

    def stopping_at(self, tokenizer: PreTrainedTokenizerBase, stops: tuple[str, ...]) -> "SpecialTokens":
        """With the ids of stop texts that are special tokens, which decoded text never shows."""
        special = _special(tokenizer)
        extra = [special[stop] for stop in stops if stop in special]
        return SpecialTokens(self.pad, self.bos, tuple(dict.fromkeys((*self.eos, *extra))))

    def neutral_config(self) -> GenerationConfig:
        """A generation config that names tokens and nothing else."""
        return GenerationConfig(
            pad_token_id=self.pad, bos_token_id=self.bos, eos_token_id=list(self.eos) or None
        )


def _ids(given: int | list[int] | None) -> list[int]:
    return given if isinstance(given, list) else [] if given is None else [given]


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Text -> id of the tokens that decoding leaves out: `all_special_tokens` has only those with a role."""
    added = {str(one): token for token, one in tokenizer.added_tokens_decoder.items() if one.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


@dataclass(frozen=True)
class Completion:
    """What one row generated."""

    text: str
    n_tokens: int  # tokens generated, the end token or those of the stop text included
    finish_reason: FinishReason  # "stop" or "length"


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
        """A criterion for `rows` of a `generate` call, whose first `prompt_length` columns are prompts."""
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
    """A logits processor that changes nothing and records where a row's logits stop being finite.

    Attributes:
        first: int64 `(rows,)` on the logits' device, tokens generated before; -1 while they are finite.
    """

    def __init__(self, prompt_length: int) -> None:
        """For a batch whose prompts have this length, padding included."""
        self._prompt_length = prompt_length
        self.first: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores unchanged; never waits for the device."""
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
    """The warpers of a sampled distribution, in the order of transformers' own sampling."""
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

    transformers' own processor counts a short prompt's padding as its token, and the padding token often ends
    responses: rows would depend on the rest of their batch.
    """

    def __init__(self, penalty: float, attention_mask: Tensor) -> None:
        """A processor for one batch.

        `penalty` divides positive scores and multiplies negative ones; `attention_mask` is `(rows, prompt
        length)`, 0 on the left where a row has padding.
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
    """The logits processors after `generate`'s own: the penalty, and keyed sampling noise."""
    penalties: list[Any] = []
    if arguments.repetition_penalty != 1.0:
        penalties.append(RepetitionPenalty(arguments.repetition_penalty, attention_mask))
    if arguments.greedy:
        return penalties
    chain = warpers(arguments)
    return [*penalties, *chain, KeyedGumbel(row_keys, prompt_length, sparse=len(chain) > 1)]


def _config(tokens: SpecialTokens, arguments: GenerationArguments) -> GenerationConfig:
    """The generation config for `generate` itself: greedy search up to a length."""
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
    """Generates one response per row of a left-padded batch on the model's device.

    The model is in evaluation mode, and its own generation config neutral. `row_keys` are the int64 keys of
    the rows' draws (`row_key`); unused when greedy.

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
        logits_processor=[finite, *processors(arguments, row_keys, prompt_length, batch["attention_mask"])],
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
    """One row's tokens (trailing padding included) as a response."""
    end = next((at for at, token in enumerate(row) if token in eos), None)
    ended = end is not None and (stopped_at is None or end < stopped_at)
    content = row[:end] if ended else row[:stopped_at]
    text = tokenizer.decode(
        content, skip_special_tokens=arguments.skip_special_tokens, clean_up_tokenization_spaces=False
    )
    text, cut = cut_at(text, arguments.stop)
    stopped = ended or cut or stopped_at is not None
    return Completion(text, len(content) + int(ended), "stop" if stopped else "length")


# One step's logits in, one token per row out: penalty, least length, warpers, keyed noise.

# Elements of one block of scores that noise is drawn for: int64 and float64 temporaries of a
# large batch and vocabulary would otherwise exceed the model's own memory.
_BLOCK = 1 << 24


def _ruled(
    scores: Tensor, arguments: GenerationArguments, eos: Tensor, seen: Tensor | None, steps: Tensor
) -> Tensor:
    """Scores after the repetition penalty, with end tokens ruled out before the least length.

    Scores are float32 `(rows, vocabulary)`; `eos` are ids that end a row; `seen`, bool `(rows, vocabulary)`,
    are tokens of prompt and response, None without a penalty; `steps`, int64 `(rows,)`, tokens generated
    before.
    """
    if seen is not None:
        penalty = arguments.repetition_penalty
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    if arguments.min_new_tokens and len(eos):
        early = (steps < arguments.min_new_tokens)[:, None]
        scores = scores.index_copy(1, eos, scores[:, eos].masked_fill(early, -torch.inf))
    return scores


def distribution(
    logits: Tensor, arguments: GenerationArguments, eos: tuple[int, ...], prompt: Tensor, response: Tensor
) -> Tensor:
    """The probabilities from which a sampled response's tokens are drawn.

    `logits` are `(steps, vocabulary)`: after the prompt, and after each further token of the response; the
    last ones follow all of it. `prompt` and `response` are int64 token ids, `eos` the ids that end a
    response; the temperature is above 0. Returns float64 `(steps, vocabulary)`, rows sum to 1; NaN where
    logits are not finite.
    """
    count, device = len(logits), logits.device
    steps = torch.arange(len(response) + 1 - count, len(response) + 1, device=device)
    seen = None
    if arguments.repetition_penalty != 1.0:
        seen = torch.zeros(logits.shape, dtype=torch.bool, device=device)
        seen[:, prompt] = True
        for row, step in enumerate(steps.tolist()):
            seen[row, response[:step]] = True
    ends = torch.tensor(eos, dtype=torch.int64, device=device)
    scores = _ruled(logits.float(), arguments, ends, seen, steps)
    for warper in warpers(arguments):
        scores = warper(steps[:, None], scores)  # the warpers in use look at scores alone
    return torch.softmax(scores.double(), dim=-1)


class Draw:
    """Chooses the next token of every row in a batch of changing size.

    The same arithmetic, in the same order, as the logits processors of `decoding.complete`.
    """

    def __init__(
        self,
        arguments: GenerationArguments,
        eos: tuple[int, ...],
        row_keys: Tensor,
        prompts: Prompts,
        item_of_row: Tensor,
    ) -> None:
        """A draw for rows without tokens; keys and numbers of their prompts are int64 `(rows,)`."""
        self._arguments, self._keys, self._steps = arguments, row_keys, torch.zeros_like(row_keys)
        self._eos = torch.tensor(eos, dtype=torch.int64, device=row_keys.device)
        self._warpers = [] if arguments.greedy else warpers(arguments)
        self._seen = None
        if arguments.repetition_penalty != 1.0:
            self._seen = _tokens_of(prompts)[item_of_row]

    def __call__(self, logits: Tensor) -> Tensor:
        """The int64 `(rows,)` next tokens, from `(rows, vocabulary)` logits of any float type.

        `NOT_FINITE` for a row whose logits hold NaN or infinity, or -infinity alone.
        """
        scores = _ruled(logits.float(), self._arguments, self._eos, self._seen, self._steps)
        tokens, likeliest = self._chosen(scores)
        self._steps = self._steps + 1
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        # Read together with the tokens, so that the check costs no wait for the device.
        return tokens.masked_fill(~likeliest.isfinite(), NOT_FINITE)

    def keep_rows(self, rows: Tensor) -> None:
        """Keeps only the rows in int64 `rows`, in that order."""
        self._keys, self._steps = self._keys[rows], self._steps[rows]
        if self._seen is not None:
            self._seen = self._seen[rows]

    def append(self, other: "Draw") -> None:
        """Appends the rows of another draw with the same arguments."""
        self._keys = torch.cat((self._keys, other._keys))
        self._steps = torch.cat((self._steps, other._steps))
        if self._seen is not None and other._seen is not None:
            self._seen = torch.cat((self._seen, other._seen))

    def _chosen(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The argmax, with noise unless greedy, and the largest score without; a NaN counts as largest."""
        if self._arguments.greedy:
            largest, tokens = scores.max(-1)
            return tokens, largest
        size = max(1, _BLOCK // scores.shape[1])
        blocks = zip(*(torch.split(one, size) for one in (scores, self._keys, self._steps)), strict=True)
        found = [self._sampled(*block) for block in blocks]
        return torch.cat([tokens for tokens, _ in found]), torch.cat([largest for _, largest in found])

    def _sampled(self, scores: Tensor, keys: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        kept = self._likeliest(scores / self._arguments.temperature)
        if kept is None:
            noised = noisy(self._warped(scores), keys, steps, sparse=len(self._warpers) > 1)
            return noised.argmax(-1), scores.amax(-1)
        # Everything after top-k works on k columns; their token ids key the noise.
        values, tokens = kept
        largest = values[:, 0]
        for warper in self._warpers[2:]:
            values = warper(tokens, values)
        values = values.double() + gumbels(keys[:, None], steps[:, None], tokens)
        return tokens.gather(1, values.argmax(-1, keepdim=True))[:, 0], largest

    def _likeliest(self, scores: Tensor) -> tuple[Tensor, Tensor] | None:
        """What top-k keeps, as scores and token ids `(rows, k)`; None where a tie keeps more."""
        k = self._arguments.top_k
        if not 0 < k < scores.shape[1]:
            return None
        values, tokens = scores.topk(k)
        # One number for all rows: every row keeps at least k.
        return (values, tokens) if int((scores >= values[:, -1:]).sum()) == values.numel() else None

    def _warped(self, scores: Tensor) -> Tensor:
        no_tokens = self._keys[:, None]  # the warpers in use look at scores alone
        for warper in self._warpers:
            scores = warper(no_tokens, scores)
        return scores


def _tokens_of(prompts: Prompts) -> Tensor:
    """Bool `(items, vocabulary)`: the tokens of each prompt."""
    shape = (len(prompts), prompts.logits.shape[1])
    counts = torch.zeros(shape, dtype=torch.int32, device=prompts.tokens.device)
    # Padding is not part of the prompt, though it has a token id.
    counts.scatter_add_(1, prompts.tokens, (prompts.attention_mask != 0).int())
    return counts > 0

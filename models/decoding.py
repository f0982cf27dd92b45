"""How tokens are drawn: content-keyed noise, one decoding step, and the response that tokens make."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    MinPLogitsWarper,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dcsft_harness.lmms.protocols import FinishReason, cut_at

from .arguments import GenerationArguments

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


def uniforms(row_keys: torch.Tensor, steps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Uniform draws in the open interval (0, 1), float64.

    `row_keys` are int64, of any shape that broadcasts with the token ids; `steps` are the tokens that each
    row has generated so far.
    """
    state = _mix(row_keys + (steps + 1) * _GOLDEN)
    bits = _mix(state + (tokens + 1) * _GOLDEN)
    # 52 bits and a half: with 53 the largest value would round to 1, whose Gumbel is infinite.
    return (_shift(bits, 12).double() + 0.5) * 2.0**-52


def gumbels(row_keys: torch.Tensor, steps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel draws, float64, shaped as the arguments broadcast (see `uniforms`)."""
    return -torch.log(-torch.log(uniforms(row_keys, steps, tokens)))


def noisy(scores: torch.Tensor, row_keys: torch.Tensor, steps: torch.Tensor, sparse: bool) -> torch.Tensor:
    """Scores with the noise of one step.

    `scores` are float32 `(rows, vocabulary)`, minus infinity where a token is ruled out; `row_keys` and
    `steps`, the tokens generated so far, int64 `(rows,)`. `sparse`: most tokens are ruled out, and only
    the others get noise. Returns float64 `(rows, vocabulary)` whose row-wise argmax is the draw.
    """
    summed = scores.double()
    if sparse:
        rows, tokens = torch.nonzero(torch.isfinite(scores), as_tuple=True)
        summed[rows, tokens] += gumbels(row_keys[rows], steps[rows], tokens)
        return summed
    tokens = torch.arange(scores.shape[1], device=scores.device)
    return summed + gumbels(row_keys[:, None], steps[:, None], tokens)


# A row's response: where it ends, and its text.

NOT_FINITE = -1
"""Replaces a token: the row's logits are not finite, so none could be chosen."""


class NotFiniteError(Exception):
    """Logits are not finite.

    Attributes:
        tickets: those of the rows' items.
    """

    def __init__(self, tickets: Iterable[int]) -> None:
        """Takes the tickets."""
        super().__init__("logits are not finite")
        self.tickets = set(tickets)


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


class Endings:
    """Where a row's tokens end as a response, and what it says.

    A response ends at an end token, or as soon as its text contains a stop text. For that, only the last
    tokens are decoded at each step: a byte of a stop text takes at most one token, so a window of that many
    (and a few for what decoding joins) cannot miss it.

    Attributes:
        tokens: the special tokens, with stop texts that are special among those that end a response.
        most: the most tokens of a response.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, arguments: GenerationArguments, tokens: SpecialTokens
    ) -> None:
        """Reads the stop texts, and whether special tokens are text; `tokens` are the checkpoint's."""
        self._tokenizer, self._stops, self.most = tokenizer, arguments.stop, arguments.max_new_tokens
        self._skip_special_tokens = arguments.skip_special_tokens
        self.tokens = tokens.stopping_at(tokenizer, arguments.stop)
        self._eos = frozenset(self.tokens.eos)
        self._window = max((len(stop.encode()) for stop in arguments.stop), default=0) + 4

    def text(self, tokens: list[int]) -> str:
        """Tokens as the text of a response."""
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=self._skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def stopped(self, tokens: list[int]) -> bool:
        """Whether a row's last token, of those it has generated, completes a stop text."""
        if not self._stops or tokens[-1] in self._eos:
            return False
        text = self.text(tokens[-self._window :])
        return any(stop in text for stop in self._stops)

    def completion(self, row: list[int], stopped_at: int | None) -> Completion:
        """One row's tokens as a response; `stopped_at` is their number when it reached a stop text."""
        end = next((at for at, token in enumerate(row) if token in self._eos), None)
        ended = end is not None and (stopped_at is None or end < stopped_at)
        content = row[:end] if ended else row[:stopped_at]
        text, cut = cut_at(self.text(content), self._stops)
        stopped = ended or cut or stopped_at is not None
        return Completion(text, len(content) + int(ended), "stop" if stopped else "length")

    def cut(self, row: list[int]) -> Completion:
        """`completion` of a row that another engine generated, which may continue behind a stop text."""
        reached = None
        if self._stops and cut_at(self.text(row), self._stops)[1]:
            # The token that completed it is found as in rows of this engine, one token at a time.
            reached = next((at for at in range(1, len(row) + 1) if self.stopped(row[:at])), None)
        return self.completion(row, reached)


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
    """Chooses the next token of every row in a batch of changing size."""

    def __init__(
        self,
        arguments: GenerationArguments,
        eos: tuple[int, ...],
        row_keys: Tensor,
        prompts: Tensor,
        attention_mask: Tensor,
        item_of_row: Tensor,
    ) -> None:
        """A draw for rows without tokens.

        The token ids and mask of prompts are `(items, prompt)`; the rows' keys, and the items that they
        continue, int64 `(rows,)`.
        """
        self._arguments, self._keys, self._steps = arguments, row_keys, torch.zeros_like(row_keys)
        self._eos = torch.tensor(eos, dtype=torch.int64, device=row_keys.device)
        self._warpers = [] if arguments.greedy else warpers(arguments)
        self._prompts = prompts, attention_mask, item_of_row
        self._seen: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """The int64 `(rows,)` next tokens, from `(rows, vocabulary)` logits of any float type.

        `NOT_FINITE` for a row whose logits hold NaN or infinity, or -infinity alone.
        """
        if self._seen is None and self._arguments.repetition_penalty != 1.0:
            prompts, mask, item_of_row = self._prompts
            self._seen = _tokens_of(prompts, mask, logits.shape[1])[item_of_row]
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


def _tokens_of(prompts: Tensor, mask: Tensor, vocabulary: int) -> Tensor:
    """Bool `(items, vocabulary)`: the tokens of each prompt."""
    counts = torch.zeros((len(prompts), vocabulary), dtype=torch.int32, device=prompts.device)
    # Padding is not part of the prompt, though it has a token id.
    counts.scatter_add_(1, prompts, (mask != 0).int())
    return counts > 0

"""One step's logits in, one token a row out: penalty, least length, warpers, keyed noise."""

import torch
from torch import Tensor

from .arguments import GenerationArguments
from .decoding import NOT_FINITE, warpers
from .keyed_noise import gumbels, noisy
from .prefill import Prompts

# Elements of one block of scores that noise is drawn for: int64 and float64 temporaries of a
# large batch and vocabulary would otherwise exceed the model's own memory.
_BLOCK = 1 << 24


class Draw:
    """Chooses the next token of every row of a batch that shrinks and grows.

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
        """A draw for rows that have no tokens yet.

        Args:
            arguments: how tokens are chosen.
            eos: ids that end a row.
            row_keys: int64 `(rows,)`, from `keyed_noise.row_key`.
            prompts: what the rows continue.
            item_of_row: int64 `(rows,)`, which of the prompts.
        """
        self._arguments, self._keys, self._steps = arguments, row_keys, torch.zeros_like(row_keys)
        self._eos = torch.tensor(eos, dtype=torch.int64, device=row_keys.device)
        self._warpers = [] if arguments.greedy else warpers(arguments)
        self._seen = None
        if arguments.repetition_penalty != 1.0:
            self._seen = _tokens_of(prompts)[item_of_row]

    def __call__(self, logits: Tensor) -> Tensor:
        """The next token of every row.

        Args:
            logits: `(rows, vocabulary)` of any float type.

        Returns:
            int64 `(rows,)`; `NOT_FINITE` for a row whose logits hold NaN or infinity, or -infinity alone.
        """
        scores = logits.float()
        if self._seen is not None:
            scores = self._penalised(scores, self._seen)
        if self._arguments.min_new_tokens and len(self._eos):
            early = (self._steps < self._arguments.min_new_tokens)[:, None]
            scores = scores.index_copy(1, self._eos, scores[:, self._eos].masked_fill(early, -torch.inf))
        tokens, likeliest = self._chosen(scores)
        self._steps = self._steps + 1
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        # Read with the tokens, so that looking costs no wait for the device.
        return tokens.masked_fill(~likeliest.isfinite(), NOT_FINITE)

    def keep_rows(self, rows: Tensor) -> None:
        """Drops all rows but those of int64 `rows`, and takes their order."""
        self._keys, self._steps = self._keys[rows], self._steps[rows]
        if self._seen is not None:
            self._seen = self._seen[rows]

    def append(self, other: "Draw") -> None:
        """Puts the rows of another draw with the same arguments behind these."""
        self._keys = torch.cat((self._keys, other._keys))
        self._steps = torch.cat((self._steps, other._steps))
        if self._seen is not None and other._seen is not None:
            self._seen = torch.cat((self._seen, other._seen))

    def _penalised(self, scores: Tensor, seen: Tensor) -> Tensor:
        """Scores with tokens of prompt and response made less likely."""
        penalty = self._arguments.repetition_penalty
        return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)

    def _chosen(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The argmax, with noise unless greedy, and the largest score without; a NaN counts as largest."""
        if self._arguments.greedy:
            largest, tokens = scores.max(-1)
            return tokens, largest
        size = max(1, _BLOCK // scores.shape[1])
        blocks = zip(scores.split(size), self._keys.split(size), self._steps.split(size), strict=True)
        chosen, largest = zip(*(self._sampled(*block) for block in blocks), strict=True)
        return torch.cat(chosen), torch.cat(largest)

    def _sampled(self, scores: Tensor, keys: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        kept = self._likeliest(scores / self._arguments.temperature)
        if kept is None:
            noised = noisy(self._warped(scores), keys, steps, sparse=len(self._warpers) > 1)
            return noised.argmax(-1), scores.amax(-1)
        # Everything behind top-k works on k columns; their token ids key the noise.
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
    """Bool `(items, vocabulary)`: which tokens each prompt has."""
    shape = (len(prompts), prompts.logits.shape[1])
    counts = torch.zeros(shape, dtype=torch.int32, device=prompts.tokens.device)
    # Padding is no token of the prompt, though a token id stands there.
    counts.scatter_add_(1, prompts.tokens, (prompts.attention_mask != 0).int())
    return counts > 0

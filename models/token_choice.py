"""One step's logits in, one token a row out: penalty, least length, warpers, keyed noise."""

import torch
from torch import Tensor

from .arguments import GenerationArguments
from .decoding import warpers
from .keyed_noise import gumbels, noisy

# Elements of one block of scores that noise is drawn for: int64 and float64 temporaries of a
# large batch and vocabulary would otherwise exceed the model's own memory.
_BLOCK = 1 << 24


class Draw:
    """Chooses the next token of every row of a batch that shrinks.

    The same arithmetic, in the same order, as the logits processors of `decoding.complete`.
    """

    def __init__(
        self,
        arguments: GenerationArguments,
        eos: tuple[int, ...],
        row_keys: Tensor,
        prompts: Tensor,
        attention_mask: Tensor,
        item_of_row: Tensor,
    ) -> None:
        """A draw for one batch.

        Args:
            arguments: how tokens are chosen.
            eos: ids that end a row.
            row_keys: int64 `(rows,)`, from `keyed_noise.row_key`.
            prompts: int64 `(items, prompt)` token ids.
            attention_mask: `(items, prompt)`, 0 at padding.
            item_of_row: int64 `(rows,)`.
        """
        self._arguments, self._keys = arguments, row_keys
        self._eos = torch.tensor(eos, dtype=torch.int64, device=row_keys.device)
        self._warpers = [] if arguments.greedy else warpers(arguments)
        self._prompts = (prompts, attention_mask, item_of_row)
        self._seen: Tensor | None = None

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        """The tokens of one step.

        Args:
            logits: `(rows, vocabulary)` of any float type.
            step: tokens that the rows have generated before this one.

        Returns:
            int64 `(rows,)`.
        """
        scores = logits.float()
        if self._arguments.repetition_penalty != 1.0:
            scores = self._penalised(scores)
        if step < self._arguments.min_new_tokens:
            scores = scores.index_fill(1, self._eos, -torch.inf)
        tokens = self._chosen(scores, step)
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        return tokens

    def keep_rows(self, rows: Tensor) -> None:
        """Drops all rows but those of int64 `rows`."""
        self._keys = self._keys[rows]
        if self._seen is not None:
            self._seen = self._seen[rows]

    def _penalised(self, scores: Tensor) -> Tensor:
        """Scores with tokens of prompt and response made less likely."""
        if self._seen is None:
            prompts, mask, item_of_row = self._prompts
            counts = torch.zeros(len(prompts), scores.shape[1], dtype=torch.int32, device=scores.device)
            # Padding is no token of the prompt, though a token id stands there.
            counts.scatter_add_(1, prompts, (mask != 0).int())
            self._seen = (counts > 0)[item_of_row]
        penalty = self._arguments.repetition_penalty
        return torch.where(self._seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)

    def _chosen(self, scores: Tensor, step: int) -> Tensor:
        """The argmax, with noise unless greedy."""
        if self._arguments.greedy:
            return scores.argmax(-1)
        size = max(1, _BLOCK // scores.shape[1])
        blocks = zip(scores.split(size), self._keys.split(size), strict=True)
        return torch.cat([self._sampled(block, keys, step) for block, keys in blocks])

    def _sampled(self, scores: Tensor, keys: Tensor, step: int) -> Tensor:
        kept = self._likeliest(scores / self._arguments.temperature)
        if kept is None:
            return noisy(self._warped(scores), keys, step, sparse=len(self._warpers) > 1).argmax(-1)
        # Everything behind top-k works on k columns; their token ids key the noise.
        values, tokens = kept
        for warper in self._warpers[2:]:
            values = warper(tokens, values)
        values = values.double() + gumbels(keys[:, None], step, tokens)
        return tokens.gather(1, values.argmax(-1, keepdim=True))[:, 0]

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

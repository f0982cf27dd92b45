"""Prepared items in, completions out: batches that fit in memory, prompts shared where possible."""

import gc
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dcsft_harness.errors import HarnessError

from .arguments import GenerationArguments
from .batching import Features, collate
from .decoding import Completion, SpecialTokens, complete
from .keyed_noise import row_key
from .packing import Footprint, Size, free_bytes, out_of_memory, pack
from .shared_decoding import complete_shared
from .shared_prompt import UnsuitedModelError
from .suitability import objection

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """An item that is ready to generate from.

    Attributes:
        name: the task and document, for errors.
        key: what the item is, for its draws.
        features: what the processor made of it.
        sample_indices: the rows wanted.
    """

    name: str
    key: str
    features: Features
    sample_indices: tuple[int, ...]


class Engine:
    """A loaded model and how batches go through it.

    Attributes:
        shares_prompts: whether the samples of an item share one prefill; None until tried.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tokens: SpecialTokens,
        image_names: Collection[str],
        memory_gb: float | None = None,
    ) -> None:
        """An engine that has generated nothing.

        Args:
            model: a transformers model, in evaluation mode, whose own generation config is neutral.
            tokenizer: its tokenizer.
            tokens: its special tokens.
            image_names: names that the image processor produces.
            memory_gb: what a batch may take beside the weights, in 10^9 bytes; None looks what is free.
        """
        self._model, self._tokenizer, self._tokens = model, tokenizer, tokens
        self._image_names = image_names
        self._footprint = Footprint.of(model)
        self._budget = float("inf") if memory_gb is None else memory_gb * 1e9
        self._look = memory_gb is None
        self.shares_prompts: bool | None = None

    def complete(
        self, prepared: Sequence[Prepared], arguments: GenerationArguments, seed: int
    ) -> list[list[Completion]]:
        """One completion per item and sample index, in order; greedy ones are one row copied.

        Raises:
            HarnessError: for an item that does not fit in memory by itself.
        """
        completions: dict[int, list[Completion]] = {}
        # Prompts with and without images have different features, which cannot share a batch.
        for names in dict.fromkeys(frozenset(one.features) for one in prepared):
            members = [at for at, one in enumerate(prepared) if frozenset(one.features) == names]
            shared = self._shares(prepared[members[0]], arguments)
            sizes = [self._size(prepared[at], arguments) for at in members]
            for batch in pack(sizes, self._footprint, self._allowed(), arguments.max_new_tokens, shared):
                chosen = [members[at] for at in batch]
                done = self._fitting([prepared[at] for at in chosen], arguments, seed)
                completions |= dict(zip(chosen, done, strict=True))
        copies = [len(one.sample_indices) if arguments.greedy else 1 for one in prepared]
        return [completions[at] * copies[at] for at in range(len(prepared))]

    def _shares(self, one: Prepared, arguments: GenerationArguments) -> bool:
        """Whether prompts are shared, tried on an item the first time."""
        if not arguments.use_cache:
            return False
        if self.shares_prompts is None:
            reason = self._tried(one, arguments)
            self.shares_prompts = reason is None
            if reason is not None:
                self._say(reason)
        return self.shares_prompts

    def _tried(self, one: Prepared, arguments: GenerationArguments) -> str | None:
        """Why prompts cannot be shared, if so."""
        try:
            return objection(self._model, self._batch([one.features]))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise self._too_large(one, arguments, error) from error

    def _say(self, reason: str) -> None:
        _LOG.warning(
            "%s: every sample goes through vision tower and prompt by itself, which is slower but draws the "
            "same (%s).",
            type(self._model).__name__,
            reason,
        )

    def _allowed(self) -> float:
        """Bytes that a batch may take."""
        return min(self._budget, free_bytes(self._model.device)) if self._look else self._budget

    def _size(self, one: Prepared, arguments: GenerationArguments) -> Size:
        images = sum(
            tensor.numel()
            for name, tensor in one.features.items()
            if name in self._image_names and tensor.is_floating_point()
        )
        rows = 1 if arguments.greedy else len(one.sample_indices)
        return Size(int(one.features["input_ids"].shape[1]), images, rows)

    def _fitting(
        self, items: list[Prepared], arguments: GenerationArguments, seed: int
    ) -> list[list[Completion]]:
        """Generates a batch, or its halves where it does not fit in memory."""
        try:
            return self._generate(items, arguments, seed)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(items) == 1:
                raise self._too_large(items[0], arguments, error) from error
        # Here, not in the handler: the error's traceback holds on to the batch's tensors.
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._halves(items, arguments, seed)

    def _too_large(self, one: Prepared, arguments: GenerationArguments, error: BaseException) -> HarnessError:
        size, reason = self._size(one, arguments), str(error).strip().split("\n")[0][:200]
        return HarnessError(
            f"{one.name}: a prompt of {size.tokens} tokens with {size.rows} responses of up to "
            f"{arguments.max_new_tokens} does not fit in the memory of {self._model.device} ({reason})",
            "Lower max_pixels, max_new_tokens or the number of samples, or use a device with more memory",
        )

    def _halves(
        self, items: list[Prepared], arguments: GenerationArguments, seed: int
    ) -> list[list[Completion]]:
        """The two halves of a batch that was too large, and smaller batches from now on."""
        sizes = [self._size(one, arguments) for one in items]
        taken = self._footprint.bytes(sizes, arguments.max_new_tokens, bool(self.shares_prompts))
        self._budget = min(self._budget, taken / 2)
        _LOG.warning("Out of memory with %d items at once; going on with half as many.", len(items))
        middle = (len(items) + 1) // 2
        return [
            *self._fitting(items[:middle], arguments, seed),
            *self._fitting(items[middle:], arguments, seed),
        ]

    def _generate(
        self, items: list[Prepared], arguments: GenerationArguments, seed: int
    ) -> list[list[Completion]]:
        """One completion per item and row."""
        indices = [one.sample_indices[:1] if arguments.greedy else one.sample_indices for one in items]
        keys = [
            [row_key(seed, one.key, index) for index in wanted]
            for one, wanted in zip(items, indices, strict=True)
        ]
        if self._shares(items[0], arguments):
            slices = (self._batch([one.features for one in part]) for part in self._slices(items))
            try:
                return complete_shared(self._model, self._tokenizer, self._tokens, slices, arguments, keys)
            except UnsuitedModelError as error:
                self.shares_prompts = False
                self._say(str(error))
        rows = [one.features for one, wanted in zip(items, indices, strict=True) for _ in wanted]
        flat = [key for wanted in keys for key in wanted]
        batch = self._batch(rows)
        done = iter(complete(self._model, self._tokenizer, self._tokens, batch, arguments, flat))
        return [[next(done) for _ in wanted] for wanted in indices]

    def _slices(self, items: list[Prepared]) -> list[list[Prepared]]:
        """Neighbours that prefill together."""
        slices: list[list[Prepared]] = []
        longest = 0
        for one in items:
            tokens = int(one.features["input_ids"].shape[1])
            longest = max(longest, tokens) if slices else tokens
            if slices and (len(slices[-1]) + 1) * longest <= self._footprint.slice_tokens:
                slices[-1].append(one)
            else:
                slices.append([one])
                longest = tokens
        return slices

    def _batch(self, rows: Sequence[Features]) -> dict[str, Tensor]:
        """The rows as one batch where the model is, pixels in the model's type."""
        return {
            name: tensor.to(self._model.device, self._model.dtype if tensor.is_floating_point() else None)
            for name, tensor in collate(rows, self._tokens.pad, self._image_names).items()
        }

"""A loaded model and what fits through it: batches, prefills, memory, the way without shared prompts."""

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
from .decoding import Completion, NotFiniteError, SpecialTokens, complete
from .flight import Flight
from .packing import Footprint, Size, free_bytes, out_of_memory
from .prefill import Prompts, prefill
from .suitability import objection

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """An item that is ready to generate from.

    Attributes:
        name: the task and document, for errors.
        key: what the item is, for its draws.
        features: what the processor made of it.
    """

    name: str
    key: str
    features: Features

    @property
    def tokens(self) -> int:
        """Tokens of its prompt, images included."""
        return int(self.features["input_ids"].shape[1])


class Engine:
    """A loaded model.

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

    def flight(self, arguments: GenerationArguments, hold: bool) -> Flight:
        """Nothing in flight yet; see `Flight`."""
        tokens = self._tokens.stopping_at(self._tokenizer, arguments.stop)
        return Flight(self._model, self._tokenizer, tokens, arguments, hold)

    def shares(self, one: Prepared, rows: int, arguments: GenerationArguments) -> bool:
        """Whether prompts are shared, tried on an item the first time.

        Raises:
            HarnessError: the item does not fit in memory by itself.
        """
        if not arguments.use_cache:
            return False
        if self.shares_prompts is None:
            try:
                reason = objection(self._model, self._batch([one.features]))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise self.too_large(one.name, self.size(one, rows), arguments, error) from error
            if reason is None:
                self.shares_prompts = True
            else:
                self.give_up(reason)
        return bool(self.shares_prompts)

    def give_up(self, reason: str) -> None:
        """No sharing from now on, and a word about it."""
        self.shares_prompts = False
        _LOG.warning(
            "%s: every sample goes through vision tower and prompt by itself, which is slower but draws the "
            "same (%s).",
            type(self._model).__name__,
            reason,
        )

    def allowed(self) -> float:
        """Bytes that what is in flight may take; to be asked while nothing is."""
        return min(self._budget, free_bytes(self._model.device)) if self._look else self._budget

    def needed(self, sizes: Sequence[Size], arguments: GenerationArguments) -> float:
        """Bytes that items take, beside the weights."""
        return self._footprint.bytes(sizes, arguments.max_new_tokens, bool(self.shares_prompts))

    def size(self, one: Prepared, rows: int) -> Size:
        """What an item's memory goes by."""
        images = sum(
            tensor.numel()
            for name, tensor in one.features.items()
            if name in self._image_names and tensor.is_floating_point()
        )
        return Size(one.tokens, images, rows)

    def shrink(self, sizes: Sequence[Size], arguments: GenerationArguments) -> None:
        """Half of what just did not fit, from now on; frees what it left."""
        self._budget = min(self._budget, self.needed(sizes, arguments) / 2)
        _LOG.warning("Out of memory with %d items at once; going on with half as many.", len(sizes))
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def too_large(
        self, name: str, size: Size, arguments: GenerationArguments, error: BaseException
    ) -> HarnessError:
        """The error of an item that does not fit by itself."""
        reason = str(error).strip().split("\n")[0][:200]
        return HarnessError(
            f"{name}: a prompt of {size.tokens} tokens with {size.rows} responses of up to "
            f"{arguments.max_new_tokens} does not fit in the memory of {self._model.device} ({reason})",
            "Lower max_pixels, max_new_tokens or the number of samples, or use a device with more memory",
        )

    def prefill(self, items: Sequence[Prepared]) -> list[Prompts]:
        """The prompts of neighbours, a slice at a time; all of them with features of the same names."""
        return [
            prefill(self._model, self._batch([one.features for one in part])) for part in self._slices(items)
        ]

    def row_by_row(
        self, items: Sequence[Prepared], row_keys: Sequence[list[int]], arguments: GenerationArguments
    ) -> list[list[Completion]]:
        """One completion per item and key, each with a prefill of its own.

        Raises:
            NotFiniteError: names the items whose logits are not finite, by their place.
        """
        rows = [one.features for one, keys in zip(items, row_keys, strict=True) for _ in keys]
        flat = [key for keys in row_keys for key in keys]
        batch = self._batch(rows)
        try:
            done = iter(complete(self._model, self._tokenizer, self._tokens, batch, arguments, flat))
        except NotFiniteError as error:
            owners = [place for place, keys in enumerate(row_keys) for _ in keys]
            raise NotFiniteError(owners[row] for row in error.places) from None
        return [[next(done) for _ in keys] for keys in row_keys]

    def _slices(self, items: Sequence[Prepared]) -> list[list[Prepared]]:
        """Neighbours that prefill together."""
        slices: list[list[Prepared]] = []
        longest = 0
        for one in items:
            longest = max(longest, one.tokens) if slices else one.tokens
            if slices and (len(slices[-1]) + 1) * longest <= self._footprint.slice_tokens:
                slices[-1].append(one)
            else:
                slices.append([one])
                longest = one.tokens
        return slices

    def _batch(self, rows: Sequence[Features]) -> dict[str, Tensor]:
        """The rows as one batch where the model is, pixels in the model's type."""
        return {
            name: tensor.to(self._model.device, self._model.dtype if tensor.is_floating_point() else None)
            for name, tensor in collate(rows, self._tokens.pad, self._image_names).items()
        }

"""A loaded model and what fits through it: batches, prefills, memory, the way without shared prompts."""

import gc
import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from dcsft_harness.errors import HarnessError

from .arguments import GenerationArguments
from .batching import Batcher, Prepared, Way
from .decoding import Completion, NotFiniteError, SpecialTokens, complete
from .flight import Flight
from .packing import Footprint, Size, free_bytes, out_of_memory
from .prefill import Prompts, prefill
from .suitability import Alone, alone, apart, objection

_LOG = logging.getLogger(__name__)


class Engine:
    """A loaded model.

    Attributes:
        shares_prompts: whether the samples of an item share one prefill; None until tried.
        way: how several prompts become one batch, one of `batching.Way`; tried with the former.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        tokens: SpecialTokens,
        memory_gb: float | None = None,
    ) -> None:
        """An engine that has generated nothing.

        Args:
            model: a transformers model, in evaluation mode, whose own generation config is neutral.
            processor: the checkpoint's.
            tokens: its special tokens.
            memory_gb: what a batch may take beside the weights, in 10^9 bytes; None looks what is free.
        """
        self._model, self._tokens = model, tokens
        self._tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        self._batcher = Batcher(processor, tokens.pad)
        self._footprint = Footprint.of(model)
        self._budget = float("inf") if memory_gb is None else memory_gb * 1e9
        self._look = memory_gb is None
        self.shares_prompts: bool | None = None

    def flight(self, arguments: GenerationArguments, hold: bool) -> Flight:
        """Nothing in flight yet; see `Flight`."""
        tokens = self._tokens.stopping_at(self._tokenizer, arguments.stop)
        return Flight(self._model, self._tokenizer, tokens, arguments, hold)

    @property
    def way(self) -> Way:
        """How several prompts become one batch."""
        return self._batcher.way

    def shares(self, one: Prepared, rows: int, arguments: GenerationArguments) -> bool:
        """Whether prompts are shared, tried on trials and an item the first time, as is how batches are made.

        Raises:
            HarnessError: the item does not fit in memory by itself.
        """
        if self.shares_prompts is None:
            try:
                reason = self._try(one)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise self.too_large(one.name, self.size(one, rows), arguments, error) from error
            if reason is None:
                self.shares_prompts = True
            else:
                self.give_up(reason)
        return bool(self.shares_prompts) and arguments.use_cache

    def _try(self, one: Prepared) -> str | None:
        """Decides how batches are made; returns why prompts cannot be shared, None where they can."""
        trials: list[tuple[Prepared, Alone]] = []
        for row in self._batcher.trials:
            made = alone(self._model, self._batch([row]))
            if isinstance(made, str):
                _LOG.info("%s: %s", row.name, made)
            else:
                trials.append((row, made))
        rows, known = [row for row, _ in trials], [made for _, made in trials]
        if len(rows) < 2:
            self._batcher.separate("it takes no chats with a picture to try it on")
        elif (reason := apart(self._model, lambda: self._batch(rows), known)) is not None:
            self._batcher.separate(reason)
        if self._batcher.way == "single":
            rows, known = rows[:1], known[:1]
        reason = objection(self._model, self._batch(rows), known) if rows else None
        return reason or objection(self._model, self._batch([one]))

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
        shares = bool(self.shares_prompts) and arguments.use_cache
        return self._footprint.bytes(sizes, arguments.max_new_tokens, shares)

    def size(self, one: Prepared, rows: int) -> Size:
        """What an item's memory goes by."""
        images = sum(
            tensor.numel()
            for name, tensor in one.features.items()
            if name in self._batcher.image_names and tensor.is_floating_point()
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
        return [prefill(self._model, self._batch(part)) for part in self._slices(items)]

    def row_by_row(
        self, items: Sequence[Prepared], row_keys: Sequence[list[int]], arguments: GenerationArguments
    ) -> list[list[Completion]]:
        """One completion per item and key, each with a prefill of its own.

        Raises:
            NotFiniteError: names the items whose logits are not finite, by their place.
        """
        rows = [one for one, keys in zip(items, row_keys, strict=True) for _ in keys]
        owners = [place for place, keys in enumerate(row_keys) for _ in keys]
        flat = [key for keys in row_keys for key in keys]
        at_once = 1 if self._batcher.way == "single" else max(len(rows), 1)
        done: list[Completion] = []
        bad: set[int] = set()
        for start in range(0, len(rows), at_once):
            some = slice(start, start + at_once)
            batch = self._batch(rows[some])
            try:
                done += complete(self._model, self._tokenizer, self._tokens, batch, arguments, flat[some])
            except NotFiniteError as error:
                bad |= {owners[start + row] for row in error.places}
        if bad:
            raise NotFiniteError(bad)
        left = iter(done)
        return [[next(left) for _ in keys] for keys in row_keys]

    def _slices(self, items: Sequence[Prepared]) -> list[list[Prepared]]:
        """Neighbours that prefill together."""
        slices: list[list[Prepared]] = []
        longest = 0
        for one in items:
            longest = max(longest, one.tokens) if slices else one.tokens
            fits = slices and (len(slices[-1]) + 1) * longest <= self._footprint.slice_tokens
            if fits and self._batcher.way != "single":
                slices[-1].append(one)
            else:
                slices.append([one])
                longest = one.tokens
        return slices

    def _batch(self, rows: Sequence[Prepared]) -> dict[str, Tensor]:
        """The rows as one batch where the model is, pixels in the model's type."""
        return {
            name: tensor.to(self._model.device, self._model.dtype if tensor.is_floating_point() else None)
            for name, tensor in self._batcher.batch(rows).items()
        }

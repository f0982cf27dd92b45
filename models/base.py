"""What the suite's models share: the way through a request list, and what watches it."""

import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm  # type: ignore[import-untyped]

from .conventions import PIXEL, BoxConvention, declare
from .generation import Generation
from .requests import Item, batches, plan


class ObservedModel(lmms):  # type: ignore[misc]
    """A chat model that answers items in batches and reports each batch as it is finished.

    Attributes:
        item_ids: (task, doc_id) to the content id that names an item across runs; draws are
            keyed with it. A model derives its own key for items that are missing here.
        on_batch: called with the responses of each batch before the next one begins.
        on_progress: called with (items done, items in all); None shows a bar on a terminal.
        seed: the seed that draws are keyed with where a task sets none.
        batch_size: most items answered at once.
    """

    is_simple = False

    def __init__(self) -> None:
        """A model with no observers and no content ids."""
        super().__init__()
        self.item_ids: dict[tuple[str, int], str] = {}
        self.on_batch: Callable[[list[Generation]], None] | None = None
        self.on_progress: Callable[[int, int], None] | None = None
        self.seed = 0
        self.batch_size = 1

    @property
    def box_convention(self) -> BoxConvention:
        """The coordinates that this model writes boxes in."""
        return PIXEL

    @abstractmethod
    def _answer(self, items: list[Item]) -> list[list[Generation]]:
        """The responses to items with equal generation arguments.

        Returns:
            per item, one `Generation` per sample index, in the item's order.
        """

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answers lmms-eval's requests, in their order.

        Raises:
            HarnessError: for an unsupported generation argument or an unreadable document,
                naming the task and the document.
        """
        declare(self.box_convention)
        items = plan(requests)
        results = [GenerationResult("", TokenCounts(0, 0)) for _ in requests]
        done, progress, close = 0, *self._progress(len(items))
        for batch in batches(items, self.batch_size):
            answered = self._answer(batch)
            for item, generations in zip(batch, answered, strict=True):
                for position, generation in zip(item.positions, generations, strict=True):
                    counts = TokenCounts(generation.n_prompt_tokens, generation.n_tokens)
                    results[position] = GenerationResult(generation.response, counts)
            if self.on_batch is not None:
                self.on_batch([generation for generations in answered for generation in generations])
            done += len(batch)
            progress(done, len(items))
        close()
        return results

    def _progress(self, total: int) -> tuple[Callable[[int, int], None], Callable[[], None]]:
        """What to call after each batch and at the end."""
        if self.on_progress is not None:
            return self.on_progress, lambda: None
        bar: tqdm = tqdm(total=total, disable=self.rank != 0 or not sys.stderr.isatty(), unit="item")
        return lambda done, _: bar.update(done - bar.n) and None, bar.close

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not supported: tasks of these models generate text."""
        raise NotImplementedError(f"{type(self).__name__} answers `output_type: generate_until` tasks only")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not supported: a document is one exchange."""
        raise NotImplementedError(
            f"{type(self).__name__} answers `output_type: generate_until` tasks only, one round per document"
        )

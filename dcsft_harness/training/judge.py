"""The reward of reinforcement learning: what the task's own scorer says of a completion."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dcsft_harness import lmms
from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import Response


@dataclass(frozen=True)
class Judge:
    """What the task's own scorer says of a completion, as in labelling and evaluation.

    Attributes:
        task: an lmms-eval task.
        doc_ids: content id of an item -> its position in the task's documents.
    """

    task: Any
    doc_ids: Mapping[str, int]

    def reward(self, item_id: str, response: str, truncated: bool = False) -> float | None:
        """The score of a response in [0, 1]; None where it cannot be scored.

        Args:
            item_id: the item.
            response: the text.
            truncated: whether it ran out of tokens.

        Raises:
            HarnessError: the task has no such item.
        """
        if item_id not in self.doc_ids:
            raise HarnessError(
                f"task {self.task.config.task} has no item {item_id}",
                "Give the task that the set was made from",
            )
        doc = self.task.eval_docs_no_media[self.doc_ids[item_id]]
        text = Response(lmms.filtered(self.task, response), truncated)
        metrics = self.task.process_results(doc, [text])
        return lmms.score_of(self.task, metrics)[0]

    @property
    def reads_boxes(self) -> bool:
        """Whether the scorer reads boxes, in the coordinates that the model is declared to write."""
        return (self.task.config.metadata or {}).get("family") == "grounding"

    @property
    def longest(self) -> int:
        """The task's own limit on a response, in tokens."""
        return int((self.task.config.generation_kwargs or {}).get("max_new_tokens", 1024))

"""The items that a run samples, and what its responses come to: scores, rows and counts."""

from collections.abc import Mapping, Sequence
from typing import Any

from dcsft_harness import harness, records
from dcsft_harness.errors import HarnessError
from dcsft_harness.rollout_store import Draw, RolloutStore

DRAWN = ("sample_index", "response", "n_prompt_tokens", "n_tokens", "finish_reason", "seed")
"""What a model's `Generation` and a kept `Draw` have in common."""


class Pool:
    """The items of a run and how they are scored.

    Attributes:
        items: in order of the task's documents.
    """

    def __init__(self, task: Any, items: Sequence[records.Item], samples: int, seed: int) -> None:  # noqa: ANN401
        """Samples is G; seed is the run's."""
        self.items, self._task, self._samples, self._seed = items, task, samples, seed

    def generations(self, kept: Mapping[tuple[str, int], Draw]) -> dict[tuple[str, int, int], Any]:
        """Kept responses as a model takes them: by task, doc_id and sample index."""
        from dcsft_harness.models.generation import Generation

        doc_ids = {item.item_id: item for item in self.items}
        found = {}
        for (item_id, index), draw in kept.items():
            item = doc_ids[item_id]
            fields = {name: getattr(draw, name) for name in DRAWN}
            found[item.task, item.doc_id, index] = Generation(task=item.task, doc_id=item.doc_id, **fields)
        return found

    def rows(self, answered: Sequence[harness.Answered], store: RolloutStore) -> list[records.Rollout]:
        """Every response as a row, scored by the task.

        Args:
            answered: what lmms-eval returned, one entry an item, in their order.
            store: the responses as they are kept, with their counts; empty for a model that reports none.

        Raises:
            HarnessError: an item got another number of responses than G.
        """
        docs = self._task.eval_docs_no_media
        rows = []
        for item, got in zip(self.items, answered, strict=True):
            if len(got.responses) != self._samples:
                raise HarnessError(
                    f"task {item.task}, doc_id {item.doc_id}: {len(got.responses)} responses came back, not"
                    f" {self._samples}",
                    "The model or the task's filters drop repeated generations",
                )
            for index, response in enumerate(got.responses):
                metrics = self._task.process_results(docs[item.doc_id], [response])
                score, extracted, _ = harness.score_of(self._task, metrics)
                rows.append(self._row(item, index, response, score, extracted, store))
        return rows

    def _row(
        self,
        item: records.Item,
        index: int,
        response: str,
        score: float | None,
        extracted: str | None,
        store: RolloutStore,
    ) -> records.Rollout:
        draw = store.kept.get((item.item_id, index))
        return records.Rollout(
            item_id=item.item_id,
            sample_index=index,
            response=response,
            score=score,
            extracted=extracted,
            n_tokens=draw.n_tokens if draw else 0,
            finish_reason=draw.finish_reason if draw else "unknown",
            seed=self._seed,
            task=item.task,
            prompt=item.prompt,
            answer=item.answer,
        )

    def notes(self, rows: Sequence[records.Rollout], store: RolloutStore) -> dict[str, Any]:
        """What the manifest says of a run's rows."""
        scored = [row.score for row in rows if row.score is not None]
        first = [draw for (_, index), draw in store.kept.items() if index == 0]
        return {
            "items": len(self.items),
            "responses": len(rows),
            "unscored": len(rows) - len(scored),
            "unanswered": sum(row.extracted is None for row in rows),
            "accuracy": sum(scored) / len(scored) if scored else None,
            "prompt_tokens": sum(draw.n_prompt_tokens for draw in first),
            "generated_tokens": sum(row.n_tokens for row in rows),
            "generation_seconds": round(store.generation_seconds, 3),
            "resumed": store.resumed,
            "damaged": store.damaged,
        }

"""The items of a sampling run, and what is made of their responses: verdicts, rows and counts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dcsft_harness import lmms, records
from dcsft_harness.artifacts.usage import NOTE, UNKNOWN, Ledger, prefilled, unknown
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.sampling.rollout_store import Draw, RolloutStore

if TYPE_CHECKING:
    from dcsft_harness.lmms.protocols import Generation
    from dcsft_harness.models.requests import Item

DRAWN = (
    "sample_index",
    "response",
    "n_prompt_tokens",
    "n_tokens",
    "finish_reason",
    "seed",
    "flops",
    "n_prefilled",
)
"""The common part of a model's `Generation` and a kept `Draw`."""

Verdict = tuple[float | None, str | None]
"""Score in [0, 1], None if there is none; and the extracted answer."""


ALL_WRONG = (
    "If the responses are right, name another --scorer; `dcsft data inspect` shows prompt and gold. If"
    " they are wrong, the rows are too hard for this model: begin with `dcsft train cold-start`, a larger"
    " model, or easier rows"
)
"""The remedy where no response is right."""


def unsolved(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Why no response is right: counts, and the first example; None if one is.

    From rows of `records.Rollout`: responses; of these unanswered (no answer found), wrong, unscored and
    truncated (counted separately); and gold and response of the first scored one.
    """
    found: dict[str, Any] = dict.fromkeys(("responses", "unanswered", "wrong", "unscored", "truncated"), 0)
    for row in rows:
        if row["finish_reason"] == "error":
            continue
        found["responses"] += 1
        found["truncated"] += row["finish_reason"] == "length"
        if row["score"] is None:
            found["unscored"] += 1
            continue
        if row["score"] > 0:
            return None
        found["unanswered" if row["extracted"] is None else "wrong"] += 1
        found.setdefault("gold", row["answer"])
        found.setdefault("response", row["response"])
    return found if "gold" in found else None


def advice(found: Mapping[str, Any]) -> tuple[str, str]:
    """The result of `unsolved` as a problem and a remedy."""
    words = {"unanswered": "without an answer", "wrong": "wrong", "unscored": "not scored"}
    parts = [f"{found[name]} {text}" for name, text in words.items() if found[name]]
    parts += [f"{found['truncated']} of them cut off at the limit of tokens"] if found["truncated"] else []
    gold, response = cut(repr(found["gold"]), 200), cut(repr(found["response"]), 400)
    problem = (
        f"none of {found['responses']} responses is right: {', '.join(parts)}. The first: gold {gold},"
        f" response {response}"
    )
    if 2 * found["truncated"] >= found["responses"]:
        return problem, "Raise --max-new-tokens"
    if 2 * found["unanswered"] >= found["responses"]:
        return problem, (
            "Say in the question how to answer, name the --scorer that reads such responses, or teach the"
            " form first with `dcsft train cold-start` on a few rows; `dcsft data inspect` shows what the"
            " model sees"
        )
    return problem, ALL_WRONG


def generations(
    items: Sequence[records.Item], kept: Mapping[tuple[str, int], Draw]
) -> dict[tuple[str, int, int], "Generation"]:
    """Kept responses as a model takes them: by task, doc_id and sample index."""
    from dcsft_harness.lmms.protocols import Generation

    by_id = {item.item_id: item for item in items}
    found = {}
    for (item_id, index), draw in kept.items():
        item = by_id[item_id]
        fields = {name: getattr(draw, name) for name in DRAWN}
        found[item.task, item.doc_id, index] = Generation(task=item.task, doc_id=item.doc_id, **fields)
    return found


class Pool:
    """The items of a run and their scoring.

    Attributes:
        items: in order of the task's documents.
        refused: (task, doc_id) -> why an item gets no responses; the model adds to it.
    """

    def __init__(
        self,
        task: lmms.Task,
        items: Sequence[records.Item],
        samples: int,
        seed: int,
        unreadable: Mapping[int, str],
    ) -> None:
        """A run's pool; `unreadable` is doc_id -> the reason, for items whose image cannot be read."""
        self.items, self._task, self._samples, self._seed = items, task, samples, seed
        self.refused = {(task.config.task, doc_id): reason for doc_id, reason in unreadable.items()}
        self._verdicts: dict[tuple[int, str], Verdict] = {}

    def settled(self, item: "Item", generations: Sequence["Generation"]) -> bool:
        """Whether the label can no longer change: one response is right and one wrong, so it is medium."""
        scores = [
            self._verdict(item.doc_id, lmms.filtered(self._task, one.response))[0] for one in generations
        ]
        return len({score >= records.RIGHT for score in scores if score is not None}) == 2

    def _verdict(self, doc_id: int, response: str) -> Verdict:
        """The task's score of a response; each response is scored once, during a round or at the end."""
        if (doc_id, response) not in self._verdicts:
            doc = self._task.eval_docs_no_media[doc_id]
            score, extracted, _ = lmms.score_of(self._task, self._task.process_results(doc, [response]))
            self._verdicts[doc_id, response] = (score, extracted)
        return self._verdicts[doc_id, response]

    def rows(self, answered: Sequence[lmms.Answered], store: RolloutStore) -> list[records.Rollout]:
        """Every response as a row, scored by the task; and a row with the reason for each refused item.

        `answered` has one entry per item, in their order; the store is empty for a model that reports no
        counts. Another number of responses than G, or none at all, is an error.
        """
        if len(self.refused) == len(self.items):
            raise HarnessError(
                f"not one of {len(self.items)} items could be answered: {next(iter(self.refused.values()))}"
            )
        rows = []
        for item, got in zip(self.items, answered, strict=True):
            if len(got.responses) != self._samples:
                raise HarnessError(
                    f"task {item.task}, doc_id {item.doc_id}: {len(got.responses)} responses came back, not"
                    f" {self._samples}",
                    "The model or the task's filters drop repeated generations",
                )
            rows += self._rows_of(item, got.responses, store)
        return rows

    def _rows_of(
        self, item: records.Item, responses: Sequence[str], store: RolloutStore
    ) -> list[records.Rollout]:
        reason = self.refused.get((item.task, item.doc_id))
        draws = [store.kept.get((item.item_id, index)) for index in range(self._samples)]
        # A response in lmms-eval's list but not in the store is a placeholder for one that was not drawn.
        drawn = [draw is not None or not store.kept for draw in draws]
        rows = []
        for index, (response, draw) in enumerate(zip(responses, draws, strict=True)):
            if not drawn[index] and reason is None:
                continue
            score, extracted = self._verdict(item.doc_id, response) if drawn[index] else (None, None)
            rows.append(
                records.Rollout(
                    item_id=item.item_id,
                    sample_index=index,
                    response=response,
                    score=score,
                    extracted=extracted,
                    n_tokens=draw.n_tokens if draw else 0,
                    finish_reason=draw.finish_reason if draw else "unknown" if drawn[index] else "error",
                    seed=self._seed,
                    task=item.task,
                    prompt=item.prompt,
                    answer=item.answer,
                    censored=reason is None and not all(drawn),
                    error=None if drawn[index] else reason,
                )
            )
        return rows

    def notes(
        self, rows: Sequence[records.Rollout], store: RolloutStore, peak_memory_bytes: int
    ) -> dict[str, Any]:
        """The manifest's notes on a run's rows and their cost."""
        drawn = [row for row in rows if row.error is None]
        scored = [row.score for row in drawn if row.score is not None]
        censored = len({row.item_id for row in rows if row.censored})
        first = [draw for (_, index), draw in store.kept.items() if index == 0]
        costs = [draw.flops for draw in store.kept.values()]
        ledger = Ledger(
            prompts=len(self.items) - len(self.refused),
            generated=len(drawn),
            prompt_tokens=sum(draw.n_prompt_tokens for draw in first),
            completion_tokens=sum(row.n_tokens for row in rows),
            flops=sum(cost or 0.0 for cost in costs),
            seconds=round(store.seconds, 3),
            peak_memory_bytes=peak_memory_bytes,
        )
        return {
            "task_version": self._task.VERSION,
            "items": len(self.items),
            "responses": len(drawn),
            "saved": len(self.items) * self._samples - len(rows),
            "censored": censored,
            "skipped": len(self.refused),
            "unscored": len(drawn) - len(scored),
            "unanswered": sum(row.extracted is None and row.score is not None for row in drawn),
            # Items that stop once they are mixed bias the share of right responses.
            "accuracy": sum(scored) / len(scored) if scored and not censored else None,
            "prompt_tokens": ledger.prompt_tokens,
            "generated_tokens": ledger.completion_tokens,
            "generation_seconds": round(store.generation_seconds, 3),
            "resumed": store.resumed,
            "damaged": store.damaged,
            NOTE: ledger.as_dict() | prefilled(draw.n_prefilled for draw in store.kept.values()),
            UNKNOWN: unknown(costs),
        }

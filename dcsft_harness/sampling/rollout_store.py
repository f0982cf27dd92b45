"""The responses of a sampling run: saved in an unfinished folder, resumed, and made into scored rows.

`dcsft sample` turns it into rollouts, `dcsft evaluate --samples` into scores.

    rollouts/unfinished/shard-0.jsonl   the responses so far, see `disk.Journal`
    rollouts/unfinished/shard-1.jsonl   and those of rank 1 in a launch
"""

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsft_harness import lmms, ranks, reading, records
from dcsft_harness.artifacts import manifest, resuming, usage
from dcsft_harness.artifacts.disk import Journal, json_sha256, read_records
from dcsft_harness.artifacts.lock import RUN
from dcsft_harness.artifacts.usage import NOTE, UNKNOWN, Ledger, prefilled, unknown
from dcsft_harness.errors import HarnessError, cut, reporting_refusals
from dcsft_harness.models.arguments import indifferent
from dcsft_harness.scoring.verdict import Response

if TYPE_CHECKING:
    from dcsft_harness.lmms.protocols import Generation
    from dcsft_harness.models.requests import Item

SHARD, SHARDS = "shard-0.jsonl", "shard-*.jsonl"
FORMAT = 1
SYNC_EVERY = 1.0
"""Seconds: a batch of short answers may take a tenth of one, much of which would be the wait for the disk."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draw:
    """One response as saved until the run is finished; scores are computed then."""

    # item_id, sample_index, response, n_tokens, finish_reason, seed: see `records.Rollout`
    item_id: str
    sample_index: int
    response: str
    n_prompt_tokens: int  # tokens of prompt and images together
    n_tokens: int
    finish_reason: str
    seed: int
    seconds: float  # its share of the wall-clock time of its batch
    flops: float | None = None  # see `lmms.protocols.Generation`, as the next ones
    n_prefilled: int | None = None
    copied: bool = False


class RolloutStore:
    """The saved responses of one run; created by `opened`.

    Attributes:
        kept: (item_id, sample_index) -> the response, of this process and of earlier ones.
        resumed: the number of those from earlier processes.
        damaged: the number of unreadable lines; their responses are drawn again.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any], kind: str = "rollouts") -> None:
        """Reads the saved responses of all ranks; this run must hold the folder's lock.

        `identity` is the folder's own settings, see `opened`.
        """
        self._output, self._folder, self._kind = output, output / manifest.UNFINISHED, kind
        self._started = self._last = time.monotonic()
        self._key = json_sha256([FORMAT, identity]).encode()
        found = {path.name: read_records(path, self._key) for path in sorted(self._folder.glob(SHARDS))}
        for name, one in found.items():
            if one.damaged:
                lines = ", ".join(map(str, one.damaged[:10]))
                _LOG.warning("%s: damaged at line %s; sampling it again", self._folder / name, lines)
        self.damaged = sum(len(one.damaged) for one in found.values())
        self.kept = self._without_contradictions(
            Draw(**record) for one in found.values() for record in one.records
        )
        self.resumed = len(self.kept)
        # Ranks draw at the same time, so the longest time counts.
        times = [sum(record["seconds"] for record in one.records) for one in found.values()]
        self._before = max(times, default=0)
        self._ends = {name: one.whole_bytes for name, one in found.items()}
        self._own = f"shard-{ranks.rank()}.jsonl"
        self._shard: Journal | None = None

    def open(self) -> None:
        """Opens this rank's own file, once every rank has read the saved responses.

        Raises:
            OSError: it cannot be written.
        """
        # Ranks of other machines read the file while it is open.
        every = SYNC_EVERY if ranks.world_size() == 1 else 0.0
        self._shard = Journal(self._folder / self._own, self._key, self._ends.get(self._own, 0), every)

    def collect(self) -> None:
        """Adds the responses that other ranks have saved meanwhile; they must be done."""
        others = (path for path in sorted(self._folder.glob(SHARDS)) if path.name != self._own)
        for path in others:
            for record in read_records(path, self._key, self._ends.get(path.name, 0)).records:
                draw = Draw(**record)
                self.kept[draw.item_id, draw.sample_index] = draw

    def _without_contradictions(self, draws: Iterable[Draw]) -> dict[tuple[str, int], Draw]:
        """Draws by item and sample; a sample that occurs twice with different texts is not kept."""
        kept: dict[tuple[str, int], Draw] = {}
        disputed: set[tuple[str, int]] = set()
        for draw in draws:
            place = (draw.item_id, draw.sample_index)
            if place in kept and kept[place].response != draw.response:
                _LOG.warning(
                    "%s: two responses to item %s, sample %d; sampling it again", self._folder, *place
                )
                disputed.add(place)
            kept[place] = draw
        return {place: draw for place, draw in kept.items() if place not in disputed}

    @property
    def seconds(self) -> float:
        """The run's wall-clock time, including earlier processes."""
        return self._before + time.monotonic() - self._started

    @property
    def generation_seconds(self) -> float:
        """The part of it in which the responses were generated, summed over ranks."""
        return sum(draw.seconds for draw in self.kept.values())

    def cost(self, items: int, responses: int, peak_memory_bytes: int) -> dict[str, Any]:
        """The notes on the run's cost: the responses that were generated, and the items that have one.

        Items without a response and copies of a greedy one cost nothing. A model that reports no responses
        has given as many `responses` to as many `items`.
        """
        made = [draw for draw in self.kept.values() if not draw.copied]
        prompts = {draw.item_id: draw.n_prompt_tokens for draw in made}
        costs = [draw.flops for draw in made]
        ledger = Ledger(
            prompts=len(prompts) if made else items,
            generated=len(made) if made else responses,
            prompt_tokens=sum(prompts.values()),
            completion_tokens=sum(draw.n_tokens for draw in made),
            flops=sum(cost or 0.0 for cost in costs),
            seconds=round(self.seconds, 3),
            peak_memory_bytes=peak_memory_bytes,
        )
        prefills = prefilled(draw.n_prefilled for draw in made)
        return {NOTE: ledger.as_dict() | prefills, UNKNOWN: unknown(costs)}

    def begin(self) -> None:
        """Starts the clock of the first batch."""
        self._last = time.monotonic()

    def append(self, batch: Iterable[Mapping[str, Any]]) -> None:
        """Saves a finished batch of `Draw`'s fields; see `disk.Journal`.

        The error of a full disk gives the number of saved responses.
        """
        rows = list(batch)
        now = time.monotonic()
        seconds = (now - self._last) / max(len(rows), 1)
        draws = [Draw(**row, seconds=round(seconds, 6)) for row in rows]
        assert self._shard is not None
        with self._refusing():
            self._shard.append(map(vars, draws))
        self.kept.update({(draw.item_id, draw.sample_index): draw for draw in draws})
        self._last = now

    @contextlib.contextmanager
    def finishing(self, config: Mapping[str, Any], inputs: Mapping[str, Path]) -> Iterator[manifest.Draft]:
        """Finishes the artifact: the block fills the draft's folder, which then replaces this one.

        Raises:
            HarnessError: the disk is full; every response stays saved.
        """
        finished = manifest.drafted(self._kind, self._output, config, inputs, lambda: self.seconds)
        with self._refusing(), finished as draft:
            yield draft

    def _refusing(self) -> contextlib.AbstractContextManager[None]:
        return reporting_refusals(self._kind, self._output, self.resumable)

    @property
    def resumable(self) -> str:
        """The part of an error about the saved responses."""
        return f"{len(self.kept)} responses are saved; rerun the same command to resume"

    def close(self) -> None:
        """Closes the file."""
        if self._shard is not None:
            self._shard.close()


@contextlib.contextmanager
def opened(output: Path, identity: Mapping[str, Any], kind: str = "rollouts") -> Iterator[RolloutStore]:
    """Opens an output folder's saved responses for this process; see `resuming.resumed`.

    `identity` are the settings that decide every response: text, numbers or None, by name.

    Raises:
        HarnessError: another process uses the folder, it holds something else or a run with other settings,
            or it cannot be written.
    """
    dropped = [f"model argument {name}" for name in indifferent()]
    with resuming.resumed(output, kind, identity, _has_responses, dropped) as folder:
        with ranks.agreed(), reporting_refusals(kind, output, "nothing was changed"):
            # The responses are keyed with the settings that the run began with.
            store = RolloutStore(output, reading.json_file(folder / RUN), kind)
        with contextlib.closing(store):
            with ranks.agreed(), reporting_refusals(kind, output, "nothing was changed"):
                store.open()
            try:
                yield store
            except HarnessError as error:
                if not store.kept or store.resumable in error.remedy:
                    raise
                remedy = (
                    f"{error.remedy}; {store.resumable}" if error.remedy else store.resumable.capitalize()
                )
                raise type(error)(error.problem, remedy) from error


def _has_responses(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.glob(SHARDS))


# The items of a sampling run, and what is made of their responses: verdicts, rows and counts.


DRAWN = tuple(one.name for one in fields(Draw) if one.name not in ("item_id", "seconds"))
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
        if row["score"] >= records.RIGHT:
            return None
        found["unanswered" if row["extracted"] is None else "wrong"] += 1
        found.setdefault("gold", row["answer"])
        found.setdefault("response", row["response"])
    return found if "gold" in found else None


def advice(found: Mapping[str, Any]) -> tuple[str, str]:
    """The result of `unsolved` as a problem and a remedy."""
    words = {"unanswered": "without an answer", "wrong": "wrong", "unscored": "not scored"}
    parts = [f"{found[name]} {text}" for name, text in words.items() if found[name]]
    truncated = f"; {found['truncated']} ran out of tokens" if found["truncated"] else ""
    gold, response = cut(repr(found["gold"]), 200), cut(repr(found["response"]), 400)
    problem = (
        f"none of {found['responses']} responses is right: {', '.join(parts)}{truncated}."
        f" The first: gold {gold}, response {response}"
    )
    if 2 * found["truncated"] >= found["responses"]:
        return problem, "Raise --max-new-tokens"
    if 2 * found["unanswered"] >= found["responses"]:
        return problem, (
            "Explain in the question how to answer, name a --scorer that reads such responses, or teach the"
            " format first with `dcsft train cold-start` on a few rows; `dcsft data inspect` shows what the"
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


def refuse_other_number(item: records.Item, got: lmms.Answered, samples: int) -> None:
    """Refuses another number of responses to an item than were asked for."""
    if len(got.responses) != samples:
        raise HarnessError(
            f"task {item.task}, doc_id {item.doc_id}: {len(got.responses)} responses came back, not"
            f" {samples}",
            "The model or the task's filters drop repeated generations",
        )


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
        self._verdicts: dict[tuple[int, str, bool], Verdict] = {}

    def settled(self, item: "Item", generations: Sequence["Generation"]) -> bool:
        """Whether the label can no longer change: one response is right and one wrong, so it is medium."""
        doc = self._task.eval_docs_no_media[item.doc_id]
        texts = [
            lmms.filtered(self._task, Response(one.response, one.finish_reason == "length"), doc)
            for one in generations
        ]
        scores = [self._verdict(item.doc_id, text)[0] for text in texts]
        return len({score >= records.RIGHT for score in scores if score is not None}) == 2

    def _verdict(self, doc_id: int, response: str) -> Verdict:
        """The task's score of a response; each response is scored once, during a round or at the end."""
        key = (doc_id, response, bool(getattr(response, "truncated", False)))
        if key not in self._verdicts:
            doc = self._task.eval_docs_no_media[doc_id]
            score, extracted, _ = lmms.score_of(self._task, self._task.process_results(doc, [response]))
            self._verdicts[key] = (score, extracted)
        return self._verdicts[key]

    def rows(self, answered: Sequence[lmms.Answered], store: RolloutStore) -> list[records.Rollout]:
        """Every response as a row, scored by the task; and a row with the reason for each refused item.

        `answered` has one entry per item, in their order; the store is empty for a model that reports no
        counts. Another number of responses than G, or none at all, is an error.
        """
        if len(self.refused) == len(self.items):
            raise HarnessError(
                f"none of {len(self.items)} items could be answered: {next(iter(self.refused.values()))}"
            )
        rows = []
        pairs = zip(self.items, answered, strict=True)
        for item, got in usage.counted(pairs, lambda: len(self.items), "scoring"):
            refuse_other_number(item, got, self._samples)
            rows += self._rows_of(item, got, store)
        return rows

    def _rows_of(self, item: records.Item, got: lmms.Answered, store: RolloutStore) -> list[records.Rollout]:
        reason = self.refused.get((item.task, item.doc_id))
        draws = [store.kept.get((item.item_id, index)) for index in range(self._samples)]
        # A response in lmms-eval's list but not in the store is a placeholder for one that was not drawn.
        drawn = [draw is not None or not store.kept for draw in draws]
        rows = []
        texts = got.generated or got.responses  # what a filter makes of a text is scored, and not kept
        for index, (response, text, draw) in enumerate(zip(got.responses, texts, draws, strict=True)):
            if not drawn[index] and reason is None:
                continue
            score, extracted = self._verdict(item.doc_id, response) if drawn[index] else (None, None)
            rows.append(
                records.Rollout(
                    item_id=item.item_id,
                    sample_index=index,
                    response=draw.response if draw else text,
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
        cost = store.cost(len(self.items) - len(self.refused), len(drawn), peak_memory_bytes)
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
            "prompt_tokens": cost[NOTE]["prompt_tokens"],
            "generated_tokens": cost[NOTE]["completion_tokens"],
            "generation_seconds": round(store.generation_seconds, 3),
            "resumed": store.resumed,
            "damaged": store.damaged,
            **cost,
        }

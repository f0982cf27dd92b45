"""adapter -> scores: a checkpoint's answers to evaluation tasks, item by item, through lmms-eval."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcsft_harness import lmms, ranks, records
from dcsft_harness.artifacts import manifest, usage
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.artifacts.usage import Meter
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.data.digits import suite
from dcsft_harness.sampling import SamplingConfig, identify, observed, rollout_store
from dcsft_harness.scoring import at_k

SCORES, RESPONSES = "scores.parquet", "responses.parquet"
DRAWN_BY = ("samples", "temperature", "top_p", "top_k", "max_new_tokens", "seed")
"""Settings of `SamplingConfig` that a manifest records for an evaluation of K responses."""
_DESCRIBED: dict[tuple[str, int], tuple[records.Item, ...]] = {}
"""The items of the embedded suite's tasks, by their configuration and number."""


def evaluate(
    model: lmms.Model | Callable[[], lmms.Model],
    tasks: Mapping[str, lmms.Task],
    output: Path,
    name: str,
    settings: dict[str, Any],
    sampling: SamplingConfig | None = None,
    limit: int | None = None,
    progress: lmms.Progress | None = None,
    inputs: dict[str, Path] | None = None,
    noted: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluates one checkpoint and writes a scores folder; an interrupted run resumes.

    Without `sampling`, each item gets one response by its task's own generation arguments. With it, K are
    drawn as `sampling.sample` does, where its `samples` is K: an item's score is the mean over them, and
    responses.parquet has each one.

    `model` may be a function that loads it, which is called when the output folder is locked. `output` gets
    scores.parquet, lmms_eval.json and manifest.json; `name` is the row's name in a leaderboard. `settings`
    (model name and arguments), `inputs` (folders that the model was loaded from) and `noted` go into the
    manifest. With `limit`, only the first documents of each task are evaluated; `sampling` has its own.
    `progress` is called with (items done, total items).

    Returns:
        The manifest's notes; `tasks` holds each task's accuracy in [0, 1] and its counts, and with `sampling`
        `samples` (K) and `at_k`: metric -> its means at k = 1 to K. In a launch of several processes only
        rank 0 writes the artifact, and the others return nothing.

    Raises:
        HarnessError: an unreadable image, a failed run, an output folder that is occupied, being written or
            of other settings, or a full disk.
    """
    inputs = inputs or {}
    limit = limit if sampling is None else sampling.limit
    drawn = {} if sampling is None else {k: v for k, v in sampling.as_dict().items() if k in DRAWN_BY}
    recorded = {"name": name, **settings, "tasks": sorted(tasks), "limit": limit, **drawn}
    with ranks.agreed():
        manifest.refuse_occupied(output, resumes=True)
        items = {task_name: _items(task, limit) for task_name, task in tasks.items()}
        asked = [item for some in items.values() for item in some]
        deciding = {"stage": "evaluate", **{key: one for key, one in settings.items() if key != "group"}}
        decided_by = {"limit": limit} if sampling is None else sampling.as_dict()
        identity = identify(list(tasks.values()), asked, decided_by, deciding, inputs)
        if sampling is not None:
            for task in tasks.values():
                lmms.set_generation(task, sampling.samples, sampling.generation())
    meter = Meter()
    with rollout_store.opened(output, identity, "scores") as store:
        with ranks.agreed():
            running = model() if callable(model) else model
            for task_name, task in tasks.items():
                lmms.refuse_marked(running, task, items[task_name])
        with observed(running, asked, store):
            answered, results = lmms.run(running, tasks, limit, progress)
        peak = max(ranks.gathered(meter.peak_memory_bytes))
        with ranks.agreed():
            if ranks.rank() > 0:
                return {}
            store.collect()
            with store.finishing(recorded, inputs) as draft:
                samples = None if sampling is None else sampling.samples
                scored = {
                    one: list(_scored(task, items[one], answered[one], store, samples))
                    for one, task in tasks.items()
                }
                rows = {one: [row for row, _ in some] for one, some in scored.items()}
                _write(draft, running, tasks, limit, items, answered, rows, results)
                if samples is not None:
                    of_items = {one: [each for _, each in some] for one, some in scored.items()}
                    _write_samples(draft, of_items, samples)
                draft.notes |= {"resumed": store.resumed, "damaged": store.damaged, **dict(noted or {})}
                given = sum(len(got.generated) for some in answered.values() for got in some)
                draft.notes |= store.cost(len(asked), given, peak)
            return draft.notes


def _scored(
    task: lmms.Task,
    items: Sequence[records.Item],
    answered: Sequence[lmms.Answered],
    store: rollout_store.RolloutStore,
    samples: int | None,
) -> Iterator[tuple[records.Score, list[records.Response]]]:
    """Each item's row, and its scored responses: K = `samples`, or its only one without."""
    for item, got in zip(items, answered, strict=True):
        score, extracted, cluster = lmms.score_of(task, got.metrics)
        verdicts = [(score, extracted, extracted)]
        if samples is not None:
            rollout_store.refuse_other_number(item, got, samples)
            doc = task.eval_docs_no_media[item.doc_id]
            verdicts = lmms.verdicts_of(task, doc, got.responses, got.metrics)
        drawn = []
        for index, (response, verdict) in enumerate(zip(got.responses, verdicts, strict=samples is not None)):
            draw = store.kept.get((item.item_id, index))
            spent = (draw.n_tokens, draw.finish_reason) if draw else (None, None)
            drawn.append(records.Response(item.task, item.item_id, index, *verdict, str(response), *spent))
        yield _row(item, cluster, drawn), drawn


def _row(item: records.Item, cluster: str | None, responses: Sequence[records.Response]) -> records.Score:
    """An item's row: the mean score, the sum of tokens, and the answer with the most votes."""
    scored = [one.score for one in responses if one.score is not None]
    votes = Counter(one.vote for one in responses if one.vote is not None)
    # Of equally frequent answers the first drawn one comes first.
    most = votes.most_common(1)[0][0] if votes else None
    shown = next((one for one in responses if votes and one.vote == most), responses[0])
    tokens = [one.n_tokens for one in responses if one.n_tokens is not None]
    ends = {one.finish_reason for one in responses}
    return records.Score(
        task=item.task,
        item_id=item.item_id,
        doc_id=item.doc_id,
        score=sum(scored) / len(scored) if scored else None,
        extracted=shown.extracted,
        response=shown.response,
        answer=item.answer,
        n_tokens=sum(tokens) if len(tokens) == len(responses) else None,
        cluster=cluster,
        finish_reason=None if None in ends else "length" if "length" in ends else "stop",
    )


def _write_samples(
    draft: manifest.Draft, drawn: Mapping[str, Sequence[Sequence[records.Response]]], samples: int
) -> None:
    """Writes the K responses to all items of each task, and notes the metrics at k."""
    from dcsft_harness.leaderboard.sampled import draws_of_lists

    every = [one for some in drawn.values() for each in some for one in each]
    records.write_table(draft.folder / RESPONSES, records.Response, every)
    for name, some in drawn.items():
        said = draft.notes["tasks"][name]
        scores = [[math.nan if one.score is None else one.score for one in each] for each in some]
        draws = draws_of_lists(scores, [[one.vote for one in each] for each in some])
        metrics = at_k.metrics(draws.scores, None if said["unanswered"] is None else draws.votes)
        said |= {"samples": samples, "at_k": dict(metrics.means())}


def _write(
    draft: manifest.Draft,
    model: lmms.Model,
    tasks: Mapping[str, lmms.Task],
    limit: int | None,
    items: Mapping[str, Sequence[records.Item]],
    answered: Mapping[str, Sequence[lmms.Answered]],
    rows: Mapping[str, Sequence[records.Score]],
    results: Mapping[str, Any],
) -> None:
    """Writes the scores of all tasks and lmms-eval's own results, and notes what they were measured with."""
    draft.notes["tasks"] = {
        name: {
            **summary_of(task, rows[name], [(one.item_id, one.prompt) for one in items[name]], limit),
            **_logged(items[name], answered[name]),
            "data": prepared.described(lmms.data_name(task)),
            "metric": lmms.metric_of(task, answered[name][0].metrics) if answered[name] else None,
            "generation": task.config.generation_kwargs,
            "reasoning": lmms.reasoning(task, answered[name]),
            "scorers": lmms.scorers_of(answered[name]),
            **lmms.generation_settings(model, task),
        }
        for name, task in tasks.items()
    }
    draft.notes |= {"pixels": pixels(model), "processes": ranks.world_size()}
    every = [row for some in rows.values() for row in some]
    records.write_table(draft.folder / SCORES, records.Score, every)
    text = json.dumps(results, indent=2, default=str)
    (draft.folder / "lmms_eval.json").write_text(text + "\n", encoding="utf-8")


def _logged(items: Sequence[records.Item], answered: Sequence[lmms.Answered]) -> dict[str, str]:
    """The hash of the prompts as lmms-eval logs them, if they are others: without a task's own messages."""
    pairs = sorted(zip(items, answered, strict=True), key=lambda pair: pair[0].item_id)
    logged = [None if got.logged is None else records.as_text(got.logged) for _, got in pairs]
    if None in logged or logged == [item.prompt for item, _ in pairs]:
        return {}
    return {records.LOGGED: json_sha256(logged)}


def _items(task: lmms.Task, limit: int | None) -> list[records.Item]:
    """A task's documents as items, the first `limit` of them, without images, which may exceed memory.

    Published sets repeat some items, and their scores count both: each repeat gets its own id.
    """
    count = len(task.eval_docs) if limit is None else min(limit, len(task.eval_docs))
    # The embedded suite's pictures are in its rows and never change: a recipe describes them once.
    embedded = task.get_config("dataset_name") in suite.SETS
    key = (json_sha256(task.dump_config()) if embedded else "", count)
    if key in _DESCRIBED:
        return list(_DESCRIBED[key])
    items, seen = [], Counter[str]()
    for doc_id in usage.counted(range(count), lambda: count):
        item = lmms.describe_item(task, doc_id)
        again = seen[item.item_id]
        seen[item.item_id] += 1
        items.append(replace(item, item_id=records.occurrence_id(item.item_id, again)) if again else item)
    if embedded:
        _DESCRIBED[key] = tuple(items)
    return items


def summary_of(
    task: lmms.Task | None,
    scores: Sequence[records.Score],
    prompts: Iterable[tuple[str, str]],
    limit: int | None,
) -> dict[str, Any]:
    """What a manifest notes of any task's scores; `prompts` has each item's id and prompt.

    `task` is None for scores of a scorer alone.
    """
    metadata = {} if task is None else lmms.metadata(task)
    scored = [row.score for row in scores if row.score is not None]
    ordered = sorted(prompts, key=lambda one: one[0])
    truncated = sum(row.finish_reason == "length" for row in scores)
    return {
        "version": 1 if task is None else task.VERSION,
        "distribution": metadata.get("distribution"),
        "family": metadata.get("family"),
        "n": len(scored),
        "accuracy": sum(scored) / len(scored) if scored else None,
        "unscored": len(scores) - len(scored),
        "unanswered": sum(row.extracted is None and row.score is not None for row in scores)
        if task is None or "answered" in task.aggregation()
        else None,
        "limit": limit,
        "prompt_sha256": json_sha256([prompt for _, prompt in ordered]),
        "items_sha256": json_sha256([item_id for item_id, _ in ordered]),
        **({"truncated": truncated} if truncated else {}),
    }


def pixels(model: lmms.Model) -> dict[str, int | None] | None:
    """A model's pixel limits by name; None if it does not report them."""
    convention = getattr(model, "box_convention", None)
    if convention is None:
        return None
    return {"min_pixels": convention.min_pixels, "max_pixels": convention.max_pixels}

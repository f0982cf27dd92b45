"""pool -> rollouts: G sampled responses per item of a pool, through lmms-eval, scored by the task."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcsft_harness import harness, manifest, records
from dcsft_harness.errors import HarnessError

ROLLOUTS = "rollouts.parquet"
ITEMS = "items"


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn; the defaults are the paper's (section 5, difficulty estimation).

    Attributes:
        samples: G, responses per item.
        temperature: softmax temperature, above 0.
        top_p: nucleus mass kept, in (0, 1].
        top_k: tokens kept; 0 keeps all.
        max_new_tokens: the longest response in tokens; None leaves it to the task.
        seed: together with item and sample index it decides every draw.
        limit: use only the first items of the pool; None uses all.
    """

    samples: int = 8
    temperature: float = 0.9
    top_p: float = 1.0
    top_k: int = 50
    max_new_tokens: int | None = None
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        """Checks every range.

        Raises:
            HarnessError: names the option and the value.
        """
        checks = (
            ("--samples", self.samples, self.samples >= 1, "at least 1"),
            ("--temperature", self.temperature, self.temperature > 0, "above 0"),
            ("--top-p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]"),
            ("--top-k", self.top_k, self.top_k >= 0, "0 (keep all) or more"),
            (
                "--max-new-tokens",
                self.max_new_tokens,
                self.max_new_tokens is None or self.max_new_tokens >= 1,
                "at least 1",
            ),
            ("--limit", self.limit, self.limit is None or self.limit >= 1, "at least 1"),
        )
        for option, value, right, wanted in checks:
            if not right:
                raise HarnessError(f"{option} {value} is out of range", f"It must be {wanted}")

    def generation(self) -> dict[str, object]:
        """The settings as lmms-eval's generation arguments."""
        arguments: dict[str, object] = {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
        }
        if self.max_new_tokens is not None:
            arguments["max_new_tokens"] = self.max_new_tokens
        return arguments


def sample(
    model: Any,  # noqa: ANN401 - an lmms-eval model
    task: Any,  # noqa: ANN401 - an lmms-eval task
    output: Path,
    config: SamplingConfig,
    settings: dict[str, Any],
    progress: harness.Progress | None = None,
    inputs: dict[str, Path] | None = None,
) -> dict[str, Any]:
    """Draws and scores G responses for every item of a pool and writes a rollouts folder.

    Args:
        model: as `harness.open_model` gives it.
        task: as `harness.open_tasks` gives it.
        output: the folder to write: rollouts.parquet, items/ (a `datasets` folder with the images)
            and manifest.json.
        config: how to draw.
        settings: what else the manifest records (model name and arguments).
        progress: called with (items done, items in all).
        inputs: folders that the model was loaded from, for the manifest.

    Returns:
        The manifest's notes: items, responses, accuracy, tokens.

    Raises:
        HarnessError: duplicate items, an unreadable image, or an occupied output folder.
    """
    manifest.refuse_occupied(output)
    count = len(task.eval_docs) if config.limit is None else min(config.limit, len(task.eval_docs))
    items, images = read_items(task, count)
    harness.set_generation(task, config.samples, config.generation())
    recorded = {**settings, "task": task.config.task, **asdict(config)}
    with manifest.writing("rollouts", output, recorded, inputs) as draft:
        generations: dict[tuple[int, int], Any] = {}
        if hasattr(model, "item_ids"):
            model.item_ids.update({(item.task, item.doc_id): item.item_id for item in items})
            model.on_batch = lambda batch: generations.update({(g.doc_id, g.sample_index): g for g in batch})
        started = time.monotonic()
        answered, _ = harness.run(model, {task.config.task: task}, count, progress)
        seconds = time.monotonic() - started
        rows = _rollouts(task, items, answered[task.config.task], generations, config)
        records.write_table(draft.folder / ROLLOUTS, records.Rollout, rows)
        write_items(draft.folder / ITEMS, items, images)
        draft.notes.update(_notes(task, rows, generations, seconds))
    return draft.notes


def read_items(task: Any, count: int) -> tuple[list[records.Item], list[list[Any]]]:  # noqa: ANN401
    """The first `count` documents of a task as items, with their images.

    Raises:
        HarnessError: two documents are the same item, or an image is unreadable.
    """
    items: list[records.Item] = []
    images: list[list[Any]] = []
    seen: dict[str, int] = {}
    for doc_id in range(count):
        item, pictures = harness.describe(task, doc_id)
        if item.item_id in seen:
            raise HarnessError(
                f"task {item.task}: documents {seen[item.item_id]} and {doc_id} are the same item"
                " (same prompt, answer and image)",
                "Remove one of them; joins go by content",
            )
        seen[item.item_id] = doc_id
        items.append(item)
        images.append(pictures)
    return items, images


def _rollouts(
    task: Any,  # noqa: ANN401
    items: Sequence[records.Item],
    answered: Sequence[harness.Answered],
    generations: dict[tuple[int, int], Any],
    config: SamplingConfig,
) -> list[records.Rollout]:
    rows = []
    docs = task.eval_docs_no_media
    for item, got in zip(items, answered, strict=True):
        if len(got.responses) != config.samples:
            raise HarnessError(
                f"task {item.task}, doc_id {item.doc_id}: {len(got.responses)} responses came back, not"
                f" {config.samples}",
                "The model or the task's filters drop repeated generations",
            )
        doc = docs[item.doc_id]
        for index, response in enumerate(got.responses):
            score, extracted, _ = harness.score_of(task, task.process_results(doc, [response]))
            generation = generations.get((item.doc_id, index))
            rows.append(
                records.Rollout(
                    item_id=item.item_id,
                    sample_index=index,
                    response=response,
                    score=score,
                    extracted=extracted,
                    n_tokens=generation.n_tokens if generation else 0,
                    finish_reason=generation.finish_reason if generation else "unknown",
                    seed=config.seed,
                    task=item.task,
                    prompt=item.prompt,
                    answer=item.answer,
                )
            )
    return rows


def _notes(
    task: Any,  # noqa: ANN401
    rows: Sequence[records.Rollout],
    generations: dict[tuple[int, int], Any],
    seconds: float,
) -> dict[str, Any]:
    scored = [row.score for row in rows if row.score is not None]
    first = [g for (_, index), g in generations.items() if index == 0]
    return {
        "items": len({row.item_id for row in rows}),
        "responses": len(rows),
        "unscored": len(rows) - len(scored),
        "unanswered": sum(row.extracted is None for row in rows),
        "accuracy": sum(scored) / len(scored) if scored else None,
        "prompt_tokens": sum(g.n_prompt_tokens for g in first),
        "generated_tokens": sum(row.n_tokens for row in rows),
        "generation_seconds": round(seconds, 3),
        "task_version": task.VERSION,
    }


def write_items(folder: Path, items: Sequence[records.Item], images: Sequence[Sequence[Any]]) -> None:
    """Writes items and their images as a `datasets` folder, images embedded."""
    from datasets import Dataset, Features, Image, List, Value

    text = Value("string")
    columns = {name: Value("int64") if name == "doc_id" else text for name in asdict(items[0])}
    features = Features({**columns, "images": List(Image())})
    rows = [{**asdict(item), "images": list(pictures)} for item, pictures in zip(items, images, strict=True)]
    Dataset.from_list(rows, features=features).save_to_disk(str(folder))

"""pool -> rollouts: G sampled responses per item of a pool, through lmms-eval, scored by the task."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcsft_harness import lmms, pictures, ranks, reading, records
from dcsft_harness.artifacts import manifest, resuming, storage, usage
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.artifacts.usage import Meter
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.errors import HarnessError, cut, listed
from dcsft_harness.models.arguments import indifferent
from dcsft_harness.sampling import rollout_store
from dcsft_harness.sampling.rollout_store import DRAWN, Pool, generations, unsolved
from dcsft_harness.settings import Settings, option

if TYPE_CHECKING:
    from dcsft_harness.lmms.protocols import Generation
    from dcsft_harness.models.requests import Item

ROLLOUTS = "rollouts.parquet"
ITEMS = "items"
_LOG = logging.getLogger(__name__)


class SamplingConfig(Settings):
    """How responses are sampled; the defaults are the paper's (section 5, difficulty estimation)."""

    SECTION = "Sampling"

    samples: int = option(8, "G, responses per item.", ge=1)
    temperature: float = option(0.9, "Softmax temperature, above 0.", gt=0)
    top_p: float = option(1.0, "Nucleus (top-p) mass kept, in (0, 1].", gt=0, le=1)
    top_k: int = option(50, "Top-k tokens kept; 0 keeps all.", ge=0)
    max_new_tokens: int | None = option(
        None, "Maximum response length in tokens; by default the task's own limit.", ge=1
    )
    seed: int = option(0, "Seed; with item and sample index, it determines each response.")
    limit: int | None = option(None, "Only the first items of the pool.", ge=1)
    stop_when_labelled: bool = option(
        False,
        "Sample in rounds, and stop for an item with one right and one wrong response: it is medium. Its pass"
        " rate stays empty.",
    )
    on_error: Literal["stop", "skip"] = option(
        "stop",
        "If an item's image cannot be read or the model refuses the item: stop, or skip it and record it as"
        " not scored, with the reason.",
    )

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
    model: lmms.Model | Callable[[], lmms.Model],
    task: lmms.Task,
    output: Path,
    config: SamplingConfig,
    settings: dict[str, Any],
    progress: lmms.Progress | None = None,
    inputs: dict[str, Path] | None = None,
) -> dict[str, Any]:
    """Draws and scores G responses for every item of a pool and writes a rollouts folder.

    Models of this suite save each batch before they begin the next one, and rerunning the same command
    resumes an interrupted run: see `rollout_store`. Other models answer all items or none. A `model` that is
    a function without arguments is called once all checks that do not need it have passed. The output gets
    rollouts.parquet, items/ (a `datasets` folder with the images) and manifest.json, with further `settings`
    (model name and arguments) and `inputs` (folders of the model, files of the pool). `progress` is called
    with (items done, total items).

    Returns:
        The manifest's notes: items, responses, accuracy, tokens. In a launch of several processes only rank 0
        writes the artifact, and the others return nothing.

    Raises:
        HarnessError: duplicate items, an unreadable image, an output folder that is occupied, in use or from
            other settings, or a full disk.
    """
    refused: dict[int, str] = {}
    recorded = {**settings, "task": task.config.task, **config.as_dict()}
    with ranks.agreed():
        manifest.refuse_occupied(output, resumes=True)
        total = len(task.eval_docs)
        count = total if config.limit is None else min(config.limit, total)
        items = read_items(task, count, refused if config.on_error == "skip" else None)
        for reason in refused.values():
            _LOG.warning("skipped: %s", reason)
        identity = identify([task], items, config.as_dict(), settings, inputs or {})
        lmms.set_generation(task, config.samples, config.generation())
    meter = Meter()
    with rollout_store.opened(output, identity) as store:
        with ranks.agreed():
            running = model() if callable(model) else model
        pool = Pool(task, items, config.samples, config.seed, refused)
        skipped = pool.refused if config.on_error == "skip" else None
        settled = pool.settled if config.stop_when_labelled else None
        with ranks.agreed():
            lmms.refuse_marked(running, task, items, skipped)
        with observed(running, items, store, skipped, settled):
            answered, _ = lmms.run(running, {task.config.task: task}, count, progress, media=False)
        for others in ranks.gathered(pool.refused):
            pool.refused.update(others)
        peak = max(ranks.gathered(meter.peak_memory_bytes))
        with ranks.agreed():
            if (draws := answered.get(task.config.task)) is None:  # lmms-eval gathers them at rank 0
                return {}
            store.collect()
            rows = pool.rows(draws, store)
            # Including those that the model refused: this is where an image of prepared data is first opened.
            unanswered = [doc_id for _, doc_id in pool.refused]
            images = lmms.stored_images(task, items, unanswered)
            with store.finishing(recorded, inputs or {}) as draft:
                records.write_table(draft.folder / ROLLOUTS, records.Rollout, rows)
                write_items(draft.folder / ITEMS, items, images)
                draft.notes |= pool.notes(rows, store, peak) | _found(running, task, draws, rows)
            return draft.notes


def _found(
    model: lmms.Model, task: lmms.Task, draws: Sequence[lmms.Answered], rows: Sequence[records.Rollout]
) -> dict[str, Any]:
    """The manifest's notes on what made the rows, and on those to look at."""
    notes: dict[str, Any] = {
        "processes": getattr(model, "processes", ranks.world_size()),
        "pictures": pictures.FORMAT,
        "scorers": lmms.scorers_of(draws),
        **lmms.generation_settings(model, task),
    }
    if left_out := getattr(task, "left_out", None):  # see `own_data.open_file`
        notes |= {"left_out": len(left_out), "left_out_rows": dict(islice(left_out.items(), 20))}
    if truncated := sum(row.finish_reason == "length" for row in rows):
        notes["truncated"] = truncated
    if (why := unsolved(map(vars, rows))) is not None:
        notes["unsolved"] = why
    return notes


def identify(
    tasks: Sequence[lmms.Task],
    items: Sequence[records.Item],
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path],
) -> dict[str, Any]:
    """Everything that decides a run's responses, by name: a run can only resume one with equal values.

    `config` says how they are drawn, and of how many items.

    Weights and data are identified by content, independent of their paths. The batch size is not included.
    """
    given = reading.named(str(settings.get("model_args", "")))
    named = {"pretrained": "model", "adapter": "adapter"}
    generations = [json.dumps(one.config.generation_kwargs, sort_keys=True, default=str) for one in tasks]
    arguments = {
        f"model argument {name}": value
        for name, value in given.items()
        if name not in indifferent() and named.get(name) not in inputs
    }
    return {
        **{name: value for name, value in settings.items() if name != "model_args"},
        **arguments,
        **_precision(settings, given),
        **{
            f"content of {role}": manifest.fingerprint(path)[:16]
            for role, path in sorted(inputs.items())
            if not role.startswith(prepared.ROLE)  # which the items below identify more exactly
        },
        "task": ",".join(one.config.task for one in tasks),
        "task version": ",".join(str(one.VERSION) for one in tasks),
        "task's generation arguments": " ".join(generations),
        "prompts": json_sha256([item.prompt for item in items])[:16],
        "items": f"{len(items)} ({json_sha256([item.item_id for item in items])[:16]})",
        **{name: value for name, value in config.items() if name != "on_error"},
    }


def _precision(settings: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """The type of the weights where the device decides it; see `arguments.ModelSettings`."""
    if settings.get("model") != "dcsft_hf" or not reading.is_unset(given.get("dtype")):
        return {}
    import torch

    device = given.get("device")
    if reading.is_unset(device):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {resuming.PRECISION: "the checkpoint's own" if str(device).startswith("cuda") else "float32"}


@contextlib.contextmanager
def observed(
    model: lmms.Model,
    items: Sequence[records.Item],
    store: rollout_store.RolloutStore,
    refused: MutableMapping[tuple[str, int], str] | None = None,
    settled: "Callable[[Item, Sequence[Generation]], bool] | None" = None,
) -> Iterator[None]:
    """Passes kept responses to the model, and registers the store as its observer, if the model supports it.

    `refused` collects (task, doc_id) -> why an item gets no response; None raises instead. `settled` says
    whether an item needs no more samples; None draws all of them. A model that supports neither is refused if
    they are needed.
    """
    if not lmms.is_observed(model):
        if refused is not None or settled is not None:
            raise HarnessError(
                f"{type(model).__name__} answers all items at once, so it cannot stop early or skip items",
                "Leave out --stop-when-labelled and --on-error skip, or use a model of this suite",
            )
        _LOG.warning("this model cannot resume: responses are saved only at the end")
        yield
        return
    places = {(item.task, item.doc_id): item.item_id for item in items}
    model.item_ids.update(places)
    model.kept = generations(items, store.kept)
    model.refused = refused
    model.settled = settled
    model.on_batch = lambda batch: store.append(
        {"item_id": places[one.task, one.doc_id], **{name: getattr(one, name) for name in DRAWN}}
        for one in batch
    )
    store.begin()
    try:
        yield
    finally:
        model.kept, model.refused, model.settled, model.on_batch = {}, None, None, None


def read_items(task: lmms.Task, count: int, refused: dict[int, str] | None = None) -> list[records.Item]:
    """The first `count` documents of a task as items; `lmms.stored_images` reads their images again.

    With `refused`, which is filled with doc_id -> the reason, an item whose image cannot be read is no error;
    its id is valid for this position only.

    Raises:
        HarnessError: two documents are the same item; or images are unreadable (lists the first LISTED
            documents).
    """
    items: list[records.Item] = []
    failed: list[HarnessError] = []
    seen: dict[str, int] = {}
    unreadable: Mapping[int, str] = getattr(task, "unreadable", {})  # see `own_data.open_file`
    for doc_id in usage.counted(range(count), lambda: count):
        try:
            if doc_id in unreadable:
                raise HarnessError(unreadable[doc_id])
            item = lmms.describe_item(task, doc_id)
        except HarnessError as error:
            if refused is None:
                # Another error: the trace of this one would keep the item's images.
                failed.append(HarnessError(error.problem, error.remedy))
                continue
            refused[doc_id] = str(error)
            item = lmms.describe_without_images(task, doc_id)
        if item.item_id in seen:
            raise HarnessError(
                f"task {item.task}: documents {seen[item.item_id]} and {doc_id} are the same item"
                " (same prompt, answer and image)",
                "Remove one of them; items are joined by content",
            )
        seen[item.item_id] = doc_id
        items.append(item)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        name = task.config.task
        problems = [cut(error.problem.removeprefix(f"task {name}, ")) for error in failed]
        raise HarnessError(
            f"task {name}: {len(failed)} of {count} documents cannot be used: {listed(problems)}",
            "Replace their images, or skip them with --on-error skip",
        )
    return items


def write_items(folder: Path, items: Sequence[records.Item], images: Iterable[Sequence[Any]]) -> None:
    """Writes items and their images as a `datasets` folder, images embedded.

    The images of each item, as PIL images or in the format of `datasets`, are read one item at a time.
    """
    from datasets import Features, Image, List, Value

    others = {"doc_id": Value("int64"), "box": List(Value("float64"))}
    columns = {name: others.get(name, Value("string")) for name in asdict(items[0])}
    with storage.writing(folder, Features({**columns, "images": List(Image())})) as writer:
        pairs = usage.counted(zip(items, images, strict=True), lambda: len(items), "saving")
        writer.rows({**asdict(item), "images": list(pictures)} for item, pictures in pairs)

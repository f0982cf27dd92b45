"""The core's one door to lmms-eval: its tasks, its models and its runs, through the Python API.

lmms-eval's own command line exits with 0 whatever happens; here an unknown name, a task that does
not load or a run that fails is a `HarnessError`, raised before a model is loaded where possible.
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dcsft_harness import manifest, records
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.tasks import path as task_path

Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""


@dataclass(frozen=True)
class Answered:
    """What one document got from a run.

    Attributes:
        doc_id: its position in the task's documents.
        responses: the generated texts, one or G.
        metrics: what the task's `process_results` made of them together.
    """

    doc_id: int
    responses: list[str]
    metrics: dict[str, Any]


def quiet() -> None:
    """Keeps lmms-eval's log and the bars of `datasets` off the terminal; errors still show."""
    from datasets import disable_progress_bars
    from loguru import logger

    # Also where `datasets` was imported before the command line could set its environment variable.
    disable_progress_bars()
    logger.remove()
    logger.add(sys.stderr, level="ERROR", format="{message}")


def task_index(names: Iterable[str] = ()) -> Mapping[str, dict[str, Any]]:
    """Every known task, group and tag by name; lmms-eval's own only when a name needs them.

    Indexing lmms-eval's 1,700 tasks takes seconds, ours milliseconds.
    """
    return dict(_manager(names).task_index)


def _manager(names: Iterable[str]) -> Any:  # noqa: ANN401 - lmms_eval.tasks.TaskManager
    quiet()
    ours = _indexed(task_path(), False)
    if all(name in ours.task_index for name in names):
        return ours
    return _indexed(task_path(), True)


@cache
def _indexed(folder: Path, defaults: bool) -> Any:  # noqa: ANN401 - lmms_eval.tasks.TaskManager
    """The tasks of a folder, with lmms-eval's own if asked for: read once in a process."""
    from lmms_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=defaults)


def open_tasks(names: Sequence[str]) -> dict[str, Any]:
    """Loads tasks, groups or tags by name, as chat tasks.

    Returns:
        Task name -> lmms-eval task object, in the order asked for.

    Raises:
        HarnessError: a name is unknown, or a task's data or functions do not load.
    """
    manager = _manager(names)
    tasks: dict[str, Any] = {}
    for name in names:
        if name not in manager.task_index:
            raise unknown_name("task", name, manager.task_index, "dcsft tasks list")
        try:
            loaded = manager.load_task_or_group([name], task_type="chat")
        except HarnessError:
            raise
        except Exception as error:  # noqa: BLE001 - a task may fail to load in any way; none is hidden
            cause = _cause(error)
            full = manifest.refusal(cause) is not None
            raise HarnessError(
                f"task {name!r} does not load: {type(cause).__name__}: {cause}",
                "Free some space, or set DCSFT_CACHE and HF_HOME to folders on another disk"
                if full
                else "`dcsft tasks check` says what it needs",
            ) from error
        tasks.update(_leaves(loaded))
    return tasks


def _cause(error: BaseException) -> BaseException:
    """What lmms-eval's retry wrapper hides."""
    attempt = getattr(error, "last_attempt", None)
    inner = attempt.exception() if attempt is not None else None
    return inner or error


def _leaves(loaded: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in loaded.items():
        if isinstance(value, Mapping):
            found.update(_leaves(value))
        else:
            found[str(name)] = value[1] if isinstance(value, tuple) else value
    return found


def make_task(config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - lmms_eval's ConfigurableMessagesTask
    """A chat task from a configuration, as the YAML file would give it."""
    from lmms_eval.api.task import ConfigurableMessagesTask

    quiet()
    return ConfigurableMessagesTask(config=dict(config))


def set_generation(task: Any, samples: int, arguments: Mapping[str, object]) -> None:  # noqa: ANN401
    """Asks a task for G responses per document and hands all of them to its scorer.

    `repeats` alone keeps one of the G; the `take_first_k` filter keeps them all.
    """
    from lmms_eval.filters import build_filter_ensemble

    task.set_config(key="repeats", value=samples)
    task.set_config(key="generation_kwargs", value=dict(arguments), update=True)
    task._filters = [build_filter_ensemble("all", [["take_first_k", {"k": samples}]])]


def open_model(name: str, arguments: str) -> Any:  # noqa: ANN401 - lmms_eval.api.model.lmms
    """Loads a model that lmms-eval knows.

    Args:
        name: its lmms-eval name ("dcsft_hf").
        arguments: `key=value,key=value`, as lmms-eval's `--model_args`.

    Raises:
        HarnessError: the name is unknown or the arguments are malformed.
    """
    check_model(name, arguments)
    from lmms_eval.models import get_model

    return get_model(name).create_from_arg_string(arguments)


def check_model(name: str, arguments: str) -> None:
    """Refuses what `open_model` would refuse, without loading anything.

    Raises:
        HarnessError: the name is unknown or the arguments are malformed.
    """
    quiet()
    from lmms_eval.models import MODEL_REGISTRY_V2

    if name not in MODEL_REGISTRY_V2.list_model_names():
        raise unknown_name("model", name, MODEL_REGISTRY_V2.list_model_names())
    for part in filter(None, arguments.split(",")):
        if "=" not in part:
            raise HarnessError(
                f"--model-args {arguments!r}: {part!r} is not key=value", "Write key=value,key=value"
            )


def run(
    model: Any,  # noqa: ANN401
    tasks: Mapping[str, Any],
    limit: int | None = None,
    progress: Progress | None = None,
    media: bool = True,
) -> tuple[dict[str, list[Answered]], dict[str, Any]]:
    """Runs tasks through lmms-eval's `simple_evaluate`.

    Args:
        model: as `open_model` gives it.
        tasks: as `open_tasks` gives them.
        limit: only the first documents of each task; None runs all.
        progress: called with (items done, items in all).
        media: whether `process_results` gets documents with their images, which are then read again.

    Returns:
        Task name -> what each document got, in order of doc_id; and lmms-eval's own results.

    Raises:
        HarnessError: lmms-eval returned nothing, or fewer documents than were asked for.
    """
    from lmms_eval.evaluator import simple_evaluate

    if hasattr(model, "on_progress"):
        model.on_progress = progress
    with contextlib.redirect_stdout(sys.stderr), _no_upstream_bars():
        results = simple_evaluate(
            model=model,
            tasks=list(tasks.values()),
            task_manager=_manager(()),  # else it indexes its own 1,700 tasks, which takes seconds
            limit=limit,
            log_samples=True,
            bootstrap_iters=0,
            process_docs_parallel=1,
            cli_args=None if media else argparse.Namespace(process_with_media=False),
        )
    if not results or "samples" not in results:
        raise HarnessError("lmms-eval returned no results", "Look at its messages above")
    answered = {name: _answered(name, results["samples"].get(name, [])) for name in tasks}
    for name, task in tasks.items():
        wanted = len(task.eval_docs) if limit is None else min(limit, len(task.eval_docs))
        if len(answered[name]) != wanted:
            raise HarnessError(f"task {name}: lmms-eval returned {len(answered[name])} of {wanted} documents")
    return answered, {key: results[key] for key in ("results", "versions", "n-samples") if key in results}


@contextlib.contextmanager
def _no_upstream_bars() -> Iterator[None]:
    """Silences the bar that lmms-eval shows whatever the terminal and tqdm's environment say."""
    from lmms_eval import evaluator

    original = evaluator.tqdm
    evaluator.tqdm = lambda *args, **options: original(*args, **{**options, "disable": True})
    try:
        yield
    finally:
        evaluator.tqdm = original


def _answered(task: str, samples: Sequence[Mapping[str, Any]]) -> list[Answered]:
    standing = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "token_counts", "doc_hash"}
    rows = []
    for sample in samples:
        texts: list[str] = []
        for response in sample["filtered_resps"]:
            texts.extend(response if isinstance(response, list) else [response])
        metrics = {key: value for key, value in sample.items() if key not in standing}
        rows.append(Answered(int(sample["doc_id"]), texts, metrics))
    return sorted(rows, key=lambda row: row.doc_id)


def filtered(task: Any, response: str) -> str:  # noqa: ANN401
    """A response as lmms-eval hands it to the task's scorer: without reasoning, where the task says so."""
    from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags
    from lmms_eval.filters.transformation import StripThinkingFilter

    tags = parse_reasoning_tags_config(task_value=task.get_config("reasoning_tags"))
    if tags is None and task.get_config("auto_strip_thinking"):
        tags = StripThinkingFilter().tag_pairs
    return response if tags is None else str(strip_reasoning_tags(response, tags))


def score_of(task: Any, metrics: Mapping[str, Any]) -> tuple[float | None, str | None, str | None]:  # noqa: ANN401
    """The score, the extracted answer and the cluster in what `process_results` returned.

    Our tasks return `acc` as {"score", "cluster"}. For others: the metric that `score_key` names, or
    the only number there is.

    Raises:
        HarnessError: no metric can be told to be the score.
    """
    key = task.get_config("score_key") or "score"
    numbers = {}
    for name, value in metrics.items():
        inner = value.get(key) if isinstance(value, Mapping) else value
        if isinstance(inner, bool | int | float):
            numbers[name] = (float(inner), value)
    chosen = "acc" if "acc" in numbers else key if key in numbers else None
    if chosen is None and len(numbers) == 1:
        chosen = next(iter(numbers))
    if chosen is None:
        raise HarnessError(
            f"task {task.config.task}: none of its metrics {sorted(metrics)} can be told to be the score",
            "Set `score_key` in the task's YAML file",
        )
    score, value = numbers[chosen]
    cluster = value.get(task.get_config("cluster_key") or "cluster") if isinstance(value, Mapping) else None
    extracted = metrics.get("extracted")
    return (
        None if score != score else score,
        None if extracted is None else records.as_text(extracted),
        None if cluster is None else str(cluster),
    )


def describe(task: Any, doc_id: int) -> tuple[records.Item, list[Any]]:  # noqa: ANN401
    """One document of a task as an item, and its images.

    Raises:
        HarnessError: an image cannot be read; names task and document.
    """
    from PIL.Image import DecompressionBombError

    name = task.config.task
    try:
        doc = task.eval_docs[doc_id]
        messages = task.doc_to_messages(doc)
        parts = [part for message in messages for part in _parts(message["content"])]
        images = [part["url"] for part in parts if part["type"] == "image"]
        # Pictures that a task opened by path are read here and not before.
        contents = [records.pixels(image) for image in images]
    except (OSError, SyntaxError, DecompressionBombError) as error:
        raise HarnessError(
            f"task {name}, doc_id {doc_id}: an image cannot be read ({error})", "Replace it"
        ) from error
    prompt = "\n".join(part["text"] for part in parts if part["type"] == "text")
    return _item(task, doc_id, doc, prompt, contents), images


def describe_without_images(task: Any, doc_id: int) -> records.Item:  # noqa: ANN401
    """A document whose images cannot be read: no content tells its id, so its position has to."""
    doc = task.eval_docs_no_media[doc_id]
    return _item(task, doc_id, doc, str(task.doc_to_text(doc)), [f"unreadable, doc_id {doc_id}".encode()])


def _item(task: Any, doc_id: int, doc: Any, prompt: str, contents: list[bytes]) -> records.Item:  # noqa: ANN401
    name, target = task.config.task, records.as_text(task.doc_to_target(doc))
    metadata = task.config.metadata if isinstance(task.config.metadata, dict) else {}
    column = metadata.get("answer_column")
    answer = records.as_text(json.loads(doc[column])) if column else target
    key = records.item_id(name, prompt, answer, contents)
    return records.Item(key, name, doc_id, prompt, answer, target)


def _parts(content: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def command_line(arguments: Sequence[str]) -> int:
    """Runs lmms-eval's own command line with the suite's tasks included, and an honest exit code.

    Args:
        arguments: as they would follow `lmms-eval`.

    Returns:
        0 if every evaluation finished, 1 if one failed.
    """
    import lmms_eval.__main__ as upstream
    from lmms_eval.cli import dispatch

    ours, failed = str(task_path()), []
    sentences: list[str] = []
    evaluate = upstream.cli_evaluate_single

    def watched(args: Any) -> Any:  # noqa: ANN401 - upstream's namespace in, its results out
        args.include_path = [ours] if args.include_path is None else [args.include_path, ours]
        listing = (args.tasks or "").startswith("list")
        failed.extend([] if listing else [args])
        try:
            results = evaluate(args)
        except Exception as error:
            sentences.append(str(_failure(args, error)))
            raise
        failed[:] = [other for other in failed if other is not args]
        return results

    words = list(arguments)
    if words[:1] == ["tasks"] and not any(word.startswith("--include-path") for word in words):
        words += ["--include-path", ours]
    upstream.cli_evaluate_single, sys.argv = watched, ["lmms-eval", *words]
    try:
        dispatch.main()
    except SystemExit as stop:
        if stop.code not in (None, 0):
            return stop.code if isinstance(stop.code, int) else 1
    finally:
        upstream.cli_evaluate_single = evaluate
    for sentence in sentences:
        print(f"dcsft: {sentence}", file=sys.stderr)
    return 1 if failed else 0


def _failure(args: Any, error: Exception) -> HarnessError:  # noqa: ANN401 - upstream's namespace
    """Why upstream's run failed, in one sentence: it prints a traceback and a list of every name."""
    from lmms_eval.models import MODEL_REGISTRY_V2

    if isinstance(error, HarnessError):
        return error
    models = MODEL_REGISTRY_V2.list_model_names()
    if getattr(args, "model", None) is not None and args.model not in models:
        return unknown_name("model", args.model, models)
    names = [name for name in (args.tasks or "").split(",") if re.fullmatch(r"[\w-]+", name)]
    index = task_index(names)
    for name in names:
        if name not in index and str(error).startswith("Tasks not found"):
            return unknown_name("task", name, index, "dcsft lmms-eval tasks list")
    said = " ".join(str(error).split())[:300]
    return HarnessError(f"lmms-eval failed: {type(error).__name__}: {said}", "Its messages stand above")

"""The core's only access to lmms-eval: its tasks, models and runs, through the Python API.

lmms-eval's own command line always exits with 0; here an unknown name, a task that does not load or a run
that fails is a `HarnessError`, raised before a model is loaded where possible.
"""

import argparse
import contextlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import Any

from dcsft_harness import coordinates, ranks, reading, records
from dcsft_harness.errors import HarnessError, cut, refusal, unknown_name
from dcsft_harness.lmms.documents import Known as Known
from dcsft_harness.lmms.documents import data_name as data_name
from dcsft_harness.lmms.documents import describe as describe
from dcsft_harness.lmms.documents import describe_item as describe_item
from dcsft_harness.lmms.documents import describe_without_images as describe_without_images
from dcsft_harness.lmms.documents import metadata as metadata
from dcsft_harness.lmms.documents import metric_of as metric_of
from dcsft_harness.lmms.documents import prompt_of as prompt_of
from dcsft_harness.lmms.documents import refuse_marked as refuse_marked
from dcsft_harness.lmms.documents import refuse_reversed
from dcsft_harness.lmms.documents import score_of as score_of
from dcsft_harness.lmms.documents import stored_images as stored_images
from dcsft_harness.lmms.documents import verdicts_of as verdicts_of
from dcsft_harness.lmms.protocols import Model as Model
from dcsft_harness.lmms.protocols import Task as Task
from dcsft_harness.lmms.protocols import is_observed as is_observed
from dcsft_harness.lmms.tasks import (
    KeepEnds,
    check_imports,
    grounding,
    indexing_in_c,
    make_cache,
    manager,
    members,
    refuse_ungenerated_names,
    refuse_unprepared,
    text_filters,
    unwrapped,
)
from dcsft_harness.lmms.tasks import include as include
from dcsft_harness.lmms.tasks import is_file as is_file
from dcsft_harness.lmms.tasks import limit_tokens as limit_tokens
from dcsft_harness.lmms.tasks import make_task as make_task
from dcsft_harness.lmms.tasks import open_tasks as open_tasks
from dcsft_harness.lmms.tasks import quiet as quiet
from dcsft_harness.lmms.tasks import refuse_unfit as refuse_unfit
from dcsft_harness.lmms.tasks import set_generation as set_generation
from dcsft_harness.lmms.tasks import task_index as task_index
from dcsft_harness.tasks import path as task_path

Progress = Callable[[int, int], None]
"""Called with (items done, total items)."""


@dataclass(frozen=True)
class Answered:
    """A run's result for one document."""

    doc_id: int  # its position in the task's documents
    responses: list[str]  # the texts that were scored, one or G: as the task's filters leave them
    metrics: dict[str, Any]  # the result of the task's `process_results` for all of them
    generated: list[str] = field(default_factory=list)  # the texts before any filter
    logged: str | None = None  # the prompt as lmms-eval logs it: without messages that the task adds


def open_model(name: str, arguments: str) -> Model:
    """Loads a model that lmms-eval knows.

    The arguments are `key=value,key=value`, as in lmms-eval's `--model_args`.

    Raises:
        HarnessError: the name is unknown or the arguments are malformed.
    """
    check_model(name, arguments)
    from lmms_eval.models import get_model

    try:
        model: Model = get_model(name).create_from_arg_string(arguments)
    except (TypeError, AssertionError, KeyError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise HarnessError(
            f"model {name} cannot be opened with {arguments!r}: {type(error).__name__}: {cut(said, 300)}",
            "Check --model-args: these are the arguments of its class",
        ) from error
    return model


def checkpoint_argument(name: str) -> str:
    """The argument of an lmms-eval model for its checkpoint, often `pretrained`; an error if it has none."""
    check_model(name, "")
    from lmms_eval.models import get_model

    known = inspect.signature(get_model(name).__init__).parameters
    for argument in ("pretrained", "model_version", "model_name", "model"):
        if argument in known:
            return argument
    raise HarnessError(
        f"--engine {name} has no argument for a checkpoint; it takes {cut(', '.join(known))}",
        "Leave --model out, and name the weights in --model-args",
    )


@contextlib.contextmanager
def _simply_asked(model: Model, tasks: Mapping[str, Task]) -> Iterator[None]:
    """Calls a model through lmms-eval's simple interface, its only one: with text and images separate."""
    if not getattr(model, "is_simple", False):
        yield
        return
    from lmms_eval.api.task import ConfigurableTask

    for task in tasks.values():
        vars(task)["construct_requests"] = MethodType(ConfigurableTask.construct_requests, task)
    try:
        yield
    finally:
        for task in tasks.values():
            del vars(task)["construct_requests"]


def check_model(name: str, arguments: str) -> None:
    """Refuses what `open_model` would refuse, without loading anything."""
    quiet()
    from lmms_eval.models import MODEL_REGISTRY_V2

    if name not in MODEL_REGISTRY_V2.list_model_names():
        raise unknown_name("model", name, MODEL_REGISTRY_V2.list_model_names())
    reading.refuse_malformed("--model-args", arguments)


def run(
    model: Model,
    tasks: Mapping[str, Task],
    limit: int | None = None,
    progress: Progress | None = None,
    media: bool = True,
) -> tuple[dict[str, list[Answered]], dict[str, Any]]:
    """Runs tasks through lmms-eval's `simple_evaluate`.

    With `limit`, only the first documents of each task are run. `progress` is called with (items done, total
    items). With `media`, a `process_results` other than the suite's gets documents with their images, which
    are then read again.

    Returns:
        Task name -> results per document, in order of doc_id; and lmms-eval's own results. In a launch of
        several processes lmms-eval gathers all of it at rank 0, and the others return nothing.

    Raises:
        HarnessError: lmms-eval returned nothing, or fewer documents or responses than expected; or another
            rank ended; or a box task is given a model with unknown coordinates; or a task's score is an error
            rate; or it has several lists of filters; or another's code raises.
    """
    from lmms_eval.evaluator import simple_evaluate

    for task in tasks.values():
        refuse_reversed(task)
        text_filters(task)
    coordinates.declare(getattr(model, "box_convention", None))  # not that of an earlier model
    if any(metadata(task).get("family") == "grounding" for task in tasks.values()):
        coordinates.declared()  # refused now, not after hours of generation
    if is_observed(model):
        model.on_progress = progress
    media = media and not all(map(_ours, tasks.values()))
    with (
        contextlib.redirect_stdout(sys.stderr),
        _no_upstream_bars(),
        ranks.reporting_losses(),
        _simply_asked(model, tasks),
        _counting(model),
        _naming_others(),
    ):
        results = simple_evaluate(
            model=model,
            tasks=list(tasks.values()),
            task_manager=manager(()),  # else it indexes its own 1,700 tasks, which takes seconds
            limit=limit,
            log_samples=True,
            bootstrap_iters=0,
            process_docs_parallel=1,
            # Uses the group of `ranks.join`; a model need not have its own Accelerator.
            distributed_executor_backend="torchrun" if ranks.world_size() > 1 else "accelerate",
            cli_args=None if media else argparse.Namespace(process_with_media=False),
        )
    if ranks.rank() > 0:
        return {}, {}
    if not results or "samples" not in results:
        raise HarnessError("lmms-eval returned no results", "See its messages above")
    answered = {name: _answered(results["samples"].get(name, [])) for name in tasks}
    for name, task in tasks.items():
        wanted = len(task.eval_docs) if limit is None else min(limit, len(task.eval_docs))
        if len(answered[name]) != wanted:
            raise HarnessError(f"task {name}: lmms-eval returned {len(answered[name])} of {wanted} documents")
    return answered, {key: results[key] for key in ("results", "versions", "n-samples") if key in results}


def _ours(task: Task) -> bool:
    """Whether a task's responses are scored by this suite, which never looks at images again."""
    process = task.get_config("process_results")
    return str(getattr(process, "__module__", "")).partition(".")[0] == _PACKAGE


@contextlib.contextmanager
def _counting(model: Model) -> Iterator[None]:
    """Refuses another's model that returns not one text per request: what is missing would count as wrong."""
    if is_observed(model):
        yield
        return
    from lmms_eval.api.instance import unwrap_generation_output

    generate = model.generate_until

    def checked(requests: Sequence[Any]) -> list[Any]:
        answers = list(generate(requests))
        texts = [answer if answer is None else unwrap_generation_output(answer)[0] for answer in answers]
        wrong = next((text for text in texts if not isinstance(text, str)), "")
        if len(texts) != len(requests) or wrong != "":
            count = f"{len(texts)} responses to {len(requests)} requests"
            what = count if len(texts) != len(requests) else f"{wrong!r} as a response"
            raise HarnessError(
                f"{type(model).__name__}.generate_until returned {what}",
                "Return one text for each request, an empty one where there is no answer",
            )
        return answers

    vars(model)["generate_until"] = checked
    try:
        yield
    finally:
        del vars(model)["generate_until"]


@contextlib.contextmanager
def _naming_others() -> Iterator[None]:
    """Says in one sentence where the code of others, a model's class or a task's functions, raises."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        why = unwrapped(error)
        place = _of_others(why)
        if isinstance(why, HarnessError):
            raise why from why.__cause__  # `error` was made from it: as its cause they would form a circle
        if place is None or refusal(why) is not None:  # a full disk is no fault of their code
            raise
        said = " ".join(str(why).split())
        raise HarnessError(
            f"{place} raises {type(why).__name__}: {cut(said, 300)}",
            "Correct this code: a model's class or a task's function, which is called for each document",
        ) from error


def _of_others(error: BaseException) -> str | None:
    """The deepest line of the first code that is neither ours, lmms-eval's evaluator nor Python's."""
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module, path = str(frame.f_globals.get("__name__")), Path(frame.f_code.co_filename)
        if found is None and module.startswith(f"{_PACKAGE}.models."):
            return None
        framework = module.split(".")[0] in (_PACKAGE, "lmms_eval", "tenacity", *sys.stdlib_module_names)
        if module.startswith(("lmms_eval.models.", "lmms_eval.tasks.")):
            framework = False
        if path.parent == found[0].parent if found else not framework:
            found = path, line
    return None if found is None else f"{found[0]}, line {found[1]},"


_PACKAGE = __name__.partition(".")[0]


@contextlib.contextmanager
def _no_upstream_bars() -> Iterator[None]:
    """Hides the bars that lmms-eval shows even without a terminal and against tqdm's environment."""
    from lmms_eval import evaluator
    from lmms_eval.api import task

    original = evaluator.tqdm
    evaluator.tqdm = task.tqdm = lambda *args, **options: original(*args, **{**options, "disable": True})
    try:
        yield
    finally:
        evaluator.tqdm = task.tqdm = original


def scorers_of(answered: Sequence[Answered]) -> dict[str, int]:
    """Scorer -> version, for those that scored a task's documents; empty if the task names none."""
    found: dict[str, int] = {}
    for one in answered:
        scorers = one.metrics.get("scorer")
        found |= scorers if isinstance(scorers, Mapping) else {}
    return dict(sorted(found.items()))


def reasoning(task: Task, answered: Iterable[Answered]) -> dict[str, Any]:
    """The note of `records.reasoning` on a task's responses; a task's filters come before tags."""
    tags = reasoning_tags(task)
    texts = (text for one in answered for text in (one.generated if tags else one.responses))
    return records.reasoning(tags, texts)


def reasoning_tags(task: Task) -> list[list[str]]:
    """The tags between which a task removes reasoning; see `records.reasoning_tags`."""
    try:
        return records.reasoning_tags(
            task.get_config("reasoning_tags"), task.get_config("auto_strip_thinking")
        )
    except ValueError as error:
        raise HarnessError(
            f"task {task.config.task}: {error}", 'Write reasoning_tags: [["<think>", "</think>"]], or none'
        ) from None


def generation_settings(model: Model, task: Task) -> dict[str, Any]:
    """What a model adds to each prompt, and the generation settings in force; empty if unknown.

    Of the latter also those from the checkpoint.
    """
    if not is_observed(model):
        return {}
    asked = task.config.generation_kwargs, task.config.task
    return {
        records.PROMPTED: dict(getattr(model, records.PROMPTED, {})),
        "generation_in_force": model.generation_in_force(*asked),
        records.FROM_CHECKPOINT: model.generation_from_checkpoint(*asked),
    }


def _answered(samples: Sequence[Mapping[str, Any]]) -> list[Answered]:
    from dcsft_harness.tasks.verdicts import responses

    standing = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps"}
    standing |= {"token_counts", "doc_hash", "input_media"}
    rows = []
    for sample in samples:
        metrics = {key: value for key, value in sample.items() if key not in standing}
        scored, generated = responses(sample["filtered_resps"]), responses(sample["resps"])
        logged = next(iter(sample.get("arguments") or ()), None)
        rows.append(Answered(int(sample["doc_id"]), scored, metrics, generated, logged))
    return sorted(rows, key=lambda row: row.doc_id)


def filtered(task: Task, response: str, doc: Mapping[str, Any] | None = None) -> str:
    """A response as lmms-eval passes it to the task's scorer: by its filters and reasoning tags.

    `doc` is its document, which lmms-eval's filter `multi_choice_regex` reads. Of a `Response` that ran out
    of tokens it is one, see `KeepEnds`.
    """
    from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags
    from lmms_eval.filters.transformation import StripThinkingFilter

    tags = parse_reasoning_tags_config(task_value=task.get_config("reasoning_tags"))
    first = [StripThinkingFilter()] if tags is None and task.get_config("auto_strip_thinking") else []
    texts: Iterable[Sequence[Any]] = [[response]]
    for one in (*first, *text_filters(task)):
        texts = KeepEnds(one).apply(texts, [doc or {}])
    ((text,),) = texts
    text = text if tags is None else strip_reasoning_tags(text, tags)
    return text if isinstance(text, str) else str(text)


# lmms-eval's own command line, with the suite's tasks and a correct exit code.


def command_line(arguments: Sequence[str]) -> int:
    """Runs lmms-eval's own command line with the suite's tasks; 0 if every evaluation finished, else 1."""
    check_imports()
    import lmms_eval.__main__ as upstream
    from lmms_eval.cli import dispatch

    ours, failed = str(task_path()), []
    sentences: list[str] = []
    evaluate = upstream.cli_evaluate_single

    def watched(args: argparse.Namespace) -> object:
        theirs = [] if args.include_path is None else [args.include_path]
        args.include_path = [*theirs, ours]
        listing = (args.tasks or "").startswith("list")
        failed.extend([] if listing else [args])
        try:
            names = list(filter(None, (args.tasks or "").split(",")))
            make_cache()
            folders = [Path(one).resolve() for one in theirs]
            refuse_unprepared(names, folders)
            if str(model := getattr(args, "model", None)).startswith("dcsft_"):
                _refuse_unused(args)
                refuse_ungenerated_names(names, str(model), folders)
            _refuse_unknown_boxes(model, names)
            results = evaluate(args)
        except Exception as error:
            sentences.append(str(failure := _failure(args, error)))
            if (
                failure.remedy == _ABOVE
                or getattr(args, "verbosity", "") == "DEBUG"
                or ranks.world_size() > 1
            ):
                raise
            return None, None  # else lmms-eval prints a traceback, which the sentence makes needless
        failed[:] = [other for other in failed if other is not args]
        sentences.extend(_differences(results))
        return results

    words = list(arguments)
    if words[:1] == ["tasks"] and not any(word.startswith("--include-path") for word in words):
        words += ["--include-path", ours]
    upstream.cli_evaluate_single, sys.argv = watched, ["lmms-eval", *words]
    try:
        with indexing_in_c():
            dispatch.main()
    except SystemExit as stop:
        if stop.code not in (None, 0):
            return stop.code if isinstance(stop.code, int) else 1
    finally:
        upstream.cli_evaluate_single = evaluate
    for sentence in sentences:
        print(f"dcsft: {sentence}", file=sys.stderr)
    return 1 if failed else 0


def _differences(results: object) -> list[str]:
    """The `--baseline` comparison of the suite's tasks, one sentence each.

    Upstream's column "Diff" subtracts the baseline's percent from the metric, which is a fraction in these
    tasks. So that column stays empty; the difference is the middle of the interval beside it.
    """
    found = results[0] if isinstance(results, tuple) and results else None
    sentences = []
    for task, entry in (found or {}).get("results", {}).items():
        if not task.startswith("dcsft_") or not isinstance(entry.get("paired_baseline_score"), float):
            continue
        entry["paired_baseline_score"] = f"{entry['paired_baseline_score']:.2f} %"
        low, high = entry["paired_ci_lower"], entry["paired_ci_upper"]
        sentences.append(
            f"{task} against {entry['paired_baseline']}: {(low + high) / 2:+.1f} points "
            f"[{low:+.1f}, {high:+.1f}], p = {entry['paired_pvalue']:.4f}"
        )
    return sentences


_UNUSED = {
    "system_instruction": "Pass it as system_prompt=... in --model_args",
    "num_fewshot": "Leave it out, or write the examples into the task's doc_to_messages",
    "apply_chat_template": "Leave it out: the checkpoint's template is always applied",
}
"""lmms-eval's options for text prompts, and what to do for a model that is given messages."""


def _refuse_unused(args: argparse.Namespace) -> None:
    for name, remedy in _UNUSED.items():
        if getattr(args, name, None):
            raise HarnessError(f"--{name} has no effect on the messages that {args.model} is given", remedy)


def _refuse_unknown_boxes(model: str | None, names: Sequence[str]) -> None:
    """Refuses box tasks for a model with unknown coordinates, before it generates for hours."""
    from lmms_eval.models import MODEL_REGISTRY_V2, get_model

    if not grounding() & {task for name in names for task in members(name)}:
        return
    if model in MODEL_REGISTRY_V2.list_model_names() and not hasattr(get_model(model), "box_convention"):
        coordinates.declare(None)
        coordinates.declared()


def _failure(args: argparse.Namespace, error: Exception) -> HarnessError:
    """The cause of a failed upstream run, in one sentence: it prints a traceback and a list of every name."""
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
    why = unwrapped(error)
    said = " ".join(str(why).split())[:300]
    return HarnessError(f"lmms-eval failed: {type(why).__name__}: {said}", _ABOVE)


_ABOVE = "See its messages above"

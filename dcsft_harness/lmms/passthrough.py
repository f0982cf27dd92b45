"""lmms-eval's own command line, with the suite's tasks included and an honest exit code."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from dcsft_harness import coordinates
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.lmms.listing import grounding, members
from dcsft_harness.lmms.tasks import check_imports, refuse_unprepared, task_index
from dcsft_harness.tasks import path as task_path


def command_line(arguments: Sequence[str]) -> int:
    """Runs lmms-eval's own command line with the suite's tasks included, and an honest exit code.

    Args:
        arguments: as they would follow `lmms-eval`.

    Returns:
        0 if every evaluation finished, 1 if one failed.
    """
    check_imports()
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
            names = list(filter(None, (args.tasks or "").split(",")))
            refuse_unprepared(names)
            _refuse_unknown_boxes(getattr(args, "model", None), names)
            results = evaluate(args)
        except Exception as error:
            sentences.append(str(_failure(args, error)))
            raise
        failed[:] = [other for other in failed if other is not args]
        sentences.extend(_differences(results))
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


def _differences(results: Any) -> list[str]:  # noqa: ANN401 - what upstream returns
    """What `--baseline` found for the suite's tasks, one sentence each.

    Upstream's column "Diff" subtracts the baseline's percent from the metric, which is a fraction in these
    tasks: it is left empty, and the difference is the middle of the interval beside it.
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


def _refuse_unknown_boxes(model: str | None, names: Sequence[str]) -> None:
    """Refuses to ask boxes of a model whose coordinates nothing tells, before it generates for hours.

    Raises:
        HarnessError: says how to tell them.
    """
    from lmms_eval.models import MODEL_REGISTRY_V2, get_model

    if not grounding() & {task for name in names for task in members(name)}:
        return
    if model in MODEL_REGISTRY_V2.list_model_names() and not hasattr(get_model(model), "box_convention"):
        coordinates.declare(None)
        coordinates.declared()


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

"""`dcsft evaluate`: Score a checkpoint, item by item: adapter -> scores."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from dcsft_harness import ranks
from dcsft_harness.errors import HarnessError
from dcsft_harness.settings import option
from dcsft_harness.stages import opening
from dcsft_harness.stages.stage import Notes, Progress, Stage, counted, percent


class EvaluateOptions(opening.OwnTasks, opening.OwnRows, opening.Engine):
    """What to evaluate, and on what."""

    SECTION = "Tasks"

    tasks: tuple[str, ...] = option(
        (), "lmms-eval tasks, groups or tags, comma-separated.", metavar="NAME,...", reads="tasks"
    )
    data: Path | None = option(
        None,
        "Held-out rows of your own, as `dcsft sample` takes them: a task named after the file.",
        metavar="FILE|DIR",
        reads="pool",
    )
    on_error: Literal["stop", "skip"] = option(
        "stop", "What happens at a row of --data that cannot be used: skip leaves it out and records it."
    )
    name: str | None = option(None, "The row's name in a leaderboard; by default the output folder's name.")
    group: str | None = option(
        None, "Name shared by all seeds of a configuration; by default as in a name like 'SFT (seed 1)'."
    )
    limit: int | None = option(None, "Only the first documents of each task.", ge=1)


def run(options: EvaluateOptions, output: Path, progress: Progress | None) -> Notes:
    """Evaluates."""
    from dcsft_harness import evaluation, lmms
    from dcsft_harness.artifacts import manifest
    from dcsft_harness.data.benchmarks import prepared

    ranks.join()
    with ranks.agreed():
        manifest.refuse_occupied(output)
        lmms.include(options.include_path)
        model, model_args, where = options.opened()
        if not options.tasks and options.data is None:
            raise HarnessError("--tasks and --data are missing", "Give one of them, or both")
        opened = lmms.open_tasks(list(options.tasks)) if options.tasks else {}
        arguments, inputs = opening.model_arguments(model_args)
        inputs |= prepared.inputs(opened)
        described, noted = _add_own(opened, inputs, options)
        running = opening.opener(model, arguments, where, options.actors)()
    settings = {"model": model, "model_args": model_args, **described}
    if options.group is not None:
        settings["group"] = options.group
    name = options.name or output.name
    limit = options.limit
    return evaluation.evaluate(running, opened, output, name, settings, limit, progress, inputs, noted)


def _add_own(
    opened: dict[str, Any], inputs: dict[str, Path], options: EvaluateOptions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Adds the user's own rows as a task, and their file to the inputs.

    Returns:
        What the manifest's configuration and its notes say of them.
    """
    if options.data is None:
        opening.refuse_own(options, "--data")
        return {}, {}
    task, described, files = opening.pool(
        None,
        options.data,
        options.scorer,
        options.image_root,
        skip=options.on_error == "skip",
        outside=options.allow_outside_root,
        keep_unreadable=False,
    )
    if task.config.task in opened:
        raise HarnessError(
            f"--data {options.data} becomes the task {task.config.task}, which --tasks names too",
            "Rename the file",
        )
    opened[task.config.task] = task
    inputs.update(files)
    left_out = getattr(task, "left_out", {})
    noted = {"left_out": len(left_out), "left_out_rows": dict(islice(left_out.items(), 20))}
    return described, noted if left_out else {}


def summary(notes: Mapping[str, Any]) -> str:
    """Each task's accuracy."""
    parts = [f"{name} {percent(task['accuracy'])} (n {task['n']})" for name, task in notes["tasks"].items()]
    return ", ".join([*parts, *counted(notes, {"left_out": "rows left out"})])


STAGE = Stage(
    verb="evaluate",
    options=EvaluateOptions,
    run=run,
    summary=summary,
    writes="scores",
    example="""dcsft evaluate --model adapter --tasks dcsft_digits,dcsft_digits_r --output scores
dcsft evaluate --model adapter --data held-out.jsonl --scorer exact_word --output scores
dcsft evaluate --model CKPT --engine dcsft_vllm --tasks dcsft_digits --output scores""",
    prepared=True,
    then="dcsft leaderboard build {output} OTHER-SCORES... --output board",
)

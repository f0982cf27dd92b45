"""`dcsft evaluate`: Score a checkpoint, item by item: adapter -> scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsft_harness import ranks
from dcsft_harness.settings import Settings, option
from dcsft_harness.stages.stage import Notes, Progress, Stage, percent


class EvaluateOptions(Settings):
    """What to evaluate, and on what."""

    model: str = option(
        "dcsft_hf", "A checkpoint or adapter; or an lmms-eval model, with --model-args.", reads="checkpoint"
    )
    model_args: str = option(
        "", "Its arguments: pretrained=CKPT,adapter=DIR,...", metavar="K=V,...", reads="model_args"
    )
    tasks: tuple[str, ...] = option(
        about="lmms-eval tasks, groups or tags, comma-separated.", reads="tasks", min_length=1
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
    from dcsft_harness.evaluation.subject import as_engine
    from dcsft_harness.stages import opening

    ranks.join()
    with ranks.agreed():
        manifest.refuse_occupied(output)
        model, model_args = as_engine(options.model, options.model_args)
        opened = lmms.open_tasks(list(options.tasks))
        arguments, inputs = opening.model_arguments(model_args)
        inputs |= prepared.inputs(opened)
        running = lmms.open_model(model, arguments)
    settings = {"model": model, "model_args": model_args}
    if options.group is not None:
        settings["group"] = options.group
    name = options.name or output.name
    return evaluation.evaluate(running, opened, output, name, settings, options.limit, progress, inputs)


def summary(notes: Mapping[str, Any]) -> str:
    """Each task's accuracy."""
    return ", ".join(
        f"{name} {percent(task['accuracy'])} (n {task['n']})" for name, task in notes["tasks"].items()
    )


STAGE = Stage(
    verb="evaluate",
    options=EvaluateOptions,
    run=run,
    summary=summary,
    writes="scores",
    example="""dcsft evaluate --model adapter --tasks dcsft_digits,dcsft_digits_r --output scores
dcsft evaluate --model dcsft_vllm --model-args pretrained=CKPT --tasks dcsft_digits --output scores""",
    prepared=True,
    then="dcsft leaderboard build {output} OTHER-SCORES... --output board",
)

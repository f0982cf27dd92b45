"""`dcsft evaluate`: Score a checkpoint, item by item: adapter -> scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from dcsft_harness import ranks
from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import ScorerName
from dcsft_harness.settings import Settings, flag, option
from dcsft_harness.stages.stage import Notes, Progress, Stage, percent


class EvaluateOptions(Settings):
    """What to evaluate, and on what."""

    model: str = option(
        "dcsft_hf", "A checkpoint or adapter; or an lmms-eval model, with --model-args.", reads="checkpoint"
    )
    model_args: str = option(
        "", "Its arguments: pretrained=CKPT,adapter=DIR,...", metavar="K=V,...", reads="model_args"
    )
    tasks: tuple[str, ...] = option((), "lmms-eval tasks, groups or tags, comma-separated.", reads="tasks")
    name: str | None = option(None, "The row's name in a leaderboard; by default the output folder's name.")
    group: str | None = option(
        None, "Name shared by all seeds of a configuration; by default as in a name like 'SFT (seed 1)'."
    )
    limit: int | None = option(None, "Only the first documents of each task.", ge=1)
    responses: Path | None = option(
        None,
        "Score the responses in this file (JSONL or Parquet) instead of a model's; with --task or --scorer.",
        metavar="FILE",
        reads="file",
    )
    scorer: ScorerName | None = option(None, "With --responses: how answers are scored, without a task.")
    columns: Mapping[str, str] = option(
        about="With --responses: which column holds item, question, picture, gold, response, model, step or "
        "task.",
        metavar="FIELD=COLUMN",
        repeated=True,
        default_factory=dict,
    )
    box_space: Literal["pixel", "norm1000", "resized"] | None = option(
        None, "With --responses: the coordinates of boxes in them."
    )

    @field_validator("columns", mode="before")
    @classmethod
    def _read_columns(cls, given: object) -> object:
        if not isinstance(given, list | tuple):
            return given or {}
        found = {}
        for one in given:
            field, sign, column = str(one).partition("=")
            if not (field and sign and column):
                raise HarnessError(f"--column {one} is not of the form FIELD=COLUMN", "As in gold=solution")
            found[field] = column
        return found


def run(options: EvaluateOptions, output: Path, progress: Progress | None) -> Notes:
    """Evaluates."""
    if options.responses is not None:
        return _score_responses(options, output, progress)
    if not options.tasks:
        raise HarnessError("--tasks is missing", "Name lmms-eval tasks, such as dcsft_digits")
    for name in ("scorer", "columns", "box_space"):
        if getattr(options, name):
            raise HarnessError(f"{flag(name)} is of --responses, which is not given", "Leave it out")
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


def _score_responses(options: EvaluateOptions, output: Path, progress: Progress | None) -> Notes:
    """Scores the responses of a file."""
    from dcsft_harness.evaluation import responses

    assert options.responses is not None
    if options.model_args or options.model != "dcsft_hf":
        raise HarnessError("--responses and --model both say what answers", "Give one of them")
    if len(options.tasks) > 1:
        raise HarnessError("--responses is scored by one task at a time", "Name one, or a scorer")
    return responses.evaluate(
        options.responses,
        output,
        name=options.name,
        task=options.tasks[0] if options.tasks else None,
        scorer=options.scorer,
        columns=options.columns,
        box_space=options.box_space,
        limit=options.limit,
        group=options.group,
        progress=progress,
    )


def summary(notes: Mapping[str, Any]) -> str:
    """Each task's accuracy; for several rows, their number."""
    if "rows" in notes:
        tasks = sorted({task for row in notes["rows"] for task in row["tasks"]})
        return f"{len(notes['rows'])} rows of {', '.join(tasks)}"
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
dcsft evaluate --model dcsft_vllm --model-args pretrained=CKPT --tasks dcsft_digits --output scores
dcsft evaluate --responses old.jsonl --task dcsft_digits --output scores
dcsft evaluate --responses old.jsonl --scorer box_iou --box-space pixel --output scores""",
    prepared=True,
    then="dcsft leaderboard build {output} OTHER-SCORES... --output board",
)

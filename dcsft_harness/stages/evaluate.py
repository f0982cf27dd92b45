"""`dcsft evaluate`: Score a checkpoint, item by item: adapter -> scores."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from dcsft_harness import ranks
from dcsft_harness.coordinates import BoxSpace
from dcsft_harness.data import OwnPart
from dcsft_harness.errors import HarnessError
from dcsft_harness.settings import flag, option, read_pairs
from dcsft_harness.stages import opening
from dcsft_harness.stages.stage import Notes, Progress, Stage, counted, out_of_tokens, percent

if TYPE_CHECKING:
    from dcsft_harness.sampling import SamplingConfig

_OF_RESPONSES = (
    "responses",
    "tasks",
    "scorer",
    "columns",
    "box_space",
    "limit",
    "name",
    "group",
    "include_path",
)
"""The options for scoring given responses; the others are for generation."""


class EvaluateOptions(opening.OwnTasks, OwnPart, opening.Engine):
    """What to evaluate, and on what."""

    SECTION = "Tasks"

    tasks: tuple[str, ...] = option(
        (),
        "lmms-eval tasks, groups or tags, comma-separated; or files: your own tasks' YAML, or rows as --data"
        " takes them.",
        metavar="NAME|FILE,...",
        reads="tasks",
        also="--task",
    )
    data: Path | None = option(
        None,
        "Held-out rows of your own, as `dcsft sample` takes them: a task named after the file.",
        metavar="FILE|DIR",
        reads="pool",
    )
    on_error: Literal["stop", "skip"] = option(
        "stop", "What to do with an unusable row of --data: skip leaves it out and records it."
    )
    name: str | None = option(None, "The row's name in a leaderboard; by default the output folder's name.")
    group: str | None = option(
        None, "Name shared by all seeds of a configuration; by default as in a name like 'SFT (seed 1)'."
    )
    limit: int | None = option(None, "Only the first documents of each task.", ge=1)
    responses: Path | None = option(
        None,
        "Score the responses in this file (JSONL or Parquet) instead of a model's; with --tasks or --scorer.",
        metavar="FILE",
        reads="file",
    )
    columns: Mapping[str, str] = option(
        about="With --responses: which column holds item, question, picture, gold, response, model, step or "
        "task.",
        metavar="FIELD=COLUMN",
        repeated=True,
        default_factory=dict,
        also="--column",
    )
    box_space: BoxSpace | None = option(None, "With --responses: the coordinate space of their boxes.")

    max_new_tokens: int | None = option(
        None,
        "Maximum response length in tokens; by default each task's own limit, 128 for your own rows.",
        ge=1,
    )
    samples: int = option(1, "K, responses per item, for avg@k, maj@k and pass@k at every k up to K.", ge=1)
    temperature: float | None = option(
        None, "Softmax temperature; by default 0 (greedy) for one response, and 0.9 for several.", ge=0
    )
    top_p: float | None = option(
        None, "For sampled responses: nucleus (top-p) mass kept; by default 1.", gt=0, le=1
    )
    top_k: int | None = option(
        None, "For sampled responses: top-k tokens kept, 0 for all; by default 50.", ge=0
    )
    seed: int | None = option(None, "For sampled responses: the seed; by default 0.")

    @field_validator("columns", mode="before")
    @classmethod
    def _read_columns(cls, given: object) -> object:
        return read_pairs(given, "--column", "FIELD=COLUMN", "gold=solution")

    def sampling(self) -> "SamplingConfig | None":
        """The sampling settings; None for greedy decoding, which takes no other sampling option.

        Raises:
            HarnessError: several greedy responses are requested, which would be identical; or a sampling
                option is given with greedy decoding.
        """
        from dcsft_harness.sampling import SamplingConfig

        names = ("temperature", "top_p", "top_k", "seed")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.samples > 1 and self.temperature == 0:
            raise HarnessError(
                f"--samples {self.samples} at --temperature 0 are {self.samples} times the same response",
                "Use a temperature above 0, or one sample",
            )
        if self.samples == 1 and not self.temperature:
            for name in names[1:]:
                if name in given:
                    raise HarnessError(
                        f"{flag(name)} {given[name]} has no effect on a greedy response",
                        "Pass --samples above 1 or --temperature above 0, or leave it out",
                    )
            return None
        longest = self.max_new_tokens
        return SamplingConfig(samples=self.samples, limit=self.limit, max_new_tokens=longest, **given)


def run(options: EvaluateOptions, output: Path, progress: Progress | None) -> Notes:
    """Evaluates."""
    if options.responses is not None:
        return _score_responses(options, output, progress)
    for name in ("columns", "box_space"):
        if getattr(options, name):
            raise HarnessError(f"{flag(name)} requires --responses", "Leave it out")
    launched = options.launched(STAGE, output)
    if launched is not None:
        return launched
    from dcsft_harness import evaluation, lmms
    from dcsft_harness.artifacts import manifest
    from dcsft_harness.data.benchmarks import prepared

    ranks.join()
    with ranks.agreed():
        sampled = options.sampling()
        manifest.refuse_occupied(output, resumes=True)
        lmms.include(options.include_path)
        if not options.tasks and options.data is None:
            raise HarnessError("--tasks and --data are missing", "Pass one of them, or both")
        rows = [name for name in options.tasks if opening.is_own(name) and not lmms.is_file(name)]
        names = [name for name in options.tasks if name not in rows]
        opened = lmms.open_tasks(names) if names else {}
        inputs = prepared.inputs(map(lmms.data_name, opened.values())) | opening.task_files(names)
        own = [*([] if options.data is None else [options.data]), *map(Path, rows)]
        described, noted = _add_own(opened, inputs, own, options)
        longest = options.max_new_tokens
        opener, settings, folders = options.checked(opened, options.samples, longest, options.limit)
        inputs, settings = folders | inputs, settings | described
        if longest is not None:
            settings["max_new_tokens"] = longest
            for task in opened.values():
                lmms.limit_tokens(task, longest)
    if options.group is not None:
        settings["group"] = options.group
    name = options.name or output.name
    return evaluation.evaluate(
        opener, opened, output, name, settings, sampled, options.limit, progress, inputs, noted
    )


def _add_own(
    opened: dict[str, Any], inputs: dict[str, Path], files: Sequence[Path], options: EvaluateOptions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Adds the user's own rows as tasks, one for each file, and the files to the inputs.

    Returns their entries for the manifest's configuration, and their notes.
    """
    if not files:
        opening.refuse_own(options, "--data")
        if options.on_error == "skip":
            raise HarnessError("--on-error skip requires --data", "Leave it out")
        return {}, {}
    described: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for number, file in enumerate(files):
        task, entries, read = opening.pool(options, None, file, options.on_error == "skip", held=True)
        name = task.config.task
        if name in opened:
            raise HarnessError(f"{file} becomes the task {name}, as another one does", "Rename the file")
        opened[name] = task
        inputs.update({role if number == 0 else f"{role} {name}": path for role, path in read.items()})
        if number:
            entries = {f"images_sha256 {name}": entries["images_sha256"]}
        described |= entries
        more = getattr(task, "left_out", {})
        left_out |= more if number == 0 else {f"{file.name}, {row}": why for row, why in more.items()}
    noted = {"left_out": len(left_out), "left_out_rows": dict(islice(left_out.items(), 20))}
    return described, noted if left_out else {}


def _score_responses(options: EvaluateOptions, output: Path, progress: Progress | None) -> Notes:
    from dcsft_harness import lmms
    from dcsft_harness.evaluation import responses

    assert options.responses is not None
    if options.data is not None:
        raise HarnessError(
            f"--responses and --data {options.data} cannot be combined", "Use only one of them"
        )
    if options.model_args or options.model != "dcsft_hf":
        raise HarnessError("--responses and --model cannot be combined", "Use only one of them")
    for name, field in type(options).model_fields.items():
        if name not in _OF_RESPONSES and getattr(options, name) != field.get_default(
            call_default_factory=True
        ):
            raise HarnessError(f"{flag(name)} has no effect on --responses", "Leave it out")
    lmms.include(options.include_path)
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
    """Each task's accuracy, or the metrics at K for K samples; for several rows, their number."""
    if "rows" in notes:
        tasks = sorted({task for row in notes["rows"] for task in row["tasks"]})
        return f"{len(notes['rows'])} rows of {', '.join(tasks)}"
    parts = []
    for name, task in notes["tasks"].items():
        sizes = ", ".join([f"n {task['n']}", *counted(task, {"unscored": "unscored"})])
        parts.append(f"{name} {_figures(task)} ({sizes})")
    words = {
        "left_out": "rows left out",
        "resumed": "responses from the interrupted run",
        "damaged": "damaged and generated again",
    }
    return ", ".join([*parts, *counted(notes, words)])


def remarks(notes: Mapping[str, Any]) -> list[str]:
    """Per task: how many responses ran out of tokens and what to do, and whether it is named after a file."""
    said = []
    if (name := notes.get("named_after_file")) is not None:
        said.append(
            f"the task {name} is named after the file. To compare the responses of several files, give their "
            "rows one `task`"
        )
    # Without tasks: several rows of given responses, or a rank that writes nothing.
    for name, task in notes.get("tasks", {}).items():
        total = task["n"] + task["unscored"]
        found = out_of_tokens(task.get("truncated", 0), total, "items have responses that")
        said += [f"{name}: {one}" for one in found]
    return said


def _figures(task: Mapping[str, Any]) -> str:
    k = task.get("samples")
    if k is None:
        return percent(task["accuracy"])
    shown = [
        f"{name}@{k} {percent(task['at_k'][name][-1])}"
        for name in ("avg", "maj", "pass")
        if name in task["at_k"]
    ]
    return " ".join(shown)


STAGE = Stage(
    verb="evaluate",
    options=EvaluateOptions,
    run=run,
    summary=summary,
    remarks=remarks,
    writes="scores",
    estimate=partial(opening.answering, "evaluated", 1),
    example="""dcsft evaluate --model adapter --tasks dcsft_digits,dcsft_digits_r --output scores
dcsft evaluate --model adapter --data held-out.jsonl --scorer exact_word --output scores
dcsft evaluate --model CKPT --engine dcsft_vllm --tasks dcsft_digits --output scores
dcsft evaluate --responses old.jsonl --task dcsft_digits --output scores
dcsft evaluate --responses old.jsonl --scorer box_iou --box-space pixel --output scores""",
    prepared=True,
    then="dcsft leaderboard build {output} OTHER-SCORES... --output board",
    light=None,
)

"""Opens or refuses the inputs that a stage's options name: checkpoints, pools, models, training data.

Heavy packages are imported inside.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from dcsft_harness import ranks, reading
from dcsft_harness.data import OwnPart, OwnRows
from dcsft_harness.data.digits import resolve
from dcsft_harness.errors import HarnessError
from dcsft_harness.settings import Settings, flag, option

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import ProcessorMixin

    from dcsft_harness.artifacts.usage import Estimate
    from dcsft_harness.lmms import Model, Task
    from dcsft_harness.stages.stage import Notes, Stage
    from dcsft_harness.training.config import TrainingConfig
    from dcsft_harness.training.launching import Launch

LAUNCH = ("num_processes", "launch")
"""Options that are not passed to the processes of a launch."""
ENGINES = ("local", "ray")
"""Where sampling runs: in this process or those of its launch, or on a Ray cluster."""


class OwnTasks(Settings):
    """The location of a user's own tasks."""

    SECTION = "Own data"

    include_path: Path | None = option(
        None,
        "A folder of your own task YAML, in addition to the suite's and lmms-eval's tasks.",
        metavar="DIR",
    )


class Engine(Settings):
    """What to load, and the engine that loads it."""

    SECTION = "Model"

    model: str = option(
        "dcsft_hf",
        "A checkpoint or adapter: a folder, a hub's OWNER/NAME, or digits. An lmms-eval model, whose"
        " --model-args name the checkpoint, also works.",
        metavar="CKPT",
        reads="checkpoint",
    )
    model_args: str = option(
        "", "More arguments for the engine: batch_size=8,...", metavar="K=V,...", reads="model_args"
    )
    engine: str = option(
        "local",
        "The engine: dcsft_hf, dcsft_vllm, or any lmms-eval model. local is dcsft_hf; ray runs dcsft_hf"
        " on the Ray cluster at RAY_ADDRESS, or on one that it starts on this machine.",
        metavar="NAME",
    )
    actors: int | None = option(
        None,
        "Number of Ray actors, for --engine ray (by default one per GPU, or per CPU without GPUs) and"
        " dcsft_vllm (by default it runs without Ray).",
        ge=1,
    )
    num_processes: int | None = option(
        None,
        "Number of processes that share the items, one per GPU, started by `accelerate launch`; with"
        " dcsft_vllm, one engine each.",
        ge=1,
        decides=False,
    )

    @field_validator("model_args", mode="before")
    @classmethod
    def _as_text(cls, given: object) -> object:
        return reading.joined(given) if isinstance(given, Mapping) else given

    def launched(self, stage: "Stage", output: Path) -> "Notes | None":
        """Runs the stage in its own processes and returns its result; None if this process must run it.

        Raises:
            HarnessError: processes are asked for that cannot be started, or one of them failed.
        """
        from dcsft_harness.artifacts import usage

        if self.num_processes is None or usage.PLANNING.get() is not None:
            return None
        from dcsft_harness.training.launching import Launch

        if self.engine == "ray" or self.actors is not None:
            raise HarnessError(
                f"--num-processes {self.num_processes} and Ray's actors both divide the items",
                "Use only one of them",
            )
        shared = str(reading.named(self.model_args).get("tensor_parallel_size", 1))
        launch = Launch.read(self.num_processes, None, int(shared) if shared.isdecimal() else 1)
        return None if launch is None else launched(launch, stage, self, output)

    def checked(
        self, tasks: Mapping[str, "Task"], samples: int, new_tokens: int | None, limit: int | None
    ) -> tuple[Callable[[], "Model"], dict[str, Any], dict[str, Path]]:
        """A function that opens the model, the settings and folders that the manifest records of it.

        See `admit_answers` for the arguments.

        Raises:
            Planned: this is a dry run.
            HarnessError: the model cannot be used, or does not fit.
        """
        from dcsft_harness import lmms
        from dcsft_harness.evaluation.subject import as_engine

        named = None if self.engine in ENGINES else self.engine
        ray = self.engine == "ray" or (self.actors is not None and named is not None)
        model, given = as_engine(self.model, self.model_args, named)
        arguments, folders = model_arguments(given)
        lmms.check_model(model, arguments)
        lmms.refuse_unfit(tasks.values(), model)
        found = opener(model, arguments, ray, self.actors)
        if not ray:
            processes = self.num_processes or ranks.world_size()
            admit_answers(model, arguments, tasks, samples, new_tokens, limit, processes)
        return found, {"model": model, "model_args": given}, folders


def launched(
    launch: "Launch", stage: "Stage", options: Settings, output: Path, config: "TrainingConfig | None" = None
) -> "Notes":
    """Runs a stage in the processes of a launch, and waits for them."""
    # Options that are None by default and were not given need no word.
    fields = type(options).model_fields
    given = {name: getattr(options, name) for name in options.model_fields_set - {*LAUNCH}}
    given = {name: value for name, value in given.items() if value is not None or fields[name].default}
    from dcsft_harness.training import launching

    return launching.run(launch, config, stage.command(given, output, joined=True)[1:], output)


def is_own(data: str | Path) -> bool:
    """Whether a name is a file or folder of a user's own rows, and not an artifact or task."""
    from dcsft_harness.sampling import own_files

    return own_files.is_data(str(data))


def refuse_own(options: OwnRows, instead: str) -> None:
    """Refuses given options of `OwnPart`, which do not apply here."""
    for name in OwnPart.model_fields:
        if getattr(options, name, None):
            value = "" if getattr(options, name) is True else f" {getattr(options, name)}"
            raise HarnessError(f"{flag(name)}{value} applies only to {instead}", "Leave it out")


def own_training_rows(data: str, options: OwnPart, pairs: bool = False) -> "Dataset":
    """A user's own rows as training data; see `conversations.from_rows`."""
    from dcsft_harness.curation import conversations
    from dcsft_harness.sampling import own_data

    root, outside, part = options.image_root, options.allow_outside_root, own_data.part_of(options)
    return conversations.from_rows(Path(data), options.scorer, root, outside, pairs, part)


def pool(
    options: OwnPart,
    task: str | None,
    data: Path | None,
    skip: bool,
    held: bool = False,
) -> tuple["Task", dict[str, Any], dict[str, Path]]:
    """The lmms-eval task to sample, its note for the manifest, and its file if it comes from one.

    `skip` is that of `own_data.open_file`. `held` reads the held-out part, to evaluate on: its rows with
    unreadable images are not kept.

    Raises:
        HarnessError: neither or both of `task` and `data` are given, or the given one cannot be opened.
    """
    from dcsft_harness import lmms
    from dcsft_harness.sampling import own_data

    if task is None and data is None:
        raise HarnessError("--task and --data are missing", "Pass one of them")
    if task is not None and data is not None:
        raise HarnessError(f"--task {task} and --data {data} cannot be combined", "Pass one of them")
    if data is None:
        if is_own(str(task)) and not lmms.is_file(str(task)):
            raise HarnessError(f"--task {task} is a file or folder of rows", f"Pass it as --data {task}")
        refuse_own(options, "--data")
        return own_data.open_task(str(task), "--task"), {}, task_files([str(task)])
    if not data.exists() and str(data) in lmms.task_index():
        raise HarnessError(f"--data {data} is a task", f"Pass it as --task {data}, without --scorer")
    root, outside, part = options.image_root, options.allow_outside_root, own_data.part_of(options, held)
    opened = own_data.open_file(data, options.scorer, root, skip, outside, not held, part)
    return opened, own_data.described(data, options), {"data": data}


def task_files(names: Sequence[str]) -> dict[str, Path]:
    """The YAML files among the names of tasks, by their role in a manifest."""
    from dcsft_harness import lmms

    return {f"task {Path(name).stem}": Path(name) for name in names if lmms.is_file(name)}


def opener(model: str, arguments: str, ray: bool, actors: int | None) -> Callable[[], "Model"]:
    """A function that opens the model on first use: in this process, or in actors of a Ray cluster.

    A cluster that is not installed or has no actors is refused at once.
    """
    from dcsft_harness import lmms

    if not ray:
        if actors is not None:
            raise HarnessError(f"--actors {actors} requires --engine ray", "Leave it out")
        return partial(lmms.open_model, model, arguments)
    if ranks.world_size() > 1:
        raise HarnessError(
            f"--engine ray has its own processes, and this launch has {ranks.world_size()}",
            "Start it without `torchrun` or `accelerate launch`",
        )
    from dcsft_harness.models.ray_engine import SpreadModel, check

    check(actors)
    return partial(SpreadModel, model, arguments, actors)


# Whether what answers fits on its device.

LOOKED_AT = 8
"""Number of evenly spaced documents of a task whose longest prompt represents all."""


def admit_answers(
    model: str,
    arguments: str,
    tasks: Mapping[str, "Task"],
    samples: int,
    new_tokens: int | None,
    limit: int | None,
    processes: int,
) -> None:
    """Refuses sampling or evaluation that does not fit, before weights are read; ends a dry run by `Planned`.

    Only dcsft_hf's needs are known; other models plan their own memory. `samples` is the responses of an
    item, `new_tokens` the longest one; None takes the tasks' own limits. `processes` share the items, and
    each needs what is estimated.
    """
    from dcsft_harness.artifacts import usage

    planning = usage.PLANNING.get() is not None
    if model != "dcsft_hf":
        if planning:
            usage.admit(usage.Estimate(usage.planned_device(), {}, settings={"processes": processes}))
        return
    from dcsft_harness.models.checkpoint import Unreached

    try:
        estimate = _answering(arguments, tasks, samples, new_tokens, limit, processes)
    except Unreached:
        raise  # its loader would ask as long again
    except (HarnessError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        if planning:
            raise
        return  # what is wrong with the model is its loader's to say
    usage.admit(estimate)


def _answering(
    arguments: str,
    tasks: Mapping[str, "Task"],
    samples: int,
    new_tokens: int | None,
    limit: int | None,
    processes: int,
) -> "Estimate":
    import torch

    from dcsft_harness.artifacts import usage
    from dcsft_harness.models import checkpoint, estimates
    from dcsft_harness.models.arguments import DEFAULT_MAX_NEW_TOKENS, ModelSettings, token_limit

    settings = ModelSettings.from_options(reading.named(arguments))
    device = usage.planned_device(settings.device)
    if device.kind == "cpu":  # whose memory all share
        device = replace(device, free=device.free / processes)
    anatomy = estimates.Anatomy(checkpoint.open_config(settings), settings.trust_remote_code)
    stored = anatomy.config.dtype if isinstance(anatomy.config.dtype, torch.dtype) else torch.float32
    named = getattr(torch, settings.dtype) if settings.dtype not in (None, "auto") else None
    kind = named or (stored if device.kind == "cuda" or settings.dtype == "auto" else torch.float32)
    processor = checkpoint.open_processor(settings)
    tokens, items = 1, 0
    longest = new_tokens or 1
    for task in tasks.values():
        count = len(task.eval_docs) if limit is None else min(limit, len(task.eval_docs))
        items += count
        step = max(count // LOOKED_AT, 1)
        tokens = max([tokens, *(_prompt_tokens(task, at, processor) for at in range(0, count, step))])
        if new_tokens is None:
            asked = token_limit(task.config.generation_kwargs)
            longest = max(longest, asked or DEFAULT_MAX_NEW_TOKENS)
    items = math.ceil(items / processes)
    together = min(settings.batch_size, max(items, 1))
    limit_bytes = math.inf if settings.memory_gb is None else settings.memory_gb * 1e9
    while True:  # batches are made smaller where memory asks for it
        rows = together * samples
        parts = estimates.generation(anatomy, kind.itemsize, rows, together, tokens, longest, device)
        batch = parts["keys and values"] + parts["activations"] + parts["images"]
        if together == 1 or (sum(parts.values()) <= device.free and batch <= limit_bytes):
            break
        together = (together + 1) // 2
    seconds = 0.0
    if usage.PLANNING.get() is not None:
        prompt = anatomy.arithmetic.forward(tokens, tokens * anatomy.patches_per_token, 0)
        work = {
            "operations": items * (prompt + anatomy.arithmetic.forward(samples * longest, 0)),
            "steps": items / together * longest,
        }
        seconds = estimates.seconds(anatomy, device, work, anatomy.stored())
    chosen = {"items at a time": together} | ({"processes": processes} if processes > 1 else {})
    remedy = "Lower max_pixels in --model-args, or pass --engine dcsft_vllm with tensor_parallel_size=N"
    if parts["keys and values"] > device.free:
        remedy = f"Lower --max-new-tokens ({longest}) or the responses to an item ({samples})"
    elif device.kind == "cpu" and kind.itemsize > stored.itemsize:
        remedy = f"Pass --model-args dtype={str(stored).removeprefix('torch.')}"
    return usage.Estimate(device, parts, seconds, settings=chosen, remedy=remedy)


def _prompt_tokens(task: "Task", doc_id: int, processor: "ProcessorMixin") -> int:
    """Tokens of a document's prompt, images included; 0 if it cannot be read, which is refused elsewhere."""
    from dcsft_harness import lmms
    from dcsft_harness.models.batching import count_tokens, tokenize

    try:
        item, images = lmms.describe(task, doc_id)
    except HarnessError:
        return 0
    text = item.prompt
    return 12 + count_tokens(processor, text, tokenize(processor, text) + [0] * len(images), images)


def model_arguments(text: str) -> tuple[str, dict[str, Path]]:
    """Model arguments with the embedded checkpoint's folder filled in, and the folders that they name.

    Raises:
        HarnessError: a newer version of this package wrote one of the folders.
    """
    from dcsft_harness.artifacts import manifest

    parts, inputs = [], {}
    for part in reading.separated(text):
        key, _, value = part.partition("=")
        if (key := key.strip()) in ("pretrained", "adapter"):
            value = resolve(value.strip())
            if Path(value).is_dir():
                manifest.refuse_newer(Path(value))
                inputs[{"pretrained": "model"}.get(key, key)] = Path(value)
            part = f"{key}={value}"
        parts.append(part)
    return ",".join(parts), inputs


def training_data(data: str, options: OwnPart) -> "Path | Dataset":
    """A curated set's folder unchanged, or a task's documents or a user's rows as `messages` and `images`."""
    from dcsft_harness.artifacts import manifest

    asked = any(getattr(options, name) for name in OwnPart.model_fields)
    if is_own(data) and (asked or not (Path(data).is_dir() and _is_training_set(Path(data)))):
        return own_training_rows(data, options)
    refuse_own(options, "rows of your own")
    if Path(data).is_dir():
        manifest.refuse_newer(Path(data))
        if (Path(data) / manifest.UNFINISHED).is_dir():
            manifest.read(Path(data))  # which refuses it, with what to do
        return Path(data)
    from dcsft_harness.curation import conversations
    from dcsft_harness.sampling.own_data import open_task

    return conversations.from_task(open_task(data, "--data"))


def _is_training_set(folder: Path) -> bool:
    """Whether a folder has the columns, roles and images of a curated set, which trainers can read directly.

    It must have no other columns that are read from a user's rows, and no other parts of a turn, since they
    would be lost.
    """
    from datasets import Dataset, Image, List

    from dcsft_harness.artifacts import storage
    from dcsft_harness.sampling import own_files
    from dcsft_harness.training.data import ROLES

    try:
        found = storage.load(folder)
    except HarnessError:
        return (folder / "state.json").is_file()  # training explains the problem in more detail
    if not isinstance(found, Dataset) or "messages" not in found.features:
        return False
    if set(own_files.read_columns(folder, found.features.arrow_schema)) - {"messages", "images"}:
        return False
    turns = found.select_columns("messages")[0]["messages"] if len(found) else ()
    if not all(isinstance(one, Mapping) and one.get("role") in ROLES for one in turns or ()):
        return False
    if any(one.keys() - {"role", "content"} for one in turns or ()):
        return False
    images = found.features.get("images")
    return isinstance(images, List) and isinstance(images.feature, Image)


# Rough needs of a stage, for the plan of a recipe: seconds, and bytes on one device.

Numbers = Mapping[str, float]


def forward_seconds(machine: Numbers, length: float, patches: float) -> float:
    """Seconds of one forward pass of a sequence, on all devices; see `recipes.chain` for the machine."""
    work = 2 * (machine["language"] * length + machine["vision"] * patches)
    return work / (machine["flops"] * machine["devices"])


def answering(
    items: str, samples: int, options: Mapping[str, Any], machine: Numbers, tokens: Numbers
) -> tuple[float, float]:
    """The needs of sampling or evaluation; `items` is a count of `tokens`, `samples` the default of each."""
    prefill = forward_seconds(machine, tokens["prompt"], tokens["patches"]) * tokens[items]
    drawn = tokens[items] * float(options.get("samples") or samples) * tokens["answer"]
    return prefill + drawn / machine["drawn"], 0.9e9 * machine["gigabytes"]

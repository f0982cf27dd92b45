"""Opens what a stage's options name, or refuses it: checkpoints, pools, models, training data.

Heavy packages are imported inside.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsft_harness.data.digits import resolve
from dcsft_harness.errors import HarnessError, unknown_name

if TYPE_CHECKING:
    from datasets import Dataset

    from dcsft_harness.lmms import Model, Task

ENGINES = ("local", "ray")
"""Where sampling runs: in this process or those of its launch, or on a Ray cluster."""


def pool(
    task: str | None,
    data: str | Path | None,
    scorer: str | None,
    image_root: str | Path | None,
    skip: bool,
    outside: bool = False,
) -> tuple["Task", dict[str, Any], dict[str, Path]]:
    """The lmms-eval task to sample, its note for the manifest, and its file if it comes from one.

    Raises:
        HarnessError: neither or both of `task` and `data` are given, or the given one cannot be opened.
    """
    from dcsft_harness import lmms
    from dcsft_harness.sampling import own_data

    if (task is None) == (data is None):
        raise HarnessError("--task and --data exclude each other, and one is needed", "Give one of them")
    if data is None:
        for option, value in (("--scorer", scorer), ("--image-root", image_root)):
            if value is not None:
                raise HarnessError(f"{option} {value} goes with --data", "A --task brings its own")
        if outside:
            raise HarnessError("--allow-outside-root goes with --data", "A --task brings its own images")
        return _single(lmms.open_tasks([str(task)]), str(task)), {}, {}
    path, root = Path(data), None if image_root is None else Path(image_root)
    pool = own_data.open_file(path, scorer, root, skip=skip, outside=outside)
    described = {"scorer": scorer, "images_sha256": own_data.images_sha256(path, root, outside)}
    return pool, described, {"data": path}


def opener(model: str, arguments: str, engine: str, actors: int | None) -> Callable[[], "Model"]:
    """A function that opens the model on first use: in this process, or in actors of a Ray cluster.

    Raises:
        HarnessError: the engine is unknown or not installed, or does not support `actors`.
    """
    from dcsft_harness import lmms, ranks

    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if engine == "local":
        if actors is not None:
            raise HarnessError(f"--actors {actors} goes with --engine ray", "Leave it out")
        return partial(lmms.open_model, model, arguments)
    if ranks.world_size() > 1:
        raise HarnessError(
            f"--engine ray has its own processes, and this launch has {ranks.world_size()}",
            "Start it without `torchrun` or `accelerate launch`",
        )
    from dcsft_harness.models.ray_engine import check

    check(actors)

    def spread() -> "Model":
        from dcsft_harness.models.ray_engine import SpreadModel

        return SpreadModel(model, arguments, actors)

    return spread


def _single(tasks: dict[str, "Task"], name: str) -> "Task":
    if len(tasks) != 1:
        raise HarnessError(
            f"--task {name} stands for {len(tasks)} tasks ({', '.join(tasks)})", "Name one of them"
        )
    return next(iter(tasks.values()))


def model_arguments(text: str) -> tuple[str, dict[str, Path]]:
    """Model arguments with the embedded checkpoint's folder filled in, and the folders they name.

    Raises:
        HarnessError: a newer version of this package wrote one of the folders.
    """
    from dcsft_harness.artifacts import manifest

    parts, inputs = [], {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key in ("pretrained", "adapter"):
            value = resolve(value)
            if Path(value).is_dir():
                manifest.refuse_newer(Path(value))
                inputs[{"pretrained": "model"}.get(key, key)] = Path(value)
            part = f"{key}={value}"
        parts.append(part)
    return ",".join(parts), inputs


def training_data(data: str) -> "Path | Dataset":
    """A curated set's folder unchanged, or a task's documents as `messages` and `images`."""
    from dcsft_harness.artifacts import manifest

    if Path(data).is_dir():
        manifest.refuse_newer(Path(data))
        if (Path(data) / manifest.UNFINISHED).is_dir():
            manifest.read(Path(data))  # which refuses it, with what to do
        return Path(data)
    from dcsft_harness import lmms
    from dcsft_harness.curation import conversations

    if Path(data).is_file():
        raise HarnessError(
            f"--data {data} is a file, and supervised training takes a curated set's folder or a task",
            "Sample, label and curate the file first",
        )
    if data not in lmms.task_index():
        raise unknown_name("curated set or task", data, lmms.task_index(), "dcsft tasks list")
    return conversations.from_task(_single(lmms.open_tasks([data]), data))

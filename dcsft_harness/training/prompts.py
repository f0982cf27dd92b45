"""What GRPO trains on, with the task that judges it: a pool, a curated set, or a JSONL file of one's own."""

from pathlib import Path
from typing import Any

from dcsft_harness import curation, lmms
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.hashing import file_sha256
from dcsft_harness.curation import conversations
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.sampling import ITEMS, own_data
from dcsft_harness.training.judge import Judge


def open_data(
    data: str, scorer: str | None, image_root: Path | None, outside: bool = False
) -> tuple[Any, Judge]:
    """Opens training prompts by what `--data` names.

    Args:
        data: a curated set's folder, whose task is found through the rollouts that it comes from; the
            name of a task; or a JSONL file.
        scorer: how answers of a JSONL file are judged.
        image_root: where relative image paths of a JSONL file start; None means its own folder.
        outside: whether its images may lie outside that.

    Returns:
        The folder, or an open `datasets.Dataset`; and the judge of its items.

    Raises:
        HarnessError: it cannot be opened, its task is another than when it was sampled, or a scorer or
            images are named for a task, which has its own.
    """
    path = Path(data)
    if path.is_dir():
        return path, _judge_of(path, scorer, image_root, outside)
    if path.is_file():
        # Training lists what is unreadable.
        task = own_data.open_file(path, scorer, image_root, skip=True, outside=outside)
    else:
        if data not in lmms.task_index():
            raise unknown_name("curated set or task", data, lmms.task_index(), "dcsft tasks list")
        _refuse_options(data, scorer, image_root, outside)
        opened = lmms.open_tasks([data])
        if len(opened) != 1:
            raise HarnessError(f"--data {data} stands for {len(opened)} tasks", "Name one of them")
        task = next(iter(opened.values()))
    rows = conversations.from_task(task)
    return rows, Judge(task, {item: doc_id for doc_id, item in enumerate(rows["item_id"])})


def _judge_of(folder: Path, scorer: str | None, image_root: Path | None, outside: bool) -> Judge:
    """The judge of a curated set: the task that its pool was, with the documents of its items."""
    from datasets import load_from_disk

    rollouts = manifest.read(manifest.read(folder, "curated set").input_folder("rollouts"), "rollouts")
    manifest.refuse_changed(rollouts.folder, *(n for n in rollouts.files if n.startswith(f"{ITEMS}/")))
    task = _task_of(rollouts, scorer, image_root, outside)
    items = load_from_disk(str(rollouts.folder / ITEMS)).select_columns(["item_id", "doc_id"])
    doc_ids = dict(zip(items["item_id"], items["doc_id"], strict=True))
    chosen = load_from_disk(str(folder / curation.DATA)).select_columns(["item_id"])["item_id"]
    for item in chosen:
        found = lmms.describe(task, doc_ids[item])[0].item_id
        if found != item:
            raise HarnessError(
                f"document {doc_ids[item]} of task {task.config.task} is no longer what {folder} comes from",
                "Sample, label and curate again",
            )
    return Judge(task, {item: doc_ids[item] for item in chosen})


def _task_of(rollouts: manifest.Manifest, scorer: str | None, image_root: Path | None, outside: bool) -> Any:  # noqa: ANN401
    if "data" in rollouts.inputs:
        entry = rollouts.inputs["data"]
        path = (rollouts.folder / entry["path"]).resolve()
        if not path.is_file() or file_sha256(path) != entry["sha256"]:
            raise HarnessError(
                f"{path}, the pool of {rollouts.folder}, is gone or has changed", "Put it back"
            )
        given = scorer or rollouts.config["scorer"]
        return own_data.open_file(path, given, image_root, skip=True, outside=outside)
    _refuse_options(rollouts.config["task"], scorer, image_root, outside)
    return next(iter(lmms.open_tasks([rollouts.config["task"]]).values()))


def _refuse_options(task: str, scorer: str | None, image_root: Path | None, outside: bool) -> None:
    """Refuses what only a JSONL file needs.

    Raises:
        HarnessError: names the option.
    """
    for option, value in (("--scorer", scorer), ("--image-root", image_root)):
        if value is not None:
            raise HarnessError(f"{option} {value} goes with a JSONL file", f"The task {task} brings its own")
    if outside:
        raise HarnessError(
            "--allow-outside-root goes with a JSONL file", f"The task {task} brings its own images"
        )

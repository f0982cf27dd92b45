"""Images and prompts of evaluated items, for a board's page: scores folders hold neither.

Some documents are read again from tasks that can be opened, and from a user's own rows. Each is checked
against the item's content id, so that no image is shown with another item's answers. Images are re-encoded
from their pixels: nothing else in a file (EXIF, comments, profiles) is copied.
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard.board import Documents, Result
from dcsft_harness.pictures import to_rgb
from dcsft_harness.records import occurrence_id

if TYPE_CHECKING:
    from PIL.Image import Image

    from dcsft_harness.lmms import Task

SIDE = 512
"""The longest side of a stored image, in pixels."""
SMALL = 96
"""Images up to this side are stored losslessly: they are drawings or glyphs, and small."""
AGAIN = 8
"""The most repeats of an item in an evaluation that are identified by content."""


class Picture(NamedTuple):
    """One stored image."""

    file: str  # its name in the images' folder, a hash of its content
    width: int  # of the upright original, in pixels; boxes are in these
    height: int  # likewise


@dataclass(frozen=True)
class Shown:
    """The content of an item to show."""

    prompt: str  # the text that the model saw
    pictures: tuple[Picture, ...]  # in the order shown to the model


@dataclass(frozen=True)
class Exported:
    """The content of some tasks' items to show."""

    shown: Mapping[str, Mapping[str, Shown]]  # task -> item id -> its content
    reasons: Mapping[str, str]  # task -> why it is incomplete


def export(
    folder: Path,
    documents: Mapping[str, Callable[[], Documents]],
    samples: int,
    open_tasks: Callable[[Sequence[str]], Mapping[str, Any]] | None = None,
    changed: Mapping[str, Set[str]] | None = None,
) -> Exported:
    """Writes the images of up to `samples` items of each task to a folder, created if there are any.

    `documents` is task -> a function that returns its items, and `changed` is task -> the ids of those that
    come first. Ids are hashes, so both parts are random draws. `open_tasks` opens tasks by name; None:
    lmms-eval.
    """
    shown: dict[str, Mapping[str, Shown]] = {}
    reasons: dict[str, str] = {}
    for name, read in documents.items():
        if not samples:
            reasons[name] = (
                "Pictures were not asked for: `dcsft leaderboard build` exports them with --samples N."
            )
            continue
        try:
            task = _opened(name, open_tasks)
        except HarnessError as error:
            reasons[name] = f"The task cannot be opened here. {error}"
            continue
        found, refused = _of_task(folder, task, read(), samples, (changed or {}).get(name, set()))
        shown[name] = found
        if refused:
            reasons[name] = f"{len(refused)} of {len(found) + len(refused)} items are not shown. {refused[0]}"
    return Exported(shown, reasons)


def _opened(name: str, open_tasks: Callable[[Sequence[str]], Mapping[str, "Task"]] | None) -> "Task":
    if open_tasks is None:
        from dcsft_harness import lmms

        open_tasks = lmms.open_tasks
    found = open_tasks([name])
    if name not in found:
        raise HarnessError(f"{name!r} names no single task here", "Install the tasks that were evaluated")
    return found[name]


def opener(results: Sequence[Result]) -> Callable[[Sequence[str]], Mapping[str, "Task"]]:
    """A function that opens a task by its name, as the first of the results that has it did.

    It also opens the user's own rows and YAML files, and takes a metric's column for its task.
    """
    known: dict[str, Task] = {}

    def opened(names: Sequence[str]) -> Mapping[str, "Task"]:
        from dcsft_harness import lmms

        found = {}
        for name in names:
            result = next((one for one in results if name in one.tasks), None)
            metric = None if result is None else result.tasks[name].metric
            plain = name if metric is None else name.removesuffix(f" {metric}")
            if plain not in known and result is not None and result.provenance.kind == "scores":
                known.update(_of_inputs(manifest.read(result.folder, "scores"), plain))
            if plain not in known:
                known.update(lmms.open_tasks([plain]))
            if plain in known:
                found[name] = known[plain]
        return found

    return opened


def _of_inputs(scores: manifest.Manifest, name: str) -> Mapping[str, "Task"]:
    """The task of that name if scores were made from a file of rows or its YAML; else empty.

    Raises:
        HarnessError: the file is no longer there, or has changed.
    """
    from dcsft_harness import lmms
    from dcsft_harness.sampling import own_data

    said, share = scores.call.get("options", {}), scores.config.get("held_out")
    part = None if share is None else own_data.Part(share, held=True)
    if said.get("include_path") is not None:
        lmms.include(Path(said["include_path"]))
    for role, entry in scores.inputs.items():
        (kind, _, own), file = role.partition(" "), scores.folder / entry["path"]
        stem = Path(file.name.removesuffix(".gz")).stem  # of a file that may be gone
        if kind == "data" and name in (own, stem, own_data.task_name(file, part)):
            path, root = scores.input_folder(role), said.get("image_root")
            outside = bool(said.get("allow_outside_root"))
            task = own_data.open_file(
                path, scores.config.get("scorer"), root and Path(root), True, outside, False, part
            )
            return {name: task}
        if kind == "task" and name in (tasks := lmms.open_tasks([str(scores.input_folder(role))])):
            return tasks
    return {}


def _of_task(
    folder: Path,
    task: "Task",
    documents: Documents,
    samples: int,
    changed: Set[str],
) -> tuple[dict[str, Shown], list[str]]:
    from dcsft_harness import lmms

    found: dict[str, Shown] = {}
    refused: list[str] = []
    count = len(task.eval_docs)
    numbered = zip(documents.ids, documents.numbers, strict=True)
    for item, number in sorted(numbered, key=lambda pair: pair[0] not in changed)[:samples]:
        if number >= count:
            refused.append(f"Document {number} is not in the task as it is here.")
            continue
        try:
            described, images = lmms.describe(task, number)
        except Exception as error:  # noqa: BLE001 - any failure of a task's functions is reported
            reason = str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
            refused.append(reason)
            continue
        occurrences = (occurrence_id(described.item_id, again) for again in range(1, AGAIN + 1))
        if item not in (described.item_id, *occurrences):
            refused.append(f"Document {number} is another than the one that was evaluated.")
            continue
        found[item] = Shown(described.prompt, tuple(store(folder, image) for image in images))
    return found, refused


def store(folder: Path, image: "Image") -> Picture:
    """Writes an image's pixels as WebP, its longest side at most `SIDE`; the name is a content hash."""
    rgb = to_rgb(image)
    width, height = rgb.size
    rgb.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    _bare(rgb).save(file, "WEBP", lossless=max(rgb.size) <= SMALL, quality=82)
    name = hashlib.sha256(file.getvalue()).hexdigest()[:32] + ".webp"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / name).exists():
        (folder / name).write_bytes(file.getvalue())
    return Picture(name, width, height)


def _bare(rgb: "Image") -> "Image":
    """The same pixels in an image without metadata."""
    from PIL.Image import frombytes

    return frombytes("RGB", rgb.size, rgb.tobytes())

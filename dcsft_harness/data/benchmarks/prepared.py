"""Prepared folders: where they are, and reading their rows and pictures."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

from dcsft_harness import cache, pictures, records
from dcsft_harness.artifacts import manifest
from dcsft_harness.data.benchmarks import registry
from dcsft_harness.data.benchmarks.album import FORMAT
from dcsft_harness.errors import HarnessError

KIND = "prepared data"
ROWS = "rows"
ALBUM = "images.arrow"
VARIABLE = "DCSFT_DATA"
ROLE = "data of "
"""Begins the role of prepared data among an artefact's inputs."""
DIGEST = "records.pixel_digest"
"""Where `picture` writes down, in a picture's `info`, what stands for its pixels in an item's id."""
_UNOPENED = ContextVar("unopened", default=False)


def root() -> Path:
    """Where prepared folders are: `$DCSFT_DATA`, else data/ in the suite's cache folder."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else cache.root() / "data"


def use(folder: Path | None) -> None:
    """Makes a folder the `root` of this process and of those that it starts; None changes nothing."""
    if folder is not None:
        os.environ[VARIABLE] = str(folder.resolve())


def folder_of(task: str) -> Path:
    """The folder that a task's data is prepared in, whether or not it exists."""
    return root() / registry.source_of(task).task


def exists(task: str) -> bool:
    """Whether a task's data is prepared, in whichever version."""
    return (folder_of(task) / manifest.NAME).is_file()


def describe(task: str) -> manifest.Manifest:
    """The manifest of a task's prepared folder.

    Raises:
        HarnessError: it is not there, or was prepared by another version of the suite.
    """
    source, folder = registry.source_of(task), folder_of(task)
    if not exists(task):
        raise HarnessError(
            f"the data of {task} is not prepared: {folder} does not exist",
            f"Run `{source.command()}`. {source.needs}. {source.get}",
        )
    found = manifest.read(folder, KIND)
    if found.config.get("version") != source.version:
        reason = f", which {source.changed}" if source.changed else ""
        raise HarnessError(
            f"{folder} was prepared in version {found.config.get('version')}, and {task} reads version"
            f" {source.version}{reason}",
            f"Remove the folder and run `{source.command()}` again",
        )
    if found.config.get("album") != FORMAT:
        raise HarnessError(
            f"{folder} was prepared by another version of dcsft: its pictures are in format"
            f" {found.config.get('album')}, not {FORMAT}, in which they are upright and 16 bits are scaled",
            f"Remove the folder and run `{source.command()}` again",
        )
    return found


def inputs(tasks: Iterable[str]) -> dict[str, Path]:
    """Role -> the prepared folder of each task that reads one, as inputs of an artefact."""
    return {f"{ROLE}{task}": folder_of(task) for task in tasks if registry.has_source(task) and exists(task)}


def told(task: str) -> dict[str, Any] | None:
    """What a result should say of a task's prepared data; None where it reads none.

    Rows prepared and published, rows skipped, and how rows were chosen where the paper's are not known. Of
    a task that asks a part of a source's rows: of that part; skipped is None where that cannot be told.
    """
    if not (registry.has_source(task) and exists(task)):
        return None
    found = manifest.read(folder_of(task), KIND)
    view = registry.VIEWS.get(task)
    rows, published, skipped = found.notes["rows"], found.config["published"], found.notes["skipped"]
    if view is not None:
        rows, published = len(load(task)), view.count
        # All rows were found, unless any number of them was enough: what is not there was skipped.
        told = None if published is None or found.config["any_count"] else published - rows
        skipped = skipped and told
    return {"rows": rows, "published": published, "skipped": skipped, "chosen": found.notes.get("chosen")}


def load(task: str) -> Any:  # noqa: ANN401 - datasets.Dataset
    """A task's rows as a `datasets.Dataset`, in the order in which they are asked.

    Columns: those of `source.STANDING`, the source's own, and `source`, by which `picture` finds the
    pictures. No column holds an image, so that reading rows is cheap.

    Raises:
        HarnessError: the data is not prepared.
    """
    from datasets import load_from_disk

    describe(task)
    rows = load_from_disk(str(folder_of(task) / ROWS))
    view = registry.VIEWS.get(task)
    if view is None:
        return rows
    values = rows[view.column][:]
    return rows.select([at for at, value in enumerate(values) if value in view.values])


@lru_cache(maxsize=16)
def _album(path: Path, changed: int) -> Any:  # noqa: ANN401 - datasets.Dataset; `changed` keys the cache
    from datasets import Dataset

    return Dataset.from_file(str(path)).with_format("arrow")


def album(task: str) -> Any:  # noqa: ANN401 - datasets.Dataset
    """The pictures of a prepared folder, mapped from the disk: columns name, image, width, height, digest."""
    path = folder_of(task) / ALBUM
    return _album(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _digests(path: Path, changed: int) -> list[bytes]:
    found: list[bytes] = _album(path, changed)[:]["digest"].to_pylist()
    return found


def picture(task: str, index: int) -> Any:  # noqa: ANN401 - a PIL image
    """One picture as `pictures.to_rgb` shows it; boxes are in its pixels. Within `unopened` a stand-in.

    Raises:
        HarnessError: it is not the one that was prepared.
    """
    from PIL import Image

    path = folder_of(task) / ALBUM
    digest = _digests(path, path.stat().st_mtime_ns)[index]
    image = Image.new("RGB", (1, 1)) if _UNOPENED.get() else _verified(task, index, digest)
    image.info[DIGEST] = digest
    return image


def _verified(task: str, index: int, digest: bytes) -> Any:  # noqa: ANN401 - a PIL image
    said = "is not what was prepared"
    try:
        image, _ = pictures.read(encoded(task, index))
        if records.pixel_digest(image) == digest:
            return image
    except pictures.UnreadableError as error:
        said = f"cannot be read any more ({error})"
    folder = folder_of(task)
    raise HarnessError(
        f"{folder / ALBUM}: picture {index}, {name(task, index)}, {said}",
        f"Remove {folder} and run `{registry.source_of(task).command()}` again",
    )


@contextlib.contextmanager
def unopened() -> Iterator[None]:
    """Spares decoding pictures where only what they are is wanted: `picture` gives stand-ins."""
    token = _UNOPENED.set(True)
    try:
        yield
    finally:
        _UNOPENED.reset(token)


def name(task: str, index: int) -> str:
    """One picture's name in what was published."""
    return str(album(task)[index : index + 1]["name"][0].as_py())


def encoded(task: str, index: int) -> bytes:
    """One picture's bytes as published."""
    return bytes(album(task)[index : index + 1]["image"][0]["bytes"].as_py())

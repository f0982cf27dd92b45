"""Prepared folders: their sources, locations, rows and images."""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsft_harness import environment, pictures, records
from dcsft_harness.artifacts import manifest, storage
from dcsft_harness.data.benchmarks import classification, grounding, reasoning
from dcsft_harness.data.benchmarks.source import Picture, Source, View
from dcsft_harness.errors import HarnessError, unknown_name

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image


# The source of every task, and the tasks on a subset of another task's rows.

FAMILIES = (classification, grounding, reasoning)

SOURCES: dict[str, Source] = {source.task: source for family in FAMILIES for source in family.SOURCES}
VIEWS: dict[str, View] = {view.task: view for family in FAMILIES for view in family.VIEWS}


def source_of(task: str) -> Source:
    """The source whose prepared folder a task, one of the suite's benchmarks, reads.

    Raises:
        HarnessError: the task is not one of the suite's benchmarks.
    """
    name = VIEWS[task].of if task in VIEWS else task
    if name not in SOURCES:
        raise unknown_name("benchmark", task, [*SOURCES, *VIEWS], "dcsft tasks list")
    return SOURCES[name]


def has_source(task: str) -> bool:
    """Whether a task reads a prepared folder."""
    return task in SOURCES or task in VIEWS


def published(task: str) -> int | None:
    """The published number of a task's rows; None if it could not be verified."""
    return VIEWS[task].count if task in VIEWS else source_of(task).count


# The images of a prepared folder: each stored once, as published, for any number of rows or names.

STORED = 3
"""Version of the image file's format and of image conversion; a prepared folder of another version is
prepared again. 3: upright, 16 bits scaled to 8 (`pictures.to_rgb`); 2: with digests."""
AT_ONCE = 16
"""Images that are held before they are written."""


class Album:
    """Collects images by name and content; drops those of a row that turns out to be bad."""

    def __init__(self, path: Path) -> None:
        """Opens the image file."""
        from datasets import Features, Image, Value
        from datasets.arrow_writer import ArrowWriter

        number = Value("int64")
        columns = {"name": Value("string"), "image": Image(), "width": number, "height": number}
        features = Features({**columns, "digest": Value("binary")})
        self._writer = ArrowWriter(path=str(path), features=features, writer_batch_size=AT_ONCE)
        self._count = 0
        self._known: dict[str, Picture] = {}
        self._new: dict[str, tuple[bytes, bytes]] = {}  # encoded bytes, and the digest of their pixels
        self._named: list[str] = []
        self._by_content: dict[bytes, Picture] = {}
        self.content = hashlib.sha256()

    def add(self, name: str, read: Callable[[], bytes]) -> Picture:
        """See `source.Pictures.add`."""
        if name in self._known:
            return self._known[name]
        data = read()
        digest = hashlib.sha256(data).digest()
        if digest not in self._by_content:
            picture, turned = _decoded(name, data)
            width, height = picture.size
            self._by_content[digest] = Picture(self._count + len(self._new), width, height, turned)
            self._new[name] = data, records.pixel_digest(picture)
        self._known[name] = self._by_content[digest]
        self._named.append(name)
        return self._known[name]

    def keep(self) -> None:
        """Writes the new images of the current row."""
        for name, (data, digest) in self._new.items():
            image = {"bytes": data, "path": Path(name).name}
            known = self._known[name]
            row = {"name": name, "image": image, "width": known.width, "height": known.height}
            self._writer.write({**row, "digest": digest})
            self._count += 1
            self.content.update(hashlib.sha256(data).digest())
        self._new, self._named = {}, []

    def forget(self) -> None:
        """Drops the new images of the current row."""
        for name in self._named:
            del self._known[name]
        for data, _ in self._new.values():
            del self._by_content[hashlib.sha256(data).digest()]
        self._new, self._named = {}, []

    def close(self) -> int:
        """Finishes the file; returns the number of images."""
        self._writer.finalize()
        return self._count


def _decoded(name: str, data: bytes) -> tuple[Any, int]:
    """Decodes an encoded image completely; returns it as shown, and its EXIF orientation."""
    from PIL import Image

    try:
        picture, _ = pictures.read(data)
    except pictures.UnreadableError as error:
        raise HarnessError(
            f"the image {name} cannot be read ({error})",
            "Fetch it again, or leave it out with --on-error skip",
        ) from error
    with Image.open(io.BytesIO(data)) as image:
        return picture, pictures.orientation(image)


# Prepared folders: their locations, and reading their rows and images.

KIND = "prepared data"
ROWS = "rows"
ALBUM = "images.arrow"
VARIABLE = "DCSFT_DATA"
ROLE = "data of "
"""Prefix of the role of prepared data among an artifact's inputs."""
DIGEST = "records.pixel_digest"
"""Key in an image's `info` where `picture` stores the image's part of an item's id."""
_UNOPENED = ContextVar("unopened", default=False)


def root() -> Path:
    """The parent of prepared folders: `$DCSFT_DATA`, else data/ in the suite's cache folder."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else environment.cache_root() / "data"


def use(folder: Path | None) -> None:
    """Sets `root` for this process and its child processes; None changes nothing."""
    if folder is not None:
        os.environ[VARIABLE] = str(folder.resolve())


def folder_of(task: str) -> Path:
    """The folder for a task's prepared data, whether or not it exists."""
    return root() / source_of(task).task


def exists(task: str) -> bool:
    """Whether a task's data is prepared, in any version."""
    return (folder_of(task) / manifest.NAME).is_file()


def describe(task: str) -> manifest.Manifest:
    """The manifest of a task's prepared folder; an error if missing or of another version of the suite."""
    source, folder = source_of(task), folder_of(task)
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
    if found.config.get("album") != STORED:
        raise HarnessError(
            f"{folder} was prepared by another version of dcsft: its pictures are in format"
            f" {found.config.get('album')}, not {STORED}, in which they are upright and 16 bits are scaled",
            f"Remove the folder and run `{source.command()}` again",
        )
    return found


def inputs(tasks: Iterable[str]) -> dict[str, Path]:
    """Role -> the prepared folder of each task that reads one, as inputs of an artifact."""
    return {f"{ROLE}{task}": folder_of(task) for task in tasks if has_source(task) and exists(task)}


def described(task: str) -> dict[str, Any] | None:
    """A result's note on a task's prepared data; None if the task reads none.

    Rows prepared and published, rows skipped, and how rows were chosen if the paper's choice is unknown. For
    a task on a subset of a source's rows, the counts are those of the subset; skipped is None if unknown.
    """
    if not (has_source(task) and exists(task)):
        return None
    found = manifest.read(folder_of(task), KIND)
    view = VIEWS.get(task)
    rows, published, skipped = found.notes["rows"], found.config["published"], found.notes["skipped"]
    if view is not None:
        rows, published = len(load(task)), view.count
        # All rows were found, unless a part was accepted: missing ones were skipped.
        missing = None if published is None or found.config["any_count"] else published - rows
        skipped = skipped and missing
    return {"rows": rows, "published": published, "skipped": skipped, "chosen": found.notes.get("chosen")}


def load(task: str) -> "Dataset":
    """A task's rows as a `datasets.Dataset`, in the order of evaluation; the data must be prepared.

    Columns: those of `source.STANDING`, the source's own, and `source`, which `picture` needs to find the
    images. No column holds an image, so reading rows is cheap.

    Raises:
        HarnessError: the data is not prepared.
    """
    describe(task)
    rows = storage.load(folder_of(task) / ROWS)
    view = VIEWS.get(task)
    if view is None:
        return rows
    values = rows[view.column][:]
    return rows.select([at for at, value in enumerate(values) if value in view.values])


@lru_cache(maxsize=16)
def _album(path: Path, changed: int) -> "Dataset":  # `changed` keys the cache
    from datasets import Dataset

    return Dataset.from_file(str(path)).with_format("arrow")


def album(task: str) -> "Dataset":
    """The images of a prepared folder, memory-mapped: columns name, image, width, height, digest."""
    path = folder_of(task) / ALBUM
    return _album(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _digests(path: Path, changed: int) -> list[bytes]:
    found: list[bytes] = _album(path, changed)[:]["digest"].to_pylist()
    return found


def picture(task: str, index: int) -> "Image":
    """One image as `pictures.to_rgb` shows it; boxes are in its pixels. Inside `unopened`, a placeholder.

    An image other than the prepared one is an error.
    """
    from PIL import Image

    path = folder_of(task) / ALBUM
    digest = _digests(path, path.stat().st_mtime_ns)[index]
    image = Image.new("RGB", (1, 1)) if _UNOPENED.get() else _verified(task, index, digest)
    image.info[DIGEST] = digest
    return image


def _verified(task: str, index: int, digest: bytes) -> "Image":
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
        f"Remove {folder} and run `{source_of(task).command()}` again",
    )


@contextlib.contextmanager
def unopened() -> Iterator[None]:
    """Skips decoding where only an image's identity is needed: `picture` returns placeholders."""
    token = _UNOPENED.set(True)
    try:
        yield
    finally:
        _UNOPENED.reset(token)


def name(task: str, index: int) -> str:
    """One image's published name."""
    return str(album(task)[index : index + 1]["name"][0].as_py())


def encoded(task: str, index: int) -> bytes:
    """One image's published bytes."""
    return bytes(album(task)[index : index + 1]["image"][0]["bytes"].as_py())

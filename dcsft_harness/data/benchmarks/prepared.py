"""Prepared folders: their sources, locations, rows and images."""

import contextlib
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsft_harness import environment, pictures, records
from dcsft_harness.artifacts import manifest, storage
from dcsft_harness.artifacts.disk import file_sha256, json_sha256
from dcsft_harness.data.benchmarks import (
    STANDING,
    Entry,
    Opened,
    Picture,
    Row,
    Source,
    View,
    classification,
    grounding,
    reasoning,
)
from dcsft_harness.errors import HarnessError, unknown_name

if TYPE_CHECKING:
    from datasets import Dataset, Features
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
        """The image of that name; `read` returns its encoded bytes and is called only for a new name.

        Raises:
            HarnessError: the bytes are not an image, or a truncated one; names it.
        """
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
        picture = pictures.read(data).shown
    except pictures.UnreadableError as error:
        raise HarnessError(
            f"the image {name} cannot be read ({error})",
            "Download it again, or leave it out with --on-error skip",
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


def use(folder: Path) -> None:
    """Sets `root` for this process and its child processes."""
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
            source.advice(),
        )
    found = manifest.read(folder, KIND)
    if found.config.get("version") != source.version:
        reason = f", which {source.changed}" if source.changed else ""
        raise HarnessError(
            f"{folder} was prepared in version {found.config.get('version')}, but {task} reads version"
            f" {source.version}{reason}",
            f"Remove the folder and run `{source.command()}` again",
        )
    if found.config.get("album") != STORED:
        raise HarnessError(
            f"{folder} was prepared by another version of dcsft: its images are in format"
            f" {found.config.get('album')}, not {STORED}, in which they are upright and 16 bits are scaled",
            f"Remove the folder and run `{source.command()}` again",
        )
    return found


def inputs(tasks: Iterable[str]) -> dict[str, Path]:
    """Role -> the prepared folder of each task that reads one, as inputs of an artifact.

    A user's task that reads the rows of one of the suite's goes by the name of these (`lmms.data_name`).
    """
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
    """A task's rows as a `datasets.Dataset`, in the order of evaluation; an error if they are not prepared.

    Columns: those of `STANDING`, the source's own, and `source`, which `picture` needs to find the images. No
    column holds an image, so reading rows is cheap.
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
        image = pictures.read(encoded(task, index)).shown
        if records.pixel_digest(image) == digest:
            return image
    except pictures.UnreadableError as error:
        said = f"can no longer be read ({error})"
    folder = folder_of(task)
    raise HarnessError(
        f"{folder / ALBUM}: image {index}, {name(task, index)}, {said}",
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


# published files or hub rows -> prepared folder: streamed, checked, shuffled, and written atomically.


Progress = Callable[[int, int], None]

SEED = 2602
"""Seed of the row order: published rows come class by class, and --limit should cover many classes."""
SKIPPED = "skipped.jsonl"
_SAID = 3
_AGAIN = "Download the data again, or leave the row out: --on-error skip"


def prepare(
    task: str,
    folder: Path | None = None,
    *,
    on_error: str = "stop",
    any_count: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Makes a task's prepared folder in `root`.

    It holds rows/ (a `datasets` folder without images), images.arrow (the images as published, each once),
    skipped.jsonl (skipped rows with reasons, if any) and manifest.json. For a task on a subset of another
    task's rows, the other is prepared. `folder` has the published files; None loads from the hub. `on_error`
    "skip" leaves unusable rows out, and `any_count` accepts a part of the published rows; the manifest
    records both. `progress` is called with (rows made, rows published), `say` with messages to show
    immediately. Returns the manifest's notes: rows, images, skipped, values of the counted column.

    Raises:
        HarnessError: the data is not available, a row is unusable, rows are missing, or the folder is
            occupied.
    """
    source = source_of(task)
    output = folder_of(task)
    _refuse(source, folder, output)
    config = {
        "task": source.task,
        "version": source.version,
        "album": STORED,
        "seed": SEED,
        "published": source.count,
        "any_count": any_count,
        "on_error": on_error,
        "from": str(folder) if folder else f"hub: {source.hub.path if source.hub else ''}",
    }
    with manifest.writing(KIND, output, config) as draft:
        album = Album(draft.folder / ALBUM)
        opened = Opened(folder, album, any_count, say=say)
        making = _Making(source, opened, album, on_error == "skip", progress)
        try:
            making.write(draft.folder)
        finally:
            images = album.close()
        _check_counts(source, making, any_count)
        draft.notes.update({"images": images, **making.notes()})
    return draft.notes


def _refuse(source: Source, folder: Path | None, output: Path) -> None:
    if (output / manifest.NAME).is_file():
        raise HarnessError(
            f"{source.task} is already prepared in {output}",
            "Remove that folder to prepare it again, or name another --data-root",
        )
    if folder is None and source.hub is None:
        raise HarnessError(f"{source.task} needs --source DIR", f"{source.needs}. {source.get}")
    if folder is not None and not folder.is_dir():
        raise HarnessError(f"--source {folder} is not a folder", f"{source.needs}. {source.get}")


class _Making:
    """One source being prepared, and the counts so far."""

    def __init__(
        self, source: Source, opened: Opened, album: Album, skip: bool, progress: Progress | None
    ) -> None:
        self.source, self.opened, self.album, self.skip = source, opened, album, skip
        self.progress = progress or (lambda done, total: None)
        self.rows = 0
        self.skipped: list[tuple[str, str]] = []
        self.values: Counter[str] = Counter()
        self.content = hashlib.sha256()
        self._seen: dict[str, str] = {}

    def write(self, folder: Path) -> None:
        """Writes the rows in their seeded order, and the skipped ones."""
        from datasets import Dataset
        from datasets.arrow_writer import ArrowWriter

        features, unordered = _features(self.source), folder / ".unordered.arrow"
        with ArrowWriter(path=str(unordered), features=features) as writer:
            for row in self._made():
                writer.write(row)
            writer.finalize()
        if not self.rows:
            raise HarnessError(f"{self.source.task}: there are no rows to prepare", self.source.needs)
        shuffled = Dataset.from_file(str(unordered)).shuffle(seed=SEED, keep_in_memory=True)
        _together(shuffled, self.source.together).save_to_disk(str(folder / ROWS))
        unordered.unlink()
        if self.skipped:
            lines = [json.dumps({"row": where, "reason": reason}) for where, reason in self.skipped]
            (folder / SKIPPED).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def notes(self) -> dict[str, Any]:
        """The manifest's notes on the rows and their source."""
        notes = {
            "rows": self.rows,
            "skipped": len(self.skipped),
            "reasons": [reason for _, reason in self.skipped[:_SAID]],
            "rows_sha256": self.content.hexdigest(),
            "images_sha256": self.album.content.hexdigest(),
            "read": {name: file_sha256(path) for name, path in sorted(self.opened.inputs.items())},
            **self.opened.notes,
        }
        if self.source.tally:
            notes["values"] = {self.source.tally[0]: dict(sorted(self.values.items()))}
        return notes

    def _made(self) -> Iterator[Row]:
        for entry in self.source.entries(self.opened):
            row = self._row(entry)
            if row is None or self._doubled(entry, row):
                self.album.forget()
                continue
            self.album.keep()
            row["source"] = self.source.task
            self.rows += 1
            if self.source.tally:
                self.values[str(row[self.source.tally[0]])] += 1
            self.content.update(json_sha256(row).encode())
            self.progress(self.rows, self.source.count or self.rows)
            yield row

    def _doubled(self, entry: Entry, row: Row) -> bool:
        """Whether the row repeats an earlier one, if the source counts repeats once."""
        if not self.source.distinct:
            return False
        key = json_sha256([row[name] for name in ("prompt", "answer", "images")])
        if key not in self._seen:
            self._seen[key] = entry.where
            return False
        self.skipped.append((entry.where, f"the same item as {self._seen[key]}"))
        return True

    def _row(self, entry: Entry) -> Row | None:
        try:
            return self.source.row(self.opened, entry.raw)
        except (HarnessError, TypeError, AttributeError, KeyError, ValueError) as cause:
            # A value of another type may raise any error in the code that reads it.
            odd = f"a column holds a value of another type than published ({type(cause).__name__}: {cause})"
            error = cause if isinstance(cause, HarnessError) else HarnessError(odd, _AGAIN)
            placed = HarnessError(f"{entry.where}: {error.problem}", error.remedy)
            if not self.skip:
                raise placed from cause
            self.skipped.append((entry.where, str(error)))
            if len(self.skipped) <= _SAID:
                self.opened.say(f"skipped: {placed}")
            return None


def _together(rows: "Dataset", column: str | None) -> "Dataset":
    """Moves rows with equal values of a column next to the first of them."""
    if column is None:
        return rows
    first: dict[str, int] = {}
    values = rows[column][:]
    for at, value in enumerate(values):
        first.setdefault(value, at)
    order = sorted(range(len(values)), key=lambda at: (first[values[at]], at))
    return rows.select(order, keep_in_memory=True)


def _features(source: Source) -> "Features":
    from datasets import Features, List, Value

    columns = {**STANDING, "source": "string", **source.columns}
    return Features(
        {
            name: List(Value(kind[0])) if isinstance(kind, list) else Value(kind)
            for name, kind in columns.items()
        }
    )


def _check_counts(source: Source, making: _Making, any_count: bool) -> None:
    """Refuses row counts that differ from the published ones, in total or per value, by name."""
    found = making.rows + len(making.skipped)
    if any_count or source.count is None:
        return
    lacking = []
    if source.tally and not making.skipped:
        _, published = source.tally
        lacking = [
            f"{name} ({making.values[name]} of {published.get(name, 0)})"
            for name in dict.fromkeys([*published, *making.values])
            if making.values[name] != published.get(name, 0)
        ]
    if found == source.count and not lacking:
        return
    more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
    said = f": {', '.join(lacking[:8])}{more}" if lacking else ""
    raise HarnessError(
        f"{source.task} has {source.count:,} published rows, but {found:,} were found{said}",
        "Complete the source; --any-count accepts what is there and records it in the manifest",
    )

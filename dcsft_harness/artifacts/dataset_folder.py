"""Folders as `datasets` saves them, written and read with little of them in memory.

`Dataset.from_list` holds every image, `Dataset.from_generator` writes everything twice and hashes what the
generator sees, and reading single rows takes longer than copying them.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dcsft_harness import reading
from dcsft_harness.artifacts.hashing import file_sha256
from dcsft_harness.errors import HarnessError
from dcsft_harness.pictures import to_rgb

DATA, STATE = "data-00000-of-00001.arrow", "state.json"
IMAGES = "images"
"""The column of a row's images, which every one of these folders has."""
ROWS = 1000
"""Most rows of one batch in the file, as `datasets` writes them."""
BYTES = 1 << 25
"""Bytes of images and texts after which a batch is written even if it has fewer rows."""


class Writer:
    """Takes a folder's rows; made by `writing`."""

    def __init__(self, features: Any, file: Any) -> None:  # noqa: ANN401 - datasets.Features, an Arrow writer
        """A writer of rows with these columns into this file."""
        self._features, self._file = features, file

    def table(self, rows: pa.Table) -> None:
        """Writes rows whose columns are as they are stored: images as structs of bytes and path."""
        for some in _pieces(rows.cast(self._features.arrow_schema)):
            self._file.write_table(embedded(some), ROWS)

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes rows as a data set gives them, with PIL images, which are encoded."""
        batch: list[Mapping[str, Any]] = []
        size = 0
        for row in rows:
            batch.append(self._features.encode_example(row))
            size += _size(batch[-1])
            if len(batch) == ROWS or size >= BYTES:
                self._write(batch)
                batch, size = [], 0
        if batch:
            self._write(batch)

    def _write(self, batch: list[Mapping[str, Any]]) -> None:
        self.table(pa.Table.from_pylist(batch, schema=self._features.arrow_schema))


def png(image: Any) -> dict[str, Any]:  # noqa: ANN401 - a PIL image
    """A picture as it is stored: a PNG file of its RGB pixels, whatever file it came from."""
    file = io.BytesIO()
    # A quarter of the time of Pillow's own level, for a quarter more bytes.
    to_rgb(image).save(file, "PNG", compress_level=1)
    return {"bytes": file.getvalue(), "path": None}


def embedded(rows: pa.Table) -> pa.Table:
    """Rows with the contents of image files that they only name."""
    if _is_embedded(rows):
        return rows
    from datasets.table import embed_table_storage

    return embed_table_storage(rows, local_files=True, remote_files=False)


def _pieces(rows: pa.Table) -> Iterator[pa.Table]:
    """Rows in pieces of about BYTES, files that they only name included, which are read piece by piece."""
    if _is_embedded(rows):
        yield rows
        return
    start = size = 0
    for number, images in enumerate(rows[IMAGES].to_pylist()):
        size += _size(images)
        if size >= BYTES:
            yield rows.slice(start, number + 1 - start)
            start, size = number + 1, 0
    yield rows.slice(start)


def _is_embedded(rows: pa.Table) -> bool:
    return bool(pc.struct_field(pc.list_flatten(rows[IMAGES]), "bytes").null_count == 0)


def _size(value: object) -> int:
    """About how many bytes a row takes, with the picture files that it only names."""
    if isinstance(value, Mapping):
        named = value.get("path") if value.get("bytes", "") is None else None
        with contextlib.suppress(OSError):
            return os.stat(named).st_size if isinstance(named, str) else sum(map(_size, value.values()))
        return 0
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str | bytes) else 8


@contextlib.contextmanager
def writing(folder: Path, features: Any) -> Iterator[Writer]:  # noqa: ANN401 - datasets.Features
    """Writes a folder that `datasets.load_from_disk` reads, whose bytes depend on its rows alone.

    Raises:
        OSError: the disk takes no more.
    """
    from datasets import Dataset

    # `datasets` writes down what a folder of no rows has beside them; the rows are put to it.
    Dataset(features.arrow_schema.empty_table()).save_to_disk(str(folder))
    with (
        pa.OSFile(str(folder / DATA), "wb") as file,
        pa.ipc.new_stream(file, features.arrow_schema) as stream,
    ):
        yield Writer(features, stream)
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    state["_data_files"] = [{"filename": DATA}]
    # What `datasets` names its caches by.
    state["_fingerprint"] = file_sha256(folder / DATA)[:16]
    (folder / STATE).write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")


def read(folder: Path, columns: Sequence[str], size: int) -> Iterator[pa.Table]:
    """Reads a folder from front to back, images as structs of bytes and path.

    Args:
        folder: as `datasets` saves it.
        columns: those that are wanted.
        size: after how many bytes a table is yielded.

    Raises:
        HarnessError: it is no such folder, is damaged, or lacks a column.
    """
    for path in files(folder):
        try:
            # Read and not mapped: mapped pages count as this process's memory until the end.
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
                for name in columns:
                    if name not in stream.schema.names:
                        raise HarnessError(f"{path} lacks the column {name!r}", "Make the artefact again")
                yield from tables((_selected(batch, columns) for batch in stream), size)
        except (pa.ArrowInvalid, OSError) as error:
            said = str(error).splitlines()[0]
            raise HarnessError(f"{path} cannot be read: {said}", "Make the artefact again") from error


def _selected(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """Some columns of a batch; if they are a small part of it, without the memory of the others.

    Arrow reads a batch into one buffer, which any of its columns holds: texts would hold all pictures.
    """
    found = batch.select(columns)
    return found if 2 * found.nbytes > batch.nbytes else found.take(pa.array(np.arange(found.num_rows)))


def names(folder: Path) -> list[str]:
    """The columns of a folder that `datasets` saved.

    Raises:
        HarnessError: it is no such folder, or is damaged.
    """
    path = files(folder)[0]
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            return list(stream.schema.names)
    except (pa.ArrowInvalid, OSError) as error:
        raise HarnessError(
            f"{path} cannot be read: {str(error).splitlines()[0]}", "Make the artefact again"
        ) from error


def tables(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Batches put together until they have so many bytes."""
    held: list[pa.RecordBatch] = []
    total = 0
    for batch in batches:
        held.append(batch)
        total += batch.nbytes
        if total >= size:
            yield pa.Table.from_batches(held)
            held, total = [], 0
    if held:
        yield pa.Table.from_batches(held)


def files(folder: Path) -> list[Path]:
    """The Arrow files of a folder, in order of their rows.

    Raises:
        HarnessError: `datasets` has not saved it.
    """
    try:
        state = reading.json_file(folder / STATE)
        return [folder / str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(
            f"{folder} is not a folder that `datasets` saved: {error!r}", "Make the artefact again"
        ) from error

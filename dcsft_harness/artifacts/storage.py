"""Tables and dataset folders of any size, in bounded memory."""

import contextlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dcsft_harness import reading, records
from dcsft_harness.artifacts.disk import file_sha256
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.pictures import to_rgb

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features
    from PIL.Image import Image
    from pyarrow import acero

# Folders in the format of `datasets`, written and read in bounded memory.
#
# `Dataset.from_list` holds every image in memory, `Dataset.from_generator` writes everything twice and hashes
# the generator's state, and reading single rows takes longer than copying them.

DATA, STATE, SPLITS = "data-00000-of-00001.arrow", "state.json", "dataset_dict.json"
IMAGES = "images"
"""The column of a row's images, present in all of these folders."""
ROWS = 1000
"""The most rows of a batch in the file, as in `datasets`."""
BYTES = 1 << 25
"""Bytes of images and texts after which a batch is written even with fewer rows."""


class Writer:
    """A writer of a folder's rows; created by `writing`."""

    def __init__(self, features: "Features", file: pa.RecordBatchStreamWriter) -> None:
        """A writer of rows with these columns into this file."""
        self._features, self._file = features, file

    def table(self, rows: pa.Table) -> None:
        """Writes rows with columns in storage format: images as structs of bytes and path."""
        for some in _pieces(rows.cast(self._features.arrow_schema)):
            self._file.write_table(embedded(some), ROWS)

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes rows in a dataset's format, with PIL images, which are encoded."""
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


def png(image: "Image") -> dict[str, Any]:
    """An image in storage format: a PNG file of its RGB pixels, whatever its original format."""
    file = io.BytesIO()
    # A quarter of the time of Pillow's default level, for a quarter more bytes.
    to_rgb(image).save(file, "PNG", compress_level=1)
    return {"bytes": file.getvalue(), "path": None}


def embedded(rows: pa.Table) -> pa.Table:
    """Rows with the contents of image files that they only reference."""
    if _is_embedded(rows):
        return rows
    from datasets.table import embed_table_storage

    return embed_table_storage(rows, local_files=True, remote_files=False)


def _pieces(rows: pa.Table) -> Iterator[pa.Table]:
    """Splits rows into pieces of about BYTES, referenced files included, and reads those per piece."""
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
    """The approximate bytes of a row, referenced image files included."""
    if isinstance(value, Mapping):
        named = value.get("path") if value.get("bytes", "") is None else None
        with contextlib.suppress(OSError):
            return os.stat(named).st_size if isinstance(named, str) else sum(map(_size, value.values()))
        return 0
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str | bytes) else 8


@contextlib.contextmanager
def writing(folder: Path, features: "Features") -> Iterator[Writer]:
    """Writes a folder for `datasets.load_from_disk`, whose bytes depend only on its rows.

    Raises:
        OSError: the disk is full or fails.
    """
    from datasets import Dataset

    # `datasets` writes an empty folder with its metadata files; the rows are then added. It would hash all
    # that it knows of the table, which takes longer than writing it.
    Dataset(features.arrow_schema.empty_table(), fingerprint="").save_to_disk(str(folder))
    with (
        pa.OSFile(str(folder / DATA), "wb") as file,
        pa.ipc.new_stream(file, features.arrow_schema) as stream,
    ):
        yield Writer(features, stream)
    state = reading.json_file(folder / STATE)
    state["_data_files"] = [{"filename": DATA}]
    # The key of `datasets`' caches.
    state["_fingerprint"] = file_sha256(folder / DATA)[:16]
    (folder / STATE).write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")


def read(folder: Path, columns: Sequence[str], size: int) -> Iterator[pa.Table]:
    """Reads a folder sequentially, images as structs of bytes and path.

    The folder is in the format of `datasets`; a table is yielded after `size` bytes.

    Raises:
        HarnessError: it is not such a folder, is damaged, or lacks a column.
    """
    for path in files(folder):
        with _opened(path) as stream:
            for name in columns:
                if name not in stream.schema.names:
                    raise HarnessError(f"{path} lacks the column {name!r}", "Recreate the artifact")
            yield from tables((_selected(batch, columns) for batch in stream), size)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pa.RecordBatchStreamReader]:
    """An Arrow file; a damaged one is an error."""
    try:
        # Read, not mapped: mapped pages count as this process's memory until the end.
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            yield stream
    except (pa.ArrowInvalid, OSError) as error:
        said = str(error).splitlines()[0]
        raise HarnessError(f"{path} cannot be read: {said}", "Recreate the artifact") from error


def _selected(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """Some columns of a batch; copied if they are a small part of it, to free the memory of the others.

    Arrow reads a batch into one buffer that every column keeps alive: texts would keep all images in memory.
    """
    found = batch.select(columns)
    return found if 2 * found.nbytes > batch.nbytes else found.take(pa.array(np.arange(found.num_rows)))


def names(folder: Path) -> list[str]:
    """The columns of a folder in the format of `datasets`.

    Raises:
        HarnessError: it is not such a folder, or is damaged.
    """
    with _opened(files(folder)[0]) as stream:
        return list(stream.schema.names)


def tables(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Joins batches up to this number of bytes."""
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
    """The Arrow files of a folder in the format of `datasets`, in order of their rows.

    Raises:
        HarnessError: the folder is not in the format of `datasets`.
    """
    try:
        state = reading.json_file(folder / STATE)
        return [folder / _plain(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_saved(folder, error) from error


def _plain(name: object) -> str:
    """The name of a file in this folder, so that no folder can make us read files elsewhere."""
    if not isinstance(name, str) or name in ("", "..") or Path(name).name != name or "\0" in name:
        raise ValueError(f"{cut(name, 100)} is not a file of this folder")
    return name


def _not_saved(folder: Path, error: Exception) -> HarnessError:
    said = (str(error).splitlines() or [""])[0]
    return HarnessError(
        f"{folder} is not a folder saved by `datasets` ({type(error).__name__}: {said})",
        "Copy it again, or recreate it",
    )


def load(folder: Path) -> "Dataset | DatasetDict":
    """Safe `datasets.load_from_disk` for an untrusted folder.

    Raises:
        HarnessError: it is not such a folder, is damaged, or names files elsewhere.
    """
    from datasets import load_from_disk  # noqa: TID251

    try:
        parts = [folder]
        if (folder / SPLITS).is_file():
            parts = [folder / _plain(name) for name in reading.json_file(folder / SPLITS)["splits"]]
        for part in parts:
            files(part)
            reading.json_file(part / "dataset_info.json")
        return load_from_disk(str(folder))  # noqa: TID251
    except HarnessError:
        raise
    except Exception as error:  # `datasets` checks little of what it reads
        raise _not_saved(folder, error) from error


# Parquet tables of any size, checked like `records.read_table` and read in chunks.

ROWS_AT_ONCE = 1 << 15
"""Rows per chunk."""
TEXTS_AT_ONCE = 1 << 10
"""Rows per chunk for a column of texts, which may be long."""
BUFFER = 1 << 20
"""Bytes of a column per read; without this limit Arrow reads a row group's whole column, of any size."""


def scan(path: Path, record: type, names: Sequence[str]) -> "acero.Declaration":
    """A query plan that reads columns of a Parquet table in chunks, for tables larger than memory.

    It makes the checks of `records.read_table` before it returns the plan, except for damaged pages: run the
    plan under `records.readable`. It never reads pages of columns that need no check. The columns, in the
    order of `names`, get the types of the record class.
    """
    import pyarrow.dataset as ds
    from pyarrow import acero

    with records.readable(path), pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
        defaults = records.defaults(path, record, file.schema_arrow.names)
        for column in records.schema(record):
            if column.name not in defaults and _doubtful(file, column):
                _check(path, file, column)
    # The plan reads no whole row groups and few batches ahead: its memory is that of its results.
    options = ds.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True, buffer_size=BUFFER)
    form = ds.ParquetFileFormat(default_fragment_scan_options=options)
    found = ds.dataset(path, format=form)
    there = [name for name in names if name not in defaults]
    read = acero.ScanNodeOptions(found, columns=there, batch_size=ROWS_AT_ONCE, batch_readahead=4)
    types = {column.name: column.type for column in records.schema(record)}
    columns = [
        pc.field(name).cast(types[name]) if name in there else pc.scalar(defaults[name]) for name in names
    ]
    return acero.Declaration.from_sequence(
        [
            acero.Declaration("scan", read),
            acero.Declaration("project", acero.ProjectNodeOptions(columns, list(names))),
        ]
    )


def _doubtful(file: pq.ParquetFile, wanted: pa.Field) -> bool:
    """Whether the column must be read to check its type and its empty cells."""
    found = file.schema_arrow.field(wanted.name)
    if found.type != wanted.type:
        return True
    if wanted.nullable or not found.nullable:
        return False
    leaves = [file.schema.column(number).path for number in range(len(file.schema))]
    place = leaves.index(wanted.name)
    groups = (file.metadata.row_group(number).column(place) for number in range(file.num_row_groups))
    return any(group.statistics is None or group.statistics.null_count != 0 for group in groups)


def _check(path: Path, file: pq.ParquetFile, wanted: pa.Field) -> None:
    """Reads a column to check whether it converts to its record's type, and whether a cell is empty."""
    empty = 0
    rows = ROWS_AT_ONCE if wanted.type != pa.string() else TEXTS_AT_ONCE
    for batch in file.iter_batches(rows, columns=[wanted.name]):
        empty += 0 if wanted.nullable else batch[0].null_count
        records.as_wanted(path, batch[0].drop_null(), wanted)
    records.refuse_empty(path, empty, wanted)


# Reorders tables of any size in bounded memory.

PLACE = "place"
"""The column with a row's new position, from 0."""
AT_ONCE = 1 << 26
"""Bytes of rows held at a time; moving them takes a few times as much."""


def reordered(tables: Iterable[pa.Table], rows: int, size: int, scratch: Path) -> Iterator[pa.Table]:
    """Yields rows in order of their positions; reads the input once, sequentially.

    Each table is sorted and written to a scratch file in sections, one per range of positions. A range is
    then assembled from its sections, so the disk never seeks single rows. The tables have the column `PLACE`,
    of int64, in which each position below `rows` occurs once, and hold about AT_ONCE bytes each; `size` is
    approximately their total bytes. The file `scratch` is created and removed again. Yields tables of
    consecutive positions, of about AT_ONCE bytes.
    """
    stretch = max(1, rows * AT_ONCE // max(size, 1))
    if stretch >= rows:
        yield _sorted(pa.concat_tables(tables))
        return
    try:
        sections = _split(tables, stretch, scratch)
        with pa.OSFile(str(scratch)) as file, pa.ipc.open_file(file) as reader:
            for _, numbers in sorted(sections.items()):
                yield _sorted(pa.Table.from_batches([reader.get_batch(number) for number in numbers]))
    finally:
        scratch.unlink(missing_ok=True)


def _split(tables: Iterable[pa.Table], stretch: int, scratch: Path) -> dict[int, list[int]]:
    """Writes the sections; returns range -> the numbers of its sections in the file."""
    sections: dict[int, list[int]] = {}
    written = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(pa.OSFile(str(scratch), "wb"))
        writer = None
        for table in tables:
            if writer is None:
                writer = stack.enter_context(pa.ipc.new_file(file, table.schema))
            whole = _sorted(table)
            found, starts = np.unique(whole[PLACE].to_numpy() // stretch, return_index=True)
            ends = [*starts[1:], whole.num_rows]
            for number, start, end in zip(found.tolist(), starts, ends, strict=True):
                writer.write_batch(whole.slice(start, end - start).to_batches()[0])
                sections.setdefault(number, []).append(written)
                written += 1
    return sections


def _sorted(table: pa.Table) -> pa.Table:
    """A table in order of its positions, as a single chunk."""
    whole, places = table.combine_chunks(), table[PLACE].to_numpy()
    return whole if (places[1:] > places[:-1]).all() else whole.take(pc.sort_indices(table[PLACE]))

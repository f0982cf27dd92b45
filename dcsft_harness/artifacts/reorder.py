"""Tables of any size into another order of their rows, with little of them in memory."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PLACE = "place"
"""The column that says where a row goes, from 0."""
AT_ONCE = 1 << 26
"""Bytes of rows that are held together; a few times as much is taken while they are moved."""


def reordered(tables: Iterable[pa.Table], rows: int, size: int, scratch: Path) -> Iterator[pa.Table]:
    """Yields rows in order of their places, read once from front to back.

    Each table is sorted and written to a scratch file in sections, one for each stretch of places, and a
    stretch is put together from its sections: no row is sought on the disk.

    Args:
        tables: with the column `PLACE`, of int64; about AT_ONCE bytes each.
        rows: how many rows they have together; each place below that is there once.
        size: about how many bytes they have together.
        scratch: a file that may be created and is removed again.

    Yields:
        Tables of consecutive places, of about AT_ONCE bytes.
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
    """Writes the sections; returns stretch -> the numbers of its sections in the file."""
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
    """A table in order of its places, in one piece."""
    whole, places = table.combine_chunks(), table[PLACE].to_numpy()
    return whole if (places[1:] > places[:-1]).all() else whole.take(pc.sort_indices(table[PLACE]))

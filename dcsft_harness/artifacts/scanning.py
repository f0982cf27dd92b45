"""Parquet tables of any size, checked as `records.read_table` checks them, and read bit by bit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dcsft_harness import records

ROWS_AT_ONCE = 1 << 15
"""Rows that are read together."""
TEXTS_AT_ONCE = 1 << 10
"""Rows of a column of texts, which may be long, that are read together."""
BUFFER = 1 << 20
"""Bytes of a column that are read together; without it, a row group's whole column is, of any size."""


def scan(path: Path, record: type, names: Sequence[str]) -> Any:  # noqa: ANN401 - an acero.Declaration
    """A plan that reads columns of a Parquet table bit by bit, for tables that memory does not hold.

    What `records.read_table` refuses is refused before the plan is made, except damaged pages: run the
    plan under `records.readable`. Those of columns that nothing has to be known of are never read.

    Args:
        path: the file.
        record: the class whose table it is; the columns come in its types.
        names: the columns that are needed, in the plan's order.

    Raises:
        HarnessError: see `records.read_table`.
    """
    import pyarrow.dataset as ds
    from pyarrow import acero

    with records.readable(path), pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
        defaults = records.defaults(path, record, file.schema_arrow.names)
        for column in records.schema(record):
            if column.name not in defaults and _doubtful(file, column):
                _check(path, file, column)
    # Neither whole row groups nor many batches ahead are kept: the plan's memory is its results'.
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
    """Whether a column has to be read to know that it is of a type, with no empty cell that may not be."""
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
    """Reads a column to see whether it can be had in its record's type, and whether a cell is empty."""
    empty = 0
    rows = ROWS_AT_ONCE if wanted.type != pa.string() else TEXTS_AT_ONCE
    for batch in file.iter_batches(rows, columns=[wanted.name]):
        empty += 0 if wanted.nullable else batch[0].null_count
        records.as_wanted(path, batch[0].drop_null(), wanted)
    records.refuse_empty(path, empty, wanted)

"""All items of a board as one Parquet file: one row per board row, task and item."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dcsft_harness import records
from dcsft_harness.leaderboard.board import Board, Result

FILE = "items.parquet"
_TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        pa.field("board", pa.int16(), nullable=False),  # 0: the board's own rows; 1, ...: those kept apart
        pa.field("row", _TEXT, nullable=False),
        pa.field("task", _TEXT, nullable=False),
        pa.field("distribution", _TEXT),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("difficulty", _TEXT),
        *(
            pa.field(field.name, _TEXT if field.type == pa.string() else field.type, field.nullable)
            for field in records.schema(records.Score)
            if field.name not in ("task", "item_id")
        ),
    ]
)


def write_items(path: Path, board: Board, labels: Mapping[str, str] | None = None) -> int:
    """Writes every item of every row, one folder of results at a time.

    Args:
        path: the file.
        board: as loaded; its results are read again.
        labels: item id -> difficulty.

    Returns:
        How many rows were written.
    """
    difficulties = None
    if labels:
        difficulties = pa.array(labels.keys(), pa.string()), pa.array(labels.values(), pa.string())
    count = 0
    texts = [field.name for field in SCHEMA if pa.types.is_dictionary(field.type)]
    with pq.ParquetWriter(
        path,
        SCHEMA,
        compression="zstd",
        use_dictionary=texts,  # ids are all different
        write_statistics=False,  # of no use to readers of whole rows, and half of the time
        store_schema=False,  # readers get texts as texts
    ) as writer:
        for number, one in enumerate((board, *(apart.board for apart in board.apart))):
            for result in one.results:
                for table in result.tables():
                    made = _of_board(number, result, table, difficulties)
                    writer.write_table(made)
                    count += made.num_rows
    return count


def _of_board(
    number: int, result: Result, table: pa.Table, difficulties: tuple[pa.Array, pa.Array] | None
) -> pa.Table:
    rows, ids = table.num_rows, _renamed(result, table)
    distribution = {task: measured.distribution for task, measured in result.tasks.items()}
    known = pa.array(distribution.keys(), pa.string()), pa.array(distribution.values(), pa.string())
    columns = {
        "board": pa.repeat(pa.scalar(number, pa.int16()), rows),
        "row": pa.DictionaryArray.from_arrays(
            pa.repeat(pa.scalar(0, pa.int32()), rows), pa.array([result.name], pa.string())
        ),
        "task": table["task"],
        "distribution": _looked_up(table["task"], known),
        "item_id": ids,
        "difficulty": pa.nulls(rows, pa.string()) if difficulties is None else _looked_up(ids, difficulties),
    }
    for field in SCHEMA:
        column = columns.get(field.name, table[field.name] if field.name in table.column_names else None)
        columns[field.name] = _as(column, field.type)
    return pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA)


def _as(column: pa.Array | pa.ChunkedArray, wanted: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if column.type == wanted:
        return column
    if pa.types.is_dictionary(wanted) and not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column.cast(wanted)


def _looked_up(values: pa.ChunkedArray, known: tuple[pa.Array, pa.Array]) -> pa.Array:
    """What stands for each value, as a dictionary; null where nothing does."""
    values = values.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    if pa.types.is_dictionary(values.type):  # a few different values: looked up once each
        found = known[1].take(pc.index_in(values.dictionary, value_set=known[0]))
        # The writer takes no dictionary with a null in it, and writes unlike bytes for one with doubles.
        different = found.drop_null().unique()
        places = pc.index_in(found, value_set=different)
        return pa.DictionaryArray.from_arrays(places.take(values.indices), different)
    return known[1].take(pc.index_in(values, value_set=known[0]))


def _renamed(result: Result, table: pa.Table) -> pa.ChunkedArray:
    """The items' ids on the board: a log's items may have taken those of scores."""
    ids = table["item_id"]
    for measured in result.tasks.values():
        if measured.renamed is not None:
            old = pa.array(measured.renamed.keys(), pa.string())
            places = pc.index_in(ids, value_set=old)
            new = pa.array(measured.renamed.values(), pa.string()).take(places.combine_chunks())
            ids = pa.chunked_array([pc.coalesce(new, ids.combine_chunks())])
    return ids

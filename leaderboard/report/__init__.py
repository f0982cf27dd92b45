"""The output formats of a Summary: tables, plots, JSON, Parquet."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dcsft_harness import records
from dcsft_harness.errors import json_text
from dcsft_harness.leaderboard.board import Board, Provenance, Result, Task, Training, cost_of
from dcsft_harness.leaderboard.report.table import known
from dcsft_harness.leaderboard.stats import CONFIDENCE, Estimate
from dcsft_harness.leaderboard.summary import (
    Budget,
    Column,
    Comparison,
    Detectable,
    Entry,
    Line,
    Quoted,
    Summary,
)

# Summary -> leaderboard.json: every number of a board, in the form of `schema.json`.

FORMAT = 1
Json = dict[str, Any]


def schema() -> Json:
    """The JSON schema (draft 2020-12) of `leaderboard.json`."""
    text = (files("dcsft_harness.leaderboard.report") / "schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))  # noqa: TID251 - ours


def document(summary: Summary, output: Path, more: Mapping[str, Any] | None = None) -> Json:
    """A board as plain values; folders are named relative to `output`, the file's final folder.

    `more` are further entries of the schema: `plots`, `items`.
    """
    return {
        "format": FORMAT,
        "confidence": CONFIDENCE,
        **_board(summary, output),
        "quoted": [_quoted(one) for one in summary.quoted],
        "apart": [{"reason": one.reason, "board": _board(one.summary, output)} for one in summary.apart],
        "left_out": [
            {"folder": _relative(one.folder, output), "reason": one.reason} for one in summary.left_out
        ],
        "plots": [],
        "items": None,
        **(more or {}),
    }


def text(found: Json) -> str:
    """A document as JSON that every parser reads: no NaN, and nothing that could end a script element."""
    return escaped(json_text(found, indent=1, allow_nan=False)) + "\n"


def escaped(said: str) -> str:
    """JSON without the characters that could end a script element or a line of JavaScript."""
    for mark in "<>&\u2028\u2029":  # `translate` is slower, one character at a time
        said = said.replace(mark, f"\\u{ord(mark):04x}")
    return said


def _board(summary: Summary, output: Path) -> Json:
    tasks = {task.name: task for column in summary.columns for task in column.tasks}
    named = list(tasks)
    return {
        "baseline": summary.baseline,
        "ranked_by": summary.ranked_by,
        "overall": {kind: summary.overall(kind) for kind in ("id", "ood")},
        "tasks": [_task(task) for task in tasks.values()],
        "columns": [
            _column(column, named, found)
            for column, found in zip(
                summary.columns, summary.detectable or [None] * len(summary.columns), strict=True
            )
        ],
        "rows": [_line(line, output) for line in summary.lines],
        "comparisons": [_comparison(one, summary.lines) for one in summary.comparisons],
        "budgets": [_budget(one) for one in summary.budgets],
        "crossings": [
            {**_named(one, "row", "other", "over", "metric"), **one.crossing._asdict()}
            for one in summary.overtakings
        ],
        "remarks": list(summary.remarks),
    }


def _budget(one: Budget) -> Json:
    points = [
        {
            **point._asdict(),
            "tokens": known(point.tokens),
            "accuracy": _estimate(point.accuracy),
            "flops": one.flops(point),
        }
        for point in one.points
    ]
    return {"row": one.row, "over": one.over, "points": points}


def _task(task: Task) -> Json:
    groups = len(set(task.clusters.tolist()))
    return {
        **_named(task, "name", "distribution", "metric"),
        "family": None if task.family is None else str(task.family),
        "n": len(task.item_ids),
        "clusters": groups,
        "conditions": {name: _plain(value) for name, value in task.conditions.items()},
    }


def _column(column: Column, tasks: list[str], found: Detectable | None) -> Json:
    return {
        **_named(column, "label", "distribution", "is_mean", "metric", "n"),
        "tasks": [tasks.index(task.name) for task in column.tasks],
        "minimum_detectable": None if found is None else _named(found, "difference", "paired"),
    }


def _line(line: Line, output: Path) -> Json:
    return {
        "name": line.name,
        "kind": "seeds" if line.is_group else "row",
        "group": line.group,
        "members": [row.name for row in line.rows] if line.is_group else [],
        "is_baseline": line.is_baseline,
        "cells": [None if entry is None else _entry(entry) for entry in line.entries],
        "ood_retention": _estimate(line.retention),
        "worst_task": None if line.worst is None else _named(line.worst, "task", "accuracy"),
        "rank": None if line.rank is None else line.rank._asdict(),
        "pareto": None if line.front is None else _named(line.front, "on", "share"),
        "by_difficulty": None
        if line.by_difficulty is None
        else {kind: _estimate(found) for kind, found in line.by_difficulty.items()},
        "cost": cost_of(line.rows),
        "provenance": []
        if line.is_group
        else [_provenance(part, line.name, output) for part in line.rows[0].provenance],
    }


def _entry(entry: Entry) -> Json:
    return {
        **_named(entry, "n", "unscored", "unanswered"),
        "accuracy": _estimate(entry.accuracy),
        "difference": _estimate(entry.difference),
        "seed_deviation": entry.deviation,
    }


def _estimate(found: Estimate | None) -> Json | None:
    return None if found is None else found._asdict()


def _comparison(one: Comparison, lines: Iterable[Line]) -> Json:
    places = {line.name: number for number, line in enumerate(lines)}
    return {
        "family": one.family,
        "row": places[one.row],
        "other": places[one.other],
        "column": one.column,
        "difference": _estimate(one.difference),
        **_named(one, "p", "p_holm", "method", "better", "worse"),
    }


def _named(record: object, *names: str) -> Json:
    """Some attributes of a record, by name."""
    return {name: getattr(record, name) for name in names}


_TABLES = ("settings", "model", "pixels", "packages")


def _provenance(part: Provenance, name: str, output: Path) -> Json:
    return {
        "folder": _relative(part.folder, output),
        "kind": part.kind,
        "name": name,
        "created": part.created,
        **{name: _plain(value) for name, value in _named(part, *_TABLES).items()},
        "training": None if part.training is None else _training(part.training, output),
    }


def _training(run: Training, output: Path) -> Json:
    return {
        "folder": _relative(run.folder, output),
        "kind": run.kind,
        "settings": _plain(run.settings),
        "ledger": _plain(run.ledger),
        "mix": dict(run.mix),
        "steps_logged": len(run.history),
    }


def _quoted(one: Quoted) -> Json:
    return {
        **_named(one, "name", "model", "setting", "source", "read", "mean", "recomputed", "follows"),
        "cells": dict(one.cells),
        "mean_over": list(one.mean_over),
    }


def _relative(folder: Path, output: Path) -> str:
    """A folder relative to the board, or its name if they share no folder except the root."""
    here, there = folder.resolve(), output.resolve()
    try:
        shared = Path(os.path.commonpath([here, there]))
    except ValueError:
        return here.name
    return here.name if shared == Path(shared.anchor) else os.path.relpath(here, there)


def _plain(value: object) -> object:
    """A value in JSON form; what JSON cannot represent becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


# All items of a board as one Parquet file: one row per board row, task and item.

FILE = "items.parquet"
_TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        pa.field("board", pa.int16(), nullable=False),  # 0: the board's own rows; 1, ...: incomparable ones
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
    """Writes every item of every row, one folder of results at a time; returns the number of rows written."""
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
        write_statistics=False,  # useless to readers of whole rows, and takes half of the time
        store_schema=False,  # readers get texts as texts
    ) as writer:
        for number, one in enumerate(board.boards):
            for result in one.results:
                for table in result.tables():
                    made = _of_board(number, result, table, difficulties)
                    writer.write_table(made)
                    count += made.num_rows
    return count


def _of_board(
    number: int, result: Result, table: pa.Table, difficulties: tuple[pa.Array, pa.Array] | None
) -> pa.Table:
    rows, ids = table.num_rows, ids_on_board(result, table)
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
    """Maps each value, as a dictionary array; null if it has no counterpart."""
    values = values.combine_chunks()
    if pa.types.is_dictionary(values.type):  # few distinct values: each is looked up once
        found = known[1].take(pc.index_in(values.dictionary, value_set=known[0]))
        # The writer accepts no dictionary with a null in it, and duplicates in one would change the bytes.
        different = found.drop_null().unique()
        places = pc.index_in(found, value_set=different)
        return pa.DictionaryArray.from_arrays(places.take(values.indices), different)
    return known[1].take(pc.index_in(values, value_set=known[0]))


def ids_on_board(result: Result, table: pa.Table) -> pa.ChunkedArray:
    """The items' ids on the board: a log's items may have the ids of a scores folder."""
    ids = table["item_id"]
    for measured in result.tasks.values():
        if measured.renamed is not None:
            old = pa.array(measured.renamed.keys(), pa.string())
            places = pc.index_in(ids, value_set=old)
            new = pa.array(measured.renamed.values(), pa.string()).take(places.combine_chunks())
            ids = pa.chunked_array([pc.coalesce(new, ids.combine_chunks())])
    return ids

"""A board -> data files of its page: its figures, every task's items, and what every row answered.

Names come from outside. A key like "__proto__" would not be a key in a JavaScript literal, so whatever
is named becomes a list of pairs.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcsft_harness.leaderboard.board import Board, Result, Task
from dcsft_harness.leaderboard.page.packing import Json, numbers, scores, texts, write_script
from dcsft_harness.leaderboard.page.pictures import Shown
from dcsft_harness.leaderboard.report.items import _renamed as ids_on_board
from dcsft_harness.leaderboard.summary import Line

DIGITS = 7
"""Significant digits of what a page shows rounded anyway; leaderboard.json has all of them."""
DEGREES = (*range(1, 31), 35, 40, 50, 60, 80, 100, 150, 200, 400, 1000, 10_000, 1_000_000)
_ESTIMATE = ("value", "low", "high", "n")


def boards(document: Mapping[str, Any]) -> list[Json]:
    """The board and those kept apart, as columns."""
    apart = [(without_folders(one["reason"]), one["board"]) for one in document["apart"]]
    return [_board(reason, board) for reason, board in [(None, document), *apart]]


def _board(reason: str | None, board: Mapping[str, Any]) -> Json:
    return {
        "reason": reason,
        **{key: board[key] for key in ("baseline", "ranked_by", "overall")},
        "remarks": [without_folders(remark) for remark in board["remarks"]],
        "columns": board["columns"],
        "tasks": [{**task, "conditions": list(task["conditions"].items())} for task in board["tasks"]],
        "rows": [_row(row) for row in board["rows"]],
        "cells": _cells(board["rows"]),
        "comparisons": _comparisons(board["comparisons"]),
    }


def _row(row: Mapping[str, Any]) -> Json:
    kept = ("name", "kind", "group", "members", "is_baseline", "worst_task", "rank", "pareto")
    told = {key: row[key] for key in kept}
    told["retention"] = _rounded(row["ood_retention"])
    told["difficulty"] = [
        [kind, _rounded(found)] for kind, found in (row["by_difficulty"] or {}).items()
    ] or None
    told["cost"] = list((row["cost"] or {}).items())
    told["details"] = [_details(part) for part in row["provenance"]]
    return told


def _details(part: Mapping[str, Any]) -> list[list[str]]:
    """What a row was made from, as pairs of a name and a text."""
    pairs = [("made by", part["kind"]), ("created", part["created"]), *part["model"].items()]
    pairs += [(f"setting {key}", value) for key, value in part["settings"].items()]
    training = part["training"]
    if training is not None:
        pairs += [(f"training {key}", value) for key, value in training["settings"].items()]
        pairs += [(f"{kind} items trained on", count) for kind, count in training["mix"].items()]
    return [[str(key), without_folders(str(value))[:300]] for key, value in pairs if value is not None]


def _cells(rows: Sequence[Mapping[str, Any]]) -> Json:
    """Row by row, one entry a column; null where a row lacks it."""
    cells = [cell or {} for row in rows for cell in row["cells"]]
    found: Json = {key: [cell.get(key) for cell in cells] for key in ("n", "unscored", "unanswered")}
    found["deviation"] = [rounded(cell.get("seed_deviation")) for cell in cells]
    for key in ("accuracy", "difference"):
        estimates = [cell.get(key) or {} for cell in cells]
        found[key] = [[rounded(one.get(part)) for one in estimates] for part in _ESTIMATE[:3]]
    return found


def _comparisons(made: Sequence[Mapping[str, Any]]) -> Json:
    families = list(dict.fromkeys(one["family"] for one in made))
    methods = list(dict.fromkeys(one["method"] for one in made))
    found: Json = {key: [one[key] for one in made] for key in ("row", "other", "column", "better", "worse")}
    found |= {key: [rounded(one[key]) for one in made] for key in ("p", "p_holm")}
    found |= {key: [rounded(one["difference"][key]) for one in made] for key in _ESTIMATE[:3]}
    found["n"] = [one["difference"]["n"] for one in made]
    found |= {"families": families, "family": [families.index(one["family"]) for one in made]}
    found |= {"methods": methods, "method": [methods.index(one["method"]) for one in made]}
    return found


def _rounded(estimate: Mapping[str, Any] | None) -> list[Any] | None:
    return None if estimate is None else [rounded(estimate[part]) for part in _ESTIMATE]


def rounded(value: float | None) -> float | None:
    """A number to `DIGITS` significant digits."""
    if value is None or value == 0 or isinstance(value, int):
        return value
    return round(value, DIGITS - 1 - math.floor(math.log10(abs(value))))


def quantiles(degrees: Iterable[int] = DEGREES) -> list[list[float]]:
    """Student's t at 97.5 % as [1 / degrees of freedom, quantile], for intervals that a page works out."""
    from scipy.special import stdtrit

    return [[1 / d, float(stdtrit(d, 0.975))] for d in degrees]


_FOLDERS = re.compile(r"(?<![\w.<])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\":,;()]+[/\\])+")


def without_folders(text: str) -> str:
    """A sentence in which absolute paths are cut to their last part: a page is passed on to others."""
    return _FOLDERS.sub("", text)


_DIFFICULTIES = ("easy", "medium", "hard")


@dataclass(frozen=True, eq=False)
class Part:
    """One board of a page.

    Attributes:
        number: 0: the board's own rows; 1, ...: those kept apart.
        board: as loaded.
        tasks: its tasks, in the order of leaderboard.json.
        lines: its lines, in that order.
    """

    number: int
    board: Board
    tasks: Sequence[Task]
    lines: Sequence[Line]

    def name(self, task: int) -> str:
        """How the data files of a task begin."""
        return f"b{self.number}t{task}"


def write_tasks(
    folder: Path, part: Part, labels: Mapping[str, str], shown: Mapping[str, Mapping[str, Shown]]
) -> None:
    """Writes two files a task: its items, and the scores of all rows.

    Args:
        folder: where data files go.
        part: the board.
        labels: item id -> difficulty.
        shown: task -> item id -> what is shown of it beside the responses.
    """
    for number, task in enumerate(part.tasks):
        write_script(
            folder, f"{part.name(number)}items", _items(part, task, labels, shown.get(task.name, {}))
        )
        rows = [_scores(line, task.name) for line in part.lines]
        write_script(folder, f"{part.name(number)}scores", scores(rows))


def _scores(line: Line, task: str) -> NDArray[np.float64] | None:
    if line.is_group or task not in line.rows[0].cells:
        return None
    return line.rows[0].cells[task].scores


def _items(part: Part, task: Task, labels: Mapping[str, str], shown: Mapping[str, Shown]) -> Json:
    measured = next(result.tasks[task.name] for result in part.board.results if task.name in result.tasks)
    documents = measured.documents()
    alone = len(set(task.clusters.tolist())) == len(task.clusters)
    found: Json = {
        "ids": list(task.item_ids),
        "documents": numbers(np.array(documents.numbers, dtype=np.int64)),
        "answers": texts(documents.answers),
        "clusters": None if alone else numbers(np.asarray(task.clusters, dtype=np.int64)),
        "difficulties": None,
        "prompts": None,
        "pictures": None,
    }
    if labels:
        kinds = [labels.get(item) for item in task.item_ids]
        places = [-1 if kind is None else _DIFFICULTIES.index(kind) for kind in kinds]
        found["difficulties"] = numbers(np.array(places, dtype=np.int64))
    prompts: Sequence[str | None] = documents.prompts or [None] * len(task.item_ids)
    if shown:
        prompts = [
            shown[item].prompt if item in shown else told
            for item, told in zip(task.item_ids, prompts, strict=True)
        ]
        found["pictures"] = [
            [list(picture) for picture in shown[item].pictures] if item in shown else None
            for item in task.item_ids
        ]
    if any(prompt is not None for prompt in prompts):
        found["prompts"] = texts(prompts)
    return found


def write_responses(folder: Path, part: Part) -> None:
    """Writes a file for every row and task: responses, extracted answers and token counts.

    Results are read again, one folder at a time.
    """
    places = {line.name: number for number, line in enumerate(part.lines) if not line.is_group}
    numbered = {task.name: (number, task) for number, task in enumerate(part.tasks)}
    order = _Orders()
    for result in part.board.results:
        for name, table in _by_task(result):
            number, task = numbered[name]
            ordered = table.take(order.of(task, table["item_id"]))
            content = {
                "responses": texts(_flat(ordered["response"])),
                "extracted": texts(_flat(ordered["extracted"])),
                "tokens": numbers(_tokens(ordered["n_tokens"])),
            }
            write_script(folder, f"{part.name(number)}r{places[result.name]}", content)


def _by_task(result: Result) -> Iterator[tuple[str, pa.Table]]:
    wanted = ["response", "extracted", "n_tokens"]
    for table in result.tables():
        ids = ids_on_board(result, table)
        tasks = _flat(table["task"])
        if not pa.types.is_dictionary(tasks.type):
            tasks = tasks.dictionary_encode()
        codes = tasks.indices.to_numpy(zero_copy_only=False)
        table = table.select(wanted).append_column("item_id", ids)
        for code, name in enumerate(tasks.dictionary.to_pylist()):
            at = np.flatnonzero(codes == code)
            if len(at) and name in result.tasks:
                yield name, table.take(at)


class _Orders:
    """Where a table's rows have a task's items; hundreds of tables have them in one order."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[pa.ChunkedArray, NDArray[np.int64]]] = {}

    def of(self, task: Task, ids: pa.ChunkedArray) -> NDArray[np.int64]:
        """The rows of a table in the order of the task's items."""
        found = self.known.get(task.name)
        if found is None or not found[0].equals(ids):
            at = pc.index_in(pa.array(task.item_ids, pa.string()), value_set=_flat(ids))
            found = self.known[task.name] = (ids, at.to_numpy(zero_copy_only=False).astype(np.int64))
        return found[1]


def _flat(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found


def _tokens(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(_flat(column).fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)

"""Items of a board -> data files of its page: what every task's items are, and what every row answered."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .board import Board, Task
from .items import _renamed as ids_on_board
from .packing import Json, numbers, scores, texts, write_script
from .pictures import Shown
from .result import Result
from .summary import Line

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

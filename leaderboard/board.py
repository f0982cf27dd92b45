"""Results -> Board: rows whose numbers may stand side by side, or a refusal that says which may not.

A row may lack a task; it may not have been measured on another version, prompt, limit, pixel
budget or set of items than the row above it. Items are matched by item_id, never by position.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcsft_harness.errors import HarnessError, unknown_name

from .provenance import Provenance
from .read import Measured, Result, read_result

SEPARATE = "Evaluate one of them again under the conditions of the other, or build two leaderboards"


@dataclass(frozen=True, eq=False)
class Task:
    """One column.

    Attributes:
        name: the lmms-eval task.
        distribution: "id", "ood" or None.
        family: the task's family, or None.
        item_ids: the items that every row was measured on, sorted.
        clusters: shape (n,), each item's cluster as a code that is the same across the board's tasks.
        conditions: what was equal for all rows, by the name a message calls it.
    """

    name: str
    distribution: str | None
    family: str | None
    item_ids: Sequence[str]
    clusters: NDArray[np.int64]
    conditions: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Cell:
    """One row's result on one task.

    Attributes:
        folder: the scores folder that it comes from.
        scores: shape (n,), in the order of the task's item_ids, in [0, 1]; NaN: could not be scored.
        unanswered: scored items in whose response no answer was found; None: the task does not say.
    """

    folder: Path
    scores: NDArray[np.float64]
    unanswered: int | None

    @property
    def unscored(self) -> int:
        """Items whose response could not be scored."""
        return int(np.isnan(self.scores).sum())


@dataclass(frozen=True, eq=False)
class Row:
    """One evaluated model.

    Attributes:
        name: as given when it was evaluated; unique on the board.
        folders: its scores folders; several where its tasks were evaluated in several runs.
        cells: task name -> result; a task that was not evaluated is absent.
        group: the configuration that it is one seed of, or None.
        provenance: one per folder.
    """

    name: str
    folders: tuple[Path, ...]
    cells: Mapping[str, Cell]
    group: str | None = None
    provenance: tuple[Provenance, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """A folder that could not be used.

    Attributes:
        folder: the folder.
        reason: the sentence that says why, with the remedy.
    """

    folder: Path
    reason: str


@dataclass(frozen=True, eq=False)
class Apart:
    """Rows that cannot be compared with the board's.

    Attributes:
        reason: what keeps the first of them apart.
        board: their own.
    """

    reason: str
    board: "Board"


@dataclass(frozen=True, eq=False)
class Board:
    """Rows that can be compared.

    Attributes:
        rows: the baseline first, the others as given.
        tasks: in-distribution tasks, then out-of-distribution ones, then those that do not say.
        baseline: the name of the row, or of the group of seeds, that differences are taken to, or None.
        apart: further rows that these cannot be compared with.
        left_out: folders that could not be used.
    """

    rows: tuple[Row, ...]
    tasks: tuple[Task, ...]
    baseline: str | None
    apart: tuple[Apart, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def row(self, name: str) -> Row:
        """The row of this name.

        Raises:
            HarnessError: there is none; near matches are named.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise unknown_name("row", name, [row.name for row in self.rows])


def load(results: Sequence[Path], baseline: str | None = None) -> Board:
    """Reads scores folders into one board.

    Args:
        results: the folders, in the order in which their rows should appear.
        baseline: the name of the row to take differences to; None for no differences.

    Raises:
        HarnessError: there are no folders, one of them cannot be read (see `read_result`), two of
            them cannot be compared, or no row has the baseline's name.
    """
    if not results:
        raise HarnessError(
            "no scores folders were given", "Name at least one folder made by `dcsft evaluate`"
        )
    return assemble([read_result(folder) for folder in results], baseline)


def assemble(results: Sequence[Result], baseline: str | None = None) -> Board:
    """Puts results together, refusing those that cannot be compared; see `load`."""
    first: dict[str, tuple[Result, Measured]] = {}
    for result in results:
        for task, measured in result.tasks.items():
            earlier = first.setdefault(task, (result, measured))
            _refuse_incomparable(*earlier, result, measured)
    rows = _rows(results)
    names = list(dict.fromkeys([row.name for row in rows] + [row.group for row in rows if row.group]))
    if baseline is not None and baseline not in names:
        raise unknown_name("row", baseline, names)
    rows.sort(key=lambda row: row.name != baseline)  # stable: the rest stay as given
    return Board(tuple(rows), _tasks(measured for _, measured in first.values()), baseline)


def _refuse_incomparable(earlier: Result, reference: Measured, later: Result, measured: Measured) -> None:
    here, there = (
        f"{result.folder} ({len(part.item_ids)} items)"
        for result, part in ((earlier, reference), (later, measured))
    )
    where = f"{reference.task} in {here} and in {there} cannot be compared"
    for condition in {**reference.conditions, **measured.conditions}:
        ours = reference.conditions.get(condition, "unset")
        theirs = measured.conditions.get(condition, "unset")
        if ours != theirs:
            raise HarnessError(f"{where}: {condition} {_short(ours)} and {_short(theirs)}", SEPARATE)
    ours_of = dict(zip(reference.item_ids, reference.clusters, strict=True))
    theirs_of = dict(zip(measured.item_ids, measured.clusters, strict=True))
    # The item sets' hashes agree by now; the pairing below needs the items themselves to.
    if strangers := sorted(ours_of.keys() ^ theirs_of.keys()):
        raise HarnessError(f"{where}: only one of them has the item {strangers[0]}", SEPARATE)
    for item, cluster in ours_of.items():
        if cluster != theirs_of[item]:
            raise HarnessError(
                f"{where}: item {item} is in cluster {_short(cluster)} and {_short(theirs_of[item])}",
                SEPARATE,
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _rows(results: Sequence[Result]) -> list[Row]:
    """One row per name: a model's tasks may have been evaluated in several runs."""
    runs: dict[str, list[Result]] = {}
    for result in results:
        for other in runs.setdefault(result.name, []):
            _refuse_clash(other, result)
        runs[result.name].append(result)
    return [
        Row(
            name,
            tuple(result.folder for result in parts),
            {
                task: Cell(result.folder, measured.scores, measured.unanswered)
                for result in parts
                for task, measured in result.tasks.items()
            },
            next((result.group for result in parts if result.group is not None), None),
            tuple(result.provenance for result in parts),
        )
        for name, parts in runs.items()
    ]


def _refuse_clash(other: Result, result: Result) -> None:
    where = f"{other.folder} and {result.folder} are both named {result.name!r}"
    if twice := [task for task in result.tasks if task in other.tasks]:
        task = twice[0]
        ours, theirs = (_mean(r.tasks[task].scores) for r in (other, result))
        raise HarnessError(
            f"{where} and both have {task} (accuracy {ours} and {theirs})",
            "Leave one out, or evaluate one again under another name",
        )
    for role in {**other.model, **result.model}:
        ours, theirs = (_short(r.model.get(role, "unset")) for r in (other, result))
        if ours != theirs:
            raise HarnessError(
                f"{where} but were not made from the same model: {role} was {ours} and {theirs}",
                "Evaluate one of them again under another name",
            )


def _mean(scores: NDArray[np.float64]) -> str:
    scored = scores[~np.isnan(scores)]
    return f"{scored.mean():.4f}" if len(scored) else "unscored"


def _tasks(measured: Iterable[Measured]) -> tuple[Task, ...]:
    codes: dict[tuple[str, str], int] = {}

    def code(cluster: str | None, item: str) -> int:
        # An item on its own must not fall in with a cluster that happens to bear its id.
        return codes.setdefault(("item", item) if cluster is None else ("cluster", cluster), len(codes))

    tasks = [
        Task(
            one.task,
            one.distribution,
            one.family,
            one.item_ids,
            np.array([code(*pair) for pair in zip(one.clusters, one.item_ids, strict=True)], dtype=np.int64),
            one.conditions,
        )
        for one in measured
    ]
    order = {"id": 0, "ood": 1, None: 2}
    return tuple(sorted(tasks, key=lambda task: order[task.distribution]))

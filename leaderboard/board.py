"""The nouns of a board: rows and tasks that can be compared, what is kept apart, what is left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcsft_harness.errors import unknown_name

from .provenance import Provenance
from .result import Result


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
        remarks: sentences on what the results say of themselves.
        results: what the rows are made from.
    """

    rows: tuple[Row, ...]
    tasks: tuple[Task, ...]
    baseline: str | None
    apart: tuple[Apart, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    remarks: tuple[str, ...] = ()
    results: tuple[Result, ...] = ()

    def row(self, name: str) -> Row:
        """The row of this name.

        Raises:
            HarnessError: there is none; near matches are named.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise unknown_name("row", name, [row.name for row in self.rows])

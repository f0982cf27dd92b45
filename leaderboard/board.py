"""The nouns of a board: what was read of each folder, rows and tasks, what is left out."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcsft_harness.errors import unknown_name
from dcsft_harness.leaderboard.provenance import Provenance

DISTRIBUTIONS = ("id", "ood", None)


@dataclass(frozen=True)
class Documents:
    """Items as their task numbers them.

    Attributes:
        ids: the items.
        numbers: each item's position in the task's documents.
        answers: each item's gold, as text.
        prompts: each item's prompt; None where they are not at hand.
    """

    ids: tuple[str, ...]
    numbers: tuple[int, ...]
    answers: tuple[str, ...]
    prompts: tuple[str, ...] | None = None

    def reordered(self, order: Sequence[int]) -> "Documents":
        """The same items in another order."""
        prompts = None if self.prompts is None else tuple(self.prompts[at] for at in order)
        ids, answers = (tuple(values[at] for at in order) for values in (self.ids, self.answers))
        return Documents(ids, tuple(self.numbers[at] for at in order), answers, prompts)


@dataclass(frozen=True, eq=False)
class Measured:
    """One task's part of a scores folder. Items are sorted by item_id.

    Attributes:
        task: the lmms-eval task.
        distribution: "id", "ood", or None where the task does not say.
        family: the task's family, or None.
        conditions: what must be equal for two rows to be compared, by the name a message calls it.
        item_ids: the items, each once.
        clusters: each item's cluster, None for an item on its own.
        scores: each item's score in [0, 1], NaN where the response could not be scored.
        unanswered: items that were scored, but in whose response no answer was found; None where
            the task does not report answers.
        documents: the items as the task numbers them, in the order of item_ids; read when asked for.
        unknown: beginnings of the names of conditions that are not on record, and so refuse nothing.
        remarks: sentences on figures that do not agree with the items.
        renamed: the items' ids in the folder's own tables -> item_ids, where they differ.
    """

    task: str
    distribution: str | None
    family: str | None
    conditions: Mapping[str, object]
    item_ids: tuple[str, ...]
    clusters: tuple[str | None, ...]
    scores: NDArray[np.float64]
    unanswered: int | None
    documents: Callable[[], Documents]
    unknown: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    renamed: Mapping[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """One folder of results, or one run in it.

    Attributes:
        name: the row's name.
        folder: where the artefact lies.
        model: "the model", "the adapter" -> hash of its folder, or its name on a hub.
        tasks: task name -> what was measured.
        provenance: what its manifests say beside.
        tables: what gives its items as tables of `records.Score`, one or more.
        group: the configuration that it is one seed of, or None.
        number: its place among what was given.
    """

    name: str
    folder: Path
    model: Mapping[str, object]
    tasks: Mapping[str, Measured]
    provenance: Provenance
    tables: Callable[[], Iterator[pa.Table]]
    group: str | None = None
    number: int = 0


_SEED = re.compile(r"(?P<group>.*[^\s,_(\[-])[\s,_(\[-]+seed[\s=_:-]*\d+[)\]]?", re.IGNORECASE)


def group_of(name: str, told: object = None) -> str | None:
    """The configuration that a row is one seed of: as told, or by a name like "SFT (seed 1)"."""
    if isinstance(told, str) and told.strip():
        return told
    found = _SEED.fullmatch(name.strip()) if len(name) < 500 else None
    return found["group"] if found else None


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

"""One scores folder -> Result: what was measured, under which conditions, checked item by item."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcsft_harness import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.records import Score, read_table, schema

from . import provenance
from .result import DISTRIBUTIONS, Documents, Measured, Result, group_of

FILE = "scores.parquet"
COLUMNS = ["task", "item_id", "score", "extracted", "cluster"]
AGAIN = "Evaluate this model again"


@dataclass(frozen=True, eq=False)
class _Items:
    """A task's items as a table has them, and in the order of their ids."""

    raw_ids: pa.ChunkedArray
    raw_clusters: pa.ChunkedArray
    order: NDArray[np.int64]
    ids: tuple[str, ...]
    clusters: tuple[str | None, ...]


@dataclass(frozen=True, eq=False)
class Shared:
    """Items that several folders have in the same order are held once: hundreds of rows share them."""

    known: dict[str, list[_Items]] = field(default_factory=dict)

    def items(self, path: Path, task: str, table: pa.Table) -> _Items:
        """The items of a task's part of a table.

        Raises:
            HarnessError: one occurs twice.
        """
        ids, clusters = table["item_id"], table["cluster"]
        for one in self.known.setdefault(task, []):
            if one.raw_ids.equals(ids) and one.raw_clusters.equals(clusters):
                return one
        order = np.asarray(pc.sort_indices(ids), dtype=np.int64)
        ordered = tuple(ids.take(order).to_pylist())
        for first, second in zip(ordered, ordered[1:], strict=False):
            if first == second:
                raise HarnessError(f"{path}: {task} has the item {first} twice", AGAIN)
        made = _Items(ids, clusters, order, ordered, tuple(clusters.take(order).to_pylist()))
        self.known[task].append(made)
        return made


def read_result(folder: Path, name: str | None = None, shared: Shared | None = None) -> Result:
    """Reads a scores folder and checks it against its own manifest.

    Args:
        folder: an artefact of the kind "scores".
        name: the row's name; None takes the manifest's.
        shared: items of folders read before.

    Raises:
        HarnessError: it is no such artefact; a file is missing, truncated or changed; a score is
            NaN or outside [0, 1]; an item occurs twice; the manifest and the items disagree.
    """
    found = manifest.read(folder, "scores")
    config = found.config if isinstance(found.config, dict) else {}
    name = _usable(found, config.get("name") if name is None else name)
    shared = shared or Shared()
    notes = found.notes if isinstance(found.notes, dict) else {}
    declared = notes.get("tasks")
    if not isinstance(declared, dict) or not declared:
        raise HarnessError(f"{folder / manifest.NAME} lists no tasks", AGAIN)
    table = _table(found)
    present = set(pc.unique(table["task"]).to_pylist())
    if strangers := sorted(present ^ set(declared)):
        one, other = (FILE, manifest.NAME) if strangers[0] in present else (manifest.NAME, FILE)
        raise HarnessError(f"{folder}: {one} has the task {strangers[0]!r}, {other} does not", AGAIN)
    tasks = {}
    for task, entry in declared.items():
        items = table.filter(pc.equal(table["task"], pa.scalar(task, pa.string())))
        tasks[task] = _measured(folder, task, entry, notes.get("pixels"), items, shared)
    model = _model(found)
    group = group_of(name, config.get("group"))
    told = provenance.of_scores(found, name, model)
    return Result(name, folder, model, tasks, told, lambda: iter([read_table(folder / FILE, Score)]), group)


def _model(found: manifest.Manifest) -> dict[str, object]:
    """What was evaluated: folders by their hash, hub names as the model arguments give them."""
    model: dict[str, object] = {f"the {role}": entry["sha256"] for role, entry in found.inputs.items()}
    for argument in str(found.config.get("model_args", "")).split(","):
        key, _, value = argument.partition("=")
        role = {"pretrained": "the model", "adapter": "the adapter"}.get(key)
        if role is not None:
            model.setdefault(role, value)
    return model


def _usable(found: manifest.Manifest, name: object) -> str:
    if not isinstance(name, str) or not name.strip():
        raise HarnessError(
            f"{found.folder / manifest.NAME} gives no row name: config name is {name!r}", AGAIN
        )
    try:
        name.encode()
    except UnicodeEncodeError as error:  # a lone surrogate could not be written to any table
        raise HarnessError(
            f"{found.folder / manifest.NAME}: the name {name!r} is not valid Unicode", AGAIN
        ) from error
    return name


def _table(found: manifest.Manifest) -> pa.Table:
    path = found.folder / FILE
    # By hash first: a changed file may still be readable Parquet, and a damaged one need not be.
    if path.is_file() and manifest.file_sha256(path) != found.files.get(FILE):
        raise HarnessError(
            f"{path} is truncated, damaged or changed: it is not the file that its manifest was written for",
            f"Copy the folder again, or {AGAIN.lower()}",
        )
    table = read_table(path, Score)
    for column in COLUMNS:
        wanted = schema(Score).field(column)
        if table.schema.field(column).type not in (wanted.type, pa.null()):
            raise HarnessError(
                f"{path}: the column {column!r} holds {table.schema.field(column).type}, not {wanted.type}",
                AGAIN,
            )
        if not wanted.nullable and table[column].null_count:
            raise HarnessError(f"{path}: {table[column].null_count} rows have no {column}", AGAIN)
    return table.select(COLUMNS).combine_chunks()


def _measured(
    folder: Path, task: str, entry: object, pixels: object, items: pa.Table, shared: Shared
) -> Measured:
    if not isinstance(entry, dict):
        raise HarnessError(f"{folder / manifest.NAME}: the notes on {task} are {entry!r}, not a table", AGAIN)
    found = shared.items(folder / FILE, task, items)
    scores = _scores(folder, task, items)
    _agree(folder, task, entry, scores)
    # An unscored response has no extracted answer either; it is counted apart, not here.
    silent = pc.sum(pc.and_(pc.is_valid(items["score"]), pc.is_null(items["extracted"]))).as_py()
    return Measured(
        task=task,
        distribution=_distribution(folder, task, entry),
        family=entry.get("family"),
        conditions=_conditions(folder, task, entry, pixels),
        item_ids=found.ids,
        clusters=found.clusters,
        scores=scores[found.order],
        # Tasks of others extract nothing: without the manifest's word, null does not mean "no answer".
        unanswered=None if entry.get("unanswered") is None else silent,
        documents=lambda: _documents(folder, task),
    )


def _documents(folder: Path, task: str) -> Documents:
    table = read_table(folder / FILE, Score)
    part = table.filter(pc.equal(table["task"], pa.scalar(task, pa.string()))).sort_by("item_id")
    ids, numbers, answers = (tuple(part[name].to_pylist()) for name in ("item_id", "doc_id", "answer"))
    return Documents(ids, numbers, answers)


def _scores(folder: Path, task: str, items: pa.Table) -> NDArray[np.float64]:
    column = items["score"].cast(pa.float64())
    wrong = pc.fill_null(
        pc.or_(pc.is_nan(column), pc.or_(pc.less(column, 0.0), pc.greater(column, 1.0))), False
    )
    if pc.any(wrong).as_py():
        row = items.filter(wrong).slice(0, 1).to_pylist()[0]
        raise HarnessError(
            f"{folder / FILE}: {task}, item {row['item_id']} has the score {row['score']}",
            "Scores are fractions from 0 to 1 (not percent), and null where a response could not be scored",
        )
    return np.asarray(column.to_numpy(), dtype=np.float64)


def _agree(folder: Path, task: str, entry: dict[str, Any], scores: NDArray[np.float64]) -> None:
    """Holds the manifest's counts and accuracy against the items: one lost on the way shows here."""
    path = folder / manifest.NAME
    scored = scores[~np.isnan(scores)]
    counts = (entry.get("n"), entry.get("unscored"))
    if counts != (len(scored), len(scores) - len(scored)):
        raise HarnessError(
            f"{path} says n={counts[0]} and unscored={counts[1]} for {task}, "
            f"{FILE} holds {len(scored)} scored items and {len(scores) - len(scored)} unscored ones",
            AGAIN,
        )
    said = entry.get("accuracy")
    found = float(scored.mean()) if len(scored) else None
    if said is None and found is None:
        return
    if not isinstance(said, int | float) or found is None or not math.isclose(said, found, abs_tol=1e-6):
        raise HarnessError(
            f"{path} says accuracy={said} for {task}, the items of {FILE} give {found}",
            f"Accuracy is the mean score of the scored items, from 0 to 1. {AGAIN}",
        )


def _distribution(folder: Path, task: str, entry: dict[str, Any]) -> str | None:
    distribution = entry.get("distribution")
    if distribution not in DISTRIBUTIONS:
        raise HarnessError(
            f"{folder / manifest.NAME}: {task} has the distribution {distribution!r}",
            "Use 'id', 'ood' or null",
        )
    return None if distribution is None else str(distribution)


def _conditions(folder: Path, task: str, entry: dict[str, Any], pixels: object) -> dict[str, object]:
    """Flat, causes before effects: the limit decides the items, the prompts are part of what an item is."""
    needed = ("version", "prompt_sha256", "generation", "limit", "items_sha256")
    if absent := [key for key in needed if key not in entry]:
        raise HarnessError(f"{folder / manifest.NAME}: the notes on {task} lack {absent[0]!r}", AGAIN)
    generation = entry["generation"] if isinstance(entry["generation"], dict) else {"": entry["generation"]}
    if not isinstance(pixels, dict | None):
        raise HarnessError(f"{folder / manifest.NAME}: the pixel limits are {pixels!r}, not a table", AGAIN)
    # A limit of null is the processor's own, as is no limit at all.
    budget = {key: value for key, value in (pixels or {}).items() if value is not None}
    return {
        "task version": entry["version"],
        "distribution": entry.get("distribution"),
        "limit": entry["limit"],
        **{f"generation argument {key}".rstrip(): value for key, value in sorted(generation.items())},
        **{f"pixel limit {key}": value for key, value in sorted(budget.items())},
        "prompt hash": entry["prompt_sha256"],
        "item set": entry["items_sha256"],
    }

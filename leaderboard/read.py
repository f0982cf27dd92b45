"""One scores folder -> Result: scores and their conditions, checked item by item."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.disk import file_sha256
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import board
from dcsft_harness.leaderboard.board import (
    ARGUMENT,
    DISTRIBUTIONS,
    ITEMS,
    LIMIT,
    NO_VERSION,
    PIXELS,
    PROMPTS,
    SIDE,
    VERSION,
    Documents,
    Measured,
    Result,
    group_of,
)
from dcsft_harness.leaderboard.logs import LIMITS, pairs
from dcsft_harness.leaderboard.sampled import FILE as RESPONSES
from dcsft_harness.leaderboard.sampled import JUDGED, Draws, draws_of, read_responses
from dcsft_harness.records import (
    CHECKPOINT,
    SCORER,
    SETTING,
    Score,
    as_wanted,
    defaults,
    readable,
    refuse_empty,
    schema,
)

FILE = "scores.parquet"
TEXTS = ["task", "extracted", "response", "answer", "cluster"]
COLUMNS = ["task", "item_id", "score", "extracted", "cluster"]
AGAIN = "Evaluate this model again"


@dataclass(frozen=True, eq=False)
class _Items:
    """A task's items in a table's order, and in the order of their ids."""

    raw_ids: pa.ChunkedArray
    raw_clusters: pa.ChunkedArray
    order: NDArray[np.int64]
    ids: tuple[str, ...]
    clusters: tuple[str | None, ...]


@dataclass(frozen=True, eq=False)
class Shared:
    """Holds items that several folders have in the same order once: hundreds of rows share them."""

    known: dict[str, list[_Items]] = field(default_factory=dict)

    def items(self, path: Path, task: str, ids: pa.ChunkedArray, clusters: pa.ChunkedArray) -> _Items:
        """The items of a task's part of a table; one that occurs twice is an error."""
        for one in self.known.setdefault(task, []):
            if one.raw_ids.equals(ids) and _equal(one.raw_clusters, clusters):
                return one
        order = np.asarray(pc.sort_indices(ids), dtype=np.int64)
        ordered = tuple(ids.take(order).to_pylist())
        for first, second in zip(ordered, ordered[1:], strict=False):
            if first == second:
                raise HarnessError(f"{path}: {task} has the item {first} twice", AGAIN)
        made = _Items(ids, clusters, order, ordered, tuple(clusters.take(order).to_pylist()))
        self.known[task] = [*self.known[task][-3:], made]  # a few orders, not one per folder
        return made


def _equal(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether two columns hold the same texts, even with different dictionaries."""
    return bool(one.equals(other)) or bool(one.cast(pa.string()).equals(other.cast(pa.string())))


def read_result(folder: Path, name: str | None = None, shared: Shared | None = None) -> Result:
    """Reads a scores folder and checks it against its own manifest.

    Args:
        folder: an artifact of the kind "scores".
        name: the row's name; None uses the manifest's.
        shared: items of folders read earlier.

    Raises:
        HarnessError: it is not such an artifact; a file is missing, truncated or changed; a score is NaN or
            outside [0, 1]; an item occurs twice; the manifest and the items disagree.
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
    places = _places(table)
    if strangers := sorted(set(places) ^ set(declared)):
        one, other = (FILE, manifest.NAME) if strangers[0] in places else (manifest.NAME, FILE)
        raise HarnessError(f"{folder}: {one} has the task {strangers[0]!r}, {other} does not", AGAIN)
    scores = _scores(folder, table)
    # An unscored response has no extracted answer either; it is counted as unscored, not here.
    silent = np.asarray(table["extracted"].is_null()) & ~np.isnan(scores)
    tasks, model_name = {}, str(config.get("model", "dcsft_hf"))  # the first edition knew this model alone
    for task, entry in declared.items():
        at = places[task]
        items = shared.items(folder / FILE, task, table["item_id"].take(at), table["cluster"].take(at))
        some = _Scored(scores[at][items.order], int(silent[at].sum()))
        tasks[task] = _measured(folder, task, entry, notes.get("pixels"), model_name, items, some)
        if (samples := entry.get("samples")) is not None:
            read = partial(read_responses, folder / RESPONSES, task)
            tasks[task] = replace(tasks[task], draws=_draws(found, tasks[task], samples), responses=read)
    model = _model(found)
    group = group_of(name, config.get("group"))
    provenance = board.of_scores(found, name, model)
    return Result(name, folder, model, tasks, provenance, lambda: iter([read_columns(folder / FILE)]), group)


def _draws(found: manifest.Manifest, measured: Measured, samples: object) -> Draws:
    path = found.folder / RESPONSES
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise HarnessError(
            f"{found.folder / manifest.NAME}: samples of {measured.task} is {samples!r}", AGAIN
        )
    if path.is_file() and file_sha256(path) != found.files.get(RESPONSES):
        raise HarnessError(f"{path} is truncated, damaged or changed", AGAIN)
    table = read_responses(path, measured.task, JUDGED)
    return draws_of(path, table, measured.item_ids, samples, measured.unanswered is not None)


class _Scored(NamedTuple):
    """A task's scores, in the order of its items' ids, and the number of them without an answer."""

    scores: NDArray[np.float64]
    silent: int


def _places(table: pa.Table) -> dict[str, NDArray[np.int64]]:
    """Task -> its rows in the table."""
    column = table["task"].combine_chunks()
    codes = np.asarray(column.indices)
    names = column.dictionary.to_pylist()
    return {name: at for code, name in enumerate(names) if len(at := np.flatnonzero(codes == code))}


def _model(found: manifest.Manifest) -> dict[str, object]:
    """The evaluated weights: folders by their hash, hub names as in the model arguments.

    Rows and tasks are inputs too, and differ between results of one model.
    """
    weights = {role: one for role, one in found.inputs.items() if role.split()[0] not in ("data", "task")}
    model: dict[str, object] = {f"the {role}": entry["sha256"] for role, entry in weights.items()}
    given = pairs(found.config.get("model_args"))
    for name, role in (("pretrained", "the model"), ("adapter", "the adapter")):
        if name in given:
            model.setdefault(role, given[name])
    return model


def _usable(found: manifest.Manifest, name: object) -> str:
    if not isinstance(name, str) or not name.strip():
        raise HarnessError(
            f"{found.folder / manifest.NAME} gives no row name: config name is {name!r}", AGAIN
        )
    try:
        name.encode()
    except UnicodeEncodeError as error:  # no table could store a lone surrogate
        raise HarnessError(
            f"{found.folder / manifest.NAME}: the name {name!r} is not valid Unicode", AGAIN
        ) from error
    return name


def _table(found: manifest.Manifest) -> pa.Table:
    path = found.folder / FILE
    # By hash first: a changed file may still be readable Parquet, and a damaged one may not.
    if path.is_file() and file_sha256(path) != found.files.get(FILE):
        raise HarnessError(
            f"{path} is truncated, damaged or changed: it is not the file that its manifest was written for",
            f"Copy the folder again, or {AGAIN.lower()}",
        )
    return read_columns(path, COLUMNS)


def read_columns(path: Path, names: Sequence[str] | None = None) -> pa.Table:
    """Columns of a scores table, by default all, each as one chunk; texts as dictionaries: 3 times as fast.

    Raises:
        HarnessError: the file is missing, damaged, lacks a column, or has one of another type.
    """
    wanted = [one for one in schema(Score) if names is None or one.name in names]
    with readable(path):
        file = pq.ParquetFile(path, read_dictionary=TEXTS)
        filling = defaults(path, Score, file.schema_arrow.names)
        read = file.read(columns=[one.name for one in wanted]).unify_dictionaries()
    columns = {}
    for want in wanted:
        if want.name in filling:  # written before this column existed
            columns[want.name] = pa.chunked_array([pa.repeat(filling[want.name], read.num_rows)])
            continue
        column = read[want.name]
        if pa.types.is_dictionary(column.type) and column.type.value_type == want.type:
            refuse_empty(path, column.null_count, want)
        else:
            column = as_wanted(path, column, want)
            column = column.dictionary_encode() if want.name in TEXTS else column
        columns[want.name] = column
    return pa.table(columns).unify_dictionaries().combine_chunks()


def _measured(
    folder: Path, task: str, entry: object, pixels: object, model: str, items: _Items, scored: _Scored
) -> Measured:
    if not isinstance(entry, dict):
        raise HarnessError(f"{folder / manifest.NAME}: the notes on {task} are {entry!r}, not a table", AGAIN)
    _agree(folder, task, entry, scored.scores)
    return Measured(
        task=task,
        distribution=_distribution(folder, task, entry),
        family=entry.get("family"),
        conditions=_conditions(folder, task, entry, pixels),
        item_ids=items.ids,
        clusters=items.clusters,
        scores=scored.scores,
        # Other packages' tasks extract nothing: unless the manifest states it, null does not mean "no
        # answer".
        unanswered=None if entry.get("unanswered") is None else scored.silent,
        documents=lambda: _documents(folder, task),
        unknown=tuple(_unknown(entry, pixels, model)),
    )


def _documents(folder: Path, task: str) -> Documents:
    table = read_columns(folder / FILE, ["task", "item_id", "doc_id", "answer"])
    part = table.take(_places(table)[task]).sort_by("item_id")
    ids, numbers, answers = (tuple(part[name].to_pylist()) for name in ("item_id", "doc_id", "answer"))
    return Documents(ids, numbers, answers)


def _scores(folder: Path, table: pa.Table) -> NDArray[np.float64]:
    """All scores, NaN if a response could not be scored."""
    column = table["score"].combine_chunks()
    values = np.array(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    wrong = ~((values >= 0) & (values <= 1)) & np.asarray(column.is_valid())
    if wrong.any():
        row = table.slice(int(np.flatnonzero(wrong)[0]), 1).to_pylist()[0]
        raise HarnessError(
            f"{folder / FILE}: {row['task']}, item {row['item_id']} has the score {row['score']}",
            "Scores are fractions from 0 to 1 (not percent), and null where a response could not be scored",
        )
    return values


def _agree(folder: Path, task: str, entry: dict[str, Any], scores: NDArray[np.float64]) -> None:
    """Checks the manifest's counts and accuracy against the items, which reveals lost items."""
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
    fraction = said if isinstance(said, int | float) and -1 < said < 2 else None  # far larger: not comparable
    if fraction is None or found is None or not math.isclose(fraction, found, abs_tol=1e-6):
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
    """Flattened, causes before effects: the limit decides the items, and prompts are part of an item."""
    needed = ("version", "prompt_sha256", "generation", "limit", "items_sha256")
    if absent := [key for key in needed if key not in entry]:
        raise HarnessError(f"{folder / manifest.NAME}: the notes on {task} lack {absent[0]!r}", AGAIN)
    generation = entry["generation"] if isinstance(entry["generation"], dict) else {"": entry["generation"]}
    if not isinstance(pixels, dict | None):
        raise HarnessError(f"{folder / manifest.NAME}: the pixel limits are {pixels!r}, not a table", AGAIN)
    scorers, checkpoint = (entry.get(key) or {} for key in ("scorers", "generation_from_checkpoint"))
    if not isinstance(scorers, dict) or not isinstance(checkpoint, dict):
        raise HarnessError(f"{folder / manifest.NAME}: scorers or settings of {task} are no tables", AGAIN)
    budget = {key: value for key, value in (pixels or {}).items() if value is not None}
    return {
        VERSION: entry["version"],
        **{f"{SCORER} {name}": version for name, version in sorted(scorers.items())},
        SIDE: entry.get("distribution"),
        LIMIT: entry["limit"],
        **{f"{ARGUMENT} {key}".rstrip(): value for key, value in sorted(generation.items())},
        **{f"{SETTING} {name}": value for name, value in sorted(checkpoint.items())},
        **({CHECKPOINT: "applied"} if checkpoint else {}),
        **{f"{PIXELS} {key}": value for key, value in sorted(budget.items())},
        PROMPTS: entry["prompt_sha256"],
        ITEMS: entry["items_sha256"],
    }


def _unknown(entry: dict[str, Any], pixels: object, model: str) -> list[str]:
    """Conditions that a task's notes do not record: a model that is not ours need not report its settings."""
    limits = pixels if isinstance(pixels, dict) else {}
    silent = "generation_from_checkpoint" not in entry and not model.startswith("dcsft_")
    unrecorded = {
        **{f"{PIXELS} {name}": limits.get(name) is None for name in LIMITS},
        CHECKPOINT: silent,
        SETTING: silent,
        ARGUMENT: entry.get("generation") is None,
        VERSION: entry.get("version") in NO_VERSION,
        SIDE: entry.get("distribution") is None,
    }
    noted = [one for one in entry.get("unknown") or () if isinstance(one, str)]
    return list(dict.fromkeys([*noted, *(name for name, is_unknown in unrecorded.items() if is_unknown)]))

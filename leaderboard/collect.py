"""Folders -> results: finds the runs in and below some folders, reads them, and gives each row its name."""

import glob
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcsft_harness import reading
from dcsft_harness.artifacts import SCORES_SET, manifest
from dcsft_harness.artifacts.disk import file_sha256
from dcsft_harness.errors import HarnessError, cut, unknown_name
from dcsft_harness.leaderboard import board
from dcsft_harness.leaderboard.board import (
    ARGUMENT,
    DISTRIBUTIONS,
    ITEMS,
    LIMIT,
    METRIC,
    NO_VERSION,
    PIXELS,
    PROMPTS,
    REASONING,
    SIDE,
    SYSTEM,
    TEMPLATE,
    VERSION,
    Cell,
    Documents,
    Result,
    Unusable,
    group_of,
    of_prompts,
    of_reasoning,
)
from dcsft_harness.leaderboard.logs import (
    LIMITS,
    RESULTS,
    SAMPLES,
    TAGS,
    Choices,
    is_other_layout,
    is_run,
    load_run,
    lost_samples,
    pairs,
    read_run,
    samples_of_run,
    tasks_of_run,
)
from dcsft_harness.leaderboard.sampled import FILE as RESPONSES
from dcsft_harness.leaderboard.sampled import JUDGED, Draws, draws_of, read_rows, rows_of_tasks
from dcsft_harness.models.arguments import indifferent
from dcsft_harness.records import (
    CHECKPOINT,
    FROM_CHECKPOINT,
    LOGGED,
    PROMPTED,
    SCORER,
    SETTING,
    Response,
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


def read_result(folder: Path, shared: Shared) -> Result:
    """Reads a scores folder and checks it against its own manifest; `shared` are items of earlier folders.

    Raises:
        HarnessError: it is not such an artifact; a file is missing, truncated or changed; a score is NaN or
            outside [0, 1]; an item occurs twice; the manifest and the items disagree.
    """
    found = manifest.read(folder, "scores")
    path = folder / manifest.NAME
    name, pixels = found.config.get("name"), found.notes.get("pixels")
    if not isinstance(name, str) or not name.strip():
        raise HarnessError(f"{path} gives no row name: config name is {name!r}", AGAIN)
    if not isinstance(pixels, dict | None):
        raise HarnessError(f"{path}: the pixel limits are {pixels!r}, not a table", AGAIN)
    declared = found.notes.get("tasks")
    if not declared:
        raise HarnessError(f"{path} lists no tasks", AGAIN)
    _refuse_changed(found, FILE)
    table = read_columns(folder / FILE, COLUMNS)
    places = rows_of_tasks(table)
    if strangers := sorted(set(places) ^ set(declared)):
        one, other = (FILE, manifest.NAME) if strangers[0] in places else (manifest.NAME, FILE)
        raise HarnessError(f"{folder}: {one} has the task {strangers[0]!r}, {other} does not", AGAIN)
    scores = _scores(folder, table)
    # An unscored response has no extracted answer either; it is counted as unscored, not here.
    silent = np.asarray(table["extracted"].is_null()) & ~np.isnan(scores)
    tasks = {}
    for task, entry in declared.items():
        at = places[task]
        _refuse_partial(folder, task, entry)
        conditions, unknown = conditions_of(found, task)
        items = shared.items(folder / FILE, task, table["item_id"].take(at), table["cluster"].take(at))
        own = scores[at][items.order]
        _agree(folder, task, entry, own)
        tasks[task] = Cell(
            task=task,
            distribution=_distribution(folder, task, entry),
            family=entry.get("family"),
            conditions=conditions,
            item_ids=items.ids,
            clusters=items.clusters,
            scores=own,
            # Other packages' tasks extract nothing: unless the manifest states it, null does not mean "no
            # answer".
            unanswered=None if entry.get("unanswered") is None else int(silent[at].sum()),
            documents=partial(_documents, folder, task),
            unknown=unknown,
            logged=entry.get(LOGGED),
        )
        if (samples := entry.get("samples")) is not None:
            read = partial(read_rows, folder / RESPONSES, Response, pc.field("task") == task)
            tasks[task] = replace(tasks[task], draws=_draws(found, tasks[task], samples), responses=read)
    model = {f"the {role}": value for role, value in found.weights().items()}
    group = group_of(name, found.config.get("group"))
    provenance = board.of_scores(found, model)
    return Result(name, folder, model, tasks, provenance, lambda: iter([read_columns(folder / FILE)]), group)


def _draws(found: manifest.Manifest, measured: Cell, samples: object) -> Draws:
    path = found.folder / RESPONSES
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise HarnessError(
            f"{found.folder / manifest.NAME}: samples of {measured.task} is {samples!r}", AGAIN
        )
    _refuse_changed(found, RESPONSES)
    table = read_rows(path, Response, pc.field("task") == measured.task, JUDGED)
    return draws_of(path, table, measured.item_ids, samples, measured.unanswered is not None)


def _refuse_changed(found: manifest.Manifest, name: str) -> None:
    """Refuses a file by its hash: a changed one may still be readable Parquet, and a damaged one may not."""
    path = found.folder / name
    if path.is_file() and file_sha256(path) != found.files.get(name):
        raise HarnessError(
            f"{path} is truncated, damaged or changed: it is not the file that its manifest was written for",
            f"Copy the folder again, or {AGAIN.lower()}",
        )


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


def _documents(folder: Path, task: str) -> Documents:
    table = read_columns(folder / FILE, ["task", "item_id", "doc_id", "answer"])
    part = table.take(rows_of_tasks(table)[task]).sort_by("item_id")
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


def _refuse_partial(folder: Path, task: str, entry: Mapping[str, Any]) -> None:
    """Refuses notes on a task that lack conditions, or hold them in another form."""
    needed = ("version", "prompt_sha256", "generation", "limit", "items_sha256")
    if absent := [key for key in needed if key not in entry]:
        raise HarnessError(f"{folder / manifest.NAME}: the notes on {task} lack {absent[0]!r}", AGAIN)
    if not all(isinstance(entry.get(key) or {}, dict) for key in ("scorers", FROM_CHECKPOINT)):
        raise HarnessError(f"{folder / manifest.NAME}: scorers or settings of {task} are not tables", AGAIN)


def conditions_of(found: manifest.Manifest, task: str) -> tuple[dict[str, object], tuple[str, ...]]:
    """The conditions of the scores of a task, and those that its notes do not record, as of `Cell`.

    Causes come before effects: the limit decides the items, and prompts are part of an item.
    """
    entry: dict[str, Any] = found.notes["tasks"][task]
    limits = {key: value for key, value in (found.notes.get("pixels") or {}).items() if value is not None}
    engine = str(found.config.get("model", "dcsft_hf"))  # the first edition knew this model alone
    generation = entry.get("generation")
    arguments = generation if isinstance(generation, dict) else {"": generation}
    checkpoint = entry.get(FROM_CHECKPOINT) or {}
    given = pairs(found.config.get("model_args"))
    prompted = of_prompts(engine, given, entry.get(PROMPTED), found.call.get("read"))
    conditions = {
        **({METRIC: entry["metric"]} if entry.get("metric") else {}),
        VERSION: entry.get("version"),
        **{f"{SCORER} {name}": version for name, version in sorted((entry.get("scorers") or {}).items())},
        SIDE: entry.get("distribution"),
        LIMIT: entry.get("limit"),
        **{f"{ARGUMENT} {key}".rstrip(): value for key, value in sorted(arguments.items())},
        **{f"{SETTING} {name}": value for name, value in sorted(checkpoint.items())},
        **({CHECKPOINT: "applied"} if checkpoint else {}),
        **{f"{PIXELS} {key}": value for key, value in sorted(limits.items())},
        **prompted,
        **of_reasoning(entry.get("reasoning")),
        PROMPTS: entry.get("prompt_sha256"),
        ITEMS: entry.get("items_sha256"),
    }
    # A model that is not ours need not report its settings.
    ours = engine.startswith("dcsft_")
    silent = FROM_CHECKPOINT not in entry and not ours
    noted = [one for one in entry.get("unknown") or () if isinstance(one, str)]
    unrecorded = {
        METRIC: entry.get("metric") is None,
        **{f"{PIXELS} {name}": name not in limits for name in LIMITS},
        CHECKPOINT: silent,
        SETTING: silent,
        ARGUMENT: generation is None,
        VERSION: entry.get("version") in NO_VERSION,
        SIDE: entry.get("distribution") is None,
        SYSTEM: bool(noted),  # responses from elsewhere
        # Older scores do not record arguments that training set.
        TEMPLATE: bool(noted)
        or (ours and entry.get(PROMPTED) is None and "chat_template_kwargs" not in given),
        REASONING: "reasoning" not in entry,
    }
    return conditions, tuple(dict.fromkeys([*noted, *(name for name, one in unrecorded.items() if one)]))


Progress = Callable[[int, int], None]


def named(given: Path) -> tuple[str | None, Path]:
    """The name and the folder in NAME=FOLDER; no name if the whole value is an existing folder."""
    name, sign, folder = str(given).partition("=")
    if given.exists() or not sign or not name.strip():
        return None, given
    if not folder.strip():
        raise HarnessError(f"{given} names no folder", "Write NAME=FOLDER")
    return name, Path(folder)


def natural(text: object) -> list[tuple[int, str]]:
    """A sort key that orders numbers in names by value: step-90 before step-100."""
    return [
        (int(part), "") if part.isdecimal() and part.isascii() else (-1, part)
        for part in re.split(r"(\d{1,18})", str(text))
    ]


def find(place: Path) -> list[Path]:
    """The results in a folder and its subfolders.

    `place` is a scores folder, a folder of lmms-eval logs, a parent folder, or one run of lmms-eval as
    FOLDER/RUN, with or without `_results.json`. Returns scores folders, results files of lmms-eval, and
    samples without a results file, in natural order; the place itself if there are none.

    Raises:
        HarnessError: there is no such place.
    """
    if not place.is_dir():
        file = place.with_name(place.name + RESULTS)
        runs = [one for one in (place, file) if one.is_file()][:1]
        runs = runs or list(place.parent.glob(f"*/{glob.escape(file.name)}"))
        if not runs and not place.exists():
            raise HarnessError(f"{place} does not exist", "Check the path")
        return runs or [place]
    found: list[Path] = []
    seen: set[str] = set()
    places = [place]
    for folder, inner, names in (one for start in places for one in os.walk(start)):
        here = Path(folder)
        if (real := os.path.realpath(folder)) in seen:
            inner.clear()
            continue
        seen.add(real)
        kind = _kind(here) if manifest.NAME in names else None
        if kind is not None and kind != SCORES_SET:  # no results lie in artifacts of other kinds
            found += [here] if kind == "scores" or here == place else []
            inner.clear()
            continue
        inner[:] = [name for name in inner if not name.startswith(".")]
        # Links come last, in an order of their own: what they lead to may lie in this folder, too.
        places += sorted((here / name for name in inner if (here / name).is_symlink()), key=natural)
        files = [here / name for name in names if is_run(Path(name)) or SAMPLES in name]
        found += [file for file in files if is_run(file)]
        found += lost_samples(files)
        found += [here / name for name in names if is_other_layout(here / name)]
    return sorted(found, key=lambda one: natural(one.relative_to(place))) or [place]


def files_of(run: Path | Result) -> list[Path]:
    """The readable files of a run, from `find` or read: of a log its results and samples."""
    if isinstance(run, Result):
        files: Iterable[Path] = run.files or files_of(run.folder)
    elif run.is_dir():
        files = (run / name for name in (manifest.NAME, FILE, RESPONSES))
    else:
        files = [run, *(samples_of_run(run).values() if is_run(run) else ())]
    return [file for file in files if file.is_file() and os.access(file, os.R_OK)]


def incomplete(run: Path) -> list[str]:
    """The names of the files that a run, from `find`, lacks: its table of scores, results or samples."""
    if run.is_dir():
        return [] if (run / FILE).is_file() else [FILE]
    if not is_run(run):
        return [RESULTS] if SAMPLES in run.name else []
    samples = samples_of_run(run)
    try:
        return [f"{SAMPLES}{task}" for task in tasks_of_run(load_run(run), samples) if task not in samples]
    except HarnessError:
        return []


def _kind(folder: Path) -> object:
    """The kind of the artifact in a folder; None if its manifest.json is another package's."""
    try:
        found = reading.json_file(folder / manifest.NAME)
    except (OSError, ValueError):
        return "scores"  # damaged: reading it raises the error
    return found.get("artefact") if isinstance(found, dict) else None


def read(place: Path, choices: Choices, shared: Shared) -> Result:
    """Reads a scores folder or one run of lmms-eval, from `find`; anything else is an error."""
    if is_run(place) and place.is_file():
        return read_run(place, choices)
    if is_other_layout(place):
        raise Unusable(
            f"{place} is a results file of lm-eval or of an old lmms-eval, whose samples are not read",
            "Run the evaluation again with lmms-eval and --log_samples, or leave this folder out",
            "in another layout",
        )
    if place.is_file() and SAMPLES in place.name:
        raise Unusable(
            f"{place} has no results file of lmms-eval beside it: the run did not finish, or that file was "
            "not copied",
            "Run the evaluation again, or copy its *_results.json too",
            "without a results file",
        )
    return read_result(place, shared)


def read_all(
    results: Sequence[Path], choices: Choices, *, strict: bool, progress: Progress | None = None
) -> tuple[list[Result], list[tuple[Path, HarnessError]]]:
    """Reads all results in some folders and their subfolders; each returned row has a unique name.

    Raises:
        HarnessError: with `strict`, one cannot be read; several rows have the same name.
    """
    given = list(results)
    if [str(one) for one in given] == sorted(map(str, given)):  # in the order of a shell's pattern
        given.sort(key=natural)
    places = [(number, *named(one)) for number, one in enumerate(given)]
    runs = [(number, run) for number, _, place in places for run in find(place)]
    depth = {number: len(place.resolve().parts) for number, _, place in places}
    closest: dict[Path, int] = {}
    for number, run in runs:
        closest[run.resolve()] = max(closest.get(run.resolve(), 0), depth[number])
    shared, errors = Shared(), list[tuple[Path, HarnessError]]()
    found: dict[int, list[Result]] = {number: [] for number, _, _ in places}
    for done, (number, run) in enumerate(runs, start=1):
        # A run below two of the folders belongs to the nearer one: `build all base=all/first` names one of
        # all.
        if depth[number] == closest[run.resolve()]:
            try:
                found[number].append(read(run, choices, shared))
            except HarnessError as error:
                if strict:
                    raise
                errors.append((run, error))
        if progress is not None:
            progress(done, len(runs))
    taken: set[str] = set()
    free: list[tuple[Path, Result]] = []
    for number, name, place in places:
        mine = found[number]
        rows = _by_row(mine)
        if name is not None and len(rows) > 1:
            runs_of = cut(", ".join(where(row[0]) for row in rows), 400)
            raise HarnessError(
                f"{name}={place} names {len(rows)} rows: {runs_of}",
                "Name each with NAME=FOLDER/RUN, or all with --names FILE",
            )
        direct = place.is_dir() and all(place in (one.folder, one.folder.parent) for one in mine)
        if name is not None:
            mine = [one.renamed(name) for one in mine]
        elif len(rows) == 1 and direct and mine[0].is_log:
            mine = [one.renamed(place.resolve().name) for one in mine]
        elif not (len(mine) == 1 and mine[0].folder == place and not mine[0].is_log):
            free += [(place, one) for one in mine]
            continue
        found[number] = mine
        taken |= {one.name for one in mine}
    again = _set_apart(free, taken)
    made: list[Result] = []
    for mine in found.values():
        made += sorted((again.get(id(one), one) for one in mine), key=lambda one: natural(one.name))
    return made, errors


def where(result: Result) -> str:
    """A run as FOLDER/RUN."""
    file = result.provenance.settings.get("file")
    return str(result.folder / str(file).removesuffix(RESULTS) if file else result.folder)


def _by_row(results: Sequence[Result]) -> list[list[Result]]:
    """Combines runs of one model, with equal arguments, on different tasks into rows; earlier runs first."""
    rows: list[list[Result]] = []
    alike: dict[tuple[str, str, str], list[list[Result]]] = {}
    for result in sorted(results, key=lambda one: (natural(one.provenance.created), natural(where(one)))):
        known = alike.setdefault(_identity(result), [])
        for row in known:
            if not any(one.tasks.keys() & result.tasks.keys() for one in row):
                row.append(result)
                break
        else:
            known.append([result])
            rows.append(known[-1])
    return rows


_MACHINE = indifferent() | {"device_map", "max_batch_size"}
"""Model arguments that only decide where and how fast a model runs; the last ones are lmms-eval's."""
_OF_RUN = ("limit", "offset", "gen_kwargs", "random_seed", TAGS)
"""Settings of a run of lmms-eval that may differ between the tasks of a row."""


def _arguments(result: Result) -> dict[str, str]:
    """A run's arguments, without those that only decide where and how fast it runs."""
    settings = result.provenance.settings
    others = {key: settings.get(key) for key in ("model", *_OF_RUN)}
    if not result.is_log:  # a log's file name contains only its time
        others["file"] = settings.get("file")
    return {
        str(k): str(v)
        for k, v in {**pairs(settings.get("model_args")), **others}.items()
        if v not in (None, "") and k not in _MACHINE
    }


def _identity(result: Result) -> tuple[str, str, str]:
    """The shared properties of two runs of one row."""
    own = "" if result.is_log else result.name
    said = {k: v for k, v in _arguments(result).items() if k not in _OF_RUN}
    return own, json.dumps(dict(result.model), sort_keys=True, default=str), json.dumps(said, sort_keys=True)


def _set_apart(free: Sequence[tuple[Path, Result]], taken: Set[str]) -> dict[int, Result]:
    """Makes equal names unique, except the user's: by differing arguments, else by time, else by folder.

    `free` has a position and result each. Returns the id of a result -> the result under its new name.
    """
    places = {id(result): place for place, result in free}
    labels: dict[str, list[list[Result]]] = {}
    for row in _by_row([result for _, result in free]):
        labels.setdefault(row[0].name, []).append(row)
    made: dict[int, Result] = {}
    for name, rows in labels.items():
        if len(rows) + (name in taken) < 2:
            continue
        arguments = [
            {**_arguments(row[0]), **pairs(row[0].provenance.settings.get("gen_kwargs"))} for row in rows
        ]
        keys = [
            key
            for key in dict.fromkeys(k for one in arguments for k in one)
            if key != "gen_kwargs" and len({a.get(key) for a in arguments}) > 1
        ]
        ways = (
            [", ".join(f"{key}={one[key]}" for key in keys if key in one) for one in arguments],
            [_time(row[0].provenance.created) for row in rows],
            [_relative(row[0], places[id(row[0])]) for row in rows],
        )
        texts = [name] * len(rows)
        for way in ways:
            many = Counter([*texts, *taken])
            if len(set(way)) > 1 or name in taken:
                texts = [
                    f"{text} ({cut(said, 80)})" if many[text] > 1 and said else text
                    for text, said in zip(texts, way, strict=True)
                ]
        for row, text in zip(rows, texts, strict=True):
            made |= {id(one): one.renamed(text) for one in row}
    return made


def _time(created: str) -> str:
    """The time of a run, to the second, from its own record."""
    found = re.match(r"(\d{4})-?(\d\d)-?(\d\d)[_T ]?(\d\d):?(\d\d):?(\d\d)", created)
    return "{}-{}-{} {}:{}:{}".format(*found.groups()) if found else created


def _relative(result: Result, place: Path) -> str:
    folder = result.folder
    return folder.relative_to(place).as_posix() if folder.is_relative_to(place) else folder.name


def read_names(file: Path) -> dict[str, str]:
    """Names of rows from a YAML or JSON file: a row's name or its FOLDER/RUN -> its new name.

    Raises:
        HarnessError: it cannot be read, or is not such a mapping.
    """
    if not file.exists():
        raise HarnessError(f"--names {file} does not exist", "Check the path")
    try:
        found = reading.yaml_file(file)
    except (OSError, ValueError) as error:
        raise HarnessError(f"--names {file} cannot be read: {error}", "Fix the file") from error
    if not isinstance(found, dict) or not all(isinstance(v, str) and v.strip() for v in found.values()):
        raise HarnessError(
            f"--names {file} is not a mapping of names", "Write one line per row: 'old name: new name'"
        )
    return {str(key): value for key, value in found.items()}


def renamed(results: Sequence[Result], names: Mapping[str, str]) -> list[Result]:
    """Gives rows their new names, see `read_names`; a key that matches neither row nor run is an error."""
    made = list(results)
    for key, name in names.items():
        path = Path(key)
        chosen = [
            at
            for at, one in enumerate(results)
            if key == one.name
            or path.absolute() in (one.folder.absolute(), Path(where(one)).absolute(), *one.files)
        ]
        if not chosen:
            raise unknown_name("row or run of --names", key, [one.name for one in results])
        for at in chosen:
            made[at] = results[at].renamed(name)
    return made

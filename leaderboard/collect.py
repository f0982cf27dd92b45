"""Folders -> results: finds the runs in and below some folders, reads them, and gives each row its name."""

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

from dcsft_harness import reading
from dcsft_harness.artifacts import SCORES_SET, manifest
from dcsft_harness.errors import HarnessError, cut, unknown_name
from dcsft_harness.leaderboard.board import Result, Unusable
from dcsft_harness.leaderboard.logs import (
    RESULTS,
    SAMPLES,
    Choices,
    is_other_layout,
    is_run,
    lost_samples,
    pairs,
    read_run,
)
from dcsft_harness.leaderboard.read import Shared, read_result

Progress = Callable[[int, int], None]


def named(given: Path) -> tuple[str | None, Path]:
    """The name and the folder in NAME=FOLDER; no name if the whole value is an existing folder."""
    name, sign, folder = str(given).partition("=")
    if given.exists() or not sign or not name.strip():
        return None, given
    return name, Path(folder)


def natural(text: object) -> list[tuple[int, str]]:
    """A sort key that orders numbers in names by value: step-90 before step-100."""
    return [
        (int(part), "") if part.isdecimal() and part.isascii() else (-1, part)
        for part in re.split(r"(\d{1,18})", str(text))
    ]


def find(place: Path) -> list[Path]:
    """The results in a folder and its subfolders.

    Args:
        place: a scores folder, a folder of lmms-eval logs, a parent folder, or one run of lmms-eval as
            FOLDER/RUN, with or without `_results.json`.

    Returns:
        Scores folders, results files of lmms-eval, and samples without a results file, in natural order;
        the place itself if there are none.

    Raises:
        HarnessError: there is no such place.
    """
    if not place.is_dir():
        file = place.with_name(place.name + RESULTS)
        runs = (
            [place]
            if place.is_file()
            else [file]
            if file.is_file()
            else list(place.parent.glob(f"*/{glob.escape(file.name)}") if place.parent.is_dir() else ())
        )
        if not runs and not place.exists():
            raise HarnessError(f"{place} does not exist", "Check the path")
        return runs or [place]
    found: list[Path] = []
    for folder, inner, names in os.walk(place):
        here = Path(folder)
        kind = _kind(here) if manifest.NAME in names else None
        if kind is not None and kind != SCORES_SET:  # no results lie in artifacts of other kinds
            found += [here] if kind == "scores" or here == place else []
            inner.clear()
            continue
        inner[:] = [name for name in inner if not name.startswith(".")]
        files = [here / name for name in names if is_run(Path(name)) or SAMPLES in name]
        found += [file for file in files if is_run(file)]
        found += lost_samples(files)
        found += [here / name for name in names if is_other_layout(here / name)]
    return sorted(found, key=lambda one: natural(one.relative_to(place))) or [place]


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
    return read_result(place, None, shared)


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
            mine = [one.renamed(name, by_user=True) for one in mine]
        elif len(rows) == 1 and direct and mine[0].files:
            mine = [one.renamed(place.resolve().name) for one in mine]
        elif not (len(mine) == 1 and mine[0].folder == place and not mine[0].files):
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


_MACHINE = frozenset(("batch_size", "device", "device_map", "max_batch_size", "gpu_memory_utilization"))
"""Model arguments that only decide where and how fast a model runs."""


def _arguments(result: Result) -> dict[str, str]:
    """A run's arguments, without those that only decide where and how fast it runs."""
    settings = result.provenance.settings
    others = {key: settings.get(key) for key in ("model", "limit", "offset", "gen_kwargs", "random_seed")}
    if not result.files:  # a log's file name contains only its time
        others["file"] = settings.get("file")
    return {
        str(k): str(v)
        for k, v in {**pairs(settings.get("model_args")), **others}.items()
        if v not in (None, "") and k not in _MACHINE
    }


def _identity(result: Result) -> tuple[str, str, str]:
    """The shared properties of two runs of one row."""
    own = "" if result.files else result.name
    said = {
        k: v
        for k, v in _arguments(result).items()
        if k not in ("limit", "offset", "gen_kwargs", "random_seed")
    }
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
        arguments = [_arguments(row[0]) for row in rows]
        keys = [
            key
            for key in dict.fromkeys(k for one in arguments for k in one)
            if len({a.get(key) for a in arguments}) > 1
        ]
        ways = (
            [", ".join(f"{key}={one.get(key, 'unset')}" for key in keys) for one in arguments],
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
    try:
        found = reading.yaml_file(file)
    except (OSError, ValueError) as error:
        raise HarnessError(f"--names {file} cannot be read: {error}", "Fix the file") from error
    if not isinstance(found, dict) or not all(isinstance(v, str) and v.strip() for v in found.values()):
        raise HarnessError(
            f"--names {file} is no mapping of names", "Write one line per row: 'old name: new name'"
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
            made[at] = results[at].renamed(name, by_user=True)
    return made

"""checkpoint -> scores on a suite -> a row of a continuously updated board.

A board's folder::

    results/NAME/TASK/           scores from `dcsft evaluate`
    results/NAME/unfinished/     only while NAME is being scored: lock, owner, the checkpoint's files
    leaderboard/                 rebuilt from all results after every row
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dcsft_harness import evaluation, lmms, reading
from dcsft_harness.artifacts import disk, manifest, resuming
from dcsft_harness.artifacts.lock import locked
from dcsft_harness.artifacts.resuming import OtherRunError
from dcsft_harness.data import OwnPart
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.errors import HarnessError, differences, json_text, unknown_name
from dcsft_harness.evaluation.subject import Subject
from dcsft_harness.lmms.tasks import members
from dcsft_harness.models.arguments import indifferent
from dcsft_harness.records import FROM_CHECKPOINT, PROMPTED, SCORER, SETTING
from dcsft_harness.sampling import own_data, own_files
from dcsft_harness.scoring import VERSIONS, get_scorer
from dcsft_harness.settings import flag, option

if TYPE_CHECKING:
    from dcsft_harness.leaderboard import Board, Built
    from dcsft_harness.leaderboard.board import Task

# A board's folder: results by row name, and a leaderboard built from all of them.

STATE, RESULTS, LEADERBOARD, LOCK = "board.json", "results", "leaderboard", "lock"
PATIENCE = 900.0
"""Seconds to wait while another process builds the leaderboard."""
LONGEST = 150
"""The longest name of a row in characters; it is also a folder's name."""


@dataclass
class BoardFolder:
    """A board on disk; created by `open_board`."""

    folder: Path
    baseline: str | None = None  # the row, or group of seeds, that differences refer to
    apart: bool = False  # whether rows that cannot be compared get tables of their own
    # results from elsewhere, relative to the folder, with NAME= if they were given a name
    given: list[str] = field(default_factory=list)

    @property
    def leaderboard(self) -> Path:
        """The leaderboard's folder."""
        return self.folder / LEADERBOARD

    def of(self, name: str) -> Path:
        """The folder of a row's results; an error for a name that cannot be a folder name."""
        plain = name.strip() == name and name.isprintable() and not name.startswith(".")
        if not plain or not name or len(name.encode()) > LONGEST or set(name) & set("/\\"):
            raise HarnessError(
                f"the row name {name!r} cannot be a folder name",
                f"Pass one with --name, without slashes and of at most {LONGEST} bytes",
            )
        return self.folder / RESULTS / name

    def names(self) -> list[str]:
        """Rows with results here, in the order of their runs and of the steps within a run."""
        places = {}
        for folder in sorted((self.folder / RESULTS).glob("*")):
            if found := [manifest.read(path) for path in self.tasks_of(folder.name)]:
                places[folder.name] = _place(folder.name, found)
        begun: dict[str, str] = {}
        for run, _, created, _ in places.values():
            begun[run] = min(created, begun.get(run, created))
        return sorted(places, key=lambda name: (begun[places[name][0]], *places[name]))

    def tasks_of(self, name: str) -> list[Path]:
        """The finished results of a row, by task."""
        return sorted(path.parent for path in (self.folder / RESULTS / name).glob(f"*/{manifest.NAME}"))

    def results(self) -> list[Path]:
        """The leaderboard's inputs: results from elsewhere first."""
        from dcsft_harness.leaderboard.collect import named

        elsewhere = []
        for one in self.given:
            whole = Path(os.path.normpath(self.folder / one))
            name, place = (None, one) if whole.exists() else named(Path(one))
            found = os.path.normpath(self.folder / place)
            elsewhere.append(Path(found if name is None else f"{name}={found}"))
        return [*elsewhere, *(path for name in self.names() for path in self.tasks_of(name))]

    def claimed(self, name: str) -> AbstractContextManager[Path]:
        """Locks a row's results for this process; yields a folder for temporary files.

        Raises:
            HarnessError: another process is scoring under that name.
        """
        return manifest.taken(self.of(name), "row", "the row", grant=False)

    def save(self) -> None:
        """Saves the settings for the next call."""
        settings = {"baseline": self.baseline, "apart": self.apart, "results": self.given}
        disk.write_text(self.folder / STATE, json_text(settings, indent=2) + "\n")

    def replace_leaderboard(self, new: Path) -> None:
        """Replaces the existing leaderboard with a finished one."""
        old = self.folder / f".{LEADERBOARD}.old"
        shutil.rmtree(old, ignore_errors=True)
        try:
            if self.leaderboard.exists():
                os.replace(self.leaderboard, old)
            os.replace(new, self.leaderboard)
        finally:
            if old.exists() and not self.leaderboard.exists():
                os.replace(old, self.leaderboard)
        shutil.rmtree(old, ignore_errors=True)


def _place(name: str, found: Sequence[manifest.Manifest]) -> tuple[str, float, str, str]:
    """A row's run (the row itself if there is none), its step, its start time, and its name."""
    checkpoint = found[0].notes.get("checkpoint")
    home = found[0].folder.resolve()
    created = min(one.created for one in found)
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("step"), int):
        return os.path.normpath(home / str(checkpoint.get("run"))), checkpoint["step"], created, name
    adapter = next((found[0].inputs[role] for role in ("adapter", "model") if role in found[0].inputs), None)
    run = name if adapter is None else os.path.normpath(home / adapter["path"])
    return run, float("inf"), created, name


def open_board(
    folder: Path, baseline: str | None = None, apart: bool = False, given: Sequence[Path] = ()
) -> BoardFolder:
    """A new board, or an existing one with its saved settings; the arguments are added. Writes nothing.

    `baseline` None keeps the board's, and `apart` once set stays, see `BoardFolder`; `given` are further
    results from elsewhere, NAME=FOLDER or FOLDER.

    Raises:
        HarnessError: the folder holds something else, or its settings cannot be read.
    """
    from dcsft_harness.leaderboard.collect import named

    board = BoardFolder(folder, **_remembered(folder))
    board.baseline = baseline or board.baseline
    board.apart = apart or board.apart
    known = dict.fromkeys(board.given)
    for one in given:
        name, place = named(one)
        if not place.is_dir():
            raise HarnessError(f"--results {one} does not exist", "Check the path")
        known[f"{name}=" * (name is not None) + manifest.relative(place, folder)] = None
    board.given = list(known)
    return board


def _remembered(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        raise HarnessError(f"--board {folder} is a file", "Name a folder")
    if not (folder / STATE).is_file():
        strangers = [path for path in folder.glob("*") if path.name not in (RESULTS, f".{LOCK}")]
        if strangers:
            raise HarnessError(
                f"--board {folder} is not empty and holds no board of `dcsft score`",
                "Name a new or an empty folder",
            )
        return {}
    try:
        settings = reading.json_file(folder / STATE)
        return {
            "baseline": settings["baseline"],
            "apart": bool(settings["apart"]),
            "given": [str(one) for one in settings["results"]],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(
            f"{folder / STATE} cannot be read: {error!r}",
            "Remove it and pass --baseline and --results again; results/ is kept",
        ) from error


# The tasks and settings of scoring.

SUITES = {
    "digits": "dcsft_digits_all",
    "classification": "dcsft_classification",
    "grounding": "dcsft_grounding",
    "reasoning": "dcsft_reasoning",
    "paper": "dcsft_paper",
}
"""Suite -> the group of its tasks."""
SUBJECT = ("pretrained", "adapter")
"""Model arguments that name the checkpoint."""
OPENED_BY = (*OwnPart.model_fields, "include_path")
"""The settings that say how to open tasks of the user's own."""


def decisive(model_args: str) -> dict[str, str]:
    """The model arguments that decide responses, without those that name the checkpoint."""
    others = {*SUBJECT, *indifferent(), "tensor_parallel_size", "max_model_len"}  # tasks of a row may differ
    return {k: v for k, v in reading.named(model_args).items() if k not in others}


class Scoring(OwnPart):
    """How to score checkpoints."""

    suite: str | None = option(
        None,
        "The tasks to score on: a suite's, or lmms-eval tasks by name.",
        metavar="|".join((*SUITES, "TASK,...")),
    )
    data: Path | None = option(
        None,
        "Held-out rows of your own, as `dcsft evaluate` takes them: a task named after the file.",
        metavar="FILE|DIR",
        reads="pool",
    )
    model: str = option(
        "dcsft_hf",
        "The engine: dcsft_hf, dcsft_vllm, or any lmms-eval model with the argument pretrained.",
        also="--engine",
    )
    model_args: str = option(
        "", "The model's arguments: batch_size=8,device=cuda:1", metavar="K=V,...", reads="model_args"
    )
    group: str | None = option(
        None, "Name shared by all seeds of a configuration; default: from a name like 'SFT (seed 1)'."
    )
    limit: int | None = option(None, "Use only the first N documents of each task.", ge=1)
    max_new_tokens: int | None = option(
        None, "Maximum response length in tokens; by default each task's own limit.", ge=1
    )

    @property
    def own(self) -> str | None:
        """The task that the user's own rows become; None without them."""
        return None if self.data is None else own_data.task_name(self.data, own_data.part_of(self, held=True))

    @property
    def tasks(self) -> list[str]:
        """The suite's tasks, and the user's own."""
        suite = self.suite or ""
        names = [SUITES[suite]] if suite in SUITES else list(filter(None, suite.split(",")))
        own = [] if self.own is None else [self.own]
        return [*(task for name in names for task in members(name.strip())), *own]

    def opened(self, names: Sequence[str]) -> dict[str, lmms.Task]:
        """Tasks among `tasks`, by name.

        Raises:
            HarnessError: rows of the user's own, or prepared data, cannot be used.
        """
        own = self.own
        known = [name for name in names if name != own]
        found = lmms.open_tasks(known) if known else {}
        if self.data is not None and own is not None and own in names:
            content = manifest.fingerprint(self.data), str(self.described(own))
            found[own] = _own_task(self.data, self.part(OwnPart), *content)
        return found

    def scorers(self, task: str) -> Mapping[str, int]:
        """The scorers that a task may name, and their versions; of own rows that of `scorer`."""
        if self.scorer is None or task != self.own:
            return VERSIONS
        judge = get_scorer(self.scorer)
        return {judge.name: judge.version}

    def inputs(self, task: lmms.Task) -> dict[str, Path]:
        """The data that a task reads, by its role in a manifest."""
        if self.data is not None and task.config.task == self.own:
            return {"data": self.data}
        return prepared.inputs([lmms.data_name(task)])

    def described(self, task: str) -> dict[str, Any]:
        """What the configuration in a manifest says of the user's own rows; as of `dcsft evaluate`."""
        return {} if self.data is None or task != self.own else own_data.described(self.data, self)

    def check(self) -> None:
        """Refuses unusable settings, without loading anything."""
        if self.data is None:
            if self.suite is None:
                raise HarnessError("--suite and --data are missing", "Pass one of them, or both")
            for name in OwnPart.model_fields:
                if getattr(self, name):
                    raise HarnessError(f"{flag(name)} requires --data", "Leave it out")
        else:
            own_files.refuse_missing(self.data)
            if self.tasks.count(str(self.own)) > 1:
                raise HarnessError(
                    f"{self.data} becomes the task {self.own}, which is also in --suite", "Rename the file"
                )
        if self.suite is not None and self.suite not in SUITES:
            names = [name.strip() for name in self.suite.split(",")]
            for name in names:
                if own_files.is_data(name) and not lmms.is_file(name):
                    raise HarnessError(f"--suite {name} holds rows of your own", f"Pass it as --data {name}")
            known = lmms.task_index(names)
            for name in names:
                if lmms.is_file(name):
                    raise HarnessError(
                        f"--suite {name} is a file",
                        f"Name its task, and pass --include-path {Path(name).parent}",
                    )
                if name not in known:
                    raise unknown_name("suite or task", name, [*SUITES, *known], "dcsft tasks list")
                if members(name) == [name] and known[name].get("type") not in ("task", "python_task"):
                    raise HarnessError(f"--suite {name} is a group", "Name its tasks, separated by commas")
        lmms.check_model(self.model, self.model_args)
        for name in reading.named(self.model_args):
            if name in SUBJECT:
                raise HarnessError(
                    f"--model-args names {name}, which CKPT decides",
                    "Pass the adapter or checkpoint as CKPT, and an adapter's base as --base",
                )

    def recorded(self, model_args: str) -> dict[str, Any]:
        """The settings in a result's manifest, with all model arguments."""
        given = {"group": self.group, "max_new_tokens": self.max_new_tokens}
        named = {name: value for name, value in given.items() if value is not None}
        return {"model": self.model, "model_args": model_args, **named}

    def differing(self, config: dict[str, Any]) -> list[str]:
        """The settings in which an earlier result differs, as "option: then -> now"."""
        ours: dict[str, Any] = {name: getattr(self, name) for name in ("model", "limit", "max_new_tokens")}
        theirs: dict[str, Any] = {name: config.get(name) for name in ours}
        ours |= decisive(self.model_args)
        theirs |= decisive(str(config.get("model_args", "")))
        return differences(theirs, ours)


@lru_cache(maxsize=1)
def _own_task(data: Path, options: OwnPart, *content: str) -> lmms.Task:
    """The task of rows with this content; a watched run's checkpoints share it, as its rows are copied."""
    root, outside, part = options.image_root, options.allow_outside_root, own_data.part_of(options, held=True)
    return own_data.open_file(data, options.scorer, root, False, outside, keep_unreadable=False, part=part)


class ScoreOptions(Scoring):
    """What `dcsft score` takes."""

    ckpt: str | None = option(None, positional=True)
    board: Path = option(about="The board's folder, new or existing.")
    watch: str | None = option(
        None,
        "Score the checkpoints that `dcsft train` writes to DIR as they appear, then the final weights.",
        metavar="DIR",
    )
    name: str | None = option(
        None,
        "The row's name; default: the folder's. Checkpoints of a run add their step. Use NAME=CKPT and "
        "--watch NAME=DIR to name both.",
    )
    base: str | None = option(
        None,
        "The base of the adapter (with --watch: of the run); default: the base that it was trained on.",
        metavar="CKPT",
    )
    baseline: str | None = option(None, "The row to compare with; remembered.", metavar="NAME")
    results: tuple[Path, ...] = option(
        (),
        "More results for the board, from `dcsft evaluate` or `lmms-eval --log_samples`; remembered.",
        metavar="[NAME=]FOLDER",
        repeated=True,
    )
    apart: bool = option(False, "Show rows that cannot be compared in separate tables; remembered.")
    include_path: Path | None = option(
        None, "A folder of your own task YAML; --suite may then name its tasks.", metavar="PATH"
    )
    every: float = option(5.0, "Seconds between checks.", ge=0.1)
    stay: bool = option(False, "Keep watching after the run's process has ended, in case it is resumed.")


# One checkpoint -> one row: missing results are evaluated, and the leaderboard is rebuilt.

Make = Callable[[Path], Subject | None]
"""Opens the subject, once this process owns its row; called with a folder for its files."""


class Show(Protocol):
    """Reports progress while a board grows."""

    def say(self, text: str) -> None:
        """Reports an event in one sentence."""

    def stage(self, title: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Shows progress; yields a callback for (done, total)."""


@dataclass(frozen=True)
class Row:
    """The work done for a row."""

    name: str
    kept: list[str] = field(default_factory=list)  # tasks that already had a result
    made: list[str] = field(default_factory=list)  # tasks that were evaluated


def standing(board: BoardFolder) -> "Board":
    """The rows of a board."""
    from dcsft_harness.leaderboard import Board, load

    results = board.results()
    return load(results, strict=False, apart=True) if results else Board((), (), None)


def names_of(found: "Board") -> list[str]:
    """Its rows and groups of seeds, including those in tables of their own."""
    names = (name for one in found.boards for row in one.rows for name in (row.name, row.group))
    return list(dict.fromkeys(filter(None, names)))


def refuse_baseline(board: BoardFolder, coming: Iterable[str | None]) -> None:
    """Refuses a baseline that is not and will not become a row; `coming` are rows and groups to be there."""
    known = [*names_of(standing(board)), *filter(None, coming)]
    if board.baseline is not None and board.baseline not in known:
        raise unknown_name("row for --baseline", board.baseline, known)


def score(board: BoardFolder, name: str, make: Make, settings: Scoring, show: Show) -> Row | None:
    """Evaluates a checkpoint on each task of the suite without an intact result.

    Results are kept task by task, however the work ends. The leaderboard is not touched; see `build`. `make`
    opens the subject; without one nothing is done. Returns what was kept and made; None without a subject.

    Raises:
        HarnessError: the name belongs to another checkpoint, the row could not be compared with the board's
            rows, data is not prepared, or the evaluation fails.
    """
    with board.claimed(name) as place:
        subject = make(place)
        if subject is None:
            return None
        arguments = subject.arguments(settings.model, settings.model_args)
        kept = _kept(board, name, subject, settings, show)
        missing = [task for task in settings.tasks if task not in kept]
        found = standing(board)
        _refuse_taken(board, name, found)
        row = Row(name, [task for task in settings.tasks if task in kept], missing)
        if missing:
            opened = settings.opened(missing)
            lmms.refuse_unfit(opened.values(), settings.model)
            if settings.max_new_tokens is not None:
                for loaded in opened.values():
                    lmms.limit_tokens(loaded, settings.max_new_tokens)
            columns = {} if board.apart else {task.name: task for task in found.tasks}
            for task in missing:
                if there := columns.get(task):
                    _refuse_other(there, _planned(opened[task], settings, there.conditions))
            board.save()
            said = f"{name}: {len(missing)} of {len(settings.tasks)} tasks to score"
            show.say(f"{said}, kept {', '.join(row.kept)}" if row.kept else said)
            _evaluate(board.of(name), subject, settings, arguments, opened, columns, show)
    return row


def _kept(
    board: BoardFolder, name: str, subject: Subject, settings: Scoring, show: Show
) -> dict[str, manifest.Manifest]:
    """The intact results of a row, by task; damaged ones are removed.

    Results of another checkpoint, or measured with other settings, are refused.
    """
    kept: dict[str, manifest.Manifest] = {}
    hashes = subject.hashes() if board.tasks_of(name) else {}
    for folder in board.tasks_of(name):
        if not manifest.is_intact(folder):
            show.say(f"{folder} is damaged: evaluated again")
            shutil.rmtree(folder)
            continue
        found = kept[folder.name] = manifest.read(folder, "scores")
        if (theirs := _weights(found)) != hashes:
            other = next(role for role in {**theirs, **hashes} if theirs.get(role) != hashes.get(role))
            raise HarnessError(
                f"the board has a row {name!r} of another checkpoint: {folder} was made from another {other}",
                f"Use another name with --name, or remove {folder.parent}",
            )
        if folder.name in settings.tasks:
            _refuse_mixture(found, name, settings)
    return kept


def _weights(found: manifest.Manifest) -> dict[str, str]:
    """Role -> the identity of the scored weights, as in `Subject.hashes`."""
    if "model" in (known := found.weights()):
        return known
    given = reading.named(str(found.config["model_args"]))
    return {"model": given.get(lmms.checkpoint_argument(str(found.config["model"])), ""), **known}


def _refuse_mixture(found: manifest.Manifest, name: str, settings: Scoring) -> None:
    """Refuses to continue a row with other settings than it was started with."""
    differing = settings.differing(found.config)
    task = found.folder.name
    scorers, versions = found.notes["tasks"][task].get("scorers", {}), settings.scorers(task)
    differing += [
        f"{SCORER} {one}: {version} -> {versions[one]}"
        for one, version in scorers.items()
        if one in versions and versions[one] != version
    ]
    for role, entry in found.inputs.items():
        path, what = None, "been prepared again"
        rows = role.removeprefix(prepared.ROLE)
        if role != rows and prepared.has_source(rows):
            path = prepared.folder_of(rows)
        elif role == "data" and task == settings.own:
            path, what = settings.data, "changed"
        if path is not None and path.exists() and manifest.fingerprint(path) != entry["sha256"]:
            differing.append(f"{role} has {what}")
    described = settings.described(task)
    differing += differences({key: found.config.get(key) for key in described}, described)
    if differing:
        raise HarnessError(
            f"the row {name!r} has {found.folder.name} under other settings: {'; '.join(differing)}",
            f"Use those again, or another --name, or remove {found.folder}",
        )


def _refuse_taken(board: BoardFolder, name: str, found: "Board") -> None:
    """Refuses a name that a result from elsewhere already has."""
    home = board.of(name).resolve()
    for row in (row for one in found.boards for row in one.rows if row.name == name):
        if strangers := [folder for folder in row.folders if folder.resolve().parent != home]:
            raise HarnessError(
                f"the board already has a row {name!r}, from {strangers[0]}", "Use another --name"
            )


def _planned(task: lmms.Task, settings: Scoring, there: Mapping[str, object]) -> dict[str, object]:
    """A result's measurement conditions, as far as they are known beforehand; named as on a board.

    `there` are those of the board's rows. Of the user's own rows all are known, their content included.
    """
    name = str(task.config.task)
    given = task.config.generation_kwargs or {}
    generation = {f"generation argument {key}": value for key, value in given.items()}
    scorers = {f"{SCORER} {one}": version for one, version in settings.scorers(name).items()}
    own: dict[str, object] = {}
    if name == settings.own:
        from dcsft_harness.leaderboard.board import ITEMS, PROMPTS

        numbers = range(len(task.eval_docs))[: settings.limit]
        items = sorted((lmms.describe_item(task, one) for one in numbers), key=lambda item: item.item_id)
        own = {key: "unset" for key in there if key.startswith(f"{SCORER} ")}
        own[PROMPTS] = disk.json_sha256([item.prompt for item in items])
        own[ITEMS] = disk.json_sha256([item.item_id for item in items])
    return {"task version": task.VERSION, **own, **scorers, "limit": settings.limit, **generation}


def _refuse_other(there: "Task", planned: Mapping[str, object], whole: tuple[str, ...] = ()) -> None:
    """Refuses measurements that could not be compared with the existing rows, naming the differences.

    Compared are the conditions that both have, and of those that begin like one of `whole` all.
    """
    from dcsft_harness.leaderboard.board import differences

    known = {k: v for k, v in there.conditions.items() if k in planned or k.startswith(whole)}
    ours = {k: v for k, v in planned.items() if k in known or k.startswith(whole)}
    for condition, theirs, own in differences(known, ours, there.unknown):
        raise HarnessError(
            f"this cannot be compared with the board's rows: {there.name} would have the {condition} "
            f"{own!r}, but theirs is {theirs!r}",
            "Score it with their settings, or add --apart to show it in a separate table",
        )


def _open(
    settings: Scoring, arguments: str, tasks: Mapping[str, lmms.Task], columns: Mapping[str, "Task"]
) -> lmms.Model:
    """Loads the model; refuses one whose pixel limits, prompts or checkpoint's settings are not the rows'."""
    from dcsft_harness.leaderboard.board import ENGINE, SYSTEM, TEMPLATE, of_prompts

    model = lmms.open_model(settings.model, arguments)
    seen = {f"pixel limit {k}": v for k, v in (evaluation.pixels(model) or {}).items() if v is not None}
    for name, task in tasks.items():
        there = columns.get(name)
        if there is None:
            continue
        made = lmms.generation_settings(model, task)
        given = made.get(FROM_CHECKPOINT, {})
        prompted = of_prompts(settings.model, reading.named(arguments), made.get(PROMPTED))
        ours = {**seen, **{f"{SETTING} {key}": value for key, value in given.items()}, **prompted}
        _refuse_other(there, ours, (SETTING, SYSTEM, TEMPLATE, ENGINE))
    if hasattr(model, "keep_loaded"):
        model.keep_loaded = True
    return model


def _evaluate(
    home: Path,
    subject: Subject,
    settings: Scoring,
    arguments: str,
    opened: Mapping[str, lmms.Task],
    columns: Mapping[str, "Task"],
    show: Show,
) -> None:
    """Evaluates task by task, so that a finished result survives a later failure."""
    model = None
    # How to open the tasks again, as in `dcsft evaluate`: for the page's items and `compare-cost`'s commands.
    options = {one: value for one, value in settings.deciding().items() if one in OPENED_BY}
    call = manifest.CALL.set({"verb": "score", "options": options})
    try:
        for number, (task, loaded) in enumerate(opened.items(), start=1):
            output = home / task
            with show.stage(f"{task} {number}/{len(opened)}") as report:
                model = model or _open(settings, arguments, opened, columns)
                again = partial(
                    evaluation.evaluate,
                    model,
                    {task: loaded},
                    output,
                    home.name,
                    settings.recorded(arguments) | settings.described(task),
                    limit=settings.limit,
                    progress=report,
                    inputs=subject.inputs() | settings.inputs(loaded),
                    noted={} if subject.origin is None else {"checkpoint": subject.origin.as_note(output)},
                )
                try:
                    again()
                except OtherRunError:  # interrupted with another checkpoint or other settings
                    resuming.discard(output)
                    again()
            if not hasattr(model, "keep_loaded"):  # lmms-eval has released its weights
                model = None
    finally:
        manifest.CALL.reset(call)
        if model is not None:
            if hasattr(model, "keep_loaded"):
                model.keep_loaded = False
            model.clean()


def build(board: BoardFolder, show: Show) -> "Built":
    """Rebuilds a board's leaderboard from all its results; if that fails, the existing one stays."""
    from dcsft_harness.leaderboard import Options
    from dcsft_harness.leaderboard import build as make

    board.folder.mkdir(parents=True, exist_ok=True)
    building = locked(board.folder / f".{LOCK}", board.folder, "--board", PATIENCE)
    with building, show.stage("leaderboard build") as report:
        board.save()
        known = names_of(standing(board))
        baseline = board.baseline if board.baseline in known else None  # which may be a future row
        new = board.folder / f".{board.leaderboard.name}.new"
        shutil.rmtree(new, ignore_errors=True)
        try:
            options = Options(baseline=baseline, strict=False, apart=board.apart)
            built = make(board.results(), new, options=options, progress=report)
            board.replace_leaderboard(new)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return built


def shown(board: BoardFolder, name: str, built: "Built") -> tuple[str, str]:
    """A row against the baseline: task by task as a table, and as a short summary.

    Tasks that cannot be compared are in a table of their own, with the reason.

    Raises:
        HarnessError: results of the row cannot be used.
    """
    from dcsft_harness.leaderboard.report.table import against, brief

    home = board.of(name).resolve()
    for one in built.summary.left_out:
        if one.folder.resolve().parent == home:
            raise HarnessError(
                f"{one.folder} is kept, but is not on the board: {one.reason.rstrip('.')}",
                "--apart shows it in a separate table",
            )
    summary = built.summary
    parts = [(summary, ""), *((one.summary, f"\napart: {one.reason}\n") for one in summary.apart)]
    has = [(part, why) for part, why in parts if any(line.name == name for line in part.lines)]
    tables = [f"{against(part, name)}{why}" for part, why in has]
    return "\n".join(tables), "; ".join(brief(part, name) + (" (apart)" if why else "") for part, why in has)

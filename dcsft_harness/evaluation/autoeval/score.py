"""One checkpoint -> one row: what has no result yet is evaluated, and the leaderboard is made anew."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dcsft_harness import evaluation, lmms
from dcsft_harness.artifacts import manifest
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.evaluation.autoeval.folder import BoardFolder
from dcsft_harness.evaluation.autoeval.settings import Settings
from dcsft_harness.evaluation.autoeval.subject import Subject
from dcsft_harness.records import SCORER, SETTING
from dcsft_harness.scoring import VERSIONS

if TYPE_CHECKING:
    from dcsft_harness.leaderboard import Board, Built

Make = Callable[[Path], Subject | None]
"""What gives the subject, once its row is this process's; called with a folder for files of its own."""


class Show(Protocol):
    """What is told while a board grows."""

    def say(self, text: str) -> None:
        """Tells something in a sentence."""

    def stage(self, title: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Shows progress; gives what takes (done, in all)."""


@dataclass(frozen=True)
class Row:
    """What was done for a row.

    Attributes:
        name: its name.
        kept: tasks that had a result already.
        made: tasks that were evaluated.
    """

    name: str
    kept: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)


def standing(board: BoardFolder) -> "Board | None":
    """The rows that a board has; None where it has no results."""
    from dcsft_harness.leaderboard import load

    results = board.results()
    return load(results, strict=False, apart=True) if results else None


def names_of(found: "Board | None") -> list[str]:
    """Its rows and groups of seeds, those that stand apart included."""
    boards = [] if found is None else [found, *(one.board for one in found.apart)]
    rows = (row for one in boards for row in one.rows)
    return list(dict.fromkeys(name for row in rows for name in (row.name, row.group) if name))


def refuse_baseline(board: BoardFolder, coming: Iterable[str | None]) -> None:
    """Refuses a baseline that is no row and will be none.

    Args:
        board: the board.
        coming: rows and groups that will be on it.

    Raises:
        HarnessError: names those that there are.
    """
    known = [*names_of(standing(board)), *filter(None, coming)]
    if board.baseline is not None and board.baseline not in known:
        raise unknown_name("row for --baseline", board.baseline, known)


def score(board: BoardFolder, name: str, make: Make, settings: Settings, show: Show) -> Row | None:
    """Evaluates a checkpoint on each task of the suite that it has no intact result of.

    What is done is kept task by task, whatever ends the work. The leaderboard is not touched; see `build`.

    Args:
        board: where to.
        name: the row.
        make: gives the subject; where that gives None, nothing is done.
        settings: on what, and how.
        show: what is told meanwhile.

    Returns:
        What was kept and made; None without a subject.

    Raises:
        HarnessError: the name is another checkpoint's, the row could not be compared with those of the
            board, data is not prepared, or the evaluation fails.
    """
    with board.claimed(name) as place:
        subject = make(place)
        if subject is None:
            return None
        arguments = subject.arguments(settings.model_args)
        kept = _kept(board, name, subject, settings, show)
        missing = [task for task in settings.tasks if task not in kept]
        found = standing(board)
        _refuse_taken(board, name, found)
        row = Row(name, [task for task in settings.tasks if task in kept], missing)
        if missing:
            opened = lmms.open_tasks(missing)
            conditions = {} if found is None or board.apart else {t.name: t.conditions for t in found.tasks}
            for task in missing:
                _refuse_other(task, conditions.get(task, {}), _planned(opened[task], settings.limit))
            board.save()
            said = f"{name}: {len(missing)} of {len(settings.tasks)} tasks to score"
            show.say(f"{said}, kept {', '.join(row.kept)}" if row.kept else said)
            _evaluate(_Work(board.of(name), subject, settings, arguments, conditions), opened, show)
    return row


def _kept(
    board: BoardFolder, name: str, subject: Subject, settings: Settings, show: Show
) -> dict[str, manifest.Manifest]:
    """The intact results of a row, by task; damaged ones are removed.

    Raises:
        HarnessError: they are another checkpoint's, or were measured otherwise than is asked for.
    """
    kept: dict[str, manifest.Manifest] = {}
    hashes = subject.hashes() if board.tasks_of(name) else {}
    for folder in board.tasks_of(name):
        if not manifest.is_intact(folder):
            show.say(f"{folder} is damaged: evaluated again")
            shutil.rmtree(folder)
            continue
        found = kept[folder.name] = manifest.read(folder, "scores")
        if (theirs := _hashes(found)) != hashes:
            other = next(role for role in {**theirs, **hashes} if theirs.get(role) != hashes.get(role))
            raise HarnessError(
                f"the board has a row {name!r} of another checkpoint: {folder} was made from another {other}",
                f"Give another name with --name, or remove {folder.parent}",
            )
        if folder.name in settings.tasks:
            _refuse_mixture(found, name, settings)
    return kept


def _hashes(found: manifest.Manifest) -> dict[str, str]:
    """Role -> what tells the weights that were scored, as `Subject.hashes`."""
    named = dict(part.partition("=")[::2] for part in str(found.config["model_args"]).split(","))
    roles: dict[str, str] = {
        role: found.inputs[role]["sha256"] for role in ("model", "adapter") if role in found.inputs
    }
    return {"model": named.get("pretrained", "")} | roles


def _refuse_mixture(found: manifest.Manifest, name: str, settings: Settings) -> None:
    """Refuses to go on with a row under other settings than it was begun with."""
    differing = settings.differing(found.config)
    scorers = found.notes["tasks"][found.folder.name].get("scorers", {})
    differing += [
        f"{SCORER} {one}: {version} -> {VERSIONS[one]}"
        for one, version in scorers.items()
        if one in VERSIONS and VERSIONS[one] != version
    ]
    for role, path in prepared.inputs([found.folder.name]).items():
        if role in found.inputs and manifest.fingerprint(path) != found.inputs[role]["sha256"]:
            differing.append(f"{role} has been prepared anew")
    if differing:
        raise HarnessError(
            f"the row {name!r} has {found.folder.name} under other settings: {'; '.join(differing)}",
            f"Give those again, or another --name, or remove {found.folder}",
        )


def _refuse_taken(board: BoardFolder, name: str, found: "Board | None") -> None:
    """Refuses a name that a result from elsewhere has."""
    home = board.of(name).resolve()
    boards = [] if found is None else [found, *(one.board for one in found.apart)]
    for row in (row for one in boards for row in one.rows if row.name == name):
        if strangers := [folder for folder in row.folders if folder.resolve().parent != home]:
            raise HarnessError(
                f"the board has a row {name!r} already, from {strangers[0]}", "Give another --name"
            )


def _planned(task: lmms.Task, limit: int | None) -> dict[str, object]:
    """What a result will have been measured under, as far as it is known before; named as on a board."""
    given = task.config.generation_kwargs or {}
    generation = {f"generation argument {key}": value for key, value in given.items()}
    scorers = {f"{SCORER} {name}": version for name, version in VERSIONS.items()}
    return {"task version": task.VERSION, **scorers, "limit": limit, **generation}


def _refuse_other(task: str, standing_: Mapping[str, object], planned: Mapping[str, object]) -> None:
    """Refuses to measure what could not be compared with the rows that are there.

    Raises:
        HarnessError: says in what it would differ.
    """
    for condition, ours in planned.items():
        if condition in standing_ and standing_[condition] != ours:
            raise HarnessError(
                f"this could not be compared with the board's rows: {task} would have the {condition} "
                f"{ours!r}, and has {standing_[condition]!r} there",
                "Score it as they were, or add --apart to show it in a table of its own",
            )


@dataclass(frozen=True)
class _Work:
    """What is evaluated, and where to: see `score`."""

    home: Path
    subject: Subject
    settings: Settings
    arguments: str
    conditions: Mapping[str, Mapping[str, object]]

    def open(self, tasks: Mapping[str, lmms.Task]) -> lmms.Model:
        """Loads the model; refuses one whose pixel limits or checkpoint's settings differ from the rows'."""
        model = lmms.open_model(self.settings.model, self.arguments)
        seen = {f"pixel limit {k}": v for k, v in (evaluation.pixels(model) or {}).items() if v is not None}
        for name, task in tasks.items():
            there = self.conditions.get(name)
            if there is None:
                continue
            _refuse_other(name, there, seen)
            given = lmms.generation_settings(model, task).get("generation_from_checkpoint", {})
            ours = {f"{SETTING} {key}": value for key, value in given.items()}
            for key in [key for key in {**there, **ours} if key.startswith(SETTING)]:
                _refuse_other(name, {key: there.get(key, "unset")}, {key: ours.get(key, "unset")})
        if hasattr(model, "keep_loaded"):
            model.keep_loaded = True
        return model


def _evaluate(work: _Work, opened: Mapping[str, Any], show: Show) -> None:
    """Evaluates task by task, so that one that is done stays whatever happens to the next."""
    name, origin, model = work.home.name, work.subject.origin, None
    recorded = work.settings.recorded(work.arguments)
    try:
        for number, (task, loaded) in enumerate(opened.items(), start=1):
            output = work.home / task
            with show.stage(f"{task} {number}/{len(opened)}") as report:
                model = model or work.open(opened)
                evaluation.evaluate(
                    model,
                    {task: loaded},
                    output,
                    name,
                    recorded,
                    work.settings.limit,
                    report,
                    work.subject.inputs() | prepared.inputs([task]),
                    {} if origin is None else {"checkpoint": origin.told(output)},
                )
            if not hasattr(model, "keep_loaded"):  # lmms-eval has taken its weights away
                model = None
    finally:
        if model is not None:
            if hasattr(model, "keep_loaded"):
                model.keep_loaded = False
            model.clean()


def build(board: BoardFolder, show: Show) -> "Built":
    """Makes a board's leaderboard from all its results, and puts it in place of the one that is there.

    Raises:
        HarnessError: it cannot be made; the one that is there stays.
    """
    from dcsft_harness.leaderboard import Options
    from dcsft_harness.leaderboard import build as make

    with board.changing(), show.stage("leaderboard build") as report:
        board.save()
        known = names_of(standing(board))
        baseline = board.baseline if board.baseline in known else None  # which may be a row to come
        new = board.folder / f".{board.leaderboard.name}.new"
        shutil.rmtree(new, ignore_errors=True)
        try:
            options = Options(baseline=baseline, strict=False, apart=board.apart)
            built = make(board.results(), new, options=options, progress=report)
            board.replace_leaderboard(new)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return built


def told(board: BoardFolder, name: str, built: "Built") -> tuple[str, str]:
    """A row against the baseline: task by task as a table, and in a few words.

    Tasks that stand apart are in a table of their own, with the reason.

    Raises:
        HarnessError: results of the row could not be used.
    """
    from dcsft_harness.leaderboard.report.table import against, brief

    home = board.of(name).resolve()
    for one in built.summary.left_out:
        if one.folder.resolve().parent == home:
            raise HarnessError(
                f"{one.folder} is kept, and is not on the board: {one.reason.rstrip('.')}",
                "--apart shows it in a table of its own",
            )
    summary = built.summary
    parts = [(summary, ""), *((one.summary, f"\napart: {one.reason}\n") for one in summary.apart)]
    has = [(part, why) for part, why in parts if any(line.name == name for line in part.lines)]
    tables = [f"{against(part, name)}{why}" for part, why in has]
    return "\n".join(tables), "; ".join(brief(part, name) + (" (apart)" if why else "") for part, why in has)

"""A training run -> a row for each of its checkpoints, as they are written, and one for its result."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcsft_harness import reading
from dcsft_harness.artifacts import lock, manifest
from dcsft_harness.data.digits import resolve
from dcsft_harness.errors import HarnessError
from dcsft_harness.evaluation.autoeval import BoardFolder, Row, ScoreOptions, Show, score
from dcsft_harness.evaluation.subject import ADAPTER, Origin, Subject, open_subject
from dcsft_harness.leaderboard.board import at_step
from dcsft_harness.training import merging, run_folder

# A training run seen from outside: its complete checkpoints, and whether it is running.


class Divided(HarnessError):
    """A checkpoint whose weights are split into parts."""


@dataclass(frozen=True)
class State:
    """The state of a run."""

    begun: bool  # whether its folder holds anything
    finished: manifest.Manifest | None = None  # the manifest of its result; None if it has not finished
    checkpoints: tuple[Path, ...] = ()  # the complete ones, by step
    running: bool | None = None  # whether its process is at work; None if unknown
    owner: str = ""  # that process, in words
    save_steps: int | None = None  # steps between checkpoints; None if unknown
    steps: int | None = None  # the steps of the whole run; None if unknown

    @property
    def last(self) -> int:
        """The newest complete checkpoint's step, or the finished run's; 0 if there is none."""
        if self.finished is not None and self.steps:
            return self.steps
        return run_folder.step_of(self.checkpoints[-1]) if self.checkpoints else 0


def look(run: Path) -> State:
    """The state of a run of `dcsft train`; an error if the folder is not one from `dcsft train`."""
    state = State(begun=False)
    if not (run / manifest.NAME).is_file() and (run / manifest.UNFINISHED).is_dir():
        state = _unfinished(run / manifest.UNFINISHED)
    if (run / manifest.NAME).is_file():  # perhaps at this moment
        return _finished(run)
    if not state.begun and (run.is_file() or (run.is_dir() and any(run.iterdir()))):
        raise HarnessError(
            f"--watch {run} is not an output folder of `dcsft train`: it has no {manifest.NAME} and no "
            f"{manifest.UNFINISHED}/",
            "Name the --output of the training",
        )
    return state


def _unfinished(folder: Path) -> State:
    settings = _read(folder / lock.RUN)
    if settings and "method" not in settings:
        raise HarnessError(
            f"--watch {folder.parent} holds an unfinished run of another kind", "Name a training's"
        )
    running, found = lock.at_work(folder / lock.OWNER), run_folder.checkpoints(folder)
    state = _read(found[-1] / "trainer_state.json") if found else {}
    return State(
        begun=True,
        checkpoints=tuple(found),
        running=running,
        owner=lock.owner(folder / lock.OWNER),
        save_steps=_whole(state.get("save_steps")),
        steps=_whole(state.get("max_steps")),
    )


def _finished(run: Path) -> State:
    made = manifest.read(run)
    if not run_folder.was_trained(made):
        raise HarnessError(
            f"--watch {run} holds {manifest.indefinite(made.kind)}, not a training run",
            "Name the --output of a training run",
        )
    steps, every = _whole(made.notes.get("steps")), _whole(made.config.get("save_steps"))
    return State(True, made, tuple(run_folder.checkpoints(run)), False, "", every, steps)


def _read(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty if the file is gone or being written."""
    try:
        return dict(reading.json_file(path))
    except (OSError, ValueError, TypeError):
        return {}


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and value >= 1 else None


def pinned(run: Path, checkpoint: Path, place: Path, base: str | None) -> Subject | None:
    """A checkpoint of an unfinished run, linked into `place` so that the run cannot remove it.

    `checkpoint` is a complete one in the unfinished folder of `run`; `base` is an adapter's, if not the one
    that its configuration names. None if the run has removed it before it was linked completely, or has
    finished meanwhile.

    Raises:
        Divided: it holds no weights that can be loaded.
        HarnessError: the base is not the run's, or the disk is full.
    """
    settings = _read(run / manifest.UNFINISHED / lock.RUN)
    ledger = _read(checkpoint / run_folder.COMPLETE).get("ledger")
    target = place / checkpoint.name
    identity = _taken(run, checkpoint, target)
    if identity is None:
        return None
    if not [*target.glob("model*.safetensors"), *target.glob("adapter_model.safetensors")]:
        raise Divided(
            f"{checkpoint} has sharded weights: the run divides them among its processes",
            "Only its final weights can be scored",
        )
    kind = "adapter" if (target / ADAPTER).is_file() else "checkpoint"
    costs = ledger if isinstance(ledger, Mapping) else {}
    origin = Origin(run.resolve(), kind, run_folder.step_of(checkpoint), identity, costs)
    if kind == "checkpoint":
        if base is not None:
            raise HarnessError(f"--base {base}: {run} trains all parameters", "Leave it out")
        return Subject(str(target), origin=origin)
    return Subject(_base(run, target, settings, base), target, origin)


def _taken(run: Path, checkpoint: Path, target: Path) -> str | None:
    """Links a checkpoint under a second name; returns its run's identity, or None if it was incomplete."""
    complete = checkpoint / run_folder.COMPLETE
    try:
        identity = run_folder.identity(run)
        run_folder.link(checkpoint, target)
    except (OSError, HarnessError) as error:  # shutil.Error, for several files, is an OSError too
        if complete.is_file() and not (run / manifest.NAME).is_file():
            raise HarnessError(
                f"{checkpoint} cannot be linked to {target}: {error}",
                "Name a --board on the run's own disk, or free some space",
            ) from error
        return None
    # A run removes a checkpoint's mark first, and writes its manifest before it removes all of them.
    return identity if complete.is_file() and not (run / manifest.NAME).is_file() else None


def _base(run: Path, adapter: Path, settings: Mapping[str, Any], base: str | None) -> str:
    """The base whose adapter a run trains; it must be where the adapter's configuration says, unchanged."""
    found = merging.find_base(adapter, None, None if base is None else resolve(base)).name
    wanted = settings.get("content of model")
    if wanted is None:
        return found
    if not Path(found).is_dir():
        raise HarnessError(
            f"the base that {run} trains on is not at {found}", "Pass its location with --base"
        )
    if not manifest.fingerprint(Path(found)).startswith(str(wanted)):
        raise HarnessError(f"{found} is not the base that {run} trains on", "Pass that one with --base")
    return found


# Its checkpoints -> rows of a board.


def watch(board: BoardFolder, folder: Path, name: str, options: ScoreOptions, show: Show) -> Iterator[Row]:
    """Scores a run's complete checkpoints until it has ended; yields each row with its results.

    The run's output `folder` need not exist yet. `name` is the row of its result; rows of its checkpoints add
    their step. The leaderboard is not rebuilt.

    Raises:
        HarnessError: see `score` and `look`; the run ends without a checkpoint, or is replaced by another.
    """
    watching = _Watching(board, folder, name, options, show)
    while True:
        state = look(folder)
        watching.refuse(state)
        if (due := watching.due(state)) is not None:
            if (row := watching.take(state, due)) is not None:
                yield row
            continue
        watching.report_missing(state)
        if state.finished is not None:
            break
        if watching.over(state):
            return
        time.sleep(options.every)
    result = open_subject(str(folder), options.base)
    row = score(board, name, lambda _: result, options, show)
    assert row is not None
    yield row


@dataclass
class _Watching:
    """The state of a run from earlier checks."""

    board: BoardFolder
    folder: Path
    name: str
    options: ScoreOptions
    show: Show
    done: set[int] = field(default_factory=set)  # steps that were scored, or cannot be
    said: set[str] = field(default_factory=set)  # sentences already reported
    identity: str = ""  # identifies the run; "" until it has begun
    pace: int | None = None  # the steps between checkpoints at the last check
    last: int = 0  # the newest checkpoint's step then
    paced_from: int = 0  # the step from which that pace holds: a resumed run may have another

    def once(self, text: str) -> None:
        """Reports a sentence, unless it has been reported before."""
        if text not in self.said:
            self.said.add(text)
            self.show.say(text)

    def refuse(self, state: State) -> None:
        """Refuses a run other than the one that the board has rows of, or that the watch began with."""
        unfinished = self.folder / manifest.UNFINISHED / lock.RUN
        if not state.begun or (state.finished is None and not unfinished.is_file()):
            return
        found = run_folder.identity(self.folder)
        if found == self.identity:
            return
        if self.identity:
            raise HarnessError(
                f"--watch {self.folder} holds a different run than before", "Use another board or --name"
            )
        self.identity = found
        for row in self.board.names():
            noted = (made := manifest.read(self.board.tasks_of(row)[0])).notes.get("checkpoint")
            if noted is None or (made.folder / noted["run"]).resolve() != self.folder.resolve():
                continue
            if noted["identity"] != found:
                raise HarnessError(
                    f"the board's row {row!r} is of another run that used {self.folder}",
                    "Use another board, or remove the folders of that run's rows in its results/",
                )
        if state.finished is None and self.board.tasks_of(self.name):
            raise HarnessError(
                f"the board already has a row {self.name!r}, the name that the final weights of {self.folder}"
                " would have",
                "Use another --name",
            )

    def due(self, state: State) -> Path | None:
        """The next checkpoint to score.

        A run's result has the weights of its last checkpoint, so that checkpoint is skipped.
        """
        ends = state.finished is not None or state.running is not False
        for path in state.checkpoints:
            step = run_folder.step_of(path)
            if step not in self.done and not (ends and step == state.steps):
                return path
        return None

    def take(self, state: State, path: Path) -> Row | None:
        """Scores a checkpoint; reports one that is removed before it is read."""
        step, folder = run_folder.step_of(path), self.folder
        name = at_step(self.name, step)

        def make(place: Path) -> Subject | None:
            if state.finished is not None:
                return open_subject(str(path), self.options.base)
            return pinned(folder, path, place, self.options.base)

        group = self.options.group and at_step(self.options.group, step)
        try:
            row = score(self.board, name, make, self.options.changed(group=group), self.show)
        except Divided as error:
            self.done.add(step)
            self.show.say(str(error))
            return None
        if row is None and (folder / manifest.NAME).is_file():
            return None  # a finishing run may keep its checkpoints elsewhere; they are looked for there
        self.done.add(step)
        if row is None:
            self.show.say(f"{path} was removed before it was read: {_KEEP}")
        return row

    def report_missing(self, state: State) -> None:
        """Reports the steps whose checkpoints were written and removed between two checks."""
        if state.save_steps is None:
            return
        if state.save_steps != self.pace:
            self.pace, self.paced_from = state.save_steps, self.last
        self.last = state.last
        here = {run_folder.step_of(path) for path in state.checkpoints} | self.done
        gone = [
            step
            for step in range(state.save_steps, state.last, state.save_steps)
            if step > self.paced_from and step not in here and not self._is_scored(step)
        ]
        if gone:
            self.done.update(gone)
            steps = f"step {gone[0]}" if len(gone) == 1 else f"the steps {', '.join(map(str, gone))}"
            self.show.say(f"{self.folder} no longer has a checkpoint of {steps}: {_KEEP}")

    def _is_scored(self, step: int) -> bool:
        """Whether the board has all of the suite's tasks of a step."""
        there = {path.name for path in self.board.tasks_of(at_step(self.name, step))}
        return there.issuperset(self.options.tasks)

    def over(self, state: State) -> bool:
        """Whether there is nothing more to wait for; otherwise reports what is awaited.

        A run that has ended without a result is an error.
        """
        folder, stays = self.folder, self.options.stay
        if not state.begun:
            if self.identity and not stays:
                raise HarnessError(f"the run in {folder} ended without a result", "See its own message")
            self.once(f"waiting for training to start in {folder} (Ctrl-C stops watching)")
            return False
        if state.running is False:
            came = f"reached step {state.last}" if state.last else "has no complete checkpoint"
            said = f"{state.owner}, which trained in {folder}, has ended; the unfinished run {came}"
            self.once(f"{said}: waiting for it to be resumed" if stays else f"{said}. --stay waits for more")
            return not stays
        where = f"watching {folder}, in which {state.owner} trains"
        elsewhere = "; whether it is still running cannot be checked from here (Ctrl-C stops watching)"
        self.once(where + (elsewhere if state.running is None and " on " in state.owner else ""))
        return False


_KEEP = "not scored. `dcsft train --keep N` keeps the newest N"

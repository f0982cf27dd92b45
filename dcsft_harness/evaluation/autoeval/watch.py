"""A training run -> a row for each of its checkpoints, as they are written, and one for what it ends with."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.lock import RUN
from dcsft_harness.errors import HarnessError
from dcsft_harness.evaluation.autoeval import runs
from dcsft_harness.evaluation.autoeval.folder import BoardFolder
from dcsft_harness.evaluation.autoeval.score import Row, Show, score
from dcsft_harness.evaluation.autoeval.settings import Settings
from dcsft_harness.evaluation.autoeval.subject import Subject, open_subject
from dcsft_harness.training import run_folder


@dataclass(frozen=True)
class Watched:
    """A run to watch.

    Attributes:
        folder: its output folder; need not be there yet.
        name: the row of what it ends with; those of its checkpoints say their step too.
        base: the base of its adapters, if not where the run says.
        every: seconds between two looks.
        stay: whether to wait for the run to be gone on with when its process has ended.
    """

    folder: Path
    name: str
    base: str | None = None
    every: float = 5.0
    stay: bool = False


def at_step(name: str, step: int) -> str:
    """The name of a checkpoint's row: "SFT at step 20", and of a seed "SFT at step 20 (seed 1)"."""
    from dcsft_harness.leaderboard.board import group_of

    group = group_of(name)
    return f"{name} at step {step}" if group is None else f"{group} at step {step}{name[len(group) :]}"


def watch(board: BoardFolder, watched: Watched, settings: Settings, show: Show) -> Iterator[Row]:
    """Scores a run's complete checkpoints until it has ended.

    Args:
        board: where to.
        watched: the run.
        settings: on what, and how.
        show: what is told meanwhile.

    Yields:
        Each row as soon as its results are there; the leaderboard is not made anew.

    Raises:
        HarnessError: see `score` and `runs.look`; the run ends without a checkpoint, or makes place for
            another one.
    """
    watching = _Watching(board, watched, settings, show)
    while True:
        state = runs.look(watched.folder)
        watching.refuse(state)
        if (due := watching.due(state)) is not None:
            if (row := watching.take(state, due)) is not None:
                yield row
            continue
        watching.tell_missing(state)
        if state.finished is not None:
            yield watching.final()
            return
        if watching.over(state):
            return
        time.sleep(watched.every)


@dataclass
class _Watching:
    """What is known of a run from earlier looks at it.

    Attributes:
        done: steps that were scored, or cannot be.
        said: sentences that were told, each once.
        identity: which run it is; "" until it has begun.
    """

    board: BoardFolder
    watched: Watched
    settings: Settings
    show: Show
    done: set[int] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    identity: str = ""

    def once(self, text: str) -> None:
        """Tells something that has not been told."""
        if text not in self.said:
            self.said.add(text)
            self.show.say(text)

    def refuse(self, state: runs.State) -> None:
        """Refuses a run that is not the one that the board has rows of, or that was begun with."""
        unfinished = self.watched.folder / manifest.UNFINISHED / RUN
        if not state.begun or (state.finished is None and not unfinished.is_file()):
            return
        found = run_folder.identity(self.watched.folder)
        if found == self.identity:
            return
        if self.identity:
            raise HarnessError(
                f"--watch {self.watched.folder} holds another run than before", "Give another board or --name"
            )
        self.identity, name = found, self.watched.name
        for row in self.board.names():
            told = (made := manifest.read(self.board.tasks_of(row)[0])).notes.get("checkpoint")
            if told is None or (made.folder / told["run"]).resolve() != self.watched.folder.resolve():
                continue
            if told["identity"] != found:
                raise HarnessError(
                    f"the board's row {row!r} is of another run that was in {self.watched.folder}",
                    "Give another board, or remove the folders of that run's rows in its results/",
                )
        if state.finished is None and self.board.tasks_of(name):
            raise HarnessError(
                f"the board has a row {name!r}, which would be that of {self.watched.folder} at its end",
                "Give another --name",
            )

    def due(self, state: runs.State) -> Path | None:
        """The first checkpoint that is to be scored now.

        What a run ends with has the weights of its last checkpoint: that one is left to it.
        """
        ends = state.finished is not None or state.running is not False
        for path in state.checkpoints:
            step = run_folder.step_of(path)
            if step not in self.done and not (ends and step == state.steps):
                return path
        return None

    def take(self, state: runs.State, path: Path) -> Row | None:
        """Scores a checkpoint; one that is gone before it is read is told."""
        step, folder = run_folder.step_of(path), self.watched.folder
        name = at_step(self.watched.name, step)

        def make(place: Path) -> Subject | None:
            if state.finished is not None:
                return open_subject(str(path), self.watched.base)
            return runs.pinned(folder, path, place, self.watched.base)

        group = self.settings.group and at_step(self.settings.group, step)
        try:
            row = score(self.board, name, make, replace(self.settings, group=group), self.show)
        except runs.Divided as error:
            self.done.add(step)
            self.show.say(str(error))
            return None
        if row is None and (folder / manifest.NAME).is_file():
            return None  # what finishes may keep its checkpoints, at another place: they are looked for there
        self.done.add(step)
        if row is None:
            self.show.say(f"{path} was removed before it was read: {_KEEP}")
        return row

    def tell_missing(self, state: runs.State) -> None:
        """Tells which steps' checkpoints were written and removed between two looks."""
        if state.save_steps is None:
            return
        here = {run_folder.step_of(path) for path in state.checkpoints} | self.done
        gone = [
            step
            for step in range(state.save_steps, state.last, state.save_steps)
            if step not in here and not self.board.tasks_of(at_step(self.watched.name, step))
        ]
        if gone:
            self.done.update(gone)
            steps = f"step {gone[0]}" if len(gone) == 1 else f"the steps {', '.join(map(str, gone))}"
            self.show.say(f"{self.watched.folder} has no checkpoint of {steps} any more: {_KEEP}")

    def final(self) -> Row:
        """Scores what the run has ended with."""
        subject = open_subject(str(self.watched.folder), self.watched.base)
        row = score(self.board, self.watched.name, lambda _: subject, self.settings, self.show)
        assert row is not None
        return row

    def over(self, state: runs.State) -> bool:
        """Whether there is nothing more to wait for; tells what is waited for.

        Raises:
            HarnessError: the run has ended without leaving anything.
        """
        folder, stays = self.watched.folder, self.watched.stay
        if not state.begun:
            if self.identity and not stays:
                raise HarnessError(
                    f"the run in {folder} has ended and left nothing", "Its own message says why"
                )
            self.once(f"waiting for a training to begin in {folder} (Ctrl-C ends this)")
            return False
        if state.running is False:
            came = f"came to step {state.last}" if state.last else "has no complete checkpoint"
            said = f"{state.owner}, which trained in {folder}, has ended; the unfinished run {came}"
            self.once(f"{said}: waiting for it to be resumed" if stays else f"{said}. --stay waits for more")
            return not stays
        where = f"watching {folder}, in which {state.owner} trains"
        elsewhere = "; whether it still does cannot be told from here (Ctrl-C ends this)"
        self.once(where + (elsewhere if state.running is None and " on " in state.owner else ""))
        return False


_KEEP = "not scored. `dcsft train --keep N` keeps the newest N"

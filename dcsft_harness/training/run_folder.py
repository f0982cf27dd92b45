"""An unfinished training run's folder: locked by one launch at a time, resumed, finished.

    adapter/unfinished/lock                           held by the training process
    adapter/unfinished/owner.json, run.json           that process, and the settings that decide the result
    adapter/unfinished/checkpoint-200/                the trainer's files after step 200
    adapter/unfinished/checkpoint-200/complete.json   written when all of those are on disk

A checkpoint without `complete.json` is incomplete and cannot be resumed.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dcsft_harness import ranks, reading
from dcsft_harness.artifacts import disk, manifest
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.artifacts.lock import RUN, compare, locked, sign
from dcsft_harness.errors import HarnessError
from dcsft_harness.training import card

LOCK, COMPLETE = "lock", "complete.json"
INDIFFERENT = ("save_steps", "keep", "on_error")
"""Settings that do not decide the result, so that a resumed run may change them."""
_FILES, _END = "files", 2**20
_LAUNCH = ("processes", "sharding")
CURVES = "runs"
"""TensorBoard's folder below the trainer's folder, set by transformers."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_RESUMING = ("optimizer*", "scheduler.pt", "rng_state*", "training_args.bin", "trainer_state.json", COMPLETE)
"""Files of a checkpoint that only an interrupted run needs, by pattern."""


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    found = _CHECKPOINT.fullmatch(checkpoint.name)
    return int(found[1]) if found else 0


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in an unfinished or finished folder, by step."""
    finished = (folder / manifest.NAME).is_file()
    found = [path for path in folder.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)]
    return sorted((path for path in found if finished or (path / COMPLETE).is_file()), key=step_of)


def identity(output: Path) -> str:
    """A hash of what decides a run's weights: the same while it runs and after it has finished.

    Raises:
        HarnessError: the folder has no run, or one with unreadable settings.
    """
    path, settings = output / manifest.UNFINISHED / RUN, None
    if not (output / manifest.NAME).is_file():
        with contextlib.suppress(FileNotFoundError):  # it may finish at this moment
            try:
                settings = dict(reading.json_file(path))
            except (ValueError, TypeError) as error:
                raise HarnessError(f"{path} cannot be read ({error})", "Check the folder") from error
    if settings is None:
        found = manifest.read(output)
        contents = {f"content of {role}": entry["sha256"][:16] for role, entry in found.inputs.items()}
        settings = {**found.config, **contents}
    return json_sha256({k: v for k, v in settings.items() if k not in (*INDIFFERENT, *_LAUNCH)})


class RunFolder:
    """The folder of this process's run; created by `opened`."""

    def __init__(self, output: Path) -> None:
        """Uses the output folder; its `unfinished/` belongs to the trainer."""
        self._output = output
        self.folder = output / manifest.UNFINISHED

    @property
    def last(self) -> Path | None:
        """The newest complete checkpoint."""
        return next(reversed(checkpoints(self.folder)), None)

    def complete(self, step: int, told: Mapping[str, Any], keep: int) -> None:
        """Marks the checkpoint of a step as complete, once it is on disk, and removes the oldest ones.

        Args:
            step: the step.
            told: state to resume from, besides the trainer's own files.
            keep: the number of checkpoints to keep.
        """
        folder = self.folder / f"checkpoint-{step}"
        for path in (folder, *folder.rglob("*")):
            disk.sync(path)
        kept = {_FILES: _samples(folder), **told}
        disk.write_text(folder / COMPLETE, json.dumps(kept) + "\n")
        for old in checkpoints(self.folder)[:-keep]:
            (old / COMPLETE).unlink()  # first, so that a half-removed one is never resumed
            shutil.rmtree(old)

    def told(self) -> dict[str, Any]:
        """The state stored with the newest complete checkpoint.

        Raises:
            HarnessError: it cannot be read, or the checkpoint's files have changed since.
        """
        assert self.last is not None
        remedy = f"Remove {self.last} to go on before it"
        try:
            found = dict(reading.json_file(self.last / COMPLETE))
            kept = dict(found.pop(_FILES, {}))
        except (OSError, ValueError, TypeError) as error:
            raise HarnessError(f"{self.last / COMPLETE} cannot be read ({error})", remedy) from error
        now = _samples(self.last)
        for name in kept:
            if now.get(name) != kept[name]:
                raise HarnessError(f"{self.last / name} is not what was saved: it was changed later", remedy)
        return found

    @contextlib.contextmanager
    def finishing(
        self, kind: str, config: Mapping[str, Any], inputs: Mapping[str, Path], seconds: float, keep: int
    ) -> Iterator[manifest.Draft]:
        """Finishes the artifact: the block fills the draft's folder, which then replaces this one.

        The newest `keep` checkpoints, without the files that only an interrupted run needs, and the curves
        move too.
        """
        folder = self.folder / "draft"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            draft = manifest.Draft(folder)
            yield draft
            for checkpoint in checkpoints(self.folder)[::-1][:keep]:
                # Copied, not moved: a process that is killed here can still resume from the last one.
                link(checkpoint, folder / checkpoint.name)
            if (self.folder / CURVES).is_dir():
                shutil.copytree(self.folder / CURVES, folder / CURVES)
            sources = {role: path.resolve() for role, path in inputs.items()}
            manifest.seal(kind, draft, self._output.resolve(), dict(config), sources, seconds)
            card.write(folder, place=self._output.resolve())
            disk.move_up(folder, self._output, last=manifest.NAME)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _samples(checkpoint: Path) -> dict[str, str]:
    """File name -> a hash of its size and both ends: hashing an optimizer's states would take minutes."""
    found = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != COMPLETE:
            size = path.stat().st_size
            with path.open("rb") as file:
                ends = hashlib.sha256(f"{size} ".encode() + file.read(_END))
                file.seek(max(_END, size - _END))
                ends.update(file.read(_END))
            found[str(path.relative_to(checkpoint))] = ends.hexdigest()
    return found


def link(checkpoint: Path, target: Path) -> None:
    """Links the files that loading a checkpoint needs under a second name, so that they outlive the first."""
    skip = shutil.ignore_patterns(*_RESUMING)
    shutil.copytree(checkpoint, target, ignore=skip, copy_function=_linked)


def _linked(source: str, target: str) -> None:
    """A hard link to a file, or a copy if the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def opened(output: Path, identity: Mapping[str, Any]) -> Iterator[RunFolder]:
    """Opens an output folder for this launch.

    However the block ends, complete checkpoints remain; a folder without any is removed.

    Args:
        output: a new or empty folder, or one from an interrupted run; training resumes from its newest
            complete checkpoint, if there is one.
        identity: the settings that decide the result, by name; JSON values.

    Raises:
        HarnessError: another process uses the folder, or it has other files or a run with other settings.
    """
    run = RunFolder(output)
    with contextlib.ExitStack() as stack:
        with ranks.agreed():
            if ranks.rank() == 0:
                _take(run, output, identity, stack)
        with ranks.agreed():
            if not (run.folder / RUN).is_file():
                raise HarnessError(
                    f"rank {ranks.rank()} does not find in --output {output} what rank 0 has written there",
                    "Name a folder on a file system that all machines share",
                )
        yield run


def refuse_taken(output: Path) -> None:
    """Refuses an output folder in which a run can neither begin nor resume.

    Raises:
        HarnessError: it holds a finished artifact or other files.
    """
    folder = output / manifest.UNFINISHED
    if (output / manifest.NAME).is_file() or not folder.is_dir():
        manifest.refuse_occupied(output)


def _take(run: RunFolder, output: Path, identity: Mapping[str, Any], stack: contextlib.ExitStack) -> None:
    refuse_taken(output)
    there = output.is_dir()
    run.folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(locked(run.folder / LOCK, output))
    refuse_taken(output)  # a process that finished meanwhile has released the lock
    stack.callback(_tidy, run, output, there)
    sign(run.folder)
    if run.last is None:
        (run.folder / RUN).unlink(missing_ok=True)  # of a run without a checkpoint to resume from
    compare(run.folder, output, identity)
    for path in run.folder.glob("checkpoint-*"):
        if path not in checkpoints(run.folder):
            shutil.rmtree(path)  # incomplete


def _tidy(run: RunFolder, output: Path, there: bool) -> None:
    """Removes a finished run's working files, or a run without a checkpoint; also the folder if it is new."""
    finished = (output / manifest.NAME).is_file()
    if finished or run.last is None:
        shutil.rmtree(run.folder, ignore_errors=True)
        if not (finished or there):
            with contextlib.suppress(OSError):
                output.rmdir()

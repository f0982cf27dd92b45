"""An unfinished training run's folder: locked by one launch at a time, resumed, finished.

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
from dcsft_harness.artifacts import disk, manifest, resuming, usage
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.artifacts.lock import RUN
from dcsft_harness.errors import HarnessError
from dcsft_harness.training import hub

COMPLETE, LOG = "complete.json", "training_log.jsonl"
INDIFFERENT = ("save_steps", "keep", "on_error", "micro_batch_size")
"""Settings that do not decide the result, so that a resumed run may change them.

Only the masks of dropout depend on `micro_batch_size`.
"""
FOUND = ("skipped", "scorers", resuming.PRECISION)
"""What a run finds out besides its settings; once it has finished, its notes have it."""
_DTYPES = ("auto", "float32", "bfloat16")
_FILES, _END = "files", 2**20
_LAUNCH = ("processes", "sharding")
CURVES = "runs"
"""TensorBoard's folder below the trainer's folder, set by transformers."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
TRAINED = ("adapter", "checkpoint")
"""The kinds of artifacts that training makes."""
_RESUMING = ("optimizer*", "scheduler.pt", "rng_state*", "training_args.bin", "trainer_state.json", COMPLETE)
"""Files of a checkpoint that only an interrupted run needs, by pattern."""


def was_trained(found: manifest.Manifest) -> bool:
    """Whether training made an artifact; `dcsft merge` makes checkpoints too."""
    return found.kind in TRAINED and "method" in found.config


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    found = _CHECKPOINT.fullmatch(checkpoint.name)
    return int(found[1]) if found else 0


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in an unfinished or finished folder, by step."""
    finished = (folder / manifest.NAME).is_file()
    found = [path for path in folder.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)]
    return sorted((path for path in found if finished or (path / COMPLETE).is_file()), key=step_of)


def history(run: Path) -> tuple[dict[str, Any], ...]:
    """The numbers of a finished run's log, one row per step; empty without a log.

    Lines that are no such row are skipped: the last one may be incomplete in a copy of a running training.
    """
    if not (run / LOG).is_file():
        return ()
    rows = []
    for line in (run / LOG).read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            row = reading.from_json(line)
            if isinstance(row, dict) and usage.is_number(row.get("step")):
                rows.append({name: value for name, value in row.items() if usage.is_number(value)})
    return tuple(rows)


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
    return json_sha256({k: v for k, v in settings.items() if k not in (*INDIFFERENT, *FOUND, *_LAUNCH)})


def asked_dtype(output: Path, precision: str) -> str | None:
    """The `--dtype` that an unfinished run began with, if it began in this precision; else None.

    `auto` and the type that it resolves to are one run, with the settings of its beginning.
    """
    with contextlib.suppress(OSError, ValueError, TypeError):  # which `opened` explains
        before = dict(reading.json_file(output / manifest.UNFINISHED / RUN))
        if before.get(resuming.PRECISION) == precision and before.get("dtype") in _DTYPES:
            return str(before["dtype"])
    return None


class RunFolder:
    """The folder of this process's run; created by `opened`."""

    def __init__(self, output: Path, kind: str) -> None:
        """Uses the output folder of this kind of artifact; its `unfinished/` belongs to the trainer."""
        self._output, self._kind = output, kind
        self.folder = output / manifest.UNFINISHED

    @property
    def last(self) -> Path | None:
        """The newest complete checkpoint."""
        return next(reversed(checkpoints(self.folder)), None)

    def complete(self, step: int, state: Mapping[str, Any], keep: int) -> None:
        """Marks the checkpoint of a step as complete, once it is on disk, and keeps only the newest `keep`.

        `state` is what to resume from, besides the trainer's own files.
        """
        folder = self.folder / f"checkpoint-{step}"
        for path in (folder, *folder.rglob("*")):
            disk.sync(path)
        kept = {_FILES: _samples(folder), **state}
        disk.write_text(folder / COMPLETE, json.dumps(kept) + "\n")
        for old in checkpoints(self.folder)[:-keep]:
            (old / COMPLETE).unlink()  # first, so that a half-removed one is never resumed
            shutil.rmtree(old)

    def state(self) -> dict[str, Any]:
        """The state stored with the newest complete checkpoint; an error if its files changed or are bad."""
        assert self.last is not None
        remedy = f"Remove {self.last} to resume from the one before"
        try:
            found = dict(reading.json_file(self.last / COMPLETE))
            kept = dict(found.pop(_FILES, {}))
        except (OSError, ValueError, TypeError) as error:
            raise HarnessError(f"{self.last / COMPLETE} cannot be read ({error})", remedy) from error
        now = _samples(self.last)
        for name in kept:
            if now.get(name) != kept[name]:
                raise HarnessError(f"{self.last / name} was changed after it was saved", remedy)
        return found

    @contextlib.contextmanager
    def finishing(
        self, config: Mapping[str, Any], inputs: Mapping[str, Path], seconds: float, keep: int
    ) -> Iterator[manifest.Draft]:
        """Finishes the artifact: the block fills the draft's folder, which then replaces this one.

        The newest `keep` checkpoints, without the files that only an interrupted run needs, and the curves
        move too.
        """
        finished = manifest.drafted(self._kind, self._output, config, inputs, lambda: seconds, hub.write_card)
        with finished as draft:
            yield draft
            for checkpoint in checkpoints(self.folder)[::-1][:keep]:
                # Copied, not moved: a process that is killed here can still resume from the last one.
                link(checkpoint, draft.folder / checkpoint.name)
            if (self.folder / CURVES).is_dir():
                shutil.copytree(self.folder / CURVES, draft.folder / CURVES)


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
def opened(output: Path, kind: str, identity: Mapping[str, Any]) -> Iterator[RunFolder]:
    """Opens an output folder for this launch; see `resuming.resumed`.

    Training resumes from its newest complete checkpoint, if there is one.

    Raises:
        HarnessError: another process uses the folder, or it has other files or a run with other settings.
    """
    with resuming.resumed(output, kind, identity, checkpoints) as folder:
        with ranks.agreed():
            for path in folder.glob("checkpoint-*") if ranks.rank() == 0 else ():
                if path not in checkpoints(folder):
                    shutil.rmtree(path)  # incomplete
        yield RunFolder(output, kind)

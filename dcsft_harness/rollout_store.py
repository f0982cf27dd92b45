"""An unfinished rollouts folder: one process's at a time, compared with the settings, gone on with, finished.

    rollouts/unfinished/lock            held by the process that samples; lets go when that dies
    rollouts/unfinished/owner.json      which process that is
    rollouts/unfinished/run.json        the settings that decide every response
    rollouts/unfinished/shard-0.jsonl   the responses so far, see `shard`

A folder is an artefact from the moment its manifest is in place, and not before; `unfinished/` goes last.
"""

import contextlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dcsft_harness import durable, manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.shard import Shard, read

RUN, OWNER, LOCK, SHARD = "run.json", "owner.json", "lock", "shard-0.jsonl"
FORMAT = 1
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draw:
    """One response as it is kept until the run is finished; scores are made then.

    Attributes:
        item_id, sample_index, response, n_tokens, finish_reason, seed: see `records.Rollout`.
        n_prompt_tokens: tokens of prompt and images together.
        seconds: its share of the wall-clock time of its batch.
    """

    item_id: str
    sample_index: int
    response: str
    n_prompt_tokens: int
    n_tokens: int
    finish_reason: str
    seed: int
    seconds: float


class RolloutStore:
    """The responses of one run, on disk; made by `opened`.

    Attributes:
        kept: (item_id, sample_index) -> the response, of this process and of those before it.
        resumed: how many of them those before it had kept.
        damaged: how many lines of the shard were unreadable; their responses are drawn again.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any]) -> None:
        """Reads what is kept; the folder must be locked by this process.

        Raises:
            HarnessError: it holds a run with other settings, or a run that cannot be read.
            OSError: it cannot be written.
        """
        self._output, self._folder = output, output / manifest.UNFINISHED
        self._started = self._last = time.monotonic()
        _compare(output, identity)
        key = manifest.json_sha256([FORMAT, identity]).encode()
        found = read(self._folder / SHARD, key)
        self.damaged = len(found.damaged)
        if found.damaged:
            lines = ", ".join(map(str, found.damaged[:10]))
            _LOG.warning("%s: damaged at line %s; drawn again", self._folder / SHARD, lines)
        self.kept = self._without_contradictions(Draw(**record) for record in found.records)
        self.resumed, self._before = len(self.kept), sum(draw.seconds for draw in self.kept.values())
        self._shard = Shard(self._folder / SHARD, key, found.whole_bytes)

    def _without_contradictions(self, draws: Iterable[Draw]) -> dict[tuple[str, int], Draw]:
        """Draws by item and sample; one that stands there twice, with two texts, is not kept."""
        kept: dict[tuple[str, int], Draw] = {}
        disputed: set[tuple[str, int]] = set()
        for draw in draws:
            place = (draw.item_id, draw.sample_index)
            if place in kept and kept[place].response != draw.response:
                _LOG.warning("%s: two responses to item %s, sample %d; drawn again", self._folder, *place)
                disputed.add(place)
            kept[place] = draw
        return {place: draw for place, draw in kept.items() if place not in disputed}

    @property
    def seconds(self) -> float:
        """Wall-clock time that the run has taken, that of the processes before this one included."""
        return self._before + time.monotonic() - self._started

    @property
    def generation_seconds(self) -> float:
        """The part of it in which the responses were generated."""
        return sum(draw.seconds for draw in self.kept.values())

    def begin(self) -> None:
        """Starts the clock of the first batch."""
        self._last = time.monotonic()

    def append(self, batch: Iterable[Mapping[str, Any]]) -> None:
        """Keeps a finished batch: on the disk when this returns.

        Args:
            batch: `Draw`'s fields without the seconds.

        Raises:
            HarnessError: the disk takes no more; says how many responses are kept.
        """
        rows = list(batch)
        now = time.monotonic()
        seconds = (now - self._last) / max(len(rows), 1)
        draws = [Draw(**row, seconds=round(seconds, 6)) for row in rows]
        with self._telling():
            self._shard.append(map(vars, draws))
        self.kept.update({(draw.item_id, draw.sample_index): draw for draw in draws})
        self._last = now

    @contextlib.contextmanager
    def finishing(self, config: Mapping[str, Any], inputs: Mapping[str, Path]) -> Iterator[manifest.Draft]:
        """Makes the finished artefact: the block fills the draft's folder, then it takes this one's place.

        Args:
            config: the settings that the manifest records.
            inputs: role -> folder or file that the work read.

        Raises:
            HarnessError: the disk takes no more; every response is still kept.
        """
        folder = self._folder / "draft"
        with self._telling():
            try:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                draft = manifest.Draft(folder)
                yield draft
                sources = {role: path.resolve() for role, path in inputs.items()}
                manifest.seal("rollouts", draft, self._output.resolve(), dict(config), sources, self.seconds)
                durable.move_up(folder, self._output, last=manifest.NAME)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _telling(self) -> contextlib.AbstractContextManager[None]:
        return manifest.telling_refusals("rollouts", self._output, self.told)

    @property
    def told(self) -> str:
        """What an error says of what is kept."""
        return f"{len(self.kept)} responses are kept, and the same command goes on from them"

    def close(self) -> None:
        """Closes the shard."""
        self._shard.close()


@contextlib.contextmanager
def opened(output: Path, identity: Mapping[str, Any]) -> Iterator[RolloutStore]:
    """Takes an output folder for this process and opens what is kept there.

    Whatever ends the block, the responses stay; a folder without any is removed again.

    Args:
        output: a new or empty folder, or one that an interrupted run left.
        identity: the settings that decide every response, by name; values are text, numbers or None.

    Raises:
        HarnessError: another process has the folder, it holds something else or a run with other
            settings, or it cannot be written.
    """
    refuse_taken(output)
    there = output.is_dir()
    with contextlib.ExitStack() as stack:
        with manifest.telling_refusals("rollouts", output, "nothing was changed"):
            (output / manifest.UNFINISHED).mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(output))
            refuse_taken(output)  # a process that finished meanwhile has let go of the lock
            stack.callback(_tidy, output, there)
            me = {"pid": os.getpid(), "host": socket.gethostname()}
            (output / manifest.UNFINISHED / OWNER).write_text(json.dumps(me) + "\n", encoding="utf-8")
            store = stack.enter_context(contextlib.closing(RolloutStore(output, identity)))
        try:
            yield store
        except HarnessError as error:
            if not store.kept or store.told in error.remedy:
                raise
            remedy = f"{error.remedy}; {store.told}" if error.remedy else store.told.capitalize()
            raise HarnessError(error.problem, remedy) from error


def refuse_taken(output: Path) -> None:
    """Refuses an output folder in which a run can neither begin nor go on.

    Raises:
        HarnessError: it holds a finished run, or files that are no unfinished run's.
    """
    if (output / manifest.NAME).is_file():
        _tidy(output, there=True)  # a process may have been killed between the manifest and this
    if (output / manifest.NAME).is_file() or not (output / manifest.UNFINISHED).is_dir():
        manifest.refuse_occupied(output)
        return
    # What a process that was killed while it finished may have moved up already.
    strange = {path.name for path in output.iterdir()} - {manifest.UNFINISHED, "rollouts.parquet", "items"}
    if strange:
        raise HarnessError(
            f"--output {output} holds {sorted(strange)[0]} beside its unfinished rollouts",
            "Move it elsewhere",
        )


def _tidy(output: Path, there: bool) -> None:
    """Removes what a finished run worked with, or a run without a response; and the folder if it is new."""
    folder, finished = output / manifest.UNFINISHED, (output / manifest.NAME).is_file()
    if finished or not (folder / SHARD).is_file() or (folder / SHARD).stat().st_size == 0:
        shutil.rmtree(folder, ignore_errors=True)
        if not (finished or there):
            with contextlib.suppress(OSError):
                output.rmdir()


def discard(output: Path) -> None:
    """Removes an unfinished run.

    Raises:
        HarnessError: a process is at work on it.
    """
    with _locked(output):
        shutil.rmtree(output)


class _Lock(FileLock):
    """A class of its own: lmms-eval makes plain file locks reentrant, which would let a second run in."""


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Holds the folder's lock, which the operating system takes back from a process that dies.

    Raises:
        HarnessError: another process holds it; says which.
    """
    folder = output / manifest.UNFINISHED
    try:
        with _Lock(folder / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise HarnessError(
            f"--output {output} is being written by {_owner(folder / OWNER)}",
            "Wait for it, stop it, or name another folder",
        ) from error


def _owner(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        here = found["host"] == socket.gethostname()
        return f"process {found['pid']}" if here else f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process, which began this moment"


def _compare(output: Path, identity: Mapping[str, Any]) -> None:
    """Writes a new run's settings, or compares those of the run that is there.

    Raises:
        HarnessError: they differ, or cannot be read.
    """
    path = output / manifest.UNFINISHED / RUN
    if not path.is_file():
        # A shard that lost its settings is read if it is this run's, and else damaged: its key tells.
        durable.write_text(path, json.dumps(identity, indent=2) + "\n")
        for folder in (output, output.resolve().parent):
            durable.sync(folder)
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise HarnessError(f"{path} cannot be read ({error})", f"Remove {output} to start anew") from error
    differences = [
        f"{name}: {before.get(name, 'none')} -> {identity.get(name, 'none')}"
        for name in dict.fromkeys([*before, *identity])
        if before.get(name) != identity.get(name)
    ]
    if differences:
        raise HarnessError(
            f"--output {output} holds unfinished rollouts with other settings: {'; '.join(differences)}",
            "Name another folder, go back to those settings, or remove this folder",
        )

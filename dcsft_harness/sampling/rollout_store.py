"""An unfinished folder of sampled responses: one run's, compared with the settings, resumed, finished.

`dcsft sample` makes rollouts of it, `dcsft evaluate --samples` scores.

    rollouts/unfinished/lock            held by the process that samples; lets go when that dies
    rollouts/unfinished/owner.json      which process that is
    rollouts/unfinished/run.json        the settings that decide every response
    rollouts/unfinished/shard-0.jsonl   the responses so far, see `shard`
    rollouts/unfinished/shard-1.jsonl   and those of rank 1 in a launch of several, which holds lock-1

A folder is an artefact from the moment its manifest is in place, and not before; `unfinished/` goes last.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsft_harness import ranks
from dcsft_harness.artifacts import disk, manifest
from dcsft_harness.artifacts.disk import Journal, json_sha256, read_records
from dcsft_harness.artifacts.lock import RUN, compare, locked, sign
from dcsft_harness.errors import HarnessError, telling_refusals

LOCK, SHARD, SHARDS = "lock", "shard-0.jsonl", "shard-*.jsonl"
FORMAT = 1
FINISHED = ("rollouts.parquet", "items", "scores.parquet", "responses.parquet", "lmms_eval.json")
"""What a finished folder holds beside its manifest."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draw:
    """One response as it is kept until the run is finished; scores are made then.

    Attributes:
        item_id, sample_index, response, n_tokens, finish_reason, seed: see `records.Rollout`.
        n_prompt_tokens: tokens of prompt and images together.
        seconds: its share of the wall-clock time of its batch.
        flops: see `lmms.generation.Generation`.
    """

    item_id: str
    sample_index: int
    response: str
    n_prompt_tokens: int
    n_tokens: int
    finish_reason: str
    seed: int
    seconds: float
    flops: float | None = None


class RolloutStore:
    """The responses of one run, on disk; made by `opened`.

    Attributes:
        kept: (item_id, sample_index) -> the response, of this process and of those before it.
        resumed: how many of them those before it had kept.
        damaged: how many lines of the shard were unreadable; their responses are drawn again.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any], kind: str = "rollouts") -> None:
        """Reads what is kept, whichever rank kept it; the folder must be locked by this run.

        Args:
            output: the folder.
            identity: as the folder's own settings, see `opened`.
            kind: of the artifact that it becomes.

        Raises:
            OSError: it cannot be read.
        """
        self._output, self._folder, self._kind = output, output / manifest.UNFINISHED, kind
        self._started = self._last = time.monotonic()
        self._key = json_sha256([FORMAT, identity]).encode()
        found = {path.name: read_records(path, self._key) for path in sorted(self._folder.glob(SHARDS))}
        for name, one in found.items():
            if one.damaged:
                lines = ", ".join(map(str, one.damaged[:10]))
                _LOG.warning("%s: damaged at line %s; drawn again", self._folder / name, lines)
        self.damaged = sum(len(one.damaged) for one in found.values())
        self.kept = self._without_contradictions(
            Draw(**record) for one in found.values() for record in one.records
        )
        self.resumed = len(self.kept)
        # Ranks draw at the same time, so the longest of them says how long it took.
        times = [sum(record["seconds"] for record in one.records) for one in found.values()]
        self._before = max(times, default=0)
        self._ends = {name: one.whole_bytes for name, one in found.items()}
        self._own = f"shard-{ranks.rank()}.jsonl"
        self._shard: Journal | None = None

    def open(self) -> None:
        """Opens this rank's own shard, once every rank has read what is kept.

        Raises:
            OSError: it cannot be written.
        """
        self._shard = Journal(self._folder / self._own, self._key, self._ends.get(self._own, 0))

    def collect(self) -> None:
        """Adds what other ranks have kept meanwhile; they must be done."""
        others = (path for path in sorted(self._folder.glob(SHARDS)) if path.name != self._own)
        for path in others:
            for record in read_records(path, self._key, self._ends.get(path.name, 0)).records:
                draw = Draw(**record)
                self.kept[draw.item_id, draw.sample_index] = draw

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
        """The part of it in which the responses were generated, summed over ranks."""
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
        assert self._shard is not None
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
                manifest.seal(self._kind, draft, self._output.resolve(), dict(config), sources, self.seconds)
                disk.move_up(folder, self._output, last=manifest.NAME)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _telling(self) -> contextlib.AbstractContextManager[None]:
        return telling_refusals(self._kind, self._output, self.told)

    @property
    def told(self) -> str:
        """What an error says of what is kept."""
        return f"{len(self.kept)} responses are kept, and the same command goes on from them"

    def close(self) -> None:
        """Closes the shard."""
        if self._shard is not None:
            self._shard.close()


@contextlib.contextmanager
def opened(output: Path, identity: Mapping[str, Any], kind: str = "rollouts") -> Iterator[RolloutStore]:
    """Takes an output folder for this process and opens what is kept there.

    Whatever ends the block, the responses stay; a folder without any is removed again.

    Args:
        output: a new or empty folder, or one that an interrupted run left.
        identity: the settings that decide every response, by name; values are text, numbers or None.
        kind: of the artifact that it becomes: "rollouts" or "scores".

    Raises:
        HarnessError: another process has the folder, it holds something else or a run with other
            settings, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with ranks.agreed(), telling_refusals(kind, output, "nothing was changed"):
            if ranks.rank() == 0:
                _take(output, identity, stack)
        own = stack.enter_context(contextlib.ExitStack())
        with ranks.agreed(), telling_refusals(kind, output, "nothing was changed"):
            store = _read(output, identity, own, kind)
        with ranks.agreed(), telling_refusals(kind, output, "nothing was changed"):
            store.open()
        try:
            yield store
        except HarnessError as error:
            if not store.kept or store.told in error.remedy:
                raise
            remedy = f"{error.remedy}; {store.told}" if error.remedy else store.told.capitalize()
            raise type(error)(error.problem, remedy) from error
        with ranks.agreed():  # nobody has a file open when rank 0 tidies up
            own.close()


def _take(output: Path, identity: Mapping[str, Any], stack: contextlib.ExitStack) -> None:
    """Takes a folder for this run and writes or compares its settings.

    Raises:
        HarnessError: see `opened`.
    """
    refuse_taken(output)
    there, folder = output.is_dir(), output / manifest.UNFINISHED
    folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(locked(folder / LOCK, output))
    for other in sorted(folder.glob(f"{LOCK}-*")):
        with locked(other, output):  # which a rank may hold that outlived its rank 0
            pass
    refuse_taken(output)  # a process that finished meanwhile has let go of the lock
    stack.callback(_tidy, output, there)
    sign(folder)
    compare(output / manifest.UNFINISHED, output, identity)


def _read(output: Path, identity: Mapping[str, Any], own: contextlib.ExitStack, kind: str) -> RolloutStore:
    """What is kept in a folder that rank 0 has taken, as this rank finds it.

    Raises:
        HarnessError: this rank has another folder before it than rank 0, or other settings.
    """
    if ranks.rank() > 0:
        if not (output / manifest.UNFINISHED / RUN).is_file():
            raise HarnessError(
                f"rank {ranks.rank()} does not find in --output {output} what rank 0 has written there",
                "Name a folder on a file system that all machines share",
            )
        own.enter_context(locked(output / manifest.UNFINISHED / f"{LOCK}-{ranks.rank()}", output))
        compare(output / manifest.UNFINISHED, output, identity)
    return own.enter_context(contextlib.closing(RolloutStore(output, identity, kind)))


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
    strange = {path.name for path in output.iterdir()} - {manifest.UNFINISHED, *FINISHED}
    if strange:
        raise HarnessError(
            f"--output {output} holds {sorted(strange)[0]} beside its unfinished rollouts",
            "Move it elsewhere",
        )


def _tidy(output: Path, there: bool) -> None:
    """Removes what a finished run worked with, or a run without a response; and the folder if it is new."""
    folder, finished = output / manifest.UNFINISHED, (output / manifest.NAME).is_file()
    if finished or not any(path.stat().st_size for path in folder.glob(SHARDS)):
        shutil.rmtree(folder, ignore_errors=True)
        if not (finished or there):
            with contextlib.suppress(OSError):
                output.rmdir()


def discard(output: Path) -> None:
    """Removes an unfinished run.

    Raises:
        HarnessError: a process is at work on it.
    """
    with locked(output / manifest.UNFINISHED / LOCK, output):
        shutil.rmtree(output)

"""An unfinished folder of sampled responses: locked by one run at a time, resumed, finished.

`dcsft sample` turns it into rollouts, `dcsft evaluate --samples` into scores.

    rollouts/unfinished/shard-0.jsonl   the responses so far, see `disk.Journal`
    rollouts/unfinished/shard-1.jsonl   and those of rank 1 in a launch
"""

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsft_harness import ranks, reading
from dcsft_harness.artifacts import manifest, resuming
from dcsft_harness.artifacts.disk import Journal, json_sha256, read_records
from dcsft_harness.artifacts.lock import RUN
from dcsft_harness.errors import HarnessError, telling_refusals
from dcsft_harness.models.arguments import indifferent

SHARD, SHARDS = "shard-0.jsonl", "shard-*.jsonl"
FORMAT = 1
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draw:
    """One response as saved until the run is finished; scores are computed then."""

    # item_id, sample_index, response, n_tokens, finish_reason, seed: see `records.Rollout`
    item_id: str
    sample_index: int
    response: str
    n_prompt_tokens: int  # tokens of prompt and images together
    n_tokens: int
    finish_reason: str
    seed: int
    seconds: float  # its share of the wall-clock time of its batch
    flops: float | None = None  # see `lmms.protocols.Generation`, as the next
    n_prefilled: int | None = None


class RolloutStore:
    """The saved responses of one run; created by `opened`.

    Attributes:
        kept: (item_id, sample_index) -> the response, of this process and of earlier ones.
        resumed: the number of those from earlier processes.
        damaged: the number of unreadable lines of the shard; their responses are drawn again.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any], kind: str = "rollouts") -> None:
        """Reads the saved responses of all ranks; this run must hold the folder's lock.

        `identity` is the folder's own settings, see `opened`.
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
        # Ranks draw at the same time, so the longest time counts.
        times = [sum(record["seconds"] for record in one.records) for one in found.values()]
        self._before = max(times, default=0)
        self._ends = {name: one.whole_bytes for name, one in found.items()}
        self._own = f"shard-{ranks.rank()}.jsonl"
        self._shard: Journal | None = None

    def open(self) -> None:
        """Opens this rank's own shard, once every rank has read the saved responses.

        Raises:
            OSError: it cannot be written.
        """
        self._shard = Journal(self._folder / self._own, self._key, self._ends.get(self._own, 0))

    def collect(self) -> None:
        """Adds the responses that other ranks have saved meanwhile; they must be done."""
        others = (path for path in sorted(self._folder.glob(SHARDS)) if path.name != self._own)
        for path in others:
            for record in read_records(path, self._key, self._ends.get(path.name, 0)).records:
                draw = Draw(**record)
                self.kept[draw.item_id, draw.sample_index] = draw

    def _without_contradictions(self, draws: Iterable[Draw]) -> dict[tuple[str, int], Draw]:
        """Draws by item and sample; a sample that occurs twice with different texts is not kept."""
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
        """The run's wall-clock time, including earlier processes."""
        return self._before + time.monotonic() - self._started

    @property
    def generation_seconds(self) -> float:
        """The part of it in which the responses were generated, summed over ranks."""
        return sum(draw.seconds for draw in self.kept.values())

    def begin(self) -> None:
        """Starts the clock of the first batch."""
        self._last = time.monotonic()

    def append(self, batch: Iterable[Mapping[str, Any]]) -> None:
        """Saves a finished batch of `Draw`'s fields; it is on disk when this returns.

        The error of a full disk gives the number of saved responses.
        """
        rows = list(batch)
        now = time.monotonic()
        seconds = (now - self._last) / max(len(rows), 1)
        draws = [Draw(**row, seconds=round(seconds, 6)) for row in rows]
        assert self._shard is not None
        with self._refusing():
            self._shard.append(map(vars, draws))
        self.kept.update({(draw.item_id, draw.sample_index): draw for draw in draws})
        self._last = now

    @contextlib.contextmanager
    def finishing(self, config: Mapping[str, Any], inputs: Mapping[str, Path]) -> Iterator[manifest.Draft]:
        """Finishes the artifact: the block fills the draft's folder, which then replaces this one.

        Raises:
            HarnessError: the disk is full; every response stays saved.
        """
        finished = manifest.drafted(self._kind, self._output, config, inputs, lambda: self.seconds)
        with self._refusing(), finished as draft:
            yield draft

    def _refusing(self) -> contextlib.AbstractContextManager[None]:
        return telling_refusals(self._kind, self._output, self.resumable)

    @property
    def resumable(self) -> str:
        """The part of an error about the saved responses."""
        return f"{len(self.kept)} responses are kept, and the same command resumes from them"

    def close(self) -> None:
        """Closes the shard."""
        if self._shard is not None:
            self._shard.close()


@contextlib.contextmanager
def opened(output: Path, identity: Mapping[str, Any], kind: str = "rollouts") -> Iterator[RolloutStore]:
    """Opens an output folder's saved responses for this process; see `resuming.resumed`.

    `identity` are the settings that decide every response: text, numbers or None, by name.

    Raises:
        HarnessError: another process uses the folder, it holds something else or a run with other settings,
            or it cannot be written.
    """
    dropped = [f"model argument {name}" for name in indifferent()]
    with resuming.resumed(output, kind, identity, _has_responses, dropped) as folder:
        with ranks.agreed(), telling_refusals(kind, output, "nothing was changed"):
            # The responses are keyed with the settings that the run began with.
            store = RolloutStore(output, reading.json_file(folder / RUN), kind)
        with contextlib.closing(store):
            with ranks.agreed(), telling_refusals(kind, output, "nothing was changed"):
                store.open()
            try:
                yield store
            except HarnessError as error:
                if not store.kept or store.resumable in error.remedy:
                    raise
                remedy = (
                    f"{error.remedy}; {store.resumable}" if error.remedy else store.resumable.capitalize()
                )
                raise type(error)(error.problem, remedy) from error


def _has_responses(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.glob(SHARDS))

"""How the processes of a launch share the rows of a training set: each row once an epoch, as one would.

accelerate fills up an epoch's last batch with rows from its beginning, so that all processes get equally
many. Here its rows are shared out as they are, and a process that has none left for a forward pass makes
it over a row whose loss is left out: all of them meet in each backward pass.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import BatchSampler, Sampler
from torch.utils.data import Dataset as MapDataset

if TYPE_CHECKING:
    from datasets import Dataset as Rows

FILLING = -1
"""What stands for the row's number in a sample that is not learned from."""


class Shares(BatchSampler):
    """The rows of one process's forward passes.

    Attributes:
        sampler: gives the rows of all processes, in the same order in each.
        batch_size: rows in a forward pass; the last of an epoch may have fewer.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        batch_size: int,
        accumulated: int,
        rank: int,
        processes: int,
        drop_last: bool,
    ) -> None:
        """Takes what `batch_size`, `accumulated` passes and the number of processes make a batch of."""
        super().__init__(sampler, batch_size, drop_last)
        self._accumulated, self._rank, self._processes = accumulated, rank, processes
        self._batch = batch_size * accumulated * processes

    def __iter__(self) -> Iterator[list[int]]:
        """Lists of rows; a negative number -1 - row fills the place of one that is not there."""
        batch: list[int] = []
        for row in self.sampler:
            batch.append(row)
            if len(batch) == self._batch:
                yield from self._passes(batch)
                batch = []
        if batch and not self.drop_last:
            yield from self._passes(batch)

    def __len__(self) -> int:
        """Forward passes of an epoch, equally many in each process."""
        whole, rest = divmod(len(self.sampler), self._batch)  # type: ignore[arg-type]
        return whole * self._accumulated + (0 if self.drop_last else self._needed(rest))

    def _needed(self, rows: int) -> int:
        """Forward passes that a batch takes the process with the largest share."""
        return math.ceil(math.ceil(rows / self._processes) / self.batch_size)

    def _passes(self, batch: list[int]) -> Iterator[list[int]]:
        at = [len(batch) * rank // self._processes for rank in (self._rank, self._rank + 1)]
        share = batch[at[0] : at[1]]
        for start in range(0, self._needed(len(batch)) * self.batch_size, self.batch_size):
            yield share[start : start + self.batch_size] or [-1 - batch[0]]


class Filled(MapDataset[dict[str, Any]]):
    """A training set that answers to the numbers of `Shares`.

    Attributes:
        total_dataset_length: what accelerate takes the rows of an epoch's last batch from that it would
            leave out of figures as doubled; there are none here.
    """

    total_dataset_length = 0

    def __init__(self, rows: "Rows") -> None:
        """Takes the set."""
        self._rows = rows

    def __len__(self) -> int:
        """Its rows."""
        return len(self._rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A row; one that fills a place has the number `FILLING`."""
        if number >= 0:
            return dict(self._rows[number])
        return {**self._rows[-1 - number], "row": FILLING}

"""Which samples of an item are drawn next: none that is kept, and none once the answer is settled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from dcsft_harness.lmms.generation import Generation

from .requests import Item

Settled = Callable[[Item, Sequence[Generation]], bool]
"""Whether an item needs no more samples than the first ones, which it is called with in order."""

FIRST_ROUND = 2
"""Samples of the first round: the fewest that can differ."""


def goals(samples: int) -> list[int]:
    """After how many samples it is asked whether an item is settled: 2, 4, 8 and so on, and all.

    Doubling draws fewer than twice the samples needed, in at most log2(G) rounds. The numbers
    depend on G alone, so that a run that was interrupted stops where an undisturbed one does.
    """
    found = []
    goal = FIRST_ROUND
    while goal < samples:
        found.append(goal)
        goal *= 2
    return [*found, samples]


@dataclass
class Drawing:
    """An item on its way.

    Attributes:
        item: with all the samples asked for.
        have: sample index to response, of those that are there.
    """

    item: Item
    have: dict[int, Generation] = field(default_factory=dict)

    def next(self, settled: Settled | None) -> Item | None:
        """What is to be drawn next, as an item with those samples; None where that is nothing.

        Args:
            settled: None draws all samples at once.
        """
        indices = self.item.sample_indices
        for goal in goals(len(indices)) if settled is not None else [len(indices)]:
            if any(index not in self.have for index in indices[:goal]):
                return self._missing(goal)
            if settled is not None and settled(self.item, [self.have[index] for index in indices[:goal]]):
                return None
        return None

    def _missing(self, goal: int) -> Item:
        pairs = zip(self.item.positions[:goal], self.item.sample_indices[:goal], strict=True)
        left = [(position, index) for position, index in pairs if index not in self.have]
        return replace(
            self.item,
            positions=[position for position, _ in left],
            sample_indices=[index for _, index in left],
        )


Asked = tuple[Drawing, Item]
"""An item on its way, and the part of it that is drawn next."""

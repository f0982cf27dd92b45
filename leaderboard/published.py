"""Figures that others print, quoted beside a board with their source and never tested against."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

import yaml


@dataclass(frozen=True)
class Quoted:
    """One row as printed elsewhere.

    Attributes:
        name: as its source calls it.
        model: which was trained.
        setting: how.
        source: where it is printed.
        read: how the figures came here.
        cells: task -> accuracy in [0, 1], as printed.
        mean_over: the tasks that the printed mean is over; empty where no mean is quoted.
        mean: the printed mean, in [0, 1], or None.
        places: decimals of the figures as printed in percent.
    """

    name: str
    model: str
    setting: str
    source: str
    read: str
    cells: Mapping[str, float]
    mean_over: tuple[str, ...] = ()
    mean: float | None = None
    places: int = 2

    @property
    def recomputed(self) -> float | None:
        """The mean of the printed cells, None where one is missing."""
        if not self.mean_over or any(task not in self.cells for task in self.mean_over):
            return None
        return sum(self.cells[task] for task in self.mean_over) / len(self.mean_over)

    @property
    def follows(self) -> bool | None:
        """Whether the printed mean follows from the printed cells; None where that is unknown.

        Cells and mean are rounded (by half a unit each), so they may differ by one unit.
        """
        found = self.recomputed
        if self.mean is None or found is None:
            return None
        return abs(self.mean - found) <= 10.0 ** -(self.places + 2) + 1e-12

    @property
    def remark(self) -> str | None:
        """A sentence on a mean that does not follow from its cells."""
        found = self.recomputed
        if self.follows is not False or self.mean is None or found is None:
            return None
        return (
            f"Quoted row {self.name} ({self.source}): its printed mean {100 * self.mean:.{self.places}f} "
            f"does not follow from its cells, which give {100 * found:.{self.places}f}"
        )


def published() -> tuple[Quoted, ...]:
    """The rows of `published.yaml`."""
    text = (files("dcsft_harness.leaderboard") / "published.yaml").read_text(encoding="utf-8")
    found = []
    for table in yaml.safe_load(text):
        for row in table["rows"]:
            mean = row.get("mean")
            found.append(
                Quoted(
                    row["name"],
                    table["model"],
                    table["setting"],
                    table["source"],
                    table["read"],
                    {task: figure / 100 for task, figure in row["cells"].items()},
                    () if mean is None else tuple(table["mean_over"]),
                    None if mean is None else mean / 100,
                )
            )
    return tuple(found)

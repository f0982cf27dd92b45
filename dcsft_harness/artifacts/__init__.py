"""Return values of the stages' Python functions: finished artifacts, with their notes and tables."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

SCORES_SET = "scores set"
"""The artifact kind of a set of scores folders, one per model and step."""


class Artifact:
    """A finished artifact's folder.

    Attributes:
        path: the folder.
    """

    TABLE = ""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """An artifact in this folder; its manifest is read on first use."""
        self.path = Path(path)
        self._start = "" if self.path.is_absolute() else os.getcwd()

    def __fspath__(self) -> str:
        """The folder, so an artifact can be used as a path; absolute if the working directory changed."""
        moved = self._start and os.getcwd() != self._start
        return os.path.join(self._start, self.path) if moved else str(self.path)

    def __repr__(self) -> str:
        """The Python expression for it."""
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def manifest(self) -> manifest.Manifest:
        """The manifest: kind, settings, inputs, notes, hashes; an error if it is missing or damaged."""
        return manifest.read(Path(self))

    @property
    def notes(self) -> dict[str, Any]:
        """The manifest's notes: counts, accuracy, cost."""
        return self.manifest.notes

    def table(self) -> "pa.Table | Dataset":
        """Its rows, as a `pyarrow.Table`; a curated set's as a `datasets.Dataset`.

        Raises:
            HarnessError: it has none (weights have no rows).
        """
        if not self.TABLE:
            raise HarnessError(
                f"{self.path} holds {manifest.indefinite(self.manifest.kind)}, which has no table",
                "Use .path or .notes",
            )
        import pyarrow.parquet as pq

        return pq.read_table(Path(self) / self.TABLE)


class Rollouts(Artifact):
    """G responses per item; see `records.Rollout`."""

    TABLE = "rollouts.parquet"


class Labels(Artifact):
    """One difficulty per item; see `records.Label`."""

    TABLE = "labels.parquet"


class CuratedSet(Artifact):
    """Messages and images to train on."""

    def table(self) -> "Dataset":
        """Its rows, as a `datasets.Dataset`."""
        from dcsft_harness.artifacts import storage

        return storage.load(Path(self) / "data")


class Checkpoint(Artifact):
    """Weights: an adapter, or a whole checkpoint."""


class Scores(Artifact):
    """One score per item; see `records.Score`."""

    TABLE = "scores.parquet"

    def table(self) -> "pa.Table":
        """Its rows; for a set of scores, with the column `row`."""
        if self.manifest.kind != SCORES_SET:
            return super().table()
        import pyarrow as pa

        parts = []
        for row in self.notes["rows"]:
            part = Scores(Path(self) / row["folder"]).table()
            parts.append(part.append_column("row", pa.repeat(row["name"], part.num_rows)))
        return pa.concat_tables(parts)


class Leaderboard(Artifact):
    """A leaderboard; its table has one row per item and board row."""

    TABLE = "items.parquet"


KINDS: dict[str, type[Artifact]] = {
    "rollouts": Rollouts,
    "labels": Labels,
    "curated set": CuratedSet,
    "adapter": Checkpoint,
    "checkpoint": Checkpoint,
    "scores": Scores,
    SCORES_SET: Scores,
    "leaderboard": Leaderboard,
}
"""Artifact kind -> the class that a stage's function returns."""

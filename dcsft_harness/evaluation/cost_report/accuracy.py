"""Scores folders -> accuracies of what was evaluated, found by content and not by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError

CONDITIONS = ("version", "limit", "items_sha256", "prompt_sha256", "generation")
"""What must be equal where two accuracies on a task are to be compared."""
UNRECORDED = ("scorers", "generation_from_checkpoint")
"""Further conditions, which scores of the first edition do not record."""
DISTRIBUTIONS = ("id", "ood")


@dataclass
class Scores:
    """What some scores folders say.

    Attributes:
        by_subject: hash of an adapter, or of a checkpoint evaluated without one -> task -> its notes.
        settings: the same hash -> the configuration of the evaluation.
        folders: the same hash -> the folders.
        tasks: task -> the notes of the folder that had it first.
        remarks: accuracies that cannot be compared, and why.
    """

    by_subject: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    settings: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    folders: dict[str, list[Path]] = field(default_factory=dict)
    tasks: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def mean(self, subject: str, distribution: str) -> float | None:
        """The unweighted mean accuracy over all tasks of a distribution; None where one of them lacks."""
        wanted = [name for name, notes in self.tasks.items() if notes.get("distribution") == distribution]
        have = self.by_subject.get(subject, {})
        found = [have[name].get("accuracy") if name in have else None for name in wanted]
        known = [value for value in found if value is not None]
        return sum(known) / len(known) if known and len(known) == len(found) else None

    def means(self, subject: str) -> dict[str, float | None]:
        """Distribution -> mean."""
        return {name: self.mean(subject, name) for name in DISTRIBUTIONS}

    def add(self, folder: Path) -> None:
        """Reads one folder.

        Raises:
            HarnessError: it holds no scores, or a task of something that another folder has scored.
        """
        found = manifest.read(folder, "scores")
        inputs = found.inputs
        entry = inputs.get("adapter", inputs.get("model"))
        if entry is None or ("adapter" not in inputs and "adapter=" in str(found.config.get("model_args"))):
            self.remarks.append(f"the scores {folder} are of a model of a hub, which none of the runs is")
            return
        subject = entry["sha256"]
        known = self.by_subject.setdefault(subject, {})
        self.settings.setdefault(subject, found.config)
        self.folders.setdefault(subject, []).append(folder)
        for name, notes in found.notes["tasks"].items():
            if name in known:
                others = ", ".join(map(str, self.folders[subject][:-1]))
                raise HarnessError(
                    f"{folder} and {others} score the same adapter on {name}", "Leave one of them out"
                )
            known[name] = notes
            first = self.tasks.setdefault(name, notes)
            differing = [key for key in CONDITIONS if first.get(key) != notes.get(key)]
            differing += [key for key in UNRECORDED if _recorded(first, key) != _recorded(notes, key)]
            if differing:
                self.remarks.append(
                    f"accuracies on {name} are not comparable: {folder} has another {', '.join(differing)}"
                )


def read(folders: Sequence[Path]) -> Scores:
    """Reads scores folders.

    Raises:
        HarnessError: see `Scores.add`.
    """
    scores = Scores()
    for folder in folders:
        scores.add(folder)
    return scores


def _recorded(notes: Mapping[str, Any], key: str) -> dict[str, Any]:
    """One of `UNRECORDED`; a scorer's first version counts as no record of it."""
    return {name: value for name, value in (notes.get(key) or {}).items() if (key, value) != ("scorers", 1)}

"""What folders of scores say of an artefact and of its base."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.hashing import file_sha256
from dcsft_harness.errors import HarnessError


@dataclass(frozen=True)
class Scored:
    """An accuracy on one task.

    Attributes:
        task: an lmms-eval task.
        distribution: "id" or "ood", in or out of the training distribution; None where the task does not say.
        of_base: whether it is the base's, to compare with.
        accuracy: in [0, 1]; None where no item was scored.
        n: items scored.
        limit: the run was limited to the first so many items; None where all were asked.
    """

    task: str
    distribution: str | None
    of_base: bool
    accuracy: float | None
    n: int
    limit: int | None


def read_scores(made: manifest.Manifest, folders: Sequence[Path]) -> list[Scored]:
    """The accuracies in folders of `dcsft evaluate`, by task, the base's first.

    Raises:
        HarnessError: a folder has no scores, or those of another model, or a task stands in two of them.
    """
    found: dict[tuple[str, bool], tuple[Path, Scored]] = {}
    for folder in folders:
        scores = manifest.read(folder, "scores")
        of_base = _of_base(made, scores)
        for task, said in scores.notes["tasks"].items():
            if (task, of_base) in found:
                raise HarnessError(
                    f"{folder} and {found[task, of_base][0]} both have scores of {task}", "Give one of them"
                )
            row = _scored(task, of_base, said)
            found[task, of_base] = folder, row
    rows = [row for _, row in found.values()]
    return sorted(rows, key=lambda row: (row.task, not row.of_base))


def _scored(task: str, of_base: bool, said: dict[str, Any]) -> Scored:
    return Scored(task, said.get("distribution"), of_base, said["accuracy"], said["n"], said.get("limit"))


def _of_base(made: manifest.Manifest, scores: manifest.Manifest) -> bool:
    """Whether scores are of the artefact's base, and not of the artefact.

    Raises:
        HarnessError: they are of neither, or do not say.
    """
    own = file_sha256(made.folder / manifest.NAME)
    base = made.inputs.get("model", {}).get("sha256")
    model, adapter = (scores.inputs.get(role, {}).get("sha256") for role in ("model", "adapter"))
    if adapter is None and base is not None and model == base:
        return True
    if own == (model if made.kind == "checkpoint" and adapter is None else adapter):
        return False
    option = "adapter" if made.kind == "adapter" else "pretrained"
    raise HarnessError(
        f"the scores in {scores.folder} are of another model than {made.folder}",
        f"Give scores of `dcsft evaluate --model-args ...{option}={made.folder}`",
    )

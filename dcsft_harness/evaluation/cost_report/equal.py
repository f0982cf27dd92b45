"""Runs -> where each stood when the cheapest of them had ended: at equal samples, tokens and time."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dcsft_harness.artifacts import manifest
from dcsft_harness.training.run_folder import checkpoints, step_of

from .accuracy import Scores
from .figures import UNITS
from .lineage import Run


@dataclass(frozen=True)
class Standing:
    """One run within a budget.

    Attributes:
        unit: "samples", "tokens" or "seconds".
        budget: how much of it the cheapest run took, labels included.
        run: whose standing it is.
        step: the step that it had come to; None where none can be told.
        folder: the run, or its newest kept checkpoint within the budget; None where there is none.
        spent: what it had spent by then, labels included.
        said: why there is no folder.
    """

    unit: str
    budget: float
    run: Run
    step: int | None = None
    folder: Path | None = None
    spent: float | None = None
    said: str = ""

    @property
    def checkpoint(self) -> str | None:
        """The name of the checkpoint inside the run; None for its end, or where there is none."""
        if self.folder is None or self.folder == self.run.made.folder:
            return None
        return self.folder.name


def standings(runs: Sequence[Run], shared: frozenset[str]) -> list[Standing]:
    """Every run at the smallest total among them, in each unit that at least two runs know.

    Args:
        runs: what is compared.
        shared: hashes of the cold starts that all of them began with, which no total has.
    """
    found = []
    for unit in UNITS:
        totals = {id(run): run.spent(unit, shared) for run in runs}
        known = [total for total in totals.values() if total is not None]
        if len(known) < 2:
            continue
        for run in runs:
            total = totals[id(run)]
            if total is None:
                found.append(Standing(unit, min(known), run, said="what it took is not known"))
            else:
                found.append(_standing(run, unit, min(known), total, shared))
    return found


def _standing(run: Run, unit: str, budget: float, total: float, shared: frozenset[str]) -> Standing:
    if total <= budget:
        steps = run.made.notes.get("steps")
        return Standing(unit, budget, run, steps, run.made.folder, total)
    before = run.spent_before(unit, shared) or 0
    if before > budget:
        return Standing(unit, budget, run, said="what it began with took more")
    spent = {int(row["step"]): before + row[unit] for row in run.history if unit in row}
    if not spent:
        return Standing(unit, budget, run, said="its training log does not tell")
    kept = [path for path in checkpoints(run.made.folder) if spent.get(step_of(path), budget + 1) <= budget]
    if kept:
        step = step_of(kept[-1])
        return Standing(unit, budget, run, step, kept[-1], spent[step])
    within = [step for step, value in spent.items() if value <= budget]
    if not within:
        return Standing(unit, budget, run, said="its first step took more")
    last = max(within)
    return Standing(unit, budget, run, last, None, spent[last], "no checkpoint that was kept is within")


def command(standing: Standing, scores: Scores) -> str | None:
    """The command line that would score a standing's folder on the tasks of the other scores."""
    folder, made = standing.folder, standing.run.made
    if folder is None or not scores.tasks:
        return None
    settings = scores.settings.get(manifest.fingerprint(made.folder), {})
    role = "adapter" if made.kind == "adapter" else "pretrained"
    given = dict(part.partition("=")[::2] for part in str(settings.get("model_args", "")).split(",") if part)
    given.setdefault("pretrained", _base(standing.run))
    given[role] = str(folder)
    model = str(settings.get("model", "dcsft_hf"))
    words = ["dcsft", "evaluate", *([] if model == "dcsft_hf" else ["--model", model])]
    words += ["--model-args", ",".join(f"{name}={value}" for name, value in given.items())]
    limits = {notes.get("limit") for notes in scores.tasks.values()}
    words += ["--limit", str(limits.pop())] if len(limits) == 1 and None not in limits else []
    words += ["--tasks", ",".join(scores.tasks), "--output", f"scores-{standing.run.name}-{folder.name}"]
    return shlex.join(words)


def _base(run: Run) -> str:
    entry = run.made.inputs.get("model")
    place = None if entry is None else (run.made.folder / entry["path"]).resolve()
    return str(place) if place is not None and place.is_dir() else str(run.made.notes.get("base", ""))

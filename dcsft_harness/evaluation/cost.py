"""The cost of training: of an artifact, and of a run with its labels and earlier trainings.

Costs are those of `dcsft_harness.artifacts.usage`: tokens and operations are counted, seconds and bytes
measured.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcsft_harness import records
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.manifest import Manifest, Origin
from dcsft_harness.artifacts.usage import FIGURES, NOTE, UNKNOWN, figures
from dcsft_harness.errors import HarnessError
from dcsft_harness.training import run_folder

UNITS = ("samples", "tokens", "seconds")
"""Units for comparing runs; the columns of a training log."""


@dataclass(frozen=True)
class Cost:
    """The cost of something."""

    # figure of `FIGURES` -> its known amount; unknown figures are absent
    values: Mapping[str, float] = field(default_factory=dict)
    partial: frozenset[str] = frozenset()  # figures whose known amount is only a lower bound

    def exact(self, figure: str) -> float | None:
        """A figure; None unless all of it is known."""
        return None if figure in self.partial else self.values.get(figure)

    def spent(self, unit: str) -> float | None:
        """The known amount of a unit of `UNITS`; samples are responses drawn, or prompts if none were."""
        if unit == "seconds":
            return self.exact("seconds")
        if unit == "samples":
            return self.exact("generated") or self.exact("prompts")
        prompt, completion = self.exact("prompt_tokens"), self.exact("completion_tokens")
        return None if prompt is None or completion is None else prompt + completion

    def as_dict(self) -> dict[str, float | None]:
        """The figures in JSON form; None if unknown."""
        return {figure: self.values.get(figure) for figure in FIGURES}


def added(costs: Iterable[Cost]) -> Cost:
    """The sum of costs; the peak is the largest one."""
    values: dict[str, float] = {}
    partial: set[str] = set()
    for cost in costs:
        partial |= cost.partial
        for figure, value in cost.values.items():
            known = values.get(figure, 0)
            values[figure] = max(known, value) if figure == "peak_memory_bytes" else known + value
    return Cost(values, frozenset(partial))


def cost_of(found: Manifest) -> Cost:
    """The cost of making an artifact, from its ledger or, without one, from older notes."""
    ledger = found.notes.get(NOTE)
    known = figures(ledger) if isinstance(ledger, dict) else _older(found)
    known = {name: value for name, value in known.items() if name not in found.notes.get(UNKNOWN, {})}
    return Cost(known, frozenset(set(FIGURES) - known.keys()))


def _older(found: Manifest) -> dict[str, float]:
    names = {
        "steps": "steps",
        "prompts": "items",
        "generated": "responses",
        "prompt_tokens": "prompt_tokens",
        "completion_tokens": "generated_tokens",
    }
    known = {figure: found.notes[name] for figure, name in names.items() if name in found.notes}
    if found.kind == "rollouts":
        known["steps"] = 0
    return known | {"seconds": found.seconds}


COLD = "cold-start"
_ROLES: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(run_folder.TRAINED, ("data", "rollouts", "model", "adapter")),
    "rollouts": ("model", "adapter"),
    "labels": ("rollouts",),
}
"""The inputs of an artifact that may have a cost, by its kind."""
_INDIFFERENT = ("keep", "size", "seed")


def _counted(made: Manifest) -> Sequence[str]:
    """The inputs of an artifact that may have a cost; labels only if they chose anything."""
    if made.kind == "curated set" and selective(made.config):
        return ["rollouts" if "rollouts" in made.inputs else "labels"]
    return _ROLES.get(made.kind, ())


def _remarks(made: Manifest) -> Iterator[tuple[bool, str]]:
    """What is missing of a curated set's labels, and why those of others are not counted; whether missing."""
    if made.kind == "curated set" and not selective(made.config):
        said = f"{made.folder.name} keeps every difficulty: its labels chose nothing and are not counted"
        yield False, said
    elif made.kind == "curated set" and not set(_counted(made)) & made.inputs.keys():
        yield True, f"{made.folder.name} does not record where its labels came from"


def _unread(one: Origin) -> Iterator[tuple[bool, str]]:
    """Why an input without a manifest has no known cost, and whether it is missing."""
    if one.error is not None:
        yield True, one.error.problem
    elif not one.folder.exists() or (one.folder / manifest.NAME).is_file():
        yield True, manifest.lost(one.role, one.of, one.folder)
    elif one.role == "model":  # a published base has no cost here, and hashing a large one takes minutes
        return
    elif manifest.fingerprint(one.folder) != one.sha256:
        yield True, f"the {one.role} that {one.of} was made from has changed: {one.folder}"
    else:
        said = f"its {one.role} {one.folder.name} was not made by dcsft: its cost is not counted"
        yield False, said


def selective(config: Mapping[str, Any]) -> bool:
    """Whether labels decided the items of a curated set, or their weights."""
    others = (value for name, value in config.items() if name not in _INDIFFERENT)
    return not set(config.get("keep", ())) >= set(records.DIFFICULTIES) or any(others)


@dataclass(frozen=True)
class Run:
    """One adapter or checkpoint with its costs."""

    name: str  # its row's name
    made: Manifest
    method: str  # "SFT", "DC-SFT" (on a set that labels chose), "GRPO", "cold start" and so on
    training: Cost  # the cost of training itself
    labeling: tuple[Manifest, ...]  # the rollouts of its labels, each once
    # earlier trainings other than cold starts: of the adapter that it continued, and of those that sampled
    # for its labels
    earlier: tuple[Manifest, ...]
    # hash -> a cold start that it began with; without those that all compared runs share
    cold: Mapping[str, Manifest]
    lost: tuple[str, ...]  # missing inputs, whose cost is unknown
    remarks: tuple[str, ...]  # further remarks on the row
    history: tuple[Mapping[str, Any], ...]  # the rows of its training log; empty where there is none

    def _parts(self) -> list[Cost]:
        """The costs before its own training began."""
        parts = [cost_of(one) for one in (*self.labeling, *self.earlier, *self.cold.values())]
        return [*parts, *([Cost(partial=frozenset(FIGURES))] if self.lost else [])]

    def spent_before(self, unit: str) -> float | None:
        """The amount of a unit of `UNITS` before its own training; None if unknown."""
        return summed([part.spent(unit) for part in self._parts()])

    def spent(self, unit: str) -> float | None:
        """The total amount of a unit."""
        return summed([self.spent_before(unit), self.training.spent(unit)])

    def total(self) -> Cost:
        """The total cost."""
        return added([*self._parts(), self.training])


def summed(values: Sequence[float | None]) -> float | None:
    """A sum; None if one of its parts is."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def read_run(folder: Path, name: str) -> Run:
    """Reads a run from its artifact, an adapter or checkpoint from `dcsft train`.

    Raises:
        HarnessError: it is neither, or its log is damaged. Missing inputs are listed in the run instead.
    """
    made = manifest.read(folder)
    if made.kind not in run_folder.TRAINED:
        raise HarnessError(
            f"{folder} holds {manifest.indefinite(made.kind)}",
            "Pass adapters or checkpoints of `dcsft train`",
        )
    if not run_folder.was_trained(made):
        raise HarnessError(f"{folder} was merged, not trained", "Pass the adapter that it was merged from")
    origins = list(manifest.walk(made, _counted))
    inputs = {one.sha256: one.made for one in origins if one.made is not None}
    artifacts, found = (made, *inputs.values()), inputs.items()
    said = [note for artifact in artifacts for note in _remarks(artifact)]
    said += [note for one in origins if one.made is None for note in _unread(one)]
    cold = {digest: one for digest, one in found if one.config.get("method") == COLD}
    labeling = tuple(one for _, one in found if one.kind == "rollouts")
    data = inputs.get(made.inputs["data"]["sha256"]) if "data" in made.inputs else None
    earlier = tuple(one for digest, one in found if run_folder.was_trained(one) and digest not in cold)
    sources = [one for one in artifacts if run_folder.was_trained(one) or one.kind == "rollouts"]
    older = [one.folder.name for one in sources if NOTE not in one.notes]
    remarks = [f"{name} has no ledger: an earlier version made it" for name in older]
    return Run(
        name=name,
        made=made,
        method=_method(made, data is not None and data.kind == "curated set" and selective(data.config)),
        training=cost_of(made),
        labeling=labeling,
        earlier=earlier,
        cold=cold,
        lost=tuple(text for missing, text in said if missing),
        remarks=(*(text for missing, text in said if not missing), *remarks),
        history=run_folder.history(folder),
    )


def _method(made: Manifest, labeled: bool) -> str:
    name = str(made.config.get("method"))
    method = "cold start" if name == COLD else name.upper()
    if labeled:
        method = "DC-SFT" if method == "SFT" else f"{method} on a curated set"
    return f"{method}, all parameters" if made.config.get("full") else method

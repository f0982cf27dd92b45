"""A cost: the figures of a ledger, and which of them are a lower bound."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dcsft_harness.artifacts.manifest import Manifest
from dcsft_harness.artifacts.usage import NOTE, UNKNOWN, Ledger

FIGURES = tuple(item.name for item in fields(Ledger))
UNITS = ("samples", "tokens", "seconds")
"""What runs are held against each other by; the columns of a training log."""


@dataclass(frozen=True)
class Cost:
    """What something cost.

    Attributes:
        values: figure of `FIGURES` -> how much of it is known; a figure of which nothing is known is absent.
        partial: figures of which more was spent than is known.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    partial: frozenset[str] = frozenset()

    def exact(self, figure: str) -> float | None:
        """A figure, None where not all of it is known."""
        return None if figure in self.partial else self.values.get(figure)

    def spent(self, unit: str) -> float | None:
        """How much of a unit of `UNITS`; samples are responses drawn, or prompts where none were."""
        if unit == "seconds":
            return self.exact("seconds")
        if unit == "samples":
            return self.exact("generated") or self.exact("prompts")
        prompt, completion = self.exact("prompt_tokens"), self.exact("completion_tokens")
        return None if prompt is None or completion is None else prompt + completion

    def as_dict(self) -> dict[str, float | None]:
        """The figures as JSON has them; None where nothing is known."""
        return {figure: self.values.get(figure) for figure in FIGURES}


UNKNOWN_COST = Cost(partial=frozenset(FIGURES))


def added(costs: Iterable[Cost]) -> Cost:
    """Costs one after the other; the peak is the largest one."""
    values: dict[str, float] = {}
    partial: set[str] = set()
    for cost in costs:
        partial |= cost.partial
        for figure, value in cost.values.items():
            known = values.get(figure, 0)
            values[figure] = max(known, value) if figure == "peak_memory_bytes" else known + value
    return Cost(values, frozenset(partial))


def cost_of(found: Manifest) -> Cost:
    """What making an artefact cost, as its ledger says; or, without one, as older notes do."""
    notes: Mapping[str, Any] = found.notes
    ledger = notes.get(NOTE)
    if not isinstance(ledger, dict):
        known = _older(found)
    else:
        known = Ledger.read(ledger).as_dict()
        for figure in notes.get(UNKNOWN, {}):
            known.pop(figure, None)
        if not known.get("flops"):
            known.pop("flops", None)
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

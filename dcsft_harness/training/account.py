"""What a run has cost and measured, step by step, through interruptions."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dcsft_harness.artifacts.usage import Ledger, Meter
from dcsft_harness.models.flops import Arithmetic

LOGGED = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
}
"""TRL's name of a figure of every method -> the name that it has in the log."""


COUNTED = ("prompts", "generated", "prompt_tokens", "completion_tokens", "flops")
"""The figures that each process of a launch counts for itself."""
Sum = Callable[[list[float]], list[float]]


class Account:
    """A run's ledger and history.

    Attributes:
        ledger: what it has cost.
        history: one row a step: step, loss (nats), grad_norm (before clipping), learning_rate, and the
            method's own figures. With each, what the run had cost by then: samples, tokens (prompt and
            completion), seconds.
        logged: TRL's name of a figure -> the name that it has in the log; a trainer adds its method's.
        costs: what a token costs; set when the model is there.
    """

    def __init__(self) -> None:
        """Starts the clock."""
        self.ledger = Ledger()
        self.history: list[dict[str, float | None]] = []
        self.costs: Arithmetic | None = None
        self.logged: Mapping[str, str] = LOGGED
        self._meter, self._before = Meter(), 0.0
        self._counted = dict.fromkeys(COUNTED, 0.0)

    def resume(self, told: Mapping[str, Any]) -> None:
        """Goes on from what `told` gave, with the costs up to then."""
        self.ledger = Ledger.read(told["ledger"])
        self.history = list(told["history"])
        self._before = self.ledger.seconds

    def told(self) -> dict[str, Any]:
        """The figures so far, as a checkpoint keeps them."""
        self.measure()
        return {"ledger": self.ledger.as_dict(), "history": self.history}

    def measure(self) -> None:
        """Brings time and memory in the ledger up to date."""
        self.ledger.seconds = round(self._before + self._meter.seconds, 3)
        self.ledger.peak_memory_bytes = max(self.ledger.peak_memory_bytes, self._meter.peak_memory_bytes)

    def count(self, **more: float) -> None:
        """Adds to figures of `COUNTED` what this process did."""
        for name, value in more.items():
            self._counted[name] += value

    def step(self, number: int, logs: Mapping[str, Any], over_processes: Sum) -> dict[str, float | None]:
        """Adds a step's figures and returns them; `over_processes` sums what each has counted."""
        self.ledger.steps = number
        for name, more in zip(COUNTED, over_processes(list(self._counted.values())), strict=True):
            now = getattr(self.ledger, name) + more
            # A prompt of GRPO may come in parts, from the processes that have its group.
            setattr(self.ledger, name, now if name == "flops" else round(now))
        self._counted = dict.fromkeys(COUNTED, 0.0)
        row: dict[str, float | None] = {"step": number}
        for theirs, ours in self.logged.items():
            if theirs in logs:
                value = None if logs[theirs] is None else float(logs[theirs])
                row[ours] = value if value is None or math.isfinite(value) else None
        ledger = self.ledger
        row |= {
            "samples": ledger.generated or ledger.prompts,
            "tokens": ledger.prompt_tokens + ledger.completion_tokens,
            "seconds": round(self._before + self._meter.seconds, 3),
        }
        self.history.append(row)
        return row

    def write(self, path: Path) -> None:
        """Writes the history as JSON Lines."""
        path.write_text("".join(json.dumps(row) + "\n" for row in self.history), encoding="utf-8")

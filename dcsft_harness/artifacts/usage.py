"""What a stage has cost: steps, prompts, tokens, arithmetic, time, memory; a note of its manifest."""

import contextlib
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

NOTE = "ledger"
"""The note of a manifest that holds a ledger."""
UNKNOWN = "ledger_unknown"
"""The note that says which of its figures are not known, and are 0 there: name -> why."""


@dataclass
class Ledger:
    """What a training run, or the sampling of a pool, has cost so far.

    Attributes:
        steps: optimizer steps.
        prompts: prompts that were answered or trained on, each time that one was.
        generated: responses that were drawn.
        prompt_tokens: tokens of prompts and images that went through the model, padding left out; in
            training once for each response that was trained on.
        completion_tokens: tokens of responses, those learned or those drawn.
        flops: floating-point operations of the weights' products, estimated (see `training.flops`); 0
            where they were not.
        seconds: wall-clock time, that of interrupted parts up to their last checkpoint included.
        peak_memory_bytes: the most memory that was held: of a CUDA device where one was used, else of
            the process. Sampling knows that of the process that finished alone.
    """

    steps: int = 0
    prompts: int = 0
    generated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    peak_memory_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, as JSON-serialisable values."""
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """A ledger from what `as_dict` gave; figures that a later version added are 0."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def __add__(self, other: "Ledger") -> "Ledger":
        """Two costs one after the other; the peak is the larger one."""
        ours, theirs = self.as_dict(), other.as_dict()
        total = Ledger(**{name: ours[name] + theirs[name] for name in ours})
        total.peak_memory_bytes = max(self.peak_memory_bytes, other.peak_memory_bytes)
        return total


def unknown(operations: Sequence[float | None]) -> dict[str, str]:
    """Which figures of drawing are not known, and why.

    Args:
        operations: those of each response; none where the model reported no responses.
    """
    found = {}
    if not operations:
        found = dict.fromkeys(("prompt_tokens", "completion_tokens"), "the model reports no tokens")
    if not operations or None in operations:
        found["flops"] = "the model does not say what a token costs"
    return found


class Meter:
    """Measures wall-clock time and peak memory from when it is made."""

    def __init__(self) -> None:
        """Starts the clock, and forgets earlier peaks where the system can."""
        self._started = time.monotonic()
        with contextlib.suppress(OSError):  # Linux alone, and not in every container
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        if (cuda := _cuda()) is not None:
            cuda.reset_peak_memory_stats()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._started

    @property
    def peak_memory_bytes(self) -> int:
        """Of the CUDA device where there is one, else of the process."""
        if (cuda := _cuda()) is not None:
            return int(cuda.max_memory_allocated())
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cuda() -> Any:  # noqa: ANN401 - torch's module, where torch is in use and has a device
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None

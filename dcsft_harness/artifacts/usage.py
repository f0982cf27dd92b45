"""The cost of a stage: steps, prompts, tokens, operations, time and memory, as a note of its manifest."""

import contextlib
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import ModuleType

NOTE = "ledger"
"""The note of a manifest that holds a ledger."""
UNKNOWN = "ledger_unknown"
"""The note on unknown figures, which are 0 in the ledger: name -> reason."""


@dataclass
class Ledger:
    """The cost of a training run, or of sampling a pool, so far.

    Attributes:
        steps: optimizer steps.
        prompts: prompts answered or trained on; repeats count.
        generated: responses drawn.
        prompt_tokens: tokens of prompts and images that went through the model, without padding; in training,
            once for each response trained on.
        completion_tokens: tokens of responses, trained on or drawn.
        flops: floating-point operations of the matrix products, estimated (see `training.flops`); 0 if not
            estimated.
        seconds: wall-clock time, including interrupted parts up to their last checkpoint.
        peak_memory_bytes: peak memory: of the CUDA device if one was used, else of the process. For sampling,
            only that of the process that finished.
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
        """The figures by name, as JSON-serializable values."""
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """A ledger from the values of `as_dict`; figures that a later version added are 0."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def __add__(self, other: "Ledger") -> "Ledger":
        """The sum of two costs; the peak is the larger one."""
        ours, theirs = self.as_dict(), other.as_dict()
        total = Ledger(**{name: ours[name] + theirs[name] for name in ours})
        total.peak_memory_bytes = max(self.peak_memory_bytes, other.peak_memory_bytes)
        return total


def unknown(operations: Sequence[float | None]) -> dict[str, str]:
    """The unknown figures of sampling, with reasons.

    Args:
        operations: of each response; empty if the model reported no responses.
    """
    found = {}
    if not operations:
        found = dict.fromkeys(("prompt_tokens", "completion_tokens"), "the model reports no tokens")
    if not operations or None in operations:
        found["flops"] = "the model does not say what a token costs"
    return found


class Meter:
    """Measures wall-clock time and peak memory from its creation."""

    def __init__(self) -> None:
        """Starts the clock, and resets earlier peaks if the system can."""
        self._started = time.monotonic()
        with contextlib.suppress(OSError):  # only on Linux, and not in every container
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        if (cuda := _cuda()) is not None:
            cuda.reset_peak_memory_stats()

    @property
    def seconds(self) -> float:
        """Seconds since its creation."""
        return time.monotonic() - self._started

    @property
    def peak_memory_bytes(self) -> int:
        """Of the CUDA device if there is one, else of the process."""
        if (cuda := _cuda()) is not None:
            return int(cuda.max_memory_allocated())
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cuda() -> "ModuleType | None":
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None

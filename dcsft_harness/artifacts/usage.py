"""The cost of a stage: measured, as a note of its manifest, and estimated, before it runs."""

import contextlib
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeGuard, TypeVar

from dcsft_harness.errors import HarnessError, cut

if TYPE_CHECKING:
    from types import ModuleType

NOTE = "ledger"
"""The note of a manifest that holds a ledger."""
UNKNOWN = "ledger_unknown"
"""The note on unknown figures, which are 0 in the ledger: name -> reason."""


@dataclass
class Ledger:
    """The cost of a training run, or of sampling a pool, so far."""

    steps: int = 0  # optimizer steps
    prompts: int = 0  # prompts answered or trained on; repeats count
    generated: int = 0  # responses drawn
    # tokens of prompts and images that went through the model, without padding; in training, once for each
    # response trained on
    prompt_tokens: int = 0
    completion_tokens: int = 0  # tokens of responses, trained on or drawn
    # floating-point operations of the matrix products, estimated (see `training.flops`); 0 if not estimated
    flops: float = 0.0
    seconds: float = 0.0  # wall-clock time, including interrupted parts up to their last checkpoint
    # peak memory: of the CUDA device if one was used, else of the process. For sampling, only that of the
    # process that finished.
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


FIGURES = tuple(entry.name for entry in fields(Ledger))
"""The names of a ledger's figures."""


def figures(values: Mapping[str, Any]) -> dict[str, Any]:
    """The known figures among some values, finite numbers; 0 operations mean that none were estimated."""
    known = {name: value for name in FIGURES if is_number(value := values.get(name))}
    return {name: value for name, value in known.items() if (name, value) != ("flops", 0)}


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def unknown(operations: Sequence[float | None]) -> dict[str, str]:
    """The unknown figures of sampling, with reasons, given the operations of each response."""
    found = {}
    if not operations:
        found = dict.fromkeys(("prompt_tokens", "completion_tokens"), "the model reports no tokens")
    if not operations or None in operations:
        found["flops"] = "the model does not report what a token costs"
    return found


def prefilled(tokens: Iterable[int | None]) -> dict[str, int | None]:
    """Another figure of sampling, `prefilled_tokens`: prompt tokens by the engine's own count.

    It excludes tokens read from the cache, so it shows how much the responses of an item share. None
    unless every response has its part (see `lmms.protocols.Generation`).
    """
    parts = list(tokens)
    known = [one for one in parts if one is not None]
    return {"prefilled_tokens": sum(known) if known and len(known) == len(parts) else None}


class Meter:
    """Measures wall-clock time and peak memory from its creation."""

    def __init__(self) -> None:
        """Starts the clock, and resets earlier peaks if the system can."""
        self._started = time.monotonic()
        with contextlib.suppress(OSError):  # only on Linux, and not in every container
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        if (cuda := _cuda()) is not None:
            cuda.init()
            for device in range(cuda.device_count()):  # the stage's own is not known yet
                cuda.reset_peak_memory_stats(device)

    @property
    def seconds(self) -> float:
        """Seconds since its creation."""
        return time.monotonic() - self._started

    @property
    def peak_memory_bytes(self) -> int:
        """Of the CUDA device if there is one, else of the process."""
        return peak_memory_bytes()


def peak_memory_bytes() -> int:
    """The peak so far: of the CUDA device that this process uses most, else of the process."""
    if (cuda := _cuda()) is not None and cuda.is_initialized():
        return max(int(cuda.max_memory_allocated(device)) for device in range(cuda.device_count()))
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cuda() -> "ModuleType | None":
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


# What a stage needs of a device, estimated before any weights are read.

_ASSUMED_FLOPS = 6e13
_GIGABYTES = re.compile(r"([0-9.]+)\s*(?:g|gb|gib)?", re.IGNORECASE)


@dataclass(frozen=True)
class Device:
    """A device that a stage runs on, or is assumed to."""

    name: str  # as in results: "GPU of 24 GB", or the processor's model
    kind: str  # "cuda" or "cpu"
    total: float  # its memory, in bytes
    free: float  # what a stage can use of it, in bytes
    # operations that it carries out in a second, as matrix products reach them; 0 if unknown
    flops: float = 0.0
    index: int | None = None  # of several CUDA devices here; None is the current one

    @classmethod
    def assumed(cls, text: str) -> "Device":
        """A GPU with this much memory, such as "24 GB"; an error if it is not a number of gigabytes."""
        match = _GIGABYTES.fullmatch(text.strip())
        number = float(match[1]) if match and match[1].count(".") < 2 and match[1] != "." else 0.0
        if not 0 < number < 10_000:
            raise HarnessError(
                f"--device {cut(text, 40)!r} is neither a device nor a memory size",
                'Use cpu, cuda or "24 GB"',
            )
        total = number * 1e9
        # A context and kernels take half a gigabyte; fragments of freed memory some more.
        return cls(f"GPU of {number:g} GB", "cuda", total, 0.95 * total - 5e8, _ASSUMED_FLOPS)

    @classmethod
    def named(cls, text: str | None) -> "Device":
        """The device of `--device`: "cpu", "cuda", "cuda:N", or a GPU's memory; None means this process's."""
        if text is None or text == "cpu" or text.partition(":")[0] == "cuda":
            return cls.here(text)
        return cls.assumed(text)

    @classmethod
    def here(cls, name: str | None = None) -> "Device":
        """This process's device: CUDA if there is any and `name` is not "cpu"; else the machine.

        Raises:
            HarnessError: `name` is no CUDA device of this machine.
        """
        import torch

        from dcsft_harness.environment import processor

        if name != "cpu" and torch.cuda.is_available():
            number, count = (name or "cuda").partition(":")[2], torch.cuda.device_count()
            if number and not (number.isdecimal() and int(number) < count):
                last = f" to cuda:{count - 1}" * (count > 1)
                raise HarnessError(
                    f"device {cut(name, 40)} is not a CUDA device of this machine", f"Use cuda:0{last}"
                )
            index = int(number) if number else None
            free, total = torch.cuda.mem_get_info(index)
            known, left = torch.cuda.get_device_name(index), 0.95 * free - (5e8 if free == total else 0)
            return cls(known, "cuda", float(total), left, index=index)
        whole, left = machine_memory()
        return cls(processor(), "cpu", whole, left)

    def speed(self) -> float:
        """`flops`, or if unknown, the measured speed of one matrix product."""
        if self.flops:
            return self.flops
        import torch

        size, kind = (4096, torch.bfloat16) if self.kind == "cuda" else (1024, torch.float32)
        where = self.kind if self.index is None else f"{self.kind}:{self.index}"
        matrix = torch.ones((size, size), dtype=kind, device=where)
        best = float("inf")
        for _ in range(4):
            started = time.perf_counter()
            float((matrix @ matrix)[0, 0])
            best = min(best, time.perf_counter() - started)
        return 2 * size**3 / best / 2  # half of it: layers are smaller than this product


def machine_memory() -> tuple[float, float]:
    """Bytes of this machine or container, and bytes of them that a process can have now."""
    import psutil  # type: ignore[import-untyped]

    memory = psutil.virtual_memory()
    total, free = float(memory.total), float(memory.available)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        used -= int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))  # can be dropped
        total, free = min(total, float(limit)), min(free, float(limit - used))
    return total, free


@dataclass(frozen=True)
class Estimate:
    """The resources that a stage needs."""

    device: Device  # where it runs
    parts: Mapping[str, float]  # what needs memory -> bytes, at the moment of the peak
    seconds: float = 0.0  # wall-clock time, roughly; 0 if unknown
    disk: float = 0.0  # bytes of its artifact; 0 if unknown
    # what was chosen by memory, by option: micro_batch_size
    settings: Mapping[str, object] = field(default_factory=dict)
    remedy: str = ""  # what would fit, if this does not

    @property
    def memory(self) -> float:
        """The peak, in bytes: of the CUDA device, or of the process."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the device has this much memory."""
        return self.memory <= self.device.free

    def refuse(self) -> None:
        """Refuses a stage that does not fit, naming the memory needed and free, and what would fit."""
        if self.fits:
            return
        raise HarnessError(
            f"about {gigabytes(self.memory)} of memory is needed ({self.listed()}), but {self.device.name}"
            f" has {gigabytes(self.device.free)} free",
            self.remedy or "Run it on a machine with more",
        )

    def listed(self) -> str:
        """The parts of the memory, in words."""
        return ", ".join(f"{name} {gigabytes(size)}" for name, size in self.parts.items() if size >= 5e6)

    def table(self) -> str:
        """A Markdown table of memory, time and disk."""
        rows = [("memory", f"{gigabytes(self.memory)} of {gigabytes(self.device.free)} free")]
        rows += [(f"- {name}", gigabytes(size)) for name, size in self.parts.items() if size >= 5e6]
        rows += [(name, str(value)) for name, value in self.settings.items()]
        if self.seconds:
            rows.append(("time", f"about {rounded(max(self.seconds, 1))}"))
        if self.disk:
            rows.append(("disk", gigabytes(self.disk)))
        lines = [f"| estimate for {self.device.name} | |", "|:---|---:|"]
        return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows)])


def bytes_of(path: Path) -> int:
    """The size of a file, or of all files of a folder; 0 if there is none."""
    if path.is_file():
        return path.stat().st_size
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file()) if path.is_dir() else 0


def gigabytes(size: float) -> str:
    """Bytes as "7.5 GB", or as "35 MB" below a tenth of that."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def rounded(seconds: float) -> str:
    """A time in readable units: "40 s", "12 min", "3.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Planned(BaseException):  # no error, and nothing may catch it on its way
    """Ends a dry run where the stage would begin to compute."""

    def __init__(self, estimate: Estimate) -> None:
        """Keeps the resources that the stage needs."""
        super().__init__()
        self.estimate = estimate


PLANNING: ContextVar[Device | None] = ContextVar("PLANNING", default=None)
"""The device that a dry run plans for; None outside dry runs."""

READING: ContextVar[Callable[..., None] | None] = ContextVar("READING", default=None)
"""Called with (rows read, total or None) and the name of the phase, before a stage's own work."""
_REPORTED = 20
"""Rows between two reports."""
_T = TypeVar("_T")


def counted(
    found: Iterable[_T],
    total: Callable[[], int | None],
    phase: str = "reading",
    size: Callable[[_T], int] = lambda _: 1,
) -> Iterator[_T]:
    """Yields rows and reports their number to `READING` as they are used; `total` is their number if known.

    `size` is the number of rows of one of `found`: of a table, its length.
    """
    report = READING.get()
    if report is None:
        yield from found
        return
    count, done, reported = total(), 0, 0
    for one in found:
        yield one
        done += size(one)
        if done - reported >= _REPORTED:
            reported = done
            report(done, count, phase=phase)
    report(done, done, phase=phase)


def planned_device(name: str | None = None) -> Device:
    """The device of a dry run, else this process's."""
    return PLANNING.get() or Device.here(name)


def admit(estimate: Estimate) -> None:
    """Called by each stage where it begins to compute: before weights are read, and before it writes.

    Raises:
        Planned: this is a dry run.
        HarnessError: the stage does not fit.
    """
    if PLANNING.get() is not None:
        raise Planned(estimate)
    estimate.refuse()

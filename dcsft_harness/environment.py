"""What results and times depend on beside the settings: installed packages, and the machine."""

import contextlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("dcsft-harness", "lmms-eval", "torch", "transformers", "peft", "trl", "datasets", "vllm")


def packages() -> dict[str, str]:
    """Versions of the packages that can change a result, those that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def hardware() -> dict[str, object]:
    """What times depend on: processor, logical cores, Python, and the CUDA device where torch is in use."""
    torch = sys.modules.get("torch")
    return {
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's model, where Linux tells it; else its kind."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

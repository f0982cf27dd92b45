"""Whether the disk can hold what a run writes, told before any weights are read."""

import math
import shutil

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig

from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.adapters import WEIGHTS
from dcsft_harness.models.checkpoint import skeleton
from dcsft_harness.training import lora, run_folder
from dcsft_harness.training.config import AdapterConfig
from dcsft_harness.training.job import Job
from dcsft_harness.training.launching import sharding

_FLOAT32 = torch.float32.itemsize
_STATE = 3
"""A checkpoint has the weights that train and AdamW's two moments of them, all in float32."""


def needed(job: Job, base: PreTrainedConfig, rows: int) -> int:
    """Bytes that a run's checkpoints and what it ends with may have on the disk at a time.

    Args:
        job: what is to be trained.
        base: the base's configuration. Its number of weights follows from it, so that neither its files
            nor a network are asked; to build its modules without weights takes 0.1 s at 72 billion.
        rows: items of the training set.

    Raises:
        HarnessError: `lora_target` chooses none of the base's layers.
    """
    state = (_STATE if _keeps_moments(job) else 1) + _is_with_reference(job)
    return trained(job, base) * (state * _FLOAT32 * _checkpoints(job, rows) + _result(job, base))


def check(job: Job, needed: int) -> None:
    """Refuses a disk that cannot hold what a run writes.

    Args:
        job: what is to be trained; its output folder exists.
        needed: what it writes, in bytes.

    Raises:
        HarnessError: says what is needed.
    """
    # A run that is gone on with has some of that on the disk already.
    for there in run_folder.checkpoints(job.output / manifest.UNFINISHED):
        needed -= sum(path.stat().st_size for path in there.rglob("*") if path.is_file())
    disk = shutil.disk_usage(job.output)
    free = disk.free
    if free >= needed or not disk.total:  # some network file systems tell nothing
        return
    written = job.config.save_steps is not None
    what = "the adapter" if job.kind == "adapter" else "all parameters"
    subject = f"checkpoints of {what} need" if written else f"the {job.kind} needs"
    raise HarnessError(
        f"--output {job.output}: {subject} up to {_size(needed)}, and {_size(free)} are free",
        f"Free some space{', or lower --keep, or give --save-steps none' if written else ''}",
    )


def trained(job: Job, base: PreTrainedConfig) -> int:
    """How many weights train: a new adapter's, those of one that is gone on with, or all of the base's.

    Raises:
        HarnessError: `lora_target` chooses none of the base's layers.
    """
    if not isinstance(job.config, AdapterConfig) or job.config.full:
        return sum(weight.numel() for weight in skeleton(base).parameters())
    if job.adapter is not None:
        with safe_open(job.adapter / WEIGHTS, framework="pt") as stored:
            return sum(math.prod(stored.get_slice(name).get_shape()) for name in stored.keys())
    model = skeleton(base)
    chosen = lora.targets(lora.linear_layers(model), job.config.lora_target)
    layers = [model.get_submodule(name) for name in chosen]
    return sum(job.config.lora_rank * (layer.in_features + layer.out_features) for layer in layers)


def _keeps_moments(job: Job) -> bool:
    """Whether the optimizer is AdamW with two moments in float32; others keep less, or unknown sizes."""
    return str(job.config.extra.get("optim", "adamw_torch")).startswith("adamw_torch")


def _checkpoints(job: Job, rows: int) -> int:
    """The most checkpoints that lie on the disk at a time."""
    config = job.config
    if config.save_steps is None:
        return 0
    # One more than stays, as a new one is whole before the oldest goes.
    most = (config.keep or 1) + 1
    samples = rows * config.samples_per_row
    steps = config.max_steps or math.ceil(samples / config.batch_size) * (config.epochs or 1)
    return min(most, math.ceil(steps / config.save_steps))


def _is_with_reference(job: Job) -> bool:
    """Whether checkpoints hold a second adapter: the reference, a copy of the one that training continues."""
    return job.config.has_reference and job.adapter is not None


def _result(job: Job, base: PreTrainedConfig) -> int:
    """Bytes a weight of what the run ends with."""
    if sharding() is not None:
        return 2 * _FLOAT32  # gathered in one place, copied to its own
    return _FLOAT32 if job.kind == "adapter" else (base.dtype or torch.float32).itemsize


def _size(number: float) -> str:
    """Bytes as one reads them."""
    number /= 2**20
    return f"{number / 1024:.1f} GiB" if number >= 1024 else f"{number:.1f} MiB"

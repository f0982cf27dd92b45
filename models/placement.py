"""Which device this process runs on, and its place among the processes of a launch."""

import os
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from dcsft_harness.errors import HarnessError


@dataclass(frozen=True)
class Placement:
    """Where a model goes.

    Attributes:
        device: the device of this process.
        rank: number of this process among all, over all machines.
        world_size: how many processes there are.
        accelerator: accelerate's view of the same, which lmms-eval's own collectives go
            through; None in a single process, where lmms-eval makes its own.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    accelerator: Accelerator | None = None


def check_device(name: str | None) -> torch.device:
    """The device of a name; CUDA where there is any and None is asked for.

    Raises:
        HarnessError: for a name that torch does not know or a device that is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise HarnessError(f"device={name!r} is not a device", "Give cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HarnessError(
            f"device={name!r}: torch sees {torch.cuda.device_count()} CUDA devices", "Give device=cpu"
        )
    return device


def place(name: str | None) -> Placement:
    """Joins the process group of `torchrun` or `accelerate launch`, if there is one.

    Each process loads the whole model and answers its own share of the documents; processes on
    CPUs talk over gloo.

    Raises:
        HarnessError: for an unusable device, or one CUDA device named for several processes.
    """
    device = check_device(name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Placement(device)
    if ":" in (name or ""):
        raise HarnessError(
            f"device={name!r} names one device for several processes", f"Give device={device.type}"
        )
    accelerator = Accelerator(cpu=device.type == "cpu")
    device = torch.device("cpu") if device.type == "cpu" else accelerator.device
    return Placement(device, accelerator.process_index, accelerator.num_processes, accelerator)

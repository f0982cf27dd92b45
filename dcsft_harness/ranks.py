"""This process's rank in a launch of `torchrun` or `accelerate launch`, and communication among ranks.

lmms-eval distributes a task's documents over the processes, called ranks, and gathers the results at rank 0.
Each loads the whole model. A single process is rank 0 of 1, and nothing here does anything then.
"""

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

from dcsft_harness.errors import HarnessError

_T = TypeVar("_T")

PATIENCE = timedelta(days=30)
"""How long a rank waits for a slower one; torch's own half hour would end a long run."""

WATCHED = "DCSFT_WATCHED"
"""Environment variable of processes that `dcsft ... --num-processes` waits for: its process id."""
GRACE = 10.0
"""Seconds that such a process has to clean up once the one that waits is gone."""
ELSEWHERE = 75
"""The exit code, in such a launch, of a rank that ends because another one failed."""


class FailedElsewhere(HarnessError):
    """Another rank of the launch failed and reports it itself; this one only ends."""


class Lost(HarnessError):
    """Another rank of the launch has ended; that rank, or the process that waits, may report why."""


def rank() -> int:
    """This process's number in the launch, over all machines."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def world_size() -> int:
    """The number of processes in the launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def watched() -> bool:
    """Whether a `dcsft` process waits for this launch and reports its result."""
    return WATCHED in os.environ and world_size() > 1


def join() -> None:
    """Joins the other ranks; lmms-eval and accelerate use the process group created here.

    An environment that names other ranks but not how to reach them is refused.
    """
    if world_size() == 1:
        return
    import torch

    # Imported later, its functions would keep the group alive as their default: see `leave`.
    import torch.distributed.nn.functional
    from torch import distributed

    if distributed.is_initialized():
        return
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise HarnessError(
                f"WORLD_SIZE={world_size()} announces several processes, but {name} is not set",
                "Start them with `torchrun` or `accelerate launch`, or unset WORLD_SIZE",
            )
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    # A rank that something else started, such as a runner on another machine, has another parent.
    if watched() and os.getppid() == int(os.environ[WATCHED]):
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with reporting_losses():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    # If one rank fails, the launcher ends the others with this signal: drafts are removed before they exit.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _interrupted)


def _end_with(parent: int) -> None:
    """Ends this process soon after the one that started the launch, which may be killed silently.

    Otherwise the ranks would work on, hold their devices, and be in the way of the same command.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    if rank() == 0:
        sys.stderr.write("dcsft: the process that started this launch is gone. Rerun the same command.\n")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)  # waiting for another rank, or inside a library, it may not see the signal
    os._exit(ELSEWHERE)


def _interrupted(*_: object) -> None:
    """Ignores a second Ctrl-C, from the launcher, while the first, from the terminal, is being handled."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end(*_: object) -> None:
    """Ends this process on the launcher's signal, which may be repeated during cleanup."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def ending() -> None:
    """Ignores the launcher's signal from here on: it would interrupt other packages' cleanup."""
    if world_size() > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def leave() -> None:
    """Leaves the process group when all is done.

    The group's threads end with its last reference. A group that still exists at interpreter exit may abort
    the process, because it may be releasing objects that the interpreter has to free.
    """
    torch = sys.modules.get("torch")
    if world_size() > 1 and torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()  # a model distributed over ranks refers to the group, and to itself


def gathered(value: _T) -> list[_T]:
    """A value of every rank, in their order, each of which must call it; an error if another one ended."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * world_size()
    with reporting_losses():
        distributed.all_gather_object(found, value)
    return found


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Barrier: continues after the block only if every rank succeeded.

    If several ranks raise the same error, only the first of them reports it. The block must not itself wait
    for other ranks.

    Raises:
        HarnessError: the error of this rank, or (`FailedElsewhere`) of another one.
    """
    if world_size() == 1:
        yield
        return
    problem = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised again once the others know
        problem = error
    said = gathered(None if problem is None else str(problem))
    if problem is not None and str(problem) not in said[: rank()]:
        raise problem
    if any(one is not None for one in said):
        raise FailedElsewhere("another process of this launch failed") from problem


@contextlib.contextmanager
def reporting_losses() -> Iterator[None]:
    """Turns torch's errors about a rank that ended into `Lost`."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not _lost(error):
            raise
        raise Lost(
            "another process of this launch ended before it finished",
            "See its own message or the launcher's",
        ) from error


def _lost(error: RuntimeError) -> bool:
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo" in str(error)

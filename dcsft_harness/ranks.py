"""This process's place among those of `torchrun` or `accelerate launch`, and what they tell each other.

lmms-eval deals a task's documents out to the processes, which it calls ranks, and gathers what they got at
rank 0. Each loads the whole model. A process of its own is rank 0 of 1, and nothing here does anything then.
"""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

from dcsft_harness.errors import HarnessError

_T = TypeVar("_T")

PATIENCE = timedelta(days=30)
"""How long a rank waits for one that has more to do; torch's own half an hour would end a long run."""


WATCHED = "DCSFT_WATCHED"
"""Set in the environment of processes that `dcsft train --num-processes` started, and waits for."""
ELSEWHERE = 75
"""The exit code, in such a launch, of a rank that ends because another one did."""


class FailedElsewhere(HarnessError):
    """Another rank of the launch was refused something and says so itself; this one only ends."""


class Lost(HarnessError):
    """Another rank of the launch has ended; it or whoever waits for the launch may say why."""


def rank() -> int:
    """This process's number among those of the launch, over all machines."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes the launch has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def watched() -> bool:
    """Whether a `dcsft` waits for this launch, and says how it ended."""
    return WATCHED in os.environ and world_size() > 1


def join() -> None:
    """Meets the other ranks; lmms-eval and accelerate use the process group that is made here.

    Raises:
        HarnessError: the environment says that there are others, but not how to reach them.
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
    with telling_losses():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    # The launcher ends the others with this signal where one fails: drafts are removed on the way out.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _interrupted)


def _interrupted(*_: object) -> None:
    """Ctrl-C comes from the terminal, and once more from the launcher: while all is being tidied up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end(*_: object) -> None:
    """Ends this process on the launcher's signal, which may come again while it tidies up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def ending() -> None:
    """Lets the launcher's signal be from here on: it would interrupt what packages do on the way out."""
    if world_size() > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def leave() -> None:
    """Parts from the other ranks when all is done.

    The group's threads end with its last reference. One that is left when the interpreter ends may abort
    the process, as it may just be letting go of what the interpreter has to free.
    """
    torch = sys.modules.get("torch")
    if world_size() > 1 and torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()  # a model that was spread over the ranks refers to the group, and to itself


def gathered(value: _T) -> list[_T]:
    """What every rank gives here, in their order; each must come here, and waits for the others.

    Raises:
        HarnessError: another rank ended.
    """
    if world_size() == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * world_size()
    with telling_losses():
        distributed.all_gather_object(found, value)
    return found


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Goes on behind the block when every rank has come through it, and nowhere if one has not.

    What several ranks are refused in the same words is said by the first of them. The block must not
    itself wait for other ranks.

    Raises:
        HarnessError: this rank was refused something, or (`FailedElsewhere`) another was.
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
def telling_losses() -> Iterator[None]:
    """Makes a `Lost` of what torch says where another rank has ended.

    Raises:
        Lost: it has.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not _lost(error):
            raise
        raise Lost(
            "another process of this launch ended before its work was done",
            "Its own message or the launcher's says why",
        ) from error


def _lost(error: RuntimeError) -> bool:
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo" in str(error)

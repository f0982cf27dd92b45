"""A Ray cluster: reached or started, its slots counted, and what it says of failures in one sentence."""

import contextlib
import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from dcsft_harness.errors import HarnessError

RETRIES = 3
"""How often a chunk is answered again whose actor dies; a chunk that kills each of them is an error."""


def check(actors: int | None) -> None:
    """Refuses what cannot be spread, without starting anything.

    Raises:
        HarnessError: Ray is not installed, or the number of actors is out of range.
    """
    if importlib.util.find_spec("ray") is None:
        raise HarnessError("--engine ray needs Ray", "Install it with `pip install 'dcsft-harness[ray]'`")
    if actors is not None and actors < 1:
        raise HarnessError(f"--actors {actors} is out of range", "It must be at least 1")


def connect() -> bool:
    """Joins the cluster that RAY_ADDRESS names, or starts one on this machine.

    Returns:
        Whether the cluster is this process's own to end.

    Raises:
        HarnessError: the one that is named cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports each start to its makers
    import ray

    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        _knock(address or "")
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        if address is None:
            raise HarnessError(f"no Ray cluster could be started: {said}", "Look at its logs") from error
        raise HarnessError(
            f"RAY_ADDRESS={address} cannot be reached: {said}",
            "Check it; a cluster with authentication wants RAY_AUTH_MODE=token and its token here too",
        ) from error
    return True


def _knock(address: str) -> None:
    """Finds out in seconds that nobody answers at HOST:PORT, where Ray itself tries for minutes.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def slots(actors: int | None, on_cpu: bool) -> tuple[dict[str, int], int]:
    """What one actor takes of the cluster, and how many actors there are to be.

    Args:
        actors: how many are asked for; None takes every slot.
        on_cpu: whether to leave GPUs alone.

    Raises:
        HarnessError: the cluster has fewer slots than that.
    """
    import ray

    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    kind = "GPU" if there.get("GPU", 0) >= 1 and not on_cpu else "CPU"
    count = int(there.get(kind, 0))
    if count < (actors or 1):
        raise HarnessError(
            f"--actors {actors or 1} asks for more than the Ray cluster's {count} {kind} slots",
            "Ask for fewer, or add machines to the cluster",
        )
    return ({"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}), actors or count


@contextlib.contextmanager
def telling_failures() -> Iterator[None]:
    """Raises an actor's own errors as they were there, and says in a sentence that actors die.

    Raises:
        HarnessError: a model refused something, or one chunk cost the lives of several actors.
    """
    from ray.exceptions import RayActorError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, HarnessError) else error) from None
    except RayActorError as error:
        raise HarnessError(
            f"the actors of the Ray cluster die: {' '.join(str(error).split())[:300]}",
            f"A chunk was tried {1 + RETRIES} times; see the workers' logs, or lower batch_size",
        ) from error

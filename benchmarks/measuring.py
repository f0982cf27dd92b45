"""Paired rounds: each way runs once per round, in turn, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Way = Callable[[], Any]


def seconds(work: Way) -> float:
    """Wall-clock seconds, including the device's work."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Waits for the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rounds(ways: Mapping[str, Way], number: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; each runs once beforehand, uncounted."""
    for work in ways.values():
        seconds(work)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for at in range(number):
        order = list(ways) if at % 2 == 0 else list(ways)[::-1]
        for name in order:
            found[name].append(seconds(ways[name]))
    return found


def ratio(found: Mapping[str, list[float]], over: str, under: str) -> float:
    """The median over the rounds of one way's time divided by another's in the same round."""
    return statistics.median(a / b for a, b in zip(found[over], found[under], strict=True))


def median(found: Mapping[str, list[float]], name: str) -> float:
    """Median seconds of a way."""
    return statistics.median(found[name])

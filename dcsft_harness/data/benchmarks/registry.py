"""Every source by the task that it is for, and the tasks that ask a part of one."""

from dcsft_harness.data.benchmarks import (
    imagenet,
    imagenet_train,
    mathverse,
    mathvision,
    mathvista,
    mmk12,
    mmmu,
    ref_l4,
    refcoco,
    vlm_r1,
    wemath,
)
from dcsft_harness.data.benchmarks.source import Source, View
from dcsft_harness.errors import unknown_name

_CLASSIFICATION = (*imagenet.SOURCES, *imagenet_train.SOURCES)
_GROUNDING = (*vlm_r1.SOURCES, *refcoco.SOURCES, *ref_l4.SOURCES)
_REASONING = (
    *mathverse.SOURCES,
    *mathvision.SOURCES,
    *mathvista.SOURCES,
    *mmk12.SOURCES,
    *mmmu.SOURCES,
    *wemath.SOURCES,
)

SOURCES: dict[str, Source] = {source.task: source for source in (*_CLASSIFICATION, *_GROUNDING, *_REASONING)}
VIEWS: dict[str, View] = {view.task: view for view in (*ref_l4.VIEWS, *mmmu.VIEWS)}


def source_of(task: str) -> Source:
    """The source whose prepared folder a task reads.

    Raises:
        HarnessError: the task is none of the suite's benchmarks.
    """
    name = VIEWS[task].of if task in VIEWS else task
    if name not in SOURCES:
        raise unknown_name("benchmark", task, [*SOURCES, *VIEWS], "dcsft tasks list")
    return SOURCES[name]


def has_source(task: str) -> bool:
    """Whether a task reads a prepared folder."""
    return task in SOURCES or task in VIEWS


def published(task: str) -> int | None:
    """How many rows of a task's were published; None where that could not be verified."""
    return VIEWS[task].count if task in VIEWS else source_of(task).count

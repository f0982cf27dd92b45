"""`dcsft data overlap`: Find images of a pool that tasks evaluate on, exactly or nearly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsft_harness.settings import Settings, option
from dcsft_harness.stages.stage import Notes, Progress, Stage


class OverlapOptions(Settings):
    """What to compare."""

    pool: str = option(about="The pool, a task.", positional=True, reads="pool")
    tasks: tuple[str, ...] = option(about="Evaluation tasks.", positional=True, reads="tasks", min_length=1)
    distance: int = option(4, "Bits that near copies' hashes may differ in.", ge=0, le=16)


def run(options: OverlapOptions, output: Path, progress: Progress | None) -> Notes:
    """Compares."""
    from dcsft_harness.curation import overlap

    return overlap.overlap(options.pool, list(options.tasks), output, options.distance, progress)


def summary(notes: Mapping[str, Any]) -> str:
    """The number of items that share an image, and the number of pairs per task."""
    shared = f"{notes['shared_items']} of {notes['items']} items of {notes['pool']} share an image"
    tasks = (f"{name} {one['exact']} exact, {one['near']} near" for name, one in notes["tasks"].items())
    return f"{shared}; pairs: {'; '.join(tasks)}"


STAGE = Stage(
    verb="data overlap",
    options=OverlapOptions,
    run=run,
    summary=summary,
    writes="overlap",
    example="""dcsft data overlap dcsft_refcoco_pool dcsft_ref_l4 dcsft_lisa --output overlap
dcsft curate labels --keep easy,medium --exclude overlap --output curated""",
    prepared=True,
)

"""`dcsft data overlap`: Find images that a pool shares with evaluation tasks, exactly or nearly."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcsft_harness.data import OwnRows
from dcsft_harness.errors import HarnessError
from dcsft_harness.settings import option
from dcsft_harness.stages import opening
from dcsft_harness.stages.stage import Notes, Progress, Stage

if TYPE_CHECKING:
    from dcsft_harness.lmms import Task


class OverlapOptions(opening.OwnTasks, OwnRows):
    """What to compare."""

    pool: str = option(about="The pool: a task, or a file of your own rows.", positional=True, reads="pool")
    tasks: tuple[str, ...] = option(
        about="Evaluation tasks, or files of your own held-out rows.",
        positional=True,
        reads="tasks",
        min_length=1,
        also="--task",
    )
    on_error: Literal["stop", "skip"] = option(
        "stop", "What to do with an unusable row of your own: skip leaves it out."
    )
    distance: int = option(4, "Maximum number of hash bits in which near copies may differ.", ge=0, le=16)


def run(options: OverlapOptions, output: Path, progress: Progress | None) -> Notes:
    """Compares."""
    from dcsft_harness import lmms
    from dcsft_harness.curation import overlap
    from dcsft_harness.sampling import own_data, own_files

    lmms.include(options.include_path)
    for name in (options.pool, *options.tasks):
        if name not in lmms.task_index():
            own_files.refuse_lost(name)
    own = [name for name in (options.pool, *options.tasks) if opening.is_own(name)]
    if not own:
        opening.refuse_own(options, "files of your own rows")
    files = {name: Path(name) for name in own}
    if options.pool in own and options.scorer is None:
        raise HarnessError(
            f"{options.pool} needs --scorer: item ids depend on how answers are read",
            "Pass the one that sampling uses",
        )

    def read(name: str) -> "Task":
        scorer = options.scorer if name == options.pool else own_data.ANY
        root, outside = options.image_root, options.allow_outside_root
        skip = options.on_error == "skip"
        return own_data.open_file(files[name], scorer, root, skip, outside, keep_unreadable=False)

    opened = {name: read(name) for name in own}
    described = own_data.described(files[options.pool], options) if options.pool in own else {}
    return overlap.overlap(
        options.pool, list(options.tasks), output, options.distance, progress, opened, files, described
    )


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
dcsft curate labels --keep easy,medium --exclude overlap --output curated
dcsft data overlap mine.jsonl held-out.jsonl --scorer exact_word --output overlap""",
    prepared=True,
    light=(0.9e9, 0.2),
)

"""The core's only access to lmms-eval: its tasks, models and runs, through the Python API.

lmms-eval's own command line always exits with 0; here an unknown name, a task that does not load or a run
that fails is a `HarnessError`, raised before a model is loaded where possible.
"""

from dcsft_harness.lmms.documents import (
    describe,
    describe_item,
    describe_without_images,
    refuse_marked,
    score_of,
    stored_images,
    verdicts_of,
)
from dcsft_harness.lmms.protocols import Model, ObservedModel, Task, is_observed
from dcsft_harness.lmms.running import (
    Answered,
    Progress,
    check_model,
    checkpoint_argument,
    command_line,
    filtered,
    generation_settings,
    open_model,
    run,
    scorers_of,
)
from dcsft_harness.lmms.tasks import (
    include,
    is_file,
    make_task,
    open_tasks,
    quiet,
    set_generation,
    task_index,
)

__all__ = [
    "Answered",
    "Model",
    "ObservedModel",
    "Progress",
    "Task",
    "check_model",
    "checkpoint_argument",
    "command_line",
    "describe",
    "describe_item",
    "describe_without_images",
    "filtered",
    "generation_settings",
    "include",
    "is_file",
    "is_observed",
    "make_task",
    "open_model",
    "open_tasks",
    "quiet",
    "refuse_marked",
    "run",
    "score_of",
    "scorers_of",
    "set_generation",
    "stored_images",
    "task_index",
    "verdicts_of",
]

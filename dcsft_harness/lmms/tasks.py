"""Tasks by name, from this suite and from lmms-eval, and changes to them."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dcsft_harness.data.benchmarks import prepared, registry
from dcsft_harness.errors import HarnessError, refusal, unknown_name, visible_lines
from dcsft_harness.lmms.listing import members
from dcsft_harness.tasks import path as task_path


def quiet() -> None:
    """Keeps lmms-eval's log and the bars of `datasets` off the terminal; errors still show."""
    from datasets import disable_progress_bars
    from loguru import logger

    # Also where `datasets` was imported before the command line could set its environment variable.
    disable_progress_bars()
    logger.remove()
    logger.add(_print_visible, level="ERROR", format="{message}")


def _print_visible(message: str) -> None:
    """Prints a log record; it may quote anything."""
    print(visible_lines(message.rstrip("\n")), file=sys.stderr)


def check_imports() -> None:
    """Imports what lmms-eval imports of others' internals when it evaluates, before a model is loaded.

    Raises:
        ImportError: a package that is installed here has moved them.
    """
    from lmms_eval import evaluator

    patch = getattr(evaluator, "_enable_reentrant_filelocks", None)
    if patch is not None:
        patch()


def task_index(names: Iterable[str] = ()) -> Mapping[str, dict[str, Any]]:
    """Every known task, group and tag by name; lmms-eval's own only when a name needs them.

    Indexing lmms-eval's 1,700 tasks takes seconds, ours milliseconds.
    """
    return dict(manager(names).task_index)


def manager(names: Iterable[str] = ()) -> Any:  # noqa: ANN401 - lmms_eval.tasks.TaskManager
    """What lmms-eval finds tasks with: the suite's, and lmms-eval's own if one of the names needs them."""
    quiet()
    ours = _indexed(task_path(), False)
    if all(name in ours.task_index for name in names):
        return ours
    return _indexed(task_path(), True)


@cache
def _indexed(folder: Path, defaults: bool) -> Any:  # noqa: ANN401 - lmms_eval.tasks.TaskManager
    """The tasks of a folder, with lmms-eval's own if asked for: read once in a process."""
    check_imports()
    from lmms_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=defaults)


def open_tasks(names: Sequence[str]) -> dict[str, Any]:
    """Loads tasks, groups or tags by name, as chat tasks.

    Returns:
        Task name -> lmms-eval task object, in the order asked for.

    Raises:
        HarnessError: a name is unknown, or a task's data or functions do not load.
    """
    known = manager(names)
    tasks: dict[str, Any] = {}
    for name in names:
        if name not in known.task_index:
            raise unknown_name("task", name, known.task_index, "dcsft tasks list")
    refuse_unprepared(names)
    for name in names:
        try:
            loaded = known.load_task_or_group([name], task_type="chat")
        except Exception as error:  # noqa: BLE001 - a task may fail to load in any way; none is hidden
            cause = _cause(error)
            if isinstance(cause, HarnessError):
                raise cause from error
            full = refusal(cause) is not None
            raise HarnessError(
                f"task {name!r} does not load: {type(cause).__name__}: {cause}",
                "Free some space, or set DCSFT_CACHE and HF_HOME to folders on another disk"
                if full
                else "`dcsft tasks check` says what it needs",
            ) from error
        tasks.update(_leaves(loaded))
    return tasks


def refuse_unprepared(names: Iterable[str]) -> None:
    """Refuses tasks whose data is not prepared; lmms-eval would try to load them five times first.

    Raises:
        HarnessError: says of each what prepares it.
    """
    refused: dict[str, HarnessError] = {}
    for task in dict.fromkeys(task for name in names for task in members(name)):
        if registry.has_source(task):
            try:
                prepared.describe(task)
            except HarnessError as error:
                refused[task] = error
    if len(refused) == 1:
        raise next(iter(refused.values()))
    if refused:
        commands = dict.fromkeys(f"`{registry.source_of(task).command()}`" for task in refused)
        raise HarnessError(
            f"the data of {len(refused)} tasks is not prepared: {', '.join(refused)}",
            f"Run {', '.join(commands)}; `dcsft tasks check {' '.join(refused)}` says what each needs",
        )


def _cause(error: BaseException) -> BaseException:
    """What lmms-eval's retry wrapper hides."""
    attempt = getattr(error, "last_attempt", None)
    inner = attempt.exception() if attempt is not None else None
    return inner or error


def _leaves(loaded: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in loaded.items():
        if isinstance(value, Mapping):
            found.update(_leaves(value))
        else:
            found[str(name)] = value[1] if isinstance(value, tuple) else value
    return found


def make_task(config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - lmms_eval's ConfigurableMessagesTask
    """A chat task from a configuration, as the YAML file would give it."""
    from lmms_eval.api.task import ConfigurableMessagesTask

    quiet()
    return ConfigurableMessagesTask(config=dict(config))


def set_generation(task: Any, samples: int, arguments: Mapping[str, object]) -> None:  # noqa: ANN401
    """Asks a task for G responses per document and hands all of them to its scorer.

    `repeats` alone keeps one of the G; the `take_first_k` filter keeps them all.
    """
    from lmms_eval.filters import build_filter_ensemble

    task.set_config(key="repeats", value=samples)
    task.set_config(key="generation_kwargs", value=dict(arguments), update=True)
    task._filters = [build_filter_ensemble("all", [["take_first_k", {"k": samples}]])]

"""Tasks by name, from this suite and from lmms-eval: listed, opened, changed and checked."""

import fnmatch
import random
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from dcsft_harness import reading
from dcsft_harness.artifacts.manifest import Manifest
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.errors import HarnessError, cut, refusal, room, unknown_name, visible_lines
from dcsft_harness.lmms.documents import refuse_reversed, refuse_unscored
from dcsft_harness.lmms.protocols import Task
from dcsft_harness.scoring.normalize import answer_part
from dcsft_harness.scoring.verdict import Response
from dcsft_harness.tasks import path as task_path

if TYPE_CHECKING:
    from lmms_eval.tasks import TaskManager


# The suite's tasks as a table, read only from the YAML files: no lmms-eval import, no data.


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """A safe loader that reads `!function` as the name after it; in C where it can, eight times faster."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


class _FullLoader(getattr(yaml, "CFullLoader", yaml.FullLoader)):  # type: ignore[misc]
    """lmms-eval's loader, in C where it can: its 1,700 task files take 0.5 s instead of 3.3 s."""


_FullLoader.add_constructor("!function", lambda loader, node: node)


@contextmanager
def read_in_c() -> Iterator[None]:
    """While this is open lmms-eval reads YAML in C, and leaves its `!function` alone: enough for an index."""
    original = yaml.full_load  # noqa: TID251 - as upstream
    yaml.full_load = lambda stream: yaml.load(stream, _FullLoader)  # noqa: TID251
    try:
        yield
    finally:
        yaml.full_load = original  # noqa: TID251


@contextmanager
def indexing_in_c() -> Iterator[None]:
    """While this is open lmms-eval makes its own indexes as `read_in_c` does."""
    from lmms_eval.tasks import TaskManager

    original = TaskManager.initialize_tasks

    def indexed(self: "TaskManager", *given: Any, **named: Any) -> Any:  # noqa: ANN401 - as upstream
        with read_in_c():
            return original(self, *given, **named)

    TaskManager.initialize_tasks = indexed
    try:
        yield
    finally:
        TaskManager.initialize_tasks = original


def _config(file: Path) -> dict[str, Any]:
    """What a YAML file holds, with the name of a `!function`; empty where it is no mapping.

    What is wrong with a file is said where its task is opened.
    """
    with suppress(yaml.YAMLError, UnicodeDecodeError):
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: TID251 - the user's task
        return config if isinstance(config, dict) else {}
    return {}


def listing() -> list[dict[str, Any]]:
    """One row per task: its name, family, role, distribution and version, sorted by name."""
    names = ("family", "role", "distribution", "version")
    rows = [
        {"task": config["task"], **{name: config.get("metadata", {}).get(name, "-") for name in names}}
        for config in map(_config, task_path().rglob("*.yaml"))
        if isinstance(config.get("task"), str)
    ]
    return sorted(rows, key=lambda row: str(row["task"]))


def grounding() -> set[str]:
    """The tasks whose answers are boxes."""
    return {row["task"] for row in listing() if row["family"] == "grounding"}


@cache
def groups() -> dict[str, list[str]]:
    """The suite's groups by name, each with its tasks; nested groups are expanded."""
    configs = map(_config, sorted(task_path().rglob("*.yaml")))
    found = {config["group"]: list(config["task"]) for config in configs if "group" in config}
    return {name: members(name, found) for name in found}


def members(name: str, known: dict[str, list[str]] | None = None) -> list[str]:
    """The tasks of a name: a group's, a pattern's, or the task itself."""
    known = groups() if known is None else known
    if (matching := _matching(name)) != [name]:
        return list(dict.fromkeys(task for one in matching for task in members(one, known)))
    if name not in known:
        return [name]
    return list(dict.fromkeys(task for part in known[name] for task in members(part, known)))


def sources(file: Path) -> list[Path]:
    """A task's YAML file, those that it includes, their `data_files`, and the Python files of `!function`.

    Of these also the files beside them that they import.
    """
    found: dict[Path, None] = {}
    waiting = [file]
    while waiting:
        one = waiting.pop()
        if one in found or not one.is_file():
            continue
        found[one] = None
        if is_file(one.name):
            config = _config(one)
            included = config.get("include") or []
            names = [included] if isinstance(included, str) else [str(name) for name in included]
            text = one.read_text(encoding="utf-8", errors="replace")
            modules = re.findall(r"!function\s+([\w.]+)\.\w+", text)
            # As lmms-eval finds them: an included file also from the working directory.
            waiting += [Path(name) if Path(name).is_file() else one.parent / name for name in names]
            waiting += [
                path
                for module in modules
                for path in reading.imported_files(one.parent / f"{module}.py", one.parent)
            ]
            waiting += _data_files(config, one.parent)
    return list(found)


_TABLES = frozenset((".arrow", ".parquet", ".json", ".jsonl", ".csv", ".tsv"))
"""Files of rows in a task's folder of data; its images may be too many to hash for each command."""


def _data_files(config: Mapping[str, Any], folder: Path) -> list[Path]:
    """The files of rows that a task's YAML file in this folder names, as lmms-eval finds them."""
    given, place = config.get("dataset_kwargs"), Path(str(config.get("dataset_path")))
    waiting: list[Any] = [given.get("data_files") if isinstance(given, Mapping) else None]
    found = sorted(one for one in place.rglob("*") if one.suffix in _TABLES) if place.is_dir() else []
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            found += [folder / one if (folder / one).is_file() else Path(one)]
        elif isinstance(one, Mapping | list):
            waiting += one.values() if isinstance(one, Mapping) else one
    return found


def defined_in(folder: Path, names: Iterable[str]) -> list[Path]:
    """The `sources` of the tasks and groups of these names or patterns that a folder defines."""
    files = _definitions(folder)
    found: dict[str, list[Path]] = {}
    waiting = list(names)
    while waiting:
        for name in fnmatch.filter(files, waiting.pop()):  # patterns, too
            if name not in found:
                found[name] = [path for file in files[name] for path in sources(file)]
                waiting += [part for file in files[name] for part in _parts(_config(file))]
    return list(dict.fromkeys(path for some in found.values() for path in some))


_SKIPPED = frozenset(("__pycache__", ".ipynb_checkpoints"))
"""Folders in which lmms-eval looks for no tasks."""


def _definitions(folder: Path) -> dict[str, list[Path]]:
    """Name -> files of the tasks and groups that the YAML files of a folder define."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.yaml")):
        if _SKIPPED & {*file.relative_to(folder).parts}:
            continue
        config = _config(file)
        name = config["task"] if isinstance(config.get("task"), str) else config.get("group")
        if isinstance(name, str):
            found.setdefault(name, []).append(file)
    return found


def _parts(config: Mapping[str, Any]) -> list[str]:
    """The tasks and groups that a group's YAML file lists."""
    parts = config.get("task")
    return [part for part in parts if isinstance(part, str)] if isinstance(parts, list) else []


def quiet() -> None:
    """Hides lmms-eval's log and the bars of `datasets`; errors still show."""
    from datasets import disable_progress_bars
    from loguru import logger

    # Also if `datasets` was imported before the command line could set its environment variable.
    disable_progress_bars()
    logger.remove()
    # A record may quote anything.
    shown = lambda record: print(visible_lines(record.rstrip("\n")), file=sys.stderr)  # noqa: E731
    logger.add(shown, level="ERROR", format="{message}")


def check_imports() -> None:
    """Imports the internals of other packages that evaluation uses; an ImportError if one has moved."""
    from lmms_eval import evaluator

    patch = getattr(evaluator, "_enable_reentrant_filelocks", None)
    if patch is not None:
        patch()


def task_index(names: Iterable[str] = ()) -> Mapping[str, dict[str, Any]]:
    """Every known task, group and tag by name; lmms-eval's own only when a name needs them.

    Indexing lmms-eval's 1,700 tasks takes half a second, ours milliseconds.
    """
    return dict(manager(names).task_index)


def manager(names: Iterable[str] = (), further: Sequence[Path] = ()) -> "TaskManager":
    """lmms-eval's task finder: for the suite's tasks, and lmms-eval's own if a name needs them.

    `further` are folders of task YAML beside those that are included.
    """
    quiet()
    theirs = (*_INCLUDED.get(), *further)
    written = tuple(
        (file, file.stat().st_mtime_ns)
        for folder in theirs
        for file in sorted(folder.rglob("*.yaml"))
        if file.is_file()
    )
    ours = _indexed((*theirs, task_path()), False, written)
    if all(name in ours.task_index for name in names):
        return ours
    return _indexed((*theirs, task_path()), True, written)


def include(folder: Path | None) -> None:
    """Adds a folder of a user's own task YAML; of tasks with one name, the last folder's counts.

    It stays for this thread, or to the end of `including`. None adds nothing.

    Raises:
        HarnessError: the folder has no YAML files.
    """
    if folder is None:
        return
    if not any(folder.rglob("*.yaml")):
        problem = "has no YAML files" if folder.is_dir() else "is not a folder"
        raise HarnessError(f"--include-path {folder} {problem}", "Pass the folder of your tasks' YAML files")
    # lmms-eval takes a task from the first folder that defines it.
    others = (one for one in _INCLUDED.get() if one != folder.resolve())
    _INCLUDED.set((folder.resolve(), *others))


_INCLUDED: ContextVar[tuple[Path, ...]] = ContextVar("_INCLUDED", default=())
"""Folders of the users' own tasks."""


@contextmanager
def including() -> Iterator[None]:
    """Forgets the folders included while this is open when it ends."""
    reset = _INCLUDED.set(_INCLUDED.get())
    try:
        yield
    finally:
        _INCLUDED.reset(reset)


@lru_cache(maxsize=8)
def _indexed(
    folders: tuple[Path, ...], defaults: bool, written: tuple[tuple[Path, int], ...] = ()
) -> "TaskManager":
    """The tasks of some folders, with lmms-eval's own if requested: read once per process.

    `written` are the users' own files and when each was changed: a notebook's are edited between calls.
    """
    check_imports()
    from lmms_eval.tasks import TaskManager

    with read_in_c():
        made = TaskManager(include_path=list(map(str, folders)), include_defaults=defaults)
    if defaults:  # a name that lmms-eval has, too, is the user's task, as it is without them
        made._task_index |= _indexed(folders, False, written).task_index
    return made


def is_file(name: str) -> bool:
    """Whether a task is named by its YAML file, and not by its name."""
    return name.endswith((".yaml", ".yml"))


def open_tasks(names: Sequence[str]) -> dict[str, Task]:
    """Loads tasks, groups or tags by name or pattern (`dcsft_digits*`), or by YAML files, as chat tasks.

    They come in the order asked for, those of a pattern by name.

    Raises:
        HarnessError: a name is unknown, or a task's data or functions do not load.
    """
    names = [one for name in names for one in _matching(name)]
    known = refuse_unknown([name for name in names if not is_file(name)])
    tasks: dict[str, Task] = {}
    refuse_unprepared(names)
    make_cache()
    fix_examples()
    for name in names:
        try:
            if is_file(name):
                loaded = _of_file(Path(name))
            else:
                loaded = known.load_task_or_group([name], task_type="chat")
        except HarnessError:
            raise
        except Exception as error:  # noqa: BLE001 - a task may fail to load in any way; none is hidden
            why = unwrapped(error)
            if isinstance(why, HarnessError):
                raise why from why.__cause__  # not a circle of both
            if isinstance(why, ModuleNotFoundError) and not name.startswith("dcsft_"):
                raise HarnessError(
                    f"task {name!r} needs the package {why.name}, which is not installed",
                    f"Install what provides it, such as `pip install {why.name}`",
                ) from None
            reason = refusal(why)
            full = "Free some space, or set DCSFT_CACHE and HF_HOME to folders on another disk"
            raise HarnessError(
                f"task {name!r} does not load: {type(why).__name__}: {why}",
                room(reason, full) if reason else "`dcsft tasks check` shows what it needs",
            ) from error
        tasks.update(leaves(loaded))
    return tasks


def refuse_unknown(names: Sequence[str]) -> "TaskManager":
    """Refuses names of no task and of no group; returns the index that has them."""
    ours = manager().task_index
    for name in names:
        if name.startswith("dcsft_") and name not in ours:
            raise unknown_name("task", name, ours, "dcsft tasks list")  # without indexing lmms-eval's own
    known = manager(names)
    for name in names:
        if name not in known.task_index and Path(name).is_dir():
            raise HarnessError(
                f"task {name!r} is a folder", "Pass it to --include-path, and name its tasks here"
            )
        if name not in known.task_index:
            raise unknown_name("task", name, known.task_index, "dcsft tasks list")
    for folder in _INCLUDED.get():
        files = _definitions(folder)
        for name in (*names, *_files(names)):
            if len(files.get(name, ())) > 1:  # lmms-eval takes any of them
                listed = " and ".join(str(file) for file in files[name])
                raise HarnessError(f"task {name!r} is defined in {listed}", "Rename one of them in its file")
    return known


def _matching(name: str) -> list[str]:
    """The tasks that a pattern with `*`, `?` or `[...]` stands for, as in lmms-eval; else the name itself."""
    if is_file(name) or not set("*?[") & set(name):
        return [name]
    index = manager([] if name.startswith("dcsft_") else [name])
    return sorted(fnmatch.filter(index.task_index, name)) or [name]


def _of_file(path: Path) -> dict[str, Task]:
    """The task in a YAML file, which may include others and name functions of Python files beside it."""
    if not path.is_file():
        raise HarnessError(f"the task's file {path} does not exist", "Check the path")
    from lmms_eval.utils import load_yaml_config

    quiet()
    try:
        plain = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: TID251 - the user's task
        config = load_yaml_config(str(path.resolve()), mode="full") if isinstance(plain, dict) else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise HarnessError(f"{path} is not valid YAML ({cut(said)})", "Fix the syntax") from error
    if not isinstance(config, Mapping) or not isinstance(config.get("task"), str) or "group" in config:
        raise HarnessError(
            f"{path} holds no task: it has no `task: NAME`, or is a group",
            "Name a file of one task, or pass the folder with --include-path and name the group",
        )
    return {config["task"]: make_task(config)}


def refuse_unprepared(names: Iterable[str], folders: Sequence[Path] = ()) -> None:
    """Refuses tasks whose data is not prepared; lmms-eval would try to load them five times first.

    The error names the command that prepares each one. Third-party tasks, in `folders` too, may read the rows
    of one of the suite's, whose file they include.
    """
    refused: dict[str, HarnessError] = {}
    tasks = list(dict.fromkeys(task for name in names for task in members(name)))
    others = [task for task in tasks if not prepared.has_source(task)]
    for task in dict.fromkeys([*tasks, *map(_dataset_name, _files(others, folders).values())]):
        if prepared.has_source(task):
            try:
                prepared.describe(task)
            except HarnessError as error:
                refused[task] = error
    if len(refused) == 1:
        raise next(iter(refused.values()))
    if refused:
        commands = dict.fromkeys(f"`{prepared.source_of(task).command()}`" for task in refused)
        raise HarnessError(
            f"the data of {len(refused)} tasks is not prepared: {', '.join(refused)}",
            f"Run {', '.join(commands)}; `dcsft tasks check {' '.join(refused)}` shows what each needs",
        )


def _files(names: Sequence[str], folders: Sequence[Path] = ()) -> dict[str, Path]:
    """The YAML file of each task that names stand for, also in groups; an unknown name has none."""
    found = {name: Path(name) for name in names if is_file(name)}
    waiting, seen = [name for name in names if name not in found], set[str]()
    index = manager(waiting, folders).task_index
    while waiting:
        entry = index.get(name := waiting.pop(), {})
        file = None if entry.get("yaml_path") in (None, -1) else Path(entry["yaml_path"])
        if entry.get("type") == "task" and file is not None:
            found[name] = file
        elif name not in seen:  # a tag, or a group, whose file has its tasks
            seen.add(name)
            waiting += _parts(entry if file is None else _config(file))
    return found


def _dataset_name(file: Path) -> str:
    """The rows that a task's YAML file names, or one that it includes; empty if none does."""
    configs = (_config(path) for path in sources(file) if is_file(path.name))
    return str(next((config["dataset_name"] for config in configs if "dataset_name" in config), ""))


def unwrapped(error: BaseException) -> BaseException:
    """The cause that lmms-eval's retry wrapper hides."""
    attempt = getattr(error, "last_attempt", None)
    inner = attempt.exception() if attempt is not None else None
    return inner or error


def leaves(loaded: Mapping[Any, Any]) -> dict[str, Task]:
    """The tasks in what lmms-eval loads, by name; those of its nested groups too."""
    found: dict[str, Task] = {}
    for name, value in loaded.items():
        if isinstance(value, Mapping):
            found.update(leaves(value))
        else:
            found[str(name)] = value[1] if isinstance(value, tuple) else value
    return found


def fix_examples() -> None:
    """Makes few-shot examples a function of their seed and the question; a second call changes nothing.

    lmms-eval draws other examples at every call, so that an item would be described with some and asked with
    others, and a resumed run or another rank would see yet others.
    """
    from lmms_eval.api.samplers import ContextSampler

    drawn = ContextSampler.get_context
    if getattr(drawn, "fixed", False):
        return

    def get_context(self: Any, doc: Mapping[str, Any], count: int) -> str:  # noqa: ANN401 - lmms-eval's own
        seeded = self.rnd  # never drawn from, so that its state stays that of the seed
        self.rnd = random.Random(f"{seeded.getstate()}{self.doc_to_text(doc)}")
        try:
            return str(drawn(self, doc, count))
        finally:
            self.rnd = seeded

    get_context.fixed = True  # type: ignore[attr-defined]
    ContextSampler.get_context = get_context


def keep_ends() -> None:
    """Makes lmms-eval's filters keep which responses ran out of tokens; a second call changes nothing.

    A filter makes a new text of a response. A part of an unfinished one would be scored as if it were whole.
    """
    from lmms_eval.api.filter import FilterEnsemble

    plain = FilterEnsemble.apply
    if getattr(plain, "keeps_ends", False):
        return

    def apply(self: Any, instances: Sequence[Any], docs: Sequence[Any]) -> None:  # noqa: ANN401 - lmms-eval's
        filters = [KeepEnds(one) if is_text_filter(one) else one for one in self.filters]
        plain(replace(self, filters=filters), instances, docs)

    apply.keeps_ends = True  # type: ignore[attr-defined]
    FilterEnsemble.apply = apply


@dataclass(frozen=True)
class KeepEnds:
    """A filter of texts, of which a `Response` that ran out of tokens stays one.

    What it read from a closed box or tag was finished before the tokens ran out, and is whole.
    """

    inner: Any  # lmms-eval's filter, or one of the task's own

    def apply(self, resps: Iterable[Sequence[Any]], docs: Sequence[Any]) -> list[list[Any]]:
        """The filtered responses of each document, in order."""
        before = [list(some) for some in resps]
        after = [list(some) for some in self.inner.apply(before, docs)]
        return [
            list(map(self._kept, old, new)) if len(old) == len(new) else new
            for old, new in zip(before, after, strict=True)
        ]

    @staticmethod
    def _kept(old: object, new: object) -> object:
        if not isinstance(old, Response) or not old.truncated or not isinstance(new, str):
            return new
        closed = re.search(rf"(?<!\w){re.escape(new)}(?!\w)", answer_part(old, truncated=True))
        return new if closed else Response(new, truncated=True)


def make_task(config: Mapping[str, Any]) -> Task:
    """A chat task from a configuration in the form of its YAML file."""
    from lmms_eval.api.task import ConfigurableMessagesTask

    quiet()
    make_cache()
    fix_examples()
    task: Task = ConfigurableMessagesTask(config=dict(config))
    return task


def make_cache() -> None:
    """Makes the folder that every task needs, as lmms-eval does, which would try for 8 s where it cannot."""
    from lmms_eval.api import task

    try:
        getattr(task, "_resolve_hf_datasets_cache_dir", lambda: None)()
    except OSError as error:
        raise HarnessError(
            f"lmms-eval's cache cannot be created: {error}",
            "Set HF_HOME, and DCSFT_CACHE too, to folders that can be written",
        ) from error


def set_generation(task: Task, samples: int, arguments: Mapping[str, object]) -> None:
    """Requests G responses per document from a task and passes all of them to its scorer.

    `repeats` alone keeps one of the G; the `take_first_k` filter keeps them all. The task's own filters
    of texts come before it.
    """
    from lmms_eval.filters import build_filter_ensemble

    own = text_filters(task)
    task.set_config(key="repeats", value=samples)
    _set_arguments(task, arguments)
    ensemble = build_filter_ensemble("all", [["take_first_k", {"k": samples}]])
    ensemble.filters[:0] = own
    task._filters = [ensemble]


def text_filters(task: Task) -> list[Any]:
    """A task's own filters, in order, without those that select among the responses to a document.

    Raises:
        HarnessError: it has several lists of filters, each of which makes other responses.
    """
    if len(task._filters) != 1:
        raise HarnessError(
            f"task {task.config.task} has {len(task._filters)} lists of filters in its filter_list: "
            f"{', '.join(str(one.name) for one in task._filters)}",
            "Keep one of them, or make a task of each: a response has one score",
        )
    return [one for one in task._filters[0].filters if is_text_filter(one)]


def is_text_filter(one: object) -> bool:
    """Whether a filter makes a text of each response, and does not select among those to a document."""
    from lmms_eval.filters import selection

    from dcsft_harness.tasks.verdicts import KeepAll

    choosing = selection.TakeFirstFilter, selection.TakeKFilter, selection.MajorityVoteFilter, KeepAll
    return not isinstance(one, choosing)


_GENERATED = ("generate_until", "generate_until_multi_round", "generate_until_agentic")
"""The types of tasks that lmms-eval's chat interface has a model answer, the first of them in one round."""


def refuse_unfit(tasks: Iterable[Task], model: str = "") -> None:
    """Refuses tasks without generated text, with several rounds or lists of filters, or without a score.

    An error rate is no score.
    """
    for task in tasks:
        _refuse_ungenerated(task.config.task, task.config.output_type, model)
        refuse_reversed(task)
        refuse_unscored(task)
        text_filters(task)


def refuse_ungenerated_names(names: Sequence[str], model: str, folders: Sequence[Path] = ()) -> None:
    """As `refuse_unfit` refuses what writes no text, by the YAML files of names; some are in `folders`."""
    from lmms_eval.utils import load_yaml_config

    for name, file in _files(names, folders).items():
        config = load_yaml_config(str(file), mode="simple")
        _refuse_ungenerated(name, str(config.get("output_type") or _GENERATED[0]), model)


def _refuse_ungenerated(task: str, kind: str, model: str) -> None:
    if kind not in (_GENERATED[:1] if model.startswith("dcsft_") else _GENERATED):
        why = "it compares the likelihoods of given answers instead of generating one"
        if kind in _GENERATED:
            why = f"it asks in several rounds, but {model} answers in one"
        raise HarnessError(
            f"task {task} has output_type {kind}: {why}",
            "Name a task with output_type generate_until, or write one for its questions as a YAML file",
        )


def limit_tokens(task: Task, longest: int) -> None:
    """Sets the longest response that is requested from a task, in tokens."""
    _set_arguments(task, {"max_new_tokens": longest})


def _set_arguments(task: Task, arguments: Mapping[str, object]) -> None:
    """Replaces generation arguments of a task; its own limit of tokens may have another name."""
    given = dict(task.config.generation_kwargs or {})
    replaced = ("max_gen_toks", "max_tokens") if "max_new_tokens" in arguments else ()
    kept = {name: value for name, value in given.items() if name not in replaced}
    task.set_config(key="generation_kwargs", value={**kept, **arguments})


# Whether tasks load, and what is missing if they do not: no model, no network, no image decoded.

COLUMNS = ("prompt", "answer", "target", "cluster")
"""The fields of every document of the suite's tasks."""


@dataclass(frozen=True)
class Checked:
    """The state of a task."""

    task: str
    # "present" if it loads, "absent" if its data is not prepared yet, else "broken"
    state: Literal["present", "absent", "broken"]
    said: str  # its number of documents, or what is missing and how to get it


def check_tasks(names: Iterable[str]) -> Iterator[Checked]:
    """Loads tasks (or the tasks of groups), one after another."""
    for task in dict.fromkeys(task for name in names for task in members(name)):
        if prepared.has_source(task) and not prepared.exists(task):
            source = prepared.source_of(task)
            said = f"not prepared. {source.advice()}."
            yield Checked(task, "absent", said)
            continue
        try:
            for name, loaded in open_tasks([task]).items():
                yield Checked(name, "present", _present(task, loaded))
        except HarnessError as error:
            yield Checked(task, "broken", str(error))


def _present(task: str, loaded: Task) -> str:
    docs = loaded.eval_docs_no_media
    if missing := [name for name in COLUMNS if name not in getattr(docs, "column_names", COLUMNS)]:
        raise HarnessError(f"task {task}: its documents have no column {', '.join(missing)}")
    said = f"{len(docs)} documents, version {loaded.VERSION}"
    if not prepared.has_source(task):
        return said
    return f"{said}{_of_the_data(prepared.describe(task), prepared.published(task))}"


def _of_the_data(found: Manifest, published: int | None) -> str:
    """A remark on prepared data that is not all of the published data."""
    of_all = "a part of what was published" if published is None else f"of {published:,} published rows"
    parts = [of_all if found.config["any_count"] else ""]
    parts += [str(found.notes.get("chosen", ""))]
    parts += [f"{found.notes['skipped']} rows skipped" if found.notes["skipped"] else ""]
    return "".join(f", {part}" for part in parts if part)

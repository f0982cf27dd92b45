"""Whether tasks load, and what is missing where they do not: no model, no network, no image decoded."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from dcsft_harness.artifacts.manifest import Manifest
from dcsft_harness.data.benchmarks import prepared, registry
from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms.listing import members
from dcsft_harness.lmms.tasks import open_tasks

COLUMNS = ("prompt", "answer", "target", "cluster")
"""What every document of the suite's tasks has."""


@dataclass(frozen=True)
class Checked:
    """What is known of a task.

    Attributes:
        task: its name.
        state: "present" if it loads, "absent" if its data is yet to be prepared, else "broken".
        said: its documents, or what is missing and how to get it.
    """

    task: str
    state: Literal["present", "absent", "broken"]
    said: str


def check(names: Iterable[str]) -> Iterator[Checked]:
    """Loads tasks (or the tasks of groups), one after another."""
    for task in dict.fromkeys(task for name in names for task in members(name)):
        if registry.has_source(task) and not prepared.exists(task):
            yield Checked(task, "absent", _absent(task))
            continue
        try:
            for name, loaded in open_tasks([task]).items():
                yield Checked(name, "present", _present(task, loaded))
        except HarnessError as error:
            yield Checked(task, "broken", str(error))


def _absent(task: str) -> str:
    source = registry.source_of(task)
    return f"not prepared. Run `{source.command()}`. {source.needs}. {source.get}."


def _present(task: str, loaded: Any) -> str:  # noqa: ANN401 - an lmms-eval task
    docs = loaded.eval_docs_no_media
    missing = (
        [name for name in COLUMNS if name not in docs.column_names] if hasattr(docs, "column_names") else []
    )
    if missing:
        raise HarnessError(f"task {task}: its documents have no column {', '.join(missing)}")
    said = f"{len(docs)} documents, version {loaded.VERSION}"
    if not registry.has_source(task):
        return said
    return f"{said}{_of_the_data(prepared.describe(task), registry.published(task))}"


def _of_the_data(found: Manifest, published: int | None) -> str:
    """What a reader of the figures should know of prepared data, where it is not all that was published."""
    of_all = "a part of what was published" if published is None else f"of {published:,} published rows"
    parts = [of_all if found.config["any_count"] else ""]
    parts += [str(found.notes.get("chosen", ""))]
    parts += [f"{found.notes['skipped']} rows skipped" if found.notes["skipped"] else ""]
    return "".join(f", {part}" for part in parts if part)

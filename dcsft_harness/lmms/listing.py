"""The suite's tasks as a table, read from the YAML files alone: no lmms-eval import, no data."""

from functools import cache
from typing import Any

import yaml

from dcsft_harness.tasks import path


class _Loader(yaml.SafeLoader):
    """A safe loader that reads `!function` as the name that follows it."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


def listing() -> list[dict[str, Any]]:
    """One row per task: its name, family, role, distribution and version, sorted by name."""
    rows = []
    for file in sorted(path().rglob("*.yaml")):
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
        if not isinstance(config.get("task"), str):
            continue
        metadata = config.get("metadata", {})
        names = ("family", "role", "distribution", "version")
        rows.append({"task": config["task"], **{name: metadata.get(name, "-") for name in names}})
    return sorted(rows, key=lambda row: str(row["task"]))


def grounding() -> set[str]:
    """The tasks that boxes are asked in."""
    return {row["task"] for row in listing() if row["family"] == "grounding"}


@cache
def groups() -> dict[str, list[str]]:
    """The suite's groups by name, each with its tasks; a group in a group stands for its own."""
    found: dict[str, list[str]] = {}
    for file in sorted(path().rglob("*.yaml")):
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
        if isinstance(config.get("group"), str):
            found[config["group"]] = list(config["task"])
    return {name: members(name, found) for name in found}


def members(name: str, known: dict[str, list[str]] | None = None) -> list[str]:
    """The tasks that a name stands for: a group's, or the task itself."""
    known = groups() if known is None else known
    if name not in known:
        return [name]
    return list(dict.fromkeys(task for part in known[name] for task in members(part, known)))

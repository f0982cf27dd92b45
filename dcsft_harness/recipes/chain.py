"""Runs a recipe: each stage in turn, skipping what is done and still valid.

A stage's key is a hash of its verb, its options, the package's version, the manifests of the stages that
it refers to, and the contents of other files and folders that its options name, with the images that a
JSONL file of one's own names. A stage is skipped where the key that its folder was made with is the same,
and every file in it is as it was written; so an interrupted recipe goes on, and an edited one redoes what
changed. A sampling stage that was interrupted goes on from the responses that it kept, and a training stage
from its last checkpoint, unless its key has changed since.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dcsft_harness import __version__, pictures, reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.hashing import json_sha256
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.errors import HarnessError, refusal
from dcsft_harness.lmms.listing import members
from dcsft_harness.recipes.recipe import REFERENCE, Recipe, Stage, filled
from dcsft_harness.sampling import own_data, rollout_store
from dcsft_harness.stages import STAGES

STATE = "recipe.json"


def key(stage: Stage, output: Path) -> str:
    """The stage's key; see the module's opening."""
    from dcsft_harness.data.digits.suite import VERSION

    read = {name: manifest.fingerprint(output / name) for name in stage.references()}
    brought = {name: manifest.fingerprint(Path(name)) for name in _brought(stage)}
    data = Path(str(stage.options.get("data")))
    if data.is_file():
        root = stage.options.get("image_root")
        outside = bool(stage.options.get("allow_outside_root"))
        brought["the images"] = own_data.images_sha256(data, None if root is None else Path(root), outside)
    brought |= {role: manifest.fingerprint(path) for role, path in prepared.inputs(_tasks(stage)).items()}
    return json_sha256([stage.verb, stage.options, read, brought, __version__, VERSION, pictures.FORMAT])


def _tasks(stage: Stage) -> list[str]:
    """The tasks that a stage names, whose data may be prepared."""
    named: list[Any] = []
    for _, value, kind in STAGES[stage.verb].reading(stage.options):
        if kind in ("pool", "tasks"):
            named += value if isinstance(value, list | tuple) else [value]
    return [task for name in named for task in members(str(name))]


def _brought(stage: Stage) -> list[str]:
    """Files and folders that the options name and no stage made: one's own data, or a checkpoint."""
    texts: list[str] = []
    for _, value, kind in STAGES[stage.verb].reading(stage.options):
        if kind == "model_args":
            texts += [part.partition("=")[2] for part in str(value).split(",")]
        elif kind != "tasks":
            texts += map(str, value if isinstance(value, list | tuple) else [value])
    return [text for text in texts if text and not REFERENCE.search(text) and Path(text).exists()]


def run(
    recipe: Recipe,
    output: Path,
    perform: Callable[[str, Path, dict[str, Any]], Any],
    skip: Callable[[str], None],
) -> Any:  # noqa: ANN401 - what the last stage returned
    """Runs the stages that are not done.

    Args:
        recipe: as `load` gives it.
        output: the folder that holds a folder for each stage.
        perform: called with (verb, folder, options) for each stage to run; returns its notes.
        skip: called with the name of each stage that is done already.

    Returns:
        What `perform` returned for the last stage; None if that one was skipped.

    Raises:
        HarnessError: the folder holds another recipe, or a stage fails.
    """
    state = _open(recipe, output)
    notes = None
    for stage in recipe.stages:
        folder, wanted = output / stage.name, key(stage, output)
        same = state["stages"].get(stage.name) == wanted
        if same and manifest.is_intact(folder):
            skip(stage.name)
            notes = None
            continue
        _clear(folder, same)
        # Before it is done: what a killed process has made, whole or in part, is known by the key too.
        state["stages"][stage.name] = wanted
        _save(state, output)
        options = filled(dict(stage.options), output)
        notes = perform(stage.verb, folder, options)
    return notes


def _clear(folder: Path, same: bool) -> None:
    """Removes what a stage made before, unless it is the unfinished part of the same work.

    Raises:
        HarnessError: another process is at work in the folder.
    """
    if (folder / manifest.NAME).is_file():
        shutil.rmtree(folder)
    elif (folder / manifest.UNFINISHED).is_dir() and not same:
        rollout_store.discard(folder)


def _open(recipe: Recipe, output: Path) -> dict[str, Any]:
    if output.is_file():
        raise HarnessError(f"--output {output} is a file", "Name a folder")
    if (output / STATE).is_file():
        try:
            state: dict[str, Any] = reading.json_file(output / STATE)
            name, _, scale = state["recipe"], dict(state["stages"]), state.get("scale")
        except (ValueError, KeyError, TypeError) as error:
            raise HarnessError(
                f"{output / STATE} cannot be read: {error!r}", "Remove it to start anew"
            ) from error
        # Recipes of one scale share stages, under names that mean the same in each.
        if (recipe.scale, scale) != (None, None) and recipe.scale == scale:
            return state
        if name != recipe.name or scale != recipe.scale:
            ours, theirs = (
                f"{one!r}{f' at scale {at}' if at else ''}"
                for one, at in ((recipe.name, recipe.scale), (name, scale))
            )
            raise HarnessError(
                f"--output {output} holds the recipe {theirs}, not {ours}", "Name another folder"
            )
        return state
    if output.is_dir() and any(output.iterdir()):
        raise HarnessError(
            f"--output {output} is not empty and holds no recipe", "Name a new or an empty folder"
        )
    output.mkdir(parents=True, exist_ok=True)
    state = {"recipe": recipe.name, "scale": recipe.scale, "stages": {}}
    _save(state, output)
    return state


def _save(state: Mapping[str, Any], output: Path) -> None:
    unfinished = output / f".{STATE}.{os.getpid()}"
    try:
        unfinished.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, output / STATE)
    except OSError as error:
        reason = refusal(error)
        if reason is None:
            raise
        raise HarnessError(
            f"cannot write {output / STATE}: {os.strerror(reason)}",
            "Free some space or name a folder on another disk; finished stages are kept",
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)

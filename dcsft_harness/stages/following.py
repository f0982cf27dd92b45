"""The command that usually follows a stage, with the paths and options that are known of its artifact."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsft_harness import reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.stages.stage import Stage


def next_command(stage: Stage, output: object, given: Mapping[str, Any]) -> str:
    """A stage's `then` for an artifact and the options that made it, with known values for its placeholders.

    Known values are the model that a curated set's responses come from, and a user's rows: those trained
    on, or that the items of a curated set come from.
    """
    from dcsft_harness.sampling import own_files

    said = stage.then.replace("{output}", shlex.quote(str(output)))
    if others := _other_scores(Path(str(output))) if "OTHER-SCORES" in said else []:
        said = said.replace("OTHER-SCORES...", " ".join(shlex.quote(str(one)) for one in others))
    direct = "data" in given and own_files.is_data(str(given["data"]))
    known = dict(given) if direct else _sampling(Path(str(output)))
    if not direct and "model" in known:
        said = said.replace("CKPT", str(known["model"]))
    if known.get("data") is None:
        return said
    scored = f"--scorer {shlex.quote(str(known.get('scorer') or 'SCORER'))}"
    if known.get("image_root") is not None:
        scored += f" --image-root {shlex.quote(str(known['image_root']))}"
    said = said.replace("--tasks TASK,...", f"--data {_held_out_rows(known)} {scored}")
    return said.replace("--task POOL", f"--data POOL {scored}")


def _sampling(folder: Path) -> dict[str, Any]:
    """The sampling options behind an artifact, with paths relative to the working directory.

    Only manifests are read: hashing a large input takes minutes. Empty if it is not known.
    """
    try:
        found = manifest.read(folder)
        while found.call.get("verb") != "sample":
            role = next(role for role in ("data", "labels", "rollouts") if role in found.inputs)
            found = manifest.read(_here(found, role))
        options = dict(found.call["options"])
        if options.get("data") is not None:
            options["data"] = _here(found, "data")
        if options.get("image_root") is not None and not Path(options["image_root"]).is_dir():
            options["image_root"] = None
        options["model"] = _sampled(found, str(options.get("model")))
    except (HarnessError, StopIteration, KeyError, TypeError):
        return {}
    return {name: value for name, value in options.items() if value is not None}


_ALIKE = ("limit", "items_sha256", "generation", "samples")
"""What is equal in notes on a task that a board compares."""


def _other_scores(folder: Path) -> list[Path]:
    """Comparable scores of the same tasks in neighboring folders, by time."""
    found = []
    try:
        mine = manifest.read(folder).notes["tasks"]
        for path in folder.parent.glob(f"*/{manifest.NAME}"):
            one = manifest.read(path.parent)
            theirs = one.notes.get("tasks", {}) if one.kind == "scores" and path.parent != folder else {}
            both = [(mine[task], theirs[task]) for task in mine.keys() & theirs.keys()]
            if both and all(a.get(key) == b.get(key) for a, b in both for key in _ALIKE):
                found.append((one.created, path.parent))
    except HarnessError:
        return []
    return [path for _, path in sorted(found)]


def _here(made: manifest.Manifest, role: str) -> Path:
    """An input's folder or file, relative to the working directory if it lies below."""
    place, here = (made.folder / made.inputs[role]["path"]).resolve(), Path.cwd()
    return place.relative_to(here) if place.is_relative_to(here) else place


def _sampled(rollouts: manifest.Manifest, named: str) -> str | None:
    """The options of training for the sampled checkpoint, from --model's value on; None if not known."""
    from dcsft_harness.data import digits

    arguments = reading.named(str(rollouts.config.get("model_args") or ""))
    base = arguments.get("pretrained", "")
    if "adapter" not in rollouts.inputs and named != rollouts.config["model"]:
        base = named  # and not an engine, as in the older spelling
    if "model" in rollouts.inputs and (place := _here(rollouts, "model")).name == Path(base).name:
        base = str(place)
    if not base:
        return None
    base = digits.DIGITS if base == digits.resolve(digits.DIGITS) else base
    further = (
        f" --adapter {shlex.quote(str(_here(rollouts, 'adapter')))}" if "adapter" in rollouts.inputs else ""
    )
    return shlex.quote(base) + further


_HELD_OUT = ("test", "held-out", "held_out", "heldout", "validation", "valid", "val", "dev", "eval")
"""Stems of files with held-out rows, beside those to train on."""


def _held_out_rows(known: Mapping[str, Any]) -> str:
    """The value of `--data` for evaluating a model trained on a user's rows; "TEST" if it is not known."""
    from dcsft_harness.sampling import own_files

    path = Path(str(known["data"]))
    if known.get("held_out") is not None:
        return f"{shlex.quote(str(path))} --held-out {float(known['held_out']):g}"
    names = (
        name
        for stem in _HELD_OUT
        for name in (stem + "".join(path.suffixes), path.name.replace("train", stem))
    )
    beside = [path.with_name(name) for name in names] if path.name else []
    found = next((one for one in beside if one != path and own_files.is_data(str(one))), None)
    return "TEST" if found is None else shlex.quote(str(found))

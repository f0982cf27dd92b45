"""What an artefact comes from, read back through the manifests that lead to it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.hashing import file_sha256
from dcsft_harness.data.digits import checkpoint
from dcsft_harness.errors import HarnessError


@dataclass(frozen=True)
class Origin:
    """One thing that an artefact was made from, directly or not.

    Attributes:
        role: what it was to what was made from it: "data", "labels", "model", ...
        name: its folder's or file's own name.
        sha256: its hash, as it was when it was used.
        made: its manifest; None where it has none, is gone or has changed since.
        said: why there is no manifest; empty where there is one.
    """

    role: str
    name: str
    sha256: str
    made: manifest.Manifest | None
    said: str


def walk(artefact: manifest.Manifest) -> Iterator[Origin]:
    """Everything that leads to an artefact, nearest first, each thing once; what is gone is named too."""
    seen: set[str] = set()
    waiting = [artefact]
    while waiting:
        current = waiting.pop(0)
        for role, entry in current.inputs.items():
            if entry["sha256"] in seen:
                continue
            seen.add(entry["sha256"])
            found = _origin(role, current.folder / entry["path"], entry["sha256"])
            yield found
            waiting += [found.made] if found.made is not None else []


def parent(artefact: manifest.Manifest, role: str) -> manifest.Manifest | None:
    """The manifest of one input; None where there is no such input, or it is not there as it was."""
    entry = artefact.inputs.get(role)
    return _origin(role, artefact.folder / entry["path"], entry["sha256"]).made if entry else None


def hub_base(artefact: manifest.Manifest) -> str | None:
    """The hub name that an artefact's base goes back to, through checkpoints made here; None if unknown."""
    current: manifest.Manifest | None = artefact
    while current is not None:
        name = current.config.get("model")
        if isinstance(name, str) and not Path(name).is_absolute():
            return name
        current = parent(current, "model")
    return None


def base_folder(artefact: manifest.Manifest) -> Path | None:
    """The folder of the base at the beginning, where it was a folder and is still there."""
    current: manifest.Manifest | None = artefact
    folder = None
    while current is not None and "model" in current.inputs:
        folder = (current.folder / current.inputs["model"]["path"]).resolve()
        current = parent(current, "model")
    return folder if folder is not None and folder.is_dir() else None


def _origin(role: str, place: Path, sha256: str) -> Origin:
    folder = place.resolve()
    name = _name(folder)
    if not folder.exists():
        return Origin(role, name, sha256, None, "no longer where it was")
    if not (folder / manifest.NAME).is_file():
        return Origin(role, name, sha256, None, "made elsewhere, without a manifest")
    try:
        if file_sha256(folder / manifest.NAME) != sha256:
            return Origin(role, name, sha256, None, "changed since")
        return Origin(role, name, sha256, manifest.read(folder), "")
    except (HarnessError, OSError):
        return Origin(role, name, sha256, None, "its manifest cannot be read")


def _name(folder: Path) -> str:
    try:
        embedded = folder == checkpoint.path().resolve()
    except HarnessError:  # an installation without it
        embedded = False
    return "the embedded digits checkpoint" if embedded else folder.name


def summary(made: manifest.Manifest) -> str:
    """What an artefact holds, in one line."""
    notes: dict[str, Any] = made.notes
    if made.kind in ("labels", "curated set"):
        mix = ", ".join(f"{notes[name]} {name}" for name in ("easy", "medium", "hard") if name in notes)
        more = [f"{notes[name]} {name}" for name in ("unlabelled", "excluded", "censored") if notes.get(name)]
        chosen = [f"kept {', '.join(made.config['keep'])}"] if "keep" in made.config else []
        chosen += [f"mixed {name} {share}" for name, share in (made.config.get("mix") or {}).items()]
        return "; ".join([f"{notes.get('items')} items: {mix}", *more, *chosen])
    if made.kind == "rollouts":
        drawn = ", ".join(
            f"{name} {made.config[name]}"
            for name in ("model", "model_args", "task", "samples", "temperature", "seed")
            if made.config.get(name) is not None
        )
        tokens = f"{notes.get('prompt_tokens')} prompt and {notes.get('generated_tokens')} generated tokens"
        return f"{notes.get('items')} items, {notes.get('responses')} responses; {tokens}; {drawn}"
    counts = {name: value for name, value in notes.items() if isinstance(value, int | float)}
    return ", ".join(f"{name} {value:.6g}" for name, value in list(counts.items())[:6])

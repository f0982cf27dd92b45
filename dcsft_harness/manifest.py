"""What every artefact on disk carries, and how one is written: whole, or not at all."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dcsft_harness import environment
from dcsft_harness.errors import HarnessError, telling_refusals
from dcsft_harness.hashing import file_sha256, folder_sha256, json_sha256

NAME = "manifest.json"
CARD = "README.md"
"""An artefact's card, the one file that no manifest has a hash of: it says again what the manifest says,
and is written anew when scores are known. With its hash in it the manifest would change then, and what
was made from the artefact would no longer find it."""
UNFINISHED = "unfinished"
"""The folder inside an output folder that holds what an interrupted run goes on from."""
_FINISH = "Run the same `dcsft sample` command again to finish it, or `dcsft train` with --resume"
FORMAT = 1
"""The manifest format that this version writes, and the newest that it reads."""


class NewerFormatError(HarnessError):
    """An artifact was written by a newer version."""


@dataclass
class Draft:
    """An artefact being written.

    Attributes:
        folder: where its files go; it becomes the output folder when the draft is complete.
        notes: what the finished manifest says beside the standing fields (counts, tokens, model).
    """

    folder: Path
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A finished artefact's manifest.

    Attributes:
        folder: where the artefact lies.
        kind: "prepared data", "rollouts", "labels", "curated set", "adapter", "checkpoint", "scores",
            "leaderboard" or "cost comparison".
        config: the settings it was made with.
        inputs: role -> {"path": relative to the folder, "sha256": of the input's own manifest or files}.
        notes: counts, tokens, model fingerprints and the like.
        files: file name -> SHA-256, of all but the manifest and `CARD`.
        key: SHA-256 of kind, config and inputs: equal keys mean the same work.
        seconds: wall-clock time the stage took.
        packages: versions of the packages that it was made with.
        hardware: what it was made on.
        created: when it was finished, an ISO date.
    """

    folder: Path
    kind: str
    config: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    notes: dict[str, Any]
    files: dict[str, str]
    key: str
    seconds: float
    packages: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    created: str = ""

    def input_folder(self, role: str) -> Path:
        """The folder of one input, found again relative to this artefact.

        Raises:
            HarnessError: there is no such input, or it has moved or changed since.
        """
        if role not in self.inputs:
            raise HarnessError(f"{self.folder / NAME} names no input {role!r}", "Make the artefact again")
        entry = self.inputs[role]
        folder = (self.folder / entry["path"]).resolve()
        if not folder.exists() or fingerprint(folder) != entry["sha256"]:
            raise HarnessError(
                f"the {role} that {self.folder} was made from are no longer at {folder}, or have changed",
                "Put them back, or make this artefact again from the new ones",
            )
        return folder


def key_of(kind: str, config: Mapping[str, Any], inputs: Mapping[str, Path]) -> str:
    """The key of the artefact that these settings and inputs would make."""
    return json_sha256({"kind": kind, "config": dict(config), "inputs": _fingerprints(inputs)})


def fingerprint(path: Path) -> str:
    """The hash that stands for an input: its manifest's, or that of its configuration and weights.

    Raises:
        NewerFormatError: a newer version wrote it.
    """
    refuse_newer(path)
    if (path / NAME).is_file():
        return file_sha256(path / NAME)
    return file_sha256(path) if path.is_file() else folder_sha256(path)


def relative(path: Path, output: Path) -> str:
    """Where a path lies, seen from an output folder: an artefact may move together with its inputs."""
    return os.path.relpath(path.resolve(), output.resolve())


def _fingerprints(inputs: Mapping[str, Path]) -> dict[str, str]:
    return {role: fingerprint(path) for role, path in sorted(inputs.items())}


def read(folder: Path, kind: str | None = None) -> Manifest:
    """Reads an artefact's manifest.

    Args:
        folder: the artefact.
        kind: what it must be; None accepts anything.

    Raises:
        HarnessError: it is missing, unreadable or of another kind.
    """
    path = folder / NAME
    if not path.is_file():
        if (folder / UNFINISHED).is_dir():
            raise HarnessError(f"{folder} holds an unfinished run", _FINISH)
        wanted = f"a {kind} folder" if kind else "a folder made by dcsft"
        raise HarnessError(f"{folder} is not {wanted}: it has no {NAME}", "Check the path")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        kind_found = data["artefact"]  # first: other packages write files of this name
        _refuse_newer(path, data["format"])
        found = Manifest(
            folder=folder,
            kind=kind_found,
            config=data["config"],
            inputs=data["inputs"],
            notes=data["notes"],
            files=data["files"],
            key=data["key"],
            seconds=data["seconds"],
            packages=data.get("packages", {}),
            hardware=data.get("hardware", {}),
            created=str(data.get("created", "")),
        )
        if not isinstance(found.files, dict):
            raise TypeError(f"files is {found.files!r}, not a table")
        if not isinstance(found.inputs, dict) or not all("sha256" in one for one in found.inputs.values()):
            raise TypeError(f"inputs is {found.inputs!r}, not a table of hashes")
    except (ValueError, KeyError, TypeError) as error:  # ValueError: not JSON, or not UTF-8
        raise HarnessError(f"{path} cannot be read: {error!r}", "Make the artefact again") from error
    if kind is not None and found.kind != kind:
        raise HarnessError(f"{folder} holds {found.kind}, where {kind} are needed", "Check the path")
    return found


def _refuse_newer(path: Path, found: object) -> None:
    """Refuses a manifest of a newer format: fields that this version does not know may change its meaning.

    Raises:
        NewerFormatError: it is newer.
        ValueError: it is no format number.
    """
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"format is {str(found)[:40]!r}, not a whole number from 1 on")
    if found > FORMAT:
        raise NewerFormatError(
            f"{path} is written in format {str(found)[:40]}, this version of dcsft_harness reads up to "
            f"{FORMAT}",
            "Update dcsft_harness, or make the artifact again with this version",
        )


def refuse_newer(folder: Path) -> None:
    """Refuses a folder whose manifest has a newer format; other folders pass, with or without a manifest.

    Raises:
        HarnessError: it is newer.
    """
    if (folder / NAME).is_file():
        try:
            read(folder)
        except NewerFormatError:
            raise
        except HarnessError:
            return


def is_current(folder: Path, key: str) -> bool:
    """Whether a folder holds exactly this work, with every file as it was written.

    Raises:
        NewerFormatError: a newer version wrote it.
    """
    try:
        found = read(folder)
    except NewerFormatError:
        raise
    except HarnessError:
        return False
    return found.key == key and is_intact(folder)


def is_intact(folder: Path) -> bool:
    """Whether a folder holds a finished artefact with every file as it was written.

    Raises:
        NewerFormatError: a newer version wrote it.
    """
    try:
        return not any(_changed(folder))
    except NewerFormatError:
        raise
    except HarnessError:
        return False


def refuse_changed(folder: Path, *names: str) -> None:
    """Refuses an artefact with files that are no longer what its manifest says, which others would go by.

    Args:
        folder: an artefact, or any folder without a manifest.
        names: the files to look at; none means all.

    Raises:
        HarnessError: names the first of them.
    """
    if not (folder / NAME).is_file():
        return
    changed = next(_changed(folder, names), None)
    if changed is not None:
        raise HarnessError(
            f"{folder / changed} is not what {NAME} beside it says: it was changed later",
            "Put the former file back, or make the artefact again",
        )


def _changed(folder: Path, names: Collection[str] = ()) -> Iterator[str]:
    """The files of an artefact that are gone or have changed, of all but the card or of those named.

    Raises:
        HarnessError: it has no readable manifest.
    """
    for name, digest in read(folder).files.items():
        if name == CARD or names and name not in names:
            continue
        if not (folder / name).is_file() or file_sha256(folder / name) != digest:
            yield name


def refuse_occupied(output: Path) -> None:
    """Refuses an output folder that holds something already.

    Raises:
        HarnessError: the folder holds another run, or files that dcsft did not write.
    """
    if output.is_file():
        raise HarnessError(f"--output {output} is a file", "Name a new folder")
    if (output / NAME).is_file():
        raise HarnessError(
            f"--output {output} already holds {read(output).kind}",
            "Name another folder, or remove this one first",
        )
    if (output / UNFINISHED).is_dir():
        raise HarnessError(f"--output {output} holds an unfinished run", f"Name another folder. {_FINISH}")
    if output.is_dir() and any(output.iterdir()):
        raise HarnessError(
            f"--output {output} is not empty and was not written by dcsft", "Name a new or an empty folder"
        )


@contextlib.contextmanager
def writing(
    kind: str,
    output: Path,
    config: Mapping[str, Any],
    inputs: Mapping[str, Path] | None = None,
    finish: Callable[[Path], object] | None = None,
) -> Iterator[Draft]:
    """Writes an artefact beside its final place and moves it there once it is complete.

    Whatever goes wrong inside the block, the output folder is not created.

    Args:
        kind: what is being written.
        output: the final folder; must not exist, or be empty.
        config: the settings, JSON-serialisable.
        inputs: role -> folder or file that the work reads.
        finish: called with the folder once its manifest is written, before it is moved: for `CARD`.

    Raises:
        HarnessError: the output is occupied, cannot be written, or the disk is full.
    """
    refuse_occupied(output)
    sources = {role: path.resolve() for role, path in (inputs or {}).items()}
    for path in sources.values():
        refuse_newer(path)
    draft_folder = output.resolve().parent / f".{output.name}.unfinished-{os.getpid()}"
    started = time.monotonic()
    # Left by a killed process that had the same number, as the first one of a container always has.
    shutil.rmtree(draft_folder, ignore_errors=True)
    try:
        with telling_refusals(kind, output, "nothing half-written was kept"):
            draft_folder.mkdir(parents=True)
            draft = Draft(draft_folder)
            yield draft
            seal(kind, draft, output.resolve(), dict(config), sources, time.monotonic() - started)
            if finish is not None:
                finish(draft_folder)
            if output.is_dir():
                output.rmdir()
            os.replace(draft_folder, output)
    finally:
        shutil.rmtree(draft_folder, ignore_errors=True)


def seal(
    kind: str, draft: Draft, output: Path, config: dict[str, Any], sources: dict[str, Path], seconds: float
) -> None:
    """Writes a draft's manifest, which makes its folder an artefact.

    `output` is where the folder will lie: inputs are named relative to it. Its other files exist already.
    """
    prints = _fingerprints(sources)
    files = sorted(p for p in draft.folder.rglob("*") if p.is_file() and p != draft.folder / CARD)
    data = {
        "artefact": kind,
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config,
        "inputs": {
            role: {"path": os.path.relpath(path, output), "sha256": prints[role]}
            for role, path in sources.items()
        },
        "key": json_sha256({"kind": kind, "config": config, "inputs": prints}),
        "notes": draft.notes,
        "files": {str(p.relative_to(draft.folder)): file_sha256(p) for p in files},
        "packages": environment.packages(),
        "hardware": environment.hardware(),
        "seconds": round(seconds, 3),
    }
    text = json.dumps(data, indent=2, ensure_ascii=False, default=str)
    (draft.folder / NAME).write_text(text + "\n", encoding="utf-8")

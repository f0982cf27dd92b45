"""Manifests: the record beside every artifact on disk, and atomic writing of artifacts."""

import contextlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Never

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from dcsft_harness import environment, reading
from dcsft_harness.artifacts import disk, lock
from dcsft_harness.artifacts.disk import file_sha256, folder_sha256, hashed, json_sha256, settled_sha256
from dcsft_harness.errors import HarnessError, differences, json_text, reporting_refusals

_LOG = logging.getLogger(__name__)
NAME = "manifest.json"
CARD = "README.md"
"""An artifact's card, the one file without a hash in a manifest: it repeats the manifest's content and is
rewritten when scores are known. A hash of it would change the manifest, and artifacts made from this one
would no longer find it."""
UNFINISHED = "unfinished"
"""The folder inside an output folder with the state of an interrupted run."""
_FINISH = "Rerun the interrupted command to finish it"
FORMAT = 1
"""The manifest format that this version writes, and the newest that it reads."""

LOCK, MOVING = "lock", "moving.json"
CALL: ContextVar[dict[str, Any] | None] = ContextVar("the stage's call", default=None)
"""The command, options and hashes of a user's rows of the artifact being written; set by the stage."""
Places = Mapping[str, Mapping[str, Sequence[Path]]]
"""Paths in a call's options: option -> text that names files or folders -> their paths."""
PLACES: ContextVar[Places | None] = ContextVar("what the stage's call names", default=None)
"""The paths of `CALL`, whose hashes are recorded beside its options."""


class NewerFormatError(HarnessError):
    """An artifact was written by a newer version."""


@dataclass
class Draft:
    """An artifact being written."""

    folder: Path  # the folder for its files; it becomes the output folder when the draft is complete
    # the finished manifest's notes (counts, tokens, model)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A finished artifact's manifest; its file has these fields and types, except for the folder."""

    folder: Path  # the artifact's folder
    # "prepared data", "rollouts", "labels", "curated set", "adapter", "checkpoint", "scores", "leaderboard"
    # or "cost comparison"
    kind: Annotated[str, Field(alias="artefact")]
    format: int  # see `FORMAT`
    config: "_Config"
    # role -> {"path": relative to the folder, "sha256": of the input's own manifest or files}
    inputs: "dict[str, _Input]"
    notes: "_Notes"  # counts, tokens, model fingerprints and the like
    files: "dict[_Name, str]"  # file name -> SHA-256, of all but the manifest and `CARD`
    key: str  # SHA-256 of kind, config and inputs: equal keys mean the same work
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]  # wall-clock time the stage took
    packages: dict[str, str] = field(default_factory=dict)  # versions of the packages that it was made with
    hardware: dict[str, Any] = field(default_factory=dict)  # the hardware that it was made on
    created: str = ""  # when it was finished, an ISO date
    # the verb and the options that decide the artifact; empty in older artifacts
    call: Annotated[dict[str, Any], BeforeValidator(lambda call: call or {})] = field(default_factory=dict)

    def input_folder(self, role: str) -> Path:
        """The folder of one input, relative to this artifact; an error if it has moved or changed since."""
        if role not in self.inputs:
            raise HarnessError(f"{self.folder / NAME} has no input {role!r}", "Recreate the artifact")
        entry = self.inputs[role]
        folder = (self.folder / entry["path"]).resolve()
        if not folder.exists() or fingerprint(folder) != entry["sha256"]:
            raise HarnessError(
                lost(role, self.folder, folder),
                "Restore them, or recreate this artifact from the new ones",
            )
        return folder

    def weights(self) -> dict[str, str]:
        """The scored weights: "model" and "adapter" -> the folder's hash, or the name on a hub."""
        given = reading.named(str(self.config.get("model_args") or ""))
        return {
            role: self.inputs[role]["sha256"] if role in self.inputs else given[argument]
            for role, argument in (("model", "pretrained"), ("adapter", "adapter"))
            if role in self.inputs or not reading.is_unset(given.get(argument))
        }


def lost(role: str, made: Path, folder: Path) -> str:
    """Describes an input that is missing or has changed."""
    verb, ending = ("are", "have") if role.endswith("s") else ("is", "has")
    return f"the {role} that {made} was made from {verb} no longer at {folder}, or {ending} changed"


@dataclass(frozen=True)
class Origin:
    """One input of an artifact."""

    of: Path  # the folder of the artifact that was made from it
    role: str  # its role there: "data", "labels", "model"
    folder: Path  # where it was; may be a file
    sha256: str  # its hash when it was used
    made: Manifest | None = None  # its manifest; None if it has none, is gone, has changed or is unreadable
    problem: str = ""  # why there is no manifest; empty if there is one
    error: HarnessError | None = None  # of a manifest that cannot be read


def origin(made: Manifest, role: str) -> Origin:
    """One input of an artifact, whose manifest must have this role."""
    entry = made.inputs[role]
    folder = (made.folder / entry["path"]).resolve()
    found = Origin(made.folder, role, folder, entry["sha256"])
    if not folder.exists():
        return replace(found, problem="no longer where it was")
    if not (folder / NAME).is_file():
        return replace(found, problem="made elsewhere, without a manifest")
    try:
        if fingerprint(folder) != found.sha256:
            return replace(found, problem="changed since")
        return replace(found, made=read(folder))
    except (HarnessError, OSError) as error:
        own = error if isinstance(error, HarnessError) else None
        return replace(found, problem="its manifest cannot be read", error=own)


def walk(
    made: Manifest, roles: Callable[[Manifest], Collection[str]] = lambda one: one.inputs
) -> Iterator[Origin]:
    """All direct and indirect inputs of an artifact, nearest first, each once; missing ones too.

    `roles` names the inputs of an artifact to follow, all by default.
    """
    seen: dict[str, Manifest | None] = {}
    waiting = [made]
    while waiting:
        current = waiting.pop(0)
        for role in roles(current):
            entry = current.inputs.get(role)
            if entry is None or seen.get(entry["sha256"]) is not None:
                continue
            found = origin(current, role)
            if found.made is None and found.sha256 in seen:
                continue
            seen[found.sha256] = found.made
            yield found
            waiting += [] if found.made is None else [found.made]


class _Part(dict[str, Any]):
    """A table of a manifest, whose errors name missing entries."""

    def __init__(self, path: Path, name: str, entries: Mapping[str, Any]) -> None:
        """Stores the manifest's file, the table's name there, and the table."""
        super().__init__(entries)
        self._place = path, name

    def __missing__(self, key: str) -> Never:
        path, name = self._place
        raise HarnessError(f"{path} cannot be read: {name}.{key} is missing", "Recreate the artifact")


def _inside(name: str) -> str:
    """A file's name, without a path, so that no manifest can make us read files elsewhere."""
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise ValueError(f"{name[:100]!r} is not a file of this folder")
    return name


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError("a path cannot contain NUL")
    return text


_Name = Annotated[str, AfterValidator(_inside)]
_Place = Annotated[str, AfterValidator(_path)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Table = dict[str, Any]

_NOTES: dict[str, TypeAdapter[Any]] = {}
"""Kind -> the shape of its notes, if they have a different meaning than in other kinds."""

if TYPE_CHECKING:
    _Config = dict[str, Any]
    _Notes = dict[str, Any]
    _Input = dict[str, str]
else:
    # The keys listed here have these types if present; other keys are allowed.
    _OPEN = ConfigDict(extra="allow", strict=True)

    @with_config(_OPEN)
    class _Input(TypedDict):
        path: _Place
        sha256: str

    @with_config(_OPEN)
    class _Config(TypedDict, total=False):
        model: str | None
        model_args: str | None
        task: str | None
        pool: str | None
        scorer: str | None
        data: str | None
        method: str | None
        baseline: str | None
        keep: list[str] | int | None
        any_count: bool | None
        published: _Count | None
        full: bool | None

    @with_config(_OPEN)
    class _Notes(TypedDict, total=False):
        items: _Count | None
        unlabelled: _Count | None
        ledger: _Table | None
        pixel_limits: _Table | None
        checkpoint: _Table | None

    @with_config(_OPEN)
    class _Scores(TypedDict, total=False):
        tasks: dict[str, _Table]

    @with_config(_OPEN)
    class _Prepared(TypedDict, total=False):
        rows: _Count
        skipped: _Count

    _NOTES |= {"scores": TypeAdapter(_Scores), "prepared data": TypeAdapter(_Prepared)}

_SHAPE = TypeAdapter(Manifest)


def key_of(kind: str, config: Mapping[str, Any], inputs: Mapping[str, Path]) -> str:
    """The key of an artifact with these settings and inputs."""
    return json_sha256({"kind": kind, "config": dict(config), "inputs": _fingerprints(inputs)})


def fingerprint(path: Path) -> str:
    """An input's hash: of its manifest, or of its configuration and weights.

    Raises:
        NewerFormatError: a newer version wrote it.
    """
    refuse_newer(path)
    if (path / NAME).is_file():
        return file_sha256(path / NAME)
    return settled_sha256(path) if path.is_file() else folder_sha256(path)


def relative(path: Path, output: Path) -> str:
    """A path relative to an output folder, so that an artifact can move together with its inputs."""
    return os.path.relpath(path.resolve(), output.resolve())


def _fingerprints(inputs: Mapping[str, Path]) -> dict[str, str]:
    return {role: fingerprint(path) for role, path in sorted(inputs.items())}


def indefinite(kind: str) -> str:
    """A kind of artifact with its article, as a sentence has it: "an adapter", "rollouts"."""
    if kind.endswith("s") or kind == "prepared data":
        return kind
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


_MAKERS = {
    "rollouts": "dcsft sample",
    "labels": "dcsft label",
    "curated set": "dcsft curate",
    "adapter": "dcsft train",
    "scores": "dcsft evaluate",
}
"""Kind of artifact -> the command that writes it."""


def read(folder: Path, kind: str | None = None) -> Manifest:
    """Reads a manifest; an error if it is missing, unreadable, or of another kind than a given one."""
    path = folder / NAME
    if not path.is_file():
        if not folder.exists():
            raise HarnessError(f"{folder} does not exist", "Check the path")
        if (folder / UNFINISHED).is_dir():
            raise HarnessError(f"{folder} holds an unfinished run", _FINISH)
        wanted = f"a {kind} folder" if kind else "a folder made by dcsft"
        raise HarnessError(f"{folder} is not {wanted}: it has no {NAME}", "Check the path")
    try:
        data = reading.json_file(path)
        # Before its shape, which a newer format may have changed; other packages also write files of this
        # name.
        if isinstance(data, dict) and "artefact" in data and "format" in data:
            _refuse_newer(path, data["format"])
        found = reading.shaped(_SHAPE, {**data, "folder": folder} if isinstance(data, dict) else data)
        if found.kind in _NOTES:
            reading.shaped(_NOTES[found.kind], found.notes, "notes")
        tables: Any = {
            name: _Part(path, name, getattr(found, name)) for name in ("config", "inputs", "notes")
        }
        found = replace(found, **tables)
    except (ValueError, OSError) as error:
        raise HarnessError(f"{path} cannot be read: {error}", "Recreate the artifact") from error
    if kind is not None and found.kind != kind:
        remedy = f"Pass a folder that `{_MAKERS[kind]}` wrote" if kind in _MAKERS else "Check the path"
        needed = f"{indefinite(kind)} {'are' if kind.endswith('s') else 'is'}"
        raise HarnessError(f"{folder} holds {indefinite(found.kind)}, where {needed} needed", remedy)
    return found


def _refuse_newer(path: Path, found: object) -> None:
    """Refuses a manifest of a newer format: fields that this version does not know may change its meaning."""
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"format is {str(found)[:40]!r}, not a positive whole number")
    if found > FORMAT:
        raise NewerFormatError(
            f"{path} is written in format {str(found)[:40]}, this version of dcsft_harness reads up to "
            f"{FORMAT}",
            "Update dcsft_harness, or recreate the artifact with this version",
        )


def refuse_newer(folder: Path) -> None:
    """Refuses a folder whose manifest has a newer format; other folders pass, even without a manifest."""
    if (folder / NAME).is_file():
        _readable(folder)


def _readable(folder: Path) -> Manifest | None:
    """A folder's manifest, None if it has none that can be read; one of a newer version is refused."""
    try:
        return read(folder)
    except NewerFormatError:
        raise
    except HarnessError:
        return None


def is_current(folder: Path, key: str) -> bool:
    """Whether a folder holds exactly this work, with unchanged files; one of a newer version is refused."""
    found = _readable(folder)
    return found is not None and found.key == key and not any(_changed(found))


def is_intact(folder: Path) -> bool:
    """Whether a folder holds a finished artifact with unchanged files; one of a newer version is refused."""
    found = _readable(folder)
    return found is not None and not any(_changed(found))


def refuse_changed(folder: Path, *names: str) -> None:
    """Refuses an artifact with files, of `names` or of all, that differ from its manifest; names the first.

    A folder without a manifest passes.
    """
    if not (folder / NAME).is_file():
        return
    changed = next(_changed(read(folder), names), None)
    if changed is not None:
        raise HarnessError(
            f"{folder / changed} does not match {NAME} beside it: it was changed later",
            f"Restore the file, recreate the artifact, or remove {NAME} to use the files as they are",
        )


def _changed(made: Manifest, names: Collection[str] = ()) -> Iterator[str]:
    """The missing or changed files of an artifact: of the named ones, or of all but the card."""
    folder, files = made.folder, {name: digest for name, digest in made.files.items() if name != CARD}
    wanted = [name for name in files if not names or name in names]
    there = [name for name in wanted if (folder / name).is_file()]
    digests = hashed([folder / name for name in there])
    yield from (name for name in wanted if digests.get(folder / name) != files[name])


def refuse_occupied(output: Path, resumes: bool = False) -> None:
    """Refuses an output folder with other files or another run; with `resumes`, an interrupted one passes."""
    if output.is_file():
        raise HarnessError(f"--output {output} is a file", "Name a new folder")
    if (output / NAME).is_file():
        raise HarnessError(
            f"--output {output} already holds {indefinite(read(output).kind)}",
            "Name another folder, or remove this one first",
        )
    begun = unfinished(output)
    if begun and not resumes:
        raise HarnessError(f"--output {output} holds an unfinished run", f"Name another folder. {_FINISH}")
    known = {UNFINISHED, *_moved(output)}
    strange = (
        sorted(path.name for path in output.iterdir() if path.name not in known) if output.is_dir() else []
    )
    if strange and begun:
        raise HarnessError(
            f"--output {output} holds {strange[0]} beside its unfinished run", "Move it elsewhere"
        )
    if strange:
        raise HarnessError(
            f"--output {output} is not empty and was not written by dcsft", "Name a new or an empty folder"
        )


def _moved(output: Path) -> list[str]:
    """Files that a killed process may already have moved from its draft to the output folder."""
    try:
        names = [str(name) for name in reading.json_file(output / UNFINISHED / MOVING)]
        return [name for name in names if name != ".." and Path(name).name == name]  # they are removed
    except (OSError, ValueError, TypeError):
        return []


def unfinished(output: Path) -> bool:
    """Whether a folder holds a run that can be resumed; drafts of a killed process cannot."""
    return (output / UNFINISHED / lock.RUN).is_file() and not (output / NAME).is_file()


def contents(places: Places) -> dict[str, dict[str, str]]:
    """Option -> each text in it that names files or folders -> their hash, where they can be read."""
    found: dict[str, dict[str, str]] = {name: {} for name in places}
    for name, texts in places.items():
        for text, paths in texts.items():
            with contextlib.suppress(HarnessError, OSError):  # the stage says why
                prints = [fingerprint(path) for path in paths]
                found[name][text] = prints[0] if len(prints) == 1 else json_sha256(prints)
    return found


def _texts(value: object) -> list[str]:
    """The texts in an option's value that may be paths: itself, those of a list, and of model arguments."""
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value, *reading.named(value).values()] if isinstance(value, str) else []


def _by_content(value: object, hashes: Mapping[str, str]) -> object:
    """An option's value with each path as its last name and the hash of what is there."""
    if isinstance(value, list):
        return [_by_content(one, hashes) for one in value]
    if not isinstance(value, str):
        return value
    if value in hashes:
        name, sign, place = value.rpartition("=")  # of a board's NAME=FOLDER
        return f"{name}{sign}{Path(place).name} {hashes[value]}"
    if hashes.keys().isdisjoint(_texts(value)):
        return value
    return {name: _by_content(one, hashes) for name, one in reading.named(value).items()}


def _differing(
    found: Manifest, before: Mapping[str, Any], wanted: Mapping[str, Any], places: Places
) -> tuple[list[str], list[str]]:
    """The options in which a call differs from an artifact's; and those whose paths now name something else.

    A path differs by its last name and by what is there. An artifact that lacks the hashes of what its
    options named has those of its inputs, found by last names; where there is none, the whole path decides.
    """
    now, recorded = contents(places), found.call.get("content")
    inputs: dict[str, set[str]] = {}
    for entry in found.inputs.values():
        inputs.setdefault(Path(entry["path"]).name, set()).add(entry["sha256"])
    only = {name: next(iter(hashes)) for name, hashes in inputs.items() if len(hashes) == 1}
    options, others = [], []
    for name in dict.fromkeys([*before, *wanted]):
        theirs, ours, today = before.get(name), wanted.get(name), now.get(name, {})
        if recorded is None:
            today = {text: digest for text, digest in today.items() if Path(text).name in only}
            last = {Path(text).name for text in today}
            then = {text: only[Path(text).name] for text in _texts(theirs) if Path(text).name in last}
        else:
            then = recorded.get(name, {})
        if _by_content(theirs, then) == _by_content(ours, today):
            continue
        if theirs != ours:
            options += differences({name: theirs}, {name: ours})
        changed = [text for text in {**then, **today} if then.get(text) != today.get(text)]
        others += [f"{name}: {text} is not the one that it was made from" for text in changed]
    return options, others


def done(
    output: Path, call: Mapping[str, Any], defaults: Mapping[str, Any], places: Places | None = None
) -> Manifest | None:
    """The artifact in a folder if a stage's call would recreate it: equal settings, unchanged inputs.

    `call` is that of `CALL`, and `places` that of `PLACES`; `defaults` fill in options that are newer than
    the artifact. None if the folder holds no finished artifact.

    Raises:
        HarnessError: it holds another artifact; names the differences.
    """
    if not (output / NAME).is_file():
        return None
    found = read(output)
    wanted = call["options"]
    others: list[str] = []
    known = {name: value for name, value in defaults.items() if name in wanted}
    given = found.call.get("options", {})
    # An option that no longer decides the artifact may have any value in an older one.
    before = {
        **known,
        **{name: value for name, value in given.items() if name in wanted or name not in defaults},
    }
    if not found.call:
        differing = ["it does not record the options that it was made with"]
    elif found.call.get("verb") != call["verb"]:
        differing = [f"made by `dcsft {found.call.get('verb')}`, not `dcsft {call['verb']}`"]
    else:
        differing, others = _differing(found, before, wanted, places or {})
    for role in () if differing else found.inputs:
        try:
            found.input_folder(role)
        except HarnessError:
            differing.append(f"{role}: changed since, or no longer there")
    read_now = call.get("read", {})
    last_names = {(Path(name).name, digest) for name, digest in read_now.items()}
    for name, digest in ({} if differing else found.call.get("read", {})).items():
        again = read_now[name] == digest if name in read_now else (Path(name).name, digest) in last_names
        if not again:
            which = "code has" if name == wanted.get("scorer") else "content or its images have"
            gone = "is" if which == "code has" else "are"
            differing.append(f"{name}: its {which} changed since, or {gone} no longer there")
    if not (differing := differing or others):
        refuse_changed(output)
        return found
    raise HarnessError(
        f"--output {output} already holds {indefinite(found.kind)}, of another run: {'; '.join(differing)}",
        "Name another folder, or remove this one first",
    )


@contextlib.contextmanager
def taken(output: Path, kind: str = "result", option: str = "--output", grant: bool = True) -> Iterator[Path]:
    """Holds an output folder's lock; afterward removes the folder if it has no result and no run to resume.

    `kind` and `option`, which names the folder, are for errors; with `grant` a function called in the block
    may take the lock too. Yields the folder inside it for unfinished work.

    Raises:
        HarnessError: another process holds it, or it cannot be written.
    """
    if output.is_file():
        raise HarnessError(f"{option} {output} is a file", "Name a new folder")
    folder = output / UNFINISHED
    new = [path for path in (output, *output.parents) if not path.exists()]
    with contextlib.ExitStack() as stack:
        with reporting_refusals(kind, output, "nothing was changed"):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (FileNotFoundError, FileExistsError) as error:
                broken = any(path.is_symlink() and not path.exists() for path in (output, *output.parents))
                remedy = "whose path has no broken link" if broken else "where files can be written"
                raise HarnessError(
                    f"{option} {output} cannot be created ({error.strerror}: {error.filename})",
                    f"Name a folder {remedy}",
                ) from error
            stack.enter_context(lock.locked(folder / LOCK, output, option))
            stack.callback(_tidy, output, new)
            lock.sign(folder)
        if grant:
            stack.enter_context(lock.granted(folder / LOCK))
        yield folder


def _tidy(output: Path, new: Collection[Path]) -> None:
    """Removes working files that no run can resume from, and those of the new folders that are empty."""
    if not unfinished(output):
        shutil.rmtree(output / UNFINISHED, ignore_errors=True)
        for path in new:
            with contextlib.suppress(OSError):  # it holds the result
                path.rmdir()


def sweep(output: Path) -> None:
    """Removes leftovers of a process that was killed during cleanup of a finished artifact's folder."""
    if (output / NAME).is_file() and (output / UNFINISHED).is_dir():
        # Another process may be tidying up, and a folder that is read-only keeps what it has.
        with contextlib.suppress(HarnessError), taken(output):
            pass


def clear(output: Path) -> None:
    """Removes drafts of killed processes, and the files that they had already moved up."""
    for left in [*(output / UNFINISHED).glob("draft*"), *(output / name for name in _moved(output))]:
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    (output / UNFINISHED / MOVING).unlink(missing_ok=True)


@contextlib.contextmanager
def drafted(
    kind: str,
    output: Path,
    config: Mapping[str, Any],
    inputs: Mapping[str, Path],
    seconds: Callable[[], float],
    finish: Callable[..., object] | None = None,
) -> Iterator[Draft]:
    """Writes an artifact in a folder that this process has locked, and moves it up once it is complete.

    `seconds` returns the wall-clock time that the work took; the other arguments are those of `writing`. A
    full disk is an OSError.
    """
    folder = output / UNFINISHED
    draft = Draft(folder / f"draft-{secrets.token_hex(4)}")
    try:
        draft.folder.mkdir()
        yield draft
        sources = {role: path.resolve() for role, path in inputs.items()}
        seal(kind, draft, output.resolve(), dict(config), sources, seconds())
        if finish is not None:
            _carded(finish, draft.folder, output)
        refuse_occupied(output, resumes=True)  # by files that somebody else put there meanwhile
        names = sorted(path.name for path in draft.folder.iterdir())
        disk.write_text(folder / MOVING, json.dumps(names))
        disk.move_up(draft.folder, output, last=NAME)
    finally:
        shutil.rmtree(draft.folder, ignore_errors=True)


def _carded(write: Callable[..., object], folder: Path, output: Path) -> None:
    """Writes a draft's card; an error other than of the disk is a warning, as hours of work do without it."""
    try:
        write(folder, place=output.resolve())
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - of the hub's package and its parsers, too
        _LOG.warning(
            "%s: its card cannot be written (%s: %s). Run `dcsft card %s` later",
            *(output, type(error).__name__, " ".join(str(error).split()), output),
        )


@contextlib.contextmanager
def writing(
    kind: str,
    output: Path,
    config: Mapping[str, Any],
    inputs: Mapping[str, Path] | None = None,
    finish: Callable[..., object] | None = None,
) -> Iterator[Draft]:
    """Writes an artifact beside its final place and moves it there once it is complete.

    If the block fails, the output folder is not created. `config` is JSON-serializable; `inputs` are the
    folders or files that the work reads, by role. `finish` is called with the folder once its manifest is
    written, before the move, and with the final folder as the keyword `place`: for `CARD`. Its errors
    are warnings, except for disk errors.

    Raises:
        HarnessError: the output is occupied, cannot be written, or the disk is full.
    """
    refuse_occupied(output)
    sources = {role: path.resolve() for role, path in (inputs or {}).items()}
    for path in sources.values():
        refuse_newer(path)
    environment.begin_work()
    started = time.monotonic()
    with reporting_refusals(kind, output, "nothing half-written was kept"), taken(output):
        refuse_occupied(output)  # a process that finished meanwhile has released the lock
        clear(output)
        with drafted(kind, output, config, sources, lambda: time.monotonic() - started, finish) as draft:
            yield draft


def seal(
    kind: str, draft: Draft, output: Path, config: dict[str, Any], sources: dict[str, Path], seconds: float
) -> None:
    """Writes a draft's manifest, which makes its folder an artifact.

    `output` is the final folder: inputs are named relative to it. The other files exist already.
    """
    prints = _fingerprints(sources)
    files = sorted(p for p in draft.folder.rglob("*") if p.is_file() and p != draft.folder / CARD)
    data = {
        "artefact": kind,
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "call": (CALL.get() or {})
        | ({} if (places := PLACES.get()) is None else {"content": contents(places)}),
        "config": config,
        "inputs": {
            role: {"path": os.path.relpath(path, output), "sha256": prints[role]}
            for role, path in sources.items()
        },
        "key": json_sha256({"kind": kind, "config": config, "inputs": prints}),
        "notes": draft.notes,
        "files": {str(p.relative_to(draft.folder)): one for p, one in hashed(files, file_sha256).items()},
        "packages": environment.packages(),
        "hardware": environment.hardware(),
        "seconds": round(seconds, 3),
    }
    text = json_text(data, indent=2, default=str)
    (draft.folder / NAME).write_text(text + "\n", encoding="utf-8")

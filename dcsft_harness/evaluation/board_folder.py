"""A board's folder: results by row name, and a leaderboard built from all of them."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcsft_harness import reading
from dcsft_harness.artifacts import disk, manifest
from dcsft_harness.artifacts.lock import locked
from dcsft_harness.errors import HarnessError, json_text

STATE, RESULTS, LEADERBOARD, LOCK = "board.json", "results", "leaderboard", "lock"
PATIENCE = 900.0
"""Seconds to wait while another process builds the leaderboard."""
LONGEST = 150
"""The longest name of a row in characters; it is also a folder's name."""


@dataclass
class BoardFolder:
    """A board on disk; created by `open_board`."""

    folder: Path
    baseline: str | None = None  # the row, or group of seeds, that differences refer to
    apart: bool = False  # whether rows that cannot be compared get tables of their own
    # results from elsewhere, relative to the folder, with NAME= if they were given a name
    given: list[str] = field(default_factory=list)

    @property
    def leaderboard(self) -> Path:
        """The leaderboard's folder."""
        return self.folder / LEADERBOARD

    def of(self, name: str) -> Path:
        """The folder of a row's results; the name must be able to be a folder's.

        Raises:
            HarnessError: the name cannot be a folder's.
        """
        plain = name.strip() == name and name.isprintable() and not name.startswith(".")
        if not plain or not name or len(name.encode()) > LONGEST or set(name) & set("/\\"):
            raise HarnessError(
                f"the row name {name!r} cannot be a folder's",
                f"Give one with --name, without slashes and of at most {LONGEST} bytes",
            )
        return self.folder / RESULTS / name

    def names(self) -> list[str]:
        """Rows with results here, in the order of their runs and of the steps within a run."""
        rows = {}
        for folder in sorted((self.folder / RESULTS).glob("*")):
            if found := [manifest.read(path) for path in self.tasks_of(folder.name)]:
                rows[folder.name] = found
        keys = {name: _place(name, found) for name, found in rows.items()}
        begun: dict[str, str] = {}
        for run, _, created, _ in keys.values():
            begun[run] = min(created, begun.get(run, created))
        return sorted(rows, key=lambda name: (begun[keys[name][0]], *keys[name]))

    def tasks_of(self, name: str) -> list[Path]:
        """The finished results of a row, by task."""
        return sorted(path.parent for path in (self.folder / RESULTS / name).glob(f"*/{manifest.NAME}"))

    def results(self) -> list[Path]:
        """The leaderboard's inputs: results from elsewhere first."""
        elsewhere = []
        for one in self.given:
            name, sign_, place = one.rpartition("=")
            elsewhere.append(Path(f"{name}{sign_}{os.path.normpath(self.folder / place)}"))
        return [*elsewhere, *(path for name in self.names() for path in self.tasks_of(name))]

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[Path]:
        """Locks a row's results for this process; yields a folder for temporary files.

        Raises:
            HarnessError: another process is scoring under that name.
        """
        home = self.of(name)
        with manifest.taken(home, "row", "the row", grant=False) as unfinished:
            for left in home.glob(f".*.{manifest.UNFINISHED}-*"):  # left by a killed process
                shutil.rmtree(left)
            yield unfinished

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Locks the leaderboard, after waiting for another process that builds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / f".{LOCK}", self.folder, "--board", PATIENCE):
            yield

    def save(self) -> None:
        """Saves the settings for the next call."""
        settings = {"baseline": self.baseline, "apart": self.apart, "results": self.given}
        disk.write_text(self.folder / STATE, json_text(settings, indent=2) + "\n")

    def replace_leaderboard(self, new: Path) -> None:
        """Replaces the existing leaderboard with a finished one."""
        old = self.folder / f".{LEADERBOARD}.old"
        shutil.rmtree(old, ignore_errors=True)
        try:
            if self.leaderboard.exists():
                os.replace(self.leaderboard, old)
            os.replace(new, self.leaderboard)
        finally:
            if old.exists() and not self.leaderboard.exists():
                os.replace(old, self.leaderboard)
        shutil.rmtree(old, ignore_errors=True)


def _place(name: str, found: Sequence[manifest.Manifest]) -> tuple[str, float, str, str]:
    """A row's run (the row itself if there is none), its step, its start time, and its name."""
    checkpoint = found[0].notes.get("checkpoint")
    home = found[0].folder.resolve()
    created = min(one.created for one in found)
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("step"), int):
        return os.path.normpath(home / str(checkpoint.get("run"))), checkpoint["step"], created, name
    adapter = next((found[0].inputs[role] for role in ("adapter", "model") if role in found[0].inputs), None)
    run = name if adapter is None else os.path.normpath(home / adapter["path"])
    return run, float("inf"), created, name


def open_board(
    folder: Path, baseline: str | None = None, apart: bool = False, given: Sequence[Path] = ()
) -> BoardFolder:
    """A new board, or an existing one with its saved settings; the arguments are added. Writes nothing.

    `baseline` None keeps the board's, and `apart` once set stays, see `BoardFolder`; `given` are further
    results from elsewhere, NAME=FOLDER or FOLDER.

    Raises:
        HarnessError: the folder holds something else, or its settings cannot be read.
    """
    board = BoardFolder(folder, **_remembered(folder))
    board.baseline = baseline or board.baseline
    board.apart = apart or board.apart
    known = dict.fromkeys(board.given)
    for one in given:
        name, sign_, place = ("", "", str(one)) if one.exists() else str(one).rpartition("=")
        if not Path(place).is_dir():
            raise HarnessError(f"--results {one}: there is no such folder", "Check the path")
        known[f"{name}{sign_}{manifest.relative(Path(place), folder)}"] = None
    board.given = list(known)
    return board


def _remembered(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        raise HarnessError(f"--board {folder} is a file", "Name a folder")
    if not (folder / STATE).is_file():
        strangers = [path for path in folder.glob("*") if path.name not in (RESULTS, f".{LOCK}")]
        if strangers:
            raise HarnessError(
                f"--board {folder} is not empty and holds no board of `dcsft score`",
                "Name a new or an empty folder",
            )
        return {}
    try:
        settings = reading.json_file(folder / STATE)
        return {
            "baseline": settings["baseline"],
            "apart": bool(settings["apart"]),
            "given": [str(one) for one in settings["results"]],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(
            f"{folder / STATE} cannot be read: {error!r}",
            "Remove it and give --baseline and --results again; results/ is kept",
        ) from error

"""Folders -> Board: each is read, and one that cannot be used does not spoil the others unless asked to."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError, unknown_name

from .assemble import assemble
from .board import Board, LeftOut
from .logs import SAMPLES, is_log, read_logs
from .read import Shared, read_result
from .result import Result
from .samples import Choices

Progress = Callable[[int, int], None]


def load(
    results: Sequence[Path],
    baseline: str | None = None,
    *,
    strict: bool = True,
    apart: bool = False,
    choices: Choices | None = None,
    progress: Progress | None = None,
) -> Board:
    """Reads folders of results into one board.

    Args:
        results: scores folders and folders of lmms-eval logs, in the order in which their rows should
            appear; NAME=FOLDER names the row otherwise than the folder does.
        baseline: the name of the row, or of the group of seeds, to take differences to; None for none.
        strict: whether one folder that cannot be used spoils the board; else it is left out, and the
            board says so.
        apart: give rows that cannot be compared with the others boards of their own.
        choices: what logs do not say themselves.
        progress: called with (folders read, folders in all).

    Raises:
        HarnessError: there are no folders, none can be used, no row has the baseline's name, or a task
            or metric that is named is unknown; where `strict`, one cannot be read (see `read_result`
            and `read_logs`); where neither `strict` nor `apart`, two cannot be compared.
    """
    if not results:
        raise HarnessError(
            "no scores folders were given", "Name at least one folder made by `dcsft evaluate`"
        )
    choices, shared = choices or Choices({}, {}), Shared()
    found: list[Result] = []
    errors: list[tuple[Path, HarnessError]] = []
    for number, given in enumerate(results, start=1):
        name, folder = named(given)
        try:
            found += read(folder, name, choices, shared)
        except HarnessError as error:
            if strict:
                raise
            errors.append((folder, error))
        if progress is not None:
            progress(number, len(results))
    if not found:
        raise errors[0][1]
    _refuse_unknown(choices, found)
    board = assemble(found, baseline, strict=strict and not apart, apart=apart)
    unread = tuple(LeftOut(folder, str(error)) for folder, error in errors)
    return replace(board, left_out=(*unread, *board.left_out))


def named(given: Path) -> tuple[str | None, Path]:
    """The name and the folder in NAME=FOLDER; no name where what is given is a folder as it stands."""
    name, sign, folder = str(given).partition("=")
    if given.exists() or not sign or not name.strip():
        return None, given
    return name, Path(folder)


def read(folder: Path, name: str | None, choices: Choices, shared: Shared) -> list[Result]:
    """Reads one folder, of whichever kind.

    Raises:
        HarnessError: it is neither, or cannot be used.
    """
    if is_log(folder):
        return read_logs(folder, name, choices)
    if not (folder / manifest.NAME).is_file() and folder.is_dir():
        lost = sorted([*folder.glob(f"*{SAMPLES}*.jsonl"), *folder.glob(f"*/*{SAMPLES}*.jsonl")])
        if lost:
            raise HarnessError(
                f"{lost[0]} has no results file of lmms-eval beside it: the run did not finish, or that "
                "file was not copied",
                "Run the evaluation again, or copy its *_results.json too",
            )
    return [read_result(folder, name, shared)]


def _refuse_unknown(choices: Choices, found: Sequence[Result]) -> None:
    known = sorted({task for result in found for task in result.tasks})
    for task in (*choices.metrics, *choices.distributions):
        if task not in known:
            raise unknown_name("task", task, known)

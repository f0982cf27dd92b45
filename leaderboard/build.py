"""Scores folders -> a leaderboard artefact: Markdown, CSV, JSON and its manifest."""

from collections.abc import Sequence
from pathlib import Path

from dcsft_harness import manifest

from .board import Board
from .document import document, text
from .gather import load
from .summarise import summarise
from .table import csv_text, markdown


def build(results: Sequence[Path], output: Path, baseline: str | None = None) -> Board:
    """Writes the leaderboard of some scores folders.

    Args:
        results: the folders, in the order in which their rows should appear.
        output: the leaderboard's folder; must not exist, or be empty.
        baseline: the name of the row that differences are taken to, which then comes first; None
            for no differences.

    Returns:
        The board; `markdown` prints it.

    Raises:
        HarnessError: see `load`; or the output is occupied or cannot be written. Nothing is
            written then.
    """
    manifest.refuse_occupied(output)  # before the reading, which may take a while
    board = load(results, baseline)
    summary = summarise(board)
    # The order of the rows is part of the result, so the roles carry it into the key.
    inputs = {f"scores {number}": folder for number, folder in enumerate(results, start=1)}
    with manifest.writing("leaderboard", output, {"baseline": baseline}, inputs) as draft:
        for name, content in {
            "leaderboard.md": f"# Leaderboard\n\n{markdown(summary)}",
            "leaderboard.csv": csv_text(summary),
            "leaderboard.json": text(document(summary, output)),
        }.items():
            (draft.folder / name).write_text(content, encoding="utf-8", newline="\n")
        draft.notes |= {
            "rows": [row.name for row in board.rows],
            "tasks": [task.name for task in board.tasks],
        }
    return board

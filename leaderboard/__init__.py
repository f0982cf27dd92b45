"""Scores -> leaderboard: which adapter is better, in and out of distribution, and by how much.

    logs.py     one folder of `lmms-eval --log_samples` -> Results, checked
    collect.py  scores folders, and folders above them or logs -> Results, each under its row's name
    load.py     Results -> Board: comparable rows and tasks, or an error
    board.py    Board: the results by row and task, and their manifests' notes on model, training and cost
    compare.py  Board -> Summary: means, differences, tests, ranks, accuracy by difficulty
    summary.py  Summary: every number of a board, unrounded; and published figures
    stats.py    intervals, paired tests, several seeds as one row, ranks
    report/     Summary -> Markdown, CSV, LaTeX, plots, JSON (by schema.json), Parquet
    page/       Board and Summary -> a page that opens from disk, and its server
    site/       the page's own scripts and style, and the libraries that come with it
    build.py    folders -> a leaderboard artifact

Example::

    board = load([Path("out/scores-sft"), Path("out/scores-sft-m")], baseline="SFT")
    print(markdown(board))

Accuracies are fractions in [0, 1] everywhere except in the Markdown, which prints percent as in the paper (Lu
et al., CVPR 2026, arXiv 2602.10815, table 2).
"""

import sys

from dcsft_harness import CallableModule
from dcsft_harness.leaderboard.board import Board, Cell, Row, Task
from dcsft_harness.leaderboard.build import Built, Options, build
from dcsft_harness.leaderboard.compare import summarize
from dcsft_harness.leaderboard.load import load
from dcsft_harness.leaderboard.report import document, schema
from dcsft_harness.leaderboard.report.table import markdown
from dcsft_harness.leaderboard.summary import Summary

__all__ = [
    "Board",
    "Built",
    "Cell",
    "Options",
    "Row",
    "Summary",
    "Task",
    "build",
    "document",
    "load",
    "markdown",
    "schema",
    "summarize",
]

sys.modules[__name__].__class__ = CallableModule

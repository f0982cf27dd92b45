"""Scores -> leaderboard: which adapter is better, in and out of distribution, and by how much.

    read.py        one scores folder -> Result, checked
    logs.py        one folder of `lmms-eval --log_samples` -> Results, checked
    bridge.py      a log's items under the content ids of a scores folder
    gather.py      folders -> Board
    provenance.py  what its manifests say of model, training and cost
    result.py      what was read, by task
    assemble.py    Results -> Board: rows and tasks that can be compared, or a refusal
    published.py   figures of others, quoted and never tested against
    statistics.py  intervals of means and of paired differences
    paired.py      tests of paired differences, and Holm's correction
    seeds.py       several seeds as one row
    ranking.py     ranks, Pareto front and retention, with their uncertainty
    power.py       the smallest difference that a task can show
    summarise.py   Board -> Summary, with comparing.py (tests) and standing.py (ranks)
    summary.py     Summary: every number of a board, unrounded
    difficulty.py  accuracy by the difficulty that labels give items
    table.py       Summary -> the table in Markdown, CSV
    report.py      Summary -> leaderboard.md
    latex.py       Summary -> leaderboard.tex
    plots.py       Summary -> PNG and SVG, by the functions of charts.py
    items.py       Board -> items.parquet
    document.py    Summary -> leaderboard.json, in the shape of schema.json
    page.py        Board and Summary -> a page that opens from disk, with page_board.py (figures),
                   page_items.py (items and responses), pools.py (rollouts), pictures.py, packing.py
    site/          the page's own scripts and style, and the libraries that come with it
    serve.py       a page at an address of this machine
    build.py       folders -> a leaderboard artefact
    results.py     a recipe's output folder -> a page of its boards, and what became of each claim:
                   claims.py (decided by boards), run_claims.py (by the training runs behind them)

Example::

    board = load([Path("out/scores-sft"), Path("out/scores-sft-m")], baseline="SFT")
    print(markdown(board))

Accuracies are fractions in [0, 1] everywhere but in the Markdown, which prints percent as the
paper does (Lu et al., CVPR 2026, arXiv 2602.10815, table 2).
"""

import sys

from dcsft_harness import CallableModule

from .board import Board, Cell, Row, Task
from .build import Built, Options, build
from .document import document, schema
from .gather import load
from .summarise import summarise
from .summary import Summary
from .table import markdown

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
    "summarise",
]


sys.modules[__name__].__class__ = CallableModule

"""Scores -> leaderboard: which adapter is better, in and out of distribution, and by how much.

    read.py        one scores folder -> Result, checked
    board.py       Results -> Board: rows and tasks that can be compared, or a refusal
    statistics.py  intervals of means and of paired differences
    summary.py     Board -> Summary: every number of the table, unrounded
    table.py       Summary -> Markdown, CSV
    build.py       folders -> a leaderboard artefact

Example::

    board = load([Path("out/scores-sft"), Path("out/scores-sft-m")], baseline="SFT")
    print(markdown(board))

Accuracies are fractions in [0, 1] everywhere but in the Markdown, which prints percent as the
paper does (Lu et al., CVPR 2026, arXiv 2602.10815, table 2).
"""

from .board import Board, Cell, Row, Task, load
from .build import build
from .summary import Summary, summarise
from .table import markdown

__all__ = ["Board", "Cell", "Row", "Summary", "Task", "build", "load", "markdown", "summarise"]

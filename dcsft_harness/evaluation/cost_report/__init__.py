"""Training runs -> what each has cost, labels included, and what they reach for the same cost.

    figures.py   a cost: a ledger's figures, where they are known
    lineage.py   one adapter or checkpoint -> Run: its own cost, and those of what it was made from
    equal.py     Runs -> where each stood when the cheapest of them had ended
    accuracy.py  scores folders -> means of what was evaluated, by content
    table.py     Comparison -> Markdown, CSV, JSON
    build.py     folders -> a cost comparison, with its artefact

Costs are those of `dcsft_harness.artifacts.usage`: tokens and operations counted, seconds and bytes measured.
"""

from .build import build, compare
from .table import markdown

__all__ = ["build", "compare", "markdown"]

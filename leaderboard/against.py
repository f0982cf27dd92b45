"""One row of a Summary against the baseline, column by column: what is printed when a row is new."""

from tabulate import tabulate

from dcsft_harness.errors import visible

from .statistics import Estimate
from .summary import Column, Line, Summary
from .table import percent, points


def against(summary: Summary, name: str) -> str:
    """A table for a terminal: a line per task and mean, with the row's and the baseline's accuracy.

    Accuracies are percent, differences percentage points, paired by item, with 95 % intervals; a blank is
    what was not evaluated or cannot be given.

    Args:
        summary: has the row.
        name: the row's; of several lines of that name the single row's is taken.
    """
    line = min((one for one in summary.lines if one.name == name), key=lambda one: one.is_group)
    baseline = next((one for one in summary.lines if one.is_baseline), None)
    header = ["", "n", visible(name)]
    if baseline is not None and baseline is not line:
        header += [visible(baseline.name), "difference"]
    rows = []
    for index, column in enumerate(summary.columns):
        entry = line.entries[index]
        if entry is None:
            continue
        row = [_label(column), str(entry.n), _percent(entry.accuracy)]
        if len(header) > 3:
            row += [_accuracy(baseline, index), "" if entry.difference is None else points(entry.difference)]
        rows.append(row)
    aligned = ["left", *["right"] * (len(header) - 1)]
    return tabulate(rows, headers=header, tablefmt="simple", disable_numparse=True, colalign=aligned) + "\n"


def brief(summary: Summary, name: str) -> str:
    """The row in a few words: its ID and OOD accuracy, with the differences to the baseline."""
    line = min((one for one in summary.lines if one.name == name), key=lambda one: one.is_group)
    parts = []
    for title in ("ID", "OOD"):
        index = summary.overall(title.lower())
        entry = None if index is None else line.entries[index]
        if entry is not None and entry.accuracy is not None:
            change = "" if entry.difference is None else f" ({points(entry.difference)})"
            parts.append(f"{title} {percent(entry.accuracy.value)} %{change}")
    return ", ".join(parts)


def _label(column: Column) -> str:
    plain = column.is_mean or column.distribution is None
    return visible(column.label if plain else f"{str(column.distribution).upper()}: {column.label}")


def _accuracy(line: Line | None, index: int) -> str:
    entry = None if line is None else line.entries[index]
    return "" if entry is None else _percent(entry.accuracy)


def _percent(estimate: Estimate | None) -> str:
    return "" if estimate is None else percent(estimate.value)

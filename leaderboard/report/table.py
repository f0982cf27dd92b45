"""Summary -> Markdown for people and papers, CSV for programs.

Names of rows and tasks come from outside: they are shown as text, whatever they contain.
"""

import csv
import html
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tabulate import tabulate

from dcsft_harness.errors import visible
from dcsft_harness.leaderboard.board import Board
from dcsft_harness.leaderboard.compare import summarise, total
from dcsft_harness.leaderboard.provenance import LEDGER, cost_of
from dcsft_harness.leaderboard.stats.intervals import Estimate
from dcsft_harness.leaderboard.summary import Column, Entry, Line, Summary

CSV_COLUMNS = (
    "row", "task", "distribution", "n", "unscored", "unanswered",
    "accuracy", "low", "high", "diff", "diff_low", "diff_high",
)  # fmt: skip
# An underscore inside a word ("sft_m") is no markup, and stays readable as it is.
# Where a cell of a spreadsheet may begin: also behind a semicolon, which separates cells in some countries.
_FORMULA = re.compile(r"(^|;)(?=\s*[=+\-@＝＋－＠])")
_MARKUP = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))")


def markdown(board: Board | Summary) -> str:
    """The board as a Markdown table that also reads as plain text.

    Accuracies are percent with two decimals, differences percentage points with their 95 %
    interval; the best of each column is bold; the last line has each task's n.
    """
    summary = summarise(board) if isinstance(board, Board) else board
    overall = _overall(summary)
    differences = [f"{title} vs {markdown_text(str(summary.baseline))}" for title in overall]
    header = ["", *map(_heading, summary.columns), *differences, "unanswered", "unscored"]
    best = [_best(summary, index) for index in range(len(summary.columns))]
    body = [_body_line(line, summary.columns, best, list(overall.values())) for line in summary.lines]
    sizes = ["" if column.is_mean else str(len(column.tasks[0].item_ids)) for column in summary.columns]
    body.append(["*n*", *sizes, *[""] * (len(overall) + 2)])
    table = tabulate(
        body,
        headers=header,
        tablefmt="pipe",
        disable_numparse=True,  # "97.50" must not become 97.5
        colalign=("left", *["right"] * (len(header) - 1)),
    )
    return "\n".join([table, "", *(f"- {note}." for note in _footnotes(summary, overall)), ""])


def csv_text(board: Board | Summary) -> str:
    """The board as CSV: one line per row and column of the table, under `CSV_COLUMNS`.

    Accuracies and differences are fractions, unrounded. n counts the items that the accuracy is
    over, without the unscored ones. A blank is a value that does not exist: the task was not
    evaluated or does not report answers, there is no baseline, or no interval can be given.
    """
    summary = summarise(board) if isinstance(board, Board) else board
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for line in summary.lines:
        for column, entry in zip(summary.columns, line.entries, strict=True):
            writer.writerow(
                [
                    spreadsheet_text(line.name),
                    spreadsheet_text(column.label),
                    column.distribution or "",
                    *_numbers(entry),
                ]
            )
    return file.getvalue()


def markdown_text(text: str) -> str:
    """A name as Markdown that renders as that name: no markup, HTML or table cell comes of it."""
    return _MARKUP.sub(r"\\\1", html.escape(visible(text), quote=False))


def spreadsheet_text(text: str) -> str:
    """A name that a spreadsheet does not run as a formula: a leading = + - or @ gets an apostrophe."""
    return _FORMULA.sub(r"\1'", visible(text))


def _numbers(entry: Entry | None) -> Iterator[object]:
    if entry is None:
        yield from [""] * 9
        return
    yield from (entry.n, entry.unscored, "" if entry.unanswered is None else entry.unanswered)
    for estimate in (entry.accuracy, entry.difference):
        if estimate is None:
            yield from [""] * 3
        else:
            yield from (
                "" if number is None else number for number in (estimate.value, estimate.low, estimate.high)
            )


def _overall(summary: Summary) -> dict[str, int]:
    """Title -> index of the columns whose differences to the baseline are printed."""
    if summary.baseline is None:
        return {}
    found = {title: summary.overall(title.lower()) for title in ("ID", "OOD")}
    return {title: index for title, index in found.items() if index is not None}


def _heading(column: Column) -> str:
    if column.is_mean or column.distribution is None:
        return markdown_text(column.label)
    return f"{column.distribution.upper()}: {markdown_text(column.label)}"


def _best(summary: Summary, index: int) -> str | None:
    """The best accuracy as printed, so that rows which print the same are bold alike; None if all do."""
    entries = [line.entries[index] for line in summary.lines]
    found = [entry.accuracy.value for entry in entries if entry is not None and entry.accuracy is not None]
    return percent(max(found)) if len(set(map(percent, found))) > 1 else None


def _body_line(
    line: Line, columns: Sequence[Column], best: list[str | None], overall: list[int]
) -> list[str]:
    cells = [markdown_text(line.name) + (f" ({len(line.rows)} seeds)" if line.is_group else "")]
    for entry, top in zip(line.entries, best, strict=True):
        shown = percent(entry.accuracy.value) if entry is not None and entry.accuracy is not None else ""
        cells.append(f"**{shown}**" if shown and shown == top else shown)
    for index in overall:
        entry = line.entries[index]
        cells.append(points(entry.difference) if entry is not None and entry.difference is not None else "")
    tasks = [
        e for e, column in zip(line.entries, columns, strict=True) if e is not None and not column.is_mean
    ]
    unanswered = total([e.unanswered for e in tasks])
    return [*cells, "" if unanswered is None else str(unanswered), str(sum(e.unscored for e in tasks))]


def _footnotes(summary: Summary, overall: Mapping[str, int]) -> Iterator[str]:
    yield "Accuracy in percent, the best of each column in bold; means are unweighted; *n*: items of a task"
    yield "unanswered: no answer was found, counted as wrong; unscored: could not be scored, left out"
    if overall:
        titles, baseline = " and ".join(overall), markdown_text(str(summary.baseline))
        yield (
            f"{titles} vs {baseline}: difference of the mean (of the accuracy, where there is one task) in "
            "percentage points, paired by item, with its 95 % interval (cluster-robust)"
        )
    # Not Markdown, and full of names from outside.
    yield from map(markdown_text, summary.remarks)


def percent(fraction: float) -> str:
    """A fraction in percent, as tables print it."""
    return f"{100 * fraction:.2f}"


def points(estimate: Estimate) -> str:
    """Percentage points, signed; "z" keeps a rounded zero from printing as -0.00."""
    shown = f"{100 * estimate.value:+z.2f}"
    if estimate.low is None or estimate.high is None:
        return shown
    return f"{shown} [{100 * estimate.low:+z.2f}, {100 * estimate.high:+z.2f}]"


COMPARISON_COLUMNS = (
    "family", "row", "other", "task", "diff", "low", "high", "n", "better", "worse", "p", "p_holm", "method",
)  # fmt: skip
STANDING_COLUMNS = (
    "row", "seeds", "rank", "rank_low", "rank_high", "ranked", "ood_retention", "retention_low",
    "retention_high", "worst_task", "worst_accuracy", "on_front", "front_share", *LEDGER,
)  # fmt: skip


def comparisons_csv(summary: Summary) -> str:
    """The tests as CSV, one line per comparison, under `COMPARISON_COLUMNS`."""
    return _csv(
        COMPARISON_COLUMNS,
        (
            [
                one.family,
                spreadsheet_text(one.row),
                spreadsheet_text(one.other),
                spreadsheet_text(summary.columns[one.column].label),
                *_blank(one.difference[:4]),
                *_blank((one.better, one.worse, one.p, one.p_holm)),
                one.method,
            ]
            for one in summary.comparisons
        ),
    )


def standings_csv(summary: Summary) -> str:
    """Ranks, retention, worst task, front and cost as CSV, one line per row, under `STANDING_COLUMNS`."""
    lines = []
    for line in summary.lines:
        retention, worst, front = line.retention, line.worst, line.front
        cost = cost_of(line.rows) or {}
        lines.append(
            [
                spreadsheet_text(line.name),
                len(line.rows),
                *_blank(line.rank or [None] * 4),
                *_blank(retention[:3] if retention else [None] * 3),
                *([spreadsheet_text(worst.task), worst.accuracy] if worst else ["", ""]),
                *([str(front.on).lower(), front.share] if front else ["", ""]),
                *_blank([cost.get(name) for name in LEDGER]),
            ]
        )
    return _csv(STANDING_COLUMNS, lines)


def _blank(values: Iterable[object]) -> list[object]:
    return ["" if value is None else value for value in values]


def _csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return file.getvalue()


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

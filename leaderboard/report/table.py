"""Summary -> tables: Markdown for people, LaTeX for papers, CSV for programs.

Names of rows and tasks come from outside: they are shown as text, whatever they contain.
"""

import csv
import html
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tabulate import tabulate

from dcsft_harness.artifacts.usage import FIGURES
from dcsft_harness.errors import visible
from dcsft_harness.leaderboard.board import Board, cost_of
from dcsft_harness.leaderboard.compare import summarize, total
from dcsft_harness.leaderboard.stats import Estimate
from dcsft_harness.leaderboard.summary import Column, Comparison, Entry, Line, Summary

# Summary -> Markdown for people and papers, CSV for programs.

CSV_COLUMNS = (
    "row", "task", "distribution", "n", "unscored", "unanswered",
    "accuracy", "low", "high", "diff", "diff_low", "diff_high",
)  # fmt: skip
# An underscore inside a word ("sft_m") is no markup, and stays readable as it is.
# Where a spreadsheet cell may start: also after a semicolon, which separates cells in some countries.
_FORMULA = re.compile(r"(^|;)(?=\s*[=+\-@＝＋－＠])")
_MARKUP = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))")


def markdown(board: Board | Summary) -> str:
    """The board as a Markdown table that is also readable as plain text.

    Accuracies are percent with two decimals, differences percentage points with their 95 %
    interval; the best of each column is bold, single seeds of a group aside; the last line has each task's n.
    """
    summary = summarize(board) if isinstance(board, Board) else board
    overall = _overall(summary)
    differences = [markdown_text(f"{title} vs {summary.baseline}") for title in overall]
    headings = [_heading(column, markdown_text(column.label)) for column in summary.columns]
    header = ["", *headings, *differences, "unanswered", "unscored"]
    best = [_marks(summary.lines, index)[0] for index in range(len(summary.columns))]
    body = [_body_line(line, summary.columns, best, list(overall.values())) for line in summary.lines]
    sizes = ["" if column.is_mean else str(len(column.tasks[0].item_ids)) for column in summary.columns]
    body.append(["*n*", *sizes, *[""] * (len(overall) + 2)])
    return "\n".join([grid(header, body), "", *(f"- {note}." for note in _footnotes(summary, overall)), ""])


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], form: str = "pipe") -> str:
    """A table, the first column to the left and the others to the right."""
    aligned = ["left", *["right"] * (len(header) - 1)]
    # Numbers stay text: "97.50" must not become 97.5.
    return str(tabulate(rows, headers=header, tablefmt=form, disable_numparse=True, colalign=aligned))


def csv_text(board: Board | Summary) -> str:
    """The board as CSV: one line per row and column of the table, under `CSV_COLUMNS`.

    Accuracies and differences are fractions, unrounded. n counts the scored items, which the accuracy is
    over. A blank is a value that does not exist: the task was not evaluated or does not report answers, there
    is no baseline, or no interval can be computed.
    """
    summary = summarize(board) if isinstance(board, Board) else board
    return csv_of(
        CSV_COLUMNS,
        (
            [*map(spreadsheet_text, (line.name, column.label)), column.distribution, *_numbers(entry)]
            for line in summary.lines
            for column, entry in zip(summary.columns, line.entries, strict=True)
        ),
    )


def markdown_text(text: str) -> str:
    """A name as Markdown that renders as that name, without markup, HTML or table cells."""
    return _MARKUP.sub(r"\\\1", html.escape(visible(text), quote=False))


def spreadsheet_text(text: str) -> str:
    """A name that a spreadsheet does not run as a formula: a leading = + - or @ gets an apostrophe."""
    return _FORMULA.sub(r"\1'", visible(text))


def _numbers(entry: Entry | None) -> list[object]:
    if entry is None:
        return [None] * 9
    ends = [([None] * 3 if one is None else one[:3]) for one in (entry.accuracy, entry.difference)]
    return [entry.n, entry.unscored, entry.unanswered, *ends[0], *ends[1]]


def _overall(summary: Summary) -> dict[str, int]:
    """Title -> index of the columns whose differences to the baseline are printed."""
    if summary.baseline is None:
        return {}
    found = {title: summary.overall(title.lower()) for title in ("ID", "OOD")}
    known = {title: index for title, index in found.items() if index is not None}
    # Tasks that state no distribution are compared one by one.
    return known or {column.label: index for index, column in enumerate(summary.columns)}


def _heading(column: Column, label: str) -> str:
    plain = column.is_mean or column.distribution is None
    return label if plain else f"{str(column.distribution).upper()}: {label}"


def _percent(entry: Entry | None) -> str:
    return "" if entry is None or entry.accuracy is None else percent(entry.accuracy.value)


def _body_line(
    line: Line, columns: Sequence[Column], best: list[str | None], overall: list[int]
) -> list[str]:
    cells = [markdown_text(line.name) + (f" ({len(line.rows)} seeds)" if line.is_group else "")]
    for entry, top in zip(line.entries, best, strict=True):
        shown = _percent(entry)
        cells.append(f"**{shown}**" if shown and shown == top and line.group is None else shown)
    for index in overall:
        entry = line.entries[index]
        cells.append(points(entry.difference) if entry is not None and entry.difference is not None else "")
    tasks = [
        e
        for e, column in zip(line.entries, columns, strict=True)
        if e is not None and not column.is_mean and (column.metric or "avg").startswith("avg")
    ]
    unanswered = total([e.unanswered for e in tasks])
    return [*cells, "" if unanswered is None else str(unanswered), str(sum(e.unscored for e in tasks))]


def _footnotes(summary: Summary, overall: Mapping[str, int]) -> Iterator[str]:
    several = any(line.is_group for line in summary.lines)
    bold = f"the best of each column in bold{' (single seeds aside)' if several else ''}"
    yield f"Accuracy in percent, {bold}; means are unweighted; *n*: items of a task"
    silent = " (of K responses, in none of them)" if _of_samples(summary) else ""
    seeds = "; of seeds the sum over all" if several else ""
    yield (
        f"unanswered: no answer was found{silent}, counted as wrong; unscored: could not be scored, left out"
        f"{seeds}"
    )
    if overall:
        titles, baseline = (
            markdown_text(" and ".join(overall) if len(overall) < 3 else "Task"),
            markdown_text(str(summary.baseline)),
        )
        yield (
            f"{titles} vs {baseline}: difference of the mean (of the accuracy, where there is one task) in "
            "percentage points, paired by item, with its 95 % interval (cluster-robust"
            f"{'; of several seeds over seeds, too' if several else ''})"
        )
    # Not Markdown, and full of names from outside.
    yield from map(markdown_text, summary.remarks)


def _of_samples(summary: Summary) -> bool:
    """Whether a column is of K responses per item."""
    return any(column.metric is not None for column in summary.columns)


def percent(fraction: float) -> str:
    """A fraction in percent, as tables print it."""
    return f"{100 * fraction:.2f}"


def points(estimate: Estimate) -> str:
    """Percentage points with a sign; "z" keeps a rounded zero from printing as -0.00."""
    shown = f"{100 * estimate.value:+z.2f}"
    if estimate.low is None or estimate.high is None:
        return shown
    return f"{shown} [{100 * estimate.low:+z.2f}, {100 * estimate.high:+z.2f}]"


COMPARISON_COLUMNS = (
    "family", "row", "other", "task", "diff", "low", "high", "n", "better", "worse", "p", "p_holm", "method",
)  # fmt: skip
STANDING_COLUMNS = (
    "row", "seeds", "rank", "rank_low", "rank_high", "ranked", "ood_retention", "retention_low",
    "retention_high", "worst_task", "worst_accuracy", "on_front", "front_share", *FIGURES,
)  # fmt: skip


def comparisons_csv(summary: Summary) -> str:
    """The tests as CSV, one line per comparison, under `COMPARISON_COLUMNS`."""
    return csv_of(
        COMPARISON_COLUMNS,
        (
            [
                one.family,
                *map(spreadsheet_text, (one.row, one.other, summary.columns[one.column].label)),
                *one.difference[:4],
                *(one.better, one.worse, one.p, one.p_holm),
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
                *(line.rank or [None] * 4),
                *(retention[:3] if retention else [None] * 3),
                *([spreadsheet_text(worst.task), worst.accuracy] if worst else [None] * 2),
                *([str(front.on).lower(), front.share] if front else [None] * 2),
                *(cost.get(name) for name in FIGURES),
            ]
        )
    return csv_of(STANDING_COLUMNS, lines)


def csv_of(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table as CSV; None is a blank."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return file.getvalue()


BUDGET_COLUMNS = (
    "row", "over", "metric", "k", "cap", "tokens_per_item", "flops_per_item", "accuracy", "low", "high", "n",
)  # fmt: skip
CROSSING_COLUMNS = ("row", "other", "over", "metric", "tokens", "low", "high", "share", "first")


def budgets_csv(summary: Summary) -> str:
    """Accuracy over k and over caps as CSV, one line per point, under `BUDGET_COLUMNS`."""
    return csv_of(
        BUDGET_COLUMNS,
        (
            [
                spreadsheet_text(one.row),
                spreadsheet_text(one.over),
                point.metric,
                point.k,
                *(point.cap, known(point.tokens), one.flops(point), *point.accuracy),
            ]
            for one in summary.budgets
            for point in one.points
        ),
    )


def known(value: float) -> float | None:
    """A number, None for NaN."""
    return None if math.isnan(value) else value


def crossings_csv(summary: Summary) -> str:
    """Where curves over tokens cross as CSV, under `CROSSING_COLUMNS`."""
    return csv_of(
        CROSSING_COLUMNS,
        (
            [*map(spreadsheet_text, (one.row, one.other, one.over)), one.metric, *one.crossing]
            for one in summary.overtakings
        ),
    )


def against(summary: Summary, name: str) -> str:
    """A table for a terminal: a line per task and mean, with the row's and the baseline's accuracy.

    Accuracies are percent, differences percentage points, paired by item, with 95 % intervals; a blank means
    not evaluated or not computable. Of several lines of that name, the single row's is used.
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
        row = [visible(_heading(column, column.label)), str(entry.n), _percent(entry)]
        if baseline is not None and len(header) > 3:
            change = "" if entry.difference is None else points(entry.difference)
            row += [_percent(baseline.entries[index]), change]
        rows.append(row)
    return grid(header, rows, "simple") + "\n"


def brief(summary: Summary, name: str) -> str:
    """A one-line summary of the row: its ID and OOD accuracy, with the differences to the baseline."""
    line = min((one for one in summary.lines if one.name == name), key=lambda one: one.is_group)
    parts = []
    for title in ("ID", "OOD"):
        index = summary.overall(title.lower())
        entry = None if index is None else line.entries[index]
        if entry is not None and entry.accuracy is not None:
            change = "" if entry.difference is None else f" ({points(entry.difference)})"
            parts.append(f"{title} {percent(entry.accuracy.value)} %{change}")
    return ", ".join(parts)


# Summary -> leaderboard.md: the table, and its details.

SHOWN = 60
"""The most rows that a section lists; leaderboard.json and the CSV files have all of them."""


def report(summary: Summary, plots: Sequence[tuple[str, str]] = ()) -> str:
    """The board as a Markdown document; `plots` are titles and files beside the document."""
    sections = (make(summary) for make in (_standing, _against, _pairs, _sizes, _crossings, _quoted))
    parts = [f"# Leaderboard\n\n{markdown(summary)}", *filter(None, sections)]
    if plots:
        shown = "\n\n".join(f"![{title}]({file})" for title, file in plots)
        parts.append(f"## Plots\n\n{shown}\n")
    for apart in summary.apart:
        table = markdown(apart.summary)
        parts.append(
            f"## Apart\n\nNot comparable with the rows above: {markdown_text(apart.reason)}\n\n{table}"
        )
    if summary.left_out:
        lines = (f"- {markdown_text(one.reason)}" for one in summary.left_out)
        parts.append("## Left out\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _table(
    title: str, header: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    more = [f"{len(body) - SHOWN} more in leaderboard.json"] if len(body) > SHOWN else []
    said = "".join(f"\n- {note}." for note in (*notes, *more))
    return f"## {title}\n\n{grid(header, body[:SHOWN])}\n{said}\n"


def _standing(summary: Summary) -> str:
    lines = [line for line in summary.lines if line.group is None]
    costs = [cost_of(line.rows) or {} for line in lines]
    timed = any("seconds" in cost for cost in costs)
    body = [
        [
            markdown_text(line.name),
            "" if line.rank is None else f"{line.rank.rank} [{line.rank.low}, {line.rank.high}]",
            share(line.retention),
            "" if line.worst is None else f"{markdown_text(line.worst.task)} {percent(line.worst.accuracy)}",
            ""
            if line.front is None
            else f"{'yes' if line.front.on else 'no'} ({100 * line.front.share:.0f} %)",
            *([f"{cost['seconds']:.0f}" if "seconds" in cost else ""] if timed else []),
        ]
        for line, cost in zip(lines, costs, strict=True)
    ]
    by = "" if summary.ranked_by is None else markdown_text(summary.columns[summary.ranked_by].label)
    header = ["", f"rank by {by}".strip(), "OOD retention", "worst task", "Pareto front"]
    header += ["training, s"] if timed else []
    notes = {
        1: "Rank with its 95 % interval over bootstrap draws of items (clusters) and seeds",
        2: "OOD retention: OOD mean over ID mean, in percent, with its 95 % interval",
        4: "Pareto front: no other row is as good in and out of distribution and better in one (and the "
        "share of draws in which that holds)",
    }
    # A board of one task has no retention, no front, and no other task that could be the worst.
    single = sum(not column.is_mean for column in summary.columns) < 2
    kept = [at for at in range(len(header)) if not at or any(row[at] for row in body)]
    kept = [at for at in kept if not (single and at == 3)]
    return _table(
        "Standing",
        [header[at] for at in kept],
        [[row[at] for at in kept] for row in body],
        [notes[at] for at in kept if at in notes],
    )


def share(found: Estimate | None) -> str:
    """A fraction in percent with its interval, to one decimal; "" for None."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{100 * found.value:.1f}"
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _crossings(summary: Summary) -> str:
    if not summary.overtakings:
        return ""
    body = []
    for one in summary.overtakings:
        at = one.crossing
        ahead, behind = (one.row, one.other) if at.first else (one.other, one.row)
        interval = "" if at.low is None or at.high is None else f" [{at.low:,.0f}, {at.high:,.0f}]"
        body.append(
            [
                f"{markdown_text(one.row)} and {markdown_text(one.other)}",
                f"{one.metric}@k, {markdown_text(one.over)}",
                markdown_text(ahead),
                "never" if at.tokens is None else markdown_text(behind),
                ("" if at.tokens is None else f"{at.tokens:,.0f}") + interval,
                f"{100 * at.share:.0f} %",
            ]
        )
    notes = (
        "Accuracy over the tokens generated per item, which grow with k: the row that is ahead with few "
        "tokens, the one that overtakes it, and where, with its 95 % interval",
        "share: of the bootstrap draws of items (clusters) in which the curves cross at all; below about "
        "95 %, whether they cross is not certain",
    )
    header = ["", "on", "ahead at first", "overtaken by", "at tokens per item", "share"]
    return _table("Budgets", header, body, notes)


def _against(summary: Summary) -> str:
    tested = [*summary.tested("baseline"), *summary.tested("baseline by task")]
    if not tested:
        return ""
    return _comparisons(summary, f"Against {markdown_text(str(summary.baseline))}", tested)


def _pairs(summary: Summary) -> str:
    tested = [one for one in summary.tested("pairs") if summary.baseline not in (one.row, one.other)]
    return _comparisons(summary, "Pairs", tested) if tested else ""


def _comparisons(summary: Summary, title: str, tested: Sequence[Comparison]) -> str:
    body = [
        [
            f"{markdown_text(one.row)} - {markdown_text(one.other)}",
            markdown_text(summary.columns[one.column].label),
            points(one.difference),
            "" if one.better is None else f"{one.better} / {one.worse}",
            p_text(one.p),
            p_text(one.p_holm),
            one.method,
        ]
        for one in tested
    ]
    included = "" if summary.baseline is None else ", those with the baseline included"
    family = f"all pairs{included}" if title == "Pairs" else "the family shown"
    metrics = ", and each metric of K responses has its own families" if _of_samples(summary) else ""
    notes = (
        "Differences in percentage points, paired by item; better / worse: items on which the first row "
        "scores higher, lower",
        f"Holm: corrected over {family} (the figures for ID and OOD; the single tasks are a family of "
        f"their own{metrics})",
    )
    header = ["", "on", "difference", "better / worse", "p", "Holm", "test"]
    return _table(title, header, body, notes)


def p_text(value: float | None) -> str:
    """A p-value with three decimals, or as many as show on which side of 0.05 it lies; empty for None.

    `chance` in site/text.js writes them the same way. CSV and JSON files hold the unrounded values.
    """
    if value is None:
        return ""
    if value < 0.001:
        return "< 0.001"
    decimals = next(digits for digits in range(3, 18) if value == 0.05 or round(value, digits) != 0.05)
    return f"{value:.{decimals}f}"


def _sizes(summary: Summary) -> str:
    body = []
    for column, found in zip(summary.columns, summary.detectable, strict=True):
        clusters = {code for task in column.tasks for code in task.clusters.tolist()}
        shown = "" if found is None else f"{100 * found.difference:.2f}"
        basis = "" if found is None else "paired" if found.paired else "unrelated rows"
        body.append([markdown_text(column.label), str(column.n), str(len(clusters)), shown, basis])
    explained = {
        "paired": "from the median standard error of the differences to the baseline",
        "unrelated rows": "of the board's median accuracy, as if the items of a cluster were right or wrong "
        "together; rows that share right answers can show smaller ones",
    }
    kinds = "; ".join(
        f"{kind}: {said}" for kind, said in explained.items() if any(kind in row for row in body)
    )
    notes = (
        "Minimum detectable difference, in percentage points: a two-sided test at 5 % finds it in 4 of 5 "
        f"repetitions{f' ({kinds})' if kinds else ''}",
    )
    return _table("What a task can show", ["", "n", "clusters", "detectable", "for"], body, notes)


def _quoted(summary: Summary) -> str:
    if not summary.quoted:
        return ""
    tasks = list(dict.fromkeys(task for one in summary.quoted for task in one.cells))
    body = [
        [
            markdown_text(f"{one.name}, {one.model}, {one.setting}"),
            *(percent(one.cells[task]) if task in one.cells else "" for task in tasks),
            "" if one.mean is None else percent(one.mean),
            "" if one.recomputed is None else percent(one.recomputed) + ("" if one.follows else " (!)"),
        ]
        for one in summary.quoted
    ]
    sources = dict.fromkeys(f"{one.source} ({one.read})" for one in summary.quoted)
    notes = (
        f"As printed in {markdown_text('; '.join(sources))}: measured by others on other items, so nothing "
        "is tested against them",
        "(!): the printed mean does not follow from the printed cells",
    )
    header = ["quoted", *map(markdown_text, tasks), "OOD mean as printed", "recomputed"]
    return _table("Quoted figures", header, body, notes)


# Summary -> LaTeX: one tabular as papers print it (booktabs; OOD shaded, best bold, second underlined).

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_",
    "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
    # Else two or three in a row become a dash, and ?` and !` Spanish marks.
    "-": "{-}", "?": "{?}", "!": "{!}", "'": "{'}", ",": "{,}",
    # Else it is read as an optional argument of the \\ before it.
    "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
_HEAD = r"""% \usepackage{booktabs} \usepackage[table]{xcolor} \usepackage[T1]{fontenc}
% Accuracy in percent. Shaded: out of distribution. Best of each column bold, second underlined.
"""
_SEEDS = "% A row of several seeds is their mean; single seeds are not marked.\n"
_LETTERS = r"""% Letters that pdfLaTeX lacks: there as code points, else as they are, in a font that has them.
\ifdefined\XeTeXversion\providecommand{\dcsftletter}[2]{#2}\fi
\ifdefined\directlua\providecommand{\dcsftletter}[2]{#2}\fi
\providecommand{\dcsftletter}[2]{\texttt{U+#1}}%
"""
# The characters that pdfLaTeX prints with the encoding T1.
_KNOWN = frozenset(
    {chr(code) for code in (*range(32, 127), *range(0xA1, 0x180))}
    - set("\u0126\u0127\u0138\u013f\u0140\u0149\u0166\u0167\u017f")
    | set("‐‑–—‘’‚“”„†‡•…‰‹›€")
)


def latex(summary: Summary) -> str:
    """The board as a tabular, to be input into a table.

    Names are shown as text, whatever they contain. Quoted figures are below a rule, in italics with their
    source as a comment, and are never best; neither is a seed that another row combines.
    """
    columns = summary.columns
    shaded = r">{\columncolor{black!8}}r"
    spec = "l" + "".join(shaded if column.distribution == "ood" else "r" for column in columns)
    body = [
        rf"\begin{{tabular}}{{{spec}}}",
        r"\toprule",
        _row(["", *(escape(column.label) for column in columns)]),
        r"\midrule",
        *_measured(summary),
        *_latex_quoted(summary),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    table = "\n".join(body) + "\n"
    aside = _SEEDS if any(line.is_group for line in summary.lines) else ""
    return _HEAD + aside + (_LETTERS if r"\dcsftletter" in table else "") + table


def escape(text: str) -> str:
    """A name as LaTeX that prints as that name and has no other effect."""
    return "".join(
        _SPECIAL.get(char, char if char in _KNOWN else rf"\dcsftletter{{{ord(char):04X}}}{{{char}}}")
        for char in visible(text)
    )


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _measured(summary: Summary) -> Iterator[str]:
    marks = [_marks(summary.lines, index) for index in range(len(summary.columns))]
    for line in summary.lines:
        cells = [escape(line.name) + (rf" ({len(line.rows)} seeds)" if line.is_group else "")]
        for entry, (best, second) in zip(line.entries, marks, strict=True):
            shown = _percent(entry)
            if shown and shown == best and line.group is None:
                shown = rf"\textbf{{{shown}}}"
            elif shown and shown == second and line.group is None:
                shown = rf"\underline{{{shown}}}"
            cells.append(shown)
        yield _row(cells)


def _marks(lines: Sequence[Line], index: int) -> tuple[str | None, str | None]:
    """Best and second-best accuracy as printed, so that rows with the same printed value are marked alike.

    Of rows and groups of seeds: the luckiest of many seeds would be ahead of a better row. None for both if
    all rows have the same.
    """
    entries = [line.entries[index] for line in lines if line.group is None]
    found = {percent(e.accuracy.value) for e in entries if e is not None and e.accuracy is not None}
    ranked = sorted(found, key=float, reverse=True)
    return (ranked[0], ranked[1]) if len(ranked) > 1 else (None, None)


def _latex_quoted(summary: Summary) -> Iterator[str]:
    lines = []
    for one in summary.quoted:
        cells = []
        for column in summary.columns:
            names = [task.name for task in column.tasks]
            if not column.is_mean:
                figure = one.cells.get(names[0])
            else:
                figure = one.mean if set(names) == set(one.mean_over) else None
            cells.append("" if figure is None else rf"\textit{{{percent(figure)}}}")
        if any(cells):
            source = re.sub(r"[\r\n]", " ", visible(f"{one.source}: {one.model}, {one.setting}"))
            name = rf"\textit{{{escape(one.name)}}}\textsuperscript{{q}}"
            lines += [f"% quoted, not measured here: {source}", _row([name, *cells])]
    if lines:
        yield r"\midrule"
        yield from lines

"""Summary -> leaderboard.md: the table, and what stands behind it."""

from collections.abc import Callable, Iterator, Sequence

from tabulate import tabulate

from dcsft_harness.leaderboard.provenance import cost_of
from dcsft_harness.leaderboard.report.table import markdown, markdown_text, percent, points
from dcsft_harness.leaderboard.stats.intervals import Estimate
from dcsft_harness.leaderboard.summary import Comparison, Summary

SHOWN = 60
"""Up to so many rows a section lists; leaderboard.json and the CSV files have them all."""


def report(summary: Summary, plots: Sequence[tuple[str, str]] = ()) -> str:
    """The board as a Markdown document.

    Args:
        summary: the board's numbers.
        plots: (title, file beside the document) of the plots to show.
    """
    parts = [f"# Leaderboard\n\n{markdown(summary)}", *_sections(summary)]
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


def _sections(summary: Summary) -> Iterator[str]:
    makers: tuple[Callable[[Summary], str], ...] = (_standing, _against, _pairs, _sizes, _quoted)
    yield from filter(None, (maker(summary) for maker in makers))


def _table(
    title: str, header: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    shown = tabulate(
        body[:SHOWN],
        headers=list(header),
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left", *["right"] * (len(header) - 1)),
    )
    more = [f"{len(body) - SHOWN} more in leaderboard.json"] if len(body) > SHOWN else []
    said = "".join(f"\n- {note}." for note in (*notes, *more))
    return f"## {title}\n\n{shown}\n{said}\n"


def _standing(summary: Summary) -> str:
    lines = [line for line in summary.lines if line.group is None]
    costs = [cost_of(line.rows) or {} for line in lines]
    timed = any("seconds" in cost for cost in costs)
    body = [
        [
            markdown_text(line.name),
            "" if line.rank is None else f"{line.rank.rank} [{line.rank.low}, {line.rank.high}]",
            _share(line.retention),
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
    notes = (
        "Rank with its 95 % interval over bootstrap draws of items (clusters) and seeds",
        "OOD retention: OOD mean over ID mean, in percent, with its 95 % interval",
        "Pareto front: no other row is as good in and out of distribution and better in one (and the share "
        "of draws in which that holds)",
    )
    return _table("Standing", [*header, *(["training, s"] if timed else [])], body, notes)


def _share(found: Estimate | None) -> str:
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{100 * found.value:.1f}"
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


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
            _p(one.p),
            _p(one.p_holm),
            one.method,
        ]
        for one in tested
    ]
    notes = (
        "Differences in percentage points, paired by item; better / worse: items on which the first row "
        "scores higher, lower",
        "Holm: corrected over the family shown (what stands for ID and OOD; the single tasks are a family of "
        "their own)",
    )
    header = ["", "on", "difference", "better / worse", "p", "Holm", "test"]
    return _table(title, header, body, notes)


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _sizes(summary: Summary) -> str:
    body = []
    for column, found in zip(summary.columns, summary.detectable, strict=True):
        clusters = {code for task in column.tasks for code in task.clusters.tolist()}
        shown = "" if found is None else f"{100 * found.difference:.2f}"
        basis = "" if found is None else "paired" if found.paired else "unrelated rows"
        body.append([markdown_text(column.label), str(column.n), str(len(clusters)), shown, basis])
    notes = (
        "Minimum detectable difference, in percentage points: a two-sided test at 5 % finds it in 4 of 5 "
        "repetitions (paired: from the median standard error of the differences to the baseline)",
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

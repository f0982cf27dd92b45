"""Summary -> plots, PNG and SVG, for the available data.

Each function draws one plot of a Summary on axes, and returns whether there was anything to draw.
"""

import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from dcsft_harness.errors import visible
from dcsft_harness.leaderboard.board import UNNAMED, Row, Training, cost_of, step_of
from dcsft_harness.leaderboard.sampled import Spent
from dcsft_harness.leaderboard.stats import Estimate
from dcsft_harness.leaderboard.summary import Line, Summary
from dcsft_harness.records import DIFFICULTIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_T = TypeVar("_T")
Ends = list[list[float]] | None
"""Distances to an interval's ends, below and above, as errorbar takes them."""


class Point(NamedTuple):
    """An accuracy after a number of steps; all in [0, 1] except the step."""

    step: float  # steps of training
    value: float  # the accuracy; for several seeds their mean
    low: float  # lower end of its 95 % interval; for several seeds the lowest seed's accuracy
    high: float  # upper end of the interval, or the highest seed's accuracy


@dataclass(frozen=True)
class Curve:
    """A run, or the runs of several seeds."""

    name: str  # the name of its rows, without their steps
    seeds: int  # the number of runs; above 1 the points are means with the seeds' range
    points: dict[str, list[Point]]  # "ood" and "id", else tasks, those that have two points or more, by step


def curves(summary: Summary) -> list[Curve]:
    """All curves of two steps or more: those of several seeds first, then those of runs not all in them.

    A line is a point of several seeds if it combines runs of one length. Only lines of the same runs form a
    curve, so that all of its steps have the same seeds.
    """
    runs: dict[frozenset[Path], list[tuple[float, Line]]] = {}
    for line in summary.lines:
        places = [_place(row) for row in line.rows]
        known = [place for place in places if place is not None]
        folders = frozenset(folder for folder, _ in known)
        if len({step for _, step in known}) == 1 and len(folders) == len(places):
            runs.setdefault(folders, []).append((known[0][1], line))
    steps = {folders: {step for step, _ in points} for folders, points in runs.items()}
    combined = [one for one in runs if len(one) > 1 and len(steps[one]) > 1]
    shown = {(run, step) for folders in combined for run in folders for step in steps[folders]}
    found = [_curve(summary, runs[one], runs[one][-1][1].name, len(one)) for one in combined]
    for folders, points in runs.items():
        (run, *others), own = folders, steps[folders]
        if not others and len(own) > 1 and any((run, step) not in shown for step in own):
            found.append(_curve(summary, points, run.name, 1))
    return found


def _place(row: Row) -> tuple[Path, float] | None:
    """A row's run and step: from its training, else from its scores or its name; None without a step."""
    for part in row.provenance:
        if part.training is not None and "steps" in part.training.ledger:
            return part.training.folder, part.training.ledger["steps"]
    for part in row.provenance:
        run, step = part.settings.get("run"), part.settings.get("step")
        if isinstance(run, str) and isinstance(step, int):
            return Path(run), float(step)
    named = step_of(row.name)
    return None if named is None else (Path(named[0]), float(named[1]))


def _run_name(line: Line) -> str:
    """A row's name without its step."""
    found = step_of(line.name)
    return line.name if found is None else found[0]


def _curve(summary: Summary, points: Sequence[tuple[float, Line]], otherwise: str, seeds: int) -> Curve:
    """The curve of some lines; `otherwise` is its name if they differ in more than their steps."""
    names = {_run_name(line) for _, line in points}
    found = {}
    for name, index in _followed(summary).items():
        known = [
            point
            for step, line in sorted(points, key=lambda one: one[0])
            if (point := _curve_point(summary, step, line, index)) is not None
        ]
        if len(known) > 1:
            found[name] = known
    # Rows named only by a step have no common name.
    return Curve(names.pop() if len(names) == 1 and names != {UNNAMED} else otherwise, seeds, found)


FOLLOWED = 5
"""The most tasks with a curve over steps, if none is in or out of distribution."""


def _followed(summary: Summary) -> dict[str, int]:
    """The curves over steps -> their columns: "ood" and "id", else the first tasks."""
    known = {name: index for name in ("ood", "id") if (index := summary.overall(name)) is not None}
    return known or {column.label: at for at, column in enumerate(summary.columns[:FOLLOWED])}


def _curve_point(summary: Summary, step: float, line: Line, index: int) -> Point | None:
    mean = _accuracy(line, index)
    if mean is None:
        return None
    if not line.is_group:
        low, high = (mean.value if end is None else end for end in (mean.low, mean.high))
        return Point(step, mean.value, low, high)
    own = [_accuracy(one, index) for one in summary.lines if not one.is_group and one.rows[0] in line.rows]
    values = [one.value for one in own if one is not None]
    return Point(step, mean.value, min([mean.value, *values]), max([mean.value, *values]))


# The colors of Okabe and Ito, which color-blind readers can distinguish; black last.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
LINES = ("-", "--", ":", "-.")
"""Styles of curves: the next one each time that the colors begin again."""
LABELED = 14
"""Up to this number of rows a plot names every one; beyond it, only those on the Pareto front."""
MARKED = 12
"""Curves with more points than this show intervals as a band, not bars."""
CURVES = 12
"""The most curves in one plot."""


def label(name: str) -> str:
    """A name for a plot: on one line, without its middle if long, since names of variants begin alike."""
    shown = visible(name)
    return shown if len(shown) <= 32 else f"{shown[:16]}…{shown[-15:]}"


def _line(number: int) -> str:
    return LINES[number // len(COLORS) % len(LINES)]


def _first(axes: "Axes", found: Sequence[_T], most: int, what: str) -> Sequence[_T]:
    """The first of what there is to draw; the title says how many there are."""
    if len(found) > most:
        said = (axes.get_title("right"), f"first {most} of {len(found)} {what}")
        axes.set_title(", ".join(filter(None, said)), loc="right", fontsize=8)
    return found[:most]


def _main(summary: Summary) -> list[Line]:
    """The lines whose numbers decide color and marker in all plots."""
    return [line for line in summary.lines if line.group is None]


def _results(summary: Summary) -> list[Line]:
    """The lines without checkpoints whose run has a later one on the board."""
    last: dict[Path, float] = {}
    for line in _main(summary):
        for run in _runs(*line.rows):
            last[run.folder] = max(last.get(run.folder, 0.0), run.ledger.get("steps", 0.0))
    return [
        line
        for line in _main(summary)
        if all(run.ledger.get("steps", 0.0) == last[run.folder] for run in _runs(*line.rows))
    ]


def _runs(*rows: Row) -> list[Training]:
    return [part.training for row in rows for part in row.provenance if part.training is not None]


def _plain_log(axis: "Axis") -> None:
    """Ticks of a logarithmic axis as plain numbers: matplotlib's own are markup, which is turned off."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _accuracy(line: Line, index: int | None) -> Estimate | None:
    entry = None if index is None else line.entries[index]
    return None if entry is None else entry.accuracy


def _bars(found: Sequence[Estimate]) -> list[list[float]] | None:
    """Distances to the interval's ends in percent, as errorbar takes them."""
    low = [100 * (one.value - one.low) if one.low is not None else 0.0 for one in found]
    high = [100 * (one.high - one.value) if one.high is not None else 0.0 for one in found]
    return [[max(0.0, part) for part in side] for side in (low, high)]


def _point(
    axes: "Axes", number: int, x: float, y: float, named: str | None, xerr: Ends = None, yerr: Ends = None
) -> None:
    axes.errorbar(
        [x], [y], fmt=MARKERS[number % len(MARKERS)], color=COLORS[number % len(COLORS)], label=named,
        markersize=6, elinewidth=1, capsize=2, alpha=0.9, xerr=xerr, yerr=yerr,
    )  # fmt: skip


def _legend(axes: "Axes") -> None:
    axes.figure.legend(loc="outside right upper", frameon=False, fontsize=8)


Spot = tuple[int, Line, float, Estimate]
"""A point of a scatter plot: the line's number and the line, x in the axis' unit, and y as a fraction."""


def _draw_paths(axes: "Axes", spots: Sequence[Spot]) -> set[Line]:
    """Draws the checkpoints of each run as one path, from its first step to its last; returns their lines."""
    runs: dict[Path, list[tuple[float, Spot]]] = {}
    for spot in spots:
        places = [_place(row) for row in spot[1].rows]
        if len(places) == 1 and places[0] is not None:
            runs.setdefault(places[0][0], []).append((places[0][1], spot))
    drawn: set[Line] = set()
    for run, some in runs.items():
        if len({step for step, _ in some}) < 3:
            continue
        some.sort(key=lambda one: one[0])
        names = {_run_name(line) for _, (_, line, _, _) in some}
        name = label(names.pop() if len(names) == 1 else run.name)
        number = some[0][1][0]
        color = COLORS[number % len(COLORS)]
        ends = f"steps {some[0][0]:.0f} to {some[-1][0]:.0f}"
        axes.plot(
            [x for _, (_, _, x, _) in some], [100 * y.value for _, (_, _, _, y) in some], f"{_line(number)}o",
            color=color, markersize=3, linewidth=1, alpha=0.8, label=f"{name}, {ends}",
        )  # fmt: skip
        for step, (_, _, x, y) in (some[0], some[-1]):
            axes.annotate(
                f"{step:.0f}", (x, 100 * y.value), textcoords="offset points", xytext=(4, 4), fontsize=8,
                color=color,
            )  # fmt: skip
        drawn |= {line for _, (_, line, _, _) in some}
    return drawn


def id_against_ood(summary: Summary, axes: "Axes") -> bool:
    """OOD against ID accuracy with both intervals; a line connects the Pareto front."""
    own, ood = summary.overall("id"), summary.overall("ood")
    points = [(n, line, _accuracy(line, own), _accuracy(line, ood)) for n, line in enumerate(_main(summary))]
    known = [(n, line, x, y) for n, line, x, y in points if x is not None and y is not None]
    if not known:
        return False
    front = sorted((100 * x.value, 100 * y.value) for _, line, x, y in known if line.front and line.front.on)
    if len(front) > 1:
        axes.plot(
            *zip(*front, strict=True),
            zorder=0,
            label="Pareto front",
            color="0.6",
            linestyle="--",
            linewidth=1,
        )
    paths = _draw_paths(axes, [(number, line, 100 * x.value, y) for number, line, x, y in known])
    known = [one for one in known if one[1] not in paths]
    many = len(known) > LABELED
    for number, line, x, y in known:
        named = None if many and not (line.front and line.front.on) else label(line.name)
        _point(axes, number, 100 * x.value, 100 * y.value, named, xerr=_bars([x]), yerr=_bars([y]))
    axes.set_xlabel(f"{label(summary.columns[own or 0].label)}, accuracy in %")
    axes.set_ylabel(f"{label(summary.columns[ood or 0].label)}, accuracy in %")
    _legend(axes)
    return True


def accuracy_by_difficulty(summary: Summary, axes: "Axes") -> bool:
    """Accuracy on easy, medium and hard items, with intervals."""
    known = [(number, line) for number, line in enumerate(_main(summary)) if line.by_difficulty]
    known = list(_first(axes, known, CURVES, "rows"))
    kinds = [kind for kind in DIFFICULTIES if any(kind in (line.by_difficulty or {}) for _, line in known)]
    if not known or not kinds:
        return False
    width = 0.7 / len(known)
    for at, (number, line) in enumerate(known):
        found = line.by_difficulty or {}
        for place, kind in enumerate(kinds):
            if kind in found:
                x = place + (at - (len(known) - 1) / 2) * width
                _point(
                    axes, number, x, 100 * found[kind].value, label(line.name) if place == 0 else None,
                    yerr=_bars([found[kind]]),
                )  # fmt: skip
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylabel("accuracy in %")
    axes.set_ylim(-2, 102)
    _legend(axes)
    return True


def label_mix(summary: Summary, axes: "Axes") -> bool:
    """The share of easy, medium and hard items in each row's training data."""
    known = _first(axes, _mixes(summary), 2 * CURVES, "rows")
    if not known:
        return False
    left = [0.0] * len(known)
    for kind, color in zip(DIFFICULTIES, ("#56B4E9", "#E69F00", "#D55E00"), strict=True):
        shares = [100 * mix.get(kind, 0) / sum(mix.values()) for _, mix in known]
        axes.barh(range(len(known)), shares, left=left, color=color, label=kind, height=0.7)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    totals = [f"{label(line.name)} ({sum(mix.values()):,})" for line, mix in known]
    axes.set_yticks(range(len(known)), totals)
    axes.invert_yaxis()
    axes.set_xlabel("share of the curated set in %")
    axes.grid(axis="y", visible=False)
    _legend(axes)
    return True


def _mixes(summary: Summary) -> list[tuple[Line, Mapping[str, int]]]:
    """The lines whose training data is known, with its items of each difficulty."""
    runs = [(line, _runs(*line.rows)[:1]) for line in _results(summary)]
    return [(line, run.mix) for line, first in runs for run in first if sum(run.mix.values())]


def performance_over_steps(summary: Summary, axes: "Axes") -> bool:
    """ID and OOD accuracy of the checkpoints of training runs, by step; the last point may be a seed's row.

    A single run has the intervals of its accuracies; several seeds have their mean, and a band from the
    lowest to the highest.
    """
    found = _first(axes, [curve for curve in curves(summary) if curve.points], CURVES, "runs")
    if not {"ood", "id"} & _followed(summary).keys():
        _first(axes, summary.columns, FOLLOWED, "tasks")
    baseline = next((line for line in summary.lines if line.is_baseline), None)
    drawn = set()
    for number, curve in enumerate(found):
        name = label(curve.name) + (f" ({curve.seeds} seeds)" if curve.seeds > 1 else "")
        for place, (column, points) in enumerate(curve.points.items()):
            # A single run has a color per task, several runs have one each.
            at = place if len(found) == 1 else number
            color, marker = COLORS[at % len(COLORS)], MARKERS[at % len(MARKERS)]
            steps, values, low, high = (
                [part * scale for part in parts]
                for parts, scale in zip(zip(*points, strict=True), (1, 100, 100, 100), strict=True)
            )
            style = ":" if column == "id" else "-"
            named = f"{name}, {column.upper() if column in ('id', 'ood') else label(column)}"
            if curve.seeds > 1 or len(points) > MARKED:
                axes.plot(
                    steps, values, style, label=named, color=color, marker=marker,
                    markersize=6 if len(points) <= MARKED else 3,
                )  # fmt: skip
                axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            else:
                ends = _bars([Estimate(p.value, p.low, p.high, 0) for p in points])
                axes.errorbar(
                    steps, values, yerr=ends, fmt=style, label=named, capsize=2, elinewidth=1,
                    color=color, marker=marker,
                )  # fmt: skip
            level = None if baseline is None else _accuracy(baseline, _followed(summary)[column])
            if baseline is not None and level is not None and (column, at) not in drawn:
                drawn.add((column, at))
                alone = all(_place(row) is None for row in baseline.rows)
                if alone and (len(found) == 1 or number == 0):
                    axes.axhline(
                        100 * level.value, color=color if len(found) == 1 else "0.5", linewidth=1,
                        linestyle="--", label=f"{label(baseline.name)}, {named.rpartition(', ')[2]}",
                    )  # fmt: skip
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("training steps")
    axes.set_ylabel("accuracy in %")
    _legend(axes)
    return bool(found)


def hard_ratio(summary: Summary, axes: "Axes") -> bool:
    """Accuracy against the share of hard items in the training data."""
    found = [(mix.get("hard", 0) / sum(mix.values()), line) for line, mix in _mixes(summary)]
    if len({share for share, _ in found}) < 2:
        return False
    found.sort(key=lambda one: one[0])
    joined = "-" if len({share for share, _ in found}) == len(found) else "none"
    for number, distribution in enumerate(("ood", "id")):
        index = summary.overall(distribution)
        known = [(share, a) for share, line in found if (a := _accuracy(line, index))]
        if known:
            axes.errorbar(
                [100 * share for share, _ in known], [100 * a.value for _, a in known],
                yerr=_bars([a for _, a in known]), linestyle=joined, marker=MARKERS[number],
                color=COLORS[number], capsize=2, elinewidth=1,
                label=label(summary.columns[index or 0].label),
            )  # fmt: skip
    axes.set_xlabel("hard items in the curated set in %")
    axes.set_ylabel("accuracy in %")
    _legend(axes)
    return True


def gradient_norms(summary: Summary, axes: "Axes") -> bool:
    """The gradient norm of each training step: a curve per row, of several seeds their mean."""
    norms: list[tuple[str, dict[float, list[float]]]] = []
    drawn: set[Path] = set()
    for line in _results(summary):
        runs = {run.folder: run.history for run in _runs(*line.rows) if run.folder not in drawn}
        logged = {
            folder: {at["step"]: at["grad_norm"] for at in history if "grad_norm" in at}
            for folder, history in runs.items()
        }
        logged = {folder: steps for folder, steps in logged.items() if steps}
        if not logged:
            continue
        drawn |= logged.keys()
        found: dict[float, list[float]] = {}
        for steps in logged.values():
            for step, norm in steps.items():
                found.setdefault(step, []).append(norm)
        seeds = f" ({len(logged)} seeds)" if line.is_group else ""
        norms.append((label(line.name) + seeds, dict(sorted(found.items()))))
    for number, (name, found) in enumerate(_first(axes, norms, CURVES, "rows")):
        axes.plot(
            [*found], [*map(fmean, found.values())], _line(number), color=COLORS[number % len(COLORS)],
            linewidth=1.1, label=name,
        )  # fmt: skip
    axes.set_xlabel("training step")
    axes.set_ylabel("gradient norm before clipping")
    if norms and all(norm > 0 for _, found in norms for some in found.values() for norm in some):
        axes.set_yscale("log")
        _plain_log(axes.yaxis)
    _legend(axes)
    return bool(norms)


def cost_against_ood(summary: Summary, axes: "Axes") -> bool:
    """OOD accuracy against training cost: operations if all rows have them, else seconds."""
    index = summary.overall("ood") if summary.overall("ood") is not None else summary.overall("id")
    costs = [(n, line, cost) for n, line in enumerate(_main(summary)) if (cost := cost_of(line.rows))]
    rows = [(n, line, cost, a) for n, line, cost in costs if (a := _accuracy(line, index))]
    unit = "flops" if rows and all("flops" in cost for _, _, cost, _ in rows) else "seconds"
    known = [(n, line, cost[unit], a) for n, line, cost, a in rows if cost.get(unit, 0) > 0]
    if len(known) < 2:
        return False
    paths = _draw_paths(axes, known)
    known = [one for one in known if one[1] not in paths]
    for number, line, spent, a in known:
        many = len(known) > LABELED and not (line.front and line.front.on)
        _point(axes, number, spent, 100 * a.value, None if many else label(line.name), yerr=_bars([a]))
    axes.set_xscale("log")
    _plain_log(axes.xaxis)
    axes.set_xlabel("floating-point operations of training" if unit == "flops" else "seconds of training")
    axes.set_ylabel(f"{label(summary.columns[index or 0].label)}, accuracy in %")
    _legend(axes)
    return True


def over_k(summary: Summary, axes: "Axes") -> bool:
    """pass@k, maj@k and avg@k over k, with bands for the 95 % intervals."""
    axes.set_xlabel("k, responses per item")
    return _budgets(summary, axes, lambda point: None if point.cap is not None else point.k)


def over_tokens(summary: Summary, axes: "Axes") -> bool:
    """The same over the tokens generated per item."""
    axes.set_xlabel("generated tokens per item")
    return _budgets(summary, axes, lambda point: None if point.cap is not None else point.tokens)


def over_caps(summary: Summary, axes: "Axes") -> bool:
    """Accuracy at K responses over a cap on new tokens; a longer response counts as truncated."""
    axes.set_xlabel("the most new tokens of a response")
    return _budgets(summary, axes, lambda point: point.cap)


STYLES = {"pass": "--", "maj": "-", "avg": ":"}
"""Metric -> the style of its curve."""


def _budgets(summary: Summary, axes: "Axes", place: Callable[[Spent], float | None]) -> bool:
    drawn = False
    for number, budget in enumerate(_first(axes, summary.budgets, CURVES, "rows")):
        again = number // len(COLORS)  # the styles say the metric
        color = COLORS[number % len(COLORS)]
        for metric, style in STYLES.items():
            points = [
                (x, point.accuracy)
                for point in budget.points
                if point.metric == metric and (x := place(point)) is not None and math.isfinite(x) and x > 0
            ]
            if len(points) < 2:
                continue
            drawn = True
            steps, values = [x for x, _ in points], [100 * one.value for _, one in points]
            name = f"{label(budget.row)}, {metric}@k"
            axes.plot(
                steps, values, style, color=color, label=name, linewidth=1.2, markersize=4,
                marker=MARKERS[again - 1] if again else None,
            )  # fmt: skip
            down, up = _bars([one for _, one in points]) or ([], [])
            low = [value - part for value, part in zip(values, down, strict=True)]
            high = [value + part for value, part in zip(values, up, strict=True)]
            axes.fill_between(steps, low, high, color=color, alpha=0.08, linewidth=0)
    axes.set_xscale("log")
    _plain_log(axes.xaxis)
    over = summary.budgets[0].over if summary.budgets else ""
    axes.set_ylabel(f"{label(over)}, accuracy in %")
    _legend(axes)
    return drawn


PLOTS: tuple[tuple[str, str, Callable[[Summary, Any], bool]], ...] = (
    ("id_ood", "In and out of distribution", id_against_ood),
    ("difficulty", "Accuracy by difficulty", accuracy_by_difficulty),
    ("label_mix", "What was trained on", label_mix),
    ("steps", "Performance over steps", performance_over_steps),
    ("hard_ratio", "Hard items in training", hard_ratio),
    ("gradient_norms", "Gradient norms", gradient_norms),
    ("cost", "Cost against accuracy", cost_against_ood),
    ("over_k", "Accuracy over responses per item", over_k),
    ("over_tokens", "Accuracy over generated tokens", over_tokens),
    ("over_caps", "Accuracy over a cap on new tokens", over_caps),
)
"""File name, title and the function that draws the plot and returns whether there was anything to draw."""


def draw(summary: Summary, folder: Path) -> list[tuple[str, list[str]]]:
    """Draws the plots that a board has data for into `plots/`; returns title and files (PNG, SVG) of each."""
    found = []
    with _style() as pyplot:
        for name, title, plot in PLOTS:
            figure, axes = pyplot.subplots(figsize=(7.2, 4.6), layout="constrained")
            if plot(summary, axes):
                (folder / "plots").mkdir(exist_ok=True)
                files = [f"plots/{name}.{kind}" for kind in ("png", "svg")]
                axes.set_title(title, loc="left", fontsize=11)
                _save(figure, *(folder / file for file in files))
                found.append((title, files))
            pyplot.close(figure)
    return found


def _save(figure: "Figure", png: Path, svg: Path) -> None:
    # No date, and ids with a fixed salt: equal boards make equal files.
    figure.savefig(png, dpi=144, metadata={"Software": None})
    figure.set_layout_engine("none")  # the layout is found: it takes longer than drawing
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    _without_comments(svg)


@contextmanager
def _style() -> Iterator[Any]:
    """Matplotlib without a display, configured so that no name is read as markup."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a name may have characters that the font lacks
    settings: dict[Any, object] = {  # keys: matplotlib types their names as a closed list
        "text.parse_math": False,
        "text.usetex": False,
        "svg.hashsalt": "dcsft",
        "svg.fonttype": "path",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "font.size": 9,
        "axes.axisbelow": True,
    }
    with pyplot.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs missing from the font
        yield pyplot


def _without_comments(svg: Path) -> None:
    """Removes the comments in which matplotlib repeats every text, names included."""
    text = svg.read_text(encoding="utf-8")
    svg.write_text(re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL), encoding="utf-8")

"""One function a plot: it draws a Summary on axes, and says whether there was anything to draw."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsft_harness.errors import visible
from dcsft_harness.records import DIFFICULTIES

from .provenance import Training, cost_of
from .statistics import Estimate
from .step_curves import curves
from .summary import Line, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Okabe and Ito's colours, told apart by the colour-blind; black last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
LABELLED = 14
"""Up to so many rows every one is named in a plot; of more, those on the Pareto front."""
CURVES = 12
"""So many curves at most in one plot."""


def label(name: str) -> str:
    """A name as a plot shows it: on one line, and not without end."""
    shown = visible(name)
    return shown if len(shown) <= 32 else f"{shown[:31]}…"


def _main(summary: Summary) -> list[Line]:
    return [line for line in summary.lines if line.group is None]


def _numbered(summary: Summary) -> list[tuple[int, Line]]:
    """The lines with the number that gives each its colour and marker, the same in all plots."""
    return list(enumerate(_main(summary)))


def _results(summary: Summary) -> list[Line]:
    """The lines without earlier checkpoints of a run of which a later one is there."""
    last: dict[Path, float] = {}
    for line in _main(summary):
        for run in _runs(line):
            last[run.folder] = max(last.get(run.folder, 0.0), run.ledger.get("steps", 0.0))
    return [
        line
        for line in _main(summary)
        if all(run.ledger.get("steps", 0.0) == last[run.folder] for run in _runs(line))
    ]


def _runs(line: Line) -> list[Training]:
    return [part.training for row in line.rows for part in row.provenance if part.training is not None]


def _plain_log(axis: "Axis") -> None:
    """Ticks of a logarithmic axis as numbers: matplotlib's own are markup, which is switched off."""
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


def _point(axes: "Axes", number: int, x: float, y: float, named: str | None, **errors: Any) -> None:  # noqa: ANN401
    axes.errorbar(
        [x], [y], fmt=MARKERS[number % len(MARKERS)], color=COLOURS[number % len(COLOURS)], label=named,
        markersize=6, elinewidth=1, capsize=2, alpha=0.9, **errors,
    )  # fmt: skip


def _legend(axes: "Axes", count: int) -> None:
    if count:
        axes.figure.legend(loc="outside right upper", frameon=False, fontsize=8)


def id_against_ood(summary: Summary, axes: "Axes") -> bool:
    """OOD against ID accuracy with both intervals; a line joins the Pareto front."""
    own, ood = summary.overall("id"), summary.overall("ood")
    points = [(n, line, _accuracy(line, own), _accuracy(line, ood)) for n, line in _numbered(summary)]
    known = [(n, line, x, y) for n, line, x, y in points if x is not None and y is not None]
    if not known:
        return False
    front = sorted((100 * x.value, 100 * y.value) for _, line, x, y in known if line.front and line.front.on)
    if len(front) > 1:
        axes.plot(
            *zip(*front, strict=True),
            color="0.6",
            linestyle="--",
            linewidth=1,
            zorder=0,
            label="Pareto front",
        )
    many = len(known) > LABELLED
    for number, line, x, y in known:
        named = None if many and not (line.front and line.front.on) else label(line.name)
        _point(axes, number, 100 * x.value, 100 * y.value, named, xerr=_bars([x]), yerr=_bars([y]))
    axes.set_xlabel(f"{label(summary.columns[own or 0].label)}, accuracy in %")
    axes.set_ylabel(f"{label(summary.columns[ood or 0].label)}, accuracy in %")
    _legend(axes, len(known))
    return True


def accuracy_by_difficulty(summary: Summary, axes: "Axes") -> bool:
    """Accuracy on easy, medium and hard items, with intervals."""
    known = [(number, line) for number, line in _numbered(summary) if line.by_difficulty][:CURVES]
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
    _legend(axes, len(known))
    return True


def label_mix(summary: Summary, axes: "Axes") -> bool:
    """The share of easy, medium and hard items that each row was trained on."""
    known = [(line, mix) for line in _results(summary) if (mix := _mix(line)) and sum(mix.values())][
        : 2 * CURVES
    ]
    if not known:
        return False
    left = [0.0] * len(known)
    for kind, colour in zip(DIFFICULTIES, ("#56B4E9", "#E69F00", "#D55E00"), strict=True):
        shares = [100 * mix.get(kind, 0) / sum(mix.values()) for _, mix in known]
        axes.barh(range(len(known)), shares, left=left, color=colour, label=kind, height=0.7)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    totals = [f"{label(line.name)} ({sum(mix.values()):,})" for line, mix in known]
    axes.set_yticks(range(len(known)), totals)
    axes.invert_yaxis()
    axes.set_xlabel("share of the curated set in %")
    axes.grid(axis="y", visible=False)
    _legend(axes, 3)
    return True


def _mix(line: Line) -> dict[str, int]:
    runs = _runs(line)
    return dict(runs[0].mix) if runs and sum(runs[0].mix.values()) else {}


def performance_over_steps(summary: Summary, axes: "Axes") -> bool:
    """ID and OOD accuracy of the checkpoints of training runs, by step; its end may be a seed's row.

    A run has the intervals of its accuracies; seeds of one configuration have their mean, and a band from
    the lowest of them to the highest.
    """
    found = [curve for curve in curves(summary) if curve.points][:CURVES]
    for number, curve in enumerate(found):
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        name = label(curve.name) + (f" ({curve.seeds} seeds)" if curve.seeds > 1 else "")
        for distribution, points in curve.points.items():
            steps, values, low, high = (
                [part * scale for part in parts]
                for parts, scale in zip(zip(*points, strict=True), (1, 100, 100, 100), strict=True)
            )
            style = "-" if distribution == "ood" else ":"
            named = f"{name}, {distribution.upper()}"
            if curve.seeds > 1:
                axes.plot(steps, values, style, label=named, **look)
                axes.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
            else:
                ends = _bars([Estimate(p.value, p.low, p.high, 0) for p in points])
                axes.errorbar(
                    steps, values, yerr=ends, fmt=style, label=named, capsize=2, elinewidth=1, **look
                )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("training steps")
    axes.set_ylabel("accuracy in %")
    _legend(axes, len(found))
    return bool(found)


def hard_ratio(summary: Summary, axes: "Axes") -> bool:
    """Accuracy against the share of hard items in the training data."""
    found = [
        (mix.get("hard", 0) / sum(mix.values()), line)
        for line in _results(summary)
        if (mix := _mix(line)) and sum(mix.values())
    ]
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
                color=COLOURS[number], capsize=2, elinewidth=1,
                label=label(summary.columns[index or 0].label),
            )  # fmt: skip
    axes.set_xlabel("hard items in the curated set in %")
    axes.set_ylabel("accuracy in %")
    _legend(axes, 2)
    return True


def gradient_norms(summary: Summary, axes: "Axes") -> bool:
    """The gradient norm of each training step, one curve a run."""
    norms: dict[Path, tuple[str, list[tuple[float, float]]]] = {}
    for line in _results(summary):
        for row in line.rows:
            for run in (part.training for part in row.provenance if part.training is not None):
                steps = [(at["step"], at["grad_norm"]) for at in run.history if "grad_norm" in at]
                if steps:
                    norms.setdefault(run.folder, (row.name, steps))
    for number, (name, steps) in enumerate(list(norms.values())[:CURVES]):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(*zip(*steps, strict=True), color=colour, linewidth=1.1, label=label(name))
    axes.set_xlabel("training step")
    axes.set_ylabel("gradient norm before clipping")
    if norms and all(norm > 0 for _, steps in norms.values() for _, norm in steps):
        axes.set_yscale("log")
        _plain_log(axes.yaxis)
    _legend(axes, len(norms))
    return bool(norms)


def cost_against_ood(summary: Summary, axes: "Axes") -> bool:
    """OOD accuracy against what training cost: operations where all rows have them, else seconds."""
    index = summary.overall("ood") if summary.overall("ood") is not None else summary.overall("id")
    costs = [(n, line, cost) for n, line in _numbered(summary) if (cost := cost_of(line.rows))]
    rows = [(n, line, cost, a) for n, line, cost in costs if (a := _accuracy(line, index))]
    unit = "flops" if rows and all("flops" in cost for _, _, cost, _ in rows) else "seconds"
    known = [(n, line, cost[unit], a) for n, line, cost, a in rows if cost.get(unit, 0) > 0]
    if len(known) < 2:
        return False
    for number, line, cost, a in known:
        many = len(known) > LABELLED and not (line.front and line.front.on)
        _point(axes, number, cost, 100 * a.value, None if many else label(line.name), yerr=_bars([a]))
    axes.set_xscale("log")
    _plain_log(axes.xaxis)
    axes.set_xlabel("floating-point operations of training" if unit == "flops" else "seconds of training")
    axes.set_ylabel(f"{label(summary.columns[index or 0].label)}, accuracy in %")
    _legend(axes, len(known))
    return True

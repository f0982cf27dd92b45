"""Summary -> plots, PNG and SVG: those whose data is there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsft_harness.records import DIFFICULTIES

from .provenance import cost_of
from .statistics import Estimate
from .summary import Line, Summary
from .table import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by the colour-blind; black last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
LABELLED = 14
"""Up to so many rows every one is named in a plot; of more, those on the Pareto front."""
CURVES = 12
"""So many curves at most in one plot."""


def draw(summary: Summary, folder: Path) -> list[tuple[str, list[str]]]:
    """Draws what a board has data for.

    Args:
        summary: the board's numbers.
        folder: where `plots/` goes.

    Returns:
        Title and files (PNG, SVG), relative to the folder.
    """
    found = []
    with _style() as pyplot:
        for name, title, plot in PLOTS:
            figure, axes = pyplot.subplots(figsize=(7.2, 4.6), layout="constrained")
            if plot(summary, axes):
                (folder / "plots").mkdir(exist_ok=True)
                files = [f"plots/{name}.{kind}" for kind in ("png", "svg")]
                axes.set_title(title, loc="left", fontsize=11)
                # No date, and ids by a fixed salt: equal boards make equal files.
                figure.savefig(folder / files[0], dpi=144, metadata={"Software": None})
                figure.savefig(folder / files[1], metadata={"Date": None, "Creator": None})
                found.append((title, files))
            pyplot.close(figure)
    return found


@contextmanager
def _style() -> Iterator[Any]:
    """Matplotlib without a display, set up so that no name is read as markup."""
    import logging

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a name may have letters that the font lacks
    settings = {
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
    import warnings

    with pyplot.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs missing from the font
        yield pyplot


def label(name: str) -> str:
    """A name as a plot shows it: on one line, and not without end."""
    shown = visible(name)
    return shown if len(shown) <= 32 else f"{shown[:31]}…"


def _main(summary: Summary) -> list[Line]:
    return [line for line in summary.lines if line.group is None]


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
    points = [(line, _accuracy(line, own), _accuracy(line, ood)) for line in _main(summary)]
    known = [(line, x, y) for line, x, y in points if x is not None and y is not None]
    if not known:
        return False
    front = sorted((100 * x.value, 100 * y.value) for line, x, y in known if line.front and line.front.on)
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
    for number, (line, x, y) in enumerate(known):
        named = None if many and not (line.front and line.front.on) else label(line.name)
        _point(axes, number, 100 * x.value, 100 * y.value, named, xerr=_bars([x]), yerr=_bars([y]))
    axes.set_xlabel(f"{label(summary.columns[own or 0].label)}, accuracy in %")
    axes.set_ylabel(f"{label(summary.columns[ood or 0].label)}, accuracy in %")
    _legend(axes, len(known))
    return True


def accuracy_by_difficulty(summary: Summary, axes: "Axes") -> bool:
    """Accuracy on easy, medium and hard items, with intervals."""
    known = [line for line in _main(summary) if line.by_difficulty][:CURVES]
    kinds = [
        kind
        for kind in ("easy", "medium", "hard")
        if any(kind in (line.by_difficulty or {}) for line in known)
    ]
    if not known or not kinds:
        return False
    width = 0.7 / len(known)
    for number, line in enumerate(known):
        found = line.by_difficulty or {}
        for place, kind in enumerate(kinds):
            if kind in found:
                x = place + (number - (len(known) - 1) / 2) * width
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
    known = [(line, mix) for line in _main(summary) if (mix := _mix(line)) and sum(mix.values())][
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
    runs = [part.training for row in line.rows for part in row.provenance if part.training is not None]
    return dict(runs[0].mix) if runs and sum(runs[0].mix.values()) else {}


def performance_over_steps(summary: Summary, axes: "Axes") -> bool:
    """ID and OOD accuracy of the checkpoints of one training run, by step."""
    runs: dict[Path, list[tuple[float, Line]]] = {}
    for line in _main(summary):
        training = next((p.training for row in line.rows for p in row.provenance if p.training), None)
        if training is not None and "steps" in training.ledger and not line.is_group:
            runs.setdefault(training.folder.resolve(), []).append((training.ledger["steps"], line))
    curves = {run: points for run, points in runs.items() if len({step for step, _ in points}) > 1}
    drawn = 0
    for run, points in list(curves.items())[:CURVES]:
        for distribution, style in (("ood", "-"), ("id", ":")):
            index = summary.overall(distribution)
            known = [
                (s, a) for s, line in sorted(points, key=lambda p: p[0]) if (a := _accuracy(line, index))
            ]
            if len(known) > 1:
                axes.errorbar(
                    [step for step, _ in known], [100 * a.value for _, a in known],
                    yerr=_bars([a for _, a in known]), fmt=style, marker=MARKERS[drawn % len(MARKERS)],
                    color=COLOURS[drawn % len(COLOURS)], capsize=2, elinewidth=1,
                    label=f"{label(run.name)}, {distribution.upper()}",
                )  # fmt: skip
        drawn += 1
    axes.set_xlabel("training steps")
    axes.set_ylabel("accuracy in %")
    _legend(axes, drawn)
    return drawn > 0


def hard_ratio(summary: Summary, axes: "Axes") -> bool:
    """Accuracy against the share of hard items in the training data."""
    found = [
        (mix.get("hard", 0) / sum(mix.values()), line)
        for line in _main(summary)
        if (mix := _mix(line)) and sum(mix.values())
    ]
    if len({share for share, _ in found}) < 2:
        return False
    found.sort(key=lambda one: one[0])
    for number, distribution in enumerate(("ood", "id")):
        index = summary.overall(distribution)
        known = [(share, a) for share, line in found if (a := _accuracy(line, index))]
        if known:
            axes.errorbar(
                [100 * share for share, _ in known], [100 * a.value for _, a in known],
                yerr=_bars([a for _, a in known]), fmt="-", marker=MARKERS[number], color=COLOURS[number],
                capsize=2, elinewidth=1, label=label(summary.columns[index or 0].label),
            )  # fmt: skip
    axes.set_xlabel("hard items in the curated set in %")
    axes.set_ylabel("accuracy in %")
    _legend(axes, 2)
    return True


def gradient_norms(summary: Summary, axes: "Axes") -> bool:
    """The gradient norm of each training step."""
    runs = {}
    for line in _main(summary):
        for row in line.rows:
            for part in row.provenance:
                if part.training is not None and any("grad_norm" in step for step in part.training.history):
                    runs.setdefault(part.training.folder.resolve(), (line.name, part.training.history))
    for number, (name, history) in enumerate(list(runs.values())[:CURVES]):
        steps = [(row["step"], row["grad_norm"]) for row in history if "grad_norm" in row]
        axes.plot(
            *zip(*steps, strict=True), color=COLOURS[number % len(COLOURS)], linewidth=1.1, label=label(name)
        )
    axes.set_xlabel("training step")
    axes.set_ylabel("gradient norm before clipping")
    if runs and min(row["grad_norm"] for _, h in runs.values() for row in h if "grad_norm" in row) > 0:
        axes.set_yscale("log")
    _legend(axes, len(runs))
    return bool(runs)


def cost_against_ood(summary: Summary, axes: "Axes") -> bool:
    """OOD accuracy against what training cost: operations where all rows have them, else seconds."""
    index = summary.overall("ood") if summary.overall("ood") is not None else summary.overall("id")
    rows = [
        (line, cost, a)
        for line in _main(summary)
        if (cost := cost_of(line.rows)) and (a := _accuracy(line, index))
    ]
    unit = "flops" if rows and all("flops" in cost for _, cost, _ in rows) else "seconds"
    known = [(line, cost[unit], a) for line, cost, a in rows if cost.get(unit, 0) > 0]
    if len(known) < 2:
        return False
    for number, (line, cost, a) in enumerate(known):
        many = len(known) > LABELLED and not (line.front and line.front.on)
        _point(axes, number, cost, 100 * a.value, None if many else label(line.name), yerr=_bars([a]))
    axes.set_xscale("log")
    axes.set_xlabel("floating-point operations of training" if unit == "flops" else "seconds of training")
    axes.set_ylabel(f"{label(summary.columns[index or 0].label)}, accuracy in %")
    _legend(axes, len(known))
    return True


PLOTS: tuple[tuple[str, str, Callable[[Summary, Any], bool]], ...] = (
    ("id_ood", "In and out of distribution", id_against_ood),
    ("difficulty", "Accuracy by difficulty", accuracy_by_difficulty),
    ("label_mix", "What was trained on", label_mix),
    ("steps", "Performance over steps", performance_over_steps),
    ("hard_ratio", "Hard items in training", hard_ratio),
    ("gradient_norms", "Gradient norms", gradient_norms),
    ("cost", "Cost against accuracy", cost_against_ood),
)
"""File name, title and the function that draws it and says whether there was anything to draw."""

"""Comparison -> Markdown with human units; CSV and JSON with raw ones."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from dcsft_harness.errors import visible
from dcsft_harness.leaderboard.report.table import markdown_text, spreadsheet_text

from .figures import FIGURES, Cost, added, cost_of
from .lineage import Run

if TYPE_CHECKING:
    from .build import Comparison

HEADINGS = {
    "steps": "optimizer steps",
    "prompts": "prompts seen",
    "generated": "samples drawn",
    "prompt_tokens": "prompt tokens",
    "completion_tokens": "completion tokens",
    "flops": "operations",
    "seconds": "time",
    "peak_memory_bytes": "peak memory",
}
PARTS = ("training", "labelling", "earlier", "total")
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def scaled(value: float, unit: str) -> str:
    """A number with three significant digits and a decimal prefix: 1.23 TFLOP."""
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    shown = f"{value:.0f}" if power == 0 or value >= 99.95 else f"{value:.3g}"
    return f"{shown} {_PREFIXES[power]}{unit}"


def duration(seconds: float) -> str:
    """A time as one reads it: 4.2 s, 3 min 20 s, 5 h 12 min, 2 d 3 h."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, below, below_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // below} {below_name}"
    return f"{whole // 60} min {whole % 60} s"


def human(figure: str, value: float) -> str:
    """A figure of a ledger, or a unit of a budget, in units that one reads."""
    if figure == "seconds":
        return duration(value)
    if figure == "flops":
        return scaled(value, "FLOP")
    if figure == "peak_memory_bytes":
        return scaled(value, "B")
    return f"{value:,.0f}"


def parts(run: Run, found: "Comparison") -> dict[str, Cost]:
    """What a row is made of: its parts by name, those that it lacks left out."""
    shared = frozenset(found.shared)
    labelling, earlier = run.labelling, run.earlier
    cold = [one for digest, one in run.cold.items() if digest not in shared]
    named = {"training": run.training}
    if labelling:
        named["labelling"] = added(cost_of(one) for one in labelling)
    if earlier or cold:
        named["earlier"] = added(cost_of(one) for one in (*earlier, *cold))
    return {**named, "total": run.total(shared)}


def ratios(run: Run, found: "Comparison") -> dict[str, float | None]:
    """A row's total over that of the baseline; None where one is not known, or is 0."""
    shared = frozenset(found.shared)
    ours, theirs = run.total(shared), found.baseline.total(shared)
    result: dict[str, float | None] = {}
    for figure in FIGURES:
        one, other = ours.exact(figure), theirs.exact(figure)
        result[figure] = one / other if one is not None and other else None
    return result


def markdown(found: "Comparison") -> str:
    """The comparison as Markdown that also reads as plain text."""
    sections = [_costs(found)]
    if found.standings:
        sections.append(_equal(found))
    return "\n".join(sections)


def _costs(found: "Comparison") -> str:
    scored = bool(found.scores.by_subject)
    rows = [row for run in found.runs for row in _rows(run, found, scored)]
    for one in found.shared.values():
        said = f"{_name(one.folder.name)} (cold start, shared by all, in no total)"
        rows.append([said, *_figures(cost_of(one)), *_means(found, one.folder, scored)])
    header = ["", *HEADINGS.values(), *(("ID mean", "OOD mean") if scored else ())]
    return "\n".join([_table(header, rows), "", *_notes(found), ""])


def _rows(run: Run, found: "Comparison", scored: bool) -> Iterator[list[str]]:
    named = parts(run, found)
    title = f"{_name(run.name)} ({run.method})"
    blank = [""] * (2 if scored else 0)
    if len(named) > 2 or run.lost:
        for name, cost in list(named.items())[:-1]:
            yield [f"{title}: {_SAID[name]}", *_figures(cost), *blank]
        title = f"{title}: total"
    yield [title, *_figures(named["total"]), *_means(found, run.made.folder, scored)]
    if run is not found.baseline:
        shown = [
            "-" if value is None else f"{float(f'{value:.3g}'):g}×" for value in ratios(run, found).values()
        ]
        yield [f"{_name(run.name)} over {_name(found.baseline.name)}", *shown, *blank]


_SAID = {"training": "training", "labelling": "drawing for its labels", "earlier": "trainings before it"}


def _figures(cost: Cost) -> list[str]:
    cells = []
    for figure in FIGURES:
        value = cost.values.get(figure)
        if value is None:
            cells.append("unknown")
        else:
            cells.append(f"{'≥ ' if figure in cost.partial else ''}{human(figure, value)}")
    return cells


def _means(found: "Comparison", folder: Path | None, scored: bool) -> list[str]:
    if not scored:
        return []
    means = found.means(folder)
    if means is None:
        return ["not scored"] * 2
    return ["-" if value is None else f"{100 * value:.2f} %" for value in means.values()]


def _notes(found: "Comparison") -> Iterator[str]:
    for run in found.runs:
        for said in run.lost:
            yield f"- {_name(run.name)}: its total is a lower bound, as {markdown_text(said)}."
        for said in run.remarks:
            yield f"- {_name(run.name)}: {markdown_text(said)}."
    for said in found.remarks:
        yield f"- {said[0].upper()}{markdown_text(said[1:])}."


def _equal(found: "Comparison") -> str:
    scored = bool(found.scores.by_subject)
    rows, seen = [], ""
    for one in found.standings:
        budget = f"{human(one.unit, one.budget)} {'' if one.unit == 'seconds' else one.unit}".strip()
        place = one.said if one.folder is None else f"step {one.step}"
        if one.folder is None and one.step is not None:
            place = f"{one.said}; step {one.step} was"
        spent = "-" if one.spent is None else human(one.unit, one.spent)
        means = _means(found, one.folder, scored) if one.folder is not None else ["-"] * (2 * scored)
        rows.append(["" if one.unit == seen else budget, _name(one.run.name), place, spent, *means])
        seen = one.unit
    header = ["at most", "", "came to", "spent", *(("ID mean", "OOD mean") if scored else ())]
    text = ["## At equal samples, tokens and time", "", "Labels included.", "", _table(header, rows), ""]
    commands = found.commands()
    if commands:
        text += ["Not scored yet:", "", *(f"    {visible(line)}" for line in commands), ""]
    return "\n".join(text)


def _name(name: str) -> str:
    return str(markdown_text(name))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    aligned = ("left", *["right"] * (len(header) - 1))
    return str(tabulate(rows, headers=header, tablefmt="pipe", disable_numparse=True, colalign=aligned))


def as_dict(found: "Comparison") -> dict[str, Any]:
    """The comparison as JSON has it: raw units, None where nothing is known."""
    return {
        "baseline": found.baseline.name,
        "runs": [_run_as_dict(run, found) for run in found.runs],
        "shared": {one.folder.name: cost_of(one).as_dict() for one in found.shared.values()},
        "equal": [
            {
                "unit": one.unit,
                "budget": one.budget,
                "run": one.run.name,
                "step": one.step,
                "kept": one.folder is not None,
                "checkpoint": one.checkpoint,
                "spent": one.spent,
                "said": one.said,
                "accuracy": found.means(one.folder),
            }
            for one in found.standings
        ],
        "to_evaluate": found.commands(),
        "remarks": list(found.remarks),
    }


def _run_as_dict(run: Run, found: "Comparison") -> dict[str, Any]:
    named = parts(run, found)
    return {
        "name": run.name,
        "method": run.method,
        **{part: named[part].as_dict() if part in named else None for part in PARTS},
        "lower_bounds": sorted(named["total"].partial),
        "ratio": ratios(run, found),
        "accuracy": found.means(run.made.folder),
        "remarks": [*run.lost, *run.remarks],
    }


def csv_text(found: "Comparison") -> str:
    """One line a run: every part's figures in raw units, ratios and means; a blank is not known."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = [f"{part}_{figure}" for part in PARTS for figure in FIGURES]
    ratio_columns = [f"ratio_{figure}" for figure in FIGURES]
    writer.writerow(
        ["run", "method", *columns, *ratio_columns, "id_mean", "ood_mean", "lower_bounds", "remarks"]
    )
    for run in found.runs:
        told = _run_as_dict(run, found)
        values = [(told[part] or {}).get(figure) for part in PARTS for figure in FIGURES]
        accuracy = told["accuracy"] or {}
        values += [*told["ratio"].values(), accuracy.get("id"), accuracy.get("ood")]
        tail = [" ".join(told["lower_bounds"]), spreadsheet_text(". ".join(told["remarks"]))]
        cells = ["" if value is None else value for value in values]
        writer.writerow([spreadsheet_text(run.name), run.method, *cells, *tail])
    return file.getvalue()

"""Training runs side by side: the cost of each, labels included, and their accuracies at equal cost."""

import itertools
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dcsft_harness import reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.manifest import Manifest
from dcsft_harness.artifacts.usage import FIGURES
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.errors import HarnessError, unknown_name, visible
from dcsft_harness.evaluation import DRAWN_BY
from dcsft_harness.evaluation.cost import UNITS, Cost, Run, added, cost_of, read_run
from dcsft_harness.leaderboard.board import differences
from dcsft_harness.leaderboard.collect import conditions_of
from dcsft_harness.leaderboard.report.table import csv_of, grid, markdown_text, spreadsheet_text
from dcsft_harness.sampling import own_files
from dcsft_harness.settings import flag
from dcsft_harness.training.run_folder import checkpoints, step_of

# Scores folders -> accuracies of the evaluated weights, matched by content and not by name.

DISTRIBUTIONS = ("id", "ood")


@dataclass
class Scores:
    """The content of several scores folders."""

    # hash of an adapter, or of a checkpoint evaluated without one -> task -> its notes
    by_subject: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=dict)
    manifests: dict[str, list[Manifest]] = field(default_factory=dict)  # the same hash -> its folders'
    # task -> the notes of the first folder with it
    tasks: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)  # accuracies that cannot be compared, with reasons

    def means(self, subject: str) -> dict[str, float | None]:
        """Distribution -> the unweighted mean over all of its tasks; None if one of them is missing."""
        have = self.by_subject[subject]
        means: dict[str, float | None] = {}
        for side in DISTRIBUTIONS:
            tasks = [name for name, notes in self.tasks.items() if notes.get("distribution") == side]
            found: list[Any] = [have.get(name, {}).get("accuracy") for name in tasks]
            means[side] = sum(found) / len(found) if found and None not in found else None
        return means


def read_scores(folders: Sequence[Path]) -> Scores:
    """Reads scores folders.

    Raises:
        HarnessError: one holds no scores, or two are of the same weights on the same task.
    """
    scores = Scores()
    first: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {}  # task -> its first folder's conditions
    for folder in folders:
        found = manifest.read(folder, "scores")
        manifest.refuse_changed(folder)
        role = "adapter" if "adapter" in (weights := found.weights()) else "model"
        if role not in found.inputs:
            scores.remarks.append(f"the scores {folder} are of a hub model, which is not one of the runs")
            continue
        subject = weights[role]
        known = scores.by_subject.setdefault(subject, {})
        scores.manifests.setdefault(subject, []).append(found)
        for name, own in found.notes["tasks"].items():
            if name in known:
                others = ", ".join(str(one.folder) for one in scores.manifests[subject][:-1])
                raise HarnessError(
                    f"{folder} and {others} score the same adapter on {name}", "Leave one of them out"
                )
            scores.tasks.setdefault(name, own)
            known[name] = own
            conditions, unknown = conditions_of(found, name)
            ours, unrecorded = first.setdefault(name, (conditions, unknown))
            if differing := [one for one, *_ in differences(ours, conditions, unknown + unrecorded)]:
                scores.remarks.append(
                    f"accuracies on {name} are not comparable: {folder} has another {', '.join(differing)}"
                )
    return scores


# Compares runs at equal samples, tokens and time: those of the cheapest run at its end.


@dataclass(frozen=True)
class Standing:
    """One run within a budget."""

    unit: str  # "samples", "tokens" or "seconds"
    budget: float  # the total of the cheapest run, labels included
    run: Run
    step: int | None = None  # its last step within the budget; None if unknown
    # the run, or its newest kept checkpoint within the budget; None if there is none
    folder: Path | None = None
    spent: float | None = None  # what it had spent by then, labels included
    said: str = ""  # why there is no folder


def standings(runs: Sequence[Run]) -> list[Standing]:
    """Every run at the smallest total among them, in each unit that at least two runs know."""
    found: list[Standing] = []
    for unit in UNITS:
        totals = [run.spent(unit) for run in runs]
        known = [total for total in totals if total is not None]
        if len(known) > 1:
            pairs = zip(runs, totals, strict=True)
            found += [_standing(run, unit, min(known), total) for run, total in pairs]
    return found


def _standing(run: Run, unit: str, budget: float, total: float | None) -> Standing:
    if total is None:
        return Standing(unit, budget, run, said="its cost is unknown")
    if total <= budget:
        steps = run.made.notes.get("steps")
        return Standing(unit, budget, run, steps, run.made.folder, total)
    before = run.spent_before(unit) or 0
    if before > budget:
        return Standing(unit, budget, run, said="its inputs already cost more")
    spent = {int(row["step"]): before + row[unit] for row in run.history if unit in row}
    if not spent:
        return Standing(unit, budget, run, said="its training log has no record")
    kept = [path for path in checkpoints(run.made.folder) if spent.get(step_of(path), budget + 1) <= budget]
    if kept:
        step = step_of(kept[-1])
        return Standing(unit, budget, run, step, kept[-1], spent[step])
    within = [step for step, value in spent.items() if value <= budget]
    if not within:
        return Standing(unit, budget, run, said="its first step cost more")
    last = max(within)
    return Standing(unit, budget, run, last, None, spent[last], "no kept checkpoint is within")


def command(standing: Standing, scores: Scores) -> str | None:
    """The command line that would score a standing's folder on the tasks of the other scores."""
    folder, made = standing.folder, standing.run.made
    if folder is None or not scores.tasks:
        return None
    evaluated = scores.manifests.get(manifest.fingerprint(made.folder))
    settings = evaluated[0].config if evaluated else {}
    role = "adapter" if made.kind == "adapter" else "pretrained"
    given = reading.named(str(settings.get("model_args", "")))
    entry = made.inputs.get("model")
    base = None if entry is None else (made.folder / entry["path"]).resolve()
    exists = base is not None and base.is_dir()
    given.setdefault("pretrained", str(base if exists else made.notes.get("base", "")))
    given[role] = str(folder)
    model = str(settings.get("model", "dcsft_hf"))
    words = ["dcsft", "evaluate", *([] if model == "dcsft_hf" else ["--model", model])]
    words += ["--model-args", reading.joined(given)]
    limits = {notes.get("limit") for notes in scores.tasks.values()}
    words += ["--limit", str(limits.pop())] if len(limits) == 1 and None not in limits else []
    others = settings or next(iter(scores.manifests.values()))[0].config
    drawn = {name: others[name] for name in DRAWN_BY if others.get(name) is not None}
    words += [word for name, value in drawn.items() for word in (flag(name), str(value))]
    words += [*_asked(scores), "--output", f"scores-{standing.run.name}-{folder.name}"]
    return shlex.join(words)


def _asked(scores: Scores) -> list[str]:
    """The options of `dcsft evaluate` for the tasks of scores: own rows by their files."""
    files: dict[str, Path] = {}
    more: dict[str, str | None] = {}
    for made in itertools.chain(*scores.manifests.values()):
        options = made.call.get("options", {})
        held = "_held_out" if options.get("held_out") is not None else ""
        more |= {"--include-path": options["include_path"]} if options.get("include_path") else {}
        for role, entry in made.inputs.items():
            if role.split()[0] == "data" and not role.startswith(prepared.ROLE):
                path = (made.folder / entry["path"]).resolve()
                path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
                files[own_files.name_of(path) + held] = path
                given = {name: options.get(name) for name in ("scorer", "held_out", "image_root")}
                more |= {flag(name): str(one) for name, one in given.items() if one is not None}
                more |= {"--allow-outside-root": None} if options.get("allow_outside_root") else {}
    rows = [str(path) for name, path in files.items() if name in scores.tasks]
    tasks = [*(name for name in scores.tasks if name not in files), *rows[1:]]
    words = ["--data", rows[0]] if rows else []
    words += ["--tasks", ",".join(tasks)] if tasks else []
    return [*words, *(word for pair in more.items() for word in pair if word is not None)]


# Runs side by side.


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    runs: tuple[Run, ...]  # in the order given
    baseline: Run  # the run that ratios refer to
    shared: Mapping[str, Manifest]  # hash -> a cold start that every run began with; not in any total
    scores: Scores
    standings: tuple[Standing, ...]  # the runs at equal samples, tokens and time
    remarks: tuple[str, ...] = ()  # caveats about comparing rows

    @property
    def scored(self) -> bool:
        """Whether there are accuracies."""
        return bool(self.scores.by_subject)

    def commands(self) -> list[str]:
        """The missing evaluations at equal budgets, each once."""
        missing = (one for one in self.standings if one.folder is not None)
        found = (command(one, self.scores) for one in missing if self.means(one.folder) is None)
        return list(dict.fromkeys(text for text in found if text is not None))

    def means(self, folder: Path | None) -> dict[str, float | None] | None:
        """The accuracies of a run or of one of its checkpoints; None if there are no scores of exactly it."""
        if folder is None or not self.scored:
            return None
        subject = manifest.fingerprint(folder)
        return self.scores.means(subject) if subject in self.scores.by_subject else None


def compare(
    artifacts: Sequence[Path], scores: Sequence[Path] = (), baseline: str | None = None
) -> Comparison:
    """Reads runs and their inputs.

    `artifacts` are adapters and checkpoints of `dcsft train`, in the order of their rows; `scores` are of
    these, or of checkpoints inside them. `baseline` is the name or folder of the run that ratios refer to, by
    default the first.

    Raises:
        HarnessError: there are none, a folder cannot be read or is given twice, or no run is the baseline.
    """
    if not artifacts:
        raise HarnessError("no adapters or checkpoints were given", "Name folders made by `dcsft train`")
    names = _names(artifacts)
    for folder in artifacts:
        # Checkpoints of earlier steps may have been removed.
        files = [name for name in manifest.read(folder).files if not name.startswith("checkpoint-")]
        manifest.refuse_changed(folder, *files)
    runs = tuple(read_run(folder, name) for folder, name in zip(artifacts, names, strict=True))
    chosen = 0
    if baseline is not None:
        if baseline not in names and Path(baseline) not in artifacts:
            raise unknown_name("row", baseline, names)
        chosen = names.index(baseline) if baseline in names else list(artifacts).index(Path(baseline))
    common = set(runs[0].cold).intersection(*(run.cold for run in runs[1:]))
    shared = {digest: one for digest, one in runs[0].cold.items() if digest in common}
    own = ({digest: one for digest, one in run.cold.items() if digest not in shared} for run in runs)
    runs = tuple(replace(run, cold=cold) for run, cold in zip(runs, own, strict=True))
    read = read_scores(scores)
    found = tuple(standings(runs)) if len(runs) > 1 else ()
    made = Comparison(runs, runs[chosen], shared, read, found)
    return replace(made, remarks=(*_differences(runs), *_unused(made), *read.remarks))


def _names(artifacts: Sequence[Path]) -> list[str]:
    """Folder names, or whole paths if two folders have the same name."""
    twice = [path for path, times in Counter(path.resolve() for path in artifacts).items() if times > 1]
    if twice:
        raise HarnessError(f"{twice[0]} is given twice", "Name each run once")
    short = Counter(path.resolve().name for path in artifacts)
    return [name if short[name := path.resolve().name] == 1 else str(path) for path in artifacts]


def _unused(made: Comparison) -> Iterator[str]:
    """Scores of none of the runs, their checkpoints or their cold start."""
    if not made.scored:
        return
    known = set(made.shared)
    for run in made.runs:
        places = (run.made.folder, *run.made.folder.glob("checkpoint-*"))
        known |= {manifest.fingerprint(place) for place in places} | set(run.cold)
    for subject, found in made.scores.manifests.items():
        if subject not in known:
            yield f"{', '.join(str(one.folder) for one in found)} scores none of these runs, as they are now"


def _differences(runs: Sequence[Run]) -> Iterator[str]:
    """The settings in which the rows differ."""
    behind = [(run.name, one) for run in runs for one in (run.made, *run.labeling, *run.earlier)]
    machines = _differing(
        (name, {**one.hardware, "processes": one.notes.get("processes", 1)}) for name, one in behind
    )
    if machines:
        yield f"times are not comparable: {'; '.join(machines)}"
    packages = _differing((name, one.packages) for name, one in behind)
    if packages:
        yield f"package versions differ, and times with them: {'; '.join(packages)}"


def _differing(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Each name whose values differ, with the rows of each value."""
    pairs, found = list(rows), []
    for name in dict.fromkeys(name for _, values in pairs for name in values):
        holders: dict[str, dict[str, None]] = {}
        for run, values in pairs:
            holders.setdefault(str(values.get(name, "not recorded")), {})[run] = None
        if len(holders) > 1:
            said = (f"{value} ({', '.join(runs)})" for value, runs in holders.items())
            found.append(f"{name} {', '.join(said)}")
    return found


# Comparison -> Markdown with human units; CSV and JSON with raw ones.

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
MEANS = ("ID mean", "OOD mean")
PARTS = {
    "training": "training",
    "labelling": "drawing for its labels",
    "earlier": "trainings before it",
    "total": "total",
}
"""The parts of a row, and what a table calls them."""
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def scaled(value: float, unit: str) -> str:
    """A number with three significant digits and a decimal prefix: 1.23 TFLOP."""
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    shown = f"{value:.0f}" if power == 0 or value >= 99.95 else f"{value:.3g}"
    return f"{shown} {_PREFIXES[power]}{unit}"


def duration(seconds: float) -> str:
    """A time in readable units: 4.2 s, 3 min 20 s, 5 h 12 min, 2 d 3 h."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, below, below_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // below} {below_name}"
    return f"{whole // 60} min {whole % 60} s"


def human(figure: str, value: float) -> str:
    """A figure of a ledger, or a unit of a budget, in readable units."""
    if figure == "seconds":
        return duration(value)
    if figure == "flops":
        return scaled(value, "FLOP")
    if figure == "peak_memory_bytes":
        return scaled(value, "B")
    return f"{value:,.0f}"


def parts(run: Run) -> dict[str, Cost]:
    """The parts of a row by name; missing ones are left out."""
    named = {"training": run.training}
    if run.labeling:
        named["labelling"] = added(cost_of(one) for one in run.labeling)
    if run.earlier or run.cold:
        named["earlier"] = added(cost_of(one) for one in (*run.earlier, *run.cold.values()))
    return {**named, "total": run.total()}


def ratios(run: Run, found: Comparison) -> dict[str, float | None]:
    """A row's total over that of the baseline; None if one is unknown, or is 0."""
    ours, theirs = run.total(), found.baseline.total()
    result: dict[str, float | None] = {}
    for figure in FIGURES:
        one, other = ours.exact(figure), theirs.exact(figure)
        result[figure] = one / other if one is not None and other else None
    return result


def markdown(found: Comparison) -> str:
    """The comparison as Markdown that is also readable as plain text."""
    return "\n".join([_costs(found), *([_equal(found)] if found.standings else [])])


def _costs(found: Comparison) -> str:
    rows = [row for run in found.runs for row in _rows(run, found)]
    for one in found.shared.values():
        said = f"{markdown_text(one.folder.name)} (cold start, shared by all, in no total)"
        rows.append([said, *_figures(cost_of(one)), *_means(found, one.folder)])
    header = ["", *HEADINGS.values(), *(MEANS if found.scored else ())]
    return "\n".join([grid(header, rows), "", *_notes(found), ""])


def _rows(run: Run, found: Comparison) -> Iterator[list[str]]:
    named = parts(run)
    title = f"{markdown_text(run.name)} ({markdown_text(run.method)})"
    blank = [""] * (len(MEANS) if found.scored else 0)
    if len(named) > 2 or run.lost:
        for name, cost in list(named.items())[:-1]:
            yield [f"{title}: {PARTS[name]}", *_figures(cost), *blank]
        title = f"{title}: total"
    yield [title, *_figures(named["total"]), *_means(found, run.made.folder)]
    if run is not found.baseline:
        shown = [
            "-" if value is None else f"{float(f'{value:.3g}'):g}×" for value in ratios(run, found).values()
        ]
        yield [f"{markdown_text(run.name)} over {markdown_text(found.baseline.name)}", *shown, *blank]


def _figures(cost: Cost) -> list[str]:
    return [
        "unknown"
        if (value := cost.values.get(figure)) is None
        else f"{'≥ ' if figure in cost.partial else ''}{human(figure, value)}"
        for figure in FIGURES
    ]


def _means(found: Comparison, folder: Path | None) -> list[str]:
    if not found.scored:
        return []
    means = found.means(folder)
    if means is None:
        return ["not scored"] * len(MEANS)
    return ["-" if value is None else f"{100 * value:.2f} %" for value in means.values()]


def _notes(found: Comparison) -> Iterator[str]:
    for run in found.runs:
        for said in run.lost:
            yield f"- {markdown_text(run.name)}: its total is a lower bound, as {markdown_text(said)}."
        for said in run.remarks:
            yield f"- {markdown_text(run.name)}: {markdown_text(said)}."
    for said in found.remarks:
        yield f"- {said[0].upper()}{markdown_text(said[1:])}."


def _equal(found: Comparison) -> str:
    rows, seen = [], ""
    for one in found.standings:
        budget = f"{human(one.unit, one.budget)} {'' if one.unit == 'seconds' else one.unit}".strip()
        place = one.said if one.folder is None else f"step {one.step}"
        if one.folder is None and one.step is not None:
            place = f"{one.said}; step {one.step} was"
        spent = "-" if one.spent is None else human(one.unit, one.spent)
        means = _means(found, one.folder) if one.folder is not None else ["-"] * (len(MEANS) * found.scored)
        rows.append(["" if one.unit == seen else budget, markdown_text(one.run.name), place, spent, *means])
        seen = one.unit
    header = ["at most", "", "came to", "spent", *(MEANS if found.scored else ())]
    text = ["## At equal samples, tokens and time", "", "Labels included.", "", grid(header, rows), ""]
    commands = found.commands()
    if commands:
        text += ["Not scored yet:", "", *(f"    {visible(line)}" for line in commands), ""]
    return "\n".join(text)


def as_dict(found: Comparison) -> dict[str, Any]:
    """The comparison in JSON form: raw units, None if nothing is known."""
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
                # Of the run's end there is none.
                "checkpoint": one.folder.name if one.folder and one.folder != one.run.made.folder else None,
                "spent": one.spent,
                "said": one.said,
                "accuracy": found.means(one.folder),
            }
            for one in found.standings
        ],
        "to_evaluate": found.commands(),
        "remarks": list(found.remarks),
    }


def _run_as_dict(run: Run, found: Comparison) -> dict[str, Any]:
    named = parts(run)
    return {
        "name": run.name,
        "method": run.method,
        **{part: named[part].as_dict() if part in named else None for part in PARTS},
        "lower_bounds": sorted(named["total"].partial),
        "ratio": ratios(run, found),
        "accuracy": found.means(run.made.folder),
        "remarks": [*run.lost, *run.remarks],
    }


def csv_text(found: Comparison) -> str:
    """One line per run: every part's figures in raw units, ratios and means; blank if unknown."""
    columns = [f"{part}_{figure}" for part in PARTS for figure in FIGURES]
    columns += [f"ratio_{figure}" for figure in FIGURES]
    header = ["run", "method", *columns, "id_mean", "ood_mean", "lower_bounds", "remarks"]
    lines = []
    for run in found.runs:
        record = _run_as_dict(run, found)
        values = [(record[part] or {}).get(figure) for part in PARTS for figure in FIGURES]
        accuracy = record["accuracy"] or {}
        values += [*record["ratio"].values(), accuracy.get("id"), accuracy.get("ood")]
        tail = [" ".join(record["lower_bounds"]), spreadsheet_text(". ".join(record["remarks"]))]
        lines.append([spreadsheet_text(run.name), spreadsheet_text(run.method), *values, *tail])
    return csv_of(header, lines)


def build(
    artifacts: Sequence[Path],
    output: Path | None = None,
    scores: Sequence[Path] = (),
    baseline: str | None = None,
) -> Comparison:
    """Compares, and writes costs.md, costs.csv and costs.json if there is an output folder."""
    found = compare(artifacts, scores, baseline)
    if output is None:
        return found
    inputs = {f"run {number}": folder for number, folder in enumerate(artifacts, start=1)}
    inputs |= {f"scores {number}": folder for number, folder in enumerate(scores, start=1)}
    with manifest.writing("cost comparison", output, {"baseline": baseline}, inputs) as draft:
        texts: dict[str, str] = {
            "costs.md": f"# Cost of training\n\n{markdown(found)}",
            "costs.csv": csv_text(found),
            "costs.json": json.dumps(as_dict(found), indent=2) + "\n",
        }
        for name, text in texts.items():
            (draft.folder / name).write_text(text, encoding="utf-8", newline="\n")
        draft.notes |= {"rows": [run.name for run in found.runs]}
    return found

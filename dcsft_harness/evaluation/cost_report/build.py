"""Folders -> a cost comparison: Markdown, CSV and JSON of it, and its manifest."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.manifest import Manifest
from dcsft_harness.errors import HarnessError, unknown_name

from . import accuracy, lineage, table
from .accuracy import Scores
from .equal import Standing, command, standings
from .lineage import Run


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: in the order given.
        baseline: the run that ratios are taken to.
        shared: hash -> a cold start that every run began with; in no total.
        scores: what was evaluated.
        standings: the runs at equal samples, tokens and time.
        remarks: what to know before two rows are compared.
        digests: hashes of folders that have been looked at; those of large checkpoints take long.
    """

    runs: tuple[Run, ...]
    baseline: Run
    shared: Mapping[str, Manifest]
    scores: Scores
    standings: tuple[Standing, ...]
    remarks: tuple[str, ...] = ()
    digests: dict[Path, str] = field(default_factory=dict)

    def digest(self, folder: Path) -> str:
        """The hash by which an evaluation's manifest names a folder."""
        if folder not in self.digests:
            self.digests[folder] = manifest.fingerprint(folder)
        return self.digests[folder]

    def commands(self) -> list[str]:
        """What would have to be evaluated for the accuracies that are missing at equal budgets, each once."""
        missing = (one for one in self.standings if one.folder is not None)
        found = (command(one, self.scores) for one in missing if self.means(one.folder) is None)
        return list(dict.fromkeys(text for text in found if text is not None))

    def means(self, folder: Path | None) -> dict[str, float | None] | None:
        """The accuracies of a run or of one of its checkpoints; None where no scores are of exactly it."""
        if folder is None or not self.scores.by_subject:
            return None
        subject = self.digest(folder)
        return self.scores.means(subject) if subject in self.scores.by_subject else None


def compare(
    artefacts: Sequence[Path], scores: Sequence[Path] = (), baseline: str | None = None
) -> Comparison:
    """Reads runs and what they were made from.

    Args:
        artefacts: adapters and checkpoints of `dcsft train`, in the order of their rows.
        scores: scores folders of these, or of checkpoints inside them.
        baseline: name or folder of the run that ratios are taken to; None takes the first.

    Raises:
        HarnessError: there are none, a folder cannot be read or is given twice, or no run is the baseline.
    """
    if not artefacts:
        raise HarnessError("no adapters or checkpoints were given", "Name folders made by `dcsft train`")
    names = _names(artefacts)
    runs = tuple(lineage.read(folder, name) for folder, name in zip(artefacts, names, strict=True))
    chosen = 0
    if baseline is not None:
        if baseline not in names and Path(baseline) not in artefacts:
            raise unknown_name("row", baseline, names)
        chosen = names.index(baseline) if baseline in names else list(artefacts).index(Path(baseline))
    common = set(runs[0].cold).intersection(*(run.cold for run in runs[1:]))
    shared = {digest: one for digest, one in runs[0].cold.items() if digest in common}
    read = accuracy.read(scores)
    found = tuple(standings(runs, frozenset(shared))) if len(runs) > 1 else ()
    made = Comparison(runs, runs[chosen], shared, read, found)
    return replace(made, remarks=(*_differences(runs), *_unused(made), *read.remarks))


def build(
    artefacts: Sequence[Path],
    output: Path | None = None,
    scores: Sequence[Path] = (),
    baseline: str | None = None,
) -> Comparison:
    """Compares, and writes costs.md, costs.csv and costs.json where there is an output folder.

    Raises:
        HarnessError: see `compare`; or the output is occupied or cannot be written.
    """
    if output is None:
        return compare(artefacts, scores, baseline)
    manifest.refuse_occupied(output)
    found = compare(artefacts, scores, baseline)
    inputs = {f"run {number}": folder for number, folder in enumerate(artefacts, start=1)}
    inputs |= {f"scores {number}": folder for number, folder in enumerate(scores, start=1)}
    with manifest.writing("cost comparison", output, {"baseline": baseline}, inputs) as draft:
        texts: dict[str, str] = {
            "costs.md": f"# What training cost\n\n{table.markdown(found)}",
            "costs.csv": table.csv_text(found),
            "costs.json": json.dumps(table.as_dict(found), indent=2) + "\n",
        }
        for name, text in texts.items():
            (draft.folder / name).write_text(text, encoding="utf-8", newline="\n")
        draft.notes |= {"rows": [run.name for run in found.runs]}
    return found


def _names(artefacts: Sequence[Path]) -> list[str]:
    """Folder names, or whole paths where two folders have one name."""
    twice = [path for path, times in Counter(path.resolve() for path in artefacts).items() if times > 1]
    if twice:
        raise HarnessError(f"{twice[0]} is given twice", "Name each run once")
    short = Counter(path.resolve().name for path in artefacts)
    return [name if short[name := path.resolve().name] == 1 else str(path) for path in artefacts]


def _unused(made: Comparison) -> Iterator[str]:
    """Scores that are of none of the runs, their checkpoints or their cold start."""
    if not made.scores.by_subject:
        return
    known = set(made.shared)
    for run in made.runs:
        places = (run.made.folder, *run.made.folder.glob("checkpoint-*"))
        known |= {made.digest(place) for place in places} | set(run.cold)
    for subject, folders in made.scores.folders.items():
        if subject not in known:
            yield f"{', '.join(map(str, folders))} scores none of these runs, as they are now"


def _differences(runs: Sequence[Run]) -> Iterator[str]:
    """What the rows were not made alike on."""
    machines = _differing((run.name, _machine(one)) for run in runs for one in run.contributors())
    if machines:
        yield f"times are not comparable: {'; '.join(machines)}"
    packages = _differing((run.name, one.packages) for run in runs for one in run.contributors())
    if packages:
        yield f"package versions differ, and times with them: {'; '.join(packages)}"


def _machine(one: Manifest) -> dict[str, Any]:
    return {**one.hardware, "processes": one.notes.get("processes", 1)}


def _differing(told: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Each name whose values differ, with who has which."""
    whose: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    pairs = list(told)
    names = dict.fromkeys(name for _, values in pairs for name in values)
    for run, values in pairs:
        for name in names:
            holders = whose[name][str(values.get(name, "not recorded"))]
            if run not in holders:
                holders.append(run)
    found = []
    for name, by_value in whose.items():
        if len(by_value) > 1:
            said = (f"{value} ({', '.join(holders)})" for value, holders in by_value.items())
            found.append(f"{name} {', '.join(said)}")
    return found

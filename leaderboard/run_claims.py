"""Claims that no board decides: gradient norms, groups and costs, from the training runs behind boards."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from dcsft_harness.errors import HarnessError
from dcsft_harness.evaluation.cost_report import lineage
from dcsft_harness.evaluation.cost_report.figures import added, cost_of

from .claims import Figure, Finding, by_seed, over_seeds
from .summary import Line, Summary


def findings(boards: Mapping[str, Summary]) -> Iterator[Finding]:
    """Claims about gradient norms, groups and costs, from the training runs behind boards."""
    difficulty = boards.get("classification-difficulty")
    if difficulty is not None:
        norms = {
            name: by_seed(difficulty.lines, f"{name} only", _norm) for name in ("easy", "medium", "hard")
        }
        for one, other in (("hard", "medium"), ("medium", "easy")):
            said = f"gradient norms are larger on {one} items than on {other} ones"
            yield from _told(over_seeds("Figure 6", said, _pairs(norms[one], norms[other])))
    paradigms = boards.get("classification-paradigms")
    if paradigms is not None:
        for unit, what in (("flops", "operations"), ("seconds", "wall-clock time")):
            cost = {name: by_seed(paradigms.lines, name, _cost(unit)) for name in ("GRPO", "SFT-EM")}
            said = f"GRPO takes more {what} than SFT-EM with its labelling"
            yield from _told(over_seeds("Figure 4", said, _pairs(cost["GRPO"], cost["SFT-EM"])))
        idle = by_seed(paradigms.lines, "GRPO", _share("zero_advantage"))
        mixed = by_seed(paradigms.lines, "GRPO", _share("mixed"))
        said = "most prompts of a GRPO step have no advantage, so that it learns from the mixed ones alone"
        yield from _told(over_seeds("section 3", said, _pairs(idle, mixed), "points"))


def _told(finding: Finding | None) -> list[Finding]:
    return [] if finding is None else [finding]


def _pairs(ours: Mapping[str, float], theirs: Mapping[str, float]) -> list[tuple[float, float]]:
    return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]


def _history(line: Line, number: int) -> Sequence[Mapping[str, float]]:
    trainings = [part.training for part in line.rows[number].provenance if part.training is not None]
    return trainings[0].history if trainings else ()


def _norm(line: Line, number: int) -> float | None:
    """The geometric mean of a run's gradient norms."""
    norms = [row["grad_norm"] for row in _history(line, number) if row.get("grad_norm")]
    return math.exp(mean(map(math.log, norms))) if norms else None


def _cost(unit: str) -> Figure:
    """What a run cost, its labels included; None where a part of that is not known."""

    def figure(line: Line, number: int) -> float | None:
        trainings = [part.training for part in line.rows[number].provenance if part.training is not None]
        if not trainings:
            return None
        try:
            run = lineage.read(trainings[0].folder, line.name)
        except HarnessError:  # merged, or made by something else: what it cost is not known
            return None
        total = added([run.training, *map(cost_of, run.labelling)])
        return None if unit in total.partial else total.values.get(unit)

    return figure


def _share(name: str) -> Figure:
    """The mean over steps of a share of prompts."""

    def figure(line: Line, number: int) -> float | None:
        shares = [row[name] for row in _history(line, number) if name in row]
        return mean(shares) if shares else None

    return figure

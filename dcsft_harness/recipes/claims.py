"""The paper's claims, stated before the run that decides them, each tested on a run of its recipes.

A claim, a row of claims.csv, names a source, a board, the two lines that it compares, and a test. It is
tested on each pool that the run has: the clean one, and the one with 6 % wrong labels. What is fixed
beforehand:

    superiority: one line is ahead of the other; tested two-sided against no difference.
    match: "matches or beats"; non-inferiority, tested one-sided against a deficit of `MARGIN`.
    Claims about other figures (gradient norms, shares, costs) compare one number per seed, by a t test.

Seeds are paired, because those of one number share cold start and labels. A single seed gives no p-value and
decides nothing.

Verdicts, at 5 % of the corrected p-value:
    supported: significant and in favor.
    contradicted: significant and against; of a match, significantly worse by more than the margin.
    not supported: a claim of superiority whose 95 % interval ends below the margin: the effect, if there is
        any, is too small to matter.
    inconclusive: anything else.

Holm's correction covers all of the paper's claims on all pools; rules beyond the paper are a separate family,
and so are claims about K responses per item.

Source: Lu et al., CVPR 2026, arXiv 2602.10815; the tables and figures that each claim names.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any, Literal

import numpy as np

from dcsft_harness import reading
from dcsft_harness.errors import HarnessError
from dcsft_harness.evaluation import lineage
from dcsft_harness.evaluation.lineage import added, cost_of
from dcsft_harness.leaderboard.compare import compare, difference_of_rows
from dcsft_harness.leaderboard.stats.intervals import Estimate
from dcsft_harness.leaderboard.stats.paired import holm
from dcsft_harness.leaderboard.summary import Line, Summary, overall

LEVEL = 0.05
POOLS = {"clean": "", "noisy": "-noisy"}
"""A pool -> what a family's name has after it on that pool's boards. Any other pool counts as clean."""

MARGIN = 0.01
"""Accuracy; half of the difference between GRPO and SFT in the paper's Table 2."""
Test = Literal["superiority", "match"]


@dataclass(frozen=True)
class Claim:
    """A line of a board should be ahead of another, or match it."""

    source: str  # the paper's table or figure; "beyond" for a rule that is not in the paper
    said: str  # the claim, as one sentence
    board: str  # the leaderboard's folder in the run, of the clean pool; see `POOLS`
    row: str  # the line that should be ahead
    other: str  # the line that it is compared with
    distribution: str = "ood"  # "id" or "ood"
    # "superiority", or "match" for "matches or beats" (non-inferiority at `MARGIN`)
    test: Test = "superiority"
    metric: str | None = None  # of K responses per item, such as "maj@8"; None for one response


@dataclass(frozen=True)
class Finding:
    """The result of testing one claim."""

    # source, said: those of the claim
    source: str
    said: str
    verdict: str  # see the module's docstring
    value: Estimate | None  # the tested figure, in `unit`; positive in favor of the claim
    p: float | None  # Holm-corrected over the claims of its family; None if nothing is tested
    unit: str = "points"  # "points" (percentage points) or "ratio" (log of a ratio; 0 is equal)
    seeds: int = 0  # the number of seeds behind it
    alone: float | None = None  # the uncorrected p-value
    test: Test = "superiority"  # as of the claim
    pool: str = "clean"  # a key of `POOLS`


TEST_TIME = "test time"
"""The source of claims about K responses per item (the paper's RQ4)."""
APART = ("beyond", TEST_TIME)
"""Sources whose claims are not the paper's, each corrected as a family of its own."""


def _claim(row: dict[str, Any]) -> Claim:
    return Claim(**{name: value for name, value in row.items() if value})


CLAIMS = tuple(map(_claim, reading.own_table("dcsft_harness.recipes", "claims.csv")))
"""All claims; those of `TEST_TIME` were stated before the first run of the recipe test-time."""


def judge(boards: Mapping[str, Summary], claims: Sequence[Claim] = CLAIMS) -> list[Finding]:
    """Tests the claims whose two lines are on the boards (leaderboard name -> numbers), and those on runs."""
    named = {**{f"large-{DIFFICULTY}": boards[name] for name in _ELSEWHERE if name in boards}, **boards}
    found = [one for claim in claims for pool in POOLS if (one := _tested(named, claim, pool)) is not None]
    return decided([*found, *(one for pool in POOLS for one in findings(named, pool))])


DIFFICULTY = "difficulty"
_ELSEWHERE = (f"classification-{DIFFICULTY}",)
"""The board of Table 1 where it comes from the pool of the other tables, as in the paper."""


def board_of(name: str, pool: str) -> str:
    """The name of a board on a pool: `large-difficulty` is `large-noisy-difficulty` on the noisy one."""
    family, _, kind = name.partition("-")
    return f"{family}{POOLS[pool]}-{kind}"


def decided(found: Sequence[Finding]) -> list[Finding]:
    """Tested claims with corrected p-values and verdicts, from those with `alone` and `value`.

    The paper's claims, those beyond it and those about K responses are corrected separately.
    """
    corrected: dict[int, float] = {}
    for source in (None, *APART):
        family = [
            at
            for at, one in enumerate(found)
            if (one.source if one.source in APART else None) == source and one.alone is not None
        ]
        alone = [p for at in family if (p := found[at].alone) is not None]
        corrected |= dict(zip(family, holm(alone), strict=True))
    made = []
    for at, one in enumerate(found):
        p = corrected.get(at)
        verdict = "inconclusive" if one.value is None else verdict_of(one.value, p, one.test, one.unit)
        made.append(replace(one, p=p, verdict=verdict))
    return made


def _tested(boards: Mapping[str, Summary], claim: Claim, pool: str) -> Finding | None:
    """A claim's difference and uncorrected p-value on a pool; None if its lines are not on a board."""
    summary = boards.get(board_of(claim.board, pool))
    lines = {} if summary is None else _by_name(summary)
    index = None if summary is None else overall(summary.columns, claim.distribution, claim.metric)
    if summary is None or index is None or claim.row not in lines or claim.other not in lines:
        return None
    one, other, column = lines[claim.row], lines[claim.other], summary.columns[index]
    seeds = min(len(one.rows), len(other.rows))
    if seeds < 2:
        single = compare(one, other, index, column, "claims")
        value = None if single is None else single.difference
        alone = None
    else:
        margin = -MARGIN if claim.test == "match" else 0.0
        pair = difference_of_rows(one.rows, other.rows, column, margin)
        if pair is None:
            return None
        value, alone = pair
        if claim.test == "match" and alone is not None:
            alone = alone / 2 if value.value > margin else 1 - alone / 2
    return Finding(claim.source, claim.said, "", value, None, "points", seeds, alone, claim.test, pool)


def _by_name(summary: Summary) -> dict[str, Line]:
    """Lines by name; a single seed is also listed under the name of its configuration."""
    alone = [line for line in summary.lines if line.group is None]
    named = {line.name: line for line in alone}
    for line in alone:
        if line.rows[0].group is not None:
            named.setdefault(line.rows[0].group, line)
    return named


def verdict_of(value: Estimate, p: float | None, test: Test = "superiority", unit: str = "points") -> str:
    """The verdict for a figure (positive in favor of the claim) and its corrected p-value."""
    if test == "match":
        if p is not None and p < LEVEL:
            return "supported"
        worse = p is not None and value.high is not None and value.high < -MARGIN
        return "contradicted" if worse else "inconclusive"
    if p is not None and p < LEVEL:
        return "supported" if value.value > 0 else "contradicted"
    small = unit == "points" and value.high is not None and value.high < MARGIN
    return "not supported" if p is not None and small else "inconclusive"


def over_seeds(
    source: str, said: str, pairs: Sequence[tuple[float, float]], unit: str = "ratio"
) -> Finding | None:
    """A claim that the first of each seed's pair is larger, by a paired t interval; None without pairs.

    `unit` "ratio" compares logarithms of positive figures, "points" differences in [0, 1].
    """
    from scipy.stats import ttest_1samp

    if not pairs:
        return None
    values = np.array([math.log(one / other) if unit == "ratio" else one - other for one, other in pairs])
    if len(values) < 2 or np.ptp(values) == 0:
        estimate, p = Estimate(float(values.mean()), None, None, len(values)), None
    else:
        test = ttest_1samp(values, 0.0)
        low, high = test.confidence_interval(0.95)
        estimate, p = Estimate(float(values.mean()), float(low), float(high), len(values)), float(test.pvalue)
    return Finding(source, said, verdict_of(estimate, p, unit=unit), estimate, p, unit, len(values), p)


Figure = Callable[[Line, int], float | None]
"""A figure of one of a line's rows, by the row's number."""


def by_seed(lines: Sequence[Line], name: str, figure: Figure) -> dict[str, float]:
    """A figure of each seed of a line: the seed's row -> its value; empty if the line is missing."""
    line = next((line for line in lines if line.name == name), None)
    if line is None:
        return {}
    found = {row.name.removeprefix(name): figure(line, number) for number, row in enumerate(line.rows)}
    return {seed: value for seed, value in found.items() if value is not None}


def findings(boards: Mapping[str, Summary], pool: str = "clean") -> Iterator[Finding]:
    """Claims about gradient norms, groups and costs, from the training runs behind a pool's boards."""
    difficulty = boards.get(board_of("large-difficulty", pool))
    if difficulty is not None:
        norms = {
            name: by_seed(difficulty.lines, f"{name} only", _norm) for name in ("easy", "medium", "hard")
        }
        for one, other in (("hard", "medium"), ("medium", "easy")):
            said = f"gradient norms are larger on {one} items than on {other} ones"
            yield from _present(over_seeds("Figure 6", said, _pairs(norms[one], norms[other])), pool)
    paradigms = boards.get(board_of("classification-paradigms", pool))
    if paradigms is not None:
        for unit, what in (("flops", "operations"), ("seconds", "wall-clock time")):
            cost = {name: by_seed(paradigms.lines, name, _cost(unit)) for name in ("GRPO", "SFT-EM")}
            said = f"GRPO takes more {what} than SFT-EM with its labeling"
            yield from _present(over_seeds("Figure 4", said, _pairs(cost["GRPO"], cost["SFT-EM"])), pool)
        idle = by_seed(paradigms.lines, "GRPO", _share("zero_advantage"))
        mixed = by_seed(paradigms.lines, "GRPO", _share("mixed"))
        said = "most prompts of a GRPO step have no advantage, so that it learns from the mixed ones alone"
        yield from _present(over_seeds("section 3", said, _pairs(idle, mixed), "points"), pool)


def _present(finding: Finding | None, pool: str) -> list[Finding]:
    return [] if finding is None else [replace(finding, pool=pool)]


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
    """A run's cost, labels included; None if a part of it is unknown."""

    def figure(line: Line, number: int) -> float | None:
        trainings = [part.training for part in line.rows[number].provenance if part.training is not None]
        if not trainings:
            return None
        try:
            run = lineage.read(trainings[0].folder, line.name)
        except HarnessError:  # merged, or made by another tool: its cost is unknown
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

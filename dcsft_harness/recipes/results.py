"""Output folders of recipes -> a page: each board's table and plots, and the verdict on each claim."""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from tabulate import tabulate

from dcsft_harness import reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.evaluation.cost import added, cost_of, read_run
from dcsft_harness.leaderboard.board import Board
from dcsft_harness.leaderboard.compare import compare, difference_of_rows, summarize
from dcsft_harness.leaderboard.load import load
from dcsft_harness.leaderboard.logs import Choices, is_run
from dcsft_harness.leaderboard.report.table import markdown_text, p_text, share
from dcsft_harness.leaderboard.stats import Estimate, holm
from dcsft_harness.leaderboard.summary import Line, Summary, overall
from dcsft_harness.recipes import shipped
from dcsft_harness.recipes.chain import STATE, state_of

# The paper's claims, stated before the run that decides them, each tested on a run of its recipes.
#
# A claim, a row of claims.csv, names a source, a board, the two lines that it compares, and a test. It is
# tested on each pool that the run has: the clean one, and the one with 6 % wrong labels. What is fixed
# beforehand:
#
#     superiority: one line is ahead of the other; tested two-sided against no difference.
#     match: "matches or beats"; non-inferiority, tested one-sided against a deficit of `MARGIN`.
#     Claims about other figures (gradient norms, shares, costs) compare one number per seed, by a t test.
#
# Seeds are paired, because those of one number share cold start and labels. A single seed gives no p-value
# and decides nothing.
#
# Verdicts, at 5 % of the corrected p-value:
#     supported: significant and in favor.
#     contradicted: significant and against; of a match, significantly worse by more than the margin.
#     not supported: a claim of superiority whose 95 % interval ends below the margin: the effect, if there is
#         any, is too small to matter.
#     inconclusive: anything else.
#
# Holm's correction covers all of the paper's claims on all pools; rules beyond the paper are a separate
# family, and so are claims about K responses per item.
#
# Source: Lu et al., CVPR 2026, arXiv 2602.10815; the tables and figures that each claim names.

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
            run = read_run(trainings[0].folder, line.name)
        except HarnessError:  # merged, or made by another tool: its cost is unknown
            return None
        if run.lost:
            return None
        total = added([run.training, *map(cost_of, run.labeling)])
        return None if unit in total.partial else total.values.get(unit)

    return figure


def _share(name: str) -> Figure:
    """The mean over steps of a share of prompts."""

    def figure(line: Line, number: int) -> float | None:
        shares = [row[name] for row in _history(line, number) if name in row]
        return mean(shares) if shares else None

    return figure


# The page.

TIME = "training-time"
"""The kind of a comparison of costs."""
COSTS, JUDGED = "costs.md", "claims.json"
BOARDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "difficulty": ("Table 1 and Figure 6: as many easy, medium or hard items", ("id_ood", "gradient_norms")),
    "paradigms": ("SFT, GRPO, SFT-M and SFT-EM", ("id_ood", "cost")),
    "curves": ("Figure 3: accuracy over the steps", ("steps",)),
    "hard-ratio": ("Figure 5: a growing share of hard items", ("hard_ratio",)),
    "full-parameters": ("Table 5: all parameters trained", ("id_ood",)),
    "arms": ("All arms side by side", ("id_ood",)),
    "rules": ("Beyond the paper: bands, weights, suspects", ("id_ood",)),
    "relabel": ("Beyond the paper: relabeling half-way", ("id_ood",)),
    "preferences": ("Beyond the paper: DPO from the same rollouts", ("id_ood",)),
    "test-time-8": ("Test-time scaling, k = 8: greedy, avg@k, maj@k and pass@k", ("over_k", "over_tokens")),
    "test-time-16": ("Test-time scaling, k = 16: greedy, avg@k, maj@k and pass@k", ("over_k", "over_caps")),
}
"""A board's kind, the suffix of its name -> what its section is about, and the plots to show."""
PARADIGMS = {
    "classification": "Table 2",
    "grounding": "Table 2",
    "qwen3": "Table 3, a second architecture",
    "large": "Table 4, a larger pool",
    "reasoning": "Table 6",
}
"""A family -> the paper's table of its paradigms."""


def write(runs: Sequence[Path], page: Path) -> dict[str, Any]:
    """Writes the page, with images and figures in a folder of the same name beside it.

    `runs` are output folders of `dcsft run`, of one scale; an older page is replaced. Returns the number of
    boards, and of claims by verdict.

    Raises:
        HarnessError: a folder is not a recipe's or has no finished board, two boards have the same name, or
            the images' folder holds other files.
    """
    where: dict[str, Path] = {}
    boards: dict[str, Summary] = {}
    for run in runs:
        found = read_boards(run)
        if twice := sorted(found.keys() & boards.keys()):
            raise HarnessError(f"{run} and {where[twice[0]]} both have {twice[0]}", "Leave one of them out")
        boards |= found
        where |= dict.fromkeys(found, run)
    findings = judge(boards)
    pictures = _pictures(page)
    parts = [_opening(runs), _held(findings), _claims(findings), _power(findings)]
    for name in sorted(boards, key=_place):
        parts.append(_board(name, boards[name], where[name] / name, pictures))
    costs = [path.parent for run in runs for path in run.glob(f"*/{COSTS}")]
    parts += [_costs(folder) for folder in sorted(costs, key=lambda folder: _place(folder.name))]
    page.write_text("\n".join(parts), encoding="utf-8")
    text = json.dumps([asdict(finding) for finding in findings], indent=2)
    (pictures / JUDGED).write_text(text + "\n", encoding="utf-8")
    verdicts = [finding.verdict for finding in findings]
    return {"boards": len(boards), **{name: verdicts.count(name) for name in dict.fromkeys(verdicts)}}


def _named(name: str) -> tuple[str, str, str]:
    """A board's kind, its family without the pool, and the pool: a key of `POOLS`."""
    kinds = [kind for kind in (*BOARDS, TIME) if name.endswith(f"-{kind}")]
    family, _, kind = name.partition("-") if not kinds else (name.removesuffix(f"-{kinds[0]}"), "", kinds[0])
    noisy = family.endswith(POOLS["noisy"])
    return kind, family.removesuffix(POOLS["noisy"]) if noisy else family, "noisy" if noisy else "clean"


def _place(name: str) -> tuple[int, str, bool]:
    """Boards in the order of `BOARDS`, the pools of each side by side."""
    kind, family, pool = _named(name)
    return list(BOARDS).index(kind) if kind in BOARDS else len(BOARDS), f"{kind} {family}", pool != "clean"


def _pictures(page: Path) -> Path:
    """An empty folder for a page's images and figures; removes those of an older page, but no other files."""
    folder = page.with_suffix("")
    if folder == page:
        raise HarnessError(f"--output {page} has no suffix", f"Write for example {page}.md")
    found = list(folder.iterdir()) if folder.is_dir() else []
    strange = [path.name for path in found if path.suffix != ".png" and path.name != JUDGED]
    if strange or folder.is_file():
        raise HarnessError(
            f"--output {page} would write its images to {folder}, which "
            f"{f'holds {min(strange)}' if strange else 'is a file'}",
            "Choose another name for the page",
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path in found:
        path.unlink()
    return folder


def read_boards(run: Path) -> dict[str, Summary]:
    """The finished leaderboards in a recipe's folder, rebuilt from their scores."""
    if not (run / STATE).is_file():
        raise HarnessError(
            f"{run} is not an output folder of `dcsft run`: it has no {STATE}"
            if run.exists()
            else f"{run} does not exist",
            "Check the path",
        )
    found = {}
    for folder in sorted(path.parent for path in run.glob(f"*/{manifest.NAME}")):
        made = manifest.read(folder)
        if made.kind != "leaderboard":
            continue
        found[folder.name] = summarize(_loaded(made), pairs=0)
    if not found:
        raise HarnessError(f"{run} has no finished leaderboard", "Run a recipe that ends in one")
    return found


def _loaded(made: manifest.Manifest) -> Board:
    """A leaderboard's results with its own settings: tasks' metrics and sides, rows' names."""
    places: list[Path] = []
    names: dict[str, str] = {}
    for role in (role for role in made.inputs if role.startswith("scores")):
        place = made.input_folder(role)
        if place.is_file() and not is_run(place):  # samples of a log, which its results file finds
            continue
        places.append(place)
        # See `build._inputs`: the row's name. In older boards only one that the user gave.
        if given := re.fullmatch(r"scores \d+ \((.*)\)", role.removesuffix(f": {place.name}"), re.DOTALL):
            names[str(place)] = given[1]
    config = made.config
    choices = Choices(config.get("metrics") or {}, config.get("distributions") or {}, config.get("at_k"))
    apart = bool(config.get("apart"))
    return load(places, config["baseline"], apart=apart, choices=choices, names=names)


def _opening(runs: Sequence[Path]) -> str:
    made = [manifest.read(path.parent) for run in runs for path in run.glob(f"*/{manifest.NAME}")]
    states = [state_of(run) for run in runs]
    scale, names = states[0]["scale"], {name for state in states for name in state["recipe"].split("+")}
    is_ours = names <= shipped().keys()
    versions: dict[str, dict[str, None]] = {}
    for one in made:
        for name, version in one.packages.items():
            versions.setdefault(name, {})[version] = None
    said = ", ".join(f"{name} {' and '.join(some)}" for name, some in versions.items())
    hardware = [f"{one.hardware.get('cores')} cores ({one.hardware.get('machine')})" for one in made]
    machines = " and ".join(dict.fromkeys(hardware))
    minutes = sum(one.seconds for one in made) / 60
    kinds = [one.kind for one in made]
    counts = ", ".join(
        f"{kinds.count(kind)} {kind}" for kind in ("rollouts", "adapter", "checkpoint", "scores")
    )
    return (
        f"# Results at scale {scale or 'of its own'}\n\n"
        f"Made by `dcsft results` from a run of {'the shipped recipes' if is_ours else 'your own recipe'}: "
        f"{len(made)} stages ({counts}) in {minutes:.0f} minutes of stage time, on {machines}.\n"
        f"{said}.\n\n"
        "Accuracies are percent, with 95 % intervals over items and seeds (the seed is a random effect)."
        + (
            " All SFT and GRPO trainings of a table take the same number of steps at the same learning rate, "
            "as in the paper."
            if is_ours
            else ""
        )
        + "\n"
    )


WORDS = {
    "supported": "Held",
    "contradicted": "Did not hold: significantly the other way",
    "not supported": f"Did not hold: any effect in favor is smaller than {100 * MARGIN:.0f} point",
    "inconclusive": "Open",
}
"""A verdict -> the heading of its claims."""
POOL_NAMES = {"clean": "clean pool", "noisy": "6 % wrong labels"}


def _held(findings: Sequence[Finding]) -> str:
    """Which of the claims held, which did not, and which are open, with the figures of each pool."""
    paper = [one for one in findings if one.source not in APART]
    several = _pools(findings) not in ([], ["clean"])
    counts = [
        (f"{POOL_NAMES[pool]}: " if several else "")
        + ", ".join(
            f"{sum(one.verdict == verdict for one in paper if one.pool == pool)} {verdict}"
            for verdict in WORDS
        )
        for pool in _pools(paper)
    ]
    said = "; ".join(counts) or "This run has no board for any of them"
    by_pool = " by pool" if several else ""
    parts = ["## What held and what did not\n", f"The paper's claims{by_pool}. {said}.\n"]
    for verdict, words in WORDS.items():
        lines = [
            f"- {one.source}: {markdown_text(one.said)}{_of_pool(one.pool, several)}: {_value(one)}."
            for one in findings
            if one.verdict == verdict
        ]
        parts += [f"**{words}**\n", *(lines or ["- None."]), ""]
    tested = {(one.source, one.said) for one in findings}
    missing = [one for one in CLAIMS if (one.source, one.said) not in tested]
    if missing:
        lines = [f"- {one.source}: {markdown_text(one.said)}." for one in missing]
        words = "Not tested: this run has no board for them, and Holm's correction leaves them out"
        parts += [f"**{words}**\n", *lines, ""]
    return "\n".join(parts)


def _pools(findings: Sequence[Finding]) -> list[str]:
    """The pools of some findings; the clean one alone needs no name."""
    return [pool for pool in POOLS if any(one.pool == pool for one in findings)]


def _of_pool(pool: str, several: bool) -> str:
    return f". {POOL_NAMES[pool].capitalize()}" if several else ""


def _claims(findings: Sequence[Finding]) -> str:
    pools = _pools(findings)
    rows: dict[tuple[str, str], dict[str, Finding]] = {}
    for one in findings:
        rows.setdefault((one.source, one.said), {})[one.pool] = one
    body = [
        [
            source,
            markdown_text(said),
            "match" if next(iter(found.values())).test == "match" else "ahead",
            *(cell for pool in pools for cell in _verdict(found.get(pool))),
            str(max(one.seeds for one in found.values())),
        ]
        for (source, said), found in rows.items()
    ]
    each = ["verdict", "in favor", "p"]
    named = each if pools == ["clean"] else [f"{POOL_NAMES[pool]}: {name}" for pool in pools for name in each]
    table = tabulate(
        body, headers=["source", "claim", "test", *named, "seeds"], tablefmt="pipe", disable_numparse=True
    )
    return (
        f"## Verdicts\n\n{table}\n\n"
        "- Supported: significant at 5 % and in favor of the claim. Contradicted: significant and against "
        f"it. Not supported: not significant, and the 95 % interval ends below {100 * MARGIN:.0f} point, "
        "which rules out an effect in favor that matters. Inconclusive: none of these.\n"
        f'- "Match" is non-inferiority: one-sided, against a deficit of {100 * MARGIN:.0f} point. '
        "It is contradicted where the interval lies below that.\n"
        "- Seeds are paired: those of one number share cold start and labels. One seed has no p-value.\n"
        f"- p is Holm-corrected over all of the paper's claims{' on both pools' if len(pools) > 1 else ''}; "
        "the rules beyond the paper are a family of their own, and so are the claims about K responses per "
        "item (test time). Uncorrected values are in claims.json beside the figures.\n"
        '- "beyond" marks rules that the paper does not have.\n'
    )


def _verdict(finding: Finding | None) -> list[str]:
    """The cells of a claim on one pool: verdict, figure, corrected p."""
    if finding is None:
        return ["not run", "", ""]
    return [f"**{finding.verdict}**", _value(finding), p_text(finding.p)]


def _power(findings: Sequence[Finding]) -> str:
    """How large a difference the run could find, from the widths of its intervals; empty with one seed."""
    from scipy.stats import nct, t

    tested = [one for one in findings if one.unit == "points" and one.seeds > 1 and one.alone is not None]
    known = [one for one in tested if one.source not in ("section 3", TEST_TIME)]
    widths = [
        (one.value.high - one.value.low) / 2
        for one in known
        if one.value and one.value.low is not None and one.value.high is not None
    ]
    if not widths:
        return ""
    half, free = median(widths), int(median(one.seeds for one in known)) - 1
    error = half / t.ppf(0.975, free)
    found = [
        float(
            nct.sf(t.ppf(0.975, free), free, size / error) + nct.cdf(-t.ppf(0.975, free), free, size / error)
        )
        for size in (0.01, 0.02, 0.03)
    ]
    match = float(nct.sf(t.ppf(0.95, free), free, MARGIN / error))
    said = " / ".join(f"{100 * one:.0f}" for one in found)
    return (
        "## Power\n\n"
        f"Half of a 95 % interval is {100 * half:.1f} points at the median of the claims about accuracy, by "
        f"{free + 1} seeds. A true difference of 1 / 2 / 3 points is then significant in {said} % of runs, "
        f"and an equal arm is shown to match within {100 * MARGIN:.0f} point in {100 * match:.0f} %, before "
        "Holm's correction.\n"
    )


def _value(finding: Finding) -> str:
    found = finding.value
    if found is None:
        return ""
    if finding.unit == "ratio":
        ends = "" if found.low is None else f" [{math.exp(found.low):.2f}, {math.exp(found.high or 0):.2f}]"
        return f"{math.exp(found.value):.2f} times{ends}"
    # "z" keeps a rounded zero from printing as -0.0.
    ends = "" if found.low is None else f" [{100 * found.low:+z.1f}, {100 * (found.high or 0):+z.1f}]"
    return f"{100 * found.value:+z.1f}{ends} points"


def _board(name: str, summary: Summary, folder: Path, pictures: Path) -> str:
    kind, family, pool = _named(name)
    lines = [line for line in summary.lines if line.group is None]
    body = [
        [markdown_text(line.name), *("" if one is None else share(one.accuracy) for one in line.entries)]
        for line in lines
    ]
    header = ["", *(f"{column.label} ({(column.distribution or '?').upper()})" for column in summary.columns)]
    table = tabulate(body, headers=header, tablefmt="pipe", disable_numparse=True)
    shown = []
    about, plots = BOARDS.get(kind, (kind or "The leaderboard", ()))
    for plot in plots:
        source = folder / "plots" / f"{plot}.png"
        if source.is_file():
            target = pictures / f"{name}-{plot}.png"
            shutil.copyfile(source, target)
            shown.append(f"![{name}, {plot}]({quote(f'{pictures.name}/{target.name}')})")
    kept = [remark for remark in summary.remarks if "the seed being a random effect" not in remark]
    notes = [f"- {markdown_text(remark)}." for remark in kept]
    seeds = max(len(line.rows) for line in lines)
    table_of = f"{PARADIGMS[family]}: " if kind == "paradigms" and family in PARADIGMS else ""
    counted = f"{seeds} seeds.\n" if seeds > 1 else "One seed.\n"
    named = family if pool == "clean" else f"{family}, {POOL_NAMES[pool]}"
    parts = [f"## {table_of}{about} ({named})\n", counted, f"{table}\n", *notes, *shown, ""]
    return "\n".join(parts)


def _costs(folder: Path) -> str:
    text = (folder / COSTS).read_text(encoding="utf-8")
    lines = [f"#{line}" if line.startswith("#") else line for line in text.splitlines()[1:]]
    # Readers do not have the original machine's folders.
    lines = [line.replace(f"{folder.parent}/", "") for line in lines]
    _, family, pool = _named(folder.name)
    named = family if pool == "clean" else f"{family}, {POOL_NAMES[pool]}"
    return "\n".join([f"## Figure 4: cost ({named})\n", *lines, ""])

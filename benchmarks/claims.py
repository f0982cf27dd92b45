"""Power and type I error of the claims' tests on the digits suite, by simulation.

    python -m benchmarks.claims                      # minutes on one core; prints JSON and a Markdown table
    python -m benchmarks.claims --rounds 200

Scores are simulated from variance components and go through the code that tests the claims of a real run:
`intervals.difference_of_seeds` and `claims.decided`. A paired difference of two arms on an item has

    difference = effect + seed + digit + drawing + seed x drawing

where seed is a random effect of the arm and seed, digit and drawing are the same for all seeds, and the rest
is whether this seed's model gets this image right. `components` measures them on a run's boards.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from dcsft_harness.leaderboard.stats import difference_of_seeds
from dcsft_harness.recipes.results import CLAIMS, LEVEL, MARGIN, POOLS, Claim, Finding, decided, over_seeds

Floats = NDArray[np.float64]
EFFECTS = (0.0, 0.01, 0.02, 0.03)
"""True differences in accuracy of the power table."""
FIGURES = 5
"""Claims per pool about gradient norms, groups and costs, one figure per seed; see `claims.findings`."""


@dataclass(frozen=True)
class Components:
    """Variances of a paired difference of two arms.

    The defaults are medians of the pairs of cold start, easy only and medium only in a run of recipe `core`
    (clean pool, ten seeds): items 0.057 to 0.078, drawings 1 to 9 %, digits 0.4 to 1.2 %, seeds 0.5 to 0.9
    points. Against hard only all of them are about twice as large.

    Attributes:
        item: of one item and seed, all but the seed's own; accuracy squared.
        drawing, digit: the shares of it that a picture and a real digit have whatever the seed.
        seed: standard deviation of the seeds' own effect; accuracy.
    """

    item: float = 0.07
    drawing: float = 0.07
    digit: float = 0.006
    seed: float = 0.0067


@dataclass(frozen=True)
class Design:
    """An evaluation.

    Attributes:
        name: for the table.
        tasks: per task, the numbers of real digits and of drawings of each.
        seeds: paired seeds.
    """

    name: str
    tasks: tuple[tuple[int, int], ...]
    seeds: int

    @property
    def clusters(self) -> list[NDArray[np.int64]]:
        """Per task, the code of each item's digit."""
        codes, start = [], 0
        for digits, drawings in self.tasks:
            codes.append(start + np.arange(digits * drawings) % digits)
            start += digits
        return codes

    @property
    def items(self) -> int:
        """The number of items."""
        return sum(digits * drawings for digits, drawings in self.tasks)


FORMER = Design("620 items, 5 seeds", ((300, 1), (80, 4)), 5)
CORE = Design("1,860 items, 10 seeds", ((300, 3), (80, 12)), 10)
DESIGNS = (FORMER, Design("1,860 items, 5 seeds", CORE.tasks, 5), CORE)


def arm(
    rng: np.random.Generator, design: Design, parts: Components, share: float = 0.5
) -> list[list[Floats]]:
    """One arm's deviations from what all arms share; a paired difference has two of them.

    Args:
        rng: the only source of randomness.
        design: the evaluation.
        parts: the variances of a difference.
        share: this arm's share of them.
    """
    item = share * parts.item
    own = rng.normal(0, parts.seed * share**0.5, design.seeds)
    found: list[list[Floats]] = [[] for _ in own]
    for digits, drawings in design.tasks:
        count = digits * drawings
        of_digit = rng.normal(0, (parts.digit * item) ** 0.5, digits)[np.arange(count) % digits]
        fixed = of_digit + rng.normal(0, (parts.drawing * item) ** 0.5, count)
        changes = (1 - parts.drawing - parts.digit) * item  # the share of items on which seeds disagree
        for seed, mean in enumerate(own):
            drawn = rng.random(count)
            found[seed].append(fixed + mean + (drawn < changes / 2) - (drawn > 1 - changes / 2))
    return found


def tested(
    ours: Sequence[Sequence[Floats]],
    theirs: Sequence[Sequence[Floats]],
    design: Design,
    effect: float,
    test: str,
    source: str = "Table 2",
) -> Finding:
    """A claim's finding, as `claims.judge` makes it, where the true difference is `effect`."""
    null = -MARGIN if test == "match" else 0.0
    moved = [[task + effect for task in seed] for seed in ours]
    pair = difference_of_seeds(moved, theirs, design.clusters, paired=True, null=null)
    assert pair is not None
    value, p = pair
    if test == "match" and p is not None:
        p = p / 2 if value.value > null else 1 - p / 2
    return Finding(source, "", "", value, None, "points", design.seeds, p, test=test)  # type: ignore[arg-type]


def power(design: Design, parts: Components, rounds: int, seed: int, family: int) -> dict[str, object]:
    """How often true effects are found.

    Args:
        design: the evaluation.
        parts: the variances.
        rounds: simulated runs.
        seed: of the simulation.
        family: the number of claims that Holm's correction covers; its strictest step is LEVEL / family.

    Returns:
        The mean half width of a 95 % interval, and by effect the share of runs with p below LEVEL, alone and
        at the strictest step of Holm's correction; the same of a match whose true difference is 0.
    """
    rng = np.random.default_rng([seed, design.items, design.seeds])
    halves: list[float] = []
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        ours, theirs = arm(rng, design, parts), arm(rng, design, parts)
        for effect in EFFECTS:
            one = tested(ours, theirs, design, effect, "superiority")
            assert one.value is not None and one.value.high is not None and one.alone is not None
            halves.append(one.value.high - one.value.value)
            wrong = one.value.value < 0 and effect > 0
            found.setdefault(f"{100 * effect:g} points", []).append(1.0 if wrong else one.alone)
        match = tested(ours, theirs, design, 0.0, "match").alone
        found.setdefault("match", []).append(1.0 if match is None else match)
    return {
        "half_width": float(np.mean(halves)),
        "alone": {name: float(np.mean(np.array(p) < LEVEL)) for name, p in found.items()},
        "corrected": {name: float(np.mean(np.array(p) < LEVEL / family)) for name, p in found.items()},
    }


def papers(claims: Sequence[Claim] = CLAIMS) -> list[Claim]:
    """The paper's claims about classification, which recipe `core` tests on each pool."""
    boards = ("classification-paradigms", "classification-hard-ratio", "large-difficulty")
    return [one for one in claims if one.source.startswith(("Table", "Figure")) and one.board in boards]


def family_size() -> int:
    """The number of claims that Holm's correction covers in recipe `core`."""
    return len(POOLS) * (len(papers()) + FIGURES)


def untrue(rng: np.random.Generator, design: Design, parts: Components) -> Iterator[Finding]:
    """The findings of a run of `core` in which no claim is true: each is at the edge of its null hypothesis.

    The arms of a pool are shared by its claims, and its cold start by its boards, as in a run.

    Args:
        rng: the only source of randomness.
        design: the evaluation; in distribution it is taken as large.
        parts: the variances.
    """
    for pool in POOLS:
        arms: dict[tuple[str, str], list[list[Floats]]] = {}
        for claim in papers():
            sides = []
            for row in (claim.row, claim.other):
                board = "" if row == "cold start" else claim.board
                key = (f"{board} {claim.distribution}", row)
                if key not in arms:
                    arms[key] = arm(rng, design, parts)
                sides.append(arms[key])
            effect = 0.0 if claim.test == "superiority" else -MARGIN
            yield tested(sides[0], sides[1], design, effect, claim.test, claim.source)
        for _ in range(FIGURES):
            pairs = [
                (float(one), float(other)) for one, other in np.exp(rng.normal(0, 0.1, (design.seeds, 2)))
            ]
            figure = over_seeds("Figure 4", pool, pairs)
            assert figure is not None
            yield figure


def errors(design: Design, parts: Components, rounds: int, seed: int) -> dict[str, float]:
    """The share of runs with an error, where no claim is true.

    Returns:
        decided: a claim is wrongly supported, or a superiority contradicted, after Holm's correction.
        match_contradicted: a match at the margin is called worse than that. This verdict and "not supported"
            go by the 95 % interval, uncorrected: each is wrong in at most 2.5 % of runs.
    """
    rng = np.random.default_rng([seed, 1, design.items])
    wrong = {("supported", "superiority"), ("contradicted", "superiority"), ("supported", "match")}
    counts = {"decided": 0, "match_contradicted": 0}
    for _ in range(rounds):
        found = {(one.verdict, one.test) for one in decided(list(untrue(rng, design, parts)))}
        counts["decided"] += bool(found & wrong)
        counts["match_contradicted"] += ("contradicted", "match") in found
    return {name: count / rounds for name, count in counts.items()}


def components(
    differences: Sequence[NDArray[np.float64]], clusters: Sequence[NDArray[np.int64]]
) -> Components:
    """Variance components of two arms' paired differences, by the method of moments.

    Args:
        differences: per task, shape (seeds, items), in [-1, 1].
        clusters: per task, shape (items,), equal codes for drawings of one digit.

    Returns:
        Those of `Components`, means over tasks; a negative estimate is 0.
    """
    parts = []
    for values, codes in zip(differences, clusters, strict=True):
        seeds, items = values.shape
        means = values.mean(axis=1, keepdims=True)
        left = values - means  # without the seeds' own means
        of_item = left.mean(axis=0)
        rest = float(((left - of_item) ** 2).sum() / ((seeds - 1) * (items - 1)))
        between = float(of_item.var(ddof=1)) - rest / seeds  # digit and drawing together
        # Products of pairs of drawings of one digit estimate the digit's part alone.
        sums, squares = np.bincount(codes, of_item), np.bincount(codes, of_item**2)
        pairs = float((np.bincount(codes) * (np.bincount(codes) - 1)).sum())
        digit = float((sums**2 - squares).sum()) / pairs if pairs else 0.0
        own = float(means.var(ddof=1)) - rest / items
        parts.append((rest, max(0.0, between - max(0.0, digit)), max(0.0, digit), max(0.0, own)))
    rest, drawing, digit, own = (float(np.mean(part)) for part in zip(*parts, strict=True))
    item = rest + drawing + digit
    return Components(item, drawing / item, digit / item, own**0.5)


def main() -> None:
    """Simulates, and prints a table and JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    parts, family = Components(), family_size()
    made = {design.name: power(design, parts, given.rounds, given.seed, family) for design in DESIGNS}
    header = ["design", "half width", *(f"{100 * one:g}" for one in EFFECTS), "match"]
    body = []
    for name, one in made.items():
        cells = [
            f"{100 * alone:.0f} / {100 * corrected:.0f}"
            for alone, corrected in zip(one["alone"].values(), one["corrected"].values(), strict=True)  # type: ignore[attr-defined]
        ]
        body.append([name, f"{100 * one['half_width']:.1f}", *cells])  # type: ignore[operator]
    print(tabulate(body, headers=header, tablefmt="pipe", disable_numparse=True))
    found = errors(CORE, parts, given.rounds, given.seed)
    print(json.dumps({"components": asdict(parts), "family": family, "errors": found, "power": made}))


if __name__ == "__main__":
    main()

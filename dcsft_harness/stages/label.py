"""`dcsft label`: Label every item easy, medium or hard: rollouts -> labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsft_harness.settings import Settings, option
from dcsft_harness.stages.stage import Notes, Progress, Stage, counted, difficulties, percent


class LabelOptions(Settings):
    """What to label."""

    rollouts: Path = option(about="The rollouts.", positional=True, reads="artifact")


def run(options: LabelOptions, output: Path, progress: Progress | None) -> Notes:
    """Labels."""
    from dcsft_harness.curation import labels

    return labels.label(options.rollouts, output)


def summary(notes: Mapping[str, Any]) -> str:
    """How many items of each difficulty there are."""
    words = {"unlabelled": "unlabelled", "censored": "settled early, without a pass rate"}
    return ", ".join([difficulties(notes), *counted(notes, words)])


def at_fewer_samples(notes: Mapping[str, Any]) -> str:
    """A table for a terminal: pass@g and shares of difficulties at g = 1, 2, 4, ... responses per item."""
    found = notes.get("at_g")
    if not found:
        return ""
    chosen = sorted({len(found), *(1 << power for power in range(len(found).bit_length()))})
    lines = [f"{'g':>4} {'pass@g':>8} {'easy':>8} {'medium':>8} {'hard':>8}"]
    for g in chosen:
        shares = (found[g - 1][name] for name in ("pass", "easy", "medium", "hard"))
        lines.append(f"{g:>4} " + " ".join(f"{percent(share):>8}" for share in shares))
    return "\n".join(["Labels of g of the responses, expected:", *lines, ""])


STAGE = Stage(
    verb="label",
    options=LabelOptions,
    run=run,
    summary=summary,
    writes="labels",
    about="Prints pass@g of the pool, and what labels of fewer responses would be, over all subsets of g.",
    example="dcsft label rollouts --output labels",
    show=at_fewer_samples,
    then="dcsft curate {output} --keep easy,medium --output curated",
)

"""`dcsft label`: Label every item easy, medium or hard: rollouts -> labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsft_harness.settings import Settings, option
from dcsft_harness.stages.stage import Notes, Progress, Stage, counted, difficulties


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


STAGE = Stage(
    verb="label",
    options=LabelOptions,
    run=run,
    summary=summary,
    writes="labels",
    example="dcsft label rollouts --output labels",
    then="dcsft curate {output} --keep easy,medium --output curated",
)

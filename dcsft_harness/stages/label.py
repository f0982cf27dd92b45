"""`dcsft label`: Label every item easy, medium or hard: rollouts -> labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import ScorerName
from dcsft_harness.settings import Settings, option
from dcsft_harness.stages.stage import (
    Notes,
    Progress,
    Stage,
    counted,
    difficulties,
    figure_paths,
    percent,
    with_paths,
)


class LabelOptions(Settings):
    """What to label."""

    rollouts: Path = option(
        about="The rollouts; or one run of `lmms-eval -n G --log_samples`, as FOLDER or FOLDER/RUN.",
        positional=True,
        reads="artifact",
    )
    task: str | None = option(None, "Of a log with several tasks: the one to label.")
    scorer: ScorerName | None = option(
        None, "Of a log: score responses with this against the logged gold; by default the task scores them."
    )
    box_space: Literal["pixel", "norm1000", "resized"] | None = option(
        None, "Of a log: the coordinates of boxes in the responses."
    )


def run(options: LabelOptions, output: Path, progress: Progress | None) -> Notes:
    """Labels."""
    from dcsft_harness.artifacts import manifest
    from dcsft_harness.curation import labels

    given = options.task, options.scorer, options.box_space
    rollouts, logged = options.rollouts, False
    if not (rollouts / manifest.NAME).is_file():
        from dcsft_harness.evaluation import responses

        logged = responses.holds_logs(rollouts)
    if logged:
        rollouts = output.with_name(f"{output.name}-rollouts")
        responses.rollouts_of_logs(options.rollouts, rollouts, *given)
    elif any(given):
        raise HarnessError(
            f"--task, --scorer and --box-space are of logs of lmms-eval, and {rollouts} holds none",
            "Leave them out, or check the path",
        )
    return with_paths(labels.label(rollouts, output), output)


def summary(notes: Mapping[str, Any]) -> str:
    """The number of items of each difficulty."""
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
    example="""dcsft label rollouts --output labels
dcsft label lmms-eval-output --output labels""",
    about="Prints pass@g of the pool, and what labels of fewer responses would be, over all subsets of g."
    " Every response in a run of `lmms-eval -n G --reasoning_tags none --log_samples` is scored again:"
    " its log has the first one's score alone. The scored responses go into the folder OUTPUT-rollouts.",
    show=at_fewer_samples,
    remarks=figure_paths,
    then="dcsft curate {output} --keep easy,medium --output curated",
    light=(0.21e9, 0.0),
)

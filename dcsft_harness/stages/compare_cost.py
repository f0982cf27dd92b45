"""`dcsft compare-cost`: Compare the cost of training runs, labels included."""

from pathlib import Path

from dcsft_harness.settings import Settings, option
from dcsft_harness.stages.stage import Notes, Progress, Stage


class CompareCostOptions(Settings):
    """What to compare."""

    artefacts: tuple[Path, ...] = option(
        about="Adapters and checkpoints of `dcsft train`.",
        positional=True,
        metavar="ARTIFACTS",
        reads="artifact",
        min_length=1,
    )
    scores: tuple[Path, ...] = option(
        (), "Scores of one of them, or of a checkpoint inside it.", repeated=True, reads="artifact"
    )
    baseline: str | None = option(None, "The run that ratios refer to; by default the first.")


def run(options: CompareCostOptions, output: Path | None, progress: Progress | None) -> Notes:
    """Compares; without an output nothing is written."""
    from dcsft_harness.evaluation import cost_report

    made = cost_report.build(list(options.artefacts), output, list(options.scores), options.baseline)
    return {"table": cost_report.markdown(made), "rows": len(made.runs)}


STAGE = Stage(
    verb="compare-cost",
    options=CompareCostOptions,
    run=run,
    summary=lambda notes: f"{notes['rows']} runs",
    writes="cost comparison",
    shows=True,
    about="Also shows each run at the budget of the cheapest one, in samples, tokens and time.",
    example="dcsft compare-cost sft grpo --scores scores-sft --scores scores-grpo",
    show=lambda notes: str(notes["table"]),
    light=(0.2e9, 0.1),
)

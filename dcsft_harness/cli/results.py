"""`dcsft evaluate`, `dcsft leaderboard` and `dcsft compare-cost`: from an adapter to a table."""

from pathlib import Path
from typing import Any

import click

from dcsft_harness.cli.running import run_stage, show_table
from dcsft_harness.cli.sources import data_root

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--model", default="dcsft_hf", show_default=True, help="An lmms-eval model.")
@click.option(
    "--model-args", default="", metavar="K=V,...", help="Its arguments: pretrained=CKPT,adapter=DIR,..."
)
@click.option("--tasks", required=True, help="lmms-eval tasks, groups or tags, comma-separated.")
@click.option("--name", help="The row's name in a leaderboard; default the output folder's name.")
@click.option("--limit", type=int, help="Only the first documents of each task.")
@data_root
@click.option("--output", type=FOLDER, required=True)
def evaluate(tasks: str, output: Path, **options: Any) -> None:  # noqa: ANN401 - click hands over what the options say
    """Score a checkpoint, item by item: adapter -> scores.

    \b
    dcsft evaluate --model-args pretrained=CKPT,adapter=DIR,batch_size=8 \\
        --tasks dcsft_digits,dcsft_digits_r,dcsft_digits_a --output scores
    """  # noqa: D301 - click reads the \b
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    run_stage("evaluate", output, {"tasks": names, **options})


@click.group()
def leaderboard() -> None:
    """Compare checkpoints: scores -> leaderboard."""


@leaderboard.command()
@click.argument("results", type=FOLDER, nargs=-1, required=True)
@click.option("--baseline", help="The row that differences are taken to.")
@click.option("--output", type=FOLDER, required=True)
def build(results: tuple[Path, ...], baseline: str | None, output: Path) -> None:
    """Build the table from folders of scores, as Markdown and CSV."""
    notes = run_stage("leaderboard build", output, {"results": list(results), "baseline": baseline})
    show_table(notes)


@click.command("compare-cost")
@click.argument("artefacts", type=FOLDER, nargs=-1, required=True)
@click.option(
    "--scores",
    type=FOLDER,
    multiple=True,
    help="A folder of scores of one of them, or of a checkpoint inside it; repeat it.",
)
@click.option("--baseline", help="The run that ratios are taken to; default the first.")
@click.option("--output", type=FOLDER, help="Also write it there, as Markdown, CSV and JSON.")
def compare_cost(
    artefacts: tuple[Path, ...], scores: tuple[Path, ...], baseline: str | None, output: Path | None
) -> None:
    """Say what trainings cost side by side, with the drawing that their labels came from.

    ARTEFACTS are adapters and checkpoints of `dcsft train`. Shown as well: where each run stood when the
    cheapest had ended, in samples, tokens and time.

    \b
    dcsft compare-cost sft dc-sft grpo --scores scores-sft --scores scores-dc-sft --scores scores-grpo
    """  # noqa: D301 - click reads the \b
    if output is not None:
        options = {"artefacts": list(artefacts), "scores": list(scores), "baseline": baseline}
        show_table(run_stage("compare-cost", output, options))
        return
    from dcsft_harness import costs

    show_table({"table": costs.markdown(costs.build(artefacts, None, scores, baseline))})


commands = (evaluate, leaderboard, compare_cost)

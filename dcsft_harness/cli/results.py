"""`dcsft evaluate`, `dcsft leaderboard` and `dcsft compare-cost`: from an adapter to a table."""

from pathlib import Path
from typing import Any

import click

from dcsft_harness.cli.running import run_stage, show_table
from dcsft_harness.cli.sources import data_root
from dcsft_harness.errors import HarnessError

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--model", default="dcsft_hf", show_default=True, help="An lmms-eval model.")
@click.option(
    "--model-args", default="", metavar="K=V,...", help="Its arguments: pretrained=CKPT,adapter=DIR,..."
)
@click.option("--tasks", required=True, help="lmms-eval tasks, groups or tags, comma-separated.")
@click.option("--name", help="The row's name in a leaderboard; default the output folder's name.")
@click.option(
    "--group",
    help="The configuration that this is one seed of; default: as a name like 'SFT (seed 1)' says.",
)
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
@click.option("--baseline", metavar="NAME", help="The row, or group of seeds, that differences are taken to.")
@click.option("--strict", is_flag=True, help="Fail if one folder cannot be used; else it is left out.")
@click.option("--apart", is_flag=True, help="Give rows that cannot be compared tables of their own.")
@click.option("--published", is_flag=True, help="Quote the paper's figures beside the board.")
@click.option(
    "--pairs", type=int, default=20, show_default=True, help="Test every pair of rows up to so many rows."
)
@click.option("--id", "own", metavar="TASK,...", default="", help="Tasks of others that are in distribution.")
@click.option("--ood", metavar="TASK,...", default="", help="Tasks of others that are out of distribution.")
@click.option(
    "--metric", "metrics", metavar="TASK=NAME", multiple=True, help="The metric of a log that is its score."
)
@click.option(
    "--labels", type=FOLDER, multiple=True, help="Labels of the evaluated items, for accuracy by difficulty."
)
@click.option("--items/--no-items", default=True, help="Write the Parquet file of all items.")
@click.option("--plots/--no-plots", default=True, help="Draw plots.")
@click.option("--page/--no-page", default=True, help="Make the page, page/index.html.")
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of how many items a task the page shows prompt and pictures; their tasks are opened for it.",
)
@click.option(
    "--rollouts",
    type=FOLDER,
    multiple=True,
    help="Rollouts of which the page shows so many items, all responses.",
)
@click.option("--output", type=FOLDER, required=True)
def build(output: Path, own: str, ood: str, metrics: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401
    """Compare folders of `dcsft evaluate` and of `lmms-eval --log_samples`.

    \b
    dcsft leaderboard build base SFT=out/logs --baseline base --output board
    """  # noqa: D301 - click reads the \b
    told = {"distributions": _distributions(own, ood), "metrics": _metrics(metrics)}
    notes = run_stage("leaderboard build", output, {**options, **told})
    show_table(notes)
    for reason in notes["left_out"]:
        click.echo(f"dcsft: left out: {reason}", err=True)


@leaderboard.command()
@click.argument("board", type=FOLDER)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."
)
def serve(board: Path, port: int) -> None:
    """Show a leaderboard's page at an address of this machine; page/index.html opens without it too.

    \b
    dcsft leaderboard serve board
    """  # noqa: D301 - click reads the \b
    from dcsft_harness.leaderboard.serve import HOST, server

    with server(board, port) as running:
        click.echo(f"http://{HOST}:{running.server_port}/ until Ctrl-C")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            click.echo("")


def _distributions(own: str, ood: str) -> dict[str, str]:
    """Task -> "id" or "ood".

    Raises:
        HarnessError: a task is said to be both.
    """
    found: dict[str, str] = {}
    for kind, names in (("id", own), ("ood", ood)):
        for task in filter(None, (name.strip() for name in names.split(","))):
            if found.setdefault(task, kind) != kind:
                raise HarnessError(f"--id and --ood both name {task}", "Name it in one of them")
    return found


def _metrics(given: tuple[str, ...]) -> dict[str, str]:
    """Task -> metric.

    Raises:
        HarnessError: one is not of the form TASK=NAME.
    """
    found = {}
    for one in given:
        task, sign, name = one.partition("=")
        if not (task and sign and name):
            raise HarnessError(f"--metric {one} is not of the form TASK=NAME", "As in --metric vqa=f1")
        found[task] = name
    return found


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

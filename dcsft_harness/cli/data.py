"""`dcsft sample`, `label` and `curate`: from a pool to a curated set."""

from pathlib import Path
from typing import Any

import click

from dcsft_harness.cli.running import run_stage
from dcsft_harness.cli.sources import data_root
from dcsft_harness.errors import HarnessError

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--model", default="dcsft_hf", show_default=True, help="An lmms-eval model.")
@click.option(
    "--model-args", default="", metavar="K=V,...", help="Its arguments: pretrained=CKPT,adapter=DIR,..."
)
@click.option("--task", help="The pool: any lmms-eval task.")
@click.option("--data", type=FILE, help="Or a JSONL file of your own.")
@click.option("--scorer", help="With --data: exact_word, box_iou, choice or math.")
@click.option("--image-root", type=FOLDER, help="With --data: where relative image paths start.")
@click.option("--samples", default=8, show_default=True, help="G, responses per item.")
@click.option("--temperature", default=0.9, show_default=True)
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--top-k", default=50, show_default=True, help="0 keeps all tokens.")
@click.option("--max-new-tokens", type=int, help="Default: the task's own.")
@click.option("--seed", default=0, show_default=True)
@click.option("--limit", type=int, help="Only the first items.")
@click.option(
    "--stop-when-labelled", is_flag=True, help="No more draws for an item with one right and one wrong."
)
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What an unreadable image does: skip records its item as unscored.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: in actors of the cluster that RAY_ADDRESS names, or of one on this machine.",
)
@click.option(
    "--actors", type=int, help="With --engine ray: how many; default one a GPU, or a CPU without GPUs."
)
@data_root
@click.option("--output", type=FOLDER, required=True)
def sample(output: Path, **options: Any) -> None:  # noqa: ANN401 - click hands over what the options say
    """Sample G responses per item of a pool: pool -> rollouts.

    What is finished is on the disk at once: after an interruption the same command goes on.

    \b
    dcsft sample --model-args pretrained=digits --task dcsft_digits_pool --output rollouts
    dcsft sample --model-args pretrained=CKPT --data mine.jsonl --scorer exact_word --output rollouts
    """  # noqa: D301 - click reads the \b
    run_stage("sample", output, options)


@click.command()
@click.argument("rollouts", type=FOLDER)
@click.option("--output", type=FOLDER, required=True)
def label(rollouts: Path, output: Path) -> None:
    """Label every item easy, medium or hard: rollouts -> labels."""
    run_stage("label", output, {"rollouts": rollouts})


@click.command()
@click.argument("labels", type=FOLDER)
@click.option("--keep", help="Difficulties to keep, comma-separated: easy,medium.")
@click.option("--band", metavar="LOW,HIGH", help="Or pass rates to keep, both ends included: 0.1,0.9.")
@click.option("--mix", multiple=True, metavar="NAME=SHARE", help="A share of another difficulty: hard=0.05.")
@click.option("--size", type=int, help="Items in the curated set; default all that qualify.")
@click.option(
    "--weight",
    type=click.Choice(["p(1-p)", "posterior"]),
    help="Adds a column weight: p(1-p) of the pass rate, or its mean under the Jeffreys posterior.",
)
@click.option(
    "--suspect",
    type=float,
    is_flag=False,
    flag_value=0.75,
    metavar="[SHARE]",
    help="Leave out what was never solved and got one answer in this share of its samples, 0.75 if none is"
    " given; and list it in suspects.jsonl.",
)
@click.option("--reviewed", type=FILE, help="A suspects.jsonl whose verdicts say keep or drop.")
@click.option("--exclude", type=FOLDER, help="An overlap folder: its items are left out.")
@click.option("--seed", default=0, show_default=True)
@click.option("--output", type=FOLDER, required=True)
def curate(labels: Path, keep: str | None, mix: tuple[str, ...], output: Path, **options: Any) -> None:  # noqa: ANN401
    """Choose what to train on: labels -> curated set.

    \b
    dcsft curate labels --keep easy,medium --output curated
    dcsft curate labels --keep easy,medium --mix hard=0.05 --size 500 --output curated
    dcsft curate labels --band 0.1,0.9 --output curated
    dcsft curate labels --weight "p(1-p)" --output curated
    dcsft curate labels --keep easy,medium,hard --suspect 0.75 --output curated
    """  # noqa: D301 - click reads the \b
    names = [name.strip() for name in (keep or "").split(",") if name.strip()]
    if keep is not None and not names:
        raise HarnessError("--keep names no difficulty", "Choose from easy, medium, hard")
    run_stage("curate", output, {"labels": labels, "keep": names, "mix": list(mix), **options})


commands = (sample, label, curate)

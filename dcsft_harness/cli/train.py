"""`dcsft train` and `dcsft merge`: from a curated set to an adapter."""

from pathlib import Path
from typing import Any

import click

from dcsft_harness.cli.running import run_stage

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group()
def train() -> None:
    """Train with TRL and PEFT: curated set -> adapter."""


def _shared(function: Any) -> Any:  # noqa: ANN401 - a click decorator
    """The options that both trainers have; unset ones leave the paper's defaults in force."""
    for decorate in (
        click.option("--output", type=FOLDER, required=True),
        click.option("--seed", type=int, help="Data order and initial weights.  [default: 0]"),
        click.option(
            "--dtype", help="float32, bfloat16 or auto: bfloat16 on CUDA, else float32.  [default: auto]"
        ),
        click.option("--max-pixels", type=int, help="Largest area of an image in pixels.  [default: 802816]"),
        click.option("--min-pixels", type=int, help="Least area of an image in pixels."),
        click.option(
            "--micro-batch-size", type=int, help="Conversations a forward pass.  [default: the batch]"
        ),
        click.option("--batch-size", type=int, help="Conversations a step.  [default: 16]"),
        click.option("--learning-rate", type=float, help="Peak, after a warm-up of 0.1.  [default: 1e-5]"),
        click.option(
            "--data", required=True, help="A curated set's folder, or a task whose documents to use."
        ),
        click.option("--model", required=True, help="The checkpoint to train; 'digits' is the embedded one."),
    ):
        function = decorate(function)
    return function


@train.command("cold-start")
@_shared
@click.option("--epochs", type=float, help="Passes over the data.  [default: 1]")
def cold_start(output: Path, **options: Any) -> None:
    """Train all parameters on a cold-start split.

    \b
    dcsft train cold-start --model digits --data dcsft_digits_cold --learning-rate 3e-4 --output cold
    """
    run_stage("train cold-start", output, {k: v for k, v in options.items() if v is not None})


@train.command("sft")
@_shared
@click.option("--steps", type=int, help="Optimizer steps.  [default: 600]")
@click.option("--lora-rank", type=int, help="[default: 32]")
@click.option("--lora-alpha", type=float, help="[default: 64]")
@click.option("--lora-dropout", type=float, help="[default: 0.05]")
@click.option("--lora-target", help="all, language, vision, or a regular expression.  [default: all]")
def sft(output: Path, **options: Any) -> None:
    """Train a LoRA adapter on a curated set.

    \b
    dcsft train sft --model cold --data curated --learning-rate 1e-3 --steps 100 --output adapter
    """
    run_stage("train sft", output, {k: v for k, v in options.items() if v is not None})


commands = (train,)

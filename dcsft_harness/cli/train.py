"""`dcsft train`: from a curated set to an adapter; the options are the fields of the training configs."""

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from dcsft_harness.cli.running import run_stage
from dcsft_harness.errors import HarnessError
from dcsft_harness.training.config import ColdStartConfig, SftConfig, TrainingConfig

FOLDER = click.Path(path_type=Path, file_okay=False)
Command = Callable[..., Any]


def _helps(config: type[TrainingConfig]) -> dict[str, str]:
    """Field name -> what the classes' docstrings say of it."""
    found: dict[str, str] = {}
    for kind in (TrainingConfig, config):
        section = (kind.__doc__ or "").partition("Attributes:")[2]
        for name, text in re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", section, re.MULTILINE):
            if not text.startswith("see `"):
                found[name] = re.sub(r"\s+", " ", text).replace("`", "")
    return found


def options_of(config: type[TrainingConfig]) -> Callable[[Command], Command]:
    """One click option per field, so that names, defaults and meanings stand in one place."""
    helps = _helps(config)

    def decorate(command: Command) -> Command:
        for field in reversed(fields(config)):
            if field.name == "extra":
                continue
            default = "" if field.default is None else f"  [default: {field.default}]"
            flag = "--" + field.name.replace("_", "-")
            command = click.option(flag, field.name, help=helps.get(field.name, "") + default)(command)
        text = "An argument of trl.SFTConfig, as TRL calls it."
        return click.option("--set", "trl", multiple=True, metavar="NAME=VALUE", help=text)(command)

    return decorate


def _shared(command: Command) -> Command:
    for option in (
        click.option("--output", type=FOLDER, required=True),
        click.option(
            "--data", required=True, help="A curated set's folder, or a task whose documents to use."
        ),
        click.option("--model", required=True, help="The checkpoint to train; 'digits' is the embedded one."),
    ):
        command = option(command)
    return command


def _given(options: dict[str, Any], trl: tuple[str, ...]) -> dict[str, Any]:
    """The options that were set; the rest keep the configuration's defaults."""
    import yaml

    extra = {}
    for text in trl:
        name, sign, value = text.partition("=")
        if not sign:
            raise HarnessError(
                f"--set {text!r} is not name=value", "Write for example --set neftune_noise_alpha=5"
            )
        extra[name] = yaml.safe_load(value)
    return {name: value for name, value in options.items() if value is not None} | (
        {"extra": extra} if extra else {}
    )


@click.group()
def train() -> None:
    """Train with TRL and PEFT: curated set -> adapter."""


@train.command("cold-start")
@_shared
@options_of(ColdStartConfig)
def cold_start(output: Path, trl: tuple[str, ...], **options: str | None) -> None:
    """Train all parameters on a cold-start split.

    \b
    dcsft train cold-start --model digits --data dcsft_digits_cold --learning-rate 3e-4 --output cold
    """  # noqa: D301 - click reads the \b
    run_stage("train cold-start", output, _given(options, trl))


@train.command("sft")
@_shared
@options_of(SftConfig)
def sft(output: Path, trl: tuple[str, ...], **options: str | None) -> None:
    """Train a LoRA adapter on a curated set.

    \b
    dcsft train sft --model cold --data curated --learning-rate 1e-3 --max-steps 100 --output adapter
    """  # noqa: D301 - click reads the \b
    run_stage("train sft", output, _given(options, trl))


commands = (train,)

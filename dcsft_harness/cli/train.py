"""`dcsft train`: from a curated set to an adapter; the options are the fields of the training configs."""

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from dcsft_harness.cli.adapters import hub_options, pushing
from dcsft_harness.cli.running import run_stage
from dcsft_harness.errors import HarnessError
from dcsft_harness.training.config import (
    AdapterConfig,
    ColdStartConfig,
    GrpoConfig,
    SftConfig,
    TrainingConfig,
)

FOLDER = click.Path(path_type=Path, file_okay=False)
LAUNCH = ("num_processes", "launch")
Command = Callable[..., Any]


def _helps(config: type[TrainingConfig]) -> dict[str, str]:
    """Field name -> what the classes' docstrings say of it."""
    found: dict[str, str] = {}
    for kind in (TrainingConfig, AdapterConfig, config):
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
            flag = "--" + field.name.replace("_", "-")
            if isinstance(field.default, bool):
                command = click.option(flag, field.name, is_flag=True, default=None, help=helps[field.name])(
                    command
                )
                continue
            default = "" if field.default is None else f"  [default: {field.default}]"
            command = click.option(flag, field.name, help=helps.get(field.name, "") + default)(command)
        text = f"An argument of trl.{'GRPO' if config is GrpoConfig else 'SFT'}Config, as TRL calls it."
        return click.option("--set", "trl", multiple=True, metavar="NAME=VALUE", help=text)(command)

    return decorate


def _shared(command: Command) -> Command:
    command = hub_options(command)
    for option in (
        click.option(
            "--config",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="A YAML file of these options (as in a recipe), and of TRL's own arguments by TRL's names.",
        ),
        click.option(
            "--resume",
            is_flag=True,
            help="Go on from the newest checkpoint of an interrupted run; begin anew where there is none.",
        ),
        click.option(
            "--launch",
            metavar="NAME|FILE",
            help="How the processes share the model: ddp (the default), zero2, zero3 or fsdp2, or a "
            "configuration file of `accelerate launch`.",
        ),
        click.option(
            "--num-processes",
            type=int,
            help="Train in so many processes, one a GPU, through `accelerate launch`.",
        ),
        click.option("--output", type=FOLDER, required=True),
        click.option(
            "--data", required=True, help="A curated set's folder, or a task whose documents to use."
        ),
        click.option("--model", required=True, help="The checkpoint to train; 'digits' is the embedded one."),
    ):
        command = option(command)
    return command


def _adapter(command: Command) -> Command:
    return click.option(
        "--adapter", type=FOLDER, help="An adapter of the model to go on training, instead of a new one."
    )(command)


def _given(
    kind: type[TrainingConfig], options: dict[str, Any], config: Path | None, trl: tuple[str, ...]
) -> dict[str, Any]:
    """The options that were set, over those of a file; the rest keep the configuration's defaults."""
    import yaml

    ours: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    if config is not None:
        try:
            read = yaml.safe_load(config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise HarnessError(
                f"--config {config} is not YAML: {' '.join(str(error).split())}", "Mend it"
            ) from error
        if not isinstance(read, dict):
            raise HarnessError(f"--config {config} is not a mapping", "Write name: value, one a line")
        known = {*LAUNCH, *(field.name for field in fields(kind))}
        for name, value in read.items():
            (ours if name in known else extra)[str(name)] = value
    for text in trl:
        name, sign, value = text.partition("=")
        if not sign:
            raise HarnessError(
                f"--set {text!r} is not name=value", "Write for example --set neftune_noise_alpha=5"
            )
        try:
            extra[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise HarnessError(
                f"--set {text!r}: its value is not YAML", "Write a number, a word, true, false, or quote it"
            ) from error
    ours["extra"] = {**(ours.get("extra") or {}), **extra}
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    return {**ours, **given}


def _run(
    verb: str,
    kind: type[TrainingConfig],
    output: Path,
    config: Path | None,
    trl: tuple[str, ...],
    push_to_hub: str | None,
    private: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    with pushing(output, push_to_hub, private):
        run_stage(verb, output, _given(kind, options, config, trl))


@click.group()
def train() -> None:
    """Train with TRL and PEFT: curated set -> adapter."""


@train.command("cold-start")
@_shared
@options_of(ColdStartConfig)
def cold_start(**options: Any) -> None:  # noqa: ANN401 - click hands over what the options say
    """Train all parameters on a cold-start split.

    \b
    dcsft train cold-start --model digits --data dcsft_digits_cold --learning-rate 3e-4 --output cold
    """  # noqa: D301 - click reads the \b
    _run("train cold-start", ColdStartConfig, **options)


@train.command("sft")
@_shared
@_adapter
@options_of(SftConfig)
def sft(**options: Any) -> None:  # noqa: ANN401 - click hands over what the options say
    """Train a LoRA adapter on a curated set, or with --full all parameters.

    \b
    dcsft train sft --model cold --data curated --learning-rate 1e-3 --max-steps 100 --output adapter
    """  # noqa: D301 - click reads the \b
    _run("train sft", SftConfig, **options)


@train.command("grpo")
@_shared
@_adapter
@click.option("--scorer", help="How answers of a JSONL --data are judged.")
@click.option("--image-root", help="Where relative image paths of a JSONL --data start.")
@options_of(GrpoConfig)
def grpo(**options: Any) -> None:  # noqa: ANN401 - click hands over what the options say
    """Train by GRPO, with the task's own scorer as reward.

    --data is a curated set, a task, or a JSONL file. Completions are drawn by transformers, or by vLLM
    with `--set use_vllm=true` and TRL's `vllm_mode` (colocate or server).

    \b
    dcsft train grpo --model cold --data dcsft_digits_pool --learning-rate 1e-3 --max-steps 100 --output rl
    """  # noqa: D301 - click reads the \b
    _run("train grpo", GrpoConfig, **options)


commands = (train,)

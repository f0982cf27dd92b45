"""`dcsft train sft`: Train a LoRA adapter on a curated set, or with --full all parameters."""

from functools import partial
from pathlib import Path

from dcsft_harness.stages.stage import Notes, Progress, Stage
from dcsft_harness.stages.training import AdapterInputs, estimate, summary, supervised
from dcsft_harness.training.config import SftConfig


class SftOptions(SftConfig, AdapterInputs):
    """What to train on, and how."""


def run(options: SftOptions, output: Path, progress: Progress | None) -> Notes:
    """Trains."""
    return supervised(STAGE, options, SftConfig, output, progress, "train_sft")


STAGE = Stage(
    verb="train sft",
    options=SftOptions,
    run=run,
    summary=summary,
    writes="adapter",
    estimate=partial(estimate, SftConfig),
    example="dcsft train sft --model cold --data curated --max-steps 100 --output adapter",
    pushes=True,
    passes="trl.SFTConfig",
    then="dcsft evaluate --model {output} --tasks TASK,... --output scores",
    light=None,
)

"""`dcsft train cold-start`: Train all parameters on a cold-start split."""

from functools import partial
from pathlib import Path

from dcsft_harness.stages.stage import Notes, Progress, Stage
from dcsft_harness.stages.training import TrainInputs, estimate, summary, supervised
from dcsft_harness.training.config import ColdStartConfig


class ColdStartOptions(ColdStartConfig, TrainInputs):
    """What to train on, and how."""


def run(options: ColdStartOptions, output: Path, progress: Progress | None) -> Notes:
    """Trains."""
    return supervised(STAGE, options, ColdStartConfig, output, progress, "train_cold_start")


STAGE = Stage(
    verb="train cold-start",
    options=ColdStartOptions,
    run=run,
    summary=summary,
    writes="checkpoint",
    estimate=partial(estimate, ColdStartConfig),
    example="dcsft train cold-start --model digits --data dcsft_digits_cold --output cold",
    pushes=True,
    passes="trl.SFTConfig",
    then="dcsft sample --model {output} --task POOL --output rollouts",
    light=None,
)

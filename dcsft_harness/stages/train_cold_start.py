"""`dcsft train cold-start`: Train all parameters on a cold-start split."""

from functools import partial
from pathlib import Path
from typing import Any

from dcsft_harness.stages.stage import Notes, Progress, Stage
from dcsft_harness.stages.training import TrainInputs, conversations, estimate, start, summary
from dcsft_harness.training.config import ColdStartConfig


class ColdStartOptions(ColdStartConfig, TrainInputs):
    """What to train on, and how."""


def run(options: ColdStartOptions, output: Path, progress: Progress | None) -> Notes:
    """Trains."""

    def train(base: str, config: ColdStartConfig, more: dict[str, Any]) -> Notes:
        rows = conversations(options)
        from dcsft_harness.training.sft import train_cold_start

        return train_cold_start(base, rows, output, config, **more)

    return start(STAGE, options, ColdStartConfig, output, progress, train)


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

"""`dcsft digits pretrain`: Rebuild the embedded base checkpoint from scratch (48 minutes on one core)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsft_harness.data.digits.curriculum import PretrainConfig
from dcsft_harness.stages.stage import Notes, Progress, Stage


def run(options: PretrainConfig, output: Path, progress: Progress | None) -> Notes:
    """Pre-trains."""
    from dcsft_harness.artifacts import manifest

    manifest.refuse_occupied(output)
    from dcsft_harness.data.digits import pretrain

    return pretrain.pretrain(output, options, progress)


def summary(notes: Mapping[str, Any]) -> str:
    """The size, and the last loss of each family."""
    losses = (f"{name} loss {value:.3f}" for name, value in notes["losses"].items())
    return ", ".join([f"{notes['parameters']} parameters", *losses])


STAGE = Stage(
    verb="digits pretrain",
    options=PretrainConfig,
    run=run,
    summary=summary,
    writes="checkpoint",
    example="""dcsft digits pretrain --output base
dcsft digits pretrain --architecture qwen3_vl --families naming --steps 600 --output other""",
    light=(1.5e9, 0.0),
)

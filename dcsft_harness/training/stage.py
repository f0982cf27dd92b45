"""A training as a stage: checked and launched before anything heavy is imported, then run by its trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcsft_harness import manifest, opening, ranks
from dcsft_harness.training import launching
from dcsft_harness.training.config import ColdStartConfig, GrpoConfig, SftConfig, TrainingConfig

KINDS: dict[str, type[TrainingConfig]] = {
    "cold-start": ColdStartConfig,
    "sft": SftConfig,
    "grpo": GrpoConfig,
}
"""Method -> its settings."""


def train(
    kind: str,
    output: Path,
    progress: Callable[..., None] | None,
    model: str,
    data: str,
    options: dict[str, Any],
    scorer: str | None = None,
    image_root: str | Path | None = None,
) -> dict[str, Any]:
    """Trains in this process, or starts the processes of a launch and waits for them.

    Args:
        kind: a key of `KINDS`.
        output: the folder to write.
        progress: called with (steps done, steps in all), and loss and gradient norm by name.
        model: the base: a folder, a hub name, or "digits".
        data: a curated set's folder, a task, or for GRPO a JSONL file.
        options: the configuration's fields, and adapter, resume, num_processes and launch.
        scorer: how answers of a JSONL file are judged.
        image_root: where relative image paths of a JSONL file start.

    Returns:
        The manifest's notes.

    Raises:
        HarnessError: an option, the model or the data cannot be used, or training fails.
    """
    launch = launching.Launch.read(options.pop("num_processes", None), options.pop("launch", None))
    named = {"model": model, "data": data, "scorer": scorer, "image_root": image_root, **options}
    resume, adapter = bool(options.pop("resume", False)), options.pop("adapter", None)
    ranks.join()
    with ranks.agreed():
        if not (output / manifest.UNFINISHED).is_dir():
            manifest.refuse_occupied(output)
        config = KINDS[kind].from_options(options)
    if launch is not None:
        return launching.train(launch, config, launching.command(kind, output, named), output)

    def report(step: int, total: int, figures: dict[str, float]) -> None:
        if progress is not None:
            progress(step, total, **figures)

    more: dict[str, Any] = {
        "adapter": None if adapter is None else Path(adapter),
        "progress": report,
        "resume": resume,
    }
    if not Path(data).is_dir():
        more["source"] = Path(data).name if Path(data).is_file() else data
    base = opening.checkpoint(model)
    if isinstance(config, GrpoConfig):
        return _by_grpo(base, data, scorer, image_root, output, config, more)
    return _by_sft(base, data, output, config, more)


def _by_grpo(
    base: str,
    data: str,
    scorer: str | None,
    image_root: str | Path | None,
    output: Path,
    config: GrpoConfig,
    more: dict[str, Any],
) -> dict[str, Any]:
    from dcsft_harness.training import grpo, prompts

    settings = {} if scorer is None else {"scorer": scorer}
    with ranks.agreed():
        rows, judge = prompts.open_data(data, scorer, None if image_root is None else Path(image_root))
    return grpo.train_grpo(base, rows, judge, output, config, settings=settings, **more)


def _by_sft(
    base: str, data: str, output: Path, config: TrainingConfig, more: dict[str, Any]
) -> dict[str, Any]:
    with ranks.agreed():
        rows = opening.training_data(data)
    from dcsft_harness.training import sft

    if isinstance(config, SftConfig):
        return sft.train_sft(base, rows, output, config, **more)
    assert isinstance(config, ColdStartConfig)
    return sft.train_cold_start(base, rows, output, config, **more)

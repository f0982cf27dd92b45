"""Shared by training stages: their inputs and their launch; each method's own file is in `stages`.

Imports neither torch nor TRL.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dcsft_harness import ranks
from dcsft_harness.artifacts import manifest, usage
from dcsft_harness.data import OwnPart
from dcsft_harness.data.digits import resolve
from dcsft_harness.sampling import own_files
from dcsft_harness.settings import option
from dcsft_harness.stages import opening
from dcsft_harness.stages.stage import Notes, Progress, Stage
from dcsft_harness.training import launching
from dcsft_harness.training.config import ColdStartConfig, TrainingConfig

_T = TypeVar("_T", bound=TrainingConfig)


class TrainInputs(opening.OwnTasks, OwnPart):
    """The inputs and the launch of every training stage."""

    SECTION = "What to train, and where"

    model: str = option(
        about="The checkpoint to train; digits is the embedded one.", metavar="CKPT", reads="checkpoint"
    )
    data: str = option(
        about="A curated set's folder, a task whose documents to use, or a file or folder of your own rows.",
        metavar="DATA",
        reads="pool",
    )
    num_processes: int | None = option(
        None, "Number of processes, one per GPU, started by `accelerate launch`.", ge=1, decides=False
    )
    launch: str | None = option(
        None,
        "How the processes share the model: ddp (the default), zero2, zero3 or fsdp2, or a configuration file"
        " of `accelerate launch`.",
        metavar="NAME|FILE",
        decides=False,
    )
    resume: bool = option(
        False, "Has no effect: rerunning the same command resumes an interrupted run.", decides=False
    )


class AdapterInputs(TrainInputs):
    """The inputs of training that can continue an adapter."""

    adapter: Path | None = option(
        None, "An adapter of the model to train further, instead of a new one.", reads="artifact"
    )


def start(
    stage: Stage,
    options: Any,  # noqa: ANN401 - TrainInputs that are a TrainingConfig too
    kind: type[_T],
    output: Path,
    progress: Progress | None,
    train: Callable[[str, _T, dict[str, Any]], Notes],
) -> Notes:
    """Trains in this process, or starts the processes of a launch and waits for them; returns the notes.

    `kind` is the settings class of the method's configuration, a part of the options. `progress` is called
    with (steps done, total steps), and loss and gradient norm by name; `train` with the base, the
    configuration and `Job`'s further arguments.

    Raises:
        HarnessError: an option, the model or the data cannot be used, or training fails.
    """
    launch = launching.Launch.read(options.num_processes, options.launch)
    ranks.join()
    with ranks.agreed():
        if options.include_path is not None:
            from dcsft_harness import lmms

            lmms.include(options.include_path)
        if not manifest.unfinished(output):
            manifest.refuse_occupied(output)
        config = options.part(kind)
        for named in (resolve(options.model), getattr(options, "adapter", None), options.data):
            if named is not None:
                manifest.refuse_newer(Path(named))
        own_files.refuse_lost(options.data)  # before packages are loaded that know the tasks
    if launch is not None and usage.PLANNING.get() is None:
        return opening.launched(launch, stage, options, output, config)
    reset = launching.PLANNED.set(launch)

    def report(step: int, total: int, figures: dict[str, float]) -> None:
        if progress is not None:
            progress(step, total, **figures)

    more: dict[str, Any] = {"adapter": getattr(options, "adapter", None), "progress": report}
    if opening.is_own(options.data) or not Path(options.data).is_dir():
        given = Path(options.data)
        more["source"] = Path(own_files.called(given)).name if given.exists() else options.data
    try:
        return train(resolve(options.model), config, more)
    finally:
        launching.PLANNED.reset(reset)


def supervised(
    stage: Stage,
    options: TrainInputs,
    kind: type[TrainingConfig],
    output: Path,
    progress: Progress | None,
    function: str,
) -> Notes:
    """`start` with a function of `training.sft`, by name: importing it here would import torch."""

    def train(base: str, config: TrainingConfig, more: dict[str, Any]) -> Notes:
        with ranks.agreed():
            rows = opening.training_data(options.data, options)
        from dcsft_harness.training import sft

        notes: Notes = getattr(sft, function)(base, rows, output, config, **more)
        return notes

    return start(stage, options, kind, output, progress, train)


def summary(notes: Mapping[str, Any]) -> str:
    """Steps, loss or completions, and the number of trained parameters."""
    sampled = notes["ledger"]["generated"]
    parts = [
        f"{notes['steps']} step{'s' * (notes['steps'] != 1)}",
        f"{sampled} completions" if sampled else f"loss {notes['final_loss']:.3f}",
    ]
    weights = f"{notes['trainable_parameters']:,} parameters trained"
    if "adapted" in notes:
        modules = ", ".join(f"{count} {part}" for part, count in notes["adapted"].items())
        weights += f" on {modules} modules"
    skipped = [f"{notes['skipped']['count']} rows skipped"] if notes.get("skipped") else []
    return ", ".join([*parts, weights, *skipped, *_other_pixels(notes)])


def _other_pixels(notes: Mapping[str, Any]) -> list[str]:
    """The pixel limits of training and of evaluation, if they differ."""
    trained, evaluated = notes.get("pixel_limits"), notes.get("evaluation_pixel_limits")
    if not trained or not evaluated or trained == evaluated:
        return []
    ranges = [f"{limits['low']} to {limits['high']}" for limits in (trained, evaluated)]
    return [f"images of {ranges[0]} pixels (in evaluation {ranges[1]})"]


def length_of(kind: type[TrainingConfig], options: Mapping[str, Any], rows: float) -> tuple[float, float]:
    """Optimizer steps, and samples in each, with the defaults of a method's configuration."""
    known = {name: one.default for name, one in kind.model_fields.items()}
    batch = float(options.get("batch_size") or known["batch_size"])
    epochs = options.get("epochs") or (None if options.get("max_steps") else known["epochs"])
    if epochs:
        samples = rows * float(options.get("num_generations") or known.get("num_generations", 1))
        return kind.steps_per_epoch(samples, batch) * float(epochs), batch
    return float(options.get("max_steps") or known["max_steps"]), batch


def estimate(
    kind: type[TrainingConfig],
    options: Mapping[str, Any],
    machine: opening.Numbers,
    tokens: opening.Numbers,
    rows: float | None = None,
    compared: int = 0,
) -> tuple[float, float]:
    """A rough estimate of a training run's seconds, and its bytes on one device.

    `rows` is the number of its training rows; None means the pool's, or the cold start's. `compared` is the
    number of responses of a row that are compared with the initial model's; 0 trains on one response without
    a comparison.
    """
    full = bool(options.get("full")) or kind is ColdStartConfig
    rows = tokens["cold" if kind is ColdStartConfig else "pool"] if rows is None else rows
    steps, batch = length_of(kind, options, rows)
    length, sequences = tokens["prompt"] + tokens["answer"], max(compared, 1)
    # Forward, gradient of activations, recomputed activations; the weights' gradient if all train; and the
    # initial model's forward.
    passes = sequences * (3.0 + full + bool(compared))
    seconds = steps * batch * passes * opening.forward_seconds(machine, length, tokens["patches"])
    # bfloat16 weights on each device; in full training, float32 weights, gradients and moments are sharded,
    # and the initial model is another one.
    weights = machine["language"] + machine["vision"]
    kept = 16 * weights / machine["devices"] + 4 * weights * bool(compared) if full else 2 * weights
    micro = options.get("micro_batch_size") or batch / machine["devices"]
    return seconds, kept + sequences * micro * length * 3e6

"""The stages by name, as the command line and recipes both run them: options in, one artefact out.

A stage function takes the output folder, its options as keywords, and a progress callback; it opens
what it needs and leaves the work to the stage's own module. Heavy packages are imported inside.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from dcsft_harness import opening
from dcsft_harness.errors import HarnessError, unknown_name

Progress = Callable[[int, int], None]
"""Called with (units done, units in all); what a unit is differs by stage: items, or steps."""
Notes = dict[str, Any]
T = TypeVar("T")


def pretrain(
    output: Path,
    progress: Progress | None = None,
    **options: Any,  # noqa: ANN401 - PretrainConfig's fields
) -> Notes:
    """Nothing -> a base checkpoint of the embedded suite."""
    from dcsft_harness import manifest
    from dcsft_harness.digits.pretrain_config import PretrainConfig

    manifest.refuse_occupied(output)
    config = _configured(PretrainConfig, "pre-training option", options)
    from dcsft_harness.digits import pretrain as module

    return module.pretrain(output, config, progress)


def sample(
    output: Path,
    progress: Progress | None = None,
    *,
    model: str = "dcsft_hf",
    model_args: str = "",
    task: str | None = None,
    data: str | Path | None = None,
    scorer: str | None = None,
    image_root: str | Path | None = None,
    engine: str = "local",
    actors: int | None = None,
    **options: Any,  # noqa: ANN401 - SamplingConfig's fields
) -> Notes:
    """Pool -> rollouts. `task` names an lmms-eval task; or `data` and `scorer` a JSONL file of one's own."""
    from dcsft_harness import harness, ranks, rollout_store, sampling
    from dcsft_harness.sources import prepared

    ranks.join()
    with ranks.agreed():
        rollout_store.refuse_taken(output)
        config = _configured(sampling.SamplingConfig, "sampling option", options)
        pool, described, files = opening.pool(task, data, scorer, image_root, skip=config.on_error == "skip")
        arguments, folders = opening.model_arguments(model_args)
        harness.check_model(model, arguments)
        opener = opening.opener(model, arguments, engine, actors)
        folders |= prepared.inputs([pool.config.task])
    settings = {"model": model, "model_args": model_args, **described}
    return sampling.sample(opener, pool, output, config, settings, progress, folders | files)


def label(output: Path, progress: Progress | None = None, *, rollouts: Path) -> Notes:
    """Rollouts -> labels."""
    from dcsft_harness import labels

    return labels.label(Path(rollouts), output)


def curate(
    output: Path,
    progress: Progress | None = None,
    *,
    labels: Path,
    exclude: Path | None = None,
    reviewed: Path | None = None,
    **options: Any,  # noqa: ANN401 - CurationConfig's fields
) -> Notes:
    """Labels -> curated set, without suspects and without the items that an overlap folder names."""
    from dcsft_harness import curation
    from dcsft_harness.rules import CurationConfig

    shared, verdicts = (None if path is None else Path(path) for path in (exclude, reviewed))
    return curation.curate(Path(labels), output, CurationConfig.from_options(options), shared, verdicts)


def overlap(
    output: Path,
    progress: Progress | None = None,
    *,
    pool: str,
    tasks: Sequence[str],
    distance: int | None = None,
) -> Notes:
    """Training images that reappear in evaluation sets."""
    from dcsft_harness import overlap as module

    bits = module.DISTANCE if distance is None else distance
    return module.overlap(pool, list(tasks), output, bits, progress)


def evaluate(
    output: Path,
    progress: Progress | None = None,
    *,
    model: str = "dcsft_hf",
    model_args: str = "",
    tasks: Sequence[str],
    name: str | None = None,
    group: str | None = None,
    limit: int | None = None,
) -> Notes:
    """Adapter -> scores."""
    from dcsft_harness import evaluation, harness, manifest, ranks
    from dcsft_harness.sources import prepared

    ranks.join()
    with ranks.agreed():
        manifest.refuse_occupied(output)
        if limit is not None and limit < 1:
            raise HarnessError(f"--limit {limit} is out of range", "It must be at least 1")
        if not tasks:
            raise HarnessError("--tasks names no task", "`dcsft tasks list` lists the suite's")
        opened = harness.open_tasks(list(tasks))
        arguments, inputs = opening.model_arguments(model_args)
        inputs |= prepared.inputs(opened)
        running = harness.open_model(model, arguments)
    settings = {"model": model, "model_args": model_args, **({} if group is None else {"group": group})}
    return evaluation.evaluate(
        running, opened, output, name or output.name, settings, limit, progress, inputs
    )


def leaderboard(
    output: Path,
    progress: Progress | None = None,
    *,
    results: Sequence[Path],
    labels: Sequence[Path] = (),
    rollouts: Sequence[Path] = (),
    strict: bool = False,
    **options: Any,  # noqa: ANN401 - leaderboard.Options' fields
) -> Notes:
    """Scores -> leaderboard."""
    from dcsft_harness.leaderboard import Options, build, markdown

    folders = {"labels": tuple(map(Path, labels)), "rollouts": tuple(map(Path, rollouts))}
    chosen = _configured(Options, "leaderboard option", options, **folders, strict=strict)
    built = build([Path(folder) for folder in results], output, options=chosen, progress=progress)
    return {
        "table": markdown(built.summary),
        "rows": len(built.board.rows),
        "left_out": [one.reason for one in built.board.left_out],  # with their paths
    }


def compare_cost(
    output: Path,
    progress: Progress | None = None,
    *,
    artefacts: Sequence[Path],
    scores: Sequence[Path] = (),
    baseline: str | None = None,
) -> Notes:
    """Adapters and checkpoints -> what each cost, labels included."""
    from dcsft_harness import costs

    folders, scored = [Path(folder) for folder in artefacts], [Path(folder) for folder in scores]
    found = costs.build(folders, output, scored, baseline)
    return {"table": costs.markdown(found), "rows": len(found.runs)}


def cold_start(
    output: Path,
    progress: Progress | None = None,
    *,
    model: str,
    data: str,
    **options: Any,  # noqa: ANN401 - the configuration's fields
) -> Notes:
    """Trains all of a checkpoint's parameters on a cold-start split."""
    from dcsft_harness.training import stage

    return stage.train("cold-start", output, progress, model, data, options)


def sft(
    output: Path,
    progress: Progress | None = None,
    *,
    model: str,
    data: str,
    **options: Any,  # noqa: ANN401 - the configuration's fields
) -> Notes:
    """Curated set -> adapter."""
    from dcsft_harness.training import stage

    return stage.train("sft", output, progress, model, data, options)


def grpo(
    output: Path,
    progress: Progress | None = None,
    *,
    model: str,
    data: str,
    scorer: str | None = None,
    image_root: str | Path | None = None,
    **options: Any,  # noqa: ANN401 - the configuration's fields
) -> Notes:
    """Pool or curated set -> adapter, by reinforcement learning."""
    from dcsft_harness.training import stage

    return stage.train("grpo", output, progress, model, data, options, scorer, image_root)


def merge(
    output: Path,
    progress: Progress | None = None,
    *,
    adapter: Path,
    base: str | None = None,
    **options: Any,  # noqa: ANN401 - MergeConfig's fields
) -> Notes:
    """Adapter -> checkpoint."""
    from dcsft_harness import merging

    config = _configured(merging.MergeConfig, "merge option", options)
    return merging.merge(Path(adapter), output, None if base is None else opening.checkpoint(base), config)


STAGES: dict[str, Callable[..., Notes]] = {
    "digits pretrain": pretrain,
    "sample": sample,
    "label": label,
    "data overlap": overlap,
    "curate": curate,
    "train cold-start": cold_start,
    "train sft": sft,
    "train grpo": grpo,
    "merge": merge,
    "evaluate": evaluate,
    "leaderboard build": leaderboard,
    "compare-cost": compare_cost,
}
"""Verb -> stage, in the order of the data flow."""


def _configured(config: type[T], kind: str, options: Mapping[str, Any], **given: Any) -> T:  # noqa: ANN401
    """A stage's configuration; `given` are fields that are no options.

    Raises:
        HarnessError: an option is unknown, with near matches, or its value is out of range.
    """
    known = [field.name for field in fields(config)]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise unknown_name(kind, name, known)
    return config(**given, **options)

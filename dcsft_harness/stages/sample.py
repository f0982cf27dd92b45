"""`dcsft sample`: Sample G responses per item of a pool: pool -> rollouts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dcsft_harness import ranks
from dcsft_harness.sampling import SamplingConfig
from dcsft_harness.scoring import ScorerName
from dcsft_harness.settings import option
from dcsft_harness.stages import opening
from dcsft_harness.stages.stage import Notes, Progress, Stage, counted, percent


class SampleOptions(SamplingConfig):
    """What to sample from, and how."""

    SECTION = "Model and pool"

    model: str = option(
        "dcsft_hf", "A checkpoint or adapter; or an lmms-eval model, with --model-args.", reads="checkpoint"
    )
    model_args: str = option(
        "", "Its arguments: pretrained=CKPT,adapter=DIR,...", metavar="K=V,...", reads="model_args"
    )
    task: str | None = option(None, "The pool: any lmms-eval task.", reads="pool")
    data: Path | None = option(None, "Or a JSONL file of your own.", reads="pool")
    scorer: ScorerName | None = option(
        None, "With --data: exact_word, box_iou, choice, math, open_answer, or your package.module:function."
    )
    image_root: Path | None = option(
        None, "With --data: where relative image paths start, by default its folder."
    )
    allow_outside_root: bool = option(
        False, "With --data: images may also lie outside the image root: absolute paths, .., links."
    )
    engine: Literal["local", "ray"] = option(
        "local",
        "Where sampling runs: ray is in actors of the cluster of RAY_ADDRESS, or of one on this machine.",
    )
    actors: int | None = option(
        None, "With --engine ray: how many; by default one per GPU, or per CPU without GPUs.", ge=1
    )


def run(options: SampleOptions, output: Path, progress: Progress | None) -> Notes:
    """Samples, or resumes an interrupted run."""
    from dcsft_harness import lmms, sampling
    from dcsft_harness.data.benchmarks import prepared
    from dcsft_harness.evaluation.subject import as_engine
    from dcsft_harness.sampling import rollout_store

    ranks.join()
    with ranks.agreed():
        rollout_store.refuse_taken(output)
        config = options.part(SamplingConfig)
        model, model_args = as_engine(options.model, options.model_args)
        pool, described, files = opening.pool(
            options.task,
            options.data,
            options.scorer,
            options.image_root,
            skip=config.on_error == "skip",
            outside=options.allow_outside_root,
        )
        arguments, folders = opening.model_arguments(model_args)
        lmms.check_model(model, arguments)
        opener = opening.opener(model, arguments, options.engine, options.actors)
        folders |= prepared.inputs([pool.config.task])
    settings = {"model": model, "model_args": model_args, **described}
    return sampling.sample(opener, pool, output, config, settings, progress, folders | files)


def summary(notes: Mapping[str, Any]) -> str:
    """Items, responses and accuracy."""
    parts = [f"{notes['items']} items", f"{notes['responses']} responses"]
    if notes["accuracy"] is not None:
        parts.append(f"{percent(notes['accuracy'])} right")
    words = {
        "saved": "not needed, their items' labels being settled",
        "skipped": "items skipped",
        "resumed": "from the interrupted run",
        "damaged": "damaged and sampled again",
    }
    return ", ".join([*parts, *counted(notes, words)])


STAGE = Stage(
    verb="sample",
    options=SampleOptions,
    run=run,
    summary=summary,
    writes="rollouts",
    about="Responses are saved as they finish. Rerun the same command to resume.",
    example="""dcsft sample --model digits --task dcsft_digits_pool --output rollouts
dcsft sample --model CKPT --data mine.jsonl --scorer exact_word --output rollouts""",
    prepared=True,
    then="dcsft label {output} --output labels",
)

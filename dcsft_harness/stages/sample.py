"""`dcsft sample`: Sample G responses per item of a pool: pool -> rollouts."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dcsft_harness import ranks
from dcsft_harness.data import OwnPart
from dcsft_harness.sampling import SamplingConfig
from dcsft_harness.settings import option
from dcsft_harness.stages import opening
from dcsft_harness.stages.stage import Notes, Progress, Stage, counted, out_of_tokens, percent


class SampleOptions(SamplingConfig, opening.OwnTasks, OwnPart, opening.Engine):
    """What to sample from, and how."""

    SECTION = "Pool"

    task: str | None = option(
        None, "The pool: any lmms-eval task, or the YAML file of your own.", reads="pool"
    )
    data: Path | None = option(
        None,
        "Or your own rows: JSONL, JSON, CSV, Parquet, or a folder saved by `datasets`.",
        metavar="FILE|DIR",
        reads="pool",
    )


def run(options: SampleOptions, output: Path, progress: Progress | None) -> Notes:
    """Samples, or resumes an interrupted run."""
    launched = options.launched(STAGE, output)
    if launched is not None:
        return launched
    from dcsft_harness import lmms, sampling
    from dcsft_harness.artifacts import manifest
    from dcsft_harness.data.benchmarks import prepared

    ranks.join()
    with ranks.agreed():
        manifest.refuse_occupied(output, resumes=True)
        config = options.part(SamplingConfig)
        lmms.include(options.include_path)
        skip = config.on_error == "skip"
        pool, described, files = opening.pool(options, options.task, options.data, skip)
        tasks, tokens = {pool.config.task: pool}, config.max_new_tokens
        opener, settings, folders = options.checked(tasks, config.samples, tokens, config.limit)
        folders |= prepared.inputs([lmms.data_name(pool)])
    return sampling.sample(opener, pool, output, config, settings | described, progress, folders | files)


def summary(notes: Mapping[str, Any]) -> str:
    """Items, responses and accuracy."""
    parts = counted(notes, {"items": "items", "responses": "responses"})
    if notes["accuracy"] is not None:
        parts.append(f"{percent(notes['accuracy'])} right")
    words = {
        "saved": "not needed (their items' labels were settled)",
        "skipped": "items skipped",
        "left_out": "rows left out",
        "resumed": "from the interrupted run",
        "damaged": "damaged and resampled",
    }
    return ", ".join([*parts, *counted(notes, words)])


def remarks(notes: Mapping[str, Any]) -> list[str]:
    """Why no response was right, or how many ran out of tokens, and what to do next."""
    if "unsolved" not in notes:
        return out_of_tokens(notes.get("truncated", 0), notes.get("responses", 0), "responses")
    from dcsft_harness.sampling.rollout_store import advice

    return ["{}. {}.".format(*advice(notes["unsolved"]))]


STAGE = Stage(
    verb="sample",
    options=SampleOptions,
    run=run,
    summary=summary,
    remarks=remarks,
    writes="rollouts",
    estimate=partial(opening.answering, "pool", 8),
    about="Responses are saved as they finish. Rerun the same command to resume.",
    example="""dcsft sample --model digits --task dcsft_digits_pool --output rollouts
dcsft sample --model CKPT --data mine.jsonl --scorer exact_word --output rollouts
dcsft sample --model CKPT --engine dcsft_vllm --task dcsft_digits_pool --output rollouts""",
    prepared=True,
    then="dcsft label {output} --output labels",
    light=None,
)

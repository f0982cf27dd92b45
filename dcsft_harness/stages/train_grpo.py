"""`dcsft train grpo`: Train by GRPO, with the task's own scorer as reward."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dcsft_harness import ranks
from dcsft_harness.stages.opening import Numbers, forward_seconds
from dcsft_harness.stages.stage import Notes, Progress, Stage, percent
from dcsft_harness.stages.training import AdapterInputs, estimate, length_of, start, summary
from dcsft_harness.training import run_folder
from dcsft_harness.training.config import GrpoConfig


class GrpoOptions(GrpoConfig, AdapterInputs):
    """What to train on, and how."""


def run(options: GrpoOptions, output: Path, progress: Progress | None) -> Notes:
    """Trains."""

    def train(base: str, config: GrpoConfig, more: dict[str, Any]) -> Notes:
        from dcsft_harness.sampling import own_data
        from dcsft_harness.training import grpo

        settings = {} if options.scorer is None else {"scorer": options.scorer}
        with ranks.agreed():
            rows, judge = grpo.open_data(
                options.data,
                options.scorer,
                options.image_root,
                options.allow_outside_root,
                own_data.part_of(options),
            )
        return grpo.train_grpo(base, rows, judge, output, config, settings=settings, **more)

    notes = start(STAGE, options, GrpoConfig, output, progress, train)
    return notes | {"groups": shares(run_folder.history(output))}


GROUPS = ("zero_advantage", "all_right", "all_wrong")
"""Columns of the log: shares of the groups of completions of one prompt."""


def shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The average of each of `GROUPS` over the steps that drew completions; other steps have none."""
    drawn = [row for row in rows if GROUPS[0] in row]
    return {name: fmean(row[name] for row in drawn) for name in GROUPS if drawn}


def remarks(notes: Mapping[str, Any]) -> list[str]:
    """Remarks on groups that taught nothing, if they are half or more, and on prompts that were repeated."""
    made = []
    found = notes.get("groups") or {}
    if found.get("zero_advantage", 0.0) >= 0.5:
        equal, right, wrong = (percent(found[name]) for name in GROUPS)
        made.append(
            f"{equal} of the groups had equal rewards ({right} all right, {wrong} all wrong) and taught"
            " nothing: train on medium items, or raise --num-generations"
        )
    if reason := notes.get("repeated_prompts"):
        made.append(f"training computed each prompt again for each of its completions: {reason}")
    return made


def rough(options: Mapping[str, Any], machine: Numbers, tokens: Numbers) -> tuple[float, float]:
    """Seconds, and bytes on one device: training, completions, prefill and the reference's forward pass.

    A prompt is computed once for its completions in a pass.
    """
    steps, batch = length_of(GrpoConfig, options, tokens["pool"])
    group = options.get("num_generations") or GrpoConfig.model_fields["num_generations"].default
    # Without a number, a prompt's completions are assumed to fit.
    micro = options.get("micro_batch_size") or min(group, batch / machine["devices"])
    shared = max(min(group, micro), 1)
    part = {**tokens, "prompt": tokens["prompt"] / shared, "patches": tokens["patches"] / shared}
    seconds, memory = estimate(GrpoConfig, {**options, "micro_batch_size": micro}, machine, part)
    forward = forward_seconds(machine, part["prompt"] + tokens["answer"], part["patches"])
    drawn = steps * batch * tokens["answer"] / machine["trained"]
    return seconds + drawn + 2 * steps * batch * forward, memory


STAGE = Stage(
    verb="train grpo",
    options=GrpoOptions,
    run=run,
    summary=summary,
    remarks=remarks,
    writes="adapter",
    estimate=rough,
    about="--data is a curated set, a task, or a file or folder of your own rows. transformers samples the"
    " completions, or vLLM with `--set use_vllm=true` and TRL's `vllm_mode` (colocate or server).",
    example="dcsft train grpo --model cold --data dcsft_digits_pool --max-steps 100 --output rl",
    pushes=True,
    passes="trl.GRPOConfig",
    then="dcsft evaluate --model {output} --tasks TASK,... --output scores",
    light=None,
)

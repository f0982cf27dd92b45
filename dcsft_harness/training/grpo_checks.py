"""What GRPO refuses before any weights are read: prompts, arguments, a vLLM that could not draw for it."""

import inspect
import math
from importlib.util import find_spec
from typing import Any

from transformers import GenerationConfig

from dcsft_harness import ranks
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.models.arguments import checkpoint_settings
from dcsft_harness.models.batching import Batcher, Prepared
from dcsft_harness.models.pixel_limits import limits_in_force
from dcsft_harness.training import checkpoint
from dcsft_harness.training.config import GrpoConfig
from dcsft_harness.training.data import Conversations
from dcsft_harness.training.job import Setup
from dcsft_harness.training.judge import Judge

VLLM_MODES = ("colocate", "server")


def check_prompts(conversations: Conversations, judge: Judge, config: GrpoConfig) -> None:
    """Refuses a set that the task does not judge, that has weights, or that is too small for a batch.

    Raises:
        HarnessError: says which.
    """
    strange = [item for item in conversations.item_ids or [] if item not in judge.doc_ids]
    if strange:
        raise HarnessError(
            f"{conversations.name} has the item {strange[0]}, which task {judge.task.config.task} has not",
            "Give the task that the set was made from",
        )
    if conversations.weights is not None:
        raise HarnessError(
            f"{conversations.name} has a column weight, which GRPO has no use for",
            "Curate without --weight: GRPO's advantages weigh prompts by p(1-p) themselves",
        )
    needed = config.batch_size // config.num_generations
    if len(conversations.turns) < needed:
        raise HarnessError(
            f"{conversations.name} has {len(conversations.turns)} prompts, fewer than the {needed} of a step "
            f"(batch_size={config.batch_size} completions, num_generations={config.num_generations})",
            "Lower batch_size, or give more prompts",
        )


def check_generation(model: str, args: Any) -> None:  # noqa: ANN401 - trl.GRPOConfig
    """Refuses settings of the base's generation config that would apply to completions unseen.

    TRL sets temperature, top-p, top-k and the repetition penalty itself; transformers takes what it leaves
    unset from the base.

    Raises:
        HarnessError: names the setting.
    """
    where = f"GRPO: the generation_config.json of {model}"
    remedy = "Take it out of that file: the policy is trained on the distribution that it samples from"
    found = checkpoint.open_generation(model).to_diff_dict()
    settings = checkpoint_settings(found, vars(GenerationConfig()), where, remedy)
    for name in ("min_p", "min_new_tokens"):
        given = {**(args.generation_kwargs or {}), "min_p": args.min_p}
        if settings.get(name) and given.get(name) is None:
            raise HarnessError(f"{where} sets {name}={settings[name]}, which would apply unseen", remedy)


def check_processor(setup: Setup) -> None:
    """Refuses a family that TRL's GRPO cannot show pictures.

    TRL passes on features of the names that it knows, and takes a row of pixels for a tile of an image
    where there are more rows than images.

    Raises:
        HarnessError: says what TRL does not take.
    """
    if trouble := _trouble(setup.processor):
        raise HarnessError(
            f"TRL's GRPO does not take {setup.job.model}: its {trouble}",
            "Train it by `dcsft train sft`, or take another base",
        )


def _trouble(processor: Any) -> str | None:  # noqa: ANN401 - a checkpoint's processor
    """What TRL does not take of a processor; None where it takes all."""
    import trl

    trials = Batcher(processor, processor.tokenizer.pad_token_id).trials
    if not trials:
        return "processor takes no chat with a picture"
    known = set(inspect.signature(trl.GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    for trial in trials:
        pixels, images = trial.features.get("pixel_values"), processor.image_processor
        if unknown := sorted(trial.features.keys() - known):
            return f"processor makes {', '.join(unknown)}"
        rows = 1 if pixels is None or pixels.ndim != 4 else len(pixels)
        if rows > 1 and not _counts_tiles(images, trial):
            return f"{type(images).__name__} makes {rows} rows of a picture that are not tiles"
    try:
        processor(text=[trial.text for trial in trials], images=[list(trial.images) for trial in trials])
    except (TypeError, ValueError):
        return f"{type(processor).__name__} takes no prompts of unequal lengths without padding"
    return None


def _counts_tiles(images: Any, trial: Prepared) -> bool:  # noqa: ANN401 - an image processor
    """Whether an image processor says how many tiles it makes, in the way that TRL asks."""
    try:
        made = images(images=list(trial.images), crop_to_patches=True, return_tensors="pt")
    except (TypeError, ValueError):
        return False
    return "num_patches" in made


def check_draws(args: Any, config: GrpoConfig) -> None:  # noqa: ANN401 - trl.GRPOConfig
    """Refuses checkpoints between steps that learn from the same draws: a resumed run would draw anew there.

    Raises:
        HarnessError: says which steps would do.
    """
    passes = args.steps_per_generation * args.num_iterations
    steps = passes // math.gcd(passes, args.gradient_accumulation_steps)
    if config.save_steps is not None and config.save_steps % steps:
        raise HarnessError(
            f"save_steps={config.save_steps}: each draw is learned from in {steps} steps (num_iterations="
            f"{args.num_iterations}, steps_per_generation={args.steps_per_generation}), and a run that "
            "goes on from between them would draw anew",
            f"Give a multiple of {steps}",
        )


def check_vllm(args: Any, setup: Setup) -> None:  # noqa: ANN401 - trl.GRPOConfig
    """Refuses what TRL would only notice with the weights in memory, or not at all.

    Raises:
        HarnessError: vLLM is missing, its mode is unknown, processes do not divide, or images would reach
            it in another size than the trainer's.
    """
    if args.vllm_mode not in VLLM_MODES:
        raise unknown_name("vllm_mode", str(args.vllm_mode), VLLM_MODES)
    if find_spec("vllm") is None:
        raise HarnessError(
            "use_vllm=true needs vLLM, which is not installed",
            "Install a version that TRL takes beside it, or leave use_vllm out",
        )
    groups, processes = args.vllm_tensor_parallel_size, ranks.world_size()
    if args.vllm_mode == "colocate" and processes % groups:
        raise HarnessError(
            f"vllm_tensor_parallel_size={groups} does not divide the {processes} processes of this launch",
            "Choose a divisor",
        )
    own = limits_in_force(checkpoint.open_processor(str(setup.job.model)))
    if own is not None and setup.limits is not None and setup.limits != own:
        raise HarnessError(
            f"vLLM resizes images by the base's own limits, min_pixels={own.low} and max_pixels={own.high}, "
            f"and training would by {setup.limits.low} and {setup.limits.high}",
            "Leave min_pixels and max_pixels out, or save a base with the limits that you want",
        )

"""The settings of training runs, checked before anything is loaded; defaults are the paper's."""

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from dcsft_harness.errors import HarnessError
from dcsft_harness.settings import Settings, option, shown

TARGETS = ("all", "language", "vision")
BoxSpace = Literal["pixel", "resized", "norm1000"]
EITHER = (("max_steps", "epochs"), ("epochs", "max_steps"))


class TrainingConfig(Settings):
    """What all training runs share. Names that TRL has too mean what they mean there."""

    learning_rate: float = option(1e-5, "Peak of the schedule.", gt=0)
    batch_size: int = option(
        16,
        "Samples per optimizer step, over all processes; an epoch's last batch may be smaller.",
        ge=1,
    )
    micro_batch_size: int | None = option(
        None,
        "Samples per forward pass of a process; gradients are accumulated. A divisor of batch_size. By"
        " default a process's whole share of the batch.",
        ge=1,
    )
    max_steps: int | None = option(
        None, "Optimizer steps, repeating the data as often as needed; instead of epochs.", ge=1
    )
    epochs: int | None = option(None, "Passes over the data; instead of max_steps.", ge=1)
    warmup_ratio: float = option(
        0.1, "Share of the steps in which the learning rate rises from 0, in [0, 1).", ge=0, lt=1
    )
    # Cosine, like the two values below, is what the paper's scripts leave to ms-swift's defaults.
    lr_scheduler_type: str = option("cosine", "Shape of the learning rate after the warm-up.")
    weight_decay: float = option(0.1, "AdamW's weight decay.", ge=0)
    adam_beta2: float = option(0.95, "AdamW's decay of the second moment, in [0, 1).", ge=0, lt=1)
    seed: int = option(
        0, "Decides LoRA's initial weights, dropout and the order of the data.", ge=0, le=2**32 - 1
    )
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        "Type that the forward pass computes in; auto is bfloat16 on CUDA devices that have it and float32"
        " elsewhere.",
    )
    min_pixels: int | None = option(
        None, "Least area of a resized image, in pixels; by default the processor's.", ge=1
    )
    # The paper's scripts train with 802,816, and recipes at its scale say so.
    max_pixels: int | None = option(
        None,
        "Largest area of a resized image, in pixels; by default the processor's, which evaluation uses.",
        ge=1,
    )
    box_space: BoxSpace | None = option(
        None,
        "Coordinates of box targets: pixel (of the original image, as in the paper), resized or norm1000;"
        " by default the model's own.",
    )
    save_steps: int | None = option(
        100, "Steps between checkpoints, from which an interrupted run resumes; none writes none.", ge=1
    )
    keep: int | None = option(
        None,
        "Newest checkpoints to keep in the finished folder, without the optimizer's state; by default one"
        " while training runs, and none after.",
        ge=1,
    )
    on_error: Literal["stop", "skip"] = option(
        "stop",
        "Rows that cannot be trained on (a damaged picture, one that the processor refuses, no answer, too many"
        " tokens): stop lists them before weights are read, skip leaves them out and records them.",
    )
    extra: Mapping[str, Any] = option(
        about="TRL's own arguments by TRL's own names.", default_factory=dict, cli=False
    )

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Giving one of `max_steps` and `epochs` takes back the other's default."""
        given = dict(values)
        for one, other in EITHER:
            if given.get(one) is not None:
                given.setdefault(other, None)
        return given

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.max_steps is None) == (self.epochs is None):
            raise HarnessError(
                f"--max-steps {self.max_steps} and --epochs {self.epochs} do not say how long to train",
                "Give exactly one of them",
            )
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise HarnessError(
                f"--micro-batch-size {self.micro_batch_size} does not divide --batch-size {self.batch_size}",
                "Choose a divisor",
            )
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise HarnessError(
                f"--min-pixels {self.min_pixels} exceeds --max-pixels {self.max_pixels}", "Swap them"
            )
        return self

    def share(self, processes: int) -> tuple[int, int]:
        """What a process of a launch does for one optimizer step.

        Returns:
            Samples per forward pass, and how many passes are accumulated.

        Raises:
            HarnessError: the processes cannot share a batch evenly.
        """
        micro = self.micro_batch_size or max(self.batch_size // processes, 1)
        if self.batch_size % (micro * processes):
            raise HarnessError(
                f"--batch-size {self.batch_size} cannot be shared by {processes} processes, "
                f"{micro} at a time",
                "Choose a multiple of processes times --micro-batch-size",
            )
        return micro, self.batch_size // (micro * processes)


class ColdStartConfig(TrainingConfig):
    """Full-parameter training that teaches a base model the answer format: 400 samples, one epoch."""

    epochs: int | None = option(1, "Passes over the data; instead of max_steps.", ge=1)


class AdapterConfig(TrainingConfig):
    """Training that updates a LoRA adapter, or with `full` all parameters."""

    full: bool = option(False, "Train all parameters instead of an adapter; LoRA options are ignored.")
    lora_rank: int = option(32, "Rank of the low-rank updates.", ge=1)
    lora_alpha: int = option(64, "Scale of the updates times the rank.", ge=1)
    lora_dropout: float = option(0.05, "Share of their inputs dropped in training, in [0, 1).", ge=0, lt=1)
    lora_target: str = option(
        "all",
        "Linear layers to adapt: all (vision tower and aligner included), language, vision (tower and"
        " aligner), or a regular expression over whole module names. The output layer is never adapted.",
        metavar="NAME|REGEX",
    )

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        try:
            re.compile(self.lora_target)
        except re.error as error:
            raise HarnessError(
                f"--lora-target {shown(self.lora_target)} is not a regular expression: {error}",
                f"Give {', '.join(TARGETS)} or a regular expression over module names",
            ) from error
        return self


class SftConfig(AdapterConfig):
    """Supervised fine-tuning: 600 steps in the paper's Table 2, 100 in its Table 1."""

    max_steps: int | None = option(
        600, "Optimizer steps, repeating the data as often as needed; instead of epochs.", ge=1
    )


class GrpoConfig(AdapterConfig):
    """Group-relative policy optimization with the task's scorer as reward: the paper's section 5."""

    batch_size: int = option(128, "Completions per optimizer step, a multiple of num_generations.", ge=1)
    max_steps: int | None = option(600, "Optimizer steps; each samples new completions.", ge=1)
    num_generations: int = option(
        8, "Completions per prompt, whose rewards are normalized together; at least 2.", ge=2
    )
    beta: float = option(
        0.04, "Weight of the divergence from the model that training begins with; 0 leaves it out.", ge=0
    )
    temperature: float = option(0.9, "Softmax temperature of the samples, above 0.", gt=0)
    top_p: float = option(1.0, "Nucleus mass that samples are kept to, in (0, 1].", gt=0, le=1)
    top_k: int = option(0, "Tokens that samples are kept to; 0 keeps all.", ge=0)
    max_completion_length: int | None = option(
        None, "The longest completion in tokens; by default the task's own limit.", ge=1
    )

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.batch_size % self.num_generations:
            raise HarnessError(
                f"--num-generations {self.num_generations} does not divide --batch-size {self.batch_size}, "
                "which counts completions",
                "Choose a multiple of it",
            )
        return self

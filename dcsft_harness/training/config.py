"""The settings of training runs, checked before anything is loaded; defaults are the paper's."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self, get_args, get_type_hints

from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.scoring.boxes import BOX_SPACES

DTYPES = ("auto", "float32", "bfloat16")
TARGETS = ("all", "language", "vision")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What all training runs share. Names that TRL has too mean what they mean there.

    Attributes:
        learning_rate: peak of the schedule.
        batch_size: samples per optimizer step, over all processes; an epoch's last batch may be smaller.
        micro_batch_size: samples per forward pass of a process; the gradients of a batch are accumulated.
            A divisor of `batch_size`. None takes a process's share of the batch at once.
        max_steps: optimizer steps, repeating the data as often as needed; None goes by `epochs`.
        epochs: passes over the data; None goes by `max_steps`.
        warmup_ratio: share of the steps in which the learning rate rises from 0, in [0, 1).
        lr_scheduler_type: shape of the learning rate after that. Cosine, like the two values
            below, is what the paper's scripts leave to their trainer's defaults (ms-swift).
        weight_decay: AdamW's.
        adam_beta2: AdamW's decay of the second moment, in [0, 1).
        seed: decides LoRA's initial weights, dropout and the order of the data.
        dtype: type that the forward pass computes in, one of `DTYPES`; "auto" is bfloat16 on CUDA
            devices that have it and float32 elsewhere.
        min_pixels: least area of a resized image, in pixels; None keeps the processor's.
        max_pixels: largest area of a resized image, in pixels; None keeps the processor's, which evaluation
            goes by. The paper's scripts train with 802,816, and recipes at its scale say so.
        box_space: the coordinates that boxes are taught in: "pixel" (of the original image, as the paper's
            scripts do), "resized" or "norm1000"; None is the model's own.
        save_steps: steps between checkpoints, which an interrupted run goes on from; None writes none.
        keep: how many of the newest checkpoints stay in the finished folder, without the optimizer's
            state; None keeps one while the run lasts, and none after.
        extra: TRL's own arguments (`trl.SFTConfig`, `trl.GRPOConfig`) by TRL's own names.
    """

    learning_rate: float = 1e-5
    batch_size: int = 16
    micro_batch_size: int | None = None
    max_steps: int | None = None
    epochs: int | None = None
    warmup_ratio: float = 0.1
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.1
    adam_beta2: float = 0.95
    seed: int = 0
    dtype: str = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None
    box_space: str | None = None
    save_steps: int | None = 100
    keep: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            HarnessError: names the argument and the value.
        """
        _number("learning_rate", self.learning_rate, low=0, above=True)
        _whole("batch_size", self.batch_size, low=1)
        for name in (
            "micro_batch_size",
            "max_steps",
            "epochs",
            "min_pixels",
            "max_pixels",
            "save_steps",
            "keep",
        ):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), low=1)
        _number("warmup_ratio", self.warmup_ratio, low=0, below=1)
        _number("weight_decay", self.weight_decay, low=0)
        _number("adam_beta2", self.adam_beta2, low=0, below=1)
        _whole("seed", self.seed, low=0, high=2**32 - 1)
        if self.dtype not in DTYPES:
            raise unknown_name("dtype", str(self.dtype), DTYPES)
        if self.box_space is not None and self.box_space not in BOX_SPACES:
            raise unknown_name("box_space", str(self.box_space), BOX_SPACES)
        if not isinstance(self.extra, Mapping):
            raise HarnessError(
                f"extra={self.extra!r} is not a mapping", "Give TRL's arguments as name: value"
            )
        self._check_together()

    def _check_together(self) -> None:
        if (self.max_steps is None) == (self.epochs is None):
            raise HarnessError(
                f"max_steps={self.max_steps} and epochs={self.epochs} do not say how long to train",
                "Give exactly one of them",
            )
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise HarnessError(
                f"micro_batch_size={self.micro_batch_size} does not divide batch_size={self.batch_size}",
                "Choose a divisor",
            )
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise HarnessError(
                f"min_pixels={self.min_pixels} exceeds max_pixels={self.max_pixels}", "Swap them"
            )

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
                f"batch_size={self.batch_size} cannot be shared by {processes} processes, {micro} at a time",
                "Choose a batch_size that is a multiple of processes times micro_batch_size",
            )
        return micro, self.batch_size // (micro * processes)

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Self:
        """Builds the settings from a command line's or a recipe's options.

        Numbers may arrive as text (YAML reads `1e-5` as such). Giving one of `max_steps` and
        `epochs` takes back the other's default.

        Raises:
            HarnessError: an option is unknown, with near matches, or its value is out of range.
        """
        kinds = get_type_hints(cls)
        for name in options:
            if name not in kinds:
                raise unknown_name("training option", name, kinds)
        values = {name: _read(name, kinds[name], value) for name, value in options.items()}
        for one, other in (("max_steps", "epochs"), ("epochs", "max_steps")):
            if values.get(one) is not None:
                values.setdefault(other, None)
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-serialisable values, as a manifest records them."""
        return asdict(self) | {"extra": dict(self.extra)}


@dataclass(frozen=True, kw_only=True)
class ColdStartConfig(TrainingConfig):
    """Full-parameter training that teaches a base model the answer format: 400 samples, one epoch."""

    epochs: int | None = 1


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(TrainingConfig):
    """Training that updates a LoRA adapter, or with `full` all parameters.

    Attributes:
        full: train all parameters instead of an adapter; the LoRA settings then mean nothing.
        lora_rank: rank of the low-rank updates.
        lora_alpha: their scale times the rank.
        lora_dropout: share of their inputs dropped in training, in [0, 1).
        lora_target: linear layers that get one: "all" (vision tower and aligner included),
            "language", "vision" (vision tower and aligner), or a regular expression that
            matches their whole names. The output layer (`lm_head`) never gets one.
    """

    full: bool = False
    lora_rank: int = 32
    lora_alpha: int = 64
    lora_dropout: float = 0.05
    lora_target: str = "all"

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            HarnessError: names the argument and the value.
        """
        super().__post_init__()
        if not isinstance(self.full, bool):
            raise HarnessError(f"full={self.full!r} is neither true nor false", "Give one of them")
        _whole("lora_rank", self.lora_rank, low=1)
        _whole("lora_alpha", self.lora_alpha, low=1)
        _number("lora_dropout", self.lora_dropout, low=0, below=1)
        try:
            re.compile(self.lora_target)
        except (re.error, TypeError) as error:
            raise HarnessError(
                f"lora_target={self.lora_target!r} is not a regular expression: {error}",
                f"Give {', '.join(TARGETS)} or a regular expression over module names",
            ) from error


@dataclass(frozen=True, kw_only=True)
class SftConfig(AdapterConfig):
    """Supervised fine-tuning: 600 steps in the paper's Table 2, 100 in its Table 1.

    Attributes:
        max_steps: see `TrainingConfig`.
    """

    max_steps: int | None = 600


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(AdapterConfig):
    """Group-relative policy optimisation with the task's scorer as reward: the paper's section 5.

    Attributes:
        batch_size: completions per optimizer step, a multiple of `num_generations`.
        max_steps: optimizer steps; completions are drawn anew for each.
        num_generations: completions per prompt, whose rewards are normalised together; at least 2.
        beta: weight of the divergence from the model that training begins with; 0 leaves it out.
        temperature: softmax temperature of the draws, above 0.
        top_p: nucleus mass that draws are kept to, in (0, 1].
        top_k: tokens that draws are kept to; 0 keeps all.
        max_completion_length: the longest completion in tokens; None takes the task's own limit.
    """

    batch_size: int = 128
    max_steps: int | None = 600
    num_generations: int = 8
    beta: float = 0.04
    temperature: float = 0.9
    top_p: float = 1.0
    top_k: int = 0
    max_completion_length: int | None = None

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            HarnessError: names the argument and the value.
        """
        super().__post_init__()
        _whole("num_generations", self.num_generations, low=2)
        _number("beta", self.beta, low=0)
        _number("temperature", self.temperature, low=0, above=True)
        _number("top_p", self.top_p, low=0, above=True)
        if self.top_p > 1:
            raise HarnessError(f"top_p={self.top_p!r} is out of range", "Give a number above 0, at most 1")
        _whole("top_k", self.top_k, low=0)
        if self.max_completion_length is not None:
            _whole("max_completion_length", self.max_completion_length, low=1)
        if self.batch_size % self.num_generations:
            raise HarnessError(
                f"num_generations={self.num_generations} does not divide batch_size={self.batch_size}, "
                "which counts completions",
                "Choose a multiple of it",
            )


def _read(name: str, kind: Any, value: object) -> Any:  # noqa: ANN401 - a type expression and a value of it
    """A value of the field's type where it arrived as text; anything else as it is."""
    if not isinstance(value, str):
        return value
    kinds = get_args(kind) or (kind,)
    if type(None) in kinds and value.strip().lower() in {"none", "null"}:
        return None
    if bool in kinds and value.strip().lower() in {"true", "false"}:
        return value.strip().lower() == "true"
    for number in (int, float):
        if number in kinds:
            try:
                return number(value)
            except ValueError as error:
                raise HarnessError(f"{name}={value!r} is not {_NOUN[number]}", "Give a number") from error
    return value


_NOUN: dict[type, str] = {int: "a whole number", float: "a number"}


def _whole(name: str, value: object, low: int, high: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise HarnessError(f"{name}={value!r} is not a whole number", f"Give an integer of at least {low}")
    if not low <= value <= high:
        raise HarnessError(f"{name}={value!r} is out of range", f"Give an integer of at least {low}")


def _number(name: str, value: object, low: float, above: bool = False, below: float = math.inf) -> None:
    """Checks for a finite number in [low, below); with `above`, `low` itself is out too."""
    bound = f"{'above' if above else 'at least'} {low:g}" + (
        "" if math.isinf(below) else f" and below {below:g}"
    )
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise HarnessError(f"{name}={value!r} is not a number", f"Give one {bound}")
    if not (value > low if above else value >= low) or not value < below:
        raise HarnessError(f"{name}={value!r} is out of range", f"Give a number {bound}")

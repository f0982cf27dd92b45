"""The settings of training runs, checked before anything is loaded; defaults are the paper's."""

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from dcsft_harness import reading
from dcsft_harness.coordinates import BoxSpace
from dcsft_harness.errors import HarnessError, cut, unknown_name
from dcsft_harness.settings import Settings, flag, option, read_text

TARGETS = ("all", "language", "vision")

EITHER = (("max_steps", "epochs"), ("epochs", "max_steps"))
_OWN: dict[str, str] = {
    "output_dir overwrite_output_dir output": "Pass --output",
    "model model_init_kwargs trust_remote_code": "Pass --model and --dtype; code of checkpoints is never run",
    "data": "Pass --data",
    "adapter peft_config": "Pass --adapter, or --lora-rank and the other options of LoRA",
    "scorer image_root": "Pass --scorer or --image-root on the command line",
    "resume resume_from_checkpoint restore_callback_states_from_checkpoint ignore_data_skip":
        "Leave it out: the same command resumes an interrupted run",
    "push_to_hub push_to_hub_model_id push_to_hub_organization push_to_hub_token hub_always_push hub_model_id"
    " hub_private_repo hub_revision hub_strategy hub_token private log_completions_hub_repo":
        "Pass --push-to-hub OWNER/NAME (and --private), or run `dcsft push`; the token is the environment's",
    "lr": "Pass --learning-rate",
    "per_device_train_batch_size per_gpu_train_batch_size gradient_accumulation_steps auto_find_batch_size":
        "Pass --batch-size, which counts all processes, and --micro-batch-size",
    "num_train_epochs": "Pass --epochs",
    "warmup_steps": "Pass --warmup-ratio",
    "data_seed": "Pass --seed",
    "bf16 fp16 use_cpu no_cuda use_mps_device": "Pass --dtype; CUDA_VISIBLE_DEVICES= trains on the CPU",
    "save_strategy save_on_each_node enable_jit_checkpoint": "Pass --save-steps",
    "save_total_limit save_only_model": "Pass --keep",
    "load_best_model_at_end metric_for_best_model greater_is_better": "Run `dcsft score --watch` with --keep",
    "do_train": "Leave it out: `dcsft train` trains",
    "do_eval do_predict eval_strategy evaluation_strategy eval_steps eval_delay eval_on_start eval_packing"
    " eval_accumulation_steps eval_do_concat_batches eval_use_gather_object batch_eval_metrics bf16_full_eval"
    " fp16_full_eval per_device_eval_batch_size per_gpu_eval_batch_size num_generations_eval"
    " prediction_loss_only include_for_metrics":
        "Run `dcsft evaluate`, or `dcsft score --watch` while it trains",
    "logging_dir logging_steps logging_strategy logging_first_step logging_nan_inf_filter disable_tqdm":
        "Leave it out: each step is logged, and TensorBoard's curves are in the output's runs/",
    "remove_unused_columns label_names length_column_name dataset_text_field dataset_kwargs dataset_num_proc"
    " chat_template_path eos_token pad_token assistant_only_loss completion_only_loss max_length"
    " max_seq_length max_prompt_length truncation_mode packing packing_strategy padding_free":
        "Leave it out: rows are written by the base's own chat template, uncut, with the loss on the answer",
    "deepspeed fsdp fsdp_config parallelism_config accelerator_config local_rank":
        "Pass --num-processes and --launch",
    "max_new_tokens": "Pass --max-completion-length",
}  # fmt: skip
OWN = {name: remedy for names, remedy in _OWN.items() for name in names.split()}
"""Arguments of TRL and transformers, including former names, that we set under another name -> what to use
instead. `extra` accepts neither these nor the names of our own options."""
TRACKERS = (
    "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow",
    "neptune", "swanlab", "tensorboard", "trackio", "wandb",
)  # fmt: skip
"""What transformers can report to; importing its own list takes seconds."""
_SAMPLING = ("temperature", "top_p", "top_k", "max_new_tokens", "max_length", "num_return_sequences")
"""Names that `generation_kwargs` refuses: GRPO's own options."""


NO_ROUNDING = option(None, "Refused: this method has no targets to write.", cli=False)
"""The option `box_rounding` of methods without targets: runs record it, and the command line has none."""


class TrainingConfig(Settings):
    """The settings of all training runs. Names shared with TRL have TRL's meaning."""

    SECTION = "Training"
    WITHOUT_TARGETS: ClassVar[str] = ""
    """The name of a method that writes no answers to learn."""
    SEQUENCES: ClassVar[int] = 1
    """Sequences that a forward pass has of a sample."""

    learning_rate: float = option(1e-5, "Peak learning rate.", gt=0)
    batch_size: int = option(
        16, "Samples per optimizer step, over all processes; an epoch's last batch may be smaller.", ge=1
    )
    micro_batch_size: int | None = option(
        None,
        "Samples per forward pass of a process; gradients are accumulated. A divisor of batch_size. By"
        " default as many as fit.",
        ge=1,
    )
    max_steps: int | None = option(
        None, "Optimizer steps, repeating the data as often as needed; instead of epochs.", ge=1
    )
    epochs: int | None = option(None, "Passes over the data; instead of max_steps.", ge=1)
    warmup_ratio: float = option(
        0.1,
        "Share of the steps in which the learning rate rises from 0, in [0, 1).",
        ge=0,
        lt=1,
    )
    # Cosine and the two values below are defaults of ms-swift, which the paper's scripts do not override.
    lr_scheduler_type: str = option("cosine", "Shape of the learning rate after the warm-up.")
    weight_decay: float = option(0.1, "AdamW's weight decay.", ge=0)
    adam_beta2: float = option(0.95, "AdamW's decay of the second moment, in [0, 1).", ge=0, lt=1)
    seed: int = option(
        0, "Seed of LoRA's initial weights, dropout and the order of the data.", ge=0, le=2**32 - 1
    )
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        "Precision of the forward pass; auto is bfloat16 on CUDA devices that have it and float32 elsewhere.",
    )
    min_pixels: int | None = option(
        None, "Minimum area of a resized image, in pixels; by default the processor's.", ge=1
    )
    # The paper's scripts train with 802,816, and recipes at its scale set that value.
    max_pixels: int | None = option(
        None,
        "Maximum area of a resized image, in pixels; by default the processor's, which evaluation uses.",
        ge=1,
    )
    box_space: BoxSpace | None = option(
        None,
        "Coordinates of box targets: pixel (of the original image, as in the paper), resized or norm1000;"
        " by default the model's own.",
    )
    box_rounding: Literal["truncate"] | None = option(
        None,
        "With box_space pixel: truncate drops the decimals of box targets, as the paper does; by default they"
        " keep two.",
    )
    chat_template_kwargs: Mapping[str, Any] | None = option(
        None,
        'Further arguments of the chat template, as JSON: {"enable_thinking": false}. By default those'
        " that the adapter or the base was trained with. Recorded, and the default in evaluation.",
        metavar="JSON",
    )
    save_steps: int | None = option(
        100,
        "Steps between checkpoints, from which an interrupted run resumes; none writes no checkpoints.",
        ge=1,
    )
    keep: int | None = option(
        None,
        "How many of the newest checkpoints to keep in the finished folder, without optimizer state; by"
        " default one while training runs, and none after.",
        ge=1,
    )
    on_error: Literal["stop", "skip"] = option(
        "stop",
        "Rows that cannot be trained on (a damaged image, one that the processor refuses, no answer, too"
        " many tokens): stop lists them before weights are read, skip leaves them out and records them.",
    )
    extra: Mapping[str, Any] = option(
        about="TRL's own arguments by TRL's own names.", default_factory=dict, cli=False
    )

    @classmethod
    def unknown(cls, name: str) -> HarnessError:
        """Says what to use instead of an argument of TRL or transformers, or where to pass it."""
        error = super().unknown(name)
        if name in OWN:
            return HarnessError(error.problem, OWN[name])
        end = "" if error.remedy.endswith("?") else "."
        passed = f"TRL's arguments are passed as --set {name}=VALUE, in a recipe as extra: {{{name}: VALUE}}"
        return HarnessError(error.problem, f"{error.remedy}{end} {passed}")

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Removes the default of `epochs` if `max_steps` is given, and the other way round."""
        given = dict(values)
        for one, other in EITHER:
            # A command line's "none" is text here still.
            if read_text(cls.model_fields[one].annotation, given.get(one)) is not None:
                given.setdefault(other, None)
        return given

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _read_template_arguments(cls, given: object) -> object:
        return None if given is None else reading.json_option(flag("chat_template_kwargs"), given)

    @model_validator(mode="after")
    def _check_extra(self) -> Self:
        # The error repeats no value: hub_token is one of the names.
        own = {name: f"Pass {flag(name)}" for name in type(self).model_fields} | OWN
        for name in self.extra:
            if (remedy := own.get(str(name).replace("-", "_"))) is not None:
                raise HarnessError(f"TRL's argument {cut(name, 80)} is set by the harness", remedy)
        trackers = self.extra.get("report_to") or []
        for name in trackers if isinstance(trackers, list | tuple) else [trackers]:
            if name not in (*TRACKERS, "all", "none"):
                raise unknown_name("report_to", str(name), TRACKERS)
        sampled = self.extra.get("generation_kwargs")
        for name in sampled if isinstance(sampled, Mapping) else ():
            if name in _SAMPLING:
                ours = "max_completion_length" if name.startswith("max") else name
                remedy = f"Pass {flag(ours) if ours in own else '--num-generations'}"
                raise HarnessError(
                    f"TRL's argument generation_kwargs has {name}, which is set by the harness", remedy
                )
        return self

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.max_steps is None) == (self.epochs is None):
            raise HarnessError(
                f"--max-steps {self.max_steps} and --epochs {self.epochs} do not set the length of training",
                "Pass exactly one of them",
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
        if self.box_rounding is not None and self.WITHOUT_TARGETS:
            raise HarnessError(
                f"--box-rounding {self.box_rounding}: {self.WITHOUT_TARGETS} has no targets to write",
                "Leave it out",
            )
        if self.box_rounding is not None and self.box_space != "pixel":
            raise HarnessError(
                f"--box-rounding {self.box_rounding} requires --box-space pixel: targets of other spaces are"
                " whole numbers, rounded",
                "Pass --box-space pixel, or leave it out",
            )
        return self

    @property
    def samples_per_row(self) -> int:
        """Samples, as `batch_size` counts them, per row of the training set and epoch."""
        return 1

    @classmethod
    def steps_per_epoch(cls, samples: float, batch_size: float) -> int:
        """Optimizer steps of a pass over the data; the last batch may be smaller."""
        return math.ceil(samples / batch_size)

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with the initial model, which is then kept."""
        return False

    def share(self, processes: int) -> tuple[int, int]:
        """Samples per forward pass of one process of a launch, and the number of accumulated passes.

        Processes that cannot share a batch evenly are refused.
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

    SECTION = "Method"

    epochs: int | None = option(1, "Passes over the data; instead of max_steps.", ge=1)


class AdapterConfig(TrainingConfig):
    """Training that updates a LoRA adapter, or with `full` all parameters."""

    SECTION = "LoRA"

    full: bool = option(False, "Train all parameters instead of an adapter; LoRA options are ignored.")
    lora_rank: int = option(32, "LoRA rank.", ge=1)
    lora_alpha: int = option(64, "LoRA alpha: updates are scaled by alpha / rank.", ge=1)
    lora_dropout: float = option(0.05, "Dropout rate of the LoRA layers, in [0, 1).", ge=0, lt=1)
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
                f"--lora-target {cut(self.lora_target, 80)} is not a regular expression: {error}",
                f"Pass {', '.join(TARGETS)} or a regular expression over module names",
            ) from error
        return self


class SftConfig(AdapterConfig):
    """Supervised fine-tuning: 600 steps in the paper's Table 2, 100 in its Table 1."""

    SECTION = "Method"

    max_steps: int | None = option(
        600, "Optimizer steps, repeating the data as often as needed; instead of epochs.", ge=1
    )


class GrpoConfig(AdapterConfig):
    """Group-relative policy optimization with the task's scorer as reward: the paper's section 5."""

    SECTION = "Method"
    WITHOUT_TARGETS: ClassVar[str] = "GRPO"

    box_rounding: Literal["truncate"] | None = NO_ROUNDING
    batch_size: int = option(128, "Completions per optimizer step, a multiple of num_generations.", ge=1)
    max_steps: int | None = option(600, "Optimizer steps; each samples new completions.", ge=1)
    num_generations: int = option(
        8, "Completions per prompt, whose rewards are normalized together; at least 2.", ge=2
    )
    beta: float = option(0.04, "Weight of the KL divergence from the initial model; 0 leaves it out.", ge=0)
    temperature: float = option(0.9, "Softmax temperature of the samples, above 0.", gt=0)
    top_p: float = option(1.0, "Nucleus (top-p) mass kept, in (0, 1].", gt=0, le=1)
    top_k: int = option(0, "Top-k tokens kept; 0 keeps all.", ge=0)
    max_completion_length: int | None = option(
        None, "Maximum completion length in tokens; by default the task's own limit.", ge=1
    )

    @property
    def samples_per_row(self) -> int:
        """Completions of a prompt."""
        return self.num_generations

    @property
    def has_reference(self) -> bool:
        """Whether the divergence term has a weight."""
        return self.beta > 0

    @classmethod
    def steps_per_epoch(cls, samples: float, batch_size: float) -> int:
        """Optimizer steps of a pass over the data: TRL leaves out a last batch that is not whole."""
        return math.floor(samples / batch_size)

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.batch_size % self.num_generations:
            raise HarnessError(
                f"--num-generations {self.num_generations} does not divide --batch-size {self.batch_size}, "
                "which counts completions",
                "Choose a multiple of it",
            )
        return self

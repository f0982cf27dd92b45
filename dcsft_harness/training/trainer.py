"""TRL's SFTTrainer with every argument that matters set on purpose, and an account of what it did."""

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import trl
from transformers import PrinterCallback, TrainerCallback

from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.training.config import TrainingConfig

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each step with (steps done, steps in all, {"loss": ..., "grad_norm": ...})."""

LOGGED = ("loss", "grad_norm", "learning_rate")


@dataclass
class Ledger:
    """What a run has done so far.

    Attributes:
        samples: samples that went through the model.
        prompt_tokens: tokens without loss, those of images included and padding not.
        completion_tokens: tokens with loss.
        history: one row per step: step, loss (mean per token with loss, in nats), grad_norm
            (before clipping) and learning_rate.
    """

    samples: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Writes the history as JSON Lines."""
        path.write_text("".join(json.dumps(row) + "\n" for row in self.history), encoding="utf-8")


def managed(config: TrainingConfig, dtype: torch.dtype, output: Path) -> dict[str, Any]:
    """TRL's arguments that our settings decide, or whose change would break what we promise."""
    micro = config.micro_batch_size or config.batch_size
    return {
        "output_dir": str(output),
        "learning_rate": config.learning_rate,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": config.batch_size // micro,
        "max_steps": config.max_steps or -1,
        "num_train_epochs": config.epochs or 1,
        "warmup_steps": config.warmup_ratio,  # below 1, transformers 5 reads it as a ratio
        "lr_scheduler_type": config.lr_scheduler_type,
        "weight_decay": config.weight_decay,
        "adam_beta2": config.adam_beta2,
        "seed": config.seed,
        "use_cpu": not torch.cuda.is_available(),  # else bf16 on a CPU is refused
        # TRL switches bf16 on unless told otherwise, on a CPU too.
        "bf16": dtype == torch.bfloat16,
        # TRL cuts samples at 1,024 tokens: through the image tokens of a large picture, or the answer.
        "max_length": None,
        "completion_only_loss": True,
        "packing": False,
        # The rows are made by a transform whose columns the trainer does not know.
        "remove_unused_columns": False,
        # True would log the average of earlier losses in place of one that is not a number.
        "logging_nan_inf_filter": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
    }


def arguments(config: TrainingConfig, dtype: torch.dtype, output: Path) -> trl.SFTConfig:
    """TRL's arguments of a run.

    Raises:
        HarnessError: an argument of `extra` is unknown to TRL, is one of our settings under
            another name, or has a value that TRL refuses.
    """
    ours = managed(config, dtype, output)
    known = {item.name for item in fields(trl.SFTConfig) if item.init}
    for name in config.extra:
        if name in ours:
            raise HarnessError(
                f"extra: {name} is set by the harness, to {ours[name]!r}",
                "Use the option of the same meaning where there is one (batch_size, epochs, dtype, ...)",
            )
        if name not in known:
            raise unknown_name("TRL argument", name, known)
    defaults = {
        # Recomputing activations trades a third of the speed for memory that only large models need.
        "gradient_checkpointing": torch.cuda.is_available(),
        "report_to": "none",
        "log_level": "error",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    try:
        with quietly():
            return trl.SFTConfig(**ours, **(defaults | dict(config.extra)))
    except (ValueError, TypeError, ImportError) as error:
        raise HarnessError(f"TRL refuses its arguments: {error}", "Correct `extra`") from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keeps TRL's and PEFT's use of names that transformers renamed off the user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


class AccountedTrainer(trl.SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that counts what it trains on and stops at the first loss that is not a number."""

    def __init__(self, ledger: Ledger, **given: Any) -> None:  # noqa: ANN401 - SFTTrainer's own arguments
        """Takes SFTTrainer's arguments and the ledger to fill."""
        super().__init__(**given)
        self._ledger = ledger
        # transformers says False for most vision-language models (their own loss ignores the count), and
        # an accumulated batch would then weigh micro-batches alike, however many tokens each has. The
        # loss here is TRL's, which divides by the tokens of the whole batch once it is told them.
        self.model_accepts_loss_kwargs = True
        # Added by the trainer when its own progress bar is off; it prints every log line.
        self.remove_callback(PrinterCallback)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        *rest: Any,  # noqa: ANN401
        **named: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        """One forward and backward pass over a micro-batch.

        Raises:
            HarnessError: the loss is not finite; the weights are still those of the last step.
        """
        rows = int(inputs["input_ids"].shape[0])
        learned = int((inputs["labels"] != -100).sum())
        tokens = int(inputs["attention_mask"].sum())
        loss = super().training_step(model, inputs, *rest, **named)
        if not torch.isfinite(loss):
            raise not_finite("loss", float(loss), self.state.global_step + 1)
        self._ledger.samples += rows
        self._ledger.completion_tokens += learned
        self._ledger.prompt_tokens += tokens - learned
        return loss  # type: ignore[no-any-return]

    def _send_telemetry(self) -> None:
        """TRL tells the hub about every run unless an environment variable is set; this suite does not."""


class Watch(TrainerCallback):  # type: ignore[misc]
    """Keeps each step's figures and passes them on."""

    def __init__(self, ledger: Ledger, progress: Progress | None) -> None:
        """Takes the ledger to fill and the function to call."""
        self._ledger, self._progress = ledger, progress

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:  # noqa: ANN401
        """Called by the trainer after each step, and once more at the end with totals."""
        if not logs or "loss" not in logs:
            return
        row = {name: float(logs[name]) for name in LOGGED if name in logs}
        if not math.isfinite(row.get("grad_norm", 0.0)):
            raise not_finite("gradient norm", row["grad_norm"], state.global_step)
        self._ledger.history.append({"step": state.global_step} | row)
        if self._progress is not None:
            del row["learning_rate"]
            self._progress(state.global_step, state.max_steps, row)


def not_finite(what: str, value: float, step: int) -> HarnessError:
    """The error for a figure that training cannot go on from."""
    return HarnessError(
        f"the {what} of step {step} is {value}: training diverged",
        "Lower learning_rate, or look for damaged samples; no result was kept",
    )

"""TRL's trainers with every important argument set on purpose, and an account of each run."""

import contextlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
import trl
import trl.trainer.utils
from peft import PeftModel
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
)
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.utils import logging

from dcsft_harness import interrupts, ranks
from dcsft_harness.artifacts.usage import Ledger, Meter
from dcsft_harness.environment import called
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.models.resources import Arithmetic
from dcsft_harness.models.weights import error_line
from dcsft_harness.training.config import TRACKERS, TrainingConfig
from dcsft_harness.training.run_folder import RunFolder

# Costs and measurements of a run, step by step, across interruptions.

LOGGED = {name: name for name in ("loss", "grad_norm", "learning_rate", "entropy")}
"""TRL's name of a metric of every method -> its name in the log."""

COUNTED = ("prompts", "generated", "prompt_tokens", "completion_tokens", "flops")
"""The metrics that each process of a launch counts for itself."""


class Account:
    """A run's ledger and history.

    Attributes:
        ledger: its costs.
        history: one row per step: step, loss (nats), grad_norm (before clipping), learning_rate, the method's
            own metrics, and the run's costs so far: samples, tokens (prompt and completion), seconds.
        logged: TRL's name of a metric -> its name in the log; a trainer adds its method's.
        costs: the cost of a token; set once the model is loaded.
    """

    def __init__(self) -> None:
        """Starts the clock."""
        self.ledger = Ledger()
        self.history: list[dict[str, float | None]] = []
        self.costs: Arithmetic | None = None
        self.logged: Mapping[str, str] = LOGGED
        self._meter, self._before = Meter(), 0.0
        self._counted = dict.fromkeys(COUNTED, 0.0)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continues from the values that `state` returned, costs included."""
        self.ledger = Ledger.read(state["ledger"])
        self.history = list(state["history"])
        self._before = self.ledger.seconds

    def state(self) -> dict[str, Any]:
        """The metrics and costs so far, as stored in a checkpoint."""
        self.measure()
        return {"ledger": self.ledger.as_dict(), "history": self.history}

    def measure(self) -> None:
        """Updates time and memory in the ledger."""
        self.ledger.seconds = round(self._before + self._meter.seconds, 3)
        self.ledger.peak_memory_bytes = max(self.ledger.peak_memory_bytes, self._meter.peak_memory_bytes)

    def count(self, **more: float) -> None:
        """Adds this process's work to the metrics of `COUNTED`."""
        for name, value in more.items():
            self._counted[name] += value

    def step(self, number: int, logs: Mapping[str, Any]) -> dict[str, float | None]:
        """Adds a step's metrics, with the counts of all processes, and returns them."""
        self.ledger.steps = number
        everyones = ranks.gathered(self._counted)
        for name in COUNTED:
            now = getattr(self.ledger, name) + sum(counted[name] for counted in everyones)
            # A prompt of GRPO may be split among the processes that have its group.
            setattr(self.ledger, name, now if name == "flops" else round(now))
        self._counted = dict.fromkeys(COUNTED, 0.0)
        row: dict[str, float | None] = {"step": number}
        for theirs, ours in self.logged.items():
            if theirs in logs:
                value = None if logs[theirs] is None else float(logs[theirs])
                row[ours] = value if value is None or math.isfinite(value) else None
        ledger = self.ledger
        row |= {
            "samples": ledger.generated or ledger.prompts,
            "tokens": ledger.prompt_tokens + ledger.completion_tokens,
            "seconds": round(self._before + self._meter.seconds, 3),
        }
        self.history.append(row)
        return row

    def write(self, path: Path) -> None:
        """Writes the history as JSON Lines."""
        path.write_text("".join(json.dumps(row) + "\n" for row in self.history), encoding="utf-8")


MIXED = "ACCELERATE_MIXED_PRECISION"
Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each step with (steps done, total steps, {"loss" or "reward": ..., "grad_norm": ...})."""


def managed(config: TrainingConfig, dtype: torch.dtype, output: Path) -> dict[str, Any]:
    """TRL's arguments that our settings decide, or that our guarantees depend on.

    Raises:
        HarnessError: the launch's processes do not divide a batch.
    """
    micro, accumulated = config.share(ranks.world_size())
    schedule = config.lr_scheduler_type
    if schedule == "constant" and config.warmup_ratio:  # transformers' own knows no warm-up
        schedule = "constant_with_warmup"
    if MIXED in os.environ:
        # Set by `accelerate launch`; it overrides `bf16` below if that is false.
        os.environ[MIXED] = "bf16" if dtype == torch.bfloat16 else "no"
    return {
        "output_dir": str(output),
        "learning_rate": config.learning_rate,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulated,
        "max_steps": config.max_steps or -1,
        "num_train_epochs": config.epochs or 1,
        "warmup_steps": config.warmup_ratio,  # below 1, transformers 5 reads it as a ratio
        "lr_scheduler_type": schedule,
        "weight_decay": config.weight_decay,
        "adam_beta2": config.adam_beta2,
        "seed": config.seed,
        "use_cpu": not torch.cuda.is_available(),  # else bf16 on a CPU is refused
        # TRL switches bf16 on by default, on a CPU too.
        "bf16": dtype == torch.bfloat16,
        # A transform makes the rows, with columns that the trainer does not know.
        "remove_unused_columns": False,
        # True would log the average of earlier losses instead of a NaN.
        "logging_nan_inf_filter": False,
        "logging_steps": 1,
        "save_strategy": "no" if config.save_steps is None else "steps",
        "save_steps": config.save_steps or 500,
        "disable_tqdm": True,
    }


def arguments(
    kind: type[Any],
    ours: Mapping[str, Any],
    extra: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> Any:  # noqa: ANN401 - TRL's
    """TRL's arguments for a run, of `trl.SFTConfig` or another method's class.

    The user's `extra` may not change `ours`, which the harness sets, but the method's own `defaults`.

    Raises:
        HarnessError: an argument of `extra` is unknown to TRL, is one of our settings under
            another name, has a value that TRL refuses, or names a tracker that is not installed.
    """
    known = {item.name for item in fields(kind) if item.init}
    for name in extra:
        if name in ours:
            raise HarnessError(
                f"TRL's argument {name} is set by the harness, to {ours[name]!r}",
                "Use the equivalent option, if there is one (batch_size, epochs, dtype, ...)",
            )
        if name not in known:
            raise unknown_name("TRL argument", name, known)
    kinds = get_type_hints(kind)
    given = {name: _numbered(name, kinds[name], value) for name, value in extra.items()}
    for name, value in given.items():
        _check_value(kind.__name__, name, value)
    general = {
        "report_to": "none",
        "log_level": "error",
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Rows without an image skip the vision tower, and some towers skip their last layer.
        "ddp_find_unused_parameters": True,
    }
    try:
        with quietly():
            made = kind(**ours, **(general | dict(defaults or {}) | given))
    except (ValueError, TypeError, ImportError) as error:
        raise _refused(error) from error
    if not made.max_grad_norm > 0:
        raise HarnessError(
            f"extra: max_grad_norm={made.max_grad_norm} disables gradient norms, which "
            "detect gradients that are not finite",
            "Use 1e9 to clip none",
        )
    # What transformers would refuse only after weights are read.
    _check_trackers(made.report_to or [])
    _check_optimizer(made)
    _check_schedule(made)
    return made


VALUES: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "SFTConfig": {"loss_type": ("nll", "dft", "chunked_nll"), "pad_to_multiple_of": (None,)},
    "DPOConfig": {"label_smoothing_factor": (0,), "pad_to_multiple_of": (None,)},
    "GRPOConfig": {
        "label_smoothing_factor": (0,),
        "train_sampling_strategy": ("random",),
        "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"),
        "scale_rewards": ("group", "batch", "none", True, False),
        "importance_sampling_level": ("token", "sequence"),
        "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    },
}
"""TRL's class of arguments -> argument -> values that it takes; it ignores others, or refuses them late."""
_ORDERS = ("random", "sequential")
"""Orders of rows that all processes of a launch share; TRL cannot group pictures by length."""
_COUNTS = ("num_iterations", "steps_per_generation", "generation_batch_size")


def _check_value(kind: str, name: str, value: object) -> None:
    known: dict[str, tuple[object, ...]] = {"train_sampling_strategy": _ORDERS, **VALUES.get(kind, {})}
    values = known.get(name)
    if values is not None and value not in values:
        remedy = f"Use one of {', '.join(map(str, values))}" if len(values) > 1 else "Leave it out"
        raise HarnessError(f"extra: {name}={value!r} is not supported", remedy)
    if name in _COUNTS and value is not None and (not isinstance(value, int) or value < 1):
        raise HarnessError(f"extra: {name}={value!r} is not a whole number of 1 or more", "Pass one")


def _refused(error: BaseException) -> HarnessError:
    return HarnessError(f"TRL refuses its arguments: {error_line(error)}", "Correct `extra`")


@contextlib.contextmanager
def passing(extra: Mapping[str, Any], begins: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Reports in one sentence what TRL refuses of `extra` only once weights are read.

    Errors of other code, and those after `begins` no longer holds, pass.
    """
    try:
        yield
    except Exception as error:
        # A RuntimeError may be of the device, of a launch that lost a process, or of the model.
        passes = isinstance(error, HarnessError | OSError) or (
            isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError)
        )
        if passes or not extra or not begins() or called(error) not in _CALLED:
            raise
        if type(error).__module__.partition(".")[0] in TRACKERS:
            raise  # which is not TRL's to take
        raise _refused(error) from error


_CALLED = ("accelerate", "peft", "torch", "transformers", "trl")


def _numbered(name: str, kind: object, value: object) -> object:
    """A number that arrived as text, as in `extra: {lr: "1e-5"}`; anything else unchanged."""
    kinds = get_args(kind) or (kind,)
    if not isinstance(value, str) or str in kinds or not {int, float} & set(kinds):
        return value
    for number in (int, float):
        if number in kinds:
            with contextlib.suppress(ValueError):
                return number(value)
    raise HarnessError(f"extra: {name}={value!r} is not a number", "Pass one")


_FAULTS = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError)
"""What transformers and torch raise at arguments that they do not take."""


def _check_optimizer(args: TrainingArguments) -> None:
    try:
        made, given = Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Identity())
        if args.optim_target_modules is None and "model" not in given:
            made([torch.nn.Parameter(torch.zeros(1, 1))], **given)
    except ImportError as error:
        raise HarnessError(
            f"optim={args.optim.value} needs a package that is not installed: {error}",
            "Install it, or use another --set optim=NAME",
        ) from error
    except _FAULTS as error:
        if args.optim_target_modules is None:  # else it may miss layers that the real model has
            raise HarnessError(
                f"optim={args.optim.value} cannot be created: {error}", "Correct `optim` or `optim_args`"
            ) from error


def _check_schedule(args: TrainingArguments) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    name, steps = args.lr_scheduler_type, 20  # of which some are the warm-up
    warm = min(args.get_warmup_steps(steps), steps - 1)
    try:
        made = get_scheduler(name, optimizer, warm, steps, args.lr_scheduler_kwargs)
        for _ in range(steps):
            optimizer.step()
            made.step()
    except _FAULTS as error:
        raise HarnessError(
            f"--lr-scheduler-type {name.value} cannot be created: {error}",
            "Pass what it lacks as --set 'lr_scheduler_kwargs={\"NAME\": VALUE}', or take another",
        ) from error


def _check_trackers(names: Sequence[str]) -> None:
    for name in names:
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            raise HarnessError(
                f"report_to={name} needs a package that is not installed: {error}",
                f"Install it (pip install {name}), or leave report_to out",
            ) from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Hides transformers' progress bars, and warnings about TRL's and PEFT's use of names that it renamed."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


_ALONE = "_use_triton"
"""TRL's function of a device: whether its output layer scores the positions with a label alone there."""


@contextlib.contextmanager
def answers_alone() -> Iterator[None]:
    """Lets TRL's output layer score the positions with a label alone on a CPU, too, as it does on CUDA.

    TRL scores every position where it cannot use Triton, because compiled kernels want shapes that do not
    change. Nothing is compiled on a CPU, where most positions of a prompt are images: scoring them took half
    of a step's time with two layers of a width of 2,048, and its gradients set the peak of memory.
    """
    on_triton = getattr(trl.trainer.utils, _ALONE, None)
    if on_triton is None:
        yield
        return
    setattr(trl.trainer.utils, _ALONE, lambda device: device.type == "cpu" or on_triton(device))
    try:
        yield
    finally:
        setattr(trl.trainer.utils, _ALONE, on_triton)


ROWS = "rows"
"""The rows of a batch; a negative number marks one that is excluded from the loss."""


class WithRows:
    """A collator that also passes on the set's row numbers of a batch."""

    def __init__(self, inner: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        """Adds to what another collator makes."""
        self._inner = inner

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch with `ROWS`."""
        rows = torch.tensor([example.pop("row") for example in examples])
        made = self._inner(examples)
        if "labels" in made:
            made["labels"][rows < 0] = -100
        return {**made, ROWS: rows}


class Accounted:
    """Our additions to TRL's trainer: cost accounting, the items of a bad step, and no report to a hub."""

    logged: Mapping[str, str] = {}  # TRL's names of the method's own metrics -> their names in the log
    steps_per_draw = 1  # a run that resumed between two of them would end with other weights
    account: Account  # the run's costs so far, and its metrics by step
    _counted_at = -1
    item_ids: Sequence[str]  # content ids by row of the training set, or other names of its rows

    def bind(self, account: Account, item_ids: Sequence[str]) -> None:
        """Sets the account; called before training."""
        self.account, self.item_ids = account, item_ids
        account.logged = {**account.logged, **self.logged}
        self._rows: list[int] = []
        # Added by the trainer when its own progress bar is off; it prints every log line.
        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *rest: object, **named: object
    ) -> torch.Tensor:
        """One forward and backward pass over a micro-batch.

        A loss that is not finite is an error, which names the step and the items: the weights are those of
        the last step.
        """
        spent = self.spent(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *rest, **named)  # type: ignore[misc]
        if not torch.isfinite(loss):
            step = self.state.global_step + 1  # type: ignore[attr-defined]
            raise not_finite("loss", float(loss), step, self.items())
        self.account.count(**spent)
        return loss

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The trainer's schedule; a warm-up leaves at least one step, whose learning rate is the peak's.

        transformers rounds a ratio up: the only step of a run would have a learning rate of 0.
        """
        args: TrainingArguments = self.args  # type: ignore[attr-defined]
        if args.get_warmup_steps(num_training_steps) >= num_training_steps:
            args.warmup_steps = num_training_steps - 1
        scheduler: torch.optim.lr_scheduler.LRScheduler
        scheduler = super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        return scheduler

    def _run_epoch(self, *given: object, **named: object) -> None:
        """Nothing more in a run that resumes from its last step, where transformers would take another."""
        state, control = self.state, self.control  # type: ignore[attr-defined]
        if state.global_step >= state.max_steps:
            control.should_training_stop = True
            return
        super()._run_epoch(*given, **named)  # type: ignore[misc]

    def spent(self, inputs: dict[str, Any]) -> dict[str, float]:
        """What a micro-batch adds to the metrics of `COUNTED`, if the method counts them by its passes."""
        return {}

    def passed(self, inputs: Mapping[str, Any], learned: int, forwards: int = 0) -> dict[str, float]:
        """`spent` of a micro-batch with `ROWS`, of whose tokens `learned` are; adds them to the step's rows.

        `forwards` are passes besides the one that trains.
        """
        step = self.state.global_step  # type: ignore[attr-defined]
        if self._counted_at != step:
            self._counted_at, self._rows = step, []
        rows = [row for row in inputs[ROWS].tolist() if row >= 0]
        self._rows += rows
        if not rows:
            return {}
        tokens, costs, flops = int(inputs["attention_mask"].sum()), self.account.costs, 0.0
        if costs is not None:
            patches = costs.patches(inputs)
            scored = self.scored(tokens, learned)
            flops = costs.training(tokens, patches, scored)
            flops += forwards * costs.forward(tokens, patches, scored)
        counts = {"prompts": len(rows), "prompt_tokens": tokens - learned, "completion_tokens": learned}
        return {**counts, "flops": flops}

    def remarks(self) -> dict[str, str]:
        """Notes of the method's own about a run."""
        return {}

    def scored(self, tokens: int, learned: int) -> int:
        """The tokens that go through the output layer: those learned, where TRL scores them alone."""
        device = self.accelerator.device  # type: ignore[attr-defined]
        alone = getattr(trl.trainer.utils, _ALONE, None)
        return learned if (device.type == "cuda" if alone is None else alone(device)) else tokens

    def items(self) -> list[str]:
        """The items of the current batch: their ids, or their rows if they have none."""
        return [self.item_ids[row] for row in dict.fromkeys(self._rows)]

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        """Reads the weights of the checkpoint to resume; with full training, they have been read already.

        transformers loads a file by the modules' names in memory and ignores missing ones, and Qwen2.5-VL's
        weights are saved under other names: its language model would keep its initial weights.
        """
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # type: ignore[attr-defined]
        if isinstance(self.model, PeftModel) or sharded:  # type: ignore[attr-defined]
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def create_model_card(self, *given: object, **named: object) -> None:
        """Does nothing: TRL would write a card with each checkpoint; ours is written at the end."""

    def _send_telemetry(self) -> None:
        """Does nothing: TRL would report every run to the hub unless an environment variable is set."""


class Watch(TrainerCallback):  # type: ignore[misc]
    """Records each step's metrics, passes them on, and marks checkpoints as complete."""

    def __init__(
        self,
        trainer: Accounted,
        run: RunFolder,
        keep: int | None,
        progress: Progress | None,
        finish: Callable[[Path], None],
    ) -> None:
        """Takes the trainer to watch, its checkpoint folder, and the function that completes a checkpoint."""
        self._trainer, self._run, self._keep = trainer, run, keep or 1
        self._progress, self._finish = progress, finish

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **more: object,
    ) -> None:
        """Called by the trainer after each step, and again at the end with totals."""
        if not logs or "loss" not in logs:
            return
        norm = float(logs.get("grad_norm", 0.0))
        if not math.isfinite(norm):  # on every rank
            items = [item for part in ranks.gathered(self._trainer.items()) for item in part]
            with ranks.agreed():
                raise not_finite("gradient norm", norm, state.global_step, items)
        row = self._trainer.account.step(state.global_step, logs)
        if self._progress is not None:
            # GRPO's loss is about 0 at every step: advantages of a group add up to 0.
            names = ("reward" if "reward" in row else "loss", "grad_norm")
            shown = {name: value for name in names if (value := row.get(name)) is not None}
            self._progress(state.global_step, state.max_steps, shown)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: object
    ) -> TrainerControl:
        """Called by the trainer after each step; if a signal is pending, saves a step to resume from."""
        whole = state.global_step % self._trainer.steps_per_draw == 0 or state.global_step >= state.max_steps
        if whole and self._pending() is not None:
            control.should_save = True
        return control

    def _pending(self) -> int | None:
        """The signal that is pending in one of the launch's ranks, the same answer in each; None if none is.

        Ranks get a signal at different times, and can only save the same step.
        """
        return next((number for number in ranks.gathered(interrupts.pending()) if number is not None), None)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: object
    ) -> None:
        """Called when the trainer has written a checkpoint's files; each rank writes some of them."""
        ranks.gathered(None)
        if ranks.rank() == 0:
            self._finish(self._run.folder / f"checkpoint-{state.global_step}")
            self._run.complete(state.global_step, self._trainer.account.state(), self._keep)
        if (number := self._pending()) is not None:
            raise interrupts.Interrupted(number)


class Diverged(HarnessError):
    """A loss or a gradient is not finite."""


def not_finite(what: str, value: float, step: int, items: Sequence[str]) -> Diverged:
    """The error for a metric with which training cannot continue."""
    named = ", ".join(items[:16]) + (f" and {len(items) - 16} more" if len(items) > 16 else "")
    return Diverged(
        f"the {what} of step {step} is {value}: training diverged at the items {named}",
        "Lower learning_rate, or look for damaged samples",
    )

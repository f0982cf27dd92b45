"""One training run, with any trainer: its job, disk space, training and artifact."""

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from dcsft_harness import coordinates, interrupts, ranks, reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.artifacts.resuming import PRECISION
from dcsft_harness.artifacts.usage import NOTE, PLANNING, Device, Estimate, admit, bytes_of, planned_device
from dcsft_harness.coordinates import BoxConvention
from dcsft_harness.errors import HarnessError, reporting_refusals
from dcsft_harness.models import chat_template
from dcsft_harness.models.adapters import WEIGHTS, wrap
from dcsft_harness.models.arguments import ModelSettings
from dcsft_harness.models.checkpoint import (
    check_adapter,
    check_intact,
    check_weights,
    open_config,
    open_generation,
    open_processor,
    open_weights,
    outline,
    saved_processor,
)
from dcsft_harness.models.checkpoint import convention as box_convention
from dcsft_harness.models.estimates import Anatomy, Training, generation, recomputes, seconds, training
from dcsft_harness.models.pixel_limits import PixelLimits, limits_in_force, set_limits
from dcsft_harness.models.resources import Arithmetic, take_exactly
from dcsft_harness.models.weights import check_stored, error_line
from dcsft_harness.sampling import own_data
from dcsft_harness.training import data, lora, run_folder, shared_prompts
from dcsft_harness.training.config import AdapterConfig, TrainingConfig
from dcsft_harness.training.data import Conversations, Template
from dcsft_harness.training.launching import divides, sharding, shares
from dcsft_harness.training.trainer import Account, Diverged, Progress, Watch, answers_alone, passing, quietly

if TYPE_CHECKING:
    from transformers import Trainer


# A training job, the part of it that an artifact records, and the inputs of a trainer.

TOGETHER = frozenset(("aot", "aot_unpaired", "bnpo", "sft"))
"""TRL's losses that are no mean over samples, but of a forward pass as a whole."""
PASSES = frozenset(
    ("entropy_coef", "router_aux_loss_coef", "steps_per_generation", "top_entropy_quantile")
    + ("use_adaptive_entropy",)
)
"""TRL's arguments that count forward passes, or whose term of the loss is of one as a whole."""
_NONE = (0, "0", "0.0", None)
"""Values with which such an argument does nothing; False is 0."""
_TRL_DRAWS = frozenset(("generation_kwargs", "cache_implementation", "use_transformers_continuous_batching"))
"""TRL's arguments with which GRPO may draw completions of repeated prompts."""


@dataclass(frozen=True)
class Job:
    """A training job."""

    method: str  # the verb's last word: "sft"
    model: Path | str  # the base, a folder or a hub name
    data: Path | Dataset  # a curated set, a folder written by `save_to_disk`, or an open dataset
    output: Path  # the folder to write
    config: TrainingConfig
    adapter: Path | None = None  # an adapter to train further; None begins with a new one
    inputs: Mapping[str, Path] = field(default_factory=dict)  # further artifacts to record, role -> folder
    progress: Progress | None = None  # called after each step
    source: str | None = None  # the source of an open dataset: a task's name or a file
    # further settings that decide the result, by name
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of the resulting artifact."""
        adapts = isinstance(self.config, AdapterConfig) and not self.config.full
        return "adapter" if adapts else "checkpoint"

    @property
    def base(self) -> ModelSettings:
        """What it begins with, as `models.checkpoint` opens it: base, adapter, and template's arguments."""
        adapter = None if self.adapter is None else str(self.adapter)
        given = self.config.chat_template_kwargs
        return ModelSettings(pretrained=str(self.model), adapter=adapter, chat_template_kwargs=given)

    def recorded(self) -> tuple[dict[str, Any], dict[str, Path]]:
        """The settings and inputs that the manifest records; inputs without a folder are recorded by name."""
        settings = {"method": self.method, **self.config.as_dict(), **self.settings}
        if self.adapter is not None:
            settings |= lora.lora_shape(str(self.adapter), str(self.model))
            if isinstance(self.config, AdapterConfig) and not self.config.lora_dropout:
                settings["lora_dropout"] = 0.0  # DPO turns off the adapter's own
        sources = dict(self.inputs)
        if Path(self.model).is_dir():
            sources["model"] = Path(self.model)
        else:
            settings["model"] = str(self.model)
        if isinstance(self.data, Dataset):
            settings |= {"data": data.digest(self.data), "source": self.source}
        else:
            sources["data"] = self.data
        if self.adapter is not None:
            sources["adapter"] = self.adapter
        return settings, sources

    @property
    def by_pass(self) -> bool:
        """Whether the result depends on which samples go through the model together."""
        losses = self.config.extra.get("loss_type") or ()
        losses = {losses} if isinstance(losses, str) else set(losses)
        passes = {name for name in PASSES & self.config.extra.keys() if self.config.extra[name] not in _NONE}
        return bool(losses & TOGETHER or passes)

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result, by name: a run can only resume from one with equal values."""
        settings, sources = self.recorded()
        contents = {f"content of {role}": manifest.fingerprint(path)[:16] for role, path in sources.items()}
        kept = {name: value for name, value in settings.items() if name not in run_folder.INDIFFERENT}
        if self.by_pass:
            kept["micro_batch_size"] = self.config.micro_batch_size
        divided = {} if sharding() is None else {"sharding": sharding()}
        return {**kept, **contents, "processes": ranks.world_size(), **divided}


@dataclass
class Setup:
    """The inputs of a trainer."""

    job: Job  # the training job
    folder: Path  # the trainer's output folder
    conversations: Conversations  # the checked training set
    processor: ProcessorMixin  # the base's, with the pixel limits of training
    limits: PixelLimits | None  # those limits; None for a processor without
    dtype: torch.dtype  # the dtype of forward passes
    # the weights to train; set after all checks that do not need them
    network: PreTrainedModel | PeftModel = None
    # the new adapter to attach; None if there is none, or it is already attached
    peft_config: LoraConfig | None = None
    notes: dict[str, Any] = field(default_factory=dict)  # the manifest's notes
    completion: int = 0  # tokens that a row may have besides its text

    @property
    def dtype_name(self) -> str:
        """The dtype's name."""
        return _DTYPE_NAMES[self.dtype]

    @property
    def template_arguments(self) -> dict[str, Any]:
        """The chat template's arguments in force; see `_prepare`."""
        return dict(self.notes.get(chat_template.NAME) or {})

    def screen(self, conversations: Conversations, texts: Sequence[str], completion: int = 0) -> None:
        """Skips or refuses unusable rows, by a text per conversation: the last check before weights are read.

        `completion` is the tokens that a row may have besides its text; see `data.screened`.
        """
        config = open_config(self.job.base)
        found = data.screened(conversations, texts, self.processor, config, completion)
        found.refuse(self.job.config.on_error == "skip")
        self.conversations = replace(
            found,
            tokens=max(found.tokens, self.conversations.tokens),
            image_tokens=max(found.image_tokens, self.conversations.image_tokens),
        )
        self.completion = completion
        self.notes["rows"] = len(found.turns)
        if found.refused:
            self.notes["skipped"] = {"count": len(found.refused), "rows": sorted(found.refused)}

    @cached_property
    def recomputes(self) -> bool:
        """Whether activations are computed again in the backward pass, unless the user decides."""
        return torch.cuda.is_available() or recomputes(open_config(self.job.base))

    @property
    def template(self) -> Template:
        """The template that conversations are written with."""
        return Template.of(self.processor, open_generation(self.job.base), self.template_arguments)

    def trainer(
        self,
        kind: Callable[..., Any],
        args: Any,  # noqa: ANN401 - TRL's
        rows: Dataset,
        **more: Any,  # noqa: ANN401 - of the trainer
    ) -> Callable[[], Any]:
        """A function that makes the trainer, once the weights are loaded."""
        return lambda: kind(
            model=self.network,
            args=args,
            train_dataset=rows,
            processing_class=self.processor,
            peft_config=self.peft_config,
            **more,
        )

    def found(self) -> dict[str, Any]:
        """What decides the result besides the settings: precision, skipped rows, and the reward's scorers."""
        refused, scorers = self.conversations.refused, self.notes.get("scorers")
        found: dict[str, Any] = {PRECISION: self.dtype_name}
        found |= {"skipped": json_sha256(sorted(refused))[:16]} if refused else {}
        return found | ({"scorers": scorers} if scorers else {})

    def box_convention(self, has_boxes: bool) -> BoxConvention:
        """The coordinates in which boxes are trained or scored; recorded if the data has boxes.

        Boxes in unknown coordinates are an error.
        """
        job = self.job
        space = job.config.box_space or coordinates.taught(job.adapter, job.model)
        convention = box_convention(open_config(job.base), self.processor, space)
        if has_boxes and convention.space is None:
            raise HarnessError(
                f"unknown box coordinate space for {job.model}",
                "Pass --box-space pixel (of the original image) or norm1000 (thousandths)",
            )
        if has_boxes or space is not None:
            self.notes["box_space"] = convention.space
        return convention


# Whether the disk can hold a run's files, checked before any weights are read.

_FLOAT32 = torch.float32.itemsize


def bytes_needed(job: Job, base: PreTrainedConfig, rows: int) -> int:
    """The most bytes that a run's checkpoints and result may have on disk at a time.

    The base's configuration determines the number of weights without files or network; building its modules
    without weights takes 0.1 s at 72 billion.

    Raises:
        HarnessError: `lora_target` matches none of the base's layers.
    """
    config, checkpoints = job.config, 0
    # The weights, and AdamW's two moments, in float32; other optimizers keep less, or unknown sizes.
    state = 3 if str(config.extra.get("optim", "adamw_torch")).startswith("adamw_torch") else 1
    # The reference is a copy of the adapter to continue.
    state += config.has_reference and job.adapter is not None
    if config.save_steps is not None:
        # One more than are kept, because a new one is complete before the oldest is removed.
        most = (config.keep or 1) + 1
        checkpoints = min(most, math.ceil(_steps(config, rows) / config.save_steps))
    return trained(job, base) * (state * _FLOAT32 * checkpoints + _result(job, base))


def check_disk(job: Job, needed: int) -> None:
    """Refuses a disk that cannot hold a run's files, naming the bytes needed; the output folder exists."""
    # A resumed run already has some of that on disk.
    for there in run_folder.checkpoints(job.output / manifest.UNFINISHED):
        needed -= bytes_of(there)
    total, _, free = shutil.disk_usage(job.output)
    if free >= needed or not total:  # some network file systems report nothing
        return
    written = job.config.save_steps is not None
    what = "the adapter" if job.kind == "adapter" else "all parameters"
    subject = f"checkpoints of {what} need" if written else f"the {job.kind} needs"
    others = ["lower --keep"] * ((job.config.keep or 1) > 1) + ["pass --save-steps none"] * written
    raise HarnessError(
        f"--output {job.output}: {subject} up to {_size(needed)}, but only {_size(free)} are free",
        ", or ".join(["Free some space", *others]),
    )


def trained(job: Job, base: PreTrainedConfig) -> int:
    """The number of trained weights: of a new adapter, of the adapter to continue, or of the whole base.

    Raises:
        HarnessError: `lora_target` matches none of the base's layers.
    """
    if not isinstance(job.config, AdapterConfig) or job.config.full:
        return sum(weight.numel() for weight in outline(base).parameters())
    if job.adapter is not None:
        with safe_open(job.adapter / WEIGHTS, framework="pt") as stored:
            return sum(math.prod(stored.get_slice(name).get_shape()) for name in stored.keys())
    model = outline(base)
    chosen = lora.lora_targets(lora.linear_layers(model), job.config.lora_target)
    layers = [model.get_submodule(name) for name in chosen]
    return sum(job.config.lora_rank * (layer.in_features + layer.out_features) for layer in layers)


def _steps(config: TrainingConfig, rows: int) -> float:
    samples = rows * config.samples_per_row
    return config.max_steps or config.steps_per_epoch(samples, config.batch_size) * (config.epochs or 1)


def _result(job: Job, base: PreTrainedConfig) -> int:
    """Bytes per weight of a run's result."""
    if sharding() is not None:
        return 2 * _FLOAT32  # gathered in one place, copied to its own
    return _FLOAT32 if job.kind == "adapter" else (base.dtype or torch.float32).itemsize


def _size(number: float) -> str:
    number /= 2**20
    return f"{number / 1024:.1f} GiB" if number >= 1024 else f"{number:.1f} MiB"


# Whether the device can hold a run, and how many samples of a batch at a time.

_ROOM = 0.9
"""Share of the free memory that several samples at a time may take; an estimate is not exact."""


def plan(setup: Setup) -> Estimate:
    """What a run needs, with as many samples per forward pass as fit.

    Raises:
        HarnessError: the launch's processes do not divide a batch.
    """
    job, device = setup.job, planned_device()
    processes, shared = shares()
    job.config.share(processes)
    share = max(job.config.batch_size // processes, 1)  # of which there may be several passes
    given = _training(setup, device, shared)
    anatomy = Anatomy(open_config(job.base))
    given = replace(given, **_sharing(setup, anatomy, given, share))
    step, drawing = training(anatomy, given, device), _drawing(setup, anatomy, given, device, share)
    fitting = [
        micro
        for micro in range(share, 0, -1)
        if share % micro == 0 and step.total(micro, micro < share) <= _ROOM * device.free
    ]
    asked = job.config.micro_batch_size
    micro = asked or (fitting[0] if fitting else 1)
    parts = step.parts(micro, micro < share)
    if sum(drawing.values()) > sum(parts.values()):
        parts = drawing
    chosen = {"micro_batch_size": micro} if micro != share or asked else {}
    remedy = _remedy(setup, anatomy, given, device, fitting[0] if fitting and asked else None)
    if parts is drawing:
        remedy = (
            f"Lower --batch-size, which counts completions, or let vLLM draw: --set use_vllm=true. {remedy}"
        )
    disk = given.trained * _result(job, anatomy.config)
    return Estimate(device, parts, _seconds(setup, anatomy, given, device, micro), disk, chosen, remedy)


def _training(setup: Setup, device: Device, shared: Mapping[str, int]) -> Training:
    job, config = setup.job, setup.job.config
    base = open_config(job.base)
    full = not isinstance(config, AdapterConfig) or config.full
    cuda = device.kind == "cuda"
    dtype = torch.bfloat16 if cuda and config.dtype == "auto" and PLANNING.get() else setup.dtype
    chosen, dropout = lora.linear_layers(outline(base)), False
    if isinstance(config, AdapterConfig) and not config.full:
        dropout = config.lora_dropout > 0
        if job.adapter is None:
            chosen = lora.lora_targets(chosen, config.lora_target)
    count = trained(job, base)
    return Training(
        trained=count,
        chosen=chosen,
        full=full,
        dropout=dropout,
        number=dtype.itemsize,
        checkpointing=bool(config.extra.get("gradient_checkpointing", cuda or setup.recomputes)),
        tokens=setup.conversations.tokens + setup.completion,
        image_tokens=setup.conversations.image_tokens,
        rows=config.SEQUENCES,
        processes=shared,
        reference=count if full and config.has_reference else 0,
    )


def _sharing(setup: Setup, anatomy: Anatomy, given: Training, share: int) -> dict[str, Any]:
    """`Training`'s fields about samples that share a prompt, as completions of GRPO do; else none.

    `share` is the number of samples of a step in a process.
    """
    config = setup.job.config
    group = getattr(config, "num_generations", 1)
    asked = min(group, config.micro_batch_size or share)
    if not setup.completion or asked == 1 or setup.job.by_pass or "generation_batch_size" in config.extra:
        return {}
    if shared_prompts.objection(anatomy.config, config.extra.get("router_aux_loss_coef")) is not None:
        return {}
    prompt = max(given.tokens - setup.completion, 1)
    if not shared_prompts.cheaper(anatomy.config, [asked], prompt, setup.completion):
        return {}
    return {"completion": setup.completion, "together": group}


def _drawing(setup: Setup, anatomy: Anatomy, given: Training, device: Device, rows: int) -> dict[str, float]:
    """Memory of drawing a process's completions of a step, which transformers does at once; else empty.

    `rows` is their number, in however many passes they are learned from.
    """
    if not setup.completion or setup.job.config.extra.get("use_vllm"):
        return {}
    prompt = max(given.tokens - setup.completion, 1)
    group, repeats = given.together, divides() or _TRL_DRAWS & setup.job.config.extra.keys()
    # A process may begin and end within a prompt's completions.
    items = rows if repeats else -(-rows // group) + bool(rows % group and group % rows)
    made = generation(anatomy, given.number, rows, items, prompt, setup.completion, device, shared=False)
    state = {"moments": 8.0 * given.trained, "adapter": 0.0 if given.full else 4.0 * given.trained}
    if given.reference:
        state["reference"] = 4.0 * given.reference / (given.processes or {}).get("weights", 1)
    return {**made, "weights": anatomy.stored(4 if given.full else given.number), **state}


def _remedy(setup: Setup, anatomy: Anatomy, given: Training, device: Device, micro: int | None) -> str:
    """What would fit on the device, one sample at a time."""

    def fits(**changed: Any) -> bool:  # noqa: ANN401 - fields of Training
        return training(anatomy, replace(given, **changed), device).total(1, True) <= device.free

    if micro is not None:
        return f"Pass --micro-batch-size {micro}, or leave it out"
    found = []
    if not given.checkpointing and fits(checkpointing=True):
        found.append("--set gradient_checkpointing=true computes activations twice")
    adapter = {"full": False, "reference": 0, "number": min(given.number, 2), "dropout": True}
    adapter |= {"trained": 32 * 2 * sum(anatomy.inputs(given.chosen).values())}
    if given.full and fits(**adapter, checkpointing=True):
        verb = "dcsft train sft --epochs 1" if setup.job.method == "cold-start" else "leaving --full out"
        found.append(f"{verb} trains an adapter instead of all parameters")
    for count in (2, 4, 8):
        if fits(processes={"weights": count, "state": count}, checkpointing=True):
            found.append(f"--num-processes {count} --launch zero3 divides the model among {count} such GPUs")
            break
    if (
        setup.limits is not None
        and given.image_tokens
        and fits(tokens=(given.tokens + given.completion) // 2, image_tokens=given.image_tokens // 2)
    ):
        found.append(f"--max-pixels {setup.limits.high // 2} makes images smaller")
    if device.kind == "cpu" and given.number == 4 and not given.full and fits(number=2):
        found.append("--dtype bfloat16 halves the weights")
    return f"These would fit: {'; '.join(found)}" if found else "Take a smaller model, or a larger device"


def _seconds(setup: Setup, anatomy: Anatomy, given: Training, device: Device, micro: int) -> float:
    """Rough time of a run; 0 outside dry runs, where it is not asked for."""
    if PLANNING.get() is None:
        return 0.0
    config = setup.job.config
    steps = _steps(config, len(setup.conversations.turns))
    patches: float = given.image_tokens * anatomy.patches_per_token
    tokens: float = given.tokens
    if given.together > 1:
        shared = min(given.together, micro)
        tokens = given.completion + 1 + (given.tokens - given.completion) / shared
        patches /= shared
    forward = given.rows * anatomy.arithmetic.forward(tokens, patches)
    # Forward, gradient of activations; of weights, if all train; what is computed again; and the reference.
    passes = (
        2 + (1 if given.full else 0) + given.checkpointing + config.has_reference + bool(setup.completion)
    )
    work = {"operations": steps * config.batch_size * passes * forward / shares()[0]}
    if setup.completion:
        work["steps"] = steps * setup.completion
    return seconds(anatomy, device, work, anatomy.stored())


_LARGE = 3e9
"""Bytes of a run on a CPU from which on freed memory is returned at once."""

# One training run, with any trainer: checks, resuming, cost accounting, and the finished artifact.

_DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

Make = Callable[[Setup], Callable[[], Any]]
"""Checks a trainer's arguments, and returns a function that creates the trainer from loaded weights."""


def perform(job: Job, make: Make) -> dict[str, Any]:
    """Trains and writes the artifact; returns the manifest's notes, empty at ranks other than 0.

    Raises:
        HarnessError: the data, the base or a setting cannot be used, or training diverges.
    """
    with ranks.agreed():
        manifest.refuse_occupied(job.output, resumes=True)
        setup = _prepare(job)
        examined = setup.conversations
        make_trainer = make(setup)
        needed = plan(setup)
        admit(needed)
        identity = job.identity() | setup.found()  # reads all weights, which a dry run does not
        if (asked := run_folder.asked_dtype(job.output, setup.dtype_name)) is not None:
            job = setup.job = replace(job, config=job.config.model_copy(update={"dtype": asked}))
            identity["dtype"] = asked
        if needed.device.kind == "cpu" and needed.memory > _LARGE:
            take_exactly()
    micro = min(ranks.gathered(int(str(needed.settings.get("micro_batch_size", job.config.batch_size)))))
    with ranks.agreed():
        if job.config.micro_batch_size is None and micro < job.config.batch_size:
            setup.job = replace(job, config=job.config.model_copy(update={"micro_batch_size": micro}))
            setup.conversations = examined
            make_trainer = make(setup)
            setup.notes["micro_batch_size"] = micro
    with (
        reporting_refusals(job.kind, job.output, "complete checkpoints were kept"),
        run_folder.opened(job.output, job.kind, identity) as run,
        quietly(),
    ):
        account = Account()
        with ranks.agreed():
            check_disk(job, bytes_needed(job, open_config(job.base), len(setup.conversations.turns)))
            last = run.last
            if last is not None:
                account.resume(run.state())
            setup.network, setup.peft_config = _network(job, setup.dtype, setup.notes, last)
            with passing(job.config.extra):
                trainer = make_trainer()
        rows = [f"row {number}" for number in setup.conversations.numbers]
        trainer.bind(account, setup.conversations.item_ids or rows)
        account.costs = Arithmetic(trainer.model)
        # The base's own: the pixel limits of training are not those of evaluation.
        processor = cache(lambda: saved_processor(str(job.model)))

        def complete(folder: Path) -> None:
            """Adds the other files of a checkpoint to its weights."""
            processor().save_pretrained(folder)
            coordinates.record(folder, setup.notes.get("box_space"))
            chat_template.record(folder, setup.notes.get(chat_template.NAME))

        trainer.add_callback(Watch(trainer, run, job.config.keep, job.progress, complete))
        _train(trainer, last, run, job.config.extra)
        return _finish(job, setup, run, trainer, account)


def _prepare(job: Job) -> Setup:
    if job.adapter is not None and job.kind != "adapter":
        raise HarnessError(f"adapter {job.adapter} requires LoRA", "Merge it into the base, and train that")
    dtype, base = compute_dtype(job.config.dtype), str(job.model)
    check_intact(job.base)
    if isinstance(job.data, Path):
        _refuse_former(job.data)
    conversations = data.examined(job.data, job.source)
    if not conversations.turns:
        conversations.refuse()
    config = open_config(job.base)
    check_weights(job.base, config)
    if sharding() is not None and ranks.rank() == 0:
        check_stored(base)  # no rank will have a whole model to check
    if job.adapter is not None:
        with quietly():
            check_adapter(job.base, config)
        if isinstance(job.config, AdapterConfig):
            lora.refuse_reshaping(job.config, str(job.adapter), base)
    processor = open_processor(job.base)
    given = job.config.chat_template_kwargs
    rendered_with = chat_template.recorded(job.adapter, base) if given is None else dict(given)
    shown = limits_in_force(processor)
    limits = set_limits(processor, base, job.config.min_pixels, job.config.max_pixels)
    notes = {
        "base": base,
        "data": job.source or conversations.name,
        "rows": len(conversations.turns),
        "dtype": _DTYPE_NAMES[dtype],
        "pixel_limits": limits and limits._asdict(),
        "evaluation_pixel_limits": shown and shown._asdict(),
    }
    if rendered_with is not None:
        notes[chat_template.NAME] = rendered_with
    folder = job.output / manifest.UNFINISHED
    return Setup(job, folder, conversations, processor, limits, dtype, notes=notes)


def compute_dtype(asked: str) -> torch.dtype:
    """The dtype of forward passes; bfloat16 is refused on a CUDA device that lacks it."""
    cuda = torch.cuda.is_available()
    # Older devices emulate bfloat16 through float32, which is slower than float32 itself.
    able = not cuda or torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "auto":
        return torch.bfloat16 if cuda and able else torch.float32
    if asked == "bfloat16" and not able:
        raise HarnessError(f"dtype=bfloat16: {torch.cuda.get_device_name()} lacks it", "Use dtype=float32")
    return torch.bfloat16 if asked == "bfloat16" else torch.float32


def _refuse_former(folder: Path) -> None:
    """Refuses a curated set whose rollouts an older version sampled with other images.

    Sets whose rollouts have been moved pass.
    """
    if not (folder / manifest.NAME).is_file():
        return
    made = manifest.read(folder)
    if made.kind != "curated set" or "rollouts" not in made.inputs:
        return
    try:
        rollouts = manifest.read(made.input_folder("rollouts"), "rollouts")
    except HarnessError:
        return
    own_data.refuse_former(rollouts)


def _network(
    job: Job, dtype: torch.dtype, notes: dict[str, Any], last: Path | None
) -> tuple[PreTrainedModel | PeftModel, LoraConfig | None]:
    """The weights to train, and the adapter to attach; records which layers get one.

    To resume, all parameters come from the checkpoint; the trainer reads those of an adapter.
    """
    base, config = str(job.model), job.config
    if not isinstance(config, AdapterConfig) or config.full:
        # bfloat16 weights would lose updates of a learning rate like 1e-5 to rounding.
        network = open_weights(str(last or base), torch.float32)
        # Where a trainer finds the initial model, the reference of the divergence.
        network.config._name_or_path = base
        return network, None
    network = open_weights(base, dtype)
    if job.adapter is not None:
        continued = wrap(network, str(job.adapter), base)
        continued.peft_config["default"].inference_mode = False
        continued.set_adapter("default")
        notes["adapted"] = lora.count_by_part(lora.adapted(continued))
        return continued, None
    chosen = lora.lora_targets(lora.linear_layers(network), config.lora_target)
    notes["adapted"] = lora.count_by_part(chosen)
    return network, LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(chosen),
    )


def _train(
    trainer: "Trainer", last: Path | None, run: run_folder.RunFolder, extra: Mapping[str, Any]
) -> None:
    steps = len(trainer.account.history)

    def begins() -> bool:
        return len(trainer.account.history) == steps

    try:
        saving = interrupts.deferring(launched=ranks.world_size() > 1)
        with ranks.reporting_losses(), answers_alone(), passing(extra, begins), saving:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except torch.OutOfMemoryError as error:
        raise HarnessError(
            f"out of GPU memory at step {trainer.state.global_step + 1}: {str(error).splitlines()[0]}",
            "Pass a smaller --micro-batch-size or --max-pixels",
        ) from error
    except Diverged as error:
        good = "none was written before" if run.last is None else f"{run.last} is"
        raise HarnessError(error.problem, f"{error.remedy}. The last good checkpoint: {good}") from error
    except Exception as error:
        tracker = type(error).__module__.split(".")[0]
        if tracker not in trainer.args.report_to:
            raise
        raise HarnessError(
            f"report_to={tracker} fails: {error_line(error)}", "Set it up, or leave report_to out"
        ) from error


def _finish(
    job: Job, setup: Setup, run: run_folder.RunFolder, trainer: "Trainer", account: Account
) -> dict[str, Any]:
    account.measure()
    account.ledger.peak_memory_bytes = max(ranks.gathered(account.ledger.peak_memory_bytes))
    settings, sources = job.recorded()
    notes = setup.notes | _measured(trainer, account)
    sharded = getattr(trainer, "is_deepspeed_enabled", False) or getattr(trainer, "is_fsdp_enabled", False)
    if sharded:  # every rank contributes its part
        trainer.save_model(str(setup.folder / "whole"))
    with ranks.agreed():
        if ranks.rank() > 0:
            return {}
        kept = job.config.keep or 0
        with run.finishing(settings, sources, account.ledger.seconds, kept) as draft:
            draft.notes = notes
            _save(trainer, job.base, draft.folder, setup.folder / "whole" if sharded else None)
            account.write(draft.folder / run_folder.LOG)
        return draft.notes


def _measured(trainer: "Trainer", account: Account) -> dict[str, Any]:
    ledger = account.ledger
    # ZeRO-3 leaves an empty weight behind, with its size.
    trainable = [
        getattr(weight, "ds_numel", weight.numel())
        for weight in trainer.model.parameters()
        if weight.requires_grad
    ]
    norms = [row["grad_norm"] for row in account.history if row.get("grad_norm") is not None]
    return {
        "steps": ledger.steps,
        "final_loss": account.history[-1]["loss"],
        "mean_grad_norm": sum(norms) / len(norms) if norms else None,  # type: ignore[arg-type]
        "seconds_per_step": round(ledger.seconds / ledger.steps, 4),
        "trainable_parameters": sum(trainable),
        "processes": ranks.world_size(),
        NOTE: ledger.as_dict(),
        **trainer.remarks(),
    }


def recast(folder: Path, dtype: torch.dtype) -> None:
    """Converts a saved checkpoint's weights to another dtype, file by file; keeps other tensors.

    Its configuration and those of its parts name the dtype, by which it is opened.
    """
    for path in sorted(folder.glob("model*.safetensors")):
        weights = {
            name: weight.to(dtype) if weight.is_floating_point() else weight
            for name, weight in load_file(path).items()
        }
        save_file(weights, path, metadata={"format": "pt"})
    path = folder / "config.json"
    config = reading.json_file(path) | {"dtype": _DTYPE_NAMES[dtype]}
    for part in config.values():
        if isinstance(part, dict) and "dtype" in part:
            part["dtype"] = _DTYPE_NAMES[dtype]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _save(trainer: "Trainer", base: ModelSettings, folder: Path, whole: Path | None) -> None:
    """Writes an adapter alone, or a whole checkpoint in its base's dtype.

    A full disk is an OSError; safetensors has its own error for this, which `manifest.writing` could not
    distinguish from a fault in the weights.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    dtype = open_config(base).dtype or torch.float32
    try:
        if whole is not None:
            shutil.copytree(whole, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.bin"))
            if not isinstance(model, PeftModel):
                recast(folder, dtype)
        elif isinstance(model, PeftModel):
            # A set's order changes from process to process; equal runs should write equal files.
            config = model.peft_config["default"]
            if isinstance(config.target_modules, set):
                config.target_modules = sorted(config.target_modules)
            model.save_pretrained(folder, selected_adapters=["default"])
        else:
            model.to(dtype).save_pretrained(folder)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error)) from error
    if not isinstance(model, PeftModel):
        # The base's own processor: the pixel limits of training are not those of evaluation.
        saved_processor(base.pretrained).save_pretrained(folder)

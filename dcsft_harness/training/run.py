"""One training run, whichever trainer does it: checked, resumed, accounted for, sealed as an artefact."""

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from dcsft_harness import coordinates, interrupts, ranks
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.usage import NOTE
from dcsft_harness.errors import HarnessError, telling_refusals
from dcsft_harness.models.flops import Arithmetic
from dcsft_harness.models.pixel_limits import set_limits
from dcsft_harness.training import checkpoint, lora, room, run_folder
from dcsft_harness.training import data as training_data
from dcsft_harness.training.account import Account
from dcsft_harness.training.config import AdapterConfig
from dcsft_harness.training.job import Job, Setup
from dcsft_harness.training.trainer import Diverged, Watch, quietly

LOG = "training_log.jsonl"
_DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


Make = Callable[[Setup], Callable[[], Any]]
"""Checks a trainer's arguments, and returns what makes the trainer once the weights are there."""


def perform(job: Job, make: Make) -> dict[str, Any]:
    """Trains and writes the artefact.

    Returns:
        The manifest's notes; at other ranks than 0 nothing.

    Raises:
        HarnessError: the data, the base or a setting cannot be used, or training diverges.
    """
    with ranks.agreed():
        run_folder.refuse_taken(job.output, job.resume)
        setup = _prepare(job)
        make_trainer = make(setup)
        identity = job.identity() | setup.left_out()
    with (
        telling_refusals(job.kind, job.output, "complete checkpoints were kept"),
        run_folder.opened(job.output, identity, job.resume) as run,
        quietly(),
    ):
        account = Account()
        with ranks.agreed():
            room.check(job, setup.room)
            last = run.last
            if last is not None:
                account.resume(run.told())
            setup.network, setup.peft_config = _network(job, setup.dtype, setup.notes, last)
            trainer = make_trainer()
        rows = [f"row {number}" for number in setup.conversations.numbers]
        trainer.bind(account, setup.conversations.item_ids or rows)
        account.costs = Arithmetic(trainer.model)
        complete = _companions(setup)
        trainer.add_callback(Watch(trainer, run, job.config.keep, job.progress, complete))
        _train(trainer, last, run)
        return _finish(job, setup, run, trainer, account)


def _prepare(job: Job) -> Setup:
    dtype, base = checkpoint.compute_dtype(job.config.dtype), str(job.model)
    checkpoint.check_intact(base, job.adapter)
    conversations = training_data.examined(job.data)
    if not conversations.turns:
        conversations.refuse()
    config = checkpoint.open_config(base)
    checkpoint.check_weights(base, config)
    if job.adapter is not None:
        with quietly():
            checkpoint.check_adapter(str(job.adapter), base)
        if isinstance(job.config, AdapterConfig):
            lora.refuse_reshaping(job.config, str(job.adapter), base)
    processor = checkpoint.open_processor(base)
    shown = set_limits(processor, base, None, None)
    limits = set_limits(processor, base, job.config.min_pixels, job.config.max_pixels)
    notes = {
        "base": base,
        "data": job.source or conversations.name,
        "rows": len(conversations.turns),
        "dtype": _DTYPE_NAMES[dtype],
        "pixel_limits": limits and limits._asdict(),
        "evaluation_pixel_limits": shown and shown._asdict(),
    }
    folder, needed = job.output / manifest.UNFINISHED, room.needed(job, config, len(conversations.turns))
    return Setup(job, folder, conversations, processor, limits, dtype, needed, notes=notes)


def _network(
    job: Job, dtype: torch.dtype, notes: dict[str, Any], last: Path | None
) -> tuple[PreTrainedModel | PeftModel, LoraConfig | None]:
    """The weights to train, and the adapter to put on them; notes which layers get one.

    All parameters come from the checkpoint that the run goes on from, an adapter's are read by the trainer.
    """
    base, config = str(job.model), job.config
    if not isinstance(config, AdapterConfig) or config.full:
        if job.adapter is not None:
            raise HarnessError(
                f"adapter {job.adapter} goes with LoRA", "Merge it into the base, and train that"
            )
        # bfloat16 weights would swallow updates of a learning rate like 1e-5.
        network = checkpoint.load_model(str(last or base), torch.float32)
        # Where a trainer finds the model that training began with, which divergence is measured from.
        network.config._name_or_path = base
        return network, None
    network = checkpoint.load_model(base, dtype)
    if job.adapter is not None:
        network = checkpoint.go_on_from(network, str(job.adapter), base)
        notes["adapted"] = lora.count(lora.adapted(network))
        return network, None
    chosen = lora.targets(lora.linear_layers(network), config.lora_target)
    notes["adapted"] = lora.count(chosen)
    return network, lora.lora_config(config, chosen)


def _companions(setup: Setup) -> Callable[[Path], None]:
    """What puts beside a checkpoint's weights all that they are used with.

    The processor is the base's: the pixel limits of training are not its own.
    """

    def complete(folder: Path) -> None:
        checkpoint.open_processor(str(setup.job.model)).save_pretrained(folder)
        coordinates.tell(folder, setup.notes.get("box_space"))

    return complete


def _train(trainer: Any, last: Path | None, run: run_folder.RunFolder) -> None:  # noqa: ANN401 - one of TRL's
    try:
        # Ranks could stop at different steps, so several of them end at once.
        saving = interrupts.deferring() if ranks.world_size() == 1 else contextlib.nullcontext()
        with ranks.telling_losses(), checkpoint.no_bars(), saving:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except torch.OutOfMemoryError as error:
        raise HarnessError(
            f"out of GPU memory at step {trainer.state.global_step + 1}: {str(error).splitlines()[0]}",
            "Lower micro_batch_size or max_pixels",
        ) from error
    except Diverged as error:
        good = "none was written before" if run.last is None else f"{run.last} is"
        raise HarnessError(error.problem, f"{error.remedy}. The last good checkpoint: {good}") from error


def _finish(
    job: Job,
    setup: Setup,
    run: run_folder.RunFolder,
    trainer: Any,  # noqa: ANN401
    account: Account,
) -> dict[str, Any]:
    account.measure()
    account.ledger.peak_memory_bytes = max(ranks.gathered(account.ledger.peak_memory_bytes))
    settings, sources = job.recorded()
    notes = setup.notes | _measured(trainer, account)
    sharded = getattr(trainer, "is_deepspeed_enabled", False) or getattr(trainer, "is_fsdp_enabled", False)
    if sharded:  # every rank gives its part
        trainer.save_model(str(setup.folder / "whole"))
    with ranks.agreed():
        if ranks.rank() > 0:
            return {}
        kept = job.config.keep or 0
        with run.finishing(job.kind, settings, sources, account.ledger.seconds, kept) as draft:
            draft.notes = notes
            _save(trainer, str(job.model), draft.folder, setup.folder / "whole" if sharded else None)
            account.write(draft.folder / LOG)
        return draft.notes


def _measured(trainer: Any, account: Account) -> dict[str, Any]:  # noqa: ANN401
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
    }


def _save(trainer: Any, base: str, folder: Path, whole: Path | None) -> None:  # noqa: ANN401
    """Writes an adapter alone, or a whole checkpoint in its base's type.

    Raises:
        OSError: the disk is full; safetensors says so in a type of its own, which `manifest.writing`
            could not tell from a fault in the weights.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    try:
        if whole is not None:
            shutil.copytree(whole, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.bin"))
            if not isinstance(model, PeftModel):
                checkpoint.recast(folder, checkpoint.open_config(base).dtype or torch.float32)
        elif isinstance(model, PeftModel):
            _save_adapter(model, folder)
        else:
            with checkpoint.no_bars():
                model.to(checkpoint.open_config(base).dtype or torch.float32).save_pretrained(folder)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error)) from error
    if not isinstance(model, PeftModel):
        # The processor as it came: the pixel limits of training are not those of evaluation.
        checkpoint.open_processor(base).save_pretrained(folder)


def _save_adapter(model: PeftModel, folder: Path) -> None:
    # A set's order changes from process to process; equal runs should write equal files.
    config = model.peft_config["default"]
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)
    model.save_pretrained(folder, selected_adapters=["default"])

"""Cold start and SFT: a base and a curated set in, a checkpoint or an adapter out."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from dcsft_harness import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.training import checkpoint, lora
from dcsft_harness.training import data as training_data
from dcsft_harness.training.card import model_card
from dcsft_harness.training.config import ColdStartConfig, SftConfig, TrainingConfig
from dcsft_harness.training.rendering import Template, samples
from dcsft_harness.training.trainer import AccountedTrainer, Ledger, Progress, Watch, arguments, quietly

LOG = "training_log.jsonl"
_DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Work(NamedTuple):
    """What an artefact's manifest will say; `manifest.key_of(*work)` tells whether it is made already.

    Attributes:
        kind: "adapter" or "checkpoint".
        config: the settings, with the model's and the data's names where they have no folder.
        inputs: role -> folder.
    """

    kind: str
    config: dict[str, Any]
    inputs: dict[str, Path]


def work(
    model: Path | str, data: Path | Dataset, config: TrainingConfig, inputs: Mapping[str, Path] | None = None
) -> Work:
    """Describes a training run before it is made.

    Args:
        model: the base, a folder or a hub name.
        data: the training set.
        config: the settings.
        inputs: further artefacts to record.
    """
    settings, sources = config.as_dict(), dict(inputs or {})
    if Path(model).is_dir():
        sources["model"] = Path(model)
    else:
        settings["model"] = str(model)
    if isinstance(data, Dataset):
        settings["data"] = training_data.digest(data)
    else:
        sources["data"] = data
    return Work("adapter" if isinstance(config, SftConfig) else "checkpoint", settings, sources)


def train_sft(
    model: Path | str,
    data: Path | Dataset,
    output: Path,
    config: SftConfig | None = None,
    *,
    progress: Progress | None = None,
    inputs: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Trains a LoRA adapter and writes it as a PEFT folder with a manifest.

    Args:
        model: the base, a folder or a hub name; recorded in adapter_config.json as given.
        data: a curated set, a folder written by `save_to_disk`, or an open data set.
        output: the adapter's folder; must not exist, or be empty.
        config: the settings; the paper's where left out.
        progress: called after each step.
        inputs: further artefacts to record in the manifest, role -> folder.

    Returns:
        The manifest's notes: steps, samples, tokens, last loss, layers adapted and so on.

    Raises:
        HarnessError: the data, the base or a setting cannot be used, or training diverges.
    """
    return _train(model, data, output, config or SftConfig(), progress, inputs)


def train_cold_start(
    model: Path | str,
    data: Path | Dataset,
    output: Path,
    config: ColdStartConfig | None = None,
    *,
    progress: Progress | None = None,
    inputs: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Trains all parameters and writes a checkpoint with processor, tokenizer and chat template.

    Weights are kept in float32 while training, as bfloat16 ones would swallow updates of a learning
    rate like 1e-5, and saved in the base's type.

    Args:
        model: the base, a folder or a hub name.
        data: a curated set, a folder written by `save_to_disk`, or an open data set.
        output: the checkpoint's folder; must not exist, or be empty.
        config: the settings; the paper's where left out.
        progress: called after each step.
        inputs: further artefacts to record in the manifest, role -> folder.

    Returns:
        The manifest's notes.

    Raises:
        HarnessError: the data, the base or a setting cannot be used, or training diverges.
    """
    return _train(model, data, output, config or ColdStartConfig(), progress, inputs)


def _train(
    model: Path | str,
    data: Path | Dataset,
    output: Path,
    config: TrainingConfig,
    progress: Progress | None,
    inputs: Mapping[str, Path] | None,
) -> dict[str, Any]:
    manifest.refuse_occupied(output)
    dtype, base = checkpoint.compute_dtype(config.dtype), str(model)
    conversations = training_data.read(data)
    checkpoint.open_config(base)
    processor = checkpoint.open_processor(base)
    limits = checkpoint.limit_pixels(processor, base, config)
    plan = work(model, data, config, inputs)
    with manifest.writing(plan.kind, output, plan.config, plan.inputs) as draft, quietly():
        draft.notes.update(base=base, data=conversations.name, rows=len(conversations.turns))
        draft.notes.update(dtype=_DTYPE_NAMES[dtype], pixel_limits=limits and limits._asdict())
        # Before the weights, which may take minutes: a bad argument shows at once.
        args = arguments(config, dtype, draft.folder)
        network, peft_config = _network(base, config, dtype, draft.notes)
        ledger = Ledger()
        trainer = AccountedTrainer(
            ledger,
            model=network,
            args=args,
            train_dataset=samples(conversations, Template.of(processor, network.generation_config)),
            processing_class=processor,
            peft_config=peft_config,
            callbacks=[Watch(ledger, progress)],
        )
        draft.notes.update(_run(trainer, ledger))
        _save(trainer.model, base, draft.folder)
        ledger.write(draft.folder / LOG)
        card = model_card(plan.kind, base, conversations.name, config.as_dict(), draft.notes)
        (draft.folder / "README.md").write_text(card, encoding="utf-8")
    return draft.notes


def _network(
    base: str, config: TrainingConfig, dtype: torch.dtype, notes: dict[str, Any]
) -> tuple[PreTrainedModel, LoraConfig | None]:
    """The weights to train, and the adapter to put on them; notes which layers get one."""
    if not isinstance(config, SftConfig):
        return checkpoint.load_model(base, torch.float32), None
    network = checkpoint.load_model(base, dtype)
    chosen = lora.targets(lora.linear_layers(network), config.lora_target)
    notes["adapted"] = lora.count(chosen)
    return network, lora.lora_config(config, chosen)


def _run(trainer: AccountedTrainer, ledger: Ledger) -> dict[str, Any]:
    """Trains, and returns what a manifest notes about it."""
    started = time.monotonic()
    try:
        trainer.train()
    except torch.OutOfMemoryError as error:
        raise HarnessError(
            f"out of GPU memory at step {trainer.state.global_step + 1}: {str(error).splitlines()[0]}",
            "Lower micro_batch_size or max_pixels",
        ) from error
    seconds, steps = time.monotonic() - started, int(trainer.state.global_step)
    trainable = [weight.numel() for weight in trainer.model.parameters() if weight.requires_grad]
    norms = [row["grad_norm"] for row in ledger.history if "grad_norm" in row]
    return {
        "steps": steps,
        "samples": ledger.samples,
        "prompt_tokens": ledger.prompt_tokens,
        "completion_tokens": ledger.completion_tokens,
        "final_loss": ledger.history[-1]["loss"],
        "mean_grad_norm": sum(norms) / len(norms) if norms else None,
        "seconds_per_step": round(seconds / steps, 4),
        "trainable_parameters": sum(trainable),
    }


def _save(model: PreTrainedModel | PeftModel, base: str, folder: Path) -> None:
    """Writes an adapter alone, or a whole checkpoint in its base's type.

    Raises:
        OSError: the disk is full; safetensors says so in a type of its own, which `manifest.writing`
            could not tell from a fault in the weights.
    """
    try:
        if isinstance(model, PeftModel):
            _save_adapter(model, folder)
        else:
            _save_checkpoint(model, base, folder)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error)) from error


def _save_adapter(model: PeftModel, folder: Path) -> None:
    # A set's order changes from process to process; equal runs should write equal files.
    config = model.peft_config["default"]
    config.target_modules = sorted(config.target_modules)
    model.save_pretrained(folder)


def _save_checkpoint(model: PreTrainedModel, base: str, folder: Path) -> None:
    with checkpoint.no_bars():
        model.to(checkpoint.open_config(base).dtype or torch.float32).save_pretrained(folder)
    # The processor as it came: the pixel limits of training are not those of evaluation.
    checkpoint.open_processor(base).save_pretrained(folder)

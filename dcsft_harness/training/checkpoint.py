"""Opens the base to train, and selects the layers that get a LoRA adapter."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from dcsft_harness import ranks
from dcsft_harness.coordinates import BoxConvention, BoxSpace
from dcsft_harness.errors import HarnessError
from dcsft_harness.models import checkpoint as models
from dcsft_harness.models.adapters import read_config, wrap
from dcsft_harness.models.settings import ModelSettings
from dcsft_harness.models.weights import check_stored
from dcsft_harness.training.config import AdapterConfig
from dcsft_harness.training.launching import sharding

# The linear layers that get a LoRA adapter, and the part of the model that each belongs to.

Part = Literal["language", "vision", "aligner"]

# The names that transformers' models give the layers between vision tower and language model.
_ALIGNER = re.compile(r"merger|connector|projector|projection|aligner|resampler|embed_vision")


def linear_layers(model: PreTrainedModel) -> dict[str, Part]:
    """Every linear layer except the output layer: module name -> part of the model.

    A model without an identifiable language model is refused.
    """
    decoder = model.get_decoder()
    if decoder is model:
        raise HarnessError(
            f"{type(model).__name__} does not say which part of it is the language model",
            "Use a checkpoint of transformers' own classes",
        )
    language = {id(module) for module in decoder.modules()}
    head = model.get_output_embeddings()
    found: dict[str, Part] = {}
    for name, module in model.named_modules():
        # TRL computes the loss from the output layer's weights directly, which would bypass an adapter on it.
        if isinstance(module, torch.nn.Linear) and module is not head:
            is_language = id(module) in language
            found[name] = "language" if is_language else "aligner" if _ALIGNER.search(name) else "vision"
    return found


def lora_targets(layers: dict[str, Part], target: str) -> dict[str, Part]:
    """The layers that `AdapterConfig.lora_target` chooses, at least one.

    Raises:
        HarnessError: no layer matches.
    """
    wanted: dict[str, set[Part]] = {
        "all": {"language", "vision", "aligner"},
        "language": {"language"},
        "vision": {"vision", "aligner"},
    }
    chosen = {
        name: part
        for name, part in layers.items()
        if (part in wanted[target] if target in wanted else re.fullmatch(target, name))
    }
    if not chosen:
        examples = {part: name for name, part in reversed(layers.items())}  # the first of each part
        raise HarnessError(
            f"lora_target={target!r} matches none of the model's {len(layers)} linear layers",
            f"Their whole names are like {', '.join(examples[part] for part in sorted(examples))}; "
            f"or give {', '.join(wanted)}",
        )
    return chosen


def adapted(model: PeftModel) -> dict[str, Part]:
    """The layers that already have an adapter."""
    inner = model.get_base_model()
    layers = linear_layers(inner)
    return {
        name: layers[f"{name}.base_layer"]
        for name, module in inner.named_modules()
        if isinstance(module, BaseTunerLayer) and f"{name}.base_layer" in layers
    }


def count_by_part(chosen: dict[str, Part]) -> dict[str, int]:
    """The number of layers of each part, for all three parts."""
    found = Counter(chosen.values())
    return {part: found[part] for part in ("language", "vision", "aligner")}


def lora_shape(adapter: str, base: str) -> dict[str, object]:
    """An adapter's LoRA settings, by the names of `AdapterConfig`; None if there is none."""
    found = read_config(adapter, base)
    names = {"lora_rank": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
    return {ours: getattr(found, theirs, None) for ours, theirs in names.items()} | {"lora_target": None}


def refuse_reshaping(config: AdapterConfig, adapter: str, base: str) -> None:
    """Refuses LoRA settings that differ from those of the adapter to continue."""
    defaults = {name: field.default for name, field in type(config).model_fields.items()}
    for name, own in lora_shape(adapter, base).items():
        value = getattr(config, name)
        if value not in (defaults[name], own):
            raise HarnessError(
                f"{name}={value!r} goes with a new adapter, and adapter {adapter} has a shape of its own",
                f"Leave {name} out",
            )


def lora_config(config: AdapterConfig, chosen: dict[str, Part]) -> LoraConfig:
    """PEFT's configuration of the adapter."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(chosen),
    )


# Opens the base to train: configuration, processor with its pixel limits, weights.


def open_config(model: str) -> PreTrainedConfig:
    """The base's configuration; see `models.checkpoint.open_config`.

    Raises:
        HarnessError: there is none, the model does not turn images and text into text, or a newer version of
            this package wrote the checkpoint or the adapter.
    """
    return models.open_config(ModelSettings(model))


def open_processor(model: str) -> ProcessorMixin:
    """The base's processor as saved; see `models.checkpoint.saved_processor`, `check_mark`."""
    processor = models.saved_processor(model)
    models.check_mark(processor, ModelSettings(model))
    return processor


def open_generation(model: str) -> GenerationConfig:
    """How the base ends its answers; see `models.checkpoint.open_generation`.

    Raises:
        HarnessError: its file cannot be read.
    """
    return models.open_generation(ModelSettings(model))


def check_intact(model: str, adapter: Path | None) -> None:
    """Refuses a base or adapter that differs from its manifest; see `models.checkpoint.check_intact`."""
    models.check_intact(ModelSettings(model, None if adapter is None else str(adapter)))


def check_weights(model: str, config: PreTrainedConfig) -> None:
    """Refuses a base with missing, unexpected or reshaped weights, before any are read.

    If a launch shards the weights, no rank has a whole model to check, so the files are checked instead, also
    for values that are not finite.
    """
    models.check_weights(ModelSettings(model), config)
    if sharding() is not None and ranks.rank() == 0:
        check_stored(model)


def compute_dtype(asked: str) -> torch.dtype:
    """The dtype of forward passes; bfloat16 is refused on a CUDA device that lacks it."""
    cuda = torch.cuda.is_available()
    # Older devices emulate bfloat16 through float32, which is slower than float32 itself.
    able = not cuda or torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "auto":
        return torch.bfloat16 if cuda and able else torch.float32
    if asked == "bfloat16" and not able:
        raise HarnessError(f"dtype=bfloat16: {torch.cuda.get_device_name()} lacks it", "Give dtype=float32")
    return torch.bfloat16 if asked == "bfloat16" else torch.float32


def load_model(model: str, dtype: torch.dtype) -> PreTrainedModel:
    """The base's weights in `dtype`; transformers 5 would otherwise use their stored dtype."""
    return models.open_weights(model, dtype)


def recast(folder: Path, dtype: torch.dtype) -> None:
    """Converts a saved checkpoint's weights to another dtype, file by file; keeps other tensors."""
    for path in sorted(folder.glob("model*.safetensors")):
        weights = {
            name: weight.to(dtype) if weight.is_floating_point() else weight
            for name, weight in load_file(path).items()
        }
        save_file(weights, path, metadata={"format": "pt"})


def box_convention(model: str, processor: ProcessorMixin, given: BoxSpace | None = None) -> BoxConvention:
    """The coordinates in which the model writes boxes, under the limits of training.

    Those of a resized image are refused if the processor does not resize by pixels.
    """
    found: BoxConvention = models.convention(open_config(model), processor, given)
    return found


def check_adapter(adapter: str, base: str) -> None:
    """Refuses an adapter that is invalid or does not fit; no weights of the base are read."""
    read_config(adapter, base)
    models.check_adapter(ModelSettings(base, adapter), open_config(base))


def go_on_from(network: PreTrainedModel, adapter: str, base: str) -> PeftModel:
    """Attaches an adapter to its base for further training.

    Raises:
        HarnessError: the folder is not an adapter, or does not fit the base.
    """
    model = wrap(network, adapter, base)
    model.peft_config["default"].inference_mode = False
    model.set_adapter("default")
    return model


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Hides transformers' own progress bars: the terminal shows the command's."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

"""Which linear layers get a LoRA adapter, and which part of the model each belongs to."""

import re
from collections import Counter
from typing import Literal

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from dcsft_harness.errors import HarnessError
from dcsft_harness.models.adapters import read_config
from dcsft_harness.training.config import AdapterConfig

Part = Literal["language", "vision", "aligner"]

# What transformers' models call the layers between vision tower and language model.
_ALIGNER = re.compile(r"merger|connector|projector|projection|aligner|resampler|embed_vision")


def linear_layers(model: PreTrainedModel) -> dict[str, Part]:
    """Every linear layer but the output layer: module name -> part of the model.

    Raises:
        HarnessError: the language model inside cannot be told from the rest.
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
        # TRL computes the loss from the output layer's weights directly, past any adapter on it.
        if isinstance(module, torch.nn.Linear) and module is not head:
            is_language = id(module) in language
            found[name] = "language" if is_language else "aligner" if _ALIGNER.search(name) else "vision"
    return found


def targets(layers: dict[str, Part], target: str) -> dict[str, Part]:
    """The layers that `AdapterConfig.lora_target` chooses.

    Raises:
        HarnessError: it chooses none.
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
    """The layers that an adapter is on already."""
    inner = model.get_base_model()
    layers = linear_layers(inner)
    return {
        name: layers[f"{name}.base_layer"]
        for name, module in inner.named_modules()
        if isinstance(module, BaseTunerLayer) and f"{name}.base_layer" in layers
    }


def count(chosen: dict[str, Part]) -> dict[str, int]:
    """How many layers of each part, all three named."""
    found = Counter(chosen.values())
    return {part: found[part] for part in ("language", "vision", "aligner")}


def shape(adapter: str, base: str) -> dict[str, object]:
    """The LoRA settings that an adapter brings, by the names of `AdapterConfig`; None where it has none."""
    found = read_config(adapter, base)
    names = {"lora_rank": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
    return {ours: getattr(found, theirs, None) for ours, theirs in names.items()} | {"lora_target": None}


def refuse_reshaping(config: AdapterConfig, adapter: str, base: str) -> None:
    """Refuses LoRA settings that an adapter which is gone on with has not.

    Raises:
        HarnessError: names the setting.
    """
    defaults = {name: field.default for name, field in type(config).model_fields.items()}
    for name, own in shape(adapter, base).items():
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

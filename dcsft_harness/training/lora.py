"""LoRA adapters: the layers that get one, and the shape of one to continue."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from dcsft_harness.errors import HarnessError
from dcsft_harness.models.adapters import read_config
from dcsft_harness.training.config import AdapterConfig

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
            f"{type(model).__name__} does not declare which part of it is the language model",
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
    """The layers that `AdapterConfig.lora_target` chooses, at least one; an error if no layer matches."""
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
            f"--lora-target {target} matches none of the model's {len(layers)} linear layers",
            f"Their whole names are like {', '.join(examples[part] for part in sorted(examples))}; "
            f"or give {', '.join(wanted)}",
        )
    return chosen


def adapted(model: PeftModel) -> dict[str, Part]:
    """The layers that have an adapter, by PEFT's name of what it wraps."""
    layers = linear_layers(model.get_base_model())
    return {name: part for name, part in layers.items() if name.endswith(".base_layer")}


def count_by_part(chosen: Mapping[str, str]) -> dict[str, int]:
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
                f"{name}={value!r} applies only to a new adapter, and adapter {adapter} has its shape",
                f"Leave {name} out",
            )

"""Attaches a PEFT adapter to a base model: completely, or with an error."""

import math
import re
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from dcsft_harness import reading
from dcsft_harness.errors import HarnessError

from .weights import few, not_finite, refuse_unfinite

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
_INSIDE = "base_model.model."
"""PEFT's prefix of the names of a model's modules."""


def read_config(adapter: str, base: str) -> PeftConfig:
    """The adapter's configuration, if the adapter can be attached; errors name the base.

    Raises:
        HarnessError: a file is missing or unreadable, or the adapter is a prompt, which is not part of any
            module of the base.
    """
    folder = Path(adapter)
    if (folder / PICKLED).is_file() and not (folder / WEIGHTS).is_file():
        raise HarnessError(
            f"adapter {adapter} holds {PICKLED}, a pickle file, which can run code when it is opened, and no"
            f" {WEIGHTS}",
            "If you trust it, convert it once; with weights_only torch runs no code of it: python -c 'import"
            f' sys, torch, safetensors.torch as s; d = sys.argv[1]; s.save_file(torch.load(d + "/{PICKLED}",'
            f' weights_only=True, map_location="cpu"), d + "/{WEIGHTS}")\' {adapter}',
        )
    if not folder.exists():
        raise HarnessError(f"adapter {adapter} does not exist", "Check the path")
    for name in ("adapter_config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise HarnessError(
                f"adapter {adapter} for {base} is not a PEFT folder: {name} is missing",
                "Pass the folder that save_pretrained of a PEFT model wrote",
            )
    try:
        reading.json_file(folder / "adapter_config.json")
        config = PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unfit(adapter, base, f"its adapter_config.json cannot be read ({error})") from error
    if config.is_prompt_learning:
        raise _unfit(adapter, base, f"{config.peft_type} adapters are not supported")
    _refuse_scale(adapter, config)
    began = getattr(config, "init_lora_weights", None)
    if isinstance(began, str) and "_niter_" in began:
        raise HarnessError(
            f"adapter {adapter} began as {began} (init_lora_weights), which changed its base at random:"
            " only that training run knows those weights",
            "Save it again with PEFT's path_initial_model_for_weight_conversion, as LoRA of the plain base",
        )
    return config


def _refuse_scale(adapter: str, config: PeftConfig) -> None:
    """Refuses scaling factors that cancel the adapter or make its output infinite, naming the setting."""
    given = config.to_dict()
    scales = {name: given[name] for name in ("lora_alpha", "alpha") if name in given}
    patterns = given.get("alpha_pattern") or {}
    scales |= {f"alpha_pattern[{pattern!r}]": scale for pattern, scale in patterns.items()}
    for name, scale in scales.items():
        if not isinstance(scale, int | float) or not math.isfinite(scale) or not scale:
            raise HarnessError(
                f"adapter {adapter}: {name} is {scale!r}, and must be a finite number other than 0",
                "Correct its adapter_config.json, or copy the adapter again",
            )


def attach(model: PreTrainedModel, adapter: str, base: str) -> PreTrainedModel:
    """Adds the adapter's modules to `model`, in place and unmerged.

    On the `meta` device the same call checks whether the adapter fits, without the base's weights. `base` is
    the base checkpoint, for errors. Returns `model`, whose forward pass now goes through the adapter.

    Raises:
        HarnessError: modules are missing, unexpected or of another shape, or a tensor of the file is not in
            the model afterward.
    """
    return wrap(model, adapter, base).get_base_model()


def wrap(model: PreTrainedModel, adapter: str, base: str) -> PeftModel:
    """`attach`, with PEFT's view of the result, which can also merge it."""
    config = read_config(adapter, base)
    config.inference_mode = True
    on_meta = next(model.parameters()).is_meta
    try:
        stored = read_finite(adapter)
        renamed = _of_today(model, config, stored)
        peft_model = PeftModel(model, config, low_cpu_mem_usage=on_meta)
        if renamed is None:
            result = peft_model.load_adapter(adapter, "default", low_cpu_mem_usage=on_meta)
            missing, unexpected = result.missing_keys, result.unexpected_keys
        else:
            stored = renamed
            result = set_peft_model_state_dict(peft_model, dict(renamed), low_cpu_mem_usage=on_meta)
            missing = sorted(get_peft_model_state_dict(peft_model).keys() - renamed.keys())
            unexpected = result.unexpected_keys
    except KeyError as error:  # PEFT reads modules_to_save without a default
        raise _unfit(adapter, base, f"1 module has no weights in it ({str(error.args[0])[:300]})") from error
    except (ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise _unfit(adapter, base, " ".join(str(error).split())[:300]) from error
    if missing or unexpected:
        raise _unfit(
            adapter,
            base,
            ", ".join(
                f"{len(names)} {problem} {few(names)}"
                for names, problem in (
                    (missing, "modules have no weights in it"),
                    (unexpected, "of its weights have no module"),
                )
                if names
            ),
        )
    if not on_meta and (lost := _lost(peft_model, stored)):
        raise _unfit(adapter, base, f"{len(lost)} of its tensors were not loaded {few(lost)}")
    return peft_model


def _of_today(
    model: PreTrainedModel, config: PeftConfig, stored: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor] | None:
    """An adapter's tensors by current names, if an older transformers named the base's modules, else None.

    transformers itself defines the renamings. The configuration then names the modules that the file has
    tensors for: a pattern for the old names may match other modules now.
    """
    modules = {name for name, _ in model.named_modules()}
    names = {name: name.removeprefix(_INSIDE) for name in stored}
    ends = re.compile(r"\.(?=lora_|bias$|weight$|base_layer|token_adapter)")
    parts = {name: ends.split(inner)[0] for name, inner in names.items()}
    if modules.issuperset(parts.values()):
        return None
    renamings = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)]

    def renamed(name: str) -> str:
        return str(rename_source_key(name, renamings, [])[0])

    today = {name: renamed(part) for name, part in parts.items()}
    if not modules.issuperset(today.values()):
        return None
    for pattern in ("rank_pattern", "alpha_pattern"):
        given = getattr(config, pattern, None)
        if given:
            setattr(config, pattern, {renamed(name): value for name, value in given.items()})
    # Others are trained whole (`modules_to_save`) or by token (`trainable_token_indices`).
    config.target_modules = sorted(
        {today[name] for name, inner in names.items() if inner.startswith(f"{parts[name]}.lora_")}
    )
    return {
        f"{_INSIDE}{today[name]}{inner.removeprefix(parts[name])}": stored[name]
        for name, inner in names.items()
    }


def read_finite(adapter: str) -> dict[str, torch.Tensor]:
    """An adapter's tensors by name, all of them finite.

    Raises:
        HarnessError: names the first few that are not.
        SafetensorError: the file is damaged.
    """
    stored: dict[str, torch.Tensor] = load_file(Path(adapter) / WEIGHTS)
    refuse_unfinite(f"adapter {adapter}", not_finite(stored.items()))
    return stored


def _lost(peft_model: PeftModel, stored: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors in the file whose values are not in the model.

    Names are compared first. PEFT renames tensors of adapters that an older transformers wrote, so a tensor
    also counts as found under another name. It leaves out the base's own embedding, which it may have saved.
    """
    own = {name: weight for name, weight in peft_model.named_parameters() if ".base_layer." in name}
    inside = own | get_peft_model_state_dict(peft_model)
    return [
        name
        for name, tensor in stored.items()
        if not (name in inside and _same(tensor, inside[name]))
        and not any(_same(tensor, other) for other in inside.values())
    ]


def _same(stored: torch.Tensor, inside: torch.Tensor) -> bool:
    """Whether a tensor arrived unchanged, up to rounding to the model's dtype."""
    if stored.shape != inside.shape:
        return False
    return torch.equal(stored.to(inside.dtype), inside.cpu())


def _unfit(adapter: str, base: str, why: str) -> HarnessError:
    return HarnessError(
        f"adapter {adapter} does not fit {base}: {why}", "Pass the base that it was trained on"
    )

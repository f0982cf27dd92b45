"""What two models make of the same real inputs, and how far they are apart."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from .batching import Features

POSITIONS = 256
"""Positions of a prompt that are compared, its last ones: those of a large vocabulary fill memory soon."""


@dataclass(frozen=True)
class Reading:
    """What a model makes of one prompt.

    Attributes:
        logits: of its last positions, `(positions, vocabulary)`, float32, on the CPU.
        answer: the token ids of its greedy answer; None where it was not asked for.
    """

    logits: Tensor
    answer: list[int] | None


@dataclass(frozen=True)
class Parity:
    """How a merged model differs from its base with the adapter.

    Attributes:
        prompts: inputs compared.
        positions: positions compared, of all prompts together.
        difference: largest difference of two logits.
        in_deviations: the same in standard deviations of the prompt's logits.
        typical: root mean square of the differences, in the same deviations, where it is largest.
        effect: largest difference that the adapter itself makes to the base, in the same deviations.
        same_argmax: share of positions at which both find the same token likeliest, in [0, 1].
        same_answers: prompts that both answer alike by greedy decoding; None where that was not asked for.
        modules: adapted module -> whether its weights differ from the base's in the merged checkpoint.
        rounded_away: modules among them whose update is no zero, but too small for the base's type.
    """

    prompts: int
    positions: int
    difference: float
    in_deviations: float
    typical: float
    effect: float
    same_argmax: float
    same_answers: int | None
    modules: Mapping[str, bool]
    rounded_away: tuple[str, ...]


@torch.inference_mode()
def read(model: PreTrainedModel, features: Features, generation: GenerationConfig | None = None) -> Reading:
    """Runs a model on one prompt.

    Args:
        model: in evaluation mode, on any device.
        features: what the processor made of the prompt.
        generation: names the special tokens and the longest answer; None asks for no answer.
    """
    inputs = {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
        for name, tensor in features.items()
    }
    logits = model(**inputs).logits[0, -POSITIONS:].float().cpu()
    if generation is None:
        return Reading(logits, None)
    rows = model.generate(**inputs, generation_config=generation)
    return Reading(logits, rows[0, inputs["input_ids"].shape[1] :].tolist())


def compare(
    wanted: Sequence[Reading],
    found: Sequence[Reading],
    plain: Sequence[Reading],
    modules: Mapping[str, bool],
    rounded_away: tuple[str, ...],
) -> Parity:
    """Puts readings of the same prompts side by side.

    Args:
        wanted: of the base with the adapter.
        found: of the merged model.
        plain: of the base alone.
        modules: see `Parity`.
        rounded_away: see `Parity`.
    """
    pairs = list(zip(wanted, found, plain, strict=True))
    same = torch.cat([one.logits.argmax(-1) == other.logits.argmax(-1) for one, other, _ in pairs])
    answered = [one.answer == other.answer for one, other, _ in pairs if one.answer is not None]
    return Parity(
        prompts=len(pairs),
        positions=len(same),
        difference=_most([_apart(one, other) for one, other, _ in pairs]),
        in_deviations=_most([_apart(one, other) / one.logits.std() for one, other, _ in pairs]),
        typical=_most([_typical(one, other) / one.logits.std() for one, other, _ in pairs]),
        effect=_most([_apart(one, base) / one.logits.std() for one, _, base in pairs]),
        same_argmax=float(same.float().mean()),
        same_answers=sum(answered) if answered else None,
        modules=modules,
        rounded_away=rounded_away,
    )


def _apart(one: Reading, other: Reading) -> Tensor:
    return (one.logits - other.logits).abs().max()


def _typical(one: Reading, other: Reading) -> Tensor:
    return (one.logits - other.logits).square().mean().sqrt()


def _most(values: list[Tensor]) -> float:
    """The largest; not a number where one of them is none, which `max` might lose."""
    return float(torch.stack(values).max())


def adapted(peft_model: PeftModel) -> dict[str, torch.nn.Module]:
    """Name in the base -> the module that an adapter has put in its place, outermost ones only."""
    found: dict[str, torch.nn.Module] = {}
    for name, module in peft_model.get_base_model().named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not inside:
            found[name] = module
    return found


def digest(module: torch.nn.Module) -> str:
    """A hash of a module's weights, of the base's where an adapter is on it."""
    if isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    elif isinstance(module, AuxiliaryTrainingWrapper):
        module = module.original_module
    weights = hashlib.sha256()
    for weight in module.parameters():
        weights.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return weights.hexdigest()


def moves(module: torch.nn.Module) -> bool:
    """Whether an adapter's module is sure to change its base's weights: a LoRA whose factors are no zeros."""
    if not isinstance(module, LoraLayer):
        return False
    first = [*module.lora_A.values(), *module.lora_embedding_A.values()]
    second = [*module.lora_B.values(), *module.lora_embedding_B.values()]
    return all(_any(factor) for factor in first) and all(_any(factor) for factor in second)


def _any(factor: torch.nn.Module | Tensor) -> bool:
    return bool((factor if isinstance(factor, Tensor) else factor.get_parameter("weight")).any())

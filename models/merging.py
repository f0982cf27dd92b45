"""A base and its adapter as one checkpoint on disk, compared with the original pair on real inputs."""

import inspect
import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import AutoProcessor, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from dcsft_harness.errors import HarnessError

from .adapters import wrap
from .batching import Features, continued, on_device
from .checkpoint import GENERATION, open_weights
from .resources import give_back, own_weights, reused_memory
from .weights import DTYPES, INDEX, Place, few, files_of, not_finite, places, weight_files

# Outputs of two models on the same inputs, and how far they differ.

POSITIONS = 32
"""Compared positions of a prompt, from its end: logits of a large vocabulary fill memory quickly."""


@dataclass(frozen=True)
class Reading:
    """A model's output for one prompt."""

    # of the last positions of the prompt and the answer without its last token, float32 `(positions,
    # vocabulary)`, on the CPU
    logits: Tensor
    answer: list[int] | None  # the token ids of the greedy answer; None if not requested

    def likeliest(self) -> Tensor:
        """The likeliest token at each position of the answer, int64 `(tokens,)`."""
        return self.logits[len(self.logits) - len(self.answer or ()) :].argmax(-1)


@dataclass(frozen=True)
class Parity:
    """How a merged model differs from its base with the adapter."""

    prompts: int  # inputs compared
    positions: int  # positions compared, of all prompts together
    difference: float  # largest difference of two logits
    in_deviations: float  # the same in standard deviations of the prompt's logits
    typical: float  # root mean square of the differences, in the same deviations, where it is largest
    effect: float  # largest difference that the adapter itself makes to the base, in the same deviations
    same_argmax: float  # share of positions at which both have the same likeliest token, in [0, 1]
    same_answers: int | None  # prompts with the same greedy answer from both; None if not requested
    # adapted module -> whether its weights differ from the base's in the merged checkpoint
    modules: Mapping[str, bool]
    rounded_away: tuple[str, ...]  # modules among them whose nonzero update is too small for the base's dtype


@torch.inference_mode()
def read_outputs(
    model: PreTrainedModel, features: Features, answer: GenerationConfig | list[int] | None = None
) -> Reading:
    """Runs a model on one prompt and an answer to it.

    The model is in evaluation mode; `features` is the processor's output for the prompt. `answer` is the
    answer's token ids; special tokens and the longest answer, to generate one greedily; or None for the
    prompt alone.
    """
    inputs = on_device(features, model)
    # Models without this argument return all positions.
    able = "logits_to_keep" in inspect.signature(model.forward).parameters
    if isinstance(answer, GenerationConfig):
        kept = max(POSITIONS, answer.max_new_tokens or 0)
        passes: list[Tensor] = []
        hook = model.register_forward_hook(lambda module, given, output: passes.append(output.logits[0]))
        try:
            rows = model.generate(
                **inputs, generation_config=answer, **({"logits_to_keep": kept} if able else {})
            )
        finally:
            hook.remove()
        answer = rows[0, inputs["input_ids"].shape[1] :].tolist()
        # Generation has computed them: the prompt's and, token by token, the answer's.
        if passes and [len(one) for one in passes[1:]] == [1] * (len(answer) - 1):
            logits = torch.cat([passes[0][-kept:], *passes[1:]])
            return Reading(logits[-max(POSITIONS, len(answer)) :].float().cpu(), answer)
    kept = max(POSITIONS, len(answer or ()))
    last = {"logits_to_keep": kept} if able else {}
    logits = model(**continued(inputs, (answer or [])[:-1]), **last).logits
    return Reading(logits[0, -kept:].float().cpu(), answer)


def compare_outputs(
    wanted: Sequence[Reading],
    found: Sequence[Reading],
    plain: Sequence[Reading],
    modules: Mapping[str, bool],
    rounded_away: tuple[str, ...],
) -> Parity:
    """Compares outputs for the same prompts.

    `wanted` are outputs of the base with the adapter, `found` of the merged model, `plain` of the base alone;
    see `Parity` for the rest.
    """
    pairs = list(zip(wanted, found, plain, strict=True))
    same = torch.cat([one.logits.argmax(-1) == other.logits.argmax(-1) for one, other, _ in pairs])
    # Greedy answers are equal if both models prefer the same token after each beginning of one of them.
    answered = [
        torch.equal(one.likeliest(), other.likeliest()) for one, other, _ in pairs if one.answer is not None
    ]
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
    """The largest value; NaN if any value is NaN, which `max` might drop."""
    return float(torch.stack(values).max())


def adapted(peft_model: PeftModel) -> dict[str, torch.nn.Module]:
    """Name in the base -> the adapter's replacement module, outermost ones only."""
    found: dict[str, torch.nn.Module] = {}
    for name, module in peft_model.get_base_model().named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not inside:
            found[name] = module
    return found


def original(module: nn.Module) -> nn.Module:
    """A module of the base; from inside, if an adapter wraps it."""
    found = module
    if isinstance(module, BaseTunerLayer):
        found = module.get_base_layer()
    elif isinstance(module, AuxiliaryTrainingWrapper):
        found = module.original_module
    assert isinstance(found, nn.Module)
    return found


def digest(module: nn.Module) -> str:
    """A hash of a module's weights; of the base's weights if an adapter wraps it."""
    weights = xxhash.xxh3_128()
    for weight in original(module).parameters():
        weights.update(_bytes(weight))
    return weights.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's values in memory, without a copy if it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def moves(module: torch.nn.Module) -> bool:
    """Whether an adapter's module is sure to change its base's weights: a LoRA with nonzero factors."""
    if not isinstance(module, LoraLayer):
        return False
    first = [*module.lora_A.values(), *module.lora_embedding_A.values()]
    second = [*module.lora_B.values(), *module.lora_embedding_B.values()]
    return all(_any(factor) for factor in first) and all(_any(factor) for factor in second)


def _any(factor: torch.nn.Module | Tensor) -> bool:
    return bool((factor if isinstance(factor, Tensor) else factor.get_parameter("weight")).any())


TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-2}
"""Largest difference of two logits, in standard deviations of the logits: rounding of merged weights stays
well below, while a missing or doubly merged module is on the order of one."""

HALF_TOLERANCE = 0.1
"""Likewise for half-precision types, of the differences' root mean square: two of bfloat16's large logits
differ by a quarter of a deviation when they round to adjacent values."""

_SHARD = "5GB"


def merge(
    pretrained: str,
    adapter: str,
    folder: Path,
    probes: Sequence[Features],
    trust_remote_code: bool = False,
    device: torch.device | str = "cpu",
    generation: GenerationConfig | None = None,
) -> Parity:
    """Writes one checkpoint that behaves like the base with the adapter.

    The weights are merged in the base's stored dtype and written as safetensors, with the processor, the
    tokenizer, the chat template and the generation config. They are then read back, so the comparison covers
    what an engine will load. Only one model is in memory at a time, on the CPU as its mapped files.

    Files are written one after the other, and one adapted module is merged at a time, by PEFT. Adapters that
    change more than the tensors of the modules that they wrap are merged as a whole (`_merged`). The folder
    is empty. `probes` has the processor's output for each prompt to compare on; `generation` is for greedy
    answers, None compares logits alone. The models run on `device`.

    Raises:
        HarnessError: the adapter does not fit, or the merged model answers differently.
        OSError: the folder cannot be written.
        SafetensorError: likewise.
    """
    base = _load(pretrained, trust_remote_code, device)
    own_weights(base)  # which many passes read
    names = _stored_names(base, pretrained)
    peft_model = wrap(base, adapter, pretrained).eval()
    modules = adapted(peft_model)
    moving = [name for name, module in modules.items() if moves(module)]
    wanted = [read_outputs(base, features, generation) for features in probes]
    with peft_model.disable_adapter():
        plain = [
            read_outputs(base, features, one.answer) for features, one in zip(probes, wanted, strict=True)
        ]
    try:
        peft_model.base_model._check_merge_allowed()
        if _by_module(peft_model, modules, names):
            with reused_memory():
                before, after = _write(base, modules, names, pretrained, folder)
        else:
            before = {name: digest(module) for name, module in modules.items()}
            del modules
            base = _merged(peft_model)
            after = _digests(base, before)
            modules = {}
    except (ValueError, RuntimeError) as error:  # weights that are not finite, or that PEFT cannot merge
        if isinstance(error, RuntimeError) and "merge" not in str(error):
            raise
        raise unlike(adapter, pretrained, str(error)) from error
    still = tuple(name for name in moving if after[name] == before[name])
    if base.dtype in TOLERANCE and still:
        raise unlike(adapter, pretrained, f"{len(still)} adapted modules stay as they were {few(still)}")
    _save(base, pretrained, folder, trust_remote_code, weights=not modules)
    del base, peft_model, modules  # before the second model: one of them may fill half the memory
    give_back()
    merged = _load(str(folder), trust_remote_code, device)
    stored = _digests(merged, before)
    if lost := tuple(name for name in before if stored[name] != after[name]):
        raise unlike(adapter, pretrained, f"{len(lost)} adapted modules are not what was saved {few(lost)}")
    found = [read_outputs(merged, features, one.answer) for features, one in zip(probes, wanted, strict=True)]
    changed = {name: stored[name] != before[name] for name in before}
    parity = compare_outputs(wanted, found, plain, changed, still)
    apart = parity.in_deviations if merged.dtype in TOLERANCE else parity.typical
    if not apart <= tolerance(merged.dtype):
        raise unlike(adapter, pretrained, f"logits change by {apart:.2g} standard deviations")
    return parity


# Merges one module at a time, into copies of the base's files.

_COPIED = 1 << 24
"""Bytes that are copied at a time."""


def _stored_names(model: PreTrainedModel, pretrained: str) -> dict[str, Place]:
    """Parameter -> where the base's files hold it, if its values are one stored tensor's.

    `model` is the base, before an adapter renames its parameters.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    weights = model.state_dict()
    found: dict[str, Place] = {}
    for path in weight_files(pretrained):
        for name, place in places(path).items():
            inside, converted = rename_source_key(
                name, renamings, converters, model.base_model_prefix, weights
            )
            weight = weights.get(inside)
            if weight is not None and converted is None and place.holds(weight):
                found[inside] = place
    return found


def _by_module(peft_model: PeftModel, modules: Mapping[str, nn.Module], names: Mapping[str, Place]) -> bool:
    """Whether a merge changes just the stored tensors of the wrapped modules, each module by itself."""
    if _splits_tied(peft_model.get_base_model(), modules):
        return False  # two layers of one tensor become two tensors
    if any(getattr(config, "bias", "none") != "none" for config in peft_model.peft_config.values()):
        return False
    for name, module in modules.items():
        plain = isinstance(module, BaseTunerLayer) and not isinstance(module, ParamWrapper)
        own = hasattr(module, "unload_and_optionally_merge_module")
        if not (plain and not own) and type(module) is not ModulesToSaveWrapper:
            return False
        wrapped = original(module)
        if any(isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper) for part in wrapped.modules()):
            return False
        if any(f"{name}.{inner}" not in names for inner in wrapped.state_dict()):
            return False
    return True


def _splits_tied(base: PreTrainedModel, modules: Mapping[str, nn.Module]) -> bool:
    """Whether one of the adapted modules has an embedding or output layer, and these two share weights."""
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    weights = [getattr(original(end), "weight", None) for end in ends]
    inside = {id(part) for module in modules.values() for part in module.modules()}
    return weights[0] is not None and weights[0] is weights[1] and any(id(end) in inside for end in ends)


def _write(
    model: PreTrainedModel,
    modules: Mapping[str, nn.Module],
    names: Mapping[str, Place],
    pretrained: str,
    folder: Path,
) -> tuple[dict[str, str], dict[str, str]]:
    """Writes the base's files with merged tensors in place of the adapted modules' own, which must be finite.

    `model` is the base, with the adapter around the adapted `modules`; `names` is where the files hold their
    tensors. Returns the hashes of each module's weights before and after.
    """
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    owners = {
        (names[f"{name}.{inner}"].file, names[f"{name}.{inner}"].start): (name, inner)
        for name, module in modules.items()
        for inner in original(module).state_dict()
    }
    waiting: dict[str, dict[str, Tensor]] = {}  # merged tensors that are not written yet, by module
    for path in weight_files(pretrained):
        with path.open("rb") as source, (folder / path.name).open("wb") as target:
            for place in sorted(places(path).values(), key=lambda one: one.start):
                owner = owners.get((place.file, place.start))
                if owner is None:
                    continue
                name, inner = owner
                if name not in before:
                    before[name] = digest(modules[name])
                    waiting[name], after[name] = _merged_alone(modules[name])
                _copy(source, target, place.start)
                target.write(_bytes(waiting[name].pop(inner)))
                source.seek(place.end)
            _copy(source, target, path.stat().st_size)
    found = files_of(pretrained)
    if found is not None and (found / INDEX).is_file() and not (folder / "model.safetensors").is_file():
        shutil.copyfile(found / INDEX, folder / INDEX)
    return before, after


def _merged_alone(module: nn.Module) -> tuple[dict[str, Tensor], str]:
    """One module's tensors with the adapter in them, and their hash; the module's own stay as they are."""
    wrapped = original(module)
    if isinstance(module, ModulesToSaveWrapper):
        trained = module.modules_to_save[module.active_adapters[0]]
        kinds = {name: tensor.dtype for name, tensor in wrapped.state_dict().items()}
        trained = trained.to(next(iter(kinds.values())))
        return dict(trained.state_dict()), digest(trained)
    own = {name: weight.data for name, weight in wrapped.named_parameters()}
    assert isinstance(module, BaseTunerLayer)
    for weight in wrapped.parameters():
        weight.data = weight.data.clone()
    module.merge()  # PEFT's safe merge takes five times as long to find what is not finite
    merged, hashed = dict(wrapped.state_dict()), digest(wrapped)
    for name, weight in wrapped.named_parameters():
        weight.data = own[name]
    _refuse_unfinite(merged)
    return merged, hashed


def _refuse_unfinite(merged: Mapping[str, Tensor]) -> None:
    if bad := not_finite(merged.items()):
        raise ValueError(f"merged weights are not finite {few(bad)}")


def _copy(source: BinaryIO, target: BinaryIO, end: int) -> None:
    """Copies from where the source stands up to a place in it."""
    left = end - source.seek(0, os.SEEK_CUR)
    while left > 0:
        part = source.read(min(left, _COPIED))
        if not part:
            raise OSError(f"{source.name} became shorter while it was read")
        target.write(part)
        left -= len(part)


def tolerance(dtype: torch.dtype | None) -> float:
    """How far a merge in this dtype may move logits, in standard deviations: see the constants."""
    return HALF_TOLERANCE if dtype is None else TOLERANCE.get(dtype, HALF_TOLERANCE)


def stored_dtype(checkpoint: str) -> torch.dtype | None:
    """The floating-point dtype of most of a checkpoint's stored weights; None if it cannot be determined."""
    found: Counter[str] = Counter()
    for path in weight_files(checkpoint):
        for place in places(path).values():
            found[place.dtype] += math.prod(place.shape)
    known = [kind for kind, _ in found.most_common() if kind in DTYPES]
    return DTYPES[known[0]] if known else None


def _load(checkpoint: str, trust_remote_code: bool, device: torch.device | str) -> PreTrainedModel:
    # "auto" trusts the configuration, which may name another dtype than the weights have.
    dtype = stored_dtype(checkpoint) or "auto"
    return open_weights(checkpoint, dtype, device, trust_remote_code).eval()


def _merged(peft_model: PeftModel) -> PreTrainedModel:
    """The base with the adapter in its weights.

    An adapter on a tied embedding or output layer changes one of two layers that share weights, so the layers
    are untied first. With PEFT's `ensure_weight_tying` they end as one again.
    """
    base = peft_model.get_base_model()
    split = _splits_tied(base, adapted(peft_model))
    if split:
        layer: Any = original(base.get_output_embeddings())
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        for config in (base.config, base.config.get_text_config()):
            config.tie_word_embeddings = False
    merged: PreTrainedModel = peft_model.merge_and_unload()
    if split and merged.get_output_embeddings().weight is merged.get_input_embeddings().weight:
        for config in (merged.config, merged.config.get_text_config()):
            config.tie_word_embeddings = True
    _refuse_unfinite(merged.state_dict())
    return merged


def _digests(model: PreTrainedModel, names: Sequence[str] | dict[str, str]) -> dict[str, str]:
    return {name: digest(model.get_submodule(name)) for name in names}


def _save(
    model: PreTrainedModel, pretrained: str, folder: Path, trust_remote_code: bool, weights: bool
) -> None:
    """Configuration, processor, and weights unless they stand; the generation config is copied as it is."""
    model.generation_config = GenerationConfig()  # transformers refuses to save some published ones
    if weights:
        model.save_pretrained(folder, max_shard_size=_SHARD)
    else:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
    AutoProcessor.from_pretrained(pretrained, trust_remote_code=trust_remote_code).save_pretrained(folder)
    source = files_of(pretrained)
    if source is not None and (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, folder / GENERATION)
    else:
        (folder / GENERATION).unlink(missing_ok=True)


def unlike(adapter: str, pretrained: str, why: str) -> HarnessError:
    """The error for a merge that does not behave like the adapter."""
    return HarnessError(
        f"adapter {adapter} cannot be merged into {pretrained}: {why}", "Use dcsft_hf, which runs it unmerged"
    )

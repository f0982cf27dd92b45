"""What a model needs of a device: memory and time, from its configuration and the sizes of its inputs alone.

Memory is counted tensor by tensor where the count is certain (weights, gradients, AdamW's moments, keys and
values), and by what a layer of a transformer keeps for the backward pass, in multiples of its widths.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from dcsft_harness.artifacts.usage import Device

from .checkpoint import outline
from .merging import POSITIONS
from .resources import Arithmetic, Footprint, Tower, patches_per_token

LIBRARIES = {"cpu": 0.95e9, "cuda": 0.0}
"""Memory of the process before weights are read; on CUDA, memory is the device's alone."""
_TRAINERS = {"cpu": 0.17e9, "cuda": 0.0}
"""What TRL and PEFT add to it."""
_RECOMPUTED = 1e9
"""Weights from which on training computes activations again by default, which takes up to half more time."""
_HEAD_TOKENS, _HEAD_WIDTH = 4096, 32768
"""TRL computes log-probabilities of answers in tiles of tokens by vocabulary."""
_SPREAD = 1.03
"""What the allocator holds beside the tensors, at the peak of a pass."""


class Anatomy:
    """A model without weights, for counting."""

    def __init__(self, config: PreTrainedConfig, trust_remote_code: bool = False) -> None:
        """Builds its modules."""
        self.config = config
        self.model: PreTrainedModel = outline(config, trust_remote_code)
        text = config.get_text_config(decoder=True)
        vision = getattr(config, "vision_config", None)
        names = {name.rpartition(".")[2] for name, module in self.model.named_modules()}
        gated = "gate_proj" in names or "gate_up_proj" in names
        tower = [name for name, _ in self.model.named_modules() if "vis" in name and "gate" in name]
        self.language, self.vision = Tower.of(text, gated), Tower.of(vision, bool(tower))
        self.vocabulary = int(text.vocab_size)
        self.patches_per_token = patches_per_token(config)
        self.tied = bool(getattr(config, "tie_word_embeddings", False))
        self.parameters = sum(weight.numel() for weight in self.model.parameters())

    @cached_property
    def arithmetic(self) -> Arithmetic:
        """Operations of a token and of a patch."""
        return Arithmetic(self.model)

    def stored(self, number: int | None = None) -> float:
        """Bytes of the weights; by default in the checkpoint's type."""
        kind = self.config.dtype if isinstance(self.config.dtype, torch.dtype) else torch.float32
        return float(self.parameters * (number or kind.itemsize))

    def inputs(self, chosen: Mapping[str, str]) -> dict[str, int]:
        """Numbers that go into the chosen linear layers, by part of the model, over all of its layers."""
        found = {"language": 0, "vision": 0, "aligner": 0}
        for name, part in chosen.items():
            module = self.model.get_submodule(name)
            found[part] += int(module.in_features) if isinstance(module, nn.Linear) else 0
        return found


@dataclass(frozen=True)
class Training:
    """What decides the memory of a training step."""

    trained: int  # weights that train
    # layers with an adapter, or all linear layers if everything trains: name -> part of the model
    chosen: Mapping[str, str]
    full: bool  # whether everything trains
    dropout: bool  # whether adapters drop some of their inputs
    number: int  # bytes of a number in the forward pass
    checkpointing: bool  # whether activations are computed again in the backward pass
    tokens: int  # of the longest row, images included
    image_tokens: int  # of the row with the largest images
    rows: int = 1  # per sample: 2 for pairs
    processes: Mapping[str, int] | None = None  # that share the state, by kind: "weights", "state"
    reference: int = 0  # weights of a second model that is kept, or 0
    completion: int = 0  # of a row's tokens, those that are learned, where others share its prompt
    together: int = 1  # samples that share a prompt


@dataclass(frozen=True)
class Step:
    """Memory of a training step, in bytes. Its peak is where the backward pass begins or where it ends."""

    held: Mapping[str, float]  # at any time
    beginning: Mapping[str, float]  # also where the backward pass begins, beside activations
    sample: float  # activations of a sample there, without its prompt's if samples share that
    gradients: float  # of what trains; unless they are accumulated, they appear as activations go
    ending: Mapping[str, float]  # also where the backward pass ends
    prompt: float = 0.0  # activations of a prompt that samples share
    together: int = 1  # samples that share one

    def parts(self, micro: int, accumulates: bool) -> dict[str, float]:
        """The peak, with `micro` samples in a forward pass, and with several passes if it `accumulates`."""
        before = self.gradients if accumulates else 0.0
        prompts, samples = -(-micro // self.together), micro
        if self.together > 1 and micro % self.together and self.together % micro:
            # A pass begins and ends within a prompt's samples; each prompt has room for as many.
            prompts += 1
            samples = prompts * min(micro, self.together)
        kept = samples * self.sample + prompts * self.prompt
        begins = {**self.beginning, "gradients": before, "activations": kept}
        ends = {**self.ending, "gradients": self.gradients}
        return {**self.held, **(begins if sum(begins.values()) > sum(ends.values()) else ends)}

    def total(self, micro: int, accumulates: bool) -> float:
        """The sum of `parts`."""
        return sum(self.parts(micro, accumulates).values())


def training(anatomy: Anatomy, given: Training, device: Device) -> Step:
    """Memory of a training step."""
    shared = given.processes or {}
    weights = anatomy.stored(4 if given.full else given.number)
    number, patches = given.number, given.image_tokens * anatomy.patches_per_token
    libraries = LIBRARIES[device.kind] + _TRAINERS[device.kind]
    state = given.trained * 4.0 / shared.get("state", 1)
    # An adapter's own weights are beside the model's; moments appear with the first step.
    own = 0.0 if given.full else given.trained * 4.0
    held = {
        "libraries": libraries,
        "weights": weights / shared.get("weights", 1),
        "adapter and moments" if own else "moments": 2 * state + own,
    }
    if given.reference:
        # TRL opens it in the type of what trains.
        held["reference"] = 4.0 * given.reference / shared.get("weights", 1)
    head = 4.0 * anatomy.vocabulary * anatomy.language.width if given.full else 0.0
    beginning = {"output layer": head + _head(anatomy, given, device)}
    if given.full and number < 4:
        beginning["weights in bfloat16"] = anatomy.stored(number)
    # The gradient of an embedding is added to that of the output layer, where they are one tensor.
    ending = {"output layer": head if anatomy.tied else 0.0}
    language, vision = _kept(anatomy, given, device)
    text, tower = anatomy.language, anatomy.vision
    if given.checkpointing:
        # The stream at each layer, and everything of one layer.
        language = text.layers * number * text.width + language / max(text.layers, 1)
        vision = tower.layers * number * tower.width + vision / max(tower.layers, 1)
    # Each sample has a copy of its prompt's last token, which predicts its first.
    own = given.completion + 1 if given.together > 1 else given.tokens
    prompt = _SPREAD * given.rows * ((given.tokens - given.completion) * language + patches * vision)
    sample = _SPREAD * given.rows * own * language + _tiles(anatomy, given, device)
    if given.together == 1:
        sample, prompt = sample + _SPREAD * given.rows * patches * vision, 0.0
    else:
        prompt += number * (given.tokens - given.completion + given.together * own) ** 2  # the mask
    return Step(held, beginning, sample, state, ending, prompt, given.together)


def recomputes(config: PreTrainedConfig) -> bool:
    """Whether training computes activations again by default, to save the memory of keeping them."""
    return bool(sum(weight.numel() for weight in outline(config).parameters()) > _RECOMPUTED)


def _kept(anatomy: Anatomy, given: Training, device: Device) -> tuple[float, float]:
    """Bytes kept of a token by all layers of the decoder, and of a patch by those of the vision tower."""
    inputs, number = anatomy.inputs(given.chosen), given.number
    # A mask, which torch keeps as float32 factors on a CPU, and what is left of the inputs; without dropout,
    # they are kept as they are.
    mask = 4 if device.kind == "cpu" else 1
    each = mask + number if given.dropout and not given.full else number
    language = anatomy.language.layers * anatomy.language.kept(number, given.full) + each * inputs["language"]
    if not (inputs["vision"] or inputs["aligner"] or given.full):
        return language, 0.0  # nothing in the tower trains, so it keeps nothing
    vision = anatomy.vision.layers * anatomy.vision.kept(number, given.full) + each * inputs["vision"]
    return language, vision + each * inputs["aligner"] / anatomy.patches_per_token


def _head(anatomy: Anatomy, given: Training, device: Device) -> float:
    """A tile of the output layer's weights in float32, as a CPU multiplies them."""
    wide = min(anatomy.vocabulary, _HEAD_WIDTH)
    return 4.0 * wide * anatomy.language.width if device.kind == "cpu" and given.number < 4 else 0.0


def _tiles(anatomy: Anatomy, given: Training, device: Device) -> float:
    """A sample's logits in a tile and their gradient, step by step in float32 where there is no Triton."""
    wide = min(anatomy.vocabulary, _HEAD_WIDTH)
    learned = min(max(given.tokens - given.image_tokens, 1) * given.rows, _HEAD_TOKENS)
    return 4.0 * learned * wide * (6 if device.kind == "cpu" else 2)


def generation(
    anatomy: Anatomy,
    number: int,
    rows: int,
    items: int,
    tokens: int,
    new_tokens: int,
    device: Device,
    shared: bool = True,
) -> dict[str, float]:
    """Memory of generating `rows` responses to `items` prompts at a time.

    `number` is the bytes of a number; `tokens` and `new_tokens` are those of the longest prompt, images
    included, and of the longest response. `shared`: long batches go through the model in slices, and the
    responses to a prompt share its keys and values, as dcsft_hf does it; else each has a copy.
    """
    layer = Footprint.of(anatomy.config, number, device.kind)
    together = min(items * tokens, max(layer.slice_tokens, tokens)) if shared else items * tokens
    patches = items * tokens * anatomy.patches_per_token
    return {
        "libraries": LIBRARIES[device.kind],
        "weights": anatomy.stored(number),
        "keys and values": layer.cached * ((items if shared else rows) * tokens + 2 * rows * new_tokens),
        "activations": together * layer.activation + rows * (layer.choice + tokens * layer.score),
        "images": min(patches, together * anatomy.patches_per_token) * anatomy.vision.computing(number),
    }


def merging(anatomy: Anatomy, prompts: int, new_tokens: int, device: Device) -> dict[str, float]:
    """Memory of a merge: one model at a time on the device, and what is compared of three in the process."""
    kept = max(POSITIONS, new_tokens + 1)
    logits = 4.0 * kept * anatomy.vocabulary * (3 * prompts + 2 if device.kind == "cpu" else 1)
    # A module's stored, merged and checked weights, and its update in float32.
    text = anatomy.language
    return {
        "libraries": LIBRARIES[device.kind] + _TRAINERS[device.kind],
        "weights": anatomy.stored(),
        "logits": logits,
        "a merged module": text.width * text.inner * (3.0 * anatomy.stored() / anatomy.parameters + 4.0),
    }


def seconds(anatomy: Anatomy, device: Device, work: Mapping[str, Any], loading: float) -> float:
    """Time of some operations on a device, and of reading the weights, `loading` bytes.

    `work` are "operations" of large products, and "steps" of generation, which read all weights each.
    """
    bandwidth = 6e11 if device.kind == "cuda" else 1.2e10
    disk = 1.5e9 if device.kind == "cuda" else 4e8
    spent = float(work.get("operations", 0.0)) / device.speed()
    return spent + float(work.get("steps", 0)) * anatomy.stored() / bandwidth + loading / disk + 10.0

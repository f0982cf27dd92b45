"""Floating-point operations of a model's weights, estimated from how many there are and what trains."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

Inputs = Mapping[str, Any]


class Arithmetic:
    """What a token and an image patch cost.

    A product with n weights is 2n operations in the forward pass; the backward pass repeats that for the
    activations' gradient, and once more for each weight that trains. Left out: the attention of tokens
    to each other, activation checkpointing, padding, and everything that is no product. The aligner is
    counted with the vision tower, by patches.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        """Counts the weights of a transformers model, which may carry an adapter."""
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.patch = getattr(getattr(inner.config, "vision_config", None), "patch_size", None)
        embedded = inner.get_input_embeddings().weight
        head = inner.get_output_embeddings()
        decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else inner
        language = {id(weight) for weight in decoder.parameters()}
        self.language = 0 if head is None else head.weight.numel()
        self.vision = self.trained_language = self.trained_vision = 0
        if head is not None and head.weight.requires_grad:
            self.trained_language = head.weight.numel()
        for weight in inner.parameters():
            if weight is embedded or (head is not None and weight is head.weight) or weight.dim() < 2:
                continue
            trained = weight.numel() if weight.requires_grad else 0
            if id(weight) in language:
                self.language += weight.numel()
                self.trained_language += trained
            else:
                self.vision += weight.numel()
                self.trained_vision += trained

    def forward(self, tokens: float, patches: float) -> float:
        """One forward pass over so many tokens (those of images included) and image patches."""
        return 2.0 * (self.language * tokens + self.vision * patches)

    def training(self, tokens: float, patches: float) -> float:
        """One forward and backward pass; without a weight that trains, the tower has no backward pass."""
        backward = (self.language + self.trained_language) * tokens
        if self.trained_vision:
            backward += (self.vision + self.trained_vision) * patches
        return self.forward(tokens, patches) + 2.0 * backward

    def patches(self, inputs: Inputs) -> int:
        """How many image patches a processor's output has."""
        pixels = inputs.get("pixel_values")
        if not isinstance(pixels, Tensor):
            return 0
        if pixels.dim() == 2:  # one row a patch, as Qwen's processors give them
            return int(pixels.shape[0])
        if isinstance(self.patch, int):
            return int(pixels[..., 0, :, :].numel() // self.patch**2)
        return 0

"""Patch embeddings as matrix products: a convolution whose stride is its kernel is one."""

from torch import Tensor, nn
from torch.nn import functional


def embed_by_product(model: nn.Module) -> int:
    """Lets patch embeddings that are given whole patches run as matrix products, in place.

    Vision towers that get `(patches, channels, frames, height, width)` write the embedding as a
    convolution that moves over nothing. Kernels for it are several times slower than the
    product, a quarter of a small model's prefill. Weights, and so checkpoints and adapters, stay
    as they are; results differ by rounding.

    Returns:
        The modules changed.
    """
    changed = 0
    for module in model.modules():
        if type(module) is nn.Conv3d and _moves_over_nothing(module):
            module.forward = _Product(module)  # type: ignore[method-assign, assignment]
            changed += 1
    return changed


def _moves_over_nothing(convolution: nn.Conv3d) -> bool:
    return (
        convolution.kernel_size == convolution.stride
        and convolution.groups == 1
        and convolution.padding == (0, 0, 0)
        and convolution.dilation == (1, 1, 1)
    )


class _Product:
    """The forward pass of such a convolution."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        self._convolution = convolution

    def __call__(self, patches: Tensor) -> Tensor:
        """`(patches, channels, *kernel)` to `(patches, width, 1, 1, 1)`."""
        convolution = self._convolution
        if tuple(patches.shape[2:]) != convolution.kernel_size:
            return nn.Conv3d.forward(convolution, patches)
        product = functional.linear(patches.flatten(1), convolution.weight.flatten(1), convolution.bias)
        return product[..., None, None, None]

"""Patch embeddings as matrix products: the convolution's own results, and only where it is equivalent."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from dcsft_harness.models.vision import embed_by_product
from tests.fixtures.tiny_checkpoints import checkpoint


@pytest.mark.parametrize(("family", "count"), [("qwen2_5_vl", 1), ("qwen3_vl", 1), ("idefics3", 0)])
def test_the_embedding_of_each_family_is_unchanged(family, count):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint(family), dtype=torch.float32)
    found = [module for module in model.modules() if isinstance(module, nn.Conv3d)]
    assert len(found) == count
    names = set(model.state_dict())
    for convolution in found:
        patches = torch.randn(7, convolution.in_channels, *convolution.kernel_size)
        wanted = convolution(patches)
        assert embed_by_product(model) == 1
        assert convolution(patches).shape == wanted.shape
        torch.testing.assert_close(convolution(patches), wanted, rtol=1e-5, atol=1e-5)
    assert set(model.state_dict()) == names


def test_only_non_overlapping_convolutions_are_replaced():
    moving = nn.Sequential(nn.Conv3d(3, 4, 2, stride=1), nn.Conv3d(3, 4, 2, stride=2, padding=1))
    assert embed_by_product(moving) == 0
    whole = nn.Conv3d(3, 4, 2, stride=2)
    video = torch.randn(2, 3, 4, 4, 4)
    wanted = whole(video)
    assert embed_by_product(whole) == 1
    assert torch.equal(whole(video), wanted)

"""Vision attention on all segments of one length at once equals attention on one segment at a time."""

import pytest
import torch
from torch.nn import functional

from dcsft_harness.models import vision
from dcsft_harness.models.vision import attend_by_length
from tests.fixtures.tiny_checkpoints import documents
from tests.models.test_models_hf import load


def one_by_one(query, key, value, ends):
    parts = [
        functional.scaled_dot_product_attention(*(one[:, :, a:b] for one in (query, key, value)))
        for a, b in zip(ends[:-1], ends[1:], strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


@pytest.mark.parametrize(
    "lengths", [[4], [4, 4, 4], [4, 2, 4, 4, 1, 2], [7, 1], [0, 3, 3], list(range(1, 9))]
)
def test_it_equals_the_attention_of_each_segment(lengths):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(lengths)
    states = [torch.randn(1, 3, tokens, 8, generator=generator) for _ in range(3)]
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    found, _ = vision._attend(None, *states, None, cu_seq_lens_q=ends)
    wanted = one_by_one(*states, ends.tolist())
    assert found.shape == (1, tokens, 3, 8)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_vision_tower_gives_the_same_output_in_fewer_calls(family, monkeypatch):
    model = load(family)
    docs = [doc for doc in documents() if doc.get("image") is not None] or documents()
    pictures = [doc["image"] for doc in docs]
    features = model.processor.image_processor(images=pictures, return_tensors="pt")
    calls = []
    attention = functional.scaled_dot_product_attention
    monkeypatch.setattr(
        functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: calls.append(args[0].shape) or attention(*args, **kwargs),
    )
    tower = model._model.model.visual
    changed = [m for m in tower.modules() if hasattr(m, "num_key_value_groups")]
    assert changed and attend_by_length(tower) == len(changed)

    def features_of():
        calls.clear()
        with torch.inference_mode():
            output = tower(features["pixel_values"], grid_thw=features["image_grid_thw"])
        return output.pooler_output, len(calls)

    found, together = features_of()
    for module in changed:
        module.config._attn_implementation_internal = "sdpa"
    wanted, apart = features_of()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert together < apart


def test_towers_with_other_attention_are_unchanged():
    model = load(attn_implementation="eager")
    assert attend_by_length(model._model) == 0
    assert model._model.config.vision_config._attn_implementation == "eager"

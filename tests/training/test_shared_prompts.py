"""GRPO computes each prompt once for all its completions, with the results of repeated prompts."""

import pytest
import torch
import trl.trainer.grpo_trainer
from safetensors.torch import load_file
from transformers import AutoConfig

from dcsft_harness.stages import train_grpo
from dcsft_harness.training import grpo, shared_prompts
from dcsft_harness.training.config import GrpoConfig
from tests.fixtures.several import Parity
from tests.fixtures.tiny_checkpoints import checkpoint
from tests.training.test_training_families import conversations
from tests.training.test_training_grpo import drawn  # noqa: F401 - a fixture

FEW = {
    "learning_rate": 1e-3,
    "max_completion_length": 3,
    "lora_dropout": 0.0,
    "max_steps": 2,
    "batch_size": 16,
}
FAMILIES = ["qwen2_vl", "qwen3_vl", "glm4v", "internvl", "idefics3"]


def trained(base, output, **given):
    rows = conversations(1).add_column("item_id", [f"item{number}" for number in range(4)])
    notes = grpo.train_grpo(base, rows, Parity(4), output, GrpoConfig(**{**FEW, **given}))
    return notes, load_file(output / "adapter_model.safetensors")


@pytest.fixture
def repeating(monkeypatch):
    """TRL's own passes, over the completions of a prompt side by side."""
    monkeypatch.setattr(shared_prompts, "objection", lambda *given: "the test says so")
    monkeypatch.setattr(trl.trainer.grpo_trainer, "shuffle_sequence_dict", lambda batch: batch)


@pytest.fixture
def passes(monkeypatch):
    """The shapes of the passes with shared prompts, `(prompts, tokens)`."""
    made = []
    original = shared_prompts.packed

    def spy(*given):
        found = original(*given)
        made.append(tuple(found.inputs["input_ids"].shape))
        return found

    monkeypatch.setattr(shared_prompts, "packed", spy)
    return made


DIVISIONS = {
    "a prompt with its completions": ({"num_generations": 4}, 4),
    # A prompt's completions are divided among passes, whose prompts are unequal.
    "divided prompts": ({"num_generations": 8, "micro_batch_size": 4, "beta": 0.0}, 1),
    # A pass takes a part of one prompt's completions and a part of the next one's.
    "parts of two prompts": ({"num_generations": 4, "batch_size": 12, "micro_batch_size": 6}, 2),
    "penalties": ({"num_generations": 4, "extra": {"repetition_penalty": 1.5}, "top_k": 20}, 4),
    # The second time by a policy that has moved.
    "a draw used twice": ({"num_generations": 4, "learning_rate": 2e-4, "extra": {"num_iterations": 2}}, 4),
}
"""The settings of a run, and the prompts of each of its passes."""
CASES = [("qwen2_5_vl", division) for division in DIVISIONS]
# Families differ in how they select the images of some prompts, which two of the divisions do.
CASES += [
    pytest.param(family, division, marks=pytest.mark.slow)
    for family in FAMILIES
    for division in ("divided prompts", "parts of two prompts")
]


@pytest.mark.few(1)
@pytest.mark.parametrize(("family", "division"), CASES)
def test_shared_prompts_train_as_repeated_ones(family, division, tmp_path, drawn, passes, request):  # noqa: F811
    given, prompts = DIVISIONS[division]
    notes, weights = trained(checkpoint(family), tmp_path / "shared", **given)
    compared, *counts = [count for count, _ in passes]
    assert set(counts) == {prompts} and compared == min(prompts, 2)
    request.getfixturevalue("repeating")
    passes.clear()
    other, others = trained(checkpoint(family), tmp_path / "repeated", **given)
    assert not passes
    half = len(drawn) // 2
    for (rows, _, one), (same, _, two) in zip(drawn[:half], drawn[half:], strict=True):
        assert rows == same and one["completion_ids"].tolist() == two["completion_ids"].tolist()
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-3, atol=1e-4)
    assert notes["ledger"]["flops"] < 0.5 * other["ledger"]["flops"]
    assert notes["ledger"]["completion_tokens"] == other["ledger"]["completion_tokens"]
    assert "repeated_prompts" not in notes and other["repeated_prompts"] == "the test says so"


def test_half_precision_shares_prompts_too(tmp_path, passes):
    notes, _ = trained(checkpoint("qwen2_5_vl"), tmp_path / "out", num_generations=4, dtype="bfloat16")
    assert notes["dtype"] == "bfloat16" and "repeated_prompts" not in notes
    assert {count for count, _ in passes[1:]} == {4}


def test_a_model_whose_results_differ_repeats_its_prompts_and_says_so(tmp_path, monkeypatch, passes):
    """As one would that ignores the mask."""
    full = shared_prompts._attention
    monkeypatch.setattr(
        shared_prompts, "_attention", lambda branch, *rest: full(torch.zeros_like(branch), *rest)
    )
    notes, _ = trained(checkpoint("qwen2_5_vl"), tmp_path / "out", num_generations=4)
    assert len(passes) == 1
    assert notes["repeated_prompts"].startswith("log-probabilities would change by ")
    reason = notes["repeated_prompts"]
    again = f"training computed each prompt again for each of its completions: {reason}"
    assert again in train_grpo.remarks(notes)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("qwen2_5_vl", None), ("qwen3_5", "linear_attention"), ("gemma3", "sliding_attention")],
)
def test_only_full_attention_shares(family, reason):
    found = shared_prompts.objection(AutoConfig.from_pretrained(checkpoint(family)))
    assert found == reason if reason is None else reason in found


@pytest.mark.parametrize(
    ("sizes", "prompt", "completion", "shares"),
    [
        ([8] * 16, 38, 3, True),
        ([8], 1000, 300, True),
        ([8], 1000, 1000, True),
        ([8], 60, 2000, False),  # attention among completions that the mask hides
        ([1] * 8, 1000, 50, False),
        ([2], 1000, 50, True),
    ],
)
def test_prompts_are_shared_where_that_saves_work(sizes, prompt, completion, shares):
    config = AutoConfig.from_pretrained(checkpoint("qwen2_5_vl"))
    config.get_text_config().hidden_size = 2048
    assert shared_prompts.cheaper(config, sizes, prompt, completion) is shares


@pytest.mark.parametrize(
    "extra", [{"generation_kwargs": {"do_sample": False}}, {"generation_kwargs": {"typical_p": 0.9}}]
)
def test_settings_that_sharing_does_not_know_draw_as_trl_does(extra, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_prompts, "drawn", None)
    trained(checkpoint("qwen2_5_vl"), tmp_path / "out", num_generations=4, max_steps=1, extra=extra)


def test_tiles_without_their_counts_are_not_divided():
    features = {"pixel_values": torch.zeros(5, 3, 8, 8), "num_images": [1, 1, 1]}
    with pytest.raises(shared_prompts.UnknownFeaturesError, match="pixel_values"):
        shared_prompts.selected(features, [0, 2], 3)
    features["num_tiles"] = [1, 2, 2]
    assert len(shared_prompts.selected(features, [0, 2], 3)["pixel_values"]) == 3

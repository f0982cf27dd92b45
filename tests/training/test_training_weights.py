"""Samples with weights: the loss and its gradient, against a computation by hand."""

import pytest
from datasets import Value

from dcsft_harness.errors import HarnessError
from dcsft_harness.training import data, sft
from dcsft_harness.training.config import ColdStartConfig, SftConfig
from tests.training.test_training_sft import base, conversations, loss_by_hand  # noqa: F401 - a fixture

PASS_RATES = (0.125, 0.5, 0.5, 0.875)
RAW = [rate * (1 - rate) for rate in PASS_RATES]
WEIGHTS = [4 * raw / sum(RAW) for raw in RAW]


def weighted(weights):
    return conversations(4).add_column("weight", list(weights)).cast_column("weight", Value("float64"))


@pytest.mark.few(1)
@pytest.mark.grid
@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("weights", [WEIGHTS, [1, 1, 1, 1], [0, 0, 4, 0]])
def test_each_token_is_weighted_by_its_sample(base, tmp_path, weights, micro):  # noqa: F811
    config = ColdStartConfig(batch_size=4, micro_batch_size=micro, learning_rate=1e-9)
    notes = sft.train_cold_start(base, weighted(weights), tmp_path / "out", config)
    loss, norm, _ = loss_by_hand(base, conversations(4), weights)
    assert notes["final_loss"] == pytest.approx(loss, rel=1e-5)
    assert notes["mean_grad_norm"] == pytest.approx(norm, rel=1e-3)


@pytest.mark.slow
def test_weights_of_one_change_nothing(base, tmp_path):  # noqa: F811
    config = SftConfig(max_steps=2, batch_size=4, learning_rate=1e-3, lora_dropout=0.0)
    one = sft.train_sft(base, weighted([1, 1, 1, 1]), tmp_path / "one", config)
    other = sft.train_sft(base, conversations(4), tmp_path / "other", config)
    assert one["final_loss"] == pytest.approx(other["final_loss"], rel=1e-6)
    assert one["mean_grad_norm"] == pytest.approx(other["mean_grad_norm"], rel=1e-5)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_an_invalid_weight_is_refused_by_row(weight):
    with pytest.raises(HarnessError, match="row 2: weight"):
        data.read(weighted([1, 1, weight, 1]))

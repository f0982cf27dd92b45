"""Training settings: the paper's defaults, and refusals that name argument and value."""

import subprocess
import sys

import pytest

from dcsft_harness.errors import HarnessError
from dcsft_harness.training.config import ColdStartConfig, SftConfig, TrainingConfig


def test_the_defaults_are_the_papers():
    cold, sft = ColdStartConfig(), SftConfig()
    assert (cold.learning_rate, cold.batch_size, cold.epochs, cold.max_steps) == (1e-5, 16, 1, None)
    assert (sft.learning_rate, sft.batch_size, sft.max_steps, sft.epochs) == (1e-5, 16, 600, None)
    assert (sft.lora_rank, sft.lora_alpha, sft.lora_dropout, sft.lora_target) == (32, 64, 0.05, "all")
    for config in (cold, sft):
        assert config.warmup_ratio == 0.1
        # As in evaluation, unless told otherwise.
        assert (config.max_pixels, config.min_pixels) == (None, None)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"learning_rate": 0}, "--learning-rate 0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
        ({"learning_rate": float("inf")}, "--learning-rate inf"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"batch_size": 2.5}, "--batch-size 2.5"),
        ({"batch_size": True}, "--batch-size true"),
        ({"batch_size": 16, "micro_batch_size": 5}, "--micro-batch-size 5 does not divide --batch-size 16"),
        ({"max_steps": 0}, "--max-steps 0"),
        ({"max_steps": None}, "--max-steps None and --epochs None"),
        ({"max_steps": 600, "epochs": 2}, "--max-steps 600 and --epochs 2"),
        ({"warmup_ratio": 1.0}, "--warmup-ratio 1.0"),
        ({"weight_decay": -0.1}, "--weight-decay -0.1"),
        ({"adam_beta2": 1}, "--adam-beta2 1"),
        ({"seed": -1}, "--seed -1"),
        ({"dtype": "bf16"}, "unknown --dtype value 'bf16'"),
        ({"min_pixels": 900, "max_pixels": 800}, "--min-pixels 900 exceeds --max-pixels 800"),
        ({"lora_rank": 0}, "--lora-rank 0 is out of range"),
        ({"lora_dropout": 1.0}, "--lora-dropout 1.0 is out of range"),
        ({"lora_target": "(visual"}, "--lora-target (visual is not a regular expression"),
        ({"extra": ["bf16"]}, "--extra ['bf16']"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(wrong, said):
    with pytest.raises(HarnessError) as refused:
        SftConfig(**wrong)
    assert said in str(refused.value)


def test_options_may_be_text_as_yaml_reads_1e_5():
    config = SftConfig.from_options({"learning_rate": "1e-5", "max_steps": "100", "min_pixels": "none"})
    assert (config.learning_rate, config.max_steps, config.min_pixels) == (1e-5, 100, None)


def test_giving_epochs_takes_back_the_default_steps_and_the_other_way_round():
    assert SftConfig.from_options({"epochs": 2}).max_steps is None
    assert ColdStartConfig.from_options({"max_steps": 10}).epochs is None
    with pytest.raises(HarnessError, match="--max-steps 10 and --epochs 2"):
        SftConfig.from_options({"max_steps": 10, "epochs": 2})


@pytest.mark.parametrize("config", [ColdStartConfig, SftConfig])
def test_an_unknown_option_brings_near_matches(config):
    with pytest.raises(HarnessError, match="unknown option 'learning_rat'.*learning_rate"):
        config.from_options({"learning_rat": 1e-4})


def test_lora_options_are_unknown_to_the_cold_start():
    with pytest.raises(HarnessError, match="unknown option 'lora_rank'"):
        ColdStartConfig.from_options({"lora_rank": 8})


def test_text_that_is_no_number_is_refused():
    with pytest.raises(HarnessError, match="--max-steps many is not a whole number"):
        SftConfig.from_options({"max_steps": "many"})


def test_the_recorded_settings_build_the_same_settings_again():
    config = SftConfig(max_steps=7, extra={"max_grad_norm": 0.5})
    assert SftConfig(**config.as_dict()) == config
    assert isinstance(config, TrainingConfig)


def test_the_settings_import_neither_torch_nor_trl():
    code = "import sys, dcsft_harness.training.config; print(set(sys.modules) & {'torch', 'trl', 'datasets'})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"

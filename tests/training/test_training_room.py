"""The disk space of a run is known before weights are read: for adapters, and for bases on the hub."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForImageTextToText

from dcsft_harness.errors import HarnessError
from dcsft_harness.models.arguments import ModelSettings
from dcsft_harness.models.checkpoint import open_config
from dcsft_harness.training import lora, run, sft
from dcsft_harness.training.config import ColdStartConfig, GrpoConfig, SftConfig
from dcsft_harness.training.run import Job
from tests.training.test_training_families import checkpoint as tiny
from tests.training.test_training_families import conversations

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "idefics3")
NO_DATA = Dataset.from_list([])


def config_of(base):
    return open_config(ModelSettings(pretrained=str(base)))


@pytest.fixture(scope="module")
def base():
    return tiny("qwen2_5_vl")


def job(config, model="someone/base", adapter=None, output=Path("out"), method="sft"):
    return Job(method, model, NO_DATA, output, config, adapter=adapter)


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_without_weights_equal_those_with_weights(family):
    config = config_of(tiny(family))
    model = AutoModelForImageTextToText.from_pretrained(tiny(family))
    assert lora.linear_layers(run.outline(config)) == lora.linear_layers(model)
    assert run.trained(job(ColdStartConfig()), config) == sum(w.numel() for w in model.parameters())


def test_building_the_modules_does_not_change_the_random_state(base):
    before = torch.get_rng_state()
    run.trained(job(SftConfig()), config_of(base))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.few(1)
@pytest.mark.parametrize("target", ["all", "language", "vision", r".*\.q_proj"])
def test_the_estimated_size_of_an_adapter_equals_the_measured_one(target, base, tmp_path):
    config = SftConfig(max_steps=3, batch_size=2, save_steps=1, keep=1, lora_rank=4, lora_target=target)
    opened = config_of(base)
    notes = sft.train_sft(base, conversations(), tmp_path / "out", config)
    assert run.trained(job(config), opened) == notes["trainable_parameters"]
    again = job(SftConfig(), adapter=tmp_path / "out")
    assert run.trained(again, opened) == notes["trainable_parameters"]


def test_a_checkpoint_holds_the_weights_and_two_moments(base, tmp_path):
    taken = {}

    def look(step, total, figures):
        for folder in (tmp_path / "out" / "unfinished").glob("checkpoint-*"):
            files = [folder / "adapter_model.safetensors", folder / "optimizer.pt"]
            if all(path.is_file() for path in files):
                taken[folder.name] = sum(path.stat().st_size for path in files)

    config = SftConfig(max_steps=2, batch_size=2, save_steps=1, lora_rank=64)
    sft.train_sft(base, conversations(), tmp_path / "out", config, progress=look)
    one = run.bytes_needed(job(SftConfig(max_steps=1, save_steps=1, lora_rank=64)), config_of(base), 9)
    none = run.bytes_needed(job(SftConfig(save_steps=None, lora_rank=64)), config_of(base), 9)
    assert taken["checkpoint-1"] == pytest.approx(one - none, rel=0.15)


def test_the_space_needed_depends_on_the_number_of_checkpoints(base, tmp_path):
    config = config_of(base)

    def needed(rows=9600, **settings):
        return run.bytes_needed(job(SftConfig(**settings)), config, rows)

    alone = needed(save_steps=None)
    assert needed(max_steps=100, save_steps=100) == 4 * alone
    assert needed(max_steps=101, save_steps=100) == 7 * alone
    assert needed(max_steps=1000, save_steps=100, keep=3) == 13 * alone
    assert needed(max_steps=None, epochs=1, save_steps=100) == 7 * alone
    assert needed(400, max_steps=None, epochs=1, save_steps=100) == 4 * alone  # 25 steps
    assert needed(max_steps=100, save_steps=100, extra={"optim": "adamw_bnb_8bit"}) == 2 * alone
    assert needed(max_steps=100, save_steps=100, lora_rank=64) == 8 * alone


def test_a_full_checkpoint_is_counted_in_the_bases_type(base):
    config = config_of(base)
    config.dtype = torch.bfloat16
    full = job(SftConfig(full=True, max_steps=100, save_steps=100))
    assert run.bytes_needed(full, config, 9600) == run.trained(full, config) * (3 * 4 + 2)


def test_grpo_from_an_adapter_also_keeps_the_reference(base, tmp_path):
    config = config_of(base)
    sft.train_sft(base, conversations(), tmp_path / "first", SftConfig(max_steps=1, batch_size=4))
    for beta, times in ((0.04, 5), (0.0, 4)):
        settings = GrpoConfig(max_steps=100, save_steps=100, beta=beta)
        given = job(settings, adapter=tmp_path / "first", method="grpo")
        assert run.bytes_needed(given, config, 9600) == 4 * times * run.trained(given, config)


def test_a_disk_without_usage_figures_is_accepted(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(total=0, free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    run.check_disk(dataclasses.replace(job(SftConfig(max_steps=1)), output=tmp_path), 10**9)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {},
            "of the adapter need up to .* MiB, but only 0.0 MiB are free. Free some space, or pass --save",
        ),
        ({"full": True}, "checkpoints of all parameters need up to .* MiB, but only 0.0 MiB are free"),
        ({"keep": 3}, "Free some space, or lower --keep, or pass --save-steps none.$"),
        (
            {"save_steps": None},
            "the adapter needs up to .* MiB, but only 0.0 MiB are free. Free some space.$",
        ),
    ],
)
def test_a_disk_without_room_is_refused_before_weights_are_loaded(
    settings, said, base, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(run, "open_weights", lambda *given: pytest.fail("the model was loaded"))
    with pytest.raises(HarnessError, match=said):
        sft.train_sft(base, conversations(), tmp_path / "out", SftConfig(**settings))
    assert list(tmp_path.iterdir()) == []

"""Runs that cannot start or that fail: one sentence, and nothing left behind."""

import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset
from PIL import Image as Pillow
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.arguments import ModelSettings
from dcsft_harness.models.checkpoint import check_intact
from dcsft_harness.stages.training import summary
from dcsft_harness.training import lora, run, sft, trainer
from dcsft_harness.training.config import ColdStartConfig, SftConfig
from tests.training import test_training_sft

FEATURES, base = test_training_sft.FEATURES, test_training_sft.base
PROMPT = "Which digit is this?"


def conversations(count):
    """Equal samples: these tests do not depend on what is learned."""
    messages = [{"role": "user", "content": "<image>" + PROMPT}, {"role": "assistant", "content": "one"}]
    rows = [{"messages": messages, "images": [Pillow.new("RGB", (56, 56), "red")]} for _ in range(count)]
    return Dataset.from_list(rows, features=FEATURES)


def refused(message, base, tmp_path, config, rows=None):
    with pytest.raises(HarnessError, match=message):
        sft.train_sft(base, rows or conversations(2), tmp_path / "out", config)
    assert list(tmp_path.iterdir()) == []


def test_a_non_finite_loss_stops_the_run_and_names_the_step(base, tmp_path):
    config = SftConfig(max_steps=20, batch_size=2, learning_rate=1e30, warmup_ratio=0)
    said = r"the (loss|gradient norm) of step \d+ is (nan|inf).*row [01], row [01]\. .*checkpoint: none was"
    refused(said, base, tmp_path, config)


def test_running_out_of_memory_names_the_step_and_the_options(base, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore of it.")

    monkeypatch.setattr(trl.SFTTrainer, "training_step", full)
    said = (
        "at step 1: CUDA out of memory. Tried to allocate 20 GiB. Pass a smaller --micro-batch-size or --max-"
    )
    refused(re.escape(said), base, tmp_path, SftConfig(max_steps=2, batch_size=2))


def test_a_bad_step_names_its_items_and_the_last_good_checkpoint(base, tmp_path):
    rows = conversations(2).add_column("item_id", ["apple", "pear"])
    config = SftConfig(max_steps=9, batch_size=1, learning_rate=1e-3, save_steps=1)

    def poison(step, total, figures):
        if step == 3:
            for weight in trainers[0].model.parameters():
                weight.data.mul_(float("nan"))

    trainers = []
    original = sft.SftTrainer.bind
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sft.SftTrainer, "bind", lambda self, *given: (trainers.append(self), original(self, *given))[1]
        )
        with pytest.raises(HarnessError) as refused:
            sft.train_sft(base, rows, tmp_path / "out", config, progress=poison)
    said = str(refused.value)
    assert "the loss of step 4 is nan" in said and ("items apple" in said or "items pear" in said)
    assert str(tmp_path / "out" / "unfinished" / "checkpoint-3") in said


def test_an_adapter_of_another_base_is_refused_before_weights_are_loaded(base, tmp_path, monkeypatch):
    sft.train_sft(base, conversations(2), tmp_path / "first", SftConfig(max_steps=1, batch_size=2))
    other = tmp_path / "other"
    shutil.copytree(base, other)
    (other / "extra.json").write_text("{}")
    monkeypatch.setattr(run, "open_weights", lambda *given: pytest.fail("the model was loaded"))
    larger = tmp_path / "larger"
    shutil.copytree(tmp_path / "first", larger)
    (larger / "manifest.json").unlink()
    weights = load_file(larger / "adapter_model.safetensors")
    save_file({name: w.repeat(2, 2) for name, w in weights.items()}, larger / "adapter_model.safetensors")
    for adapter, said in (
        (tmp_path / "first", "was trained on"),
        (larger, "does not fit"),
        (base, "is not a PEFT folder"),
    ):
        with pytest.raises(HarnessError, match=said):
            sft.train_sft(other, conversations(2), tmp_path / "out", SftConfig(), adapter=adapter)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"max_grad_nrm": 1.0}, "unknown TRL argument 'max_grad_nrm'.*max_grad_norm"),
        ({"optim": "sgdd"}, "TRL refuses its arguments: .*sgdd"),
        ({"adam_epsilon": "small"}, "extra: adam_epsilon='small' is not a number"),
        ({"max_grad_norm": 0}, "extra: max_grad_norm=0 disables gradient norms"),
    ],
)
def test_an_argument_that_trl_cannot_take_is_refused(base, tmp_path, extra, message):
    refused(message, base, tmp_path, SftConfig(max_steps=1, extra=extra))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"router_aux_loss_coef": 0.1}, "TRL refuses its arguments: .*not a Mixture-of-Experts.*`extra`"),
        ({"report_to": "wandb"}, "report_to=wandb fails: No API key.*leave report_to out"),
    ],
)
def test_what_others_refuse_with_the_weights_is_one_sentence_too(base, tmp_path, monkeypatch, extra, message):
    class Wandb(TrainerCallback):
        def on_train_begin(self, *given, **named):
            raise type("UsageError", (Exception,), {"__module__": "wandb.errors"})("No API key configured.")

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "wandb", Wandb)
    with pytest.raises(HarnessError, match=message):
        sft.train_sft(base, conversations(2), tmp_path / "out", SftConfig(max_steps=1, extra=extra))


def test_only_what_others_refuse_of_passed_arguments_is_reworded():
    for extra, begins, call in (
        ({}, True, torch.zeros),
        ({"a": 1}, False, torch.zeros),
        ({"a": 1}, True, int),
    ):
        with pytest.raises((TypeError, ValueError)), trainer.passing(extra, lambda begins=begins: begins):
            call("x")


@pytest.mark.parametrize(
    ("kind", "extra", "message"),
    [
        ("SFTConfig", {"loss_type": "nul"}, "extra: loss_type='nul' is not supported. Use one of nll, dft"),
        (
            "SFTConfig",
            {"pad_to_multiple_of": 8},
            "extra: pad_to_multiple_of=8 is not supported. Leave it out",
        ),
        ("SFTConfig", {"train_sampling_strategy": "group_by_length"}, "Use one of random, sequential"),
        ("SFTConfig", {"adam_beta1": 1.5}, "optim=adamw_torch.* cannot be created: Invalid beta parameter"),
        ("DPOConfig", {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 is not supported"),
        ("GRPOConfig", {"train_sampling_strategy": "sequential"}, "'sequential' is not supported"),
        ("GRPOConfig", {"loss_type": "gpro"}, "loss_type='gpro' is not supported. Use one of grpo, bnpo"),
        (
            "GRPOConfig",
            {"scale_rewards": "std"},
            "scale_rewards='std' is not supported. Use one of group, ba",
        ),
        ("GRPOConfig", {"importance_sampling_level": "turn"}, "Use one of token, sequence"),
        ("GRPOConfig", {"multi_objective_aggregation": "sum"}, "Use one of sum_then_normalize, norm"),
        ("GRPOConfig", {"num_iterations": 0}, "num_iterations=0 is not a whole number of 1 or more"),
        ("GRPOConfig", {"num_iterations": 1.5}, "num_iterations=1.5 is not a whole number"),
        ("GRPOConfig", {"steps_per_generation": 0}, "steps_per_generation=0 is not a whole number"),
    ],
)
def test_values_that_trl_ignores_or_refuses_late_are_refused_before_weights(kind, extra, message):
    ours = trainer.managed(SftConfig(), torch.float32, Path("out"))
    with pytest.raises(HarnessError, match=message):
        trainer.arguments(getattr(trl, kind), ours, extra)


def test_the_values_are_those_known_to_trl():
    """Its own code compares with each of them."""
    source, values = inspect.getsource(trl.GRPOTrainer), trainer.VALUES["GRPOConfig"]
    losses = set(re.findall(r'"(\w+)"', "".join(re.findall(r"self.loss_type (?:==|in) .*", source))))
    assert losses == set(values["loss_type"])
    for name in ("scale_rewards", "importance_sampling_level", "multi_objective_aggregation"):
        assert all(f'"{value}"' in source for value in values[name] if isinstance(value, str)), name


def test_an_adapter_to_continue_cannot_be_combined_with_full_training(base, tmp_path):
    """A dry run reports it, too."""
    job = run.Job("sft", base, conversations(2), tmp_path / "out", SftConfig(full=True), adapter=tmp_path)
    with pytest.raises(HarnessError, match="requires LoRA. Merge it into the base"):
        run._prepare(job)


def test_a_missing_tracker_is_refused_before_weights_are_loaded(base, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "open_weights", lambda *given: pytest.fail("the model was loaded"))
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    config = SftConfig(extra={"report_to": "tensorboard"})
    refused(
        "report_to=tensorboard needs a package that is not installed: .*pip install", base, tmp_path, config
    )


def test_numbers_that_yaml_reads_as_text_are_converted():
    ours = trainer.managed(SftConfig(), torch.float32, Path("out"))
    given = {"adam_epsilon": "1e-7", "optim_args": "eps=1e-7", "dataloader_num_workers": "2"}
    made = trainer.arguments(trl.SFTConfig, ours, given)
    assert (made.adam_epsilon, made.optim_args, made.dataloader_num_workers) == (1e-7, "eps=1e-7", 2)


def arguments(schedule="cosine", warmup_ratio=0.1, **extra):
    config = SftConfig(lr_scheduler_type=schedule, warmup_ratio=warmup_ratio, extra=extra)
    ours = trainer.managed(config, torch.float32, Path("out"))
    return trainer.arguments(trl.SFTConfig, ours, config.extra)


@pytest.mark.parametrize(
    ("schedule", "extra", "message"),
    [
        ("cosine_with_min_lr", {}, "--lr-scheduler-type cosine_with_min_lr .*min_lr.*--set 'lr_scheduler_kw"),
        ("warmup_stable_decay", {}, "--lr-scheduler-type warmup_stable_decay .*num_decay_steps"),
        ("polynomial", {"lr_scheduler_kwargs": {"lr_end": 1}}, "--lr-scheduler-type polynomial .*lr_end"),
        ("cosine", {"lr_scheduler_kwargs": {"num_cycles": "half"}}, "--lr-scheduler-type cosine "),
        (
            "cosine",
            {"optim": "adamw_bnb_8bit"},
            "optim=adamw_bnb_8bit needs .*bitsandbytes.*Install",
        ),
        (
            "cosine",
            {"optim": "galore_adamw", "optim_target_modules": "all-linear"},
            "galore_adamw needs",
        ),
        ("cosine", {"optim_args": "1e-7"}, "optim=adamw_torch.* cannot be created"),
    ],
)
def test_an_impossible_optimizer_or_schedule_is_refused_with_the_arguments(
    monkeypatch, schedule, extra, message
):
    for name in ("bitsandbytes", "galore_torch"):
        monkeypatch.setattr(f"transformers.trainer_optimizer.is_{name}_available", lambda: False)
    with pytest.raises(HarnessError, match=message):
        arguments(schedule, **extra)


@pytest.mark.parametrize(
    ("schedule", "ratio", "extra", "made"),
    [
        ("constant", 0.1, {}, "constant_with_warmup"),
        ("constant", 0, {}, "constant"),
        ("linear", 0.99, {}, "linear"),
        ("cosine_with_min_lr", 0.1, {"lr_scheduler_kwargs": {"min_lr": 1e-6}}, "cosine_with_min_lr"),
        ("warmup_stable_decay", 0.1, {"lr_scheduler_kwargs": {"num_decay_steps": 50}}, "warmup_stable_decay"),
        ("inverse_sqrt", 0.1, {"optim": "sgd"}, "inverse_sqrt"),
        ("cosine", 0.1, {"optim": "adafactor"}, "cosine"),
    ],
)
def test_a_schedule_has_the_requested_warm_up(schedule, ratio, extra, made):
    state = torch.get_rng_state()
    assert arguments(schedule, ratio, **extra).lr_scheduler_type == made
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_a_resumed_run_needs_no_room_for_existing_checkpoints(base, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def progress(step, total, figures):
        if step == 2:
            raise Stop

    config = ColdStartConfig(max_steps=3, epochs=None, batch_size=1, save_steps=1)
    with pytest.raises(Stop):
        sft.train_cold_start(base, conversations(2), tmp_path / "out", config, progress=progress)
    there = tmp_path / "out" / "unfinished" / "checkpoint-1"
    size = sum(path.stat().st_size for path in there.rglob("*"))
    # A new checkpoint next to the existing one, and the result; a new run needs one checkpoint more.
    usage = shutil.disk_usage(tmp_path)._replace(free=int(1.5 * size))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(HarnessError, match="checkpoints of all parameters need"):
        sft.train_cold_start(base, conversations(2), tmp_path / "new", config)
    assert sft.train_cold_start(base, conversations(2), tmp_path / "out", config)["steps"] == 3


@pytest.mark.slow
def test_logged_curves_are_kept_in_the_output(base, tmp_path):
    def progress(step, total, figures):
        folder = tmp_path / "out" / "unfinished" / "runs" / "today"
        folder.mkdir(parents=True)
        (folder / "events").write_text("curve")

    sft.train_sft(base, conversations(1), tmp_path / "out", SftConfig(max_steps=1), progress=progress)
    assert "runs/today/events" in manifest.read(tmp_path / "out").files
    assert manifest.is_intact(tmp_path / "out")


def test_weights_with_another_loss_are_refused_before_the_model_is_loaded(base, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "open_weights", lambda *given: pytest.fail("the model was loaded"))
    rows = conversations(2).add_column("weight", [0.5, 1.5])
    for extra in ({"loss_type": "dft"}, {"label_smoothing_factor": 0.1}):
        refused(
            "a column weight, which weighs the plain loss alone", base, tmp_path, SftConfig(extra=extra), rows
        )


@pytest.mark.parametrize("train", [sft.train_sft, sft.train_cold_start])
def test_a_full_disk_is_reported_in_one_sentence_and_leaves_nothing(base, tmp_path, monkeypatch, train):
    def full(*args, **named):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.serialize_file", full)
    kind = SftConfig if train is sft.train_sft else ColdStartConfig
    with pytest.raises(HarnessError, match="cannot write the .* to .*: No space left on device"):
        train(base, conversations(2), tmp_path / "out", kind.from_options({"max_steps": 1}))
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(base, tmp_path):
    def interrupt(*step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sft.train_sft(base, conversations(2), tmp_path / "out", SftConfig(max_steps=2), progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_target_without_layers_is_refused_before_weights_are_loaded(base, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "open_weights", lambda *given: pytest.fail("the model was loaded"))
    with pytest.raises(HarnessError, match="--lora-target langage matches none of") as told:
        sft.train_sft(base, conversations(2), tmp_path / "out", SftConfig(lora_target="langage"))
    assert list(tmp_path.iterdir()) == []
    names = re.findall(r"model\.[\w.]+", told.value.remedy)
    assert [name.split(".")[1] for name in names] == ["visual", "language_model", "visual"]
    chosen = lora.lora_targets(
        lora.linear_layers(AutoModelForImageTextToText.from_pretrained(base)), names[1]
    )
    assert chosen == {names[1]: "language"}


def test_a_missing_base_is_refused(base, tmp_path):
    missing = tmp_path / "missing"
    refused(f"model {missing} does not exist", missing, tmp_path, SftConfig())


def test_bfloat16_is_refused_on_a_device_that_only_emulates_it(base, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr(run, "open_weights", lambda *given: pytest.fail("the model was loaded"))
    refused("dtype=bfloat16: Tesla V100 lacks it", base, tmp_path, SftConfig(dtype="bfloat16"))
    assert run.compute_dtype("auto") == torch.float32


def test_gathered_weights_are_saved_in_the_bases_type(tmp_path):
    names = {"model-00001.safetensors": torch.float32, "adapter_model.safetensors": torch.float32}
    for name in names:
        save_file({"weight": torch.ones(2), "count": torch.ones(1, dtype=torch.int64)}, tmp_path / name)
    config = {"dtype": "float32", "text_config": {"dtype": "float32", "width": 8}, "rope": {"theta": 1.5}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    run.recast(tmp_path, torch.bfloat16)
    told = json.loads((tmp_path / "config.json").read_text())
    text = {"dtype": "bfloat16", "width": 8}
    assert told == {"dtype": "bfloat16", "text_config": text, "rope": {"theta": 1.5}}
    found = [load_file(tmp_path / name) for name in names]
    assert [one["weight"].dtype for one in found] == [torch.bfloat16, torch.float32]
    assert [one["count"].dtype for one in found] == [torch.int64, torch.int64]


def test_an_occupied_output_is_refused_before_anything_is_read(base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(HarnessError, match="is not empty"):
        sft.train_sft(tmp_path / "no base", tmp_path / "no data", tmp_path / "out")


def test_an_adapter_of_another_hub_base_is_refused(base, tmp_path):
    sft.train_sft(base, conversations(1), tmp_path / "first", SftConfig(max_steps=1))
    told = json.loads((tmp_path / "first" / "manifest.json").read_text())
    del told["inputs"]["model"]
    told["config"]["model"] = "someone/base"
    (tmp_path / "first" / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(HarnessError, match="first was trained on someone/base, and someone/else is not"):
        check_intact(ModelSettings(pretrained="someone/else", adapter=str(tmp_path / "first")))


def test_pixel_limits_that_differ_from_evaluation_are_reported(base, tmp_path):
    config = SftConfig(max_steps=1, max_pixels=56 * 56)
    notes = sft.train_sft(base, conversations(1), tmp_path / "out", config)
    assert summary(notes).endswith("images of 784 to 3136 pixels (in evaluation 784 to 802816)")
    notes = notes | {"pixel_limits": notes["evaluation_pixel_limits"]}
    assert summary(notes).endswith("modules")


@pytest.mark.slow
def test_a_continued_adapter_keeps_and_records_its_shape(base, tmp_path):
    small = SftConfig(max_steps=1, lora_rank=4, lora_alpha=8)
    sft.train_sft(base, conversations(1), tmp_path / "first", small)
    for given in ({"lora_rank": 16}, {"lora_alpha": 16}, {"lora_dropout": 0.5}, {"lora_target": "vision"}):
        with pytest.raises(HarnessError, match=f"{next(iter(given))}=.* applies only to a new adapter"):
            config = SftConfig(max_steps=1, **given)
            sft.train_sft(base, conversations(1), tmp_path / "out", config, adapter=tmp_path / "first")
    config = SftConfig(max_steps=1)
    sft.train_sft(base, conversations(1), tmp_path / "out", config, adapter=tmp_path / "first")
    told = manifest.read(tmp_path / "out").config
    assert (told["lora_rank"], told["lora_alpha"], told["lora_target"]) == (4, 8, None)

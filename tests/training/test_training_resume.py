"""An interrupted run resumes from its last complete checkpoint, and ends like an undisturbed one."""

import contextlib
import json
import os
import shutil
import signal
import time
import types
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments, get_scheduler

from dcsft_harness import interrupts, ranks
from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.stages import train_dpo
from dcsft_harness.training import grpo, run, run_folder, sft
from dcsft_harness.training.config import ColdStartConfig, GrpoConfig, SftConfig
from dcsft_harness.training.run import Job
from dcsft_harness.training.trainer import Accounted, Watch
from tests.fixtures import forked
from tests.fixtures.several import Parity
from tests.training.test_training_sft import base, conversations  # noqa: F401 - a fixture

CONFIG = SftConfig(max_steps=7, batch_size=4, save_steps=2, learning_rate=1e-3, warmup_ratio=0.3)
FULL = ColdStartConfig(max_steps=7, epochs=None, batch_size=4, save_steps=2, learning_rate=1e-3)


class Stop(Exception):
    pass


def stopping(at):
    def progress(step, total, figures):
        if step == at:
            raise Stop

    return progress


def log(folder):
    rows = map(json.loads, (folder / "training_log.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def same_weights(one, other, rtol=0, atol=0):
    ours, theirs = (load_file(next(folder.glob("*model.safetensors"))) for folder in (one, other))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=rtol, atol=atol, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "config", "micro"), [(sft.train_sft, CONFIG, None), (sft.train_cold_start, FULL, 2)]
)
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(base, tmp_path, train, config, micro):  # noqa: F811
    rows, config = conversations(10), config.changed(micro_batch_size=micro)
    train(base, rows, tmp_path / "whole", config)
    for at in (5, 6):  # once in the middle, once right after a checkpoint
        with pytest.raises(Stop):
            train(base, rows, tmp_path / "cut", config, progress=stopping(at))
    assert not (tmp_path / "cut" / manifest.NAME).exists()
    seen = []
    notes = train(base, rows, tmp_path / "cut", config, progress=lambda *step: seen.append(step[0]))
    assert seen == [5, 6, 7]
    same_weights(tmp_path / "whole", tmp_path / "cut")
    assert log(tmp_path / "whole") == log(tmp_path / "cut")
    told = manifest.read(tmp_path / "whole").notes["ledger"]
    for name in ("steps", "prompts", "prompt_tokens", "completion_tokens", "flops"):
        assert notes["ledger"][name] == told[name]
    assert manifest.read(tmp_path / "cut").key == manifest.read(tmp_path / "whole").key
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


def test_an_unfinished_run_resumes_by_default_and_refuses_other_settings(base, tmp_path):  # noqa: F811
    rows, output = conversations(6), tmp_path / "out"
    with pytest.raises(Stop):
        sft.train_sft(base, rows, output, CONFIG, progress=stopping(3))
    with pytest.raises(HarnessError, match="other settings: learning_rate: 0.001 -> 0.1"):
        sft.train_sft(base, rows, output, CONFIG.changed(learning_rate=0.1))
    with pytest.raises(HarnessError, match="other settings: data"):
        sft.train_sft(base, conversations(7), output, CONFIG)
    # As after running out of memory.
    assert sft.train_sft(base, rows, output, CONFIG.changed(save_steps=3, micro_batch_size=2))["steps"] == 7


@pytest.mark.parametrize(
    ("extra", "decides"),
    [
        ({}, False),
        ({"loss_type": "ipo"}, False),
        ({"loss_type": ["sigmoid", "aot"]}, True),
        ({"loss_type": "bnpo"}, True),
        ({"steps_per_generation": 2}, True),
        ({"top_entropy_quantile": 0.2}, True),
        ({"entropy_coef": 0.01}, True),
        ({"use_adaptive_entropy": True}, True),
        ({"router_aux_loss_coef": 0.01}, True),
    ],
)
def test_the_micro_batch_matters_if_the_loss_is_over_all_its_samples(extra, decides):
    made = [
        Job("grpo", "someone/base", conversations(1), None, GrpoConfig(extra=extra, micro_batch_size=micro))
        for micro in (8, 16)
    ]
    assert (made[0].identity() != made[1].identity()) == decides


@pytest.mark.parametrize(
    ("kind", "given", "applied"),
    [
        (SftConfig, {}, 0.1),
        (train_dpo.DpoConfig, {}, 0.0),
        (train_dpo.DpoConfig, {"lora_dropout": 0.1}, 0.1),
    ],
)
def test_the_dropout_of_a_continued_adapter_is_recorded_as_applied(tmp_path, kind, given, applied):
    LoraConfig(r=2, lora_dropout=0.1).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    job = Job("train", "someone/base", conversations(1), None, kind(**given), adapter=tmp_path)
    assert job.recorded()[0]["lora_dropout"] == job.identity()["lora_dropout"] == applied


@pytest.mark.slow
def test_a_run_resumes_in_its_original_precision(base, tmp_path, monkeypatch):  # noqa: F811
    """As when a GPU run is resumed on a CPU; runs of older versions have no entry."""
    rows, output, config = conversations(6), tmp_path / "out", CONFIG.changed(dtype="float32")
    with pytest.raises(Stop):
        sft.train_sft(base, rows, output, config, progress=stopping(3))
    unfinished = run_folder.identity(output)
    with monkeypatch.context() as patched:
        patched.setattr(run, "compute_dtype", lambda asked: torch.bfloat16)
        with pytest.raises(HarnessError, match="precision of the weights: float32 -> bfloat16"):
            sft.train_sft(base, rows, output, config)
    with pytest.raises(Stop):  # which on a CPU is the same
        sft.train_sft(base, rows, output, config.changed(dtype="auto"), progress=stopping(5))
    assert run_folder.identity(output) == unfinished
    path = output / "unfinished" / "run.json"
    older = json.loads(path.read_text())
    assert older.pop("precision of the weights") == "float32"
    path.write_text(json.dumps(older))
    assert sft.train_sft(base, rows, output, config)["steps"] == 7
    assert run_folder.identity(output) == unfinished


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_a_run_resumed_from_its_last_step_takes_no_further_step(base, tmp_path, monkeypatch, method):  # noqa: F811
    """Three steps of two per epoch; the disk is full when the result is saved."""
    rows = conversations(2)
    rows = rows.add_column("item_id", ["item0", "item1"]).add_column("rejected", ["seven", "two"])
    given = {"max_steps": 3, "batch_size": 1, "learning_rate": 1e-3, "lora_rank": 2}

    def train(output):
        if method == "sft":
            return sft.train_sft(base, rows, output, SftConfig(**given))
        if method == "grpo":
            more = {"batch_size": 2, "num_generations": 2, "max_completion_length": 2}
            return grpo.train_grpo(base, rows, Parity(2), output, GrpoConfig(**given | more))
        counts = dict.fromkeys(("items", "items_with_pairs", "pairs", "truncated", "unscored"), 2)
        job = Job("dpo", base, rows, output, train_dpo.DpoConfig(**given))
        return run.perform(job, lambda setup: train_dpo._make(setup, rows, counts))

    def full(*given):
        raise OSError(28, "No space left on device")

    whole, save = train(tmp_path / "whole"), run._save
    monkeypatch.setattr(run, "_save", full)
    with pytest.raises(HarnessError, match="No space left"):
        train(tmp_path / "cut")
    monkeypatch.setattr(run, "_save", save)
    cut = train(tmp_path / "cut")
    same_weights(tmp_path / "whole", tmp_path / "cut")
    assert log(tmp_path / "whole") == log(tmp_path / "cut")
    counts = [
        {name: notes["ledger"][name] for name in ("steps", "prompts", "flops")} for notes in (whole, cut)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("each", "step", "saves"), [(1, 1, True), (2, 1, False), (2, 2, True), (2, 3, False), (2, 5, True)]
)
def test_a_signal_saves_only_where_a_run_can_resume(each, step, saves, monkeypatch):
    """Not between steps that share their completions; nothing is drawn after the last of 5 steps."""
    monkeypatch.setattr(interrupts, "pending", lambda: signal.SIGTERM)
    watch = Watch(types.SimpleNamespace(steps_per_draw=each), None, None, None, None)
    control = TrainerControl()
    watch.on_step_end(None, TrainerState(global_step=step, max_steps=5), control)
    assert control.should_save == saves


@pytest.mark.parametrize("pending", [[None, signal.SIGTERM], [signal.SIGTERM, None], [None, None]])
def test_all_ranks_save_the_same_step_if_one_receives_a_signal(pending, monkeypatch):
    monkeypatch.setattr(ranks, "gathered", lambda value: pending)
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    watch = Watch(types.SimpleNamespace(steps_per_draw=1), None, None, None, None)
    control, state = TrainerControl(), TrainerState(global_step=1, max_steps=5)
    watch.on_step_end(None, state, control)
    assert control.should_save == any(pending)
    with pytest.raises(interrupts.Interrupted) if any(pending) else contextlib.nullcontext() as raised:
        watch.on_save(None, state, control)
    assert not any(pending) or raised.value.number == signal.SIGTERM


@pytest.mark.parametrize(
    ("steps", "ratio", "warm"), [(1, 0.1, 0), (1, 0, 0), (2, 0.1, 1), (10, 0.1, 1), (11, 0.1, 2), (4, 0.9, 3)]
)
def test_a_warm_up_leaves_at_least_one_step(steps, ratio, warm):
    class Plain(Accounted, Trainer):
        def __init__(self):
            self.args = TrainingArguments(warmup_steps=ratio, lr_scheduler_type="cosine", use_cpu=True)
            self.lr_scheduler = None
            self.optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)

    def rates(scheduler, optimizer):
        found = []
        for _ in range(steps):
            found += scheduler.get_last_lr()
            optimizer.step()
            scheduler.step()
        return found

    trainer, other = Plain(), Plain().optimizer
    found = rates(trainer.create_scheduler(steps), trainer.optimizer)
    assert found == rates(get_scheduler("cosine", other, warm, steps), other)
    assert max(found) == 1


@pytest.fixture(scope="module")
def interrupted(base, tmp_path_factory):  # noqa: F811
    """A run that was interrupted in step 5, with checkpoints 2 and 4; returns a function that copies it."""
    output = tmp_path_factory.mktemp("interrupted") / "out"
    with pytest.raises(Stop):
        sft.train_sft(base, conversations(6), output, CONFIG.changed(keep=2), progress=stopping(5))
    return lambda copy: shutil.copytree(output, copy)


@pytest.mark.slow
def test_an_incomplete_checkpoint_is_not_resumed(base, interrupted, tmp_path):  # noqa: F811
    rows, output = conversations(6), interrupted(tmp_path / "out")
    (output / "unfinished" / "checkpoint-4" / run_folder.COMPLETE).unlink()
    seen = []
    sft.train_sft(base, rows, output, CONFIG, progress=lambda *step: seen.append(step[0]))
    assert seen == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    "name",
    ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "scheduler.pt", "rng_state.pth"],
)
def test_a_checkpoint_with_changed_files_is_not_resumed(base, interrupted, tmp_path, name):  # noqa: F811
    rows, output = conversations(6), interrupted(tmp_path / "out")
    last = output / "unfinished" / "checkpoint-4"
    if name == "scheduler.pt":
        (last / name).unlink()
    else:
        content = bytearray((last / name).read_bytes())
        content[-1] ^= 1
        (last / name).write_bytes(content)
    with pytest.raises(
        HarnessError, match=rf"checkpoint-4/{name} was changed after it was saved.*Remove .*checkpoint-4"
    ):
        sft.train_sft(base, rows, output, CONFIG)
    shutil.rmtree(last)
    if name == "adapter_model.safetensors":  # what remains is the same for every name
        assert sft.train_sft(base, rows, output, CONFIG)["steps"] == 7


@pytest.mark.slow
def test_kept_checkpoints_are_adapters_without_the_optimizers_state(base, tmp_path):  # noqa: F811
    output = tmp_path / "out"
    sft.train_sft(base, conversations(6), output, CONFIG.changed(keep=2))
    kept = run_folder.checkpoints(output)
    assert [run_folder.step_of(path) for path in kept] == [6, 7]
    for path in kept:
        names = {file.name for file in path.iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors"} <= names
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    same = (load_file(folder / "adapter_model.safetensors") for folder in (kept[-1], output))
    assert all(torch.equal(one, other) for one, other in zip(*(x.values() for x in same), strict=True))
    assert manifest.is_intact(output)


KILLED = """
import sys
from pathlib import Path
from datasets import load_from_disk
from dcsft_harness.training import sft
from dcsft_harness.training.config import SftConfig
base, data, output = map(Path, sys.argv[1:4])
config = SftConfig(max_steps=16, batch_size=4, save_steps=2, learning_rate=1e-3)
sft.train_sft(base, data, output, config)
"""


@pytest.mark.slow
def test_repeated_kills_change_nothing(base, tmp_path):  # noqa: F811
    conversations(10).save_to_disk(str(tmp_path / "set"))
    command = ["-c", KILLED, str(base), str(tmp_path / "set")]
    forked.run([*command, str(tmp_path / "whole")], check=True)
    cut, kills = tmp_path / "cut", 0

    def checkpoints() -> list[Path]:
        try:
            return list(cut.glob("unfinished/checkpoint-*"))
        except FileNotFoundError:  # training has finished and removes the folder meanwhile
            return []

    while not (cut / manifest.NAME).is_file():
        before = len(checkpoints())
        process = forked.Popen([*command, str(cut)])
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            steps = [run_folder.step_of(path) for path in checkpoints()]
            if kills < 3 and steps and max(steps) >= 4 * (kills + 1):
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        assert process.wait(120) in (0, -signal.SIGKILL), before
    assert kills == 3
    same_weights(tmp_path / "whole", cut)
    assert log(tmp_path / "whole") == log(cut)

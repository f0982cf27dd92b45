"""Training in several processes: the result of one, however they end; and how they are started."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate.commands import launch as accelerate_launch
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import SequentialSampler

from dcsft_harness import ranks, recipes, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import dcsft, main
from dcsft_harness.cli.running import run_stage
from dcsft_harness.errors import HarnessError
from dcsft_harness.recipes import chain
from dcsft_harness.training import launching, run, sft
from dcsft_harness.training.config import GrpoConfig, SftConfig
from dcsft_harness.training.launching import Launch
from dcsft_harness.training.run import Job
from dcsft_harness.training.sft import Shares
from dcsft_harness.training.trainer import managed
from tests.fixtures import forked, several
from tests.training.test_training_resume import log, same_weights
from tests.training.test_training_sft import base, conversations  # noqa: F401 - a fixture

HERE = Path(several.__file__)
COUNTS = ("steps", "prompts", "generated", "prompt_tokens", "completion_tokens", "flops")
CONFIG = SftConfig(max_steps=1)


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):  # noqa: F811
    """Nine rows: with four per batch, an epoch's last batch has one, and one of two processes none."""
    made = tmp_path_factory.mktemp("sets")
    rows = conversations(9).add_column("item_id", [f"item{number}" for number in range(9)])
    rows.save_to_disk(str(made / "set"))
    weight = list(np.linspace(0, 2, 9))
    rows.add_column("weight", weight).save_to_disk(str(made / "weighted set"))
    return made


@pytest.fixture(scope="module")
def both(base, folder):  # noqa: F811
    """All runs by one process and by two; returns the folder that has them under 1/ and 2/."""
    words = [*forked.TORCHRUN, HERE, "runs", base, folder, *several.RUNS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = forked.Popen(words, env=environment)
    several.runs(base, folder, ["lora", "weighted", "full", "grpo", "grpo-full", "dpo"])
    assert running.wait(600) == 0
    return folder


@pytest.mark.slow
class TestTwoProcesses:
    @pytest.mark.parametrize("name", ["lora", "weighted", "full", "grpo", "grpo-full", "dpo"])
    def test_train_like_one(self, both, name):
        one, two = both / "1" / name, both / "2" / name
        same_weights(one, two, rtol=1e-4, atol=2e-5)
        histories = log(one), log(two)
        for ours, theirs in zip(*histories, strict=True):
            if "full" in name or name == "dpo":  # TRL's mean over passes, whatever their numbers of tokens
                ours |= {figure: theirs[figure] for figure in ("entropy", "kl") if figure in theirs}
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
        notes = [manifest.read(folder).notes for folder in (one, two)]
        assert [note["processes"] for note in notes] == [1, 2]
        alone, divided = ({name: note["ledger"][name] for name in COUNTS} for note in notes)
        if name == "grpo":  # each process computes the prompt of a group that is divided
            assert alone.pop("flops") < divided.pop("flops")
        assert alone == divided
        assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
        assert manifest.is_intact(two)

    def test_see_each_row_once_per_epoch(self, both):
        # 9 rows, 4 per batch: two epochs of 4 + 4 + 1.
        assert [row["samples"] for row in log(both / "2" / "lora")] == [4, 8, 9, 13, 17, 18]

    def test_share_groups_without_mixing_them_up(self, both):
        """Each process draws two of a prompt's four completions."""
        history = log(both / "2" / "grpo")
        assert {row["mixed"] for row in history} == {1.0}
        assert all(row["grad_norm"] > 1e-3 for row in history)
        assert manifest.read(both / "2" / "grpo").notes["ledger"]["prompts"] == 3

    @pytest.mark.parametrize("kind", ["", "grpo-"])
    def test_resume_from_a_checkpoint_to_an_undisturbed_result(self, both, kind):
        whole, cut = both / "2" / f"{kind}whole", both / "2" / f"{kind}cut"
        same_weights(whole, cut)
        assert log(whole) == log(cut)


def command(base, folder, output, *more):  # noqa: F811
    options = {"model": base, "data": folder / "set", "output": output, "num-processes": 2, "save-steps": 2}
    options |= {"max-steps": 6, "batch-size": 4, "learning-rate": 1e-3}
    words = [f"--{name}={value}" for name, value in options.items()]
    return [str(HERE), "train", "sft", *words, *more]


def start(words, **environment):
    """Starts the command and its processes as forks."""
    return forked.Popen(words, stderr=subprocess.PIPE, env=alone(environment), start_new_session=True)


def alone(environment):
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}


def ended(running):
    """A command's exit code and its messages; click ends the line of a Ctrl-C, in each process."""
    said = [line for line in running.communicate(timeout=300)[1].splitlines() if line]
    return running.returncode, said


def wait_for_checkpoint(output, running, step):
    while not (output / "unfinished" / f"checkpoint-{step}" / "complete.json").is_file():
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(base, folder, tmp_path_factory):  # noqa: F811
    """The files and messages of an undisturbed command."""
    output = tmp_path_factory.mktemp("command") / "out"
    code, said = ended(start(command(base, folder, output)))
    assert code == 0, said
    return output, said


@pytest.mark.slow
class TestCommand:
    def test_prints_a_summary_and_the_next_command(self, undisturbed):
        output, said = undisturbed
        assert len(said) == 2 and said[0].startswith("train sft: 6 steps, loss "), said
        own = "--data TEST --scorer SCORER"
        assert said[1] == f"next: dcsft evaluate --model {output} {own} --output scores"
        assert manifest.read(output).notes["processes"] == 2

    def test_writes_the_same_as_your_own_launch(self, undisturbed, both):
        same_weights(undisturbed[0], both / "2" / "whole")

    def test_a_killed_process_ends_the_others_and_the_run_can_be_resumed(
        self,
        base,  # noqa: F811
        folder,
        undisturbed,
        tmp_path,
    ):
        output = tmp_path / "out"
        running = start(command(base, folder, output), BREAK="slow")
        wait_for_checkpoint(output, running, 2)
        _, second = forked.ranks(running)
        second.kill()
        code, said = ended(running)
        assert (code, len(said)) == (1, 1), said
        assert "process 1 of this launch was ended by signal 9 (SIGKILL)" in said[0]
        assert "Rerun the same command to resume" in said[0]
        code, said = ended(start(command(base, folder, output)))
        assert code == 0, said
        same_weights(output, undisturbed[0])

    def test_sigterm_saves_the_step_and_the_run_resumes_to_an_undisturbed_result(
        self,
        base,  # noqa: F811
        folder,
        undisturbed,
        tmp_path,
    ):
        output = tmp_path / "out"
        running = start(command(base, folder, output), BREAK="slow")
        wait_for_checkpoint(output, running, 2)
        running.send_signal(signal.SIGTERM)
        code, said = ended(running)
        assert (code, len(said)) == (143, 1), said
        assert "interrupted; finished work is saved" in said[0]
        (saved,) = (output / "unfinished").glob("checkpoint-*/complete.json")
        assert saved.parent.name in ("checkpoint-3", "checkpoint-4", "checkpoint-5")
        code, said = ended(start(command(base, folder, output)))
        assert code == 0, said
        same_weights(output, undisturbed[0])

    def test_an_infinite_loss_in_one_process_ends_all_with_one_sentence(self, base, folder, tmp_path):  # noqa: F811
        output = tmp_path / "out"
        code, said = ended(start(command(base, folder, output, "--save-steps=1"), BREAK="nan"))
        assert (code, len(said)) == (1, 1), said
        assert said[0].startswith("dcsft (rank 1): the loss of step 3 is nan: training diverged at the items")
        assert [path.name for path in output.iterdir()] == ["unfinished"]

    def test_ctrl_c_ends_all_processes_with_one_message(self, base, folder, tmp_path):  # noqa: F811
        output = tmp_path / "out"
        running = start(command(base, folder, output), BREAK="slow")
        wait_for_checkpoint(output, running, 2)
        for process in [*forked.ranks(running), running]:  # a terminal interrupts all of them
            process.send_signal(signal.SIGINT)
        code, said = ended(running)
        assert (code, len(said)) == (130, 1), said
        assert said[0].startswith("dcsft: interrupted")
        assert (output / "unfinished" / "checkpoint-2" / "complete.json").is_file()


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_shares_of_all_processes_form_the_batches_of_one(count, micro, accumulated, processes, drop):
    def shares(rank):
        share = Shares(SequentialSampler(range(count)), micro, accumulated, rank, processes, drop)
        passes = list(share)
        assert len(share) == len(passes)
        return passes

    everyones = [shares(rank) for rank in range(processes)]
    assert len({len(passes) for passes in everyones}) == 1
    whole = micro * accumulated * processes
    expected = [list(range(count))[at : at + whole] for at in range(0, count, whole)]
    expected = [rows for rows in expected if len(rows) == whole or not drop]
    for step, rows in enumerate(expected):
        seen = [
            row
            for passes in everyones
            for chosen in passes[step * accumulated : (step + 1) * accumulated]
            for row in chosen
        ]
        assert sorted(row for row in seen if row >= 0) == rows
    assert all(0 < len(chosen) <= micro for passes in everyones for chosen in passes)
    fillings = [chosen for passes in everyones for chosen in passes if min(chosen) < 0]
    assert all(len(chosen) == 1 for chosen in fillings)


class TestShippedLaunchFiles:
    def parsed(self, name):
        """The settings that `accelerate launch` reads from a file, with eight processes."""
        words = launching.arguments(Launch(8, name), Launch(8, name)._read(), ["train", "sft"])
        parsed = accelerate_launch.launch_command_parser().parse_args(words)
        return accelerate_launch._validate_launch_command(parsed)[0]

    def test_are_four(self):
        assert set(launching.shipped()) == {"ddp", "zero2", "zero3", "fsdp2"}

    @pytest.mark.parametrize("name", ["ddp", "zero2", "zero3", "fsdp2"])
    def test_only_have_arguments_known_to_accelerate(self, name):
        parsed = self.parsed(name)
        assert (parsed.num_processes, parsed.mixed_precision, parsed.module) == (8, "bf16", True)
        assert (parsed.training_script, parsed.training_script_args) == (
            "dcsft_harness.cli",
            ["train", "sft"],
        )
        assert [parsed.multi_gpu, parsed.use_deepspeed, parsed.use_fsdp] == [
            name == "ddp",
            name.startswith("zero"),
            name == "fsdp2",
        ]
        known = set(vars(accelerate_launch.launch_command_parser().parse_args(["script"])))
        given = yaml.safe_load(launching.shipped()[name].read_text())
        sections = [given.pop(section, {}) for section in ("deepspeed_config", "fsdp_config")]
        for section in sections:
            assert set(section) <= known

    def test_fsdp2_is_read_by_the_plugin(self, base, monkeypatch):  # noqa: F811
        for variable, value in prepare_multi_gpu_env(self.parsed("fsdp2")).items():
            if variable.startswith(("FSDP", "ACCELERATE")):
                monkeypatch.setenv(variable, value)
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
        assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
        assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
        assert not plugin.cpu_ram_efficient_loading and not plugin.activation_checkpointing

        # Checkpoints of another kind could not be resumed.
        assert Job("sft", base, conversations(2), Path("out"), CONFIG).identity()["sharding"] == "FSDP2"

    @pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
    def test_zero_is_read_by_the_plugin(self, monkeypatch, name, stage):
        parsed = self.parsed(name)
        assert parsed.zero_stage == stage
        assert [parsed.gradient_accumulation_steps, parsed.gradient_clipping] == ["auto", "auto"]
        monkeypatch.setattr("accelerate.utils.deepspeed.HfDeepSpeedConfig.is_zero3", lambda self: stage == 3)
        plugin = DeepSpeedPlugin(
            zero_stage=parsed.zero_stage,
            gradient_accumulation_steps=parsed.gradient_accumulation_steps,
            gradient_clipping=parsed.gradient_clipping,
            offload_optimizer_device=parsed.offload_optimizer_device,
            offload_param_device=parsed.offload_param_device,
            zero3_init_flag=parsed.zero3_init_flag,
            zero3_save_16bit_model=parsed.zero3_save_16bit_model or False,
        )
        zero = plugin.deepspeed_config["zero_optimization"]
        assert zero["stage"] == stage
        assert zero["stage3_gather_16bit_weights_on_model_save"] is (stage == 3)


def refused(message, function, *given, **named):
    with pytest.raises(HarnessError, match=message):
        function(*given, **named)


class TestRefusals:
    def test_inside_a_launch(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "4")
        refused("--num-processes 2 inside a launch of 4 processes", Launch.read, 2, None)

    @pytest.mark.parametrize(
        ("processes", "plan", "message"),
        [
            (None, "ddp", "--launch ddp has no effect without --num-processes"),
            (1, "zero3", "--launch zero3 divides the work of several processes"),
        ],
    )
    def test_a_plan_without_a_number_of_processes(self, processes, plan, message):
        refused(message, Launch.read, processes, plan)

    @pytest.mark.parametrize("given", [0, "two", True])
    def test_an_invalid_number_of_processes(self, given, tmp_path):
        named = {"model": "m", "data": "d", "num_processes": given}
        refused("--num-processes", stages.STAGES["train sft"], tmp_path / "out", **named)

    def test_no_launch_is_read_if_none_is_requested(self):
        assert (
            Launch.read(None, None) is None and Launch.read(1, None) is None and Launch.read(1, "ddp") is None
        )
        assert Launch.read(8, "zero2") == Launch(8, "zero2")

    def test_an_unknown_plan_and_an_invalid_file(self, tmp_path):
        refused("^unknown launch 'zero4'. Did you mean zero", Launch(2, "zero4").check, CONFIG)
        refused("^--launch .*own.yaml does not exist", Launch(2, str(tmp_path / "own.yaml")).check, CONFIG)
        for text in (
            "distributed_type: MULTI_GPU\nnum_procs: 3\n",
            "[1, 2]",
            "a: [",
            "distributed_type: GPUS",
        ):
            (tmp_path / "own.yaml").write_text(text)
            refused(
                "is not a configuration of `accelerate launch`",
                Launch(2, str(tmp_path / "own.yaml")).check,
                CONFIG,
            )
        (tmp_path / "own.yaml").write_text("distributed_type: MULTI_CPU\nnum_machines: 1\n")
        refused("distributed_type MULTI_CPU, with which", Launch(2, str(tmp_path / "own.yaml")).check, CONFIG)
        (tmp_path / "own.yaml").write_text("distributed_type: MULTI_GPU\nnum_machines: 2\n")
        refused(
            "cannot be shared by the 2 machines",
            Launch(3, str(tmp_path / "own.yaml")).check,
            SftConfig(batch_size=3),
        )

    def test_missing_deepspeed(self, monkeypatch):
        monkeypatch.setattr(launching, "find_spec", lambda name: None)
        for plan in ("zero2", "zero3"):
            refused(f"--launch {plan} needs DeepSpeed, which is not installed", Launch(2, plan).check, CONFIG)

    def test_missing_gpus(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        refused("divides a model among GPUs, but this machine has none", Launch(2, "fsdp2").check, CONFIG)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        refused("--num-processes 4 needs as many GPUs, but this machine has 2", Launch(4).check, CONFIG)
        assert Launch(2).check(CONFIG)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
        refused("--num-processes 8 needs 2 each, 16 GPUs, but this machine has 8", Launch(8, devices=2).check)
        assert Launch(4, devices=2).check()

    @pytest.mark.parametrize(
        ("options", "processes"), [({"batch_size": 16}, 3), ({"batch_size": 16, "micro_batch_size": 16}, 2)]
    )
    def test_a_batch_that_the_processes_cannot_share(self, options, processes):
        config = GrpoConfig(**options)
        refused(f"--batch-size 16 cannot be shared by {processes} processes", Launch(processes).check, config)

    def test_an_order_that_differs_between_processes(self, base, monkeypatch):  # noqa: F811
        config = SftConfig(max_steps=1, extra={"train_sampling_strategy": "group_by_length"})
        setup = run._prepare(Job("sft", base, conversations(2), Path("out"), config))
        sft._make(setup)
        monkeypatch.setattr(ranks, "world_size", lambda: 2)
        refused("train_sampling_strategy=group_by_length gives processes orders", sft._make, setup)

    def test_come_before_any_process_is_started(self, monkeypatch, tmp_path):
        monkeypatch.setattr(launching, "_start", lambda *given: pytest.fail("it was started"))
        options = {"model": "digits", "data": "dcsft_digits_cold", "num_processes": 3}
        refused("cannot be shared by 3 processes", stages.STAGES["train sft"], tmp_path / "out", **options)
        refused(
            "unknown option 'batch'",
            stages.STAGES["train sft"],
            tmp_path / "out",
            **options,
            batch=3,
        )
        assert (
            main(["train", "sft", "--model=m", "--data=d", f"--output={tmp_path / 'out'}", "--launch=ddp"])
            == 1
        )
        assert not (tmp_path / "out").exists()


def test_the_dtype_overrides_the_launchers_file(monkeypatch):
    for dtype, expected in ((torch.float32, "no"), (torch.bfloat16, "bf16")):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16" if expected == "no" else "no")
        assert managed(CONFIG, dtype, Path("out"))["bf16"] is (expected == "bf16")
        assert os.environ["ACCELERATE_MIXED_PRECISION"] == expected


class TestStartedCommand:
    def started(self, monkeypatch, run):
        """The words that the processes receive, and the options that the command line reads from them."""
        seen = []
        monkeypatch.setattr(launching, "_start", lambda words, *_: seen.append(words))
        made = type("Read", (), {"notes": {}, "call": {}, "inputs": {}})
        monkeypatch.setattr(manifest, "read", lambda folder: made)
        run()
        words = seen[0][seen[0].index("dcsft_harness.cli") + 1 :]
        read = {}
        monkeypatch.setattr("dcsft_harness.cli.running.run_stage", lambda *given: read.update(given[2]) or {})
        assert CliRunner().invoke(dcsft, words, catch_exceptions=False).exit_code == 0
        return seen[0], read

    def test_has_all_of_a_recipes_options(self, monkeypatch, tmp_path):
        options = {"model": "digits", "data": "dcsft_digits_pool", "max_steps": 8, "full": True, "beta": 0.1}
        extra = {"use_vllm": False, "vllm_mode": "server", "optim_args": "a=1", "max_grad_norm": 0.5}
        given = {**options, "extra": extra, "save_steps": None, "num_processes": 4, "launch": "ddp"}
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
        words, read = self.started(
            monkeypatch,
            lambda: stages.STAGES["train grpo"](tmp_path / "out", None, **given, scorer=None, resume=True),
        )
        assert words[0].endswith("launch/ddp.yaml") and words[1] == "--num_processes=4"
        assert "--main_process_port=0" in words
        assert read.pop("extra") == extra
        assert {name: str(value) for name, value in read.items()} == {
            **{name: str(value) for name, value in options.items()},
            "resume": "True",
            "save_steps": "none",
        }
        assert GrpoConfig.from_options({"save_steps": read["save_steps"]}).save_steps is None

    def test_may_be_a_recipes_stage(self, monkeypatch, tmp_path, capsys):
        (tmp_path / "own.yaml").write_text(
            "stages:\n- {stage: adapter, verb: train sft, model: digits, data: dcsft_digits_cold, "
            "batch_size: 4, num_processes: 2}\n"
        )
        started = []
        monkeypatch.setattr(launching, "_start", lambda words, *_: started.append(words))
        notes = {"steps": 3, "final_loss": 0.5, "trainable_parameters": 7, "ledger": {"generated": 0}}
        made = type("Read", (), {"notes": notes, "call": {}, "inputs": {}})
        monkeypatch.setattr(manifest, "read", lambda folder: made)
        chain.run(recipes.load(str(tmp_path / "own.yaml")), tmp_path / "out", run_stage, print)
        assert f"--output={tmp_path / 'out' / 'adapter'}" in started[0]
        assert capsys.readouterr().err.startswith("train sft: 3 steps, loss 0.500")

    def test_is_not_started_without_a_number_of_processes(self, monkeypatch, tmp_path):
        monkeypatch.setattr(launching, "_start", lambda *given: pytest.fail("it was started"))
        with pytest.raises(HarnessError, match="--data nothing is neither a file nor a folder nor a task"):
            stages.STAGES["train sft"](
                tmp_path / "out", None, model="digits", data="nothing", num_processes=1
            )

    def test_can_be_requested_by_a_config_file(self, monkeypatch, tmp_path):
        (tmp_path / "own.yaml").write_text("num_processes: 2\nlaunch: zero2\nmax_steps: 3\n")
        read = {}
        monkeypatch.setattr("dcsft_harness.cli.running.run_stage", lambda *given: read.update(given[2]) or {})
        words = ["train", "sft", "--model=m", "--data=d", "--output=o", f"--config={tmp_path / 'own.yaml'}"]
        assert CliRunner().invoke(dcsft, words, catch_exceptions=False).exit_code == 0
        assert (read["num_processes"], read["launch"], read.get("extra")) == (2, "zero2", None)


def test_a_value_that_is_not_yaml_is_refused(capsys):
    assert main(["train", "sft", "--model=m", "--data=d", "--output=o", "--set", "optim_args=[1"]) == 1
    assert "dcsft: --set optim_args=[1: its value is not valid YAML (" in capsys.readouterr().err


class TestFailedLaunch:
    @pytest.mark.parametrize(
        ("codes", "error", "said"),
        [
            ({0: ranks.ELSEWHERE, 1: -9}, HarnessError, "process 1 of this launch was ended by signal 9"),
            ({1: -9, 0: 143}, HarnessError, "process 1 .*SIGKILL"),
            ({1: 1, 0: ranks.ELSEWHERE}, ranks.FailedElsewhere, "a process of this launch failed"),
            ({1: 1, 0: -15}, ranks.FailedElsewhere, "a process"),
            ({1: 1, 0: -9}, ranks.FailedElsewhere, "a process"),
            ({0: 130, 1: 143}, KeyboardInterrupt, None),
        ],
    )
    def test_is_explained_by_the_first_failure(self, tmp_path, codes, error, said):
        with pytest.raises(error, match=said) as found:
            launching._report(codes, ValueError(), "--batch-size", tmp_path)
        assert type(found.value) is error

    @pytest.mark.parametrize("saved", [True, False])
    def test_only_promises_to_resume_what_was_saved(self, tmp_path, saved):
        if saved:
            (tmp_path / "unfinished").mkdir()
            (tmp_path / "unfinished" / "run.json").write_text("{}")
        with pytest.raises(HarnessError) as found:
            launching._report({0: -9}, ValueError(), "--batch-size", tmp_path)
        assert str(found.value).endswith("Rerun the same command to resume." if saved else "same command.")

    def test_is_not_reported_by_watched_processes(self, monkeypatch, capsys):
        def lose(*given, **named):
            raise ranks.Lost("another process of this launch ended before it finished")

        monkeypatch.setattr("dcsft_harness.cli.running.run_stage", lose)
        words = ["train", "sft", "--model=m", "--data=d", "--output=o"]
        assert main(words) == 1
        assert "another process of this launch ended" in capsys.readouterr().err
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv(ranks.WATCHED, "1")
        assert main(words) == ranks.ELSEWHERE
        assert capsys.readouterr().err == ""
        assert json.dumps(ranks.watched()) == "true"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "table", "options"),
    [
        ("sample", "rollouts", ["--task", "dcsft_digits_pool", "--samples", "2"]),
        ("evaluate", "scores", ["--tasks", "dcsft_digits,dcsft_digits_r"]),
    ],
)
def test_processes_share_the_items_of_sampling_and_evaluation(verb, table, options, tmp_path):
    given = [verb, "--model", "digits", *options, "--limit", "7"]
    for count in ("1", "2"):
        done = forked.run(
            [*forked.DCSFT, *given, "--num-processes", count, "--output", tmp_path / count],
            env=alone({}),
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
    one, two = (pq.read_table(tmp_path / count / f"{table}.parquet").to_pylist() for count in ("1", "2"))
    assert one == two and len(one) == 14
    assert (
        main([*given, "--output", str(tmp_path / "2")]) == 0
    )  # the number of processes decides nothing: it is already done


@pytest.mark.parametrize(
    ("given", "devices"),
    [("", 1), ("tensor_parallel_size=2,batch_size=8", 2), ("tensor_parallel_size=x", 1)],
)
@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_a_multi_gpu_engine_counts_all_its_gpus(verb, given, devices, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(launching, "run", lambda launch, config, words, output: seen.append((launch, words)))
    options = {"engine": "dcsft_vllm", "model_args": given, "num_processes": 4}
    tasks = {"task": "dcsft_digits_pool"} if verb == "sample" else {"tasks": "dcsft_digits"}
    stage = stages.STAGES[verb]
    opening = stage.options.from_options({"model": "digits", **options, **tasks})
    opening.launched(stage, tmp_path / "out")
    assert seen[0][0] == Launch(4, devices=devices)
    assert not any(word.startswith("--num-processes") for word in seen[0][1])


def test_processes_and_actors_cannot_be_combined(tmp_path, capsys):
    given = ["--task", "dcsft_digits_pool", "--num-processes", "2", "--engine", "ray"]
    assert main(["sample", "--model", "digits", *given, "--output", str(tmp_path / "out")]) == 1
    assert "--num-processes 2 and Ray's actors both divide the items" in capsys.readouterr().err

"""The whole chain on a pretended CUDA device: all tensors are where a GPU needs them."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from dcsft_harness import records, sampling
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from tests.fixtures import pretended_cuda

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here: apt-get install gcc"),
    pytest.mark.skipif(torch.version.cuda is None, reason="torch was built without CUDA"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU: run the tests marked gpu"),
]


def run(folder, chain):
    driver = str(pretended_cuda.compiled(folder))
    environment = os.environ | {"LD_PRELOAD": driver, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", pretended_cuda.__file__, json.dumps(chain)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_every_stage_runs_on_a_gpu(tmp_path):
    drawn = ["sample", "--model", "digits", "--task", "dcsft_digits_pool", "--limit", "16", "--samples", "4"]
    train = ["--model", "digits", "--batch-size", "8", "--data"]
    chain = [
        [*drawn, "--output", "rollouts"],
        ["label", "rollouts", "--exact", "--output", "labels"],
        ["curate", "labels", "--keep", "easy,medium", "--output", "curated"],
        ["train", "sft", *train, "curated", "--max-steps", "2", "--output", "sft"],
        ["train", "grpo", *train, "curated", "--max-steps", "1", "--adapter", "sft", "--beta", "0.04"]
        + ["--output", "grpo"],
        ["train", "dpo", *train, "rollouts", "--max-steps", "1", "--output", "dpo"],
        ["merge", "sft", "--output", "merged"],
        ["evaluate", "--model", "merged", "--tasks", "dcsft_digits", "--limit", "8", "--output", "scores"],
    ]
    done = run(tmp_path, chain)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[0].endswith("on the same device, but found cuda:0 and cpu")
    assert main([*drawn, "--model-args", "device=cpu", "--output", str(tmp_path / "on-cpu")]) == 0
    rows = [
        records.read_table(tmp_path / name / sampling.ROLLOUTS, records.Rollout).to_pylist()
        for name in ("rollouts", "on-cpu")
    ]
    assert rows[0] == rows[1]
    for name in ("sft", "grpo", "dpo"):
        found = manifest.read(tmp_path / name)
        assert (found.notes["dtype"], found.hardware["cuda"]) == ("bfloat16", "a pretended GPU")

"""Arguments of `dcsft_vllm`: each reaches vLLM or is refused by name."""

import os

import pytest

from dcsft_harness.errors import HarnessError
from dcsft_harness.models import vllm_backends
from dcsft_harness.models.arguments import ModelSettings
from dcsft_harness.models.vllm import DcsftVLLM
from tests.fixtures import fake_vllm
from tests.fixtures.tiny_checkpoints import checkpoint, documents
from tests.models.test_models_vllm import SAMPLED, drawn, model, params


@pytest.fixture
def fake(monkeypatch):
    return fake_vllm.install(monkeypatch)


def test_every_generation_argument_reaches_vllm(fake):
    given = {
        "max_new_tokens": 9,
        "min_new_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 7,
        "repetition_penalty": 1.2,
        "until": ["END", "<|im_start|>"],
        "skip_special_tokens": False,
    }
    drawn(model(), documents()[:1], given)
    sent = vars(params(fake)[0])
    assert sent | {"seed": 0} == {
        "n": 1,
        "seed": 0,
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 7,
        "min_p": 0.0,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "max_tokens": 9,
        "min_tokens": 3,
        "stop": ["END", "<|im_start|>"],
        "stop_token_ids": [2, 0, 1],
        "skip_special_tokens": False,
        "detokenize": True,
    }
    drawn(model(), documents()[:1], {"temperature": 1.0, "top_p": 0.0, "min_p": 0.1} | {"min_p": 0})
    assert (params(fake)[0].top_k, params(fake)[0].top_p) == (1, 1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"use_cache": False}, "use_cache"),
        ({"temperature": 0.001}, "temperature=0.001"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9"),
        ({"temperature": 1.0, "min_p": 0.1, "top_p": 0.5}, "min_p=0.1 and top_p=0.5"),
        ({"num_beams": 4}, "num_beams=4"),
    ],
)
def test_arguments_that_vllm_ignores_are_refused_before_it_is_opened(given, message, fake):
    with pytest.raises(HarnessError, match=f"'tiny'.*{message}"):
        drawn(model(), documents()[:1], given)
    assert not fake.opened


def test_arguments_reach_the_engine(fake):
    one = model(
        dtype="float32",
        gpu_memory_utilization="0.5",
        tensor_parallel_size="2",
        max_num_seqs=32,
        enforce_eager="True",
        max_pixels=56 * 56,
        batch_size="auto",
    )
    drawn(one, documents()[:1], SAMPLED)
    options = fake.opened[0]
    assert options["mm_processor_kwargs"] == {"size": {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}}
    assert (options["dtype"], options["gpu_memory_utilization"], options["max_num_seqs"]) == (
        "float32",
        0.5,
        32,
    )
    assert (options["tensor_parallel_size"], options["enforce_eager"]) == (2, True)
    assert one.batch_size == 256
    assert ModelSettings.from_options({"pretrained": "m"}).batch_size == 64  # memory lowers it


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batchsize": 4}, "batch_size"),
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
        ({"attempts": 3}, "attempts belongs to a server"),
        ({"base_url": "http://127.0.0.1:9/v1", "adapter": "x"}, "--lora-modules"),
        ({"base_url": "http://127.0.0.1:9/v1", "max_model_len": 5}, "vllm serve"),
        ({"pretrained": None}, "pretrained"),
        ({"pretrained": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"adapter": "/nowhere"}, "/nowhere"),
    ],
)
def test_bad_arguments_are_refused_at_once(given, message, fake):
    with pytest.raises(HarnessError, match=message):
        DcsftVLLM(**({"pretrained": checkpoint("qwen2_5_vl")} | given))


LAUNCHED = {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "here", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("visible", "here", "rank", "count", "devices", "wanted"),
    [
        (None, 8, 0, 8, 1, "0"),
        (None, 8, 7, 8, 1, "7"),
        (None, 8, 1, 4, 2, "2,3"),
        ("4,5,6,7", 4, 1, 4, 1, "5"),
        ("GPU-a, GPU-b", 2, 1, 2, 1, "GPU-b"),
        ("3", 1, 5, 8, 1, "3"),  # as Slurm shows each task its own
        ("2,3", 2, 1, 4, 2, "2,3"),
        (None, 4, 0, 4, 2, HarnessError("4 processes with tensor_parallel_size=2 need 8 GPUs, .* has 4")),
        (None, 2, 0, 4, 4, HarnessError("need 16 GPUs, but this machine has 2")),
        ("", 0, 0, 2, 1, ""),
    ],
)
def test_each_engine_of_a_launch_has_its_own_devices(
    visible, here, rank, count, devices, wanted, monkeypatch
):
    for name, value in {**LAUNCHED, "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: here)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2})
    before = dict(os.environ)
    if isinstance(wanted, HarnessError):
        with pytest.raises(HarnessError, match=wanted.problem):
            vllm_backends._own_devices(devices)
        return
    with vllm_backends._environment(vllm_backends._own_devices(devices)):
        seen = dict(os.environ)
    assert dict(os.environ) == before
    assert seen.get("CUDA_VISIBLE_DEVICES") == wanted
    assert not {*LAUNCHED, "LOCAL_RANK", "LOCAL_WORLD_SIZE"} & seen.keys()
    assert seen.get("VLLM_CPU_OMP_THREADS_BIND") == (None if here else "0,2")


def test_an_engine_without_a_launch_uses_all_devices(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")  # as some clusters set it in every shell
    assert vllm_backends._own_devices(2) == {}

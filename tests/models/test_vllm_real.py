"""`dcsft_vllm` on vLLM itself, with the digits checkpoint: `make test-vllm`.

dcsft_hf is the reference for everything that the checkpoint can do; both compute in float32. On a CPU, vLLM
starts two interpreters for each engine, which import torch and vLLM: 20 s of CPU time. Here they are forks,
except where a command starts engines.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from scipy import stats
from transformers import AutoModelForImageTextToText

from dcsft_harness import evaluation, lmms, records
from dcsft_harness.artifacts import manifest
from dcsft_harness.data import digits
from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms.protocols import Generation
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.vllm import DcsftVLLM
from dcsft_harness.sampling import SamplingConfig
from tests.fixtures.tiny_checkpoints import documents, requests_for, restated
from tests.models.test_models_sampling import agreement, first_token_logits, kept_probabilities

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm"
    ),
]

TASKS = ["dcsft_digits", "dcsft_digits_r", "dcsft_digits_ground", "dcsft_digits_reason"]
GREEDY = {"max_new_tokens": 12}
SAMPLED = {"max_new_tokens": 8, "temperature": 2.0}
ENGINE = {"dtype": "float32", "enforce_eager": True}


FORKS = """
import multiprocessing
started = multiprocessing.get_context
multiprocessing.get_context = lambda method=None: started("fork" if method == "spawn" else method)
"""


@pytest.fixture(scope="module", autouse=True)
def small_engines():
    """Engines that need little memory and start fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        # One thread, set in the environment: a fork does not read what vLLM sets for its interpreters.
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(multiprocessing, "get_context", multiprocessing.get_context)
        exec(FORKS, {})
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a fork of a process with OpenMP threads would wait for them
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tasks():
    return lmms.open_tasks(TASKS)


@pytest.fixture(scope="module")
def docs(tasks):
    """Four documents of each task, as `requests_for` takes them."""
    rows = []
    for task in tasks.values():
        for doc_id in range(4):
            item, pictures = lmms.describe(task, doc_id)
            rows.append({"image": pictures[0], "text": item.prompt})
    return rows


def hf(**given):
    return DcsftHF(**({"pretrained": str(digits.path()), "device": "cpu", "batch_size": 8} | given))


@pytest.fixture(scope="module")
def reference():
    return hf()


@contextlib.contextmanager
def opened(**given):
    """A model on vLLM, closed afterwards."""
    model = DcsftVLLM(**({"pretrained": str(digits.path())} | ENGINE | given))
    try:
        yield model
    finally:
        model.keep_loaded = False
        model.clean()


@pytest.fixture(scope="module")
def model():
    with opened(max_model_len=1024, max_images=1) as one:
        one.keep_loaded = True
        yield one


def drawn(model, docs, given, repeats=1, shuffle=None):
    """(doc_id, sample index) -> (response, prompt tokens, tokens, finish reason)."""
    rows = requests_for(model, docs, given, repeats)
    if shuffle is not None:
        rows = [rows[at] for at in np.random.default_rng(shuffle).permutation(len(rows))]
    seen = []
    model.on_batch = seen.extend
    model.generate_until(rows)
    model.on_batch = None
    return {(one.doc_id, one.sample_index): as_tuple(one) for one in seen}


def as_tuple(one):
    return one.response, one.n_prompt_tokens, one.n_tokens, one.finish_reason


def test_greedy_responses_on_the_digits_tasks_equal_those_of_dcsft_hf(model, reference, tasks):
    answers = []
    for one in (reference, model):
        one.keep_loaded = True
        seen = []
        one.on_batch = seen.extend
        answered, _ = lmms.run(one, tasks, limit=12)
        one.on_batch = None
        responses = {name: [row.responses for row in rows] for name, rows in answered.items()}
        answers.append((responses, {(row.task, row.doc_id): as_tuple(row) for row in seen}))
    assert len(answers[0][1]) == 12 * len(TASKS)
    assert answers[0] == answers[1]


def test_k_responses_per_item_are_kept_and_summarized(model, tasks, tmp_path):
    """`dcsft evaluate --samples K`: each response is a row, with every metric for every k up to K."""
    config = SamplingConfig(samples=8, limit=12, temperature=1.5, seed=3)
    one = {"dcsft_digits": tasks["dcsft_digits"]}
    for output in ("scores", "again"):
        notes = evaluation.evaluate(model, one, tmp_path / output, "row", {"model": "dcsft_vllm"}, config)
    found, again = (
        records.read_table(tmp_path / name / evaluation.RESPONSES, records.Response).to_pylist()
        for name in ("scores", "again")
    )
    assert found == again and len(found) == 12 * 8
    assert len({(row["item_id"], row["sample_index"]) for row in found}) == 12 * 8
    assert all(row["n_tokens"] > 0 and row["finish_reason"] in ("stop", "length") for row in found)
    assert len({row["response"] for row in found}) > 3
    told = notes["tasks"]["dcsft_digits"]
    assert told["samples"] == 8 and [len(told["at_k"][name]) for name in ("avg", "maj", "pass")] == [8] * 3
    right = {}
    for row in found:
        right.setdefault(row["item_id"], []).append(row["score"] == 1)
    assert told["at_k"]["avg"][-1] == pytest.approx(np.mean([np.mean(one) for one in right.values()]))
    assert told["at_k"]["pass"][-1] == pytest.approx(np.mean([any(one) for one in right.values()]))


@pytest.mark.parametrize(
    "extra",
    [{"repetition_penalty": 1.5}, {"min_new_tokens": 12}, {"until": ["e"]}, {"skip_special_tokens": False}],
)
def test_arguments_have_the_same_effect_as_in_dcsft_hf(extra, model, reference, docs):
    assert drawn(model, docs, GREEDY | extra) == drawn(reference, docs, GREEDY | extra)


def test_sockets_are_in_a_folder_that_is_removed_with_the_engine(model, docs):
    """vLLM does not remove them, and would leave some in the folder for temporary files at each run."""
    drawn(model, docs[:1], GREEDY)  # the engine starts on the first request
    lines = Path("/proc/net/unix").read_text().splitlines()
    assert any("/dcsft-vllm-" in line for line in lines)
    assert "VLLM_RPC_BASE_PATH" not in os.environ


def test_more_samples_than_fit_into_a_step_are_drawn(model, docs):
    """vLLM's CPU engine dies of a prompt that is split between two steps."""
    seen = drawn(model, docs, SAMPLED, repeats=32)
    assert len(seen) == 32 * len(docs)
    assert sum(tokens for _, tokens, *_ in seen.values()) > 3 * 4096
    few = drawn(model, docs[:2], SAMPLED, repeats=32)
    assert few == {place: one for place, one in seen.items() if place[0] < 2}


def test_order_batches_rounds_and_restarts_change_no_response(model, docs):
    docs = docs[:6]
    whole = drawn(model, docs, SAMPLED, repeats=8)
    assert len({text for text, *_ in whole.values()}) > len(docs)
    assert drawn(model, docs, SAMPLED, repeats=8, shuffle=1) == whole
    try:
        model.batch_size = 1
        assert drawn(model, docs[::-1], SAMPLED, repeats=8) == {
            (len(docs) - 1 - doc_id, index): one for (doc_id, index), one in whole.items()
        }
        model.kept = {
            ("tiny", 2, index): Generation("tiny", 2, index, "", 1, 1, "stop", 0) for index in (0, 3)
        }
        left = {place: one for place, one in whole.items() if place not in ((2, 0), (2, 3))}
        assert drawn(model, docs, SAMPLED, repeats=8) == left
        model.kept, model.settled = {}, lambda item, have: False
        assert drawn(model, docs, SAMPLED, repeats=8) == whole
    finally:
        model.batch_size, model.kept, model.settled = 256, {}, None


def test_prompts_with_images_are_prefilled_once_for_all_samples():
    """By vLLM's own counters, with prompts of several blocks: all but the last block is shared."""
    text = " ".join(f"Look again at line {number} of the picture." for number in range(40))
    docs = [{"image": Image.new("RGB", (224, 224), (red, 0, 0)), "text": text} for red in (10, 200)]
    prefilled, asked, reported = {}, [], []
    with opened() as one:
        drawn(one, docs, SAMPLED)  # opens the engine
        engine, draw = one._backend._llm, one._backend.draw

        def counted(draws, *given):
            asked.append([each.n for each in draws])
            drawn_now = draw(draws, *given)
            reported.append(sum(each.n_prefilled for each in drawn_now))
            return drawn_now

        one._backend.draw = counted
        for samples in (1, 8):
            assert engine.reset_prefix_cache()
            before = counters(engine)
            answers = drawn(one, docs, SAMPLED, repeats=samples)
            prompts, cached = (now - then for now, then in zip(counters(engine), before, strict=True))
            assert prompts == sum(tokens for _, tokens, *_ in answers.values())
            prefilled[samples] = prompts - cached
        block = engine.llm_engine.vllm_config.cache_config.block_size
    assert reported == [prefilled[1], prefilled[8]]
    assert asked == [[1, 1], [8, 8]]  # one request per item, whose samples share its prompt
    assert prefilled[1] > 2 * 4 * block
    assert prefilled[1] <= prefilled[8] <= prefilled[1] + 7 * len(docs) * block


def counters(engine):
    """vLLM's sums so far: prompt tokens, and how many of them were in the cache."""
    found = {one.name: one.value for one in engine.get_metrics() if hasattr(one, "value")}
    return found["vllm:prompt_tokens"], found["vllm:prefix_cache_hits"]


def test_two_processes_draw_the_samples_of_one(model, tasks, tmp_path, monkeypatch):
    """`--num-processes 2`: one engine each, in interpreters that vLLM starts."""
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND")
    one, config = {"dcsft_digits": tasks["dcsft_digits"]}, SamplingConfig(samples=3, limit=7, temperature=1.5)
    evaluation.evaluate(model, one, tmp_path / "1", "row", {"model": "dcsft_vllm"}, config)
    command = ["evaluate", "--model", "digits", "--engine", "dcsft_vllm", "--tasks", "dcsft_digits"]
    command += ["--model-args", "dtype=float32,enforce_eager=true,max_model_len=1024,max_images=1"]
    command += ["--samples", "3", "--temperature", "1.5", "--limit", "7", "--num-processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "dcsft_harness.cli", *command, "--output", tmp_path / "2"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [
        records.read_table(tmp_path / name / evaluation.RESPONSES, records.Response).to_pylist()
        for name in ("1", "2")
    ]
    assert found[0] == found[1] and len(found[0]) == 21
    assert manifest.read(tmp_path / "2").notes["processes"] == 2


def undecided(reference, docs):
    """The document whose first token is least certain; a checkpoint may be sure of all but the noise."""
    return max(docs + documents(), key=lambda doc: stats.entropy(spread(reference, doc)))


def spread(reference, doc):
    return kept_probabilities(first_token_logits(reference, doc), temperature=2.0)


@pytest.mark.parametrize("given", [{}, {"top_k": 12}, {"top_p": 0.9}, {"min_p": 0.05}])
def test_first_tokens_follow_the_probabilities_of_dcsft_hf(given, model, reference, docs):
    rows, doc, given = [], undecided(reference, docs), {"temperature": 2.0} | given
    drawn(model, [doc], SAMPLED)  # the engine is open
    draw = model._backend.draw
    model._backend.draw = lambda *args: [rows.extend(one.rows) or one for one in draw(*args)]
    try:
        drawn(model, [doc], given | {"max_new_tokens": 1}, repeats=1500)
    finally:
        model._backend.draw = draw
    probabilities = kept_probabilities(first_token_logits(reference, doc), **given)
    observed = np.bincount([row[0] for row in rows], minlength=len(probabilities))
    assert observed.sum() == 1500 and observed[probabilities == 0].sum() == 0
    assert agreement(observed, probabilities) > 0.001


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """Makes a random adapter on the digits checkpoint."""

    def make(target):
        torch.manual_seed(0)
        base = AutoModelForImageTextToText.from_pretrained(digits.path(), dtype=torch.float32)
        peft_model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=target))
        for name, weight in peft_model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(0.0, 0.1)
        folder = tmp_path_factory.mktemp("adapter") / "adapter"
        peft_model.save_pretrained(folder)
        return str(folder)

    return make


@pytest.mark.parametrize(
    ("way", "target"),
    [
        ("request", r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"),
        ("merge", r".*\.(qkv|q_proj|v_proj|up_proj|down_proj)"),
    ],
)
def test_an_adapter_has_the_same_effect_as_in_dcsft_hf(way, target, adapter, docs, reference, caplog):
    folder = adapter(target)
    wanted = drawn(hf(adapter=folder), docs, GREEDY)
    assert wanted != drawn(reference, docs, GREEDY)
    with opened(adapter=folder) as adapted:
        assert drawn(adapted, docs, GREEDY) == wanted
        merged = adapted._adapted._merged is not None
        assert (adapted._adapted.rank is None) == merged == (way == "merge")
        assert ("is merged into a temporary checkpoint first" in caplog.text) == (way == "merge")


@pytest.mark.parametrize("form", ["edges", "top level", "pixels in size"])
def test_pixel_limits_reach_vllm(form, docs, tmp_path):
    base = restated(str(digits.path()), tmp_path / "base", form)
    limits = {"pretrained": base, "min_pixels": 784, "max_pixels": 56 * 56}
    with opened(**limits) as limited:
        assert drawn(limited, docs, GREEDY) == drawn(hf(**limits), docs, GREEDY)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a real `vllm serve` on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    # What `vllm serve` runs; the command itself looks for a package whose name differs from the CPU build's.
    module = "vllm.entrypoints.openai.api_server"
    program = f"{FORKS}\nimport runpy\nrunpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    given = {
        "model": str(digits.path()),
        "host": "127.0.0.1",
        "port": str(port),
        "dtype": "float32",
        "max-model-len": "1024",
        "limit-mm-per-prompt": '{"image": 1, "video": 0}',
    }
    command = [sys.executable, "-c", program, "--enforce-eager", "--no-enable-chunked-prefill"]
    command += [part for name, value in given.items() for part in (f"--{name}", value)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ})
        try:
            deadline = time.monotonic() + 600
            while not alive(port):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(60)


def alive(port):
    with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    return False


def test_a_server_answers_like_dcsft_hf_and_the_engine(server, model, reference, docs):
    remote = DcsftVLLM(pretrained=str(digits.path()), base_url=server, batch_size=8)
    for extra in ({}, {"until": ["e"]}, {"repetition_penalty": 1.5, "min_new_tokens": 3}):
        assert drawn(remote, docs, GREEDY | extra) == drawn(reference, docs, GREEDY | extra)
    assert drawn(remote, docs, SAMPLED, repeats=4) == drawn(model, docs, SAMPLED, repeats=4)


def test_vllms_errors_are_reported_in_one_sentence(model, server, docs):
    with pytest.raises(HarnessError, match="vLLM refuses the generation arguments .*temperature"):
        drawn(model, docs[:1], SAMPLED | {"temperature": 3.0})
    remote = DcsftVLLM(pretrained=str(digits.path()), base_url=server)
    with pytest.raises(HarnessError, match="'tiny', doc_id 0.* refuses it .*max_tokens"):
        drawn(remote, docs[:1], {"max_new_tokens": 5000})
    with pytest.raises(HarnessError, match="served_model_name"):
        DcsftVLLM(pretrained=str(digits.path()), base_url=server, served_model_name="other")

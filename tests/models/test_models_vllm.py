"""`dcsft_vllm` around its engine: the requests it makes, and how it reads the answers."""

import queue
import sys
import types

import pytest

from dcsft_harness.artifacts import usage
from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms.protocols import Generation
from dcsft_harness.models.arguments import GenerationArguments
from dcsft_harness.models.vllm import DcsftVLLM
from dcsft_harness.models.vllm_backends import neighbors
from tests.fixtures import fake_vllm
from tests.fixtures.tiny_checkpoints import checkpoint, documents, requests_for
from tests.models.test_models_hf import load

SAMPLED = {"max_new_tokens": 8, "temperature": 0.7}


@pytest.fixture
def fake(monkeypatch):
    return fake_vllm.install(monkeypatch)


def model(**given):
    return DcsftVLLM(**({"pretrained": checkpoint("qwen2_5_vl")} | given))


def drawn(one, docs, given, repeats=1):
    """The generations of a run, by document and sample index."""
    seen = []
    one.on_batch = seen.extend
    one.generate_until(requests_for(one, docs, given, repeats))
    one.on_batch = None
    return sorted(seen, key=lambda generation: (generation.doc_id, generation.sample_index))


def params(fake):
    """The sampling parameters of all calls, in order."""
    return [one for _, call, _ in fake.last.calls for one in call]


def test_missing_vllm_is_reported_in_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HarnessError, match="dcsft_vllm needs vLLM, which is not installed"):
        model()


def test_vllm_is_not_imported_before_there_are_requests(fake):
    one = model()
    assert not fake.opened
    one.generate_until([])
    assert not fake.opened
    drawn(one, documents()[:1], SAMPLED)
    assert len(fake.opened) == 1


def test_no_engine_is_opened_for_kept_responses(fake):
    one = model()
    one.kept = {("tiny", 0, index): Generation("tiny", 0, index, "kept", 1, 1, "stop", 0) for index in (0, 1)}
    assert drawn(one, documents()[:1], SAMPLED, repeats=2) == []
    assert not fake.opened
    assert len(drawn(one, documents()[:2], SAMPLED, repeats=2)) == 2


def test_samples_of_an_item_are_one_request_with_consecutive_seeds(fake):
    seen = drawn(model(batch_size=2), documents()[:3], SAMPLED, repeats=4)
    assert [one.n for one in params(fake)] == [4, 4, 4]
    assert [len(prompts) for prompts, _, _ in fake.last.calls] == [2, 1]
    assert len({one.seed for one in params(fake)}) == 3
    assert all(0 <= one.seed < 2**62 + 4 for one in params(fake))
    assert [one.sample_index for one in seen] == [0, 1, 2, 3] * 3
    assert {one.seed for one in seen} == {0}


def test_a_samples_seed_does_not_depend_on_other_requests(fake):
    docs = documents()[:3]
    long = {"max_new_tokens": 30, "temperature": 0.7}
    whole = {(one.doc_id, one.sample_index): one.response for one in drawn(model(), docs, long, 8)}
    assert len(set(whole.values())) == 24
    alone = model(batch_size=1)
    assert {(one.doc_id, one.sample_index): one.response for one in drawn(alone, docs, long, 8)} == whole
    # The rest of an interrupted run: samples 2 and 5 of item 1 are there.
    rest = model()
    rest.kept = {
        ("tiny", 1, index): Generation("tiny", 1, index, "kept", 1, 1, "stop", 0) for index in (2, 5)
    }
    redrawn = {(one.doc_id, one.sample_index): one.response for one in drawn(rest, docs, long, 8)}
    assert redrawn == {place: text for place, text in whole.items() if place not in ((1, 2), (1, 5))}
    # Rounds of 2, 2 and 4.
    rounds = model()
    rounds.settled = lambda item, have: False
    assert {(one.doc_id, one.sample_index): one.response for one in drawn(rounds, docs, long, 8)} == whole
    assert sorted(one.n for one in params(fake)) == [2] * 6 + [4] * 3


def test_the_seed_and_the_content_id_choose_the_draw(fake):
    docs = documents()[:1]

    def seed(given=SAMPLED, ids=None, **settings):
        one = model(**settings)
        one.item_ids = ids or {}
        drawn(one, docs, given)
        return params(fake)[-1].seed

    base = seed()
    assert seed(seed=1) != base
    assert seed(SAMPLED | {"seed": 1}) == seed(seed="1")
    assert seed(ids={("tiny", 0): "another"}) != base
    assert seed(SAMPLED | {"temperature": 0}) is None


def test_greedy_repeats_are_one_request(fake):
    seen = drawn(model(), documents()[:2], {"max_new_tokens": 5}, repeats=3)
    assert [one.n for one in params(fake)] == [1, 1]
    assert [one.sample_index for one in seen] == [0, 1, 2] * 2
    assert len({one.response for one in seen[:3]}) == 1


def test_the_engine_has_room_for_exactly_the_longest_prompt(fake):
    docs = documents()
    drawn(model(), docs, SAMPLED)
    reference = load(batch_size=8)
    seen = drawn(reference, docs, SAMPLED)
    assert fake.opened[0]["max_model_len"] == max(one.n_prompt_tokens for one in seen) + 8
    assert fake.opened[0]["limit_mm_per_prompt"] == {"image": 1, "video": 0}
    assert fake.opened[0]["enable_prefix_caching"] is True
    assert fake.opened[0]["generation_config"] == "vllm"
    assert fake.opened[0]["enable_chunked_prefill"] is False  # the fake is a CPU


def test_the_checkpoints_context_is_the_limit_and_longer_prompts_are_named(fake):
    with pytest.raises(HarnessError, match="'tiny', doc_id 0: a prompt of .* do not fit into 4096"):
        drawn(model(), documents()[:1], {"max_new_tokens": 4096})
    with pytest.raises(HarnessError, match="max_model_len"):
        drawn(model(max_model_len=30, max_images=1), documents()[:1], SAMPLED)
    with pytest.raises(HarnessError, match="max_images=1"):
        drawn(model(max_model_len=500, max_images=0), documents()[:1], SAMPLED)


def test_an_engine_that_is_large_enough_stays_open(fake):
    one = model()
    drawn(one, documents()[3:4], SAMPLED)
    drawn(one, documents()[:1], SAMPLED)
    assert len(fake.opened) == 1
    first = fake.last
    drawn(one, documents()[3:4], {"max_new_tokens": 500})
    assert first.closed and len(fake.opened) == 2
    one.clean()
    assert fake.last.closed
    drawn(one, documents()[:1], SAMPLED)
    assert len(fake.opened) == 3
    one.keep_loaded = True
    one.clean()
    assert not fake.last.closed


def test_an_unreadable_image_is_an_error_or_is_skipped(fake):
    docs = [documents()[0], {"image": "/nowhere.png", "text": "?"}]
    with pytest.raises(HarnessError, match="'tiny', doc_id 1"):
        drawn(model(), docs, SAMPLED)
    skipping = model()
    skipping.refused = {}
    assert [one.doc_id for one in drawn(skipping, docs, SAMPLED)] == [0]
    assert list(skipping.refused) == [("tiny", 1)]


def test_vllms_errors_are_reported_in_one_sentence(fake, monkeypatch):
    def refuse(*args, **options):
        raise fake_vllm.VLLMError("no such architecture\nand more")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", refuse)
    with pytest.raises(HarnessError, match=r"vLLM cannot serve .*\(no such architecture\)"):
        drawn(model(), documents()[:1], SAMPLED)
    monkeypatch.setattr(sys.modules["vllm"], "LLM", fake)
    monkeypatch.setattr(fake, "generate", refuse)
    with pytest.raises(HarnessError, match="'tiny', doc_id 0: vLLM refuses the prompt"):
        drawn(model(), documents()[:1], SAMPLED)
    monkeypatch.setattr(sys.modules["vllm"], "SamplingParams", refuse)
    with pytest.raises(HarnessError, match="'tiny', doc_id 0: vLLM refuses the generation arguments"):
        drawn(model(), documents()[:1], SAMPLED)


@pytest.mark.parametrize(
    ("free", "given", "said"),
    [
        (93e9, None, "messages above"),
        (10e9, "4", "messages above"),
        (10e9, None, "92 % of the memory, 92.0 GB, but only 10.0 GB are free. Set VLLM_CPU_KVCACHE_SPACE=4"),
    ],
)
def test_the_memory_that_vllm_needs_on_a_cpu_is_reported(fake, monkeypatch, free, given, said):
    def refuse(*args, **options):
        raise RuntimeError("Engine core initialization failed. See root cause above.")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", refuse)
    monkeypatch.setattr(usage, "machine_memory", lambda: (100e9, free))
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    if given:
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", given)
    with pytest.raises(HarnessError, match=f"cannot serve .*root cause above.*{said}"):
        drawn(model(), documents()[:1], SAMPLED)


def test_no_item_is_skipped_because_an_engine_died(fake, monkeypatch):
    def die(*args, **options):
        raise fake_vllm.EngineDeadError

    monkeypatch.setattr(fake, "generate", die)
    skipping = model()
    skipping.refused = {}
    with pytest.raises(HarnessError, match="vLLM's engine died at task 'tiny', doc_id 0"):
        drawn(skipping, documents()[:2], SAMPLED)
    assert not skipping.refused


@pytest.mark.parametrize(("dead", "ended"), [(True, {}), (False, {"EngineCore": -9})])
def test_a_call_to_a_killed_engine_ends(fake, monkeypatch, dead, ended):
    """vLLM's own call waits for the queue of an engine that is silent."""
    waiting = queue.Queue()
    manager = types.SimpleNamespace(finished_procs=lambda: ended)
    resources = types.SimpleNamespace(engine_dead=dead, engine_manager=manager)
    opened = fake.__init__

    def with_process(self, *args, **options):
        opened(self, *args, **options)
        vars(self.llm_engine.engine_core).update(outputs_queue=waiting, resources=resources)

    def generate(*args, **options):
        raise waiting.get(timeout=30)

    monkeypatch.setattr(fake, "__init__", with_process)
    monkeypatch.setattr(fake, "generate", generate)
    with pytest.raises(HarnessError, match="vLLM's engine died at task 'tiny', doc_id 0"):
        drawn(model(), documents()[:1], SAMPLED)


def test_indices_are_grouped_into_runs():
    assert neighbors([0, 1, 2]) == [[0, 1, 2]]
    assert neighbors([1, 3, 4, 7]) == [[1], [3, 4], [7]]
    assert neighbors([]) == []


@pytest.mark.slow
def test_texts_counts_and_finish_reasons_equal_those_of_dcsft_hf():
    """dcsft_hf's own rows, returned as vLLM would, give dcsft_hf's responses."""
    docs = documents()
    reference = load(batch_size=8)
    given = {"max_new_tokens": 12}
    stop = drawn(reference, docs, given)[0].response[3:5]
    for extra in ({}, {"until": [stop]}, {"until": ["<|im_start|>", stop], "skip_special_tokens": False}):
        wanted = drawn(reference, docs, given | extra)
        arguments = GenerationArguments.parse(given | extra, "tiny")
        endings = reference._engine.endings(arguments)
        rows = [unstopped(reference, doc, endings.tokens.eos) for doc in docs]
        for row, one in zip(rows, wanted, strict=True):
            found = endings.cut(row)
            assert (found.text, found.n_tokens, found.finish_reason) == (
                one.response,
                one.n_tokens,
                one.finish_reason,
            )


def unstopped(reference, doc, end):
    """The greedy token ids of a document, past any stop text, up to and including the first end token."""
    text = reference.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": doc["text"]}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    inputs = reference.processor(text=[text], images=[doc["image"]], return_tensors="pt")
    output = reference._model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=list(end))
    return output[0, inputs["input_ids"].shape[1] :].tolist()

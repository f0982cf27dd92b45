"""What drawing costs: operations against a count of the weights by hand, ledgers through interruptions."""

import pytest

from dcsft_harness import evaluation, lmms, sampling
from dcsft_harness.artifacts import manifest
from dcsft_harness.evaluation.cost_report import cost_of
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.stub import DcsftStub
from tests.fixtures import fake_vllm
from tests.fixtures.tiny_checkpoints import FAMILIES, checkpoint, documents, requests_for

POOL = "dcsft_digits_pool"
SAMPLED = {"max_new_tokens": 8, "temperature": 1.0}
PATCH = {"qwen2_5_vl": 14, "qwen3_vl": 16}


def weights(model):
    """Weights that a token, one of a response, and a patch are multiplied with, by names of modules."""
    found = {"language": 0, "head": model._model.get_output_embeddings().weight.numel(), "vision": 0}
    for name, weight in model._model.named_parameters():
        if weight.dim() > 1 and not any(one in name for one in ("embed_tokens", "pos_embed", "lm_head")):
            merged = 4 if "merger" in name else 1  # patches
            found["vision" if "visual" in name else "language"] += weight.numel() / merged
    return found


@pytest.mark.parametrize("family", sorted(PATCH.keys() & set(FAMILIES)))
@pytest.mark.parametrize("shared", [True, False])
def test_operations_are_two_a_weight_and_token_and_prompts_count_once(family, shared):
    model, seen = DcsftHF(pretrained=checkpoint(family), device="cpu", batch_size=2), []
    if not shared:
        model._engine.give_up("tried in a test")
    model.on_batch = seen.extend
    docs, count = documents()[:3], weights(model)
    requests = requests_for(model, docs, SAMPLED, 4)
    features = model.processor.image_processor(images=[doc["image"] for doc in docs])
    patches = features["pixel_values"].shape[0]
    model.generate_until(requests)
    assert len(seen) == 12
    prompt = sum(one.n_prompt_tokens for one in seen if one.sample_index == 0)
    passes, completion = 1 if shared else 4, sum(one.n_tokens for one in seen)
    expected = 2 * count["language"] * (passes * prompt + completion) + 2 * count["vision"] * passes * patches
    expected += 2 * count["head"] * completion
    assert sum(one.flops for one in seen) == pytest.approx(expected, rel=1e-9)


class Stop(Exception):
    pass


def draw(output, after=None, engine="dcsft_hf"):
    """Samples four items of the pool on the embedded checkpoint; stops after as many."""

    def progress(done, total):
        if done == after:
            raise Stop

    here = ",device=cpu" if engine == "dcsft_hf" else ""
    model = lmms.open_model(engine, f"pretrained={digits()},batch_size=2{here}")
    config = sampling.SamplingConfig(samples=2, limit=4, max_new_tokens=4)
    task = lmms.open_tasks([POOL])[POOL]
    return sampling.sample(model, task, output, config, {"model": engine}, progress)


def digits():
    from dcsft_harness.data.digits import path

    return path()


def test_a_rollouts_ledger_goes_through_an_interruption(tmp_path):
    whole = draw(tmp_path / "whole")
    with pytest.raises(Stop):
        draw(tmp_path / "cut", after=2)
    notes = draw(tmp_path / "cut")
    assert notes["resumed"] == 4
    measured = {"seconds": None, "peak_memory_bytes": None}
    assert notes["ledger"] | measured == whole["ledger"] | measured
    found = manifest.read(tmp_path / "cut", "rollouts")
    ledger = found.notes["ledger"]
    assert (ledger["steps"], ledger["prompts"], ledger["generated"]) == (0, 4, 8)
    assert (ledger["prompt_tokens"], ledger["completion_tokens"]) == (
        notes["prompt_tokens"],
        notes["generated_tokens"],
    )
    assert ledger["flops"] > 0 and notes["ledger_unknown"] == {}
    assert ledger["seconds"] == pytest.approx(found.seconds, abs=0.5)
    assert ledger["peak_memory_bytes"] > 10**8


def test_what_vllm_prefilled_is_in_every_ledger_through_an_interruption(tmp_path, monkeypatch):
    fake = fake_vllm.install(monkeypatch)
    whole = draw(tmp_path / "whole", engine="dcsft_vllm")["ledger"]
    tokens = whole["prompt_tokens"]
    # The second sample of an item adds what is beyond the prompt's whole blocks.
    assert whole["prefilled_tokens"] == fake.last.prompt_tokens - fake.last.hits
    assert tokens < whole["prefilled_tokens"] < tokens + 4 * fake_vllm.BLOCK
    with pytest.raises(Stop):
        draw(tmp_path / "cut", after=2, engine="dcsft_vllm")
    rest = draw(tmp_path / "cut", engine="dcsft_vllm")
    assert rest["resumed"] == 4 and rest["ledger"]["prefilled_tokens"] == whole["prefilled_tokens"]
    model = lmms.open_model("dcsft_vllm", f"pretrained={digits()}")
    tasks = lmms.open_tasks([POOL])
    config = sampling.SamplingConfig(samples=2, limit=4, max_new_tokens=4)
    notes = evaluation.evaluate(model, tasks, tmp_path / "k", "row", {"model": "dcsft_vllm"}, config)
    assert notes["ledger"]["prefilled_tokens"] == whole["prefilled_tokens"]
    tasks = lmms.open_tasks([POOL])  # its own eight repeats are one greedy response
    notes = evaluation.evaluate(model, tasks, tmp_path / "scores", "row", {"model": "dcsft_vllm"}, limit=4)
    assert notes["ledger"]["prefilled_tokens"] == notes["ledger"]["prompt_tokens"] == tokens
    found = manifest.read(tmp_path / "whole", "rollouts")
    assert "prefilled_tokens" not in cost_of(found).as_dict()  # no figure of its own to compare runs by


def test_what_a_model_does_not_say_is_told(tmp_path):
    task = lmms.open_tasks([POOL])[POOL]
    config = sampling.SamplingConfig(samples=2, limit=2)
    notes = sampling.sample(DcsftStub(default="one"), task, tmp_path / "drawn", config, {})
    assert notes["ledger"]["flops"] == 0 and notes["ledger"]["prefilled_tokens"] is None
    assert notes["ledger_unknown"] == {"flops": "the model does not report what a token costs"}
    assert notes["ledger"]["completion_tokens"] == notes["generated_tokens"] > 0
    greedy = lmms.open_tasks([POOL])
    notes = evaluation.evaluate(DcsftStub(default="one"), greedy, tmp_path / "scores", "stub", {}, limit=3)
    assert (notes["ledger"]["prompts"], notes["ledger"]["generated"]) == (3, 3)
    assert notes["ledger"]["completion_tokens"] == 3 * len(("one", "end token"))
    assert list(notes["ledger_unknown"]) == ["flops"] and notes["ledger"]["prefilled_tokens"] is None

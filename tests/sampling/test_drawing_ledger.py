"""The cost of sampling: FLOPs against a count of the weights by hand, ledgers across interruptions."""

import pytest
from lmms_eval.api.model import lmms as LMMS  # noqa: N812 - the suite's own `lmms` is beside it

from dcsft_harness import evaluation, lmms, sampling
from dcsft_harness.artifacts import manifest
from dcsft_harness.evaluation.cost import cost_of
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.stub import DcsftStub
from tests.fixtures import fake_vllm
from tests.fixtures.tiny_checkpoints import FAMILIES, checkpoint, documents, requests_for

POOL = "dcsft_digits_pool"
SAMPLED = {"max_new_tokens": 8, "temperature": 1.0}
PATCH = {"qwen2_5_vl": 14, "qwen3_vl": 16}


def weights(model):
    """Weights that multiply a token, a response token and a patch, by module name."""
    found = {"language": 0, "head": model._model.get_output_embeddings().weight.numel(), "vision": 0}
    for name, weight in model._model.named_parameters():
        if weight.dim() > 1 and not any(one in name for one in ("embed_tokens", "pos_embed", "lm_head")):
            merged = 4 if "merger" in name else 1  # patches
            found["vision" if "visual" in name else "language"] += weight.numel() / merged
    return found


@pytest.mark.parametrize("family", sorted(PATCH.keys() & set(FAMILIES)))
@pytest.mark.parametrize("reads", ["once an item", "once a response", "once a token"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_flops_are_two_per_weight_and_token_read(family, reads, temperature):
    model, seen = DcsftHF(pretrained=checkpoint(family), device="cpu", batch_size=2), []
    if reads == "once a response":
        model._engine.give_up("tried in a test")
    model.on_batch = seen.extend
    docs, count = documents()[:3], weights(model)
    given = SAMPLED | {"temperature": temperature, "use_cache": reads != "once a token"}
    model.generate_until(requests_for(model, docs, given, 4))
    assert len(seen) == 12 and [one.copied for one in seen] == 3 * [False, *(3 * [temperature == 0])]
    computed = [one for one in seen if not one.copied]
    expected = 0.0
    for one in computed:
        patches = model.processor.image_processor(images=[docs[one.doc_id]["image"]])["pixel_values"].shape[0]
        own = one.n_tokens
        rows = sum(other.doc_id == one.doc_id for other in computed)
        looks = 1 / rows if reads == "once an item" else 1
        prompts, own_read = (own, (own - 1) / 2 * own) if reads == "once a token" else (looks, own)
        expected += 2 * count["language"] * (prompts * one.n_prompt_tokens + own_read)
        expected += 2 * count["vision"] * looks * patches + 2 * count["head"] * own
    assert sum(one.flops for one in computed) == pytest.approx(expected, rel=1e-9)


class Stop(Exception):
    pass


def draw(output, after=None, engine="dcsft_hf"):
    """Samples four items of the pool on the embedded checkpoint; stops after this many."""

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


def test_a_rollouts_ledger_survives_an_interruption(tmp_path):
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


def test_tokens_prefilled_by_vllm_are_in_every_ledger_across_an_interruption(tmp_path, monkeypatch):
    fake = fake_vllm.install(monkeypatch)
    whole = draw(tmp_path / "whole", engine="dcsft_vllm")["ledger"]
    tokens = whole["prompt_tokens"]
    # The second sample of an item adds what is beyond the prompt's complete blocks.
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
    assert "prefilled_tokens" not in cost_of(found).as_dict()  # not itself a figure to compare runs by


class Foreign(LMMS):
    """A model of others: it reports nothing, and answers each request."""

    is_simple = False

    def generate_until(self, requests):
        return ["one"] * len(requests)

    def loglikelihood(self, requests):
        raise NotImplementedError

    generate_until_multi_round = loglikelihood


@pytest.mark.parametrize(
    ("temperature", "foreign", "generated"), [(0.0, False, 3), (0.7, False, 12), (0.0, True, 12)]
)
def test_a_tasks_own_repeats_cost_what_was_generated(tmp_path, temperature, foreign, generated):
    tasks = lmms.open_tasks([POOL])
    lmms.set_generation(tasks[POOL], 4, {"temperature": temperature, "do_sample": temperature > 0})
    model = Foreign() if foreign else DcsftStub(default="one")
    ledger = evaluation.evaluate(model, tasks, tmp_path / "scores", "row", {}, limit=3)["ledger"]
    assert (ledger["prompts"], ledger["generated"]) == (3, generated)
    assert ledger["completion_tokens"] == (0 if foreign else 2 * generated)


def test_a_greedy_response_costs_the_same_for_any_number_of_samples(tmp_path):
    found = []
    for samples in (1, 4):
        tasks = lmms.open_tasks([POOL])
        lmms.set_generation(tasks[POOL], samples, {"temperature": 0.0, "do_sample": False})
        tasks[POOL].set_config("generation_kwargs", {"temperature": 0.0, "max_new_tokens": 4})
        model = lmms.open_model("dcsft_hf", f"pretrained={digits()},batch_size=2,device=cpu")
        notes = evaluation.evaluate(model, tasks, tmp_path / str(samples), "row", {}, limit=4)
        found.append({name: notes["ledger"][name] for name in ("prompts", "generated", "flops")})
        found[-1]["tokens"] = notes["ledger"]["prompt_tokens"], notes["ledger"]["completion_tokens"]
    assert found[0] == found[1] and found[0]["generated"] == 4


@pytest.mark.parametrize(("refused_from", "prompts", "generated"), [(0, 2, 8), (2, 3, 10)])
def test_an_item_costs_what_was_generated_until_the_model_refused_it(
    tmp_path, refused_from, prompts, generated
):
    def answers(question):  # the stub refuses a question without an answer
        return None if question.doc_id == 1 and question.sample_index >= refused_from else "one"

    task = lmms.open_tasks([POOL])[POOL]
    config = sampling.SamplingConfig(samples=4, limit=3, stop_when_labelled=True, on_error="skip")
    notes = sampling.sample(DcsftStub(answers), task, tmp_path / "drawn", config, {})
    ledger = notes["ledger"]
    assert (ledger["prompts"], ledger["generated"]) == (prompts, generated) and notes["skipped"] == 1
    assert ledger["completion_tokens"] == notes["generated_tokens"] == 2 * generated


def test_unknown_costs_of_a_model_are_listed(tmp_path):
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

"""Sampled responses of `dcsft_hf`: their distribution, and that only the content determines them."""

import numpy as np
import pytest
import torch
from scipy import stats

from tests.fixtures.tiny_checkpoints import documents, requests_for
from tests.models.test_models_hf import GREEDY, load, texts

SAMPLED = {"max_new_tokens": 8, "temperature": 1.0, "do_sample": True}


def responses(model, docs, given=SAMPLED, repeats=3, shuffle=None):
    """(doc_id, sample index) -> response, as the observer sees them."""
    rows = requests_for(model, docs, given, repeats)
    if shuffle is not None:
        rows = [rows[at] for at in np.random.default_rng(shuffle).permutation(len(rows))]
    seen = []
    model.on_batch = seen.extend
    results = model.generate_until(rows)
    model.on_batch = None
    assert sorted(result.text for result in results) == sorted(generation.response for generation in seen)
    return {(generation.doc_id, generation.sample_index): generation.response for generation in seen}


def test_batch_size_order_and_the_global_generator_change_no_draw():
    docs = documents()
    alone = responses(load(), docs)
    assert len(set(alone.values())) > 0.9 * len(alone)
    state = torch.random.get_rng_state()
    torch.manual_seed(99)
    assert responses(load(batch_size=8), docs) == alone
    assert responses(load(batch_size=4), docs, shuffle=1) == alone
    after = torch.random.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(after, torch.random.get_rng_state())
    torch.random.set_rng_state(state)


def test_a_renumbered_subset_of_documents_draws_the_same():
    docs = documents()
    whole, part = responses(load(batch_size=8), docs), responses(load(batch_size=2), docs[4:7])
    assert part == {(doc_id - 4, index): text for (doc_id, index), text in whole.items() if 4 <= doc_id < 7}


def test_more_samples_extend_fewer():
    docs = documents()[:2]
    few, many = responses(load(), docs, repeats=2), responses(load(), docs, repeats=5)
    assert {key: many[key] for key in few} == few


def test_the_seed_and_the_content_id_choose_the_draw():
    docs = documents()[:3]
    base = responses(load(), docs)
    assert responses(load(seed=1), docs) != base
    assert responses(load(), docs, SAMPLED | {"seed": 1}) == responses(load(seed="1"), docs)
    named = load()
    named.item_ids = {("tiny", n): f"id {n}" for n in range(3)}
    assert responses(named, docs) != base


def test_greedy_samples_of_an_item_are_copies_of_one_row():
    docs = documents()[:2]
    model = load()
    assert texts(model, docs, GREEDY, repeats=3) == [
        text for text in texts(model, docs, GREEDY) for _ in range(3)
    ]


@pytest.mark.parametrize("given", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 1e-4}])
def test_sampling_from_one_token_is_greedy(given):
    docs = documents()[:4]
    model = load(batch_size=4)
    assert texts(model, docs, SAMPLED | given) == texts(model, docs, GREEDY | {"max_new_tokens": 8})


def test_the_penalty_is_applied_before_the_draw():
    docs = documents()[:6]
    model = load(batch_size=8)
    given = {"max_new_tokens": 12, "repetition_penalty": 1.4}
    assert texts(model, docs, given | {"temperature": 2.0, "top_k": 1}) == texts(model, docs, given)


def first_token_logits(model, doc):
    """The model's own logits for the first token of a response to `doc`."""
    text = model.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": doc["text"]}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    with torch.no_grad():
        inputs = model.processor(text=[text], images=[doc["image"]], return_tensors="pt")
        return model._model(**inputs).logits[0, -1].double().numpy()


def kept_probabilities(logits, temperature, top_k=0, top_p=1.0, min_p=0.0):
    """The distribution that the arguments define, written from their definitions."""
    scaled = np.exp((logits - logits.max()) / temperature)
    keep = np.ones(len(scaled), bool)
    if top_k:
        keep &= scaled >= np.sort(scaled)[-top_k]
    probabilities = np.where(keep, scaled, 0.0) / scaled[keep].sum()
    if top_p < 1.0:
        order = np.argsort(-probabilities)
        before = np.cumsum(probabilities[order]) - probabilities[order]
        keep[order[before >= top_p]] = False
        probabilities = np.where(keep, probabilities, 0.0) / probabilities[keep].sum()
    keep &= probabilities >= min_p * probabilities.max()
    return np.where(keep, probabilities, 0.0) / probabilities[keep].sum()


def agreement(drawn, probabilities):
    """The p-value of token counts; tokens expected fewer than five times are one cell."""
    expected = probabilities * drawn.sum()
    common = expected >= 5
    assert common.sum() >= 3
    observed, wanted = (np.append(counts[common], counts[~common].sum()) for counts in (drawn, expected))
    used = wanted > 0
    return stats.chisquare(observed[used], wanted[used]).pvalue


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 2.0},
        {"temperature": 5.0, "top_k": 12},
        {"temperature": 4.0, "top_p": 0.6},
        {"temperature": 5.0, "min_p": 0.1},
        {"temperature": 5.0, "top_k": 40, "top_p": 0.8, "min_p": 0.05},
    ],
)
def test_first_tokens_follow_the_models_probabilities(given):
    doc = documents()[2] | {"text": "How many?"}
    model = load()
    size = 500
    drawn = np.zeros(len(model.tokenizer), int)
    # Byte-level tokens do not survive decoding, so the ids are recorded when they are drawn.
    taken = []
    decode = model.tokenizer.decode
    model.processor.tokenizer.decode = lambda ids, **kwargs: taken.append(ids) or decode(ids, **kwargs)
    seen = []
    model.on_batch = seen.extend
    texts(model, [doc], given | {"max_new_tokens": 1}, repeats=size)
    for ids, generation in zip(taken, seen, strict=True):
        if ids:
            drawn[ids[0]] += 1
        else:
            assert generation.finish_reason == "stop"
    probabilities = kept_probabilities(first_token_logits(model, doc), **given)
    assert drawn[probabilities == 0].sum() == 0
    ends = [index for index in (0, 2) if probabilities[index] > 0]
    probabilities[ends] = 0.0
    assert agreement(drawn, probabilities / probabilities.sum()) > 0.01

"""One prefill for all samples: the same responses as row by row through `generate`, for less work."""

import functools
import json
import logging
from dataclasses import replace

import pytest
import torch

from dcsft_harness.errors import HarnessError
from dcsft_harness.models import engine, shared_prefix
from dcsft_harness.models.batching import Prepared
from dcsft_harness.models.engine import RunningItems
from dcsft_harness.models.resources import Footprint, Size, free_bytes, out_of_memory
from dcsft_harness.models.shared_prefix import Prompts, UnsuitedModelError
from tests.fixtures.tiny_checkpoints import FAMILIES, documents, requests_for
from tests.models.test_models_hf import GREEDY, load

SAMPLED = {"max_new_tokens": 12, "temperature": 1.0}


def generations(model, docs, given=SAMPLED, repeats=3):
    """All generations that observers see, by document and sample index."""
    seen = []
    model.on_batch = seen.extend
    model.generate_until(requests_for(model, docs, given, repeats))
    model.on_batch = None
    return sorted(seen, key=lambda one: (one.doc_id, one.sample_index))


def row_by_row(family, docs, given=SAMPLED, repeats=3):
    """The same through `generate`, each row with its own prefill; of the first of `documents`."""
    assert docs == documents()[: len(docs)]
    return _row_by_row(family, len(docs), json.dumps(given), repeats)


@functools.cache
def _row_by_row(family, count, given, repeats):
    model = load(family, batch_size=1)
    model._engine.shares_prompts = False
    return generations(model, documents()[:count], json.loads(given), repeats)


def forward_rows(model, monkeypatch):
    """Records rows and columns of every forward pass, and whether it had pixel values."""
    shapes = []
    forward = type(model._model).forward

    def watched(self, *args, **kwargs):
        shapes.append((*kwargs["input_ids"].shape, kwargs.get("pixel_values") is not None))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model._model), "forward", watched)
    return shapes


@pytest.mark.few(1)
@pytest.mark.grid
@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_samples_equal_those_of_rows_prefilled_one_by_one(family, size):
    docs = documents()
    model = load(family, batch_size=size)
    found = generations(model, docs)
    assert model._engine.shares_prompts
    assert found == row_by_row(family, docs)
    assert len({one.response for one in found}) > 0.9 * len(found)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 1.5, "top_k": 9, "top_p": 0.8, "min_p": 0.02},
        {"temperature": 0.7, "repetition_penalty": 1.4},
        {"temperature": 1.0, "min_new_tokens": 6, "skip_special_tokens": False},
        {"temperature": 1.0, "until": ["a", "7", "<|im_start|>"]},
        {"temperature": 1.0, "max_new_tokens": 1},
        {"temperature": 0.9, "top_k": 50, "max_new_tokens": 70},
    ],
)
def test_every_generation_argument_has_the_same_effect(given):
    docs = documents()[:6]
    model = load(batch_size=8)
    assert generations(model, docs, SAMPLED | given) == row_by_row("qwen2_5_vl", docs, SAMPLED | given)
    assert model._engine.shares_prompts


def test_items_with_different_numbers_of_samples_share_a_batch():
    docs = documents()[:4]
    model = load(batch_size=4)
    rows = requests_for(model, docs, SAMPLED, 3)
    seen = []
    model.on_batch = seen.extend
    # Two of the first item, one of the second, three of the others.
    model.generate_until(rows[:2] + rows[3:4] + rows[6:])
    wanted = [
        one
        for one in row_by_row("qwen2_5_vl", docs)
        if (one.doc_id, one.sample_index) not in {(0, 2), (1, 1), (1, 2)}
    ]
    assert sorted(seen, key=lambda one: (one.doc_id, one.sample_index)) == wanted


@pytest.mark.few(1)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_prefilled_in_slices_decode_together(family, monkeypatch):
    docs = documents()
    model = load(family, batch_size=10)
    wanted = generations(model, docs)
    model._engine._footprint = replace(model._engine._footprint, slice_tokens=200)
    shapes = forward_rows(model, monkeypatch)
    assert generations(model, docs) == wanted
    slices = [shape for shape in shapes if shape[2]]
    assert len(slices) > 2
    assert all(rows * columns <= 200 or rows == 1 for rows, columns, _ in slices)
    assert shapes[len(slices)][:2] == (30, 1)


def test_a_batch_of_short_prompts_leaves_no_rest_for_a_pass_of_its_own():
    engine = load("qwen2_5_vl")._engine
    for tokens in (38, 44, 51):  # of the embedded suite's classification, grounding and reasoning
        prompts = [Prepared(f"doc {at}", "", {"input_ids": torch.zeros(1, tokens)}) for at in range(32)]
        assert [len(some) for some in engine._slices(prompts)] == [32]
    longer = [Prepared("doc", "", {"input_ids": torch.zeros(1, 1000)})] * 3
    assert [len(some) for some in engine._slices(longer)] == [1, 1, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_images_and_prompts_are_processed_once_per_item(family, monkeypatch):
    model = load(family, batch_size=4)
    docs = documents()[:4]
    generations(model, docs, SAMPLED | {"min_new_tokens": 12})
    shapes = forward_rows(model, monkeypatch)
    generations(model, docs, SAMPLED | {"min_new_tokens": 12})
    assert sum(rows for rows, _, images in shapes if images) == 4
    assert [shape for shape in shapes if not shape[2]] == [(12, 1, False)] * 11


def test_finished_rows_are_dropped(monkeypatch):
    model = load(batch_size=8)
    given = SAMPLED | {"until": list("aeiou ")}
    seen = generations(model, documents()[:8], given)
    shapes = forward_rows(model, monkeypatch)
    assert generations(model, documents()[:8], given) == seen
    lengths = [one.n_tokens for one in seen]
    steps = [rows for rows, columns, _ in shapes if columns == 1]
    going_on = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert len(steps) == len(going_on)
    # Up to an eighth of a batch may be idle.
    for rows, needed in zip(steps, going_on, strict=True):
        assert needed <= rows <= needed * 8 / 7 + 1
    assert steps[-1] < steps[0] / 2


def test_prompts_of_finished_items_are_freed(monkeypatch):
    model = load(batch_size=8)
    kept = []
    select = Prompts.select
    monkeypatch.setattr(Prompts, "select", lambda self, items: kept.append(len(items)) or select(self, items))
    generations(model, documents()[:8], SAMPLED | {"until": list("aeiou ")}, repeats=2)
    assert kept
    assert all(count < 8 for count in kept)


def test_the_models_own_attention_is_restored(monkeypatch):
    model = load()
    generations(model, documents()[:1])
    assert model._model.config.text_config._attn_implementation == "sdpa"
    monkeypatch.setattr(shared_prefix.Decoder, "step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generations(model, documents()[:1])
    assert model._model.config.text_config._attn_implementation == "sdpa"


@pytest.mark.few(1)
@pytest.mark.parametrize("reason", ["cache", "logits", "error", "attention"])
@pytest.mark.parametrize("copied", [True, False])
def test_a_model_that_cannot_share_prompts_falls_back_with_one_warning(reason, copied, monkeypatch, caplog):
    model = load(batch_size=2)
    if not copied:
        monkeypatch.setattr(engine, "fork_objection", lambda *_: "differ")
    if reason == "cache":
        wrong = UnsuitedModelError("it caches by tape")
        monkeypatch.setattr(engine.Decoder, "admit", lambda *_: (_ for _ in ()).throw(wrong))
    if reason == "logits":
        monkeypatch.setattr(engine.Decoder, "step", lambda self, tokens: torch.randn(2, 360))
    if reason == "error":
        monkeypatch.setattr(engine, "prefill", lambda *_: {}["missing"])
    if reason == "attention":
        monkeypatch.setattr(type(model._model), "_can_set_attn_implementation", lambda _: False)
    docs = documents()[:4]
    with caplog.at_level(logging.INFO):
        found = generations(model, docs)
    assert (model._engine.shares_prompts, model._engine.forks) == (False, copied)
    assert found == row_by_row("qwen2_5_vl", docs)
    words, level = ("copied, not shared", "INFO") if copied else ("by itself", "WARNING")
    said = [record.message for record in caplog.records if words in record.message]
    assert len(said) == 1 and level in {record.levelname for record in caplog.records}
    assert {"cache": "tape", "logits": "deviations", "error": "KeyError", "attention": "exchanged"}[
        reason
    ] in said[0]


@pytest.mark.parametrize("given", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
def test_generation_without_a_cache_runs_row_by_row(caplog, given):
    model = load(batch_size=2)
    docs = documents()[:2]
    assert generations(model, docs, given | {"use_cache": False}) == row_by_row("qwen2_5_vl", docs, given)
    assert "by itself" not in caplog.text


def out_of_memory_above(monkeypatch, limit):
    """Makes more than `limit` active items fail as CUDA does; records how many were tried."""
    tried = []
    admit = RunningItems.admit

    def limited(self, arrivals, parts):
        count = len({row.ticket for row in self._rows}) + len(arrivals)
        tried.append(count)
        if count > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        return admit(self, arrivals, parts)

    monkeypatch.setattr(RunningItems, "admit", limited)
    return tried


def test_a_batch_that_does_not_fit_is_split_and_later_ones_are_smaller(monkeypatch, caplog):
    docs = documents()
    wanted = row_by_row("qwen2_5_vl", docs)
    model = load(batch_size=5)
    tried = out_of_memory_above(monkeypatch, 2)
    assert generations(model, docs) == wanted
    assert max(tried) == 5
    # Half of five still does not fit, half of three does.
    assert [count for count in tried if count > 2] in ([5, 3], [3, 5, 3], [4, 5, 3])
    assert "Out of memory with 5 items" in caplog.text


def test_an_item_that_does_not_fit_by_itself_is_one_clear_error(monkeypatch):
    model = load(batch_size=4)
    out_of_memory_above(monkeypatch, 0)
    with pytest.raises(HarnessError, match=r"doc_id \d: a prompt of \d+ tokens with 3 responses") as caught:
        generations(model, documents()[:4])
    assert "max_pixels" in caught.value.remedy


def test_other_errors_are_not_mistaken_for_a_lack_of_memory(monkeypatch):
    model = load(batch_size=4)
    generations(model, documents()[:1])
    monkeypatch.setattr(RunningItems, "admit", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        generations(model, documents()[:4])
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert out_of_memory(MemoryError())


@pytest.mark.slow
def test_a_small_memory_budget_makes_small_batches_and_the_same_responses(monkeypatch):
    docs = documents()
    wanted = row_by_row("qwen2_5_vl", docs)
    model = load(batch_size="auto", memory_gb="1e-9")
    tried = out_of_memory_above(monkeypatch, 99)
    assert generations(model, docs) == wanted
    assert tried == [1] * 10
    tried.clear()
    assert generations(load(batch_size="auto"), docs, GREEDY, 1) == generations(load(), docs, GREEDY, 1)
    assert max(tried) == 10


def test_the_memory_estimate_grows_with_prompts_rows_and_answers():
    footprint = Footprint(cached=1.0, activation=1.0, image_value=0.0, score=0.0, choice=0.0, slice_tokens=99)
    sizes = [Size(tokens, 0, 2) for tokens in (10, 50)]
    # Prompts of n padded tokens take n, and the same again in one slice; two rows of five tokens take 20.
    assert footprint.bytes(sizes[:1], 5, shared=True) == 2 * 10 + 20
    assert footprint.bytes(sizes, 5, shared=True) == 100 + 99 + 40
    assert footprint.bytes(sizes[:1], 5, shared=False) == 2 * 20 + 20


def test_the_memory_estimate_covers_every_family():
    for family in FAMILIES:
        model = load(family)._model
        footprint = Footprint.of(model.config, model.dtype.itemsize, "cpu")
        # Two layers of two heads of 16, keys and values, float32.
        assert footprint.cached == 2 * 2 * 2 * 16 * 4
        assert footprint.image_value > 4
    assert free_bytes(torch.device("cpu")) > 1e8


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_shares_prompts_too(family):
    model = load(family, batch_size=4, dtype="bfloat16")
    generations(model, documents()[:4])
    assert model._engine.shares_prompts

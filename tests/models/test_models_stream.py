"""Active items: refilled as rows end, further rounds after the first prefill, nothing lost."""

import types
from collections import deque

import pytest
import torch

from dcsft_harness.models.arguments import GenerationArguments
from dcsft_harness.models.batching import Prepared
from dcsft_harness.models.decoding import Completion, NotFiniteError
from dcsft_harness.models.engine import RunningItems
from dcsft_harness.models.requests import Item
from dcsft_harness.models.resources import Size
from dcsft_harness.models.scheduler import Scheduler
from dcsft_harness.models.shared_prefix import UnsuitedModelError
from tests.fixtures.tiny_checkpoints import FAMILIES, documents
from tests.models.test_models_hf import load
from tests.models.test_models_shared_prompt import SAMPLED, forward_rows, generations, row_by_row

RAGGED = SAMPLED | {"until": list("aeiou "), "max_new_tokens": 40}


def mixed(item, found):
    """Whether an item is settled: two of its responses differ in the parity of their first letter."""
    return len({len(one.response) % 2 for one in found}) == 2


def in_flight(monkeypatch):
    """Records the number of active rows after each admission."""
    seen = []
    admit = RunningItems.admit

    def watched(self, arrivals, parts):
        admit(self, arrivals, parts)
        seen.append(self.rows)

    monkeypatch.setattr(RunningItems, "admit", watched)
    return seen


@pytest.mark.few(1)
@pytest.mark.parametrize("family", FAMILIES)
def test_finished_rows_make_room_for_other_items_and_change_no_draw(family, monkeypatch):
    docs = documents()
    model = load(family, batch_size=3)
    rows = in_flight(monkeypatch)
    found = generations(model, docs, RAGGED, 4)
    assert found == row_by_row(family, docs, RAGGED, 4)
    assert max(rows) <= 12
    # Items were admitted while others were still active.
    assert any(count > 4 and count % 4 for count in rows)


def test_finished_responses_are_reported_before_new_items_are_admitted(monkeypatch):
    model, events = load(batch_size=2), []
    admit = RunningItems.admit
    monkeypatch.setattr(
        RunningItems,
        "admit",
        lambda self, arrivals, parts: events.append(("in", len(arrivals))) or admit(self, arrivals, parts),
    )
    run = RunningItems.run

    def ran(self):
        found = run(self)
        if found:
            events.append(("out", len(found)))
        return found

    monkeypatch.setattr(RunningItems, "run", ran)
    model.on_batch = lambda batch: events.append(("kept", len(batch) // 3))
    from tests.fixtures.tiny_checkpoints import requests_for

    model.generate_until(requests_for(model, documents(), RAGGED, 3))
    assert [count for name, count in events if name == "out"] == [
        count for name, count in events if name == "kept"
    ]
    for before, after in zip(events, events[1:], strict=False):
        assert before[0] != "out" or after[0] == "kept"
    assert sum(count for name, count in events if name == "kept") == 10


@pytest.mark.few(1)
@pytest.mark.parametrize("given", [SAMPLED, RAGGED])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_further_rounds_reuse_the_first_prefill(size, given, monkeypatch):
    docs = documents()
    everything = {(one.doc_id, one.sample_index): one for one in row_by_row("qwen2_5_vl", docs, given, 8)}
    model = load(batch_size=size)
    generations(model, docs[:1], given, 1)
    model.settled = mixed
    shapes = forward_rows(model, monkeypatch)
    found = generations(model, docs, given, 8)
    assert sum(rows for rows, _, images in shapes if images) == len(docs)
    assert 2 * len(docs) < len(found) < 8 * len(docs)
    for one in found:
        assert one == everything[one.doc_id, one.sample_index]
    for doc_id in range(len(docs)):
        mine = [one for one in found if one.doc_id == doc_id]
        assert [one.sample_index for one in mine] == list(range(len(mine)))
        assert mixed(None, mine) or len(mine) == 8
        assert len(mine) == 2 or not mixed(None, mine[: len(mine) // 2])


def test_prompts_of_settled_items_are_released(monkeypatch):
    model = load(batch_size=2)
    model.settled = lambda item, found: True
    held = []
    run = RunningItems.run

    def watched(self):
        held.append(len(self.held))
        return run(self)

    monkeypatch.setattr(RunningItems, "run", watched)
    generations(model, documents(), RAGGED, 8)
    assert set(held) == {0}


def test_a_model_that_turns_out_unsuited_falls_back_to_row_by_row(monkeypatch, caplog):
    docs = documents()[:4]
    model = load(batch_size=2)
    generations(model, docs[:1])
    run, calls = RunningItems.run, []

    def unsuited(self):
        calls.append(1)
        if len(calls) == 2:
            raise UnsuitedModelError("it has a sliding window")
        return run(self)

    monkeypatch.setattr(RunningItems, "run", unsuited)
    assert generations(model, docs) == row_by_row("qwen2_5_vl", docs)
    assert "sliding window" in caplog.text


def test_running_out_of_memory_between_rounds_loses_nothing(monkeypatch, caplog):
    docs = documents()
    wanted = load(batch_size=4)
    wanted.settled = mixed
    expected = generations(wanted, docs, RAGGED, 8)
    model = load(batch_size=4)
    model.settled = mixed
    run, calls = RunningItems.run, []

    def exhausted(self):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(self)

    monkeypatch.setattr(RunningItems, "run", exhausted)
    assert generations(model, docs, RAGGED, 8) == expected
    assert "Out of memory" in caplog.text


@pytest.mark.parametrize(
    ("failure", "answered"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), {0, 1, 2, 3, 4, 5}),
        (UnsuitedModelError("it has a sliding window"), {0, 1, 2, 3, 4, 5}),
        (NotFiniteError([1]), {0, 1, 2, 3, 5}),  # the second one of its group
    ],
)
def test_an_error_in_a_later_group_of_rows_keeps_earlier_responses(failure, answered):
    """Items without images come first; they cannot share the batch of the others."""
    failures = [failure]

    def row_by_row(prepared, keys, arguments):
        if "pixel_values" in prepared[0].features and failures:
            raise failures.pop()
        return [
            [Completion(one.key, 1, "stop") for _ in row] for one, row in zip(prepared, keys, strict=True)
        ]

    engine = types.SimpleNamespace(
        shares_prompts=False,
        running=lambda *given: types.SimpleNamespace(held=set(), release=lambda tickets: None),
        allowed=lambda: 1,
        needed=lambda sizes, arguments: 0,
        try_out=lambda *given: None,
        size=lambda prepared, rows: Size(prepared.tokens, 0, rows),
        shrink=lambda *given: None,
        give_up=lambda said: None,
        row_by_row=row_by_row,
    )

    def prepare(asked):
        names = ["input_ids", *(["pixel_values"] if asked[1].doc_id > 2 else [])]
        features = {name: torch.ones(1, 3, dtype=torch.long) for name in names}
        return Prepared("an item", str(asked[1].doc_id), features)

    arguments = GenerationArguments(temperature=1.0, max_new_tokens=4)
    items = [
        Item("pool", "test", number, arguments, "", lambda doc: [], [number], [0]) for number in range(6)
    ]
    refused = []
    running = Scheduler(
        engine,
        deque((object(), one) for one in items),
        prepare,
        lambda *one: refused.append(one),
        0,
        64,
        False,
    )
    found = [(asked[1].doc_id, [one.text for one in some]) for done in running for asked, some in done]
    assert sorted(number for number, _ in found) == list(range(6))
    assert {number for number, texts in found if texts == [str(number)]} == answered
    assert len(refused) == 6 - len(answered)

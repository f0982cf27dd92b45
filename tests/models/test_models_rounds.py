"""Which samples are drawn next, and a model that knows which responses are kept, refused and settled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms.protocols import Generation
from dcsft_harness.models.requests import Drawing, goals, plan
from dcsft_harness.models.stub import DcsftStub
from tests.fixtures.tiny_checkpoints import documents, requests_for


def generation(index, response="x", doc_id=0):
    return Generation("tiny", doc_id, index, response, 1, 2, "stop", 0)


def mixed(item, generations):
    return len({one.response for one in generations}) == 2


def item(samples):
    return plan(requests_for(DcsftStub(default="x"), documents()[:1], {}, samples))[0]


def test_rounds_double():
    assert goals(8) == [2, 4, 8]
    assert [goals(samples) for samples in (1, 2, 3, 6)] == [[1], [2], [2, 3], [2, 4, 6]]


class TestNextSamples:
    def test_without_rounds_are_all_that_are_missing(self):
        left = Drawing(item(4), {1: generation(1)}).next(None)
        assert left.sample_indices == [0, 2, 3]
        assert Drawing(item(2), {0: generation(0), 1: generation(1)}).next(None) is None

    def test_of_a_round_are_those_missing_to_its_goal(self):
        drawing = Drawing(item(8))
        for wanted in ([0, 1], [2, 3], [4, 5, 6, 7]):
            left = drawing.next(mixed)
            assert left.sample_indices == wanted
            drawing.have |= {index: generation(index) for index in wanted}
        assert drawing.next(mixed) is None

    @given(st.lists(st.sampled_from("xy"), min_size=8, max_size=8), st.sets(st.integers(0, 7)))
    def test_a_run_that_lost_responses_ends_with_the_same_set(self, texts, lost):
        def finish(have):
            drawing = Drawing(item(8), have)
            while (left := drawing.next(mixed)) is not None:
                drawing.have |= {index: generation(index, texts[index]) for index in left.sample_indices}
            return drawing.have

        undisturbed = finish({})
        kept = {index: one for index, one in undisturbed.items() if index not in lost}
        assert finish(kept) == undisturbed


class Watched(DcsftStub):
    """Records its batches, as lists of (document, sample indices)."""

    def __init__(self, **given):
        super().__init__(**given)
        self.batches = []

    def _answer(self, items):
        self.batches.append([(one.doc_id, one.sample_indices) for one in items])
        return super()._answer(items)


def ask(model, repeats=4, docs=3):
    return [
        result.text for result in model.generate_until(requests_for(model, documents()[:docs], {}, repeats))
    ]


def place_of(question):
    return f"{question.doc_id} {question.sample_index}"


class TestKept:
    def test_responses_keep_their_places_and_are_neither_drawn_nor_reported(self):
        model, seen = Watched(answers=place_of), []
        model.kept = {("tiny", 0, index): generation(index, f"kept {index}") for index in range(4)}
        model.kept |= {("tiny", 1, 2): generation(2, "kept", 1)}
        model.on_batch = seen.extend
        assert ask(model) == [*(f"kept {index}" for index in range(4)), "1 0", "1 1", "kept", "1 3"] + [
            f"2 {index}" for index in range(4)
        ]
        assert model.batches == [[(1, [0, 1, 3])], [(2, [0, 1, 2, 3])]]
        assert len(seen) == 7

    def test_another_task_has_its_own_responses(self):
        model = Watched(answers=place_of)
        model.kept = {("other", 0, 0): generation(0, "kept")}
        assert ask(model, 1, 1) == ["0 0"]


class TestRefused:
    def answer(self, question):
        return None if question.doc_id == 1 else place_of(question)

    def test_an_item_is_an_error_unless_reasons_are_collected(self):
        with pytest.raises(HarnessError, match="doc_id 1"):
            ask(Watched(answers=self.answer, batch_size=3))

    def test_other_items_of_the_batch_are_answered(self, caplog):
        model = Watched(answers=self.answer, batch_size=3)
        model.refused = {}
        assert ask(model, 2) == ["0 0", "0 1", "", "", "2 0", "2 1"]
        assert list(model.refused) == [("tiny", 1)]
        assert "doc_id 1" in model.refused["tiny", 1] and "skipped: " in caplog.text

    def test_an_item_refused_before_is_not_asked_again(self):
        model = Watched(answers=place_of)
        model.refused = {("tiny", 0): "unreadable"}
        assert ask(model, 1) == ["", "1 0", "2 0"]
        assert [batch[0][0] for batch in model.batches] == [1, 2]


class TestSettled:
    @staticmethod
    def answer(question):
        # 0 is mixed at once, 1 never, 2 from its third sample on.
        return "y" if (question.doc_id, question.sample_index) in {(0, 1), (2, 2)} else "x"

    def test_items_stop_by_rounds_and_new_ones_fill_the_batch(self):
        model, done = Watched(answers=self.answer, batch_size=2), []
        model.settled, model.on_progress = mixed, lambda *at: done.append(at)
        assert ask(model, 8) == ["x", "y", *[""] * 6, *["x"] * 8, "x", "x", "y", "x", *[""] * 4]
        first, second = [0, 1], [2, 3]
        assert model.batches == [
            [(0, first), (1, first)],
            [(1, second), (2, first)],
            [(1, [4, 5, 6, 7]), (2, second)],
        ]
        assert done == [(1, 3), (1, 3), (3, 3)]

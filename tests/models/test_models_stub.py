"""The scripted model."""

import pytest

from dcsft_harness.errors import HarnessError
from dcsft_harness.models import arguments
from dcsft_harness.models.stub import DcsftStub
from tests.fixtures.tiny_checkpoints import documents, requests_for


def run(model, given=None, repeats=2, docs=2):
    seen = []
    model.on_batch = seen.extend
    model.generate_until(requests_for(model, documents()[:docs], given or {}, repeats))
    return seen


def test_a_function_answers_each_sample():
    model = DcsftStub(answers=lambda question: f"{question.task} {question.doc_id} {question.sample_index}")
    assert [generation.response for generation in run(model)] == [
        "tiny 0 0",
        "tiny 0 1",
        "tiny 1 0",
        "tiny 1 1",
    ]


def test_stop_texts_limits_and_counts_work_as_in_a_model():
    model = DcsftStub(answers=lambda question: "one two three END four", seed="3")
    cut = run(model, {"until": "END"})[0]
    assert (cut.response, cut.finish_reason, cut.n_tokens, cut.seed) == ("one two three ", "stop", 4, 3)
    limited = run(model, {"max_new_tokens": 2})[0]
    assert (limited.response, limited.finish_reason, limited.n_tokens) == ("one two", "length", 2)


def test_a_missing_answer_names_its_document():
    with pytest.raises(HarnessError, match="'tiny', doc_id 1"):
        run(DcsftStub(answers=lambda question: None if question.doc_id else "x"))


@pytest.mark.parametrize(
    ("given", "repeats", "warnings"),
    [({}, 2, 1), ({}, 1, 0), ({"do_sample": True, "temperature": 0}, 2, 1), ({"temperature": 0.9}, 2, 0)],
)
def test_copies_of_a_greedy_response_come_with_one_warning(caplog, given, repeats, warnings):
    arguments.warn_once.cache_clear()
    for _ in range(2):
        run(DcsftStub(default="x"), given, repeats)
    assert sum("copies of one" in record.getMessage() for record in caplog.records) == warnings


def test_requests_from_the_cache_of_lmms_eval_are_refused():
    model = DcsftStub(default="x")
    (request,) = requests_for(model, documents()[:1], {})
    text, _, *rest = request.arguments
    request.arguments = (text, None, *rest)  # as upstream's cache leaves it
    with pytest.raises(HarnessError, match="task 'tiny'.* Leave --cache_requests out"):
        model.generate_until([request])


def test_progress_and_batches_are_reported():
    model = DcsftStub(default="x", batch_size="2")
    progress = []
    model.on_progress = lambda done, total: progress.append((done, total))
    run(model, docs=3)
    assert progress == [(2, 3), (3, 3)]


@pytest.mark.parametrize("line", ["{", '{"responses": ["x"]}', '{"prompt": "p", "responses": "x"}', "[1]"])
def test_a_bad_line_is_named(line, tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text('{"prompt": "p", "responses": ["x"]}\n' + line)
    with pytest.raises(HarnessError, match="line 2"):
        DcsftStub(answers=file)


def test_a_response_that_looks_like_a_number_is_text():
    assert run(DcsftStub(default=5))[0].response == "5"  # as lmms-eval reads default=5


def test_bad_arguments_are_refused():
    with pytest.raises(HarnessError, match="answers"):
        DcsftStub(answer="x")
    with pytest.raises(HarnessError, match="the file does not exist"):
        DcsftStub(answers="/nowhere.jsonl")
    with pytest.raises(HarnessError, match="num_beams"):
        run(DcsftStub(default="x"), {"num_beams": 3})

"""A token limit replaces the task's own, under whichever name the task states it."""

import json
from contextvars import ContextVar
from functools import partial

import pytest

from dcsft_harness import evaluation, lmms, records, sampling
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.evaluation import responses
from dcsft_harness.models.arguments import DEFAULT_MAX_NEW_TOKENS, GenerationArguments, token_limit
from dcsft_harness.models.stub import DcsftStub
from dcsft_harness.sampling import SamplingConfig, own_data
from dcsft_harness.stages import STAGES
from dcsft_harness.tasks import verdicts
from dcsft_harness.training import grpo


@pytest.fixture
def task(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": "a"}\n')

    def make(**more):
        config = {
            "task": "mine",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": str(tmp_path / "rows.jsonl")},
            "test_split": "train",
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
        (tmp_path / "mine.yaml").write_text(json.dumps(config | more))
        return lmms.open_tasks([str(tmp_path / "mine.yaml")])["mine"]

    return make


@pytest.mark.parametrize("name", ["max_new_tokens", "max_gen_toks", "max_tokens"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda task: lmms.limit_tokens(task, 3),
        lambda task: lmms.set_generation(task, 2, SamplingConfig(max_new_tokens=3).generation()),
    ],
    ids=["limit_tokens", "set_generation"],
)
def test_a_limit_replaces_the_tasks_own(task, name, ask):
    made = task(generation_kwargs={name: 16, "until": ["END"]})
    ask(made)
    read = GenerationArguments.parse(made.config.generation_kwargs, "mine")
    assert (read.max_new_tokens, read.stop) == (3, ("END",))


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({"max_gen_toks": 16}, 16),
        ({"max_tokens": 16}, 16),
        ({"max_new_tokens": "16"}, 16),
        ({"max_new_tokens": None, "max_gen_toks": 16}, 16),
        ({"until": ["END"]}, None),
        (None, None),
    ],
)
def test_grpo_reads_the_same_limit_as_the_engines(task, given, limit):
    assert token_limit(given) == limit
    made = task(**({} if given is None else {"generation_kwargs": dict(given)}))
    read = GenerationArguments.parse(dict(given or {}), "mine").max_new_tokens
    assert grpo.Judge(made, {}).longest == read == (limit or DEFAULT_MAX_NEW_TOKENS)


def test_estimates_read_the_same_limit(task, tmp_path):
    task(generation_kwargs={"max_gen_toks": 700})
    named = {"model": "digits", "tasks": [str(tmp_path / "mine.yaml")]}
    own, other, less = (
        STAGES["evaluate"].plan("out", "cpu", **named, **more).parts
        for more in ({}, {"max_new_tokens": 700}, {"max_new_tokens": 7})
    )
    assert own == other != less


TAKE, STRIP = {"function": "take_first"}, {"function": "strip_thinking"}
CHOICE = {"function": "multi_choice_regex", "regex_pattern": "is (A|B)"}


@pytest.mark.parametrize(
    ("given", "response", "score"),
    [
        ({"filter_list": [{"name": "x", "filter": [STRIP, TAKE]}]}, "<think>b</think>a", 1.0),
        ({"filter_list": [{"name": "x", "filter": [{"function": "lowercase"}, TAKE]}]}, "A", 1.0),
        ({"filter_list": [{"name": "x", "filter": [
            {"function": "regex", "regex_pattern": "is (\\w)"}, {"function": "majority_vote"}, TAKE
        ]}]}, "it is a", 1.0),
        ({"filter_list": [{"name": "x", "filter": [CHOICE, TAKE]}], "doc_to_target": "(B)"}, ": B", 1.0),
        ({"filter_list": [{"name": "x", "filter": [TAKE]}]}, "it is a", 0.0),
        ({"auto_strip_thinking": True}, "<think>b</think>a", 1.0),
        ({"reasoning_tags": [["<t>", "</t>"]]}, "<t>b</t>a", 1.0),
        ({}, "<think>b</think>a", 0.0),
    ],
)  # fmt: skip
def test_a_tasks_filters_apply_to_labels_rewards_and_every_evaluation(task, tmp_path, given, response, score):
    """Labels are not those of the raw text, but curated sets keep it as the model wrote it."""
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": "a", "choices": ["a", "b"]}\n')
    model = DcsftStub(answers=lambda question: response)
    open_own = partial(task, generation_kwargs={"until": ["END"]}, **given)
    evaluation.evaluate(model, {"mine": open_own()}, tmp_path / "greedy", "m", {})
    config = SamplingConfig(samples=2)
    evaluation.evaluate(model, {"mine": open_own()}, tmp_path / "several", "m", {}, config)
    for folder in ("greedy", "several"):
        (row,) = records.read_table(tmp_path / folder / evaluation.SCORES, records.Score).to_pylist()
        assert row["score"] == score, folder
        noted = manifest.read(tmp_path / folder).notes["tasks"]["mine"]["reasoning"]
        tags = "<t>" if "reasoning_tags" in given else "<think>"
        removes = {"reasoning_tags", "auto_strip_thinking"} & given.keys()
        count = (1 if folder == "greedy" else 2) if removes or (not given and "<" in response) else 0
        assert noted == {"removed": tags if removes else "none", "responses": count}
    sampling.sample(model, open_own(), tmp_path / "pool", config, {})
    rows = records.read_table(tmp_path / "pool" / sampling.ROLLOUTS, records.Rollout).to_pylist()
    assert [(row["score"], row["response"]) for row in rows] == [(score, response)] * 2
    made = open_own()
    doc = made.eval_docs[0]
    shown = lmms.filtered(made, response, doc)
    assert lmms.score_of(made, made.process_results(doc, [shown]))[0] == score


LETTER = {"function": "regex", "regex_pattern": r"(?:is |\{)([A-D])"}


@pytest.mark.parametrize(
    ("filters", "response", "score"),
    [
        ([LETTER, TAKE], "it is B", 1.0),
        ([LETTER, TAKE], "first it is B but then", 0.0),
        ([{"function": "lowercase"}, {"function": "uppercase"}, TAKE], "first it is B but then", 0.0),
        ([LETTER, TAKE], r"so \boxed{B} as then this", 1.0),  # read from what was closed in time
        ([LETTER, {"function": "majority_vote"}, TAKE], "first it is B but then", 0.0),
    ],
)
def test_a_filter_keeps_that_a_response_ran_out_of_tokens(task, tmp_path, filters, response, score):
    """The first response that fits ends by itself; the others have the four words of the limit."""
    doc = {"answer": '"B"', "choices": ["one", "two", "three", "four"], "cluster": "0"}

    def opened():
        made = task(filter_list=[{"name": "x", "filter": filters}], generation_kwargs={"max_new_tokens": 4})
        made.config.process_results = lambda _, results: verdicts.process("choice", doc, results)
        return made

    model = DcsftStub(answers=lambda question: response)
    notes = evaluation.evaluate(model, {"mine": opened()}, tmp_path / "greedy", "m", {})
    assert notes["tasks"]["mine"]["accuracy"] == score
    sampling.sample(model, opened(), tmp_path / "pool", SamplingConfig(samples=2, max_new_tokens=4), {})
    rows = records.read_table(tmp_path / "pool" / sampling.ROLLOUTS, records.Rollout).to_pylist()
    assert [row["score"] for row in rows] == [score] * 2
    judge, cut = grpo.Judge(opened(), {"a": 0}), len(response.split()) > 3
    assert judge.reward("a", response, truncated=cut) == score


def test_a_task_with_two_filter_lists_is_refused_before_a_model_is_opened(task, tmp_path, monkeypatch):
    monkeypatch.setattr(lmms, "open_model", lambda *given: pytest.fail("a model is opened"))
    made = task(filter_list=[{"name": name, "filter": [TAKE]} for name in ("strict", "loose")])
    told = "task mine has 2 lists of filters in its filter_list: strict, loose"
    for refused in (
        lambda: lmms.refuse_unfit([made]),
        lambda: lmms.set_generation(made, 2, {}),
        lambda: lmms.run(DcsftStub(default="a"), {"mine": made}),
    ):
        with pytest.raises(HarnessError, match=told):
            refused()


MULTIPLE = {"output_type": "multiple_choice", "doc_to_choice": ["a", "b"], "metric_list": [{"metric": "acc"}]}


@pytest.mark.parametrize("kind", ["multiple_choice", "loglikelihood", "generate_until_multi_round"])
@pytest.mark.parametrize(
    "words",
    [
        "evaluate --model digits --tasks mine.yaml --output out",
        "evaluate --model digits --tasks mine.yaml --output out --dry-run",
        "evaluate --model digits --engine dcsft_stub --include-path . --tasks mine --output out",
        "sample --model digits --include-path . --task mine --output out",
        "score digits --suite mine --include-path . --board out",
        "lmms-eval --model dcsft_stub --include_path . --tasks mine --output_path out",
    ],
)
def test_a_task_that_generates_no_text_is_refused_before_weights_are_loaded(
    task, tmp_path, monkeypatch, capsys, kind, words
):
    task(**({**MULTIPLE, "output_type": kind} if "until" not in kind else {"output_type": kind}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lmms, "open_model", lambda *given: pytest.fail("a model is opened"))
    monkeypatch.setattr(lmms.tasks, "_INCLUDED", ContextVar("_INCLUDED", default=()))
    assert main(words.split()) == 1
    said = capsys.readouterr().err
    assert f"task mine has output_type {kind}: it " in said and "output_type generate_until" in said
    assert not (tmp_path / "out").exists()


def test_an_error_rate_is_refused_before_weights_are_loaded(task, tmp_path, monkeypatch, capsys):
    task(metric_list=[{"metric": "wer", "aggregation": "mean", "higher_is_better": False}],
         process_results="{{answer}}")  # fmt: skip
    monkeypatch.setattr(lmms, "open_model", lambda *given: pytest.fail("a model is opened"))
    words = ["evaluate", "--model", "digits", "--output", str(tmp_path / "out"), "--tasks"]
    for more in ([], ["--dry-run"]):
        assert main([*words, str(tmp_path / "mine.yaml"), *more]) == 1
        assert "task mine: lower values of its metric wer are better" in capsys.readouterr().err


def test_rewards_and_given_responses_refuse_it_too(task, tmp_path, monkeypatch):
    task(**MULTIPLE)
    monkeypatch.setattr(
        own_data, "open_task", lambda *given: lmms.open_tasks([str(tmp_path / "mine.yaml")])["mine"]
    )
    with pytest.raises(HarnessError, match="task mine has output_type multiple_choice: it compares"):
        grpo.open_data("mine", None, None)
    (tmp_path / "given.jsonl").write_text('{"item": 0, "response": "a"}\n')
    with pytest.raises(HarnessError, match="task mine has output_type multiple_choice: it compares"):
        responses.evaluate(tmp_path / "given.jsonl", tmp_path / "out", task=str(tmp_path / "mine.yaml"))
    task(output_type="generate_until_multi_round")
    with pytest.raises(HarnessError, match="it asks in several rounds, but dcsft_hf answers in one"):
        grpo.open_data("mine", None, None)

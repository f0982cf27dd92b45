"""A limit of tokens takes the place of a task's own, whatever the task calls it."""

import json

import pytest

from dcsft_harness import lmms
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.evaluation import responses
from dcsft_harness.models.arguments import DEFAULT_MAX_NEW_TOKENS, GenerationArguments, token_limit
from dcsft_harness.sampling import SamplingConfig, own_data
from dcsft_harness.stages import STAGES
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
def test_a_limit_takes_the_place_of_the_tasks_own(task, name, ask):
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
def test_grpo_reads_the_limit_that_engines_read(task, given, limit):
    assert token_limit(given) == limit
    made = task(**({} if given is None else {"generation_kwargs": dict(given)}))
    read = GenerationArguments.parse(dict(given or {}), "mine").max_new_tokens
    assert grpo.Judge(made, {}).longest == read == (limit or DEFAULT_MAX_NEW_TOKENS)


def test_so_do_estimates(task, tmp_path):
    task(generation_kwargs={"max_gen_toks": 700})
    named = {"model": "digits", "tasks": [str(tmp_path / "mine.yaml")]}
    own, other, less = (
        STAGES["evaluate"].plan("out", "cpu", **named, **more).parts
        for more in ({}, {"max_new_tokens": 700}, {"max_new_tokens": 7})
    )
    assert own == other != less


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
def test_a_task_that_asks_for_no_text_is_refused_before_weights_load(
    task, tmp_path, monkeypatch, capsys, kind, words
):
    task(**({**MULTIPLE, "output_type": kind} if "until" not in kind else {"output_type": kind}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lmms, "open_model", lambda *given: pytest.fail("a model is opened"))
    monkeypatch.setattr(lmms.tasks, "_INCLUDED", [])
    assert main(words.split()) == 1
    said = capsys.readouterr().err
    assert f"task mine has output_type {kind}: it " in said and "output_type generate_until" in said
    assert not (tmp_path / "out").exists()


def test_so_is_an_error_rate(task, tmp_path, monkeypatch, capsys):
    task(metric_list=[{"metric": "wer", "aggregation": "mean", "higher_is_better": False}],
         process_results="{{answer}}")  # fmt: skip
    monkeypatch.setattr(lmms, "open_model", lambda *given: pytest.fail("a model is opened"))
    words = ["evaluate", "--model", "digits", "--output", str(tmp_path / "out"), "--tasks"]
    for more in ([], ["--dry-run"]):
        assert main([*words, str(tmp_path / "mine.yaml"), *more]) == 1
        assert "task mine: lower values of its metric wer are better" in capsys.readouterr().err


def test_so_are_rewards_and_given_responses_to_it(task, tmp_path, monkeypatch):
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
    with pytest.raises(HarnessError, match="it asks in several rounds, and dcsft_hf answers in one"):
        grpo.open_data("mine", None, None)

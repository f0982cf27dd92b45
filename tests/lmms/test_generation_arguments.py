"""A limit of tokens takes the place of a task's own, whatever the task calls it."""

import json

import pytest

from dcsft_harness import lmms
from dcsft_harness.models.arguments import GenerationArguments


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
        lambda task: lmms.set_generation(task, 2, {"max_new_tokens": 3}),
    ],
    ids=["limit_tokens", "set_generation"],
)
def test_a_limit_takes_the_place_of_the_tasks_own(task, name, ask):
    made = task(generation_kwargs={name: 16, "until": ["END"]})
    ask(made)
    read = GenerationArguments.parse(made.config.generation_kwargs, "mine")
    assert (read.max_new_tokens, read.stop) == (3, ("END",))


def test_a_task_that_generates_nothing_leaves_the_refusal_to_lmms_eval(task):
    made = task(output_type="multiple_choice", doc_to_choice=["a", "b"], metric_list=[{"metric": "acc"}])
    assert made.config.generation_kwargs is None
    lmms.limit_tokens(made, 3)

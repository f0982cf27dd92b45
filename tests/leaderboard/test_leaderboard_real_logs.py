"""Logs written by lmms-eval itself, for our tasks and another, on one board with `dcsft evaluate`."""

import json

import pytest

from dcsft_harness.leaderboard import load, markdown
from dcsft_harness.leaderboard.logs import Choices
from tests.fixtures import forked

pytestmark = pytest.mark.slow
ANSWER = "default=seven"

TASK = """
task: others_text
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.nothing
doc_to_text: !function utils.prompt
doc_to_target: target
process_results: !function utils.judge
generation_kwargs:
  max_new_tokens: 4
  until: []
metric_list:
  - metric: exact
    aggregation: mean
    higher_is_better: true
  - metric: length
    aggregation: mean
    higher_is_better: true
metadata:
  version: 3
"""
UTILS = """
def nothing(doc):
    return []

def prompt(doc, lmms_eval_specific_kwargs=None):
    return doc["prompt"]

def judge(doc, results):
    return {"exact": float(results[0] == doc["target"]), "length": len(results[0]) / 100}
"""


def dcsft(*arguments, cwd):
    done = forked.run([*forked.DCSFT, *arguments], cwd=cwd, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def logged(cwd, output, tasks, *more):
    dcsft(
        "lmms-eval", "--model", "dcsft_stub", "--model_args", ANSWER, "--tasks", tasks, "--limit", 12,
        "--log_samples", "--output_path", output, *more, cwd=cwd,
    )  # fmt: skip
    return cwd / output


def test_logs_of_our_tasks_pair_with_scores_item_by_item(tmp_path):
    tasks = "dcsft_digits,dcsft_digits_a"
    log = logged(tmp_path, "log", tasks)
    options = ("--model", "dcsft_stub", "--model-args", ANSWER, "--tasks", tasks, "--limit", 12)
    dcsft("evaluate", *options, "--output", "scores", cwd=tmp_path)
    board = load([log, tmp_path / "scores"], "scores")
    found = {result.name: result for result in board.results}
    assert all(measured.renamed is not None for measured in found["log"].tasks.values())
    for task in ("dcsft_digits", "dcsft_digits_a"):
        ours, theirs = (board.row(name).cells[task].scores.tolist() for name in ("scores", "log"))
        assert ours == theirs and len(ours) == 12
    assert "quotes" not in markdown(board)


def test_a_log_of_another_task_makes_a_board(tmp_path):
    rows = [{"prompt": f"Say {word}.", "target": word} for word in ("six", "seven", "eight", "seven") * 4]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks" / "others.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    (tmp_path / "tasks" / "utils.py").write_text(UTILS)
    log = logged(tmp_path, "log", "others_text", "--include_path", str(tmp_path / "tasks"))
    board = load([log], choices=Choices({"others_text": "exact"}, {"others_text": "ood"}))
    (task,) = board.tasks
    assert (task.distribution, task.conditions["task version"], task.conditions["limit"]) == ("ood", 3, 12)
    assert board.rows[0].cells["others_text"].scores.mean() == 0.5

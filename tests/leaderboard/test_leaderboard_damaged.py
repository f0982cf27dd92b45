"""Result files with any value in the wrong place: the error names it, and the other rows stay."""

import copy
import json
import math

import pytest

from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import load, summarize
from tests.fixtures.lmms_eval_logs import line, log_folder
from tests.leaderboard.test_leaderboard import ID, OOD_R, scores_folder
from tests.leaderboard.test_leaderboard_logs import refusal, samples_file

STRANGE = (None, [], "x", -1.5, True, [1], {"a": 1}, math.nan, 10**400, "\ud800")

PROMPTED = {"system_prompt_sha256": "5a", "chat_template_kwargs": {"thinking": True}}


def places(value, way=()):
    """The paths to all values of a document; only to the first entry of a list."""
    if way:
        yield way
    inner = (
        value.items() if isinstance(value, dict) else enumerate(value[:1] if isinstance(value, list) else [])
    )
    for key, one in inner:
        yield from places(one, (*way, key))


def changed(value, way, strange):
    value = copy.deepcopy(value)
    *outer, last = way
    inner = value
    for key in outer:
        inner = inner[key]
    inner[last] = strange
    return value


def still_a_board(good, folder):
    try:
        board = load([good, folder], strict=False)
    except HarnessError as error:
        assert error.remedy
        return
    assert "good" in [row.name for row in board.rows]
    summarize(board, pairs=0)
    for result in board.results:
        assert list(result.tables())


@pytest.mark.few(3)
@pytest.mark.parametrize("strange", STRANGE, ids=lambda one: str(one)[:8].encode("ascii", "replace").decode())
def test_one_wrong_value_in_a_log_is_reported(tmp_path, strange):
    good = scores_folder(tmp_path / "good", "good", {OOD_R: [1, 0, 1]})
    counts = {"input_tokens": 1, "output_tokens": 1, "prompt_settings": PROMPTED}
    lines = [line(n, float(n % 2), resps=["<think>x</think>y"], token_counts=[counts]) for n in range(3)]
    folder = log_folder(tmp_path / "log", {ID: lines}, run={"system_instruction_sha": "a"})
    file, samples = next(folder.glob("*/*_results.json")), samples_file(folder)
    data = json.loads(file.read_text())
    data["config"]["resolved_cli_args"] = {"reasoning_tags": [["<think>", "</think>"]]}
    data["config"]["model_args"] = {"system_prompt": "Be brief.", "chat_template_kwargs": {"thinking": True}}
    for way in places(data):
        file.write_text(json.dumps(changed(data, way, strange)))
        still_a_board(good, folder)
    file.write_text(json.dumps(data))
    first, *rest = samples.read_text().splitlines()
    for way in places(json.loads(first)):
        said = json.dumps(changed(json.loads(first), way, strange))
        samples.write_text("\n".join([said, *rest]) + "\n")
        still_a_board(good, folder)


@pytest.mark.few(3)
@pytest.mark.parametrize("strange", STRANGE, ids=lambda one: str(one)[:8].encode("ascii", "replace").decode())
def test_one_wrong_value_in_a_manifest_is_reported(tmp_path, strange):
    good = scores_folder(tmp_path / "good", "good", {OOD_R: [1, 0, 1]})
    notes = {"prompt_settings": PROMPTED, "logged_prompt_sha256": "a"}
    notes["reasoning"] = {"removed": "<think>", "responses": 1}
    config = {"model": "other", "model_args": "system_prompt=s.txt,fps=2,chat_template_kwargs={}"}
    folder = scores_folder(tmp_path / "s", "s", {ID: [1, 0, None]}, notes={ID: notes}, config=config)
    file = folder / "manifest.json"
    data = json.loads(file.read_text())
    data["call"] = {"verb": "evaluate", "options": {}, "read": {"s.txt": "5a"}}
    for way in places(data):
        if way[0] != "packages":
            file.write_text(json.dumps(changed(data, way, strange)))
            still_a_board(good, file.parent)


def test_a_value_that_is_not_a_table_is_named(tmp_path):
    folder = log_folder(tmp_path / "o", {ID: [line(0, 1.0)]}, run={"configs": "none"})
    assert "_results.json: configs is 'none', not a table" in refusal([folder])

"""What a user's mistakes look like: one sentence, a non-zero exit code, nothing left behind."""

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dcsft_harness import stages
from dcsft_harness.cli import main


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        Image.new("RGB", (56, 56), (40 * number, 0, 0)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG not really")
    return folder


def row(image="0.png", **more):
    return json.dumps({"problem": "Which?", "solution": "goose", "image": image, **more})


def refused(capsys, output, *arguments):
    """Runs a command that must fail; returns its one sentence."""
    code = main([*map(str, arguments), "--output", str(output)])
    said = capsys.readouterr().err.strip().splitlines()
    assert code != 0
    assert len(said) == 1, said
    assert said[0].startswith("dcsft: ")
    assert not Path(output).exists() or not list(Path(output).iterdir())
    return said[0]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([row(), "{not json"], "line 2: not JSON"),
        ([row(), '["a"]'], "line 2: not a JSON object"),
        ([json.dumps({"problem": "x"})], "line 1: no `solution`"),
        ([row("missing.png")], "line 1: image .*missing.png does not exist"),
        ([row("broken.png")], "line 1: image .*broken.png cannot be read"),
        ([row(), row()], "same item"),
        ([], "holds no rows"),
        ([json.dumps({"messages": [{"role": "user", "content": "hi"}]})], "no assistant turn"),
    ],
)
def test_bad_rows_of_ones_own_data_are_named(tmp_path, pictures, capsys, lines, said):
    (pictures / "mine.jsonl").write_text("\n".join(lines))
    sentence = refused(
        capsys,
        tmp_path / "out",
        *("sample", "--model", "dcsft_stub", "--model-args", "default=goose"),
        *("--data", pictures / "mine.jsonl", "--scorer", "exact_word"),
    )
    assert re.search(said, sentence), sentence


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sample", "--task", "dcsft_digits_pol"), "Did you mean dcsft_digits_pool"),
        (("sample", "--task", "dcsft_digits_pool", "--model", "dcsft_hg"), "dcsft_hf"),
        (("sample", "--data", "x.jsonl", "--scorer", "exact_wrd"), "Did you mean exact_word"),
        (("sample", "--data", "x.jsonl"), "--data needs --scorer"),
        (("sample",), "--task and --data"),
        (("sample", "--task", "dcsft_digits_pool", "--temperature", "0"), "--temperature 0"),
        (("evaluate", "--tasks", "dcsft_digitz"), "Did you mean dcsft_digits"),
        (("evaluate", "--tasks", "dcsft_digits", "--model-args", "nonsense"), "not key=value"),
        (("label", "nowhere"), "not a rollouts folder"),
        (("curate", "nowhere", "--keep", "easy"), "not a labels folder"),
        (("run", "digitz"), "Did you mean digits"),
        (
            ("train", "sft", "--model", "digits", "--data", "dcsft_digits_col"),
            "Did you mean dcsft_digits_cold",
        ),
        (("train", "sft", "--model", "digits", "--data", "x", "--lora-rank", "0"), "lora_rank"),
        (("leaderboard", "build", "nowhere"), "nowhere"),
    ],
)
def test_names_and_values_that_make_no_sense_are_refused(tmp_path, capsys, arguments, said):
    assert said in refused(capsys, tmp_path / "out", *arguments)


def test_an_output_folder_that_holds_something_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("dear")
    code = main(["label", "rollouts", "--output", str(tmp_path)])
    assert (code, "not empty" in capsys.readouterr().err) == (1, True)
    assert (tmp_path / "thesis.txt").read_text() == "dear"


def test_ctrl_c_exits_with_130(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setitem(stages.STAGES, "label", interrupted)
    assert main(["label", "rollouts", "--output", str(tmp_path / "out")]) == 130
    assert "interrupted" in capsys.readouterr().err


def median_seconds(*arguments):
    times = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "dcsft_harness.cli", *arguments], check=True, capture_output=True
        )
        times.append(time.monotonic() - started)
    return statistics.median(times)


def test_help_and_the_task_list_answer_at_once():
    assert median_seconds("--help") < 0.5
    assert median_seconds("tasks", "list") < 3


def test_ones_own_data_goes_through_to_a_curated_set(tmp_path, pictures, capsys):
    lines = [row("0.png"), json.dumps({
        "messages": [
            {"role": "user", "content": "<image>Which?"},
            {"role": "assistant", "content": "hen"},
        ],
        "images": ["1.png"],
    })]  # fmt: skip
    (pictures / "both.jsonl").write_text("\n".join(lines))
    assert main(["sample", "--model", "dcsft_stub", "--model-args", "default=Goose.", "--samples", "4",
                 "--data", str(pictures / "both.jsonl"), "--scorer", "exact_word",
                 "--output", str(tmp_path / "rollouts")]) == 0  # fmt: skip
    assert main(["label", str(tmp_path / "rollouts"), "--output", str(tmp_path / "labels")]) == 0
    assert (
        main(["curate", str(tmp_path / "labels"), "--keep", "easy", "--output", str(tmp_path / "easy")]) == 0
    )
    from datasets import load_from_disk

    kept = load_from_disk(str(tmp_path / "easy" / "data"))
    assert kept["messages"][0] == [
        {"role": "user", "content": "<image>Which?"},
        {"role": "assistant", "content": "goose"},
    ]
    assert kept[0]["images"][0].getpixel((0, 0)) == (0, 0, 0)
    assert "1 easy, 0 medium, 1 hard" in capsys.readouterr().err

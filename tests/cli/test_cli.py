"""User mistakes: one sentence, a non-zero exit code and nothing left behind."""

import errno
import io
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

import click
import pytest
from PIL import Image

import dcsft_harness
from dcsft_harness import lmms, records, sampling, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import dcsft, entry, main, running
from dcsft_harness.errors import HarnessError, reporting_refusals
from dcsft_harness.stages import DONE
from tests.fixtures import forked
from tests.fixtures.artifacts import item, rollout, rollouts

README = Path(__file__).resolve().parents[2] / "README.md"
WAITS = """
import os, sys, time
os.environ["TQDM_DISABLE"] = "1"  # as main does; the model's import below comes before it
from dcsft_harness.cli import main
from dcsft_harness.models.stub import DcsftStub

def _answer(self, items):
    print("waiting", file=sys.stderr, flush=True)
    time.sleep(600)

DcsftStub._answer = _answer
sys.exit(main(sys.argv[1:]))
"""


SAVED = "dcsft: interrupted; finished work is saved. Rerun the same command to resume."
UNSAVED = "dcsft: interrupted; no work was saved. Rerun the same command to start again."


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        Image.new("RGB", (56, 56), (40 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def row(image="0.png", **more):
    return json.dumps({"problem": "Which?", "solution": "goose", "image": image, **more})


def refused(capsys, output, *arguments):
    """Runs a command that must fail; returns its error message."""
    code = main([*map(str, arguments), "--output", str(output)])
    said = capsys.readouterr().err.strip().splitlines()
    assert code != 0
    assert len(said) == 1, said
    assert said[0].startswith("dcsft: ")
    assert not Path(output).exists() or not list(Path(output).iterdir())
    return said[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sample", "--task", "dcsft_digits_pol"), "Did you mean dcsft_digits_pool"),
        (("sample", "--task", "dcsft_digits_pool", "--model", "dcsft_hg"), "dcsft_hf"),
        (("sample", "--data", __file__, "--scorer", "exact_wrd"), "Did you mean exact_word"),
        (("sample", "--data", __file__), "--data needs --scorer"),
        (("sample",), "--task and --data are missing. Pass one of them"),
        (("sample", "--task", "x", "--data", "y"), "--task x and --data y cannot be combined"),
        (("sample", "--task", __file__, "--scorer", "choice"), f"Pass it as --data {__file__}"),
        (("sample", "--data", "dcsft_digits_pool"), "is a task. Pass it as --task dcsft_digits_pool"),
        (("sample", "--data", "", "--scorer", "exact_word"), "--data is empty. Pass a value"),
        (("sample", "--model", "", "--task", "dcsft_digits_pool"), "--model is empty. Pass a value"),
        (("sample", "--data", __file__, "--scorer", "gone:f"), "scorer 'gone:f' cannot be imported"),
        (("sample", "--task", "dcsft_digits_pool", "--temperature", "0"), "--temperature 0"),
        (("evaluate", "--tasks", "dcsft_digitz"), "Did you mean dcsft_digits"),
        (("evaluate", "--tasks", "dcsft_digits", "--model-args", "nonsense"), "not key=value"),
        (("run", "digitz"), "Did you mean digits"),
        (
            ("train", "sft", "--model", "digits", "--data", "dcsft_digits_col"),
            "Did you mean dcsft_digits_cold",
        ),
        (
            ("train", "sft", "--model", "digits", "--data", "x", "--lora-rank", "0"),
            "--lora-rank 0 is out of range",
        ),
        (("merge", ".", "--push-to-hub", "a b"), "'a b' is not the name of a repository on the hub"),
        (("merge", ".", "--private"), "--private needs --push-to-hub"),
        (("merge", ".", "--prompts", "0"), "--prompts 0 is out of range"),
        (("sample", "--task", "dcsft_digits_pool", "--limit", "0"), "--limit 0 is out of range"),
        (("sample", "--task", "dcsft_digits_pool", "--max-new-tokens", "0"), "--max-new-tokens 0"),
        (
            ("sample", "--task", "dcsft_digits_pool", "--image-root", "x"),
            "--image-root x applies only to --data",
        ),
        (("evaluate", "--tasks", ","), "unknown task ','"),
        (("curate", "nowhere", "--keep", "easy", "--seed", "-1"), "--seed -1 is out of range"),
        # Errors raised by click have the same form.
        (("sample", "--taks", "x"), "no such option '--taks'. Did you mean --task? `dcsft sample --help`"),
        (("sample", "--keep", "easy"), "option '--keep'. It belongs to `dcsft curate`, `dcsft train"),
        (("sample", "--lr", "1"), "no such option '--lr'. `dcsft sample --help` lists what it takes."),
        (("train", "--model", "x"), "option '--model'. Name a command first: `dcsft train --help`"),
        (("train", "sft", "--model", "x", "--data", "y"), "--data y is neither a file nor a folder nor"),
        (("train", "sft", "--optim", "sgd"), "TRL's arguments are passed as --set optim=VALUE."),
        (("sample", "--samples", "two"), "--samples two is not a whole number"),
        (("label",), "dcsft: missing argument 'ROLLOUTS'. `dcsft label --help` lists what it takes."),
        (("tasks", "lst"), "no such command 'lst'. Did you mean 'list'? `dcsft tasks --help` lists"),
    ],
)
def test_invalid_names_and_values_are_refused(tmp_path, capsys, arguments, said):
    assert said in refused(capsys, tmp_path / "out", *arguments)


TRAINED = ("--model", "digits", "--max-steps", "1")
POOL = ("--task", "dcsft_digits_pool", "--samples", "2")


@pytest.mark.parametrize(
    "arguments",
    [
        ("label", "nowhere"),
        ("curate", "nowhere", "--keep", "easy"),
        ("merge", "nowhere"),
        ("compare-cost", "nowhere"),
        ("leaderboard", "build", "nowhere"),
        ("leaderboard", "build", "nowhere", "--strict"),
        ("data", "overlap", "nowhere.jsonl", "dcsft_digits", "--scorer", "exact_word"),
        ("sample", "--model", "./nowhere", *POOL),
        ("sample", "--model", "dcsft_hf", "--model-args", "pretrained=./nowhere", *POOL),
        ("sample", "--model", "dcsft_hf", "--model-args", "pretrained=digits,adapter=nowhere", *POOL),
        ("sample", "--model", "dcsft_stub", "--data", "nowhere.jsonl"),
        ("evaluate", "--model", "dcsft_stub", "--data", "nowhere.jsonl", "--scorer", "math"),
        ("evaluate", "--responses", "nowhere.jsonl", "--tasks", "dcsft_digits"),
        ("train", "sft", "--data", "./nowhere", *TRAINED),
        ("train", "sft", "--data", "dcsft_digits_cold", "--model", "./nowhere", "--max-steps", "1"),
        ("train", "sft", "--data", "dcsft_digits_cold", "--adapter", "nowhere", *TRAINED),
        ("train", "cold-start", "--data", "nowhere.jsonl", *TRAINED),
        ("train", "grpo", "--data", "./nowhere", *TRAINED),
        ("train", "dpo", "--data", "nowhere", *TRAINED),
        ("run", "./nowhere.yaml"),
    ],
    ids=" ".join,
)
def test_a_missing_path_is_reported_as_missing(tmp_path, capsys, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--output", "out"]) != 0
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "nowhere" in said and "does not exist" in said, said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["sft", "cold-start", "grpo", "dpo"])
@pytest.mark.parametrize("data", ["./nowhere", "nowhere.jsonl"])
def test_training_refuses_a_missing_path_before_it_lists_tasks(tmp_path, capsys, monkeypatch, method, data):
    """The list of tasks needs lmms-eval and torch, which take a minute to load on a busy machine."""
    monkeypatch.chdir(tmp_path)
    for loaded in ("lmms.task_index", "stages.training.opening.training_data", "training.grpo.open_data"):
        monkeypatch.setattr(f"dcsft_harness.{loaded}", lambda *_, **__: pytest.fail("loaded"))
    assert main(["train", method, "--data", data, *TRAINED, "--output", "out"]) != 0
    assert f"{data} does not exist" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("card", "nowhere"), "nowhere does not exist"),
        (("data", "inspect", "nowhere"), "nowhere does not exist"),
        (("score", "./nowhere", "--suite", "digits", "--board", "board"), "nowhere does not exist"),
        (("push", "nowhere", "owner/name"), "nowhere does not exist"),
        (("results", "nowhere", "--output", "page.md"), "nowhere does not exist"),
    ],
)
def test_commands_without_an_artifact_report_missing_paths_too(
    tmp_path, capsys, monkeypatch, arguments, said
):
    monkeypatch.chdir(tmp_path)
    assert main(list(arguments)) != 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in last, last
    assert not any(tmp_path.iterdir())


def test_an_output_folder_that_holds_another_run_is_refused_and_kept(tmp_path, capsys):
    rollouts(tmp_path / "rollouts", ["easy", "hard"])
    assert main(["label", str(tmp_path / "rollouts"), "--output", str(tmp_path / "labels")]) == 0
    before = (tmp_path / "labels" / "manifest.json").read_bytes()
    capsys.readouterr()
    for _ in range(2):
        assert main(["label", str(tmp_path / "rollouts"), "--output", str(tmp_path / "labels")]) == 0
        assert "label: already done" in capsys.readouterr().err
    rollouts(tmp_path / "others", ["easy", "medium"])
    assert main(["label", str(tmp_path / "others"), "--output", str(tmp_path / "labels")]) == 1
    said = capsys.readouterr().err
    assert "already holds labels, of another run: rollouts: " in said and "Name another folder" in said
    assert (tmp_path / "labels" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("train", "sft", "--model", "digits", "--data", "x", "--output", "labels"),
            "holds labels, of another run: made by `dcsft label`, not `dcsft train sft`. Name another",
        ),
        (("curate", "rollouts", "--keep", "easy", "--output", "out"), "holds rollouts, where labels are"),
        (("merge", "labels", "--output", "out"), "labels holds labels, where an adapter is needed"),
        (("train", "sft", "--model=digits", "--data=labels", "--output=out"), "a curated set is needed"),
        (("label", "rollouts", "--output", "link/out"), "link/out cannot be created (File exists: link)"),
        (("label", "rollouts", "--output", "link"), "--output link cannot be created (File exists"),
        (("label", "rollouts", "--output", "file/out"), "file/out: Not a directory"),
        (("label", "rollouts", "--output", "/proc/none/out"), "--output /proc/none/out cannot be created"),
        (("score", "digits", "--suite", "file", "--board", "out"), "--suite file holds rows of your own"),
    ],
)  # fmt: skip
def test_a_wrong_folder_is_reported_in_one_sentence(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    rollouts(tmp_path / "rollouts", ["easy", "hard"])
    assert main(["label", "rollouts", "--output", "labels"]) == 0
    Path("file").write_text("{}\n")
    Path("link").symlink_to("nowhere")
    capsys.readouterr()
    assert main(list(words)) == 1
    assert said in capsys.readouterr().err


def test_label_warns_that_one_response_per_item_leaves_no_medium(tmp_path, capsys):
    for count in (1, 2):
        rollouts(tmp_path / f"rollouts{count}", [[1.0] * count, [0.0] * count])
        words = ["label", str(tmp_path / f"rollouts{count}"), "--output", str(tmp_path / f"labels{count}")]
        assert main(words) == 0
        assert ("one scored response per item: none can be medium" in capsys.readouterr().err) == (count == 1)


@pytest.mark.parametrize(
    ("texts", "greedy"),
    [(["a", "a", "b", "b"], True), (["a", "a", "b", "c"], False), (["a", "b", "c", "d"], False)],
)
def test_label_warns_that_identical_responses_look_greedy(tmp_path, capsys, texts, greedy):
    some = [item(number) for number in (0, 0, 1, 1)]
    rows = [
        replace(rollout(one, index % 2, 1.0), response=text)
        for index, (one, text) in enumerate(zip(some, texts, strict=True))
    ]
    with manifest.writing("rollouts", tmp_path / "rollouts", {"task": "pool", "samples": 2}) as draft:
        records.write_table(draft.folder / sampling.ROLLOUTS, records.Rollout, rows)
    assert main(["label", str(tmp_path / "rollouts"), "--output", str(tmp_path / "labels")]) == 0
    assert ("all responses to an item are the same text" in capsys.readouterr().err) == greedy


def test_label_warns_that_a_pool_of_hard_items_leaves_nothing_to_curate(tmp_path, capsys):
    for name, labels in (("all", ["hard", "hard"]), ("some", ["hard", "medium"])):
        rollouts(tmp_path / name, labels, with_items=True)
        assert main(["label", str(tmp_path / name), "--output", str(tmp_path / f"labels-{name}")]) == 0
        said = capsys.readouterr().err
        assert ("no response is right, so no item is easy or medium" in said) == (name == "all")
        assert ("name another --scorer" in said) == (name == "all")
        assert ("--keep easy,medium" in said) == (name == "some")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EACCES, "Check the permissions"),
        (errno.EROFS, "Name a writable folder"),
        (errno.EIO, "Name a writable folder"),
    ],
)
def test_disk_errors_are_reported_in_one_sentence(tmp_path, monkeypatch, capsys, number, remedy):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number), "/root/secret")

    monkeypatch.setitem(stages.STAGES, "label", replace(stages.STAGES["label"], run=fails))
    said = [refused(capsys, tmp_path / "out", "label", "rollouts")]
    with pytest.raises(HarnessError) as caught, reporting_refusals("labels", tmp_path, "nothing was kept"):
        fails()
    said.append(str(caught.value))
    assert all(f"{os.strerror(number)}. {remedy}" in one for one in said)


def test_a_failed_recipe_keeps_its_finished_stages(tmp_path, capsys):
    rollouts(tmp_path / "rollouts", ["easy"])
    (tmp_path / "mine.yaml").write_text(f"""
stages:
  - {{stage: labels, verb: label, rollouts: {tmp_path / "rollouts"}}}
  - {{stage: set, verb: curate, labels: "@labels", keep: [hard]}}
""")
    command = ["run", str(tmp_path / "mine.yaml"), "--output", str(tmp_path / "out")]
    assert main(command) == 1
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["labels", "recipe.json"]
    assert main(command) == 1
    assert "labels: already done" in capsys.readouterr().err


def commands(group=dcsft, name="dcsft"):
    """Every command with its name."""
    for one in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), one)
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {one}")
        else:
            yield f"{name} {one}", command


@pytest.mark.parametrize(
    ("verb", "words", "name", "value"),
    [
        ("evaluate", "--tasks a,b --task c", "tasks", "a,b,c"),
        ("curate", "labels --keep easy --keep medium", "keep", "easy,medium"),
        ("sample", "--model-args a=1 --model-args b=2", "model_args", "a=1,b=2"),
        ("curate", "labels --mix hard=0.1 --mix easy=0.1", "mix", ("hard=0.1", "easy=0.1")),
        ("curate", "labels --suspect 0.6 --seed 3", "seed", "3"),
        ("evaluate", "", "tasks", None),
        ("train sft", "--model m --seed 1 --seed 2", "seed", "2"),
    ],
)
def test_repeated_lists_are_joined_and_other_options_keep_the_last_value(verb, words, name, value):
    given = [*words.split(), "--output", "x", *(["--data", "d"] if verb == "train sft" else [])]
    assert running.command_of(verb).make_context(verb, given).params[name] == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sample --data a.jsonl --data b.jsonl --output x", "--data is given 2 times: a.jsonl, b.jsonl"),
        ("score digits --data a.jsonl --data b.jsonl --board x", "--data is given 2 times: a.jsonl, b.jsonl"),
        ("train sft --model m --model n --data d --output x", "--model is given 2 times: m, n"),
        ("run paradigms --set steps=2 --set steps=3 --output x --dry-run", "--set gives steps twice"),
        ("train sft --model m --data d --set a=1 --set a=2 --output x", "--set gives a twice"),
        ("evaluate --responses r --column gold=a --column gold=b --output x", "--column gives gold twice"),
    ],
)
def test_repeated_inputs_and_named_values_are_refused(tmp_path, monkeypatch, capsys, words, said):
    """click would silently keep only the last value."""
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) != 0
    assert said in capsys.readouterr().err


STREAMS = {  # arguments, stream, its replacement -> exit code, output there
    "stdout closed": (["env"], "stdout", None, 0, None),
    "stdout closed, a table": (["label", "rollouts", "--output", "o", "--dry-run"], "stdout", None, 0, None),
    "stderr closed": (["label", "nowhere", "--output", "o"], "stderr", None, 1, None),
    "stdin closed": (["init", "--model", "digits"], "stdin", None, 1, None),
    "latin-1": (["data", "inspect", "rows.jsonl"], "stdout", "latin-1", 0, b"\\u4e00\xe9"),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_output_survives_a_closed_stream_and_a_narrow_encoding(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rollouts").mkdir()
    Path("rows.jsonl").write_text(json.dumps({"question": "Which \u4e00\u00e9?", "answer": "1"}))
    words, name, encoding, code, said = STREAMS[kind]
    raw = io.BytesIO()
    monkeypatch.setattr(sys, name, None if encoding is None else io.TextIOWrapper(raw, encoding))
    monkeypatch.setattr(sys, "argv", ["dcsft", *words])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as ended:
        entry()
    getattr(sys, name).flush()
    assert ended.value.code == code
    assert said is None or said in raw.getvalue()


def test_a_missing_option_is_described(capsys):
    assert main(["score", "adapter"]) == 2 and "missing option '--board'" in capsys.readouterr().err
    with pytest.raises(HarnessError, match="is missing. Pass a value: The checkpoint to train"):
        stages.STAGES["train sft"]("x", data="set")


@pytest.mark.parametrize(
    "word",
    [
        "--data=~/no.jsonl",
        "--data ~/no.jsonl",
        "--model-args=batch_size=2,pretrained=~/no.jsonl",
        "--model-args=pretrained=~/no.jsonl",
    ],
)
def test_a_tilde_that_the_shell_left_alone_is_expanded(tmp_path, monkeypatch, capsys, word):
    monkeypatch.setenv("HOME", str(tmp_path))
    more = ["--task=dcsft_digits_pool"] if "pretrained" in word else ["--model=digits", "--scorer=exact_word"]
    assert main(["sample", *word.split(), *more, "--output", str(tmp_path / "out")]) == 1
    assert f"{tmp_path}/no.jsonl" in capsys.readouterr().err


def test_a_tilde_is_expanded_in_python(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(HarnessError, match=f"{tmp_path}/none does not exist"):
        dcsft_harness.label("~/none", output="~/out")
    with pytest.raises(HarnessError, match=f"{tmp_path}/full is not empty"):
        dcsft_harness.label("full", output="~/full")
    assert not (tmp_path / "~").exists()


MISSING_INPUTS = [
    ({"pool": "no.jsonl"}, "no.jsonl does not exist"),
    ({"test": "no.jsonl"}, "no.jsonl does not exist"),
    ({"scorer": "exact_wrod"}, "unknown scorer 'exact_wrod'"),
    ({"scorer": "mine.py:judge"}, "names a file. Name its module: mine:judge"),
    ({"tasks": "dcsft_digits,dcsft_digitz"}, "unknown task 'dcsft_digitz'"),
]


@pytest.mark.parametrize(
    ("given", "said", "dry"),
    [
        *((*row, dry) for row in MISSING_INPUTS for dry in (["--dry-run"], [])),
        # Only a run needs the data.
        ({"tasks": "dcsft_wemath"}, None, ["--dry-run"]),
        ({"tasks": "dcsft_wemath"}, "the data of dcsft_wemath is not prepared", []),
        ({}, None, ["--dry-run"]),
    ],
)
def test_a_recipe_checks_its_inputs_first(tmp_path, monkeypatch, capsys, given, said, dry):
    monkeypatch.setenv("DCSFT_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    for name in ("pool.jsonl", "test.jsonl"):
        Path(name).write_text('{"question": "?", "answer": "x"}')
    given = {"model": "digits", "pool": "pool.jsonl", "test": "test.jsonl", "scorer": "exact_word", **given}
    words = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    assert main(["run", "paradigms", *words, "--output", "out", *dry]) == (said is not None)
    assert said is None or said in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("{verb: evaluate, tasks: 'dcsft_digits, dcsft_digits_r,mmmu*', model: digits}", None),
        ("{verb: evaluate, tasks: 'own/mine.yaml,pool.jsonl', scorer: exact_word, model: digits}", None),
        ("{verb: data overlap, pool: dcsft_digits_pool, tasks: 'dcsft_digits,dcsft_id'}", None),
        ("{verb: sample, task: mine, include_path: own}, {verb: evaluate, tasks: [mine]}", None),
        ("{verb: sample, task: mien, include_path: own}", "unknown task 'mien'"),
        ("{verb: sample, task: mine, include_path: other}", "--include-path other is not a folder"),
        ("{verb: evaluate, responses: no.jsonl, scorer: exact_word}", "--responses no.jsonl does not"),
        ("{verb: curate, labels: pool.jsonl, keep: easy, reviewed: no.jsonl}", "--reviewed no.jsonl does"),
    ],
)
def test_your_own_recipe_is_checked_before_it_runs(tmp_path, monkeypatch, capsys, stages, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dcsft_harness.lmms.tasks._INCLUDED", ContextVar("_INCLUDED", default=()))
    Path("own").mkdir()
    Path("own/mine.yaml").write_text("task: mine")
    Path("pool.jsonl").write_text('{"question": "?", "answer": "x"}')
    named = stages.replace("{verb", "{stage: a, verb", 1).replace(" {verb", " {stage: b, verb")
    Path("mine.yaml").write_text(f"stages: [{named}]")
    assert main(["run", "mine.yaml", "--output", "out", "--dry-run"]) == (said is not None)
    assert said is None or said in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_although_inputs_are_missing(capsys):
    """Users have to provide the larger pool."""
    assert main(["run", "large-pool", "--scale", "paper", "--output", "out", "--dry-run"]) == 1
    shown = capsys.readouterr()
    assert "dcsft train sft" in shown.out and "imagenet_100k.jsonl does not exist" in shown.err


def test_a_dry_run_of_the_suites_tasks_builds_no_task_index(monkeypatch):
    """Which would import lmms-eval, for seconds."""
    monkeypatch.setattr("dcsft_harness.lmms.tasks._indexed", None)
    assert main(["run", "paradigms", "--output", "out", "--dry-run"]) == 0


def test_help_fits_a_terminal_of_80_columns():
    for name, command in commands():
        context = click.Context(command, info_name=name, terminal_width=80, max_content_width=80)
        wide = [line for line in command.get_help(context).splitlines() if len(line) > 80]
        assert not wide, name


@pytest.mark.parametrize(
    ("method", "writes_targets"), [("sft", True), ("cold-start", True), ("grpo", False), ("dpo", False)]
)
def test_the_rounding_of_box_targets_is_offered_where_there_are_any(capsys, method, writes_targets):
    assert main(["train", method, "--help"]) == 0
    assert ("--box-rounding" in capsys.readouterr().out) is writes_targets


def test_misuse_exits_with_2_and_help_with_0(capsys):
    assert main(["label"]) == 2
    assert main(["label", "rollouts"]) == 2
    assert "dcsft: missing option '--output'. `dcsft label --help`" in capsys.readouterr().err
    assert main(["sample", "--output", "x", "--task"]) == 2
    assert "dcsft: option '--task' requires an argument. `dcsft --help`" in capsys.readouterr().err
    assert main(["nosuch"]) == 2
    assert main(["label", "--help"]) == 0
    assert main(["--version"]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_the_passthrough_returns_its_exit_code(monkeypatch):
    monkeypatch.setattr(lmms, "command_line", lambda arguments: len(arguments))
    assert main(["lmms-eval", "--tasks", "x", "--help"]) == 3
    assert main(["lmms-eval"]) == 0


@pytest.mark.slow
def test_a_real_ctrl_c_while_sampling_leaves_nothing_behind(tmp_path):
    command = ["sample", "--model", "dcsft_stub", "--model-args", "default=seven"]
    command += ["--task", "dcsft_digits_pool", "--limit", "2", "--output", str(tmp_path / "out")]
    running = forked.Popen(["-c", WAITS, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # A busy machine has time for progress lines.
    assert next(line for line in running.stderr if "loading" not in line).strip() == "waiting"
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=120)[1].strip().splitlines()
    assert running.returncode == 130
    assert [line for line in said if "loading" not in line] == [UNSAVED]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", stages.STAGES)
@pytest.mark.parametrize(("saves", "said"), [(True, SAVED), (False, UNSAVED)])
def test_ctrl_c_exits_with_130_and_says_whether_work_was_saved(
    tmp_path, monkeypatch, capsys, verb, saves, said
):
    stage, unfinished = stages.STAGES[verb], tmp_path / "out" / "unfinished"

    def interrupted(*_, **__):
        if saves:
            unfinished.mkdir(parents=True, exist_ok=True)
            (unfinished / "run.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setitem(stages.STAGES, verb, replace(stage, run=interrupted))
    needed = {name: "x" for name, one in stage.options.model_fields.items() if one.is_required()}
    needed |= {"keep": "easy"} if verb == "curate" else {}
    needed |= {"results": str(tmp_path)} if verb == "leaderboard build" else {}
    assert main(stage.command(needed, tmp_path / "out")[1:]) == 130
    assert capsys.readouterr().err.strip() == said
    assert (tmp_path / "out").exists() == saves


@pytest.mark.parametrize("finished", [0, 1])
def test_an_interrupted_recipe_says_whether_a_stage_was_finished(tmp_path, monkeypatch, capsys, finished):
    done = []

    def perform(verb, output, options):
        if len(done) == finished:
            raise KeyboardInterrupt
        done.append(verb)
        output.mkdir(parents=True)
        (output / "manifest.json").write_text("{}")

    monkeypatch.setattr("dcsft_harness.cli.recipes.run_stage", perform)
    assert main(["run", "digits", "--output", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == (SAVED if finished else UNSAVED)


def test_an_interrupted_command_without_output_prints_only_that(monkeypatch, capsys):
    monkeypatch.setattr(
        "dcsft_harness.environment.packages", lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert main(["env"]) == 130
    assert capsys.readouterr().err.strip() == "dcsft: interrupted."


def fastest_seconds(*arguments):
    """CPU time of an interpreter with these arguments; the minimum of three runs."""

    def spent():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = []
    for _ in range(3):
        before = spent()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(spent() - before)
    return min(times)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS"])
@pytest.mark.parametrize(
    ("value", "code"), [("abc", 1), ("4,2", 1), ("0", 1), ("-1", 1), (" ", 1), ("", 0), ("4", 0), (" 4 ", 0)]
)
def test_a_number_of_threads_that_is_none_is_refused(monkeypatch, capsys, name, value, code):
    monkeypatch.setenv(name, value)
    assert main(["tasks", "list"]) == code
    said = f"dcsft: {name}={value} is not a number of threads. Pass one, such as 4, or unset it.\n"
    assert capsys.readouterr().err == (said if code else "")


@pytest.mark.slow
def test_help_and_the_task_list_are_fast():
    """Relative to an import on the same machine: 0.25 and 0.65 s of CPU time where that takes 0.12 s."""
    unit = fastest_seconds("-c", "import click, pydantic.fields, yaml")
    assert fastest_seconds("-m", "dcsft_harness.cli", "--help") < 4 * unit
    assert fastest_seconds("-m", "dcsft_harness.cli", "tasks", "list") < 12 * unit


def test_your_own_data_becomes_a_curated_set(tmp_path, pictures, capsys):
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
    config = manifest.read(tmp_path / "rollouts").config
    assert (config["scorer"], len(config["images_sha256"])) == ("exact_word", 64)
    # Reading an artifact leaves no cache file in it.
    before = sorted(path.name for path in (tmp_path / "rollouts").rglob("*"))
    assert (
        main(["curate", str(tmp_path / "labels"), "--keep", "easy", "--output", str(tmp_path / "easy")]) == 0
    )
    assert sorted(path.name for path in (tmp_path / "rollouts").rglob("*")) == before
    from datasets import load_from_disk

    kept = load_from_disk(str(tmp_path / "easy" / "data"))
    assert kept["messages"][0] == [
        {"role": "user", "content": "<image>Which?"},
        {"role": "assistant", "content": "goose"},
    ]
    assert kept[0]["images"][0].getpixel((0, 0)) == (0, 0, 0)
    assert "1 easy, 0 medium, 1 hard" in capsys.readouterr().err


def documented_commands():
    """Every `dcsft` command of README and documentation, including those that a test cannot run."""
    pages = [README, *sorted((README.parent / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ")
    starts = r"dcsft|torchrun [-\w ]+ -m dcsft_harness\.cli"
    lines = re.findall(rf"^(?:    )?(?:OMP_NUM_THREADS=1 )?(?:{starts}) (.+)$", text, re.M)
    words = [shlex.split(line.partition("  #")[0]) for line in lines]
    return list(dict.fromkeys(map(tuple, words)))


@pytest.mark.parametrize("words", documented_commands(), ids=" ".join)
def test_documented_commands_parse(words, tmp_path, monkeypatch):
    """Only parsed, by click itself; the paths need not exist."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: value)
    command = dcsft
    while isinstance(command, click.Group):
        command, words = command.get_command(None, words[0]), words[1:]
    command.make_context("dcsft", list(words), resilient_parsing=False)


@pytest.mark.parametrize(
    ("report_to", "free"),
    [
        (None, False),
        ("none", False),
        (["tensorboard"], False),
        ("wandb", True),
        (["wandb"], True),
        ("all", True),
    ],
)
def test_training_that_does_not_report_to_wandb_cannot_import_it(tmp_path, monkeypatch, report_to, free):
    def trained(*_):
        seen.append("wandb" not in sys.modules)  # not blocked, that is
        return {DONE: True}

    seen, config = [], tmp_path / "config.yaml"
    config.write_text(json.dumps({} if report_to is None else {"report_to": report_to}))
    monkeypatch.setattr(running, "run_stage", trained)
    monkeypatch.setitem(sys.modules, "wandb", None)  # restores the earlier state at the end
    del sys.modules["wandb"]
    options = ["--model", "digits", "--data", "any", "--output", str(tmp_path / "out")]
    main(["train", "sft", *options, "--config", str(config)])
    assert seen == [free]


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "2", "RANK": "0"}, 1),  # of another launcher
        ({"WORLD_SIZE": "2", "RANK": "1"}, 0),
        ({"WORLD_SIZE": "2", "RANK": "0", "DCSFT_WATCHED": "1"}, 0),
        ({"WORLD_SIZE": "2", "RANK": "1", "DCSFT_WATCHED": "1"}, 0),
    ],
)
def test_only_one_process_of_a_launch_prints_the_result(tmp_path, monkeypatch, capsys, environment, count):
    toy = replace(
        stages.STAGES["label"],
        remarks=lambda notes: ["a remark"],
        show=lambda notes: "a table",
        markdown=False,
        leads=lambda notes: True,
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(running, "run_stage", lambda *given: {})
    running._callback(toy)(output=tmp_path / "out", rollouts="r")
    shown = capsys.readouterr()
    assert [(shown.out + shown.err).count(text) for text in ("a remark", "a table", "next: ")] == [count] * 3


CONFIGS = {  # options in the file, and on the command line -> what the stage receives, or the error
    "all in the file": ({"model": "digits", "data": "set"}, [], {"model": "digits", "data": "set"}),
    "one in each": ({"data": "set"}, ["--model", "digits"], {"model": "digits", "data": "set"}),
    "the command line counts": ({"model": "no", "data": "set"}, ["--model", "digits"], {"model": "digits"}),
    "missing in both": ({"model": "digits"}, [], "--data is missing. Pass a value: "),
    "no file": (None, ["--data", "set"], "missing option '--model'"),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("verb", ["train sft", "train grpo", "train dpo", "train cold-start"])
def test_a_config_file_may_hold_required_options(tmp_path, monkeypatch, capsys, verb, kind):
    written, options, wanted = CONFIGS[kind]
    if written is not None:
        (tmp_path / "own.yaml").write_text(json.dumps(written))
        options = [*options, "--config", str(tmp_path / "own.yaml")]
    seen = []
    if not isinstance(wanted, str):
        monkeypatch.setattr(running, "run_stage", lambda *given: seen.append(given[2]) or {DONE: True})
    code = main([*verb.split(), *options, "--output", str(tmp_path / "out")])
    if isinstance(wanted, str):
        assert code in (1, 2) and wanted in capsys.readouterr().err
        return
    assert code == 0 and {name: seen[0][name] for name in wanted} == wanted

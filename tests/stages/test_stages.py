"""A stage is one file: command line, recipes, dry runs and Python functions are derived from it."""

import contextlib
import inspect
import json
import os
import pickle
import random
import re
import subprocess
import sys
import types
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import dcsft_harness as dcsft
from dcsft_harness import reading, recipes, stages
from dcsft_harness.artifacts import Artifact, Labels, Rollouts, manifest
from dcsft_harness.cli import bar, main
from dcsft_harness.errors import HarnessError
from dcsft_harness.recipes import chain
from dcsft_harness.settings import as_arguments
from dcsft_harness.stages import STAGES
from dcsft_harness.stages.following import next_command
from dcsft_harness.stages.functions import _plain, argument_of
from dcsft_harness.stages.stage import DONE
from tests.fixtures import forked
from tests.fixtures.artifacts import rollouts

TOY = '''"""`dcsft toy`: Write a greeting."""

from dcsft_harness.artifacts import manifest
from dcsft_harness.settings import Settings, option
from dcsft_harness.stages import Stage


class ToyOptions(Settings):
    """Whom to greet."""

    whom: str = option(about="Whom to greet.", positional=True)
    times: int = option(1, "How often.", ge=1)


def run(options, output, progress):
    """Greets."""
    with manifest.writing("toy", output, options.as_dict()) as draft:
        (draft.folder / "text").write_text(f"hello {options.whom} " * options.times)
        draft.notes["times"] = options.times
    if progress is not None:
        progress(options.times, options.times)
    return draft.notes


STAGE = Stage("toy", ToyOptions, run, lambda notes: f"{notes['times']} greetings", "toy")
'''


@pytest.fixture
def toy(tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY)
    stages.__path__.append(str(folder))
    STAGES.find(folder, "dcsft_harness.stages")
    yield tmp_path
    stages.__path__.remove(str(folder))
    del STAGES["toy"]
    sys.modules.pop("dcsft_harness.stages.toy", None)


def test_a_copy_of_a_training_method_trains(tmp_path, monkeypatch):
    """With its own verb, as CONTRIBUTING.md says of `train_sft.py`."""
    from dcsft_harness import training

    own = types.ModuleType("dcsft_harness.stages.train_copy")
    source = Path(stages.__path__[0], "train_sft.py").read_text()
    exec(source.replace("train sft", "train copy"), vars(own))  # noqa: S102 - our own
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "a?", "answer": "b"}\n')
    sft = types.SimpleNamespace(train_sft=lambda *given, **more: {"lr": given[3].learning_rate})
    monkeypatch.setattr(training, "sft", sft, raising=False)
    given = own.STAGE.options(model="digits", data=str(rows), learning_rate=0.5)
    assert own.STAGE.run(given, tmp_path / "out", None) == {"lr": 0.5}


def test_a_new_file_is_a_command(toy, capsys):
    assert main(["--help"]) == 0
    assert "Write a greeting." in capsys.readouterr().out
    assert main(["toy", "--help"]) == 0
    assert "--times INTEGER  How often.  [default: 1]" in capsys.readouterr().out
    assert main(["toy", "world", "--times", "2", "--output", str(toy / "out")]) == 0
    assert "toy: 2 greetings" in capsys.readouterr().err
    assert main(["toy", "world", "--times", "0", "--output", str(toy / "zero")]) == 1
    assert "--times 0 is out of range. It must be at least 1." in capsys.readouterr().err


def test_a_new_file_is_a_recipes_verb(toy, capsys):
    (toy / "mine.yaml").write_text("stages: [{stage: hi, verb: toy, whom: moon, times: 3}]")
    dry = chain.described(recipes.load(str(toy / "mine.yaml")), toy / "out")
    assert f"dcsft toy moon --times 3 --output {toy / 'out' / 'hi'}" in dry
    assert main(["run", str(toy / "mine.yaml"), "--output", str(toy / "out")]) == 0
    assert (toy / "out" / "hi" / "text").read_text() == "hello moon " * 3
    (toy / "mine.yaml").write_text("stages: [{stage: hi, verb: toy, whom: moon, tims: 3}]")
    with pytest.raises(HarnessError, match="'tims'. Did you mean times"):
        recipes.load(str(toy / "mine.yaml"))


def test_a_function_shows_the_progress_of_its_command(toy, monkeypatch):
    shown = []

    @contextlib.contextmanager
    def stage(title, shows):
        assert shows
        yield lambda done, total: shown.append((title, done, total))

    monkeypatch.setattr(bar, "stage", stage)
    dcsft.toy("sun", output=toy / "out", times=2)
    assert shown == [("toy", 2, 2)]


@pytest.mark.slow
def test_a_launching_function_leaves_the_bar_to_the_first_process(tmp_path, monkeypatch):
    shown = []

    @contextlib.contextmanager
    def stage(title, shows=True):
        shown.append(shows)
        yield None

    monkeypatch.setattr(bar, "stage", stage)
    given = {"data": tmp_path / "none", "output": tmp_path / "out"}
    for more in (
        {},
        {"num_processes": 1},
        {"num_processes": 2, "actors": 2},
    ):  # none of them starts processes
        with pytest.raises(HarnessError):
            dcsft.sample("dcsft_stub", **given, **more)
    assert shown == [True, True, False]


def test_a_function_runs_without_a_stderr(toy, monkeypatch):
    """As in a program without a console."""
    monkeypatch.setattr(sys, "stderr", None)
    assert dcsft.toy("sun", output=toy / "out", times=2).notes == {"times": 2}


def test_a_function_keeps_its_callers_random_numbers(toy, monkeypatch):
    """lmms-eval and trainers seed them: each run of a notebook's loop would draw the same ones."""

    @contextlib.contextmanager
    def stage(title, shows=True):
        yield lambda *done, **figures: (random.seed(0), np.random.seed(1234))

    monkeypatch.setattr(bar, "stage", stage)
    for number in range(3):
        random.seed(number)
        np.random.seed(number)
        wanted = random.Random(number).random(), np.random.RandomState(number).rand()
        assert dcsft.toy("sun", output=toy / str(number)).notes == {"times": 1}
        assert (random.random(), np.random.rand()) == wanted


def test_a_new_file_is_a_function(toy):
    made = dcsft.toy("sun", output=toy / "out", times=2)
    assert isinstance(made, Artifact) and made.notes == {"times": 2}
    assert str(inspect.signature(dcsft.toy)) == (
        "(whom: str, *, output: 'str | os.PathLike[str]', times: int = 1)"
    )


@pytest.mark.parametrize("verb", list(STAGES))
def test_a_stages_file_describes_its_verb_and_its_options(verb):
    stage = STAGES[verb]
    assert stage.verb == verb and STAGES.about(verb).endswith((".", ")."))
    assert all(field.description for field in stage.options.model_fields.values())
    assert callable(getattr(dcsft, stage.name))


@pytest.mark.parametrize("verb", ["sample", "evaluate", "train grpo"])
def test_a_rank_without_notes_has_no_remarks(verb):
    assert STAGES[verb].remarks({}) == []


@pytest.mark.parametrize("verb", list(STAGES))
def test_a_stage_can_be_sent_to_a_spawned_process(verb):
    assert pickle.loads(pickle.dumps(STAGES[verb])) is STAGES[verb]


def test_artifacts_are_accepted_in_place_of_paths(tmp_path):
    rollouts(tmp_path / "rollouts", ["easy", "medium", "hard"], with_items=True)
    labels = dcsft.label(tmp_path / "rollouts", output=tmp_path / "labels")
    assert isinstance(labels, Labels) and labels.table().num_rows == labels.notes["items"] == 3
    curated = dcsft.curate(labels, keep=["easy", "medium"], output=str(tmp_path / "curated"))
    assert len(curated.table()) == 2
    with pytest.raises(HarnessError, match="unknown keep value 'meduim'. Did you mean medium"):
        dcsft.curate(labels, keep="meduim", output=tmp_path / "other")
    with pytest.raises(HarnessError, match="size=large is not a whole number"):
        dcsft.curate(labels, keep="easy", size="large", output=tmp_path / "other")


USES = {
    "notes": lambda labels, _: labels.notes["items"],
    "table": lambda labels, _: labels.table().num_rows,
    "path": lambda labels, _: len(Path(labels).joinpath("labels.parquet").read_bytes()),
    "stage": lambda labels, folder: dcsft.curate(labels, keep="easy", output=folder / "set").notes["items"],
    "several": lambda labels, folder: _plain([labels]) == [str(folder / "labels")],
}


@pytest.mark.parametrize("use", USES)
def test_an_artifact_keeps_its_path_when_the_working_directory_changes(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rollouts(tmp_path / "rollouts", ["easy", "medium", "hard"], with_items=True)
    labels = dcsft.label("rollouts", output="labels")
    assert os.fspath(labels) == "labels"
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert USES[use](labels, tmp_path)
    assert labels.path == Path("labels") and repr(labels) == "Labels('labels')"


def test_a_notebook_lists_only_the_functions_and_hints_at_a_misspelled_name():
    assert [name for name in dir(dcsft) if not name.startswith("_")] == sorted(
        stage.name for stage in map(STAGES.__getitem__, STAGES)
    )
    with pytest.raises(AttributeError) as error:
        dcsft.leaderboard_build  # noqa: B018
    assert (error.value.name, error.value.obj) == ("leaderboard_build", dcsft)


ROWS = [{"question": "1 + 1?", "answer": "two"}]


@pytest.mark.parametrize(
    ("call", "out", "err", "refused"),
    [
        (lambda: dcsft.data_inspect(ROWS, scorer="exact_word"), 'gold: "two"', "1 row, all usable", None),
        (
            lambda: dcsft.data_inspect([*ROWS, {"question": "a?"}]),
            "row 2: no `answer`",
            "",
            "1 of 2 rows cannot be used",
        ),
        (lambda: dcsft.data_inspect([{"question": "a?"}], output="o"), "", "", "1 of 1 row"),
        (lambda: dcsft.label("rollouts"), "", "", r"label\(\) needs an output"),
        (lambda: dcsft.label("hard", output="l"), "", "dcsft: no response is right", None),
        (lambda: dcsft.label(Rollouts("gone"), output="l"), "", "", r"Rollouts\('gone'\) no longer exists"),
    ],
)
def test_functions_print_what_their_commands_print(tmp_path, monkeypatch, capsys, call, out, err, refused):
    monkeypatch.chdir(tmp_path)
    rollouts(tmp_path / "hard", ["hard"], with_items=True)
    if refused is None:
        call()
    else:
        with pytest.raises(HarnessError, match=refused):
            call()
    said = capsys.readouterr()
    assert out in said.out and err in said.err


def test_the_package_imports_quickly_and_without_torch():
    code = """
import time; start = time.process_time()
import dcsft_harness, sys
dir(dcsft_harness)
print(time.process_time() - start, {"torch", "pydantic", "numpy"} & set(sys.modules))
"""
    seconds, found = min(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(
            " ", 1
        )
        for _ in range(3)
    )
    assert float(seconds) < 0.3 and found.strip() == "set()"


ADDED = {
    "stages/greet.py": TOY.replace("toy", "greet").replace("Toy", "Greet"),
    "stages/train_last.py": '''"""`dcsft train last`: Train on the last rows alone."""

from datasets import load_from_disk

from dcsft_harness.settings import option
from dcsft_harness.stages.stage import Stage
from dcsft_harness.stages.training import AdapterInputs, start, summary
from dcsft_harness.training.config import AdapterConfig


class LastConfig(AdapterConfig):
    """Settings of the method."""

    SECTION = "Method"

    last: int = option(4, "How many rows.", ge=1)


class LastOptions(LastConfig, AdapterInputs):
    """What to train on, and how."""


def run(options, output, progress):
    """Trains."""

    def train(base, config, more):
        from dcsft_harness.training import sft
        from dcsft_harness.training.run import Job, perform

        rows = load_from_disk(f"{options.data}/data")
        rows = rows.select(range(len(rows) - config.last, len(rows)))
        return perform(Job("last", base, rows, output, config, **more), sft._make)

    return start(STAGE, options, LastConfig, output, progress, train)


STAGE = Stage("train last", LastOptions, run, summary, "adapter", passes="trl.SFTConfig", light=None)
''',
    "scoring/shout.py": '''"""The answer, in capitals."""

from dcsft_harness.scoring.verdict import Scorer, Verdict


def shout(response, *, answer):
    """Right if the answer is shouted."""
    return Verdict(float(response == answer.upper()), response)


SCORER = Scorer("shout", shout, version=7)
''',
    "tasks/digits/shouted.yaml": """include: _classification.yaml
task: dcsft_shouted
dataset_name: dcsft_digits
process_results: !function dcsft_harness.models.loud.process
metadata: {version: 1, family: shouting, role: evaluation, distribution: id, answer_column: answer}
""",
    "models/loud.py": '''"""`loud`: a model that answers SEVEN."""

from dcsft_harness.lmms.protocols import Generation
from dcsft_harness.tasks.verdicts import process as processed

from .base import ObservedModel


class Loud(ObservedModel):
    """Answers SEVEN."""

    def __init__(self, batch_size=1, device=None, pretrained=None):
        super().__init__()
        self.batch_size = int(batch_size or 1)

    def _answer(self, items):
        return [[self._said(item, index) for index in item.sample_indices] for item in items]

    def _said(self, item, index):
        return Generation(item.task, item.doc_id, index, "SEVEN", 1, 1, "stop", 0)


def process(doc, results):
    """Scores with the scorer of the other toy."""
    return processed("shout", doc, results)
''',
}
"""A toy of each kind: its one file. The scorer and the engine also have a line in their package."""
LINES = {
    "scoring/__init__.py": ('"open_answer")', '"open_answer", "shout")'),
    "models/__init__.py": ('"dcsft_stub":', '"loud": "loud.Loud", "dcsft_stub":'),
}
CHAIN = """
name: toys
about: A toy of each kind.
stages:
  - {stage: hello, verb: greet, whom: moon}
  - {stage: rollouts, verb: sample, model: digits, engine: loud, task: dcsft_shouted, samples: 2, limit: 24}
  - {stage: labels, verb: label, rollouts: "@rollouts"}
  - {stage: curated, verb: curate, labels: "@labels", keep: [easy, medium, hard]}
  - {stage: adapter, verb: train last, model: digits, data: "@curated", last: 2, batch_size: 2, max_steps: 1}
  - {stage: scores, verb: evaluate, model: digits, engine: loud, tasks: [dcsft_shouted], limit: 24}
"""
TRIED = """
import contextlib, inspect, io, json
import dcsft_harness as dcsft
from dcsft_harness.cli import bar, main

def said(*words):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert main(list(words)) == 0, words
    return text.getvalue()

words = ["run", "toys.yaml", "--output", "out"]
found = {
    "help": said("--help") + said("train", "--help") + said("sample", "--help") + said("tasks", "list"),
    "plan": said(*words, "--dry-run"),
    "functions": [str(inspect.signature(made))[:60] for made in (dcsft.greet, dcsft.train_last)],
}
said(*words)
given = {"data": "out/curated", "last": 2, "max_steps": 1, "batch_size": 2}
method = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
found["needs"] = said("train", "last", "--model=digits", *method, "--output=dry", "--dry-run")
found["scores"] = json.load(open("out/scores/manifest.json"))["notes"]
found["adapter"] = dcsft.train_last("digits", output="by-name", **given).notes
found["imported"] = dcsft.__file__
print(json.dumps(found))
"""


def linked(folder, root):
    """The packages as installed: real folders of links to our files."""
    for path in root.rglob("*.*"):
        if path.is_file() and "__pycache__" not in path.parts:
            (folder / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(root)).symlink_to(path)


@pytest.mark.slow
def test_a_stage_method_scorer_task_or_engine_is_one_file_and_at_most_one_line(tmp_path):
    """In a copy of the package: by command line, recipe, dry runs and functions."""
    root, copy = Path(dcsft.__file__).parent, tmp_path / "dcsft_harness"
    linked(copy, root)
    for name in ("tasks", "models", "leaderboard"):
        linked(copy / name, Path(import_module(f"dcsft_harness.{name}").__file__).parent)
    for name, text in ADDED.items():
        assert not (copy / name).exists()
        (copy / name).write_text(text)
    for name, (old, new) in LINES.items():
        before = (copy / name).read_text()
        assert before.count(old) == 1
        (copy / name).unlink()
        (copy / name).write_text(before.replace(old, new))
    (tmp_path / "toys.yaml").write_text(CHAIN)
    code = f"{forked.UNIMPORTED}sys.path.insert(0, {str(tmp_path)!r})\n{TRIED}"
    done = forked.run(["-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["imported"] == str(copy / "__init__.py")
    for named in (
        "Write a greeting.",
        "Train on the last rows alone.",
        "open_answer, shout",
        "dcsft_shouted",
    ):
        assert named in " ".join(found["help"].split()), named
    for named in (
        "dcsft greet moon",
        "--engine loud",
        "--task dcsft_shouted",
        "dcsft train last",
        "--last 2",
    ):
        assert named in found["plan"], named
    assert found["functions"][0].startswith("(whom: str, *") and "model: str" in found["functions"][1]
    assert "| memory |" in found["needs"]
    assert found["adapter"]["rows"] == 2 and found["adapter"]["steps"] == 1
    sevens = found["scores"]["tasks"]["dcsft_shouted"]["accuracy"]
    assert 0 < sevens < 1 and found["scores"]["tasks"]["dcsft_shouted"]["scorers"] == {"shout": 7}


@pytest.mark.parametrize(
    ("stage", "given", "said"),
    [
        (
            "train_sft",
            {"data": "curated"},
            "dcsft evaluate --model 'my out' --tasks TASK,... --output scores",
        ),
        (
            "train_sft",
            {"data": "rows.jsonl"},
            "dcsft evaluate --model 'my out' --data TEST --scorer SCORER --output scores",
        ),
        (
            "train_grpo",
            {"data": "rows.jsonl", "scorer": "choice"},
            "dcsft evaluate --model 'my out' --data TEST --scorer choice --output scores",
        ),
        (
            "train_cold_start",
            {"data": "rows.jsonl", "scorer": None},
            "dcsft sample --model 'my out' --data POOL --scorer SCORER --output rollouts",
        ),
        ("label", {}, "dcsft curate 'my out' --keep easy,medium --output curated"),
    ],
)
def test_the_next_command_suggests_own_rows_after_own_rows(tmp_path, monkeypatch, stage, given, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    found = next(one for one in STAGES.values() if one.name == stage)
    assert next_command(found, "my out", given) == said


def only_written(verb, *roles):
    """The stage with a run that writes an empty artifact; `roles` are options that are its inputs."""

    def run(options, output, progress):
        inputs = {role: Path(getattr(options, role)) for role in roles}
        with manifest.writing(STAGES[verb].writes, output, {}, inputs) as draft:
            return draft.notes

    return replace(STAGES[verb], run=run)


def test_a_scorer_with_changed_code_is_never_already_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    given, stage = {"task": "dcsft_digits_pool", "scorer": "judges:judge"}, only_written("sample")
    for ending in ("", "# changed\n"):
        Path("judges.py").write_text(
            f"def judge(response, *, answer):\n    return response == answer\n{ending}"
        )
        monkeypatch.delitem(sys.modules, "judges", raising=False)
        if ending:
            with pytest.raises(HarnessError, match="of another run: judges:judge: its code has"):
                stage("out", **given)
        else:
            stage("out", **given)
            assert stage("out", **given)[DONE]


@pytest.mark.parametrize(
    "given",
    [
        {"task": "mine/own.yaml"},
        *({"task": name, "include_path": "mine"} for name in ("every", "o*n", "ev*")),
    ],
)
@pytest.mark.parametrize(
    ("file", "is_read"),
    [
        ("mine/own.yaml", True),
        ("mine/common.yaml", True),
        ("mine/inner/deep.yaml", True),
        ("mine/judge.py", True),
        ("mine/inner/help.py", True),
        ("mine/rows.jsonl", True),
        ("mine/inner/more.jsonl", True),
        ("here.jsonl", True),
        ("saved/data.arrow", True),
        ("saved/photo.png", False),
        ("mine/here.jsonl", False),
        ("mine/beside.py", True),
        ("mine/inner/more.py", True),
        ("mine/inner/last.py", True),
        ("mine/other.yaml", False),
        ("mine/unused.py", False),
    ],
)
def test_all_files_named_by_a_task_are_part_of_it(tmp_path, monkeypatch, given, file, is_read):
    monkeypatch.chdir(tmp_path)
    Path("mine/inner").mkdir(parents=True)
    Path("saved").mkdir()
    for name, text in {
        "own.yaml": "task: own\ninclude: common.yaml\nprocess_results: !function judge.verdict\n"
        "dataset_kwargs: {data_files: {test: [rows.jsonl, ../here.jsonl], train: 'https://a.org/b.json'}}\n",
        # A circular include ends.
        "common.yaml": "include: [inner/deep.yaml, own.yaml]\ndataset_path: saved\n",
        "inner/deep.yaml": "doc_to_text: !function help.text\ndataset_kwargs: {data_files: more.jsonl}\n",
        **dict.fromkeys(
            ("rows.jsonl", "here.jsonl", "inner/more.jsonl", "../here.jsonl", "../saved/data.arrow"), ""
        ),
        "../saved/photo.png": "",
        "every.yaml": "group: every\ntask: [own, elsewhere]\n",
        "other.yaml": "task: other\n",
        "broken.yaml": "task: [",
        "judge.py": "import json, inner.more\nfrom beside import mark\n",
        "beside.py": "from .inner import last\n",
        "inner/help.py": "",
        "inner/more.py": "",
        "inner/last.py": "import numpy, judge\n",
        "unused.py": "",
    }.items():
        (Path("mine") / name).write_text(text)
    stage = only_written("sample")
    stage("out", model="base", **given)
    assert stage("out", model="base", **given)[DONE]
    with Path(file).open("a") as end:
        end.write("# changed\n")
    if is_read:
        with pytest.raises(HarnessError, match=rf"of another run: \S*{Path(file).name}: its content"):
            stage("out", model="base", **given)
    else:
        assert stage("out", model="base", **given)[DONE]


def _made(kind, folder, verb, options, inputs, config=None, notes=None):
    reset = manifest.CALL.set({"verb": verb, "options": options})
    with manifest.writing(kind, Path(folder), config or {}, inputs) as draft:
        draft.notes |= notes or {}
    manifest.CALL.reset(reset)


def _chain(task=None, **sampling):
    """rollouts -> labels -> curated -> adapter in the working directory, without content."""
    for folder in ("base", "cold"):
        Path(folder).mkdir()
        (Path(folder) / "config.json").write_text("{}")
    Path("train.jsonl").write_text("{}\n")
    options = {"model": "base", "task": task, "data": None if task else "train.jsonl", "scorer": "choice"}
    inputs = {"model": Path("base"), **({"adapter": Path("cold")} if sampling.get("model") == "cold" else {})}
    inputs |= {**({} if task else {"data": Path("train.jsonl")})}
    config = {"model": "dcsft_hf", "model_args": "pretrained=base"}
    _made("rollouts", "rollouts", "sample", options | sampling, inputs, config)
    _made("labels", "labels", "label", {}, {"rollouts": Path("rollouts")})
    _made("curated set", "curated", "curate", {}, {"labels": Path("labels"), "rollouts": Path("rollouts")})
    _made("adapter", "adapter", "train sft", {}, {"model": Path("base"), "data": Path("curated")})


@pytest.mark.parametrize(
    ("sampling", "beside", "curate", "evaluate"),
    [
        ({}, "test.jsonl", "base", "--data test.jsonl --scorer choice"),
        ({}, "my test.jsonl", "base", "--data TEST --scorer choice"),
        ({}, "validation.jsonl", "base", "--data validation.jsonl --scorer choice"),
        ({"held_out": 0.1}, "test.jsonl", "base", "--data train.jsonl --held-out 0.1 --scorer choice"),
        ({"image_root": "base"}, "x", "base", "--data TEST --scorer choice --image-root base"),
        ({"scorer": "my.own:judge"}, "test.jsonl", "base", "--data test.jsonl --scorer my.own:judge"),
        ({"model": "Some/Hub-Model"}, "test.jsonl", "Some/Hub-Model", "--data test.jsonl --scorer choice"),
        ({"model": "digits"}, "test.jsonl", "digits", "--data test.jsonl --scorer choice"),
        ({"model": "dcsft_hf"}, "test.jsonl", "base", "--data test.jsonl --scorer choice"),  # older spelling
        ({"model": "cold"}, "test.jsonl", "base --adapter cold", "--data test.jsonl --scorer choice"),
        ({"task": "dcsft_digits_pool"}, "test.jsonl", "base", "--tasks TASK,..."),
    ],
)
def test_the_next_command_names_the_model_and_the_rows_of_the_pool(
    tmp_path, monkeypatch, sampling, beside, curate, evaluate
):
    monkeypatch.chdir(tmp_path)
    _chain(**sampling)
    Path(beside).write_text("{}\n")
    hashed = []
    monkeypatch.setattr(manifest, "fingerprint", lambda path: hashed.append(path))
    said = next_command(STAGES["curate"], "curated", {"labels": "labels"})
    assert said == f"dcsft train sft --model {curate} --data curated --output adapter"
    said = next_command(STAGES["train sft"], "adapter", {"model": "base", "data": "curated"})
    assert said == f"dcsft evaluate --model adapter {evaluate} --output scores"
    assert not hashed


def test_the_next_command_names_the_other_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    then = partial(next_command, STAGES["evaluate"])
    for name, tasks in {"new": "ab", "old": "b", "other": "c", "my scores": "a"}.items():
        _made("scores", name, "evaluate", {}, {}, notes={"tasks": dict.fromkeys(tasks, {})})
        if name == "new":
            assert then(name, {}) == "dcsft leaderboard build new OTHER-SCORES... --output board"
    assert then("new", {}) == "dcsft leaderboard build new 'my scores' old --output board"
    assert then("other", {}) == "dcsft leaderboard build other OTHER-SCORES... --output board"
    for name, limit in {"two": 2, "also two": 2}.items():  # a board only compares them with each other
        _made("scores", name, "evaluate", {}, {}, notes={"tasks": {"a": {"limit": limit}}})
    assert then("two", {}) == "dcsft leaderboard build two 'also two' --output board"


@pytest.mark.parametrize(("count", "said"), [(1, "1 item"), (2, "2 items")])
def test_counts_are_grammatical(count, said):
    notes = {"items": count, "responses": 8, "accuracy": 0.5, "easy": count, "medium": 0, "hard": 0}
    assert STAGES["sample"].summary(notes).startswith(f"{said}, 8 responses")
    assert STAGES["label"].summary(notes).startswith(f"{said}: {count} easy")


OWN = {
    "sample": {"data": "rows.jsonl", "scorer": "exact_word", "model": "digits"},
    "evaluate": {"data": "rows.jsonl", "scorer": "exact_word", "model": "digits"},
    "train sft": {"data": "rows.jsonl", "model": "digits"},
    "train cold-start": {"data": "rows.jsonl", "model": "digits"},
    "train grpo": {"data": "rows.jsonl", "scorer": "exact_word", "model": "digits"},
    "train dpo": {"data": "rows.jsonl", "model": "digits"},
    "data inspect": {"data": "rows.jsonl"},
    "data overlap": {"pool": "rows.jsonl", "tasks": ["dcsft_digits"]},
}
"""Every verb that reads a user's own rows, with its options."""


@pytest.mark.parametrize("verb", OWN)
@pytest.mark.parametrize("what", ["nothing", "an image", "the rows", "lost rows"])
def test_changed_rows_and_images_are_never_already_done(tmp_path, monkeypatch, verb, what):
    monkeypatch.chdir(tmp_path)
    image, rows = Path("1.png"), Path("rows.jsonl")
    image.write_bytes(b"one")
    rows.write_text(json.dumps({"question": "Which bird?", "answer": "goose", "image": "1.png"}) + "\n")
    stage = only_written(verb)
    stage("out", **OWN[verb])
    if what == "nothing":
        assert stage("out", **OWN[verb])[DONE]
        return
    if what == "an image":
        image.write_bytes(b"two")
    elif what == "the rows":
        rows.write_text(rows.read_text().replace("goose", "duck"))
    else:
        rows.unlink()
    with pytest.raises(
        HarnessError, match=r"already holds .*rows.jsonl: its content or its images have changed"
    ):
        stage("out", **OWN[verb])


BESIDE = {
    # the model's arguments, the file that changes or appears, and whether that makes another artifact
    "a template that is edited": ("", "base/chat_template.jinja", True),
    "a template that appears": ("pretrained=bare", "bare/chat_template.jinja", True),
    "a template of the adapter": ("adapter=base", "base/chat_template.jinja", True),
    "code next to the weights": ("", "base/code.py", True),
    "the system prompt": ("system_prompt=system.txt", "system.txt", True),
    "a script of another engine": ("answers=own.py,default=x", "own.py", True),
    "a system prompt that no path can hold": (f"system_prompt={'Think. ' * 99}", "own.py", False),
    "a script next to the run": ("adapter=,batch_size=8", "own.py", False),
    "a folder named like a number": ("batch_size=8", "8/own.py", False),
}


@pytest.mark.parametrize("case", BESIDE)
def test_files_read_besides_the_weights_decide_whether_a_run_is_done(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    arguments, name, decides = BESIDE[case]
    for one in ("base/chat_template.jinja", "base/code.py", "system.txt", "bare/x", "own.py", "8/own.py"):
        Path(one).parent.mkdir(exist_ok=True)
        Path(one).write_text("before")
    stage = only_written("sample")
    options = {"task": "dcsft_digits_pool", "model": "base", "model_args": arguments}
    stage("out", **options)
    assert stage("out", **options)[DONE]
    Path(name).write_text("after")
    if decides:
        with pytest.raises(HarnessError, match="its content or its images have changed"):
            stage("out", **options)
    else:
        assert stage("out", **options)[DONE]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-06),
        ("1.0e-6", 1e-06),
        ("+1E6", 1e6),
        (".5e-3", 5e-4),
        ("0.00001", 1e-05),
        ("{min_lr: 1e-7, steps: [1e3]}", {"min_lr": 1e-07, "steps": [1000.0]}),
        ("1e", "1e"),
        ("e5", "e5"),
        ("1e5x", "1e5x"),
        ("'1e-6'", "1e-6"),
        ("0x1e5", 0x1E5),
    ],
)
def test_a_number_reaches_the_processes_of_a_launch_unchanged(text, value):
    assert reading.from_yaml(text) == value
    words = STAGES["train sft"].command({"extra": {"name": value}}, Path("out"), joined=True)
    (passed,) = [word for word in words if word.startswith("--set=")]
    assert reading.from_yaml(passed.removeprefix("--set=name=")) == value


PLACED = {
    # verb, options in folder `a`, options in folder `b`, and the difference; "" for none
    "another folder of that name": (
        "label", {"rollouts": "r"}, {"rollouts": "r"}, "rollouts: r is not the one",
    ),
    "its whole path": ("label", {"rollouts": "r"}, {"rollouts": "{a}/r"}, ""),
    "another path to it": ("label", {"rollouts": "{a}/r/"}, {"rollouts": "../a/../a/r"}, ""),
    "another folder's path": ("label", {"rollouts": "r"}, {"rollouts": "{b}/r"}, "rollouts: r -> /"),
    "another checkpoint of that name": (
        "merge", {"adapter": "r", "base": "m"}, {"adapter": "{a}/r", "base": "m"}, "base: m is not the one",
    ),
    "the checkpoint's whole path": (
        "merge", {"adapter": "r", "base": "m"}, {"adapter": "{a}/r", "base": "{a}/m"}, "",
    ),
    "a checkpoint in model arguments": (
        "sample",
        {"model_args": "pretrained=m,batch_size=8", "task": "dcsft_digits_pool"},
        {"model_args": "pretrained={a}/m,batch_size=8", "task": "dcsft_digits_pool"},
        "",
    ),
    "another one there": (
        "sample",
        {"model_args": "pretrained=m,batch_size=8", "task": "dcsft_digits_pool"},
        {"model_args": "pretrained={b}/m,batch_size=8", "task": "dcsft_digits_pool"},
        "model_args: pretrained=m",
    ),
    "other model arguments": (
        "sample",
        {"model_args": "pretrained=m,batch_size=8", "task": "dcsft_digits_pool"},
        {"model_args": "pretrained={a}/m,batch_size=4", "task": "dcsft_digits_pool"},
        "model_args: pretrained=m",
    ),
    "rows and their images by whole paths": (
        "train sft",
        {"model": "m", "data": "rows.jsonl", "image_root": "images"},
        {"model": "{a}/m", "data": "{a}/rows.jsonl", "image_root": "{a}/images"},
        "",
    ),
    "other rows of that name": (
        "train sft",
        {"model": "m", "data": "rows.jsonl"},
        {"model": "{a}/m", "data": "rows.jsonl"},
        "rows.jsonl: its content",
    ),
    "a task's file by its whole path": (
        "sample", {"model": "m", "task": "own.yaml"}, {"model": "{a}/m", "task": "{a}/own.yaml"}, "",
    ),
    "a board's results by whole paths": (
        "leaderboard build", {"results": ["r", "x=s"]}, {"results": ["{a}/r", "x={a}/s"]}, "",
    ),
    "results in another order": (
        "leaderboard build", {"results": ["r", "s"]}, {"results": ["{a}/s", "{a}/r"]}, "results: ",
    ),
    "results under another name": (
        "leaderboard build", {"results": ["x=r"]}, {"results": ["y={a}/r"]}, "results: ",
    ),
    "a model of the hub": (
        "train sft", {"model": "org/name", "data": "r"}, {"model": "org/name", "data": "{a}/r"}, ""
    ),
    "a model of the hub, and a folder": (
        "train sft", {"model": "org/local", "data": "r"}, {"model": "org/local", "data": "{a}/r"},
        "model: org/local is not the one",
    ),
}  # fmt: skip


def _two_projects(folder):
    """Folders a and b, whose files have equal names and different contents; b also has org/local."""
    for name in ("a", "b"):
        place = folder / name
        for one in ("r", "s"):
            with manifest.writing("scores", place / one, {"name": f"{one} of {name}"}, {}) as draft:
                draft.notes["tasks"] = {}
        (place / "m").mkdir()
        (place / "m" / "config.json").write_text(json.dumps({"of": name}))
        (place / "images").mkdir()
        (place / "images" / "1.png").write_bytes(b"image")
        (place / "rows.jsonl").write_text(
            json.dumps({"question": name, "answer": "a", "image": "1.png"}) + "\n"
        )
        (place / "own.yaml").write_text("task: own\n")
    (folder / "b" / "org" / "local").mkdir(parents=True)
    (folder / "b" / "org" / "local" / "config.json").write_text("{}")


def _filled(options, folder):
    def fill(value):
        if isinstance(value, list):
            return [fill(one) for one in value]
        return value.replace("{a}", str(folder / "a")).replace("{b}", str(folder / "b"))

    return {name: fill(value) for name, value in options.items()}


@pytest.mark.parametrize("case", PLACED)
def test_an_input_is_identified_by_content_and_not_by_path(tmp_path, monkeypatch, case):
    verb, first, second, said = PLACED[case]
    _two_projects(tmp_path)
    stage = only_written(verb)
    monkeypatch.chdir(tmp_path / "a")
    stage(tmp_path / "out", **_filled(first, tmp_path))
    assert stage(tmp_path / "out", **_filled(first, tmp_path))[DONE]
    monkeypatch.chdir(tmp_path / "b")
    if said:
        with pytest.raises(HarnessError, match=f"of another run: {re.escape(said)}"):
            stage(tmp_path / "out", **_filled(second, tmp_path))
    else:
        assert stage(tmp_path / "out", **_filled(second, tmp_path))[DONE]


@pytest.mark.parametrize(
    ("where", "given", "said"),
    [
        ("a", "r", ""),
        ("a", "{a}/r", ""),
        ("b", "{a}/r", ""),
        ("b", "r", "rollouts: r is not the one"),
        ("b", "{b}/r", "rollouts: r -> "),
        (".", "r", ""),  # nothing is there, and no hash contradicts
    ],
)
def test_an_older_artifact_is_compared_by_its_recorded_inputs(tmp_path, monkeypatch, where, given, said):
    _two_projects(tmp_path)
    stage, out = only_written("label", "rollouts"), tmp_path / "out"
    monkeypatch.chdir(tmp_path / "a")
    stage(out, rollouts="r")
    made = json.loads((out / "manifest.json").read_text())
    assert list(made["call"].pop("content")["rollouts"]) == ["r"]
    (out / "manifest.json").write_text(json.dumps(made))
    monkeypatch.chdir(tmp_path / where)
    if said:
        with pytest.raises(HarnessError, match=f"of another run: {said}"):
            stage(out, **_filled({"rollouts": given}, tmp_path))
    else:
        assert stage(out, **_filled({"rollouts": given}, tmp_path))[DONE]


def test_a_finished_stage_needs_no_lock(tmp_path, monkeypatch):
    """Another process may hold it to check the same, and a read-only folder has none."""
    _two_projects(tmp_path)
    stage, out = only_written("label"), tmp_path / "out"
    stage(out, rollouts=tmp_path / "a" / "r")
    with manifest.taken(out, grant=False):
        assert stage(out, rollouts=tmp_path / "a" / "r")[DONE]
        with pytest.raises(HarnessError, match="of another run: rollouts"):
            stage(out, rollouts=tmp_path / "b" / "r")
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json"]


@pytest.mark.parametrize("change", ["a moved project", "an output named like its model"])
def test_a_finished_stage_stays_finished(tmp_path, monkeypatch, change):
    _two_projects(tmp_path)
    stage = only_written("train sft", "data")
    monkeypatch.chdir(tmp_path / "a")
    output = "org/name" if change == "an output named like its model" else "out"
    stage(output, model="org/name", data="r")
    if change == "a moved project":
        (tmp_path / "a").rename(tmp_path / "c")
        monkeypatch.chdir(tmp_path / "c")
    assert stage(output, model="org/name", data="r")[DONE]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: dcsft.sample("digits", task="x", samples=0, output="out"), "samples=0 is out of range"),
        (lambda: dcsft.sample("digits", output="out"), "task= and data= are missing"),
        (lambda: dcsft.sample("digits", data="no.jsonl", output="out"), "data=no.jsonl does not exist"),
        (lambda: dcsft.evaluate("digits", output="out"), "tasks= and data= are missing. Pass one of them"),
        (
            lambda: dcsft.evaluate("digits", tasks="x", samples=2, temperature=0, output="out"),
            "samples=2 at temperature=0 are 2 times",
        ),
        (
            lambda: dcsft.evaluate(responses="rows.jsonl", scorer="exact_word", output="out"),
            "no row has a response (response, prediction, output, resps, filtered_resps); the first has"
            " question. Name its column with columns={'response': NAME}",
        ),
        (lambda: dcsft.label("rows", exact="often", output="out"), "exact=True"),
        (lambda: dcsft.curate("labels", keep=["esay"], output="out"), "unknown keep value 'esay'"),
        (lambda: dcsft.curate("labels", band=[2, 1], output="out"), "band="),
        (
            lambda: dcsft.train_sft("digits", data="rows.jsonl", learning_rate=-1, output="out"),
            "learning_rate=-1 is out of range",
        ),
        (lambda: dcsft.data_inspect("rows.jsonl", on_error="x", output="out"), "unknown on_error value 'x'"),
        (lambda: dcsft.data_overlap("rows.jsonl", "rows.jsonl", output="out"), "rows.jsonl needs scorer=:"),
    ],
)
def test_errors_of_functions_name_arguments_instead_of_options(tmp_path, monkeypatch, call, said):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"question": "a?"}\n')
    with pytest.raises(HarnessError) as caught:
        call()
    assert said in str(caught.value) == caught.value.args[0]
    assert not re.search(r"(?<![`\w])--[a-z]", str(caught.value))


@pytest.mark.parametrize(
    ("option", "argument"),
    [
        ("--samples 0 is out of range", "samples=0 is out of range"),
        ("--data and --held-out", "data= and held_out="),
        ("Pass --on-error skip, or --on-error.", "Pass on_error=skip, or on_error=."),
        ("--data my rows/a.jsonl is gone", "data=my rows/a.jsonl is gone"),
        ("give --held-out SHARE", "give held_out=SHARE"),
        ("--allow-outside-root shows more", "allow_outside_root=True shows more"),
        ("--column gold=answer, say", "columns={'gold': answer}, say"),  # of `evaluate`
        ("--set seed=1.", "extra={'seed': 1}."),
        ("Run `dcsft sample --samples 8`", "Run `dcsft sample --samples 8`"),
        ("lmms-eval -n 8 --log_samples --data-root x", "lmms-eval -n 8 --log_samples --data-root x"),
        ("--size None is not a number", "size=None is not a number"),
        ("--size true is not a number", "size=true is not a number"),
    ],
)
def test_options_are_rewritten_as_arguments(option, argument):
    stage = stages.STAGES["sample"]
    assert as_arguments(option, partial(argument_of, stage), ["my rows/a.jsonl", 8]) == argument


@pytest.mark.parametrize(("verb", "name"), [("compare-cost", "artefacts"), ("leaderboard build", "results")])
def test_a_single_path_is_a_list_of_one(verb, name):
    assert getattr(STAGES[verb].options(**{name: Path("a,b")}), name) == (Path("a,b"),)

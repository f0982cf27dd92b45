"""A recipe skips finished, valid stages, reruns changed ones, and resumes after an interruption."""

import errno
import gc
import multiprocessing
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dcsft_harness import reading, recipes
from dcsft_harness.artifacts import lock, manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.stub import DcsftStub
from dcsft_harness.recipes import chain, rehearsal
from dcsft_harness.stages import DONE, STAGES

TEXT = """
name: toy
stages:
  - {stage: one, verb: curate, labels: nowhere, keep: [easy], seed: 1}
  - {stage: two, verb: label, rollouts: "@one"}
  - {stage: apart, verb: curate, labels: nowhere, keep: [hard]}
"""


class Bench:
    """Runs recipes with stages that only write a file, and records which ran."""

    def __init__(self, tmp_path):
        self.file, self.output, self.ran = tmp_path / "toy.yaml", tmp_path / "out", []

    def run(self, text=TEXT, fail_at=None, failure=KeyboardInterrupt):
        self.file.write_text(text)
        self.ran, self.said = [], []

        def perform(verb, folder, options):
            self.ran.append(folder.name)
            with manifest.writing("labels", folder, {"seed": str(options.get("seed"))}) as draft:
                (draft.folder / "file").write_text(str(options))
                if folder.name == fail_at:
                    raise failure

        chain.run(recipes.load(str(self.file)), self.output, perform, self.said.append)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_a_second_run_does_nothing(bench):
    bench.run()
    assert bench.ran == ["one", "two", "apart"]
    assert not (bench.output / chain.LOCK).exists()
    bench.run()
    assert bench.ran == []


@pytest.mark.parametrize("frozen", [False, True])
def test_a_run_freezes_its_modules_and_keeps_what_the_caller_has_frozen(bench, monkeypatch, frozen):
    counted = [1000 if frozen else 0]
    monkeypatch.setattr(chain, "FREEZE_AFTER", 0.0)
    monkeypatch.setattr(gc, "get_freeze_count", lambda: counted[0])
    monkeypatch.setattr(gc, "freeze", lambda: counted.append(counted[0] + 5))
    monkeypatch.setattr(gc, "unfreeze", lambda: counted.append(0))
    bench.run()
    # When the first of three stages begins its work, after each of them, and undone at the end.
    assert counted == ([1000] if frozen else [0, 5, 5, 5, 5, 0])


@pytest.mark.parametrize("failure", [KeyboardInterrupt, HarnessError("the model diverged"), MemoryError])
def test_an_interrupted_recipe_resumes_where_it_stopped(bench, failure):
    with pytest.raises(failure if isinstance(failure, type) else HarnessError):
        bench.run(fail_at="two", failure=failure)
    assert sorted(path.name for path in bench.output.iterdir()) == ["one", "recipe.json"]
    bench.run()
    assert bench.ran == ["two", "apart"]


@pytest.mark.parametrize("there", [False, True])
def test_nothing_remains_of_a_recipe_whose_first_stage_is_refused(bench, there):
    if there:
        bench.output.mkdir()
    with pytest.raises(HarnessError, match="refused"):
        bench.run(fail_at="one", failure=HarnessError("refused"))
    assert bench.output.exists() == there
    assert not there or not any(bench.output.iterdir())
    bench.run()
    assert bench.ran == ["one", "two", "apart"]


SAMPLING = """
name: toy
stages:
  - {stage: rollouts, verb: sample, task: dcsft_digits_pool, model: dcsft_stub, samples: 2, limit: 4,
     model_args: "default=seven"}
  - {stage: labels, verb: label, rollouts: "@rollouts"}
"""


class TestInterruptedSamplingStage:
    @pytest.fixture
    def drawn(self, monkeypatch):
        """The documents that the model was asked for; it is interrupted once, at the third."""
        asked = []
        answer = DcsftStub._answer

        def interrupted(model, items):
            asked.append(items[0].doc_id)
            if len(asked) == 3:
                raise KeyboardInterrupt
            return answer(model, items)

        monkeypatch.setattr(DcsftStub, "_answer", interrupted)
        return asked

    @pytest.fixture
    def run(self, tmp_path):
        def run(text):
            (tmp_path / "toy.yaml").write_text(text)
            toy = recipes.load(str(tmp_path / "toy.yaml"))
            chain.run(
                toy, tmp_path / "out", lambda verb, folder, options: STAGES[verb](folder, **options), print
            )

        with pytest.raises(KeyboardInterrupt):
            run(SAMPLING)
        return run

    def test_is_resumed(self, tmp_path, drawn, run):
        run(SAMPLING)
        assert drawn == [0, 1, 2, 2, 3]
        assert manifest.read(tmp_path / "out" / "labels").notes["items"] == 4

    def test_starts_over_after_an_edit(self, drawn, run):
        run(SAMPLING.replace("seven", "two"))
        assert drawn == [0, 1, 2, 0, 1, 2, 3]
        run(SAMPLING)
        assert drawn[7:] == [0, 1, 2, 3]

    def test_is_left_alone_while_a_process_is_working_in_it(self, tmp_path, drawn, run):
        folder = tmp_path / "out" / "rollouts"
        mine = lock.locked(folder / manifest.UNFINISHED / "lock", folder)
        with mine, pytest.raises(HarnessError, match="is being written by process"):
            run(SAMPLING.replace("seven", "two"))
        assert (folder / manifest.UNFINISHED).is_dir()


MANY = "stages:\n" + "".join(
    f"  - {{stage: s{number}, verb: curate, labels: nowhere, keep: [easy], seed: {number}}}\n"
    f"  - {{stage: l{number}, verb: label, rollouts: '@s{number}'}}\n"
    for number in range(8)
)


def _shares(bench, journal, number):
    def perform(verb, folder, options):
        time.sleep(0.05)
        with manifest.writing("labels", folder, {"seed": str(options)}) as draft:
            (draft.folder / "file").write_text(str(options))
        with journal.open("a") as file:
            file.write(f"{number} {folder.name}\n")

    chain.PAUSE = 0.02
    chain.run(recipes.load(str(bench.file)), bench.output, perform, lambda name: None)


def test_processes_in_one_folder_share_its_stages(bench, tmp_path):
    bench.file.write_text(MANY)
    journal = tmp_path / "journal"
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=_shares, args=(bench, journal, number)) for number in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0]
    by, made = zip(*(line.split() for line in journal.read_text().splitlines()), strict=True)
    assert sorted(made) == sorted(f"{kind}{number}" for kind in "sl" for number in range(8))  # each once
    assert set(by) == {"0", "1"}
    for number in range(8):
        assert made.index(f"s{number}") < made.index(f"l{number}")
    assert len(reading.json_file(bench.output / chain.STATE)["stages"]) == 16
    assert not (bench.output / chain.LOCK).exists()


def test_a_stage_that_finished_without_being_recorded_runs_again(bench):
    bench.run()
    (bench.output / "recipe.json").write_text('{"recipe": "toy", "stages": {}}')
    bench.run()
    assert bench.ran == ["one", "two", "apart"]


def test_another_number_of_processes_keeps_the_stage(tmp_path):
    keys = {
        chain.key(recipes.Stage("x", "sample", {"task": "dcsft_digits_pool", **more}, {}), tmp_path)
        for more in ({}, {"num_processes": 2}, {"num_processes": 8}, {"seed": 1})
    }
    assert len(keys) == 2


def test_a_folder_named_like_a_model_argument_keeps_the_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"task": "dcsft_digits_pool", "model_args": "pretrained=digits,batch_size=8"}
    keys = [chain.key(recipes.Stage("x", "sample", given, {}), tmp_path)]
    Path("8").mkdir()
    assert [chain.key(recipes.Stage("x", "sample", given, {}), tmp_path)] == keys


@pytest.mark.parametrize("tasks", ["dcsft_wemath", "dcsft_[rw]em*", ["dcsft_reasoning"]])
def test_preparing_a_tasks_data_again_makes_another_stage(tmp_path, monkeypatch, tasks):
    monkeypatch.setenv("DCSFT_DATA", str(tmp_path))
    keys = set()
    for number in range(2):
        (tmp_path / "dcsft_wemath").mkdir(exist_ok=True)
        (tmp_path / "dcsft_wemath" / manifest.NAME).write_text(f'{{"made": {number}}}')
        keys.add(chain.key(recipes.Stage("x", "evaluate", {"tasks": tasks}, {}), tmp_path))
    assert len(keys) == 2


JUDGE = "def judge(response, *, answer):\n    return {}\n"
TASK = """
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: rows.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: {0}
doc_to_target: answer
doc_to_visual: !function {1}.visual
process_results: !function {1}.judged
metric_list: [{{metric: acc}}]
"""


def own_files_of(place):
    """Rows with an image, a scorer and a task of a user's own."""
    place.mkdir()
    Image.new("RGB", (8, 8), "red").save(place / "a.png")
    (place / "rows.jsonl").write_text('{"question": "?", "answer": "x", "image": "a.png"}\n')
    (place / "held.jsonl").write_text('{"question": "?", "answer": "y", "image": "a.png"}\n')
    (place / "own_judge.py").write_text(JUDGE.format("1.0"))
    (place / "helper.py").write_text(
        "def visual(doc): return []\ndef judged(doc, found): return {'acc': 1.0}\n"
    )
    (place / "mine.yaml").write_text(TASK.format("question", "helper"))


OWN_STAGES = {
    "a pool's rows": ("sample", {"data": "rows.jsonl", "scorer": "exact_word"}),
    "a scorer": ("sample", {"data": "rows.jsonl", "scorer": "own_judge:judge"}),
    "rows to evaluate on": ("evaluate", {"tasks": "dcsft_digits,held.jsonl", "scorer": "exact_word"}),
    "a list of them": ("evaluate", {"tasks": ["held.jsonl"], "scorer": "exact_word"}),
    "a task by its name": ("evaluate", {"tasks": "mine", "include_path": "."}),
    "a task by its file": ("evaluate", {"tasks": "mine.yaml"}),
    "an overlap's pool": ("data overlap", {"pool": "rows.jsonl", "tasks": ["dcsft_digits"]}),
}
OWN_CHANGES = {
    "a picture": lambda place: Image.new("RGB", (8, 8), "blue").save(place / "a.png"),
    "a scorer": lambda place: (place / "own_judge.py").write_text(JUDGE.format("0.0")),
    "a task": lambda place: (place / "mine.yaml").write_text(TASK.format("answer", "helper")),
    "a task's function": lambda place: (place / "helper.py").write_text("def visual(doc): return None\n"),
}
REACHED = {
    ("a pool's rows", "a picture"),
    ("a scorer", "a picture"),
    ("a scorer", "a scorer"),
    ("rows to evaluate on", "a picture"),
    ("a list of them", "a picture"),
    ("a task by its name", "a task"),
    ("a task by its name", "a task's function"),
    ("a task by its file", "a task"),
    ("a task by its file", "a task's function"),
    ("an overlap's pool", "a picture"),
}


@pytest.mark.parametrize("change", OWN_CHANGES)
@pytest.mark.parametrize("kind", OWN_STAGES)
def test_a_users_change_makes_another_stage(tmp_path, monkeypatch, kind, change):
    own_files_of(place := tmp_path / "place")
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    verb, options = OWN_STAGES[kind]
    keys = []
    for _ in range(2):
        sys.modules.pop("own_judge", None)
        keys.append(chain.key(recipes.Stage("x", verb, options, {}), tmp_path))
        OWN_CHANGES[change](place)
    assert (keys[0] != keys[1]) == ((kind, change) in REACHED)


def test_a_stage_finished_by_a_killed_process_does_not_run_again(bench, monkeypatch):
    wanted = chain.key

    def dies(stage, output):
        if stage.name == "two":
            raise SystemExit
        return wanted(stage, output)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(chain, "key", dies)
        bench.run()
    assert bench.ran == ["one"]
    bench.run()
    assert bench.ran == ["two", "apart"]


def left_by_a_killed_process(folder):
    """What a process leaves if it is killed after its manifest is in place and before it has cleaned up."""
    left = folder / manifest.UNFINISHED
    (left / "checkpoint-6").mkdir(parents=True)
    for name in (lock.RUN, manifest.LOCK, "checkpoint-6/complete.json"):
        (left / name).write_text("{}")
    return left


def test_the_next_run_removes_what_a_process_killed_at_its_end_left(bench):
    bench.run()
    left = left_by_a_killed_process(bench.output / "one")
    bench.run()
    assert bench.ran == []
    assert not left.exists()


@pytest.mark.parametrize("processes", [None, 1, 2])
def test_the_same_command_removes_it_too_with_any_number_of_processes(tmp_path, processes):
    folder, call = tmp_path / "rollouts", {"model": "dcsft_stub", "task": "dcsft_digits_pool"}
    stage = STAGES["sample"]
    with manifest.writing("rollouts", folder, {}) as draft:
        reset = manifest.CALL.set({"verb": "sample", "options": stage.options.from_options(call).deciding()})
        (draft.folder / "rows").write_text("rows")
    manifest.CALL.reset(reset)
    left = left_by_a_killed_process(folder)
    notes = stage(folder, **call, num_processes=processes)
    assert notes[DONE]
    assert not left.exists()


def test_files_held_by_another_process_stay(bench):
    bench.run()
    left = left_by_a_killed_process(bench.output / "one")
    with lock.locked(left / manifest.LOCK, bench.output):
        bench.run()
    assert (left / lock.RUN).is_file()


def test_an_interrupted_and_reverted_edit_reruns_the_stage(bench):
    bench.run()
    with pytest.raises(KeyboardInterrupt):
        bench.run(TEXT.replace("seed: 1", "seed: 2"), fail_at="one")
    bench.run()
    assert bench.ran[0] == "one"  # its reader reruns too, as its manifest has another time


def test_a_changed_option_reruns_the_stage_and_its_readers(bench):
    bench.run()
    edited = TEXT.replace("seed: 1", "seed: 2")
    bench.file.write_text(edited)
    plan = chain.described(recipes.load(str(bench.file)), bench.output)
    bench.run(edited)
    assert bench.ran == ["one", "two"]
    other = chain.OTHERWISE
    assert [line for line in plan.splitlines() if "dcsft" not in line and "reads" not in line] == [
        f"# {other}; it would run again",
        f"# {other}; it would run again",
        "# already done",
    ]
    assert bench.said == [
        f"one: {other}; it runs again",
        f"two: {other}; it runs again",
        "apart: already done",
    ]


@pytest.mark.parametrize("file", ["file", "manifest.json"])
def test_a_damaged_artifact_is_rebuilt(bench, file):
    bench.run()
    (bench.output / "two" / file).write_text("damaged")
    plan = chain.described(recipes.load(str(bench.file)), bench.output)
    bench.run()
    assert bench.ran == ["two"]
    assert "\n# its files have changed; it would run again\ndcsft label " in plan
    if file == "file":
        assert bench.said[1] == "two: its files have changed; it runs again"


def test_a_changed_data_file_reruns_the_stage_that_reads_it(bench, tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text("one")
    text = f"stages: [{{stage: rollouts, verb: sample, data: '{mine}', scorer: math}}]"
    bench.run(text)
    bench.run(text)
    assert bench.ran == []
    mine.write_text("two")
    bench.run(text)
    assert bench.ran == ["rollouts"]


@pytest.mark.parametrize("verb", ["sample", "train grpo, model: somewhere"])
@pytest.mark.parametrize("rooted", [False, True])
def test_a_changed_image_of_your_own_data_reruns_the_stage(bench, tmp_path, rooted, verb):
    (tmp_path / "mine.jsonl").write_text('{"problem": "?", "solution": "1", "image": "a.png"}\n{not json\n')
    folder = tmp_path / "pictures" if rooted else tmp_path
    folder.mkdir(exist_ok=True)
    root = f", image_root: '{folder}'" if rooted else ""
    text = (
        f"stages: [{{stage: rollouts, verb: {verb}, data: '{tmp_path / 'mine.jsonl'}', scorer: math{root}}}]"
    )
    # Missing at first: the stage has to report what is wrong with a row.
    bench.run(text)
    for content in (b"one", b"two"):
        (folder / "a.png").write_bytes(content)
        bench.run(text)
        assert bench.ran == ["rollouts"]
        bench.run(text)
        assert bench.ran == []


def test_changed_verdicts_rerun_the_stage_that_reads_them(bench, tmp_path):
    review = tmp_path / "suspects.jsonl"
    text = TEXT.replace("keep: [hard]", f"keep: [hard], suspect: 0.75, reviewed: {review}")
    for verdicts in ("one", "another"):
        review.write_text(verdicts)
        bench.run(text)
        assert bench.ran[-1:] == ["apart"]
    bench.run(text)
    assert bench.ran == []


def test_another_package_version_reruns_everything(bench, monkeypatch):
    bench.run()
    monkeypatch.setattr(chain, "__version__", "0.0.1")
    bench.run()
    assert bench.ran == ["one", "two", "apart"]


def test_the_folder_can_be_moved_between_runs(bench, tmp_path):
    bench.run()
    bench.output = bench.output.rename(tmp_path / "moved")
    bench.run()
    assert bench.ran == []


def test_a_full_disk_is_reported_with_the_state_file(bench, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(chain.os, "replace", full)
    with pytest.raises(HarnessError, match=r"cannot write .*recipe\.json: No space left on device"):
        bench.run()
    assert list(bench.output.iterdir()) == []


def test_another_recipes_folder_is_refused(bench):
    bench.run()
    with pytest.raises(HarnessError, match="holds the recipe 'toy', not 'tea'"):
        bench.run(TEXT.replace("name: toy", "name: tea"))


def test_foreign_files_are_refused_and_kept(bench):
    bench.output.mkdir()
    (bench.output / "thesis.tex").write_text("years")
    with pytest.raises(HarnessError, match="is not empty and contains no recipe"):
        bench.run()
    assert [path.name for path in bench.output.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("state", [b"{", b"[]", b"\xff", b'{"recipe": "toy", "stages": 3}'])
def test_a_damaged_state_is_named(bench, state):
    bench.run()
    (bench.output / "recipe.json").write_bytes(state)
    with pytest.raises(HarnessError, match=r"recipe\.json cannot be read"):
        bench.run()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT.replace("@one", "@three"), "refers to @three"),
        (TEXT.replace("verb: label", "verb: lable"), "Did you mean label"),
        ("name: x", "has no stages"),
        ("stages: []", "has no stages"),
        (TEXT.replace("stage: two", "stage: ../two"), "is not a valid folder name"),
        (TEXT.replace("seed", "sede"), "stage 'one': unknown option 'sede'. Did you mean seed"),
        (
            TEXT.replace("keep: [hard]", "size: 3"),
            "stage 'apart': nothing to keep: --keep and --band are missing",
        ),
        (TEXT.replace("keep: [hard]", "band: [0.9, 0.1]"), "stage 'apart': --band 0.9,0.1 is not a range"),
        (
            "{variables: {batch: 16, micro: 64}, stages: [{stage: one, verb: train grpo, model: digits,"
            " data: dcsft_digits_pool, batch_size: '${batch}', micro_batch_size: '${micro}'}]}",
            "--micro-batch-size 64 does not divide --batch-size 16. Choose a divisor; set them by --set"
            " batch=VALUE and --set micro=VALUE",
        ),
    ],
)
def test_an_invalid_recipe_is_refused_before_anything_runs(bench, text, said):
    with pytest.raises(HarnessError, match=said):
        bench.run(text)
    assert bench.ran == []


@pytest.mark.parametrize("scale", ["digits", "paper"])
def test_all_experiments_can_share_an_output_folder(scale):
    experiments = [name for name in recipes.shipped() if name != "digits"]
    assert len(recipes.load(experiments, scale).stages) > 100


COMMAS = {  # options of a stage that reads a checkpoint, the recipe's folder -> the refused path
    "arguments": ('verb: evaluate, model_args: "pretrained=@cold,batch_size=8"', "a,b", "a,b/cold"),
    "mapping": ('verb: evaluate, model_args: {pretrained: digits, adapter: "@cold"}', "a,b", "a,b/cold"),
    "model": ('verb: evaluate, model: "@cold"', "a,b", "a,b/cold"),
    "checkpoint": ('verb: evaluate, model: "my,model"', "ab", "my,model"),
    "no comma": ('verb: evaluate, model: "@cold"', "ab", None),
    "no checkpoint of the recipe": ("verb: evaluate, model: digits", "a,b", None),
}


@pytest.mark.parametrize("kind", COMMAS)
def test_a_comma_in_a_path_of_model_arguments_is_refused_before_the_first_stage(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, output, refused = COMMAS[kind]
    cold = "{stage: cold, verb: train cold-start, model: digits, data: dcsft_digits_cold}"
    scores = f"{{stage: scores, {options}, tasks: [dcsft_digits]}}"
    (tmp_path / "own.yaml").write_text(f"name: own\nabout: x\nstages:\n  - {cold}\n  - {scores}\n")
    made = recipes.load("own.yaml")
    if refused is None:
        chain.refuse_missing(made, Path(output), unprepared=False)
        return
    with pytest.raises(HarnessError, match=f"the path {refused} has a comma"):
        chain.refuse_missing(made, Path(output), unprepared=False)


def test_a_rehearsal_in_a_folder_with_a_comma_starts_nothing(tmp_path):
    with pytest.raises(HarnessError, match=r"the path .*/a,b has a comma"):
        rehearsal.rehearse("internvl3-2b", tmp_path / "a,b", layers=1, side=56)
    assert not (tmp_path / "a,b").exists()

"""`dcsft score --watch`: a run's checkpoints as they appear, disappear and remain."""

import json
import os
import re
import signal
import subprocess
import time

import pytest

from dcsft_harness.artifacts import lock, manifest
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.evaluation import watching
from dcsft_harness.evaluation.autoeval import ScoreOptions, Scoring, open_board
from dcsft_harness.evaluation.watching import watch
from dcsft_harness.leaderboard.board import at_step
from dcsft_harness.training import run_folder
from tests.fixtures import forked
from tests.fixtures.runs import ID, OOD, TASKS, Run, Show, adapter, base, bench, built, ended_pid  # noqa: F401 - a fixture


@pytest.fixture
def place(tmp_path):
    base(tmp_path / "cold")
    return tmp_path


@pytest.fixture
def asleep(monkeypatch):
    """What happens while the watch sleeps, in order; then Ctrl-C."""
    events = []

    def sleep(seconds):
        if not events:
            raise KeyboardInterrupt
        events.pop(0)()

    monkeypatch.setattr(watching.time, "sleep", sleep)
    return events


def watched(place, show, run="run", name="run", **more):
    """The names of the rows that a watch makes."""
    board = open_board(place / "board")
    options = ScoreOptions(**{"suite": "digits", "board": place / "board"} | more)
    return [row.name for row in watch(board, place / run, name, options, show)]


def test_checkpoints_are_scored_as_they_appear_and_the_last_one_once(bench, place, asleep):  # noqa: F811
    run, show = Run(place / "run", place / "cold"), Show()
    bench.plots = True
    asleep += [
        lambda: run.begin(),
        lambda: run.save(10, complete=False),
        lambda: (run.unfinished / "checkpoint-10/complete.json").write_text('{"ledger": {"seconds": 20.0}}'),
        lambda: run.save(20).save(30),
        lambda: run.save(40),  # with the final weights
        lambda: run.finish(),
    ]
    assert watched(place, show) == ["run at step 10", "run at step 20", "run at step 30", "run"]
    assert asleep == []
    told = [text for text in show.said if "tasks to score" not in text]
    assert told[0].startswith("waiting for training to start in")
    assert re.search(r"watching .*run, in which process \d+ trains$", told[1])
    assert len(told) == 2
    rows, summary = built(open_board(place / "board"), show)
    assert [line.name for line in summary.lines] == [f"run at step {n}" for n in (10, 20, 30)] + ["run"]
    trainings = [line.rows[0].provenance[0].training for line in summary.lines]
    assert [one.ledger["steps"] for one in trainings] == [10, 20, 30, 40]
    assert trainings[1].ledger["prompts"] == 320
    assert len({one.folder for one in trainings}) == 1
    assert (place / "board/leaderboard/plots/steps.png").is_file()
    assert [round(10 * line.entries[0].accuracy.value) for line in summary.lines] == [5, 6, 7, 8]
    assert not list((place / "board/results").glob("*/unfinished"))


def test_a_second_watch_keeps_existing_scores_even_if_the_checkpoints_moved(bench, place):  # noqa: F811
    run, show = (
        Run(place / "run", place / "cold", steps=30, pid=ended_pid()).begin().save(10).save(20),
        Show(),
    )
    assert watched(place, show) == ["run at step 10", "run at step 20"]
    assert re.search(r"process \d+, which trained in .*; the unfinished run reached step 20", show.said[-1])
    run.finish(keep=1)
    assert watched(place, show) == ["run at step 20", "run"]
    assert bench.asked.count(("run at step 20", ID)) == 1
    assert len(bench.asked) == 6
    found = manifest.read(place / "board/results/run at step 20" / ID).inputs["adapter"]["sha256"]
    assert found == manifest.fingerprint(place / "run/checkpoint-20")


def test_the_last_checkpoint_of_a_killed_run_is_scored(bench, place):  # noqa: F811
    Run(place / "run", place / "cold", steps=20, pid=ended_pid()).begin().save(10).save(20)
    assert watched(place, Show()) == ["run at step 10", "run at step 20"]


def test_with_stay_a_watch_waits_for_a_killed_run(bench, place, asleep):  # noqa: F811
    run, show = Run(place / "run", place / "cold", steps=20, pid=ended_pid()).begin().save(10), Show()
    asleep += [lambda: run.finish()]
    assert watched(place, show, stay=True) == ["run at step 10", "run"]
    assert [text for text in show.said if text.endswith("waiting for it to be resumed")]


def test_checkpoints_removed_before_their_turn_are_reported(bench, place, asleep):  # noqa: F811
    run, show = Run(place / "run", place / "cold", steps=60).begin().save(10), Show()

    def meanwhile(row, task):
        if (row, task) == ("run at step 10", ID):  # one checkpoint remains, as by default
            run.save(20, keep=1).save(30, keep=1).save(40, keep=1)

    bench.before = meanwhile
    asleep += [lambda: run.save(50), lambda: run.finish()]
    assert watched(place, show) == ["run at step 10", "run at step 40", "run at step 50", "run"]
    told = [text for text in show.said if "no longer has" in text]
    assert len(told) == 1
    assert re.search(
        r"run no longer has a checkpoint of the steps 20, 30: not scored. `dcsft train --keep N`", told[0]
    )


def test_steps_before_a_resume_at_another_pace_are_not_reported(bench, place, asleep):  # noqa: F811
    run, show = Run(place / "run", place / "cold", steps=60).begin().save(10).save(20), Show()
    asleep += [
        lambda: setattr(run, "every", 15),
        lambda: run.save(30),
        lambda: run.finish(),  # 45 was written and removed since
    ]
    assert watched(place, show) == [f"run at step {n}" for n in (10, 20, 30)] + ["run"]
    assert [text.split(":")[0].split("of ")[-1] for text in show.said if "no longer has" in text] == [
        "step 45"
    ]


def test_a_checkpoint_removed_while_it_is_linked_is_reported(bench, place, asleep, monkeypatch):  # noqa: F811
    run, show = Run(place / "run", place / "cold").begin().save(10).save(20), Show()
    link = run_folder.link

    def slow(checkpoint, target):
        link(checkpoint, target)
        if checkpoint.name == "checkpoint-10":
            run.remove(10)

    monkeypatch.setattr(run_folder, "link", slow)
    asleep += [lambda: run.finish()]
    assert watched(place, show) == ["run at step 20", "run"]
    assert "checkpoint-10 was removed before it was read: not scored" in show.said[0]
    assert not (place / "board/results/run at step 10").exists()


def test_a_run_may_finish_while_a_checkpoint_is_linked(bench, place, asleep, monkeypatch):  # noqa: F811
    """Only the newest checkpoint is kept, in the finished run; the others are reported as missing."""
    run, show = Run(place / "run", place / "cold").begin().save(10).save(20), Show()
    link, cut = run_folder.link, []

    def slow(checkpoint, target):
        link(checkpoint, target)
        if not cut:
            cut.append(checkpoint)
            run.finish(keep=1)

    monkeypatch.setattr(run_folder, "link", slow)
    assert watched(place, show) == ["run at step 20", "run"]
    assert [text for text in show.said if "no longer has a checkpoint of the steps 10, 30" in text]


def test_full_parameter_training_can_be_watched(bench, place, asleep, monkeypatch):  # noqa: F811
    run = Run(place / "run", place / "cold", full=True).begin().save(10)
    with pytest.raises(HarnessError, match="trains all parameters. Leave it out"):
        watched(place, Show(), base=str(place / "cold"))
    asleep += [lambda: run.finish()]
    assert watched(place, Show()) == ["run at step 10", "run"]
    home = place / "board/results/run at step 10"
    assert bench.opened == [f"pretrained={home / 'unfinished/checkpoint-10'}", f"pretrained={run.folder}"]


def test_a_checkpoint_removed_while_it_is_scored_is_still_scored(bench, place, asleep):  # noqa: F811
    run, show = Run(place / "run", place / "cold").begin().save(10), Show()

    def meanwhile(row, task):
        if (row, task) == ("run at step 10", OOD):
            run.remove(10)

    bench.before = meanwhile
    asleep += [lambda: run.finish()]
    assert watched(place, show) == ["run at step 10", "run"]


def test_a_finished_run_without_checkpoints_has_one_row_and_reports_the_missing_ones(bench, place):  # noqa: F811
    Run(place / "run", place / "cold", steps=30).begin().finish()
    show = Show()
    assert watched(place, show) == ["run"]
    assert "no longer has a checkpoint of the steps 10, 20" in show.said[0]


def test_ctrl_c_leaves_a_complete_board(bench, place, asleep, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(place)
    Run(place / "run", place / "cold").begin().save(10)
    code = main(["score", "base=cold", "--watch", "run", "--suite", "digits", "--board", "board"])
    assert code == 130
    assert "interrupted; finished work is saved" in capsys.readouterr().err
    assert manifest.read(place / "board/leaderboard").notes["rows"] == ["base", "run at step 10"]
    assert manifest.is_intact(place / "board/leaderboard")


@pytest.mark.slow
def test_one_command_scores_a_baseline_and_watches_a_run(bench, place, asleep, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(place)
    run = Run(place / "run", place / "cold", steps=20).begin().save(10)
    asleep += [lambda: run.finish()]
    words = ["score", "base=cold", "--watch", "SFT (seed 1)=run", "--suite", "digits", "--board", "board"]
    assert main([*words, "--baseline", "base"]) == 0
    out, err = capsys.readouterr()
    assert "SFT at step 10 (seed 1)" in out and "+10.00 [" in out
    assert re.search(r"score SFT \(seed 1\): ID 60.00 % \(\+20.00 \[.*\]\), OOD .* -> board/leaderboard", err)
    assert main([*words]) == 0  # the baseline is remembered, and nothing is evaluated again
    assert "SFT (seed 1): already scored on its 2 tasks" in capsys.readouterr().err
    assert len(bench.asked) == 6
    assert manifest.read(place / "board/leaderboard").config["baseline"] == "base"


def test_row_names_hold_the_step():
    assert at_step("SFT", 20) == "SFT at step 20"
    assert at_step("SFT (seed 1)", 20) == "SFT at step 20 (seed 1)"


def test_a_run_that_leaves_nothing_ends_the_watch(bench, place, asleep):  # noqa: F811
    run = Run(place / "run", place / "cold").begin()

    def fail():
        for path in run.unfinished.iterdir():
            path.unlink()
        run.unfinished.rmdir()
        run.folder.rmdir()

    asleep += [fail]
    with pytest.raises(HarnessError, match="the run in .*run ended without a result"):
        watched(place, Show())
    assert not (place / "board").exists()


@pytest.mark.parametrize("when", ["before", "during"])
def test_another_run_in_the_same_folder_is_refused(bench, place, asleep, when):  # noqa: F811
    run = Run(place / "run", place / "cold", pid=ended_pid() if when == "before" else None).begin().save(10)

    def replace():
        os.rename(run.folder, place / "old")
        Run(place / "run", place / "cold", every=7, learning_rate=0.1).begin().save(7)

    if when == "before":
        watched(place, Show())
        replace()
        said = "the board's row 'run at step 10' is of another run that used"
    else:
        asleep += [replace]
        said = "holds a different run than before"
    with pytest.raises(HarnessError, match=said):
        watched(place, Show())
    assert ("run at step 7", ID) not in bench.asked


def test_a_row_with_the_name_of_the_run_is_refused_before_scoring(bench, place):  # noqa: F811
    Run(place / "run", place / "cold", steps=20).begin().finish()
    watched(place, Show())
    os.rename(place / "run", place / "old")
    Run(place / "run", place / "cold", learning_rate=0.1).begin().save(10)
    bench.asked.clear()
    with pytest.raises(
        HarnessError, match="the board already has a row 'run', the name that the final weights of"
    ):
        watched(place, Show())
    assert bench.asked == []


def test_another_base_is_refused(bench, place):  # noqa: F811
    run = Run(place / "run", place / "cold", pid=ended_pid()).begin().save(10)
    base(place / "other", "other")
    with pytest.raises(HarnessError, match="other is not the base that .*run trains on"):
        watched(place, Show(), base=str(place / "other"))
    os.rename(place / "cold", place / "moved")
    with pytest.raises(HarnessError, match="base of adapter .* is missing: .*/cold, which does not exist"):
        watched(place, Show())
    assert watched(place, Show(), base=str(place / "moved")) == ["run at step 10"]
    assert run.folder.is_dir()


@pytest.mark.parametrize("kind", ["scores", "file", "stranger", "sampling"])
def test_folders_that_hold_no_training_run_are_refused(bench, place, kind):  # noqa: F811
    target = place / "run"
    if kind == "scores":
        with manifest.writing("scores", target, {}):
            pass
    elif kind == "file":
        target.write_text("x")
    elif kind == "stranger":
        target.mkdir()
        (target / "thesis.txt").write_text("dear")
    else:
        (target / "unfinished").mkdir(parents=True)
        (target / "unfinished/run.json").write_text(json.dumps({"task": "pool"}))
    with pytest.raises(HarnessError, match=f"--watch {target} (is not an output folder|holds)"):
        watched(place, Show())


def test_an_incomplete_checkpoint_is_reported_and_the_last_one_scored(bench, place, asleep):  # noqa: F811
    run, show = Run(place / "run", place / "cold", steps=20).begin().save(10), Show()
    (run.unfinished / "checkpoint-10/adapter_model.safetensors").unlink()
    asleep += [lambda: run.finish()]
    assert watched(place, show) == ["run"]
    assert "checkpoint-10 has sharded weights" in show.said[0]


def test_a_failed_hard_link_is_reported(bench, place, monkeypatch):  # noqa: F811
    Run(place / "run", place / "cold").begin().save(10)

    def full(checkpoint, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "link", full)
    with pytest.raises(HarnessError, match="checkpoint-10 cannot be linked to .*No space left"):
        watched(place, Show())
    assert not (place / "board").exists()


def test_a_lock_knows_whether_its_owner_is_alive(tmp_path):
    path = tmp_path / lock.OWNER
    assert lock.at_work(path) is None
    lock.sign(tmp_path)
    assert lock.at_work(path) is True
    os.utime(path, (1, 1))  # signed long before this process began: by an earlier one with its number
    assert lock.at_work(path) is False
    path.write_text(json.dumps({"pid": ended_pid(), "host": lock.socket.gethostname()}))
    assert lock.at_work(path) is False
    path.write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere"}))
    assert lock.at_work(path) is None


def test_a_run_keeps_its_identity_when_it_finishes(place):
    run = Run(place / "run", place / "cold").begin().save(10)
    before = run_folder.identity(run.folder)
    run.finish()
    assert run_folder.identity(run.folder) == before
    assert watching.look(run.folder).finished is not None


@pytest.mark.slow
def test_a_real_training_run_is_watched(tmp_path):
    """`dcsft train sft` in one process and `dcsft score --watch` in another, which started first."""
    words = ["--suite", "digits", "--limit", "2", "--model-args", "batch_size=32", "--board", "board"]
    words += ["--baseline", "base", "--every", "0.2"]
    with forked.Popen(
        [*forked.DCSFT, "score", "base=digits", "--watch", "sft", *words],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as scoring:  # fmt: skip
        options = ["--max-steps", "4", "--save-steps", "2", "--keep", "2", "--batch-size", "2"]
        data = ["--model", "digits", "--data", "dcsft_digits_cold", "--learning-rate", "1e-3"]
        training = [*forked.DCSFT, "train", "sft", *data, *options, "--output", "sft"]
        forked.run(training, cwd=tmp_path, check=True)
        out, err = scoring.communicate(timeout=800)
    assert scoring.returncode == 0, err
    rows = manifest.read(tmp_path / "board/leaderboard").notes["rows"]
    assert rows == ["base", "sft at step 2", "sft"]
    assert (tmp_path / "board/leaderboard/plots/steps.png").is_file()
    document = json.loads((tmp_path / "board/leaderboard/leaderboard.json").read_text())
    steps = [row["provenance"][0]["training"]["ledger"]["steps"] for row in document["rows"][1:]]
    assert steps == [2, 4]
    assert out.count("difference") == 2


@pytest.mark.slow
def test_ctrl_c_stops_a_real_watch(tmp_path):
    """An interrupted run's checkpoints; the signal arrives while the second of them is scored."""
    base(tmp_path / "cold")
    words = ["--suite", "digits", "--limit", "4", "--model", "dcsft_stub", "--board", "board"]
    run = Run(tmp_path / "run", tmp_path / "cold").begin().save(10).save(20)
    with forked.Popen(
        [*forked.DCSFT, "score", "--watch", "run", *words]
        + ["--model-args", "default=seven,delay=0.1"],
        cwd=tmp_path, stderr=subprocess.PIPE,
    ) as scoring:  # fmt: skip
        second = tmp_path / "board/results/run at step 20"
        while not list(second.glob("*/manifest.json")) and scoring.poll() is None:
            time.sleep(0.05)
        scoring.send_signal(signal.SIGINT)
        _, err = scoring.communicate(timeout=120)
    assert (scoring.returncode, "interrupted; finished work is saved" in err) == (130, True), err
    assert manifest.read(tmp_path / "board/leaderboard").notes["rows"] == ["run at step 10"]
    assert manifest.is_intact(tmp_path / "board/leaderboard")
    assert not (second / "unfinished").exists()
    assert all(manifest.is_intact(path.parent) for path in second.glob("*/manifest.json"))
    assert run.folder.is_dir()


@pytest.mark.parametrize(
    ("name", "again", "told"),
    [
        ("run", [ID, OOD], []),
        ("SFT (seed 1)", [ID, OOD], []),
        ("run", [ID, OOD, "digits_a"], ["the steps 10, 20"]),  # without the new task's scores
    ],
)
def test_a_second_watch_reports_what_it_can_no_longer_score(bench, place, monkeypatch, name, again, told):  # noqa: F811
    run = Run(place / "run", place / "cold", steps=30, pid=ended_pid()).begin().save(10).save(20)
    watched(place, Show(), name=name)
    run.finish()
    monkeypatch.setitem(TASKS, "digits_a", "ood")
    monkeypatch.setattr(Scoring, "tasks", property(lambda self: again))
    show = Show()
    assert watched(place, show, name=name) == [name]
    said = [text for text in show.said if "no longer has" in text]
    assert len(said) == len(told) and all(part in text for part, text in zip(told, said, strict=True))

"""Several processes of one launch: the result of one process, whatever happens to one of them."""

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from dcsft_harness import evaluation, ranks, records, sampling
from dcsft_harness.artifacts import manifest, resuming
from dcsft_harness.artifacts.lock import locked
from dcsft_harness.artifacts.manifest import UNFINISHED
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.sampling import rollout_store
from tests.fixtures import forked

POOL = "dcsft_digits_pool"
DIGITS = "pretrained=digits,device=cpu,dtype=float32,batch_size={}"
SAID = "dcsft:", "dcsft (", "sample:"
ITEMS = 41  # so that one of two ranks gets more than the other


def launch(arguments, program=forked.DCSFT):
    """Starts the command in two processes connected by gloo; they are forks, and so is torchrun."""
    return started([*forked.TORCHRUN, *program, *arguments])


def started(words, **more):
    return forked.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(Path(__file__).parent / "fixtures"),
        },
    )


def finished(running):
    """A launch's exit code and its error messages."""
    said = running.communicate(timeout=300)[1]
    if running.returncode:
        print(said)  # shown if a test fails
    return running.returncode, [line for line in said.splitlines() if line.startswith(SAID)]


def wait_for_shards(output, running, numbers):
    paths = [output / UNFINISHED / f"shard-{number}.jsonl" for number in numbers]
    while not all(path.is_file() and path.stat().st_size for path in paths):
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.01)


def digits(output, batch_size=4):
    options = ["--task", POOL, "--samples", 4, "--limit", ITEMS, "--seed", 3, "--output", output]
    return ["sample", "--model-args", DIGITS.format(batch_size), *options]


def scripted(output, folder, leave_out=(), delay=0, items=12, *more):
    """A run of the scripted model that lacks answers to some documents."""
    script = folder / f"{output.name}.jsonl"
    lines = [
        {"task": POOL, "doc_id": at, "responses": [f"it is {at}", "seven", "two"]}
        for at in range(items)
        if at not in leave_out
    ]
    script.write_text("\n".join(map(json.dumps, lines)))
    options = ["--task", POOL, "--samples", 3, "--limit", items, *more, "--output", output]
    arguments = f"answers={script},batch_size=2,delay={delay}"
    return ["sample", "--model", "dcsft_stub", "--model-args", arguments, *options]


def rows(output):
    return records.read_table(output / sampling.ROLLOUTS, records.Rollout).to_pylist()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The samples of one process, and its manifest's notes."""
    output = tmp_path_factory.mktemp("alone") / "out"
    assert main([str(word) for word in digits(output)]) == 0
    return rows(output), manifest.read(output).notes


class TestLaunch:
    pytestmark = pytest.mark.slow

    def test_draws_the_samples_of_one_process_and_ends_its_threads_before_exit(self, tmp_path, alone):
        """A remaining thread of the group may abort the process on its way out."""
        script = tmp_path / "leaves.py"
        script.write_text(
            "import sys\nfrom dcsft_harness.cli import main\ncode = main(sys.argv[1:])\n"
            "from gloo import gloo_threads\n"
            "sys.stdout.write(f'left {code} {gloo_threads()}\\n')  # at once: the other writes, too\n"
        )
        words = [*forked.TORCHRUN, script, *digits(tmp_path / "out", batch_size=3)]
        running = started(words, fork_ranks=False)
        said, err = running.communicate(timeout=300)
        assert (running.returncode, said.splitlines()) == (0, ["left 0 []"] * 2), err
        assert sum(line.startswith("sample: 41 items, ") for line in err.splitlines()) == 1
        assert rows(tmp_path / "out") == alone[0]
        notes = manifest.read(tmp_path / "out", "rollouts").notes
        changed = {name for name in notes if notes[name] != alone[1][name]}
        assert changed == {"processes", "generation_seconds", "ledger"}
        measured = {name for name in notes["ledger"] if notes["ledger"][name] != alone[1]["ledger"][name]}
        assert measured <= {"seconds", "peak_memory_bytes"}
        assert manifest.is_intact(tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["leaves.py", "out"]
        assert UNFINISHED not in os.listdir(tmp_path / "out")

    def test_evaluates_k_responses_like_one_process(self, tmp_path):
        options = ["--tasks", "dcsft_digits", "--samples", 3, "--limit", 10]
        command = ["evaluate", "--model-args", DIGITS.format(4), *options]
        assert main([str(word) for word in [*command, "--output", tmp_path / "one"]]) == 0
        code, _ = finished(launch([*command, "--output", tmp_path / "two"]))
        assert code == 0
        tables = [
            records.read_table(tmp_path / name / "responses.parquet", records.Response).to_pylist()
            for name in ("one", "two")
        ]
        assert tables[0] == tables[1] and len(tables[0]) == 30
        assert manifest.read(tmp_path / "two").notes["processes"] == 2

    def test_one_process_or_two_resume_a_killed_launch(self, tmp_path, alone):
        output = tmp_path / "out"
        first = launch(digits(output, batch_size=1))
        wait_for_shards(output, first, (0, 1))
        for process in [psutil.Process(first.pid), *forked.ranks(first)]:
            process.kill()
        first.communicate()
        begun = {path.name: path.read_bytes() for path in (output / UNFINISHED).iterdir()}
        assert main([str(word) for word in digits(output)]) == 0
        assert rows(output) == alone[0]
        resumed = manifest.read(output).notes["resumed"]
        assert 8 <= resumed < 4 * ITEMS

        again = tmp_path / "again"
        (again / UNFINISHED).mkdir(parents=True)
        for name, content in begun.items():
            (again / UNFINISHED / name).write_bytes(content)
        (again / UNFINISHED / "shard-1.jsonl").rename(again / UNFINISHED / "shard-7.jsonl")
        second = launch(digits(again))
        said = second.communicate(timeout=300)[1]
        assert second.returncode == 0, said[-3000:]
        assert rows(again) == alone[0]
        assert manifest.read(again).notes["resumed"] == resumed

    def test_evaluates_like_one_process(self, tmp_path):
        def command(output):
            tasks = "dcsft_digits,dcsft_digits_ground"
            options = ["--tasks", tasks, "--limit", 5, "--name", "row", "--output", output]
            return ["evaluate", "--model-args", DIGITS.format(2), *options]

        assert main([str(word) for word in command(tmp_path / "one")]) == 0
        assert finished(launch(command(tmp_path / "two")))[0] == 0
        one, two = (
            records.read_table(tmp_path / name / evaluation.SCORES, records.Score).to_pylist()
            for name in ("one", "two")
        )
        assert one == two
        assert len(two) == 10
        notes = [manifest.read(tmp_path / name, "scores").notes for name in ("one", "two")]
        assert [note.pop("processes") for note in notes] == [1, 2]
        for note in notes:  # these differ from run to run
            del note["ledger"]["seconds"], note["ledger"]["peak_memory_bytes"]
        assert notes[0].pop("ledger") == pytest.approx(notes[1].pop("ledger"))
        assert notes[0] == notes[1]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]

    def test_works_with_fewer_items_than_processes(self, tmp_path):
        assert finished(launch(scripted(tmp_path / "out", tmp_path, items=1)))[0] == 0
        assert [row["response"] for row in rows(tmp_path / "out")] == ["it is 0", "seven", "two"]


class TestFailure:
    pytestmark = pytest.mark.slow

    def test_of_one_rank_ends_all_and_leaves_nothing_half_written(self, tmp_path):
        code, said = finished(launch(scripted(tmp_path / "out", tmp_path, leave_out=[5])))
        assert code == 1
        assert any(line.startswith("dcsft (rank 1): dcsft_stub has no response to") for line in said)
        assert os.listdir(tmp_path / "out") == [UNFINISHED]
        arguments = [str(word) for word in scripted(tmp_path / "out", tmp_path)]
        assert main(arguments) == 0
        assert len(rows(tmp_path / "out")) == 36
        assert manifest.read(tmp_path / "out").notes["resumed"] >= 6

    def test_of_all_ranks_is_reported_once(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years")
        code, said = finished(launch(scripted(tmp_path / "out", tmp_path)))
        assert (code, len(said)) == (1, 1)
        assert "is not empty and was not written by dcsft" in said[0]

    def test_a_killed_rank_ends_the_others_as_well(self, tmp_path):
        running = launch(scripted(tmp_path / "out", tmp_path, delay=0.4))
        wait_for_shards(tmp_path / "out", running, (0, 1))
        os.kill(forked.ranks(running)[1].pid, signal.SIGKILL)
        assert finished(running)[0] == 1
        assert os.listdir(tmp_path / "out") == [UNFINISHED]
        again = launch(scripted(tmp_path / "out", tmp_path))
        said = again.communicate(timeout=300)[1]
        assert again.returncode == 0, said[-3000:]
        assert len(rows(tmp_path / "out")) == 36

    def test_a_killed_engine_leaves_a_run_that_resumes_to_the_draws_of_one_process(self, tmp_path, alone):
        words = [*forked.DCSFT, *digits(tmp_path / "out", batch_size=1), "--num-processes", 2]
        running = started(words)
        wait_for_shards(tmp_path / "out", running, (0, 1))
        os.kill(forked.ranks(running)[1].pid, signal.SIGKILL)
        code, said = finished(running)
        assert (code, len(said)) == (1, 1), said
        assert said[0] == (
            "dcsft: process 1 of this launch was ended by signal 9 (SIGKILL). If memory ran out, lower "
            "batch_size in --model-args. Rerun the same command to resume."
        )
        assert os.listdir(tmp_path / "out") == [UNFINISHED]
        code, said = finished(started(words))
        assert code == 0 and said[0].startswith("sample: 41 items, "), said
        assert rows(tmp_path / "out") == alone[0]
        assert manifest.read(tmp_path / "out").notes["resumed"] >= 8

    def test_a_killed_parent_process_ends_the_ranks_and_the_run_can_be_resumed(self, tmp_path, monkeypatch):
        (tmp_path / "tmp").mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
        monkeypatch.setattr(tempfile, "tempdir", None)
        words = [*forked.DCSFT, *scripted(tmp_path / "out", tmp_path, delay=2), "--num-processes", 2]
        running = started(words)
        wait_for_shards(tmp_path / "out", running, (0, 1))
        left = forked.ranks(running)
        os.kill(running.pid, signal.SIGKILL)
        assert psutil.wait_procs(left, timeout=60)[1] == []
        said = running.communicate()[1]
        assert "dcsft: the process that started this launch is gone. Rerun the same command.\n" in said
        assert os.listdir(tmp_path / "out") == [UNFINISHED]
        words = [*forked.DCSFT, *scripted(tmp_path / "out", tmp_path), "--num-processes", 2]
        code, said = finished(started(words))
        assert code == 0 and len(rows(tmp_path / "out")) == 36, said
        assert [path.name for path in (tmp_path / "tmp").glob("torchelastic*")] == []

    def test_in_an_evaluation_leaves_a_run_that_can_be_resumed(self, tmp_path):
        script = scripted(tmp_path / "out", tmp_path, leave_out=[3])[4].replace(POOL, "dcsft_digits")
        answers = tmp_path / "out.jsonl"
        answers.write_text(answers.read_text().replace(POOL, "dcsft_digits"))
        options = ["--tasks", "dcsft_digits", "--limit", 8, "--output", tmp_path / "out"]
        command = ["evaluate", "--model", "dcsft_stub", "--model-args", script, *options]
        assert finished(launch(command))[0] == 1
        assert os.listdir(tmp_path / "out") == [UNFINISHED]
        with answers.open("a") as file:
            file.write("\n" + json.dumps({"task": "dcsft_digits", "doc_id": 3, "responses": ["three"] * 3}))
        assert finished(launch(command))[0] == 0
        scores = records.read_table(tmp_path / "out" / evaluation.SCORES, records.Score).to_pylist()
        assert [row["response"] for row in scores] == [
            "three" if at == 3 else f"it is {at}" for at in range(8)
        ]
        assert manifest.read(tmp_path / "out").notes["resumed"] > 0

    def test_of_an_item_is_skipped_on_every_rank(self, tmp_path):
        skip = ("--on-error", "skip")
        answers = {"folder": tmp_path, "leave_out": [2, 5]}
        one = scripted(tmp_path / "one", answers["folder"], answers["leave_out"], 0, 12, *skip)
        assert main([str(word) for word in one]) == 0
        two = scripted(tmp_path / "two", answers["folder"], answers["leave_out"], 0, 12, *skip)
        assert finished(launch(two))[0] == 0
        assert rows(tmp_path / "one") == rows(tmp_path / "two")
        assert manifest.read(tmp_path / "two").notes["skipped"] == 2


class TestOneProcess:
    def test_is_rank_0_of_1_and_agrees_with_itself(self, monkeypatch):
        monkeypatch.setenv("RANK", "3")  # as some clusters leave it in every shell
        assert (ranks.rank(), ranks.world_size(), ranks.gathered("me")) == (0, 1, ["me"])
        ranks.join()
        with pytest.raises(ValueError), ranks.agreed():
            raise ValueError
        ranks.leave()

    def test_a_launch_with_unreachable_processes_is_refused(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(HarnessError, match="announces several processes, but MASTER_ADDR is not set"):
            ranks.join()

    def test_another_rank_needs_the_folder_and_the_settings_of_rank_0(self, tmp_path):
        (tmp_path / UNFINISHED).mkdir()
        with pytest.raises(HarnessError, match="cannot see what rank 0 wrote to --output"):
            resuming._following(tmp_path, {"seed": 1})
        (tmp_path / UNFINISHED / "run.json").write_text('{"seed": 1}')
        with resuming._following(tmp_path, {"seed": 1}):
            pass
        with pytest.raises(HarnessError, match="other settings: seed: 1 -> 2"):
            resuming._following(tmp_path, {"seed": 2})

    def test_a_rank_that_outlived_its_launch_locks_the_folder(self, tmp_path):
        output = tmp_path / "out"
        (output / UNFINISHED).mkdir(parents=True)
        (output / UNFINISHED / "run.json").write_text("{}")
        with (
            locked(output / UNFINISHED / "lock-1", output),
            pytest.raises(HarnessError, match="is being written by"),
            rollout_store.opened(output, {}),
        ):
            pass

    def test_fewer_ranks_read_the_shards_of_more(self, tmp_path):
        output, counts = tmp_path / "out", {"n_prompt_tokens": 9, "n_tokens": 2, "seed": 0}
        row = {"item_id": "i", "response": "said", "finish_reason": "stop", **counts}
        for number in range(3):
            with pytest.raises(KeyboardInterrupt), rollout_store.opened(output, {}) as store:
                store.append([{**row, "sample_index": number}])
                raise KeyboardInterrupt
            shard = output / UNFINISHED / "shard-0.jsonl"
            shard.rename(shard.with_name(f"shard-{number + 4}.jsonl"))
        with rollout_store.opened(output, {}) as store:
            assert sorted(index for _, index in store.kept) == [0, 1, 2]

"""An unfinished rollouts folder: resumed, refused, locked, finished, and left by a killed process."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys

import pytest

from dcsft_harness import records, stages
from dcsft_harness.artifacts import disk, lock, manifest, resuming
from dcsft_harness.artifacts.manifest import UNFINISHED
from dcsft_harness.errors import HarnessError
from dcsft_harness.sampling import rollout_store
from tests.fixtures.artifacts import item, rollout, small_disk

SETTINGS = {"model": "dcsft_stub", "temperature": 0.9, "seed": 0, "limit": None}
HOLDS = """
import sys, time
from pathlib import Path
from dcsft_harness.sampling import rollout_store
with rollout_store.opened(Path(sys.argv[1]), {"seed": 0}) as store:
    print("holding", flush=True)
    time.sleep(600)
"""


def row(number, index=0, response="said"):
    counts = {"n_prompt_tokens": 9, "n_tokens": 2, "finish_reason": "stop", "seed": 0}
    return {"item_id": item(number).item_id, "sample_index": index, "response": response, **counts}


def keep(output, rows, settings=SETTINGS):
    """An interrupted run that kept these rows."""
    with pytest.raises(KeyboardInterrupt), rollout_store.opened(output, settings) as store:
        store.append(rows)
        raise KeyboardInterrupt
    return output


def kept(output, settings=SETTINGS):
    with rollout_store.opened(output, settings) as store:
        return {(draw.item_id, draw.sample_index): draw.response for draw in store.kept.values()}


def finish(store, text="rows"):
    with store.finishing({"task": "pool", "samples": 1}, {}) as draft:
        records.write_table(draft.folder / "rollouts.parquet", records.Rollout, [rollout(item(0), 0)])
        (draft.folder / "items").mkdir()
        (draft.folder / "items" / "data").write_text(text)
        draft.notes["items"] = 1


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class TestResuming:
    def test_kept_responses_are_read_again(self, tmp_path):
        keep(tmp_path / "out", [row(0), row(1, 1, "naïve\n")])
        assert kept(tmp_path / "out") == {(item(0).item_id, 0): "said", (item(1).item_id, 1): "naïve\n"}
        with pytest.raises(ValueError), rollout_store.opened(tmp_path / "out", SETTINGS) as store:
            assert store.resumed == 2
            store.append([row(2)])
            raise ValueError
        assert len(kept(tmp_path / "out")) == 3

    def test_a_run_without_a_response_leaves_nothing(self, tmp_path):
        with pytest.raises(KeyboardInterrupt), rollout_store.opened(tmp_path / "out", SETTINGS):
            raise KeyboardInterrupt
        assert names(tmp_path) == []
        (tmp_path / "mine").mkdir()
        with rollout_store.opened(tmp_path / "mine", SETTINGS):
            pass
        assert (names(tmp_path), names(tmp_path / "mine")) == (["mine"], [])

    def test_a_torn_last_record_is_cut_and_drawn_again(self, tmp_path):
        shard = keep(tmp_path / "out", [row(0), row(1)]) / UNFINISHED / rollout_store.SHARD
        shard.write_bytes(shard.read_bytes()[:-9])
        assert list(kept(tmp_path / "out")) == [(item(0).item_id, 0)]
        keep(tmp_path / "out", [row(1, response="again")])
        assert kept(tmp_path / "out")[item(1).item_id, 0] == "again"

    def test_a_damaged_record_is_named_and_drawn_again(self, tmp_path, caplog):
        shard = keep(tmp_path / "out", [row(n) for n in range(3)]) / UNFINISHED / rollout_store.SHARD
        lines = shard.read_bytes().splitlines(keepends=True)
        lines[1] = lines[1].replace(b"said", b"sand")
        shard.write_bytes(b"".join(lines))
        with caplog.at_level(logging.WARNING):
            assert set(kept(tmp_path / "out")) == {(item(n).item_id, 0) for n in (0, 2)}
        assert "shard-0.jsonl: damaged at line 2; sampling it again" in caplog.text

    def test_two_different_responses_for_one_sample_are_both_dropped(self, tmp_path, caplog):
        keep(tmp_path / "out", [row(0), row(1), row(0, response="other"), row(1)])
        assert kept(tmp_path / "out") == {(item(1).item_id, 0): "said"}
        assert f"two responses to item {item(0).item_id}, sample 0" in caplog.text

    def test_time_adds_up_over_interruptions(self, tmp_path, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(rollout_store.time, "monotonic", lambda: now[0])
        for start in (100.0, 900.0):  # another process, another clock
            now[0] = start
            with pytest.raises(KeyboardInterrupt), rollout_store.opened(tmp_path / "out", SETTINGS) as store:
                now[0] += 5  # the model is loaded
                store.begin()
                now[0] += 8
                store.append([row(int(start), index) for index in range(2)])
                raise KeyboardInterrupt
        shard = tmp_path / "out" / UNFINISHED / rollout_store.SHARD
        lines = shard.read_bytes().splitlines(keepends=True)
        shard.with_name("shard-1.jsonl").write_bytes(lines[0])  # a rank that sampled for 4 s at the same time
        with rollout_store.opened(tmp_path / "out", SETTINGS) as store:
            now[0] += 1
            assert (store.generation_seconds, store.seconds) == (16, 17)


class TestRefusals:
    def test_other_settings_are_shown_and_nothing_is_changed(self, tmp_path):
        output = keep(tmp_path / "out", [row(0)])
        other = {"model": "dcsft_stub", "temperature": 1.0, "seed": 0, "limit": 5, "scorer": "math"}
        with pytest.raises(HarnessError) as refused, rollout_store.opened(output, other):
            pass
        said = "temperature: 0.9 -> 1.0; limit: none -> 5; scorer: none -> math. Name another folder"
        assert f"{output} holds an unfinished run with other settings: {said}" in str(refused.value)
        assert len(kept(output)) == 1

    def test_a_setting_that_no_longer_matters_may_differ_or_be_missing(self, tmp_path):
        older = {**SETTINGS, "model argument device": "cpu"}
        output = keep(tmp_path / "out", [row(0)], older)
        for settings in (SETTINGS, older):
            assert kept(output, settings) == {(item(0).item_id, 0): "said"}
        keep(output, [row(1)])
        assert len(kept(output)) == len(kept(output, older)) == 2
        with pytest.raises(HarnessError, match="model argument dtype: none -> float16"):
            kept(output, {**SETTINGS, "model argument dtype": "float16"})

    def test_unreadable_settings_are_named(self, tmp_path):
        output = keep(tmp_path / "out", [row(0)])
        (output / UNFINISHED / lock.RUN).write_bytes(b"{\xff")
        with pytest.raises(HarnessError, match=r"run\.json cannot be read"), rollout_store.opened(output, {}):
            pass

    def test_a_shard_without_settings_is_read_by_its_own_run_only(self, tmp_path):
        output = keep(tmp_path / "out", [row(0)])
        (output / UNFINISHED / lock.RUN).unlink()
        assert len(kept(output)) == 1
        (output / UNFINISHED / lock.RUN).unlink()
        assert kept(output, {**SETTINGS, "seed": 1}) == {}

    @pytest.mark.parametrize("state", ["empty", "unfinished"])
    def test_foreign_files_are_refused_and_kept(self, tmp_path, state):
        output = tmp_path / "out"
        output.mkdir()
        if state == "unfinished":
            keep(output, [row(0)])
        (output / "thesis.tex").write_text("years")
        with pytest.raises(HarnessError, match=r"is not empty and was|thesis\.tex beside its unfinished"):
            kept(output)
        assert (output / "thesis.tex").read_text() == "years"

    @pytest.mark.parametrize(
        ("verb", "options"),
        [
            ("label", {"rollouts": "@"}),
            ("curate", {"labels": "@", "keep": ["easy"]}),
            ("leaderboard build", {"results": ["@"]}),
            ("train sft", {"model": "digits", "data": "@"}),
            ("train cold-start", {"model": "digits", "data": "@"}),
        ],
    )
    def test_every_later_stage_refuses_it_and_names_the_remedy(self, tmp_path, verb, options):
        output = keep(tmp_path / "out", [row(0)])
        given = {
            name: output if value == "@" else [output] if value == ["@"] else value
            for name, value in options.items()
        }
        with pytest.raises(HarnessError, match="an unfinished run.*Rerun the interrupted command"):
            stages.STAGES[verb](tmp_path / "next", **given)
        with pytest.raises(HarnessError, match="an unfinished run with other settings: .*stage"):
            stages.STAGES["evaluate"](output, model="dcsft_stub", tasks=["dcsft_digits"])

    def test_an_error_message_says_what_is_kept(self, tmp_path):
        said = "doc_id 3 is damaged. Replace it; 2 responses are saved; rerun the same command to resume."
        with pytest.raises(HarnessError) as failed, rollout_store.opened(tmp_path / "out", SETTINGS) as store:
            store.append([row(0), row(1)])
            raise HarnessError("doc_id 3 is damaged", "Replace it")
        assert str(failed.value) == said
        with pytest.raises(HarnessError) as failed, rollout_store.opened(tmp_path / "new", SETTINGS):
            raise HarnessError("doc_id 3 is damaged", "Replace it")
        assert str(failed.value) == "doc_id 3 is damaged. Replace it."


class TestTwoRuns:
    @pytest.fixture
    def holder(self, tmp_path):
        command = [sys.executable, "-c", HOLDS, str(tmp_path / "out")]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert running.stdout.readline().strip() == "holding"
        yield running
        running.kill()
        running.communicate()

    def test_the_second_is_refused_with_the_process_id_of_the_first_until_that_dies(self, tmp_path, holder):
        for _ in range(2):  # refusing changes nothing
            with pytest.raises(HarnessError, match=f"is being written by process {holder.pid}. Wait for it"):
                kept(tmp_path / "out", {"seed": 0})
        with pytest.raises(HarnessError, match=f"process {holder.pid}"):
            resuming.discard(tmp_path / "out")
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert kept(tmp_path / "out", {"seed": 0}) == {}

    def test_the_second_is_refused_in_the_same_process_too(self, tmp_path):
        with rollout_store.opened(tmp_path / "out", SETTINGS) as store:
            store.append([row(0)])
            with pytest.raises(HarnessError, match=f"process {os.getpid()}"):
                kept(tmp_path / "out")
        assert len(kept(tmp_path / "out")) == 1


class TestFinishing:
    def test_the_artifact_replaces_the_shard(self, tmp_path):
        output = keep(tmp_path / "out", [row(0)])
        with rollout_store.opened(output, SETTINGS) as store:
            finish(store)
        assert names(output) == ["items", "manifest.json", "rollouts.parquet"]
        assert manifest.is_intact(output)
        assert sorted(manifest.read(output, "rollouts").files) == ["items/data", "rollouts.parquet"]
        with pytest.raises(HarnessError, match="already holds rollouts"):
            kept(output)

    @pytest.mark.parametrize("moves", range(3))
    def test_a_process_that_dies_while_finishing_has_kept_everything(self, tmp_path, monkeypatch, moves):
        output = keep(tmp_path / "out", [row(0)])
        done, replace = [], os.replace

        def dies(source, target):
            if len(done) == moves and "draft" in str(source):
                raise SystemExit
            done.extend([1] if "draft" in str(source) else [])
            replace(source, target)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(disk.os, "replace", dies)
            with rollout_store.opened(output, SETTINGS) as store:
                finish(store, "first")
        with pytest.raises(HarnessError, match="an unfinished run"):
            manifest.read(output)
        with rollout_store.opened(output, SETTINGS) as store:
            assert len(store.kept) == 1
            finish(store, "second")
        assert names(output) == ["items", "manifest.json", "rollouts.parquet"]
        assert manifest.is_intact(output)
        assert (output / "items" / "data").read_text() == "second"

    def test_leftovers_of_a_process_that_died_after_the_manifest_are_removed(self, tmp_path, monkeypatch):
        output = keep(tmp_path / "out", [row(0)])
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "_tidy", lambda *_: None)
            with rollout_store.opened(output, SETTINGS) as store:
                finish(store)
        assert UNFINISHED in names(output)
        assert manifest.is_intact(output)
        with manifest.taken(output), pytest.raises(HarnessError, match="already holds rollouts"):
            manifest.refuse_occupied(output, resumes=True)
        assert UNFINISHED not in names(output)


class TestDisks:
    def test_a_full_disk_is_reported_and_kept_responses_stay(self, tmp_path):
        with small_disk(tmp_path / "disk", "64k") as remount:
            output = tmp_path / "disk" / "out"
            with (
                pytest.raises(
                    HarnessError, match=r"to .*out: No space left on device.* (\d+) responses are saved"
                ) as full,
                rollout_store.opened(output, SETTINGS) as store,
            ):
                for number in range(100):
                    store.append([row(number, response="x" * 2000)])
            count = int(str(full.value).split(" responses are saved")[0].split()[-1])
            assert 5 < count < 40
            remount("size=256k")
            assert len(kept(output)) == count

    def test_a_full_disk_while_finishing_loses_nothing(self, tmp_path):
        with small_disk(tmp_path / "disk", "64k") as remount:
            output = tmp_path / "disk" / "out"
            with (
                pytest.raises(HarnessError, match="No space left on device.* 1 responses are saved"),
                rollout_store.opened(output, SETTINGS) as store,
            ):
                store.append([row(0)])
                finish(store, "x" * 100_000)
            remount("size=256k")
            assert names(output) == [UNFINISHED]
            with rollout_store.opened(output, SETTINGS) as store:
                assert len(store.kept) == 1
                finish(store)
            assert manifest.is_intact(output)

    def test_a_full_disk_at_the_start_leaves_nothing(self, tmp_path):
        with small_disk(tmp_path / "disk", "64k"):
            (tmp_path / "disk" / "other").write_bytes(b"x" * 65536)
            with pytest.raises(HarnessError, match="No space left on device"):
                kept(tmp_path / "disk" / "out")
            assert names(tmp_path / "disk") == ["other"]

    def test_a_disk_too_full_for_the_settings_is_reported(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(disk, "write_text", full)
        with pytest.raises(HarnessError, match="No space left on device"):
            kept(tmp_path / "out")
        assert names(tmp_path) == []

    def test_a_read_only_folder_is_reported(self, tmp_path):
        with small_disk(tmp_path / "disk", "64k") as remount:
            keep(tmp_path / "disk" / "begun", [row(0)])
            remount("ro")
            for name in ("new", "begun"):
                with pytest.raises(HarnessError, match=f"rollouts to .*{name}: Read-only file system"):
                    kept(tmp_path / "disk" / name)
            remount("rw")
            assert len(kept(tmp_path / "disk" / "begun")) == 1

    def test_a_file_in_the_path_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(HarnessError, match="file/out: Not a directory"):
            kept(tmp_path / "file" / "out")


def test_a_lock_held_on_another_machine_names_that_machine(tmp_path):
    (tmp_path / "owner").write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    assert lock.owner(tmp_path / "owner") == "process 7 on elsewhere"
    assert "another process" in lock.owner(tmp_path / "nowhere")

"""Artifacts are written completely or not at all, know their inputs, and can be moved together."""

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcsft_harness import environment
from dcsft_harness.artifacts import lock, manifest, storage
from dcsft_harness.cli import main
from dcsft_harness.data import digits
from dcsft_harness.errors import HarnessError
from tests.fixtures.artifacts import small_disk
from tests.leaderboard.test_leaderboard import scores_folder


def write(folder, text="content", inputs=None, **config):
    with manifest.writing("labels", folder, config, inputs) as draft:
        (draft.folder / "part").mkdir()
        (draft.folder / "part" / "table").write_text(text)
        draft.notes["items"] = 3
    return folder


def files(folder):
    return sorted(path.name for path in folder.rglob("*"))


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 64 KiB."""
    with small_disk(tmp_path / "disk"):
        yield tmp_path / "disk"


class TestScratch:
    """A killed process leaves its scratch folder behind, which may be as large as a checkpoint."""

    def other(self, above, *, killed):
        """The scratch folder of another process, which is killed, or works until a pipe closes."""
        reading, writing = os.pipe()
        end, stop = os.pipe()
        process = os.fork()
        if not process:
            os.close(stop)
            scratch = lock.Scratch("merged", above)
            (scratch.folder / "model.safetensors").write_text("weights")
            os.write(writing, str(scratch.folder).encode())
            os.read(end, 1)
            os._exit(0)
        os.close(end)
        folder = Path(os.read(reading, 1000).decode())
        if killed:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        return folder, process, stop

    def test_a_killed_process_leftovers_are_removed_and_a_running_one_keeps_its_folder(self, tmp_path):
        dead, _, stopped = self.other(tmp_path, killed=True)
        alive, process, stop = self.other(tmp_path, killed=False)
        assert not dead.parent.exists()
        own = lock.Scratch("rows", tmp_path)
        assert (alive / "model.safetensors").is_file()
        own.remove()
        for one in (stop, stopped):
            os.close(one)
        os.waitpid(process, 0)
        lock.Scratch("other", tmp_path).remove()
        assert list(tmp_path.iterdir()) == []

    def test_a_process_looks_once_for_leftovers(self, tmp_path, monkeypatch):
        looked = []
        monkeypatch.setattr(lock, "_sweep", looked.append)
        for _ in range(3):
            lock.Scratch("rows", tmp_path)
        assert looked == []
        lock.Scratch("other", tmp_path)
        assert len(looked) == 3

    @pytest.mark.parametrize("signed", ['{"pid": 999999999, "host": "elsewhere"}', "{", None])
    def test_folders_of_other_machines_and_without_an_owner_are_kept(self, signed, tmp_path):
        dead, _, stop = self.other(tmp_path, killed=True)
        os.close(stop)
        if signed is None:
            (dead.parent / lock.OWNER).unlink()
        else:
            (dead.parent / lock.OWNER).write_text(signed)
        lock.Scratch("rows", tmp_path).remove()
        assert (dead / "model.safetensors").is_file()

    @pytest.mark.parametrize(
        ("left", "age", "stays"),
        [
            ([], 7200, False),
            ([lock.OWNER], 7200, False),
            ([], 60, True),  # another process may be using it
            (["mine"], 7200, True),
            ([lock.OWNER, "mine"], 7200, True),
        ],
    )
    def test_a_folder_without_a_lock_is_removed_after_an_hour(self, left, age, stays, tmp_path):
        folder = tmp_path / "rows-abc"
        folder.mkdir()
        for name in left:
            (folder / name).write_text("{}")
        os.utime(folder, (time.time() - age,) * 2)
        lock.Scratch("rows", tmp_path).remove()
        assert folder.exists() is stays
        assert not stays or sorted(path.name for path in folder.iterdir()) == sorted(left)

    def test_a_forked_child_keeps_its_parents_folder(self, tmp_path):
        own = lock.Scratch("rows", tmp_path)
        process = os.fork()
        if not process:
            own.remove()
            os._exit(0)
        os.waitpid(process, 0)
        assert len(list(tmp_path.iterdir())) == 1
        own.remove()
        own.remove()
        assert list(tmp_path.iterdir()) == []


class TestWriting:
    @pytest.mark.parametrize(
        ("place", "remedy"),
        [("link/out", "no broken link"), ("/proc/dcsft/out", "where files can be written")],
    )
    def test_a_folder_that_cannot_be_created_is_reported_with_the_reason(self, place, remedy, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        with (
            pytest.raises(HarnessError, match=f"cannot be created .*{remedy}"),
            manifest.taken(tmp_path / place),
        ):
            pass

    def test_a_finished_artifact_describes_itself(self, tmp_path):
        source = write(tmp_path / "source")
        found = manifest.read(write(tmp_path / "made", seed=1, inputs={"rollouts": source}), "labels")
        assert (found.kind, found.config, found.notes) == ("labels", {"seed": 1}, {"items": 3})
        assert found.key == manifest.key_of("labels", {"seed": 1}, {"rollouts": source})
        assert list(found.files) == ["part/table"]
        assert found.input_folder("rollouts") == source.resolve()
        assert 0 <= found.seconds < 60

    def test_the_manifest_records_the_call_of_the_running_stage_only(self, tmp_path):
        call = {"verb": "label", "options": {"rollouts": "rollouts"}}
        reset = manifest.CALL.set(call)
        made = write(tmp_path / "made")
        manifest.CALL.reset(reset)
        assert json.loads((made / "manifest.json").read_text())["call"] == call
        other = write(tmp_path / "other")
        assert json.loads((other / "manifest.json").read_text())["call"] == {}

    @pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt, SystemExit])
    def test_a_failed_write_leaves_nothing_behind(self, tmp_path, interruption):
        with pytest.raises(interruption), manifest.writing("labels", tmp_path / "out", {}) as draft:
            (draft.folder / "half").write_text("half")
            raise interruption
        assert files(tmp_path) == []

    def test_an_interrupt_while_hashing_leaves_nothing_behind(self, tmp_path, monkeypatch):
        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(environment, "packages", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out")
        assert files(tmp_path) == []

    def test_an_empty_folder_may_be_written_to(self, tmp_path):
        (tmp_path / "out").mkdir()
        assert manifest.read(write(tmp_path / "out")).kind == "labels"

    @pytest.mark.parametrize("moved", [False, True])
    def test_the_next_run_removes_what_a_killed_process_left(self, tmp_path, moved):
        left = tmp_path / "out" / "unfinished" / "draft-0f"
        left.mkdir(parents=True)
        (left / "half").write_text("half")
        if moved:  # it was killed while moving its files into place
            (tmp_path / "out" / "unfinished" / "moving.json").write_text('["half", "other"]')
            (tmp_path / "out" / "other").mkdir()
        write(tmp_path / "out")
        assert files(tmp_path) == ["manifest.json", "out", "part", "table"]

    def test_a_folder_that_holds_another_run_is_refused_and_kept(self, tmp_path):
        write(tmp_path / "out", "first")
        with pytest.raises(HarnessError, match="out already holds labels. Name another folder"):
            write(tmp_path / "out", "second")
        assert (tmp_path / "out" / "part" / "table").read_text() == "first"

    def test_a_folder_with_foreign_files_is_refused_and_kept(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("years")
        with pytest.raises(HarnessError, match="is not empty and was not written by dcsft"):
            write(tmp_path)
        assert files(tmp_path) == ["thesis.tex"]

    def test_files_that_appear_in_the_folder_meanwhile_are_not_overwritten(self, tmp_path):
        with (
            pytest.raises(HarnessError, match="was not written by dcsft"),
            manifest.writing("labels", tmp_path / "out", {}),
        ):
            (tmp_path / "out" / "theirs").write_text("theirs")
        assert files(tmp_path) == ["out", "theirs"]


def from_the_system():
    raise OSError(errno.ENOSPC, "No space left on device")


def from_a_library():
    try:
        from_the_system()
    except OSError as error:
        raise RuntimeError("An error occurred while generating the dataset") from error


def from_rust():
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


class TestFullDisk:
    # datasets and safetensors raise their own errors instead of the operating system's.
    @pytest.mark.parametrize("fails", [from_the_system, from_a_library, from_rust])
    def test_is_reported_in_one_sentence_and_nothing_is_left(self, tmp_path, fails):
        with (
            pytest.raises(HarnessError, match="labels to .*out: No space left.*nothing half-written"),
            manifest.writing("labels", tmp_path / "out", {}) as draft,
        ):
            (draft.folder / "half").write_text("half")
            fails()
        assert files(tmp_path) == []

    def test_other_errors_are_raised_unchanged(self, tmp_path):
        with pytest.raises(FileNotFoundError), manifest.writing("labels", tmp_path / "out", {}):
            (tmp_path / "nowhere").read_text()

    def test_on_a_real_file_system(self, full_disk):
        with (
            pytest.raises(HarnessError, match="No space left on device"),
            manifest.writing("labels", full_disk / "out", {}) as draft,
        ):
            pq.write_table(pa.table({"noise": [os.urandom(200_000)]}), draft.folder / "table.parquet")
        assert files(full_disk) == []

    def test_with_room_for_everything_but_the_manifest(self, full_disk):
        # 16 pages of 4 KiB: folders take none, these files take all of them.
        with (
            pytest.raises(HarnessError, match="No space left on device"),
            manifest.writing("labels", full_disk / "out", {}) as draft,
        ):
            free = os.statvfs(full_disk)
            (draft.folder / "table").write_bytes(b"x" * (free.f_bavail * free.f_bsize))
        assert files(full_disk) == []


class TestReading:
    def test_a_folder_without_a_manifest_is_no_artifact(self, tmp_path):
        with pytest.raises(HarnessError, match=r"is not a labels folder: it has no manifest\.json"):
            manifest.read(tmp_path, "labels")


class TestIsCurrent:
    def test_false_for_another_setting_kind_or_input(self, tmp_path):
        source, other = write(tmp_path / "source"), write(tmp_path / "other", "other")
        made = write(tmp_path / "made", seed=1, inputs={"rollouts": source})
        for key in (
            manifest.key_of("labels", {"seed": 2}, {"rollouts": source}),
            manifest.key_of("curated set", {"seed": 1}, {"rollouts": source}),
            manifest.key_of("labels", {"seed": 1}, {"rollouts": other}),
            manifest.key_of("labels", {"seed": 1}, {}),
        ):
            assert not manifest.is_current(made, key)

    @pytest.mark.parametrize("damage", ["changed", "removed", "no manifest", "no JSON"])
    def test_false_after_damage(self, tmp_path, damage):
        made = write(tmp_path / "made")
        key = manifest.read(made).key
        assert manifest.is_current(made, key)
        if damage == "changed":
            (made / "part" / "table").write_text("Content")
        elif damage == "removed":
            (made / "part" / "table").unlink()
        elif damage == "no manifest":
            (made / "manifest.json").unlink()
        else:
            (made / "manifest.json").write_text("{")
        assert not manifest.is_current(made, key)

    @pytest.mark.parametrize("damage", ["changed", "removed"])
    def test_a_changed_file_is_refused_by_name_and_other_files_only_on_request(self, tmp_path, damage):
        made = write(tmp_path / "made")
        manifest.refuse_changed(made)
        manifest.refuse_changed(tmp_path)  # which has no manifest
        if damage == "changed":
            (made / "part" / "table").write_text("Content")
        else:
            (made / "part" / "table").unlink()
        manifest.refuse_changed(made, "another")
        for names in ((), ("part/table", "another")):
            with pytest.raises(HarnessError, match="made/part/table does not match manifest.json beside it"):
                manifest.refuse_changed(made, *names)

    def test_false_for_a_missing_folder(self, tmp_path):
        assert not manifest.is_current(tmp_path / "nowhere", "key")


class TestInputs:
    def test_a_walk_names_each_input_once_and_missing_ones_too(self, tmp_path):
        first = write(tmp_path / "first")
        second = write(tmp_path / "second", inputs={"rollouts": first})
        last = write(tmp_path / "last", inputs={"labels": second, "rollouts": first})
        for gone in (False, True):
            if gone:
                shutil.rmtree(first)
            found = list(manifest.walk(manifest.read(last)))
            assert [(one.role, one.folder) for one in found] == [("labels", second), ("rollouts", first)]
            assert [one.made is None for one in found] == [False, gone]

    def test_a_changed_input_is_noticed(self, tmp_path):
        source = write(tmp_path / "source")
        made = manifest.read(write(tmp_path / "made", inputs={"rollouts": source}))
        shutil.rmtree(source)
        write(source, "something else")
        with pytest.raises(HarnessError, match=f"the rollouts that {made.folder} was made from .* changed"):
            made.input_folder("rollouts")

    def test_an_input_that_moved_by_itself_is_noticed(self, tmp_path):
        source = write(tmp_path / "source")
        made = manifest.read(write(tmp_path / "made", inputs={"rollouts": source}))
        source.rename(tmp_path / "elsewhere")
        with pytest.raises(HarnessError, match="no longer at"):
            made.input_folder("rollouts")

    def test_an_unknown_input_is_named(self, tmp_path):
        with pytest.raises(HarnessError, match="has no input 'rollouts'"):
            manifest.read(write(tmp_path / "made")).input_folder("rollouts")

    def test_the_whole_tree_can_be_moved(self, tmp_path):
        source = write(tmp_path / "here" / "source")
        write(tmp_path / "here" / "deep" / "made", inputs={"rollouts": source})
        (tmp_path / "here").rename(tmp_path / "there")
        made = manifest.read(tmp_path / "there" / "deep" / "made")
        assert made.input_folder("rollouts") == (tmp_path / "there" / "source").resolve()

    def test_relative_paths_work_from_any_folder(self, tmp_path, monkeypatch):
        write(tmp_path / "source")
        monkeypatch.chdir(tmp_path)
        write(manifest.Path("made"), inputs={"rollouts": manifest.Path("source")})
        (tmp_path / "below").mkdir()
        monkeypatch.chdir(tmp_path / "below")
        assert manifest.read(manifest.Path("../made")).input_folder("rollouts") == tmp_path / "source"

    def test_a_file_is_identified_by_its_content(self, tmp_path):
        (tmp_path / "mine.jsonl").write_text("one")
        before = manifest.fingerprint(tmp_path / "mine.jsonl")
        (tmp_path / "mine.jsonl").write_text("two")
        assert manifest.fingerprint(tmp_path / "mine.jsonl") != before

    def test_a_checkpoint_is_identified_by_its_configuration_and_weights_in_any_folder(self, tmp_path):
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text("weights")
        before = manifest.fingerprint(folder)
        (folder / "README.md").write_text("words")
        folder = folder.rename(tmp_path / "moved")
        assert manifest.fingerprint(folder) == before
        (folder / "model.safetensors").write_text("Weights")
        assert manifest.fingerprint(folder) != before


VERBS = {
    "label": ("rollouts", "label {} --output {out}"),
    "curate": ("labels", "curate {} --keep easy --output {out}"),
    "curate --exclude": ("overlap", "curate {labels} --keep easy --exclude {} --output {out}"),
    "train sft --data": ("curated set", "train sft --model digits --data {} --output {out}"),
    "train sft --model": ("checkpoint", "train sft --model {} --data dcsft_digits_cold --output {out}"),
    "train sft --adapter": (
        "adapter",
        "train sft --model digits --adapter {} --data dcsft_digits_cold --output {out}",
    ),
    "train cold-start": (
        "checkpoint",
        "train cold-start --model {} --data dcsft_digits_cold --output {out}",
    ),
    "train grpo --data": ("curated set", "train grpo --model digits --data {} --output {out}"),
    "train grpo --model": ("checkpoint", "train grpo --model {} --data dcsft_digits_pool --output {out}"),
    "sample": (
        "checkpoint",
        "sample --model-args pretrained={} --task dcsft_digits_pool --limit 1 --output {out}",
    ),
    "sample adapter": (
        "adapter",
        "sample --model-args pretrained=digits,adapter={} --task dcsft_digits_pool --limit 1 --output {out}",
    ),
    "evaluate": (
        "checkpoint",
        "evaluate --model-args pretrained={} --tasks dcsft_digits --limit 1 --output {out}",
    ),
    "evaluate adapter": (
        "adapter",
        "evaluate --model-args pretrained=digits,adapter={} --tasks dcsft_digits --limit 1 --output {out}",
    ),
    "sample --model": ("checkpoint", "sample --model {} --task dcsft_digits_pool --limit 1 --output {out}"),
    "evaluate --model": ("adapter", "evaluate --model {} --tasks dcsft_digits --limit 1 --output {out}"),
    "lmms-eval": (
        "checkpoint",
        "lmms-eval --model dcsft_hf --model_args pretrained={} --tasks dcsft_digits --limit 1",
    ),
    "merge": ("adapter", "merge {} --output {out}"),
    "push": ("checkpoint", "push {} owner/name"),
    "card": ("adapter", "card {}"),
    "card --scores": ("scores", "card {adapter} --scores {}"),
    "leaderboard build": ("scores", "leaderboard build {} --output {out}"),
    "leaderboard build --labels": ("labels", "leaderboard build {scores} --labels {} --output {out}"),
    "leaderboard build --rollouts": (
        "rollouts",
        "leaderboard build {scores} --samples 1 --rollouts {} --output {out}",
    ),
    "compare-cost": ("adapter", "compare-cost {} --output {out}"),
    "compare-cost --scores": ("scores", "compare-cost {adapter} --scores {} --output {out}"),
    "score": ("checkpoint", "score {} --suite digits --limit 1 --board {out}"),
    "score adapter": ("adapter", "score {} --base digits --suite digits --limit 1 --board {out}"),
    "score --watch": ("adapter", "score --watch {} --suite digits --limit 1 --board {out}"),
    "score --results": (
        "scores",
        "score digits --results {} --suite digits --limit 1 --board {out}",
    ),
}
"""Artifact kind and a command that reads it, by what is read."""


@pytest.fixture
def old(tmp_path):
    """Artifacts in the current format, by kind, for commands that need one next to the newer one."""
    folders = {}
    for kind in ("labels", "adapter"):
        folders[kind] = tmp_path / f"old {kind}"
        with manifest.writing(kind, folders[kind], {"method": "sft"}) as draft:
            (draft.folder / "adapter_config.json").write_text("{}")
    folders["scores"] = scores_folder(tmp_path / "old scores", "old", {"digits": [1, 0]})
    return folders


def newer(folder, kind, number=99):
    """An artifact in a format that this version does not know."""
    with manifest.writing(kind, folder, {}) as draft:
        for name in ("config.json", "adapter_config.json" if kind == "adapter" else "other.json"):
            (draft.folder / name).write_text("{}")
    path = folder / manifest.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": number}))
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_an_artifact_of_a_newer_format(tmp_path, capfd, old, verb):
    kind, command = VERBS[verb]
    folder = newer(tmp_path / "new", kind)
    words = [word.format(folder, out=tmp_path / "out", **old) for word in command.split(" ")]
    assert main(words) != 0
    said = capfd.readouterr().err
    wanted = (
        f"manifest.json is written in format 99, this version of dcsft_harness reads up to {manifest.FORMAT}"
    )
    assert wanted in said
    assert not (tmp_path / "out" / manifest.NAME).exists()


@pytest.mark.parametrize("number", [0, -1, "1", None, True, 1.5, [1]])
def test_a_format_that_is_not_a_number_is_refused(tmp_path, number):
    with pytest.raises(HarnessError, match="cannot be read.*format is"):
        manifest.read(newer(tmp_path / "new", "labels", number))


def test_another_packages_manifest_is_not_a_newer_format(tmp_path):
    (tmp_path / manifest.NAME).write_text('{"format": 99}')
    manifest.refuse_newer(tmp_path)


def test_a_newer_artifact_never_counts_as_unfinished_or_damaged(tmp_path):
    folder = newer(tmp_path / "new", "labels")
    for look in (manifest.is_intact, lambda one: manifest.is_current(one, "key"), manifest.fingerprint):
        with pytest.raises(manifest.NewerFormatError):
            look(folder)


FIRST = Path(__file__).parents[1] / "fixtures" / "first_edition"
"""Artifacts written by the first edition's last commit: six responses to three items of the digits pool."""


@pytest.fixture
def first_edition(tmp_path):
    """A copy of them that finds the embedded base where it was when they were made."""
    place = tmp_path / "tests" / "fixtures" / "first_edition"
    shutil.copytree(FIRST, place)
    base = tmp_path / "dcsft_harness" / "data" / "digits"
    base.mkdir(parents=True)
    (base / "base").symlink_to(digits.path())
    return place


FIRST_READERS = {
    "label": ["label", "rollouts", "--output", "out"],
    "curate": ["curate", "labels", "--keep", "easy,medium,hard", "--output", "out"],
    "leaderboard": ["leaderboard", "build", "scores", "--output", "out"],
    "costs": ["compare-cost", "adapter", "--scores", "scores", "--output", "out"],
    "card": ["card", "adapter", "--scores", "scores"],
}
_TRAIN = ["--model", "BASE", "--max-steps", "1", "--batch-size", "2", "--output", "out"]
_ADAPTED = ["--model-args", "pretrained=BASE,adapter=adapter", "--limit", "2", "--output", "out"]
FIRST_ENGINES = {
    "sft": ["train", "sft", *_TRAIN, "--data", "curated", "--adapter", "adapter"],
    "grpo": ["train", "grpo", *_TRAIN, "--data", "curated", "--num-generations", "2"],
    "dpo": ["train", "dpo", *_TRAIN, "--data", "rollouts"],
    "merge": ["merge", "adapter", "--prompts", "2", "--output", "out"],
    "evaluate": ["evaluate", "--tasks", "dcsft_digits", *_ADAPTED],
    "sample": ["sample", "--task", "dcsft_digits_pool", "--samples", "2", *_ADAPTED],
}


@pytest.mark.parametrize(
    "verb", [*FIRST_READERS, *(pytest.param(verb, marks=pytest.mark.slow) for verb in FIRST_ENGINES)]
)
def test_artifacts_of_the_first_edition_can_still_be_read(verb, first_edition, monkeypatch, capsys):
    monkeypatch.chdir(first_edition)
    base = "../../../dcsft_harness/data/digits/base"
    command = {**FIRST_READERS, **FIRST_ENGINES}[verb]
    code = main([word.replace("BASE", base) for word in command])
    said = capsys.readouterr()
    if verb == "dpo":  # its items were easy or hard, as most items with two samples are
        assert code == 1 and "none of 3 items has both a right and a wrong response" in said.err
        return
    assert code == 0, said.err
    if verb == "label":
        assert "3 items: 1 easy, 0 medium, 2 hard" in said.out + said.err
        ours, theirs = (pq.read_table(Path(name) / "labels.parquet") for name in ("out", "labels"))
        for column in theirs.column_names:
            assert ours[column].to_pylist() == theirs[column].to_pylist()
    if verb == "curate":
        ours, theirs = (storage.load(Path(name) / "data") for name in ("out", "curated"))
        assert ours["messages"][:] == theirs["messages"][:]
        assert [images[0].tobytes() for images in ours["images"][:]] == [
            images[0].tobytes() for images in theirs["images"][:]
        ]
    if verb == "leaderboard":
        assert "100.00" in said.out


def test_artifacts_of_the_first_edition_are_unchanged(first_edition):
    kinds = {"rollouts": "rollouts", "labels": "labels", "curated": "curated set", "adapter": "adapter"}
    for name, kind in {**kinds, "scores": "scores"}.items():
        found = manifest.read(first_edition / name)
        assert found.kind == kind and manifest.is_intact(first_edition / name)
        for role in found.inputs:
            assert found.input_folder(role).is_dir()


@pytest.mark.parametrize("unset", ["None", "none", "null", ""])
def test_an_unset_argument_names_no_weights(tmp_path, unset):
    made = write(tmp_path / "scores", model_args=f"pretrained=org/model,adapter={unset}")
    assert manifest.read(made).weights() == {"model": "org/model"}


def test_an_output_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(HarnessError, match="--output .*out is a file"), manifest.taken(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1

"""Artefacts are written whole or not at all, and know what they were made from."""

import errno
import shutil

import pytest

from dcsft_harness import manifest
from dcsft_harness.errors import HarnessError


def make(folder, kind="labels", text="x", inputs=None):
    with manifest.writing(kind, folder, {"a": 1}, inputs) as draft:
        (draft.folder / "file.txt").write_text(text)
    return folder


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(tmp_path, failure):
    with pytest.raises(type(failure)), manifest.writing("labels", tmp_path / "out", {}) as draft:
        (draft.folder / "half").write_text("half")
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    with pytest.raises(HarnessError, match="No space left.*nothing half-written"):
        with manifest.writing("labels", tmp_path / "out", {}):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_output_is_refused(tmp_path):
    make(tmp_path / "out")
    with pytest.raises(HarnessError, match="already holds labels"):
        make(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(HarnessError, match="not written by dcsft"):
        make(tmp_path / "mine")


def test_a_changed_file_makes_an_artefact_stale(tmp_path):
    folder = make(tmp_path / "out")
    key = manifest.read(folder).key
    assert manifest.is_current(folder, key)
    (folder / "file.txt").write_text("other")
    assert not manifest.is_current(folder, key)


def test_inputs_are_found_after_the_tree_moved_and_refused_once_changed(tmp_path):
    first = make(tmp_path / "tree" / "first", "rollouts")
    make(tmp_path / "tree" / "second", "labels", inputs={"rollouts": first})
    shutil.move(tmp_path / "tree", tmp_path / "moved")
    second = manifest.read(tmp_path / "moved" / "second", "labels")
    assert second.input_folder("rollouts") == (tmp_path / "moved" / "first").resolve()
    shutil.rmtree(tmp_path / "moved" / "first")
    make(tmp_path / "moved" / "first", "rollouts", text="another")
    with pytest.raises(HarnessError, match="have changed"):
        second.input_folder("rollouts")


def test_the_wrong_kind_and_a_broken_manifest_are_named(tmp_path):
    folder = make(tmp_path / "out", "labels")
    with pytest.raises(HarnessError, match="holds labels, where rollouts are needed"):
        manifest.read(folder, "rollouts")
    (folder / "manifest.json").write_bytes(b"\xff{")
    with pytest.raises(HarnessError, match="cannot be read"):
        manifest.read(folder)

"""Hashes stand in the manifests of what is on disk already: they stay what they were."""

import os
from pathlib import Path

from dcsft_harness.artifacts import disk
from dcsft_harness.artifacts.disk import file_sha256, folder_sha256, json_sha256


def test_hashes_of_earlier_artefacts_are_still_theirs(tmp_path):
    (tmp_path / "vision").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "vision" / "model.safetensors").write_text("weights")
    (tmp_path / "README.md").write_text("words")
    value = {"b": [1, 2.5, None], "a": Path("é/x")}
    assert json_sha256(value) == "c5b4551233f5ac59b8f3e93f93c4fa32aab1fe48a6778ec9ba6601ddf31bc5af"
    assert folder_sha256(tmp_path) == "57d60e874b2ee251bfe6ea34849182d5e6f4ab10afe63a83274be2c4a6426dce"
    config = file_sha256(tmp_path / "config.json")
    assert config == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_a_value_is_known_whatever_the_order_of_its_names():
    one, other = {"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}
    assert json_sha256(one) == json_sha256(other)
    assert json_sha256(one) != json_sha256({"a": 1, "b": [2, 1]})


def test_a_folders_files_are_remembered_only_while_they_stay_as_they_are(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_text("one")
    os.utime(path, (1, 1))
    first, read = folder_sha256(tmp_path), []
    digest = disk.hashlib.file_digest
    monkeypatch.setattr(disk.hashlib, "file_digest", lambda *given: read.append(given) or digest(*given))
    assert folder_sha256(tmp_path) == first
    assert read == []
    path.write_text("two")
    assert folder_sha256(tmp_path) != first


def test_a_file_that_was_just_written_is_read_each_time(tmp_path):
    """Within the resolution of the clock it may change without another time."""
    path = tmp_path / "model.safetensors"
    path.write_text("one")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    first = disk.settled_sha256(path)
    with path.open("r+") as file:
        file.write("two")
    os.utime(path, ns=times)
    assert disk.settled_sha256(path) == file_sha256(path) != first

"""Hashes are in the manifests of existing artifacts: they must never change."""

import os
from pathlib import Path

from dcsft_harness.artifacts import disk
from dcsft_harness.artifacts.disk import file_sha256, folder_sha256, json_sha256


def test_hashes_of_earlier_artifacts_still_match(tmp_path):
    (tmp_path / "vision").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "vision" / "model.safetensors").write_text("weights")
    (tmp_path / "README.md").write_text("words")
    value = {"b": [1, 2.5, None], "a": Path("é/x")}
    assert json_sha256(value) == "c5b4551233f5ac59b8f3e93f93c4fa32aab1fe48a6778ec9ba6601ddf31bc5af"
    assert folder_sha256(tmp_path) == "57d60e874b2ee251bfe6ea34849182d5e6f4ab10afe63a83274be2c4a6426dce"
    config = file_sha256(tmp_path / "config.json")
    assert config == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_a_hash_does_not_depend_on_key_order():
    one, other = {"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}
    assert json_sha256(one) == json_sha256(other)
    assert json_sha256(one) != json_sha256({"a": 1, "b": [2, 1]})


def test_a_folders_hash_is_cached_until_a_file_changes(tmp_path, monkeypatch):
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


def test_a_file_written_a_moment_ago_is_always_read_again(tmp_path):
    """A file may change within the resolution of the clock and keep its time stamp."""
    path = tmp_path / "model.safetensors"
    path.write_text("one")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    first = disk.settled_sha256(path)
    with path.open("r+") as file:
        file.write("two")
    os.utime(path, ns=times)
    assert disk.settled_sha256(path) == file_sha256(path) != first

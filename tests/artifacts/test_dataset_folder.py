"""Folders for `datasets`, written and read in pieces far smaller than the whole, also in another order."""

import json
import shutil
import tempfile
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pytest
from datasets import Dataset, Features, Image, List, Value, load_from_disk
from hypothesis import given
from hypothesis import strategies as st

from dcsft_harness import sampling
from dcsft_harness.artifacts import CuratedSet, manifest, storage
from dcsft_harness.artifacts.disk import file_sha256
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from tests.fixtures.artifacts import picture, rollouts

FEATURES = Features({"name": Value("string"), "images": List(Image())})


def rows(count=5):
    return [{"name": f"é{number}", "images": [picture(number)] * (number % 3)} for number in range(count)]


def written(folder, some):
    with storage.writing(folder, FEATURES) as writer:
        writer.rows(some)
    return folder


def test_datasets_reads_the_same_rows_as_from_its_own_folder(tmp_path):
    ours = load_from_disk(str(written(tmp_path / "ours", rows())))
    Dataset.from_list(rows(), features=FEATURES).save_to_disk(str(tmp_path / "theirs"))
    theirs = load_from_disk(str(tmp_path / "theirs"))
    assert ours.features == theirs.features == FEATURES
    assert ours.data.table == theirs.data.table
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == sorted(
        path.name for path in (tmp_path / "theirs").iterdir()
    )


def test_images_stored_by_path_are_embedded(tmp_path):
    picture(3).save(tmp_path / "three.png")
    opened = PIL.Image.open(tmp_path / "three.png")  # which knows its file, as it does in `datasets`
    folder = written(tmp_path / "some", [{"name": "a", "images": [picture(1), opened]}])
    stored = load_from_disk(str(folder)).data["images"].to_pylist()[0]
    assert stored[1] == {"bytes": (tmp_path / "three.png").read_bytes(), "path": "three.png"}
    assert stored[0]["path"] is None and stored[0]["bytes"]


def test_equal_rows_make_equal_bytes_and_other_rows_another_fingerprint(tmp_path):
    folders = [written(tmp_path / name, rows(count)) for name, count in (("a", 5), ("b", 5), ("c", 4))]
    one, same, other = ([path.read_bytes() for path in sorted(folder.iterdir())] for folder in folders)
    assert one == same
    prints = [json.loads((folder / "state.json").read_text())["_fingerprint"] for folder in folders]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("limit", ["ROWS", "BYTES"])
def test_rows_are_written_in_small_batches(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(storage, limit, 2)
    folder = written(tmp_path / "some", iter(rows()))
    with pa.OSFile(str(folder / storage.DATA)) as file, pa.ipc.open_stream(file) as stream:
        assert [len(batch) for batch in stream] == ([2, 2, 1] if limit == "ROWS" else [1] * 5)
    assert list(load_from_disk(str(folder))["name"]) == [row["name"] for row in rows()]


def test_an_image_at_an_address_is_not_fetched():
    row = {"name": "a", "images": [{"bytes": None, "path": "https://localhost:1/a.png"}]}
    table = pa.Table.from_pylist([row], schema=FEATURES.arrow_schema)
    assert storage.embedded(table).to_pylist() == [row]


def test_a_folder_without_rows_can_be_written(tmp_path):
    assert load_from_disk(str(written(tmp_path / "none", []))).to_list() == []


def test_a_folder_of_several_files_is_read_in_order_in_pieces(tmp_path):
    Dataset.from_list(rows(9), features=FEATURES).save_to_disk(str(tmp_path / "some"), num_shards=3)
    for size, pieces in ((1, 3), (1 << 30, 3)):
        found = list(storage.read(tmp_path / "some", ["name"], size))
        assert [table.column_names for table in found] == [["name"]] * pieces
        assert pa.concat_tables(found)["name"].to_pylist() == [row["name"] for row in rows(9)]


@pytest.mark.few(1)
@pytest.mark.parametrize(("columns", "most"), [(["name"], 0.01), (["name", "images"], 1.5)])
def test_a_table_holds_only_the_requested_columns(tmp_path, monkeypatch, columns, most):
    monkeypatch.setattr(storage, "BYTES", 1 << 20)
    noise = [PIL.Image.effect_noise((700, 700), 50) for _ in range(20)]
    folder = written(tmp_path / "a", [{"name": f"{n}", "images": [one]} for n, one in enumerate(noise)])
    size = (folder / storage.DATA).stat().st_size
    before = pa.total_allocated_bytes()
    tables = list(storage.read(folder, columns, 1 << 30))
    assert pa.concat_tables(tables)["name"].to_pylist() == [f"{n}" for n in range(20)]
    assert pa.total_allocated_bytes() - before < most * size


def test_images_stored_by_path_are_embedded_in_batches(tmp_path, monkeypatch):
    picture(3).save(tmp_path / "three.png")
    one = (tmp_path / "three.png").stat().st_size
    monkeypatch.setattr(storage, "BYTES", 3 * one)
    made, original = [], storage.embedded
    monkeypatch.setattr(storage, "embedded", lambda some: made.append(original(some)) or made[-1])
    named = {"bytes": None, "path": str(tmp_path / "three.png")}
    ten = [{"name": f"{n}", "images": [named]} for n in range(10)]
    with storage.writing(tmp_path / "rows", FEATURES) as writer:
        writer.rows(ten)
    with storage.writing(tmp_path / "table", FEATURES) as writer:
        writer.table(pa.Table.from_pylist(ten, schema=FEATURES.arrow_schema))
    assert max(some.num_rows for some in made) == 3
    for name in ("rows", "table"):
        stored = load_from_disk(str(tmp_path / name)).data
        assert stored["name"].to_pylist() == [f"{n}" for n in range(10)]
        assert {len(images[0]["bytes"]) for images in stored["images"].to_pylist()} == {one}


def test_unreadable_folders_are_named(tmp_path):
    with pytest.raises(HarnessError, match="none is not a folder saved by `datasets`"):
        list(storage.read(tmp_path / "none", ["name"], 1))
    folder = written(tmp_path / "some", rows())
    with pytest.raises(HarnessError, match=r"some/data-.*arrow lacks the column 'other'"):
        list(storage.read(folder, ["name", "other"], 1))
    data = folder / storage.DATA
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HarnessError, match=r"some/data-.*arrow cannot be read"):
        list(storage.read(folder, ["name"], 1))
    data.unlink()
    with pytest.raises(HarnessError, match=r"some/data-.*arrow cannot be read"):
        list(storage.read(folder, ["name"], 1))


def named(folder, name):
    """A folder whose state file names this file."""
    path = folder / storage.STATE
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "_data_files": [{"filename": name}]}))


ELSEWHERE = [
    "../other/data-00000-of-00001.arrow",
    "{}/other/data-00000-of-00001.arrow",
    "..",
    "",
    "a\0b",
    5,
    None,
]


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize(
    "reader", ["files", "names", "read", "load", "split", "curated set", "training", "label"]
)
def test_a_folder_cannot_name_files_outside_itself(reader, name, tmp_path, capsys):
    written(tmp_path / "other", rows())
    folder = written(tmp_path / "splits" / "some", rows())
    named(folder, name.format(tmp_path) if isinstance(name, str) else name)
    if reader == "training":
        command = [
            "train",
            "sft",
            "--model",
            "digits",
            "--data",
            str(folder),
            "--output",
            str(tmp_path / "out"),
        ]
    if reader == "label":
        rollouts(tmp_path / "rollouts", ["easy", "hard"], with_items=True)
        named(tmp_path / "rollouts" / sampling.ITEMS, name)
        path = tmp_path / "rollouts" / manifest.NAME
        data = json.loads(path.read_text())
        state = f"{sampling.ITEMS}/{storage.STATE}"
        data["files"][state] = file_sha256(tmp_path / "rollouts" / state)
        path.write_text(json.dumps(data))
        assert main(["label", str(tmp_path / "rollouts"), "--output", str(tmp_path / "labels")]) == 0
        capsys.readouterr()
        command = ["curate", str(tmp_path / "labels"), "--keep", "easy", "--output", str(tmp_path / "out")]
    if reader in ("training", "label"):
        capsys.readouterr()
        assert main(command) == 1
        said = capsys.readouterr().err
        assert "is not a file of this folder" in said and len(said.splitlines()) == 1
        assert not (tmp_path / "out").exists()
        return
    if reader == "curated set":
        shutil.copytree(folder, tmp_path / "set" / "data")
    if reader == "split":
        (tmp_path / "splits" / storage.SPLITS).write_text(json.dumps({"splits": ["some"]}))
    calls = {
        "files": lambda: storage.files(folder),
        "names": lambda: storage.names(folder),
        "read": lambda: list(storage.read(folder, ["name"], 1)),
        "load": lambda: storage.load(folder),
        "split": lambda: storage.load(tmp_path / "splits"),
        "curated set": lambda: CuratedSet(tmp_path / "set").table(),
    }
    with pytest.raises(HarnessError, match="is not a file of this folder"):
        calls[reader]()


def test_splits_cannot_name_folders_outside_the_dataset(tmp_path):
    written(tmp_path / "other", rows())
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / storage.SPLITS).write_text(json.dumps({"splits": ["../other"]}))
    with pytest.raises(HarnessError, match=r"'?\.\./other'? is not a file of this folder"):
        storage.load(tmp_path / "splits")


@pytest.mark.parametrize("file", [storage.STATE, "dataset_info.json", storage.SPLITS])
@pytest.mark.parametrize(
    "content", ["", "[]", "5", '{"splits": 5}', "[" * 100_000, '{"a": ' * 70 + "1" + "}" * 70]
)
def test_a_damaged_folder_is_reported_in_one_sentence(file, content, tmp_path):
    folder = written(tmp_path / "some", rows())
    (folder / file).write_text(content)
    with pytest.raises(HarnessError, match="some is not a folder saved by `datasets`") as told:
        storage.load(folder)
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize("name", ["../precious", "{}/precious", "..", "unfinished/../../precious"])
def test_cleaning_up_after_a_killed_process_stays_inside_the_folder(name, tmp_path):
    """Files left by a killed process are removed; names among them must not lead out of the folder."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").write_text("mine")
    left = tmp_path / "out" / manifest.UNFINISHED
    left.mkdir(parents=True)
    (left / manifest.MOVING).write_text(json.dumps([name.format(tmp_path)]))
    with manifest.writing("labels", tmp_path / "out", {}) as draft:
        (draft.folder / "a").write_text("a")
    assert (tmp_path / "precious" / "data").read_text() == "mine"


@given(data=st.data(), count=st.integers(1, 40), at_once=st.sampled_from([1, 50, 200, 10_000]))
def test_rows_come_in_the_requested_order(data, count, at_once):
    places = data.draw(st.permutations(range(count)))
    cuts = sorted(data.draw(st.sets(st.integers(1, count), max_size=4)) | {0, count})
    names = [[f"{place}"] * (place % 3) for place in places]
    table = pa.table({storage.PLACE: places, "names": pa.array(names, pa.list_(pa.string()))})
    tables = [table.slice(start, end - start) for start, end in zip(cuts, cuts[1:], strict=False)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "AT_ONCE", at_once)
        scratch = Path(folder) / "scratch"
        found = list(storage.reordered(iter(tables), count, table.nbytes, scratch))
        assert list(Path(folder).iterdir()) == []
    assert pa.concat_tables(found).to_pylist() == sorted(table.to_pylist(), key=lambda row: row["place"])
    if at_once == 1:
        assert [piece.num_rows for piece in found] == [1] * count

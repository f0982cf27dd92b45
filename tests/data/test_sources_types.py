"""Columns of other types than published: errors name file, row and column, without a traceback."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.data.benchmarks.prepared import prepare
from dcsft_harness.errors import HarnessError
from tests.fixtures import published
from tests.fixtures import reasoning as reasoning_fixtures

HUB = {
    "dcsft_imagenet": published.imagenet_val_hub,
    "dcsft_refcoco_testa": published.refcoco_hub,
    "dcsft_ref_l4": published.ref_l4,
}


@pytest.fixture(scope="module")
def reasoning(tmp_path_factory):
    folder = tmp_path_factory.mktemp("types")
    reasoning_fixtures.write(folder)
    return folder


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path / "data"))


def change(folder, column, value):
    """Replaces a column of every Parquet file by one value, as a conversion on the hub may."""
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path).replace_schema_metadata(None)
        at = table.column_names.index(column)
        pq.write_table(table.set_column(at, column, pa.array([value] * len(table))), path)
    return folder


@pytest.mark.parametrize(
    ("task", "column", "value"),
    [
        ("dcsft_imagenet", "image", "a path"),
        ("dcsft_imagenet", "image", 7),
        ("dcsft_refcoco_testa", "answer", 7),
        ("dcsft_refcoco_testa", "file_name", None),
        ("dcsft_ref_l4", "ori_category_id", None),
        ("dcsft_ref_l4", "bbox", "1 2 3 4"),
    ],
)
def test_a_column_of_another_type_is_refused_by_row(tmp_path, task, column, value):
    source = change(HUB[task](tmp_path / "source"), column, value)
    with pytest.raises(HarnessError, match=r"\.parquet, row 0.*: .*(Download|Correct) the"):
        prepare(task, source, any_count=True)
    assert not list((tmp_path / "data").glob("*"))


@pytest.mark.parametrize(("name", "column"), [("mathvista", "choices"), ("mathvision", "options")])
def test_options_that_are_not_a_list_are_refused_by_row(reasoning, name, column):
    change(reasoning / name, column, 7)
    with pytest.raises(HarnessError, match=rf"row 0: the column '{column}' holds 7, which is not a list"):
        prepare(f"dcsft_{name}", reasoning / name, any_count=True)


@pytest.mark.parametrize("value", [7, None])
def test_a_question_that_is_not_text_is_reported_and_can_be_skipped(tmp_path, value):
    """Otherwise the model would be asked "None"."""
    source = published.refcoco_val(tmp_path / "source")
    file = next(source.rglob("refcoco_val.json"))
    rows = json.loads(file.read_text())
    rows[1]["problem"] = value
    file.write_text(json.dumps(rows))
    with pytest.raises(HarnessError, match=r"refcoco_val\.json, row 2: "):
        prepare("dcsft_refcoco_val", source, any_count=True)
    notes = prepare("dcsft_refcoco_val", source, any_count=True, on_error="skip")
    assert (notes["rows"], notes["skipped"]) == (5, 1)


def test_images_with_identical_names_are_kept_apart(tmp_path):
    """Copies of ImageNet on the hub may name every image "image.jpg"."""
    source = published.imagenet_val_hub(tmp_path / "source")
    path = next(source.rglob("*.parquet"))
    table = pq.read_table(path)
    images = [{**image, "path": "image.jpg"} for image in table["image"].to_pylist()]
    at = table.column_names.index("image")
    pq.write_table(table.set_column(at, "image", pa.array(images, table.schema.field(at).type)), path)
    notes = prepare("dcsft_imagenet", source, any_count=True)
    assert notes["images"] == notes["rows"] > 1


def test_the_cache_of_datasets_can_be_read(tmp_path, reasoning):
    """Arrow files next to a dataset_info.json, with all splits together."""
    files = {"testmini": str(next((reasoning / "mathverse").rglob("*.parquet")))}
    loaded = datasets.load_dataset(
        "parquet", data_files={**files, "test": files["testmini"]}, cache_dir=str(tmp_path / "cache")
    )
    folder = Path(loaded["testmini"].cache_files[0]["filename"]).parent
    assert (folder / "dataset_info.json").is_file()
    assert prepare("dcsft_mathverse", folder, any_count=True)["rows"] == 20

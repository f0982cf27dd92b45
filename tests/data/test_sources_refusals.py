"""Bad published data: errors name the file, the row and the remedy, and nothing half-written is left."""

import json
import re
import tarfile
from fnmatch import fnmatch
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from datasets import Image, Value

from dcsft_harness import lmms
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.data.benchmarks import downloads, prepared
from dcsft_harness.data.benchmarks.prepared import prepare
from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms.tasks import listing
from tests.fixtures import published


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DCSFT_DATA", str(tmp_path / "data"))


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs `dcsft data prepare`, which must fail; returns its error message."""

    def run(task, source, *options):
        arguments = ["data", "prepare", task, "--source", str(source), *options]
        assert main(arguments) == 1
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("data prepare:")]
        assert len(said) == 1 and said[0].startswith("dcsft: ")
        assert not list((tmp_path / "data").glob("*")) + list((tmp_path / "data").glob(".*"))
        return said[0]

    return run


def bad_row(rows, number, **change):
    rows[number] = {**rows[number], **change}
    return rows


class TestSourceFaults:
    """A fault of the whole source stops preparation, whatever --on-error is."""

    def test_a_missing_folder(self, tmp_path, refused):
        said = refused("dcsft_imagenet_r", tmp_path / "nowhere")
        assert "--source" in said and "nowhere is not a folder" in said and "axiong/imagenet-r" in said

    def test_a_missing_source_option(self, capsys):
        assert main(["data", "prepare", "dcsft_imagenet_pool"]) == 1
        assert "dcsft_imagenet_pool needs --source DIR" in capsys.readouterr().err

    def test_an_unknown_task(self, capsys):
        assert main(["data", "prepare", "dcsft_imagenet_q"]) == 1
        assert "unknown benchmark 'dcsft_imagenet_q'. Did you mean dcsft_imagenet" in capsys.readouterr().err

    def test_a_column_of_an_older_revision(self, tmp_path, refused):
        rows = [{"image": {"bytes": published.encoded(0), "path": "a"}, "label": "hen"}]
        features = {"image": Image(), "label": Value("string")}
        source = published.parquet(tmp_path / "s" / "data" / "test-00000-of-00001.parquet", rows, features)
        said = refused("dcsft_imagenet_r", source, "--on-error", "skip")
        assert "test-00000-of-00001.parquet has no column wnid; it has image, label" in said
        assert "download it again" in said

    def test_a_truncated_parquet_file(self, tmp_path, refused):
        source = published.imagenet_r_hub(tmp_path / "s")
        (path,) = source.rglob("*.parquet")
        path.write_bytes(path.read_bytes()[:-200])
        assert f"{path} cannot be read" in refused("dcsft_imagenet_r", source)

    def test_a_truncated_datasets_folder(self, tmp_path, refused):
        source = published.imagenet_r_hub(tmp_path / "s")
        saved = tmp_path / "saved"
        datasets.Dataset.from_parquet(str(next(source.rglob("*.parquet")))).save_to_disk(str(saved))
        (path,) = saved.glob("*.arrow")
        path.write_bytes(path.read_bytes()[:500])
        assert f"{saved} is not a folder saved by `datasets` (" in refused("dcsft_imagenet_r", saved)

    def test_a_missing_split(self, tmp_path, refused):
        source = published.refcoco_hub(tmp_path / "s", split="val")
        said = refused("dcsft_refcoco_testa", source)
        assert "has no Parquet file of the split 'testA'" in said and "hf download" in said

    def test_missing_class_folders(self, tmp_path, refused):
        said = refused("dcsft_imagenet_a", published.imagenet_a(tmp_path / "s"))
        assert "lacks 85 of 87 class folders: n01616318" in said and "--any-count" in said

    def test_missing_images_are_counted_by_class(self, tmp_path, monkeypatch, refused):
        counted = {published.SEEN: 3, published.UNSEEN: 4}
        source = prepared.SOURCES["dcsft_imagenet_r"]
        fewer = source.__class__(**{**source.__dict__, "tally": ("class", counted), "count": 9})
        monkeypatch.setitem(prepared.SOURCES, "dcsft_imagenet_r", fewer)
        said = refused("dcsft_imagenet_r", published.imagenet_r_hub(tmp_path / "s"))
        assert "9 published rows, but 8 were found: n01498041 (4 of 3)" in said
        assert "--any-count" in said

    def test_unpublished_class_counts_in_the_published_number_of_rows(self, tmp_path, monkeypatch, refused):
        counted = {published.SEEN: 3, published.UNSEEN: 4, "n01443537": 1}
        source = prepared.SOURCES["dcsft_imagenet_r"]
        fewer = source.__class__(**{**source.__dict__, "tally": ("class", counted), "count": 8})
        monkeypatch.setitem(prepared.SOURCES, "dcsft_imagenet_r", fewer)
        said = refused("dcsft_imagenet_r", published.imagenet_r_hub(tmp_path / "s"))
        assert "8 published rows, but 8 were found: n01498041 (4 of 3), n01443537 (0 of 1)" in said

    @pytest.mark.parametrize("packed", [True, False])
    def test_annotations_only_in_thousandths(self, tmp_path, refused, packed):
        """VLM-R1's files for InternVL have the same names; read as pixels, most boxes look plausible."""
        source = published.refcoco_val(tmp_path / "s")
        path = source / "rec_jsons_processed" / "refcoco_val.json"
        rows = [{**row, "solution": [1, 2, 30, 40]} for row in json.loads(path.read_text())]
        path.unlink()
        text = json.dumps(rows).encode()
        if packed:
            published.zipped(source / "rec_jsons_internvl.zip", {"refcoco_val.json": text})
        else:
            published.put(source / "rec_jsons_internvl" / "refcoco_val.json", text)
        said = refused("dcsft_refcoco_val", source, "--any-count", "--on-error", "skip")
        assert "rec_jsons_internvl" in said and "has boxes in thousandths" in said
        assert "Take the file of rec_jsons_processed.zip" in said

    def test_an_unpublished_number_of_rows(self, tmp_path, refused):
        said = refused("dcsft_lisa", published.lisa(tmp_path / "s"))
        assert "dcsft_lisa has 1,658 published rows, but 4 were found" in said

    def test_a_truncated_tarball(self, tmp_path, refused):
        source = published.ref_l4(tmp_path / "s")
        path = source / "images.tar.gz"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        said = refused("dcsft_ref_l4", source, "--on-error", "skip", "--any-count")
        assert "images.tar.gz is damaged or truncated" in said and "Download it again" in said

    def test_a_truncated_zip_archive(self, tmp_path, refused):
        source = published.lisa(tmp_path / "s")
        path = source / "lisa_test.zip"
        path.write_bytes(path.read_bytes()[:-100])
        assert "lisa_test.zip is damaged or truncated" in refused("dcsft_lisa", source)

    def test_truncated_annotations(self, tmp_path, refused):
        source = published.lisa(tmp_path / "s")
        path = source / "lisa_test.json"
        path.write_text(path.read_text()[:-30])
        assert "lisa_test.json is not JSON, or is truncated" in refused("dcsft_lisa", source, "--any-count")

    def test_missing_annotations(self, tmp_path, refused):
        said = refused("dcsft_refcoco_val", published.coco(tmp_path / "s", 1))
        assert "has no refcoco_val.json, not in a zip archive either" in said
        assert "rec_jsons_processed.zip of omlab/VLM-R1" in said

    def test_a_missing_image_folder(self, tmp_path, refused):
        source = published.ref_l4(tmp_path / "s")
        (source / "images.tar.gz").unlink()
        assert "has neither images.tar.gz nor the folder images" in refused("dcsft_ref_l4", source)

    def test_a_task_that_is_already_prepared(self, tmp_path, capsys):
        source = published.lisa(tmp_path / "s")
        assert main(["data", "prepare", "dcsft_lisa", "--source", str(source), "--any-count"]) == 0
        capsys.readouterr()
        assert main(["data", "prepare", "dcsft_lisa", "--source", str(source), "--any-count"]) == 1
        assert "dcsft_lisa is already prepared in" in capsys.readouterr().err


class TestHub:
    @pytest.fixture(autouse=True)
    def no_files(self, monkeypatch):
        def fetch(*arguments, **options):
            raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)

    def fail(self, monkeypatch, error):
        def load(*arguments, **options):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load)

    def test_a_gated_dataset_without_access(self, monkeypatch, capsys):
        error = datasets.exceptions.DatasetNotFoundError("Dataset 'ILSVRC/imagenet-1k' is a gated dataset")
        self.fail(monkeypatch, error)
        assert main(["data", "prepare", "dcsft_imagenet"]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert (
            "ILSVRC/imagenet-1k is gated on the hub, and access was refused" in said
            and "hf auth login" in said
        )

    def test_an_unreachable_hub(self, monkeypatch, capsys):
        self.fail(monkeypatch, ConnectionError("Couldn't reach 'axiong/imagenet-r' on the Hub"))
        assert main(["data", "prepare", "dcsft_imagenet_r"]) == 1
        said = capsys.readouterr().err
        assert "axiong/imagenet-r cannot be loaded from the hub" in said and "--source DIR" in said

    def test_files_that_cannot_be_downloaded(self, capsys):
        assert main(["data", "prepare", "dcsft_lisa"]) == 1
        assert "omlab/VLM-R1 cannot be loaded from the hub" in capsys.readouterr().err

    def test_load_dataset_is_used_where_the_hub_has_no_parquet_files(self, tmp_path, monkeypatch):
        source = published.imagenet_r_hub(tmp_path / "r")
        saved = datasets.Dataset.from_parquet(str(next(source.rglob("*.parquet"))))
        asked = []

        def load(path, config, split):
            asked.append((path, config, split))
            return saved

        monkeypatch.setattr(datasets, "load_dataset", load)
        assert prepare("dcsft_imagenet_r", any_count=True)["rows"] == 8
        assert asked == [("axiong/imagenet-r", "test", "test")]

    @pytest.mark.parametrize(
        ("task", "make", "rows"),
        [
            ("dcsft_imagenet_r", published.imagenet_r_hub, 8),
            ("dcsft_imagenet", published.imagenet_val_hub, 3),
            ("dcsft_lisa", published.lisa, 4),
            ("dcsft_ref_l4", published.ref_l4, 6),
        ],
    )
    def test_only_the_needed_files_are_downloaded(self, tmp_path, monkeypatch, task, make, rows):
        made, patterns = make(tmp_path / "hub"), []

        def fetch(path, repo_type, allow_patterns):
            patterns.extend(allow_patterns)
            return str(made)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        assert prepare(task, any_count=True)["rows"] == rows
        wanted = {path.name for path in made.rglob("*") if path.is_file()}
        if task == "dcsft_lisa":
            wanted = {"rec_jsons_processed.zip", "lisa_test.zip"}
        assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in wanted)
        assert not any(fnmatch("data/train-00000-of-00294.parquet", pattern) for pattern in patterns)


def coco_rows(tmp_path, change):
    """RefCOCO's validation file with one changed row."""
    source = published.refcoco_val(tmp_path / "s")
    path = source / "rec_jsons_processed" / "refcoco_val.json"
    rows = json.loads(path.read_text())
    rows[2] = {**rows[2], **change}
    path.write_text(json.dumps([{k: v for k, v in row.items() if v is not None} for row in rows]))
    return source


ROWS = {
    "a box with negative area": ({"solution": [30.0, 6.0, 20.0, 20.0]}, "has no area, or a negative one"),
    "a box without area": ({"solution": [30.0, 6.0, 30.0, 20.0]}, "has no area, or a negative one"),
    "a box of another space": (
        {"solution": [300.0, 400.0, 600.0, 800.0]},
        "most of the box .* is outside its image",
    ),
    "three numbers": ({"solution": [30.0, 6.0, 20.0]}, "solution is .* not four numbers"),
    "no number": ({"solution": [float("nan"), 6.0, 20.0, 30.0]}, "solution is .* not four numbers"),
    "an old key": ({"solution": None, "bbox": [1, 2, 3, 4]}, "a row needs image, problem and solution"),
    "no words": ({"problem": " "}, "the problem has no words"),
    "a box in thousandths": (
        {"solution": [94, 125, 430, 485], "normalized_solution": [94, 125, 430, 485], "width": 64},
        "most of the box .* is outside its image|is in thousandths of the image of 64 x 48 pixels",
    ),
    "a small box in thousandths": (
        {"solution": [10, 12, 40, 44], "normalized_solution": [10, 12, 40, 44]},
        "is in thousandths of the image of 64 x 48 pixels",
    ),
    "a missing image file": (
        {"image": "train2014/x.jpg"},
        "the image train2014/x.jpg is neither below",
    ),
    "a resized image": (
        {"width": 640, "height": 480},
        "has 64 x 48 pixels, but its annotation says 640 x 480",
    ),
}


@pytest.mark.parametrize("kind", ROWS)
def test_an_unusable_row_is_an_error_or_is_counted_as_skipped(tmp_path, refused, kind, capsys):
    change, said = ROWS[kind]
    source = coco_rows(tmp_path, change)
    sentence = refused("dcsft_refcoco_val", source, "--any-count")
    assert "refcoco_val.json, row 3: " in sentence
    assert re.search(said, sentence)
    options = ["--source", str(source), "--any-count", "--on-error", "skip"]
    assert main(["data", "prepare", "dcsft_refcoco_val", *options]) == 0
    told = capsys.readouterr().err
    assert "row 3: " in told and "1 skipped" in told
    folder = prepared.folder_of("dcsft_refcoco_val")
    notes = manifest.read(folder).notes
    assert (notes["rows"], notes["skipped"]) == (5, 1)
    (line,) = (folder / "skipped.jsonl").read_text().splitlines()
    assert re.search(said, json.loads(line)["reason"])
    # The image that only the bad row had is not kept either.
    assert len(prepared.album("dcsft_refcoco_val")) == 3
    assert main(["tasks", "check", "dcsft_refcoco_val"]) == 0
    assert "5 documents, version 2, of 10,834 published rows, 1 rows skipped" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["dcsft_imagenet", "dcsft_imagenet_pool"])
def test_a_list_in_another_encoding_is_refused(tmp_path, refused, task):
    if task == "dcsft_imagenet":
        source = published.imagenet_val(tmp_path / "s", flat=True)
        path = source / "LOC_val_solution.csv"
    else:
        source = published.imagenet_train(tmp_path / "s", each=2)
        published.paper_list(source, "imagenet_cold_sft", [])
        path = published.paper_list(source, "imagenet_left_sft", [])
    path.write_bytes("\ufeffImageId,é".encode("utf-16"))
    assert f"{path} is not UTF-8 text" in refused(task, source, "--any-count")


def test_a_file_without_read_permission_is_not_called_damaged(tmp_path, refused, monkeypatch):
    def forbid(patch, name, folder):
        allowed = getattr(Path, name)

        def forbidden(self, *arguments, **options):
            if self.is_relative_to(folder):
                raise PermissionError(13, "Permission denied", str(self))
            return allowed(self, *arguments, **options)

        patch.setattr(Path, name, forbidden)

    source = published.imagenet_r(tmp_path / "s")
    with monkeypatch.context() as patch:
        forbid(patch, "iterdir", source)
        said = refused("dcsft_imagenet_r", source, "--any-count")
    assert f"{source}/imagenet-r/n01498041 cannot be read (Permission denied). Check its permissions" in said
    source = published.lisa(tmp_path / "l")
    with monkeypatch.context() as patch:
        forbid(patch, "open", source)
        said = refused("dcsft_lisa", source, "--any-count")
    assert "lisa_test.json cannot be read (Permission denied). Check its permissions" in said


def test_a_file_that_is_not_an_image_is_named(tmp_path, refused):
    """The reason goes into the manifest, so it holds nothing specific to a run."""
    source = published.imagenet_r(tmp_path / "s")
    path = published.put(source / "imagenet-r" / published.SEEN / "x.jpg", b"words")
    said = refused("dcsft_imagenet_r", source, "--any-count")
    assert f"{path}: the image n01498041/x.jpg cannot be read (not an image that Pillow can read)" in said


def test_a_truncated_image_is_named(tmp_path, refused):
    source = published.imagenet_r(tmp_path / "s")
    path = source / "imagenet-r" / published.SEEN / "cartoon_1.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    said = refused("dcsft_imagenet_r", source, "--any-count")
    assert f"{path}: the image n01498041/cartoon_1.jpg cannot be read (" in said
    notes = prepare("dcsft_imagenet_r", source, any_count=True, on_error="skip")
    assert (notes["rows"], notes["images"], notes["skipped"]) == (7, 7, 1)


def test_a_hub_row_without_an_image_is_named(tmp_path, refused):
    source = published.refcoco_hub(tmp_path / "s")
    (path,) = source.rglob("*.parquet")
    rows = datasets.Dataset.from_parquet(str(path)).cast_column("image", Image(decode=False)).to_list()
    rows[2]["image"] = None
    published.parquet(path, rows, datasets.Dataset.from_parquet(str(path)).features)
    said = refused("dcsft_refcoco_testa", source, "--any-count")
    assert f"{path}, row 2, expression 0: there is no image in the row" in said


def test_images_missing_in_the_archive_are_named_row_by_row(tmp_path, refused):
    source = published.ref_l4(tmp_path / "s", leave_out=["objects365_v1_7.jpg"])
    said = refused("dcsft_ref_l4", source, "--any-count")
    assert "ref-l4-test.parquet, row 0: the image objects365_v1_7.jpg is not in" in said
    notes = prepare("dcsft_ref_l4", source, any_count=True, on_error="skip")
    assert (notes["rows"], notes["skipped"]) == (4, 2)


def test_skipped_rows_count_as_found(tmp_path, monkeypatch):
    source = prepared.SOURCES["dcsft_lisa"]
    four = source.__class__(**{**source.__dict__, "count": 4})
    monkeypatch.setitem(prepared.SOURCES, "dcsft_lisa", four)
    folder = published.lisa(tmp_path / "s")
    path = folder / "lisa_test.json"
    rows = json.loads(path.read_text())
    rows[0]["solution"] = [0, 0, 0, 0]
    path.write_text(json.dumps(rows))
    assert prepare("dcsft_lisa", folder, on_error="skip")["rows"] == 3


class TestUnprepared:
    def test_evaluation_names_the_command_that_prepares_the_data(self, tmp_path, capsys):
        options = ["--model", "dcsft_stub", "--output", str(tmp_path / "out")]
        assert main(["evaluate", "--tasks", "dcsft_lisa", *options]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "the data of dcsft_lisa is not prepared" in said and "`dcsft data prepare dcsft_lisa`" in said

    def test_a_group_names_every_unprepared_task(self):
        with pytest.raises(HarnessError, match="the data of 3 tasks is not prepared: dcsft_imagenet, "):
            lmms.open_tasks(["dcsft_classification"])

    def test_a_folder_of_another_version_is_refused(self, tmp_path, monkeypatch):
        prepare("dcsft_lisa", published.lisa(tmp_path / "s"), any_count=True)
        source = prepared.SOURCES["dcsft_lisa"]
        newer = source.__class__(**{**source.__dict__, "version": 9})
        monkeypatch.setitem(prepared.SOURCES, "dcsft_lisa", newer)
        with pytest.raises(HarnessError, match="was prepared in version 2, but dcsft_lisa reads version 9"):
            lmms.open_tasks(["dcsft_lisa"])

    def test_every_reader_has_the_data_root_option(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("DCSFT_DATA", str(tmp_path / "unused"))
        root = ["--data-root", str(tmp_path / "mine")]
        source = published.lisa(tmp_path / "s")
        arguments = ["data", "prepare", "dcsft_lisa", "--source", str(source), "--any-count"]
        assert main([*arguments, *root]) == 0
        assert (tmp_path / "mine" / "dcsft_lisa" / "manifest.json").is_file()
        monkeypatch.setenv("DCSFT_DATA", str(tmp_path / "unused"))
        assert main(["tasks", "check", "dcsft_lisa"]) == 1
        assert main(["tasks", "check", "dcsft_lisa", *root]) == 0
        output = ["--output", str(tmp_path / "out")]
        stub = ["--model", "dcsft_stub", "--model-args", "default=?"]
        assert main(["evaluate", "--tasks", "dcsft_lisa", "--limit", "2", *stub, *root, *output]) == 0


def test_check_lists_what_is_present_and_what_is_missing(tmp_path, monkeypatch, capsys):
    prepare("dcsft_lisa", published.lisa(tmp_path / "s"), any_count=True)
    grounding = [row for row in listing() if row["family"] == "grounding" and "digits" not in row["task"]]
    monkeypatch.setattr("dcsft_harness.lmms.tasks.listing", lambda: grounding)
    assert main(["tasks", "check"]) == 0
    said = capsys.readouterr().out
    assert "1 tasks load; 8 have no data yet" in said
    assert "dcsft_lisa: 4 documents, version 2, of 1,658 published rows" in said
    assert "dcsft_ref_l4: not prepared. Run `dcsft data prepare dcsft_ref_l4`." in said
    assert main(["tasks", "check", "dcsft_grounding"]) == 1
    told = capsys.readouterr()
    assert "dcsft_lisa: 4 documents" in told.out
    assert "4 tasks do not load: dcsft_refcoco_val, dcsft_refcoco_testa" in told.err


def test_a_tar_archive_is_read_in_one_pass(tmp_path):
    """One pass, whatever the order of the members: nothing is unpacked, and there are no seeks."""
    from dcsft_harness.data.benchmarks.downloads import tar_members

    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("c", "a", "b"):
            archive.add(published.put(tmp_path / name, name.encode()), arcname=f"images/{name}")
    assert list(tar_members(path)) == [("images/c", b"c"), ("images/a", b"a"), ("images/b", b"b")]


def test_parquet_files_are_found_by_split_and_configuration(tmp_path):
    for name in (
        "data/test-00000-of-00001.parquet",
        "ref-l4-test.parquet",
        "test/0000.parquet",
        "a/test-0.parquet",
    ):
        published.put(tmp_path / name, b"")
    published.put(tmp_path / "data/testA-0.parquet", b"")
    hub = downloads.Hub("x/y", split="test")
    assert len(downloads.parquet_files(tmp_path, hub)) == 4
    of_a = downloads.parquet_files(tmp_path, downloads.Hub("x/y", split="test", config=("a", "b")))
    assert [str(path.relative_to(tmp_path)) for path in of_a] == [
        "a/test-0.parquet",
        "data/test-00000-of-00001.parquet",
        "ref-l4-test.parquet",
    ]

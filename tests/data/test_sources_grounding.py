"""RefCOCO, Ref-L4 and LISA from their published forms to scores."""

import io
import json
import re
from dataclasses import replace

import datasets
import pytest
from PIL import ExifTags, Image

from dcsft_harness import lmms
from dcsft_harness.data.benchmarks import Opened, grounding, prepared
from dcsft_harness.data.benchmarks.downloads import Files
from dcsft_harness.data.benchmarks.grounding import box_row
from dcsft_harness.data.benchmarks.prepared import Album, prepare
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.stub import DcsftStub
from tests.fixtures import published


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DCSFT_DATA", str(tmp_path / "data"))


def made(task, folder, **options):
    notes = prepare(task, folder, any_count=True, **options)
    return notes, prepared.load(task)


def by_prompt(rows):
    return {row["prompt"]: row for row in rows}


@pytest.mark.parametrize("packed", [False, True])
def test_validation_rows_equal_those_of_vlm_r1(tmp_path, packed):
    notes, rows = made("dcsft_refcoco_val", published.refcoco_val(tmp_path / "s", packed=packed))
    assert (notes["rows"], notes["images"], list(notes["read"])) == (
        6,
        3,
        ["rec_jsons_processed.zip" if packed else "refcoco_val.json"],
    )
    row = by_prompt(rows)[
        "Please provide the bounding box coordinate of the region this sentence describes: the cat number 3."
    ]
    assert json.loads(row["answer"]) == [7.0, 6.0, 28.5, 23.25]
    assert row["target"] == "[7, 6, 28.5, 23.25]"
    assert (row["width"], row["height"]) == (64, 48)
    assert row["cluster"] == "COCO_train2014_000000000001.jpg"
    assert prepared.encoded("dcsft_refcoco_val", row["images"][0]) == published.encoded(5001, (64, 48))


def test_sets_with_the_same_coco_image_share_its_cluster(tmp_path):
    """Rows of one image in two tasks are not independent."""
    found = [
        set(made(task, source)[1]["cluster"])
        for task, source in (
            ("dcsft_refcoco_val", published.refcoco_val(tmp_path / "val")),
            ("dcsft_refcoco_testa", published.refcoco_hub(tmp_path / "a")),
            ("dcsft_ref_l4", published.ref_l4(tmp_path / "l4")),
        )
    ]
    assert set.intersection(*found) == {"COCO_train2014_000000000001.jpg"}


def test_lisa_images_are_read_from_the_archive(tmp_path):
    _, rows = made("dcsft_lisa", published.lisa(tmp_path / "s"))
    assert sorted(rows["target"]) == [f"[10, 20, {60 + n}, 70]" for n in range(4)]
    assert set(zip(rows["width"], rows["height"], strict=True)) == {(90, 80)}


def test_every_expression_for_an_object_is_a_row(tmp_path):
    source = published.refcoco_hub(tmp_path / "s")
    with pytest.raises(HarnessError, match="testA has 1,975 published objects, but 4 were found"):
        prepare("dcsft_refcoco_testa", source)
    notes, rows = made("dcsft_refcoco_testa", source)
    assert (notes["rows"], notes["images"]) == (6, 2)
    assert {re.search("describes: (.*)[.]", text)[1] for text in rows["prompt"]} == {
        "man 0",
        "man 1",
        "guy 1 on the left",
        "man 2",
        "man 3",
        "guy 3 on the left",
    }
    row = next(row for row in rows if "guy 3" in row["prompt"])
    assert json.loads(row["answer"]) == [8.0, 6.0, 28.0, 22.0]
    # Rows of an image are one cluster, whichever object they ask for.
    assert len(set(rows["cluster"])) == 2


def test_different_images_with_the_same_file_name_are_kept_apart(tmp_path):
    """A copy of the set gives all of them the same name; the boxes of one do not fit the other."""
    source = published.refcoco_hub(tmp_path / "s")
    (file,) = source.rglob("*.parquet")
    before = datasets.Dataset.from_parquet(str(file))
    alike = before.map(lambda row: {"file_name": "COCO_train2014_000000000007.jpg"})
    alike.to_parquet(str(file))
    notes, rows = made("dcsft_refcoco_testa", source)
    assert (notes["rows"], notes["images"]) == (6, 2)
    names = set()
    for row in rows:
        number = int(re.search(r"(?:man|guy) (\d)", row["prompt"])[1])
        (index,) = row["images"]
        assert prepared.encoded(row["source"], index) == published.encoded(6000 + number // 2, (64, 48))
        assert row["cluster"] == prepared.name(row["source"], index)
        names.add(row["cluster"])
    plain, other = sorted(names)
    assert plain == "COCO_train2014_000000000007.jpg" and other.startswith(f"{plain} (")


class TestArchives:
    def test_files_with_the_same_base_name_are_distinguished_by_folder(self, tmp_path):
        members = {f"{folder}/1.jpg": folder.encode() for folder in ("a", "b")}
        published.zipped(tmp_path / "c.zip", {**members, "1.jpg": b"c"})
        published.zipped(tmp_path / "d.zip", {"2.jpg": b"two", "copy/2.jpg": b"two"})
        found = Files(tmp_path)
        assert [found.image(name)() for name in ("a/1.jpg", "b/1.jpg", "c/1.jpg")] == [b"a", b"b", b"c"]
        assert found.image("e/2.jpg")() == b"two"
        with pytest.raises(
            HarnessError, match=r"e/1.jpg can be c.zip: a/1.jpg or c.zip: b/1.jpg or .*Unpack"
        ):
            found.image("e/1.jpg")()

    @pytest.mark.parametrize("unpacked", [(), ("internvl",), ("processed",)])
    @pytest.mark.parametrize("folder", ["", "{}/"])
    def test_annotations_in_pixels_are_chosen(self, tmp_path, folder, unpacked):
        """omlab/VLM-R1 has files of the same names for InternVL, which come first."""
        source = published.refcoco_val(tmp_path / "s", packed=True)
        rows = [{**published.vlm_r1_row(number), "solution": [1, 2, 3, 4]} for number in range(6)]
        for stem, text in (
            ("rec_jsons_internvl", json.dumps(rows)),
            ("rec_jsons_processed", json.dumps([published.vlm_r1_row(number) for number in range(6)])),
        ):
            (source / f"{stem}.zip").unlink(missing_ok=True)
            name = f"{folder.format(stem)}refcoco_val.json"
            if stem.endswith(unpacked):
                published.put(source / stem / "refcoco_val.json", text.encode())
            else:
                published.zipped(source / f"{stem}.zip", {name: text.encode()})
        _, found = made("dcsft_refcoco_val", source)
        assert "[1, 2, 3, 4]" not in found["target"] and len(found) == 6


@pytest.mark.parametrize("unpacked", [False, True])
def test_ref_l4_images_are_read_from_the_archive_or_a_folder(tmp_path, unpacked):
    notes, rows = made("dcsft_ref_l4", published.ref_l4(tmp_path / "s", unpacked=unpacked))
    assert (notes["rows"], notes["images"], notes["values"]) == (6, 3, {"split": {"val": 2, "test": 4}})
    row = next(row for row in rows if "number 4" in row["prompt"])
    # A caption ends in one full stop, though both it and the prompt have one.
    assert row["prompt"].endswith("the thing that stands beside another.")
    assert json.loads(row["answer"]) == [5.0, 6.0, 165.0, 156.0]
    assert {row["category"] for row in rows} == {"o365_1", "o365_100000"}
    assert len(prepared.load("dcsft_ref_l4_val")) == 2
    assert set(prepared.load("dcsft_ref_l4_test")["split"]) == {"test"}


def test_preparing_a_part_of_ref_l4_prepares_the_whole(tmp_path):
    made("dcsft_ref_l4_test", published.ref_l4(tmp_path / "s"))
    assert prepared.folder_of("dcsft_ref_l4_val") == prepared.folder_of("dcsft_ref_l4")
    assert len(prepared.load("dcsft_ref_l4")) == 6


def test_a_part_of_ref_l4_reports_its_own_rows(tmp_path):
    """A result on the 13,420 rows of val must not pretend to cover 45,341."""
    made("dcsft_ref_l4", published.ref_l4(tmp_path / "s"))
    parts = {name: prepared.described(f"dcsft_ref_l4{name}") for name in ("", "_val", "_test")}
    assert {name: (one["rows"], one["published"]) for name, one in parts.items()} == {
        "": (6, 45_341),
        "_val": (2, 13_420),
        "_test": (4, 31_921),
    }
    assert {one["skipped"] for one in parts.values()} == {0}


@pytest.mark.parametrize("any_count", [False, True])
def test_a_part_of_ref_l4_reports_the_rows_it_lacks(tmp_path, monkeypatch, any_count):
    source = published.ref_l4(tmp_path / "s")
    (file,) = source.rglob("*test*.parquet")
    rows = datasets.Dataset.from_parquet(str(file))
    rows.map(lambda row, at: {"caption": "" if at == 0 else row["caption"]}, with_indices=True).to_parquet(
        file
    )
    whole = prepared.SOURCES["dcsft_ref_l4"]
    monkeypatch.setitem(
        prepared.SOURCES, whole.task, replace(whole, count=6, tally=("split", {"val": 2, "test": 4}))
    )
    for part, count in (("val", 2), ("test", 4)):
        name = f"dcsft_ref_l4_{part}"
        monkeypatch.setitem(prepared.VIEWS, name, replace(prepared.VIEWS[name], count=count))
    prepare("dcsft_ref_l4", source, any_count=any_count, on_error="skip")
    told = [prepared.described(f"dcsft_ref_l4{name}") for name in ("", "_val", "_test")]
    assert [(one["rows"], one["published"]) for one in told] == [(5, 6), (2, 2), (3, 4)]
    assert [one["skipped"] for one in told] == ([1, None, None] if any_count else [1, 0, 1])


def test_the_category_map_equals_ref_l4s():
    found = grounding.categories()
    assert len(found) == 80 and set(found) <= {f"refcoco_{n}" for n in range(1, 91)}
    assert (found["refcoco_1"], found["refcoco_90"]) == ("o365_1", "o365_227")


class TestPool:
    @pytest.mark.parametrize("lines", [True, False])
    def test_cold_start_and_pool_are_disjoint_and_say_how_they_were_drawn(self, tmp_path, monkeypatch, lines):
        monkeypatch.setattr(grounding, "COLD", 4)
        monkeypatch.setattr(grounding, "POOL", 20)
        source, said = published.refcoco_train(tmp_path / "s", lines=lines), []
        notes, pool = made("dcsft_refcoco_pool", source, say=said.append)
        _, cold = made("dcsft_refcoco_cold", source)
        assert (len(pool), len(cold)) == (20, 4)
        assert not set(pool["prompt"]) & set(cold["prompt"])
        assert "not the paper's" in notes["chosen"] and "not the paper's" in said[0]

    def test_the_draw_depends_on_content_and_not_on_format_or_order(self, tmp_path, monkeypatch):
        monkeypatch.setattr(grounding, "COLD", 4)
        monkeypatch.setattr(grounding, "POOL", 20)
        drawn = []
        for at, lines in enumerate((True, False)):
            monkeypatch.setenv("DCSFT_DATA", str(tmp_path / f"data{at}"))
            source = published.refcoco_train(tmp_path / f"s{at}", lines=lines, doubled=not lines)
            drawn.append(set(made("dcsft_refcoco_pool", source)[1]["prompt"]))
        assert drawn[0] == drawn[1]

    def test_a_repeated_row_is_one_item(self, tmp_path):
        notes, pool = made("dcsft_refcoco_pool", published.refcoco_train(tmp_path / "s", rows=500))
        # Of 500 distinct rows and one repeated, the cold start has 400.
        assert (len(pool), len(set(pool["prompt"])), notes["skipped"]) == (100, 100, 0)


def answered(task, say):
    tasks = lmms.open_tasks([task])
    docs = tasks[task].eval_docs_no_media
    model = DcsftStub(answers=lambda question: say(docs[question.doc_id]))
    return lmms.run(model, tasks)[1]["results"][task]


def shifted(doc, share):
    """The gold, moved to the right so that its IoU is (1 - share) / (1 + share)."""
    x1, y1, x2, y2 = json.loads(doc["answer"])
    return str([x1 + share * (x2 - x1), y1, x2 + share * (x2 - x1), y2])


def test_ref_l4_metrics_equal_a_computation_by_hand(tmp_path):
    """IoUs by row: 0: 1; 1: 1/3; 2: 0.6; 3: 7/9; 4: none; 5: 1. Rows 0, 3 small, 1, 4 medium, 2, 5 large."""
    rows = published.ref_l4_rows()
    rows[2]["bbox"] = rows[5]["bbox"] = [0.0, 0.0, 270.0, 280.0]
    made("dcsft_ref_l4", published.ref_l4(tmp_path / "s", rows))

    def say(doc):
        number = int(re.search(r"number (\d)", doc["prompt"])[1])
        x1, y1, x2, y2 = json.loads(doc["answer"])
        return {
            0: f"[{x1}, {y1}, {x2}, {y2}]",
            1: shifted(doc, 0.5),
            2: f"[{x1}, {y1}, {x2}, {y1 + 0.6 * (y2 - y1)}]",
            3: shifted(doc, 1 / 8),
            4: "I cannot find it.",
            5: f'{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}]}}',
        }[number]

    scores = answered("dcsft_ref_l4", say)
    found = {name.removesuffix(",none"): value for name, value in scores.items() if "_stderr" not in name}
    above = {0: 10, 1: 0, 2: 2, 3: 6, 4: 0, 5: 10}  # thresholds of 0.50, 0.55 ... 0.95 below each IoU
    expected = {
        "acc": 4 / 6,
        "iou": (1 + 1 / 3 + 0.6 + 7 / 9 + 0 + 1) / 6,
        "acc_50": 4 / 6,
        "acc_75": 3 / 6,
        "acc_90": 2 / 6,
        "macc": sum(above.values()) / 60,
        "acc_small": 1.0,
        "macc_small": 16 / 20,
        "acc_medium": 0.0,
        "macc_medium": 0.0,
        "acc_large": 1.0,
        "macc_large": 12 / 20,
        # o365_1 has rows 0, 3 (COCO's person) and 2, 5 (Objects365's); refcoco_37 has 1, 4.
        "acc_class": (1.0 + 0.0) / 2,
        "macc_class": (28 / 40 + 0.0) / 2,
        "answered": 5 / 6,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert scores["acc_class_stderr_clt,none"] == "N/A"


def test_an_iou_of_exactly_one_half_is_right_for_the_paper_and_wrong_for_ref_l4(tmp_path):
    made("dcsft_ref_l4", published.ref_l4(tmp_path / "s"))

    def half(doc):
        x1, y1, x2, y2 = json.loads(doc["answer"])
        return str([x1, y1, x2, (y1 + y2) / 2])

    scores = answered("dcsft_ref_l4_val", half)
    assert (scores["acc,none"], scores["acc_50,none"]) == (1.0, 0.0)


def test_sizes_without_documents_are_nan(tmp_path):
    made("dcsft_ref_l4", published.ref_l4(tmp_path / "s"))
    tasks = lmms.open_tasks(["dcsft_ref_l4_val"])
    scores = lmms.run(DcsftStub(default="?"), tasks, limit=1)[1]["results"]["dcsft_ref_l4_val"]
    assert scores["acc_large,none"] != scores["acc_large,none"]
    assert scores["acc_class,none"] == 0.0


def test_the_standard_error_clusters_rows_by_image(tmp_path):
    made("dcsft_refcoco_val", published.refcoco_val(tmp_path / "s"))
    right = {"COCO_train2014_000000000000.jpg"}
    scores = answered("dcsft_refcoco_val", lambda doc: doc["target"] if doc["cluster"] in right else "none")
    assert scores["acc,none"] == pytest.approx(1 / 3)
    # Two rows of each image that always agree: three independent observations, not six.
    assert scores["acc_stderr_clustered,none"] > 1.2 * scores["acc_stderr_clt,none"]


@pytest.mark.parametrize(
    ("stated", "wanted"),
    [
        (None, [20.0, 4.0, 25.0, 16.0]),  # as encoded, the way the published evaluations read it
        ((40, 30), [20.0, 4.0, 25.0, 16.0]),
        ((30, 40), [4.0, 5.0, 16.0, 10.0]),  # annotations refer to the upright image
    ],
)
def test_boxes_are_rotated_with_their_images(tmp_path, stated, wanted):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(file, "JPEG", exif=exif)
    opened = Opened(tmp_path, Album(tmp_path / "images.arrow"))
    row = box_row(opened, "a.jpg", file.getvalue, "Where?", [4.0, 5.0, 16.0, 10.0], stated)
    assert (row["width"], row["height"]) == (30, 40)
    assert json.loads(row["answer"]) == wanted
    with pytest.raises(HarnessError, match="has 30 x 40 pixels, but its annotation says 50 x 40"):
        box_row(opened, "a.jpg", file.getvalue, "Where?", [4.0, 5.0, 16.0, 10.0], (50, 40))

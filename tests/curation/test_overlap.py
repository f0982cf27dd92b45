"""Images shared by a pool and an evaluation set, exactly or nearly: found, listed and excluded."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dcsft_harness import curation, lmms, records, sampling, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.curation import labels, overlap
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.data.benchmarks.prepared import prepare
from dcsft_harness.errors import HarnessError
from dcsft_harness.sampling import own_data
from tests.fixtures import published

POOL, EVALUATION = "dcsft_refcoco_pool", "dcsft_ref_l4"


@pytest.fixture(scope="module")
def photo():
    """Images with the smooth structure of photographs, which noise lacks."""

    def make(number, size=(320, 300)):
        rng = np.random.Generator(np.random.PCG64(number))
        small = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
        return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)

    return make


def jpeg(image, quality=90):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory, photo):
    """A pool of 20 images, and Ref-L4 with three: one of them, one compressed more, and a new one."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCSFT_DATA", str(folder / "data"))
        patch.setattr("dcsft_harness.data.benchmarks.grounding.COLD", 0)
        coco = published.refcoco_train(folder / "coco", rows=40, doubled=False)
        for number in range(20):
            path = coco / "train2014" / f"COCO_train2014_{number:012}.jpg"
            path.write_bytes(jpeg(photo(number).resize((64, 48))))
        rows = published.ref_l4_rows()
        for row in rows:
            row["bbox"], row["width"], row["height"] = [1.0, 2.0, 20.0, 30.0], 64, 48
        ref = published.ref_l4(folder / "ref", rows, unpacked=True)
        names = sorted(path.name for path in (ref / "images").iterdir())
        same = (coco / "train2014" / "COCO_train2014_000000000003.jpg").read_bytes()
        (ref / "images" / names[0]).write_bytes(same)
        (ref / "images" / names[1]).write_bytes(jpeg(photo(5).resize((64, 48)), quality=60))
        (ref / "images" / names[2]).write_bytes(jpeg(photo(99).resize((64, 48))))
        prepare(POOL, coco, any_count=True)
        prepare(EVALUATION, ref, any_count=True)
        notes = overlap.overlap(POOL, [EVALUATION], folder / "overlap")
        yield folder, notes, names


def test_images_shared_by_rows_are_compared_once(tmp_path):
    """A million rows with a thousand images do not need a million images, nor all pairs of rows."""
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    names = {"pool.jsonl": 30, "test.jsonl": 8}
    for name, count in names.items():
        rows = [
            {"question": f"{name} {n}?", "answer": "a", "image": f"{n % (3 if count == 30 else 2)}.png"}
            for n in range(count)
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / name) for name in names]
    stages.STAGES["data overlap"](
        tmp_path / "out", pool=files[0], tasks=files[1:], scorer="exact_word", distance=0
    )
    notes = manifest.read(tmp_path / "out").notes
    assert (notes["images"], notes["items"], notes["shared_images"], notes["shared_items"]) == (3, 30, 2, 20)
    assert notes["tasks"] == {"test": {"exact": 2, "near": 0}}


@pytest.fixture
def shown(tmp_path):
    """Images in a folder, and rows that name them."""
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / f"{number}.png")

    def rows(asked, *numbers):
        return [{"question": asked, "answer": f"{n}", "image": f"{n}.png"} for n in numbers]

    return rows


def written(path, rows):
    """A file of rows in a folder with links to their images."""
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        (path.parent / row["image"]).hardlink_to(path.parent.with_name("pictures") / row["image"])
    return str(path)


@pytest.mark.parametrize("sets", ["memory", "a pool in memory", "tests in memory"])
def test_in_memory_sets_are_compared_by_content_not_by_name(tmp_path, monkeypatch, shown, sets):
    import dcsft_harness as dcsft

    monkeypatch.chdir(tmp_path / "pictures")
    pool, *tests = shown("a?", 0, 1), shown("b?", 1, 2), shown("c?", 0, 2)
    names = {"memory": ["data_2", "data_3"], "a pool in memory": ["test", "data_2"]}
    if sets == "a pool in memory":
        tests[0] = written(tmp_path / "one" / "test.jsonl", tests[0])
    elif sets == "tests in memory":
        pool = written(tmp_path / "one" / "pool.jsonl", pool)
    found = dcsft.data_overlap(pool, tests, scorer="exact_word", output=tmp_path / "out")
    exact = {name: one["exact"] for name, one in found.notes["tasks"].items()}
    assert exact == dict.fromkeys(names.get(sets, ["data", "data_2"]), 1)
    assert found.notes["pool"] == ("pool" if sets == "tests in memory" else "data")
    assert found.notes["shared_items"] == 2


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["train/data.jsonl", "test/data.jsonl"], "the pool and an evaluation set are named data. Rename"),
        (["train/data.jsonl", "train/data.jsonl"], "data is compared with itself"),
        (["train/data.jsonl", "train/../train/data.jsonl"], "data is compared with itself"),
        (["pool/pool.jsonl", "train/data.jsonl", "test/data.jsonl"], "two evaluation sets are named data"),
    ],
)
def test_files_with_the_same_name_are_refused(tmp_path, shown, files, said):
    for name in dict.fromkeys(files):
        if ".." not in name:
            written(tmp_path / name, shown(name, 0))
    given = [str(tmp_path / name) for name in files]
    with pytest.raises(HarnessError, match=said):
        stages.STAGES["data overlap"](tmp_path / "out", pool=given[0], tasks=given[1:], scorer="exact_word")


def test_an_in_memory_set_is_not_compared_with_itself(shown, tmp_path, monkeypatch):
    import dcsft_harness as dcsft

    monkeypatch.chdir(tmp_path / "pictures")
    with pytest.raises(HarnessError, match="data is compared with itself"):
        dcsft.data_overlap(shown("a?", 0), [shown("a?", 0)], scorer="exact_word", output=tmp_path / "out")


@pytest.mark.parametrize("distance", [0, 1, 4, 7, 16])
def test_near_hashes_equal_a_comparison_of_all_pairs(distance, monkeypatch):
    monkeypatch.setattr(overlap, "_AT_ONCE", 50)
    rng = np.random.default_rng(distance)
    mine, others = (rng.integers(0, 2**64, size, dtype=np.uint64) for size in (90, 70))
    for place in range(60):  # copies that differ in up to 20 bits, and exact copies
        bits = rng.choice(64, rng.integers(0, 21) if place % 5 else 0, replace=False)
        others[place] = mine[place // 2] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    differ = np.bitwise_count(mine[:, None] ^ others)
    rows, columns = np.nonzero(differ <= distance)
    wanted = list(zip(rows.tolist(), columns.tolist(), differ[rows, columns].tolist(), strict=True))
    assert overlap.near(mine, others, distance) == wanted and len(wanted) > 10


def test_only_equal_and_nearly_equal_images_are_found(place):
    folder, notes, names = place
    pairs = records.read_table(folder / "overlap" / overlap.PAIRS, overlap.Pair).to_pylist()
    found = {(pair["pool_image"], pair["image"]): pair["kind"] for pair in pairs}
    assert found == {
        ("train2014/COCO_train2014_000000000003.jpg", names[0]): "exact",
        ("train2014/COCO_train2014_000000000005.jpg", names[1]): "near",
    }
    assert {pair["distance"] for pair in pairs if pair["kind"] == "exact"} == {0}
    # Each image has two rows in the pool.
    assert (notes["images"], notes["items"], notes["shared_images"], notes["shared_items"]) == (20, 40, 2, 4)
    assert notes["tasks"] == {EVALUATION: {"exact": 1, "near": 1}}


def test_the_artifact_records_what_was_compared(place):
    folder, _, _ = place
    found = manifest.read(folder / "overlap", "overlap")
    assert found.config == {
        "pool": POOL,
        "tasks": [EVALUATION],
        "distance": 4,
        "hash": "pHash, 64 bits",
        "alike": 0.98,
    }
    assert set(found.inputs) == {f"data of {POOL}", f"data of {EVALUATION}"}


def test_items_of_a_shared_image_have_the_ids_of_sampling(place):
    folder, _, _ = place
    shared = records.read_table(folder / "overlap" / overlap.ITEMS, overlap.Shared).to_pylist()
    task = lmms.open_tasks([POOL])[POOL]
    items = sampling.read_items(task, len(task.eval_docs))
    of_images = {
        item.item_id
        for item in items
        if prepared.name(POOL, task.eval_docs[item.doc_id]["images"][0])[-7:] in ("003.jpg", "005.jpg")
    }
    assert {row["item_id"] for row in shared} == of_images
    assert {row["kind"] for row in shared} == {"exact", "near"}


@pytest.fixture(scope="module")
def labeled(place):
    folder, _, _ = place
    stages.STAGES["sample"](
        folder / "rollouts",
        model="dcsft_stub",
        model_args="default=nowhere",
        task=POOL,
        samples=2,
    )
    labels.label(folder / "rollouts", folder / "labels")
    return folder


def test_rollouts_keep_the_published_files(labeled):
    from datasets import load_from_disk

    items = load_from_disk(str(labeled / "rollouts" / sampling.ITEMS))
    kept = {file["bytes"] for cell in items.data["images"].to_pylist() for file in cell}
    published_files = (labeled / "coco" / "train2014").iterdir()
    assert kept and kept <= {path.read_bytes() for path in published_files}


def test_curation_excludes_overlapping_items(labeled, capsys):
    whole = stages.STAGES["curate"](labeled / "all", labels=labeled / "labels", keep=["hard"])
    options = ["--keep", "hard", "--exclude", str(labeled / "overlap"), "--output", str(labeled / "clean")]
    assert main(["curate", str(labeled / "labels"), *options]) == 0
    assert "36 items: 0 easy, 0 medium, 36 hard (4 excluded" in capsys.readouterr().err
    notes = manifest.read(labeled / "clean").notes
    assert (whole["items"], whole["excluded"], notes["items"], notes["excluded"]) == (40, 0, 36, 4)
    from datasets import load_from_disk

    kept = set(load_from_disk(str(labeled / "clean" / curation.DATA))["item_id"])
    shared = records.read_table(labeled / "overlap" / overlap.ITEMS, overlap.Shared)
    assert not kept & set(shared["item_id"].to_pylist())


def test_the_overlap_of_another_pool_is_refused(labeled, tmp_path):
    with manifest.writing("overlap", tmp_path / "other", {"pool": "dcsft_imagenet_pool"}) as draft:
        records.write_table(draft.folder / overlap.ITEMS, overlap.Shared, [])
    with pytest.raises(HarnessError, match="is the overlap of dcsft_imagenet_pool, but the labels are of"):
        stages.STAGES["curate"](
            tmp_path / "set", labels=labeled / "labels", keep=["hard"], exclude=tmp_path / "other"
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, None),
        ({"scorer": "open_answer"}, "with another scorer than was sampled"),
        ({"answer": "duck"}, "with another file of rows than was sampled"),
        ({"color": "blue"}, "with another file of rows and set of images than|another set of images than"),
    ],
)
def test_an_overlap_with_other_item_ids_is_refused(tmp_path, monkeypatch, change, said):
    """Otherwise it would exclude nothing, as none of its ids is among the labels."""
    monkeypatch.chdir(tmp_path)

    def write(answer="goose", color="red", scorer="exact_word"):
        Image.new("RGB", (40, 40), color).save("a.png")
        row = {"question": "?", "answer": answer, "image": "a.png"}
        Path("mine.jsonl").write_text(json.dumps(row) + "\n")
        Path("held.jsonl").write_text(json.dumps({**row, "question": "Which?"}) + "\n")
        return scorer

    stub = {"model": "dcsft_stub", "model_args": "default=goose"}
    stages.STAGES["sample"]("rollouts", **stub, data="mine.jsonl", scorer=write(), samples=2)
    labels.label(Path("rollouts"), Path("labels"))
    scorer = write(**(change or {}))
    stages.STAGES["data overlap"]("overlap", pool="mine.jsonl", tasks=["held.jsonl"], scorer=scorer)
    refused = pytest.raises(HarnessError, match=said or "the set would be empty")
    with refused:
        stages.STAGES["curate"]("set", labels="labels", keep=["easy"], exclude="overlap")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([POOL, POOL], "is compared with itself"),
        ([POOL, EVALUATION, "--distance", "17"], "--distance 17 is out of range"),
        ([POOL, "dcsft_lisa"], "the data of dcsft_lisa is not prepared"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(place, tmp_path, capsys, arguments, said):
    assert main(["data", "overlap", *arguments, "--output", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tasks_without_prepared_data_can_be_compared(tmp_path):
    """Images without a name are identified by their document; a set shares all of them with itself."""
    task = lmms.open_tasks(["dcsft_digits_a"])["dcsft_digits_a"]
    found = overlap.read_images(task)
    assert len(found.names) == len(task.eval_docs)
    again = overlap.compare(found, "same", found, 0)
    assert sum(pair.kind == "exact" for pair in again) >= len(found.names)


@pytest.mark.parametrize("quality", [95, 75, 40])
@pytest.mark.parametrize("scale", [0.4, 1.0, 1.6])
def test_resizing_and_compression_change_a_few_bits(photo, quality, scale):
    for number in range(12):
        original = photo(number)
        size = tuple(round(side * scale) for side in original.size)
        copy = Image.open(io.BytesIO(jpeg(original.resize(size, Image.Resampling.BICUBIC), quality)))
        bits = overlap.perceptual_hash(original) ^ overlap.perceptual_hash(copy)
        assert bits.bit_count() <= overlap.DISTANCE
        assert overlap.alike(*(np.frombuffer(overlap.thumbnail(one), np.uint8) for one in (original, copy)))


def test_different_images_are_far_apart(photo):
    hashes = [overlap.perceptual_hash(photo(number)) for number in range(60)]
    distances = [(a ^ b).bit_count() for at, a in enumerate(hashes) for b in hashes[:at]]
    assert min(distances) > 2 * overlap.DISTANCE
    assert 28 < sum(distances) / len(distances) < 36


def scattered(seed):
    """Fifteen dots on white, as in charts."""
    image = Image.new("RGB", (240, 180), "white")
    for x, y in np.random.Generator(np.random.PCG64(seed)).integers(10, 170, (15, 2)):
        image.paste("black", (int(x), int(y), int(x) + 5, int(y) + 5))
    return image


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue"), None),
        (Image.new("RGB", (64, 64), "red"), Image.new("RGB", (90, 64), (250, 2, 3)), "near"),
        (Image.new("RGB", (64, 64), "white"), scattered(2), None),
        (scattered(2), scattered(2).resize((120, 90), Image.Resampling.BICUBIC), "near"),
        (scattered(2), scattered(2), "exact"),
        (scattered(2), scattered(3), None),
    ],
)
def test_images_with_equal_hashes_are_compared_pixel_by_pixel(tmp_path, monkeypatch, one, other, kind):
    """pHash ignores colors and small details: plain images, or charts of one layout, have equal hashes."""
    monkeypatch.setattr(overlap, "perceptual_hash", lambda image: 7)
    for name, image in {"mine": one, "theirs": other}.items():
        image.save(tmp_path / f"{name}.png")
        row = {"question": "What is it?", "answer": "x", "image": f"{name}.png"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    files = [tmp_path / f"{name}.jsonl" for name in ("mine", "theirs")]
    mine, theirs = (overlap.read_images(own_data.open_file(file, "exact_word", None)) for file in files)
    assert [pair.kind for pair in overlap.compare(mine, "theirs", theirs, 4)] == [kind] * (kind is not None)


def images_of(values, items=()):
    names, digests = [str(at) for at in range(len(values))], [str(value).encode() for value in values]
    hashes, thumbs = np.array(values, dtype=np.uint64), np.zeros((len(values), 256), np.uint8)
    return overlap.Images(names, digests, hashes, thumbs, list(items))


def test_an_item_is_listed_with_every_image_it_shares():
    pool = images_of([0, 2**20 - 1, 0xFFFF << 40], [("two", [1, 0, 1]), ("one", [2, 0]), ("none", [2])])
    pairs = overlap.compare(pool, "a", images_of([0, 2**20 - 2]), 4)
    pairs += overlap.compare(pool, "b", images_of([2**20 - 1]), 4)
    assert overlap._shared(pool, pairs) == [
        overlap.Shared("two", "1", "exact", "a,b"),
        overlap.Shared("two", "0", "exact", "a"),
        overlap.Shared("one", "0", "exact", "a"),
    ]


def test_an_item_that_shares_several_images_counts_once(tmp_path, monkeypatch):
    """All documents of the pool show the same two images, and the evaluation has both."""
    mine = images_of([0, 2**20 - 1], [("first", [0, 1]), ("second", [1, 0])])
    sets = {"dcsft_digits_pool": mine, "dcsft_digits_a": images_of([0, 2**20 - 1])}
    monkeypatch.setattr(overlap, "read_images", lambda task, *more, **named: sets[task.config.task])
    notes = overlap.overlap("dcsft_digits_pool", ["dcsft_digits_a"], tmp_path / "overlap")
    assert (notes["shared_images"], notes["shared_items"]) == (2, 2)
    rows = records.read_table(tmp_path / "overlap" / overlap.ITEMS, overlap.Shared)
    assert rows.num_rows == 4
    known = pa.table({"item_id": ["first", "second", "third"]})
    kept = overlap.without(known, tmp_path / "overlap", "dcsft_digits_pool")
    assert kept["item_id"].to_pylist() == ["third"]

"""ImageNet, ImageNet-R and ImageNet-A from their published forms to scores."""

import json
import shutil
from collections import Counter

import pytest

from dcsft_harness import lmms
from dcsft_harness.data.benchmarks import classification, prepared
from dcsft_harness.data.benchmarks.prepared import prepare
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.stub import DcsftStub
from tests.fixtures import published
from tests.fixtures.published import SEEN, UNSEEN


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DCSFT_DATA", str(tmp_path / "data"))


def made(task, folder, **options):
    notes = prepare(task, folder, any_count=True, **options)
    return notes, prepared.load(task)


def names(rows):
    """The published names of the images of a task's rows."""
    return [prepared.name(row["source"], *row["images"]) for row in rows]


def words(rows):
    return Counter(rows["target"])


def test_the_class_table_has_the_papers_classes_and_counts():
    table = classification.class_table().values()
    assert (len(table), len({some.word.lower() for some in table})) == (186, 186)
    assert len(classification.trained()) == 100
    for column, kinds, rows, seen in (("renditions", 68, 10_741, 2_576), ("adversarial", 87, 3_015, 881)):
        used = [(getattr(some, column), some.trained) for some in table if getattr(some, column)]
        assert (len(used), sum(count for count, _ in used)) == (kinds, rows)
        assert sum(count for count, trained in used if trained) == seen
    assert classification.class_table()[SEEN].label == 6
    assert [some.word for some in table if not some.word.isalpha()] == [
        "Shih-Tzu",
        "go-kart",
        "jack-o'-lantern",
    ]


@pytest.mark.parametrize("make", [published.imagenet_r, published.imagenet_r_hub])
def test_only_renditions_of_the_papers_classes_are_asked_about(tmp_path, make):
    notes, rows = made("dcsft_imagenet_r", make(tmp_path / "source"))
    assert words(rows) == {"stingray": 4, "hen": 4}
    assert (notes["rows"], notes["images"], notes["values"]) == (8, 8, {"class": {SEEN: 4, UNSEEN: 4}})
    assert set(rows["prompt"]) == {
        "Please provide the object name in the image. Output the answer using one word."
    }
    assert {(row["class"], row["seen"]) for row in rows} == {(SEEN, True), (UNSEEN, False)}
    assert len(set(rows["cluster"])) == 8


def test_images_keep_their_published_bytes_and_their_rows(tmp_path):
    source = published.imagenet_r(tmp_path / "source")
    _, rows = made("dcsft_imagenet_r", source)
    for row in rows:
        (index,) = row["images"]
        name = prepared.name("dcsft_imagenet_r", index)
        assert name.startswith(f"{row['class']}/")
        assert prepared.encoded("dcsft_imagenet_r", index) == (source / "imagenet-r" / name).read_bytes()


def test_a_folder_and_the_hub_make_comparable_items_and_clusters(tmp_path):
    """A leaderboard refuses rows that are clustered differently, and on the hub images have other names."""
    found = []
    for make in (published.imagenet_r, published.imagenet_r_hub):
        _, rows = made("dcsft_imagenet_r", make(tmp_path / make.__name__))
        task = lmms.open_tasks(["dcsft_imagenet_r"])["dcsft_imagenet_r"]
        ids = [lmms.describe_item(task, number).item_id for number in range(len(rows))]
        found.append(dict(zip(ids, rows["cluster"], strict=True)))
        shutil.rmtree(prepared.folder_of("dcsft_imagenet_r"))
    assert found[0] == found[1] and len(set(found[0].values())) == 8


def test_rows_are_not_sorted_by_class(tmp_path):
    _, rows = made("dcsft_imagenet_r", published.imagenet_r(tmp_path / "source", each=8))
    order = rows["class"][:]
    assert 1 < sum(a != b for a, b in zip(order, order[1:], strict=False))
    assert order != sorted(order)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (published.imagenet_a, {"stingray": 2, "jay": 2}),
        (published.imagenet_a_hub, {"stingray": 2, "jay": 2}),
    ],
)
def test_adversarial_images_are_read_under_any_names(tmp_path, make, expected):
    _, rows = made("dcsft_imagenet_a", make(tmp_path / "source"))
    assert words(rows) == expected
    # The name holds a classifier's guess, which must not appear in a prompt.
    assert not any("clock" in row["prompt"] or "insect" in row["prompt"] for row in rows)


@pytest.mark.parametrize(
    "make",
    [
        published.imagenet_val,
        lambda folder: published.imagenet_val(folder, flat=True),
        published.imagenet_val_hub,
    ],
)
def test_validation_images_may_be_sorted_flat_or_from_the_hub(tmp_path, make):
    _, rows = made("dcsft_imagenet", make(tmp_path / "source"))
    assert words(rows) == {"stingray": 2, "bulbul": 1}
    assert all(rows["seen"])


def test_labels_in_another_order_than_imagenets_are_refused(tmp_path):
    """A copy of the hundred classes renumbers them; its labels 6 and 16 would look plausible."""
    names = [f"class {label}" for label in range(1000)]
    for some in classification.trained().values():
        names[some.label] = f"{some.word}, a synonym"
    source = published.imagenet_val_hub(tmp_path / "source", names)
    assert made("dcsft_imagenet", source)[0]["rows"] == 3
    swapped = [*names[:6], names[16], *names[7:16], names[6], *names[17:]]
    for order, said in (
        (swapped, r"label 6 is 'bulbul, a synonym', where ImageNet has 'stingray' \(n01498041\)"),
        (sorted(classification.trained()), "label 6 is 'n\\d+', where ImageNet has 'stingray'"),
    ):
        source = published.imagenet_val_hub(tmp_path / str(len(order)) / "other", order)
        shutil.rmtree(prepared.folder_of("dcsft_imagenet"), ignore_errors=True)
        with pytest.raises(HarnessError, match=said):
            made("dcsft_imagenet", source)


def test_flat_validation_images_need_the_list_of_classes(tmp_path):
    source = published.imagenet_val(tmp_path / "source", flat=True, solution=False)
    with pytest.raises(HarnessError, match=r"no class folders.*Put Kaggle's LOC_val_solution.csv beside it"):
        made("dcsft_imagenet", source)


class TestTrain:
    def test_the_papers_lists_choose_the_images(self, tmp_path):
        source = published.imagenet_train(tmp_path / "source", each=5)
        pool = [(f"{SEEN}/{SEEN}_{n}.JPEG", "stingray") for n in (3, 1)]
        published.paper_list(source, "imagenet_left_sft", pool)
        cold = [(f"n01560419/n01560419_{n}.JPEG", "bulbul") for n in (0,)]
        published.paper_list(source, "imagenet_cold_sft", cold)
        notes, rows = made("dcsft_imagenet_pool", source)
        assert set(names(rows)) == {name for name, _ in pool}
        assert notes["chosen"] == "the paper's, as imagenet_left_sft.json lists them"
        assert list(notes["read"]) == ["imagenet_left_sft.json"]
        assert names(made("dcsft_imagenet_cold", source)[1]) == [cold[0][0]]

    def test_without_the_lists_both_tasks_draw_disjoint_images_and_say_so(self, tmp_path):
        source, said = published.imagenet_train(tmp_path / "source"), []
        pool_notes, pool = made("dcsft_imagenet_pool", source, say=said.append)
        _, cold = made("dcsft_imagenet_cold", source)
        assert Counter(pool["class"]) == {SEEN: 96, "n01560419": 96}
        assert Counter(cold["class"]) == {SEEN: 4, "n01560419": 4}
        assert not set(names(pool)) & set(names(cold))
        assert "not the paper's" in pool_notes["chosen"] and "not the paper's" in said[0]

    def test_a_draw_depends_only_on_names(self):
        names = [f"{n}.JPEG" for n in range(300)]
        cold, pool = classification.split(names)
        assert (len(cold), len(pool)) == (4, 96)
        assert classification.split(reversed(names)) == (cold, pool)
        # Removing names that were not drawn changes nothing.
        assert classification.split(cold | pool) == (cold, pool)

    def test_one_list_without_the_other_is_refused(self, tmp_path):
        source = published.imagenet_train(tmp_path / "source", each=2)
        published.paper_list(source, "imagenet_left_sft", [])
        with pytest.raises(
            HarnessError, match=r"imagenet_left_sft.json is there, but no imagenet_cold_sft.json"
        ):
            made("dcsft_imagenet_cold", source)

    @pytest.mark.parametrize(
        ("listed", "said"),
        [
            (
                (f"{SEEN}/{SEEN}_9.JPEG", "stingray"),
                r"row 2: .*n01498041_9.JPEG cannot be read \(No such file",
            ),
            (
                (f"{SEEN}/{SEEN}_1.JPEG", "ray"),
                r"row 2: the answer 'ray' is not 'stingray', the class of n01498041",
            ),
            ((f"{UNSEEN}/x.JPEG", "hen"), r"row 2: the image .*x.JPEG' is in none of the 100 class folders"),
        ],
    )
    def test_a_listed_image_that_cannot_be_used_is_named(self, tmp_path, listed, said):
        source = published.imagenet_train(tmp_path / "source", each=2)
        rows = [(f"{SEEN}/{SEEN}_0.JPEG", "stingray"), listed]
        published.paper_list(source, "imagenet_left_sft", rows)
        published.paper_list(source, "imagenet_cold_sft", [])
        with pytest.raises(HarnessError, match=said):
            made("dcsft_imagenet_pool", source)
        notes, left = made("dcsft_imagenet_pool", source, on_error="skip")
        assert (len(left), notes["skipped"]) == (1, 1)
        folder = prepared.folder_of("dcsft_imagenet_pool")
        (skipped,) = (folder / "skipped.jsonl").read_text().splitlines()
        assert json.loads(skipped)["row"].endswith("imagenet_left_sft.json, row 2")

    def test_a_truncated_list_is_named(self, tmp_path):
        source = published.imagenet_train(tmp_path / "source", each=2)
        path = published.paper_list(source, "imagenet_left_sft", [(f"{SEEN}/{SEEN}_0.JPEG", "stingray")])
        with pytest.raises(HarnessError, match=r"left_sft.json lists 1 images, but 9,600 are published"):
            prepare("dcsft_imagenet_pool", source)
        path.write_text(path.read_text()[:-20])
        with pytest.raises(HarnessError, match="imagenet_left_sft.json is not JSON"):
            prepare("dcsft_imagenet_pool", source)


def test_seen_and_unseen_classes_have_separate_metrics(tmp_path):
    """8 documents, 4 of a seen class; 3 of those right, 1 of the others: 4/8, 3/4, 1/4, answered 7/8."""
    _, rows = made("dcsft_imagenet_r", published.imagenet_r(tmp_path / "source"))
    wrong = {
        SEEN: iter(["Stingray.", "stingray", " STINGRAY ", "ray"]),
        UNSEEN: iter(["hen", "a hen", "goose", ""]),
    }
    said = [next(wrong[name]) for name in rows["class"]]
    tasks = lmms.open_tasks(["dcsft_imagenet_r"])
    model = DcsftStub(answers=lambda question: said[question.doc_id])
    answered, results = lmms.run(model, tasks)
    scores = results["results"]["dcsft_imagenet_r"]
    found = {name: scores[f"{name},none"] for name in ("acc", "acc_seen", "acc_unseen", "answered")}
    assert found == {"acc": 0.5, "acc_seen": 0.75, "acc_unseen": 0.25, "answered": 0.875}
    assert results["n-samples"]["dcsft_imagenet_r"]["effective"] == 8
    assert [one.responses[0] for one in answered["dcsft_imagenet_r"]] == said


def test_a_metric_without_documents_is_nan(tmp_path):
    source = tmp_path / "source"
    published.put(source / UNSEEN / "art_0.jpg", published.encoded(0))
    made("dcsft_imagenet_r", source)
    tasks = lmms.open_tasks(["dcsft_imagenet_r"])
    scores = lmms.run(DcsftStub(default="hen"), tasks)[1]["results"]["dcsft_imagenet_r"]
    assert scores["acc_unseen,none"] == 1.0
    assert scores["acc_seen,none"] != scores["acc_seen,none"]


def test_the_group_runs_its_three_tasks(tmp_path):
    for task, make in (
        ("dcsft_imagenet", published.imagenet_val),
        ("dcsft_imagenet_r", published.imagenet_r),
        ("dcsft_imagenet_a", published.imagenet_a),
    ):
        made(task, make(tmp_path / task))
    opened = lmms.open_tasks(["dcsft_classification"])
    assert set(opened) == {"dcsft_imagenet", "dcsft_imagenet_r", "dcsft_imagenet_a"}

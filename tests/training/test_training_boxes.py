"""Targets that are boxes: kept in original-image pixels, taught in the coordinates that a model writes."""

import dataclasses
import json
import types

import pytest
from datasets import Dataset, Features, Image, List, Value
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from dcsft_harness import coordinates, curation, lmms, sampling
from dcsft_harness.coordinates import PIXEL, BoxConvention
from dcsft_harness.curation import conversations, labels
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.checkpoint import saved_processor
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.scoring.boxes import box_iou, from_pixels, parse_box, rewritten
from dcsft_harness.stages import STAGES, train_dpo
from dcsft_harness.training import data, merging, run, sft
from dcsft_harness.training.config import GrpoConfig, SftConfig
from tests.fixtures import artifacts
from tests.fixtures.tiny_checkpoints import checkpoint, labels_seen

TEXT = Value("string")
FEATURES = Features(
    {
        "messages": List({"role": TEXT, "content": TEXT}),
        "images": List(Image()),
        "box": List(Value("float64")),
    }
)
THOUSANDTHS = BoxConvention("norm1000")
RESIZED = BoxConvention("resized", 28, 28 * 28, 56 * 56)
ASKED = "<image>Where is it?"


def row(answer, box, size=(200, 100)):
    turns = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": [Pillow.new("RGB", size)], "box": box}


def read(*rows):
    return data.read(Dataset.from_list(list(rows), features=FEATURES))


def taught_answers(found, convention):
    return [data.in_space(turns, convention, "here").answer for turns in found.turns]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[20, 10, 100, 50]", "[100, 100, 500, 500]"),
        ('{"bbox_2d": [20, 10, 100, 50], "label": "2"}', '{"bbox_2d": [100, 100, 500, 500], "label": "2"}'),
        ("<think>[1, 2, 3, 4]?</think><answer>(20, 10), (100, 50)</answer>",
         "<think>[1, 2, 3, 4]?</think><answer>(100, 100), (500, 500)</answer>"),
        ("20.0 10.0 100.0 50.0", "100 100 500 500"),
        ("x1=20, y1=10, x2=100, y2=50", "x1=100, y1=100, x2=500, y2=500"),
    ],
)  # fmt: skip
def test_a_target_is_taught_in_thousandths_if_the_model_writes_them(answer, expected):
    found = read(row(answer, [20, 10, 100, 50]))
    assert taught_answers(found, THOUSANDTHS) == [expected]
    assert taught_answers(found, PIXEL) == [answer]


def test_a_target_is_taught_in_pixels_of_the_image_that_the_model_sees():
    found = read(row("[20, 10, 100, 50]", [20, 10, 100, 50]), row("[2, 1, 9, 5]", [2, 1, 9, 5], (56, 28)))
    assert RESIZED.resized_size((200, 100)) == (56, 28)
    # An image that is not resized keeps its target literally.
    assert taught_answers(found, RESIZED) == ["[6, 3, 28, 14]", "[2, 1, 9, 5]"]


@pytest.mark.parametrize(
    ("answer", "box", "expected"),
    [
        ("[76.35, 343, 175.05, 475.13]", [76.35, 343, 175.05, 475.13], "[76, 343, 175, 475]"),
        ('{"bbox_2d": [0.99, 2.5, 9.0, 5.99]}', [0.99, 2.5, 9.0, 5.99], '{"bbox_2d": [0, 2, 9, 5]}'),
        ("[20, 10, 100, 50]", [20, 10, 100, 50], "[20, 10, 100, 50]"),
    ],
)
def test_a_target_in_original_pixels_is_truncated_on_request(answer, box, expected):
    found = read(row(answer, box, (500, 500)), row("a goose", None))
    assert [data.in_space(turns, PIXEL, "here", True).answer for turns in found.turns] == [
        expected,
        "a goose",
    ]
    assert taught_answers(found, PIXEL)[0] == answer


def test_a_target_without_area_after_truncation_is_refused_by_row(tmp_path):
    rows = [row("[20, 10, 100, 50]", [20, 10, 100, 50]), row("[3.2, 1, 3.9, 9]", [3.2, 1, 3.9, 9])]
    rows = Dataset.from_list(rows, features=FEATURES)
    config = SftConfig(max_steps=1, batch_size=1, box_space="pixel", box_rounding="truncate")
    with pytest.raises(HarnessError, match=r"row 1: the box .* truncated .* is \[3, 1, 3, 9\], which has no"):
        sft.train_sft(checkpoint("qwen2_5_vl"), rows, tmp_path / "out", config)
    config = config.changed(on_error="skip")
    notes = sft.train_sft(checkpoint("qwen2_5_vl"), rows, tmp_path / "out", config)
    assert notes["skipped"] == {"count": 1, "rows": [1]}


def test_truncation_needs_original_pixels_and_targets():
    for space in (None, "resized", "norm1000"):
        with pytest.raises(HarnessError, match="--box-rounding truncate requires --box-space pixel"):
            SftConfig(box_rounding="truncate", box_space=space)
    with pytest.raises(HarnessError, match="GRPO has no targets to write"):
        GrpoConfig(box_rounding="truncate", box_space="pixel")


def test_other_answers_are_unchanged():
    assert taught_answers(read(row("[20, 10, 100, 50]", None), row("a goose", None)), THOUSANDTHS) == [
        "[20, 10, 100, 50]",
        "a goose",
    ]


@pytest.mark.parametrize(
    ("answer", "box", "said"),
    [
        ("[20, 10, 100, 50]", [20, 10, 100, 60], "row 0: its column box is .*, and it lacks that box: '"),
        ("a goose", [20, 10, 100, 50], "it lacks that box: 'a goose'"),
        ("[20, 10, 100, 50]", [20, 10], "it lacks that box"),
        ("[20, 10, 100, 50]", [20, float("nan"), 100, 50], "it lacks that box"),
        (
            "[20, 10, 100, 50]",
            [20, None, 100, 50],
            "is .20.0, None, 100.0, 50.0., which is not a list of four",
        ),
        ("[100, 10, 20, 50]", [100, 10, 20, 50], "row 0: the box .* has no area in its image of 200 x 100"),
        ("[210, 10, 220, 50]", [210, 10, 220, 50], "has no area in its image of 200 x 100"),
    ],
)
def test_a_column_that_contradicts_the_answer_is_refused(answer, box, said):
    with pytest.raises(HarnessError, match=said):
        read(row(answer, box))


def test_a_box_without_an_image_is_refused():
    bare = row("[1, 2, 3, 4]", [1, 2, 3, 4]) | {"images": []}
    bare["messages"][0] = {"role": "user", "content": "Where?"}
    with pytest.raises(HarnessError, match="it lacks an image"):
        read(bare)


def test_a_box_column_with_other_content_is_refused():
    rows = Dataset.from_list([{name: row("a", None)[name] for name in ("messages", "images")}])
    with pytest.raises(
        HarnessError, match="row 0: its column box is 'wood', which is not a list of four numbers"
    ):
        data.read(rows.add_column("box", ["wood"]))


def test_an_image_that_cannot_be_resized_is_refused():
    thin = row("[1, 1, 2, 900]", [1, 1, 2, 900], (2, 1000))
    with pytest.raises(HarnessError, match="here: absolute aspect ratio must be smaller than 200"):
        taught_answers(read(thin), RESIZED)


SIDES = st.integers(30, 2000)


@given(size=st.tuples(SIDES, SIDES), corners=st.tuples(*[st.floats(0, 1)] * 4), thousandths=st.booleans())
def test_taught_boxes_are_right_by_the_scorer(size, corners, thousandths):
    (width, height), (a, b, c, d) = size, corners
    gold = [min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height]
    if gold[2] - gold[0] < 0.05 * width or gold[3] - gold[1] < 0.05 * height:
        return
    convention = THOUSANDTHS if thousandths else BoxConvention("resized", 28, 56 * 56, 1280 * 28 * 28)
    resized = convention.resized_size(size)
    space = {"image_size": size, "box_space": convention.space, "resized_size": resized}
    taught = str(from_pixels(gold, **space))
    assert box_iou(taught, answer=gold, threshold=0.5, **space).score == 1.0


@given(box=st.lists(st.floats(-5, 5000), min_size=4, max_size=4))
def test_a_box_with_area_keeps_it_in_integers(box):
    if box[0] >= box[2] or box[1] >= box[3]:
        return
    made = from_pixels(box, image_size=(300, 200), box_space="norm1000", resized_size=None)
    assert made[0] < made[2]
    assert made[1] < made[3]
    assert min(made) >= 0
    assert max(made) <= 1000
    assert parse_box(str(made)) == made


def test_a_text_that_repeats_its_box_is_not_rewritten():
    text = "<answer>[20, 10, 100, 50]</answer>, so [20, 10, 100, 50]"
    assert rewritten(text, [1, 2, 3, 4]) is None


def test_a_text_without_a_box_is_not_rewritten():
    assert rewritten("a goose", [1, 2, 3, 4]) is None
    with pytest.raises(HarnessError, match="box_space 'pixel'"):
        from_pixels([1, 2, 3, 4], image_size=(9, 9), box_space="pixel", resized_size=None)


def test_a_run_teaches_the_coordinates_of_its_model_and_records_them(tmp_path, monkeypatch):
    seen = labels_seen(monkeypatch)
    rows = Dataset.from_list([row("[20, 10, 100, 50]", [20, 10, 100, 50])], features=FEATURES)
    config = SftConfig(max_steps=1, batch_size=1)
    base = checkpoint("qwen3_vl")
    notes = sft.train_sft(base, rows, tmp_path / "out", config)
    assert saved_processor(base).tokenizer.decode(seen[0][seen[0] != -100]).startswith("[100, 100, 500, 500]")
    assert notes["box_space"] == "norm1000"


@pytest.mark.slow
def test_other_coordinates_are_taught_on_request_and_saved_with_the_weights(tmp_path, monkeypatch):
    """As in the paper: a model with another convention is trained on original pixels."""
    seen = labels_seen(monkeypatch)
    rows = Dataset.from_list([row("[20, 10, 100, 50]", [20, 10, 100, 50])], features=FEATURES)
    base, config = checkpoint("qwen3_vl"), SftConfig(max_steps=1, batch_size=1, box_space="pixel")
    assert sft.train_sft(base, rows, tmp_path / "one", config)["box_space"] == "pixel"
    assert saved_processor(base).tokenizer.decode(seen[0][seen[0] != -100]).startswith("[20, 10, 100, 50]")

    def opened(**given):
        return DcsftHF(pretrained=str(base), device="cpu", **given).box_convention.space

    assert opened() == "norm1000"
    assert opened(adapter=str(tmp_path / "one")) == "pixel"
    assert opened(adapter=str(tmp_path / "one"), box_space="norm1000") == "norm1000"
    again = SftConfig(max_steps=1, batch_size=1)
    notes = sft.train_sft(base, rows, tmp_path / "two", again, adapter=tmp_path / "one")
    assert notes["box_space"] == "pixel"
    merging.merge(tmp_path / "one", tmp_path / "merged", None, merging.MergeConfig(device="cpu"))
    assert coordinates.taught(None, tmp_path / "merged", base) == "pixel"
    kept = SftConfig(max_steps=2, batch_size=1, box_space="pixel", save_steps=1, keep=1)
    sft.train_sft(base, rows, tmp_path / "kept", kept)
    assert opened(adapter=str(tmp_path / "kept" / "checkpoint-2")) == "pixel"  # which has no manifest
    with pytest.raises(HarnessError, match="unknown --box-space value 'pixels'. Did you mean pixel"):
        SftConfig(max_steps=1, box_space="pixels")


def test_a_family_with_unknown_coordinates_is_only_refused_boxes(tmp_path):
    base = checkpoint("idefics3")
    rows = Dataset.from_list([row("[20, 10, 100, 50]", [20, 10, 100, 50])], features=FEATURES)
    with pytest.raises(HarnessError, match="unknown box coordinate space for .*"):
        sft.train_sft(base, rows, tmp_path / "out", SftConfig(max_steps=1))
    model = DcsftHF(pretrained=str(base), device="cpu")
    asked = types.SimpleNamespace(task_name="dcsft_digits_ground")
    with pytest.raises(HarnessError, match="unknown box coordinate space for this model"):
        model.generate_until([asked])
    coordinates.declare(model.box_convention)
    with pytest.raises(HarnessError, match="unknown box coordinate space for this model"):
        coordinates.declared()
    coordinates.declare(DcsftHF(pretrained=str(base), device="cpu", box_space="pixel").box_convention)
    assert coordinates.declared().space == "pixel"


def test_targets_that_cannot_be_taught_are_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("dcsft_harness.training.run.open_weights", lambda *given: pytest.fail("loaded"))
    twice = "<answer>[20, 10, 100, 50]</answer>, so [20, 10, 100, 50]"
    rows = Dataset.from_list([row(twice, [20, 10, 100, 50])], features=FEATURES)
    with pytest.raises(HarnessError, match="row 0: the box cannot be replaced in"):
        sft.train_sft(checkpoint("qwen3_vl"), rows, tmp_path / "out", SftConfig(max_steps=1))
    assert not (tmp_path / "out").exists()


def test_a_curated_set_marks_answers_that_are_boxes(tmp_path):
    rollouts = artifacts.rollouts(tmp_path / "rollouts", ["easy", "medium"])
    items = [
        dataclasses.replace(artifacts.item(n), target="[1, 2, 3, 4]", box=[1.0, 2.0, 3.0, 4.0])
        for n in (0, 1)
    ]
    items[1] = dataclasses.replace(items[1], box=None)
    sampling.write_items(rollouts / sampling.ITEMS, items, [[artifacts.picture(n)] for n in (0, 1)])
    labels.label(rollouts, tmp_path / "labels")
    curation.curate(tmp_path / "labels", tmp_path / "set", curation.CurationConfig(keep=("easy", "medium")))
    found = data.read(tmp_path / "set")
    assert sorted(turns.box is None for turns in found.turns) == [False, True]
    assert {turns.size for turns in found.turns if turns.box} == {(8, 6)}


@pytest.mark.slow
def test_a_grounding_task_is_trained_on_as_boxes():
    task = next(iter(lmms.open_tasks(["dcsft_digits_ground_cold"]).values()))
    rows = conversations.from_task(task)
    assert "box" in rows.column_names
    assert parse_box(rows[0]["messages"][1]["content"]) == rows[0]["box"]
    plain = next(iter(lmms.open_tasks(["dcsft_digits_cold"]).values()))
    assert "box" not in conversations.from_task(plain).column_names


@pytest.mark.parametrize(
    ("family", "rejected", "written"),
    [
        ("qwen3_vl", "It is at [60, 20, 200, 100].", "It is at [300, 200, 1000, 1000]."),
        ("qwen3_vl", "It is not there.", "It is not there."),
        ("idefics3", "It is not there.", None),
    ],
)
def test_a_rejected_box_of_your_own_pairs_is_converted_too(family, rejected, written, tmp_path, monkeypatch):
    Pillow.new("RGB", (200, 100)).save(tmp_path / "picture.png")
    given = {"prompt": ASKED, "chosen": "It is at [20, 10, 100, 50].", "rejected": rejected}
    given |= {"solution": [20, 10, 100, 50], "image": "picture.png"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(given))
    seen = []
    monkeypatch.setattr(
        data.Template, "render", lambda self, turns, *more: seen.append(turns.answer) or data.Rendered("", "")
    )
    monkeypatch.setattr(train_dpo, "_check_collator", lambda *given: pytest.fail("nothing was refused"))
    monkeypatch.setattr(run.Setup, "screen", lambda *given: pytest.fail("Stop") if len(seen) == 2 else None)
    options = {"model": checkpoint(family), "data": tmp_path / "pairs.jsonl", "scorer": "box_iou"}
    known = written is not None
    with pytest.raises(
        pytest.fail.Exception if known else HarnessError,
        match="Stop" if known else "unknown box coordinate space",
    ):
        STAGES["train dpo"](tmp_path / "out", **options)
    assert seen == (["It is at [100, 100, 500, 500].", written] if known else [])

"""Training data: what is accepted, and errors that name folder and row before a model is loaded."""

import io
import shutil

import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Pillow
from PIL import ImageFile

from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.training import data

TEXT = Value("string")
FEATURES = Features(
    {"messages": List({"role": TEXT, "content": TEXT}), "images": List(Image()), "item_id": TEXT}
)


def picture(size=(56, 56), color="red", mode="RGB"):
    return Pillow.new(mode, size, color)


def row(content="<image>What is it?", answer="seven", images=1, **more):
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": [picture() for _ in range(images)], "item_id": "a"} | more


def save(folder, rows):
    Dataset.from_list(rows, features=FEATURES).save_to_disk(str(folder / "data"))
    return folder


def test_a_curated_set_is_read_without_being_changed(tmp_path):
    folder = save(tmp_path / "set", [row(), row("Compare <image> with <image>.", "no", 2)])
    before = sorted(path.name for path in (folder / "data").iterdir())
    found = data.read(folder)
    assert [turn.images for turn in found.turns] == [1, 2]
    assert found.turns[1].prompt[0]["content"] == [
        {"type": "text", "text": "Compare "},
        {"type": "image"},
        {"type": "text", "text": " with "},
        {"type": "image"},
        {"type": "text", "text": "."},
    ]
    assert (found.turns[1].answer, found.item_ids) == ("no", ["a", "a"])
    # A cache file in it would change the artifact.
    assert sorted(path.name for path in (folder / "data").iterdir()) == before


def test_a_saved_folder_and_an_open_dataset_read_the_same(tmp_path):
    rows = Dataset.from_list([row()], features=FEATURES)
    rows.save_to_disk(str(tmp_path / "plain"))
    assert data.read(tmp_path / "plain").turns == data.read(rows).turns


def test_a_shuffled_dataset_keeps_images_with_their_rows():
    rows = [row(answer=str(n), images=0) | {"images": [picture((56 + n, 56))]} for n in range(6)]
    found = data.read(Dataset.from_list(rows, features=FEATURES).shuffle(seed=1))
    for number, turn in enumerate(found.turns):
        assert found.images(number)[0].width == 56 + int(turn.answer)


def test_a_trainers_set_reads_rows_on_demand_and_hashes_none_of_them():
    found = data.read(Dataset.from_list([row(), row(answer="six")], features=FEATURES))
    pickled = []

    class Answers(list):
        def __reduce_ex__(self, protocol):
            pickled.append(protocol)  # what hashing does: 7 s for 100,000 rows
            return super().__reduce_ex__(protocol)

    made = found.dataset(answer=Answers(turns.answer for turns in found.turns))
    assert not pickled
    assert made[1]["answer"] == "six" and made[1]["row"] == 1
    assert made[0]["images"][0].size == (56, 56)


def test_images_are_converted_to_rgb():
    found = data.read(Dataset.from_list([row(images=0) | {"images": [picture(mode="L", color=9)]}], FEATURES))
    assert found.images(0)[0].getpixel((0, 0)) == (9, 9, 9)


def test_a_placeholder_in_an_answer_is_text():
    found = data.read(Dataset.from_list([row(answer="write <image> there")], features=FEATURES))
    assert found.turns[0].answer == "write <image> there"


def damaged(kind):
    stored = io.BytesIO()
    Pillow.effect_noise((64, 64), 50).save(stored, "PNG")
    content = stored.getvalue()
    return {"cut short": content[: len(content) // 2], "no image": b"text", "empty": b""}[kind]


@pytest.mark.parametrize("kind", ["cut short", "no image", "empty"])
def test_an_unreadable_image_is_named_even_if_pillow_is_lenient(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as importing lmms-eval does
    bad = row() | {"images": [{"bytes": damaged(kind), "path": None}]}
    folder = save(tmp_path / "set", [row(), bad])
    with pytest.raises(
        HarnessError, match=r"set, row 1: an image cannot be read .*Replace the image"
    ) as refused:
        data.read(folder)
    assert str(folder) in str(refused.value)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (row(images=2), "row 0: 1 <image> placeholders for 2 images"),
        (row("What is it?", images=2), "row 0: 0 <image> placeholders for 2 images"),
        (row(answer=""), "row 0: the assistant's answer is empty"),
        (row() | {"messages": [{"role": "user", "content": "<image>"}]}, "row 0: the last turn is 'user'"),
        (row() | {"messages": []}, "row 0: the last turn is missing"),
        (row() | {"messages": [{"role": "assistant", "content": "hi"}]}, "row 0: there is no user turn"),
        (
            row() | {"messages": [{"role": "tool", "content": "x"}, *row()["messages"]]},
            "row 0: unknown role 'tool'",
        ),
        (
            row() | {"messages": [{"role": "user", "content": None}, row()["messages"][1]]},
            "row 0: a message's content is NoneType",
        ),
    ],
)
def test_a_malformed_row_is_refused_by_number(wrong, said):
    with pytest.raises(HarnessError) as refused:
        data.read(Dataset.from_list([wrong], features=FEATURES))
    assert said in str(refused.value)


def test_a_missing_column_and_an_empty_set_are_refused(tmp_path):
    rows = Dataset.from_list([row()], features=FEATURES)
    with pytest.raises(HarnessError, match="lacks the column 'images'; it has messages, item_id"):
        data.read(rows.remove_columns("images"))
    with pytest.raises(HarnessError, match="has no rows to train on"):
        data.read(rows.select([]))


def test_a_folder_without_a_training_set_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(HarnessError, match=f"{folder} is not a training set"):
            data.read(folder)
    DatasetDict(train=Dataset.from_list([row()], FEATURES)).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(HarnessError, match="splits holds the splits train"):
        data.read(tmp_path / "splits")


def test_the_digest_of_a_dataset_depends_on_texts_and_images():
    def of(**more):
        return data.digest(Dataset.from_list([row() | more], FEATURES))

    assert of() == of()
    assert len({of(), of(images=[picture(color="blue")]), of(messages=row(answer="no")["messages"])}) == 3


@pytest.mark.parametrize("column", ["item_id", "rejected", "weight", "box"])
def test_the_digest_of_a_dataset_depends_on_columns_used_for_scoring(column):
    values = {"item_id": "ab", "rejected": "ab", "weight": (1.0, 2.0), "box": ([1.0], [2.0])}[column]
    rows = Dataset.from_list([row()], FEATURES).select_columns(["messages", "images"])
    digests = {data.digest(rows.add_column(column, [value])) for value in values}
    assert len(digests | {data.digest(rows)}) == 3


def test_a_curated_set_that_was_edited_by_hand_is_refused(tmp_path):
    with manifest.writing("curated set", tmp_path / "set", {}) as draft:
        save(draft.folder, [row(), row(answer="B")])
    assert len(data.read(tmp_path / "set").turns) == 2
    shutil.rmtree(tmp_path / "set" / "data")
    save(tmp_path / "set", [row()])
    with pytest.raises(HarnessError, match=r"set/data/.* does not match manifest\.json beside it"):
        data.read(tmp_path / "set")
    (tmp_path / "set" / manifest.NAME).unlink()
    assert len(data.read(tmp_path / "set").turns) == 1

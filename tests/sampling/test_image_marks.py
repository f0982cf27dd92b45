"""Image markers: their number has to match the images and their places are kept, however a row enters."""

import json
from statistics import fmean

import datasets
import pytest
from datasets import Dataset, Features, List, Value
from PIL import Image

from dcsft_harness import curation, lmms, records, sampling
from dcsft_harness.curation import conversations, labels
from dcsft_harness.curation.rules import CurationConfig
from dcsft_harness.errors import HarnessError
from dcsft_harness.models import requests
from dcsft_harness.models.requests import Item
from dcsft_harness.models.stub import DcsftStub
from dcsft_harness.sampling import own_data
from dcsft_harness.training import data

COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 128, 0)}
FEATURES = Features(
    {
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "images": List(datasets.Image()),
    }
)
# The user's text, the images, and what the model is shown.
SHOWN = [
    ("1 + 1?", [], ["1 + 1?"]),
    ("Which?", ["red"], [("red",), "Which?"]),
    ("<image>Which?", ["red"], [("red",), "Which?"]),
    ("Which <image>?", ["red"], ["Which ", ("red",), "?"]),
    ("What is this? <image>", ["red"], ["What is this? ", ("red",)]),
    ("<image><image>Same?", ["red", "blue"], [("red",), ("blue",), "Same?"]),
    (
        "First <image> then <image>: same?",
        ["red", "blue"],
        ["First ", ("red",), " then ", ("blue",), ": same?"],
    ),
    ("<image>Like <image>?", ["blue", "red"], [("blue",), "Like ", ("red",), "?"]),
]
REFUSED = [
    ("Same?", ["red", "blue"], "0 <image> placeholders for 2 images"),
    ("<image>Same?", ["red", "blue"], "1 <image> placeholders for 2 images"),
    ("<image><image>Which?", ["red"], "2 <image> placeholders for 1 images"),
    ("Which <image>?", [], "1 <image> placeholders for 0 images"),
]


def chat(text):
    return [{"role": "user", "content": text}, {"role": "assistant", "content": "goose"}]


def own(folder, row):
    for name, color in COLORS.items():
        Image.new("RGB", (8, 8), color).save(folder / f"{name}.png")
    (folder / "mine.jsonl").write_text(json.dumps(row))
    return own_data.open_file(folder / "mine.jsonl", "exact_word", None)


def seen(content, images):
    """A turn's parts, with texts unchanged and images by their color."""
    names = {color: name for name, color in COLORS.items()}
    left = [(names[image.getpixel((0, 0))],) for image in images]
    return [part["text"] if part["type"] == "text" else left.pop(0) for part in content]


def shown_by(task):
    item = Item(task.config.task, "test", 0, None, "", task.doc_to_messages)
    prompt = requests.read_prompt(item, {task.config.task: {"test": task.eval_docs}}, None)
    return seen(prompt.messages[0]["content"], prompt.images)


def taught_by(rows):
    found = data.read(rows)
    (turn,) = found.turns[0].prompt
    return seen(turn["content"], found.images(0))


def jsonl_messages(folder, text, pictures):
    return shown_by(own(folder, {"messages": chat(text), "images": [f"{name}.png" for name in pictures]}))


def jsonl_problem(folder, text, pictures):
    images = [f"{name}.png" for name in pictures]
    one = {"image": images[0]} if len(images) == 1 else {"images": images}
    return shown_by(own(folder, {"problem": text, "solution": "goose", **one}))


def jsonl_messages_and_image(folder, text, pictures):
    """A single image in `image` next to `messages`, and an empty `images` as exports write it."""
    images = [f"{name}.png" for name in pictures]
    one = {"image": images[0], "images": None} if len(images) == 1 else {"images": images, "image": None}
    return shown_by(own(folder, {"messages": chat(text), **one}))


def jsonl_trained_on(folder, text, pictures):
    row = {"messages": chat(text), "images": [f"{name}.png" for name in pictures]}
    return taught_by(conversations.from_task(own(folder, row)))


def rows_trained_on(folder, text, pictures):
    images = [Image.new("RGB", (8, 8), COLORS[name]) for name in pictures]
    return taught_by(Dataset.from_list([{"messages": chat(text), "images": images}], features=FEATURES))


def curated(folder, text, pictures):
    task = own(folder, {"messages": chat(text), "images": [f"{name}.png" for name in pictures]})
    config = sampling.SamplingConfig(samples=1)
    sampling.sample(DcsftStub(default="goose"), task, folder / "rollouts", config, {})
    labels.label(folder / "rollouts", folder / "labels")
    curation.curate(folder / "labels", folder / "curated", CurationConfig(keep=("easy",)))
    return taught_by(folder / "curated")


ENTRIES = [
    jsonl_messages,
    jsonl_messages_and_image,
    jsonl_problem,
    jsonl_trained_on,
    rows_trained_on,
    curated,
]


@pytest.mark.grid
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(("text", "pictures", "wanted"), SHOWN)
def test_images_are_shown_at_their_markers(entry, text, pictures, wanted, tmp_path):
    assert entry(tmp_path, text, pictures) == wanted


@pytest.mark.grid
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(("text", "pictures", "said"), REFUSED)
def test_a_wrong_number_of_images_is_refused_by_row(entry, text, pictures, said, tmp_path):
    with pytest.raises(HarnessError, match=rf"(line 1|row 0): {said}"):
        entry(tmp_path, text, pictures)


@pytest.mark.parametrize("start", [{"messages": chat("Which?")}, {"problem": "Which?", "solution": "goose"}])
def test_image_and_images_together_are_refused(start, tmp_path):
    with pytest.raises(HarnessError, match="line 1: both `image` and `images` name images"):
        own(tmp_path, {**start, "image": "red.png", "images": ["blue.png"]})


def test_a_single_image_comes_before_the_first_user_turn():
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "I see an <image>."},
        {"role": "user", "content": "Which?"},
        {"role": "assistant", "content": "goose"},
    ]
    images = [Image.new("RGB", (8, 8), COLORS["red"])]
    found = data.read(Dataset.from_list([{"messages": turns, "images": images}], features=FEATURES))
    assert [[part["type"] for part in turn["content"]] for turn in found.turns[0].prompt] == [
        ["text"],
        ["image", "text"],
        ["text"],
        ["text"],
    ]


def their_task(folder, text, interleaved):
    features = Features(text=Value("string"), image=datasets.Image())
    rows = [{"text": text, "image": Image.new("RGB", (8, 8), COLORS["red"])}]
    made = Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"test": made}).save_to_disk(str(folder / "data"))

    def messages(doc):
        before, after = doc["text"].split("*")
        picture = {"type": "image", "url": doc["image"]}
        content = [{"type": "text", "text": before}, picture, {"type": "text", "text": after}]
        return [{"role": "user", "content": content}]

    shows = {"doc_to_messages": messages} if interleaved else {"doc_to_visual": lambda doc: [doc["image"]]}
    return lmms.make_task(
        {
            "task": "theirs",
            "dataset_path": str(folder / "data"),
            "dataset_kwargs": {"load_from_disk": True},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "text",
            "doc_to_target": "text",
            "process_results": lambda doc, results: {"hit": 1.0},
            "metric_list": [{"metric": "hit", "aggregation": fmean, "higher_is_better": True}],
            **shows,
        }
    )


def test_a_tasks_image_between_texts_keeps_its_place(tmp_path):
    task = their_task(tmp_path, "Which * is it?", interleaved=True)
    assert lmms.describe(task, 0)[0].prompt == "Which <image> is it?"
    assert taught_by(conversations.from_task(task)) == shown_by(task) == ["Which ", ("red",), " is it?"]


def test_a_marker_in_a_tasks_own_text_is_not_a_place(tmp_path):
    """lmms-eval shows the image first, and the marker as text; a trainer would put the image there."""
    task = their_task(tmp_path, "Which <image> is it?", interleaved=False)
    assert shown_by(task) == [("red",), "Which <image> is it?"]
    key = lmms.describe(task, 0)[0].item_id
    said = f"item {key}: 2 <image> placeholders for 1 images"
    with pytest.raises(HarnessError, match=said):
        conversations.from_task(task)
    sampling.sample(
        DcsftStub(default="x"), task, tmp_path / "rollouts", sampling.SamplingConfig(samples=1), {}
    )
    labels.label(tmp_path / "rollouts", tmp_path / "labels")
    with pytest.raises(HarnessError, match=said):
        curation.curate(tmp_path / "labels", tmp_path / "curated", CurationConfig(keep=("easy",)))
    assert not (tmp_path / "curated").exists()


def test_rollouts_of_earlier_versions_have_their_images_in_front(tmp_path):
    item = {"item_id": "a", "prompt": "Which?", "target": "goose", "images": [object()]}
    assert conversations.conversation(item)["messages"][0]["content"] == f"{records.MARK}Which?"

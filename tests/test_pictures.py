"""One treatment of pictures with transparency: white wherever they are shown, stored or compared."""

import io
import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, Features, List, Value
from PIL import Image, ImageDraw

from dcsft_harness import dataset_folder, harness, overlap, own_data, records
from dcsft_harness.leaderboard.pictures import store
from dcsft_harness.models import prompts
from dcsft_harness.pictures import is_plain, on_white
from dcsft_harness.sources import album
from dcsft_harness.training import data

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def drawing(mode):
    """A black frame on a transparent ground."""
    image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((4, 4, 30, 20), outline=(0, 0, 0, 255))
    if mode == "RGBA":
        return image
    if mode == "LA":
        return image.convert("LA")
    seen = image.getchannel("A").point(lambda value: 1 if value else 0)
    if mode == "P":
        indexed = Image.new("P", image.size)
        indexed.putpalette([*BLACK, *BLACK])
        indexed.paste(1, mask=seen.point(lambda value: 255 * value))
        indexed.info["transparency"] = 0
        return indexed
    keyed = Image.new("RGB", image.size, (1, 0, 0))
    keyed.paste(BLACK, mask=seen.point(lambda value: 255 * value))
    keyed.info["transparency"] = (1, 0, 0)
    return keyed


def stored(mode):
    file = io.BytesIO()
    image = drawing(mode)
    more = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
    image.save(file, "PNG", **more)
    return file.getvalue()


MODES = ("RGBA", "LA", "P", "RGB")


def own(folder, content):
    (folder / "a.png").write_bytes(content)
    (folder / "mine.jsonl").write_text(
        json.dumps({"problem": "Which?", "solution": "goose", "image": "a.png"})
    )
    return own_data.open_file(folder / "mine.jsonl", "exact_word", None)


def in_own_data(folder, content):
    return harness.describe(own(folder, content), 0)[1][0]


def in_rollouts(folder, content):
    task = own(folder, content)
    item, _ = harness.describe(task, 0)
    (files,) = harness.stored_images(task, [item])
    return Image.open(io.BytesIO(files[0]["bytes"]))


def in_rollouts_of_a_task(folder, content):
    """An lmms-eval task whose documents hold files, and which shows them as they are."""
    rows = [{"text": "?", "image": {"bytes": content, "path": None}}]
    made = datasets.Dataset.from_list(rows, features=Features(text=Value("string"), image=datasets.Image()))
    datasets.DatasetDict({"test": made}).save_to_disk(str(folder / "data"))
    task = harness.make_task(
        {
            "task": "theirs",
            "dataset_path": str(folder / "data"),
            "dataset_kwargs": {"load_from_disk": True},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_visual": lambda doc: [doc["image"]],
            "doc_to_text": "text",
            "doc_to_target": "text",
            "process_results": lambda doc, results: {"hit": 1.0},
            "metric_list": [{"metric": "hit", "aggregation": max, "higher_is_better": True}],
        }
    )
    item, _ = harness.describe(task, 0)
    (files,) = harness.stored_images(task, [item])
    return Image.open(io.BytesIO(files[0]["bytes"]))


def in_training(folder, content):
    text = Value("string")
    turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "goose"}]
    features = Features(messages=List({"role": text, "content": text}), images=List(datasets.Image()))
    rows = [{"messages": turns, "images": [{"bytes": content, "path": None}]}]
    return data.read(Dataset.from_list(rows, features=features)).images(0)[0]


def in_evaluation_by_path(folder, content):
    (folder / "a.png").write_bytes(content)
    return prompts._image(str(folder / "a.png"), "here")


def in_evaluation(folder, content):
    return prompts._image(Image.open(io.BytesIO(content)), "here")


def in_prepared_data(folder, content):
    return album.shown(content)


def on_the_page(folder, content):
    kept = store(folder, Image.open(io.BytesIO(content)))
    return Image.open(folder / kept.file)


def as_a_stored_picture(folder, content):
    return Image.open(io.BytesIO(dataset_folder.png(Image.open(io.BytesIO(content)))["bytes"]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shown",
    [
        in_own_data,
        in_rollouts,
        in_rollouts_of_a_task,
        in_training,
        in_evaluation,
        in_evaluation_by_path,
        in_prepared_data,
        on_the_page,
        as_a_stored_picture,
    ],
)
def test_what_is_transparent_is_white(shown, mode, tmp_path):
    image = shown(tmp_path, stored(mode))
    image = image.convert("RGB") if shown is on_the_page else image
    assert is_plain(image)
    assert (image.getpixel((0, 0)), image.getpixel((4, 4)), image.getpixel((10, 10))) == (WHITE, BLACK, WHITE)


@pytest.mark.parametrize("mode", MODES)
def test_an_item_is_known_by_what_is_shown_of_it(mode):
    image = Image.open(io.BytesIO(stored(mode)))
    white = on_white(drawing("RGBA"))
    assert records.pixels(image) == records.pixels(white)
    assert records.pixel_digest(image) == records.pixel_digest(white)
    assert overlap.perceptual_hash(image) == overlap.perceptual_hash(white)


def test_it_is_what_qwens_own_code_shows():
    vision = pytest.importorskip("qwen_vl_utils.vision_process")
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    image.putalpha(Image.effect_noise((40, 30), 90))
    assert vision.to_rgb(image).tobytes() == on_white(image).tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1"])
def test_an_opaque_picture_keeps_its_pixels(mode):
    image = Image.effect_noise((40, 30), 60).convert(mode)
    assert on_white(image).tobytes() == image.convert("RGB").tobytes()
    assert on_white(image) is not image
    expected = image.convert("RGB")
    assert records.pixels(image) == f"{expected.width}x{expected.height}:".encode() + expected.tobytes()


def test_two_drawings_that_differ_in_what_is_transparent_are_two_items(tmp_path):
    """With the alpha channel dropped both were black all over, and the second line a repetition."""
    for name, corner in (("a.png", 4), ("b.png", 9)):
        image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
        ImageDraw.Draw(image).rectangle((corner, 4, 30, 20), outline=(0, 0, 0, 255))
        image.save(tmp_path / name)
    rows = [{"problem": "Which?", "solution": "goose", "image": name} for name in ("a.png", "b.png")]
    path = Path(tmp_path / "mine.jsonl")
    path.write_text("\n".join(map(json.dumps, rows)))
    assert len(own_data.open_file(path, "exact_word", None).eval_docs) == 2

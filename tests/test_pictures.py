"""One conversion of images, wherever they are shown, stored or compared: upright, 8-bit RGB, on white."""

import hashlib
import io
import json
import struct
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from PIL import ExifTags, Image, ImageDraw

from dcsft_harness import curation, lmms, pictures, records, sampling, stages
from dcsft_harness.artifacts import storage
from dcsft_harness.curation import labels, overlap
from dcsft_harness.curation.rules import CurationConfig
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard.page.data import store
from dcsft_harness.models import requests
from dcsft_harness.models.requests import Item
from dcsft_harness.models.stub import DcsftStub
from dcsft_harness.pictures import is_plain, to_rgb
from dcsft_harness.sampling import own_data
from dcsft_harness.training import data


def own(folder, content):
    (folder / "a.png").write_bytes(content)
    (folder / "mine.jsonl").write_text(
        json.dumps({"problem": "Which?", "solution": "goose", "image": "a.png"})
    )
    return own_data.open_file(folder / "mine.jsonl", "exact_word", None)


def in_own_data(folder, content):
    return lmms.describe(own(folder, content), 0)[1][0]


def in_rollouts(folder, content):
    task = own(folder, content)
    item, _ = lmms.describe(task, 0)
    (files,) = lmms.stored_images(task, [item])
    return Image.open(io.BytesIO(files[0]["bytes"]))


def task_of(folder, content, by_path=False):
    """An lmms-eval task whose documents hold files, or their paths, and which shows them unchanged."""
    features = Features(text=Value("string"), image=datasets.Image())
    rows = [{"text": "?", "image": {"bytes": content, "path": None}}]
    if by_path:
        (folder / "a.picture").write_bytes(content)
        features, rows = Features(text=Value("string"), image=Value("string")), [{"text": "?", "image": "?"}]
    made = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"test": made}).save_to_disk(str(folder / "data"))
    return lmms.make_task(
        {
            "task": "theirs",
            "dataset_path": str(folder / "data"),
            "dataset_kwargs": {"load_from_disk": True},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_visual": lambda doc: [Image.open(folder / "a.picture") if by_path else doc["image"]],
            "doc_to_text": "text",
            "doc_to_target": "text",
            "process_results": lambda doc, results: {"hit": 1.0},
            "metric_list": [{"metric": "hit", "aggregation": max, "higher_is_better": True}],
        }
    )


def in_a_task(folder, content, by_path=False):
    """The image that the model is shown."""
    task = task_of(folder, content, by_path)
    lmms.describe(task, 0)  # which refuses images that cannot be shown
    item = Item("theirs", "test", 0, None, "", task.doc_to_messages)
    return requests.read_prompt(item, {"theirs": {"test": task.eval_docs}}, None).images[0]


def in_rollouts_of_a_task(folder, content, by_path=False):
    task = task_of(folder, content, by_path)
    item, _ = lmms.describe(task, 0)
    (files,) = lmms.stored_images(task, [item])
    return Image.open(io.BytesIO(files[0]["bytes"]))


def in_a_task_by_path(folder, content):
    return in_a_task(folder, content, by_path=True)


def in_rollouts_of_a_task_by_path(folder, content):
    return in_rollouts_of_a_task(folder, content, by_path=True)


def in_training(folder, content, file=None):
    text = Value("string")
    turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "goose"}]
    features = Features(messages=List({"role": text, "content": text}), images=List(datasets.Image()))
    rows = [{"messages": turns, "images": [file or {"bytes": content, "path": None}]}]
    return data.read(Dataset.from_list(rows, features=features)).images(0)[0]


def in_training_by_path(folder, content):
    (folder / "a.picture").write_bytes(content)
    return in_training(folder, content, {"bytes": None, "path": str(folder / "a.picture")})


def in_evaluation_by_path(folder, content):
    (folder / "a.png").write_bytes(content)
    return requests._image(str(folder / "a.png"), "here")


def in_evaluation(folder, content):
    return requests._image(Image.open(io.BytesIO(content)), "here")


def in_prepared_data(folder, content):
    return pictures.read(content).shown


def on_the_page(folder, content):
    kept = store(folder, Image.open(io.BytesIO(content)))
    return Image.open(folder / kept.file)


def as_a_stored_picture(folder, content):
    return Image.open(io.BytesIO(storage.png(Image.open(io.BytesIO(content)))["bytes"]))


def test_rgb_conversion_equals_qwens_own():
    vision = pytest.importorskip("qwen_vl_utils.vision_process")
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    image.putalpha(Image.effect_noise((40, 30), 90))
    assert vision.to_rgb(image).tobytes() == to_rgb(image).tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1"])
def test_an_opaque_image_keeps_its_pixels(mode):
    image = Image.effect_noise((40, 30), 60).convert(mode)
    assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()
    assert to_rgb(image) is not image
    expected = image.convert("RGB")
    assert records.pixels(image) == f"{expected.width}x{expected.height}:".encode() + expected.tobytes()


def test_drawings_that_differ_in_their_transparency_are_two_items(tmp_path):
    """Without the alpha channel both were all black, and the second line a duplicate."""
    for name, corner in (("a.png", 4), ("b.png", 9)):
        image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
        ImageDraw.Draw(image).rectangle((corner, 4, 30, 20), outline=(0, 0, 0, 255))
        image.save(tmp_path / name)
    rows = [{"problem": "Which?", "solution": "goose", "image": name} for name in ("a.png", "b.png")]
    path = Path(tmp_path / "mine.jsonl")
    path.write_text("\n".join(map(json.dumps, rows)))
    assert len(own_data.open_file(path, "exact_word", None).eval_docs) == 2


# Kinds of files x places that show them: pixels against arrays computed without Pillow's conversions.

SIZE = (20, 30)  # height, width
RAMP = np.linspace(0, 1, SIZE[0] * SIZE[1]).reshape(SIZE)
COLORS = np.random.default_rng(7).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: np.rot90(x),
}
"""How to rotate the rows and columns of a file with each EXIF orientation."""


def encoded(image, form, **more):
    file = io.BytesIO()
    image.save(file, form, **more)
    return file.getvalue()


def exif(orientation):
    found = Image.Exif()
    found[ExifTags.Base.Orientation] = orientation
    return found


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def turned(orientation):
    jpeg = encoded(Image.fromarray(COLORS), "JPEG", quality=95)
    seen = np.asarray(Image.open(io.BytesIO(jpeg)))
    return (
        encoded(Image.fromarray(COLORS), "JPEG", quality=95, exif=exif(orientation)),
        UPRIGHT[orientation](seen),
    )


def transparent(mode):
    """Left half opaque, right half transparent, which becomes white."""
    half = SIZE[1] // 2
    alpha = np.zeros(SIZE, np.uint8)
    alpha[:, :half] = 255
    shown = COLORS.copy() if mode == "RGBA" else grey(COLORS[..., 0])
    shown[:, half:] = 255
    bands = COLORS if mode == "RGBA" else COLORS[..., :1]
    return encoded(Image.fromarray(np.dstack([bands, alpha])), "PNG"), shown


def indexed():
    places = (np.arange(SIZE[0] * SIZE[1]) % 3).astype(np.uint8).reshape(SIZE)
    image = Image.fromarray(places).convert("P")
    image.putdata(places.ravel())
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    colors = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]], np.uint8)
    return encoded(image, "PNG", transparency=1), colors[places]


def deep(kind, form, values, shown):
    return encoded(Image.fromarray(values.astype(kind)), form), grey(np.rint(shown))


def keyed():
    values = np.rint(RAMP * 65535).astype(np.uint16)
    shown = np.rint(values / 257)
    shown[values == values[3, 3]] = 255
    return encoded(Image.fromarray(values), "PNG", transparency=int(values[3, 3])), grey(shown)


def keyed_color():
    shown = COLORS.copy()
    shown[(COLORS == COLORS[3, 3]).all(axis=2)] = 255
    return encoded(Image.fromarray(COLORS), "PNG", transparency=tuple(COLORS[3, 3].tolist())), shown


def big_endian():
    values = np.rint(RAMP * 65535).astype(np.uint16)
    image = Image.frombytes("I;16B", SIZE[::-1], values.astype(">u2").tobytes())
    return encoded(image, "TIFF"), grey(np.rint(values / 257))


def turned_and_deep():
    values = np.rint(RAMP * 65535).astype(np.uint16)
    content = encoded(Image.fromarray(values), "PNG", exif=exif(6))
    return content, UPRIGHT[6](grey(np.rint(values / 257)))


def turned_tiff():
    return encoded(Image.fromarray(COLORS), "TIFF", tiffinfo={274: 8}), UPRIGHT[8](COLORS)


def cmyk():
    inks = np.dstack([COLORS, np.full(SIZE, 40, np.uint8)])
    shown = np.rint((255.0 - inks[..., :3]) * (255 - 40) / 255)
    return encoded(Image.frombytes("CMYK", SIZE[::-1], inks.tobytes()), "TIFF"), shown.astype(np.uint8)


def tiff(samples, bits, kind=1, photometric=1, orientation=1, endian="<"):
    """A grey TIFF file as scanners write it, which Pillow reads and does not write.

    Args:
        samples: the encoded rows.
        bits: of a sample.
        kind: 1 unsigned, 2 signed, 3 float.
        photometric: 0 where zero is white, 1 where it is black.
        orientation: of the rows, as in EXIF.
        endian: "<" or ">".
    """
    tags = [(256, SIZE[1]), (257, SIZE[0]), (258, bits), (259, 1), (262, photometric), (273, None)]
    tags += [(274, orientation)] if orientation > 1 else []  # `datasets` drops the tags of a tagged file
    tags += [(277, 1), (278, SIZE[0]), (279, len(samples)), (339, kind)]
    offset = 8 + 2 + 12 * len(tags) + 4
    short = {256, 257, 258, 259, 262, 274, 277, 278, 339}
    entries = b"".join(
        struct.pack(f"{endian}HHIHH", tag, 3, 1, value, 0)
        if tag in short
        else struct.pack(f"{endian}HHII", tag, 4, 1, offset if tag == 273 else value)
        for tag, value in tags
    )
    head = {"<": b"II", ">": b"MM"}[endian] + struct.pack(f"{endian}HI", 42, 8)
    return head + struct.pack(f"{endian}H", len(tags)) + entries + bytes(4) + samples


def twelve_bits():
    values = np.rint(RAMP * 4095).astype(np.uint16).ravel()
    first, second = values[::2], values[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8)
    return tiff(packed.tobytes(), 12), grey(np.rint(values.reshape(SIZE) / 4095 * 255))


def sideways(orientation):
    """Pillow would map its rows into memory if it opened the file by its path."""
    content = tiff(WIDE.astype(">u2").tobytes(), 16, orientation=orientation, endian=">")
    return content, UPRIGHT[orientation](grey(np.rint(WIDE / 257)))


def sideways_cmyk(orientation):
    inks = np.dstack([COLORS, np.full(SIZE, 40, np.uint8)])
    content = encoded(
        Image.frombytes("CMYK", SIZE[::-1], inks.tobytes()), "TIFF", tiffinfo={274: orientation}
    )
    return content, UPRIGHT[orientation](cmyk()[1])


def on_webp(orientation):
    content = encoded(Image.fromarray(COLORS), "WEBP", lossless=True, exif=exif(orientation))
    return content, UPRIGHT[orientation](COLORS)


def indexed_and_turned():
    content, shown = indexed()
    image = Image.open(io.BytesIO(content))
    return encoded(image, "PNG", transparency=1, exif=exif(5)), UPRIGHT[5](shown)


WIDE = np.rint(RAMP * 65535)
KINDS = {
    **{f"EXIF {number}": partial(turned, number) for number in UPRIGHT},
    "16-bit grey PNG": lambda: deep(np.uint16, "PNG", WIDE, WIDE / 257),
    "16-bit grey PNG with a transparent value": keyed,
    "16-bit grey TIFF": lambda: deep(np.uint16, "TIFF", WIDE, WIDE / 257),
    "16-bit grey TIFF, big-endian": big_endian,
    "16-bit PGM": lambda: deep(np.uint16, "PPM", WIDE // 2, WIDE // 2 / 257),
    "float TIFF in [0, 1]": lambda: deep(np.float32, "TIFF", RAMP / 2, np.float32(RAMP / 2) * 255.0),
    "float TIFF beyond": lambda: deep(np.float32, "TIFF", np.rint(RAMP * 510) - 255, np.rint(RAMP * 510) / 2),
    "int32 TIFF": lambda: deep(np.int32, "TIFF", WIDE * 1000 - 9, WIDE / 257),
    "int32 TIFF of a mask": lambda: deep(np.int32, "TIFF", RAMP > 0.5, 255 * (RAMP > 0.5)),
    "12-bit TIFF": twelve_bits,
    "16-bit TIFF whose zero is white": lambda: (
        tiff(WIDE.astype("<u2").tobytes(), 16, photometric=0),
        grey(np.rint((65535 - WIDE) / 257)),
    ),
    "float TIFF whose zero is white": lambda: (
        tiff(RAMP.astype("<f4").tobytes(), 32, 3, photometric=0),
        grey(np.rint((1 - RAMP.astype("<f4").astype(float)) * 255)),
    ),
    "uint32 TIFF": lambda: (tiff((WIDE * 60_000).astype("<u4").tobytes(), 32), grey(np.rint(WIDE / 257))),
    "int16 TIFF": lambda: (
        tiff((WIDE - 32768).astype("<i2").tobytes(), 16, 2),
        grey(np.rint(WIDE / 257)),
    ),
    **{f"16-bit TIFF with orientation {number}": partial(sideways, number) for number in (3, 5, 6, 8)},
    "CMYK TIFF with orientation 6": partial(sideways_cmyk, 6),
    **{f"WebP with EXIF {number}": partial(on_webp, number) for number in (2, 7)},
    "P with transparency and EXIF 5": indexed_and_turned,
    "16-bit PNG with EXIF 6": turned_and_deep,
    "TIFF with orientation 8": turned_tiff,
    "LA": lambda: transparent("LA"),
    "RGBA": lambda: transparent("RGBA"),
    "P with transparency": indexed,
    "RGB with a transparent color": keyed_color,
    "CMYK": cmyk,
    "1-bit": lambda: (encoded(Image.fromarray(RAMP > 0.5), "PNG"), grey(255 * (RAMP > 0.5))),
    "L": lambda: (encoded(Image.fromarray(COLORS[..., 0]), "PNG"), grey(COLORS[..., 0])),
    "RGB": lambda: (encoded(Image.fromarray(COLORS), "PNG"), COLORS),
}
ENTRIES = [
    in_own_data,
    in_rollouts,
    in_rollouts_of_a_task,
    in_a_task,
    in_a_task_by_path,
    in_rollouts_of_a_task_by_path,
    in_training,
    in_training_by_path,
    in_evaluation,
    in_evaluation_by_path,
    in_prepared_data,
    on_the_page,
    as_a_stored_picture,
]


@pytest.mark.grid
@pytest.mark.parametrize("shown", ENTRIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_place_shows_the_same_pixels(shown, kind, tmp_path):
    content, expected = KINDS[kind]()
    found = np.asarray(shown(tmp_path, content).convert("RGB"))
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (1 if "CMYK" in kind else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_overlap_compares_these_pixels(kind, tmp_path):
    content, expected = KINDS[kind]()
    if "CMYK" in kind:
        pytest.skip("rounded in another way")
    (digest,) = overlap.read_images(task_of(tmp_path, content)).digests
    size = f"{expected.shape[1]}x{expected.shape[0]}:".encode()
    assert digest == hashlib.sha256(size + np.ascontiguousarray(expected).tobytes()).digest()
    with Image.open(io.BytesIO(content)) as image:
        assert records.pixels(image) == size + np.ascontiguousarray(expected).tobytes()
        assert overlap.perceptual_hash(image) == overlap.perceptual_hash(Image.fromarray(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_keep_files_that_every_reader_shows_alike(kind, tmp_path):
    """Even readers that ignore EXIF orientation and bit depth."""
    content, _ = KINDS[kind]()
    for number, make in enumerate((own, task_of)):
        (tmp_path / str(number)).mkdir()
        task = make(tmp_path / str(number), content)
        ((file,),) = lmms.stored_images(task, [lmms.describe(task, 0)[0]])
        with Image.open(io.BytesIO(file["bytes"])) as image:
            assert is_plain(image)


NO_RANGE = {
    "one value": (np.full(SIZE, 7, np.int32), "all of its pixels are 7, which gives no range"),
    "not a number": (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), "are not all finite numbers"),
    "infinite": (np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32), "are not all finite numbers"),
}


@pytest.mark.grid
@pytest.mark.parametrize("shown", [in_own_data, in_a_task, in_training, in_evaluation, in_evaluation_by_path])
@pytest.mark.parametrize("kind", NO_RANGE)
def test_an_image_with_an_unknown_value_range_is_refused(shown, kind, tmp_path):
    values, said = NO_RANGE[kind]
    with pytest.raises(HarnessError, match=f"cannot be read .*{said}"):
        shown(tmp_path, encoded(Image.fromarray(values), "TIFF"))


def test_damaged_exif_data_is_ignored(tmp_path):
    content = encoded(Image.fromarray(COLORS), "PNG", exif=b"Exif\0\0not EXIF")
    for shown in (in_own_data, in_rollouts, in_training, in_evaluation):
        assert np.array_equal(np.asarray(shown(tmp_path, content)), COLORS)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_box_is_rotated_with_its_image(orientation):
    seen = np.zeros((20, 30), bool)
    seen[3:9, 4:16] = True
    upright = UPRIGHT[orientation](seen)
    rows, columns = np.nonzero(upright)
    wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert pictures.upright_box([4, 3, 16, 9], orientation, upright.shape[::-1]) == wanted


def test_a_box_in_own_data_is_in_pixels_of_the_upright_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(turned(6)[0])  # 30 x 20 as encoded, 20 x 30 upright
    rows = {"inside": [2, 2, 18, 28], "outside": [2, 2, 28, 18]}
    for name, box in rows.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps({"problem": "Where?", "solution": box, "image": "a.jpg"}))
    doc = own_data.open_file(tmp_path / "inside.jsonl", "box_iou", None).eval_docs[0]
    assert (doc["width"], doc["height"]) == (20, 30)
    with pytest.raises(HarnessError, match=r"leaves its image of 20 x 30 pixels.*upright image"):
        own_data.open_file(tmp_path / "outside.jsonl", "box_iou", None)


def drawn(folder, answers="goose"):
    task = own_data.open_file(folder / "mine.jsonl", "exact_word", None)
    inputs = {"data": folder / "mine.jsonl"}
    config = sampling.SamplingConfig(samples=2)
    given = {"default": answers} if isinstance(answers, str) else {"answers": answers}
    model = DcsftStub(**given, batch_size=1)
    return sampling.sample(model, task, folder / "rollouts", config, {}, inputs=inputs)


def test_an_unfinished_run_that_showed_other_images_is_refused_with_the_reason(tmp_path, monkeypatch):
    own(tmp_path, KINDS["16-bit grey PNG"]()[0])
    row = {"problem": "And?", "solution": "goose", "image": "a.png"}
    with (tmp_path / "mine.jsonl").open("a") as lines:
        lines.write(f"\n{json.dumps(row)}")

    def interrupted(question):
        if question.doc_id:
            raise KeyboardInterrupt
        return "goose"

    with monkeypatch.context() as former, pytest.raises(KeyboardInterrupt):
        former.setattr(pictures, "_scaled", lambda image, *_: image)  # which Pillow clips
        drawn(tmp_path, interrupted)
    with pytest.raises(HarnessError, match="other settings: items: 2 .* 16 bits not scaled"):
        drawn(tmp_path)


@pytest.mark.parametrize("kind", ["16-bit grey PNG", "EXIF 6", "marks", "RGB"])
def test_curating_rollouts_that_showed_other_images_is_refused(kind, tmp_path):
    own(tmp_path, KINDS["RGB" if kind == "marks" else kind]()[0])
    if kind == "marks":
        row = {"problem": "Which <image>?", "solution": "goose", "image": "a.png"}
        (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    drawn(tmp_path)
    path = tmp_path / "rollouts" / "manifest.json"
    found = json.loads(path.read_text())
    assert found["notes"].pop("pictures") == pictures.FORMAT
    path.write_text(json.dumps(found))
    labels.label(tmp_path / "rollouts", tmp_path / "labels")
    config = CurationConfig(keep=("easy",))
    if kind == "RGB":
        assert curation.curate(tmp_path / "labels", tmp_path / "curated", config)["items"] == 1
        return
    said = "not at their <image> placeholders" if kind == "marks" else "was not upright, or .* not scaled"
    with pytest.raises(HarnessError, match=rf"an earlier version .*mine\.jsonl, line 1, had .*{said}"):
        curation.curate(tmp_path / "labels", tmp_path / "curated", config)


@pytest.mark.parametrize("place", ["file", "items"])
@pytest.mark.parametrize("verb", ["curate", "train sft", "train cold-start", "train dpo", "train grpo"])
def test_artifacts_made_from_such_rollouts_are_refused_by_every_verb(verb, place, tmp_path):
    """Even if the file is gone and only the items' images are left."""
    (tmp_path / "there").mkdir()
    own(tmp_path / "there", KINDS["EXIF 6"]()[0])
    task = own_data.open_file(tmp_path / "there" / "mine.jsonl", "exact_word", None)
    model = DcsftStub(answers=lambda question: ("goose", "hen")[question.sample_index], batch_size=1)
    config, inputs = sampling.SamplingConfig(samples=2), {"data": tmp_path / "there" / "mine.jsonl"}
    rollouts = tmp_path / "rollouts"
    sampling.sample(model, task, rollouts, config, {"scorer": "exact_word"}, inputs=inputs)
    found = json.loads((rollouts / "manifest.json").read_text())
    item, _ = lmms.describe(task, 0)
    if place == "items":
        (tmp_path / "there" / "mine.jsonl").unlink()
        sampling.write_items(rollouts / "items", [item], [[{"bytes": KINDS["EXIF 6"]()[0], "path": None}]])
    del found["notes"]["pictures"]
    found["files"] = {
        str(path.relative_to(rollouts)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in rollouts.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    (rollouts / "manifest.json").write_text(json.dumps(found))
    labels.label(rollouts, tmp_path / "labels")
    with pytest.MonkeyPatch.context() as former:
        former.setattr(own_data, "refuse_former", lambda rollouts: None)
        curation.curate(tmp_path / "labels", tmp_path / "curated", CurationConfig(keep=("medium",)))
    stage, out = stages.STAGES[verb], tmp_path / "out"
    given = {
        "curate": {"labels": tmp_path / "labels", "keep": ["medium"]},
        "train dpo": {"model": "digits", "data": str(rollouts)},
        "train grpo": {"model": "digits", "data": str(tmp_path / "curated"), "batch_size": 8},
    }.get(verb, {"model": "digits", "data": str(tmp_path / "curated"), "batch_size": 1})
    what = r"mine\.jsonl, line 1," if place == "file" else "item "
    said = rf"an earlier version of dcsft, in which {what}.* had an image that was not upright"
    if (verb, place) == ("train grpo", "items"):
        said = "the pool of .* is gone"
    with pytest.raises(HarnessError, match=said):
        stage(out, **given)
    assert not out.exists()


def test_postscript_is_refused_without_ghostscript():
    """Pillow would have Ghostscript run the program in an EPS file."""
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(pictures.UnreadableError, match="is PostScript, a program"):
        pictures.read(content)

"""The images in rollouts: the pixels that the model saw, in their original files, few in memory at a time."""

import io
import json
import os
import weakref
from statistics import fmean

import datasets
import pytest
from PIL import ExifTags, Image

from dcsft_harness import lmms, records, sampling
from dcsft_harness.artifacts import storage
from dcsft_harness.curation import conversations
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.stub import DcsftStub
from dcsft_harness.sampling import own_data, own_rows
from dcsft_harness.scoring import get_scorer
from tests.fixtures.artifacts import item


def noise(number=0, size=(40, 24)):
    """A color image whose pixels change when saved as JPEG."""
    return Image.merge("RGB", [Image.effect_noise(size, 60 + 7 * number + band) for band in range(3)])


def stored(image, form="PNG", **more):
    file = io.BytesIO()
    image.save(file, form, **more)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


def task_of(folder, rows, visual, features):
    made = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    datasets.DatasetDict({"test": made}).save_to_disk(str(folder / "data"))
    return lmms.make_task(
        {
            "task": "theirs",
            "dataset_path": str(folder / "data"),
            "dataset_kwargs": {"load_from_disk": True},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_visual": visual,
            "doc_to_text": "text",
            "doc_to_target": "text",
            "process_results": lambda doc, results: {"hit": 1.0},
            "metric_list": [{"metric": "hit", "aggregation": fmean, "higher_is_better": True}],
        }
    )


def sampled(task, folder):
    """The files in rollouts/items and the items; checks that the pixels are the items' own."""
    config = sampling.SamplingConfig(samples=1)
    sampling.sample(DcsftStub(default="x", batch_size=9), task, folder / "rollouts", config, {})
    rows = datasets.load_from_disk(str(folder / "rollouts" / "items"))
    for row in rows:
        contents = [records.pixels(image) for image in row["images"]]
        assert records.item_id(row["task"], row["prompt"], row["answer"], contents) == row["item_id"]
    return [[file["bytes"] for file in cell] for cell in rows.data["images"].to_pylist()]


WITH_IMAGE = {"text": datasets.Value("string"), "image": datasets.Image()}


class TestTasks:
    def test_a_file_of_rgb_pixels_is_stored_unchanged(self, tmp_path):
        files = [stored(noise(0)), stored(noise(1), "JPEG")]
        rows = [{"text": "?", "image": {"bytes": file, "path": None}} for file in files]
        # As lmms-eval's tasks write it, and as it is.
        for number, visual in enumerate(
            (lambda doc: [doc["image"].convert("RGB")], lambda doc: [doc["image"]])
        ):
            place = tmp_path / str(number)
            task = task_of(place, rows, visual, WITH_IMAGE)
            assert sampled(task, place) == [[file] for file in files]

    def test_other_files_become_png_files_of_what_the_model_saw(self, tmp_path):
        grey = {"text": "a", "image": {"bytes": stored(noise().convert("L"), "JPEG"), "path": None}}
        large = {"text": "b", "image": {"bytes": stored(noise(), "JPEG"), "path": None}}

        def visual(doc):
            return [doc["image"].resize((20, 12))] if doc["text"] == "b" else [doc["image"]]

        files = sampled(task_of(tmp_path, [grey, large], visual, WITH_IMAGE), tmp_path)
        opened = [Image.open(io.BytesIO(file)) for (file,) in files]
        assert [(one.format, one.mode, one.size) for one in opened] == [
            ("PNG", "RGB", (40, 24)),
            ("PNG", "RGB", (20, 12)),
        ]

    def test_only_the_shown_files_of_a_document_are_stored(self, tmp_path):
        files = [{"bytes": stored(noise(number), "JPEG"), "path": None} for number in range(3)]
        features = {"text": datasets.Value("string"), "shown": datasets.List(datasets.Image())}
        rows = [{"text": "?", "shown": files[:2]}, {"text": "none", "shown": []}]
        found = sampled(task_of(tmp_path / "all", rows, lambda doc: doc["shown"], features), tmp_path / "all")
        assert found == [[file["bytes"] for file in files[:2]], []]
        features |= {"other": datasets.Image()}
        rows = [{"text": "?", "shown": files[:2], "other": files[2]}]
        found = sampled(
            task_of(tmp_path / "part", rows, lambda doc: doc["shown"], features), tmp_path / "part"
        )
        assert len(found[0]) == 2

    def test_a_file_opened_by_the_task_is_stored_unless_readers_would_rotate_it(self, tmp_path):
        (tmp_path / "0.jpg").write_bytes(stored(noise(0), "JPEG"))
        (tmp_path / "1.jpg").write_bytes(stored(noise(1), "JPEG", exif=turned()))
        rows = [{"text": str(tmp_path / f"{number}.jpg")} for number in range(2)]
        features = {"text": datasets.Value("string")}
        task = task_of(tmp_path, rows, lambda doc: [Image.open(doc["text"])], features)
        (plain,), (other,) = sampled(task, tmp_path)
        assert plain == (tmp_path / "0.jpg").read_bytes()
        assert (Image.open(io.BytesIO(other)).format, Image.open(io.BytesIO(other)).size) == ("PNG", (24, 40))

    def test_an_image_that_changes_during_the_run_is_an_error(self, tmp_path):
        (tmp_path / "0.png").write_bytes(stored(noise(0)))
        features = {"text": datasets.Value("string")}
        rows = [{"text": str(tmp_path / "0.png")}]
        task = task_of(tmp_path, rows, lambda doc: [Image.open(doc["text"])], features)

        def answer(question):
            (tmp_path / "0.png").write_bytes(stored(noise(1)))
            return "x"

        config = sampling.SamplingConfig(samples=1)
        with pytest.raises(HarnessError, match="doc_id 0: its images have changed .*1 responses are saved"):
            sampling.sample(DcsftStub(answers=answer), task, tmp_path / "rollouts", config, {})


class TestOwnData:
    def opened(self, folder, files):
        """The task of a JSONL file with these files as images."""
        rows = []
        for name, content in files.items():
            (folder / name).write_bytes(content)
            rows.append({"problem": "Which?", "solution": "goose", "image": name})
        (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return own_data.open_file(folder / "mine.jsonl", "exact_word", None)

    def test_files_of_rgb_pixels_are_stored_unchanged(self, tmp_path):
        files = {"a.png": stored(noise(0)), "b.jpg": stored(noise(1), "JPEG")}
        assert sampled(self.opened(tmp_path, files), tmp_path) == [[content] for content in files.values()]

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("grey.png", stored(noise().convert("L"))),
            ("palette.png", stored(noise().quantize(9))),
            ("seen-through.png", stored(Image.merge("RGBA", [*noise().split(), noise().getchannel(0)]))),
            ("cmyk.jpg", stored(noise().convert("CMYK"), "JPEG")),
            ("turned.jpg", stored(noise(), "JPEG", exif=turned())),
        ],
    )
    def test_other_files_become_png_files_of_what_is_shown(self, tmp_path, name, content):
        task = self.opened(tmp_path, {name: content})
        (image,) = lmms.describe(task, 0)[1]
        with Image.open(tmp_path / name) as file:
            assert records.pixels(image) == records.pixels(file)
            assert image.size == ((24, 40) if name == "turned.jpg" else (40, 24))
        ((kept,),) = sampled(task, tmp_path)
        assert Image.open(io.BytesIO(kept)).format == "PNG"


class TestTrainingData:
    """Training data made from a task's documents is in the cache only as long as it is used."""

    def task(self, folder, monkeypatch, visual=lambda doc: [doc["image"]]):
        monkeypatch.setenv("DCSFT_CACHE", str(folder / "cache"))
        rows = [{"text": f"{n}", "image": {"bytes": stored(noise(n)), "path": None}} for n in range(3)]
        return task_of(folder, rows, visual, WITH_IMAGE), folder / "cache" / conversations.TRAINING

    def test_is_removed_with_the_dataset(self, tmp_path, monkeypatch):
        task, place = self.task(tmp_path, monkeypatch)
        found, again = conversations.from_task(task), conversations.from_task(task)
        assert found._fingerprint == again._fingerprint
        assert len(list(place.iterdir())) == 2
        columns = found.select_columns(["images"])
        del found, again
        assert list(place.iterdir()) == []
        assert len(columns[2]["images"]) == 1  # mapped data stays readable

    def test_is_kept_by_a_forked_process(self, tmp_path, monkeypatch):
        task, place = self.task(tmp_path, monkeypatch)
        found = conversations.from_task(task)
        if (child := os.fork()) == 0:
            del found
            os._exit(0)
        os.waitpid(child, 0)
        assert len(list(place.iterdir())) == 1

    def test_an_error_leaves_nothing(self, tmp_path, monkeypatch):
        seen = []

        def visual(doc):
            """Another image at the second reading."""
            seen.append(doc["text"])
            return [doc["image"].rotate(0 if seen.count("2") > 1 else 180)]

        task, place = self.task(tmp_path, monkeypatch, visual)
        with pytest.raises(HarnessError, match="doc_id 2: its images have changed"):
            conversations.from_task(task)
        assert list(place.iterdir()) == []


class TestMemory:
    """However large the pool, only one batch of its images is in memory."""

    def alive(self, make):
        """Wraps a function that makes images; its counter returns their total and the most alive at once."""
        pictures, most = [], [0]

        def counted(*arguments):
            most[0] = max(most[0], sum(one() is not None for one in pictures))
            made = make(*arguments)
            pictures.append(weakref.ref(getattr(made[0], "shown", made[0])))
            return made

        return counted, lambda: (len(pictures), most[0])

    def test_items_are_written_a_batch_at_a_time(self, tmp_path, monkeypatch):
        monkeypatch.setattr(storage, "ROWS", 2)
        image, counts = self.alive(lambda number: [noise(number)])
        sampling.write_items(tmp_path / "items", [item(n) for n in range(9)], map(image, range(9)))
        assert counts()[0] == 9 and counts()[1] <= 2
        assert len(datasets.load_from_disk(str(tmp_path / "items"))) == 9

    def test_your_own_pool_is_read_an_image_at_a_time(self, tmp_path, monkeypatch):
        image, counts = self.alive(own_rows._image)
        monkeypatch.setattr(own_rows, "_image", image)
        files = {f"{number}.png": stored(noise(number)) for number in range(9)}
        TestOwnData().opened(tmp_path, files)
        assert counts()[0] == 9 and counts()[1] <= 2

    def test_a_task_becomes_training_data_a_batch_at_a_time(self, tmp_path, monkeypatch):
        monkeypatch.setattr(storage, "ROWS", 2)
        pictures = [noise(number) for number in range(9)]
        rows = [
            {"text": f"{n}", "image": {"bytes": stored(one), "path": None}} for n, one in enumerate(pictures)
        ]
        task = task_of(tmp_path, rows, lambda doc: [doc["image"].rotate(180)], WITH_IMAGE)
        image, counts = self.alive(task.doc_to_visual)
        monkeypatch.setattr(task, "doc_to_visual", image)
        found = conversations.from_task(task)
        assert counts()[0] == 18 and counts()[1] <= 2
        assert found.column_names == ["messages", "images", "item_id", "row_name"]
        assert [row["messages"][0]["content"] for row in found] == [f"<image>{n}" for n in range(9)]
        for picture, row in zip(pictures, found, strict=True):
            assert row["images"][0].tobytes() == picture.rotate(180).tobytes()

    def test_items_are_described_an_image_at_a_time(self, tmp_path, monkeypatch):
        rows = [{"text": f"{n}", "image": {"bytes": stored(noise(n)), "path": None}} for n in range(9)]
        task = task_of(tmp_path, rows, lambda doc: [doc["image"]], WITH_IMAGE)
        image, counts = self.alive(task.doc_to_visual)
        monkeypatch.setattr(task, "doc_to_visual", image)
        assert len(sampling.read_items(task, 9)) == 9
        assert counts()[0] == 9 and counts()[1] <= 2

    @pytest.mark.parametrize("name", ["0.png", "cut.png"])
    def test_refused_rows_keep_no_image(self, tmp_path, monkeypatch, name):
        image, counts = self.alive(own_rows._image)
        monkeypatch.setattr(own_rows, "_image", image)
        (tmp_path / "0.png").write_bytes(stored(noise()))
        (tmp_path / "cut.png").write_bytes(stored(noise())[:500])
        rows = [{"question": f"{n}", "answer": [0, 0, 99, 99], "images": ["0.png", name]} for n in range(9)]
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(json.dumps({**row, "question": "<image><image>?"}) for row in rows))
        found = list(own_data.examined(path, get_scorer("box_iou"), own_rows.Root(tmp_path)))
        assert counts()[0] >= 9 and counts()[1] <= 3
        for _, _, reason in found:  # whose frames hold the files
            assert (reason.__traceback__, reason.__cause__, reason.__context__) == (None, None, None)

    def test_refused_documents_keep_no_image(self, tmp_path, monkeypatch):
        rows = [{"text": f"{n}", "image": {"bytes": stored(noise(n)), "path": None}} for n in range(9)]
        shown = lambda doc: [doc["image"].rotate(180), str(tmp_path / "gone.png")]  # noqa: E731
        task = task_of(tmp_path, rows, shown, WITH_IMAGE)
        image, counts = self.alive(task.doc_to_visual)
        monkeypatch.setattr(task, "doc_to_visual", image)
        with pytest.raises(HarnessError, match="9 of 9 documents cannot be used"):
            sampling.read_items(task, 9)
        assert counts()[0] == 9 and counts()[1] <= 2

"""Images on the leaderboard's page: of the right items, and with nothing but pixels."""

import json
import re

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dcsft_harness import lmms, stages
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import Options, build
from dcsft_harness.leaderboard.board import Documents
from dcsft_harness.leaderboard.load import load
from dcsft_harness.leaderboard.page import data
from dcsft_harness.records import occurrence_id
from tests.fixtures.page_unpacking import content, numbers


class FakeTask:
    """A task with one image per document, with what `lmms.describe` needs of lmms-eval's tasks."""

    def __init__(self, images, name="fake"):
        self.eval_docs = list(images)
        self.config = type("Config", (), {"task": name, "metadata": None})()

    def doc_to_messages(self, image):
        parts = [{"type": "image", "url": image}, {"type": "text", "text": "What is it?"}]
        return [{"role": "user", "content": parts}]

    def doc_to_target(self, image):
        return "seven"


def known(task, count):
    some = sorted((lmms.describe(task, at)[0] for at in range(count)), key=lambda item: item.item_id)
    ids, numbers_, answers = zip(*((item.item_id, item.doc_id, item.answer) for item in some), strict=True)
    return Documents(ids, numbers_, answers)


def drawings(count, size=(40, 30)):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)) for _ in range(count)]


class TestPictures:
    def test_belong_to_their_items(self, tmp_path):
        task = FakeTask(drawings(4))
        documents = known(task, 4)
        found = data.export(tmp_path, {"fake": lambda: documents}, 3, lambda name: task)
        assert list(found.shown["fake"]) == list(documents.ids[:3]) and not found.reasons
        for item, number in zip(documents.ids[:3], documents.numbers, strict=False):
            (picture,) = found.shown["fake"][item].pictures
            assert found.shown["fake"][item].prompt == "What is it?"
            assert (picture.width, picture.height) == (40, 30)
            with Image.open(tmp_path / picture.file) as stored:  # small ones lose nothing
                assert stored.convert("RGB").tobytes() == task.eval_docs[number].tobytes()

    def test_of_changed_items_come_first(self, tmp_path):
        task = FakeTask(drawings(6))
        documents = known(task, 6)
        changed = {"fake": {documents.ids[5], documents.ids[3]}}
        found = data.export(tmp_path, {"fake": lambda: documents}, 3, lambda name: task, changed)
        assert list(found.shown["fake"]) == [documents.ids[at] for at in (3, 5, 0)]

    def test_of_another_document_than_the_evaluated_one_are_not_shown(self, tmp_path):
        task = FakeTask(drawings(3))
        documents = known(task, 3)
        task.eval_docs[documents.numbers[0]] = Image.new("RGB", (9, 9))
        found = data.export(tmp_path, {"fake": lambda: documents}, 3, lambda name: task)
        assert set(found.shown["fake"]) == set(documents.ids[1:])
        assert "1 of 3 items are not shown" in found.reasons["fake"]

    def test_a_failing_task_only_loses_its_own_images(self, tmp_path, monkeypatch):
        task = FakeTask(drawings(3))
        documents = known(task, 3)
        monkeypatch.setattr(task, "doc_to_target", lambda image: {}["gone"])
        found = data.export(tmp_path, {"fake": lambda: documents}, 3, lambda name: task)
        assert not found.shown["fake"] and "KeyError: 'gone'" in found.reasons["fake"]
        found = data.export(tmp_path, {"fake": lambda: documents}, 3, lambda name: None)
        assert "is not a single task" in found.reasons["fake"]

    def test_a_second_occurrence_has_the_same_image(self, tmp_path):
        task = FakeTask(drawings(1))
        (first,) = known(task, 1).ids
        documents = Documents((occurrence_id(first, 2),), (0,), ("seven",))
        found = data.export(tmp_path, {"fake": lambda: documents}, 1, lambda name: task)
        assert list(found.shown["fake"]) == [occurrence_id(first, 2)]

    def test_a_task_that_cannot_be_opened_gives_a_reason(self, tmp_path):
        def refuse(name):
            raise HarnessError("the data is not there", "Prepare it")

        found = data.export(tmp_path, {"fake": lambda: Documents((), (), ())}, 1, refuse)
        assert "the data is not there" in found.reasons["fake"] and not found.shown

    def test_are_published_without_metadata(self, tmp_path):
        exif = Image.Exif()
        exif[0x010E], exif[0x8825] = "SECRET PLACE", {1: "N", 2: (48.0, 51.0, 29.0)}
        told = PngImagePlugin.PngInfo()
        told.add_text("Comment", "SECRET WORD")
        (drawn,) = drawings(1, (900, 600))
        drawn.save(tmp_path / "in.png", exif=exif, pnginfo=told, icc_profile=b"SECRET PROFILE" * 20)
        with Image.open(tmp_path / "in.png") as image:
            picture = data.store(tmp_path / "out", image)
        stored = (tmp_path / "out" / picture.file).read_bytes()
        assert not any(word in stored for word in (b"SECRET", b"EXIF", b"ICCP", b"XMP"))
        with Image.open(tmp_path / "out" / picture.file) as stored:
            assert stored.size == (512, 341) and not stored.getexif() and "icc_profile" not in stored.info
        assert (picture.width, picture.height) == (900, 600)
        assert re.fullmatch(r"[0-9a-f]{32}\.webp", picture.file)


class TestOwnRows:
    """A user's own rows and tasks, for every column that is made of them."""

    ASKED = "Which <image> bird?"
    GIVEN = {"scorer": "exact_word", "on_error": "skip"}

    @pytest.fixture
    def rows(self, tmp_path):
        for number, image in enumerate(drawings(6)):
            image.save(tmp_path / f"{number}.png")
        rows = [{"question": self.ASKED, "answer": "goose", "image": f"{n}.png"} for n in range(6)]
        rows.insert(2, {"question": "", "answer": "goose"})  # left out: row and document differ
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    @pytest.mark.parametrize("more", [{}, {"samples": 2}, {"held_out": 0.6}, {"tasks": True}])
    def test_are_shown(self, tmp_path, rows, more):
        given = {"model": "dcsft_stub", "model_args": "default=goose", "data": rows, **self.GIVEN} | more
        if more.get("tasks"):  # next to another file of rows
            (tmp_path / "other.jsonl").write_text('{"question": "q", "answer": "a"}')
            given |= {"data": tmp_path / "other.jsonl", "tasks": (str(rows),)}
        stages.STAGES["evaluate"](tmp_path / "scores", **given)
        results = load([tmp_path / "scores"]).results
        own = {name: part.documents for name, part in results[0].tasks.items() if "mine" in name}
        assert len(own) == (3 if "samples" in more else 1)
        found = data.export(tmp_path / "shown", own, 99, data.opener(results))
        assert not found.reasons
        for name, read in own.items():
            assert list(found.shown[name]) == list(read().ids)
            for shown in found.shown[name].values():
                assert shown.prompt == self.ASKED and len(shown.pictures) == 1

    @pytest.mark.parametrize("changed", [1, 4])
    def test_that_changed_are_on_the_page(self, tmp_path, rows, changed):
        for name in ("base", "tuned"):
            script = [
                {
                    "task": "mine",
                    "doc_id": n,
                    "responses": ["duck" if n == changed and name == "base" else "goose"],
                }
                for n in range(6)
            ]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, script)))
            given = {"model": "dcsft_stub", "model_args": f"answers={tmp_path / name}.jsonl", "data": rows}
            stages.STAGES["evaluate"](tmp_path / name, name=name, **given, **self.GIVEN)
        options = Options(plots=False, items=False, samples=1)
        build([tmp_path / "base", tmp_path / "tuned"], tmp_path / "board", options=options)
        items = content((tmp_path / "board/page/data/b0t0items.js").read_text())
        shown = [at for at, some in enumerate(items["pictures"]) if some]
        assert [numbers(items["documents"])[at] for at in shown] == [changed]

    def test_that_moved_are_named(self, tmp_path, rows):
        given = {"model": "dcsft_stub", "model_args": "default=goose", "data": rows, **self.GIVEN}
        stages.STAGES["evaluate"](tmp_path / "scores", **given)
        results = load([tmp_path / "scores"]).results
        rows.rename(tmp_path / "moved.jsonl")
        documents = {"mine": results[0].tasks["mine"].documents}
        found = data.export(tmp_path / "shown", documents, 9, data.opener(results))
        assert "is no longer at" in found.reasons["mine"]

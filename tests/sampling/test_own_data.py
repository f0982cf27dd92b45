"""A user's own JSONL: both formats become the same pool, and a bad row is named by file and line."""

import json
import os
import re
import socket
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from dcsft_harness import cli, errors, lmms, pictures, sampling
from dcsft_harness.errors import HarnessError
from dcsft_harness.sampling import own_data, own_rows
from dcsft_harness.sampling.own_rows import Root
from dcsft_harness.scoring import get_scorer
from tests.fixtures.artifacts import small_disk

QUESTION = "Which bird is it?"
# For each scorer: a solution, its gold, a right response, a wrong one.
BY_SCORER = {
    "exact_word": ("goose", "goose", "Goose.", "swan"),
    "box_iou": ("[4, 4, 40, 40]", "[4, 4, 40, 40]", "[5, 5, 40, 40]", "[50, 50, 55, 55]"),
    "choice": ("B", "B", "The answer is B.", "A"),
    "math": (r"\frac{1}{2}", r"\frac{1}{2}", "$0.5$", "$2$"),
    "open_answer": ("20", '["20"]', "It is 20 Ω.", "It is 21."),
}


@pytest.fixture
def folder(tmp_path):
    """A folder with files in images/: two valid images, a truncated one, and a text file."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2):
        Image.effect_noise((56, 56), 50 + number).save(images / f"{number}.png")
    whole = (images / "0.png").read_bytes()
    (images / "short.png").write_bytes(whole[: len(whole) // 2])
    (images / "text.png").write_text("not a picture")
    return tmp_path


def old(**more):
    """A row in the format problem, solution, image."""
    return {"problem": QUESTION, "solution": "goose", "image": "images/0.png"} | more


def new(**more):
    """A row in the format messages, images."""
    return {"messages": turns(f"<image>{QUESTION}", "goose"), "images": ["images/0.png"]} | more


def turns(*texts):
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def file(folder, *rows):
    """Rows as a JSONL file; strings are written as lines."""
    path = folder / "mine.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def described(path, scorer="exact_word", root=None):
    task = own_data.open_file(path, scorer, root)
    return [lmms.describe(task, number) for number in range(len(task.eval_docs))]


class TestFormats:
    def test_both_make_the_same_item(self, folder):
        ((one, images),) = described(file(folder, old()))
        ((other, _),) = described(file(folder, new()))
        assert one == other
        assert (one.prompt, one.answer, one.target, one.task) == (QUESTION, "goose", "goose", "mine")
        assert [image.size for image in images] == [(56, 56)]

    @pytest.mark.usefixtures("pixels")
    def test_boxes_are_not_requested_from_a_model_with_unknown_coordinates(self, folder):
        """Even where an earlier model declared its own."""

        class Silent:
            def generate_until(self, requests):
                raise AssertionError("it was asked")

        task = own_data.open_file(file(folder, old(solution=[1, 2, 30, 40])), "box_iou", None)
        with pytest.raises(HarnessError, match="unknown box coordinate space for this model"):
            lmms.run(Silent(), {"mine": task})

    @pytest.mark.usefixtures("pixels")
    @pytest.mark.parametrize("scorer", BY_SCORER)
    def test_every_scorer_accepts_them(self, folder, scorer):
        solution, gold, right, wrong = BY_SCORER[scorer]
        question = QUESTION + ("\nA. swan\nB. goose" if scorer == "choice" else "")
        rows = (
            old(problem=question, solution=solution),
            new(messages=turns(question, solution), images=["images/1.png"]),
        )
        task = own_data.open_file(file(folder, *rows), scorer, None)
        for number in range(2):
            assert lmms.describe(task, number)[0].answer == gold
            judged = [task.process_results(task.eval_docs[number], [text]) for text in (right, wrong, "")]
            scores = [lmms.score_of(task, metrics) for metrics in judged]
            assert [score for score, _, _ in scores] == [1.0, 0.0, 0.0]
            # "Wrong" and "no answer" stay apart.
            assert [extracted is None for _, extracted, _ in scores] == [False, False, True]

    def test_an_answer_tag_holds_the_gold_and_the_target_stays_whole(self, folder):
        said = "<think>It honks.</think><answer> goose </answer>"
        ((one, _),) = described(file(folder, old(solution=said)))
        assert (one.answer, one.target) == ("goose", said)

    def test_options_may_be_a_separate_list(self, folder):
        task = own_data.open_file(file(folder, old(solution="B", choices=["swan", "goose"])), "choice", None)
        assert task.eval_docs[0]["choices"] == ["swan", "goose"]

    def test_images_are_next_to_the_file_or_under_the_image_root(self, folder):
        apart = folder / "elsewhere"
        apart.mkdir()
        path = file(apart, old(image="0.png"))
        with pytest.raises(HarnessError, match=r"elsewhere/0\.png does not exist. Check --image-root"):
            described(path)
        assert len(described(path, root=folder / "images")) == 1

    @pytest.mark.parametrize("root", [None, "images", "."])
    def test_absolute_paths_inside_the_root_are_allowed(self, folder, root):
        path = file(folder, old(image=str(folder / "images" / "1.png")))
        assert len(described(path, root=None if root is None else folder / root)) == 1

    def test_rows_may_have_several_images_or_none(self, folder):
        rows = (
            new(messages=turns("<image><image>Same?", "no"), images=["images/0.png", "images/1.png"]),
            {"problem": "1 + 1?", "solution": "two"},
        )
        found = described(file(folder, *rows))
        assert [len(images) for _, images in found] == [2, 0]
        assert found[0][0].prompt == "Same?"

    def test_checked_images_are_not_decoded_again_to_describe_and_store_them(self, folder, monkeypatch):
        Image.effect_noise((40, 20), 9).convert("RGBA").save(folder / "images" / "clear.png")
        rows = [
            old(solution="a"),
            old(image="images/clear.png"),
            new(messages=turns("Look: <image> or <image>?", "one"), images=["images/0.png", "images/1.png"]),
            new(messages=turns(QUESTION, "Where?", "There.", "gull")),
            {"problem": "1 + 1?", "solution": "two"},
        ]
        task = own_data.open_file(file(folder, *rows), "exact_word", None)
        expected = [lmms.describe(task, number) for number in range(len(rows))]
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile.ImageFile, "load", None)
            items = [lmms.describe_item(task, number) for number in range(len(rows))]
            stored = list(lmms.stored_images(task, items))
        assert items == [item for item, _ in expected]
        for files, (_, images) in zip(stored, expected, strict=True):
            assert [pictures.read(one["bytes"]).shown for one in files] == list(map(pictures.to_rgb, images))

    def test_blank_lines_and_a_byte_order_mark_are_skipped(self, folder):
        path = file(folder, old(), "", "  ", old(solution="swan"), "")
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert len(described(path)) == 2

    def test_the_same_question_about_another_image_is_another_item(self, folder):
        one, other = described(file(folder, old(), old(image="images/1.png")))
        assert one[0].item_id != other[0].item_id


class TestScores:
    """Evaluated rows have what a benchmark's have: a majority, responses without an answer, clusters."""

    @pytest.mark.parametrize("samples", [1, 4])
    def test_rows_have_answers_and_clusters_by_image(self, folder, samples):
        from dcsft_harness import records, stages

        asked = [("Which?", 0), ("Where?", 0), ("Which?", 1), ("Where?", 1), ("One?", None), ("Two?", None)]
        rows = [
            {"question": text, "answer": "goose"} | ({} if n is None else {"image": f"images/{n}.png"})
            for text, n in asked
        ]
        clusters = []
        for name, some in (("scores", rows), ("again", rows[::-1])):
            given = {"data": file(folder, *some), "scorer": "exact_word", "model": "dcsft_stub"}
            given |= {"model_args": "default=goose" if name == "scores" else "default=."}
            notes = stages.STAGES["evaluate"](folder / name, **given, samples=samples)["tasks"]["mine"]
            assert notes["unanswered"] == (0 if name == "scores" else 6)
            assert samples == 1 or notes["at_k"]["maj"][-1] == float(name == "scores")
            table = records.read_table(folder / name / "scores.parquet", records.Score).to_pylist()
            clusters.append({one["item_id"]: one["cluster"] for one in table})
        assert clusters[0] == clusters[1]  # neither order nor other rows change them
        assert sorted(Counter(clusters[0].values()).values()) == [1, 1, 2, 2]

    def test_a_row_with_an_unread_image_is_its_own_cluster(self, folder):
        path = file(folder, old(), old(image="images/short.png"), old(image="images/text.png"))
        task = own_data.open_file(path, "exact_word", None, skip=True)
        assert len({doc["cluster"] for doc in task.eval_docs_no_media}) == 3


class TestOptions:
    def test_lines_that_number_statements_are_not_options(self, folder):
        asked = "I. It swims.\nII. It flies.\nWhich is true?\nA. I only\nB. II only\nC. both"
        task = own_data.open_file(file(folder, old(problem=asked, solution="B")), "choice", None)
        assert task.eval_docs_no_media[0]["choices"] == ["I only", "II only", "both"]

    @pytest.mark.parametrize(
        ("asked", "choices"),
        [
            ("Pick\nA. one\nB.\nC. three\nD. four", ["one", "", "three", "four"]),
            ("Pick\n\n(A) one \n\n (B)  \n\n(C) three\n", ["one", "", "three"]),
            ("Which is drawn?\nA.\nB.\nC.\nD.", ["", "", "", ""]),
            ("Pick\nA. one\nB. two\nA:", ["one", "two"]),
            ("Pick\nA. one\nB. two\nor\nA. three\nB. four\nC. five", ["three", "four", "five"]),
        ],
    )
    def test_a_line_without_text_is_an_empty_option(self, asked, choices):
        assert own_rows.choices({}, asked) == choices


BAD = {
    "not JSON": ("{no", "line 2: not JSON"),
    "no object": ("[1]", "line 2: not a JSON object"),
    "no solution": (
        {"problem": "?", "image": "images/0.png"},
        "line 2: no `answer`, `solution`.*it has image, problem.*question and its answer",
    ),
    "an empty solution": (old(solution=None), "line 2: no `answer`, `solution`"),
    "nothing": ({}, "line 2: no `question`.*it has nothing"),
    "a question that is not text": (old(problem=["?"]), "line 2: `problem` is list, not text"),
    "a question without words": (old(problem="<image> "), "line 2: the question has no words"),
    "a solution that is not text": (old(solution={"is": 1}), "line 2: the answer is dict, not text"),
    "a solution that is yes or no": (old(solution=True), "line 2: the answer is bool, not text"),
    "no assistant": (new(messages=turns("?")), "line 2: `messages` does not end with an assistant turn"),
    "no messages": (new(messages=None), "line 2: no `question` and no `messages`"),
    "no user": (new(messages=turns("a", "b")[1:]), "line 2: `messages` has no user turn"),
    "a tool": (
        new(messages=[{"role": "tool", "content": "?"}, *turns("a", "b")]),
        "line 2: .* unknown role 'tool'",
    ),
    "a video": (
        new(messages=[{"role": "user", "content": [{"type": "video"}]}, turns("a", "b")[1]]),
        "line 2: `messages` has content of type 'video'",
    ),
    "images in two places": (
        new(
            messages=[
                {"role": "user", "content": [{"type": "image", "path": "a.png"}]},
                turns("a", "b")[1],
            ]
        ),
        "line 2: both `messages` and `images` name images",
    ),
    "a missing image": (old(image="images/9.png"), r"line 2: image .*images/9\.png does not exist"),
    "another system's path": (
        old(image="images\\0.png"),
        r"line 2: image .*images.0\.png does not exist. Write paths with / .* skip leaves the row out",
    ),
    "a folder": (old(image="images"), "line 2: image .*images is not a regular file"),
    "no picture": (old(image="images/text.png"), r"line 2: image .*text\.png cannot be read"),
    "a truncated image": (old(image="images/short.png"), r"line 2: image .*short\.png cannot be read"),
    "an image that is not a path": (
        old(image={"bytes": ""}),
        "line 2: an image is a mapping of bytes, without bytes or path",
    ),
    "a comma behind it": (json.dumps(old()) + ",", r"line 2: not JSON \(a comma follows the object\)"),
    "an open text": ('{"a": "b', r"line 2: not JSON \(Unterminated string starting at character 7"),
    "one placeholder too many": (new(images=[]), "line 2: 1 <image> placeholders for 0 images"),
    "the same again": (new(), "line 2: the same item as line 1"),
}


def counted(response, *, answer, image_size):
    """A user's scorer: right for as many characters as the answer has, with an image of 56 x 56 pixels."""
    assert image_size == (56, 56)
    return len(response) == len(answer)


class TestUsersScorers:
    def test_a_function_receives_the_parts_of_a_row_it_asks_for(self, folder):
        path = file(folder, old())
        task = own_data.open_file(path, f"{__name__}:counted", None)
        doc = task.eval_docs[0]
        assert [task.process_results(doc, [text])["acc"]["score"] for text in ("abcde", "abc")] == [1.0, 0.0]

    def test_a_function_can_be_passed_to_a_stage_in_python(self, folder):
        from dcsft_harness.stages.sample import SampleOptions

        def mine(response, answer):
            return response == answer

        name = SampleOptions(data=file(folder, old()), scorer=mine).scorer
        task = own_data.open_file(file(folder, old()), name, None)
        assert task.process_results(task.eval_docs[0], ["goose"])["acc"]["score"] == 1.0
        with pytest.raises(HarnessError, match="cannot be called"):
            SampleOptions(data=file(folder, old()), scorer=lambda response: 1)


class TestBadRows:
    @pytest.mark.parametrize("case", BAD)
    def test_are_named_by_file_and_line(self, folder, case, monkeypatch):
        # As lmms-eval does for the whole process.
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        row, said = BAD[case]
        with pytest.raises(HarnessError, match=rf"mine\.jsonl, {said}"):
            own_data.open_file(file(folder, old(), row), "exact_word", None)

    @pytest.mark.parametrize(
        "box",
        [
            "goose",
            "[1, 2, 3]",
            "[9, 9, 1, 1]",
            "[5, 5, 5, 9]",
            [1, 2, "3", 4],
            "{[]: 1}",
            "[0, 0, 1e999, 9]",
            "[0, 0, " + "9" * 400 + ", 9]",
        ],
    )
    def test_a_solution_that_is_not_a_box(self, folder, box):
        with pytest.raises(HarnessError, match=r"mine\.jsonl, line 1: the answer .* is not a box"):
            own_data.open_file(file(folder, old(solution=box)), "box_iou", None)

    @pytest.mark.parametrize("box", [[60, 60, 90, 90], [0, 0, 58, 56], [0, 0, 56, 57.5], [-2, 0, 9, 9]])
    def test_a_box_outside_its_image(self, folder, box):
        said = r"line 1: the box .* leaves its image of 56 x 56 pixels"
        with pytest.raises(HarnessError, match=rf"mine\.jsonl, {said}"):
            own_data.open_file(file(folder, old(solution=box)), "box_iou", None)

    @pytest.mark.parametrize("box", [[0, 0, 56, 56], [-0.4, 3, 56.9, 57]])
    def test_a_box_along_the_edge_is_accepted_despite_rounding(self, folder, box):
        assert len(described(file(folder, old(solution=box)), "box_iou")) == 1

    def test_a_box_without_an_image(self, folder):
        row = {"problem": "Where?", "solution": [1, 2, 3, 4]}
        with pytest.raises(HarnessError, match="line 1: no image; the scorer box_iou needs its size"):
            own_data.open_file(file(folder, row), "box_iou", None)

    def test_a_choice_without_options(self, folder):
        with pytest.raises(HarnessError, match=r"mine\.jsonl, line 1: no options found"):
            own_data.open_file(file(folder, old(solution="B")), "choice", None)

    def test_a_choice_whose_list_of_options_has_a_gap(self, folder):
        row = old(problem="Which?\nA. swan\nC. goose", solution="A")
        with pytest.raises(HarnessError, match=r"mine\.jsonl, line 1: no options found"):
            own_data.open_file(file(folder, row), "choice", None)

    @pytest.mark.parametrize("options", [["swan", None], ["swan", ["goose"]]])
    def test_options_that_are_not_text(self, folder, options):
        with pytest.raises(HarnessError, match=r"line 1: an option is \w+, not text or a number"):
            own_data.open_file(file(folder, old(solution="A", choices=options)), "choice", None)

    # Refused when the file is read: after hours of sampling it would be too late.
    @pytest.mark.parametrize(
        ("scorer", "row"),
        [
            ("choice", old(solution="E", choices=["swan", "goose"])),
            ("exact_word", old(solution=" . ")),
            ("math", old(solution="goose")),
            ("math", old(solution="The answer is seven apples.")),
        ],
    )
    def test_a_solution_that_its_scorer_cannot_use(self, folder, scorer, row):
        with pytest.raises(HarnessError, match=r"mine\.jsonl, line 1: the answer"):
            own_data.open_file(file(folder, row), scorer, None)

    def test_a_line_in_another_encoding(self, folder):
        path = file(folder, old())
        path.write_bytes(path.read_bytes() + b"\n" + '{"problem": "caf\u00e9"}'.encode("latin-1"))
        with pytest.raises(
            HarnessError, match=r"mine\.jsonl, line 2: not UTF-8 text. Save the file as UTF-8"
        ):
            own_data.open_file(path, "exact_word", None)


class TestBadFiles:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(HarnessError, match=r"--data .*mine\.jsonl does not exist"):
            own_data.open_file(tmp_path / "mine.jsonl", "math", None)

    def test_an_empty_file(self, tmp_path):
        with pytest.raises(HarnessError, match=r"mine\.jsonl holds no rows"):
            own_data.open_file(file(tmp_path, ""), "math", None)

    def test_an_unknown_scorer_is_named_before_the_file_is_read(self, tmp_path):
        damaged = file(tmp_path, "{")
        with pytest.raises(HarnessError, match="unknown scorer 'exact_wrd'. Did you mean exact_word?"):
            own_data.open_file(damaged, "exact_wrd", None)
        with pytest.raises(HarnessError, match="--data needs --scorer"):
            own_data.open_file(damaged, None, None)

    def test_a_refused_file_leaves_no_copy(self, folder, tmp_path, monkeypatch):
        place = tmp_path / "temporary"
        place.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        with pytest.raises(HarnessError):
            own_data.open_file(file(folder, old(), old()), "exact_word", None)
        assert list(place.iterdir()) == []


DEEP = '{"problem": "?", "solution": ' + "[" * 10_000 + "]" * 10_000 + "}"
HOSTILE_LINES = {
    "a lone surrogate": (
        r'{"problem": "\ud800", "solution": "goose"}',
        r"not JSON \(\\ud800, half of a surrogate pair",
    ),
    "one in a key": (r'{"\udfff": 1, "problem": "?", "solution": "goose"}', "half of a surrogate pair"),
    "one in a list": (
        r'{"messages": [{"role": "user", "content": "\ud834?"}], "images": []}',
        "half of a surrogate",
    ),
    "one in bytes": (
        b'{"problem": "\xed\xa0\x80", "solution": "goose"}',
        "not UTF-8 text. Save the file as UTF-8",
    ),
    "10,000 levels": (DEEP, "nested deeper than 64 levels"),
    "100 levels": (DEEP.replace("[" * 9900, "").replace("]" * 9900, ""), "nested deeper than 64 levels"),
    "a number of 400 digits": ({"problem": "?", "solution": 10**399}, "is a number of 400 digits"),
    "one of 5,000 digits": (
        '{"problem": "?", "solution": ' + "9" * 5000 + "}",
        "is a number of 5000 digits",
    ),
    "a number beyond float64": (
        '{"problem": "?", "solution": 1e999}',
        r"not JSON \(1e999 is not a finite number\)",
    ),
    **{
        f"{name} as {place}": (row.replace("*", name), rf"not JSON \({name} is not a finite number\)")
        for name in ("NaN", "Infinity", "-Infinity")
        for place, row in (
            ("a gold", '{"problem": "?", "solution": *}'),
            ("a side of a box", '{"problem": "?", "solution": [1, 2, *, 4]}'),
            ("a note", '{"problem": "?", "solution": "goose", "note": {"weight": *}}'),
        )
    },
    "a data URL": (
        old(image="data:image/png;base64," + "A" * 180_000),
        r"image data:image/png.* cannot be read",
    ),
    "invalid base64": (
        old(image="data:image/png;base64," + "?" * 180_000),
        "image .* is not valid base64",
    ),
    "a path of 180 kB": (old(image="a" * 180_000), "image .*a+.* cannot be read"),
    "a path with a NUL": (old(image="a\0.png"), "image .* cannot be read .*null"),
    "a key of 180 kB": ({"k" * 180_000: 1}, "no `question`.*kkk"),
    "a solution of 180 kB": (old(solution=["x" * 180_000]), "the answer is list"),
    "a role of 180 kB": (
        {"messages": [*turns("?", "goose"), {"role": "r" * 180_000}]},
        "a turn of the unknown role 'rrr",
    ),
    "bytes of 180 kB": (b"\xff" * 180_000, "not UTF-8 text"),
}


class TestHostileRows:
    @pytest.mark.parametrize("skip", [False, True])
    @pytest.mark.parametrize("case", HOSTILE_LINES)
    def test_are_refused_by_line_with_a_short_message(self, folder, case, skip):
        line, said = HOSTILE_LINES[case]
        text = line if isinstance(line, str | bytes) else json.dumps(line)
        path = file(folder, old())
        path.write_bytes(path.read_bytes() + b"\n" + (text if isinstance(text, bytes) else text.encode()))
        if skip:
            task = own_data.open_file(path, "exact_word", None, skip=True)
            (message,) = [*task.unreadable.values(), *task.left_out.values()]
            assert len(task.eval_docs) == 1 + len(task.unreadable)
        else:
            with pytest.raises(HarnessError) as error:
                own_data.open_file(path, "exact_word", None, skip=skip)
            message = str(error.value)
        assert re.search(rf"mine\.jsonl, line 2: .*{said}", message)
        assert len(message) < 600 + len(str(folder))
        own_data.images_sha256(path, None)  # which the same file goes through

    @pytest.mark.parametrize("solution", ["[" * 90_000, "x" * 180_000, [1, 2, 3, "y" * 180_000]])
    def test_a_long_box_is_truncated(self, folder, solution):
        with pytest.raises(HarnessError, match="line 1: the answer .* is not a box") as error:
            own_data.open_file(file(folder, old(solution=solution)), "box_iou", None)
        assert len(str(error.value)) < 600 + len(str(folder))

    def test_rows_left_out_for_the_same_reason_are_reported_together(self, folder, caplog):
        path = file(folder, old(), *[old(solution="")] * 30, old(image="none.png"))
        task = own_data.open_file(path, "exact_word", None, skip=True, keep_unreadable=False)
        assert len(task.left_out) == 31
        (said,) = [one for one in caplog.messages if "left out" in one]
        assert re.search(
            r"mine\.jsonl: 31 rows are left out: lines 2 to 31: .*[.;] line 32: image .*none", said
        )
        assert len(said) < 300 + 2 * len(str(folder))

    def test_all_bad_rows_are_listed_at_once(self, folder):
        rows = [old(), *(old(image=f"images/{number}.png") for number in range(7, 32)), "{no", old()]
        with pytest.raises(HarnessError) as error:
            own_data.open_file(file(folder, *rows), "exact_word", None)
        said = str(error.value)
        assert "27 of 28 rows cannot be used: line 2: image " in said
        assert said.count("does not exist") == 20 and "line 21: " in said and "; and 7 more. " in said
        rows = [old(), "{no", old(), old(image="images/text.png")]
        with pytest.raises(HarnessError) as error:
            own_data.open_file(file(folder, *rows), "exact_word", None)
        assert re.search(
            r"3 of 4 rows .*: line 2: not JSON .*; line 3: the same item as line 1 .*; line 4: image "
            r".*text\.png cannot be read .*not an image that Pillow can read.* skip leaves them out",
            str(error.value),
        )

    @pytest.mark.parametrize("size", ["8k", "24k"])
    def test_a_full_folder_for_temporary_files_is_named(self, folder, monkeypatch, size):
        path = file(folder, *(old(problem=f"{number} {'x' * 3000}") for number in range(20)))
        with small_disk(folder / "disk", size):
            monkeypatch.setattr(tempfile, "tempdir", str(folder / "disk"))
            with pytest.raises(HarnessError, match="cannot write the rows .* to .*disk.*Set TMPDIR to"):
                own_data.open_file(path, "exact_word", None)
            assert os.listdir(folder / "disk") == []


@pytest.fixture
def paths(folder, monkeypatch):
    """`folder` with more files next to its images, and images outside it, in `outside/`."""
    inside, outside = folder / "pool", folder / "outside"
    for place in (inside / "images", outside):
        place.mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(place / "a.png")
    os.mkfifo(inside / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(inside)  # whose full path is too long for a socket
        server.bind("socket")
    (inside / "device").symlink_to("/dev/zero")
    (inside / "link.png").symlink_to("images/a.png")
    (inside / "out.png").symlink_to(outside / "a.png")
    (inside / "elsewhere").symlink_to(outside)
    (inside / "circle").symlink_to("circle")
    with (inside / "large.png").open("wb") as file:
        file.truncate(pictures.FILE_BYTES + 1)
    return inside


REGULAR = "is not a regular file"
PATHS = [
    # Path, the error, and the error with --allow-outside-root; None: it is read.
    ("images/a.png", None, None),
    ("link.png", None, None),
    ("images/../images/a.png", None, None),
    ("{inside}/images/a.png", None, None),
    ("../outside/a.png", "is outside .*--allow-outside-root", None),
    ("out.png", "is outside .*--allow-outside-root", None),
    ("elsewhere/a.png", "is outside .*--allow-outside-root", None),
    ("{outside}/a.png", "is outside .*--allow-outside-root", None),
    ("pipe", REGULAR, REGULAR),
    ("socket", REGULAR, REGULAR),
    ("images", REGULAR, REGULAR),
    ("device", "is outside", REGULAR),
    ("/dev/zero", "is outside", REGULAR),
    ("/dev/stdin", "is outside", "."),
    ("circle", "cannot be read|does not exist", "cannot be read|does not exist"),
    ("large.png", "is larger than 256 MiB", "is larger than 256 MiB"),
    ("https://example.com/a.png", "is not a path", "is not a path"),
    ("", "path is empty", "path is empty"),
]


class TestPaths:
    @pytest.mark.parametrize("outside", [False, True])
    @pytest.mark.parametrize("case", range(len(PATHS)))
    def test_only_regular_files_inside_the_root_are_read_by_default(self, paths, case, outside):
        name, *said = PATHS[case]
        name = name.format(inside=paths, outside=paths.parent / "outside")
        path = file(paths, old(image=name), {"problem": "1 + 1?", "solution": "two"})
        if said[outside] is None:
            task = own_data.open_file(path, "exact_word", None, outside=outside)
            assert lmms.describe(task, 0)[1][0].size == (8, 8)
            return
        with pytest.raises(HarnessError, match=rf"line 1: image .*({said[outside]})"):
            own_data.open_file(path, "exact_word", None, outside=outside)
        task = own_data.open_file(path, "exact_word", None, skip=True, outside=outside)
        assert re.search(said[outside], task.unreadable[0])
        refused = {}
        assert len(sampling.read_items(task, 2, refused)) == 2 and list(refused) == [0]
        assert own_data.images_sha256(path, None, outside)

    def test_images_are_hashed_once_until_they_change(self, paths, monkeypatch):
        """Every start of a verb compares them, and so do the run itself and each stage of a recipe."""
        path, read = file(paths, old(image="images/a.png")), []
        os.utime(paths / "images/a.png", (1, 1))
        content = pictures.file_bytes
        monkeypatch.setattr(pictures, "file_bytes", lambda name: read.append(name) or content(name))
        first = own_data.images_sha256(path, None)
        assert own_data.images_sha256(path, None) == first and len(read) == 1
        (paths / "images/a.png").write_bytes(b"other")
        os.utime(paths / "images/a.png", (1, 1))
        assert own_data.images_sha256(path, None) != first

    def test_the_root_may_be_a_link(self, paths):
        path = file(paths, old(image="a.png"))
        assert len(own_data.open_file(path, "exact_word", paths / "elsewhere").eval_docs) == 1

    def test_the_root_may_be_the_whole_disk(self, paths):
        path = file(paths, old(image=str(paths.parent / "outside" / "a.png")))
        assert len(own_data.open_file(path, "exact_word", Path("/")).eval_docs) == 1

    @pytest.mark.parametrize("verb", ["sample", "train grpo"])
    def test_both_verbs_have_the_option(self, paths, verb, capsys):
        path = file(paths, old(image="../outside/a.png"))
        model = "--model-args=pretrained=nowhere" if verb == "sample" else "--model=nowhere"
        words = [*verb.split(), model, f"--data={path}", "--scorer=exact_word", f"--output={paths / 'out'}"]
        for more in ([], ["--allow-outside-root"]):
            assert cli.main([*words, *more]) == 1
            assert ("is outside" in capsys.readouterr().err) is not bool(more)


class TestHeldOut:
    """`--held-out`: one share of the rows is evaluated, and the others are sampled and trained on."""

    def rows(self, count=60):
        return [
            {"problem": f"{QUESTION} {n}", "solution": "goose", "image": f"images/{n % 2}.png"}
            if n < 4
            else {"problem": f"Say goose {n}", "solution": "goose"}
            for n in range(count)
        ]

    def parts(self, path, share=0.3):
        found = []
        for held in (False, True):
            task = own_data.open_file(path, "exact_word", None, part=own_data.Part(share, held))
            found.append({doc["prompt"] for doc in task.eval_docs_no_media})
        return found

    def test_the_parts_are_disjoint_and_complete(self, folder):
        train, held = self.parts(file(folder, *self.rows()))
        assert not train & held and len(train | held) == 60 and 8 <= len(held) <= 28

    def test_order_name_and_other_rows_do_not_move_a_row(self, folder):
        train, held = self.parts(file(folder, *self.rows()))
        assert self.parts(file(folder, *reversed(self.rows()))) == [train, held]
        more_train, more_held = self.parts(file(folder, *self.rows(90)))
        assert train < more_train and held < more_held
        other = folder / "other.jsonl"
        (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, self.rows())))
        (folder / "mine.jsonl").rename(other)
        assert self.parts(other) == [train, held]
        _, larger = self.parts(other, 0.5)
        assert held < larger

    def test_rows_with_the_same_image_stay_together(self, folder):
        for share in (0.2, 0.4, 0.6, 0.8):
            train, _ = self.parts(file(folder, *self.rows()), share)
            for rows in ((0, 2), (1, 3)):
                assert len({f"{QUESTION} {n}" in train for n in rows}) == 1

    @pytest.mark.parametrize(
        ("scorer", "row"),
        [
            ("math", {"answer": "We add. <answer>{n}</answer>"}),
            ("open_answer", {"answer": "{n}"}),
            ("open_answer", {"completion": "so {n}", "answer": "{n}"}),
            ("exact_word", {"completion": "so", "answer": "goose"}),
            ("choice", {"answer": "B", "choices": ["one", "two"]}),
        ],
    )
    def test_the_scorer_does_not_move_a_row(self, folder, scorer, row):
        """Supervised training needs none, and must leave out the rows that are evaluated with one."""
        rows = [
            {"question": f"{n}?"}
            | {name: value.format(n=n) if isinstance(value, str) else value for name, value in row.items()}
            for n in range(40)
        ]
        path, parts = file(folder, *rows), []
        for judge in (own_data.ANY, get_scorer(scorer)):
            found = own_data.examined(path, judge, Root(folder), own_data.Part(0.4))
            parts.append([where for where, _, _ in found])
        assert parts[0] == parts[1] and 0 < len(parts[0]) < 40

    def test_rows_with_the_same_prompt_and_no_image_stay_together(self, folder):
        rows = [{"question": f"{n // 2}?", "answer": str(n)} for n in range(40)]
        for share in (0.2, 0.5):
            part = own_data.Part(share)
            found = own_data.examined(file(folder, *rows), own_data.ANY, Root(folder), part)
            prompts = [made["prompt"] for _, made, _ in found]
            assert 0 < len(prompts) < 40 and all(prompts.count(one) == 2 for one in prompts)

    def test_every_verb_selects_the_same_part(self, folder):
        from dcsft_harness import records, stages
        from dcsft_harness.curation import conversations
        from dcsft_harness.training import grpo

        path = file(folder, *self.rows())
        train, held = self.parts(path)
        given = {"data": path, "scorer": "exact_word", "model": "dcsft_stub", "held_out": 0.3}
        given |= {"model_args": "default=goose"}
        sampled = stages.STAGES["sample"](folder / "rollouts", samples=2, **given)
        assert sampled["items"] == len(train)
        rows = records.read_table(folder / "rollouts" / "rollouts.parquet", records.Rollout).to_pylist()
        assert {row["prompt"] for row in rows} == train
        scored = stages.STAGES["evaluate"](folder / "scores", **given)
        assert {name: one["n"] for name, one in scored["tasks"].items()} == {"mine_held_out": len(held)}
        part = own_data.Part(0.3)
        trained = conversations.from_rows(path, "exact_word", None, part=part)
        assert {row["messages"][0]["content"].replace("<image>", "") for row in trained} == train
        prompts, _ = grpo.open_data(str(path), "exact_word", None, part=part)
        assert {row["messages"][0]["content"].replace("<image>", "") for row in prompts} == train
        # GRPO on a set that was curated from these rollouts finds the scorer of its items.
        stages.STAGES["label"](folder / "labels", rollouts=folder / "rollouts")
        stages.STAGES["curate"](folder / "curated", labels=folder / "labels", keep=["easy"])
        _, judge = grpo.open_data(str(folder / "curated"), None, None)
        assert len(judge.doc_ids) == len(train)

    def test_bad_rows_are_bad_in_both_parts(self, folder):
        path = file(folder, *self.rows(), "{no")
        for held in (False, True):
            with pytest.raises(HarnessError, match="line 61: not JSON"):
                own_data.open_file(path, "exact_word", None, part=own_data.Part(0.3, held))

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (
                ["sample", "--held-out=0.999"],
                "none of its 2 rows is outside the held-out part. Use a smaller",
            ),
            (["evaluate", "--held-out=0.0001"], "none of its 2 rows is in the held-out part. Use a larger"),
            (["sample", "--held-out=1.5"], "--held-out 1.5"),
            (["evaluate", "--held-out=0"], "--held-out 0"),
            (["train", "grpo", "--held-out=0.1"], "--held-out 0.1 applies only to rows of your own"),
            (["train", "sft", "--held-out=0.1"], "--held-out 0.1 applies only to rows of your own"),
            (["train", "dpo", "--held-out=0.1"], "--held-out 0.1 applies only to rows of your own"),
            (
                ["sample", "--held-out=0.1", "--task=dcsft_digits_pool"],
                "--held-out 0.1 applies only to --data",
            ),
            (["evaluate", "--held-out=0.1", "--tasks=dcsft_digits"], "--held-out 0.1 applies only to --data"),
        ],
    )
    def test_refusals(self, folder, capsys, words, said):
        path = file(folder, {"problem": "a", "solution": "b"}, {"problem": "c", "solution": "d"})
        (folder / "set" / "data").mkdir(parents=True)
        (folder / "set" / "data" / "state.json").touch()
        if words[0] == "train":
            words += ["--model=digits", f"--data={folder / 'set'}"]
        elif not any("task" in word for word in words):
            words += ["--model=dcsft_stub", f"--data={path}", "--scorer=exact_word"]
        assert cli.main([*words, f"--output={folder / 'out'}"]) == 1
        assert said in capsys.readouterr().err
        assert not (folder / "out" / "manifest.json").exists()


def test_equal_problems_of_several_rows_are_merged(folder):
    rows = [old(solution=["goose", n]) for n in range(30)]
    with pytest.raises(HarnessError) as error:
        own_data.open_file(file(folder, *rows), "exact_word", None)
    said = str(error.value)
    assert said.count("the answer is list") == 1 and "lines 1 to 30: " in said


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([("line 3", "x")], ["line 3: x"]),
        ([("row 3", "x"), ("row 4", "x")], ["rows 3 and 4: x"]),
        ([(f"line {n}", "x") for n in (1, 2, 3, 7, 9, 10)], ["lines 1 to 3, 7, 9 and 10: x"]),
        ([("line 1", "x"), ("line 2", "y"), ("line 3", "x")], ["lines 1 and 3: x", "line 2: y"]),
        (
            [(f"line {2 * n}", "x") for n in range(25)],
            [f"lines {', '.join(str(2 * n) for n in range(20))} and 5 more: x"],
        ),
        ([(f"line {n}", str(n)) for n in range(23)], [*(f"line {n}: {n}" for n in range(20)), "and 3 more"]),
    ],
)  # fmt: skip
def test_rows_with_the_same_problem_are_named_together(bad, said):
    assert errors.grouped(bad) == said


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([old(), old(image=None)], "mine.jsonl: 1 row has no image, while others have one: line 2"),
        ([old(image=None), old(image=None, problem="b")], None),
        (
            [old(), old(problem="b"), old(solution="duck")],
            "mine.jsonl: 1 row repeats an earlier row's question about the same image, with another answer:"
            " line 3",
        ),
    ],
)
def test_suspicious_rows_are_reported(folder, caplog, rows, said):
    own_data.open_file(file(folder, *rows), "exact_word", None)
    assert [Path(one).name for one in caplog.messages] == ([] if said is None else [said])

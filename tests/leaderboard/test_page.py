"""The leaderboard's page as files: packed data, written files, vendored code."""

import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import Options, build, page
from dcsft_harness.leaderboard.page import data
from dcsft_harness.leaderboard.page.data import rounded
from tests.fixtures.page_unpacking import content, numbers, scores, texts
from tests.fixtures.study import labels, study
from tests.leaderboard.test_leaderboard import ID, OOD_A, OOD_R, scores_folder

SITE = files("dcsft_harness.leaderboard") / "site"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A study's board with its page."""
    folder = tmp_path_factory.mktemp("page")
    made = study(folder, n=24)
    options = Options(
        baseline="cold start", labels=[labels(folder / "labels", n=24)], plots=False, published=True
    )
    return build(made, folder / "board", options=options), folder / "board"


class TestPacking:
    @given(st.lists(st.integers(-1, 2**32 - 2), max_size=40))
    def test_numbers_round_trip(self, values):
        assert numbers(data.pack_numbers(np.array(values, dtype=np.int64))) == values

    @pytest.mark.parametrize(("largest", "width"), [(254, 1), (255, 2), (65534, 2), (65535, 4)])
    def test_the_width_leaves_room_for_missing_values(self, largest, width):
        packed = data.pack_numbers(np.array([largest, -1], dtype=np.int64))
        assert packed["w"] == width and numbers(packed) == [largest, -1]

    @given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])), max_size=30))
    def test_texts_round_trip(self, values):
        assert texts(data.pack_texts(values)) == values

    @given(
        st.lists(st.one_of(st.none(), st.sampled_from([0.0, 1.0]), st.floats(0, 1)), min_size=1, max_size=40)
    )
    def test_scores_round_trip_to_the_last_bit(self, values):
        row = np.array([np.nan if value is None else value for value in values])
        again = np.array([1.0] * len(values))
        packed = data.pack_scores([row, None, again])
        assert packed["r"][1] is None
        np.testing.assert_array_equal(scores(packed, 0, len(values)), row)
        np.testing.assert_array_equal(scores(packed, 2, len(values)), again)

    def test_right_or_wrong_takes_two_bits(self):
        packed = data.pack_scores([np.array([0.0, 1.0, np.nan, 1.0] * 1000)])
        assert packed["w"] == 0.25 and len(packed["r"][0]) == 4 * 1000 / 3 // 1 + 3

    @given(st.text())
    def test_no_text_can_end_its_script(self, text):
        said = data.script("board", {"text": text, text: 1}).decode()
        assert not set(said[len("dcsft.take(") :]) & set("<>&\u2028\u2029")
        if text.isprintable() and text != "text":
            assert content(said)["text"] == text

    def test_a_lone_surrogate_does_not_stop_the_page(self):
        assert content(data.script("board", {"a": "x\ud800y"}).decode()) == {"a": "x?y"}


class TestFiles:
    def test_all_files_are_there(self, built):
        _, folder = built
        assert {one.name for one in (folder / "page").iterdir()} == {
            "index.html", "assets", "data", "downloads"
        }  # fmt: skip
        scripts = re.findall(r'<script src="([^"]+)"></script>', (folder / "page/index.html").read_text())
        assert [Path(name).name for name in page.SCRIPTS] == [Path(name).name for name in scripts]
        assert all((folder / "page" / name).is_file() for name in scripts)

    def test_the_shell_allows_nothing_inline_or_external(self, built):
        text = (built[1] / "page/index.html").read_text()
        assert 'content="default-src &#39;none&#39;; script-src &#39;self&#39;;' in text
        assert "unsafe" not in text and "http://" not in text and "https://" not in text
        assert not re.search(r"<script(?! src=)|<style|\son\w+=|javascript:", text)
        assert text.index("Content-Security-Policy") < text.index("stylesheet")

    def test_items_scores_and_responses_are_stored_by_row(self, built):
        found, folder = built
        data = folder / "page" / "data"
        board = content((data / "board.js").read_text())["boards"][0]
        summary = found.summary
        for t, task in enumerate(board["tasks"]):
            items = content((data / f"b0t{t}items.js").read_text())
            packed = content((data / f"b0t{t}scores.js").read_text())
            for r, line in enumerate(summary.lines):
                if line.is_group:
                    assert packed["r"][r] is None and not (data / f"b0t{t}r{r}.js").exists()
                    continue
                cell = line.rows[0].cells[task["name"]]
                np.testing.assert_array_equal(scores(packed, r, task["n"]), cell.scores)
                answers = content((data / f"b0t{t}r{r}.js").read_text())
                assert texts(answers["responses"]) == ["a 3"] * task["n"]
            assert items["ids"] == sorted(items["ids"]) and len(items["ids"]) == task["n"]

    def test_figures_equal_those_of_the_document(self, built):
        _, folder = built
        document = json.loads((folder / "leaderboard.json").read_text())
        board = content((folder / "page/data/board.js").read_text())["boards"][0]
        columns = len(document["columns"])
        for r, row in enumerate(document["rows"]):
            for c, cell in enumerate(row["cells"]):
                at = r * columns + c
                told = [part[at] for part in board["cells"]["accuracy"]]
                assert told == pytest.approx(
                    [cell["accuracy"][key] for key in ("value", "low", "high")], rel=1e-6
                )
                assert board["cells"]["n"][at] == cell["n"]
        assert len(board["comparisons"]["row"]) == len(document["comparisons"])

    def test_difficulties_come_from_the_labels(self, built):
        _, folder = built
        items = content((folder / "page/data/b0t0items.js").read_text())
        assert numbers(items["difficulties"]) == [n % 3 for n in range(24)]

    def test_items_are_matched_by_id_in_any_order(self, tmp_path):
        values = {ID: [1.0, 0.0, None, 1.0]}
        made = [
            scores_folder(tmp_path / "a", "a", values),
            scores_folder(tmp_path / "b", "b", values, backwards=True),
        ]
        build(made, tmp_path / "board", options=Options(plots=False, items=False, strict=True))
        data = tmp_path / "board/page/data"
        assert (data / "b0t0r0.js").read_text().split(",", 1)[1] == (data / "b0t0r1.js").read_text().split(
            ",", 1
        )[1]
        assert numbers(content((data / "b0t0items.js").read_text())["documents"]) == [0, 1, 2, 3]

    def test_clusters_shared_only_between_tasks_are_there(self, tmp_path):
        """The same images in each of two tasks: the interval of their mean needs them."""
        pictures = {task: {n: f"picture {n}" for n in range(3)} for task in (OOD_R, OOD_A)}
        tasks = {task: [1.0, 0.0, 1.0] for task in (ID, OOD_R, OOD_A)}
        made = [scores_folder(tmp_path / "a", "a", tasks, clusters=pictures)]
        build(made, tmp_path / "board", options=Options(plots=False, items=False))
        found = [
            content((tmp_path / f"board/page/data/b0t{task}items.js").read_text())["clusters"]
            for task in range(3)
        ]
        assert (
            found[0] is None and numbers(found[1]) == numbers(found[2]) and len(set(numbers(found[1]))) == 3
        )

    def test_the_page_can_be_switched_off(self, tmp_path):
        made = [scores_folder(tmp_path / "a", "a", {ID: [1.0, 0.0]})]
        build(made, tmp_path / "board", options=Options(plots=False, page=False, strict=True))
        assert not (tmp_path / "board" / "page").exists()

    def test_rows_kept_apart_have_their_own_files(self, tmp_path):
        made = [
            scores_folder(tmp_path / "a", "a", {ID: [1.0, 0.0]}),
            scores_folder(tmp_path / "b", "b", {ID: [1.0, 0.0]}, notes={ID: {"prompt_sha256": "q"}}),
        ]
        build(made, tmp_path / "board", options=Options(plots=False, apart=True, strict=True))
        data = tmp_path / "board/page/data"
        told = content((data / "board.js").read_text())["boards"]
        assert [board["rows"][0]["name"] for board in told] == ["a", "b"]
        assert "prompt hash" in told[1]["reason"]
        assert (data / "b1t0r0.js").is_file()

    def test_no_local_path_is_published(self, tmp_path, monkeypatch):
        from dcsft_harness import lmms

        def refuse(names):
            raise HarnessError(f"{tmp_path}/cache/{names[0]} is not there, nor {Path.home()}/x", "Look there")

        monkeypatch.setattr(lmms, "open_tasks", refuse)
        made = [
            scores_folder(tmp_path / "a", "a", {ID: [1.0, 0.0], OOD_R: [1.0]}),
            scores_folder(tmp_path / "b", "b", {ID: [1.0, 0.0]}, notes={ID: {"prompt_sha256": "q"}}),
        ]
        build(made, tmp_path / "board", options=Options(plots=False, strict=False, samples=2))
        for file in (tmp_path / "board/page").rglob("*"):
            if file.suffix in (".html", ".js") and "assets" not in file.parts:
                text = file.read_text()
                assert str(tmp_path) not in text and str(Path.home()) not in text, file
        told = content((tmp_path / "board/page/data/board.js").read_text())
        assert "prompt hash" in told["left_out"][0][1]
        assert all("cannot be opened here" in reason for _, _, reason in told["pictures"])

    def test_figures_are_rounded_to_significant_digits(self):
        assert rounded(0.123456789) == 0.1234568
        assert rounded(1.23456789e-9) == 1.234568e-9
        assert rounded(-0.0) == 0 and rounded(None) is None and rounded(7) == 7


class TestVendored:
    def test_files_match_their_recorded_hashes(self):
        told = json.loads((SITE / "vendor" / "vendored.json").read_text())
        for one in told:
            data = (SITE / "vendor" / one["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == one["sha256"], one["file"]
            assert (SITE / "vendor" / one["licence_file"]).is_file()
        there = {one.name for one in (SITE / "vendor").iterdir() if one.name.endswith(".js")}
        assert there == {one["file"] for one in told}

    def test_scripts_never_write_markup_or_evaluate_code(self):
        for one in SITE.iterdir():
            if one.name.endswith(".js"):
                text = one.read_text()
                assert not re.search(
                    r"innerHTML|outerHTML|insertAdjacent|document\.write|dangerously|\beval\b|new Function"
                    r"|srcdoc|fetch\(",
                    text,
                ), one.name

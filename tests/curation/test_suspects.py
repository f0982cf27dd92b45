"""Suspects, items never solved and answered consistently: found, left out, listed and reviewed."""

import dataclasses
import json
import random

import pytest
from datasets import load_from_disk
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dcsft_harness import curation, records, sampling
from dcsft_harness.artifacts import manifest, storage
from dcsft_harness.cli import main
from dcsft_harness.curation import labels, suspects
from dcsft_harness.curation.rules import CurationConfig
from dcsft_harness.curation.suspects import one_voice
from dcsft_harness.data.digits import suite
from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring.boxes import iou
from tests.fixtures.artifacts import item, picture, rollout


class TestMajorityAnswer:
    def test_is_the_answer_of_most_samples(self):
        assert one_voice(["goose", "swan", "goose"]) == ("goose", 2)

    def test_ignores_case_and_white_space(self):
        assert one_voice(["swan", "A  Goose", "a goose", " a goose "]) == ("A  Goose", 3)

    def test_counts_boxes_that_overlap_by_half_as_equal(self):
        # Of 10 x 10 boxes: shifted by 2 the IoU is 8/12, by 4 it is 6/14.
        boxes = [
            [0.0, 0.0, 10.0, 10.0],
            [2.0, 0.0, 12.0, 10.0],
            [4.0, 0.0, 14.0, 10.0],
            [50.0, 50.0, 60.0, 60.0],
        ]
        assert one_voice([json.dumps(box) for box in boxes]) == ("[2.0, 0.0, 12.0, 10.0]", 3)
        assert one_voice([json.dumps(box) for box in (boxes[0], boxes[2], boxes[3])])[1] == 1

    def test_a_box_without_area_agrees_with_nothing(self):
        assert one_voice(["[5.0, 5.0, 5.0, 9.0]"] * 4)[1] == 0

    def test_four_numbers_are_text_unless_the_scorer_has_boxes(self):
        assert one_voice(["[0, 0, 10, 10]", "[1, 0, 11, 10]", "[0, 0, 10, 10]"]) == ("[0, 0, 10, 10]", 2)

    def test_one_text_among_boxes_makes_all_of_them_text(self):
        assert one_voice(["[0.0, 0.0, 9.0, 9.0]", "[0.0, 0.0, 9.0, 8.0]", "none"])[1] == 1

    @given(
        st.lists(st.sampled_from(["a", "A", " a", "b", "B c", "b  c", "é", "É"]), min_size=1), st.randoms()
    )
    def test_of_texts_equals_a_plain_count_in_any_order(self, answers, rng):
        forms = [" ".join(answer.lower().split()) for answer in answers]
        voice, times = one_voice(answers)
        assert times == max(map(forms.count, forms)) == forms.count(" ".join(voice.lower().split()))
        assert voice in answers
        mixed = rng.sample(answers, len(answers))
        assert " ".join(one_voice(mixed)[0].lower().split()) == " ".join(voice.lower().split())

    corners = st.tuples(*[st.integers(0, 12).map(float)] * 4).map(list)

    @given(st.lists(corners, min_size=1, max_size=9), st.randoms())
    def test_of_boxes_is_the_one_with_most_overlaps_in_any_order(self, boxes, rng):
        answers = [json.dumps(box) for box in boxes]
        voice, times = one_voice(answers)
        agree = [sum(iou(box, other) >= 0.5 for other in boxes) for box in boxes]
        assert times == max(agree) == agree[answers.index(voice)]
        assert one_voice(rng.sample(answers, len(answers))) == (voice, times)


WRONG = [0.0] * 8
POOL = {
    0: (WRONG, ["swan"] * 8),
    1: (WRONG, ["Swan"] + ["swan"] * 5 + ["kite", None]),
    2: (WRONG, ["swan"] * 5 + ["kite"] * 3),
    3: (WRONG, ["Swan", "swan "] * 2 + [None] * 4),
    4: (WRONG, ["swan"] * 3 + [None] * 5),
    5: ([1.0] + [0.0] * 7, ["goose"] + ["swan"] * 7),
    6: ([1.0] * 8, ["goose"] * 8),
    7: (WRONG, [json.dumps([float(x), 0.0, 10.0 + x, 10.0]) for x in (0, 1, 2, 1, 0, 2, 1)] + [None]),
    8: ([0.0] * 6 + [None] * 2, ["swan"] * 8),
    9: ([0.0] * 5 + [None] * 3, ["swan"] * 8),
}
"""Item number -> its scores and extracted answers."""
SHARES = {0: 1.0, 7: 7 / 8, 1: 6 / 8, 8: 6 / 8}
"""The suspects at a threshold of 0.75, with their shares."""


def answered(folder, pool=None, images=None, order=lambda rows: rows, task="pool"):
    """Writes rollouts and labels of such a pool; returns the folder of the labels."""
    pool = POOL if pool is None else pool
    items = [item(number) for number in pool]
    rows = [
        dataclasses.replace(
            rollout(some, index, score), extracted=answer, response=f"{answer}, I say", error=None
        )
        for some, (scores, answers) in zip(items, pool.values(), strict=True)
        for index, (score, answer) in enumerate(zip(scores, answers, strict=True))
    ]
    with manifest.writing("rollouts", folder / "rollouts", {"task": task, "samples": 8}) as draft:
        records.write_table(draft.folder / sampling.ROLLOUTS, records.Rollout, order(rows))
        shown = [[picture(number)] for number in pool] if images is None else images
        sampling.write_items(draft.folder / sampling.ITEMS, items, shown)
    labels.label(folder / "rollouts", folder / "labels")
    return folder / "labels"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return answered(tmp_path_factory.mktemp("suspects"))


NUMBER = {item(number).item_id: number for number in range(40)}


def lines(folder):
    return [json.loads(line) for line in (folder / "suspects.jsonl").read_text(encoding="utf-8").splitlines()]


def curate(source, output, reviewed=None, **config):
    """The manifest's notes, the numbers of the selected items, and the suspects."""
    config = {"keep": ("easy", "medium", "hard"), "suspect": 0.75, **config}
    notes = curation.curate(source, output, CurationConfig(**config), reviewed=reviewed)
    rows = load_from_disk(str(output / "data"))
    return notes, sorted(NUMBER[key] for key in rows["item_id"]), lines(output)


class TestKnownWrongLabels:
    def test_are_counted_among_suspects_and_hard_items(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(
            suite, "replaced", lambda name: frozenset({0, 2, 5, 99})
        )  # 99 is beyond the limit
        made = answered(tmp_path, task="dcsft_digits_pool_noisy")
        notes, _, _ = curate(made, tmp_path / "out")
        assert notes["known_wrong"] == {
            "wrong": 3,
            "suspects": {"items": 4, "found": 1, "precision": 1 / 4, "recall": 1 / 3},
            "hard": {"items": 8, "found": 2, "precision": 2 / 8, "recall": 2 / 3},
        }
        options = ["--keep", "easy,medium,hard", "--suspect", "0.75"]
        assert main(["curate", str(made), *options, "--output", str(tmp_path / "cli")]) == 0
        said = capsys.readouterr().out
        assert "The pool lists 3 wrong labels: 4 suspects, 1 of them wrong (precision 25.0 %, recall" in said

    def test_are_not_counted_where_the_pool_lists_none(self, source, tmp_path):
        notes, _, _ = curate(source, tmp_path / "out")
        assert notes["known_wrong"] is None

    @pytest.mark.parametrize(
        ("left_out", "wrong", "precision", "recall"),
        [("ab", "", 0.0, None), ("", "ab", None, 0.0), ("abc", "bcd", 2 / 3, 2 / 3), ("aab", "a", 0.5, 1.0)],
    )
    def test_give_precision_and_recall(self, left_out, wrong, precision, recall):
        found = suspects.detection(left_out, wrong)
        assert (found["precision"], found["recall"]) == (precision, recall)


class TestSuspects:
    def test_are_never_solved_and_answered_consistently(self, source, tmp_path):
        notes, kept, found = curate(source, tmp_path / "out")
        assert {NUMBER[line["item_id"]]: line["share"] for line in found} == SHARES
        assert kept == [2, 3, 4, 5, 6, 9]
        counts = {name: notes[name] for name in ("items", "easy", "medium", "hard", "suspects", "unjudged")}
        assert counts == {"items": 6, "easy": 1, "medium": 1, "hard": 4, "suspects": 4, "unjudged": 1}

    def test_are_sorted_by_falling_share_and_then_by_id(self, source, tmp_path):
        _, _, found = curate(source, tmp_path / "out")
        keys = [(-line["share"], line["item_id"]) for line in found]
        assert keys == sorted(keys)

    @pytest.mark.parametrize(("threshold", "found"), [(1.0, [0]), (0.8, [0, 7]), (0.625, [0, 1, 2, 7, 8, 9])])
    def test_depend_on_the_threshold(self, source, tmp_path, threshold, found):
        _, _, said = curate(source, tmp_path / "out", suspect=threshold)
        assert sorted(NUMBER[line["item_id"]] for line in said) == found

    @pytest.mark.parametrize(
        "order", [lambda rows: rows[::-1], lambda rows: random.Random(3).sample(rows, len(rows))]
    )
    def test_do_not_depend_on_rollout_order(self, source, tmp_path, order):
        other = answered(tmp_path, order=order)
        assert curate(other, tmp_path / "one") == curate(source, tmp_path / "two")

    def test_are_never_selected_by_a_mix_or_a_weight(self, source, tmp_path):
        _, kept, _ = curate(source, tmp_path / "out", keep=(), weight="posterior")
        assert kept == [2, 3, 4, 5, 6, 9]
        _, kept, _ = curate(source, tmp_path / "mixed", keep=("easy",), mix={"hard": 0.8})
        assert kept == [2, 3, 4, 6, 9]
        with pytest.raises(
            HarnessError,
            match="8 hard items are requested, but without 4 excluded, .* items, the labels have 4",
        ):
            curate(source, tmp_path / "more", keep=("easy", "medium"), mix={"hard": 0.8}, size=10)
        assert not (tmp_path / "more").exists()

    def test_are_only_looked_for_on_request(self, source, tmp_path):
        curation.curate(source, tmp_path / "out", CurationConfig(keep=("hard",)))
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "data", "difficulty.png", "gallery", "gallery.md", "manifest.json"
        ]  # fmt: skip

    def test_need_enough_samples_per_item(self, tmp_path):
        source = answered(tmp_path, {0: ([0.0] * 3, ["swan"] * 3)})
        with pytest.raises(HarnessError, match="--suspect needs 4 answers per item, but .* has 3 samples"):
            curate(source, tmp_path / "out")

    def test_may_be_an_empty_list(self, tmp_path):
        source = answered(tmp_path, {0: POOL[6]})
        notes, _, found = curate(source, tmp_path / "out")
        assert (notes["suspects"], found) == (0, [])
        assert "0 of 0 items" in (tmp_path / "out" / "suspects.md").read_text()

    def test_may_not_be_the_whole_pool(self, tmp_path):
        with pytest.raises(
            HarnessError, match=r"\(without 1 excluded, dropped or suspected item, the labels have 0 easy"
        ):
            curate(answered(tmp_path, {0: POOL[0]}), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_of_labels_that_do_not_match_the_rollouts_are_refused(self, source):
        table = records.read_table(source / labels.LABELS, records.Label).slice(0, 1)
        strange = table.set_column(0, "item_id", [["f" * 32]])
        with pytest.raises(HarnessError, match="lacks item ffff.* do not belong together"):
            suspects.find(strange, source.parent / "rollouts", 0.75)


def noted(seen):
    """A function that returns its argument and records it."""
    return lambda table: seen.append(table) or table


class TestReviewFile:
    def test_holds_everything_that_a_reviewer_needs(self, source, tmp_path):
        _, _, found = curate(source, tmp_path / "out")
        (line,) = (line for line in found if NUMBER[line["item_id"]] == 1)
        key = item(1).item_id
        assert line == {
            "item_id": key,
            "doc_id": 1,
            "task": "pool",
            "prompt": "What is number 1?",
            "gold": "answer 1",
            "voice": "Swan",
            "share": 0.75,
            "samples": 8,
            "responses": ["Swan, I say"] + ["swan, I say"] * 5 + ["kite, I say", "None, I say"],
            "images": [f"suspects/{key}.png"],
            "verdict": None,
        }
        with Image.open(tmp_path / "out" / line["images"][0]) as image:
            assert image.tobytes() == picture(1).tobytes()

    def test_has_a_page_with_the_same_content_and_the_images(self, source, tmp_path):
        _, _, found = curate(source, tmp_path / "out")
        page = (tmp_path / "out" / "suspects.md").read_text(encoding="utf-8")
        for number, line in enumerate(found, 1):
            start = page.index(f"## {number}: document {line['doc_id']}, {line['item_id']}")
            part = page[start : page.index(f"## {number + 1}:") if number < len(found) else None]
            for text in (line["prompt"], line["gold"], line["voice"], f"({line['images'][0]})"):
                assert text in part

    def test_and_its_images_are_in_the_manifest(self, source, tmp_path):
        _, _, found = curate(source, tmp_path / "out")
        files = manifest.read(tmp_path / "out").files
        assert {"suspects.jsonl", "suspects.md", *(line["images"][0] for line in found)} <= files.keys()

    def test_names_every_image_of_an_item(self, tmp_path):
        images = [[], [picture(1), picture(2)], [picture(3)]]
        source = answered(tmp_path, {0: POOL[0], 1: POOL[0], 6: POOL[6]}, images)
        _, _, found = curate(source, tmp_path / "out")
        by_number = {NUMBER[line["item_id"]]: line["images"] for line in found}
        key = item(1).item_id
        assert by_number == {0: [], 1: [f"suspects/{key}.png", f"suspects/{key}-1.png"]}
        with Image.open(tmp_path / "out" / by_number[1][1]) as image:
            assert image.tobytes() == picture(2).tobytes()

    def test_is_written_in_pieces_when_it_is_large(self, source, tmp_path, monkeypatch):
        whole = curate(source, tmp_path / "whole")
        stretches = []
        reordered = storage.reordered
        monkeypatch.setattr("dcsft_harness.curation.suspects.AT_ONCE", 1)
        monkeypatch.setattr("dcsft_harness.curation.conversations.AT_ONCE", 1)
        monkeypatch.setattr("dcsft_harness.artifacts.storage.AT_ONCE", 1)
        monkeypatch.setattr(
            "dcsft_harness.curation.suspects.reordered",
            lambda *given: map(noted(stretches), reordered(*given)),
        )
        mixed = answered(tmp_path, order=lambda rows: random.Random(3).sample(rows, len(rows)))
        assert curate(mixed, tmp_path / "pieces") == whole
        assert len(stretches) == 8  # each of four suspects, items and responses
        names = {path.name for path in (tmp_path / "pieces").iterdir()}
        pictures = {"difficulty.png", "gallery", "gallery.md"}
        assert names == {"data", "manifest.json", "suspects", "suspects.jsonl", "suspects.md"} | pictures

    def test_lists_all_suspects_and_shows_only_the_first(self, source, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("dcsft_harness.curation.suspects.PICTURED", 2)
        options = ["--keep", "easy", "--suspect", "--output", str(tmp_path / "out")]
        assert main(["curate", str(source), *options]) == 0
        said = (
            "4 suspected of a wrong label: see suspects.jsonl, 2 of these not in suspects.md, 1 never solved"
        )
        assert said in capsys.readouterr().err
        assert [len(line["images"]) for line in lines(tmp_path / "out")] == [1, 1, 0, 0]
        assert "2 of 4 items" in (tmp_path / "out" / "suspects.md").read_text()
        assert len(list((tmp_path / "out" / "suspects").iterdir())) == 2


class TestReview:
    def reviewed(self, source, folder, verdicts):
        """A review file with these verdicts on items by number."""
        _, _, found = curate(source, folder / "first")
        told = [line | {"verdict": verdicts.get(NUMBER[line["item_id"]])} for line in found]
        path = folder / "reviewed.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in told))
        return path

    def test_verdicts_keep_drop_or_leave_open(self, source, tmp_path):
        path = self.reviewed(source, tmp_path, {0: "keep", 1: "drop"})
        notes, kept, found = curate(source, tmp_path / "second", reviewed=path)
        assert kept == [0, 2, 3, 4, 5, 6, 9]
        assert sorted(NUMBER[line["item_id"]] for line in found) == [7, 8]
        assert (notes["suspects"], notes["dropped"], notes["hard"]) == (2, 1, 5)
        assert "reviewed" in manifest.read(tmp_path / "second").inputs

    def test_drops_items_without_looking_for_more_suspects(self, source, tmp_path, capsys):
        path = self.reviewed(source, tmp_path, {1: "drop"})
        options = ["--keep", "hard", "--reviewed", str(path), "--output", str(tmp_path / "second")]
        assert main(["curate", str(source), *options]) == 0
        said = "7 items: 0 easy, 0 medium, 7 hard (1 dropped in review, 2 of difficulties not kept) ("
        assert said in capsys.readouterr().err

    def test_may_name_items_that_are_excluded_or_not_suspects(self, source, tmp_path):
        path = tmp_path / "mine.jsonl"
        path.write_text(json.dumps({"item_id": item(6).item_id, "verdict": "drop"}) + "\n\n")
        _, kept, _ = curate(source, tmp_path / "out", reviewed=path)
        assert kept == [2, 3, 4, 5, 9]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "line 2: not JSON"),
            ("[]", "line 2: not a JSON object"),
            ('{"item_id": "KEY", "verdict": NaN}', "line 2: not JSON .NaN is not a finite number"),
            (r'{"item_id": "\ud800"}', "line 2: not JSON .*half of a surrogate pair"),
            ("[" * 10_000, "line 2: not JSON .nested deeper than 64 levels"),
            ('{"item_id": 3, "verdict": "keep"}', "line 2: no item_id"),
            (
                '{"item_id": "KEY", "verdict": "fix"}',
                "line 2: the verdict 'fix' is neither 'keep' nor 'drop'",
            ),
            ('{"item_id": "KEY", "verdict": true}', "line 2: the verdict True is neither"),
            ('{"item_id": "KEY", "verdict": ["keep"]}', "line 2: the verdict .'keep'. is neither"),
            ('{"item_id": "0123"}', "line 2: item 0123 is not in the labels"),
            ('{"item_id": "KEY"}\n{"item_id": "KEY"}', "line 3: item .* is in line 2 already"),
        ],
    )
    def test_errors_name_the_line(self, source, tmp_path, text, said):
        path = tmp_path / "reviewed.jsonl"
        path.write_text("\n" + text.replace("KEY", item(0).item_id))
        with pytest.raises(HarnessError, match=said):
            curate(source, tmp_path / "out", reviewed=path)
        assert not (tmp_path / "out").exists()

    def test_that_is_missing_is_reported(self, source, tmp_path):
        with pytest.raises(HarnessError, match="--reviewed .*nowhere does not exist"):
            curate(source, tmp_path / "out", reviewed=tmp_path / "nowhere")


@pytest.mark.parametrize(("same", "threshold"), [(14, 0.56), (18, 0.72), (13, 0.56)])
def test_a_share_equal_to_the_threshold_is_enough(tmp_path, same, threshold):
    """In binary floating point 0.56 * 25 is more than 14."""
    said = ["swan"] * same + [None] * (25 - same)
    source = answered(tmp_path, {0: ([0.0] * 25, said), 1: ([1.0] * 25, ["goose"] * 25)})
    curation.curate(source, tmp_path / "out", CurationConfig(keep=("easy", "hard"), suspect=threshold))
    assert len(lines(tmp_path / "out")) == (same / 25 >= threshold)

"""The board: its figures and how they are printed."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.disk import file_sha256
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import build, load, markdown, stats, summarize
from dcsft_harness.leaderboard.report.table import csv_text
from dcsft_harness.records import Score, write_table

ID, OOD_R, OOD_A = "digits", "digits_r", "digits_a"
DISTRIBUTION = {ID: "id", OOD_R: "ood", OOD_A: "ood"}


def score_row(task, index, score, cluster=None, extracted="3"):
    return Score(task, f"{task}-{index:03}", index, score, extracted, "a 3", "3", 4, cluster)


def scores_folder(
    folder, name, tasks, *, pixels=None, notes=None, clusters=None, inputs=None, backwards=False, config=None
):
    """A scores artifact: `tasks` is {task: [score, ...]}, `notes` overrides {task: {key: value}}."""
    rows, said = [], {}
    for task, values in tasks.items():
        some = [score_row(task, i, v, (clusters or {}).get(task, {}).get(i)) for i, v in enumerate(values)]
        # Written backwards, so that pairing by position instead of by item_id fails.
        rows += reversed(some) if backwards else some
        scored = [value for value in values if value is not None]
        said[task] = {
            "version": 1,
            "distribution": DISTRIBUTION.get(task),
            "family": None,
            "n": len(scored),
            "accuracy": sum(scored) / len(scored) if scored else None,
            "unanswered": 0,
            "unscored": len(values) - len(scored),
            "prompt_sha256": "p",
            "generation": {"temperature": 0.0, "max_new_tokens": 8},
            "limit": None,
            "items_sha256": f"items of {task}",
            **(notes or {}).get(task, {}),
        }
    with manifest.writing("scores", folder, {"name": name, **(config or {})}, inputs) as draft:
        write_table(draft.folder / "scores.parquet", Score, rows)
        draft.notes |= {"tasks": said, "pixels": pixels}
    return folder


def rewrite(folder: Path, rows=None, **changes):
    """Changes a finished artifact as its writer would, including hashes."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    if rows is not None:
        write_table(folder / "scores.parquet", Score, rows)
    data["files"]["scores.parquet"] = file_sha256(folder / "scores.parquet")
    path.write_text(json.dumps({**data, **changes}), encoding="utf-8")


@pytest.fixture
def two(tmp_path):
    """A baseline and an adapter on one ID task and two OOD tasks of four items."""
    base = {ID: [1, 1, 1, 0], OOD_R: [1, 0, 0, 0], OOD_A: [0, 0, 0, 1]}
    tuned = {ID: [1, 1, 1, 1], OOD_R: [1, 1, 1, 0], OOD_A: [0, 0, 1, 1]}
    return [
        scores_folder(tmp_path / "tuned", "SFT-M", tuned, backwards=True),
        scores_folder(tmp_path / "base", "base", base),
    ]


def cells(text):
    """The table of a Markdown text, without its rule: lists of stripped cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for i, line in enumerate(lines) if i != 1]


def records(text):
    return {(row["row"], row["task"]): row for row in csv.DictReader(io.StringIO(text))}


class TestMarkdown:
    def test_holds_every_cell(self, two):
        # Means over OOD tasks: base (25 + 25) / 2, SFT-M (75 + 50) / 2. Paired OOD differences are
        # 0 1 1 0 | 0 0 1 0: variance (8/7)(7/6) * (4 * .25 + .75) / 64 = .036458, SE .19094,
        # and t(7 degrees, .975) = 2.364624, so .375 -+ .45150. ID: 0 0 0 1, .25 -+ 3.182446 * .25.
        assert cells(markdown(load(two, "base"))) == [
            ["", "ID: digits", "OOD: digits_r", "OOD: digits_a", "OOD mean", "ID vs base", "OOD vs base"]
            + ["unanswered", "unscored"],
            ["base", "75.00", "25.00", "25.00", "25.00", "", "", "0", "0"],
            ["SFT-M", "**100.00**", "**75.00**", "**50.00**", "**62.50**"]
            + ["+25.00 [-54.56, +104.56]", "+37.50 [-7.65, +82.65]", "0", "0"],
            ["*n*", "4", "4", "4", "", "", "", "", ""],
        ]

    def test_without_a_baseline_rows_keep_their_order_and_have_no_differences(self, two):
        text = markdown(load(two))
        assert [line[0] for line in cells(text)] == ["", "SFT-M", "base", "*n*"]
        assert " vs " not in text

    def test_ID_tasks_come_first_with_their_mean_then_OOD_then_unlabeled_ones(self, tmp_path):
        other = {"mmmu": [1, 0], OOD_R: [1, 0], "val": [1, 1], ID: [0, 0]}
        folder = scores_folder(tmp_path / "a", "a", other, notes={"val": {"distribution": "id"}})
        header = ["ID: val", "ID: digits", "ID mean", "OOD: digits_r", "OOD mean", "mmmu"]
        assert cells(markdown(load([folder])))[0][1:7] == header
        assert cells(markdown(load([folder])))[1][1:7] == [
            "100.00",
            "0.00",
            "50.00",
            "50.00",
            "50.00",
            "50.00",
        ]

    def test_the_best_of_a_column_is_bold_unless_all_tie(self, tmp_path):
        third = scores_folder(tmp_path / "c", "c", {ID: [0, 0, 1]})
        folders = [scores_folder(tmp_path / n, n, {ID: [1, 0, 1]}) for n in "ab"]
        assert [line[1] for line in cells(markdown(load([*folders, third])))[1:4]] == [
            "**66.67**",
            "**66.67**",
            "33.33",
        ]
        assert "**" not in markdown(load([third]))
        assert "**" not in markdown(load(folders))

    def test_a_missing_task_leaves_cell_and_mean_blank_with_a_remark(self, tmp_path, two):
        part = scores_folder(tmp_path / "part", "part", {ID: [1, 0, 0, 0], OOD_R: [1, 1, 1, 1]})
        text = markdown(load([*two, part], "base"))
        assert cells(text)[3] == [
            "part",
            "25.00",
            "**100.00**",
            "",
            "",
            "-50.00 [-141.87, +41.87]",
            "",
            "0",
            "0",
        ]
        assert "- Row part has no OOD mean: it was not evaluated on digits_a, and a mean is never" in text

    def test_unscored_items_are_left_out_counted_and_reported(self, tmp_path):
        base = scores_folder(tmp_path / "base", "base", {ID: [1, 0, 0, 1]})
        tuned = scores_folder(tmp_path / "tuned", "tuned", {ID: [1, 1, None, 1]})
        text = markdown(load([base, tuned], "base"))
        # Three pairs remain, with differences 0, 1, 0.
        assert cells(text)[2] == ["tuned", "**100.00**", "+33.33 [-110.09, +176.76]", "0", "1"]
        assert "- Row tuned: 1 of 4 responses to digits could not be scored" in text

    def test_a_task_without_scores_has_no_accuracy(self, tmp_path):
        folder = scores_folder(tmp_path / "a", "a", {OOD_R: [None, None], OOD_A: [1, 0]})
        assert cells(markdown(load([folder])))[1] == ["a", "", "50.00", "", "0", "2"]

    def test_equal_rows_have_a_difference_of_zero_without_an_interval(self, tmp_path):
        folders = [scores_folder(tmp_path / n, n, {OOD_R: [1, 0, 1]}) for n in ("a", "b")]
        text = markdown(load(folders, "a"))
        assert cells(text)[2][3] == "+0.00"
        assert "has no interval if it does not vary" in text

    def test_a_difference_that_rounds_to_zero_has_no_minus_sign(self, tmp_path):
        a = scores_folder(tmp_path / "a", "a", {OOD_R: [0.5, 0.5, 0.5, 0.5]})
        b = scores_folder(tmp_path / "b", "b", {OOD_R: [0.50001, 0.49998, 0.5, 0.5]})
        assert cells(markdown(load([a, b], "a")))[2][3] == "+0.00 [+0.00, +0.00]"


class TestClusters:
    def width(self, folders):
        """Width of the interval of the second row's OOD mean difference to the first."""
        found = summarize(load(folders, "a")).lines[1].entries[-1].difference
        return found.high - found.low

    def test_shared_by_tasks_are_one_observation_each(self, tmp_path):
        # Each digit's rendition behaves like its adversarial drawing: half as much evidence.
        theirs, ours = [0, 0, 0, 0, 1, 1], [1, 0, 1, 0, 1, 1]
        widths = {}
        for kind, named in {
            "alone": {},
            "shared": {task: {i: f"digit {i}" for i in range(6)} for task in (OOD_R, OOD_A)},
            "each its own": {task: {i: f"{task} {i}" for i in range(6)} for task in (OOD_R, OOD_A)},
        }.items():
            rows = {"a": theirs, "b": ours}
            widths[kind] = self.width(
                [
                    scores_folder(tmp_path / kind / n, n, {OOD_R: v, OOD_A: v}, clusters=named)
                    for n, v in rows.items()
                ]
            )
        assert widths["each its own"] == widths["alone"]
        # d = 1 0 1 0 0 0, mean 1/3. Shared, 6 clusters: (6/5)(11/10) * 6 * (2/9) / 36, t(5) = 2.570582;
        # alone, 12: (12/11)(11/10) * 12 * (2/9) / 144, t(11) = 2.200985.
        assert widths["shared"] == pytest.approx(2 * 2.570582 * math.sqrt(1.32 / 27), abs=1e-6)
        assert widths["alone"] == pytest.approx(2 * 2.200985 * math.sqrt(1.2 / 54), abs=1e-6)

    def test_a_cluster_with_the_name_of_an_item_is_not_that_item(self, tmp_path):
        folder = scores_folder(
            tmp_path / "a", "a", {OOD_R: [1, 0], OOD_A: [1, 0]}, clusters={OOD_A: {0: "digits_r-001"}}
        )
        assert len({code for task in load([folder]).tasks for code in task.clusters.tolist()}) == 4


class TestCSV:
    def test_has_fractions_counts_and_intervals(self, two):
        found = records(csv_text(load(two, "base")))
        assert list(found) == [
            (row, task) for row in ("base", "SFT-M") for task in (ID, OOD_R, OOD_A, "OOD mean")
        ]
        entry = found["SFT-M", OOD_R]
        assert (entry["distribution"], entry["n"], entry["unscored"], entry["unanswered"]) == (
            "ood",
            "4",
            "0",
            "0",
        )
        assert float(entry["accuracy"]) == 0.75
        # Wilson, by hand: (p + z2/2n -+ z sqrt(p q / n + z2 / 4n2)) / (1 + z2/n), z = 1.959964.
        assert float(entry["low"]) == pytest.approx(0.300642, abs=1e-6)
        assert float(entry["high"]) == pytest.approx(0.954413, abs=1e-6)
        assert float(entry["diff"]) == 0.5
        assert float(entry["diff_low"]) == pytest.approx(0.5 - 3.182446 * math.sqrt(1 / 12))
        mean = found["SFT-M", "OOD mean"]
        assert (mean["n"], float(mean["accuracy"]), float(mean["diff"])) == ("8", 0.625, 0.375)
        assert found["base", ID]["diff"] == ""

    def test_a_missing_task_is_a_line_of_blanks(self, tmp_path, two):
        part = scores_folder(tmp_path / "part", "part", {ID: [1, 0, 0, 0]})
        found = records(csv_text(load([*two, part], "base")))
        assert set(list(found["part", OOD_R].values())[3:]) == {""}

    def test_the_mean_of_one_task_has_that_tasks_interval(self, tmp_path):
        found = records(csv_text(load([scores_folder(tmp_path / "a", "a", {OOD_R: [1, 0, 1]})])))
        assert list(found["a", OOD_R].values())[2:] == list(found["a", "OOD mean"].values())[2:]


class TestUnanswered:
    def test_is_counted_among_scored_items_only(self, tmp_path):
        rows = [
            score_row(ID, 0, 0.0, extracted=None),
            score_row(ID, 1, None, extracted=None),
            score_row(ID, 2, 1.0),
        ]
        folder = scores_folder(tmp_path / "a", "a", {ID: [0.0, None, 1.0]})
        rewrite(folder, rows)
        assert cells(markdown(load([folder])))[1][-2:] == ["1", "1"]

    def test_is_unknown_if_the_task_does_not_report_answers(self, tmp_path):
        folder = scores_folder(tmp_path / "a", "a", {ID: [0.0, 1.0]}, notes={ID: {"unanswered": None}})
        assert cells(markdown(load([folder])))[1][-2:] == ["", "0"]


class TestBuild:
    def test_writes_an_artifact(self, two, tmp_path):
        board = build(two, tmp_path / "board", baseline="base").board
        found = manifest.read(tmp_path / "board", "leaderboard")
        assert "page/index.html" in found.files
        assert {name for name in found.files if not name.startswith("page/")} == {
            *(f"leaderboard.{kind}" for kind in ("md", "csv", "tex", "json")),
            *("comparisons.csv", "standings.csv", "items.parquet", "plots/id_ood.png", "plots/id_ood.svg"),
        }
        assert found.config == {"baseline": "base"}
        assert [found.input_folder(role) for role in found.inputs] == [folder.resolve() for folder in two]
        assert (
            (tmp_path / "board" / "leaderboard.md")
            .read_text()
            .startswith(f"# Leaderboard\n\n{markdown(board)}")
        )
        assert markdown(board) == markdown(summarize(board))

    def test_leaves_nothing_behind_after_an_error(self, two, tmp_path):
        before = set(tmp_path.iterdir())
        with pytest.raises(HarnessError):
            build(two, tmp_path / "board", baseline="nobody")
        assert set(tmp_path.iterdir()) == before

    def test_refuses_an_occupied_folder_before_reading(self, two, tmp_path):
        (tmp_path / "board").mkdir()
        (tmp_path / "board" / "mine.txt").write_text("x")
        with pytest.raises(HarnessError, match="is not empty"):
            build([tmp_path / "nowhere"], tmp_path / "board")

    @pytest.mark.slow
    def test_is_deterministic(self, two, tmp_path):
        for name in ("one", "two"):
            build(two, tmp_path / name, baseline="base")
        for file in manifest.read(tmp_path / "one").files:
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_row_without_an_ID_figure_is_ranked_by_the_others(tmp_path):
    tasks = {
        "a": {ID: [1, 0, 1, 1], OOD_R: [1, 0, 0, 0]},
        "b": {ID: [1, 0, 1, 0], OOD_R: [0, 0, 0, 0]},
        "best": {OOD_R: [1, 1, 1, 1]},
        "unscored": {ID: [None] * 4, OOD_R: [1, 1, 0, 0]},
    }
    lines = summarize(load([scores_folder(tmp_path / n, n, some) for n, some in tasks.items()])).lines
    assert [(line.rank.rank, line.rank.of) for line in lines] == [(3, 4), (4, 4), (1, 4), (2, 4)]
    assert [line.front is None for line in lines] == [False, False, True, True]
    assert lines[0].front == (True, 1.0) or lines[0].front.on
    assert [line.retention is None for line in lines] == [False, False, True, True]


@pytest.mark.parametrize("baseline", ["base", None])
def test_detectable_differences_are_those_of_single_rows(tmp_path, baseline):
    """The mean over seeds would have a smaller error than each seed."""
    places = {"base": (0, 50), "SFT (seed 0)": (0, 60), "SFT (seed 1)": (5, 75), "DPO": (20, 100)}
    rows = {name: [float(low <= n < high) for n in range(100)] for name, (low, high) in places.items()}
    folders = [scores_folder(tmp_path / str(n), name, {ID: rows[name]}) for n, name in enumerate(rows)]
    (found,) = summarize(load(folders, baseline=baseline)).detectable
    gaps = [np.subtract(rows[name], rows["base"]) for name in rows if name != "base"]
    error = np.median([gap.std(ddof=1) / 10 for gap in gaps])
    expected = stats.detectable(error) if baseline else stats.unpaired(0.65, 100)
    assert (found.difference, found.paired) == (pytest.approx(expected), baseline is not None)


@pytest.mark.parametrize(
    ("own", "ood"),
    [
        ([[1, 1, 1, 1], [1, 0, 0, 0]], [[1, 1, 0, 0], [1, 1, 1, 0]]),  # the mean of the ratios is 1.75
        ([[1, 1, 1, 1], [0, 0, 0, 0]], [[1, 1, 0, 0], [1, 1, 1, 0]]),  # one seed's ratio has no value
        ([[1, 1, 0, 0], [1, 1, 0, None]], [[1, 1, 1, None], [1, None, 0, 0]]),  # not scored by one seed
    ],
)
def test_figures_of_seeds_follow_from_the_accuracies_on_the_board(own, ood, tmp_path):
    folders = [
        scores_folder(tmp_path / f"{n}", f"SFT (seed {n})", {ID: own[n], OOD_R: ood[n]}) for n in range(2)
    ]
    # As accurate as the seeds on what all of them have scored.
    known = [[value for value in zip(*side, strict=True) if None not in value] for side in (own, ood)]
    means = [sum(map(sum, side)) / len(side) / 2 for side in known]
    folders.append(scores_folder(tmp_path / "same", "same", {ID: [means[0]] * 4, OOD_R: [means[1]] * 4}))
    summary = summarize(load(folders))
    line = next(line for line in summary.lines if line.name == "SFT")
    shown = [entry.accuracy.value for entry in line.entries if entry is not None]
    assert shown[:2] == pytest.approx(means)
    assert line.retention.value == pytest.approx(means[1] / means[0])
    assert line.worst.accuracy == pytest.approx(min(means))
    assert line.rank.rank == 1 and line.front.on
    assert [one.p for one in summary.comparisons if one.other == "SFT"] == pytest.approx([1.0] * 3)

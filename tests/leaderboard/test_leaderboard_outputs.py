"""LaTeX, CSV, Parquet and plots of a study; the options of the command line."""

import csv
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace as N

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import Options, build, load, schema, summarize
from dcsft_harness.leaderboard.board import step_of
from dcsft_harness.leaderboard.compare import read_labels
from dcsft_harness.leaderboard.report import plots
from dcsft_harness.leaderboard.report.plots import curves
from dcsft_harness.leaderboard.report.table import escape, latex, p_text, report
from dcsft_harness.leaderboard.stats import Estimate
from dcsft_harness.leaderboard.summary import Quoted, published
from dcsft_harness.records import Label, write_table
from dcsft_harness.stages import STAGES
from tests.fixtures.lmms_eval_logs import line, log_folder
from tests.fixtures.study import adapter, answers, curated, labels, study
from tests.leaderboard.test_leaderboard import ID, OOD_A, OOD_R, scores_folder
from tests.leaderboard.test_leaderboard_names import HOSTILE

SPECIALS = [
    "a & b",
    "50 %",
    "#1",
    "x_y",
    "{",
    "}",
    "\\end{tabular}",
    "~",
    "^",
    "$x$",
    "[1em]",
    "*",
    "--",
    "<>|",
    "?`!`",
]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """The board of a study with everything on it."""
    folder = tmp_path_factory.mktemp("study")
    results = study(folder)
    options = Options(baseline="cold start", published=True, labels=[labels(folder / "labels")])
    return build(results, folder / "board", options=options), folder / "board"


def read(folder, name="leaderboard.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def lines_of(folder, name):
    return list(csv.DictReader(io.StringIO((folder / name).read_text(encoding="utf-8"))))


class TestStudy:
    def test_json_is_valid_and_complete(self, board):
        found = read(board[1])
        jsonschema.Draft202012Validator(schema()).validate(found)
        rows = {row["name"]: row for row in found["rows"]}
        assert rows["GRPO"]["kind"] == "seeds" and len(rows["GRPO"]["members"]) == 3
        assert rows["GRPO (seed 1)"]["group"] == "GRPO" and rows["GRPO (seed 1)"]["rank"] is None
        assert rows["GRPO"]["cost"]["seconds"] == 902
        assert rows["GRPO"]["cells"][0]["seed_deviation"] > 0
        assert rows["SFT"]["provenance"][0]["training"]["mix"] == {"easy": 40, "medium": 40, "hard": 20}
        assert set(rows["SFT"]["by_difficulty"]) == {"easy", "medium", "hard"}
        assert rows["SFT"]["by_difficulty"]["easy"]["n"] == 80
        assert [plot["title"] for plot in found["plots"]] == [
            "In and out of distribution",
            "Accuracy by difficulty",
            "What was trained on",
            "Performance over steps",
            "Hard items in training",
            "Gradient norms",
            "Cost against accuracy",
        ]

    def test_a_checkpoint_inside_a_run_has_the_costs_up_to_its_step(self, board):
        rows = {row["name"]: row for row in read(board[1])["rows"]}
        assert rows["SFT-EM @10"]["cost"] == {"steps": 10, "seconds": pytest.approx(55 * 10 / 42)}
        training = rows["SFT-EM @10"]["provenance"][0]["training"]
        assert training["folder"] == rows["SFT-EM"]["provenance"][0]["training"]["folder"]
        assert training["steps_logged"] == 10

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("SFT", "SFT"),
            ("x" * 32, "x" * 32),
            ("Qwen2.5-VL-3B-Instruct + sft-em-lr1e-5-r16", "Qwen2.5-VL-3B-In…t-em-lr1e-5-r16"),
            ("Qwen2.5-VL-3B-Instruct + sft-em-lr1e-5-r32", "Qwen2.5-VL-3B-In…t-em-lr1e-5-r32"),
        ],
    )
    def test_a_long_name_is_shortened_in_the_middle(self, name, shown):
        assert plots.label(name) == shown and len(shown) <= 32

    def test_a_curve_is_named_after_its_final_row_and_ends_with_it(self, tmp_path):
        data, made = curated(tmp_path / "set", 50, 50, 0), []
        for seed in (0, 1):
            run = adapter(tmp_path / f"run-{seed}", data, steps=40, checkpoints=(10,) if seed == 0 else ())
            scored = {f"SFT (seed {seed})": run}
            if seed == 0:
                scored["SFT at step 10 (seed 0)"] = run / "checkpoint-10"
            for name, folder in scored.items():
                place = tmp_path / f"scores {name}"
                made.append(scores_folder(place, name, {ID: [1, 0] * 9}, inputs={"adapter": folder}))
        axes = Figure().add_subplot()
        assert plots.performance_over_steps(summarize(load(made)), axes)
        (curve,) = axes.containers
        assert curve.get_label() == "SFT (seed 0), ID"
        assert list(curve.lines[0].get_xdata()) == [10, 40]

    def test_seeds_share_one_curve_of_their_mean_and_range(self, tmp_path):
        """The third seed has an extra checkpoint that the others lack: it keeps its own curve."""
        data, made = curated(tmp_path / "set", 50, 50, 0), []
        right = {10: (9, 11, 10), 20: (12, 12, 15), 40: (16, 14, 18)}
        for seed in range(3):
            run = adapter(tmp_path / f"run-{seed}", data, steps=40, checkpoints=(10, 20, 30))
            for step, counts in right.items():
                at = "" if step == 40 else f" at step {step}"
                folder = run if step == 40 else run / f"checkpoint-{step}"
                scores = {task: [1] * counts[seed] + [0] * (20 - counts[seed]) for task in (ID, OOD_R)}
                name = f"SFT{at} (seed {seed})"
                made.append(scores_folder(tmp_path / name, name, scores, inputs={"adapter": folder}))
        more = {"adapter": tmp_path / "run-2" / "checkpoint-30"}
        name = "SFT at step 30 (seed 2)"
        made.append(scores_folder(tmp_path / name, name, {ID: [1] * 20, OOD_R: [1] * 20}, inputs=more))
        summary = summarize(load(made))
        seeds, last = curves(summary)
        assert (seeds.name, seeds.seeds, last.name, last.seeds) == ("SFT", 3, "SFT (seed 2)", 1)
        expected = [(s, sum(c) / 60, min(c) / 20, max(c) / 20) for s, c in right.items()]
        assert np.array(seeds.points["ood"]) == pytest.approx(np.array(expected))
        assert [point.step for point in last.points["id"]] == [10, 20, 30, 40]
        axes = Figure().add_subplot()
        assert plots.performance_over_steps(summary, axes)
        drawn = [line for line in axes.lines if line.get_label() == "SFT (3 seeds), OOD"]
        assert list(drawn[0].get_ydata()) == pytest.approx([100 * value for _, value, _, _ in expected])
        heights = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((45, 90))

    def test_seeds_of_separate_runs_per_step_make_no_curve(self, tmp_path):
        data, made = curated(tmp_path / "set", 50, 50, 0), []
        for seed in range(4):
            steps = 10 if seed < 2 else 40
            run = adapter(tmp_path / f"run-{seed}", data, steps=steps)
            name = f"SFT of {steps} steps (seed {seed})"
            scores = {ID: [1, 0] * 9}
            made.append(scores_folder(tmp_path / name, name, scores, inputs={"adapter": run}))
        assert curves(summarize(load(made))) == []

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("step-90", ("run", 90)),
            ("step 100", ("run", 100)),
            ("sft/checkpoint-90", ("sft", 90)),
            ("VL-3B + sft/checkpoint-20", ("VL-3B + sft", 20)),
            ("SFT @10", ("SFT", 10)),
            ("SFT at step 20 (seed 1)", ("SFT (seed 1)", 20)),
            ("global_step_40", ("run", 40)),
            ("SFT (seed 1)", None),
            ("Qwen2.5-VL-3B", None),
            ("footstep 5", None),
        ],
    )
    def test_the_step_is_parsed_from_a_name(self, name, found):
        assert step_of(name) == found

    def test_checkpoints_of_one_run_are_one_path(self, tmp_path):
        rng = np.random.default_rng(0)
        half = {ID: answers(rng, 40, 0.5), OOD_R: answers(rng, 40, 0.5)}
        made = [scores_folder(tmp_path / "base", "base", half)]
        for step in range(10, 370, 10):
            tasks = {ID: answers(rng, 40, 0.7), OOD_R: answers(rng, 40, 0.6)}
            made.append(scores_folder(tmp_path / f"s{step}", f"tuned/step-{step}", tasks))
        summary = summarize(load(made, "base"))
        (curve,) = curves(summary)
        assert curve.name == "tuned" and [p.step for p in curve.points["ood"]] == list(range(10, 370, 10))
        axes = Figure().add_subplot()
        assert plots.id_against_ood(summary, axes)
        _, labels = axes.get_legend_handles_labels()
        assert "tuned, steps 10 to 360" in labels and "base" in labels and len(labels) <= 3
        (path,) = [one for one in axes.get_lines() if one.get_label().startswith("tuned")]
        assert len(path.get_xdata()) == 36
        axes = Figure().add_subplot()
        assert plots.performance_over_steps(summary, axes)
        _, labels = axes.get_legend_handles_labels()
        assert labels == ["tuned, OOD", "base, OOD", "tuned, ID", "base, ID"]

    def test_tasks_without_a_distribution_have_curves(self, tmp_path):
        made = [scores_folder(tmp_path / f"{n}", f"step-{n}", {"other": [1, 0, n > 1]}) for n in (1, 2, 3)]
        (curve,) = curves(summarize(load(made)))
        assert list(curve.points) == ["other"] and len(curve.points["other"]) == 3

    @pytest.mark.parametrize(
        ("plot", "count", "title"),
        [
            (plots.accuracy_by_difficulty, 13, "first 12 of 13 rows"),
            (plots.label_mix, 25, "first 24 of 25 rows"),
            (plots.performance_over_steps, 13, "first 12 of 13 runs, first 5 of 6 tasks"),
            (plots.gradient_norms, 13, "first 12 of 13 rows"),
            (plots.over_k, 13, "first 12 of 13 rows"),
            (plots.over_tokens, 12, ""),
            (plots.gradient_norms, 12, ""),
        ],
    )
    def test_a_figure_names_what_it_leaves_out_and_all_curves_look_different(
        self, monkeypatch, plot, count, title
    ):
        half = Estimate(0.5, 0.4, 0.6, 9)
        lines, budgets, runs = [], [], []
        for number in range(count):
            history = [{"step": step, "grad_norm": 1.0} for step in (1, 2)]
            training = N(folder=Path(f"{number}"), history=history, ledger={"steps": 2}, mix={"easy": 1})
            row = N(name=f"{number}", provenance=[N(training=training)])
            kinds = {"easy": half}
            lines.append(
                N(
                    name=row.name,
                    rows=[row],
                    group=None,
                    by_difficulty=kinds,
                    is_group=False,
                    is_baseline=False,
                )
            )
            points = [N(metric="avg", k=k, cap=None, tokens=k, accuracy=half) for k in (1, 2)]
            budgets.append(N(row=row.name, over="x", points=points))
            runs.append(
                plots.Curve(row.name, 1, {"x": [plots.Point(step, 0.5, 0.4, 0.6) for step in (1, 2)]})
            )
        columns = [N(label=f"task {n}") for n in range(6)]
        summary = N(lines=lines, budgets=budgets, columns=columns, overall=lambda _: None)
        monkeypatch.setattr(plots, "curves", lambda _: runs)
        axes = Figure().add_subplot()
        assert plot(summary, axes)
        assert axes.get_title("right") == title
        if plot is not plots.accuracy_by_difficulty:
            looks = [
                (one.get_color(), one.get_linestyle(), one.get_marker())
                for one in axes.lines
                if one.get_linestyle() != "None"
            ]
            assert len(set(looks)) == len(looks)

    def test_gradient_norms_of_seeds_are_averaged_into_one_curve(self, tmp_path):
        data, made = curated(tmp_path / "set", 50, 50, 0), []
        for seed in range(3):
            run = adapter(tmp_path / f"run-{seed}", data, steps=4, scale=1 + seed)
            name = f"SFT (seed {seed})"
            made.append(scores_folder(tmp_path / name, name, {ID: [1, 0] * 9}, inputs={"adapter": run}))
        axes = Figure().add_subplot()
        assert plots.gradient_norms(summarize(load(made)), axes)
        (curve,) = axes.lines
        logs = [(tmp_path / f"run-{seed}" / "training_log.jsonl").read_text() for seed in range(3)]
        norms = [[json.loads(line)["grad_norm"] for line in log.splitlines()] for log in logs]
        assert curve.get_label() == "SFT (3 seeds)" and list(curve.get_xdata()) == [1, 2, 3, 4]
        assert list(curve.get_ydata()) == pytest.approx(np.mean(norms, axis=0))

    @pytest.mark.usefixtures("drawn")
    def test_plots_are_not_blank(self, board, tmp_path):
        made = plots.draw(board[0].summary, tmp_path)
        assert [files for _, files in made] == [plot["files"] for plot in read(board[1])["plots"]]
        for _, files in made:
            png, svg = (tmp_path / file for file in files)
            with Image.open(png) as picture:
                assert picture.size == (1036, 662)
                # More than a blank sheet: axes and colored marks.
                assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
            assert ElementTree.parse(svg).getroot().tag.endswith("svg")

    def test_the_items_table_holds_every_item_of_every_row(self, board):
        table = pq.read_table(board[1] / "items.parquet")
        assert table.num_rows == 9 * 3 * 120 == read(board[1])["items"]["rows"]
        frame = table.to_pandas()
        means = frame.groupby(["row", "task"], observed=True)["score"].mean()
        rows = {row["name"]: row for row in read(board[1])["rows"]}
        assert means["SFT", ID] == pytest.approx(rows["SFT"]["cells"][0]["accuracy"]["value"])
        assert frame[frame.task == OOD_A].difficulty.isna().all()
        assert frame[frame.task == ID].difficulty.value_counts().to_dict() == {
            k: 360 for k in ("easy", "medium", "hard")
        }
        assert set(frame[frame.task == OOD_R].distribution) == {"ood"}

    def test_csv_files_agree_with_the_json(self, board):
        found = read(board[1])
        tested = lines_of(board[1], "comparisons.csv")
        assert len(tested) == len(found["comparisons"])
        one, told = tested[0], found["comparisons"][0]
        assert (one["row"], one["other"]) == tuple(
            found["rows"][told[side]]["name"] for side in ("row", "other")
        )
        assert float(one["p_holm"]) == told["p_holm"]
        standing = {row["row"]: row for row in lines_of(board[1], "standings.csv")}
        assert standing["GRPO"]["rank"] == "1" and standing["GRPO"]["seeds"] == "3"
        assert float(standing["SFT"]["seconds"]) == 60

    def test_the_report_has_its_sections(self, board):
        text = (board[1] / "leaderboard.md").read_text()
        for title in (
            "Standing",
            "Against cold start",
            "Pairs",
            "What a task can show",
            "Quoted figures",
            "Plots",
        ):
            assert f"## {title}\n" in text
        assert "its printed mean 62.10 does not follow from its cells, which give 61.10" in text
        assert text.count("(!)") == 2

    def test_each_family_is_corrected_as_in_statsmodels(self, board):
        multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
        found = read(board[1])["comparisons"]
        for family in {one["family"] for one in found}:
            some = [one for one in found if one["family"] == family and one["p"] is not None]
            theirs = multipletests([one["p"] for one in some], method="holm")[1]
            assert [one["p_holm"] for one in some] == pytest.approx(theirs, abs=1e-12)

    def test_quoted_rows_are_never_tested(self, board):
        found = read(board[1])
        assert {row["name"] for row in found["rows"]} & {"SFT-M"} == set()
        assert all(isinstance(one["row"], int) for one in found["comparisons"])
        families = {one["family"] for one in found["comparisons"]}
        assert families == {"baseline", "baseline by task", "pairs", "pairs by task"}


@pytest.mark.parametrize(
    ("rows", "baseline", "said", "unsaid"),
    [
        ("abc", "a", ["all pairs, those with the baseline included (", "(paired: from"], ["unrelated rows"]),
        ("abc", None, ["over all pairs (", "(unrelated rows: of"], ["paired: from", "baseline"]),
        ("a", None, ["(unrelated rows: of"], ["paired: from", "baseline"]),
    ],
)
def test_the_notes_are_about_the_tables_above_them(tmp_path, rows, baseline, said, unsaid):
    rng = np.random.default_rng(1)
    folders = [scores_folder(tmp_path / name, name, {ID: answers(rng, 40, 0.5)}) for name in rows]
    text = report(summarize(load(folders, baseline)))
    assert [part for part in said if part not in text] == []
    assert [part for part in unsaid if part in text] == []


@pytest.mark.parametrize(
    ("rows", "best", "second"),
    [
        # The seed with the luckiest draw is not the best row.
        ({"SFT (seed 1)": 1, "SFT (seed 2)": 4, "GRPO": 3}, "GRPO", "SFT (2 seeds)"),
        ({"SFT (seed 1)": 3, "SFT (seed 2)": 4, "GRPO": 2}, "SFT (2 seeds)", "GRPO"),
        ({"SFT (seed 1)": 4, "GRPO": 2}, "SFT (seed 1)", "GRPO"),  # nothing combines it
        ({"SFT (seed 1)": 1, "SFT (seed 2)": 3}, None, None),
    ],
)
def test_the_best_of_a_column_is_a_row_and_no_seed_that_another_combines(tmp_path, rows, best, second):
    folders = [
        scores_folder(tmp_path / str(n), name, {ID: [1.0] * right + [0.0] * (4 - right)})
        for n, (name, right) in enumerate(rows.items())
    ]
    summary = summarize(load(folders))
    bold = [row for row in report(summary).splitlines() if "**" in row]
    assert [row.split("|")[1].strip() for row in bold] == [best] * (best is not None)
    marked = {mark: [] for mark in (r"\textbf", r"\underline")}
    for row in latex(summary).splitlines():
        for mark, names in marked.items():
            names += [row.partition(" & ")[0]] * (mark in row)
    assert list(marked.values()) == [[best] * (best is not None), [second] * (second is not None)]
    said = "single seeds are not marked" in latex(summary)
    assert said == ("the best of each column in bold (single seeds aside)" in report(summary))
    assert said == any(line.is_group for line in summary.lines)


class TestLatex:
    def test_marks_best_and_second_best_and_shades_ood(self, tmp_path):
        folders = [
            scores_folder(tmp_path / n, n, {ID: [1] * k + [0] * (4 - k), OOD_R: [1, 0, 0, 0]})
            for n, k in (("a", 4), ("b", 3), ("c", 1), ("d", 4))
        ]
        text = latex(summarize(load(folders)))
        assert r"\begin{tabular}{lr>{\columncolor{black!8}}r>{\columncolor{black!8}}r}" in text
        assert "a & \\textbf{100.00} & 25.00 & 25.00 \\\\" in text
        assert "b & \\underline{75.00} &" in text and "c & 25.00 &" in text and "d & \\textbf{100.00}" in text
        assert [mark for mark in ("toprule", "midrule", "bottomrule") if text.count(mark) == 1] == [
            "toprule",
            "midrule",
            "bottomrule",
        ]

    def test_quoted_rows_are_separate_and_have_their_source(self, tmp_path):
        tasks = {"dcsft_imagenet": [1, 0], "dcsft_imagenet_r": [1, 1], "dcsft_imagenet_a": [0, 0]}
        notes = {task: {"distribution": "ood"} for task in list(tasks)[1:]}
        folder = scores_folder(tmp_path / "a", "a", tasks, notes=notes)
        text = latex(summarize(load([folder]), quoted=published()))
        before, after = text.split("\\midrule\n")[1:]
        assert "quoted" not in before and after.count("% quoted, not measured here: Lu et al.") == 12
        assert r"\textit{SFT{-}EM}\textsuperscript{q}" in after and r"\textit{89.02}" in after
        # The board's OOD mean covers two tasks, the published one four.
        assert "62.10" not in text

    @pytest.mark.few(6)
    @pytest.mark.parametrize("name", [*HOSTILE, *SPECIALS])
    def test_a_name_is_text_whatever_it_contains(self, tmp_path, name):
        folders = [scores_folder(tmp_path / n, n if n == "b" else name, {OOD_R: [1, 0]}) for n in "ab"]
        text = latex(summarize(load(folders)))
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(rows) == 3 and {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {2}
        assert text.count(r"\end{tabular}") == 1

    @given(st.text())
    def test_special_characters_are_escaped(self, name):
        shown = escape(name)
        shown = re.sub(r"\\dcsftletter\{[0-9A-F]{4,6}\}\{[^\x00-\x9f]\}", "", shown)
        bare = re.sub(r"\\text[a-z]+\{\}|\\[{}$&#_%]|\{[-?!',\[\]*]\}", "", shown)
        assert not re.search(r"[\\{}$&#_%~^<>|\"`\[\]*]|--|\n", bare)

    @pytest.mark.slow
    @pytest.mark.parametrize("engine", ["pdflatex", "xelatex", "lualatex"])
    def test_compiles(self, tmp_path, engine):
        if shutil.which(engine) is None:
            pytest.skip(f"no {engine} at hand")
        odd = ["日本語 ☃ \U0001f600 e\u0301", "ħ ſ Łódź naïve “x” – €", "a" * 90, r"^^41 \write18{touch ran}"]
        names = list(dict.fromkeys([*HOSTILE, *SPECIALS, *odd]))
        folders = [
            scores_folder(tmp_path / str(n), name, {ID: [1, 0], OOD_R: [n % 2, 0]})
            for n, name in enumerate(names)
        ]
        (tmp_path / "table.tex").write_text(latex(summarize(load(folders), pairs=0)), encoding="utf-8")
        packages = r"\usepackage{booktabs}\usepackage[table]{xcolor}\usepackage[T1]{fontenc}"
        text = rf"\documentclass{{article}}{packages}\begin{{document}}\input{{table}}\end{{document}}"
        (tmp_path / "a.tex").write_text(text, encoding="utf-8")
        before = set(tmp_path.iterdir())
        command = [engine, "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
        made = {path.suffix for path in set(tmp_path.iterdir()) - before}
        assert made <= {".pdf", ".log", ".aux"}


class TestQuoted:
    def one(self, mean, cells=(0.4958, 0.3914, 0.7215, 0.6960)):
        named = {f"t{i}": cell for i, cell in enumerate(cells)}
        return Quoted("x", "m", "s", "src", "read", named, tuple(named), mean)

    def test_a_mean_agrees_with_its_cells_up_to_rounding(self):
        assert self.one(0.5762).follows is True
        # 57.6175: each cell may be off by half a unit, and so may the mean.
        assert self.one(0.5761).follows is True
        assert self.one(0.5763).follows is False
        assert self.one(None).follows is None
        assert Quoted("x", "m", "s", "src", "read", {"t0": 0.5}, ("t0", "t1"), 0.5).follows is None

    def test_figures_of_the_paper_agree_but_for_one_row(self):
        wrong = [(one.name, one.model) for one in published() if one.follows is False]
        assert wrong == [("SFT-EM", "Qwen2.5-VL-7B")]
        assert all(0 < cell < 1 for one in published() for cell in one.cells.values())


class TestLabels:
    def test_contradictory_labels_are_refused(self, tmp_path):
        for name, kind in (("a", "easy"), ("b", "hard")):
            with manifest.writing("labels", tmp_path / name, {}) as draft:
                row = Label("i", 8, 8, 1.0, 0.0, 1.0, kind, "t")
                write_table(draft.folder / "labels.parquet", Label, [row])
        with pytest.raises(HarnessError, match="item i is hard, and easy in other labels"):
            read_labels([tmp_path / "a", tmp_path / "b"])
        assert read_labels([tmp_path / "a", tmp_path / "a"]) == {"i": "easy"}

    def test_labels_of_other_items_are_refused(self, tmp_path):
        with manifest.writing("labels", tmp_path / "pool", {}) as draft:
            write_table(
                draft.folder / "labels.parquet", Label, [Label("i", 8, 8, 1.0, 0.0, 1.0, "easy", "t")]
            )
        scores = scores_folder(tmp_path / "scores", "scores", {ID: [1, 0]})
        with pytest.raises(HarnessError, match="pool: no evaluated item has a label there"):
            build([scores], tmp_path / "board", options=Options(labels=[tmp_path / "pool"]))
        assert not (tmp_path / "board").exists()


class TestHostileBoards:
    @pytest.mark.usefixtures("drawn")
    @pytest.mark.few(3)
    @pytest.mark.parametrize("name", HOSTILE)
    def test_plots_and_files_treat_row_names_as_text(self, tmp_path, name):
        folders = [
            scores_folder(tmp_path / n, n if n == "b" else name, {ID: [1, 0, 1], OOD_R: [1, 0, 0]})
            for n in "ab"
        ]
        build(folders, tmp_path / "board", baseline=name)
        svg = (tmp_path / "board" / "plots" / "id_ood.svg").read_text(encoding="utf-8")
        assert "<script" not in svg and "javascript:" not in svg.lower()
        ElementTree.fromstring(svg)
        jsonschema.Draft202012Validator(schema()).validate(read(tmp_path / "board"))
        for file in ("leaderboard.csv", "comparisons.csv", "standings.csv"):
            cells = [cell for row in csv.reader((tmp_path / "board" / file).open()) for cell in row]
            assert not any(re.match(r"\s*[=+@]|\s*-[^\d.]", cell) for cell in cells)

    def test_items_may_hold_a_megabyte_response_and_markup(self, tmp_path):
        big = "<script>" + "x" * (1 << 20)
        folder = log_folder(tmp_path / "o", {ID: [line(0, 1.0, filtered_resps=big), line(1, 0.0)]})
        build([folder], tmp_path / "board")
        table = pq.read_table(tmp_path / "board" / "items.parquet")
        assert table["response"].to_pylist()[0] == big


class TestApart:
    def test_rows_apart_and_left_out_are_in_every_format(self, tmp_path):
        good = scores_folder(tmp_path / "a", "a", {ID: [1, 0]})
        other = scores_folder(tmp_path / "b", "b", {ID: [1, 1]}, notes={ID: {"version": 2}})
        (tmp_path / "nowhere").mkdir()
        built = build(
            [good, other, tmp_path / "nowhere"], tmp_path / "board", options=Options(strict=False, apart=True)
        )
        found = read(tmp_path / "board")
        jsonschema.Draft202012Validator(schema()).validate(found)
        assert [row["name"] for row in found["rows"]] == ["a"]
        assert [row["name"] for row in found["apart"][0]["board"]["rows"]] == ["b"]
        assert found["left_out"][0]["folder"].endswith("nowhere")
        text = report(built.summary)
        # The command line names folders as given; the board, which may be published, by their last name.
        assert str(tmp_path) in built.board.left_out[0].reason
        assert (
            str(tmp_path) not in text + json.dumps(found) + (tmp_path / "board" / "manifest.json").read_text()
        )
        assert "## Apart" in text and "task version 1 and 2" in text and "## Left out" in text
        assert pq.read_table(tmp_path / "board" / "items.parquet")["board"].to_pylist() == [0, 0, 1, 1]


class TestCommand:
    def run(self, *arguments):
        return main(["leaderboard", "build", *map(str, arguments)])

    def test_a_bad_folder_is_named_and_is_an_error_with_strict(self, tmp_path, capsys):
        good = scores_folder(tmp_path / "a", "a", {ID: [1, 0]})
        bad = scores_folder(tmp_path / "bad", "bad", {ID: [1, 50.0]})
        also = scores_folder(tmp_path / "b", "b", {ID: [1, 1]})
        assert self.run(good, also, bad, "--output", tmp_path / "board") == 0
        told = capsys.readouterr()
        assert "1 left out" in told.err and "1 of 3 left out: 1 damaged or incomplete" in told.err
        assert "has the score 50.0" in told.err and "bad" not in told.out
        assert manifest.read(tmp_path / "board").notes["left_out"]
        assert self.run(good, bad, "--strict", "--output", tmp_path / "strict") == 1
        assert not (tmp_path / "strict").exists()

    def test_the_table_is_markdown_in_a_file_and_drawn_on_a_terminal(self, tmp_path, capsys):
        rows = [
            scores_folder(tmp_path / n, f"{n} | *x*\x1b[1m", {ID: s})
            for n, s in (("a", [1, 0]), ("b", [1, 1]))
        ]
        assert self.run(*rows, "--output", tmp_path / "plain", "--no-page") == 0
        said = capsys.readouterr().out
        assert self.run(*rows, "--output", tmp_path / "md", "--format", "markdown", "--no-page") == 0
        assert capsys.readouterr().out == said and said.count("|--") >= 1
        assert self.run(*rows, "--output", tmp_path / "drawn", "--format", "table", "--no-page") == 0
        drawn = capsys.readouterr().out
        assert "|:" not in drawn and "100.00" in drawn and "**" not in drawn
        assert "a | *x*\\x1b[1m" in drawn and "\x1b[1m" not in drawn

    def test_metrics_and_distributions_of_external_tasks_can_be_given(self, tmp_path, capsys):
        def other(n, score):
            return {"doc_id": n, "target": "a", "filtered_resps": ["a"], "f1": score, "em": 0.0, "input": "q"}

        folder = log_folder(tmp_path / "o", {"vqa": [other(0, 1.0), other(1, 0.5)]})
        options = ("--metric", "vqa=f1", "--ood", "vqa", "--no-plots", "--no-items")
        assert self.run(folder, *options, "--output", tmp_path / "board") == 0
        assert "OOD: vqa" in capsys.readouterr().out
        assert not (tmp_path / "board" / "plots").exists() and read(tmp_path / "board")["items"] is None
        assert self.run(folder, "--metric", "vqa", "--output", tmp_path / "x") == 1
        assert "--metric vqa is not of the form TASK=NAME" in capsys.readouterr().err
        assert self.run(folder, "--id", "vqa", "--ood", "vqa", "--output", tmp_path / "x") == 1
        assert self.run(folder, "--ood", "vqq", "--metric", "vqa=f1", "--output", tmp_path / "x") == 1
        assert "unknown task 'vqq'. Did you mean vqa?" in capsys.readouterr().err


P_VALUES = [
    (None, ""),
    (1e-30, "< 0.001"),
    (0.0009996, "< 0.001"),
    (0.001, "0.001"),
    (0.0123, "0.012"),
    (0.0496, "0.0496"),
    (0.04999, "0.04999"),
    (0.05, "0.050"),
    (0.0502, "0.0502"),
    (0.0625, "0.062"),  # McNemar's are sums of powers of 1/2: exact halves, rounded to the even digit
    (0.1875, "0.188"),
    (0.3926, "0.393"),
    (1.0, "1.000"),
]
"""p-values, and how the page and every table show them."""


@pytest.mark.parametrize(("value", "shown"), P_VALUES)
def test_a_rounded_p_value_stays_on_its_side_of_5_percent(value, shown):
    assert p_text(value) == shown


@pytest.mark.parametrize(
    ("samples", "kept", "said"), [("1", True, None), ("1", False, "rows"), ("0", False, None)]
)
def test_samples_that_cannot_be_shown_are_reported(tmp_path, capsys, samples, kept, said):
    Image.new("RGB", (28, 28)).save(tmp_path / "0.png")
    row = {"question": "What?", "answer": "goose", "image": "0.png"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    for name in ("a", "b"):
        STAGES["evaluate"](
            tmp_path / name,
            model="dcsft_stub",
            model_args="default=goose",
            data=tmp_path / "rows.jsonl",
            scorer="exact_word",
        )
    if not kept:
        (tmp_path / "0.png").unlink()
    folders = [str(tmp_path / name) for name in ("a", "b")]
    output = ["--output", str(tmp_path / "board")]
    assert main(["leaderboard", "build", *folders, "--samples", samples, *output]) == 0
    told = capsys.readouterr().err
    assert (f"dcsft: samples of {said}: " in told) if said else ("samples of" not in told)

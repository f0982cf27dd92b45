"""Boards of K responses per item: columns, refusals, tests, budgets, the items' table and the page."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest

from dcsft_harness import evaluation, lmms, records
from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import Options, build, compare
from dcsft_harness.leaderboard.board import Board, Cell, Result, Row, Task
from dcsft_harness.leaderboard.report import schema
from dcsft_harness.leaderboard.report.plots import draw
from dcsft_harness.leaderboard.report.table import report
from dcsft_harness.leaderboard.sampled import Draws, crossing, curve, expanded
from dcsft_harness.models.stub import DcsftStub, Question
from dcsft_harness.sampling import SamplingConfig
from dcsft_harness.scoring import at_k
from tests.fixtures import forked
from tests.fixtures.page_unpacking import content, numbers, scores, texts

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

ID, OOD = "dcsft_digits", "dcsft_digits_r"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def teller(golds, share, seed):
    """Gives the right word in a share of its responses, otherwise another or none; longer when right."""

    def answer(question):
        rng = np.random.default_rng((seed, question.doc_id, question.sample_index, len(question.task)))
        if rng.random() < share:
            return golds[question.task][question.doc_id]
        return rng.choice([*WORDS, *[""] * 6])

    return answer


@pytest.fixture(scope="module")
def golds():
    tasks = lmms.open_tasks([ID, OOD])
    return {name: [str(doc["target"]) for doc in task.eval_docs_no_media] for name, task in tasks.items()}


def sampled(folder, name, golds, share, samples=6, seed=0, limit=24, **config):
    options = SamplingConfig(samples=samples, limit=limit, **config)
    model = DcsftStub(answers=teller(golds, share, seed), batch_size=8)
    settings = {"model": "dcsft_stub", "model_args": f"pretrained={name}"}
    evaluation.evaluate(model, lmms.open_tasks([ID, OOD]), folder, name, settings, options)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, golds):
    """Two rows with six responses per item, the greedy results of one of them, and one with another K."""
    folder = tmp_path_factory.mktemp("samples")
    sampled(folder / "base", "base", golds, 0.3)
    sampled(folder / "tuned", "tuned", golds, 0.7, seed=1)
    sampled(folder / "four", "four", golds, 0.5, samples=4)
    sampled(folder / "cold", "cold", golds, 0.5, temperature=0.3)
    model = DcsftStub(answers=teller(golds, 0.9, 5))
    tasks = lmms.open_tasks([ID, OOD])
    settings = {"model": "dcsft_stub", "model_args": "pretrained=tuned"}
    evaluation.evaluate(model, tasks, folder / "greedy", "tuned", settings, limit=24)
    return folder


@pytest.fixture(scope="module")
def built(place):
    folders = [place / "base", place / "tuned", place / "greedy"]
    return build(folders, place / "board", options=Options(baseline="base", at_k=4))


@pytest.fixture(scope="module")
def board(built, place):
    return place / "board"


def document(board):
    return json.loads((board / "leaderboard.json").read_text())


def test_every_metric_at_k_has_a_column_next_to_greedy(board):
    found = document(board)
    jsonschema.validate(found, schema())
    labels = [(one["label"], one["metric"]) for one in found["columns"]]
    assert labels == [
        (ID, None),
        *((f"{ID} {metric}@4", f"{metric}@4") for metric in ("avg", "maj", "pass")),
        (OOD, None),
        ("OOD mean", None),
        *(
            (f"{name} {metric}@4", f"{metric}@4")
            for metric in ("avg", "maj", "pass")
            for name in (OOD, "OOD mean")
        ),
    ]
    # Greedy and sampled results of one name are one row; the other row has no greedy ones.
    rows = {one["name"]: one for one in found["rows"]}
    assert list(rows) == ["base", "tuned"]
    assert rows["base"]["cells"][0] is None and all(cell is not None for cell in rows["tuned"]["cells"])
    assert found["overall"] == {"id": 1, "ood": 7}  # so differences and ranks are by avg@4


def test_values_equal_those_of_the_metrics_module(place, board):
    found = document(board)
    rows = pq.read_table(place / "tuned" / evaluation.RESPONSES).to_pylist()
    items = list(dict.fromkeys(one["item_id"] for one in rows if one["task"] == ID))
    by_item = {item: [one for one in rows if one["item_id"] == item] for item in items}
    judged = np.array([[one["score"] for one in by_item[item]] for item in items])
    votes = np.array(
        [
            [
                -1 if one["vote"] is None else [o["vote"] for o in by_item[item]].index(one["vote"])
                for one in by_item[item]
            ]
            for item in items
        ]
    )
    means = at_k.metrics(judged, votes).means()
    cells = {one["label"]: n for n, one in enumerate(found["columns"])}
    tuned = next(row for row in found["rows"] if row["name"] == "tuned")
    for metric in ("avg", "maj", "pass"):
        value = tuned["cells"][cells[f"{ID} {metric}@4"]]["accuracy"]
        assert value["value"] == pytest.approx(means[metric][3])
        assert value["low"] < value["value"] < value["high"]


def test_differences_are_paired_and_corrected_per_metric(board):
    made = document(board)["comparisons"]
    families = {one["family"] for one in made}
    assert {"baseline avg@4", "baseline maj@4", "baseline pass@4", "pairs by task maj@4"} <= families
    main = [one for one in made if one["family"] == "baseline maj@4"]
    assert len(main) == 2 and all(one["p_holm"] >= one["p"] for one in main)
    text = (board / "leaderboard.md").read_text()
    assert f"{ID} maj@4" in text.replace("\\", "") and "OOD mean pass@4" in text


@pytest.mark.parametrize(
    ("folders", "at", "said"),
    [
        (["base", "four"], None, "has 6 responses per item, .*four 4: they cannot be compared"),
        (["base", "four"], 4, "cannot be compared: responses per item 6 and 4"),
        (["base", "cold"], 4, "cannot be compared: generation argument temperature 0.9 and 0.3"),
        (["greedy"], 8, r"--at-k 8 asks for more responses per item than .*greedy has \(1\)"),
        (["base"], 8, r"--at-k 8 asks for more responses per item than .*base has \(6\)"),
    ],
)
def test_incomparable_results_are_refused_in_one_sentence(place, tmp_path, folders, at, said):
    with pytest.raises(HarnessError, match=said):
        build([place / name for name in folders], tmp_path / "board", options=Options(at_k=at, strict=True))
    assert not (tmp_path / "board").exists()


def test_rows_may_be_sampled_with_different_seeds(place, tmp_path, golds):
    sampled(tmp_path / "other", "other", golds, 0.5, seed=3, **{})
    sampled(tmp_path / "seeded", "seeded", golds, 0.5, **{"seed": 3})
    built = build([place / "base", tmp_path / "other"], tmp_path / "board", options=Options(strict=True))
    assert [row.name for row in built.board.rows] == ["base", "other"]


def test_k_defaults_to_all_responses(place, tmp_path):
    built = build([place / "base"], tmp_path / "board", options=Options(strict=True))
    assert [task.metric for task in built.board.tasks] == ["avg@6", "maj@6", "pass@6"] * 2
    assert built.summary.ranked_by is not None


def test_the_items_table_has_every_metric(board):
    rows = pq.read_table(board / "items.parquet").to_pylist()
    tasks = {one["task"] for one in rows if one["row"] == "tuned"}
    assert {ID, f"{ID} avg@4", f"{ID} maj@4", f"{ID} pass@4"} <= tasks
    assert len(rows) == 24 * 2 * (3 + 3 + 1)


def test_the_page_has_all_responses_with_their_votes(place, board):
    data = board / "page" / "data"
    tasks = content((data / "board.js").read_text())["boards"][0]["tasks"]
    named = {one["name"]: at for at, one in enumerate(tasks)}
    avg = named[f"{ID} avg@4"]
    assert [tasks[named[f"{ID}{more}"]]["draws"] for more in ("", " maj@4", " pass@4")] == [None, avg, avg]
    items = content((data / f"b0t{avg}items.js").read_text())
    found = content((data / f"b0t{avg}d1.js").read_text())  # the second row: "tuned"
    assert found["samples"] == 6
    rows = pq.read_table(place / "tuned" / evaluation.RESPONSES).to_pylist()
    by_place = {(one["item_id"], one["sample_index"]): one for one in rows if one["task"] == ID}
    wanted = [by_place[item, index] for item in items["ids"] for index in range(6)]
    for name in ("response", "extracted", "vote"):
        assert texts(found[name]) == [one[name] for one in wanted]
    assert numbers(found["tokens"]) == [one["n_tokens"] for one in wanted]
    assert scores(found["scores"], 0, len(wanted)).tolist() == [one["score"] for one in wanted]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_browser_shows_every_response_and_its_vote(board):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = opened.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"file://{board}/page/index.html#view=samples&task={ID} maj@4&a=tuned".replace(" ", "%20"))
        page.wait_for_selector(".response .votes li")
        assert page.locator(".response details").count() == 6
        counted = [int(text.split()[0]) for text in page.locator(".response .votes li").all_inner_texts()]
        assert sum(counted) == 6
        assert errors == []
        opened.close()


class TestDamage:
    def test_a_changed_table_of_responses_is_refused(self, place, tmp_path, golds):
        folder = sampled(tmp_path / "out", "out", golds, 0.5, limit=4)
        path = folder / evaluation.RESPONSES
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(HarnessError, match="responses.parquet is truncated, damaged or changed"):
            build([folder], tmp_path / "board", options=Options(strict=True))

    def test_a_lost_response_is_refused(self, tmp_path, golds):
        folder = sampled(tmp_path / "out", "out", golds, 0.5, limit=4)
        table = pq.read_table(folder / evaluation.RESPONSES)
        pq.write_table(table.slice(1), folder / evaluation.RESPONSES)
        told = json.loads((folder / manifest.NAME).read_text())
        told["files"][evaluation.RESPONSES] = evaluation_hash(folder / evaluation.RESPONSES)
        (folder / manifest.NAME).write_text(json.dumps(told))
        with pytest.raises(HarnessError, match="23 responses to dcsft_digits, not 6 for each of 4 items"):
            build([folder], tmp_path / "board", options=Options(strict=True))


def evaluation_hash(path):
    from dcsft_harness.artifacts.disk import file_sha256

    return file_sha256(path)


class TestBudgets:
    def draws(self, share, seed, tokens=10, items=200, width=8):
        rng = np.random.default_rng(seed)
        chance = rng.beta(share * 2, (1 - share) * 2, items)
        votes = np.where(rng.random((items, width)) < chance[:, None], 0, rng.integers(1, 5, (items, width)))
        lengths = rng.integers(tokens // 2, tokens * 2, (items, width)).astype(float)
        return Draws((votes == 0).astype(float), votes, lengths)

    def test_tokens_grow_with_k_and_a_cap_truncates(self):
        one, codes = self.draws(0.6, 0), np.arange(200)
        found = curve([one], [codes])
        over_k = [point for point in found if point.metric == "pass" and point.cap is None]
        assert [point.k for point in over_k] == list(range(1, 9))
        assert over_k[3].tokens == pytest.approx(4 * one.tokens.mean())
        capped = [point for point in found if point.metric == "avg" and point.cap is not None]
        for point in capped:
            kept = one.tokens <= point.cap
            assert point.accuracy.value == pytest.approx((one.scores * kept).mean())
            assert point.tokens == pytest.approx(8 * np.minimum(one.tokens, point.cap).mean())
        assert capped[-1].cap == one.tokens.max()
        assert capped[-1].accuracy.value == pytest.approx(one.scores.mean())

    def test_a_truncated_response_has_no_vote(self):
        one = Draws(np.array([[1.0, 0.0, 0.0]]), np.array([[0, 1, 1]]), np.array([[3.0, 9.0, 9.0]]))
        assert one.metrics.values["maj"][0, 2] == 0.0
        assert one.cut(5).metrics.values["maj"][0, 2] == 1.0

    def test_curves_cross_where_they_were_made_to(self):
        """A row of short, even chances against one of long responses that more often have any right one."""
        rng, items, codes = np.random.default_rng(3), 2_000, np.arange(2_000)
        sure = (rng.random((items, 1)) < 0.6).repeat(16, axis=1)  # an item is always or never solved
        even = rng.random((items, 16)) < 0.3  # every item is solved at times: pass@k rises to 1
        made = [
            Draws(one.astype(float), np.where(one, 0, 1), np.full((items, 16), 10.0)) for one in (sure, even)
        ]
        found = crossing([made[0]], [made[1]], [codes], "pass")
        # 1 - 0.7^k = 0.6 at k = 2.57, with straight lines between k = 2 and 3 on a logarithmic axis.
        assert 22 < found.tokens < 29 and found.low <= found.tokens <= found.high
        assert (found.share, found.first) == (1.0, True)
        assert crossing([made[0]], [made[1]], [codes], "pass") == found
        never = crossing([made[0]], [made[1]], [codes], "avg")
        assert never.tokens is None and never.first and never.share < 0.05

    def test_without_token_counts_no_curves_cross(self):
        one = self.draws(0.5, 0)
        blind = replace(one, tokens=np.full_like(one.tokens, np.nan))
        assert crossing([one], [blind], [np.arange(200)], "maj") is None
        assert all(np.isnan(point.tokens) for point in curve([blind], [np.arange(200)]))

    @pytest.mark.parametrize(("most", "pairs"), [(1, set()), (2, {("base", "tuned")})])
    def test_without_a_baseline_the_first_rows_are_compared(self, built, monkeypatch, most, pairs):
        monkeypatch.setattr(compare, "CURVES", most)
        lines = [replace(line, is_baseline=False) for line in built.summary.lines]
        _, crossings = compare.budgets(built.summary.columns, lines)
        assert {(one.row, one.other) for one in crossings} == pairs

    @pytest.mark.usefixtures("drawn")
    def test_are_written_with_the_board(self, built, board, tmp_path):
        drawn = [files for _, files in draw(built.summary, tmp_path)]
        assert drawn == [plot["files"] for plot in document(board)["plots"]]
        for name in ("over_k", "over_tokens", "over_caps"):
            assert (tmp_path / "plots" / f"{name}.png").stat().st_size > 5_000
        rows = list(csv.DictReader((board / "budgets.csv").open()))
        assert {one["row"] for one in rows} == {"base", "tuned"}
        assert {one["metric"] for one in rows} == {"avg", "maj", "pass", "consistency"}
        assert {one["over"] for one in rows} == {"OOD mean"}
        assert len([one for one in rows if one["cap"] == "" and one["row"] == "base"]) == 4 * 6
        assert (board / "crossings.csv").is_file()
        assert "## Budgets" in (board / "leaderboard.md").read_text()
        found = document(board)
        assert [one["row"] for one in found["budgets"]] == ["base", "tuned"]


@pytest.mark.parametrize(("votes", "found"), [(None, ["avg", "pass"]), ([[0, 0]], ["avg", "maj", "pass"])])
def test_a_task_without_reported_answers_has_no_majority_metric(votes, found):
    draws = Draws(np.array([[1.0, 0.0]]), votes and np.array(votes), np.full((1, 2), 9.0))
    part = Cell(ID, "id", None, {}, ("a",), (None,), np.array([0.5]), None, None, draws=draws)
    result = Result("row", Path("row"), {}, {ID: part}, None, None)
    assert sorted(expanded([result], None)[0].tasks) == [f"{ID} {name}@2" for name in found]


def test_a_board_of_greedy_results_has_no_budgets(place, tmp_path):
    build([place / "greedy"], tmp_path / "board", options=Options(strict=True))
    assert not (tmp_path / "board" / "budgets.csv").exists()
    assert document(tmp_path / "board")["budgets"] == []
    assert records.schema(records.Score).names[-1] == "finish_reason"


@pytest.mark.slow
def test_lmms_eval_repeats_keep_all_responses_and_report_the_metrics(place, tmp_path, golds):
    """`lmms-eval --repeats K` on the suite's tasks: its table, its log, and the board of that log."""
    said = teller(golds, 0.6, 9)
    lines = [
        {
            "task": ID,
            "doc_id": doc,
            "responses": [str(said(Question(ID, doc, index, ""))) for index in range(6)],
        }
        for doc in range(24)
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run = ["-m", "dcsft_harness.cli", "lmms-eval", "--model", "dcsft_stub", "--tasks", ID, "--limit", "24",
           "--model_args", f"answers={tmp_path / 'answers.jsonl'}", "--repeats", "6", "--log_samples",
           "--gen_kwargs", "do_sample=true,temperature=0.9,top_k=50,top_p=1.0",
           "--output_path", str(tmp_path / "log")]  # fmt: skip
    done = forked.run(run, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "maj_at_k" in done.stdout and "pass_at_k" in done.stdout
    results = json.loads(next((tmp_path / "log").rglob("*_results.json")).read_text())["results"][ID]
    built = build([tmp_path / "log"], tmp_path / "board", options=Options(strict=True))
    assert [task.metric for task in built.board.tasks] == ["avg@6", "maj@6", "pass@6"]
    for task, name in zip(built.board.tasks, ("acc", "maj_at_k", "pass_at_k"), strict=True):
        value = built.board.rows[0].cells[task.name].scores.mean()
        assert value == pytest.approx(results[f"{name},none"])
    found = content(next((tmp_path / "board/page/data").glob("b0t0d0.js")).read_text())
    assert len(texts(found["response"])) == 24 * 6 and found["samples"] == 6
    # Next to a row of `dcsft evaluate`, in the same columns.
    both = build([place / "base", tmp_path / "log"], tmp_path / "both", options=Options(strict=True, at_k=2))
    assert f"{ID} maj@2" in both.board.rows[1].cells


@pytest.mark.slow
def test_a_single_response_of_lmms_eval_is_logged_as_before(tmp_path):
    run = ["-m", "dcsft_harness.cli", "lmms-eval", "--model", "dcsft_stub", "--model_args", "default=seven"]
    run += ["--tasks", ID, "--limit", "4", "--log_samples", "--output_path", str(tmp_path / "log")]
    done = forked.run(run, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "maj_at_k" not in done.stdout
    lines = next((tmp_path / "log").rglob("*_samples_*.jsonl")).read_text().splitlines()
    # lmms-eval writes a list of one as its value.
    assert [json.loads(line)["filtered_resps"] for line in lines] == ["seven"] * 4


@pytest.mark.parametrize("greedy", [False, True])
def test_a_table_of_k_responses_says_what_its_counts_and_tests_are_over(greedy):
    """One item of row b lacks a scored response, and no response to another has an answer."""
    none = math.nan
    rows = {
        "a": ([[1, 0], [0, 1], [1, 1]], [[0, 1], [0, 1], [0, 0]], 8.0),
        "b": ([[1, 1], [none, 1], [0, 0]], [[0, 0], [-1, 0], [-1, -1]], 6.0),
    }
    ids, found = ("x", "y", "z"), []
    for name, (given, votes, length) in rows.items():
        draws = Draws(np.array(given, dtype=float), np.array(votes), np.full((3, 2), length))
        mean, silent = np.nanmean(given, axis=1), int(name == "b")
        part = Cell(OOD, "ood", None, {}, ids, (None,) * 3, mean, silent, None, draws=draws)
        (one,) = expanded([Result(name, Path(name), {}, {OOD: part}, None, None)], None)
        more = {OOD: replace(part, scores=np.array([1.0, none, 0.0]), draws=None)} if greedy else {}
        found.append(Row(name, {**one.tasks, **more}))
    parts = found[0].cells.values()
    tasks = [Task(one.task, "ood", None, ids, np.arange(3), metric=one.metric) for one in parts]
    summary = compare.summarize(Board(tuple(found), tuple(tasks), "a"))
    sampled = [at for at, column in enumerate(summary.columns) if column.metric is not None]
    assert [summary.lines[1].entries[at].unanswered for at in sampled] == [1] * 6
    text = report(summary).replace("\\", "")
    assert "Row b: 1 of 3 items of dcsft_digits_r had fewer than 2 scored responses" in text
    assert ("All 2 rows: 1 of 3 responses to dcsft_digits_r could not be scored" in text) == greedy
    assert text.count("1 of 3") == 1 + greedy
    assert "unanswered: no answer was found (of K responses, in none of them), counted as wrong" in text
    assert (
        "the single tasks are a family of their own, and each metric of K responses has its own families"
        in text
    )
    # The row that is compared is named beside the one that is ahead.
    assert "| b and a | pass@k, OOD mean |" in " ".join(text.split())
